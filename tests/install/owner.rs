//! CREATE EXTENSION by a database owner who is no superuser, into any schema, whole or not at all.

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, describe, oldest};

pub const OWNER: &str = "conc_owner";

/// A database that belongs to an ordinary role.
pub fn owned() -> Database<'static> {
    let server = Server::shared(oldest());
    server.role(OWNER);
    server.role("member");
    let database = server.empty_database();
    server
        .connect("postgres", "postgres")
        .run(&format!("alter database {} owner to {OWNER}", database.name));
    database
}

/// What of ours is in the database: relations, types and functions outside the system's schemas.
pub fn remains(client: &mut Client) -> Vec<String> {
    client.values(
        "select x from ( \
         select 'relation ' || oid::regclass as x, relnamespace as n from pg_class \
         union all select 'type ' || oid::regtype, typnamespace from pg_type where typtype in ('e', 'd') \
         union all select 'function ' || oid::regprocedure, pronamespace from pg_proc \
         union all select 'extension ' || extname, extnamespace from pg_extension where extname <> 'plpgsql') s \
         where n not in (select oid from pg_namespace where nspname ~ '^pg_' or nspname = 'information_schema') \
         order by 1",
    )
}

#[test]
fn an_ordinary_owner_installs_and_owns_everything_but_the_functions() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation; select grant_access('member')");
    let foreign: Vec<String> = owner.values(&format!(
        "select 'relation ' || oid::regclass from pg_class \
         where relnamespace = 'public'::regnamespace and relowner <> '{OWNER}'::regrole \
         union all select 'type ' || oid::regtype from pg_type \
         where typnamespace = 'public'::regnamespace and typowner <> '{OWNER}'::regrole"
    ));
    assert_eq!(foreign, Vec::<String>::new(), "belongs to another");
    let relations: i64 =
        owner.value("select count(*) from pg_class where relnamespace = 'public'::regnamespace");
    assert!(relations > 10);
    let definers: Vec<String> = owner.values(
        "select oid::regprocedure::text from pg_proc where prosecdef and pronamespace = 'public'::regnamespace",
    );
    assert_eq!(definers, Vec::<String>::new(), "security definer");
    let members: Vec<String> = owner.values(
        "select distinct classid::regclass::text from pg_depend \
         where refclassid = 'pg_extension'::regclass and deptype = 'e' \
         and refobjid = (select oid from pg_extension where extname = 'pg_conversation')",
    );
    assert_eq!(members, ["pg_proc"], "members of the extension");
    let signatures: Vec<String> = owner.values(
        "select p.oid::regprocedure::text from pg_proc p, unnest(p.proargtypes || p.proallargtypes || p.prorettype) t \
         where p.pronamespace = 'public'::regnamespace \
         and (select typnamespace from pg_type where oid = t) <> 'pg_catalog'::regnamespace",
    );
    assert_eq!(signatures, Vec::<String>::new(), "types of our own in a signature");
    let ill: Vec<String> =
        owner.values("select concat_ws(': ', check_name, detail) from doctor() where not ok");
    assert_eq!(ill, Vec::<String>::new());
    assert_eq!(database.superuser().value::<String>("show shared_preload_libraries"), "");

    // It also works, for the owner's users and for the owner.
    let user = Uuid::new_v4();
    let mut member = database.member(user);
    let c: Uuid = member.value("select create_conversation('hello')");
    member.run(&format!("select add_message('{c}', 'user', 'hello', 'key')"));
    assert_eq!(member.value::<i64>("select count(*) from messages"), 1);
    owner.run(
        "select migrate(); select uninstall(current_database()); drop extension pg_conversation",
    );
    assert_eq!(remains(&mut owner), Vec::<String>::new());
}

#[test]
fn what_triggers_do_is_done_with_the_rights_of_the_owner() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run(
        "create extension pg_conversation; select grant_access('member'); \
         create table seen (what text, who text); \
         create function note() returns trigger language plpgsql as $$ begin \
             execute format('insert into public.seen values (%L, %L)', tg_op || ' ' || tg_table_name, current_user); \
             return new; end $$; \
         create trigger note after insert or update on conversations for each row execute function note(); \
         create trigger note after insert or update on users for each row execute function note(); \
         create trigger note after insert or update on messages for each row execute function note(); \
         grant insert on seen to member",
    );
    let mut member = database.member(Uuid::new_v4());
    let c: Uuid = member.value("select create_conversation('hello')");
    member.run(&format!("select add_message('{c}', 'user', 'one')"));
    member.run(&format!("insert into messages (conversation_id, role) values ('{c}', 'user')"));
    member.run("update conversations set title = 'new'");
    let seen: Vec<String> =
        owner.values("select what || ' as ' || who from seen group by what, who order by 1");
    // What the member does himself is his; what the numbering does for him is the owner's.
    assert_eq!(
        seen,
        [
            "INSERT conversations as member",
            "INSERT messages as member",
            &format!("INSERT users as {OWNER}"),
            &format!("UPDATE conversations as {OWNER}"),
            "UPDATE conversations as member",
        ]
    );
}

