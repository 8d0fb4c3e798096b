//! A reader, who follows an answer with his own token.

use std::time::{Duration, Instant};

use pg_conversation_tests::Session;

use crate::rest::{Caller, Rest, service, user};
use crate::stack::Deployment;

/// A stream of the words given, seen by its owner.
fn stream(deployment: &Deployment, words: &str) -> (Rest, Caller, String) {
    let mut rest = Rest::new(deployment);
    let as_ada = user(deployment.sign_up("ada"));
    let made = rest.rpc(&as_ada, "create_conversation", "{}").unwrap();
    let c = rest.at(&made, "");
    let begun = rest.rpc(&service(), "begin_message", &format!(r#"{{"conversation_id": "{c}"}}"#));
    let m = rest.at(&begun.unwrap(), "");
    let window = format!(r#"{{"message_id": "{m}", "contents": {words}}}"#);
    rest.rpc(&service(), "append_chunks", &window).unwrap();
    (rest, as_ada, m)
}

#[test]
fn a_reader_gets_what_he_lacks_and_a_stranger_nothing() {
    for schema in ["public", "chat"] {
        let deployment = Deployment::with_schema(schema);
        let (mut rest, as_ada, m) = stream(&deployment, r#"["a", "b", "c", "d"]"#);
        let as_eve = user(deployment.sign_up("eve"));
        // message_chunks?message_id=eq.…&chunk_index=gt.1&order=chunk_index
        let select = format!(
            r#"SELECT "{schema}"."message_chunks"."chunk_index", "{schema}"."message_chunks"."chunk_content" FROM "{schema}"."message_chunks" WHERE  "{schema}"."message_chunks"."message_id" = $1 AND  "{schema}"."message_chunks"."chunk_index" > $2 ORDER BY "{schema}"."message_chunks"."chunk_index" ASC LIMIT $3 OFFSET $4"#
        );
        for (caller, rows) in [(&as_ada, 2), (&as_eve, 0), (&service(), 2), (&as_ada, 2)] {
            let read = rest.read(caller, &select, None, &[&m, "1", "100", "0"]).unwrap();
            assert_eq!(read.rows, rows);
        }
        let read = rest.read(&as_ada, &select, None, &[&m, "1", "100", "0"]).unwrap();
        assert_eq!(rest.at(&read, "1,chunk_content"), "d");

        let after = format!(r#"{{"message_id": "{m}", "after_index": 1}}"#);
        let wait = format!(r#"{{"message_id": "{m}", "after_index": 1, "timeout_ms": 100}}"#);
        let replies = [
            rest.rpc(&as_ada, "read_stream", &after).unwrap(),
            rest.rpc_get(&as_ada, "read_stream", &after).unwrap(),
            rest.rpc(&as_ada, "wait_for_chunks", &wait).unwrap(),
            // It locks and does not write, so that it can be had by GET.
            rest.rpc_get(&as_ada, "wait_for_chunks", &wait).unwrap(),
        ];
        for reply in &replies {
            assert_eq!((reply.rows, rest.at(reply, "0,content")), (2, "c".into()));
            assert_eq!(rest.at(reply, "0,status"), "streaming");
        }
        for name in ["read_stream", "wait_for_chunks"] {
            assert_eq!(rest.rpc(&as_eve, name, &after).unwrap_err().0, "P0002", "{name}");
        }
        let whole = format!(r#"{{"msg_id": "{m}"}}"#);
        let text = rest.rpc(&as_ada, "reconstruct_message", &whole).unwrap();
        assert_eq!(text.body, r#""abcd""#);
        let text = rest.rpc(&as_eve, "reconstruct_message", &whole).unwrap();
        assert_eq!(text.body, "null");

        // After the end and after clean-up: the whole of it, in one row.
        rest.rpc(&service(), "finish_message", &format!(r#"{{"message_id": "{m}"}}"#)).unwrap();
        rest.rpc(&service(), "cleanup_streaming_artifacts", &whole).unwrap();
        let read = rest.rpc(&as_ada, "read_stream", &after).unwrap();
        assert_eq!((read.rows, rest.at(&read, "0,content")), (1, "abcd".into()));
        assert_eq!(rest.at(&read, "0,whole"), "true");
        let text = rest.rpc(&as_ada, "reconstruct_message", &whole).unwrap();
        assert_eq!(text.body, r#""abcd""#);
    }
}

#[test]
fn a_reader_who_waits_is_woken_by_the_service() {
    let deployment = Deployment::new();
    let (mut rest, as_ada, m) = stream(&deployment, "[]");
    let mut other = Rest::new(&deployment);
    let message = m.clone();
    let waiting = std::thread::spawn(move || {
        let wait = format!(r#"{{"message_id": "{message}", "timeout_ms": 7000}}"#);
        other.rpc(&as_ada, "wait_for_chunks", &wait).unwrap().rows
    });
    pg_conversation_tests::wait_until(
        &mut deployment.admin(),
        "select exists (select from pg_stat_activity where usename = 'authenticator'
            and state = 'active' and query like '%wait_for_chunks%')",
    );
    let window = format!(r#"{{"message_id": "{m}", "contents": ["one", "two"]}}"#);
    rest.rpc(&service(), "append_chunks", &window).unwrap();
    let sent = Instant::now();
    assert_eq!(waiting.join().unwrap(), 2);
    assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
}

/// PostgREST applies the statement_timeout of the role, which ends a wait that is longer. The pool
/// goes on with the connection.
#[test]
fn a_wait_ends_with_the_statement_timeout_of_the_role() {
    let deployment = Deployment::new();
    let sql = "alter role authenticated in database $d set statement_timeout = '1s'";
    deployment.admin().run(&sql.replace("$d", &deployment.name));
    let (mut rest, as_ada, m) = stream(&deployment, "[]");
    let wait = |ms: u32| format!(r#"{{"message_id": "{m}", "timeout_ms": {ms}}}"#);
    let short = rest.rpc(&as_ada, "wait_for_chunks", &wait(100)).unwrap();
    assert_eq!(short.body, "[]");
    let long = rest.rpc(&as_ada, "wait_for_chunks", &wait(7000));
    assert_eq!(long.unwrap_err().0, "57014");
    assert_eq!(rest.idle().value::<String>("show statement_timeout"), "8s");
    let window = format!(r#"{{"message_id": "{m}", "contents": ["one"]}}"#);
    rest.rpc(&service(), "append_chunks", &window).unwrap();
    let read = rest.rpc(&as_ada, "wait_for_chunks", &wait(100)).unwrap();
    assert_eq!(read.rows, 1);
    // The lock of the reader went with his transaction.
    let locks = "select count(*) from pg_locks where locktype = 'advisory'
        and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(deployment.admin().value::<i64>(locks), 0);
}
