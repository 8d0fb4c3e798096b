//! Sessions that write one message at once: nothing acknowledged is lost, nothing is there twice.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pg_conversation_tests::{Client, Rng, Session, Uuid, describe};
use postgres::Error;
use postgres::types::Type;

use crate::desk::{Desk, Reader, Stream, code};

#[test]
fn two_producers_without_indexes_lose_nothing_and_double_nothing() {
    const EACH: usize = 250;
    let desk = Desk::new();
    let message = desk.member().open(desk.conversation);
    let start = Barrier::new(3);
    let answers: Vec<i32> = thread::scope(|scope| {
        let producers: Vec<_> = (0..3)
            .map(|producer| {
                let (desk, start) = (&desk, &start);
                scope.spawn(move || {
                    let mut client = desk.member();
                    start.wait();
                    let mut answers = Vec::new();
                    for i in 0..EACH {
                        let content = format!("{producer}.{i} ");
                        // Each in a way of its own.
                        let answer = match producer {
                            0 => client.append(message, &content, None).unwrap().next,
                            1 => client.window(message, &[content], None).unwrap().next,
                            _ => client
                                .query_one(
                                    "insert into message_chunks (message_id, chunk_content) \
                                     values ($1, $2) returning chunk_index + 1",
                                    &[&message, &content],
                                )
                                .unwrap()
                                .get(0),
                        };
                        answers.push(answer);
                    }
                    assert!(answers.is_sorted(), "{answers:?}");
                    answers
                })
            })
            .collect();
        producers.into_iter().flat_map(|producer| producer.join().expect("no panic")).collect()
    });
    let mut sorted = answers;
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=3 * EACH as i32).collect::<Vec<_>>(), "each place is given once");
    let mut client = desk.member();
    client.finish(message).unwrap();
    let text = client.text(message).unwrap();
    for producer in 0..3 {
        let prefix = format!("{producer}.");
        let own: String =
            text.split_inclusive(' ').filter(|token| token.starts_with(&prefix)).collect();
        let sent: String = (0..EACH).map(|i| format!("{producer}.{i} ")).collect();
        assert_eq!(own, sent, "in the order it was sent");
    }
    assert_eq!(text.split_whitespace().count(), 3 * EACH);
}

#[test]
fn of_two_producers_with_indexes_one_is_refused() {
    let desk = Desk::new();
    for round in 0..15 {
        let message = desk.member().open(desk.conversation);
        let start = Barrier::new(2);
        let sent: Vec<(usize, String)> = thread::scope(|scope| {
            let producers: Vec<_> = (0..2)
                .map(|producer| {
                    let (desk, start) = (&desk, &start);
                    scope.spawn(move || {
                        let mut client = desk.member();
                        let mut sent = (producer, String::new());
                        start.wait();
                        for i in 0..30 {
                            let content = format!("{producer}.{i} ");
                            match client.append(message, &content, Some(i)) {
                                Ok(answer) => assert_eq!(answer.next, i + 1),
                                Err(error) => {
                                    assert_eq!(code(&error), "23505", "{}", describe(&error));
                                    return sent;
                                }
                            }
                            sent.1 += &content;
                        }
                        sent
                    })
                })
                .collect();
            producers.into_iter().map(|producer| producer.join().expect("no panic")).collect()
        });
        let text = desk.member().text(message).unwrap();
        let whole = sent.iter().filter(|(_, sent)| *sent == text).count();
        let refused = sent.iter().filter(|(_, sent)| sent.is_empty()).count();
        assert_eq!((whole, refused), (1, 1), "round {round}: {sent:?} gave {text:?}");
    }
}

#[test]
fn a_retry_that_meets_its_first_try_is_stored_once() {
    let desk = Desk::new();
    let message = desk.member().open(desk.conversation);
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = desk.member();
                for i in 0..40 {
                    start.wait();
                    let last = i == 39;
                    let answer = if last {
                        client.append_last(message, &format!("{i} "), Some(i))
                    } else if i % 2 == 0 {
                        client.append(message, &format!("{i} "), Some(i))
                    } else {
                        client.window(
                            message,
                            &[format!("{} ", i - 1), format!("{i} ")],
                            Some(i - 1),
                        )
                    };
                    match answer {
                        Ok(answer) => assert_eq!((answer.next, answer.stop), (i + 1, false)),
                        Err(error) => panic!("{i}: {}", describe(&error)),
                    }
                }
            });
        }
    });
    let mut client = desk.member();
    assert_eq!(client.text(message).unwrap(), (0..40).map(|i| format!("{i} ")).collect::<String>());
    assert_eq!((client.status(message).as_str(), client.chunks(message)), ("completed", 40));
}

