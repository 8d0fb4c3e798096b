//! A browser, which sends what its user does through PostgREST with the user's token.

use pg_conversation_tests::{Session, Uuid};

use crate::rest::{Refusal, Reply, Rest, Returning, nobody, service, user};
use crate::stack::Deployment;

const SCHEMAS: [&str; 2] = ["public", "chat"];

/// `select=id,title,messages(role,content)&messages.order=...&user_id=eq.…&order=…&limit=…&offset=…`
fn list(schema: &str) -> String {
    format!(
        r#"SELECT "{schema}"."conversations"."id", "{schema}"."conversations"."title", COALESCE( "conversations_messages_1"."conversations_messages_1", '[]') AS "messages" FROM "{schema}"."conversations" LEFT JOIN LATERAL ( SELECT json_agg("conversations_messages_1") AS "conversations_messages_1" FROM (SELECT "messages_1"."role", "messages_1"."content", "messages_1"."sequence_number" FROM "{schema}"."messages" AS "messages_1" WHERE "messages_1"."conversation_id" = "{schema}"."conversations"."id" ORDER BY "messages_1"."sequence_number" ASC) AS "conversations_messages_1" ) AS "conversations_messages_1" ON TRUE WHERE  "{schema}"."conversations"."user_id" = $1 ORDER BY "{schema}"."conversations"."title" ASC LIMIT $2 OFFSET $3"#
    )
}

