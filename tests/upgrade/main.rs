//! Promise 3: every update path gives the same catalog as a fresh install.
//!
//! `PGC_BLESS=1` writes what a fresh install gives on the oldest version into `snapshot.out`; read
//! the difference before it is committed.

#[allow(dead_code, reason = "shared with tests/restore")]
#[path = "../restore/fingerprint.rs"]
mod fingerprint;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fingerprint::Fingerprint;
use pg_conversation_tests::{
    Client, Database, Private, Server, Session, Uuid, bin, command, oldest, run, versions,
};

const OWNER: &str = "upgrade_owner";
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
fn empty<'a>(server: &'a Server, schema: &str) -> Database<'a> {
    let database = server.empty_database();
    database.superuser().run(&format!("alter database {} owner to {OWNER}", database.name));
    database.connect(OWNER).run(&format!("create schema if not exists {schema}"));
    database
}

fn fresh<'a>(server: &'a Server, schema: &str) -> Database<'a> {
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
    comment on column @s@.message_chunks.is_final is 'mine';
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
    for (role, content) in [("user", "asked"), ("assistant", "")] {
        owner.run(&format!("select add_message('{c}', '{role}', '{content}')"));
    }
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
    owner.run("select cleanup_finished_streams('0 s'); select rollback_to(4)");
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

/// A server with a copy of the extension's files beside which older versions can be laid.
struct Workshop {
    server: Private,
    copy: PathBuf,
}

impl std::ops::Deref for Workshop {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Workshop {
    fn new(version: u32) -> Self {
        let copy = scratch().join(format!("tree-{}", Uuid::new_v4()));
        let [bindir, sharedir, pkglibdir] =
            ["--bindir", "--sharedir", "--pkglibdir"].map(|what| asked(version, what));
        let root = bindir
            .ancestors()
            .find(|root| sharedir.starts_with(root) && pkglibdir.starts_with(root))
            .expect("one folder holds the tree");
        // Linked, not copied: files are only added.
        let linked =
            Command::new("cp").arg("-al").arg(root).arg(&copy).stderr(Stdio::null()).status();
        if !linked.is_ok_and(|status| status.success()) {
            let _ = fs::remove_dir_all(&copy);
            run(Command::new("cp").arg("-a").arg(root).arg(&copy));
        }
        let moved = |path: &Path| copy.join(path.strip_prefix(root).expect("below the root"));
        let server = Server::private(version, "fsync = off\n");
        server.stop("fast");
        run(command(&moved(&bindir).join("pg_ctl"))
            .args(["-w", "-t", "60", "-l"])
            .arg(server.dir.join("log"))
            .arg("-D")
            .arg(server.dir.join("data"))
            .arg("start")
            .stdout(Stdio::null())
            .stderr(Stdio::null()));
        server.role(OWNER);
        let latest =
            fresh(&server, "public").superuser().value("select max(version) from schema_version");
        lay_older_versions(&moved(&sharedir).join("extension"), latest);
        Self { server, copy }
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.copy);
    }
}

fn scratch() -> PathBuf {
    std::env::var_os("PGC_SCRATCH").expect("PGC_SCRATCH: run the tests with dev/test").into()
}

fn asked(version: u32, what: &str) -> PathBuf {
    let output = run(command(&bin(version).join("pg_config")).arg(what));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// What an older release would have been: one function less, another that has changed since, and a
/// schema of version n. No release is old enough to stand here in earnest.
fn lay_older_versions(folder: &Path, latest: i32) {
    let control =
        fs::read_to_string(folder.join("pg_conversation.control")).expect("the control file");
    let current = control
        .lines()
        .find_map(|line| line.strip_prefix("default_version = '")?.strip_suffix('\''))
        .expect("a default version");
    let today = fs::read_to_string(folder.join(format!("pg_conversation--{current}.sql")))
        .expect("today's script");
    let update = today
        .lines()
        .map(|line| match line.split_once(' ') {
            Some((create, rest))
                if create.eq_ignore_ascii_case("create")
                    && rest.trim_start().to_lowercase().starts_with("function ") =>
            {
                format!("create or replace {}", rest.trim_start())
            }
            _ => line.to_string(),
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert_ne!(update, today);
    let older = without_function(&today, "purge_conversation");
    let older =
        older.replace("where c.id = archive_conversation.conversation_id", "where c.id is null");
    assert_ne!(older, without_function(&today, "purge_conversation"));
    for version in 0..=latest {
        let script = format!("{older}\nselect @extschema@.rollback_to({version});\n");
        fs::write(folder.join(format!("pg_conversation--0.0.{version}.sql")), script)
            .expect("an older version");
        fs::write(folder.join(format!("pg_conversation--0.0.{version}--{current}.sql")), &update)
            .expect("its update script");
    }
}

/// The script without a function of its own and the comment on it.
fn without_function(script: &str, name: &str) -> String {
    let start = script.find(&format!("create function @extschema@.{name}(")).expect("the function");
    let comment = start + script[start..].find("comment on function").expect("its comment");
    let end = comment + script[comment..].find("';\n").expect("the end of it") + 3;
    format!("{}{}", &script[..start], &script[end..])
}
