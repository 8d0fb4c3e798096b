//! What many sessions ask for at once is made once.

use std::sync::Barrier;
use std::thread;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, describe, oldest};
use postgres::Error;

/// Runs `sql` in every session at the same moment.
fn at_once(sessions: &mut [Client], sql: &str) -> Vec<Result<Uuid, Error>> {
    let start = Barrier::new(sessions.len());
    thread::scope(|scope| {
        let running: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    session.query_one(sql, &[]).map(|row| row.get(0))
                })
            })
            .collect();
        running.into_iter().map(|session| session.join().expect("no panic")).collect()
    })
}

fn all_agree(results: &[Result<Uuid, Error>]) -> Result<Uuid, String> {
    let mut ids = Vec::new();
    for result in results {
        match result {
            Ok(id) => ids.push(*id),
            Err(error) => return Err(describe(error)),
        }
    }
    ids.dedup();
    match ids[..] {
        [id] => Ok(id),
        _ => Err(format!("different ids: {ids:?}")),
    }
}

#[test]
fn sessions_that_ask_for_one_name_get_one_conversation() {
    let database = Server::shared(oldest()).database();
    let user = Uuid::new_v4();
    let mut sessions: Vec<_> = (0..32).map(|_| database.member(user)).collect();
    let mut failures = Vec::new();
    for round in 0..60 {
        let results = at_once(
            &mut sessions,
            &format!("select get_or_create_conversation('name-{round}', 'title')"),
        );
        if let Err(failure) = all_agree(&results) {
            failures.push(format!("round {round}: {failure}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let rows: i64 = database.superuser().value("select count(*) from conversations");
    assert_eq!(rows, 60);
}

fn claim(database: &Database, subject: Uuid, level: &str) -> Client {
    let mut client = database.connect("member");
    client.run(&format!(
        "set request.jwt.claims = '{{\"sub\": \"{subject}\", \"role\": \"authenticated\"}}'; \
         set default_transaction_isolation = '{level}'"
    ));
    client
}

#[test]
fn an_unknown_subject_becomes_one_user_however_many_sessions_bring_it() {
    let database = Server::shared(oldest()).database();
    let ways = [
        (16, "select ensure_user()"),
        (8, "insert into conversations (title) values ('first') returning user_id"),
        (
            8,
            "insert into conversations (title, user_id) values \
             ('first', (current_setting('request.jwt.claims')::json->>'sub')::uuid) returning user_id",
        ),
    ];
    for (n, sql) in ways {
        for level in ["read committed", "repeatable read", "serializable"] {
            for _ in 0..5 {
                let subject = Uuid::new_v4();
                let mut sessions: Vec<_> =
                    (0..n).map(|_| claim(&database, subject, level)).collect();
                let results = at_once(&mut sessions, sql);
                let (done, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
                for error in failed.iter().filter_map(|result| result.as_ref().err()) {
                    let code = error.code().map_or("", |code| code.code());
                    assert!(
                        level != "read committed" && code == "40001",
                        "{level}: {sql}: {}",
                        describe(error)
                    );
                }
                assert!(!done.is_empty(), "{level}: nobody came through: {sql}");
                assert_eq!(all_agree(&done), Ok(subject), "{level}: {sql}");
                let rows: i64 = database
                    .superuser()
                    .value(&format!("select count(*) from users where auth_id = '{subject}'"));
                assert_eq!(rows, 1, "{level}: {sql}");
            }
        }
    }
}
