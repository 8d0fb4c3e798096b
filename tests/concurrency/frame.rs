//! `migrate()` and DROP EXTENSION wait for each other.

use std::sync::Barrier;
use std::thread;

use pg_conversation_tests::{Database, Server, Session, describe, oldest, wait_until};

/// Runs `second` while `first` is held open; proves that it waits, then ends `first`.
fn second_waits(database: &Database, first: &str, second: &str, end: &str) -> Result<(), String> {
    let (mut one, mut two) = (database.superuser(), database.superuser());
    let pid: i32 = two.value("select pg_backend_pid()");
    one.run(&format!("begin; {first}"));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| two.batch_execute(second).map_err(|error| describe(&error)));
        wait_until(
            &mut database.superuser(),
            &format!(
                "select exists (select from pg_locks where pid = {pid} and not granted) \
                 and exists (select from pg_stat_activity where pid = {pid} and wait_event_type = 'Lock')"
            ),
        );
        one.run(end);
        waiting.join().expect("no panic")
    })
}

#[test]
fn migrate_and_drop_extension_take_turns() {
    let migrate = "select migrate()";
    let drop = "drop extension pg_conversation cascade";
    // Whether tables are there; first, second, how the first ends, what becomes of the second.
    let cases = [
        (true, migrate, migrate, "commit", None),
        (true, migrate, migrate, "rollback", None),
        (false, migrate, migrate, "commit", None),
        (false, migrate, migrate, "rollback", None),
        (true, migrate, drop, "commit", None),
        (false, migrate, drop, "commit", None),
        (true, drop, migrate, "rollback", None),
        (true, drop, migrate, "commit", Some(["42704", "42883"])),
        (false, drop, migrate, "commit", Some(["42704", "42883"])),
        (true, "select rollback_to(0, force => true)", migrate, "commit", None),
        (true, migrate, "select uninstall(current_database())", "commit", None),
    ];
    for (tables, first, second, end, error) in cases {
        let case = format!("tables {tables}: {first}; {second}; {end}");
        let database = Server::shared(oldest()).empty_database();
        database.superuser().run(&format!(
            "set pg_conversation.auto_install = {tables}; create extension pg_conversation"
        ));
        let result = second_waits(&database, first, second, end);
        match (&result, error) {
            (Ok(()), None) => (),
            (Err(message), Some(codes)) => {
                assert!(codes.iter().any(|code| message.starts_with(code)), "{case}: {message}");
            }
            _ => panic!("{case}: {result:?}"),
        }
        let mut client = database.superuser();
        let members: i64 = client.value(
            "select count(*) from pg_depend d join pg_extension e on e.oid = d.refobjid \
             where e.extname = 'pg_conversation' and d.deptype = 'e' \
             and d.classid in ('pg_class'::regclass, 'pg_type'::regclass)",
        );
        assert_eq!(members, 0, "{case}");
        if second == migrate && error.is_none() {
            let broken: i64 = client.value("select count(*) from doctor() where not ok");
            assert_eq!(broken, 0, "{case}");
        }
    }
}

#[test]
fn appends_and_changes_of_the_schema_take_turns() {
    let append = "select append_chunk(id, 'x') from messages";
    let migrate = "select migrate()";
    let back = "select rollback_to(4, force => true)";
    // First and second, how the first ends, what becomes of the second, chunks in the end.
    let cases = [
        (append, migrate, "commit", None, 1),
        (append, migrate, "rollback", None, 0),
        (migrate, append, "commit", None, 1),
        (migrate, append, "rollback", None, 1),
        (back, append, "commit", Some("55000"), -1),
        (back, append, "rollback", None, 1),
        (append, back, "commit", None, -1),
        ("drop extension pg_conversation cascade", append, "rollback", None, 1),
    ];
    for (first, second, end, error, chunks) in cases {
        let case = format!("{first}; {second}; {end}");
        let database = Server::shared(oldest()).database();
        let mut client = database.superuser();
        client.run("select begin_message(create_conversation('talk'))");
        let result = second_waits(&database, first, second, end);
        match (&result, error) {
            (Ok(()), None) => (),
            (Err(message), Some(code)) if message.starts_with(code) => (),
            _ => panic!("{case}: {result:?}"),
        }
        if chunks >= 0 {
            assert_eq!(
                client.value::<i64>("select count(*) from message_chunks"),
                chunks,
                "{case}"
            );
            let next: i32 = client.value("select resume_message(id) from messages");
            assert_eq!(i64::from(next), chunks, "{case}");
        }
        client.run("select migrate()");
        assert_eq!(client.value::<i64>("select count(*) from doctor() where not ok"), 0, "{case}");
    }
}

#[test]
fn many_sessions_may_migrate_at_once() {
    let database = Server::shared(oldest()).empty_database();
    database
        .superuser()
        .run("set pg_conversation.auto_install = off; create extension pg_conversation");
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            let (database, start) = (&database, &start);
            scope.spawn(move || {
                let mut client = database.superuser();
                start.wait();
                for _ in 0..3 {
                    client.run("select migrate()");
                }
            });
        }
    });
    let broken: i64 = database.superuser().value("select count(*) from doctor() where not ok");
    assert_eq!(broken, 0);
}
