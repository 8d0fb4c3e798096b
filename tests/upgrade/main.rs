//! Promise 3: every update path gives the same catalog as a fresh install.
//!
//! `PGC_BLESS=1` writes what a fresh install gives on the oldest version into `snapshot.out`; read
//! the difference before it is committed.

#[allow(dead_code, reason = "shared with tests/restore")]
#[path = "../restore/fingerprint.rs"]
mod fingerprint;

mod rows;
mod workshop;

use std::fs;
use std::path::Path;

use fingerprint::Fingerprint;
use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest, run, versions};
use workshop::{Workshop, scratch};

pub const OWNER: &str = "upgrade_owner";
const SCHEMAS: [&str; 2] = ["chat", "public"];

/// The catalog of the extension and what the migrations say of themselves.
fn snapshot(database: &Database, schema: &str) -> Fingerprint {
    let mut client = database.superuser();
    let catalog = Fingerprint::of_catalog(&mut client, schema);
    catalog.with(made_by_migrate(&mut client, schema))
}

/// Rows that come with the tables, without the moment they came.
fn made_by_migrate(client: &mut Client, schema: &str) -> Vec<String> {
    let rows = [
        ("schema_version", "to_jsonb(t) - 'applied_at'"),
        ("tenants", "to_jsonb(t) - 'created_at' - 'updated_at'"),
        ("maintenance_runs", "to_jsonb(t)"),
    ];
    rows.into_iter()
        .flat_map(|(table, row)| {
            let there = format!("select to_regclass('{schema}.{table}') is not null");
            if !client.value::<bool>(&there) {
                return Vec::new();
            }
            client.values(&format!(
                "select format('row | {table} | %s', {row}) from {schema}.{table} t"
            ))
        })
        .collect()
}

/// A database of the owner's, who is no superuser, with the schema in it.
pub fn empty<'a>(server: &'a Server, schema: &str) -> Database<'a> {
    let database = server.empty_database();
    database.superuser().run(&format!("alter database {} owner to {OWNER}", database.name));
    database.connect(OWNER).run(&format!("create schema if not exists {schema}"));
    database
}

pub fn fresh<'a>(server: &'a Server, schema: &str) -> Database<'a> {
    let database = empty(server, schema);
    database.connect(OWNER).run(&format!("create extension pg_conversation with schema {schema}"));
    database
}

/// A path to today's catalog, as SQL of the owner's: away from it, and back by migrate() or what
/// ends with it.
struct Route {
    name: String,
    away: String,
    back: &'static str,
    /// Whether the way there leads to a catalog that is not today's.
    differs: bool,
}

fn routes(latest: i32) -> Vec<Route> {
    let install = "create extension pg_conversation with schema @s@";
    let migrate = "select @s@.migrate()";
    let mut routes = Vec::new();
    let mut add = |name: &str, away: String, back, differs| {
        routes.push(Route { name: name.to_string(), away, back, differs });
    };
    add(
        "auto_install = off",
        format!("set pg_conversation.auto_install = off; {install}"),
        migrate,
        true,
    );
    add(
        "DROP EXTENSION CASCADE",
        format!("{install}; drop extension pg_conversation cascade"),
        "create extension pg_conversation with schema @s@",
        true,
    );
    add("migrate() twice", format!("{install}; {migrate}"), migrate, false);
    add(
        "uninstall()",
        format!("{install}; select @s@.uninstall(current_database()::text)"),
        migrate,
        true,
    );
    add("attachments broken by hand", format!("{install}; {BROKEN}"), migrate, true);
    for version in 0..=latest {
        add(
            &format!("rollback_to({version})"),
            format!("{install}; select @s@.rollback_to({version})"),
            migrate,
            version < latest,
        );
        add(
            &format!("version 0.0.{version}"),
            format!("{install} version '0.0.{version}'"),
            "alter extension pg_conversation update",
            true,
        );
    }
    routes
}

/// What hands do to triggers, policies, defaults and comments.
const BROKEN: &str = "
    drop policy messages_read on @s@.messages;
    alter policy users_read on @s@.users using (true);
    drop trigger place_message on @s@.messages;
    alter table @s@.conversations disable trigger refuse_move;
    alter table @s@.messages alter column id drop default;
    alter table @s@.messages disable row level security;
    alter table @s@.message_chunks disable row level security;
    drop policy message_chunks_insert on @s@.message_chunks;
    alter policy message_chunks_read on @s@.message_chunks using (true);
    drop trigger place_chunk on @s@.message_chunks;
    drop trigger complete_streams on @s@.message_chunks;
    drop trigger remove_chunks on @s@.messages;
    drop policy messages_update on @s@.messages;
    alter policy message_revisions_read on @s@.message_revisions using (true);
    alter table @s@.message_revisions disable row level security;
    drop trigger keep_revision on @s@.messages;
    alter table @s@.users disable trigger deactivate;
    alter policy access_profiles_read on @s@.access_profiles using (false);
    drop trigger adopt_dumped_row on @s@.access_profiles;
    alter policy feedback_read on @s@.feedback using (true);
    drop trigger count_given on @s@.feedback;
    drop trigger place_feedback on @s@.feedback;
    alter table @s@.usage_events disable trigger refuse_insert;
    alter policy usage_totals_read on @s@.usage_totals using (true);
    alter policy usage_months_read on @s@.usage_months using (true);
    alter table @s@.token_reservations disable row level security;
    alter table @s@.model_prices alter column id drop default;
    drop view @s@.usage_metrics;
    alter view @s@.usage_by_month reset (security_invoker);
    drop view @s@.stats;
    drop trigger adopt_dumped_row on @s@.maintenance_runs;
    comment on column @s@.feedback.rating is 'mine';
    comment on materialized view @s@.monthly_usage_summary is null;
    comment on column @s@.message_chunks.is_final is 'mine';
    comment on column @s@.messages.author_id is null;
    comment on table @s@.users is 'mine';
    comment on index @s@.idx_messages_parent is null";

