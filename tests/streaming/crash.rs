//! Promise 6 where something is killed: the producer, its connection, its backend, the server.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pg_conversation_tests::{
    Client, Rng, Server, Session, Uuid, bin, describe, oldest, wait_until,
};

use crate::desk::{Desk, Stream, broke, code, expected_index};
use crate::wire::Wire;

/// What leaves nothing on disk that nobody has asked for.
const LAZY: &str = "wal_writer_delay = 10s\ncheckpoint_timeout = 1h\nautovacuum = off\n";

fn token(i: i32) -> String {
    format!("{i} ")
}

fn whole(n: i32) -> String {
    (0..n).map(token).collect()
}

/// How many of the tokens the text consists of, which must be the first ones.
fn count(text: &str) -> i32 {
    let n = text.split_whitespace().count() as i32;
    assert_eq!(text, whole(n), "not the first tokens, each once");
    n
}

/// Waits until no other session is left that speaks for the member.
fn until_alone(desk: &Desk) {
    wait_until(
        &mut desk.database.superuser(),
        "select not exists (select from pg_stat_activity where datname = current_database() \
         and usename = 'member')",
    );
}

/// Sends the rest as the contract says: from `next`, or from where it is told to go on.
fn go_on(client: &mut Client, message: Uuid, mut next: i32, end: i32) {
    while next < end {
        next = match client.append(message, &token(next), Some(next)) {
            Ok(_) => next + 1,
            Err(error) if code(&error) == "55000" => expected_index(&error),
            Err(error) => panic!("{}", describe(&error)),
        };
    }
    client.finish(message).unwrap();
    assert_eq!(client.text(message).unwrap(), whole(end));
    assert_eq!(client.chunks(message), i64::from(end));
}

#[test]
fn a_producer_whose_connection_is_cut_has_lost_at_most_an_answer() {
    let desk = Desk::new();
    let mut rng = Rng::new(60);
    for round in 0..24 {
        let message = desk.member().open(desk.conversation);
        let (wire, mut client) = Wire::member(&desk);
        let in_transaction = round % 4 == 3;
        let acknowledged = thread::scope(|scope| {
            let producer = scope.spawn(move || {
                for i in 0.. {
                    if in_transaction && i == 5 && client.batch_execute("begin").is_err() {
                        return i;
                    }
                    if let Err(error) = client.append(message, &token(i), Some(i)) {
                        assert!(broke(&error), "{}", describe(&error));
                        return if in_transaction { i.min(5) } else { i };
                    }
                }
                0
            });
            thread::sleep(Duration::from_micros(5000 + 300 * rng.below(50) as u64));
            wire.cut();
            producer.join().expect("no panic")
        });
        until_alone(&desk);
        let mut client = desk.member();
        let there = count(&client.text(message).unwrap());
        let most = if in_transaction && acknowledged == 5 { 5 } else { acknowledged + 1 };
        assert!(
            (acknowledged..=most).contains(&there),
            "{acknowledged} acknowledged, {there} there"
        );
        go_on(&mut client, message, acknowledged, there + 5);
    }
}

#[test]
fn an_answer_that_was_lost_is_given_again() {
    let desk = Desk::new();
    let mut watcher = desk.member();
    for (sql, status) in [
        ("select append_chunk('$m', '1 ', 1)", "streaming"),
        ("select append_chunks('$m', array['0 ', '1 '], 0)", "streaming"),
        ("select append_chunk('$m', '1 ', 1, true)", "completed"),
        ("select append_chunk('$m', '1 ', 1); select finish_message('$m', 5, 2)", "completed"),
        ("select append_chunk('$m', '1 ', 1); select stop_message('$m', 3)", "stopped"),
    ] {
        let message = watcher.open(desk.conversation);
        watcher.append(message, &token(0), Some(0)).unwrap();
        let sql = sql.replace("$m", &message.to_string());
        let (wire, mut client) = Wire::member(&desk);
        wire.lose_answers();
        thread::scope(|scope| {
            let producer = scope.spawn(|| client.batch_execute(&sql).expect_err("no answer comes"));
            wait_until(
                &mut watcher,
                &format!(
                    "select status = '{status}' and reconstruct_message(id) like '0 1%' \
                     from messages where id = '{message}'"
                ),
            );
            wire.cut();
            assert!(broke(&producer.join().expect("no panic")));
        });
        let before = watcher.text(message);
        desk.member().run(&sql);
        assert_eq!(watcher.text(message), before, "{sql}");
        assert_eq!(watcher.status(message), status, "{sql}");
    }
}

