//! migrate(), rollback_to() and uninstall(): forwards, backwards, refused.

use pg_conversation_tests::{Client, Session, Uuid, describe};

use crate::owner::{OWNER, owned, remains};

fn refusal(client: &mut Client, sql: &str) -> (String, String, String) {
    let error = client.batch_execute(sql).expect_err(sql);
    let db = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    let hint = db.hint().unwrap_or_else(|| panic!("{sql}: no hint: {}", describe(&error)));
    (db.code().code().into(), db.message().into(), hint.into())
}

#[test]
fn migrate_refuses_a_schema_it_does_not_know() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation");
    let cases = [
        (
            "insert into schema_version (version, name, checksum) values (99, 'future', 'x')",
            "99",
            "schema version",
        ),
        (
            "update schema_version set checksum = 'x' where version = 2",
            "identity",
            "migrations unchanged",
        ),
        (
            "update schema_version set checksum = 'x' where version = 4",
            "messages",
            "migrations unchanged",
        ),
        (
            "update schema_version set checksum = 'x' where version = 5",
            "streaming",
            "migrations unchanged",
        ),
    ];
    for (change, named, check) in cases {
        owner.run("begin");
        owner.run(change);
        assert!(
            !owner.value::<bool>(&format!("select ok from doctor() where check_name = '{check}'")),
            "{change}"
        );
        let (code, message, _) = refusal(&mut owner, "select migrate()");
        assert_eq!(code, "55000");
        assert!(message.contains(named), "{message}");
        owner.run("rollback");
    }
    assert_eq!(
        owner.value::<i32>("select migrate()"),
        owner.value::<i32>("select max(version) from schema_version")
    );
}

#[test]
fn the_frame_obeys_its_owner_only() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation; select grant_access('member')");
    database.server.role("conc_stranger");
    database.server.role("conc_deputy");
    database.superuser().run(&format!("grant {OWNER} to conc_deputy"));
    for sql in [
        "select migrate()",
        "select rollback_to(0, true)",
        "select rollback_to(99)",
        "select uninstall(current_database())",
        "select uninstall('wrong')",
        "select * from doctor()",
        "select grant_access('conc_stranger')",
        "select revoke_access('conc_stranger')",
        "select revoke_all('conc_stranger')",
        "select note_access('conc_stranger', 'member')",
        "select require_owner()",
        "select link_supabase()",
    ] {
        for role in ["member", "conc_stranger"] {
            assert_eq!(refusal(&mut database.connect(role), sql).0, "42501", "{role}: {sql}");
        }
    }
    // Members of the owning role act for it.
    for role in ["conc_deputy", "postgres"] {
        let mut client = database.connect(role);
        client.run(
            "select migrate(); select * from doctor(); select grant_access('member'), revoke_access('member'); \
             select rollback_to(3, force => true); select migrate()",
        );
    }
    let foreign: i64 = owner.value(&format!(
        "select count(*) from pg_class where relnamespace = 'public'::regnamespace and relowner <> '{OWNER}'::regrole"
    ));
    assert_eq!(foreign, 0);
}

#[test]
fn rollback_keeps_rows_unless_forced() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation");
    let latest: i32 = owner.value("select max(version) from schema_version");
    for version in ["-1", "99", "2147483647", "-2147483648"] {
        assert_eq!(refusal(&mut owner, &format!("select rollback_to({version})")).0, "22023");
    }
    // Without rows it goes all the way and back.
    for version in (0..=latest).rev() {
        owner.run("begin");
        assert_eq!(owner.value::<i32>(&format!("select rollback_to({version})")), version);
        let tables: i64 = owner.value("select count(*) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace");
        assert!(version > 0 || tables == 0);
        assert_eq!(owner.value::<i32>("select migrate()"), latest);
        assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
        owner.run("commit");
    }
    owner.run(&format!("set pg_conversation.user_id = '{}'", Uuid::new_v4()));
    let c: Uuid = owner.value("select create_conversation('keep')");
    owner.run(&format!("select add_message('{c}', 'user', 'keep')"));
    // Who was let in is known again by nobody but who did it; the roles that migrate() lists are no loss.
    owner.run("select grant_access('member')");
    for version in [6, 3, 0] {
        let (code, message, _) = refusal(&mut owner, &format!("select rollback_to({version})"));
        assert_eq!(code, "55000");
        assert!(message.contains("\"access_profiles\""), "{message}");
    }
    owner.run("delete from access_profiles where role_name = 'member'");
    for version in [3, 2, 0] {
        let (code, message, _) = refusal(&mut owner, &format!("select rollback_to({version})"));
        assert_eq!(code, "55000");
        assert!(message.contains("\"messages\""), "{message}");
        assert_eq!(owner.value::<i64>("select count(*) from messages"), 1);
    }
    assert_eq!(owner.value::<i32>("select rollback_to(3, force => true)"), 3);
    assert_eq!(owner.value::<i64>("select count(*) from conversations"), 1);
    owner.run("select migrate()");
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 0);
    // The counter goes on where it was, or anew: never into a number that is taken.
    owner.run(&format!(
        "select add_message('{c}', 'user', 'again'), add_message('{c}', 'user', 'and again')"
    ));
    // A tenant that was changed is a row to lose, too.
    owner.run("delete from messages; delete from conversations; delete from users; update tenants set name = 'Mine'");
    assert!(refusal(&mut owner, "select rollback_to(1)").1.contains("tenants"));
}

