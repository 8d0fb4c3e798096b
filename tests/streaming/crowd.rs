//! Producers, readers, people who stop, sessions that are killed and housekeeping, all at once.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Rng, Session, Uuid, describe};
use postgres::Error;

use crate::desk::{Desk, Reader, Stream, broke, expected_index};

const PRODUCERS: usize = 6;
const EACH: usize = 24;
const TOKENS: usize = 40;

fn token(message: Uuid, i: usize) -> String {
    format!("{}é{i} ", &message.to_string()[32..])
}

fn whole(message: Uuid) -> String {
    (0..TOKENS).map(|i| token(message, i)).collect()
}

fn state(error: &Error) -> &str {
    error.as_db_error().map_or("", |db| db.code().code())
}

/// What a producer knows of a message that it is through with.
struct Sent {
    message: Uuid,
    /// Tokens of which it knows that they were taken before anybody asked to stop.
    taken: usize,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Finished,
    Stopped,
    Gone,
}

/// Keeps to the contract, whatever happens to its connection and to the message.
struct Producer<'a> {
    desk: &'a Desk<'a>,
    client: Client,
    rng: Rng,
}

impl Producer<'_> {
    /// What is to be done after an error: nothing but to try again, or where to go on from.
    fn recover(&mut self, message: Uuid, error: &Error) -> Result<Option<usize>, Outcome> {
        if broke(error) {
            self.client = self.desk.reconnect();
            return Ok(None);
        }
        match state(error) {
            "40P01" | "40001" | "55P03" | "57014" => Ok(None),
            "55000" => Ok(Some(expected_index(error) as usize)),
            "P0002" => Err(Outcome::Gone),
            "24000" => {
                let resume = format!("select resume_message('{message}')");
                match self.client.query_one(&resume, &[]) {
                    Ok(row) => Ok(Some(row.get::<_, i32>(0) as usize)),
                    Err(error) if state(&error) == "24000" => Err(Outcome::Finished),
                    Err(error) => self.recover(message, &error),
                }
            }
            _ => panic!("{}", describe(error)),
        }
    }

    fn stream(&mut self, message: Uuid) -> Sent {
        let (mut next, mut taken) = (0, 0);
        let ended = |taken, outcome| Sent { message, taken, outcome };
        while next < TOKENS {
            let n = (1 + self.rng.below(3)).min(TOKENS - next);
            let tokens: Vec<String> = (next..next + n).map(|i| token(message, i)).collect();
            match self.client.window(message, &tokens, Some(next as i32)) {
                Ok(answer) if answer.stop => return ended(taken, Outcome::Stopped),
                Ok(_) => {
                    next += n;
                    taken = taken.max(next);
                }
                Err(error) => match self.recover(message, &error) {
                    Ok(Some(from)) => {
                        assert!(from >= taken, "{from}, though {taken} were acknowledged");
                        next = from.min(TOKENS);
                    }
                    Ok(None) => (),
                    Err(outcome) => return ended(taken, outcome),
                },
            }
            if self.rng.below(4) == 0 {
                thread::sleep(Duration::from_micros(self.rng.below(3000) as u64));
            }
        }
        loop {
            match self.client.finish(message) {
                Ok(_) => return ended(taken, Outcome::Finished),
                Err(error) => {
                    if let Err(outcome) = self.recover(message, &error) {
                        return ended(taken, outcome);
                    }
                }
            }
        }
    }
}

