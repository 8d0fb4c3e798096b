//! A run: what is due, one at a time, in bounds, and what happens when it is stopped.

use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{NoTls, Session, describe, wait_until};

use crate::house::{House, Keeper};

const ALL: [&str; 9] = [
    "stalled_messages",
    "finished_chunks",
    "expired_conversations",
    "deleted_conversations",
    "usage_folding",
    "reservations",
    "feedback_check",
    "usage_check",
    "analytics",
];

#[test]
fn a_new_database_runs_every_job_without_an_error() {
    let house = House::new();
    let mut service = house.service();
    let wrong: Vec<String> = service.values(
        "select concat_ws(': ', job, error) from run_maintenance() where error is not null",
    );
    assert_eq!(wrong, Vec::<String>::new());
    let listed: Vec<String> = service.values("select job from maintenance_runs");
    assert_eq!(listed.len(), ALL.len());
}

#[test]
fn what_is_due_runs_and_nothing_else() {
    let house = House::new();
    let (mut service, mut superuser) = (house.service(), house.database.superuser());
    assert_eq!(service.keep(), ALL);
    assert_eq!(service.keep(), Vec::<String>::new());
    let back = |by: &str, job: &str| {
        format!(
            "update maintenance_runs set last_started_at = last_started_at - interval '{by}', \
             last_finished_at = last_finished_at - interval '{by}' where job = '{job}'"
        )
    };
    superuser.run(&back("29 s", "stalled_messages"));
    superuser.run(&back("59 min", "reservations"));
    assert_eq!(service.keep(), Vec::<String>::new());
    superuser.run(&back("2 s", "stalled_messages"));
    superuser.run(&back("2 min", "reservations"));
    assert_eq!(service.keep(), ["stalled_messages", "reservations"]);
    // Other intervals, and none.
    service.run("update maintenance_runs set every = '1 day' where job = 'reservations'");
    superuser.run(&back("2 hours", "reservations"));
    assert_eq!(service.keep(), Vec::<String>::new());
    service.run("update maintenance_runs set enabled = false where job = 'reservations'");
    superuser.run(&back("3 days", "reservations"));
    assert_eq!(service.keep(), Vec::<String>::new());
    // A clock that was set back does not stop it.
    superuser.run(&back("-1 year", "stalled_messages"));
    assert_eq!(service.keep(), ["stalled_messages"]);
    // What the DBA has set stays.
    superuser.run("select migrate()");
    let kept: bool = superuser.value(
        "select every = '1 day' and not enabled from maintenance_runs where job = 'reservations'",
    );
    assert!(kept);
}

#[test]
fn a_run_is_undone_with_its_transaction() {
    let house = House::new();
    let mut service = house.service();
    house.expired(3, 1, "1 min");
    service.run("begin; select run_maintenance(); rollback");
    assert_eq!(house.count("conversations"), 3);
    assert_eq!(house.count("maintenance_runs where last_started_at is not null"), 0);
    // Twice in one transaction: the second finds nothing due.
    service.run("begin");
    assert_eq!(service.keep().len(), ALL.len());
    assert_eq!(service.keep().len(), 0);
    service.run("commit");
    assert_eq!(house.count("conversations"), 0);
}

#[test]
fn two_callers_at_once_do_the_work_of_one() {
    let house = House::new();
    let (mut first, mut second) = (house.service(), house.service());
    first.run("begin");
    assert_eq!(first.keep().len(), ALL.len());
    let start = Instant::now();
    assert_eq!(second.keep().len(), 0);
    assert!(start.elapsed() < Duration::from_secs(1), "it has waited");
    first.run("rollback");
    assert_eq!(second.keep().len(), ALL.len());

    // Eight of them, many times: each job ran once.
    second.only(&["stalled_messages"]);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = house.database.connect("maint_service");
                for _ in 0..20 {
                    client.keep();
                }
            });
        }
    });
    assert_eq!(house.count("maintenance_runs where runs > 1"), 0);
}

#[test]
fn who_is_gone_leaves_no_lock() {
    let house = House::new();
    let mut superuser = house.database.superuser();
    for end in ["select pg_terminate_backend($1)", "select pg_cancel_backend($1)"] {
        let mut client = house.service();
        let pid: i32 = client.value("select pg_backend_pid()");
        client.run("begin; select run_maintenance()");
        superuser.execute(end, &[&pid]).expect("a signal");
        if end.contains("terminate") {
            wait_until(
                &mut superuser,
                &format!("select not exists (select from pg_stat_activity where pid = {pid})"),
            );
        } else {
            // Idle, it hears nothing of a cancellation.
            client.run("rollback");
        }
        assert_eq!(house.service().keep().len(), ALL.len());
        superuser.run("update maintenance_runs set last_started_at = null");
    }
}