#[test]
fn rollback_keeps_chunks_and_messages_do_without_them() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation");
    owner.run(&format!("set pg_conversation.user_id = '{}'", Uuid::new_v4()));
    let c: Uuid = owner.value("select create_conversation('streams')");
    let begin = format!("select begin_message('{c}')");
    let [m, open] = [(); 2].map(|()| owner.value::<Uuid>(&begin));
    owner.run(&format!("select append_chunks('{m}', array['a', 'b'])"));
    for version in [4, 3, 0] {
        let (code, message, _) = refusal(&mut owner, &format!("select rollback_to({version})"));
        assert_eq!(code, "55000");
        assert!(message.contains("\"message_chunks\""), "{message}");
        assert_eq!(owner.value::<i64>("select count(*) from message_chunks"), 2);
    }
    owner.run(&format!("select finish_message('{m}'), cleanup_streaming_artifacts('{m}')"));
    let (code, message, _) = refusal(&mut owner, "select rollback_to(4)");
    assert!(code == "55000" && message.contains("\"first_token_ms\""), "{message}");
    assert_eq!(owner.value::<i32>("select rollback_to(4, force => true)"), 4);
    // Its text is the message's own, and the sessions that know of streams find none.
    let text = format!("select content from messages where id = '{m}'");
    assert_eq!(owner.value::<String>(&text), "ab");
    for sql in [
        format!("select append_chunk('{open}', 'c')"),
        format!("select * from read_stream('{m}')"),
        format!("select begin_message('{c}')"),
        "select recover_stalled_messages()".into(),
    ] {
        let (code, _, hint) = refusal(&mut owner, &sql);
        assert_eq!((code.as_str(), hint.contains("migrate()")), ("55000", true), "{sql}: {hint}");
    }
    // Rows that name their author cannot be written where there is no column for him.
    let add = format!("select add_message('{c}', 'user', 'x')");
    let (code, _, hint) = refusal(&mut owner, &add);
    assert_eq!((code.as_str(), hint.contains("migrate()")), ("55000", true), "{hint}");
    owner.run(&format!("delete from messages where id = '{m}'; select purge_conversation('{c}')"));
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 0);
    // With force the chunks go, whatever state they are in.
    owner.run("select migrate()");
    let c: Uuid = owner.value("select create_conversation('again')");
    let m: Uuid = owner.value(&format!("select begin_message('{c}')"));
    owner.run(&format!("select append_chunk('{m}', 'lost'); select rollback_to(4, force => true)"));
    owner.run("select migrate()");
    assert_eq!(owner.value::<i32>(&format!("select resume_message('{m}')")), 0);
    owner.run(&format!("select append_chunk('{m}', 'anew', 0, true)"));
    assert_eq!(
        owner.value::<String>(&format!("select content from messages where id = '{m}'")),
        "anew"
    );
    assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
}

/// What the later migrations made is kept like what the first ones did.
#[test]
fn rollback_keeps_what_was_used_rated_and_reserved_and_force_keeps_the_rest() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation");
    let latest: i32 = owner.value("select max(version) from schema_version");
    owner.run(&format!("set pg_conversation.user_id = '{}'", Uuid::new_v4()));
    let c: Uuid = owner.value("select create_conversation('kept')");
    let m: Uuid = owner.value(&format!("select begin_message('{c}')"));
    let t: Uuid = owner.value("select tenant_id from conversations");
    let rows = [
        (
            12,
            "token_windows",
            format!(
                "select settle_tokens(reservation_id, 1) from reserve_tokens(1, tenant_id => '{t}')"
            ),
        ),
        (
            11,
            "usage_events",
            format!("select record_usage('{t}', null, 'm', '{{\"prompt_tokens\": 1}}', 'k')"),
        ),
        (
            11,
            "model_prices",
            "insert into model_prices (pattern, usage_type, unit_price) values ('x', 'x', 1)"
                .into(),
        ),
        (13, "first_token_ms", "update messages set first_token_ms = 5".into()),
        (10, "feedback", format!("select give_feedback('{m}', 1)")),
        (9, "time_zone", "update tenants set time_zone = 'Asia/Tokyo'".into()),
    ];
    owner.run("update tenants set rate_limit_per_minute = 10, daily_token_limit = 10");
    for (version, table, sql) in &rows {
        owner.run("begin");
        owner.run(sql);
        assert_eq!(owner.value::<i32>(&format!("select rollback_to({version})")), *version);
        let below = version - 1;
        let (code, message, hint) = refusal(&mut owner, &format!("select rollback_to({below})"));
        assert_eq!(code, "55000", "{table}: {message}");
        assert!(message.contains(table) && hint.contains("force => true"), "{table}: {message}");
        owner.run("rollback");
    }
    for (_, _, sql) in &rows {
        owner.run(sql);
    }
    owner.run(&format!("select append_chunk('{m}', 'x', is_final => true)"));
    let kept = "select format('%s %s %s', status, content, completed_at) from messages";
    let before: String = owner.value(kept);
    for version in (8..latest).rev() {
        let sql = format!("select rollback_to({version}, force => true)");
        assert_eq!(owner.value::<i32>(&sql), version);
        assert_eq!(owner.value::<String>(kept), before, "{version}");
    }
    assert_eq!(owner.value::<i32>("select migrate()"), latest);
    assert_eq!(owner.value::<String>(kept), before);
    assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
    owner.run(&format!("select give_feedback('{m}', -1)"));
    assert_eq!(
        owner.value::<i32>(&format!("select thumbs_down from get_message_feedback('{m}')")),
        1
    );
}

