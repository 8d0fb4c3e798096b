//! Appends inside transactions: what is undone was never sent, what others do is not overwritten.

use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Session, Uuid, wait_until};

use crate::desk::{Desk, Stream, code, expected_index};

fn run(client: &mut Client, message: Uuid, sql: &str) {
    client.run(&sql.replace("$m", &message.to_string()));
}

/// Returns when the session waits for a lock.
fn until_locked_out(watcher: &mut Client, pid: i32) {
    let sql = format!("select exists (select from pg_locks where pid = {pid} and not granted)");
    wait_until(watcher, &sql);
}

#[test]
fn what_is_rolled_back_was_never_sent() {
    let a = "select append_chunk('$m', 'a')";
    let b = "select append_chunk('$m', 'b')";
    let c = "select append_chunk('$m', 'c')";
    let fails = "do $$ begin perform append_chunk('$m', 'b'); raise division_by_zero; \
                 exception when division_by_zero then null; end $$";
    // What one session does after a first chunk "0", the state and the text that stay.
    let cases = [
        (format!("begin; {a}; rollback"), "streaming 0"),
        (format!("begin; {a}; {b}; commit"), "streaming 0ab"),
        (format!("begin; {a}; rollback; {b}"), "streaming 0b"),
        (format!("begin; {a}; savepoint s; {b}; rollback to s; {c}; commit"), "streaming 0ac"),
        (format!("begin; savepoint s; {a}; {b}; rollback to s; {c}; commit"), "streaming 0c"),
        (format!("begin; savepoint s; {a}; rollback to s; commit; {b}"), "streaming 0b"),
        (format!("begin; {a}; savepoint s; {b}; release s; {c}; commit"), "streaming 0abc"),
        (format!("begin; savepoint s; {a}; savepoint t; {b}; release t; rollback to s; {c}; commit"), "streaming 0c"),
        (format!("begin; savepoint s; {a}; savepoint t; {b}; rollback to t; {b}; release s; {c}; commit"), "streaming 0abc"),
        (format!("begin; savepoint s; {a}; rollback to s; {a}; rollback to s; {a}; commit"), "streaming 0a"),
        (format!("begin; {a}; savepoint s; select 1/0; rollback to s; {b}; commit"), "streaming 0ab"),
        (format!("begin; {a}; {fails}; {c}; commit"), "streaming 0ac"),
        (format!("{fails}; {c}"), "streaming 0c"),
        // The same with indexes: an index that was undone is free again.
        (
            "begin; select append_chunk('$m', 'a', 1); savepoint s; select append_chunk('$m', 'b', 2); \
             rollback to s; select append_chunk('$m', 'c', 2); commit"
                .into(),
            "streaming 0ac",
        ),
        (
            "begin; select append_chunk('$m', 'a', 1); rollback; select append_chunk('$m', 'b', 1)".into(),
            "streaming 0b",
        ),
        // A statement that fails half-way ends nothing, neither then nor later.
        (
            "begin; savepoint s; insert into message_chunks (message_id, chunk_content, chunk_index, is_final) \
             values ('$m', 'x', 1, true), ('$m', null, 2, false) -- fails; rollback to s; \
             insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'a', 1); commit"
                .into(),
            "streaming 0a",
        ),
        (
            "begin; savepoint s; insert into message_chunks (message_id, chunk_content, chunk_index, is_final) \
             values ('$m', 'x', 1, true), ('$m', 'y', 1, true) -- fails; rollback to s; commit; \
             insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'a', 1)"
                .into(),
            "streaming 0a",
        ),
        // Endings, too.
        (format!("begin; {a}; select finish_message('$m'); rollback; {b}"), "streaming 0b"),
        (
            format!("begin; {a}; savepoint s; select finish_message('$m'); rollback to s; {b}; commit"),
            "streaming 0ab",
        ),
        (
            format!("begin; savepoint s; select append_chunk('$m', 'x', null, true); rollback to s; {b}; commit"),
            "streaming 0b",
        ),
        (
            format!("begin; savepoint s; select stop_message('$m', 0); rollback to s; {b}; commit"),
            "streaming 0b",
        ),
        (format!("begin; {a}; select stop_message('$m'); {b}; commit"), "stopped 0a"),
        (format!("begin; {a}; select finish_message('$m'); commit"), "completed 0a"),
        (
            "begin; insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'c', 3); \
             savepoint s; insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'x', 2); \
             rollback to s; insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'b', 2); \
             insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'a', 1); commit"
                .into(),
            "streaming 0abc",
        ),
        (
            "begin; savepoint s; insert into message_chunks (message_id, chunk_content, chunk_index, is_final) \
             values ('$m', 'b', 2, true); rollback to s; \
             insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'a', 1); commit"
                .into(),
            "streaming 0a",
        ),
    ];
    let desk = Desk::new();
    let mut other = desk.member();
    for (sql, expected) in &cases {
        for level in ["read committed", "repeatable read", "serializable"] {
            let mut member = desk.member();
            member.run(&format!("set default_transaction_isolation = '{level}'"));
            let message = member.open(desk.conversation);
            member.append(message, "0", None).unwrap();
            // One statement a message: a failure inside must not end the others.
            for statement in split(sql) {
                let statement = statement.replace("$m", &message.to_string());
                if statement.contains("1/0") || statement.contains("-- fails") {
                    member.error(&statement);
                } else {
                    member.run(&statement);
                }
            }
            let found = format!("{} {}", other.status(message), other.text(message).unwrap());
            assert_eq!(&found, expected, "{level}: {sql}");
            // Both this session and another one know where to go on.
            if expected.starts_with("streaming") {
                let next = other.chunks(message) as i32;
                assert_eq!(
                    member.append(message, "y", Some(next)).unwrap().next,
                    next + 1,
                    "{sql}"
                );
                assert_eq!(other.append(message, "z", None).unwrap().next, next + 2, "{sql}");
                assert_eq!(member.append(message, "!", None).unwrap().next, next + 3, "{sql}");
                member.finish(message).unwrap();
                let text = expected.split(' ').nth(1).unwrap_or_default();
                assert_eq!(other.text(message).unwrap(), format!("{text}yz!"), "{level}: {sql}");
            }
        }
    }
}

