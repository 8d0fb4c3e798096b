//! Whose message a stream is, and that edits and streams keep out of each other's way.

use pg_conversation_tests::{Client, Session, Uuid, describe};

use crate::desk::{Desk, Stream, code};

/// A desk whose tenant lets users edit, an editor beside the owner, and a viewer.
fn desk() -> (Desk<'static>, Uuid, Uuid) {
    let desk = Desk::new();
    let [editor, viewer] = [(); 2].map(|()| Uuid::new_v4());
    let c = desk.conversation;
    desk.database.superuser().run(&format!(
        "update tenants set features = '{{\"edit_messages\": true}}'; \
         insert into users (id) values ('{editor}'), ('{viewer}'); \
         select add_member('{c}', '{editor}', 'editor'), add_member('{c}', '{viewer}')"
    ));
    (desk, editor, viewer)
}

fn author(client: &mut Client, message: Uuid) -> Option<Uuid> {
    client.value(&format!("select author_id from messages where id = '{message}'"))
}

/// Revisions of a message, and when it was edited, as `n edited` or `n -`.
fn edits(client: &mut Client, message: Uuid) -> String {
    client.value(&format!(
        "select count(r.revision) || case when m.edited_at is null then ' -' else ' edited' end \
         from messages m left join message_revisions r on r.message_id = m.id \
         where m.id = '{message}' group by m.id"
    ))
}

#[test]
fn a_stream_is_his_who_began_it_whoever_writes_and_ends_it() {
    let (desk, editor, _) = desk();
    let c = desk.conversation;
    let mut superuser = desk.database.superuser();
    let (mut owner, mut other, mut service) =
        (desk.member(), desk.database.member(editor), desk.service());
    let mut speaking = desk.service();
    speaking.run(&format!("set pg_conversation.user_id = '{editor}'"));
    for n in 0..12 {
        let (client, expected) = match n % 4 {
            0 => (&mut owner, Some(desk.user)),
            1 => (&mut other, Some(editor)),
            2 => (&mut service, None),
            _ => (&mut speaking, Some(editor)),
        };
        let begin = match n / 4 {
            0 => format!("select begin_message('{c}')"),
            1 => format!("select begin_message('{c}', 'user', client_message_id => '{n}')"),
            _ => format!(
                "insert into messages (conversation_id, role, status) \
                 values ('{c}', 'assistant', 'pending') returning id"
            ),
        };
        let m: Uuid = client.value(&begin);
        assert_eq!(author(&mut superuser, m), expected, "{begin}");
        // Nobody else becomes the author by what he does to it.
        let (one, two) = match n % 3 {
            0 => (&mut owner, &mut other),
            1 => (&mut other, &mut service),
            _ => (&mut service, &mut owner),
        };
        one.append(m, "a", Some(0)).unwrap();
        two.window(m, &["b", "c"], Some(1)).unwrap();
        one.insert(m, "d", 3, false).unwrap();
        superuser.run("select recover_stalled_messages('0 s')");
        assert_eq!(two.status(m), "interrupted");
        one.run(&format!("select resume_message('{m}')"));
        match n % 4 {
            0 => two.run(&format!("select fail_message('{m}', 'e')")),
            1 => drop(two.stop(m, None).unwrap()),
            2 => drop(two.append_last(m, "e", Some(4)).unwrap()),
            _ => drop(two.finish(m).unwrap()),
        }
        superuser.run(&format!("select cleanup_streaming_artifacts('{m}')"));
        assert_eq!(author(&mut superuser, m), expected);
        // Its text came as it was written: that is no edit.
        assert_eq!(edits(&mut superuser, m), "0 -", "{n}");
    }
    // What a member or a service brings along as author.
    let by = |user: Uuid| {
        format!(
            "insert into messages (conversation_id, role, status, author_id) \
             values ('{c}', 'assistant', 'streaming', '{user}') returning author_id"
        )
    };
    assert_eq!(owner.error(&by(editor)).0, "42501");
    assert_eq!(service.value::<Uuid>(&by(editor)), editor);
    assert_eq!(service.error(&by(Uuid::new_v4())).0, "P0002");
}