#[test]
fn uninstall_wants_the_name_of_the_database_and_leaves_functions_only() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation; select ensure_user() from (select set_config('pg_conversation.user_id', new_id()::text, false)) s");
    for wrong in ["null", "''", "'yes'", "upper(current_database())", "current_database() || ' '"] {
        let (code, _, hint) = refusal(&mut owner, &format!("select uninstall({wrong})"));
        assert_eq!(code, "22023", "{wrong}");
        assert!(hint.contains(&database.name), "{hint}");
    }
    owner.run("select uninstall(confirm => current_database())");
    let left: Vec<String> = remains(&mut owner)
        .into_iter()
        .filter(|what| !what.starts_with("function ") && !what.starts_with("extension "))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    let (code, _, hint) = refusal(&mut owner, "select ensure_user()");
    assert_eq!((code.as_str(), hint.contains("migrate()")), ("55000", true));
    owner.run("select migrate()");
    assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
    owner.run("select ensure_user(), create_conversation('anew')");
}

#[test]
fn without_auto_install_the_tables_wait_for_migrate() {
    for setting in ["set pg_conversation.auto_install = off", "set row_security = off"] {
        let database = owned();
        let mut owner = database.connect(OWNER);
        // The library is not loaded yet: its setting is a name like any other.
        owner.run(setting);
        owner.run("create extension pg_conversation");
        assert!(remains(&mut owner).iter().all(|what| !what.starts_with("relation ")), "{setting}");
        owner.run("reset all; select migrate()");
        assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
        let foreign: i64 = owner.value(&format!(
            "select count(*) from pg_class where relnamespace = 'public'::regnamespace and relowner <> '{OWNER}'::regrole"
        ));
        assert_eq!(foreign, 0);
    }
}

#[test]
fn rollback_keeps_revisions_and_force_keeps_the_latest_text() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation");
    let latest: i32 = owner.value("select max(version) from schema_version");
    owner.run(&format!("set pg_conversation.user_id = '{}'", Uuid::new_v4()));
    let c: Uuid = owner.value("select create_conversation('edited')");
    owner.run(&format!(
        "select add_message('{c}', 'user', 'first'); update messages set content = 'second'"
    ));
    for version in (0..6).rev() {
        let (code, message, hint) = refusal(&mut owner, &format!("select rollback_to({version})"));
        assert_eq!(code, "55000");
        let named = message.contains("\"message_revisions\"") || version < 4;
        assert!(named && hint.contains("force => true"), "{version}: {message}, {hint}");
    }
    // What is not undone does not matter.
    assert_eq!(owner.value::<i32>("select rollback_to(6)"), 6);
    assert_eq!(owner.value::<i64>("select count(*) from message_revisions"), 1);
    for sql in ["select grant_access('member')", "select revoke_access('member')"] {
        let (code, _, hint) = refusal(&mut database.connect(OWNER), sql);
        assert_eq!((code.as_str(), hint.contains("migrate()")), ("55000", true), "{sql}: {hint}");
    }
    owner.run(&format!("select add_message('{c}', 'user', 'of version 6')"));
    assert_eq!(owner.value::<i32>("select rollback_to(5, force => true)"), 5);
    let texts = "select string_agg(content, ', ' order by sequence_number) from messages";
    assert_eq!(owner.value::<String>(texts), "second, of version 6");
    // Without revisions an update is an update again.
    owner.run("update messages set content = content || '!'");
    for sql in [
        format!("select add_message('{c}', 'user', 'x')"),
        format!("select begin_message('{c}')"),
        format!("insert into messages (conversation_id, role) values ('{c}', 'user')"),
    ] {
        let (code, _, hint) = refusal(&mut database.connect(OWNER), &sql);
        assert_eq!((code.as_str(), hint.contains("migrate()")), ("55000", true), "{sql}: {hint}");
    }
    assert_eq!(owner.value::<i32>("select migrate()"), latest);
    let authors: i64 =
        owner.value("select count(*) from messages where author_id is null and edited_at is null");
    assert_eq!(authors, 2);
    owner.run("update messages set content = 'third' where content like 'second%'");
    assert_eq!(owner.value::<String>("select content from message_revisions"), "second!");
    assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
}
