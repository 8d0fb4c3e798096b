//! Streams written and read from wherever SQL lets a function be called.

use pg_conversation_tests::{
    Client, Database, Server, Session, Uuid, describe, oldest, wait_until,
};

use crate::calls::{Ids, functions, make_rows};
use crate::fault;

fn prepare(database: &Database) -> (Client, Ids) {
    let ids = make_rows(&mut database.member(Uuid::new_v4()));
    let mut owner = database.superuser();
    owner.run(&format!(
        "set client_min_messages = warning; set pg_conversation.user_id = '{}'",
        ids.user
    ));
    (owner, ids)
}

fn text(client: &mut Client, message: Uuid) -> String {
    let text: Option<String> = client.value(&format!("select reconstruct_message('{message}')"));
    text.unwrap_or_default()
}

/// Statements over the message `$m`, which has the chunk `user`; the last one's SQLSTATE, or `ok`; its
/// text then, without that chunk.
const CASES: &[(&[&str], &str, &str)] = &[
    // Constraints, defaults, domains, indexes.
    (
        &[
            "create table t (m uuid, c text, check ((append_chunk(m, c)).next_index > 0))",
            "insert into t values ('$m', 'a'), ('$m', 'b')",
        ],
        "ok",
        "ab",
    ),
    (
        &[
            "create table t (m uuid, c text, check ((append_chunk(m, c)).next_index < 3))",
            "insert into t values ('$m', 'a'), ('$m', 'b')",
        ],
        "23514",
        "",
    ),
    (
        &[
            "create table t (n int default (append_chunk('$m', 'a')).next_index)",
            "insert into t default values; insert into t values (default), (7); table t",
        ],
        "ok",
        "aa",
    ),
    (
        &[
            "create domain streamed as text check ((append_chunk('$m', value)).next_index > 0)",
            "select 'a'::streamed, 'b'::text::streamed",
        ],
        "ok",
        "ab",
    ),
    (&["create index on messages (reconstruct_message(id))"], "42P17", ""),
    (
        &["create table t (m uuid, c text generated always as (reconstruct_message(m)) stored)"],
        "42P17",
        "",
    ),
    (&["create table t (m uuid) partition by list (reconstruct_message(m))"], "42P17", ""),
    (&["create table t (m uuid, check (read_stream(m) is not null))"], "0A000", ""),
    // Places in a statement.
    (
        &[
            "create table t (c text)",
            "insert into t values ('a'), ('b') returning append_chunk('$m', c)",
        ],
        "ok",
        "ab",
    ),
    (
        &["select append_chunk('$m', c) from (values ('a'), ('b')) v (c) order by c desc"],
        "ok",
        "ba",
    ),
    (&["select (append_chunk('$m', 'a')).*"], "ok", "aa"),
    (
        &[
            "select * from append_chunk('$m', 'a') a, lateral append_chunk('$m', a.next_index::text) b",
        ],
        "ok",
        "a2",
    ),
    (
        &["select id from messages where (append_chunk(id, 'a')).next_index > 0 and id = '$m'"],
        "ok",
        "a",
    ),
    (
        &["select count(*) from messages m left join lateral append_chunk(m.id, 'a') on true \
           where m.status = 'streaming' group by m.id having count(append_chunk(m.id, 'b')) > 0"],
        "ok",
        "ab",
    ),
    (
        &[
            "with a as (insert into message_chunks (message_id, chunk_content) values ('$m', 'a') returning chunk_index) \
           select append_chunk('$m', 'b'), reconstruct_message('$m') from a",
        ],
        "ok",
        "ab",
    ),
    (
        &[
            "with a as (select append_chunk('$m', 'a')), b as (select append_chunk('$m', 'b')) select * from a, b",
        ],
        "ok",
        "ab",
    ),
    (
        &[
            "with recursive r (n) as (select 1 union all select (append_chunk('$m', n::text)).next_index from r \
           where n < 5) select * from r",
        ],
        "ok",
        "1234",
    ),
    (
        &["insert into message_chunks (message_id, chunk_content, chunk_index) \
           select '$m', 'x', (append_chunk('$m', n::text)).next_index + 10 from generate_series(1, 3) n"],
        "ok",
        "1",
    ),
    (
        &["insert into message_chunks (message_id, chunk_content) \
           select '$m', (append_chunk('$m', n::text)).next_index::text from generate_series(1, 3) n"],
        "ok",
        "122436",
    ),
    (
        &[
            "update messages set content = 'x' where (append_chunk(id, 'a')).next_index > 0 and id = '$m'",
        ],
        "ok",
        "a",
    ),
    (
        &["delete from messages where id = '$m' and (append_chunk(id, 'a')).next_index > 0"],
        "ok",
        "",
    ),
    (
        &["select finish_message(id), append_chunk(id, 'a') from messages where id = '$m'"],
        "24000",
        "",
    ),
    (&["select append_chunk('$m', 'a', is_final => true), stop_message('$m')"], "24000", ""),
    (&["create table t as select * from append_chunk('$m', 'a')"], "ok", "a"),
    (
        &[
            "create materialized view t as select (append_chunk('$m', 'a')).next_index",
            "refresh materialized view t",
        ],
        "ok",
        "aa",
    ),
    (
        &[
            "create view t as select (append_chunk('$m', 'a')).next_index",
            "table t; explain table t; explain analyze table t",
        ],
        "ok",
        "aa",
    ),
    (&["copy (select append_chunk('$m', 'a')) to '/dev/null'"], "ok", "a"),
    (&["values (append_chunk('$m', 'a')), (append_chunk('$m', 'b'))"], "ok", "ab"),
    (
        &["select pg_typeof(append_chunk('$m', 'a')), row_to_json(append_chunk('$m', 'b'))"],
        "ok",
        "ab",
    ),
    (
        &[
            "prepare p (uuid, text) as select append_chunk($1, $2)",
            "execute p ('$m', 'a')",
            "execute p ('$m', 'b'); \
        execute p ('$m', 'c'); execute p ('$m', 'd'); execute p ('$m', 'e'); execute p ('$m', 'f'); deallocate p",
        ],
        "ok",
        "abcdef",
    ),
    (&["call append_chunk('$m', 'a', 1, true)"], "42809", ""),
    // Cursors.
    (
        &[
            "begin",
            "declare c cursor for select append_chunk('$m', n::text) from generate_series(1, 9) n",
            "fetch 3 from c; close c; commit",
        ],
        "ok",
        "123",
    ),
    (
        &[
            "begin",
            "declare c cursor for select content from read_stream('$m')",
            "select append_chunk('$m', 'a'), finish_message('$m'), cleanup_streaming_artifacts('$m')",
            "fetch all from c; commit",
        ],
        "ok",
        "a",
    ),
    (
        &[
            "begin",
            "declare c cursor for select id from messages where id = '$m' for update",
            "fetch c; select append_chunk('$m', 'a'), finish_message('$m'); \
           update messages set error = 'x' where current of c; commit",
        ],
        "ok",
        "a",
    ),
    // Blocks that catch errors, commit and roll back.
    (
        &["do $$ begin \
               begin perform append_chunk('$m', 'lost'); raise exception 'no'; exception when others then null; end; \
               begin perform append_chunk('$m', 'far', 9); exception when object_not_in_prerequisite_state then null; end; \
               perform append_chunk('$m', 'a', 1); \
               begin perform append_chunk('$m', 'other', 1); exception when unique_violation then null; end; \
               perform append_chunk('$m', 'b', 2); end $$"],
        "ok",
        "ab",
    ),
    (
        &["do $$ begin for n in 1..9 loop perform append_chunk('$m', n::text, n); \
               if n % 3 = 0 then commit; elsif n % 3 = 1 then perform reconstruct_message('$m'); end if; end loop; end $$"],
        "ok",
        "123456789",
    ),
    (
        &[
            "do $$ begin perform append_chunk('$m', 'a'); commit; perform append_chunk('$m', 'b'); rollback; \
               perform append_chunk('$m', 'c'); end $$",
        ],
        "ok",
        "ac",
    ),
    (
        &["do $$ begin perform finish_message('$m'); raise division_by_zero; \
               exception when division_by_zero then perform append_chunk('$m', 'a'); end $$"],
        "ok",
        "a",
    ),
    (
        &[
            "begin; select append_chunk('$m', 'a'); savepoint s; select append_chunk('$m', 'b'); rollback to s; \
           select append_chunk('$m', 'c', 2); savepoint t; select finish_message('$m'); rollback to t; \
           select append_chunk('$m', 'd'); release t; release s; commit",
        ],
        "ok",
        "acd",
    ),
    (
        &["begin; select append_chunk('$m', 'a'); select 1 / 0", "select append_chunk('$m', 'b')"],
        "25P02",
        "",
    ),
    (
        &[
            "alter table message_chunks add constraint no_b check (chunk_content <> 'b')",
            "do $$ begin perform append_chunk('$m', 'a'); \
               begin perform append_chunks('$m', array['x', 'b']); exception when check_violation then null; end; \
               insert into message_chunks (message_id, chunk_content) values ('$m', 'c'); \
               perform append_chunk('$m', 'd', 3); end $$",
        ],
        "ok",
        "acd",
    ),
    // Triggers and rules.
    (
        &[
            "create table t (c text); create function f() returns trigger language plpgsql as \
           $$ begin perform append_chunk('$m', new.c); return new; end $$; \
           create trigger f before insert on t for each row execute function f(); \
           create constraint trigger g after insert on t deferrable initially deferred \
           for each row execute function f()",
            "insert into t values ('a'), ('b')",
        ],
        "ok",
        "abab",
    ),
    (
        &[
            "create table t (c text); create view v as table t; \
           create rule r as on insert to v do instead select append_chunk('$m', new.c)",
            "insert into v values ('a'), ('b')",
        ],
        "ok",
        "ab",
    ),
    (
        &[
            "create function f() returns trigger language plpgsql as \
           $$ begin if new.chunk_content = 'a' then perform append_chunk('$m', 'b'); end if; return new; end $$; \
           create trigger f after insert on message_chunks for each row execute function f()",
            "select append_chunk('$m', 'a'), append_chunk('$m', 'c')",
        ],
        "ok",
        "abc",
    ),
    (
        &[
            "create function f() returns trigger language plpgsql as \
           $$ declare other uuid; begin \
               select id into other from messages where status = 'streaming' and id <> new.message_id; \
               if other is null then other := begin_message('$c'); end if; \
               if new.message_id = '$m' then perform append_chunk(other, new.chunk_content); end if; \
               return new; end $$; \
           create trigger f before insert on message_chunks for each row execute function f()",
            "select append_chunks('$m', array['a', 'b', 'c']), append_chunk('$m', 'd')",
            "select 1 / (reconstruct_message(id) = 'abcd')::int from messages \
           where status = 'streaming' and id <> '$m'",
        ],
        "ok",
        "abcd",
    ),
    (
        &[
            "create function f() returns trigger language plpgsql as \
           $$ begin new.metadata := new.metadata || jsonb_build_object('said', reconstruct_message(new.id)); \
               return new; end $$; \
           create trigger f before update on messages for each row execute function f()",
            "select append_chunk('$m', 'a'), finish_message('$m')",
            "select 1 / (metadata ->> 'said' = 'usera')::int from messages where id = '$m'",
        ],
        "ok",
        "a",
    ),
    (
        &[
            "create function f() returns trigger language plpgsql as \
           $$ begin perform append_chunk(new.id, 'late'); return new; end $$; \
           create trigger f after update on messages for each row execute function f()",
            "select finish_message('$m')",
        ],
        "24000",
        "",
    ),
    (
        &[
            "create function f() returns trigger language plpgsql as \
           $$ begin perform finish_message(new.message_id); return new; end $$; \
           create trigger f after insert on message_chunks for each row execute function f()",
            "select append_chunk('$m', 'a')",
        ],
        "ok",
        "a",
    ),
    (
        &[
            "create function f() returns trigger language plpgsql as \
           $$ begin delete from messages where id = new.message_id; return new; end $$; \
           create trigger f after insert on message_chunks for each row execute function f()",
            "select append_chunk('$m', 'a')",
        ],
        "ok",
        "",
    ),
    (
        &[
            "create function f() returns trigger language plpgsql as \
           $$ begin perform append_chunk(old.id, 'last words'); return old; end $$; \
           create trigger a before delete on messages for each row execute function f()",
            "delete from messages where id = '$m'",
        ],
        "ok",
        "",
    ),
    // Policies of the user's own tables.
    (
        &[
            "create table t (m uuid); insert into t values ('$m'); alter table t enable row level security; \
           create policy p on t using ((append_chunk(m, 'a')).next_index > 0); grant select on t to member",
            "begin; set local role member; select 1 / count(*) from t; commit",
        ],
        "ok",
        "a",
    ),
    // Rights that change on the way.
    (
        &[
            "begin; select append_chunk('$m', 'a'); set local role member; set local pg_conversation.user_id = ''; \
           select append_chunk('$m', 'b')",
        ],
        "P0002",
        "",
    ),
    (
        &[
            "begin; select append_chunk('$m', 'a'); set local role member; select append_chunk('$m', 'b'); \
           set local pg_conversation.user_id = '00000000-0000-4000-8000-00000000dead'; \
           insert into message_chunks (message_id, chunk_content) values ('$m', 'c')",
        ],
        "P0002",
        "",
    ),
    (
        &[
            "create function f() returns text language sql security definer as \
           $$ select append_chunk('$m', 'a')::text $$",
            "begin; set local role member; set local pg_conversation.user_id = ''; select f(); commit",
        ],
        "ok",
        "a",
    ),
    // Changes of the table on the way.
    (
        &[
            "begin; select append_chunk('$m', 'a'); alter table message_chunks add column own text default 'x'; \
           select append_chunk('$m', 'b'); alter table message_chunks drop column own; select append_chunk('$m', 'c'); \
           commit",
            "select append_chunk('$m', 'd')",
        ],
        "ok",
        "abcd",
    ),
    (
        &[
            "select append_chunk('$m', 'a')",
            "vacuum full message_chunks",
            "reindex table message_chunks",
            "cluster message_chunks using message_chunks_pkey",
            "vacuum full messages",
            "select append_chunk('$m', 'b')",
        ],
        "ok",
        "ab",
    ),
    (
        &[
            "begin; select append_chunk('$m', 'a'); truncate message_chunks; select append_chunk('$m', 'b'); commit",
            "select append_chunk('$m', 'c', 1)",
        ],
        "ok",
        "bc without the first",
    ),
    (
        &[
            "begin; select append_chunk('$m', 'a'); drop extension pg_conversation cascade; \
           create extension pg_conversation; select append_chunk('$m', 'b'); commit",
            "select append_chunk('$m', 'c')",
        ],
        "ok",
        "abc",
    ),
    (
        &[
            "alter table message_chunks disable trigger all",
            "select append_chunks('$m', array['a', 'b']), finish_message('$m')",
        ],
        "ok",
        "ab",
    ),
    (
        &[
            "begin; set local session_replication_role = replica; select append_chunk('$m', 'a', is_final => true); commit",
        ],
        "ok",
        "a",
    ),
    (
        &[
            "begin isolation level repeatable read; select append_chunk('$m', 'a'); select reconstruct_message('$m'); \
           select finish_message('$m'); commit",
        ],
        "ok",
        "a",
    ),
    (
        &[
            "begin isolation level serializable; select append_chunk('$m', 'a'); select * from wait_for_chunks('$m', 0); \
           select stop_message('$m', 4), append_chunk('$m', 'x'); commit",
        ],
        "ok",
        "",
    ),
];

