//! A backend that streams answers with the service key: the three ways to write tokens over the API.

use pg_conversation_tests::Session;

use crate::rest::{Rest, Returning, service, user};
use crate::stack::Deployment;

const SCHEMAS: [&str; 2] = ["public", "chat"];

/// A user, his conversation, and the pool that both use.
fn asked(deployment: &Deployment) -> (Rest, crate::rest::Caller, String) {
    let mut rest = Rest::new(deployment);
    let as_ada = user(deployment.sign_up("ada"));
    let made = rest.rpc(&as_ada, "create_conversation", "{}").unwrap();
    let c = rest.at(&made, "");
    let ask = format!(r#"{{"conversation_id": "{c}", "role": "user", "content": "Why?"}}"#);
    rest.post(&as_ada, "messages", &ask, "", Returning::Nothing).unwrap();
    (rest, as_ada, c)
}

#[test]
fn a_backend_inserts_chunks_until_the_final_one_completes_the_message() {
    for schema in SCHEMAS {
        let deployment = Deployment::with_schema(schema);
        let (mut rest, as_ada, c) = asked(&deployment);
        let begin = format!(
            r#"{{"conversation_id": "{c}", "role": "assistant", "status": "streaming", "model_used": "m"}}"#
        );
        let begun = rest.post(&service(), "messages", &begin, "", Returning::Rows).unwrap();
        let m = rest.at(&begun, "0,id");
        assert_eq!(rest.at(&begun, "0,sequence_number"), "2");
        assert_ne!(rest.at(&begun, "0,tenant_id"), "null");

        // One by one, in bulk, and without an index.
        let bodies = [
            format!(r#"{{"message_id": "{m}", "chunk_index": 0, "chunk_content": "Be"}}"#),
            format!(r#"{{"message_id": "{m}", "chunk_index": 1, "chunk_content": "cause"}}"#),
            format!(
                r#"[{{"message_id": "{m}", "chunk_index": 2, "chunk_content": " it"}}, {{"message_id": "{m}", "chunk_index": 3, "chunk_content": " is"}}]"#
            ),
            format!(r#"{{"message_id": "{m}", "chunk_content": " so"}}"#),
        ];
        for body in &bodies {
            rest.post(&service(), "message_chunks", body, "", Returning::Nothing).unwrap();
        }
        // What was not answered is sent again.
        let ignore = r#"ON CONFLICT("message_id", "chunk_index") DO NOTHING"#;
        let again = rest.post(&service(), "message_chunks", &bodies[2], ignore, Returning::Rows);
        assert_eq!(again.unwrap().rows, 0);
        let twice = rest.post(&service(), "message_chunks", &bodies[0], "", Returning::Nothing);
        assert_eq!(twice.unwrap_err().0, "23505");

        let status = format!(
            r#"SELECT "{schema}"."messages"."status", "{schema}"."messages"."content" FROM "{schema}"."messages" WHERE  "{schema}"."messages"."id" = $1"#
        );
        let now = rest.read(&as_ada, &status, None, &[&m]).unwrap();
        assert_eq!(now.body, r#"[{"status":"streaming","content":""}]"#);
        let last = format!(
            r#"{{"message_id": "{m}", "chunk_index": 5, "chunk_content": ".", "is_final": true}}"#
        );
        rest.post(&service(), "message_chunks", &last, "", Returning::Rows).unwrap();
        let now = rest.read(&as_ada, &status, None, &[&m]).unwrap();
        assert_eq!(now.body, r#"[{"status":"completed","content":"Because it is so."}]"#);
        let late = format!(r#"{{"message_id": "{m}", "chunk_content": "!"}}"#);
        let late = rest.post(&service(), "message_chunks", &late, "", Returning::Nothing);
        assert_eq!(late.unwrap_err().0, "24000");

        let figures = r#"{"completion_token_count": 6, "latency_ms": 12}"#;
        let noted =
            rest.patch(&service(), "messages", figures, ("id", &m), Returning::Rows).unwrap();
        assert_eq!(rest.at(&noted, "0,completion_token_count"), "6");
    }
}

#[test]
fn a_backend_streams_by_calls() {
    for schema in SCHEMAS {
        let deployment = Deployment::with_schema(schema);
        let (mut rest, as_ada, c) = asked(&deployment);
        let begin = format!(
            r#"{{"conversation_id": "{c}", "client_message_id": "answer-1", "model": "m", "metadata": {{"n": 1}}}}"#
        );
        let begun = rest.rpc(&service(), "begin_message", &begin).unwrap();
        let m = rest.at(&begun, "");
        let same = rest.rpc(&service(), "begin_message", &begin).unwrap();
        assert_eq!(rest.at(&same, ""), m);

        let window = |first: usize, words: &str| {
            format!(r#"{{"message_id": "{m}", "contents": {words}, "first_index": {first}}}"#)
        };
        let first = window(0, r#"["Be", "cause \"it\"", " is, {so}\\", ""]"#);
        for _ in 0..2 {
            let reply = rest.rpc(&service(), "append_chunks", &first).unwrap();
            assert_eq!(rest.at(&reply, "next_index"), "4");
            assert_eq!(rest.at(&reply, "stop_requested"), "false");
        }
        let (code, words) =
            rest.rpc(&service(), "append_chunks", &window(9, r#"["x"]"#)).unwrap_err();
        assert_eq!(code, "55000", "{words}");
        let one = format!(r#"{{"message_id": "{m}", "content": ".", "chunk_index": 4}}"#);
        let reply = rest.rpc(&service(), "append_chunk", &one).unwrap();
        assert_eq!(rest.at(&reply, "next_index"), "5");
        let resumed =
            rest.rpc(&service(), "resume_message", &format!(r#"{{"message_id": "{m}"}}"#));
        assert_eq!(resumed.unwrap().body, "5");
        let finish =
            format!(r#"{{"message_id": "{m}", "prompt_tokens": 3, "completion_tokens": 5}}"#);
        rest.rpc(&service(), "finish_message", &finish).unwrap();

        let by_id = format!(r#"{{"conv_id": "{c}", "after_sequence": 1}}"#);
        let read = rest.rpc(&as_ada, "get_conversation_with_messages", &by_id).unwrap();
        assert_eq!(rest.at(&read, "0,content"), r#"Because "it" is, {so}\."#);

        // The reader's stop reaches the producer with his next window.
        let second =
            rest.rpc(&service(), "begin_message", &format!(r#"{{"conversation_id": "{c}"}}"#));
        let m = rest.at(&second.unwrap(), "");
        let window = format!(r#"{{"message_id": "{m}", "contents": ["one ", "two "]}}"#);
        rest.rpc(&service(), "append_chunks", &window).unwrap();
        let stop = format!(r#"{{"message_id": "{m}", "seen_chars": 4}}"#);
        rest.rpc(&as_ada, "stop_message", &stop).unwrap();
        let told = rest.rpc(&service(), "append_chunks", &window).unwrap();
        assert_eq!(rest.at(&told, "stop_requested"), "true");
        let by_id = format!(r#"{{"conv_id": "{c}", "after_sequence": 2}}"#);
        let read = rest.rpc(&as_ada, "get_conversation_with_messages", &by_id).unwrap();
        assert_eq!(rest.at(&read, "0,content"), "one ");
    }
}

/// What the service does for everybody, by the key and by a schedule.
#[test]
fn the_service_works_for_every_tenant_and_chooses_no_numbers() {
    let deployment = Deployment::new();
    let (mut rest, as_ada, c) = asked(&deployment);
    let tenant = r#"{"name": "Looms Ltd", "slug": "looms"}"#;
    let made = rest.post(&service(), "tenants", tenant, "", Returning::Rows).unwrap();
    let tenant = rest.at(&made, "0,id");
    // A user of another tenant: the id is that of the account, so that auth.uid() names him.
    let bob = deployment.sign_up("bob");
    let row = format!(r#"{{"id": "{bob}", "auth_id": "{bob}", "tenant_id": "{tenant}"}}"#);
    rest.post(&service(), "users", &row, "", Returning::Nothing).unwrap();
    let mine = format!(r#"{{"user_id": "{bob}", "title": "Ours"}}"#);
    let made = rest.post(&user(bob), "conversations", &mine, "", Returning::Rows).unwrap();
    assert_eq!(rest.at(&made, "0,tenant_id"), tenant);

    let all = r#"SELECT "public"."conversations"."id" FROM "public"."conversations""#;
    for (caller, rows) in [(&service(), 2), (&as_ada, 1), (&user(bob), 1)] {
        assert_eq!(rest.read(caller, all, None, &[]).unwrap().rows, rows);
    }
    for (table, body) in [
        (
            "messages",
            format!(r#"{{"conversation_id": "{c}", "role": "user", "sequence_number": 9}}"#),
        ),
        (
            "messages",
            format!(r#"{{"conversation_id": "{c}", "role": "user", "tenant_id": "{tenant}"}}"#),
        ),
        ("conversations", r#"{"title": "x", "last_sequence": 7}"#.to_string()),
    ] {
        for caller in [&service(), &as_ada] {
            let reply = rest.post(caller, table, &body, "", Returning::Nothing);
            assert_eq!(reply.unwrap_err().0, "42501", "{table} {body} {}", caller.role);
        }
    }
    // A stream that nobody feeds, and the chunks of one that has ended.
    let begun = rest.rpc(&service(), "begin_message", &format!(r#"{{"conversation_id": "{c}"}}"#));
    let m = rest.at(&begun.unwrap(), "");
    let window = format!(r#"{{"message_id": "{m}", "contents": ["half"]}}"#);
    rest.rpc(&service(), "append_chunks", &window).unwrap();
    let stalled = rest.rpc(&service(), "recover_stalled_messages", r#"{"idle": "0 s"}"#);
    assert_eq!(stalled.unwrap().body, "1");
    rest.rpc(&service(), "resume_message", &format!(r#"{{"message_id": "{m}"}}"#)).unwrap();
    rest.rpc(&service(), "finish_message", &format!(r#"{{"message_id": "{m}"}}"#)).unwrap();
    let cleaned = rest.rpc(&service(), "cleanup_finished_streams", r#"{"older_than": "0 s"}"#);
    assert_eq!(cleaned.unwrap().body, "1");
    assert_eq!(deployment.admin().value::<i64>("select count(*) from public.message_chunks"), 0);
}
