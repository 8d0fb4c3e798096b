//! The table of chunks in every shape that its owner may give it.

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, describe, oldest};

use crate::calls::{Ids, make_rows};
use crate::{SERVICE, attempt, fault, grant_service};

/// Runs it and returns the SQLSTATE of its error.
fn code_of(client: &mut Client, sql: &str) -> Result<(), String> {
    client.batch_execute(sql).map_err(|error| match fault(&error) {
        Some(fault) => fault,
        None => error.code().map_or("none".into(), |code| code.code().into()),
    })
}

/// A message from its first chunk to its clean-up, in all ways to write chunks; what became of it.
fn life(client: &mut Client, ids: &Ids, check: &str) -> String {
    match live(client, ids, check) {
        Ok(()) => "works".into(),
        Err(what) => what,
    }
}

fn live(client: &mut Client, ids: &Ids, check: &str) -> Result<(), String> {
    let value = |client: &mut Client, sql: String| -> Result<String, String> {
        let row = client.query_one(&sql, &[]).map_err(|error| match fault(&error) {
            Some(fault) => fault,
            None => error.code().map_or("none".into(), |code| code.code().into()),
        })?;
        Ok(row.get(0))
    };
    let m = value(client, format!("select begin_message('{}')::text", ids.conversation))?;
    let steps = [
        (format!("append_chunk('{m}', 'a')"), 1),
        (format!("append_chunk('{m}', 'b', 1)"), 2),
        (format!("append_chunks('{m}', array['c', 'd', 'e'], 2)"), 5),
        (format!("append_chunks('{m}', array['d', 'e', 'f'], 3)"), 6),
        (format!("append_chunk('{m}', 'a', 0)"), 6),
    ];
    for (call, next) in steps {
        let answer = value(client, format!("select next_index::text from {call}"))?;
        if answer != next.to_string() {
            return Err(format!("{call} answers {answer}"));
        }
    }
    code_of(
        client,
        &format!(
            "insert into message_chunks (message_id, chunk_content) values ('{m}', 'g'), ('{m}', 'h')"
        ),
    )?;
    let read = value(
        client,
        format!("select string_agg(content, '' order by chunk_index) from read_stream('{m}')"),
    )?;
    let text = value(client, format!("select reconstruct_message('{m}')"))?;
    if read != "abcdefgh" || text != "abcdefgh" {
        return Err(format!("reads {read} and {text}"));
    }
    code_of(client, &format!("select append_chunk('{m}', 'i', 8, true)"))?;
    let content =
        value(client, format!("select status || ' ' || content from messages where id = '{m}'"))?;
    if content != "completed abcdefghi" {
        return Err(content);
    }
    if !check.is_empty() && value(client, format!("select ({check})::text"))? != "true" {
        return Err(format!("not {check}"));
    }
    let removed = value(client, format!("select cleanup_streaming_artifacts('{m}')::text"))?;
    if removed != "9" {
        return Err(format!("{removed} chunks were removed"));
    }
    Ok(())
}

struct Shape {
    change: &'static str,
    /// What becomes of a message: `works`, or an SQLSTATE.
    outcome: &'static str,
    /// What must be true of the chunks then.
    check: &'static str,
}

const fn works(change: &'static str) -> Shape {
    honoured(change, "")
}

const fn honoured(change: &'static str, check: &'static str) -> Shape {
    Shape { change, outcome: "works", check }
}

const fn refused(change: &'static str, outcome: &'static str) -> Shape {
    Shape { change, outcome, check: "" }
}

