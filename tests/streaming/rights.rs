//! Who may do what with a stream, and that nobody learns of streams that are not his.

use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Session, Uuid, wait_until};

use crate::desk::{Desk, Stream, code};

/// People around one conversation.
struct World {
    desk: Desk<'static>,
    editor: Uuid,
    viewer: Uuid,
    stranger: Uuid,
    foreigner: Uuid,
}

const NOBODY: &str = "stream_nobody";

fn world() -> World {
    let desk = Desk::new();
    let [editor, viewer, stranger, foreigner, tenant] = [(); 5].map(|()| Uuid::new_v4());
    let c = desk.conversation;
    desk.database.superuser().run(&format!(
        "insert into tenants (id, name, slug) values ('{tenant}', 'Other', 'other'); \
         insert into users (id) values ('{editor}'), ('{viewer}'), ('{stranger}'); \
         insert into users (id, tenant_id) values ('{foreigner}', '{tenant}'); \
         insert into conversation_members (conversation_id, user_id, role) \
         values ('{c}', '{editor}', 'editor'), ('{c}', '{viewer}', 'viewer')"
    ));
    desk.database.server.role(NOBODY);
    World { desk, editor, viewer, stranger, foreigner }
}

impl World {
    fn session(&self, who: &str) -> Client {
        match who {
            "owner" => self.desk.member(),
            "editor" => self.desk.database.member(self.editor),
            "viewer" => self.desk.database.member(self.viewer),
            "stranger" => self.desk.database.member(self.stranger),
            "foreigner" => self.desk.database.member(self.foreigner),
            "unknown" => self.desk.database.member(Uuid::new_v4()),
            "nobody" => self.desk.database.connect(NOBODY),
            "service" => self.desk.service(),
            other => panic!("{other}"),
        }
    }

    /// A message of the conversation with chunks "a", "b", made by its owner.
    fn message(&self) -> Uuid {
        let mut owner = self.desk.member();
        let message = owner.open(self.desk.conversation);
        owner.window(message, &["a", "b"], Some(0)).unwrap();
        message
    }
}

/// Runs it and undoes it; the SQLSTATE and words of its error, with the ids left out.
fn attempt(client: &mut Client, sql: &str, ids: &[Uuid]) -> Result<u64, (String, String)> {
    client.run("begin");
    let result = client.execute(sql, &[]).map_err(|error| {
        let db = error.as_db_error().expect("the server answers");
        let words = [db.message(), db.detail().unwrap_or_default(), db.hint().unwrap_or_default()];
        let mut words = words.join(" | ");
        for id in ids {
            words = words.replace(&id.to_string(), "ID");
        }
        (db.code().code().to_string(), words)
    });
    client.run("rollback");
    result
}