#[test]
fn a_name_that_is_taken_gives_one_error_and_leaves_nothing() {
    let taken = [
        ("create table users (id int)", "users", "42710"),
        ("create table messages (id int)", "messages", "42710"),
        ("create table schema_version (v text)", "schema_version", "42710"),
        ("create view conversations as select 1 as id", "conversations", "42710"),
        ("create type message_role as enum ('a')", "message_role", "42710"),
        ("create type tenants as (a int)", "tenants", "42710"),
        ("create sequence idx_messages_retry_key", "idx_messages_retry_key", "42710"),
    ];
    for (sql, name, code) in taken {
        let database = owned();
        let mut owner = database.connect(OWNER);
        owner.run("create schema mine");
        owner.run(sql);
        let before = remains(&mut owner);
        let error = owner.batch_execute("create extension pg_conversation").expect_err(sql);
        let db = error.as_db_error().expect("from the server");
        assert_eq!(db.code().code(), code, "{sql}: {}", describe(&error));
        assert!(db.message().contains(name), "{sql}: {}", describe(&error));
        assert!(
            db.hint().is_some_and(|hint| hint.contains("WITH SCHEMA")),
            "{sql}: {}",
            describe(&error)
        );
        assert_eq!(remains(&mut owner), before, "{sql}");
        owner.run("create extension pg_conversation with schema mine; select * from mine.doctor()");
    }
}

#[test]
fn any_schema_name_works_or_is_refused_and_leaves_nothing() {
    // A name, and whether Postgres lets extensions live under it.
    let names = [
        ("My Chat", true),
        ("SELECT", true),
        ("chat.room", true),
        ("ünïcode-1", true),
        ("a quote\"", false),
        ("an ' apostrophe", false),
        ("a $ dollar", false),
        ("a \\ backslash", false),
        ("$$; drop schema public; --", false),
    ];
    for (name, works) in names {
        let database = owned();
        let mut owner = database.connect(OWNER);
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        owner.run(&format!("create schema {quoted}"));
        let before = remains(&mut owner);
        let created =
            owner.batch_execute(&format!("create extension pg_conversation with schema {quoted}"));
        match (created, works) {
            (Ok(()), true) => {
                owner.run(&format!("select {quoted}.grant_access('member')"));
                let mut member = database.member(Uuid::new_v4());
                let c: Uuid = member.value(&format!("select {quoted}.create_conversation('x')"));
                member.run(&format!("select {quoted}.add_message('{c}', 'user', 'x', 'key')"));
                assert_eq!(
                    member.value::<i64>(&format!("select count(*) from {quoted}.messages")),
                    1
                );
                assert_eq!(
                    member.value::<i64>(&format!(
                        "select count(*) from {quoted}.list_conversations()"
                    )),
                    1
                );
                let ill: Vec<String> =
                    owner.values(&format!("select check_name from {quoted}.doctor() where not ok"));
                assert_eq!(ill, Vec::<String>::new(), "{name}");
                owner.run(&format!(
                    "select {quoted}.rollback_to(3, true); select {quoted}.migrate()"
                ));
                owner.run(&format!(
                    "select {quoted}.uninstall(current_database()); drop extension pg_conversation"
                ));
            }
            (Err(error), false) => {
                assert!(
                    error.code().is_some_and(|code| !code.code().starts_with("XX")),
                    "{}",
                    describe(&error)
                );
            }
            (result, _) => panic!("{name}: {result:?}"),
        }
        assert_eq!(remains(&mut owner), before, "{name}");
    }
}

