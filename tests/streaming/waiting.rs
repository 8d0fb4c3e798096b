//! wait_for_chunks returns as soon as there is something to read, and when it is told to end.

use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, NoTls, Session, Uuid, wait_until};
use postgres::error::SqlState;

use crate::desk::{Desk, Piece, Reader, Stream, code};

const SECOND: Duration = Duration::from_secs(1);
/// Shorter than any look around that a waiting session may take by itself.
const PROMPTLY: Duration = Duration::from_millis(600);

fn pid(client: &mut Client) -> i32 {
    client.value("select pg_backend_pid()")
}

/// Returns when the session sits in wait_for_chunks and has looked at the message.
fn until_it_waits(client: &mut Client, pid: i32) {
    wait_until(
        client,
        &format!(
            "select exists (select from pg_stat_activity where pid = {pid} and state = 'active' \
             and query like '%wait_for_chunks%')"
        ),
    );
    thread::sleep(Duration::from_millis(60));
}

/// What a session that waits after `after` is given, and how long after `cause` had committed.
fn woken(
    desk: &Desk,
    message: Uuid,
    after: i32,
    cause: impl FnOnce(),
) -> (Result<Vec<Piece>, postgres::Error>, Duration) {
    let mut waiter = desk.member();
    let mut watcher = desk.database.superuser();
    let pid = pid(&mut waiter);
    thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            let result = waiter.wait(message, after, 20_000, 1000);
            (result, Instant::now())
        });
        until_it_waits(&mut watcher, pid);
        assert!(!waiting.is_finished(), "nothing to wait for");
        cause();
        let caused = Instant::now();
        let (result, returned) = waiting.join().expect("no panic");
        (result, returned.saturating_duration_since(caused))
    })
}

#[test]
fn a_waiting_reader_wakes_at_once_from_whatever_it_waits_for() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let insert =
        "insert into message_chunks (message_id, chunk_content, chunk_index, is_final) values";
    // Statements of whom; what the reader gets, each as index, content, whether last, state.
    let cases: Vec<(&str, String, &str)> = vec![
        ("member", "select append_chunk('$m', 'c')".into(), "2 c false streaming"),
        ("member", "select append_chunk('$m', 'c', 2, true)".into(), "2 c true completed"),
        (
            "member",
            "select append_chunks('$m', array['c', 'd'])".into(),
            "2 c false streaming, 3 d false streaming",
        ),
        ("member", format!("{insert} ('$m', 'c', 2, false)"), "2 c false streaming"),
        ("member", format!("{insert} ('$m', 'c', null, true)"), "2 c true completed"),
        (
            "member",
            format!("{insert} ('$m', 'd', 3, false); {insert} ('$m', 'c', 2, false)"),
            "2 c false streaming, 3 d false streaming",
        ),
        (
            "member",
            "begin; select append_chunk('$m', 'c'); savepoint s; select append_chunk('$m', 'd'); \
             rollback to s; commit"
                .into(),
            "2 c false streaming",
        ),
        ("member", "select finish_message('$m')".into(), "1  true completed"),
        ("member", "select stop_message('$m')".into(), "1  true stopped"),
        ("member", "select stop_message('$m', 1)".into(), "whole a true stopped"),
        ("member", "select fail_message('$m', 'e')".into(), "1  true failed"),
        ("service", "select recover_stalled_messages('0 s')".into(), "1  true interrupted"),
        ("service", "delete from messages where id = '$m'".into(), "P0002"),
        ("member", "select purge_conversation('$c')".into(), "P0002"),
        ("member", "delete from conversations where id = '$c'".into(), "P0002"),
        ("service", "delete from conversations where id = '$c'".into(), "P0002"),
    ];
    for (who, sql, expected) in cases {
        let conversation = desk.another_conversation();
        let message = member.open(conversation);
        member.window(message, &["a", "b"], Some(0)).unwrap();
        let sql = sql.replace("$m", &message.to_string()).replace("$c", &conversation.to_string());
        let client = if who == "member" { &mut member } else { &mut service };
        let (result, took) = woken(&desk, message, 1, || client.run(&sql));
        assert!(took < PROMPTLY, "{sql}: {took:?}, {result:?}");
        let found = match &result {
            Ok(pieces) => {
                let word = |piece: &Piece| {
                    let index = if piece.whole { "whole".into() } else { piece.index.to_string() };
                    format!("{index} {} {} {}", piece.content, piece.last, piece.status)
                };
                // A statement of its own may be read by itself; the rest follows.
                let mut pieces = pieces.clone();
                if pieces.len() == 1 && expected.contains(',') {
                    pieces.extend(member.read(message, pieces[0].index, 1000).unwrap());
                }
                pieces.iter().map(word).collect::<Vec<_>>().join(", ")
            }
            Err(error) => code(error).to_string(),
        };
        assert_eq!(found, expected, "{sql}");
    }
}