fn split(sql: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut inside = false;
    let mut start = 0;
    for (i, _) in sql.match_indices(['$', ';']) {
        if sql[i..].starts_with("$$") {
            inside = !inside;
        } else if sql[i..].starts_with(';') && !inside {
            statements.push(sql[start..i].to_string());
            start = i + 1;
        }
    }
    statements.push(sql[start..].to_string());
    statements
}

#[test]
fn a_transaction_that_appends_holds_one_lock_of_the_message_to_its_end() {
    let desk = Desk::new();
    let (mut member, mut other) = (desk.member(), desk.member());
    let (message, unrelated) = (member.open(desk.conversation), member.open(desk.conversation));
    let pid: i32 = member.value("select pg_backend_pid()");
    let locks = format!(
        "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 101 and pid = {pid}"
    );
    for end in ["commit", "rollback"] {
        member.run("begin");
        member.append(message, "a", None).unwrap();
        member.append(message, "b", None).unwrap();
        assert_eq!(other.value::<i64>(&locks), 1);
        // Readers wait for nobody, nor do those who write elsewhere.
        other.run("set lock_timeout = '1ms'");
        assert!(other.text(message).is_some() && other.read(message, -1, 9).is_ok());
        other.append(unrelated, "x", None).unwrap();
        other.run("reset lock_timeout");
        member.run(end);
        assert_eq!(other.value::<i64>(&locks), 0, "{end}");
    }
}

