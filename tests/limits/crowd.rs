//! Thirty-two sessions at the limit.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use pg_conversation_tests::{Client, Rng, Session, Uuid, describe};

use crate::desk::{Desk, Limits, TAKEN, taken};

const SESSIONS: usize = 32;
const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];

fn seconds(client: &mut Client) -> f64 {
    client.value("select extract(epoch from clock_timestamp())::float8")
}

/// Runs the same in all sessions at once, half of them members.
fn together(desk: &Desk, work: impl Fn(usize, &mut Client) + Sync) {
    let barrier = Barrier::new(SESSIONS);
    thread::scope(|scope| {
        for n in 0..SESSIONS {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                let mut client = if n % 2 == 0 { desk.member() } else { desk.service() };
                let level = LEVELS[n % 3];
                client.run(&format!("set default_transaction_isolation = '{level}'"));
                barrier.wait();
                work(n, &mut client);
            });
        }
    });
}

#[test]
fn thirty_two_sessions_draw_exactly_what_fits() {
    for (limit, first) in [(1, false), (10, false), (100, false), (37, true)] {
        let desk = Desk::new();
        desk.requests(&limit.to_string());
        if first {
            // Whoever comes first makes the row.
            desk.database.superuser().run("delete from rate_states");
        }
        let begin = seconds(&mut desk.database.superuser());
        let admitted = AtomicI64::new(0);
        together(&desk, |n, client| {
            let mut rng = Rng::new(n as u64);
            for _ in 0..20 {
                // Whatever becomes of the transaction. The row of the first request goes with it, so
                // that has to come to something.
                let rolled_back = !first && rng.below(2) == 0;
                client.run("begin");
                let answer = client.draw_of(desk.tenant, 1);
                match answer {
                    Ok(answer) => {
                        admitted.fetch_add(i64::from(answer.allowed), Ordering::SeqCst);
                        client.run(if rolled_back { "rollback" } else { "commit" });
                    }
                    // Of those who meet at the first row in an old snapshot.
                    Err(error) if error.code().is_some_and(|code| code.code() == "40001") => {
                        client.run("rollback");
                    }
                    Err(error) => panic!("{}", describe(&error)),
                }
            }
        });
        let elapsed = seconds(&mut desk.database.superuser()) - begin;
        let admitted = admitted.into_inner();
        let most = limit + (elapsed * limit as f64 / 60.0).floor() as i64;
        println!("{admitted} of {limit} in {elapsed:.2} s");
        assert!((limit..=most).contains(&admitted), "{admitted} of {limit} in {elapsed} s");
    }
}