#[test]
fn a_copy_wakes_a_reader_too() {
    let desk = Desk::new();
    let mut service = desk.service();
    let message = desk.member().open(desk.conversation);
    let (result, took) = woken(&desk, message, -1, || {
        let mut copy =
            service.copy_in("copy message_chunks (message_id, chunk_content) from stdin").unwrap();
        std::io::Write::write_all(&mut copy, format!("{message}\ta\n{message}\tb\n").as_bytes())
            .unwrap();
        copy.finish().unwrap();
    });
    assert!(took < PROMPTLY, "{took:?}");
    assert_eq!(result.unwrap().len(), 2);
}

#[test]
fn a_statement_over_many_messages_wakes_the_readers_of_each() {
    let desk = Desk::new();
    let (mut member, mut watcher) = (desk.member(), desk.database.superuser());
    let messages: Vec<Uuid> = (0..200).map(|_| member.open(desk.conversation)).collect();
    thread::scope(|scope| {
        let waiting: Vec<_> = [0, 31, 32, 150, 199]
            .map(|n| {
                let (mut waiter, message) = (desk.member(), messages[n]);
                let pid = pid(&mut waiter);
                let waiting = scope.spawn(move || {
                    let pieces = waiter.wait(message, -1, 20_000, 9).unwrap();
                    (pieces.len(), Instant::now())
                });
                until_it_waits(&mut watcher, pid);
                waiting
            })
            .into_iter()
            .collect();
        member
            .execute(
                "insert into message_chunks (message_id, chunk_content) select unnest($1::uuid[]), 'x'",
                &[&messages],
            )
            .unwrap();
        let caused = Instant::now();
        for waiting in waiting {
            let (count, returned) = waiting.join().expect("no panic");
            assert_eq!(count, 1);
            assert!(returned.saturating_duration_since(caused) < PROMPTLY);
        }
    });
}

#[test]
fn a_reader_waits_through_what_is_not_committed() {
    let desk = Desk::new();
    let mut producer = desk.member();
    let message = producer.open(desk.conversation);
    let (result, took) = woken(&desk, message, -1, || {
        producer.run("begin");
        producer.append(message, "lost", None).unwrap();
        thread::sleep(Duration::from_millis(100));
        producer.run("rollback");
        thread::sleep(Duration::from_millis(100));
        producer.run("begin");
        producer.append(message, "kept", None).unwrap();
        thread::sleep(Duration::from_millis(100));
        producer.run("commit");
    });
    assert!(took < PROMPTLY, "{took:?}");
    let pieces = result.unwrap();
    assert_eq!(pieces.len(), 1);
    assert_eq!((pieces[0].index, pieces[0].content.as_str()), (0, "kept"));
}

#[test]
fn a_reader_in_a_transaction_of_its_own_sees_what_was_committed_since() {
    let desk = Desk::new();
    let (mut producer, mut waiter) = (desk.member(), desk.member());
    let message = producer.open(desk.conversation);
    waiter.run("begin; select count(*) from messages");
    producer.append(message, "a", None).unwrap();
    assert_eq!(waiter.wait(message, -1, 20_000, 9).unwrap().len(), 1);
    let pid = pid(&mut waiter);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| waiter.wait(message, 0, 20_000, 9).unwrap().len());
        until_it_waits(&mut producer, pid);
        producer.append(message, "b", None).unwrap();
        let start = Instant::now();
        assert_eq!(waiting.join().expect("no panic"), 1);
        assert!(start.elapsed() < PROMPTLY);
    });
    // The locks of a reader are nobody's hindrance.
    assert_eq!(producer.append(message, "c", None).unwrap().next, 3);
    waiter.run("commit");
}

