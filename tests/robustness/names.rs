//! Names of roles that are hard to quote, and texts that are hard to keep.

use pg_conversation_tests::{Client, Server, Session, Uuid, describe, oldest};

use crate::{SERVICE, fault, grant_service};

/// What a role holds on tables and columns, as one number.
fn held(client: &mut Client, role: &str) -> i64 {
    client
        .query_one(
            "select (select count(*) from pg_class c, aclexplode(c.relacl) a, pg_roles r \
                 where a.grantee = r.oid and r.rolname = $1) \
             + (select count(*) from pg_attribute t, aclexplode(t.attacl) a, pg_roles r \
                 where a.grantee = r.oid and r.rolname = $1)",
            &[&role],
        )
        .expect("a number")
        .get(0)
}

#[test]
fn any_name_of_a_role_is_let_in_and_taken_out() {
    let server = Server::private(oldest(), "fsync = off");
    let database = server.database();
    let mut owner = database.superuser();
    let long = "n".repeat(63);
    let names = [
        "plain",
        "With Capitals",
        "with \"quotes\"",
        "it's",
        "$$; drop table messages; $$",
        "a; grant all on messages to public; --",
        "percent %s %I %L %",
        "back\\slash",
        "select",
        "user",
        "current_role",
        "session user",
        "none of them",
        "tab\tand\nline",
        "ünïcödé ☃",
        " leading and trailing ",
        "-1",
        "*",
        &long,
    ];
    let public = "select count(*) from pg_class c, aclexplode(c.relacl) a \
                  where a.grantee = 0 and c.relnamespace = 'public'::regnamespace";
    for name in names {
        let quoted: String =
            owner.query_one("select quote_ident($1)", &[&name]).expect("a name").get(0);
        owner.run(&format!("create role {quoted} bypassrls"));
        for (profile, least) in
            [("member", 40), ("service", 60), ("syncer", 40), ("monitor", 2), ("anon", 0)]
        {
            owner
                .execute("select grant_access($1, $2)", &[&name, &profile])
                .unwrap_or_else(|error| panic!("{name}: {}", describe(&error)));
            let has = held(&mut owner, name);
            assert!(has >= least && (has > 0) == (least > 0), "{name}: {profile}: {has}");
        }
        owner.execute("select grant_access($1)", &[&name]).expect("once more");
        owner.run("select migrate()");
        assert!(held(&mut owner, name) >= 40, "{name}");
        assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0, "{name}");
        owner.execute("select revoke_access($1)", &[&name]).expect("taken out");
        owner.run("select migrate()");
        assert_eq!(held(&mut owner, name), 0, "{name}");
        let noted: String = owner
            .query_one("select profile from access_profiles where role_name = $1", &[&name])
            .expect("a row")
            .get(0);
        assert_eq!(noted, "none");
        assert_eq!(owner.value::<i64>(public), 0, "{name}");
        // The row is no hindrance to whoever drops the role.
        owner.run(&format!("revoke usage on schema public from {quoted}; drop role {quoted}"));
        owner.run("select migrate()");
        assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0, "{name}");
    }
    // What is no role of its own, is spelt otherwise, or is too long to be one.
    let members = held(&mut owner, "member");
    for name in [
        "public",
        "PUBLIC",
        "current_user",
        "CURRENT_ROLE",
        "session_user",
        "none",
        "",
        " ",
        "Member",
        "\"member\"",
        "member ",
        "member, postgres",
        &"n".repeat(64),
        &"n".repeat(1 << 20),
    ] {
        for call in
            ["grant_access($1)", "grant_access($1, 'anon')", "revoke_access($1)", "revoke_all($1)"]
        {
            let result = owner.execute(&format!("select {call}"), &[&name]);
            match result {
                Err(error) => {
                    assert_eq!(fault(&error), None, "{name:.80}: {call}");
                    let code = error.code().map(|code| code.code().to_string());
                    assert_eq!(
                        code.as_deref(),
                        Some("42704"),
                        "{name:.80}: {call}: {}",
                        describe(&error)
                    );
                }
                Ok(_) => assert!(call.starts_with("revoke_all"), "{name:.80}: {call}"),
            }
        }
    }
    for call in ["grant_access(null)", "grant_access('member', null)", "revoke_access(null)"] {
        let error = owner.batch_execute(&format!("select {call}")).expect_err(call);
        assert_eq!(fault(&error), None, "{call}");
    }
    assert_eq!(held(&mut owner, "member"), members);
    assert_eq!(owner.value::<i64>(public), 0);
    // Predefined roles, the owner himself and superusers are roles like any other.
    owner.run(
        "create role admin superuser; select grant_access('admin', 'service'), revoke_access('admin'); \
         select grant_access('pg_monitor', 'monitor'), revoke_access('pg_monitor'); \
         select grant_access('postgres'), revoke_access('postgres'); select migrate()",
    );
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 0);
    owner.run("insert into tenants (id, name, slug) values (new_id(), 'still his', 'his')");
}