#[test]
fn a_producer_process_that_is_killed_leaves_what_it_was_told_is_there() {
    let desk = Desk::new();
    let server = desk.database.server;
    for round in 0..3 {
        let message = desk.member().open(desk.conversation);
        let config = server.config(&desk.database.name, "member");
        let postgres::config::Host::Unix(dir) = &config.get_hosts()[0] else {
            panic!("the server has a socket")
        };
        // Not by way of another program, which would be killed in its stead.
        let mut child = Command::new(bin(server.version).join("psql"))
            .args(["-XqAt", "-U", "member", "-d", &desk.database.name, "-h"])
            .arg(dir)
            .args(["-p", &config.get_ports()[0].to_string()])
            .env("PGOPTIONS", format!("-c pg_conversation.user_id={}", desk.user))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql starts");
        let mut say = child.stdin.take().expect("a pipe");
        let hear = BufReader::new(child.stdout.take().expect("a pipe"));
        let writer = thread::spawn(move || {
            for i in 0..100_000 {
                let line = format!(
                    "select next_index from append_chunk('{message}', '{}', {i});\n",
                    token(i)
                );
                if say.write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let mut acknowledged = 0;
        for line in hear.lines().map_while(Result::ok) {
            acknowledged = line.parse().unwrap_or(acknowledged);
            if acknowledged == 50 + 40 * round {
                child.kill().expect("the child runs");
            }
        }
        child.wait().expect("the child ends");
        writer.join().expect("no panic");
        until_alone(&desk);
        let mut client = desk.member();
        let there = count(&client.text(message).unwrap());
        assert!(acknowledged >= 50 && there >= acknowledged, "{acknowledged} {there}");
        go_on(&mut client, message, acknowledged, there + 5);
    }
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    Backend,
    Immediate,
    Postmaster,
}

#[test]
fn whatever_kills_the_server_sync_loses_nothing_and_async_says_where_to_go_on() {
    let server = Server::private(oldest(), LAZY);
    let desk = Desk::on(&server);
    let mut lost = 0;
    for blow in [Blow::Backend, Blow::Immediate, Blow::Postmaster, Blow::Immediate] {
        let messages: Vec<Uuid> = (0..4).map(|_| desk.member().open(desk.conversation)).collect();
        let pids = Mutex::new(Vec::new());
        let enough = AtomicBool::new(false);
        let acknowledged: Vec<i32> = thread::scope(|scope| {
            let producers: Vec<_> = messages
                .iter()
                .enumerate()
                .map(|(n, message)| {
                    let (desk, pids, enough) = (&desk, &pids, &enough);
                    scope.spawn(move || {
                        let mut client = desk.member();
                        let mode = if is_sync(n) { "sync" } else { "async" };
                        client.run(&format!("set pg_conversation.chunk_commit = {mode}"));
                        let pid: i32 = client.value("select pg_backend_pid()");
                        pids.lock().expect("no panic").push(pid);
                        for i in 0.. {
                            if let Err(error) = client.append(*message, &token(i), Some(i)) {
                                assert!(broke(&error), "{}", describe(&error));
                                return i;
                            }
                            if i == 100 {
                                enough.store(true, Ordering::SeqCst);
                            }
                        }
                        0
                    })
                })
                .collect();
            while !enough.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            match blow {
                Blow::Backend => {
                    server.kill_backend(pids.lock().expect("no panic")[0]);
                }
                Blow::Immediate => server.stop("immediate"),
                Blow::Postmaster => server.kill_postmaster(),
            }
            producers.into_iter().map(|producer| producer.join().expect("no panic")).collect()
        });
        if !matches!(blow, Blow::Backend) {
            server.start();
        }
        let mut client = desk.reconnect();
        for (n, (message, acknowledged)) in messages.iter().zip(acknowledged).enumerate() {
            assert_eq!(client.status(*message), "streaming");
            let there = count(&client.text(*message).unwrap());
            assert!(there <= acknowledged + 1, "{blow:?}: {there} of {acknowledged}");
            if is_sync(n) {
                assert!(there >= acknowledged, "{blow:?}: {there} of {acknowledged}");
            }
            lost += (acknowledged - there).max(0);
            // A producer that knows only what it was told sends its next token.
            let answer = client.append(*message, &token(acknowledged), Some(acknowledged));
            if there < acknowledged {
                let error = answer.unwrap_err();
                assert_eq!((code(&error), expected_index(&error)), ("55000", there));
            } else {
                assert_eq!(answer.unwrap().next, acknowledged + 1);
            }
            go_on(&mut client, *message, acknowledged + 1, acknowledged + 10);
        }
    }
    println!("tokens that had to be sent again: {lost}");
}

fn is_sync(producer: usize) -> bool {
    producer.is_multiple_of(2)
}

#[test]
fn tokens_alone_commit_asynchronously_and_whatever_else_does_not() {
    let server = Server::private(oldest(), LAZY);
    let desk = Desk::on(&server);
    let append = "select append_chunk('$m', 'b')";
    let other = "select create_conversation('$m')";
    let other_there = "select exists (select from conversations where title = '$m')";
    let text = |text: &str| format!("select reconstruct_message('$m') = '{text}'");
    let state = |state: &str| format!("select status = '{state}' from messages where id = '$m'");
    // What a session does after a first token; what must hold after the server was killed.
    let durable: Vec<(String, String)> = vec![
        ("select finish_message('$m')".into(), state("completed")),
        (
            "select finish_message('$m', 5, 6)".into(),
            "select prompt_token_count = 5 from messages where id = '$m'".into(),
        ),
        ("select stop_message('$m')".into(), state("stopped")),
        ("select stop_message('$m', 0)".into(), state("stopped")),
        ("select fail_message('$m', 'e')".into(), state("failed")),
        ("select append_chunk('$m', 'b', null, true)".into(), state("completed")),
        ("select append_chunks('$m', array['b'], 2, true)".into(), text("ab")),
        (
            "insert into message_chunks (message_id, chunk_content) values ('$m', 'b')".into(),
            text("ab"),
        ),
        (format!("set pg_conversation.chunk_commit = sync; {append}"), text("ab")),
        (format!("begin; {append}; {other}; commit"), other_there.into()),
        (format!("begin; {other}; {append}; commit"), other_there.into()),
        (format!("begin; {append}; savepoint s; {other}; release s; commit"), other_there.into()),
        (format!("{append}; {other}"), other_there.into()),
        (
            format!("begin; savepoint s; {append}; rollback to s; {other}; commit"),
            other_there.into(),
        ),
        (format!("begin; {append}; rollback; {other}"), other_there.into()),
        (
            format!(
                "begin; {append}; insert into message_chunks (message_id, chunk_content) values ('$m', 'c'); commit"
            ),
            text("abc"),
        ),
        (format!("begin; {append}; select finish_message('$m'); commit"), state("completed")),
        (
            format!("create table t (); begin; drop table t; {append}; commit"),
            "select to_regclass('t') is null".into(),
        ),
        ("set synchronous_commit = off; select finish_message('$m')".into(), state("completed")),
    ];
    let mut wrong = Vec::new();
    for (sql, holds) in &durable {
        let message = crash_after(&desk, sql);
        if !desk.reconnect().value::<bool>(&holds.replace("$m", &message.to_string())) {
            wrong.push(sql);
        }
    }
    assert!(wrong.is_empty(), "acknowledged, and lost: {wrong:#?}");
    // And a server that is killed does lose what it may, or all of the above shows nothing. Now and
    // then something else has put it on disk.
    let (message, mut client, there) = (0..5)
        .find_map(|_| {
            let message = crash_after(&desk, &format!("{append}; {append}; {append}; {append}"));
            let mut client = desk.reconnect();
            let there = client.text(message).unwrap();
            assert!("abbbb".starts_with(&there), "{there}");
            (there.len() < 5).then_some((message, client, there))
        })
        .expect("tokens that a crash takes");
    // A reader who has seen what is gone starts over with what there is.
    let pieces = client.read(message, 5, 9).unwrap();
    assert!(pieces.len() == 1 && pieces[0].whole && !pieces[0].last, "{pieces:?}");
    assert_eq!((pieces[0].content.as_str(), pieces[0].index), (&*there, there.len() as i32));
    let error = client.append(message, "end", Some(9)).unwrap_err();
    // The empty token counts, too.
    assert_eq!((code(&error), expected_index(&error)), ("55000", there.len() as i32 + 1));
}

/// Sends "a", then the rest, kills the server as soon as it has said yes, and starts it again.
fn crash_after(desk: &Desk, sql: &str) -> Uuid {
    let server = desk.database.server;
    let mut member = desk.reconnect();
    desk.database.superuser().run("grant create on schema public to member");
    let message = member.open(desk.conversation);
    member.append(message, "a", None).unwrap();
    // An idle writer of the log wakes with the first commit; it has slept again by now.
    member.run("set pg_conversation.chunk_commit = sync");
    member.append(message, "", None).unwrap();
    member.run("reset pg_conversation.chunk_commit");
    for statement in sql.replace("$m", &message.to_string()).split("; ") {
        member.run(statement);
    }
    server.stop("immediate");
    server.start();
    message
}
