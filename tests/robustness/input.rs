//! Input that is too long, of the wrong kind or forbidden.

use pg_conversation_tests::{Server, Session, Uuid, describe, oldest};

use crate::{SERVICE, fault, grant_service};

#[test]
fn bad_input_gets_the_code_that_names_it() {
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let user = Uuid::new_v4();
    let mut member = database.member(user);
    let c: Uuid = member.value("select create_conversation('one')");
    let d: Uuid = member.value("select create_conversation('two')");
    let m: Uuid =
        member.value(&format!("select message_id from add_message('{c}', 'user', 'first', 'key')"));
    let nobody = Uuid::new_v4();
    // Streams that take chunks, whatever is refused; one that has ended, one that will take megabytes.
    let mut stream = || member.value::<Uuid>(&format!("select begin_message('{c}')"));
    let [open, ended, large] = [stream(), stream(), stream()];
    member.run(&format!(
        "select append_chunks('{open}', array['a', 'b']), append_chunk('{ended}', 'a', 0, true), \
         finish_message('{ended}', 1, 2)"
    ));
    let mb = 1 << 20;
    let tenant = "00000000-0000-7000-8000-000000000001";

    // Who (m member, s service, o owner), what, and the code; empty when it must work.
    let mut cases: Vec<(&str, String, &str)> = vec![
        ("ms", "insert into conversations (title) values (repeat('x', 501))".into(), "23514"),
        ("m", "insert into conversations (title) values (repeat('é', 500))".into(), ""),
        ("m", "select create_conversation(repeat('x', 501))".into(), "23514"),
        ("m", "select create_conversation('x', visibility => 'world')".into(), "23514"),
        ("m", "select create_conversation('x', metadata => '[]')".into(), "23514"),
        ("m", "select get_or_create_conversation(null)".into(), "22004"),
        ("mso", format!("select add_message('{c}', 'boss', 'x')"), "22023"),
        ("mso", format!("select add_message('{c}', null, 'x')"), "22004"),
        ("mso", "select add_message(null, 'user', 'x')".into(), "22004"),
        ("mso", format!("select add_message('{nobody}', 'user', 'x')"), "P0002"),
        (
            "mso",
            format!("select add_message('{c}', 'user', 'x', parent_id => '{nobody}')"),
            "P0002",
        ),
        ("mso", format!("select add_message('{d}', 'user', 'x', parent_id => '{m}')"), "P0002"),
        ("mso", format!("select add_message('{c}', 'user', 'other', 'key')"), "23505"),
        ("mso", format!("select add_message('{c}', 'user', 'x', repeat('k', 201))"), "23514"),
        ("mso", format!("select add_message('{c}', 'user', 'x', metadata => '[1]')"), "23514"),
        (
            "mso",
            format!("insert into messages (conversation_id, role) values ('{c}', 'boss')"),
            "22P02",
        ),
        ("mso", "insert into messages (role) values ('user')".into(), "22004"),
        (
            "mso",
            format!(
                "insert into messages (conversation_id, role, content) values ('{c}', 'user', null)"
            ),
            "23502",
        ),
        (
            "mso",
            format!(
                "insert into messages (id, conversation_id, role) values (null, '{c}', 'user')"
            ),
            "",
        ),
        ("m", format!("select add_message('{c}', 'user', repeat('x', {}))", 31 * mb), ""),
        ("m", format!("select add_message('{c}', 'user', repeat('x', {}))", 32 * mb), ""),
        ("m", format!("select add_message('{c}', 'user', repeat('x', {}))", 32 * mb + 1), "23514"),
        ("m", format!("select add_message('{c}', 'user', repeat('x', {}))", 100 * mb), "23514"),
        (
            "m",
            format!(
                "insert into messages (conversation_id, role, content) values ('{c}', 'user', repeat('x', {}))",
                100 * mb
            ),
            "23514",
        ),
        ("m", format!("select has_conversation_access('{c}', '{user}', 'fly')"), "22023"),
        ("o", "select grant_access('member', 'king')".into(), "22023"),
        ("o", "select grant_access('no such role')".into(), "42704"),
        ("o", "select rollback_to(-1)".into(), "22023"),
        ("o", "select rollback_to(99)".into(), "22023"),
        ("o", "select uninstall('no')".into(), "22023"),
        ("o", "select uninstall(null)".into(), "22023"),
        ("ms", "select migrate()".into(), "42501"),
        ("ms", "select rollback_to(0, true)".into(), "42501"),
        ("ms", "select uninstall(current_database())".into(), "42501"),
        ("ms", "select * from doctor()".into(), "42501"),
        ("ms", "select grant_access(current_user::text)".into(), "42501"),
        ("s", "update tenants set temperature = 3".into(), "23514"),
        ("s", "delete from conversations where false".into(), ""),
        ("ms", "truncate messages".into(), "42501"),
        ("mso", format!("select append_chunk('{open}', null)"), "22004"),
        ("mso", format!("select append_chunks('{open}', null)"), "22004"),
        ("mso", format!("select append_chunks('{open}', array['c', null])"), "22004"),
        ("mso", "select append_chunk(null, 'c')".into(), "22004"),
        ("mso", format!("select append_chunk('{open}', 'c', -1)"), "22023"),
        ("mso", format!("select append_chunk('{open}', 'c', 2147483647)"), "22023"),
        ("mso", format!("select append_chunks('{open}', array['c', 'd'], 2147483646)"), "22023"),
        ("mso", format!("select append_chunk('{open}', 'c', 3)"), "55000"),
        ("mso", format!("select append_chunk('{open}', 'c', 1)"), "23505"),
        ("mso", format!("select append_chunks('{open}', array['a', 'c'], 0)"), "23505"),
        ("mso", format!("select append_chunk('{open}', 'a', 0, true)"), "24000"),
        ("mso", format!("select append_chunks('{open}', '{{}}', 3)"), "55000"),
        ("mso", format!("select append_chunk('{nobody}', 'c')"), "P0002"),
        ("mso", format!("select append_chunk('{m}', 'c')"), "24000"),
        ("mso", format!("select append_chunk('{ended}', 'c')"), "24000"),
        ("mso", format!("select append_chunk('{ended}', 'c', 0)"), "23505"),
        ("mso", format!("select append_chunk('{ended}', 'a', 0)"), ""),
        ("mso", format!("select finish_message('{ended}', 1, 3)"), "55000"),
        ("mso", format!("select finish_message('{ended}', 1, 2)"), ""),
        ("mso", format!("select finish_message('{open}', -1)"), "23514"),
        ("mso", format!("select finish_message('{open}', latency_ms => -1)"), "23514"),
        ("mso", format!("select finish_message('{open}', metadata => '[]')"), "23514"),
        ("mso", format!("select finish_message('{m}')"), "24000"),
        ("mso", format!("select finish_message('{nobody}')"), "P0002"),
        ("mso", format!("select fail_message('{open}', null)"), "22004"),
        ("mso", format!("select fail_message('{ended}', 'x')"), "24000"),
        ("mso", format!("select stop_message('{open}', -1)"), "22023"),
        ("mso", format!("select stop_message('{ended}')"), "24000"),
        ("mso", format!("select stop_message('{m}')"), "24000"),
        ("mso", format!("select resume_message('{ended}')"), "24000"),
        ("mso", "select resume_message(null)".into(), "22004"),
        ("mso", format!("select read_stream('{nobody}')"), "P0002"),
        ("mso", "select read_stream(null)".into(), "22004"),
        ("mso", format!("select wait_for_chunks('{nobody}')"), "P0002"),
        ("mso", format!("select wait_for_chunks('{open}', 1, -1)"), "22023"),
        ("mso", format!("select reconstruct_message('{nobody}')"), ""),
        ("mso", format!("select cleanup_streaming_artifacts('{nobody}')"), "P0002"),
        ("mso", format!("select cleanup_streaming_artifacts('{open}')"), ""),
        ("mso", format!("select begin_message('{c}', 'boss')"), "22023"),
        ("mso", format!("select begin_message('{c}', null)"), "22004"),
        ("mso", format!("select begin_message('{nobody}')"), "P0002"),
        ("mso", format!("select begin_message('{d}', parent_id => '{m}')"), "P0002"),
        ("mso", format!("select begin_message('{c}', client_message_id => 'key')"), "23505"),
        (
            "mso",
            format!("select begin_message('{c}', client_message_id => repeat('k', 201))"),
            "23514",
        ),
        ("mso", format!("select begin_message('{c}', metadata => '1')"), "23514"),
        ("mso", format!("select listen_conversation('{nobody}')"), "P0002"),
        ("mso", "select listen_conversation(null)".into(), "22004"),
        ("so", "select recover_stalled_messages('1 day', -1)".into(), "22023"),
        ("so", "select recover_stalled_messages(null)".into(), "22004"),
        ("so", "select recover_stalled_messages('178000000 years')".into(), "22008"),
        ("so", "select cleanup_finished_streams('1 day', -1)".into(), "22023"),
        ("so", "select cleanup_finished_streams(null)".into(), "22004"),
        ("m", "select recover_stalled_messages()".into(), "42501"),
        ("m", "select cleanup_finished_streams()".into(), "42501"),
        ("ms", "select enable_realtime('input_pub')".into(), "42501"),
        ("o", "select enable_realtime('')".into(), "42601"),
        (
            "mso",
            format!(
                "insert into message_chunks (message_id, chunk_content) values ('{nobody}', 'x')"
            ),
            "P0002",
        ),
        ("mso", "insert into message_chunks (chunk_content) values ('x')".into(), "22004"),
        ("mso", format!("insert into message_chunks (message_id) values ('{open}')"), "23502"),
        (
            "mso",
            format!(
                "insert into message_chunks (message_id, chunk_index, chunk_content) values ('{open}', -1, 'x')"
            ),
            "22023",
        ),
        (
            "mso",
            format!(
                "insert into message_chunks (message_id, chunk_index, chunk_content) values ('{open}', 1, 'b')"
            ),
            "23505",
        ),
        (
            "mso",
            format!(
                "insert into message_chunks (message_id, chunk_content) values ('{ended}', 'x')"
            ),
            "24000",
        ),
        (
            "ms",
            format!(
                "insert into message_chunks (message_id, created_at, chunk_content) values ('{open}', now(), 'x')"
            ),
            "42501",
        ),
        ("ms", "update message_chunks set chunk_content = 'x'".into(), "42501"),
        ("o", "update message_chunks set chunk_content = 'x'".into(), "23000"),
        ("m", "delete from message_chunks".into(), "42501"),
        ("ms", "truncate message_chunks".into(), "42501"),
        (
            "m",
            format!("copy message_chunks (message_id, chunk_content) from stdin; select '{open}'"),
            "0A000",
        ),
        (
            "m",
            format!("select append_chunks('{large}', array_fill(repeat('x', {mb}), array[32]), 0)"),
            "",
        ),
        ("m", format!("select finish_message('{large}')"), ""),
        ("m", format!("select append_chunk('{large}', 'x', 32)"), "24000"),
        ("o", "begin isolation level repeatable read; select migrate()".into(), "25001"),
    ];
    for (table, key, column, value) in [
        ("messages", m, "conversation_id", format!("'{d}'")),
        ("messages", m, "sequence_number", "7".into()),
        ("messages", m, "tenant_id", format!("'{nobody}'")),
        ("messages", m, "id", format!("'{nobody}'")),
        ("conversations", c, "tenant_id", format!("'{nobody}'")),
        ("conversations", c, "id", format!("'{nobody}'")),
        ("users", user, "tenant_id", format!("'{nobody}'")),
        ("users", user, "id", format!("'{nobody}'")),
    ] {
        let update = format!("update {table} set {column} = {value} where id = '{key}'");
        // No grant names these columns, but that an upsert may set the id of a conversation; whoever
        // needs none meets the trigger.
        let upserts = (table, column) == ("conversations", "id");
        cases.push(("m", update.clone(), if upserts { "23000" } else { "42501" }));
        let service = if table == "users" || upserts { "23000" } else { "42501" };
        cases.push(("s", update.clone(), service));
        cases.push(("o", update, "23000"));
    }
    for (column, value) in
        [("sequence_number", "9".to_string()), ("tenant_id", format!("'{tenant}'"))]
    {
        let insert = format!(
            "insert into messages (conversation_id, role, {column}) values ('{c}', 'user', {value})"
        );
        cases.push(("ms", insert, "42501"));
    }

    let mut wrong = Vec::new();
    for (who, sql, expected) in &cases {
        for caller in who.chars() {
            let mut client = match caller {
                'm' => database.member(user),
                's' => database.connect(SERVICE),
                _ => database.superuser(),
            };
            if let Err(error) = client.batch_execute(sql) {
                if let Some(fault) = fault(&error) {
                    wrong.push(format!("{caller}: {sql:.150}: {fault:.500}"));
                }
                if error.code().is_none_or(|code| code.code() != *expected) {
                    wrong.push(format!(
                        "{caller}: {sql:.150}: {:.500}, not {expected:?}",
                        describe(&error)
                    ));
                }
            } else if !expected.is_empty() {
                wrong.push(format!("{caller}: {sql:.150}: no error, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_nul_byte_is_refused_wherever_text_goes() {
    let database = Server::shared(oldest()).database();
    let mut client = database.member(Uuid::new_v4());
    let c: Uuid = client.value("select create_conversation('one')");
    let m: Uuid = client.value(&format!("select begin_message('{c}')"));
    for sql in [
        format!("select add_message('{c}', 'user', $1)"),
        format!("select add_message('{c}', 'user', 'x', $1)"),
        format!("select add_message('{c}', $1, 'x')"),
        "select create_conversation($1)".into(),
        "select get_or_create_conversation($1)".into(),
        format!("insert into messages (conversation_id, role, content) values ('{c}', 'user', $1)"),
        format!("select append_chunk('{m}', $1)"),
        format!("insert into message_chunks (message_id, chunk_content) values ('{m}', $1)"),
        format!("select fail_message('{m}', $1)"),
        format!("select finish_message('{m}', model => $1)"),
        format!("select begin_message('{c}', client_message_id => $1)"),
        format!("select begin_message('{c}', $1)"),
        "select set_config('request.jwt.claims', $1, false)".into(),
    ] {
        let error = client.execute(&sql, &[&"a\0b"]).expect_err("text has no NUL");
        assert_eq!(
            error.code().map(|code| code.code()),
            Some("22021"),
            "{sql}: {}",
            describe(&error)
        );
    }
    let (code, _) =
        client.error(&format!("select add_message('{c}', 'user', 'x', parts => '\"\\u0000\"')"));
    assert_eq!(code, "22P05");
    let error = client
        .execute(&format!("select append_chunks('{m}', $1)"), &[&vec!["a", "b\0"]])
        .expect_err("text has no NUL");
    assert_eq!(error.code().map(|code| code.code()), Some("22021"));
    assert_eq!(client.value::<i64>("select count(*) from messages"), 1);
    assert_eq!(client.value::<i64>("select count(*) from message_chunks"), 0);
}

#[test]
fn claims_that_name_nobody_show_no_rows_and_raise_no_error() {
    let database = Server::shared(oldest()).database();
    let subject = Uuid::from_u128(0xabcd_ef00_0000_4000_8000_0000_0000_00ab);
    let mut user = database.connect("member");
    user.run(&format!("set request.jwt.claims = '{{\"sub\": \"{subject}\"}}'"));
    let c: Uuid = user.value("select create_conversation('one')");
    user.run(&format!("select add_message('{c}', 'user', 'x')"));
    let m: Uuid = user.value("select id from messages");
    user.run(&format!("select append_chunk(begin_message('{c}', parent_id => '{m}'), 'x')"));

    let sub = subject.to_string();
    let sees: Vec<(String, bool)> = vec![
        (format!("{{\"sub\": \"{sub}\"}}"), true),
        (format!("{{\"sub\": \"{}\"}}", sub.to_uppercase()), true),
        (format!("{{\"a\": \"{}\", \"sub\": \"{sub}\"}}", "x".repeat(1 << 20)), true),
        (String::new(), false),
        (" ".into(), false),
        ("{}".into(), false),
        ("[]".into(), false),
        ("null".into(), false),
        ("7".into(), false),
        ("\"text\"".into(), false),
        ("not json".into(), false),
        ("{\"sub\": ".into(), false),
        (format!("{{\"sub\": \"{sub}\"}} tail"), false),
        (format!("{{\"SUB\": \"{sub}\"}}"), false),
        ("{\"sub\": null}".into(), false),
        ("{\"sub\": 7}".into(), false),
        ("{\"sub\": true}".into(), false),
        ("{\"sub\": {}}".into(), false),
        (format!("{{\"sub\": [\"{sub}\"]}}"), false),
        ("{\"sub\": \"\"}".into(), false),
        ("{\"sub\": \"nobody\"}".into(), false),
        (format!("{{\"sub\": \"{}\"}}", Uuid::new_v4()), false),
        (format!("{{\"sub\": \"{sub}0\"}}"), false),
        ("{\"sub\": \"00000000-0000-0000-0000-000000000000\"}".into(), false),
        (format!("{{\"sub\": \"{}\"}}", "x".repeat(1 << 20)), false),
        ("x".repeat(1 << 20), false),
        ("\u{1f600}".into(), false),
        (format!("{{\"a\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000)), false),
        ("[".repeat(1 << 20), false),
        ("{\"a\":".repeat(10_000), false),
    ];
    for (claims, seen) in &sees {
        let mut client = database.connect("member");
        client
            .execute("select set_config('request.jwt.claims', $1, false)", &[claims])
            .expect("any text is a setting");
        for (table, there) in [
            ("conversations", 1),
            ("messages", 2),
            ("message_chunks", 1),
            ("users", 1),
            ("tenants", 1),
            ("conversation_members", 0),
        ] {
            let rows: i64 = client.value(&format!("select count(*) from {table}"));
            assert_eq!(rows, if *seen { there } else { 0 }, "{table}: {claims:.60}");
        }
        let nobody = "select current_user_id() is null and current_tenant_id() is null and not is_tenant_admin()";
        assert_eq!(client.value::<bool>(nobody), !seen, "{claims:.60}");
        for sql in
            ["list_conversations()".to_string(), format!("get_conversation_with_messages('{c}')")]
        {
            let rows: i64 = client.value(&format!("select count(*) from {sql}"));
            assert_eq!(rows > 0, *seen, "{sql}: {claims:.60}");
        }
    }
    // The same for the setting of installations without claims.
    for (id, seen) in [(sub.as_str(), true), ("", false), ("x", false), ("{}", false)] {
        for setting in ["request.jwt.claim.sub", "pg_conversation.user_id"] {
            let mut client = database.connect("member");
            client.run(&format!("set {setting} = '{id}'"));
            let rows: i64 = client.value("select count(*) from message_chunks");
            assert_eq!(rows, i64::from(seen), "{setting} {id}");
        }
    }
}

#[test]
fn servers_have_no_backtrace_and_load_no_library() {
    let database = Server::shared(oldest()).database();
    let mut client = database.superuser();
    assert_eq!(client.value::<String>("show shared_preload_libraries"), "");
    let pid: i32 = client.value("select pg_backend_pid()");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("RUST_BACKTRACE"), "{environment}");
    for sql in [
        "select rollback_to(99)",
        "select add_message(null, 'user', 'x')",
        "select place_message()",
        "select append_chunk(null, 'x')",
        "select place_chunk()",
        "select recover_stalled_messages(null)",
    ] {
        let error = client.batch_execute(sql).expect_err("an error");
        let db = error.as_db_error().expect("from the server");
        assert_eq!(db.detail(), None, "{sql}");
        assert!(db.hint().is_some(), "{sql}");
    }
}
