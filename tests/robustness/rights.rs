//! Whoever owns the schema may put tables of his own in place of ours. Nothing of his ever runs with
//! the rights of somebody else.

use pg_conversation_tests::{Database, Server, Session, oldest};

use crate::fault;

/// A trigger function that makes whoever runs it give all it can.
pub const PROMOTE: &str = "
    create function promote() returns trigger language plpgsql as $$ begin
        execute 'alter role schema_owner superuser'; return coalesce(new, old); end $$;
    create function promote_now() returns boolean language plpgsql as $$ begin
        execute 'alter role schema_owner superuser'; return true; end $$;
    create function sly(value text) returns text language plpgsql immutable as $$ begin
        if pg_catalog.pg_has_role('postgres', 'usage') then perform public.promote_now(); end if;
        return value; end $$;";

/// A superuser has installed, the owner of the schema has a stream of two chunks.
const REPLACED: &str = "
    create extension pg_conversation; select grant_access('schema_owner');
    insert into users (id) values ('11111111-1111-4111-8111-111111111111');
    insert into conversations (id, user_id) values
        ('cccccccc-0000-7000-8000-00000000000a', '11111111-1111-4111-8111-111111111111');
    insert into messages (id, conversation_id, role, status) values
        ('00000000-0000-4000-8000-00000000000a', 'cccccccc-0000-7000-8000-00000000000a', 'assistant', 'streaming'),
        ('00000000-0000-4000-8000-00000000000b', 'cccccccc-0000-7000-8000-00000000000a', 'assistant', 'streaming'),
        ('00000000-0000-4000-8000-00000000000c', 'cccccccc-0000-7000-8000-00000000000a', 'assistant', 'streaming'),
        ('00000000-0000-4000-8000-00000000000d', 'cccccccc-0000-7000-8000-00000000000a', 'assistant', 'streaming');
    insert into message_chunks (message_id, chunk_content) select id, c from messages, (values ('a'), ('b')) v (c);";

const ALL_OF_A_STREAM: &str = "
    select append_chunk('00000000-0000-4000-8000-00000000000a', 'x');
    select append_chunks('00000000-0000-4000-8000-00000000000a', array['x', 'y'], 0);
    insert into message_chunks (message_id, chunk_index, chunk_content, is_final)
        values ('00000000-0000-4000-8000-00000000000a', 0, 'x', true);
    select read_stream('00000000-0000-4000-8000-00000000000a');
    select wait_for_chunks('00000000-0000-4000-8000-00000000000a', timeout_ms => 0);
    select reconstruct_message('00000000-0000-4000-8000-00000000000a');
    select resume_message('00000000-0000-4000-8000-00000000000a');
    select finish_message('00000000-0000-4000-8000-00000000000a', 1);
    select cleanup_streaming_artifacts('00000000-0000-4000-8000-00000000000a');
    select stop_message('00000000-0000-4000-8000-00000000000b', 1);
    select stop_message('00000000-0000-4000-8000-00000000000c');
    select fail_message('00000000-0000-4000-8000-00000000000c', 'x');
    select append_chunk('00000000-0000-4000-8000-00000000000d', 'x', is_final => true);
    select recover_stalled_messages('0 s');
    select cleanup_finished_streams('0 s');
    select begin_message('cccccccc-0000-7000-8000-00000000000a');
    select purge_conversation('cccccccc-0000-7000-8000-00000000000a');
    delete from conversations";

pub fn database<'a>(server: &'a Server) -> Database<'a> {
    server.role("schema_owner");
    let database = server.empty_database();
    database.superuser().run(&format!(
        "alter role schema_owner nosuperuser; alter database {} owner to schema_owner",
        database.name
    ));
    database
}

pub fn is_superuser(database: &Database) -> bool {
    let sql = "select rolsuper from pg_roles where rolname = 'schema_owner'";
    let promoted = database.superuser().value(sql);
    database.superuser().run("alter role schema_owner nosuperuser");
    promoted
}