#[test]
fn an_error_in_the_midst_of_it_leaves_nothing() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    // Stops at the nth of the commands that end with this tag.
    database.superuser().run(
        "create table public.stop (tag text, n int, so_far int default 0); grant all on public.stop to public; \
         create function public.stop_it() returns event_trigger language plpgsql as $$ begin \
             update public.stop set so_far = so_far + 1 where tag = tg_tag; \
             if exists (select from public.stop where tag = tg_tag and so_far = n) then \
                 raise exception 'stopped at %', tg_tag using errcode = 'ZZ001'; end if; end $$; \
         create event trigger stop_it on ddl_command_end execute function public.stop_it()",
    );
    let before = remains(&mut owner);
    for (tag, n) in [
        ("CREATE FUNCTION", 1),
        ("CREATE FUNCTION", 9),
        ("CREATE TABLE", 1),
        ("CREATE TABLE", 4),
        ("CREATE TYPE", 2),
        ("CREATE INDEX", 3),
        ("CREATE POLICY", 1),
        ("CREATE TRIGGER", 4),
        ("COMMENT", 60),
        ("CREATE EXTENSION", 1),
    ] {
        owner.run(&format!("delete from stop; insert into stop values ('{tag}', {n})"));
        let (code, message) = owner.error("create extension pg_conversation");
        assert_eq!(code, "ZZ001", "{tag} {n}: {message}");
        assert_eq!(remains(&mut owner), before, "{tag} {n}");
    }
    owner.run("delete from stop; create extension pg_conversation");
    // The flag that keeps tables from becoming members did not survive the errors.
    owner.run("create table mine (a int)");
    let members: i64 = owner.value(
        "select count(*) from pg_depend where deptype = 'e' and classid = 'pg_class'::regclass \
         and refobjid = (select oid from pg_extension where extname = 'pg_conversation')",
    );
    assert_eq!(members, 0);
    let ill: i64 = owner.value("select count(*) from doctor() where not ok");
    assert_eq!(ill, 0);
}

#[test]
fn default_privileges_of_the_installer_do_not_reach_our_tables() {
    let database = owned();
    database.server.role("conc_stranger");
    let mut owner = database.connect(OWNER);
    owner.run(
        "alter default privileges grant all on tables to public; \
         alter default privileges grant all on tables to conc_stranger with grant option; \
         alter default privileges in schema public grant all on tables to conc_stranger; \
         alter default privileges in schema public grant all on tables to public; \
         create extension pg_conversation",
    );
    let check = |owner: &mut Client| {
        let leaks: Vec<String> = owner.values(&format!(
            "select c.relname || ' ' || a.privilege_type || ' to ' || a.grantee \
             from pg_class c, aclexplode(c.relacl) a \
             where c.relnamespace = 'public'::regnamespace and c.relname <> 'mine' \
             and a.grantee <> '{OWNER}'::regrole \
             and a.grantee not in (select oid from pg_roles \
                 where rolname in (select role_name from access_profiles))"
        ));
        assert_eq!(leaks, Vec::<String>::new());
        assert!(owner.value::<bool>("select ok from doctor() where check_name = 'grants'"));
    };
    check(&mut owner);
    owner.run("select rollback_to(2); select migrate()");
    check(&mut owner);
    owner.run("select uninstall(current_database()); select migrate()");
    check(&mut owner);
    let mut stranger = database.connect("conc_stranger");
    for sql in [
        "select * from messages",
        "truncate conversations cascade",
        "insert into tenants values (null)",
    ] {
        assert_eq!(stranger.error(sql).0, "42501", "{sql}");
    }
    // Tables of the user's own get what he asked for.
    owner.run("create table mine (a int)");
    stranger.run("select * from mine");
}

#[test]
fn a_session_follows_the_extension_into_another_schema() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create schema one; create schema two");
    let mut other = database.connect(OWNER);
    let user = Uuid::new_v4();
    for session in [&mut owner, &mut other] {
        session.run(&format!("set pg_conversation.user_id = '{user}'"));
    }
    for schema in ["one", "two", "one", "two"] {
        owner.run(&format!(
            "create extension pg_conversation with schema {schema}; set search_path = {schema}"
        ));
        // The second round finds the tables of the first.
        other.run(&format!("set search_path = {schema}"));
        for session in [&mut owner, &mut other] {
            assert_eq!(session.value::<Uuid>("select ensure_user()"), user);
            let c: Uuid = session.value("select create_conversation('x')");
            let n: i32 = session.value(&format!(
                "select sequence_number from add_message('{c}', 'user', 'x', 'key')"
            ));
            assert_eq!(n, 1);
            let here: i64 = session.value(&format!(
                "select count(*) from {schema}.messages where conversation_id = '{c}'"
            ));
            assert_eq!(here, 1, "{schema}");
        }
        owner.run("drop extension pg_conversation cascade; set search_path = public");
        let (code, _) = other.error("select current_user_id()");
        assert_eq!(code, "42883");
        // Rows stay where they are.
        assert!(owner.value::<i64>(&format!("select count(*) from {schema}.messages")) >= 2);
    }
}