#[test]
fn a_limit_holds_for_as_long_as_it_is_pressed() {
    let desk = Desk::new();
    let limit = 12_000;
    desk.requests(&limit.to_string());
    let begin = seconds(&mut desk.database.superuser());
    let (admitted, refused) = (AtomicI64::new(0), AtomicI64::new(0));
    together(&desk, |n, client| {
        let mut rng = Rng::new(n as u64);
        for _ in 0..1500 {
            let cost = 1 + rng.below(30) as i32;
            match client.draw_of(desk.tenant, cost) {
                Ok(answer) if answer.allowed => {
                    admitted.fetch_add(i64::from(cost), Ordering::SeqCst);
                }
                Ok(_) => {
                    refused.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => {
                    assert_eq!(error.code().map(|code| code.code()), Some("40001"));
                }
            }
        }
    });
    let elapsed = seconds(&mut desk.database.superuser()) - begin;
    let (admitted, refused) = (admitted.into_inner(), refused.into_inner());
    let most = limit as f64 * (1.0 + elapsed / 60.0);
    println!("{admitted} of {most:.0} in {elapsed:.2} s, {refused} refused");
    assert!(admitted as f64 <= most, "{admitted} of {most}");
    assert!(refused == 0 || admitted as f64 >= most * 0.9, "{admitted} of {most}");
    assert!(refused > 0, "nobody was refused");
}

#[test]
fn thirty_two_sessions_reserve_exactly_what_fits() {
    let desk = Desk::new();
    for round in 0..3 {
        desk.database.superuser().run("delete from token_reservations; delete from token_windows");
        // Reservations of 10, so that 5 are left over.
        desk.tokens("505");
        let admitted = AtomicI64::new(0);
        together(&desk, |n, client| {
            let mut rng = Rng::new((round * 100 + n) as u64);
            for _ in 0..8 {
                let gives_up = rng.below(4);
                client.run("begin");
                let answer = reserve(&desk, n, client, 10);
                match answer {
                    Ok(true) if gives_up == 0 => client.run("rollback"),
                    Ok(true) => {
                        client.run("commit");
                        admitted.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(false) => client.run("rollback"),
                    // What repeatable read does to those who write beside each other.
                    Err(code) => {
                        assert_eq!(code, "40001");
                        client.run("rollback");
                    }
                }
            }
        });
        let admitted = admitted.into_inner();
        let mut service = desk.service();
        println!("{admitted} of 50");
        assert_eq!(taken(&mut service), (0, 10 * admitted));
        assert!(admitted <= 50, "{admitted}");
        // Those who gave up have left room; nobody took more than there was.
        while service.reserve(desk.tenant, 10).unwrap().allowed {}
        assert_eq!(taken(&mut service), (0, 500));
        assert_eq!(service.reserve(desk.tenant, 5).unwrap().remaining, Some(0));
        let messages: i64 = desk.database.superuser().value(
            "select count(*) from messages m \
            where not exists (select from token_reservations r where r.id = m.id)",
        );
        assert_eq!(messages, 0, "no message without its tokens");
        desk.database.superuser().run("delete from messages");
    }
}

/// Whether it was allowed: by a message for members, by name for the service.
fn reserve(desk: &Desk, n: usize, client: &mut Client, tokens: i64) -> Result<bool, String> {
    let result = if n.is_multiple_of(2) {
        // In conversations of their own, for these are not what is tested.
        client
            .query_one("select create_conversation()", &[])
            .and_then(|row| client.begin(row.get(0), tokens))
            .map(|_| true)
    } else {
        client.reserve(desk.tenant, tokens).map(|answer| answer.allowed)
    };
    let code = |error: &postgres::Error| error.code().map_or("", |code| code.code()).to_string();
    match result {
        Ok(allowed) => Ok(allowed),
        Err(error) if code(&error) == "PT429" => Ok(false),
        Err(error) => Err(code(&error)),
    }
}

#[test]
fn one_reservation_that_fits_once_is_had_once() {
    let desk = Desk::new();
    desk.tokens("100");
    for _ in 0..10 {
        desk.database.superuser().run("delete from token_reservations");
        let had = Mutex::new(Vec::new());
        together(&desk, |n, client| {
            if n % 2 == 1 {
                let answer = client.reserve(desk.tenant, 100).unwrap();
                if answer.allowed {
                    had.lock().unwrap().push(n);
                }
            }
        });
        assert_eq!(had.into_inner().unwrap().len(), 1);
    }
}

#[test]
fn whatever_is_reserved_settled_released_or_killed_beside_each_other_the_sum_is_right() {
    let desk = Desk::new();
    let limit = 2000;
    desk.tokens(&limit.to_string());
    let done = AtomicBool::new(false);
    let killed = AtomicI64::new(0);
    thread::scope(|scope| {
        let (desk, done, killed) = (&desk, &done, &killed);
        let watcher = scope.spawn(move || {
            // At any moment, in one snapshot: nobody settles more than he has reserved here.
            let (mut client, mut looks) = (desk.database.superuser(), 0);
            while !done.load(Ordering::SeqCst) {
                let row = client.query_one(TAKEN, &[]).unwrap();
                let (used, open): (i64, i64) = (row.get(0), row.get(1));
                assert!(used + open <= limit, "{used} and {open} of {limit}");
                looks += 1;
                thread::sleep(std::time::Duration::from_millis(2));
            }
            looks
        });
        let killer = scope.spawn(move || {
            let mut client = desk.database.superuser();
            while !done.load(Ordering::SeqCst) {
                thread::sleep(std::time::Duration::from_millis(60));
                client.run(
                    "select pg_terminate_backend(pid) from (select pid from pg_stat_activity \
                     where datname = current_database() and usename = 'limits_service' \
                     order by random() limit 1) s",
                );
                killed.fetch_add(1, Ordering::SeqCst);
            }
        });
        thread::scope(|scope| {
            for n in 0..12 {
                scope.spawn(move || mix(desk, n));
            }
        });
        done.store(true, Ordering::SeqCst);
        assert!(watcher.join().unwrap() > 5);
        killer.join().unwrap();
    });
    let mut client = desk.database.superuser();
    let (used, open) = taken(&mut client);
    let settled: i64 =
        client.value("select coalesce(sum(settled), 0)::bigint from token_reservations");
    println!("{used} used, {open} open, {killed:?} killed");
    assert_eq!(used, settled, "each settlement is in a window, once");
    assert!(used > 0);
    let mut service = desk.service();
    assert_eq!(service.reserve(desk.tenant, 0).unwrap().remaining, Some(limit - used - open));
    while service.reserve(desk.tenant, 1).unwrap().allowed {}
    let (used, open) = taken(&mut client);
    assert_eq!(used + open, limit);
}

fn mix(desk: &Desk, n: usize) {
    let mut rng = Rng::new(500 + n as u64);
    let mut client = desk.service();
    let mut open: Vec<(Uuid, i64)> = Vec::new();
    for _ in 0..150 {
        let mut step = || -> Result<(), postgres::Error> {
            let in_transaction = rng.below(3) == 0;
            if in_transaction {
                client.batch_execute("begin")?;
            }
            let mut taken = None;
            let most = if open.len() < 10 { 4 } else { 2 };
            match 3 - rng.below(most) {
                0 | 1 => {
                    let tokens = rng.below(40) as i64;
                    if let Some(id) = client.reserve(desk.tenant, tokens)?.id {
                        taken = Some((id, tokens));
                    }
                }
                2 if !open.is_empty() => {
                    let (id, tokens) = open.remove(rng.below(open.len()));
                    // A small part of it, or the limit is reached at once.
                    client.settle(id, rng.below(tokens as usize / 20 + 1) as i64)?;
                }
                _ if !open.is_empty() => {
                    let (id, _) = open.remove(rng.below(open.len()));
                    client.release(id)?;
                }
                _ => (),
            }
            if in_transaction {
                let end = if rng.below(3) == 0 { "rollback" } else { "commit" };
                client.batch_execute(end)?;
                if end == "rollback" {
                    return Ok(());
                }
            }
            open.extend(taken);
            Ok(())
        };
        if let Err(error) = step() {
            let code = error.code().map_or("", |code| code.code());
            assert!(["57P01", ""].contains(&code), "{}", describe(&error));
            client = desk.service();
        }
    }
}

#[test]
fn a_backend_that_is_killed_by_the_kernel_gives_back_what_it_had_not_committed() {
    let server = pg_conversation_tests::Server::private(pg_conversation_tests::oldest(), "");
    let desk = Desk::on(&server);
    desk.tokens("100");
    let mut service = desk.service();
    service.reserve(desk.tenant, 30).unwrap();
    service.run("begin");
    service.reserve(desk.tenant, 70).unwrap();
    let pid: i32 = service.value("select pg_backend_pid()");
    server.kill_backend(pid);
    let mut service = desk.database.superuser();
    assert_eq!(taken(&mut service), (0, 30));
    assert_eq!(service.reserve(desk.tenant, 70).unwrap().remaining, Some(0));
}