#[test]
fn tables_put_in_place_of_ours_gain_no_rights() {
    let server = Server::private(oldest(), "fsync = off");
    let user = "11111111-1111-4111-8111-111111111111";
    // Who runs which statements, in turn; the last ones may fail, but must not promote.
    let cases = [
        (
            "users replaced after a superuser installed",
            vec!["create extension pg_conversation; select grant_access('schema_owner')"],
            "drop table users cascade;
             create table users (id uuid primary key, tenant_id uuid, auth_id uuid
                 constraint users_auth_id_is_unique unique, role text default 'member', is_active bool default true);
             create trigger promote before insert on users for each row execute function promote();
             set pg_conversation.user_id = '11111111-1111-4111-8111-111111111111';",
            "schema_owner",
            "select ensure_user()",
        ),
        (
            "conversations replaced after a superuser installed",
            vec![
                "create extension pg_conversation; select grant_access('schema_owner');
                 insert into users (id) values ('11111111-1111-4111-8111-111111111111')",
            ],
            "drop table conversations cascade;
             create table conversations (id uuid primary key, tenant_id uuid, user_id uuid, visibility text,
                 last_sequence int default 0, updated_at timestamptz default now(), deleted_at timestamptz);
             insert into conversations values ('cccccccc-0000-7000-8000-00000000000a',
                 '00000000-0000-7000-8000-000000000001', '11111111-1111-4111-8111-111111111111', 'private');
             create trigger promote before update on conversations for each row execute function promote();
             grant all on conversations to postgres;
             set pg_conversation.user_id = '11111111-1111-4111-8111-111111111111';",
            "schema_owner",
            "select add_message('cccccccc-0000-7000-8000-00000000000a', 'user', 'x')",
        ),
        (
            "tenants replaced between drop and create",
            vec!["create extension pg_conversation; drop extension pg_conversation cascade"],
            "drop table tenants cascade;
             create table tenants (id uuid, name text, slug text, llm_provider text, llm_model text,
                 temperature int, max_tokens int, system_prompt text, features jsonb,
                 rate_limit_per_minute int, daily_token_limit int, branding jsonb,
                 default_visibility text, is_active bool, metadata jsonb, updated_at timestamptz,
                 created_at timestamptz);
             create trigger promote before insert on tenants for each row execute function promote();",
            "schema_owner",
            "create extension pg_conversation",
        ),
        (
            "a deferred trigger set off by migrate",
            vec![],
            "create extension pg_conversation; create table box (i int);
             create constraint trigger promote after insert on box deferrable initially deferred
                 for each row execute function promote();
             create function sneak() returns trigger language plpgsql as $$ begin
                 insert into public.box values (1); return new; end $$;
             delete from tenants;
             create trigger sneak before insert on tenants for each row execute function sneak();",
            "postgres",
            "select migrate()",
        ),
        (
            "message_chunks replaced after a superuser installed, and its messages are written",
            vec![REPLACED],
            "drop table message_chunks cascade;
             create table message_chunks (message_id uuid, created_at timestamptz default now(), chunk_index int,
                 is_final bool default false, chunk_content text check (sly(chunk_content) is not null),
                 extra text default sly('x'),
                 constraint message_chunks_pkey primary key (message_id, chunk_index));
             create index on message_chunks (sly(chunk_content));
             create trigger promote before insert or delete on message_chunks
                 for each row execute function promote();
             create trigger promote_all after insert or delete on message_chunks execute function promote();
             alter table message_chunks enable row level security;
             create policy p on message_chunks using (sly(chunk_content) is not null);
             create rule r as on insert to message_chunks do also delete from message_chunks where sly('x') = 'y';
             grant all on message_chunks to postgres;",
            "schema_owner",
            ALL_OF_A_STREAM,
        ),
        (
            "message_chunks replaced by a table that looks the same",
            vec![REPLACED],
            "drop table message_chunks cascade;
             create table message_chunks (message_id uuid not null, created_at timestamptz not null default now(),
                 chunk_index int not null, is_final bool not null default false, chunk_content text not null,
                 constraint message_chunks_pkey primary key (message_id, chunk_index));
             create unique index on message_chunks (sly(chunk_content)) where sly(chunk_content) <> 'y';
             grant all on message_chunks to postgres;",
            "schema_owner",
            ALL_OF_A_STREAM,
        ),
        (
            "message_chunks replaced by a view",
            vec![REPLACED],
            "drop table message_chunks cascade;
             create view message_chunks as select '00000000-0000-4000-8000-00000000000a'::uuid as message_id,
                 now() as created_at, 0 as chunk_index, false as is_final, sly('x') as chunk_content;
             create trigger promote instead of insert or delete on message_chunks
                 for each row execute function promote();
             grant all on message_chunks to postgres;",
            "schema_owner",
            ALL_OF_A_STREAM,
        ),
        (
            "messages replaced under streams",
            vec![REPLACED],
            "create table old_messages as select * from messages;
             drop table messages cascade;
             create table messages (like old_messages, primary key (id));
             insert into messages select * from old_messages;
             create trigger promote before insert or update or delete on messages
                 for each row execute function promote();
             create trigger promote_all after insert or update or delete on messages execute function promote();
             grant all on messages to postgres;",
            "schema_owner",
            ALL_OF_A_STREAM,
        ),
        (
            "a deferred trigger set off by the recovery of streams",
            vec![],
            "create extension pg_conversation; insert into users (id) values ('11111111-1111-4111-8111-111111111111');
             set pg_conversation.user_id = '11111111-1111-4111-8111-111111111111';
             select append_chunk(begin_message(create_conversation('x')), 'x');
             create constraint trigger promote after update on messages deferrable initially deferred
                 for each row execute function promote();",
            "postgres",
            "select recover_stalled_messages('0 s')",
        ),
        (
            "a deferred trigger set off by clean-up",
            vec![],
            "create extension pg_conversation; insert into users (id) values ('11111111-1111-4111-8111-111111111111');
             set pg_conversation.user_id = '11111111-1111-4111-8111-111111111111';
             select append_chunk(begin_message(create_conversation('x')), 'x', is_final => true);
             create constraint trigger promote after delete on message_chunks deferrable initially deferred
                 for each row execute function promote();",
            "postgres",
            "select cleanup_finished_streams('0 s')",
        ),
        (
            "a deferred trigger set off by doctor",
            vec![],
            "create extension pg_conversation; create table box (i int);
             create constraint trigger promote after insert on box deferrable initially deferred
                 for each row execute function promote();
             create function sneak() returns bool language plpgsql as $$ begin
                 insert into public.box values (1); return false; end $$;
             alter table tenants rename to old_tenants;
             create view tenants as select * from old_tenants where sneak();",
            "postgres",
            "select doctor()",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, by_superuser, by_owner, then, statements) in cases {
        let database = database(&server);
        for sql in by_superuser {
            database.superuser().run(sql);
        }
        let mut owner = database.connect("schema_owner");
        owner.run(PROMOTE);
        owner.run(by_owner);
        let mut last = database.connect(then);
        if then == "schema_owner" {
            last.run(&format!("set pg_conversation.user_id = '{user}'"));
        }
        for statement in statements.split(';') {
            let result = last.batch_execute(statement);
            if is_superuser(&database) {
                wrong.push(format!("{name}: {statement}: {result:?}"));
            }
            // Whatever was said, it was said in words, and the server lives.
            if let Err(error) = result
                && let Some(fault) = fault(&error)
            {
                wrong.push(format!("{name}: {statement}: {fault}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_ledger_that_somebody_laid_out_beforehand_is_refused() {
    let server = Server::shared(oldest());
    server.role("squatter");
    let database = database(server);
    database.superuser().run("grant create on schema public to squatter");
    database.connect("squatter").run(
        "create table schema_version (version int primary key, name text, checksum text, \
         applied_at timestamptz default now())",
    );
    for installer in ["postgres", "schema_owner"] {
        let (code, message) = database.connect(installer).error("create extension pg_conversation");
        assert_eq!(
            (code.as_str(), message.as_str()),
            ("42501", "table schema_version belongs to another role")
        );
    }
    let left: i64 = database
        .superuser()
        .value("select count(*) from pg_class where relname in ('users', 'tenants', 'messages')");
    assert_eq!(left, 0);
}

#[test]
fn a_view_or_partitioned_table_of_our_name_is_an_error_and_no_crash() {
    let database = database(Server::shared(oldest()));
    let mut owner = database.connect("schema_owner");
    owner.run(
        "create extension pg_conversation;
         set pg_conversation.user_id = '11111111-1111-4111-8111-111111111111';
         alter table users rename to old_users",
    );
    for replacement in [
        "create view users as select * from old_users",
        "create materialized view users as select * from old_users",
        "create table users (like old_users) partition by list (tenant_id)",
    ] {
        owner.run(replacement);
        assert_eq!(owner.error("select current_user_id()").0, "42809", "{replacement}");
        let kind = replacement.split(" users").next().unwrap_or_default().replace("create", "drop");
        owner.run(&format!("{kind} users"));
    }
}

#[test]
fn a_role_without_grants_leaves_no_row_in_users() {
    let server = Server::shared(oldest());
    let database = server.database();
    server.role("nobody_in_particular");
    let mut client = database.connect("nobody_in_particular");
    client.run("set request.jwt.claims = '{\"sub\": \"99999999-9999-4999-8999-999999999999\"}'");
    assert_eq!(client.error("select ensure_user()").0, "42501");
    assert_eq!(database.superuser().value::<i64>("select count(*) from users"), 0);
}

#[test]
fn the_service_gives_no_conversation_to_another_tenant() {
    let database = Server::shared(oldest()).database();
    let mut owner = database.superuser();
    owner.run(
        "insert into tenants (id, name, slug) values ('00000000-0000-4000-8000-0000000000e1', 'One', 'one');
         insert into users (id, tenant_id) values
         ('00000000-0000-4000-8000-00000000000a', default),
         ('00000000-0000-4000-8000-00000000000b', '00000000-0000-4000-8000-0000000000e1');
         insert into conversations (user_id) values ('00000000-0000-4000-8000-00000000000a')",
    );
    let give = "update conversations set user_id = '00000000-0000-4000-8000-00000000000b'";
    assert_eq!(owner.error(give).0, "P0002");
}

#[test]
fn an_answer_does_not_outlive_the_row_it_rests_on_within_one_command() {
    let database = Server::shared(oldest()).database();
    let mut owner = database.superuser();
    owner.run(
        "create function is_me() returns boolean language plpgsql volatile as
             'begin return current_user_id() is not null; end';
         insert into users (id) values ('00000000-0000-4000-8000-00000000000a'),
             ('00000000-0000-4000-8000-00000000000b');
         set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000b'",
    );
    owner.run("begin");
    let seen: Vec<bool> = owner.values(
        "update users set is_active = false where id in ('00000000-0000-4000-8000-00000000000a',
         '00000000-0000-4000-8000-00000000000b') returning is_me()",
    );
    assert_eq!(seen.last(), Some(&false), "{seen:?}");
    assert!(!owner.value::<bool>("select is_me()"));
    owner.run("rollback");
    assert!(owner.value::<bool>("select is_me()"));
}

#[test]
fn a_trigger_of_the_dba_finds_his_tables_and_not_the_callers() {
    let server = Server::private(oldest(), "fsync = off");
    server.role("member");
    server.role("schema_owner");
    let database = server.database();
    database.superuser().run(
        "create table audit (id uuid);
         create function note() returns trigger language plpgsql as $$ begin
             insert into audit values (new.id); return new; end $$;
         create trigger note before insert on users for each row execute function note();
         create trigger note before update on conversations for each row execute function note()",
    );
    let mut member = database.member(pg_conversation_tests::Uuid::new_v4());
    member.run(
        "create temp table audit (id uuid);
         create function pg_temp.promote() returns trigger language plpgsql as $$ begin
             execute 'alter role schema_owner superuser'; return new; end $$;
         create trigger promote before insert on audit for each row execute function pg_temp.promote();
         select ensure_user(); select add_message(create_conversation('x'), 'user', 'y')",
    );
    assert!(!is_superuser(&database));
    assert_eq!(database.superuser().value::<i64>("select count(*) from public.audit"), 2);
}
