//! How much there may be: chunks in a message, text, and messages that stream at once.

use std::io::Write;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Instant;

use pg_conversation_tests::{Client, Server, Session, Uuid, describe, oldest, wait_until};

use crate::desk::{Desk, Reader, Stream, code};

#[test]
fn a_message_may_have_two_hundred_thousand_chunks() {
    const CHUNKS: usize = 200_000;
    const WINDOW: usize = 2000;
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    let chunks: Vec<String> = (0..CHUNKS).map(|i| format!("{i} ")).collect();
    let whole = chunks.concat();
    for (n, window) in chunks.chunks(WINDOW).enumerate() {
        let first = (n * WINDOW) as i32;
        let answer = member.window(message, window, Some(first)).unwrap();
        assert_eq!(answer.next, first + WINDOW as i32);
    }
    // Appends at the end of a long message cost no more than at its beginning.
    let start = Instant::now();
    for i in 0..100 {
        member.append(message, "", Some((CHUNKS + i) as i32)).unwrap();
    }
    assert!(start.elapsed().as_millis() < 2000, "100 appends: {:?}", start.elapsed());
    let mut reader = Reader::new();
    let mut reads = 0;
    while reader.after < (CHUNKS + 99) as i32 {
        reader.take(&member.read(message, reader.after, 20_000).unwrap());
        reads += 1;
    }
    assert!(reads == 11 && reader.text == whole, "{reads} reads");
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(member.read(message, (CHUNKS - 2) as i32, 1).unwrap().len(), 1);
    }
    assert!(start.elapsed().as_millis() < 2000, "100 reads at the end: {:?}", start.elapsed());
    assert!(member.text(message).unwrap() == whole, "the text while it streams");
    member.finish(message).unwrap();
    let stored: String =
        member.value(&format!("select content from messages where id = '{message}'"));
    assert!(stored == whole, "the text of the finished message");
    let deleted: i32 = member.value(&format!("select cleanup_streaming_artifacts('{message}')"));
    assert_eq!(deleted as usize, CHUNKS + 100);
    assert!(member.text(message).unwrap() == whole, "the text after clean-up");
}

#[test]
fn a_message_that_grows_past_32_megabytes_can_be_ended_with_the_first_of_them() {
    const MEGABYTE: usize = 1 << 20;
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    // Two bytes a character, and an odd number of them before: none may be cut in two.
    let big = "é".repeat(2 * MEGABYTE);
    let cases = [
        ("append", "stop_message($m)"),
        ("append", "stop_message($m, 16777217)"),
        ("insert", "fail_message($m, 'too long')"),
        ("append", "recover_stalled_messages('0 s')"),
    ];
    for (way, end) in cases {
        let message = member.open(desk.conversation);
        member.append(message, "x", Some(0)).unwrap();
        for i in 1..10 {
            match way {
                "append" => member.append(message, &big, Some(i)).map(|_| ()),
                _ => member.insert(message, &big, i, false).map(|_| ()),
            }
            .unwrap();
        }
        let whole = format!("x{}", big.repeat(9));
        assert!(member.text(message).unwrap() == whole, "while it streams, all of it is there");
        assert_eq!(code(&member.finish(message).unwrap_err()), "54000");
        assert_eq!(code(&member.append_last(message, "!", Some(10)).unwrap_err()), "54000");
        assert_eq!(code(&member.insert(message, "!", 10, true).unwrap_err()), "54000");
        // The error is told before what it undoes is undone.
        member.run("select 1");
        let client = if end.contains("recover") { &mut service } else { &mut member };
        client.run(&format!("select {}", end.replace("$m", &format!("'{message}'"))));
        let kept = "x".to_string() + &"é".repeat((32 * MEGABYTE - 1) / 2);
        let stored: String =
            member.value(&format!("select content from messages where id = '{message}'"));
        assert!(stored == kept, "{end}");
        // An interrupted one is not at its end yet.
        let text = member.text(message).unwrap();
        assert!(text == kept || end.contains("recover") && text == whole, "{end}");
    }
}