/// Sends one token in one of the ways; whether it was taken.
fn send(client: &mut Client, message: Uuid, way: usize, i: i32) -> Result<bool, Error> {
    let content = format!("{i} ");
    match way {
        0 => client.append(message, &content, None).map(|answer| !answer.stop),
        1 => client.append(message, &content, Some(i)).map(|answer| !answer.stop),
        2 => client.insert(message, &content, i, false).map(|rows| rows == 1),
        _ => {
            client.batch_execute("begin")?;
            let sent = client
                .append(message, &content, None)
                .and_then(|answer| client.batch_execute("commit").map(|()| !answer.stop));
            if sent.is_err() {
                client.batch_execute("rollback")?;
            }
            sent
        }
    }
}

#[test]
fn what_was_acknowledged_before_an_end_is_in_the_text_and_nothing_after_it() {
    let desk = Desk::new();
    let mut service = desk.service();
    let mut member = desk.member();
    let mut rng = Rng::new(30);
    let endings = [
        "select finish_message('$m')",
        "select append_chunk('$m', '', null, true)",
        "select stop_message('$m')",
        "select fail_message('$m', 'e')",
        "select recover_stalled_messages('0 s')",
        "delete from messages where id = '$m'",
        "select purge_conversation('$c')",
    ];
    for ending in endings {
        for round in 0..8 {
            let way = round % 4;
            let conversation = desk.another_conversation();
            let message = member.open(conversation);
            let sql =
                ending.replace("$m", &message.to_string()).replace("$c", &conversation.to_string());
            let pause = Duration::from_micros(2000 + 500 * rng.below(30) as u64);
            let member_of = &desk;
            let sent = thread::scope(|scope| {
                let producer = scope.spawn(move || {
                    let mut client = member_of.member();
                    let mut sent = String::new();
                    for i in 0.. {
                        match send(&mut client, message, way, i) {
                            Ok(true) => sent += &format!("{i} "),
                            Ok(false) => return sent,
                            Err(error) => {
                                let code = code(&error);
                                // The empty last chunk has taken the place of one with an index.
                                let taken = matches!(code, "23505" | "55000");
                                assert!(
                                    matches!(code, "24000" | "P0002") || taken,
                                    "{}",
                                    describe(&error)
                                );
                                return sent;
                            }
                        }
                    }
                    sent
                });
                thread::sleep(pause);
                let client = if ending.contains("purge") { &mut member } else { &mut service };
                // Recovery passes by a message that is being written at that moment.
                while client.query_opt(&sql, &[]).unwrap().is_some_and(|row| {
                    row.columns()[0].type_() == &Type::INT4 && row.get::<_, i32>(0) == 0
                }) {}
                producer.join().expect("no panic")
            });
            if ending.contains("delete") || ending.contains("purge") {
                assert_eq!(member.text(message), None, "{ending}");
                assert_eq!(code(&member.append(message, "x", None).unwrap_err()), "P0002");
                if service.chunks(message) > 0 {
                    service.run("select cleanup_finished_streams(interval '0')");
                }
                assert_eq!(service.chunks(message), 0, "{ending}, way {way}: chunks of no message");
            } else {
                let mut reader = Reader::new();
                reader.take(&member.read(message, -1, 100_000).unwrap());
                let stored: String =
                    member.value(&format!("select content from messages where id = '{message}'"));
                assert_eq!(stored, sent, "{ending}, way {way}");
                assert_eq!(member.text(message).unwrap(), sent, "{ending}, way {way}");
                assert_eq!(reader.text, sent, "{ending}, way {way}");
            }
        }
    }
}