/// Members have UPDATE of content and parts, and nothing to gain by it from a stream.
#[test]
fn a_stream_is_neither_ended_nor_changed_by_an_update_of_its_text() {
    let (desk, editor, viewer) = desk();
    let c = desk.conversation;
    let mut superuser = desk.database.superuser();
    // Each made by the editor, as his own and as a user's: all that the policy asks for but the status.
    let makes = [
        ("streaming", format!("select begin_message('{c}', 'user')")),
        ("interrupted", format!("select begin_message('{c}', 'user')")),
        (
            "pending",
            format!(
                "insert into messages (conversation_id, role, status) values ('{c}', 'user', 'pending') returning id"
            ),
        ),
    ];
    for (status, make) in makes {
        let m: Uuid = desk.database.member(editor).value(&make);
        superuser.append(m, "a", Some(0)).unwrap();
        if status == "pending" {
            superuser.run(&format!(
                "delete from message_chunks where message_id = '{m}'; \
                 update messages set status = 'pending' where id = '{m}'"
            ));
        }
        if status == "interrupted" {
            superuser.run("select recover_stalled_messages('0 s')");
        }
        let chunks = superuser.chunks(m);
        for (who, user) in [("author", editor), ("owner", desk.user), ("viewer", viewer)] {
            let mut client = desk.database.member(user);
            for set in
                ["content = 'x'", "content = 'x', parts = '[]'", "parts = '[]'", "content = ''"]
            {
                let sql = format!("update messages set {set} where id = '{m}'");
                let rows = client.execute(&sql, &[]).unwrap_or_else(|e| panic!("{}", describe(&e)));
                assert_eq!(rows, 0, "{who}: {sql}");
            }
            for set in [
                "status = 'completed'",
                "completed_at = now()",
                "author_id = null",
                "edited_at = null",
            ] {
                let sql = format!("update messages set {set}, content = 'x' where id = '{m}'");
                assert_eq!(client.error(&sql).0, "42501", "{who}: {sql}");
            }
            let edit = format!("select edit_message('{m}', 'x')");
            assert_eq!(client.error(&edit).0, "24000", "{who}");
        }
        // Whoever may do anything is told, too, by the function.
        assert_eq!(desk.service().error(&format!("select edit_message('{m}', 'x')")).0, "24000");
        assert_eq!((superuser.status(m).as_str(), superuser.chunks(m)), (status, chunks));
        superuser.run(&format!("select resume_message('{m}')"));
        superuser.append(m, "b", Some(chunks as i32)).unwrap();
        superuser.finish(m).unwrap();
        assert_eq!(edits(&mut superuser, m), "0 -");
        assert!(superuser.text(m).unwrap().ends_with('b'));
    }
    // An empty message that older clients stream into is the assistant's, and so not a user's to edit.
    let blank = format!(
        "insert into messages (conversation_id, role) values ('{c}', 'assistant') returning id"
    );
    let mut member = desk.database.member(editor);
    let m: Uuid = member.value(&blank);
    let sql = format!("update messages set content = 'x' where id = '{m}'");
    assert_eq!(member.execute(&sql, &[]).unwrap(), 0);
    member.append(m, "a", Some(0)).unwrap();
    member.finish(m).unwrap();
    assert_eq!((member.text(m).as_deref(), edits(&mut superuser, m).as_str()), (Some("a"), "0 -"));
}