#[test]
fn ten_thousand_messages_may_stream_at_once() {
    const MESSAGES: usize = 10_000;
    const SESSIONS: usize = 16;
    const ROUNDS: usize = 3;
    // Room for 6,400 locks, which is what Postgres comes with.
    let server = Server::private(oldest(), "fsync = off\nshared_buffers = 256MB\n");
    let desk = Desk::on(&server);
    let (mut member, mut service) = (desk.member(), desk.service());
    let begun = Instant::now();
    let step = |what: &str| println!("{what}: {:?}", begun.elapsed());
    member
        .run(&format!("select create_conversation(n::text) from generate_series(1, {MESSAGES}) n"));
    let messages: Vec<Uuid> =
        member.values("select begin_message(id) from conversations where title <> 'talk'");
    step("begun");
    let token = |round: &str, n: usize| format!("{round}.{n} ");

    let slow = Mutex::new(0);
    thread::scope(|scope| {
        for (s, own) in messages.chunks(MESSAGES / SESSIONS).enumerate() {
            let (desk, slow) = (&desk, &slow);
            scope.spawn(move || {
                let mut client = desk.member();
                let append = client
                    .prepare("select next_index from append_chunk($1, $2, $3)")
                    .expect("the call is known");
                for round in 0..ROUNDS {
                    for (n, message) in own.iter().enumerate() {
                        let n = s * (MESSAGES / SESSIONS) + n;
                        let content = token(&round.to_string(), n);
                        let start = Instant::now();
                        let row = client
                            .query_one(&append, &[message, &content, &(round as i32)])
                            .expect("the token is taken");
                        assert_eq!(row.get::<_, i32>(0), round as i32 + 1);
                        if start.elapsed().as_millis() > 1000 {
                            *slow.lock().expect("no panic") += 1;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(*slow.lock().expect("no panic"), 0, "appends that took a second");
    step("appended one by one");

    // A row of each message in one statement: COPY, INSERT, and calls.
    let mut copy = service
        .copy_in("copy message_chunks (message_id, chunk_content) from stdin")
        .expect("the copy begins");
    for (n, message) in messages.iter().enumerate() {
        writeln!(copy, "{message}\t{}", token("copy", n)).expect("the row is sent");
    }
    assert_eq!(copy.finish().expect("the rows are taken"), MESSAGES as u64);
    step("copied");
    let contents: Vec<String> = (0..MESSAGES).map(|n| token("insert", n)).collect();
    let rows = member
        .execute(
            "insert into message_chunks (message_id, chunk_content, chunk_index) \
             select unnest($1::uuid[]), unnest($2::text[]), $3",
            &[&messages, &contents, &(ROUNDS as i32 + 1)],
        )
        .expect("the rows are taken");
    assert_eq!(rows, MESSAGES as u64);
    step("inserted");
    let contents: Vec<String> = (0..MESSAGES).map(|n| token("call", n)).collect();
    let next: i64 = member
        .query_one(
            "select sum((append_chunk(id, content)).next_index) \
             from unnest($1::uuid[], $2::text[]) as u (id, content)",
            &[&messages, &contents],
        )
        .expect("the tokens are taken")
        .get(0);
    // A composite may be called more than once for its columns, but only one is asked for here.
    assert_eq!(next, (MESSAGES * (ROUNDS + 3)) as i64);
    step("called");

    // Half are ended by their last rows, half by calls, each in one statement.
    let (by_row, by_call) = messages.split_at(MESSAGES / 2);
    member
        .execute(
            "insert into message_chunks (message_id, chunk_content, is_final) \
             select unnest($1::uuid[]), '', true",
            &[&by_row],
        )
        .expect("the last rows are taken");
    member
        .execute("select finish_message(id) from unnest($1::uuid[]) id", &[&by_call])
        .expect("all are finished");
    step("finished");

    let found: Vec<(Uuid, String)> = service
        .query("select id, content from messages where status = 'completed' order by id", &[])
        .expect("all are read")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut expected: Vec<(Uuid, String)> = messages
        .iter()
        .enumerate()
        .map(|(n, message)| {
            let rounds: String = (0..ROUNDS).map(|round| token(&round.to_string(), n)).collect();
            let rest: String = ["copy", "insert", "call"].map(|what| token(what, n)).concat();
            (*message, rounds + &rest)
        })
        .collect();
    expected.sort();
    assert!(found == expected, "{} of {MESSAGES} are right", {
        found.iter().filter(|one| expected.contains(one)).count()
    });
    // So many messages at once, and again until there is nothing left.
    let mut deleted = 0;
    loop {
        match service.value::<i32>("select cleanup_finished_streams(interval '0')") {
            0 => break,
            n => deleted += n as usize,
        }
    }
    assert_eq!(deleted, MESSAGES * (ROUNDS + 3) + MESSAGES / 2);
    step("cleaned");
}

/// A row for each of the messages, in one statement.
fn append_to_all(client: &mut Client, messages: &[Uuid]) -> Result<(), String> {
    client
        .execute(
            "insert into message_chunks (message_id, chunk_content) select unnest($1::uuid[]), 'all '",
            &[&messages],
        )
        .map(|_| ())
        .map_err(|error| describe(&error))
}

#[test]
fn many_sessions_may_write_to_a_thousand_messages_each() {
    const SESSIONS: usize = 16;
    const EACH: usize = 1200;
    let server = Server::private(oldest(), "fsync = off\n");
    let desk = Desk::on(&server);
    let messages: Vec<Uuid> = desk.database.superuser().values(&format!(
        "insert into messages (conversation_id, role, status) select '{}', 'assistant', 'streaming' \
         from generate_series(1, {}) returning id",
        desk.conversation,
        SESSIONS * EACH
    ));
    // All hold what they hold until the last of them is through.
    let all_through = Barrier::new(SESSIONS);
    let clients: Vec<Client> = (0..SESSIONS).map(|_| desk.service()).collect();
    let errors: Vec<String> = thread::scope(|scope| {
        let writers: Vec<_> = messages
            .chunks(EACH)
            .zip(clients)
            .map(|(own, mut client)| {
                let all_through = &all_through;
                scope.spawn(move || {
                    client.run("begin");
                    let result = append_to_all(&mut client, own);
                    all_through.wait();
                    client.run(if result.is_ok() { "commit" } else { "rollback" });
                    result.err()
                })
            })
            .collect();
        writers.into_iter().filter_map(|writer| writer.join().expect("no panic")).collect()
    });
    assert!(errors.is_empty(), "{errors:#?}");
    let right: i64 = desk
        .database
        .superuser()
        .value("select count(*) from messages where reconstruct_message(id) = 'all '");
    assert_eq!(right as usize, SESSIONS * EACH);
}

#[test]
fn a_statement_over_many_messages_and_the_producers_of_one_wait_for_each_other() {
    let desk = Desk::new();
    let mut watcher = desk.database.superuser();
    let messages: Vec<Uuid> = watcher.values(&format!(
        "insert into messages (conversation_id, role, status) select '{}', 'assistant', 'streaming' \
         from generate_series(1, 1500) returning id",
        desk.conversation
    ));
    // One of the first, and the last: whatever is kept of the first thousand.
    for (n, message) in [(5, messages[5]), (1499, messages[1499])] {
        for way in ["producer first", "append", "append at 1", "finish", "stop", "insert", "again"]
        {
            let message = fresh(&mut watcher, message);
            let mut messages = messages.clone();
            messages[n] = message;
            let mut producer = desk.member();
            let mut many = desk.service();
            producer.append(message, "0 ", None).unwrap();
            let (first, second, producer_first): (&mut Client, &mut Client, bool) =
                if way == "producer first" {
                    (&mut producer, &mut many, true)
                } else {
                    (&mut many, &mut producer, false)
                };
            first.run("begin");
            if producer_first {
                first.append(message, "one ", None).unwrap();
            } else {
                append_to_all(first, &messages).unwrap();
            }
            let pid: i32 = second.value("select pg_backend_pid()");
            let found = thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let result = match way {
                        "producer first" => return append_to_all(second, &messages),
                        "append" | "again" => second.append(message, "one ", None).map(|_| ()),
                        "append at 1" => second.append(message, "all ", Some(1)).map(|_| ()),
                        "finish" => second.finish(message).map(|_| ()),
                        "stop" => second.stop(message, None).map(|_| ()),
                        _ => second
                            .execute(
                                "insert into message_chunks (message_id, chunk_content, is_final) \
                                 values ($1, 'one ', true)",
                                &[&message],
                            )
                            .map(|_| ()),
                    };
                    result.map_err(|error| describe(&error))
                });
                let waits = format!(
                    "select exists (select from pg_locks where pid = {pid} and not granted)"
                );
                wait_until(&mut watcher, &waits);
                if way == "again" {
                    // The same transaction comes back to the message that the other waits for.
                    append_to_all(first, &messages).unwrap();
                }
                first.run("commit");
                waiting.join().expect("no panic")
            });
            assert_eq!(found, Ok(()), "message {n}, {way}");
            let text = match way {
                "producer first" => "0 one all ",
                "append" | "insert" => "0 all one ",
                "again" => "0 all all one ",
                _ => "0 all ",
            };
            assert_eq!(watcher.text(message).unwrap(), text, "message {n}, {way}");
            let state = match way {
                "finish" | "insert" => "completed",
                "stop" => "stopped",
                _ => "streaming",
            };
            assert_eq!(watcher.status(message), state, "message {n}, {way}");
        }
    }
}

/// Another open message in the conversation of that one.
fn fresh(client: &mut Client, like: Uuid) -> Uuid {
    client
        .value(&format!("select begin_message(conversation_id) from messages where id = '{like}'"))
}
