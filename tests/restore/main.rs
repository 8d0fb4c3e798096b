//! Promise 1: restored = dumped. Promise 2: DROP EXTENSION never deletes a row.

mod access;
#[allow(dead_code, reason = "shared with tests/upgrade")]
mod fingerprint;
mod source;

use std::fs;
use std::path::PathBuf;

use fingerprint::Fingerprint;
use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest, versions};
use source::{OWNER, SCHEMAS, Source, program, quiet};

/// How a dump is taken and brought back.
struct Mode {
    name: &'static str,
    dump: &'static [&'static str],
    /// psql for a plain dump, pg_restore for the others.
    restore: &'static [&'static str],
    /// Who runs both.
    user: &'static str,
}

const MODES: &[Mode] = &[
    Mode { name: "plain", dump: &["-Fp"], restore: &["psql", "-f"], user: "postgres" },
    Mode { name: "plain, -1", dump: &["-Fp"], restore: &["psql", "-1", "-f"], user: "postgres" },
    Mode { name: "custom", dump: &["-Fc"], restore: &["pg_restore", "-e"], user: "postgres" },
    Mode { name: "custom, -1", dump: &["-Fc"], restore: &["pg_restore", "-1"], user: "postgres" },
    Mode {
        name: "directory, -j 2",
        dump: &["-Fd", "-j", "2"],
        restore: &["pg_restore", "-e", "-j", "2"],
        user: "postgres",
    },
    Mode {
        name: "inserts",
        dump: &["-Fp", "--column-inserts"],
        restore: &["psql", "-f"],
        user: "postgres",
    },
    Mode {
        name: "plain, without triggers",
        dump: &["-Fp", "--disable-triggers"],
        restore: &["psql", "-f"],
        user: "postgres",
    },
    Mode { name: "plain, by the owner", dump: &["-Fp"], restore: &["psql", "-f"], user: OWNER },
    Mode {
        name: "custom, by the owner",
        dump: &["-Fc"],
        restore: &["pg_restore", "-e"],
        user: OWNER,
    },
    Mode {
        name: "custom, by the owner, --no-owner -1",
        dump: &["-Fc"],
        restore: &["pg_restore", "-1", "--no-owner"],
        user: OWNER,
    },
    Mode {
        name: "directory, by the owner, -j 2",
        dump: &["-Fd", "-j", "2"],
        restore: &["pg_restore", "-e", "-j", "2"],
        user: OWNER,
    },
];

/// A dump in a file of its own, removed with the value.
struct Dump(PathBuf);

impl Dump {
    fn of(source: &Source, programs: u32, user: &str, options: &[&str]) -> Self {
        let scratch = std::env::var_os("PGC_SCRATCH").expect("PGC_SCRATCH");
        let file = PathBuf::from(scratch).join(format!("dump-{}", Uuid::new_v4()));
        quiet(
            program(programs, source.database.server, "pg_dump", user)
                .args(options)
                .arg("-f")
                .arg(&file)
                .arg(&source.database.name),
        );
        Self(file)
    }

    /// Postgres 15.20 keeps a token of its own, pg_attver, in the options of every column. Its own
    /// pg_dump leaves it out, 17.11 and 18.6 neither leave it out nor take it: no table of a 15.20,
    /// ours or not, can be moved that way. A plain dump is freed of it here; archives, which cannot
    /// be edited, are made with the older pg_dump.
    fn strip_tokens(&self) {
        let text = fs::read_to_string(&self.0).expect("a plain dump");
        let stripped: Vec<String> = text
            .lines()
            .filter_map(|line| {
                let Some(at) = line.find(" SET (pg_attver=") else {
                    return Some(line.to_string());
                };
                let (_, others) = line.split_once(", ")?;
                Some(format!("{} SET ({others}", &line[..at]))
            })
            .collect();
        fs::write(&self.0, stripped.join("\n") + "\n").expect("the dump is written");
    }

