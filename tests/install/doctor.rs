//! doctor() finds what was broken on purpose, and nothing else.

use pg_conversation_tests::{Server, Session, Uuid, describe, oldest};

#[test]
fn doctor_finds_each_thing_that_is_broken() {
    let database = Server::shared(oldest()).database();
    let user = Uuid::new_v4();
    let mut member = database.member(user);
    let c: Uuid = member.value("select create_conversation('one')");
    member
        .run(&format!("select give_feedback(message_id, 1) from add_message('{c}', 'user', 'x')"));
    let mut owner = database.superuser();
    owner.run("insert into tenants (id, name, slug) values (new_id(), 'Other', 'other'); update messages set content = 'y'");
    database.server.role("conc_doctored");
    let replica = "set local session_replication_role = replica";
    let other = "(select id from tenants where slug = 'other')";

    // What is broken, the checks that see it, and what the detail names.
    let cases: Vec<(String, &str, &str)> = vec![
        ("alter table messages disable trigger place_message".into(), "triggers", "place_message on messages"),
        ("alter table messages enable replica trigger place_message".into(), "triggers", "place_message on messages"),
        ("drop trigger refuse_move on conversations".into(), "triggers", "refuse_move on conversations"),
        ("alter table users disable trigger all".into(), "triggers", "touch on users"),
        ("drop trigger place_chunk on message_chunks".into(), "triggers", "place_chunk on message_chunks"),
        ("drop trigger complete_streams on message_chunks".into(), "triggers", "complete_streams on message_chunks"),
        ("drop trigger refuse_rewrite on message_chunks".into(), "triggers", "refuse_rewrite on message_chunks"),
        ("alter table messages disable trigger remove_chunks".into(), "triggers", "remove_chunks on messages"),
        ("drop policy message_chunks_read on message_chunks".into(), "policies", "message_chunks_read on message_chunks"),
        ("drop policy message_chunks_insert on message_chunks".into(), "policies", "message_chunks_insert"),
        ("alter table message_chunks disable row level security".into(), "row level security", "message_chunks"),
        ("drop index idx_messages_streaming".into(), "indexes", "idx_messages_streaming"),
        ("alter table message_chunks drop constraint message_chunks_pkey".into(), "indexes", "message_chunks_pkey"),
        ("drop table message_chunks cascade".into(), "tables", "message_chunks"),
        ("grant truncate on message_chunks to member".into(), "grants", "TRUNCATE on message_chunks to member"),
        ("grant insert on message_chunks to member".into(), "grants", "INSERT on message_chunks to member"),
        ("drop policy messages_read on messages".into(), "policies", "messages_read on messages"),
        ("drop policy users_update on users".into(), "policies", "users_update on users"),
        ("alter table conversations disable row level security".into(), "row level security", "conversations"),
        ("alter table schema_version disable row level security".into(), "row level security", "schema_version"),
        ("alter table conversations alter column id drop default".into(), "defaults", "conversations.id"),
        ("alter table users alter column tenant_id drop default".into(), "defaults", "users.tenant_id"),
        ("drop index idx_messages_conversation_seq".into(), "indexes", "idx_messages_conversation_seq"),
        ("drop index idx_users_tenant_email".into(), "indexes", "idx_users_tenant_email"),
        (
            "update pg_index set indisvalid = false where indexrelid = 'idx_messages_retry_key'::regclass".into(),
            "indexes",
            "idx_messages_retry_key",
        ),
        ("drop table conversation_members".into(), "tables", "conversation_members"),
        (
            "alter extension pg_conversation add table messages".into(),
            "tables are the owner's, not the extension's",
            "messages",
        ),
        ("grant truncate on messages to member".into(), "grants", "TRUNCATE on messages to member"),
        ("grant trigger on users to member".into(), "grants", "TRIGGER on users to member"),
        ("grant references on conversations to member".into(), "grants", "REFERENCES on conversations"),
        ("grant select on messages to public".into(), "grants", "SELECT on messages to public"),
        (
            "select grant_access('conc_doctored', 'anon'); grant select on users to conc_doctored".into(),
            "grants",
            "SELECT on users to conc_doctored",
        ),
        (
            "select grant_access('conc_doctored'), revoke_access('conc_doctored'); grant select on messages to conc_doctored"
                .into(),
            "grants",
            "SELECT on messages to conc_doctored",
        ),
        ("grant update on message_revisions to member".into(), "grants", "UPDATE on message_revisions to member"),
        ("grant insert on access_profiles to member".into(), "grants", "INSERT on access_profiles to member"),
        ("insert into access_profiles (role_name, profile) values ('nobody_here', 'member')".into(), "profiles", "nobody_here (member)"),
        ("insert into access_profiles (role_name, profile) values ('member', 'service')".into(), "profiles", "member (service)"),
        ("update access_profiles set profile = 'syncer' where role_name = 'member'".into(), "profiles", "member (syncer)"),
        (
            "alter role conc_doctored bypassrls; select grant_access('conc_doctored', 'service'); \
             alter role conc_doctored nobypassrls"
                .into(),
            "profiles",
            "conc_doctored (service)",
        ),
        ("alter table messages replica identity full".into(), "replica identity", "messages"),
        ("alter table message_revisions replica identity nothing".into(), "replica identity", "message_revisions"),
        (
            "alter table users replica identity using index users_pkey".into(),
            "replica identity",
            "users",
        ),
        ("drop trigger keep_revision on messages".into(), "triggers", "keep_revision on messages"),
        ("alter table message_revisions disable trigger refuse_rewrite".into(), "triggers", "refuse_rewrite on message_revisions"),
        ("drop policy messages_update on messages".into(), "policies", "messages_update on messages"),
        ("drop policy message_revisions_read on message_revisions".into(), "policies", "message_revisions_read"),
        ("drop policy access_profiles_read on access_profiles".into(), "policies", "access_profiles_read"),
        ("drop policy feedback_read on feedback".into(), "policies", "feedback_read on feedback"),
        ("drop policy usage_events_read on usage_events".into(), "policies", "usage_events_read"),
        ("drop trigger count_given on feedback".into(), "triggers", "count_given on feedback"),
        ("alter table usage_events disable trigger refuse_insert".into(), "triggers", "refuse_insert on usage_events"),
        ("alter table model_prices alter column id drop default".into(), "defaults", "model_prices.id"),
        ("drop index idx_token_reservations_open".into(), "indexes", "idx_token_reservations_open"),
        ("grant insert on usage_days to member".into(), "grants", "INSERT on usage_days to member"),
        ("alter table usage_totals disable row level security".into(), "row level security", "usage_totals"),
        ("alter table access_profiles disable row level security".into(), "row level security", "access_profiles"),
        ("alter table message_revisions disable row level security".into(), "row level security", "message_revisions"),
        ("drop index idx_conversations_tenant_visible".into(), "indexes", "idx_conversations_tenant_visible"),
        (
            format!("{replica}; update message_revisions set tenant_id = {other}"),
            "rows lie in the tenant of their parent",
            "1 revisions",
        ),
        (format!("{replica}; update feedback set tenant_id = {other}"), "rows lie in the tenant of their parent", "1 feedback"),
        (format!("{replica}; delete from feedback"), "counts of feedback", "1 messages"),
        (format!("{replica}; delete from feedback_counts"), "counts of feedback", "1 messages"),
        (format!("{replica}; update feedback set rating = -1"), "counts of feedback", "1 messages"),
        (
            "delete from schema_version where version = (select max(version) from schema_version)".into(),
            "schema version",
            "",
        ),
        ("update schema_version set checksum = 'x' where version = 1".into(), "migrations unchanged", "frame"),
        (
            format!("{replica}; update messages set tenant_id = {other}"),
            "rows lie in the tenant of their parent",
            "1 messages",
        ),
        (
            format!("{replica}; update conversations set tenant_id = {other}"),
            "rows lie in the tenant of their parent",
            "1 conversations",
        ),
        (
            format!("{replica}; update conversations set last_sequence = 0"),
            "counters are not behind their messages",
            "1 conversations",
        ),
        (
            format!("alter role member set pg_conversation.user_id = '{user}'"),
            "settings",
            "pg_conversation.user_id",
        ),
        (
            format!("alter database {} set request.jwt.claims = '{{}}'", database.name),
            "settings",
            "request.jwt.claims",
        ),
        ("alter role member set row_security = off".into(), "settings", "row_security"),
        (
            format!(
                "{replica}; delete from messages; delete from conversations; delete from users; \
                 delete from tenants where slug = 'default'"
            ),
            "default tenant",
            "",
        ),
    ];
    let mut cases = cases;
    let one_owner = "tables belong to one owner";
    for (sql, names) in [
        ("alter table messages owner to conc_doctored", "messages"),
        ("alter table access_profiles owner to conc_doctored", "access_profiles"),
        (
            "alter table users rename to others; create view users as select * from others",
            "ordinary",
        ),
    ] {
        cases.push((sql.into(), one_owner, names));
    }
    for (sql, names) in [
        (
            "drop materialized view message_feedback_summary",
            "message_feedback_summary is not there",
        ),
        (
            "refresh materialized view message_feedback_summary with no data",
            "message_feedback_summary is not filled",
        ),
    ] {
        cases.push((sql.into(), "materialized views", names));
    }
    for (sql, names) in [
        ("alter materialized view message_feedback_summary owner to conc_doctored", "summary"),
        (
            "grant select on message_feedback_summary to conc_doctored",
            "SELECT on message_feedback_summary",
        ),
        (
            "grant select (tenant_id) on message_feedback_summary to member",
            "message_feedback_summary",
        ),
    ] {
        let check = if sql.contains("owner") { one_owner } else { "grants" };
        cases.push((sql.into(), check, names));
    }
    let every_view = "select viewname::text from pg_views where schemaname = 'public'";
    let views: Vec<String> = owner.values(every_view);
    for view in &views {
        cases.push((format!("drop view {view} cascade"), "views", view));
        cases.push((format!("alter view {view} reset (security_invoker)"), "views", view));
        cases.push((format!("alter view {view} owner to conc_doctored"), one_owner, view));
        cases.push((format!("grant select on {view} to public"), "grants", view));
        cases.push((format!("grant update on {view} to member"), "grants", view));
    }
    let every_table = "select tablename::text from pg_tables where schemaname = 'public' and tablename <> 'schema_version'";
    let tables: Vec<String> = owner.values(every_table);
    assert!(tables.len() > 7);
    for table in &tables {
        cases.push((format!("drop table {table} cascade"), "tables", table));
    }
    let ill = "select string_agg(check_name || ': ' || coalesce(detail, ''), '; ') from doctor() where not ok";
    assert_eq!(owner.value::<Option<String>>(ill), None, "before anything is broken");
    let checks: i64 = owner.value("select count(*) from doctor()");
    assert!(checks > 10);
    let mut wrong = Vec::new();
    for (sql, check, names) in &cases {
        owner.run("begin");
        owner.run(sql);
        let rows =
            match owner.query("select check_name, detail, hint from doctor() where not ok", &[]) {
                Ok(rows) => rows,
                Err(error) => {
                    wrong.push(format!("{sql}: doctor() does not survive: {}", describe(&error)));
                    owner.run("rollback");
                    continue;
                }
            };
        let found = rows.iter().any(|row| {
            row.get::<_, String>(0) == *check
                && row.get::<_, Option<String>>(1).unwrap_or_default().contains(names)
                && row.get::<_, Option<String>>(2).is_some_and(|hint| !hint.is_empty())
        });
        if !found {
            let said: Vec<_> = rows
                .iter()
                .map(|row| {
                    format!("{}: {:?}", row.get::<_, String>(0), row.get::<_, Option<String>>(1))
                })
                .collect();
            wrong.push(format!("{sql}: not under {check:?} with {names:?}, but {said:?}"));
        }
        owner.run("rollback");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(owner.value::<Option<String>>(ill), None, "after all was put back");
    // Every check was seen to fail, but for the library's own version.
    let untested: Vec<String> = owner
        .values::<String>("select check_name from doctor()")
        .into_iter()
        .filter(|name| name != "views" || !views.is_empty())
        .filter(|name| name != "library" && !cases.iter().any(|(_, check, _)| check == name))
        .collect();
    assert_eq!(untested, Vec::<String>::new(), "no case breaks these");
}

#[test]
fn migrate_mends_what_doctor_says_it_mends() {
    let database = Server::shared(oldest()).database();
    let mut owner = database.superuser();
    owner.run(
        "drop trigger refuse_move on conversations; drop policy messages_read on messages; \
         alter table conversations disable row level security; \
         alter table conversations alter column id drop default; \
         drop trigger place_chunk on message_chunks; drop trigger complete_streams on message_chunks; \
         drop trigger remove_chunks on messages; drop policy message_chunks_insert on message_chunks; \
         alter table message_chunks disable row level security; select migrate()",
    );
    assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
}
