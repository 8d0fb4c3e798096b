//! From when on somebody is out: members who are removed, users and tenants that are deactivated.

use pg_conversation_tests::{Client, Server, Session, Uuid, oldest};

use crate::answer::{Answer, ask};
use crate::world::{World, world};

/// Everything by which a member of a/private reads or writes in it.
fn statements(world: &World) -> Vec<(String, &'static str)> {
    let place = world.place("a/private");
    let (c, m) = (place.id, place.stream);
    vec![
        (format!("select id from conversations where id = '{c}'"), "-"),
        (format!("select id from messages where conversation_id = '{c}'"), "-"),
        (format!("select message_id from message_chunks where message_id = '{m}'"), "-"),
        (format!("select user_id from conversation_members where conversation_id = '{c}'"), "-"),
        (format!("select id from feedback where conversation_id = '{c}'"), "-"),
        (format!("select message_id from feedback_counts where conversation_id = '{c}'"), "-"),
        (format!("select thumbs_up from get_message_feedback('{}')", place.ended), "P0002"),
        (format!("select id from give_feedback('{}', -1)", place.ended), "P0002"),
        (format!("select withdraw_feedback('{}')", place.ended), "P0002"),
        (
            format!("insert into feedback (message_id, rating) values ('{m}', 1) returning id"),
            "P0002",
        ),
        (
            format!("update feedback set rating = -1 where conversation_id = '{c}' returning id"),
            "-",
        ),
        (
            format!("select messages from longest_conversations() where conversation_id = '{c}'"),
            "-",
        ),
        (format!("select message_id from get_conversation_with_messages('{c}')"), "-"),
        ("select message_id from get_conversation_history('a/private')".into(), "-"),
        (format!("select reconstruct_message('{m}')"), "-"),
        (format!("select has_conversation_access('{c}', current_user_id(), 'read')"), "-"),
        (format!("select has_message_access('{m}', current_user_id(), 'read')"), "-"),
        (format!("select chunk_index from read_stream('{m}')"), "P0002"),
        (format!("select chunk_index from wait_for_chunks('{m}', -1, 0)"), "P0002"),
        (format!("select user_id from list_members('{c}')"), "P0002"),
        (format!("select listen_conversation('{c}')"), "P0002"),
        (format!("select message_id from add_message('{c}', 'user', 'x')"), "P0002"),
        (
            format!(
                "insert into messages (conversation_id, role) values ('{c}', 'user') returning id"
            ),
            "P0002",
        ),
        (format!("select next_index from append_chunk('{m}', 'x')"), "P0002"),
        (
            format!(
                "insert into message_chunks (message_id, chunk_content) values ('{m}', 'x') returning 1"
            ),
            "P0002",
        ),
        (
            format!("update messages set content = 'x' where conversation_id = '{c}' returning id"),
            "-",
        ),
    ]
}

fn cell(answer: &Answer) -> String {
    match answer {
        Answer::Refusal(code, _) => code.clone(),
        Answer::Rows(rows, _) => {
            let is_some = |cell: &Option<String>| cell.as_deref().is_some_and(|cell| cell != "f");
            if rows.iter().flatten().any(is_some) { "yes" } else { "-" }.into()
        }
    }
}

/// Statements that a session has prepared, each run in a transaction that is undone.
struct Kept {
    client: Client,
    statements: Vec<(String, &'static str)>,
}

impl Kept {
    fn new(world: &World, who: &str) -> Self {
        let mut client = world.session(who);
        client.run("set plan_cache_mode = force_generic_plan");
        let statements = statements(world);
        for (n, (sql, _)) in statements.iter().enumerate() {
            client.run(&format!("prepare p{n} as {sql}"));
        }
        Self { client, statements }
    }