/// Follows a message to its end over any number of connections; none if it is gone.
fn follow(desk: &Desk, message: Uuid) -> Option<String> {
    let (mut client, mut reader) = (desk.reconnect(), Reader::new());
    let start = Instant::now();
    while !reader.done {
        assert!(start.elapsed() < Duration::from_secs(60), "no end after {}", reader.after);
        match client.wait(message, reader.after, 2000, 7) {
            Ok(pieces) => {
                reader.take(&pieces);
                if pieces.last().is_some_and(|piece| piece.status == "interrupted") {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            Err(error) if broke(&error) => client = desk.reconnect(),
            Err(error) => {
                assert_eq!(state(&error), "P0002", "{}", describe(&error));
                return None;
            }
        }
    }
    Some(reader.text)
}

#[test]
fn in_a_crowd_with_killers_nothing_acknowledged_is_lost_and_readers_have_the_text() {
    let desk = Desk::new();
    let messages: Vec<Uuid> = {
        let mut member = desk.member();
        (0..PRODUCERS * EACH).map(|_| member.open(desk.conversation)).collect()
    };
    let (done, killed, recovered) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let cut = Mutex::new(HashSet::new());
    let (sent, read) = thread::scope(|scope| {
        let (desk, messages) = (&desk, &messages);
        let (done, killed, recovered, cut) = (&done, &killed, &recovered, &cut);
        let readers: Vec<_> = (0..3)
            .map(|n| {
                scope.spawn(move || -> Vec<(Uuid, Option<String>)> {
                    let own = messages.iter().skip(n).step_by(3);
                    own.map(|message| (*message, follow(desk, *message))).collect()
                })
            })
            .collect();
        let disturbers = [
            // Ends sessions of members.
            scope.spawn(move || {
                let mut client = desk.database.superuser();
                while !done.load(Ordering::SeqCst) {
                    killed.fetch_add(
                        client.value::<i64>(
                            "select count(pg_terminate_backend(pid)) from (select pid \
                             from pg_stat_activity where datname = current_database() \
                             and usename = 'member' order by random() limit 1) s",
                        ) as usize,
                        Ordering::SeqCst,
                    );
                    thread::sleep(Duration::from_millis(25));
                }
            }),
            // Stops messages, some at what was seen, and deletes one now and then.
            scope.spawn(move || {
                let (mut client, mut rng) = (desk.service(), Rng::new(90));
                while !done.load(Ordering::SeqCst) {
                    let message = rng.pick(messages);
                    let sql = match rng.below(12) {
                        0..=5 => format!("select stop_message('{message}')"),
                        6..=9 => {
                            cut.lock().expect("no panic").insert(*message);
                            format!("select stop_message('{message}', {})", rng.below(300))
                        }
                        _ => format!("delete from messages where id = '{message}'"),
                    };
                    if let Err(error) = client.batch_execute(&sql) {
                        let state = state(&error);
                        let expected = ["24000", "P0002", "40P01"].contains(&state);
                        assert!(expected, "{}", describe(&error));
                    }
                    thread::sleep(Duration::from_millis(40));
                }
            }),
            // Takes streams for dead, and clears up behind them.
            scope.spawn(move || {
                let mut client = desk.service();
                while !done.load(Ordering::SeqCst) {
                    let sql = "select recover_stalled_messages('2 ms', 3)";
                    recovered.fetch_add(client.value::<i32>(sql) as usize, Ordering::SeqCst);
                    client.run("select cleanup_finished_streams(interval '0')");
                    thread::sleep(Duration::from_millis(10));
                }
            }),
        ];
        let producers: Vec<_> = messages
            .chunks(EACH)
            .enumerate()
            .map(|(n, own)| {
                scope.spawn(move || {
                    let client = desk.reconnect();
                    let mut producer = Producer { desk, client, rng: Rng::new(91 + n as u64) };
                    own.iter().map(|message| producer.stream(*message)).collect::<Vec<_>>()
                })
            })
            .collect();
        let sent: Vec<Sent> =
            producers.into_iter().flat_map(|producer| producer.join().expect("no panic")).collect();
        let read: Vec<_> =
            readers.into_iter().flat_map(|reader| reader.join().expect("no panic")).collect();
        done.store(true, Ordering::SeqCst);
        for disturber in disturbers {
            disturber.join().expect("no panic");
        }
        (sent, read)
    });

    let mut client = desk.service();
    client.run("select cleanup_finished_streams(interval '0')");
    let mut states = Vec::new();
    for Sent { message, taken, outcome } in &sent {
        let Some(text) = client.text(*message) else {
            states.push("deleted".to_string());
            assert_eq!(client.chunks(*message), 0);
            continue;
        };
        assert_ne!(*outcome, Outcome::Gone, "{message} is there");
        let status = client.status(*message);
        assert!(whole(*message).starts_with(&text), "{message} {status}: {text}");
        let tokens = text.matches(' ').count();
        if status == "completed" {
            assert_eq!(tokens, TOKENS, "{message}");
        } else {
            assert_eq!(status, "stopped");
            let cut = cut.lock().expect("no panic").contains(message);
            assert!(cut || tokens >= *taken, "{message}: {tokens} of {taken}");
        }
        states.push(status);
    }
    for (message, text) in read {
        let stored = client.text(message);
        // Whoever read the end in time has all of a message that is gone by now.
        if stored.is_some() {
            assert_eq!(text, stored, "{message}");
        }
    }
    states.sort();
    states.dedup_by_key(|state| state.clone());
    println!(
        "{} messages, {states:?}; {} sessions ended, {} streams taken for dead",
        sent.len(),
        killed.load(Ordering::SeqCst),
        recovered.load(Ordering::SeqCst)
    );
    assert!(killed.load(Ordering::SeqCst) > 0 && recovered.load(Ordering::SeqCst) > 0);
}