#[test]
fn a_wait_ends_with_its_time() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    member.append(message, "a", None).unwrap();
    for (timeout, most) in [(0, 300), (1, 300), (300, 900), (-1, 300)] {
        let start = Instant::now();
        match member.wait(message, 0, timeout, 9) {
            Ok(pieces) => assert!(pieces.is_empty(), "{pieces:?}"),
            Err(error) => assert!(timeout < 0 && code(&error) == "22023", "{error}"),
        }
        let took = start.elapsed().as_millis() as i32;
        assert!((timeout..most).contains(&took), "{timeout} ms: {took} ms");
    }
    assert_eq!(member.wait(message, -1, 0, 9).unwrap().len(), 1, "no time, and something there");
}

#[test]
fn a_waiting_session_can_be_ended_within_a_second() {
    let desk = Desk::new();
    let mut watcher = desk.database.superuser();
    for (how, expected) in
        [("cancel", "57014"), ("terminate", "57P01"), ("statement_timeout", "57014")]
    {
        let mut waiter = desk.member();
        let message = waiter.open(desk.conversation);
        let pid = pid(&mut waiter);
        if how == "statement_timeout" {
            waiter.run("set statement_timeout = '200ms'");
        }
        let token = waiter.cancel_token();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                // A client may see no more of its end than the closed connection.
                let error = waiter.wait(message, -1, 20_000, 9).unwrap_err();
                (error.code().map_or("57P01", SqlState::code).to_string(), Instant::now())
            });
            until_it_waits(&mut watcher, pid);
            match how {
                "cancel" => token.cancel_query(NoTls).unwrap(),
                "terminate" => watcher.run(&format!("select pg_terminate_backend({pid})")),
                _ => (),
            }
            let asked = Instant::now();
            let (code, ended) = waiting.join().expect("no panic");
            assert_eq!(code, expected, "{how}");
            assert!(ended.saturating_duration_since(asked) < SECOND, "{how}");
        });
        if how == "cancel" {
            // Nothing is left behind that would disturb the session or others.
            assert_eq!(waiter.append(message, "x", None).unwrap().next, 1);
            assert_eq!(waiter.wait(message, -1, 20_000, 9).unwrap().len(), 1);
        }
    }
}

#[test]
fn a_wait_brings_no_more_than_it_was_asked_for() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    member.window(message, &["a", "b", "c", "d", "e"], None).unwrap();
    let mut reader = Reader::new();
    for expected in ["ab", "abcd", "abcde"] {
        let pieces = member.wait(message, reader.after, 20_000, 2).unwrap();
        assert!(pieces.len() <= 2);
        reader.take(&pieces);
        assert_eq!(reader.text, expected);
    }
    let mut waiter = desk.member();
    let pid = pid(&mut waiter);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| waiter.wait(message, 4, 20_000, 2).unwrap());
        until_it_waits(&mut member, pid);
        member.window(message, &["f", "g", "h"], None).unwrap();
        assert_eq!(waiting.join().expect("no panic").len(), 2);
    });
}

#[test]
fn many_readers_follow_many_messages_as_they_are_written() {
    const MESSAGES: usize = 6;
    const READERS: usize = 8;
    const TOKENS: usize = 150;
    let desk = Desk::new();
    let mut member = desk.member();
    let messages: Vec<Uuid> = (0..MESSAGES).map(|_| member.open(desk.conversation)).collect();
    let token = |message: usize, i: usize| format!("{message}.{i} ");
    thread::scope(|scope| {
        for (m, message) in messages.iter().enumerate() {
            let desk = &desk;
            scope.spawn(move || {
                let mut producer = desk.member();
                for i in 0..TOKENS {
                    producer.append(*message, &token(m, i), Some(i as i32)).unwrap();
                    if i % 16 == 0 {
                        // A pause, so that readers catch up and have to be woken.
                        thread::sleep(Duration::from_millis(15));
                    }
                }
                producer.finish(*message).unwrap();
            });
            for _ in 0..READERS {
                scope.spawn(move || {
                    let (mut client, mut reader) = (desk.member(), Reader::new());
                    while !reader.done {
                        let pieces = client.wait(*message, reader.after, 20_000, 1000).unwrap();
                        assert!(!pieces.is_empty(), "timed out after {}", reader.after);
                        reader.take(&pieces);
                    }
                    let whole: String = (0..TOKENS).map(|i| token(m, i)).collect();
                    assert_eq!(reader.text, whole);
                });
            }
        }
    });
}