#[test]
fn rows_from_many_sessions_always_end_in_a_completed_message() {
    const ROWS: usize = 48;
    const SESSIONS: usize = 6;
    let desk = Desk::new();
    let mut clients: Vec<Client> = (0..SESSIONS).map(|_| desk.member()).collect();
    let mut member = desk.member();
    let mut rng = Rng::new(40);
    for round in 0..24 {
        let message = if round % 2 == 0 {
            member.open(desk.conversation)
        } else {
            member.value(&format!(
                "insert into messages (conversation_id, role, content) \
                 values ('{}', 'assistant', '') returning id",
                desk.conversation
            ))
        };
        let mut rows: Vec<usize> = (0..ROWS).collect();
        rng.shuffle(&mut rows);
        // A row by itself, three in a transaction, or all of a session in one statement.
        let size = [1, 3, ROWS / SESSIONS][round % 3];
        thread::scope(|scope| {
            for (client, rows) in clients.iter_mut().zip(rows.chunks(ROWS / SESSIONS)) {
                scope.spawn(move || {
                    for batch in rows.chunks(size) {
                        let values: Vec<String> = batch
                            .iter()
                            .map(|i| format!("('{message}', '{i} ', {i}, {})", i + 1 == ROWS))
                            .collect();
                        let into = "insert into message_chunks \
                                    (message_id, chunk_content, chunk_index, is_final) values";
                        if size == 3 {
                            let each: String =
                                values.iter().map(|row| format!("{into} {row};")).collect();
                            client.run(&format!("begin; {each} commit"));
                        } else {
                            client.run(&format!("{into} {}", values.join(", ")));
                        }
                    }
                });
            }
        });
        let whole: String = (0..ROWS).map(|i| format!("{i} ")).collect();
        assert_eq!(member.status(message), "completed", "round {round}");
        let stored: String =
            member.value(&format!("select content from messages where id = '{message}'"));
        assert_eq!(stored, whole, "round {round}");
    }
}

#[test]
fn cleaning_while_others_write_and_clean_takes_no_text() {
    const MESSAGES: usize = 40;
    const TOKENS: usize = 12;
    let desk = Desk::new();
    let mut member = desk.member();
    let messages: Vec<Uuid> = (0..MESSAGES).map(|_| member.open(desk.conversation)).collect();
    let done = AtomicBool::new(false);
    let whole: String = (0..TOKENS).map(|i| format!("{i} ")).collect();
    let removed: i64 = thread::scope(|scope| {
        let (desk, messages, done, whole) = (&desk, &messages, &done, &whole);
        let cleaners: Vec<_> = (0..3)
            .map(|cleaner| {
                scope.spawn(move || {
                    let mut client = desk.service();
                    let mut removed = 0;
                    let mut rng = Rng::new(50 + cleaner);
                    loop {
                        let last_time = done.load(Ordering::SeqCst);
                        removed += i64::from(if cleaner == 0 {
                            let message = rng.pick(messages);
                            client.value::<i32>(&format!(
                                "select cleanup_streaming_artifacts('{message}')"
                            ))
                        } else {
                            client.value::<i32>("select cleanup_finished_streams(interval '0')")
                        });
                        if last_time {
                            return removed;
                        }
                    }
                })
            })
            .collect();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    let mut client = desk.member();
                    for message in messages {
                        let mut reader = Reader::new();
                        while !reader.done {
                            let pieces = client.wait(*message, reader.after, 20_000, 5).unwrap();
                            assert!(!pieces.is_empty(), "timed out");
                            reader.take(&pieces);
                            let text = client.text(*message).unwrap();
                            assert!(whole.starts_with(&text), "{text}");
                            assert!(text.len() >= reader.text.len(), "{text} lost what was read");
                        }
                        assert_eq!(&reader.text, whole);
                    }
                })
            })
            .collect();
        for message in messages {
            for i in 0..TOKENS {
                member.append(*message, &format!("{i} "), Some(i as i32)).unwrap();
            }
            member.finish(*message).unwrap();
        }
        for reader in readers {
            reader.join().expect("no panic");
        }
        done.store(true, Ordering::SeqCst);
        cleaners.into_iter().map(|cleaner| cleaner.join().expect("no panic")).sum()
    });
    // Every chunk is counted by the one cleaner that took it away.
    assert_eq!(removed, (MESSAGES * TOKENS) as i64);
    for message in &messages {
        assert_eq!(member.text(*message).unwrap(), whole);
        assert_eq!(member.chunks(*message), 0);
    }
}