#[test]
fn a_browser_writes_reads_renames_and_deletes_its_conversations() {
    for schema in SCHEMAS {
        let deployment = Deployment::with_schema(schema);
        let mut rest = Rest::new(&deployment);
        let (ada, eve) = (deployment.sign_up("ada"), deployment.sign_up("eve"));
        let (as_ada, as_eve) = (user(ada), user(eve));

        let mut ids = Vec::new();
        for title in ["Engines", "Looms", "Punched cards"] {
            let body = format!(r#"{{"user_id": "{ada}", "title": "{title}"}}"#);
            let made = rest.post(&as_ada, "conversations", &body, "", Returning::Rows).unwrap();
            assert_eq!((made.rows, rest.at(&made, "0,title")), (1, title.to_string()));
            assert_eq!(rest.at(&made, "0,user_id"), ada.to_string());
            ids.push(rest.at(&made, "0,id"));
        }
        for (n, text) in [(1, "What is an engine?"), (2, "And a loom?")] {
            let body = format!(
                r#"{{"conversation_id": "{}", "role": "user", "content": "{text}"}}"#,
                ids[0]
            );
            let sent = rest.post(&as_ada, "messages", &body, "", Returning::Rows).unwrap();
            assert_eq!(rest.at(&sent, "0,sequence_number"), n.to_string());
        }

        // In the words for a conversation that does not exist.
        let unknown = Uuid::new_v4().to_string();
        let refusals = [ids[0].as_str(), &unknown].map(|c| {
            let body = format!(r#"{{"conversation_id": "{c}", "role": "user", "content": "x"}}"#);
            let (code, words) =
                rest.post(&as_eve, "messages", &body, "", Returning::Nothing).unwrap_err();
            (code, words.replace(c, ""))
        });
        assert_eq!(refusals[0].0, "P0002");
        assert_eq!(refusals[0], refusals[1]);

        let ada = ada.to_string();
        let page = rest.read(&as_ada, &list(schema), None, &[&ada, "2", "0"]).unwrap();
        assert_eq!(page.rows, 2);
        assert_eq!(rest.at(&page, "0,messages,1,content"), "And a loom?");
        assert_eq!(rest.at(&page, "1,messages"), "[]");
        let count = format!(r#"SELECT 1 FROM "{schema}"."conversations""#);
        let page = rest.read(&as_ada, &list(schema), Some(&count), &[&ada, "2", "2"]).unwrap();
        assert_eq!((page.rows, page.total), (1, Some(3)));
        // By the same prepared statements on the same connection.
        let page = rest.read(&as_eve, &list(schema), Some(&count), &[&ada, "2", "0"]).unwrap();
        assert_eq!((page.rows, page.total, page.body.as_str()), (0, Some(0), "[]"));

        let body = r#"{"title": "Looms and engines", "metadata": {"colour": "red"}}"#;
        for (caller, touched) in [(&as_eve, 0), (&as_ada, 1)] {
            let renamed = rest
                .patch(caller, "conversations", body, ("id", &ids[1]), Returning::Rows)
                .unwrap();
            assert_eq!(renamed.rows, touched);
        }
        for (caller, touched) in [(&as_eve, 0), (&as_ada, 1)] {
            let gone = rest.delete(caller, "conversations", ("id", &ids[2])).unwrap();
            assert_eq!(gone.rows, touched);
        }
        let page = rest.read(&as_ada, &list(schema), Some(&count), &[&ada, "9", "0"]).unwrap();
        assert_eq!((page.total, rest.at(&page, "1,title")), (Some(2), "Looms and engines".into()));
    }
}

fn code(reply: Result<Reply, Refusal>) -> String {
    match reply {
        Ok(reply) => format!("{} rows", reply.rows),
        Err((code, _)) => code,
    }
}

#[test]
fn a_browser_calls_functions_by_name() {
    for schema in SCHEMAS {
        let deployment = Deployment::with_schema(schema);
        let mut rest = Rest::new(&deployment);
        let (as_ada, as_eve) = (user(deployment.sign_up("ada")), user(deployment.sign_up("eve")));
        // Readable before anything is there: nobody has been seen yet, and GET may not write.
        let none = rest.rpc(&as_ada, "list_conversations", "{}").unwrap();
        assert_eq!(none.body, "[]");

        let arguments =
            r#"{"title": "Engines", "continuation_id": "engines", "metadata": {"k": [1]}}"#;
        let made = rest.rpc(&as_ada, "create_conversation", arguments).unwrap();
        let id = rest.at(&made, "");
        let again = r#"{"continuation_id": "engines"}"#;
        let same = rest.rpc(&as_ada, "get_or_create_conversation", again).unwrap();
        assert_eq!(rest.at(&same, ""), id);

        let sent = format!(
            r#"{{"conversation_id": "{id}", "role": "user", "content": "Hello \u2603", "client_message_id": "m-1", "parts": [{{"type": "text"}}]}}"#
        );
        for created in ["true", "false"] {
            let reply = rest.rpc(&as_ada, "add_message", &sent).unwrap();
            // A function with OUT arguments gives one object.
            assert_eq!(rest.at(&reply, "sequence_number"), "1");
            assert_eq!(rest.at(&reply, "created"), created);
        }
        let by_id = format!(r#"{{"conv_id": "{id}"}}"#);
        for reply in [
            rest.rpc(&as_ada, "get_conversation_with_messages", &by_id).unwrap(),
            rest.rpc_get(&as_ada, "get_conversation_with_messages", &by_id).unwrap(),
            rest.rpc(
                &as_ada,
                "get_conversation_history",
                r#"{"continuation_id": "engines", "limit": 5}"#,
            )
            .unwrap(),
        ] {
            assert_eq!((reply.rows, rest.at(&reply, "0,content")), (1, "Hello ☃".into()));
        }
        let listed = rest.rpc(&as_ada, "list_conversations", r#"{"max_rows": 1}"#).unwrap();
        assert_eq!(rest.at(&listed, "0,message_count"), "1");
        let stranger = rest.rpc(&as_eve, "get_conversation_with_messages", &by_id).unwrap();
        assert_eq!(stranger.body, "[]");
        assert_eq!(rest.rpc(&as_eve, "add_message", &sent).unwrap_err().0, "P0002");
        // A scalar function without a body.
        let me = rest.rpc(&as_eve, "current_user_id", "{}").unwrap();
        assert_eq!(rest.at(&me, ""), "null");
        let me = rest.rpc(&as_eve, "ensure_user", "{}").unwrap();
        assert!(as_eve.claims.contains(&rest.at(&me, "")));
        // GET never writes, whatever it calls.
        let by_get = rest.rpc_get(&as_ada, "create_conversation", "{}");
        assert_eq!(by_get.unwrap_err().0, "25006");
        let archive = format!(r#"{{"conversation_id": "{id}"}}"#);
        let archived = rest.rpc(&as_ada, "archive_conversation", &archive).unwrap();
        assert_eq!(archived.body, "true");
    }
}

#[test]
fn an_upsert_ignores_what_is_there_and_never_uses_up_a_number() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    let ada = deployment.sign_up("ada");
    let as_ada = user(ada);
    let c = "c0000000-0000-4000-8000-000000000001";
    let conversation = format!(r#"{{"id": "{c}", "user_id": "{ada}", "title": "$t"}}"#);
    let message = |n: u32, key: &str| {
        format!(
            r#"{{"id": "a0000000-0000-4000-8000-00000000000{n}", "conversation_id": "{c}", "role": "user", "content": "text {n}", "client_message_id": "{key}"}}"#
        )
    };
    let ignore = r#"ON CONFLICT("id") DO NOTHING"#;
    let merge = r#"ON CONFLICT("id") DO UPDATE SET $merge"#;
    let two = format!("[{}, {}]", message(2, "k-2"), message(3, "k-3"));
    let cases = [
        ("conversations", conversation.replace("$t", "first"), ignore, "1 rows"),
        ("conversations", conversation.replace("$t", "second"), ignore, "0 rows"),
        // It sets all that the body holds, the key included; the owner is not his to set.
        ("conversations", conversation.replace("$t", "third"), merge, "42501"),
        ("conversations", format!(r#"{{"id": "{c}", "title": "fourth"}}"#), merge, "1 rows"),
        ("messages", message(1, "k-1"), ignore, "1 rows"),
        ("messages", message(1, "k-1"), ignore, "0 rows"),
        ("messages", message(1, "k-1"), "", "23505"),
        ("messages", message(1, "k-1"), merge, "42501"),
        ("messages", two.clone(), ignore, "2 rows"),
        ("messages", two, ignore, "0 rows"),
        // Retry keys are for add_message: an index with a condition is not found by its columns.
        (
            "messages",
            message(4, "k-1"),
            r#"ON CONFLICT("conversation_id", "client_message_id") DO NOTHING"#,
            "42P10",
        ),
        ("messages", message(4, "k-4"), "", "1 rows"),
    ];
    for (table, body, conflict, expected) in cases {
        for returning in [Returning::Nothing, Returning::Rows] {
            // The second time of what was stored at the first is no case here.
            if matches!(returning, Returning::Rows)
                && expected.ends_with("rows")
                && expected != "0 rows"
            {
                continue;
            }
            let reply = rest.post(&as_ada, table, &body, conflict, returning);
            assert_eq!(code(reply), expected, "{table} {body} {conflict}");
        }
    }
    let numbers = r#"SELECT "public"."messages"."sequence_number", "public"."messages"."content" FROM "public"."messages" ORDER BY "public"."messages"."sequence_number" ASC"#;
    let stored = rest.read(&as_ada, numbers, None, &[]).unwrap();
    let found: Vec<String> =
        (0..4).map(|n| rest.at(&stored, &format!("{n},sequence_number"))).collect();
    assert_eq!(found, ["1", "2", "3", "4"]);
    let titles = r#"SELECT "public"."conversations"."title" FROM "public"."conversations""#;
    let stored = rest.read(&as_ada, titles, None, &[]).unwrap();
    assert_eq!(rest.at(&stored, "0,title"), "fourth");
    // A key that is somebody else's is nobody's to merge into, nor to ignore and be told of.
    let as_eve = user(deployment.sign_up("eve"));
    let hijack = format!(r#"{{"id": "{c}", "title": "taken"}}"#);
    assert_eq!(code(rest.post(&as_eve, "conversations", &hijack, merge, Returning::Rows)), "42501");
    let ignored = rest.post(&as_eve, "conversations", &hijack, ignore, Returning::Rows);
    assert_eq!(code(ignored), "0 rows");
    let stored = rest.read(&as_ada, titles, None, &[]).unwrap();
    assert_eq!(rest.at(&stored, "0,title"), "fourth");
}

/// `Prefer: missing=default` fills what a row of the body lacks, with the defaults of the table.
#[test]
fn rows_that_lack_columns_get_their_defaults() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    let as_ada = user(deployment.sign_up("ada"));
    let made = rest.rpc(&as_ada, "create_conversation", "{}").unwrap();
    let c = rest.at(&made, "");
    let change = r#"INSERT INTO "public"."messages"("content", "conversation_id", "metadata", "role", "status") SELECT "pgrst_body"."content", "pgrst_body"."conversation_id", "pgrst_body"."metadata", "pgrst_body"."role", "pgrst_body"."status" FROM (SELECT $1::jsonb AS json_data) pgrst_payload, LATERAL (SELECT jsonb_agg(jsonb_build_object('content', ''::text,'metadata', '{}'::jsonb,'status', 'completed'::public.message_status) || elem) AS val from jsonb_array_elements(pgrst_payload.json_data) elem) pgrst_json_defs, LATERAL (SELECT "content", "conversation_id", "metadata", "role", "status" FROM jsonb_to_recordset(pgrst_json_defs.val) AS _("content" text, "conversation_id" uuid, "metadata" jsonb, "role" public.message_role, "status" public.message_status) ) pgrst_body  RETURNING "public"."messages"."sequence_number", "public"."messages"."status", "public"."messages"."metadata""#;
    let body = format!(
        r#"[{{"conversation_id": "{c}", "role": "user", "content": "all", "metadata": {{"a": 1}}}}, {{"conversation_id": "{c}", "role": "assistant", "status": "pending"}}]"#
    );
    let reply = rest.write(&as_ada, crate::rest::Verb::Post, change, &[&body]).unwrap();
    assert_eq!(reply.rows, 2);
    assert_eq!(rest.at(&reply, "0,status"), "completed");
    assert_eq!(rest.at(&reply, "1,metadata"), "{}");
    assert_eq!(rest.at(&reply, "1,sequence_number"), "2");
}

#[test]
fn a_count_without_rows_counts_what_the_caller_sees() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    let (as_ada, as_eve) = (user(deployment.sign_up("ada")), user(deployment.sign_up("eve")));
    for n in 0..3 {
        let title = format!(r#"{{"title": "{n}"}}"#);
        rest.rpc(&as_ada, "create_conversation", &title).unwrap();
    }
    // HEAD with `Prefer: count=exact`, a range of no rows.
    let select =
        r#"SELECT "public"."conversations".* FROM "public"."conversations"  LIMIT $1 OFFSET $2"#;
    let count = r#"SELECT 1 FROM "public"."conversations""#;
    for (caller, total) in [(&as_ada, 3), (&as_eve, 0), (&service(), 3), (&as_ada, 3)] {
        let reply = rest.read(caller, select, Some(count), &["0", "0"]).unwrap();
        assert_eq!((reply.rows, reply.total), (0, Some(total)), "{}", caller.claims);
    }
}

#[test]
fn who_has_not_signed_in_reads_and_writes_nothing() {
    let deployment = Deployment::new();
    let mut rest = Rest::new(&deployment);
    let as_ada = user(deployment.sign_up("ada"));
    let made = rest.rpc(&as_ada, "create_conversation", r#"{"visibility": "tenant"}"#).unwrap();
    let c = rest.at(&made, "");
    for table in
        ["tenants", "users", "conversations", "conversation_members", "messages", "message_chunks"]
    {
        let select = format!(r#"SELECT "public"."{table}".* FROM "public"."{table}""#);
        assert_eq!(code(rest.read(&nobody(), &select, None, &[])), "42501", "{table}");
    }
    let message = format!(r#"{{"conversation_id": "{c}", "role": "user", "content": "x"}}"#);
    let post = rest.post(&nobody(), "messages", &message, "", Returning::Nothing);
    assert_eq!(code(post), "42501");
    for (name, arguments) in [
        ("create_conversation", "{}".to_string()),
        ("add_message", message),
        ("get_conversation_with_messages", format!(r#"{{"conv_id": "{c}"}}"#)),
        ("list_conversations", "{}".to_string()),
        ("begin_message", format!(r#"{{"conversation_id": "{c}"}}"#)),
    ] {
        assert_eq!(code(rest.rpc(&nobody(), name, &arguments)), "42501", "{name}");
    }
}

/// What the service records and decides for a user, and what both read of it.
#[test]
fn a_browser_rates_answers_and_reads_its_own_usage_and_no_others() {
    for schema in SCHEMAS {
        let deployment = Deployment::with_schema(schema);
        let mut rest = Rest::new(&deployment);
        let (ada, eve) = (deployment.sign_up("ada"), deployment.sign_up("eve"));
        let (as_ada, as_eve) = (user(ada), user(eve));
        let made = rest.rpc(&as_ada, "create_conversation", "{}").unwrap();
        let c = rest.at(&made, "");
        rest.rpc(&as_eve, "create_conversation", "{}").unwrap();
        let begin = format!(r#"{{"conversation_id": "{c}", "model": "m"}}"#);
        let begun = rest.rpc(&service(), "begin_message", &begin).unwrap();
        let m = rest.at(&begun, "");
        let finish =
            format!(r#"{{"message_id": "{m}", "prompt_tokens": 3, "completion_tokens": 5}}"#);
        rest.rpc(&service(), "finish_message", &finish).unwrap();

        // Once, and once more.
        let give = format!(r#"{{"message_id": "{m}", "rating": 1, "comment": "Good \u2603"}}"#);
        for created in ["true", "false"] {
            let given = rest.rpc(&as_ada, "give_feedback", &give).unwrap();
            assert_eq!(rest.at(&given, "created"), created);
        }
        let of_message = format!(r#"{{"message_id": "{m}"}}"#);
        let told = rest.rpc_get(&as_ada, "get_message_feedback", &of_message).unwrap();
        assert_eq!(rest.at(&told, "thumbs_up"), "1");
        assert_eq!(rest.at(&told, "own_comment"), "Good ☃");
        for call in ["give_feedback", "withdraw_feedback", "get_message_feedback"] {
            let arguments = if call == "give_feedback" { &give } else { &of_message };
            assert_eq!(code(rest.rpc(&as_eve, call, arguments)), "P0002", "{call}");
            assert_eq!(code(rest.rpc(&nobody(), call, arguments)), "42501", "{call}");
        }
        let row = format!(r#"{{"message_id": "{m}", "user_id": "{ada}", "rating": -1}}"#);
        assert_eq!(
            code(rest.post(&as_eve, "feedback", &row, "", Returning::Nothing)),
            "P0002",
            "for another"
        );
        let patched = rest
            .patch(&as_ada, "feedback", r#"{"rating": -1}"#, ("message_id", &m), Returning::Rows)
            .unwrap();
        assert_eq!(patched.rows, 1);
        let told = rest.rpc(&service(), "get_message_feedback", &of_message).unwrap();
        assert_eq!(rest.at(&told, "thumbs_down"), "1");

        // The end of the message is in the figures of its owner.
        let usage = format!(
            r#"SELECT "{schema}"."current_day_usage"."total_tokens" FROM "{schema}"."current_day_usage""#
        );
        let own = rest.read(&as_ada, &usage, None, &[]).unwrap();
        assert_eq!(own.body, r#"[{"total_tokens":8}]"#);
        assert_eq!(rest.read(&as_eve, &usage, None, &[]).unwrap().rows, 0);
        assert_eq!(rest.read(&service(), &usage, None, &[]).unwrap().rows, 1);
        assert_eq!(code(rest.read(&nobody(), &usage, None, &[])), "42501");
        let models = rest.rpc_get(&as_ada, "usage_by_model", "{}").unwrap();
        assert_eq!(rest.at(&models, "0,completion_tokens"), "5");
        assert_eq!(rest.rpc_get(&as_eve, "usage_by_model", "{}").unwrap().body, "[]");
        let tenant: Uuid = deployment
            .admin()
            .value(&format!("select tenant_id from {schema}.conversations limit 1"));
        let record = format!(
            r#"{{"tenant_id": "{tenant}", "user_id": null, "model": "m", "usage": {{"images": 1}}, "idempotency_key": "k"}}"#
        );
        let recorded = rest.rpc(&service(), "record_usage", &record).unwrap();
        assert_eq!(rest.at(&recorded, "applied"), "true");
        assert_eq!(rest.at(&recorded, "unpriced,0"), "images");
        for caller in [&as_ada, &nobody()] {
            assert_eq!(code(rest.rpc(caller, "record_usage", &record)), "42501");
        }

        // Limits.
        deployment.admin().run(&format!(
            "update {schema}.tenants set rate_limit_per_minute = 2, daily_token_limit = 10"
        ));
        let answers = ["true", "true", "false"].map(|_| {
            let told = rest.rpc(&as_ada, "check_rate_limit", "{}").unwrap();
            rest.at(&told, "allowed")
        });
        assert_eq!(answers, ["true", "true", "false"]);
        let begin = format!(r#"{{"conversation_id": "{c}", "reserve_tokens": 3}}"#);
        assert_eq!(code(rest.rpc(&as_ada, "begin_message", &begin)), "PT429");
        let reserve = format!(r#"{{"tokens": 2, "tenant_id": "{tenant}"}}"#);
        let reserved = rest.rpc(&service(), "reserve_tokens", &reserve).unwrap();
        assert_eq!(rest.at(&reserved, "allowed"), "true");
        for caller in [&as_ada, &nobody()] {
            assert_eq!(code(rest.rpc(caller, "reserve_tokens", &reserve)), "42501");
            assert_eq!(code(rest.rpc(caller, "run_maintenance", "{}")), "42501");
            assert_eq!(code(rest.rpc(caller, "seed_test_data", "{}")), "42501");
        }
        rest.rpc(&service(), "run_maintenance", "{}").unwrap();
    }
}
