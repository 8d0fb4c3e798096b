//! What the page says of adding people and of editing.

use pg_conversation_tests::{Client, Server, Session, Uuid, oldest};

use crate::world::world;

/// SQLSTATE and hint of the error it must raise.
fn refusal(client: &mut Client, sql: &str) -> (String, String) {
    let error = client.batch_execute(sql).expect_err(sql);
    let db = error.as_db_error().expect("the server answers");
    (db.code().code().into(), db.hint().unwrap_or_default().into())
}

#[test]
fn a_conversation_is_shared_with_the_calls_on_the_page() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/shared");
    let c = place.id;
    let [viewer, colleague, foreign, inactive] =
        ["a viewer", "a colleague", "b owner", "a inactive"]
            .map(|name| world.person(name).user.expect("a user"));
    let mut owner = world.session("a owner");
    let roles = |client: &mut Client| -> Vec<String> {
        client.values(&format!(
            "select role || ' ' || name from list_members('{c}') where role <> 'none'"
        ))
    };
    let members = ["owner a owner", "owner a co-owner", "editor a editor", "viewer a viewer"];
    let mut found = roles(&mut owner);
    assert_eq!(found.remove(0), members[0]);
    found.sort();
    assert_eq!(found, [members[2], members[1], members[3]]);
    // Added once; who is in it keeps his role.
    assert!(owner.value::<bool>(&format!("select add_member('{c}', '{colleague}')")));
    assert!(!owner.value::<bool>(&format!("select add_member('{c}', '{colleague}', 'editor')")));
    assert!(
        !owner.value::<bool>(&format!("select add_member('{c}', '{}', 'viewer')", place.owner))
    );
    assert!(roles(&mut owner).contains(&"viewer a colleague".to_string()));
    assert!(
        owner.value::<bool>(&format!("select set_member_role('{c}', '{colleague}', 'editor')"))
    );
    assert!(
        !owner.value::<bool>(&format!("select set_member_role('{c}', '{colleague}', 'editor')"))
    );
    // Nobody of another tenant, nobody who is locked out, nobody unknown: in the same words.
    for user in [foreign, inactive, Uuid::new_v4()] {
        for call in ["add_member", "transfer_conversation"] {
            let (code, hint) = refusal(&mut owner, &format!("select {call}('{c}', '{user}')"));
            assert_eq!(
                (code.as_str(), hint.as_str()),
                ("P0002", "Check the id, and that the caller may use it.")
            );
        }
    }
    assert_eq!(
        refusal(&mut owner, &format!("select add_member('{c}', '{foreign}', 'king')")).0,
        "22023"
    );
    // There is always an owner.
    for call in ["remove_member('$c')", "remove_member('$c', '$u')"] {
        let call = call.replace("$c", &c.to_string()).replace("$u", &place.owner.to_string());
        let (code, hint) = refusal(&mut owner, &format!("select {call}"));
        assert_eq!(code, "55000");
        assert!(hint.contains("transfer_conversation"), "{hint}");
    }
    // Who reads and may not manage is told so.
    let mut reader = world.session("a viewer");
    assert_eq!(
        refusal(&mut reader, &format!("select add_member('{c}', '{colleague}')")).0,
        "42501"
    );
    assert_eq!(
        refusal(&mut reader, &format!("select transfer_conversation('{c}', '{viewer}')")).0,
        "42501"
    );
    // The former owner stays as editor, and may go.
    assert!(owner.value::<bool>(&format!("select transfer_conversation('{c}', '{viewer}')")));
    assert!(roles(&mut owner).contains(&"editor a owner".to_string()));
    assert!(owner.value::<bool>(&format!("select remove_member('{c}')")));
    assert!(reader.value::<bool>(&format!("select remove_member('{c}', '{colleague}')")));
    assert!(!reader.value::<bool>(&format!("select remove_member('{c}', '{colleague}')")));
    // Deleted, it has no members to change any more.
    assert!(reader.value::<bool>(&format!("select delete_conversation('{c}')")));
    assert_eq!(
        refusal(&mut reader, &format!("select add_member('{c}', '{colleague}')")).0,
        "P0002"
    );
}

#[test]
fn an_edit_is_of_ones_own_words_and_what_it_replaces_is_kept_for_those_who_manage() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    let editor = world.person("a editor").user.expect("a user");
    let message = place.messages[&editor];
    let mut session = world.session("a editor");
    let revisions = format!(
        "select content from message_revisions where message_id = '{message}' order by revision"
    );
    let text = format!("select content from messages where id = '{message}'");
    session.run(&format!("select edit_message('{message}', 'second')"));
    session.run(&format!("update messages set content = 'third' where id = '{message}'"));
    session.run(&format!("select edit_message('{message}', 'third')"));
    assert_eq!(session.value::<String>(&text), "third");
    let first = "secret-a by a editor";
    let expected = [first.to_string(), format!("{first}, edited"), "second".into()];
    for who in ["a owner", "a co-owner", "a admin", "service"] {
        assert_eq!(world.session(who).values::<String>(&revisions), expected, "{who}");
    }
    for who in ["a editor", "a viewer", "a colleague", "b admin", "nobody"] {
        assert_eq!(world.session(who).values::<String>(&revisions), [""; 0], "{who}");
    }
    let who = format!(
        "select edited_by from message_revisions where message_id = '{message}' and revision = 3"
    );
    assert_eq!(world.root().value::<Option<Uuid>>(&who), Some(editor));
    // Not the words of others, and not where the tenant does not want it.
    let other = place.messages[&place.owner];
    assert_eq!(refusal(&mut session, &format!("select edit_message('{other}', 'x')")).0, "42501");
    for features in ["{}", "{\"edit_messages\": false}", "{\"edit_messages\": \"true\"}"] {
        world.root().run(&format!("update tenants set features = '{features}' where slug = 'a'"));
        assert_eq!(
            refusal(&mut session, &format!("select edit_message('{message}', 'x')")).0,
            "42501"
        );
        let update = format!("update messages set content = 'x' where id = '{message}'");
        assert_eq!(session.execute(&update, &[]).expect(&update), 0, "{features}");
    }
    // The service writes for others, and says for whom; what is still to be written it leaves alone.
    let mut service = world.session("service");
    for status in ["streaming", "interrupted"] {
        service
            .run(&format!("update messages set status = '{status}' where id = '{}'", place.stream));
        let (code, _) =
            refusal(&mut service, &format!("select edit_message('{}', 'x')", place.stream));
        assert_eq!(code, "24000", "{status}");
    }
    service.run(&format!("select edit_message('{message}', 'corrected')"));
    assert_eq!(service.value::<String>(&text), "corrected");
    let insert = |author: Uuid| {
        format!(
            "insert into messages (conversation_id, role, author_id) values ('{}', 'user', '{author}')",
            place.id
        )
    };
    service.run(&insert(editor));
    let foreign = world.person("b owner").user.expect("a user");
    assert_eq!(refusal(&mut service, &insert(foreign)).0, "P0002");
    assert_eq!(refusal(&mut session, &insert(editor)).0, "42501");
}