    fn restore(&self, target: &Database, user: &str, how: &[&str]) {
        quiet(&mut self.restoring(target, user, how));
    }

    fn restoring(&self, target: &Database, user: &str, how: &[&str]) -> std::process::Command {
        let mut command = program(target.server.version, target.server, how[0], user);
        if how[0] == "psql" {
            command.args(["-X", "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1"]);
        }
        command.args(["-d", &target.name]).args(&how[1..]).arg(&self.0);
        command
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_file(&self.0);
    }
}

/// A restored extension belongs to whoever restored it: pg_dump has no ALTER EXTENSION OWNER. The
/// tables still belong to their owner, who can run migrate().
fn comparable(print: &Fingerprint, user: &str) -> Fingerprint {
    if user == OWNER { print.clone() } else { print.without(&["extension owner"]) }
}

/// What doctor() has to say of theirs.sql.
const HIS_CHOICE: &str = "replica identity: messages";

/// A restored database is one to go on with.
fn works(target: &Database, schema: &str) {
    let before = Fingerprint::of(&mut target.superuser());
    let mut owner = target.connect(OWNER);
    let latest: i32 = owner.value(&format!("select max(version) from {schema}.schema_version"));
    assert_eq!(owner.value::<i32>(&format!("select {schema}.migrate()")), latest);
    before.assert_same(&Fingerprint::of(&mut target.superuser()), "migrate() after the restore");
    let complaints: Vec<String> = owner.values(&format!(
        "select format('%s: %s', check_name, detail) from {schema}.doctor() where not ok"
    ));
    assert_eq!(complaints, [HIS_CHOICE], "doctor() after the restore");
    numbering_goes_on(target, schema);
    streams_go_on(target, schema);
    access::edits_go_on(target, schema);
    feedback_goes_on(target, schema);
    usage_and_limits_go_on(target, schema);
}