#[test]
fn streams_are_written_from_anywhere_and_lose_nothing() {
    let server = Server::shared(oldest());
    let mut wrong = Vec::new();
    for (statements, outcome, expected) in CASES {
        let database = server.database();
        let (mut client, ids) = prepare(&database);
        let mut found = "ok".to_string();
        for sql in *statements {
            let sql = sql
                .replace("$m", &ids.message.to_string())
                .replace("$c", &ids.conversation.to_string());
            if let Err(error) = client.batch_execute(&sql) {
                found = match fault(&error) {
                    Some(fault) => fault,
                    None => describe(&error),
                };
            }
        }
        client.run("rollback");
        let expected = match expected.strip_suffix(" without the first") {
            Some(rest) => rest.to_string(),
            None => format!("user{expected}"),
        };
        // Whoever looks sees the same, and can go on behind it.
        let mut other = database.superuser();
        let gone: bool =
            other.value(&format!("select count(*) = 0 from messages where id = '{}'", ids.message));
        let texts = if gone {
            vec![expected.clone()]
        } else {
            [&mut client, &mut other].into_iter().map(|client| text(client, ids.message)).collect()
        };
        if !found.starts_with(outcome) || texts.iter().any(|text| *text != expected) {
            wrong.push(format!(
                "{statements:#?}\n    {found}, not {outcome}; {texts:?}, not {expected:?}"
            ));
        }
        let left: i64 = other.value(
            "select count(*) from message_chunks c \
             where not exists (select from messages m where m.id = c.message_id)",
        );
        if left > 0 {
            wrong.push(format!("{statements:#?}\n    leaves {left} chunks behind"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_prepared_transaction_holds_its_message_and_no_listener() {
    let database = Server::shared(oldest()).database();
    let (mut owner, ids) = prepare(&database);
    let (c, m) = (ids.conversation, ids.message);
    let name = format!("stream_{}", database.name);
    for end in ["commit", "rollback"] {
        let before = text(&mut owner, m);
        owner.run(&format!(
            "begin; select append_chunk('{m}', ' a'); select append_chunk('{m}', ' b'); prepare transaction '{name}'"
        ));
        assert_eq!(text(&mut owner, m), before);
        let mut other = database.superuser();
        other.run("set lock_timeout = '100 ms'");
        for sql in [
            format!("select append_chunk('{m}', ' c')"),
            format!("select stop_message('{m}')"),
            format!("insert into message_chunks (message_id, chunk_content) values ('{m}', ' c')"),
        ] {
            assert_eq!(other.error(&sql).0, "55P03", "{sql}");
            assert_eq!(
                owner.error(&format!("set lock_timeout = '100 ms'; {sql}")).0,
                "55P03",
                "{sql}"
            );
        }
        // It is skipped, not waited for.
        assert_eq!(other.value::<i32>("select recover_stalled_messages('0 s')"), 0);
        owner.run(&format!("{end} prepared '{name}'"));
        let expected = if end == "commit" { before + " a b" } else { before };
        assert_eq!(text(&mut owner, m), expected);
        owner.run(&format!("select append_chunk('{m}', ' c')"));
        assert_eq!(text(&mut other, m), expected + " c");
    }
    // The end of a message, too.
    owner.run(&format!("begin; select finish_message('{m}'); prepare transaction '{name}'"));
    assert_eq!(
        owner.value::<String>(&format!("select status::text from messages where id = '{m}'")),
        "streaming"
    );
    owner.run(&format!("commit prepared '{name}'"));
    assert_eq!(
        owner.value::<String>(&format!("select status::text from messages where id = '{m}'")),
        "completed"
    );

    let listeners = "select count(*) = 0 from pg_locks where locktype = 'advisory' and objsubid = 103 \
                     and database = (select oid from pg_database where datname = current_database())";
    let refused = |owner: &mut Client, sql: &str| {
        let (code, _) = owner.error(&format!("begin; {sql}; prepare transaction '{name}'"));
        assert_eq!(code, "0A000", "{sql}");
        owner.run("rollback");
    };
    refused(&mut owner, &format!("select listen_conversation('{c}')"));
    assert!(owner.value::<bool>(listeners));
    owner.run(&format!("select listen_conversation('{c}')"));
    refused(&mut owner, &format!("select unlisten_conversation('{c}')"));
    assert!(!owner.value::<bool>(listeners));
    let m: Uuid = owner.value(&format!("select begin_message('{c}')"));
    owner.run(&format!("begin; select append_chunk('{m}', 'a'); prepare transaction '{name}'"));
    owner.run(&format!("commit prepared '{name}'"));
    assert!(!owner.value::<bool>(listeners));
    assert_eq!(
        owner.value::<i64>(
            "select count(*) from pg_prepared_xacts where database = current_database()"
        ),
        0
    );
    owner.run("discard all");
    wait_until(&mut owner, listeners);
}

#[test]
fn a_read_only_transaction_reads_streams_and_changes_nothing() {
    let database = Server::shared(oldest()).database();
    let (mut owner, ids) = prepare(&database);
    let (c, m) = (ids.conversation, ids.message);
    owner.run(&format!(
        "insert into messages (id, conversation_id, role, status) \
                        values ('{}', '{c}', 'assistant', 'pending')",
        Uuid::new_v4()
    ));
    let all = "select md5(string_agg(t::text, ',')) from (select m::text from messages m \
               union all select c::text from message_chunks c order by 1) s (t)";
    let before: String = owner.value(all);
    let pending: Uuid = owner.value("select id from messages where status = 'pending'");
    for (sql, allowed) in [
        (format!("select append_chunk('{m}', 'x')"), false),
        (format!("select append_chunk('{m}', 'user', 0)"), false),
        (format!("select append_chunk('{pending}', 'x')"), false),
        (format!("select append_chunks('{m}', array['x', 'y'], 1, true)"), false),
        (
            format!("insert into message_chunks (message_id, chunk_content) values ('{m}', 'x')"),
            false,
        ),
        (format!("select begin_message('{c}')"), false),
        (format!("select finish_message('{m}')"), false),
        (format!("select fail_message('{m}', 'x')"), false),
        (format!("select stop_message('{m}')"), false),
        (format!("select resume_message('{m}')"), false),
        (format!("select cleanup_streaming_artifacts('{m}')"), false),
        ("select recover_stalled_messages('0 s')".into(), false),
        ("select cleanup_finished_streams('0 s')".into(), false),
        ("select enable_realtime('x_pub')".into(), false),
        (format!("select * from read_stream('{m}')"), true),
        (format!("select * from wait_for_chunks('{m}')"), true),
        (format!("select * from wait_for_chunks('{m}', 0, 10)"), true),
        (format!("select reconstruct_message('{m}')"), true),
        (format!("select has_message_access('{m}', current_user_id(), 'read')"), true),
        ("select * from message_chunks".into(), true),
    ] {
        // Known to the session, and not.
        for warm in ["select 1", &format!("begin; select append_chunk('{m}', 'x'); rollback")] {
            for mut client in [database.member(ids.user), database.superuser()] {
                client.run(warm);
                let result = client.batch_execute(&format!("begin read only; {sql}"));
                match result {
                    Ok(()) => assert!(allowed, "{sql} was accepted"),
                    Err(error) => {
                        assert_eq!(fault(&error), None, "{sql}");
                        let code = error.code().map_or("none", |code| code.code());
                        let expected = ["25006", "42501"].contains(&code);
                        assert!(!allowed && expected, "{sql}: {}", describe(&error));
                    }
                }
                client.run("rollback");
            }
        }
    }
    assert_eq!(owner.value::<String>(all), before);
}

#[test]
fn parallel_workers_read_streams_and_never_write_them() {
    let database = Server::shared(oldest()).database();
    let (mut owner, ids) = prepare(&database);
    let (c, m) = (ids.conversation, ids.message);
    owner.run(&format!(
        "select append_chunks(begin_message('{c}'), array['stream ', n::text, ' of many']) from generate_series(1, 300) n; \
         update messages set status = 'completed', content = reconstruct_message(id) \
         where sequence_number % 3 = 0 and status = 'streaming'; analyze messages; analyze message_chunks"
    ));
    let version = database.server.version;
    let forced = if version < 16 { "force_parallel_mode" } else { "debug_parallel_query" };
    let everything = "select count(*)::text || ' ' || md5(string_agg(t, ',' order by t)) from ( \
         select id || reconstruct_message(id) \
             || coalesce((select string_agg(r::text, ';') from read_stream(id) r), '') \
         from messages) s (t)";
    let chunks = "select count(*)::text || ' ' || sum(length(chunk_content)) from message_chunks";
    for mut client in
        [database.superuser(), database.member(ids.user), database.member(Uuid::new_v4())]
    {
        client.run("set client_min_messages = warning");
        let mut answers = Vec::new();
        for settings in [
            "reset all".to_string(),
            "set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0; \
             set min_parallel_index_scan_size = 0; set max_parallel_workers_per_gather = 4"
                .into(),
            format!("set {forced} = on"),
        ] {
            let user: Option<String> = client.value("select current_setting('pg_conversation.user_id', true)");
            client.run(&settings);
            client.run(&format!("set pg_conversation.user_id = '{}'", user.unwrap_or_default()));
            answers.push((client.value::<Option<String>>(everything), client.value::<Option<String>>(chunks)));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
    // What writes is planned without workers, and what is forced on them is an error and no crash.
    owner.run(&format!("set {forced} = on; set parallel_setup_cost = 0"));
    owner.run(&format!("select append_chunk('{m}', ' a') from messages limit 1"));
    owner.run("select * from wait_for_chunks((select id from messages where status = 'streaming' limit 1), 0, 10)");
    let writing: Vec<String> = owner.values(
        "select p.oid::regprocedure::text from pg_proc p join pg_depend d on d.objid = p.oid and d.deptype = 'e' \
         and d.classid = 'pg_proc'::regclass \
         and d.refobjid = (select oid from pg_extension where extname = 'pg_conversation') \
         where (p.provolatile <> 'v') <> (p.proparallel = 's') and p.prorettype <> 'internal'::regtype \
         /* asked once in a while, by those who keep house */ \
         and p.proname not in ('verify_usage', 'backlog', 'count_test_data')",
    );
    assert_eq!(writing, ["new_id()"], "either stable and parallel safe, or neither");
    owner.run("create table t (m uuid); insert into t select id from messages; analyze t");
    for function in functions(&mut database.superuser()) {
        let of_a_message = [
            "append_chunk",
            "finish_message",
            "stop_message",
            "resume_message",
            "fail_message",
            "cleanup_streaming_artifacts",
            "wait_for_chunks",
        ];
        if !of_a_message.contains(&function.name.as_str()) {
            continue;
        }
        owner.run("begin");
        owner.run(&format!(
            "do $$ declare f record; begin for f in select oid::regprocedure as p from pg_proc \
             where proname = '{}' loop execute format('alter function %s parallel safe', f.p); end loop; end $$",
            function.name
        ));
        let second = match function.name.as_str() {
            "append_chunk" | "fail_message" => ", 'x'",
            "wait_for_chunks" => ", 1000, 0",
            _ => "",
        };
        let error = owner.batch_execute(&format!("select {}(m{second}) from t", function.name));
        if let Err(error) = error {
            let words = describe(&error);
            // Postgres' own check that nobody writes in a worker has no class of its own.
            let known = ["25000", "25006", "24000", "P0002", "0A000", "55000"];
            let code = error.code().map_or("none", |code| code.code());
            assert!(
                known.contains(&code) || words.contains("parallel"),
                "{}: {words}",
                function.name
            );
        }
        owner.run("rollback");
    }
    owner.run(&format!("reset all; select append_chunk('{m}', ' b', 2), finish_message('{m}')"));
    assert_eq!(text(&mut owner, m), "user a b");
}