#[test]
fn an_edit_may_be_as_large_as_a_message_and_what_it_replaced_is_kept() {
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let user = Uuid::new_v4();
    database.superuser().run("update tenants set features = '{\"edit_messages\": true}'");
    let mut member = database.member(user);
    let c: Uuid = member.value("select create_conversation('large')");
    let m: Uuid =
        member.value(&format!("select message_id from add_message('{c}', 'user', 'small')"));
    let full = 32 << 20;
    let edit = |size: usize| format!("select edit_message('{m}', repeat('x', {size}))");
    let mut service = database.connect(SERVICE);
    for client in [&mut member, &mut service] {
        client.run(&edit(full));
        assert_eq!(client.error(&edit(full + 1)).0, "23514");
        let update = format!("update messages set content = repeat('é', {full}) where id = '{m}'");
        assert_eq!(client.error(&update).0, "23514");
        // Incompressible, and parts of some size.
        client.run(&format!(
            "select edit_message('{m}', (select string_agg(md5(n::text), '') from generate_series(1, 100000) n), \
             (select jsonb_agg(md5(n::text)) from generate_series(1, 50000) n))"
        ));
        client.run(&format!("select edit_message('{m}', 'small', 'null')"));
    }
    let sizes: Vec<i32> =
        member.values("select octet_length(content) from message_revisions order by revision");
    let large = 3_200_000;
    assert_eq!(sizes, [5, full as i32, large, 5, full as i32, large]);
    assert_eq!(
        member.value::<i64>("select count(*) from message_revisions where parts is null"),
        2
    );
    // Text that is none, and ids of nothing.
    let error = member
        .execute(&format!("select edit_message('{m}', $1)"), &[&"a\0b"])
        .expect_err("text has no NUL");
    assert_eq!(error.code().map(|code| code.code()), Some("22021"));
    for (args, code) in [
        (format!("'{m}', null"), "22004"),
        ("null, 'x'".into(), "22004"),
        ("'00000000-0000-0000-0000-000000000000', 'x'".into(), "P0002"),
        ("'ffffffff-ffff-ffff-ffff-ffffffffffff', 'x'".into(), "P0002"),
        (format!("'{c}', 'x'"), "P0002"),
        (format!("'{m}', 'x', '\"\\u0000\"'"), "22P05"),
    ] {
        for client in [&mut member, &mut service] {
            let error =
                client.batch_execute(&format!("select edit_message({args})")).expect_err(&args);
            assert_eq!(error.code().map(|code| code.code()), Some(code), "{args}");
            assert_eq!(fault(&error), None);
        }
    }
    // The same text and parts again are no edit.
    member
        .run(&format!("select edit_message('{m}', 'small'), edit_message('{m}', 'small', 'null')"));
    assert_eq!(member.value::<i64>("select count(*) from message_revisions"), 6);
}