/// After the end a text is edited like any other, and readers are told the new one.
#[test]
fn an_edited_answer_is_read_as_edited() {
    let (desk, editor, viewer) = desk();
    let (mut service, mut superuser) = (desk.service(), desk.database.superuser());
    let mut reader = desk.database.member(viewer);
    for clean in [false, true] {
        for end in ["finish_message('$m')", "stop_message('$m')", "fail_message('$m', 'e')"] {
            let m = desk.database.member(editor).open(desk.conversation);
            service.window(m, &["sec", "ret"], Some(0)).unwrap();
            service.run(&format!("select {}", end.replace("$m", &m.to_string())));
            if clean {
                service.run(&format!("select cleanup_streaming_artifacts('{m}')"));
            }
            service.run(&format!("select edit_message('{m}', 'edited')"));
            assert_eq!(edits(&mut superuser, m), "1 edited", "{end}");
            assert_eq!(reader.text(m).unwrap(), "edited", "{end}, {clean}");
            // What was taken back is for those who manage the conversation.
            let read: String =
                reader.read(m, -1, 9).unwrap().iter().map(|piece| piece.content.as_str()).collect();
            assert_eq!(read, "edited", "read_stream, {end}, cleaned up {clean}");
            let waited: String = reader
                .wait(m, -1, 50, 9)
                .unwrap()
                .iter()
                .map(|piece| piece.content.as_str())
                .collect();
            assert_eq!(waited, "edited", "wait_for_chunks, {end}, cleaned up {clean}");
            let rows: Vec<String> = reader.values(&format!(
                "select chunk_content from message_chunks where message_id = '{m}'"
            ));
            assert!(!rows.concat().contains("secret"), "{end}: {rows:?}");
            // A producer that was stopped is told so, and writes nothing.
            match service.append(m, "x", None) {
                Ok(answer) => assert!(answer.stop && end.starts_with("stop"), "{end}: {answer:?}"),
                Err(error) => assert_eq!(code(&error), "24000", "{end}"),
            }
            assert_eq!(reader.text(m).unwrap(), "edited");
        }
    }
}

#[test]
fn who_writes_is_settled_by_the_functions_for_members_too() {
    let (desk, editor, _) = desk();
    let c = desk.conversation;
    let (mut owner, mut writer) = (desk.member(), desk.database.member(editor));
    let m = owner.open(c);
    writer.append(m, "a", Some(0)).unwrap();
    // Within a transaction as well: what others have committed holds from the next call on.
    for begin in ["", "begin"] {
        let mut next = writer.value::<i32>(&format!(
            "select max(chunk_index) + 1 from message_chunks where message_id = '{m}'"
        ));
        let mut allowed = |writer: &mut Client, owner: &mut Client, sql: &str, may: bool| {
            owner.run(sql);
            writer.run(if begin.is_empty() { "select 1" } else { "savepoint s" });
            match writer.append(m, "b", Some(next)) {
                Ok(_) => {
                    assert!(may, "{sql}");
                    next += 1;
                }
                Err(error) => {
                    assert!(!may && ["P0002", "42501"].contains(&code(&error)), "{sql}: {error}");
                    writer.run(if begin.is_empty() { "select 1" } else { "rollback to s" });
                }
            }
        };
        writer.run(begin);
        let call =
            |function: &str, role: &str| format!("select {function}('{c}', '{editor}'{role})");
        for (sql, may) in [
            (call("set_member_role", ", 'viewer'"), false),
            (call("set_member_role", ", 'owner'"), true),
            (call("set_member_role", ", 'editor'"), true),
            (call("remove_member", ""), false),
            (call("add_member", ""), false),
            (call("remove_member", ""), false),
            (call("add_member", ", 'editor'"), true),
            ("select delete_conversation('$c')".into(), false),
            ("update conversations set deleted_at = null where id = '$c'".into(), true),
        ] {
            allowed(&mut writer, &mut owner, &sql.replace("$c", &c.to_string()), may);
        }
        writer.run(if begin.is_empty() { "select 1" } else { "commit" });
    }
    // Whoever gives it away stays as an editor, until the new owner has him out.
    let mut former = desk.member();
    former.run(&format!("select transfer_conversation('{c}', '{editor}')"));
    assert!(former.append(m, "c", None).is_ok());
    writer.run(&format!("select remove_member('{c}', '{}')", desk.user));
    assert_eq!(code(&former.append(m, "d", None).unwrap_err()), "P0002");
    assert_eq!(former.text(m), None);
}