#[test]
fn writers_write_viewers_read_and_nobody_else_learns_that_there_is_a_message() {
    let world = world();
    let read = ["owner", "editor", "viewer", "service"];
    let write = ["owner", "editor", "service"];
    let keep = ["service"];
    // A statement, and who may run it; $m is the message, $c its conversation.
    let cases: Vec<(&str, &[&str])> = vec![
        ("select append_chunk('$m', 'c')", &write),
        ("select append_chunk('$m', 'c', 2, true)", &write),
        ("select append_chunk('$m', 'b', 1)", &write),
        ("select append_chunks('$m', array['c', 'd'], 2)", &write),
        ("select append_chunks('$m', '{}')", &write),
        ("select finish_message('$m')", &write),
        ("select finish_message('$m', 1, 2, 'm', 3, '{}')", &write),
        ("select fail_message('$m', 'e')", &write),
        ("select stop_message('$m')", &write),
        ("select stop_message('$m', 1)", &write),
        ("select resume_message('$m')", &write),
        ("select cleanup_streaming_artifacts('$m'::uuid)", &write),
        ("select begin_message('$c')", &write),
        ("select begin_message('$c', client_message_id => 'k')", &write),
        ("insert into message_chunks (message_id, chunk_content) values ('$m', 'c')", &write),
        (
            "insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'c', 7)",
            &write,
        ),
        (
            "insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'b', 1) \
             on conflict do nothing",
            &write,
        ),
        (
            "insert into message_chunks (message_id, chunk_content, chunk_index, is_final) \
             values ('$m', 'c', 2, true)",
            &write,
        ),
        ("select read_stream('$m')", &read),
        ("select read_stream('$m', 5)", &read),
        ("select wait_for_chunks('$m', -1, 0)", &read),
        ("select wait_for_chunks('$m', -1, 20000)", &read),
        ("select listen_conversation('$c')", &read),
        ("select recover_stalled_messages('1 day')", &keep),
        ("select cleanup_finished_streams('1 day')", &keep),
    ];
    let message = world.message();
    let conversation = world.desk.conversation;
    let nothing = Uuid::new_v4();
    let ids = [message, conversation, nothing];
    let mut wrong = Vec::new();
    for who in
        ["owner", "editor", "viewer", "stranger", "foreigner", "unknown", "nobody", "service"]
    {
        let mut client = world.session(who);
        for (sql, allowed) in &cases {
            let real =
                sql.replace("$m", &message.to_string()).replace("$c", &conversation.to_string());
            let unreal =
                sql.replace("$m", &nothing.to_string()).replace("$c", &nothing.to_string());
            let found = attempt(&mut client, &real, &ids);
            match &found {
                Ok(_) if allowed.contains(&who) => (),
                Err((code, _)) if !allowed.contains(&who) => {
                    let house = allowed.len() == 1;
                    let expected = if who == "nobody" || house { "42501" } else { "P0002" };
                    // A viewer sees that it is there; whoever has no grants is told so, or nothing.
                    let told =
                        who == "viewer" && code == "42501" || who == "nobody" && code == "P0002";
                    if code != expected && !told {
                        wrong.push(format!("{who}: {sql}: {found:?}"));
                    }
                }
                _ => wrong.push(format!("{who}: {sql}: {found:?}")),
            }
            // What he may not see is told in the words for what is not there.
            if !allowed.contains(&who) && who != "viewer" && real != unreal {
                let other = attempt(&mut client, &unreal, &ids);
                if other != found {
                    wrong.push(format!(
                        "{who}: {sql}: {found:?}, and {other:?} where there is none"
                    ));
                }
            }
        }
        // Texts and rows are there for readers only.
        let text = client
            .query_one(&format!("select reconstruct_message('{message}')"), &[])
            .map(|row| row.get::<_, Option<String>>(0));
        let rows = client
            .query_one("select count(*) from message_chunks", &[])
            .map(|row| row.get::<_, i64>(0));
        match (text, rows) {
            (Ok(text), Ok(rows)) if who != "nobody" => {
                let expected = if read.contains(&who) { (Some("ab"), 2) } else { (None, 0) };
                if (text.as_deref(), rows) != expected {
                    wrong.push(format!("{who}: {text:?}, {rows} rows"));
                }
            }
            (Err(text), Err(rows)) if who == "nobody" => {
                assert_eq!((code(&text), code(&rows)), ("42501", "42501"));
            }
            both => wrong.push(format!("{who}: {both:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(world.desk.member().text(message).unwrap(), "ab");
}

#[test]
fn a_stranger_waits_for_no_lock_and_holds_none() {
    let world = world();
    let message = world.message();
    let mut owner = world.desk.member();
    owner.run("begin");
    owner.append(message, "c", None).unwrap();
    let calls = [
        "select append_chunk('$m', 'x')",
        "select append_chunks('$m', array['x'], 0)",
        "select finish_message('$m')",
        "select stop_message('$m')",
        "select fail_message('$m', 'e')",
        "select resume_message('$m')",
        "select cleanup_streaming_artifacts('$m')",
        "insert into message_chunks (message_id, chunk_content) values ('$m', 'x')",
    ];
    let mut wrong = Vec::new();
    for who in ["stranger", "foreigner", "viewer"] {
        let mut client = world.session(who);
        client.run("set lock_timeout = '100ms'");
        for call in calls {
            let (code, words) = client.error(&call.replace("$m", &message.to_string()));
            // That somebody writes to it is as much as that it is there.
            if code != "P0002" && code != "42501" {
                wrong.push(format!("{who}: {call}: {code} {words}"));
            }
        }
    }
    owner.run("commit");
    // What he has tried does not stand in the way of others while his transaction lasts.
    for who in ["stranger", "foreigner", "viewer"] {
        let mut client = world.session(who);
        client.run("begin");
        for call in calls {
            client.run(&format!(
                "do $do$ begin perform 1 from (select 1) x; execute $q${}$q$; \
                 exception when others then null; end $do$",
                call.replace("$m", &message.to_string())
            ));
        }
        owner.run("set lock_timeout = '500ms'");
        if let Err(error) = owner.append(message, "d", None) {
            wrong.push(format!("{who} holds a lock: {}", code(&error)));
        }
        client.run("rollback");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_member_who_is_removed_reads_no_further() {
    let world = world();
    let mut superuser = world.desk.database.superuser();
    let conversation = world.desk.conversation;
    let viewer = world.viewer;
    // How access ends, and how it is given back.
    let ends = [
        (
            format!("delete from conversation_members where user_id = '{viewer}'"),
            format!(
                "insert into conversation_members (conversation_id, user_id, role) \
                 values ('{conversation}', '{viewer}', 'viewer')"
            ),
        ),
        (
            format!("select remove_member('{conversation}', '{viewer}')"),
            format!("select add_member('{conversation}', '{viewer}')"),
        ),
        (
            format!("update users set is_active = false where id = '{viewer}'"),
            format!("update users set is_active = true where id = '{viewer}'"),
        ),
        (
            "update tenants set is_active = false".into(),
            "update tenants set is_active = true".into(),
        ),
        (
            format!("update conversations set deleted_at = now() where id = '{conversation}'"),
            format!("update conversations set deleted_at = null where id = '{conversation}'"),
        ),
    ];
    for (end, back) in ends {
        let message = world.message();
        let mut reader = world.session("viewer");
        let mut waiter = world.session("viewer");
        assert_eq!(reader.read(message, -1, 9).unwrap().len(), 2);
        let pid: i32 = waiter.value("select pg_backend_pid()");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| waiter.wait(message, 1, 20_000, 9));
            wait_until(
                &mut superuser,
                &format!(
                    "select exists (select from pg_stat_activity where pid = {pid} \
                     and state = 'active' and query like '%wait_for_chunks%')"
                ),
            );
            thread::sleep(Duration::from_millis(60));
            superuser.run(&end);
            assert_eq!(code(&reader.read(message, -1, 9).unwrap_err()), "P0002", "{end}");
            assert_eq!(reader.text(message), None, "{end}");
            assert_eq!(reader.chunks(message), 0, "{end}");
            // News, which is none of his any more.
            superuser.run(&format!("select append_chunk('{message}', 'secret')"));
            let start = Instant::now();
            match waiting.join().expect("no panic") {
                Err(error) => assert_eq!(code(&error), "P0002", "{end}"),
                Ok(pieces) => assert!(pieces.is_empty(), "{end}: {pieces:?}"),
            }
            assert!(start.elapsed() < Duration::from_secs(2), "{end}: {:?}", start.elapsed());
        });
        superuser.run(&back);
        assert_eq!(reader.text(message).unwrap(), "absecret", "{back}");
    }
}

#[test]
fn an_editor_who_becomes_a_viewer_writes_no_further() {
    let world = world();
    let mut superuser = world.desk.database.superuser();
    let message = world.message();
    let mut editor = world.session("editor");
    let set = |role: &str| {
        format!(
            "update conversation_members set role = '{role}' where user_id = '{}'",
            world.editor
        )
    };
    editor.append(message, "c", Some(2)).unwrap();
    superuser.run(&set("viewer"));
    for result in [
        editor.append(message, "d", Some(3)).map(|_| ()),
        editor.append(message, "d", None).map(|_| ()),
        editor.insert(message, "d", 3, false).map(|_| ()),
        editor.finish(message).map(|_| ()),
        editor.stop(message, None).map(|_| ()),
    ] {
        let code = code(&result.unwrap_err()).to_string();
        assert!(["P0002", "42501"].contains(&code.as_str()), "{code}");
    }
    assert_eq!(editor.text(message).unwrap(), "abc");
    superuser.run(&set("editor"));
    editor.append(message, "d", Some(3)).unwrap();
    // Within one transaction, too: others' commits hold from the next call on.
    editor.run("begin");
    editor.append(message, "e", Some(4)).unwrap();
    superuser.run(&set("viewer"));
    assert!(editor.append(message, "f", Some(5)).is_err());
    editor.run("rollback");
    // And whoever speaks for somebody else in the same session.
    superuser.run(&set("editor"));
    editor.append(message, "e", Some(4)).unwrap();
    editor.run(&format!("set pg_conversation.user_id = '{}'", world.stranger));
    assert_eq!(code(&editor.append(message, "f", Some(5)).unwrap_err()), "P0002");
    editor.run("reset pg_conversation.user_id");
    assert!(editor.append(message, "f", Some(5)).is_err());
    assert_eq!(superuser.text(message).unwrap(), "abcde");
}