const SHAPES: &[Shape] = &[
    works("select 1"),
    honoured(
        "alter table message_chunks add column source text not null default 'app'",
        "(select bool_and(source = 'app') from message_chunks)",
    ),
    honoured(
        "alter table message_chunks add column nr bigint generated always as identity",
        "(select count(distinct nr) = count(*) from message_chunks)",
    ),
    honoured(
        "alter table message_chunks add column role name not null default current_user",
        "(select bool_and(role = current_user) from message_chunks)",
    ),
    honoured(
        "alter table message_chunks add column length int \
         generated always as (octet_length(chunk_content)) stored",
        "(select bool_and(length = 1) from message_chunks)",
    ),
    honoured(
        "alter table message_chunks add column gone int; alter table message_chunks drop column gone",
        "(select count(*) = 9 from message_chunks)",
    ),
    works(
        "alter table message_chunks alter created_at drop not null, alter is_final drop not null",
    ),
    refused("alter table message_chunks add check (chunk_content <> 'e')", "23514"),
    refused("alter table message_chunks add check (chunk_index < 7) not valid", "23514"),
    refused("alter table message_chunks add column must text not null", "23502"),
    refused(
        "alter table message_chunks add column mine text; alter table message_chunks add check (mine is not null)",
        "23514",
    ),
    refused(
        "create table allowed (id uuid primary key); grant select on allowed to public; \
         alter table message_chunks add foreign key (message_id) references allowed",
        "23503",
    ),
    works(
        "alter table message_chunks add foreign key (message_id) references messages on delete cascade",
    ),
    works(
        "alter table message_chunks add foreign key (message_id) references messages deferrable initially deferred",
    ),
    refused("alter table message_chunks add unique (message_id, is_final)", "23505"),
    works("alter table message_chunks add unique (message_id, chunk_content)"),
    works(
        "alter table message_chunks add unique (message_id, chunk_content) deferrable initially deferred",
    ),
    refused(
        "alter table message_chunks add exclude using btree (message_id with =, is_final with =)",
        "23P01",
    ),
    works("create index on message_chunks using gin (to_tsvector('simple', chunk_content))"),
    works(
        "create index on message_chunks using hash (chunk_content); create index on message_chunks using brin (created_at)",
    ),
    works(
        "create index on message_chunks (lower(chunk_content), (chunk_index % 2)) include (is_final) where not is_final",
    ),
    // An index also takes rows that are dead, while somebody may still see them.
    refused(
        "truncate message_chunks; create index on message_chunks ((1 / (chunk_index - 4)))",
        "22012",
    ),
    honoured(
        "create table log (what text); grant insert, select on log to public; \
         create function note() returns trigger language plpgsql as $$ begin \
             insert into public.log select tg_name; return coalesce(new, old); end $$; \
         create trigger row_before before insert on message_chunks for each row execute function note(); \
         create trigger row_after after insert on message_chunks for each row execute function note(); \
         create trigger all_after after insert on message_chunks execute function note()",
        "(select count(*) from log where what = 'row_before') = 9 \
         and (select count(*) from log where what = 'row_after') = 9 \
         and (select count(*) from log where what = 'all_after') between 5 and 9",
    ),
    honoured(
        "create table log (what text); grant insert, select on log to public; \
         create function note() returns trigger language plpgsql as $$ begin \
             insert into public.log select chunk_content from fresh; return null; end $$; \
         create trigger all_after after insert on message_chunks referencing new table as fresh \
             for each statement execute function note()",
        "(select string_agg(what, '' order by what) from log) = 'abcdefghi'",
    ),
    refused(
        "create function refuse() returns trigger language plpgsql as $$ begin \
             if new.chunk_content = 'd' then raise exception 'no d' using errcode = 'ZZ001', hint = 'None.'; end if; \
             return new; end $$; \
         create constraint trigger refuse after insert on message_chunks deferrable initially deferred \
             for each row execute function refuse()",
        "ZZ001",
    ),
    honoured(
        "create function note() returns trigger language plpgsql as $$ begin \
             new.created_at := '2001-01-01'; return new; end $$; \
         create trigger a before insert on message_chunks for each row execute function note()",
        "(select bool_and(created_at < '2002-01-01') from message_chunks)",
    ),
    honoured(
        "create table log (what text); grant insert, select on log to public; \
         create rule note as on insert to message_chunks do also insert into public.log values (new.chunk_content)",
        "(select string_agg(what, '' order by what) from log) = 'abcdefghi'",
    ),
    works("alter table message_chunks disable trigger refuse_rewrite"),
    works("alter table message_chunks enable always trigger place_chunk"),
    works("alter table message_chunks force row level security"),
    works("create policy more on message_chunks using (true)"),
    works("alter table message_chunks disable row level security"),
    works("alter table message_chunks set unlogged"),
    works(
        "alter table message_chunks set (fillfactor = 10); cluster message_chunks using message_chunks_pkey",
    ),
    works("alter table message_chunks alter chunk_content set storage plain"),
    works("alter table message_chunks alter chunk_content type text collate \"C\""),
    works("alter table message_chunks replica identity full"),
    works("create table child () inherits (message_chunks)"),
    works(
        "alter table message_chunks rename to old_chunks; \
         alter table old_chunks drop constraint message_chunks_pkey; \
         create table message_chunks (chunk_content text not null, is_final bool not null default false, \
             dropped int, chunk_index int not null, message_id uuid not null, \
             created_at timestamptz not null default clock_timestamp(), \
             constraint message_chunks_pkey primary key (message_id, chunk_index)); \
         alter table message_chunks drop column dropped; \
         select migrate(); select grant_access('member'); select grant_access('conc_service', 'service')",
    ),
    works(
        "create table chunks_of_all (like message_chunks including all) partition by range (message_id); \
         alter table chunks_of_all attach partition message_chunks default",
    ),
];

