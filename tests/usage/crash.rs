//! What was acknowledged is there, once, and in every sum, whatever is killed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, NoTls, Rng, Server, Session, oldest};

use crate::books::{Books, Event, Usage};

#[derive(Clone, Copy, Debug)]
enum Blow {
    Backend,
    Immediate,
    Postmaster,
}

/// A session once the server takes any.
fn reconnect(books: &Books) -> Client {
    let begin = Instant::now();
    loop {
        let config = books.database.server.config(&books.database.name, "usage_service");
        match config.connect(NoTls) {
            Ok(client) => return client,
            Err(error) if begin.elapsed() > Duration::from_secs(60) => panic!("{error}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[test]
fn what_was_acknowledged_is_there_once_after_any_death() {
    let server = Server::private(oldest(), "max_connections = 50\n");
    let books = Books::on(&server);
    for (round, blow) in
        [Blow::Backend, Blow::Immediate, Blow::Postmaster, Blow::Backend].into_iter().enumerate()
    {
        let pids = Mutex::new(Vec::new());
        let stop = AtomicBool::new(false);
        let acknowledged: Vec<String> = thread::scope(|scope| {
            let sessions: Vec<_> = (0..6)
                .map(|n| {
                    let (books, pids, stop) = (&books, &pids, &stop);
                    scope.spawn(move || {
                        let mut rng = Rng::new(n + 50);
                        let mut client = reconnect(books);
                        pids.lock()
                            .expect("no panic")
                            .push(client.value::<i32>("select pg_backend_pid()"));
                        let mut told = Vec::new();
                        for i in 0.. {
                            let key = format!("{round} {n} {i}");
                            let in_parts = rng.below(3) == 0;
                            let tried = work(books, &mut client, &key, in_parts);
                            if !tried || stop.load(Ordering::SeqCst) && i > 5 {
                                return told;
                            }
                            told.push(key);
                        }
                        told
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(400));
            match blow {
                Blow::Backend => server.kill_backend(pids.lock().expect("no panic")[0]),
                Blow::Immediate => server.stop("immediate"),
                Blow::Postmaster => server.kill_postmaster(),
            }
            stop.store(true, Ordering::SeqCst);
            sessions.into_iter().flat_map(|session| session.join().expect("no panic")).collect()
        });
        if !matches!(blow, Blow::Backend) {
            server.start();
        }
        let mut client = reconnect(&books);
        assert!(acknowledged.len() > 20, "{blow:?}: {}", acknowledged.len());
        for key in &acknowledged {
            let answer = client.record(&Event::of(&books, key)).expect("a duplicate");
            assert!(!answer.applied, "{blow:?}: {key} was acknowledged, and lost");
        }
        let written: i64 = client.value(&format!(
            "select count(*) from usage_events where idempotency_key like '{round} %'"
        ));
        // Of each session one more may be there, whose answer was lost.
        let told = acknowledged.len() as i64;
        assert!((told..=told + 6).contains(&written), "{blow:?}: {written} of {told}");
        books.agree();
    }
}

/// Whether it was acknowledged.
fn work(books: &Books, client: &mut Client, key: &str, in_parts: bool) -> bool {
    if !in_parts {
        return client.record(&Event::of(books, key)).is_ok();
    }
    let gone = format!("gone {key}");
    client.batch_execute("begin; savepoint s").is_ok()
        && client.record(&Event::of(books, &gone)).is_ok()
        && client.batch_execute("rollback to s").is_ok()
        && client.record(&Event::of(books, key)).is_ok()
        && client.batch_execute("commit").is_ok()
}