    /// What each says that does not say what it should.
    fn wrong(&mut self, is_in: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        for (n, (sql, out)) in self.statements.iter().enumerate() {
            for sql in [&format!("execute p{n}"), sql] {
                let answer = ask(&mut self.client, &format!("begin; {sql}"));
                self.client.run("rollback");
                let expected = if is_in { "yes" } else { out };
                if cell(&answer) != expected {
                    wrong.push(format!(
                        "{}, not {expected}: {}: {sql}",
                        cell(&answer),
                        answer.text()
                    ));
                }
            }
        }
        wrong
    }
}

/// How somebody is put out, and let in again.
fn ways(world: &World) -> Vec<(String, String)> {
    let (place, editor) =
        (world.place("a/private"), world.person("a editor").user.expect("a user"));
    let (c, t) = (place.id, place.tenant);
    vec![
        (
            format!("select remove_member('{c}', '{editor}')"),
            format!("select add_member('{c}', '{editor}', 'editor')"),
        ),
        (
            format!("delete from conversation_members where user_id = '{editor}'"),
            format!(
                "insert into conversation_members (conversation_id, user_id, role) \
                 values ('{c}', '{editor}', 'editor')"
            ),
        ),
        (
            format!("update users set is_active = false where id = '{editor}'"),
            format!("update users set is_active = true where id = '{editor}'"),
        ),
        (
            format!("update tenants set is_active = false where id = '{t}'"),
            format!("update tenants set is_active = true where id = '{t}'"),
        ),
        (
            format!("update conversations set deleted_at = now() where id = '{c}'"),
            format!("update conversations set deleted_at = null where id = '{c}'"),
        ),
    ]
}

#[test]
fn whoever_is_out_is_out_with_his_next_statement() {
    let world = world(Server::shared(oldest()));
    let mut service = world.session("service");
    for (out, back) in ways(&world) {
        let mut editor = Kept::new(&world, "a editor");
        assert_eq!(editor.wrong(true), [""; 0], "before {out}");
        service.run(&out);
        assert_eq!(editor.wrong(false), [""; 0], "after {out}");
        service.run(&back);
        assert_eq!(editor.wrong(true), [""; 0], "after {back}");
    }
}

/// In the middle of a transaction, too, where each statement sees what was committed before it.
#[test]
fn whoever_is_out_is_out_in_the_middle_of_his_transaction() {
    let world = world(Server::shared(oldest()));
    let mut service = world.session("service");
    for (out, back) in ways(&world) {
        let mut editor = world.session("a editor");
        editor.run("begin");
        for (sql, _) in &statements(&world)[..11] {
            assert_eq!(cell(&ask(&mut editor, sql)), "yes", "{sql}");
        }
        service.run(&out);
        for (sql, expected) in statements(&world) {
            editor.run("savepoint before");
            assert_eq!(cell(&ask(&mut editor, &sql)), expected, "{out}: {sql}");
            editor.run("rollback to before");
        }
        editor.run("rollback");
        service.run(&back);
    }
}

/// A transaction that keeps one snapshot reads what that snapshot holds, its own place among the members
/// included, and nothing that was written since. To write, it is asked anew.
#[test]
fn an_old_snapshot_holds_what_it_held_and_lets_nothing_be_written() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    let mut service = world.session("service");
    for (out, back) in ways(&world) {
        let mut editor = world.session("a editor");
        editor.run("begin isolation level repeatable read");
        let count = format!("select count(*) from messages where conversation_id = '{}'", place.id);
        let before: i64 = editor.value(&count);
        service.run(&out);
        let other = world.place("a/shared").id;
        service.run(&format!("select add_message('{other}', 'user', 'secret-a, later')"));
        assert_eq!(editor.value::<i64>(&count), before, "{out}");
        let later = "select count(*) from messages where content like '%later'";
        assert_eq!(editor.value::<i64>(later), 0, "{out}");
        for call in [
            format!("select begin_message('{}')", place.id),
            format!("select add_message('{}', 'user', 'x')", place.id),
            format!("insert into messages (conversation_id, role) values ('{}', 'user')", place.id),
            format!("select append_chunk('{}', 'x')", place.stream),
            format!("select append_chunks('{}', array['x'])", place.stream),
            format!("select finish_message('{}')", place.stream),
            format!("select stop_message('{}')", place.stream),
            format!("select wait_for_chunks('{}', 1, 0)", place.stream),
            format!("select add_member('{}', '{}')", place.id, place.owner),
        ] {
            editor.run("savepoint before");
            let answer = ask(&mut editor, &call);
            assert!(matches!(answer, Answer::Refusal(..)), "{out}: {call}: {}", answer.text());
            editor.run("rollback to before");
        }
        editor.run("rollback");
        service.run(&back);
        service.run("delete from messages where content like '%later'");
    }
}