#[test]
fn what_the_owner_adds_to_the_table_of_chunks_is_honoured() {
    let server = Server::shared(oldest());
    let mut wrong = Vec::new();
    for shape in SHAPES {
        let database = server.database();
        grant_service(&database);
        let ids = make_rows(&mut database.member(Uuid::new_v4()));
        let mut owner = database.superuser();
        owner.run(&format!(
            "set client_min_messages = warning; delete from messages where id = '{}'",
            ids.message
        ));
        // Sessions that know the table as it was meet it as it is.
        let mut sessions =
            [database.member(ids.user), database.connect(SERVICE), database.superuser()];
        for session in &mut sessions {
            assert_eq!(life(session, &ids, ""), "works");
        }
        owner.run(shape.change);
        for session in &mut sessions {
            let found = life(session, &ids, shape.check);
            if found != shape.outcome {
                let who: String = session.value("select current_user::text");
                wrong.push(format!("{who}: {:.200}: {found}, not {}", shape.change, shape.outcome));
            }
            owner.run(
                "delete from message_chunks; do $$ begin truncate log; \
                 exception when undefined_table then null; end $$",
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Everything that goes to the table, each in a place of its own.
fn statements(ids: &Ids) -> Vec<String> {
    let (c, m) = (ids.conversation, ids.message);
    vec![
        format!("select append_chunk('{m}', 'x')"),
        format!("select append_chunk('{m}', 'x', 1), append_chunk('{m}', 'x', 2)"),
        format!("select append_chunks('{m}', array['user', 'x', 'y'], 0)"),
        format!("select append_chunks('{m}', array['x', 'y'], 1, true)"),
        format!("select append_chunks('{m}', '{{}}')"),
        format!(
            "insert into message_chunks (message_id, chunk_content) values ('{m}', 'x'), ('{m}', 'y')"
        ),
        format!(
            "insert into message_chunks (message_id, chunk_content, is_final) values ('{m}', 'x', true)"
        ),
        format!("select read_stream('{m}')"),
        format!("select read_stream('{m}', 0)"),
        format!("select read_stream('{m}', 1000)"),
        format!("select wait_for_chunks('{m}', 0, 0)"),
        format!("select reconstruct_message('{m}')"),
        format!("select resume_message('{m}')"),
        format!("select finish_message('{m}', 1, 2, 'a', 3, '{{}}'), finish_message('{m}')"),
        format!("select fail_message('{m}', 'x'), fail_message('{m}', 'x')"),
        format!("select stop_message('{m}', 1), append_chunk('{m}', 'x')"),
        format!("select stop_message('{m}'), cleanup_streaming_artifacts('{m}')"),
        "select recover_stalled_messages('0 s')".into(),
        format!("select recover_stalled_messages('0 s'), resume_message('{m}')"),
        "select cleanup_finished_streams('0 s')".into(),
        format!("select begin_message('{c}'), begin_message('{c}', client_message_id => 'k')"),
        format!("select append_chunk(begin_message('{c}'), 'x')"),
        format!("select has_message_access('{m}', current_user_id(), 'read')"),
        format!("select listen_conversation('{c}')"),
        "select enable_realtime('some_pub', true), disable_realtime('some_pub')".into(),
        "select count(*) from message_chunks".into(),
        format!("delete from messages where id = '{m}'"),
        format!("select purge_conversation('{c}')"),
        "select * from doctor()".into(),
        "select migrate()".into(),
        "select rollback_to(4, true)".into(),
    ]
}

/// Runs every statement after a change, each undone; what was raised in the wrong way.
fn faults_after(client: &mut Client, database: &Database, ids: &Ids, change: &str) -> Vec<String> {
    client.run("begin");
    let mut faults = Vec::new();
    client.run(change);
    for sql in statements(ids) {
        if let Err(error) = attempt(client, &sql) {
            if let Some(fault) = fault(&error) {
                faults.push(format!("{change:.300}\n    {sql}\n    {fault:.400}"));
            }
            if error.as_db_error().is_none() {
                std::thread::sleep(std::time::Duration::from_secs(2));
                *client = session(database, ids);
                return faults;
            }
        }
    }
    client.run("rollback");
    faults
}

fn session(database: &Database, ids: &Ids) -> Client {
    for _ in 0..100 {
        if let Ok(mut client) =
            database.server.config(&database.name, "postgres").connect(postgres::NoTls)
        {
            client.run(&format!(
                "set client_min_messages = warning; set pg_conversation.user_id = '{}'",
                ids.user
            ));
            return client;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the server does not come back");
}

#[test]
fn a_table_of_chunks_that_is_something_else_is_an_error_in_words_and_no_crash() {
    let server = Server::private(oldest(), "fsync = off\nrestart_after_crash = on\n");
    let database = server.database();
    grant_service(&database);
    server.role("conc_other");
    let ids = make_rows(&mut database.member(Uuid::new_v4()));
    let m = ids.message;
    let moved = "alter table message_chunks rename to others; \
                 alter table others rename constraint message_chunks_pkey to others_pkey";
    let columns = "message_id uuid, created_at timestamptz, chunk_index int, is_final bool, chunk_content text";
    let mut changes: Vec<String> = vec![
        "drop table message_chunks cascade".into(),
        "alter table message_chunks rename to others".into(),
        "create schema elsewhere; alter table message_chunks set schema elsewhere".into(),
        "alter table message_chunks owner to conc_other".into(),
        "alter table messages owner to conc_other".into(),
        "truncate message_chunks".into(),
        "delete from message_chunks".into(),
        "alter table message_chunks disable trigger all".into(),
        "set local session_replication_role = replica".into(),
        "drop trigger place_chunk on message_chunks; drop trigger complete_streams on message_chunks".into(),
        "revoke all on message_chunks from public, member, postgres".into(),
        format!("{moved}; create view message_chunks as select * from others"),
        format!("{moved}; create materialized view message_chunks as select * from others"),
        format!("{moved}; create table message_chunks ({columns}) partition by list (message_id)"),
        format!(
            "{moved}; create table message_chunks ({columns}, constraint message_chunks_pkey \
             primary key (message_id, chunk_index)) partition by hash (message_id); \
             create table part partition of message_chunks for values with (modulus 1, remainder 0)"
        ),
        format!("{moved}; create sequence message_chunks"),
        format!("{moved}; create type message_chunks as ({columns})"),
        format!("{moved}; create index message_chunks on others (created_at)"),
        format!(
            "{moved}; create foreign data wrapper none; create server none foreign data wrapper none; \
             create foreign table message_chunks ({columns}) server none"
        ),
        format!("{moved}; create table message_chunks ()"),
        format!("{moved}; create table message_chunks ({columns})"),
        format!("{moved}; create unlogged table message_chunks ({columns}, \
                 constraint message_chunks_pkey primary key (message_id, chunk_index))"),
        // Rows that were written before the columns came.
        format!(
            "{moved}; create table message_chunks (message_id uuid); \
             insert into message_chunks values ('{m}'); \
             alter table message_chunks add created_at timestamptz default now(), add chunk_index int default 0, \
                 add is_final bool default false, add chunk_content text default 'filled in'; \
             alter table message_chunks add constraint message_chunks_pkey primary key (message_id, chunk_index)"
        ),
        format!(
            "{moved}; create table message_chunks (message_id uuid, created_at timestamptz, chunk_index int); \
             insert into message_chunks select '{m}', now(), n from generate_series(0, 300) n; \
             alter table message_chunks add is_final bool, add chunk_content text; \
             alter table message_chunks add constraint message_chunks_pkey primary key (message_id, chunk_index)"
        ),
        // Nulls where there should be none.
        format!(
            "alter table message_chunks alter created_at drop not null, alter is_final drop not null, \
             alter chunk_content drop not null, disable trigger user; \
             insert into message_chunks (message_id, chunk_index, created_at, is_final, chunk_content) \
             values ('{m}', 1, null, null, null), ('{m}', 2, now(), null, 'x'), ('{m}', 3, null, false, 'x')"
        ),
        // Indexes and states that no trigger would have let through.
        format!(
            "set local row_security = off; insert into message_chunks (message_id, chunk_index, chunk_content, is_final) \
             values ('{m}', 2147483647, 'x', false)"
        ),
        format!(
            "set local row_security = off; insert into message_chunks (message_id, chunk_index, chunk_content, is_final) \
             values ('{m}', 2147483646, 'x', true), ('{m}', 1, 'x', true), ('{m}', 2, 'x', true)"
        ),
        format!(
            "set local row_security = off; insert into message_chunks (message_id, chunk_index, chunk_content, is_final) \
             values ('{m}', -1, 'x', false), ('{m}', -2147483648, 'x', true)"
        ),
        format!(
            "set local row_security = off; insert into message_chunks (message_id, chunk_index, chunk_content) \
             values ('00000000-0000-0000-0000-000000000000', 0, 'x'), \
                 ('ffffffff-ffff-ffff-ffff-ffffffffffff', 0, 'x')"
        ),
        // A message that is no row of our making.
        "alter table messages disable trigger all; alter table messages alter content drop not null; \
         update messages set content = null"
            .into(),
        "drop policy messages_read on messages; drop policy messages_insert on messages; \
         alter table messages disable row level security"
            .into(),
        "alter table messages rename to others".into(),
        "alter table messages rename to others; create view messages as select * from others".into(),
        "alter table messages rename column status to state".into(),
        "alter table conversations rename to others".into(),
        "alter type message_status rename value 'streaming' to 'running'".into(),
        "alter type message_status rename to states".into(),
        "alter type message_status rename to states; create type message_status as enum ('streaming')".into(),
        "drop index idx_messages_streaming".into(),
        "alter table messages drop column stream_started_at".into(),
        "alter table messages drop column completed_at".into(),
        "alter table messages drop column content cascade".into(),
        "alter table messages drop column error cascade".into(),
        "alter table messages drop column metadata cascade".into(),
        "alter table messages drop constraint messages_pkey cascade".into(),
        "drop table schema_version".into(),
        "alter table schema_version owner to conc_other".into(),
    ];
    for column in ["message_id", "created_at", "chunk_index", "is_final", "chunk_content"] {
        changes.push(format!("alter table message_chunks drop column {column} cascade"));
        changes.push(format!("alter table message_chunks rename column {column} to something"));
    }
    // Indexes of the right name.
    let unique = "create unique index message_chunks_pkey on message_chunks";
    for index in [
        "select 1".into(),
        format!("{unique} (chunk_content)"),
        format!("{unique} (chunk_index, message_id)"),
        format!("{unique} (message_id desc, chunk_index)"),
        format!("{unique} (message_id, chunk_index desc)"),
        format!("{unique} (message_id nulls first, chunk_index)"),
        format!("{unique} (message_id)"),
        format!("{unique} (message_id) include (chunk_index)"),
        format!("{unique} (created_at) include (message_id, chunk_index)"),
        format!("{unique} (message_id, chunk_index) where chunk_index > 0"),
        format!("{unique} (message_id, chunk_index, is_final)"),
        format!("{unique} ((message_id::text), chunk_index)"),
        format!("{unique} (message_id, (chunk_index + 0))"),
        "create index message_chunks_pkey on message_chunks (message_id, chunk_index)".into(),
        "create index message_chunks_pkey on message_chunks using hash (message_id)".into(),
        "create index message_chunks_pkey on message_chunks using brin (message_id, chunk_index)"
            .into(),
        "create unique index message_chunks_pkey on users (id)".into(),
        "create table message_chunks_pkey (a int)".into(),
    ] {
        changes.push(format!(
            "alter table message_chunks drop constraint message_chunks_pkey; {index}"
        ));
    }
    let unique = "create unique index messages_pkey on messages";
    for index in [
        format!("{unique} (sequence_number, id)"),
        format!("{unique} (id desc)"),
        format!("{unique} (conversation_id, sequence_number) include (id)"),
        format!("{unique} ((id::text))"),
        format!("{unique} (id) where content <> ''"),
        "create index messages_pkey on messages using hash (id)".into(),
        "create unique index messages_pkey on users (id)".into(),
    ] {
        changes
            .push(format!("alter table messages drop constraint messages_pkey cascade; {index}"));
    }
    // Columns of other types, with values in them.
    let bare = "do $$ declare x record; begin \
         for x in select conrelid::regclass as t, conname from pg_constraint where contype in ('c', 'f') \
             and conrelid in ('messages'::regclass, 'message_chunks'::regclass) \
         loop execute format('alter table %s drop constraint %I', x.t, x.conname); end loop; \
         for x in select polrelid::regclass as t, polname from pg_policy \
             where polrelid in ('messages'::regclass, 'message_chunks'::regclass) \
         loop execute format('drop policy %I on %s', x.polname, x.t); end loop; end $$; \
         drop trigger refuse_move on messages; drop index idx_messages_streaming; drop index idx_messages_retry_key";
    for (table, columns) in [
        (
            "message_chunks",
            &["message_id", "created_at", "chunk_index", "is_final", "chunk_content"][..],
        ),
        (
            "messages",
            &[
                "id",
                "conversation_id",
                "tenant_id",
                "status",
                "content",
                "completed_at",
                "stream_started_at",
                "metadata",
                "parts",
                "error",
                "model_used",
                "prompt_token_count",
                "latency_ms",
                "role",
                "parent_id",
                "client_message_id",
                "created_at",
            ],
        ),
    ] {
        for column in columns {
            for (of, value) in [
                ("text", "'5'"),
                ("name", "'5'"),
                ("bytea", "'5'"),
                ("smallint", "5"),
                ("integer", "5"),
                ("bigint", "5"),
                ("float8", "5"),
                ("boolean", "true"),
                ("timestamp", "'2001-01-01'"),
                ("uuid", "'00000000-0000-4000-8000-00000000000a'"),
                ("text[]", "'{a,b}'"),
                ("jsonb", "'\"5\"'"),
            ] {
                changes.push(format!(
                    "{bare}; alter table {table} alter column {column} drop default, \
                     alter column {column} type {of} using {value}::{of}"
                ));
            }
        }
    }
    let mut client = session(&database, &ids);
    let mut faults = Vec::new();
    let mut impossible = 0;
    for change in &changes {
        // Some types cannot be had: an index has no way to order them, or a column is part of a key.
        client.run("begin");
        let possible = client.batch_execute(change);
        client.run("rollback");
        if let Err(error) = possible {
            assert!(change.starts_with(bare), "{change}: {}", describe(&error));
            impossible += 1;
            continue;
        }
        faults.extend(faults_after(&mut client, &database, &ids, change));
    }
    println!("{} changes, {impossible} impossible", changes.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    // All was put back, for those who saw it, too.
    client.run("delete from message_chunks");
    assert_eq!(life(&mut client, &ids, ""), "works");
}