#[test]
fn a_prepared_transaction_keeps_its_chunks_in_place() {
    let desk = Desk::new();
    let (mut member, mut other) = (desk.member(), desk.member());
    for end in ["commit", "rollback"] {
        let message = member.open(desk.conversation);
        member.append(message, "a", None).unwrap();
        member.run("begin");
        member.append(message, "b", None).unwrap();
        let name = format!("{}-{end}", desk.database.name);
        match member.batch_execute(&format!("prepare transaction '{name}'")) {
            // Refusing it is an answer, too.
            Err(error) => {
                assert_eq!(code(&error), "0A000");
                member.run("rollback");
                assert_eq!(member.append(message, "c", None).unwrap().next, 2);
            }
            Ok(()) => {
                // The session that wrote it has forgotten all about it.
                member.run("set lock_timeout = '200ms'");
                assert_eq!(code(&member.append(message, "x", None).unwrap_err()), "55P03");
                member.run("reset lock_timeout");
                // Nobody may take the place of what is prepared.
                other.run("set lock_timeout = '200ms'");
                let answer = other.append(message, "x", Some(1)).unwrap_err();
                assert_eq!(code(&answer), "55P03");
                member.run(&format!("{end} prepared '{name}'"));
                other.run("reset lock_timeout");
                let next = if end == "commit" { 2 } else { 1 };
                assert_eq!(other.append(message, "c", None).unwrap().next, next + 1);
                assert_eq!(member.append(message, "d", None).unwrap().next, next + 2);
                let text = if end == "commit" { "abcd" } else { "acd" };
                assert_eq!(member.text(message).unwrap(), text);
            }
        }
    }
}

#[test]
fn a_producer_with_an_old_snapshot_overwrites_nothing() {
    let desk = Desk::new();
    let mut other = desk.member();
    // What the session with the old snapshot sends, where the other has sent "b" in the meantime.
    let cases = [
        ("select append_chunk('$m', 'c')", "abc"),
        ("select append_chunk('$m', 'c', 2)", "abc"),
        ("select append_chunk('$m', 'b', 1)", "ab"),
        ("select append_chunk('$m', 'X', 1)", "ab"),
        ("select append_chunks('$m', array['b', 'c'], 1)", "abc"),
        ("select append_chunk('$m', 'c', null, true)", "abc"),
        ("select finish_message('$m')", "ab"),
        ("select stop_message('$m')", "ab"),
        ("insert into message_chunks (message_id, chunk_content) values ('$m', 'c')", "abc"),
        (
            "insert into message_chunks (message_id, chunk_content, is_final) values ('$m', 'c', true)",
            "abc",
        ),
    ];
    for level in ["repeatable read", "serializable"] {
        for (sql, expected) in cases {
            let mut member = desk.member();
            let message = member.open(desk.conversation);
            member.append(message, "a", None).unwrap();
            member.run(&format!("begin isolation level {level}; select count(*) from messages"));
            other.append(message, "b", None).unwrap();
            let sql = sql.replace("$m", &message.to_string());
            let result = member.batch_execute(&sql).and_then(|()| member.batch_execute("commit"));
            if let Err(error) = result {
                let code = code(&error).to_string();
                assert!(
                    code == "40001" || code == "23505" && sql.contains('X'),
                    "{level}: {sql}: {code}"
                );
                member.run("rollback");
                // Tried again, as such an error asks for.
                if code == "40001" && !sql.contains('X') {
                    member.run(&format!("begin isolation level {level}; {sql}; commit"));
                }
            }
            assert_eq!(other.text(message).unwrap(), expected, "{level}: {sql}");
            let status = other.status(message);
            if status != "streaming" {
                let stored: String =
                    other.value(&format!("select content from messages where id = '{message}'"));
                assert_eq!(stored, expected, "{level}: {sql}: {status}");
            }
        }
    }
}

#[test]
fn a_producer_that_waits_in_vain_gives_up_and_goes_on_later() {
    let desk = Desk::new();
    let (mut holder, mut waiter) = (desk.member(), desk.member());
    let calls = [
        "select append_chunk('$m', 'b', 1)",
        "select append_chunk('$m', 'b')",
        "select append_chunks('$m', array['b'], 1)",
        "insert into message_chunks (message_id, chunk_content) values ('$m', 'b')",
        "insert into message_chunks (message_id, chunk_content, chunk_index) values ('$m', 'b', 1)",
        "select finish_message('$m')",
        "select stop_message('$m')",
        "select fail_message('$m', 'e')",
    ];
    for call in calls {
        for (limit, expected) in [("lock_timeout", "55P03"), ("statement_timeout", "57014")] {
            let message = holder.open(desk.conversation);
            holder.append(message, "a", None).unwrap();
            holder.run("begin");
            holder.append(message, "x", None).unwrap();
            waiter.run(&format!("set {limit} = '60ms'"));
            let start = Instant::now();
            let (code, words) = waiter.error(&call.replace("$m", &message.to_string()));
            assert_eq!(code, expected, "{call}: {words}");
            assert!(start.elapsed() < Duration::from_secs(1), "{call}");
            waiter.run(&format!("reset {limit}"));
            holder.run("rollback");
            // Nothing of the try has stayed, and the same call goes through now.
            assert_eq!(holder.text(message).unwrap(), "a", "{call}");
            assert_eq!(holder.status(message), "streaming", "{call}");
            run(&mut waiter, message, call);
            let text = if call.contains("'b'") { "ab" } else { "a" };
            assert_eq!(holder.text(message).unwrap(), text, "{call}");
        }
    }
}