#[test]
fn a_backlog_drains_while_each_run_stays_short() {
    let house = House::new();
    let mut service = house.service();
    service.only(&["expired_conversations", "stalled_messages"]);
    service.run("update maintenance_runs set every = '1 day'");
    house.expired(6000, 5, "1 min");
    // Half the time that a statement has is taken.
    service.run("set statement_timeout = '300ms'");
    let mut runs = 0;
    while house.count("conversations") > 0 {
        let start = Instant::now();
        let ran = service.keep();
        assert!(start.elapsed() < Duration::from_millis(1000), "{:?}", start.elapsed());
        // What is unfinished is due at the next call; what is finished tomorrow.
        assert!(ran.contains(&"expired_conversations".into()), "{ran:?} in run {runs}");
        assert_eq!(ran.contains(&"stalled_messages".into()), runs == 0, "{ran:?}");
        runs += 1;
        assert!(runs < 1000);
    }
    assert!(runs > 3, "{runs} runs were enough: nothing is bounded");
    service.keep();
    assert_eq!(service.keep(), Vec::<String>::new());
    let is_finished: bool = service.value(
        "select last_finished_at >= last_started_at from maintenance_runs where job = 'expired_conversations'",
    );
    assert!(is_finished);
}

#[test]
fn a_run_without_a_time_of_its_own_takes_four_seconds_at_most() {
    let house = House::new();
    let mut service = house.service();
    // Each conversation takes ten milliseconds to go.
    house.expired(3000, 0, "1 min");
    house.database.superuser().run(
        "create function slow() returns trigger language plpgsql as \
         'begin perform pg_sleep(0.01); return old; end'; \
         create trigger slow before delete on conversations for each row execute function slow()",
    );
    let start = Instant::now();
    service.keep();
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(6), "{took:?}");
    let left = house.count("conversations");
    assert!(left > 2000 && left < 3000, "{left} are left");
}

#[test]
fn a_run_is_cancelled_within_a_second_and_leaves_no_note() {
    let house = House::new();
    house.expired(1, 0, "1 min");
    let mut superuser = house.database.superuser();
    superuser.run(
        "create function stuck() returns trigger language plpgsql as \
         'begin perform pg_sleep(60); return old; end'; \
         create trigger stuck before delete on conversations for each row execute function stuck()",
    );
    let nothing = |house: &House| {
        assert_eq!(
            house.count("maintenance_runs where last_started_at is not null or runs > 0"),
            0
        );
        assert_eq!(house.count("conversations"), 1);
    };
    let mut client = house.service();
    let token = client.cancel_token();
    let asked = thread::scope(|scope| {
        let running = scope.spawn(|| {
            let error = client.batch_execute("select run_maintenance()").expect_err("cancelled");
            assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{}", describe(&error));
            Instant::now()
        });
        thread::sleep(Duration::from_millis(500));
        let asked = Instant::now();
        token.cancel_query(NoTls).expect("a request to cancel");
        running.join().expect("no panic").saturating_duration_since(asked)
    });
    assert!(asked < Duration::from_secs(1), "{asked:?}");
    nothing(&house);
    // The time of a statement is over for all of it.
    client.run("set statement_timeout = '200ms'");
    assert_eq!(client.error("select run_maintenance()").0, "57014");
    nothing(&house);
    client.run("reset statement_timeout");
    superuser.run("drop trigger stuck on conversations");
    assert_eq!(client.keep().len(), ALL.len());
}

#[test]
fn what_a_job_sets_off_does_not_begin_another_run() {
    let house = House::new();
    house.expired(2, 0, "1 min");
    house.database.superuser().run(
        "create function again() returns trigger language plpgsql set search_path = public as \
         'begin perform run_maintenance(); return old; end'; \
         create trigger again before delete on conversations for each row execute function again()",
    );
    let mut service = house.service();
    assert_eq!(service.keep(), ALL);
    assert_eq!(house.count("conversations"), 0);
    assert_eq!(house.count("maintenance_runs where runs <> 1"), 0);
}

#[test]
fn it_runs_in_transactions_of_every_isolation() {
    for isolation in ["repeatable read", "serializable"] {
        let house = House::new();
        let mut service = house.service();
        service.run(&format!("begin isolation level {isolation}; select 1"));
        house.expired(2, 1, "1 min");
        assert_eq!(service.keep(), ALL, "{isolation}");
        service.run("commit");
        assert_eq!(house.count("maintenance_runs where runs <> 1"), 0, "{isolation}");
    }
    let house = House::new();
    let mut service = house.service();
    service.run("set default_transaction_read_only = on");
    assert_eq!(service.error("select run_maintenance()").0, "25006");
}