/// What is there already is changed by a plain UPDATE, or edited, as policies have it: under the snapshot.
#[test]
fn an_old_snapshot_lets_rows_be_changed_that_it_holds() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    let mut service = world.session("service");
    let user = world.person("a co-owner").user.expect("a user");
    let message = place.messages[&user];
    let mut session = world.session("a co-owner");
    session.run("begin isolation level repeatable read; select count(*) from messages");
    service.run(&format!("select remove_member('{}', '{user}')", place.id));
    for sql in [
        format!("select edit_message('{message}', 'x')"),
        format!("update messages set content = 'y' where id = '{message}'"),
        format!("update conversations set title = 'x' where id = '{}'", place.id),
    ] {
        let answer = ask(&mut session, &sql);
        assert!(answer.text().starts_with("1: "), "{sql}: {}", answer.text());
    }
    session.run("rollback");
    for sql in [
        format!("update messages set content = 'y' where id = '{message}'"),
        format!("update conversations set title = 'x' where id = '{}'", place.id),
    ] {
        assert_eq!(ask(&mut session, &sql).text(), "0: ", "{sql}");
    }
}

/// The next read of a running stream, in whatever way it is read.
#[test]
fn a_reader_who_is_removed_reads_no_further_token() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    let (mut owner, mut viewer) = (world.session("a owner"), world.session("a viewer"));
    let mut service = world.session("service");
    let user = world.person("a viewer").user.expect("a user");
    let read = format!("select count(*) from read_stream('{}', 1)", place.stream);
    assert_eq!(viewer.value::<i64>(&read), 0);
    assert!(owner.value::<bool>(&format!("select remove_member('{}', '{user}')", place.id)));
    service.run(&format!("select append_chunk('{}', 'secret-a, later')", place.stream));
    assert_eq!(viewer.error(&read).0, "P0002");
    assert_eq!(owner.value::<i64>(&read), 1);
    let text: Option<String> =
        viewer.value(&format!("select reconstruct_message('{}')", place.stream));
    assert_eq!(text, None);
}

/// Removed by himself, by name or without, and out at once; nobody is left behind in his caches.
#[test]
fn who_leaves_is_out_and_who_comes_is_in_at_once() {
    let world = world(Server::shared(oldest()));
    let id = world.place("a/private").id;
    let count = format!("select count(*) from messages where conversation_id = '{id}'");
    let mut owner = world.session("a owner");
    for who in ["a co-owner", "a editor", "a viewer"] {
        let mut session = world.session(who);
        assert!(session.value::<i64>(&count) > 0);
        assert!(session.value::<bool>(&format!("select remove_member('{id}')")));
        assert_eq!(session.value::<i64>(&count), 0, "{who}");
        assert_eq!(session.error(&format!("select remove_member('{id}')")).0, "P0002", "{who}");
    }
    let colleague: Uuid = world.person("a colleague").user.expect("a user");
    let mut session = world.session("a colleague");
    assert_eq!(session.value::<i64>(&count), 0);
    assert!(owner.value::<bool>(&format!("select add_member('{id}', '{colleague}')")));
    assert!(session.value::<i64>(&count) > 0);
    let write = format!("select add_message('{id}', 'user', 'x')");
    assert_eq!(session.error(&write).0, "P0002");
    assert!(
        owner.value::<bool>(&format!("select set_member_role('{id}', '{colleague}', 'editor')"))
    );
    session.run(&write);
    assert!(owner.value::<bool>(&format!("select transfer_conversation('{id}', '{colleague}')")));
    // The former owner stays as editor.
    assert_eq!(owner.error(&format!("select add_member('{id}', '{colleague}')")).0, "42501");
    owner.run(&write);
    assert!(session.value::<bool>(&format!("select archive_conversation('{id}')")));
}