#[test]
fn every_update_path_gives_the_catalog_of_a_fresh_install() {
    for version in versions() {
        let server = Workshop::new(version);
        for schema in SCHEMAS {
            every_route_ends_like_a_fresh_install(&server, schema);
            restored(&server, schema);
        }
        // Roles of hosted deployments get their grants on every path too.
        for role in ["anon", "authenticated", "service_role"] {
            server.role(role);
        }
        server.connect("postgres", "postgres").run("alter role service_role bypassrls");
        every_route_ends_like_a_fresh_install(&server, "chat");
    }
}

fn every_route_ends_like_a_fresh_install(server: &Server, schema: &str) {
    let example = fresh(server, schema);
    let expected = snapshot(&example, schema);
    let latest: i32 =
        example.superuser().value(&format!("select max(version) from {schema}.schema_version"));
    for route in routes(latest) {
        println!("{}, {schema}: {}", server.version, route.name);
        let database = empty(server, schema);
        let walk = |sql: &str| {
            let mut owner = database.connect(OWNER);
            for statement in sql.replace("@s@", schema).split(';') {
                owner.run(statement);
            }
        };
        walk(&route.away);
        if route.differs {
            let there = snapshot(&database, schema);
            assert!(there != expected, "{} is no detour", route.name);
        }
        walk(route.back);
        expected.assert_same(&snapshot(&database, schema), &route.name);
    }
}

/// Clients of a version without streams begin with an empty message, and go on with it after the
/// update; sessions that were there before it, too.
#[test]
fn messages_of_a_version_without_streams_take_them_after_the_update() {
    let server = Workshop::new(oldest());
    let database = empty(&server, "chat");
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation with schema chat version '0.0.4'");
    server.role("member");
    let user = Uuid::new_v4();
    owner.run(&format!("set search_path = chat; set pg_conversation.user_id = '{user}'"));
    let c: Uuid = owner.value("select create_conversation('old')");
    // Today's trigger knows more columns than that version had.
    owner.run(&format!(
        "alter table messages disable trigger place_message; \
         insert into messages (id, conversation_id, tenant_id, sequence_number, role, content) \
         select new_id(), '{c}', tenant_id, n, v.role::message_role, content \
         from users, (values (1, 'user', 'asked'), (2, 'assistant', '')) v (n, role, content); \
         update conversations set last_sequence = 2; \
         alter table messages enable trigger place_message"
    ));
    let [asked, answer]: [Uuid; 2] = owner
        .values("select id from messages order by sequence_number")
        .try_into()
        .expect("two messages");
    owner.run("alter extension pg_conversation update; select grant_access('member')");
    assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);

    let mut member = database.member(user);
    member.run("set search_path = chat");
    assert_eq!(member.error(&format!("select append_chunk('{asked}', 'x')")).0, "24000");
    member.run(&format!("select append_chunks('{answer}', array['an', 'swer'], 0)"));
    assert_eq!(owner.value::<String>(&format!("select reconstruct_message('{answer}')")), "answer");
    owner.run(&format!("select finish_message('{answer}')"));
    let text: String = member.value(&format!("select content from messages where id = '{answer}'"));
    assert_eq!(text, "answer");
    assert_eq!(owner.error("select rollback_to(4)").0, "55000", "its chunks are there");
    owner.run(
        "select cleanup_finished_streams('0 s'); delete from access_profiles; select rollback_to(4, force => true)",
    );
    assert_eq!(owner.value::<i64>("select count(*) from messages where content = 'answer'"), 1);
}

/// The last of the paths: a dump, brought back by the owner, and migrate().
fn restored(server: &Server, schema: &str) {
    let (from, to) = (fresh(server, schema), server.empty_database());
    to.superuser().run(&format!("alter database {} owner to {OWNER}", to.name));
    let file = scratch().join(format!("dump-{}", Uuid::new_v4()));
    run(server
        .program("pg_dump")
        .env("PGUSER", OWNER)
        .arg("-Fc")
        .arg("-f")
        .arg(&file)
        .arg(&from.name));
    run(server.program("pg_restore").env("PGUSER", OWNER).args(["-e", "-d", &to.name]).arg(&file));
    let _ = fs::remove_file(&file);
    to.connect(OWNER).run(&format!("select {schema}.migrate()"));
    snapshot(&from, schema).assert_same(&snapshot(&to, schema), "dump, restore, migrate()");
}

#[test]
fn a_fresh_install_is_the_one_agreed_on_in_every_version() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("upgrade/snapshot.out");
    for version in versions() {
        let server = Server::private(version, "fsync = off\n");
        server.role(OWNER);
        let found = snapshot(&fresh(&server, "chat"), "chat").sorted_text();
        if version == oldest() && std::env::var_os("PGC_BLESS").is_some() {
            fs::write(&file, &found).expect("the snapshot is written");
        }
        let agreed = fs::read_to_string(&file).unwrap_or_default();
        Fingerprint::parse(&agreed).assert_same(
            &Fingerprint::parse(&found),
            &format!("snapshot.out against Postgres {version}"),
        );
    }
}