/// What was recorded is not recorded again, sums are those of the ledger, and what was taken of the day
/// is taken.
fn usage_and_limits_go_on(target: &Database, schema: &str) {
    let tenant = "a0000000-0000-0000-0000-000000000001";
    let mut service = target.connect("restore_service");
    service.run(&format!("set search_path = {schema}, pg_catalog; begin"));
    let drift =
        "select count(*) from tenants t, verify_usage(t.id, '2021-01-01', current_date + 1)";
    assert_eq!(service.value::<i64>(drift), 0);
    let record = |user: &str, usage: &str, key: &str, at: &str| {
        format!(
            "select applied from record_usage('{tenant}', '{user}', 'gpt_x', '{usage}', {key}, '{at}')"
        )
    };
    let again = record(
        source::ADA,
        r#"{"prompt_tokens": 10, "images": 2, "note": "\u2603"}"#,
        r"E'tab\there ☃'",
        "2021-05-01 20:00+00",
    );
    assert!(!service.value::<bool>(&again), "the event is known");
    let void = format!("select applied from void_usage('{tenant}', 'big', 'again')");
    assert!(!service.value::<bool>(&void), "the event was voided");
    let new = record(source::BOB, r#"{"prompt_tokens": 1}"#, "'new'", "2021-05-01 20:00+00");
    assert!(service.value::<bool>(&new));
    assert_eq!(service.value::<i64>(drift), 0);
    let rows = "select count(*) from recalculate_costs('2021-01-01', '2022-12-31')";
    assert_eq!(service.value::<i64>(rows), 0);
    let left = format!("select remaining from reserve_tokens(0, tenant_id => '{tenant}')");
    assert_eq!(service.value::<i64>(&left), 983, "10 are reserved and 7 are settled");
    let drawn = format!("select remaining between 2 and 5 from check_rate_limit(0, '{tenant}')");
    assert!(service.value::<bool>(&drawn));
    let job = "select every = '1 mon 2 days 03:04:05' and not enabled and runs = 3 \
               from maintenance_runs where job = 'analytics'";
    assert!(service.value::<bool>(job));
    assert_eq!(service.value::<i64>("select count(*) from maintenance_runs"), 9);
    service.run("rollback");
    let overlap = format!(
        "insert into {schema}.model_prices (pattern, usage_type, unit_price) values ('%', 'prompt_tokens', 1)"
    );
    assert_eq!(service.error(&overlap).0, "23P01");
}

/// What was counted before is counted once, and what comes is counted.
fn feedback_goes_on(target: &Database, schema: &str) {
    let message = "e0000000-0000-0000-0000-000000000001";
    let mut member = target.connect("restore_member");
    member.run(&format!("set pg_conversation.user_id = '{}'; begin", source::BOB));
    let counts = format!(
        "select thumbs_up::text || ' ' || thumbs_down from {schema}.get_message_feedback('{message}')"
    );
    assert_eq!(member.value::<String>(&counts), "1 2");
    member.run(&format!("select {schema}.withdraw_feedback('{message}')"));
    assert_eq!(member.value::<String>(&counts), "0 2");
    member.run(&format!("select {schema}.give_feedback('{message}', -1)"));
    assert_eq!(member.value::<String>(&counts), "0 3");
    member.run("rollback");
}

fn numbering_goes_on(target: &Database, schema: &str) {
    let cases = [
        (source::LIVE, source::ADA, 8),
        // Its third message was removed; numbers are not given twice.
        (source::ARCHIVED, source::BOB, 4),
    ];
    for (conversation, user, expected) in cases {
        let mut member = target.connect("restore_member");
        member.run(&format!("set pg_conversation.user_id = '{user}'; begin"));
        let number: i32 = member.value(&format!(
            "select sequence_number from {schema}.add_message('{conversation}', 'user', 'next')"
        ));
        assert_eq!(number, expected, "the next number in {conversation}");
        member.run("rollback");
    }
}

/// A producer asks where it was, and goes on from there; readers get what they lack.
fn streams_go_on(target: &Database, schema: &str) {
    let mut member = target.connect("restore_member");
    member.run(&format!("set pg_conversation.user_id = '{}'; begin", source::ADA));
    member.run(&format!("set local search_path = {schema}"));
    let id = |n: i32| format!("f0000000-0000-0000-0000-00000000000{n}");
    let long = "token 0 token 1 ";
    // A stream, the index that it expects, what is sent, the text in the end.
    let cases = [
        (1, 0..3, "array['four']", "one tab\there\nline \\. ☃ \"q\" ''four"),
        (2, 0..1, "array['two ', 'three ', 'four ', 'five ']", "one two three four five six"),
        (6, 0..300, "array['the end']", long),
        (8, 0..0, "array['first']", "first"),
        (9, 0..0, "array['first', ' and last']", "first and last"),
    ];
    for (n, known, sent, text) in cases {
        let m = id(n);
        let expected: i32 = member.value(&format!("select resume_message('{m}')"));
        assert_eq!(expected, known.end, "{m} expects");
        let read: i64 = member.value(&format!("select count(*) from read_stream('{m}')"));
        assert_eq!(read, i64::from(known.end), "chunks of {m} before a gap");
        member.run(&format!("select append_chunks('{m}', {sent}, {expected})"));
        member.run(&format!("select finish_message('{m}', 1, 2, 'model', 3)"));
        let content: String =
            member.value(&format!("select content from messages where id = '{m}'"));
        assert!(content.starts_with(text), "{content:.200}");
        let last: bool = member.value(&format!(
            "select (r).is_final and (r).status = 'completed' from read_stream('{m}', {expected} - 1) r \
             order by chunk_index desc limit 1"
        ));
        assert!(last, "the last row of {m}");
    }
    // Those that had ended can be read, and take nothing more.
    let ended =
        [(3, "all of it"), (4, "seen and heard"), (5, "half"), (7, "ended in passinglong long ")];
    for (n, text) in ended {
        let m = id(n);
        let content: String = member.value(&format!("select reconstruct_message('{m}')"));
        assert!(content.starts_with(text), "{content:.200}");
        let read: String = member.value(&format!(
            "select string_agg(content, '' order by chunk_index) from read_stream('{m}')"
        ));
        assert_eq!(read, content, "{m}");
    }
    member.run("rollback");
    let mut service = target.connect("restore_service");
    service.run(&format!("begin; set local search_path = {schema}"));
    let count = "select count(*) from message_chunks";
    let chunks: i64 = service.value(count);
    let removed: i32 = service.value("select cleanup_finished_streams('0 s')");
    // The interrupted one and those that go on keep theirs.
    assert_eq!(chunks - i64::from(removed), 300 + 3 + 3);
    assert_eq!(service.value::<i64>(count), 306);
    service.run("rollback");
}

/// Dumps the source with the programs of the target, as Postgres advises, and restores it there.
fn round_trip(source: &Source, target: &Server, mode: &Mode) {
    println!(
        "{} -> {}, {}, {}",
        source.database.server.version, target.version, source.schema, mode.name
    );
    let expected = Fingerprint::of(&mut source.database.superuser());
    let mut dump = Dump::of(source, target.version, mode.user, mode.dump);
    if mode.restore[0] == "psql" {
        dump.strip_tokens();
    } else if source.has_tokens() && target.version != source.database.server.version {
        // Uncompressed, for the programs of another version may be built without zlib.
        let options = [mode.dump, &["-Z", "0"]].concat();
        dump = Dump::of(source, source.database.server.version, mode.user, &options);
    }
    let restored = source::empty(target);
    dump.restore(&restored, mode.user, mode.restore);
    let found = Fingerprint::of(&mut restored.superuser());
    comparable(&expected, mode.user).assert_same(&comparable(&found, mode.user), mode.name);
    works(&restored, source.schema);
}

#[test]
fn restored_equals_dumped() {
    for version in versions() {
        let server = Server::shared(version);
        for schema in SCHEMAS {
            let source = Source::new(server, schema);
            for mode in MODES {
                round_trip(&source, server, mode);
            }
        }
    }
}

#[test]
fn a_schema_name_that_needs_quotes_is_restored() {
    let server = Server::shared(oldest());
    let source = Source::new(server, "\"Chat Room\"");
    for mode in [&MODES[0], &MODES[2]] {
        round_trip(&source, server, mode);
    }
}

#[test]
fn a_dump_of_an_older_postgres_is_restored_into_a_newer_one() {
    let from = oldest();
    for schema in SCHEMAS {
        let source = Source::new(Server::shared(from), schema);
        for to in versions().into_iter().filter(|to| *to > from) {
            let target = Server::shared(to);
            source::copy_roles(source.database.server, target);
            let telling = ["plain", "custom", "directory, -j 2", "custom, by the owner"];
            for mode in MODES.iter().filter(|mode| telling.contains(&mode.name)) {
                round_trip(&source, target, mode);
            }
        }
    }
}

/// What superusers change on our functions themselves is dumped as a change of the extension.
#[test]
fn privileges_on_functions_are_restored() {
    let server = Server::shared(oldest());
    let source = Source::new(server, "chat");
    source.database.superuser().run(
        "revoke execute on function chat.uninstall(text) from public;
         grant execute on function chat.doctor() to restore_auditor",
    );
    round_trip(&source, server, &MODES[0]);
    round_trip(&source, server, &MODES[2]);
}

/// --clean drops all that the dump holds, extension and rows included, and brings it back.
#[test]
fn a_dump_restored_over_its_own_database_gives_the_same() {
    let server = Server::shared(oldest());
    for schema in SCHEMAS {
        let source = Source::new(server, schema);
        let expected = Fingerprint::of(&mut source.database.superuser());
        let dump = Dump::of(&source, server.version, OWNER, &["-Fc"]);
        source.database.superuser().run(&format!(
            "delete from app.notes; delete from {schema}.messages; drop policy messages_read on {schema}.messages"
        ));
        dump.restore(&source.database, OWNER, &["pg_restore", "-e", "--clean", "--if-exists"]);
        expected.assert_same(&Fingerprint::of(&mut source.database.superuser()), "--clean");
        works(&source.database, schema);
    }
}

fn refresh(target: &Database, schema: &str) {
    target.connect(OWNER).run(&format!(
        "refresh materialized view app.message_counts; select {schema}.refresh_analytics()"
    ));
}

/// The rows of a dump replace those that migrate() has made. The user's own tables and columns must
/// be there, his triggers fire.
#[test]
fn a_dump_of_data_alone_is_loaded_beside_an_installed_extension() {
    let cases: &[(&[&str], &[&str], &str)] = &[
        (&["-Fp", "--data-only"], &["psql", "-f"], "postgres"),
        (&["-Fp", "--data-only"], &["psql", "-1", "-f"], OWNER),
        (&["-Fc", "--data-only"], &["pg_restore", "-e"], "postgres"),
        (&["-Fc", "--data-only"], &["pg_restore", "-1", "--data-only"], OWNER),
        // Restored in one stream: workers side by side do not wait for the rows that others refer to.
        (&["-Fd", "-j", "2", "--data-only"], &["pg_restore", "-e"], OWNER),
    ];
    for version in versions() {
        let server = Server::shared(version);
        for schema in SCHEMAS {
            let source = Source::new(server, schema);
            let expected = Fingerprint::of(&mut source.database.superuser());
            for (options, restore, user) in cases {
                println!("{version}, {schema}, {options:?}, {restore:?}, by {user}");
                let dump = Dump::of(&source, version, user, options);
                let target = Source::without_rows(server, schema).database;
                dump.restore(&target, user, restore);
                // Not data to pg_dump: a matview is refreshed by whoever has it.
                refresh(&target, schema);
                let found = Fingerprint::of(&mut target.superuser());
                expected.assert_same(&found, "a dump of data alone");
                works(&target, schema);
            }
        }
    }
}

/// The data of a full archive lies in an order that foreign keys do not allow, so that pg_restore
/// needs --disable-triggers and a superuser. Then nothing makes room for what the dump brings:
///
///     delete from chat.tenants;
///     delete from chat.schema_version;
///     delete from chat.access_profiles;
///     pg_restore -e --data-only --disable-triggers -d target dump
#[test]
fn the_data_of_a_full_dump_is_loaded_with_triggers_disabled() {
    let server = Server::shared(oldest());
    let source = Source::new(server, "chat");
    let expected = Fingerprint::of(&mut source.database.superuser());
    for how in [&["-e"][..], &["-e", "-j", "2"]] {
        let dump = Dump::of(&source, server.version, OWNER, &["-Fc"]);
        let target = Source::without_rows(server, "chat").database;
        target.connect(OWNER).run(
            "delete from chat.tenants; delete from chat.schema_version; delete from chat.access_profiles; \
             delete from chat.maintenance_runs",
        );
        let restore = [&["pg_restore", "--data-only", "--disable-triggers"], how].concat();
        dump.restore(&target, "postgres", &restore);
        refresh(&target, "chat");
        // ENABLE TRIGGER ALL leaves every trigger of the user's own enabled in the ordinary way.
        let reset = |print: &Fingerprint| {
            print.filter(|line| {
                !["switched_off", "on_replicas_too"].iter().any(|name| line.contains(name))
            })
        };
        reset(&expected)
            .assert_same(&reset(&Fingerprint::of(&mut target.superuser())), "without triggers");
        works(&target, "chat");
    }
}

/// The other half first: --schema-only, then --data-only, as migrations between hosts do it.
#[test]
fn schema_and_data_dumped_apart_come_together() {
    let server = Server::shared(oldest());
    for schema in SCHEMAS {
        let source = Source::new(server, schema);
        let expected = Fingerprint::of(&mut source.database.superuser());
        let target = source::empty(server);
        for half in ["--schema-only", "--data-only"] {
            let dump = Dump::of(&source, server.version, OWNER, &["-Fc", half]);
            dump.restore(&target, OWNER, &["pg_restore", "-e"]);
        }
        refresh(&target, schema);
        expected.assert_same(&Fingerprint::of(&mut target.superuser()), "schema, then data");
        works(&target, schema);
    }
}

/// A clone without rows, for staging: migrate() makes what only rows can tell.
#[test]
fn a_dump_of_the_schema_alone_is_ready_after_migrate() {
    let server = Server::shared(oldest());
    let source = Source::new(server, "chat");
    let dump = Dump::of(&source, server.version, OWNER, &["-Fc", "--schema-only"]);
    let target = source::empty(server);
    dump.restore(&target, OWNER, &["pg_restore", "-e"]);
    let mut owner = target.connect(OWNER);
    owner.run("select chat.migrate()");
    let complaints: Vec<String> =
        owner.values("select check_name || ': ' || detail from chat.doctor() where not ok");
    assert_eq!(complaints, [HIS_CHOICE]);
}

fn row(client: &mut Client, sql: &str) -> String {
    client.value(sql)
}

/// Another tenant may have taken a name that the default tenant of a new installation has.
#[test]
fn a_dump_of_data_alone_brings_its_tenants_in_any_order() {
    let server = Server::shared(oldest());
    let source = Source::new(server, "chat");
    source.database.connect(OWNER).run(
        "insert into chat.tenants (name, slug) values ('Another', 'default');
         update chat.tenants set metadata = '{\"moved\": true}' where slug = 'home'",
    );
    let expected = row(&mut source.database.superuser(), TENANTS);
    let dump = Dump::of(&source, server.version, OWNER, &["-Fp", "--data-only"]);
    let target = Source::without_rows(server, "chat").database;
    dump.restore(&target, OWNER, &["psql", "-f"]);
    assert_eq!(row(&mut target.superuser(), TENANTS), expected);
}

const TENANTS: &str = "select string_agg(t::text, E'\\n' order by id) from chat.tenants t";

/// The recipe for single schemas out of a dump of the whole database, as the owner of the target:
///
///     create schema chat;
///     set pg_conversation.auto_install = off;
///     create extension pg_conversation with schema chat;
///     create publication app_pub;       -- each one that has tables of the schema, without them
///     pg_restore -e -n chat -d target dump
///     select chat.migrate();
///     select chat.grant_access(...);    -- for each role, as in the source
///
/// Privileges and comments on the schema itself do not come along. Objects of another schema that hang
/// on these tables, or that these hang on, need `create schema` and `-n` too.
#[test]
fn single_schemas_of_a_dump_are_restored() {
    for version in versions() {
        let server = Server::shared(version);
        let whole: &[&str] = &["-Fc"];
        let cases: [(_, _, &[&str]); 4] = [
            (Source::plain(server, "chat"), whole, &["chat"]),
            // A dump of the schema alone: pg_dump -n leaves the extension out as well.
            (Source::plain(server, "chat"), &["-Fc", "-n", "chat"], &["chat"]),
            (Source::new(server, "chat"), whole, &["chat", "app"]),
            (Source::new(server, "public"), whole, &["public", "app"]),
        ];
        for (source, options, schemas) in cases {
            println!("{version}, {options:?}, -n {schemas:?}");
            let dump = Dump::of(&source, version, OWNER, options);
            let target = source::empty(server);
            let mut owner = target.connect(OWNER);
            let mut how = vec!["pg_restore", "-e"];
            for schema in schemas {
                owner.run(&format!("create schema if not exists {schema}"));
                how.extend(["-n", schema]);
            }
            owner.run(&format!(
                "set pg_conversation.auto_install = off;
                 create extension pg_conversation with schema {};
                 create publication app_pub with (publish = 'insert')",
                source.schema
            ));
            dump.restore(&target, OWNER, &how);
            owner.run(&format!(
                "select {0}.migrate(), {0}.grant_access('restore_member'),
                     {0}.grant_access('restore_service', 'service')",
                source.schema
            ));
            for schema in schemas {
                let expected = Fingerprint::of_schema(&mut source.database.superuser(), schema);
                let found = Fingerprint::of_schema(&mut target.superuser(), schema);
                let inside = |print: &Fingerprint| print.without(&["schema"]);
                inside(&expected).assert_same(&inside(&found), "pg_restore -n");
            }
            works(&target, source.schema);
        }
    }
}

#[test]
fn drop_extension_never_deletes_a_row() {
    for version in versions() {
        for schema in SCHEMAS {
            let source = Source::independent(Server::shared(version), schema);
            let mut owner = source.database.connect(OWNER);
            let everything = Fingerprint::of(&mut source.database.superuser());

            let (state, _) = owner.error("drop extension pg_conversation");
            assert_eq!(state, "2BP01", "dependent objects still exist");
            everything
                .assert_same(&Fingerprint::of(&mut source.database.superuser()), "a refused drop");

            owner.run("drop extension pg_conversation cascade");
            let rows = everything.only(&["row"]);
            let left = Fingerprint::of(&mut source.database.superuser());
            rows.assert_same(&left.only(&["row"]), "rows after DROP EXTENSION ... CASCADE");
            let kept =
                ["index", "constraint", "sequence", "type", "publication", "publication table"];
            everything
                .only(&kept)
                .assert_same(&left.only(&kept), "what CASCADE has no business with");

            owner.run(&format!("create extension pg_conversation with schema {schema}"));
            everything.assert_same(
                &Fingerprint::of(&mut source.database.superuser()),
                "DROP EXTENSION ... CASCADE and CREATE EXTENSION",
            );
            works(&source.database, schema);
        }
    }
}

fn rows(database: &Database) -> Fingerprint {
    Fingerprint::of(&mut database.superuser()).only(&["row"])
}

fn say_something(client: &mut Client, schema: &str, conversation: &str) -> i32 {
    client.value(&format!(
        "select sequence_number from {schema}.add_message('{conversation}', 'user', 'hello')"
    ))
}

#[test]
fn a_session_with_plans_survives_drop_and_create() {
    for version in versions() {
        let source = Source::independent(Server::shared(version), "public");
        let database = &source.database;
        let mut owner = database.connect(OWNER);
        let mut member = database.connect("restore_member");
        member.run(&format!("set pg_conversation.user_id = '{}'", source::ADA));
        member.run("prepare mine as select count(*) from messages");
        for (number, _) in (8..).zip(0..7) {
            assert_eq!(say_something(&mut member, "public", source::LIVE), number);
            member.run("execute mine");
        }
        let before = rows(database);

        owner.run("drop extension pg_conversation cascade");
        let gone = "select add_message('c0000000-0000-0000-0000-000000000001', 'user', 'x')";
        assert_eq!(member.error(gone).0, "42883", "the function does not exist");
        // The policies went with the functions; row level security stays and now shows nothing.
        assert_eq!(member.value::<i64>("select count(*) from messages"), 0);
        before.assert_same(&rows(database), "rows after CASCADE");

        owner.run("create extension pg_conversation");
        assert_eq!(say_something(&mut member, "public", source::LIVE), 15);
        assert!(member.value::<i64>("select count(*) from messages") > 7);
        member.run("execute mine");
        let restored = rows(database);
        assert_eq!(
            before.difference(&restored).len(),
            3,
            "one message more, its conversation moved"
        );
    }
}

#[test]
fn an_extension_created_in_another_schema_leaves_the_old_tables_alone() {
    for version in versions() {
        let source = Source::independent(Server::shared(version), "public");
        let database = &source.database;
        // The service bypasses row level security and keeps its session through it all.
        let mut service = database.connect("restore_service");
        let mut owner = database.connect(OWNER);
        for session in [&mut service, &mut owner] {
            say_something(session, "public", source::LIVE);
        }
        let before = rows(database);

        owner.run(
            "drop extension pg_conversation cascade;
             create schema other;
             create extension pg_conversation with schema other;
             select other.grant_access('restore_service', 'service')",
        );
        for session in [&mut service, &mut owner] {
            let conversation: Uuid = session.value("select other.create_conversation('new')");
            for number in 1..=7 {
                let found = say_something(session, "other", &conversation.to_string());
                assert_eq!(found, number, "numbering in the new schema");
            }
            // The old conversation is not one of the new schema.
            let (state, _) = session
                .error(&format!("select other.add_message('{}', 'user', 'x')", source::LIVE));
            assert_eq!(state, "P0002");
        }
        assert_eq!(owner.value::<i64>("select count(*) from other.messages"), 14);
        let old = rows(database).filter(|line| !line.starts_with("row | other."));
        before.assert_same(&old, "rows of the old schema");

        owner.run(
            "drop extension pg_conversation cascade; create extension pg_conversation with schema public",
        );
        for (session, number) in [(&mut service, 10), (&mut owner, 11)] {
            assert_eq!(say_something(session, "public", source::LIVE), number);
        }
        assert_eq!(owner.value::<i64>("select count(*) from other.messages"), 14);
    }
}

/// What a user hangs on our functions goes with them, as Postgres says it will: all else stays.
#[test]
fn cascade_takes_only_what_hangs_on_our_functions() {
    let source = Source::new(Server::shared(oldest()), "chat");
    let mut owner = source.database.connect(OWNER);
    let before = Fingerprint::of(&mut source.database.superuser());
    owner.run(
        "drop extension pg_conversation cascade; create extension pg_conversation schema chat",
    );
    let after = Fingerprint::of(&mut source.database.superuser());
    let lost: Vec<String> = before
        .difference(&after)
        .iter()
        .map(|line| line.split(" | ").take(2).collect::<Vec<_>>().join(" | "))
        .collect();
    let expected = [
        "+ column | app.labels.id",
        "- column | app.labels.id",
        "- column | app.mine.id",
        "- column | app.mine.name",
        "- policy | notes_of_the_tenant on app.notes",
        "- relation | app.mine",
        "- trigger | touch_tenants_twice on chat.tenants",
        "- view | app.mine",
    ];
    assert_eq!(lost, expected);
    works(&source.database, "chat");
}

/// Hosted databases grant everything on new tables to their roles. A restore makes tables, and
/// must not leave them more open than they were.
#[test]
fn default_privileges_of_the_target_open_nothing() {
    let server = Server::shared(oldest());
    let source = Source::new(server, "public");
    let dump = Dump::of(&source, server.version, OWNER, &["-Fc"]);
    let target = source::empty(server);
    let mut owner = target.connect(OWNER);
    owner.run(
        "alter default privileges in schema public grant all on tables to restore_member;
         alter default privileges in schema public grant all on functions to restore_member",
    );
    dump.restore(&target, OWNER, &["pg_restore", "-e"]);
    owner.run("select migrate()");

    let opened: Vec<String> = owner.values(
        "select format('%s on %s', a.privilege_type, c.relname)
         from pg_class c, aclexplode(c.relacl) a
         where c.relname in ('tenants', 'users', 'conversations', 'conversation_members', 'messages')
         and a.grantee = 'restore_member'::regrole
         and a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER')
         order by 1",
    );
    assert!(opened.is_empty(), "{opened:?}");
    let mut member = target.connect("restore_member");
    member.run(&format!("set pg_conversation.user_id = '{}'", source::BOB));
    let promoted = member.batch_execute("update users set role = 'admin'");
    assert!(promoted.is_err(), "a member made himself an admin of his tenant");
}

/// On a subscriber of a logical replication triggers fire only when they are told to.
#[test]
fn a_trigger_that_fires_always_does_so_after_restore_and_migrate() {
    let server = Server::shared(oldest());
    let source = Source::new(server, "chat");
    source
        .database
        .connect(OWNER)
        .run("alter table chat.messages enable always trigger place_message");
    round_trip(&source, server, &MODES[2]);
}