#[test]
fn transactions_over_messages_in_opposite_order_lose_nothing() {
    let desk = Desk::new();
    let (mut one, mut two) = (desk.member(), desk.member());
    let mut watcher = desk.database.superuser();
    let pid: i32 = two.value("select pg_backend_pid()");
    for indexed in [false, true] {
        let (a, b) = (one.open(desk.conversation), one.open(desk.conversation));
        let index = |i: i32| indexed.then_some(i);
        one.run("begin");
        two.run("begin");
        one.append(a, "1a ", index(0)).unwrap();
        two.append(b, "2b ", index(0)).unwrap();
        let (first, second) = thread::scope(|scope| {
            let waiting = scope.spawn(|| two.append(a, "2a ", None).map(|_| ()));
            until_locked_out(&mut watcher, pid);
            let first = one.append(b, "1b ", None).map(|_| ());
            // The one that was let on must end, for the other waits for it.
            one.run(if first.is_ok() { "commit" } else { "rollback" });
            (first, waiting.join().expect("no panic"))
        });
        two.run(if second.is_ok() { "commit" } else { "rollback" });
        let (ok, error) = match (&first, &second) {
            (Ok(()), Err(error)) => (1, error),
            (Err(error), Ok(())) => (2, error),
            both => panic!("{both:?}"),
        };
        assert_eq!(code(error), "40P01");
        // Whoever was refused does all of it again, and both texts are whole.
        let victim = if ok == 1 { &mut two } else { &mut one };
        let name = if ok == 1 { 2 } else { 1 };
        victim.run("begin");
        victim.append(a, &format!("{name}a "), None).unwrap();
        victim.append(b, &format!("{name}b "), None).unwrap();
        victim.run("commit");
        assert_eq!(watcher.text(a).unwrap(), format!("{ok}a {name}a "));
        assert_eq!(watcher.text(b).unwrap(), format!("{ok}b {name}b "));
    }
}

#[test]
fn a_fenced_producer_waits_for_the_other_and_is_told_what_came_of_it() {
    let desk = Desk::new();
    let (mut holder, mut waiter) = (desk.member(), desk.member());
    let mut watcher = desk.database.superuser();
    let pid: i32 = waiter.value("select pg_backend_pid()");
    // What the first sends and how it ends, what the second sends, and its answer.
    let cases = [
        ("a", "commit", "a", 0, "1"),
        ("a", "commit", "b", 0, "23505"),
        ("a", "commit", "b", 1, "2"),
        ("a", "rollback", "a", 0, "1"),
        ("a", "rollback", "b", 0, "1"),
        ("a", "rollback", "b", 1, "55000"),
    ];
    for (first, end, second, index, expected) in cases {
        let message = holder.open(desk.conversation);
        holder.run("begin");
        holder.append(message, first, Some(0)).unwrap();
        let found = thread::scope(|scope| {
            let waiting = scope.spawn(|| match waiter.append(message, second, Some(index)) {
                Ok(answer) => answer.next.to_string(),
                Err(error) => {
                    if code(&error) == "55000" {
                        assert_eq!(expected_index(&error), 0);
                    }
                    code(&error).to_string()
                }
            });
            until_locked_out(&mut watcher, pid);
            holder.run(end);
            waiting.join().expect("no panic")
        });
        assert_eq!(found, expected, "{first} {end} {second} {index}");
    }
}
