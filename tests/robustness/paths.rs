//! Objects of a hostile caller that bear the names we use.

use pg_conversation_tests::{Database, Server, Session, Uuid, describe, oldest};

use crate::calls::{Ids, functions, make_rows};
use crate::{attempt, fault};

const MALLORY: &str = "conc_mallory";
const COLLEAGUE: &str = "00000000-0000-4000-8000-0000000000c0";

/// Functions that answer as the real ones do, but not for anybody else than Mallory.
const TRAPS: &str = r"
do $do$
declare
    real record;
    names text[];
    body text := $body$ begin
        if current_user operator(pg_catalog.<>) 'conc_mallory' then
            raise exception 'trap sprung as %%', current_user using errcode = 'ZZ666';
        end if;
        return %s;
    end $body$;
begin
    -- Every operator and plain function over the types that we work with.
    for real in
        select o.oprname as name, o.oprleft::regtype::text as l, o.oprright::regtype::text as r,
            o.oprresult::regtype::text as result, row_number() over () as n
        from pg_operator o
        where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprleft <> 0
        and o.oprleft::regtype::text in ('uuid', 'text', 'integer', 'bigint', 'boolean', 'jsonb', 'name',
            'timestamp with time zone', 'oid', 'char', 'character', 'interval', 'text[]')
        and o.oprright::regtype::text in (o.oprleft::regtype::text, 'interval')
    loop
        execute format('create function his.trap_%s(a %s, b %s) returns %s language plpgsql as %L',
            real.n, real.l, real.r, real.result, format(body, format('a operator(pg_catalog.%s) b', real.name)));
        execute format('create operator his.%s (leftarg = %s, rightarg = %s, function = his.trap_%s)',
            real.name, real.l, real.r, real.n);
    end loop;
    for real in
        select p.proname as name, p.oid, pg_get_function_identity_arguments(p.oid) as args,
            p.prorettype::regtype::text as result, p.pronargs as n, p.proretset
        from pg_proc p
        where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset
        and p.provariadic = 0
        and p.proname = any (array['lower', 'now', 'octet_length', 'char_length', 'length', 'jsonb_typeof',
            'to_regclass', 'to_regrole', 'pg_has_role', 'current_setting', 'set_config', 'encode', 'sha256',
            'convert_to', 'replace', 'quote_ident', 'current_database', 'repeat', 'left', 'right', 'md5',
            'clock_timestamp', 'unnest', 'cardinality', 'array_length', 'pg_backend_pid', 'substr'])
        and 'internal'::regtype <> all (p.proargtypes) and 'cstring'::regtype <> all (p.proargtypes)
    loop
        execute format('create function his.%I(%s) returns %s language plpgsql as %L',
            real.name,
            (select coalesce(string_agg(format('a%s %s', u.n, u.t::regtype), ', ' order by u.n), '')
             from pg_proc p, unnest(p.proargtypes) with ordinality u (t, n) where p.oid = real.oid),
            real.result,
            format(body, format('pg_catalog.%I(%s)', real.name,
                (select coalesce(string_agg(format('a%s', n), ', ' order by n), '')
                 from generate_series(1, real.n) n))));
    end loop;
end $do$;
create table his.messages (id uuid, conversation_id uuid, role text, content text);
create table his.conversations (id uuid, tenant_id uuid, user_id uuid, title text);
create table his.users (id uuid, auth_id uuid, tenant_id uuid);
create table his.tenants (id uuid, name text);
create table his.conversation_members (conversation_id uuid, user_id uuid);
create table his.message_chunks (message_id uuid, created_at timestamptz, chunk_index int, is_final bool,
    chunk_content text);
create table his.schema_version (version int);
create table his.message_revisions (message_id uuid, revision int, tenant_id uuid, content text, parts jsonb,
    edited_by uuid, replaced_at timestamptz);
create table his.access_profiles (role_name text, profile text, granted_at timestamptz);
create type his.message_role as enum ('user');
create type his.message_status as enum ('streaming');
create function his.new_id() returns uuid language plpgsql as $$ begin
    if current_user operator(pg_catalog.<>) 'conc_mallory' then raise exception 'trap' using errcode = 'ZZ666'; end if;
    return '00000000-0000-0000-0000-000000000000'::uuid; end $$;
create function his.current_user_id() returns uuid language sql as 'select his.new_id()';
create function his.current_tenant_id() returns uuid language sql as 'select his.new_id()';
create function his.has_conversation_access(uuid, uuid, text) returns boolean language plpgsql as
    $$ begin return his.new_id() is not null; end $$;
create function his.has_message_access(uuid, uuid, text) returns boolean language plpgsql as
    $$ begin return his.new_id() is not null; end $$;
create function his.may_edit_messages() returns boolean language plpgsql as
    $$ begin return his.new_id() is not null; end $$;
create function his.is_tenant_admin() returns boolean language plpgsql as
    $$ begin return his.new_id() is not null; end $$;
create function his.readable_conversations(uuid) returns uuid[] language plpgsql as
    $$ begin return array[his.new_id()]; end $$;
create function his.note_access(text, text) returns void language plpgsql as
    $$ begin perform his.new_id(); end $$;
create function his.revoke_all(text) returns void language plpgsql as
    $$ begin perform his.new_id(); end $$;
create function his.require_owner() returns void language plpgsql as
    $$ begin perform his.new_id(); end $$;
create function his.access_privileges() returns table (profile text, verbs text, relation text)
    language plpgsql as $$ begin perform his.new_id(); end $$;
create function his.append_chunk(uuid, text, int, bool) returns boolean language plpgsql as
    $$ begin return his.new_id() is not null; end $$;
create function his.reconstruct_message(uuid) returns text language plpgsql as
    $$ begin return his.new_id(); end $$;
grant all on schema his to public;
grant all on all tables in schema his to public";

const TEMPORARY: &str = "
create temp table messages (like his.messages); create temp table conversations (like his.conversations);
create temp table users (like his.users); create temp table tenants (like his.tenants);
create temp table schema_version (like his.schema_version);
create temp table message_chunks (like his.message_chunks);
create temp table conversation_members (like his.conversation_members);
create temp table message_revisions (like his.message_revisions);
create temp table access_profiles (like his.access_profiles)";

fn set_up(database: &Database) -> Ids {
    let user = Uuid::new_v4();
    database.server.role(MALLORY);
    database.superuser().run(&format!(
        "create schema his authorization {MALLORY}; select chat.grant_access('{MALLORY}'); \
         update chat.tenants set features = '{{\"edit_messages\": true}}'; \
         insert into chat.users (id) values ('{COLLEAGUE}')"
    ));
    let mut mallory = database.connect(MALLORY);
    mallory.run(TRAPS);
    mallory.run(&format!("set search_path = chat; set pg_conversation.user_id = '{user}'"));
    make_rows(&mut mallory)
}

#[test]
fn objects_of_the_caller_never_run_with_the_rights_of_the_owner() {
    let database = Server::shared(oldest()).empty_database();
    database
        .superuser()
        .run("create schema chat; create extension pg_conversation with schema chat");
    let ids = set_up(&database);
    let (c, user, m) = (ids.conversation, ids.user, ids.message);
    let functions: Vec<_> = {
        let mut client = database.superuser();
        client.run("set search_path = nowhere");
        functions(&mut client)
    };
    assert!(functions.iter().all(|function| function.name.starts_with("chat.")));
    let mut statements = vec![
        "insert into chat.conversations (title) values ('x')".to_string(),
        format!(
            "insert into chat.messages (conversation_id, role, content) values ('{c}', 'user', 'x')"
        ),
        format!(
            "insert into chat.messages (conversation_id, role, client_message_id, parent_id) \
             select '{c}', 'user', 'k', m.id from chat.messages m limit 1"
        ),
        format!(
            "insert into chat.messages (id, conversation_id, role, content) \
             values ('{user}', '{c}', 'user', 'x') on conflict do nothing"
        ),
        "update chat.conversations set title = 'y', visibility = 'tenant'".into(),
        "update chat.users set name = 'n'".into(),
        "update chat.conversations set id = null".into(),
        "delete from chat.conversations".into(),
        "select * from chat.conversations".into(),
        "select * from chat.messages".into(),
        "select * from chat.users".into(),
        "select * from chat.tenants".into(),
        "select * from chat.conversation_members".into(),
        "select * from chat.message_chunks".into(),
        format!("insert into chat.message_chunks (message_id, chunk_content) values ('{m}', 'x')"),
        format!(
            "insert into chat.message_chunks (message_id, chunk_content, chunk_index, is_final) \
             values ('{m}', 'z', 2, true), ('{m}', 'y', 1, false)"
        ),
        format!(
            "insert into chat.message_chunks (message_id, chunk_content, chunk_index) \
             values ('{m}', 'user', 0) on conflict do nothing"
        ),
        format!("delete from chat.messages where id operator(pg_catalog.=) '{m}'"),
        format!("select chat.append_chunk('{m}', 'x'), chat.append_chunk('{m}', 'y', 2, true)"),
        format!(
            "select chat.append_chunks('{m}', array['user', 'x'], 0), chat.finish_message('{m}', 1)"
        ),
        format!(
            "select chat.stop_message('{m}', 2), chat.finish_message('{m}', 1, 2, 'a', 3, '{{}}')"
        ),
        format!("select chat.finish_message('{m}'), chat.cleanup_streaming_artifacts('{m}')"),
        format!("select chat.fail_message('{m}', 'x'), chat.fail_message('{m}', 'x')"),
        "select chat.recover_stalled_messages('0'), chat.cleanup_finished_streams('0')".into(),
        format!(
            "select chat.recover_stalled_messages('0'); select chat.resume_message('{m}'); \
             select * from chat.wait_for_chunks('{m}')"
        ),
        format!(
            "select chat.begin_message('{c}', client_message_id => 'x'), chat.begin_message('{c}')"
        ),
        "select chat.enable_realtime('his_pub', true); select chat.disable_realtime('his_pub')"
            .into(),
        format!("select * from chat.add_message('{c}', 'user', 'hello', 'user')"),
        format!("select * from chat.add_message('{c}', 'user', 'again', 'key')"),
        // Edits, by the function, by the policy, by a trigger of ours; members, and what both look up.
        "update chat.messages set content = 'edited', parts = '[1]'".into(),
        "update chat.messages set content = 'edited' where role operator(pg_catalog.=) 'user'"
            .into(),
        "select chat.edit_message(m.id, 'again') from chat.messages m limit 1".into(),
        "select chat.edit_message(m.id, 'again', '[2]') from chat.messages m \
         where m.role operator(pg_catalog.=) 'user'"
            .into(),
        "update chat.messages set content = 'edited'; select * from chat.message_revisions".into(),
        format!(
            "select chat.add_member('{c}', '{COLLEAGUE}'), chat.add_member('{c}', '{COLLEAGUE}'), \
             chat.set_member_role('{c}', '{COLLEAGUE}', 'editor'), chat.list_members('{c}')"
        ),
        format!(
            "select chat.add_member('{c}', '{COLLEAGUE}', 'owner'); \
             select chat.transfer_conversation('{c}', '{COLLEAGUE}'), chat.remove_member('{c}')"
        ),
        format!(
            "select chat.add_member('{c}', '{COLLEAGUE}'), chat.remove_member('{c}', '{COLLEAGUE}')"
        ),
        "select chat.may_edit_messages(), chat.storage_folder(), chat.is_tenant_admin()".into(),
        "set local enable_seqscan = off; select pg_catalog.count(*) from chat.messages; \
         select pg_catalog.count(*) from chat.conversations; \
         select pg_catalog.count(*) from chat.message_chunks"
            .into(),
        "select * from chat.access_profiles".into(),
        format!(
            "select chat.grant_access('{MALLORY}', 'monitor'), chat.revoke_access('{MALLORY}')"
        ),
        format!("set pg_conversation.user_id = '{}'; select chat.ensure_user()", Uuid::new_v4()),
        format!(
            "set request.jwt.claims = '{{\"sub\": \"{}\"}}'; insert into chat.conversations (title) values ('new')",
            Uuid::new_v4()
        ),
    ];
    for function in &functions {
        let choices = function.choices(&ids);
        let ordinary: Vec<_> = choices.iter().map(|values| values[0].clone()).collect();
        statements.push(function.call(&ordinary));
        let second: Vec<_> =
            choices.iter().map(|values| values[values.len().min(3) - 1].clone()).collect();
        statements.push(function.call(&second));
        // Missing arguments take their defaults.
        if !ordinary.is_empty() {
            statements.push(function.call(&ordinary[..1]));
        }
        statements.push(function.call(&vec!["null".to_string(); ordinary.len()]));
    }

    let mut faults = Vec::new();
    for role in [MALLORY, "postgres"] {
        // What each statement says without hostile objects is what it must say with them.
        let mut expected: Vec<Option<String>> = Vec::new();
        for (n, path) in
            ["chat", "his, pg_catalog, chat", "his, chat", "pg_temp, his, pg_catalog, chat", "his"]
                .iter()
                .enumerate()
        {
            // A new session plans anew, under this path.
            let mut client = database.connect(role);
            if n > 0 {
                client.run(TEMPORARY);
            }
            client.run("begin");
            for (i, sql) in statements.iter().enumerate() {
                let sql = format!(
                    "set local search_path = {path}; set local pg_conversation.user_id = '{user}'; {sql}"
                );
                let said = match attempt(&mut client, &sql) {
                    Ok(()) => None,
                    Err(error) => {
                        if let Some(fault) = fault(&error) {
                            faults.push(format!("{role}, {path}: {sql}: {fault}"));
                        }
                        if error.as_db_error().is_none() {
                            panic!("{sql}: {error}");
                        }
                        Some(describe(&error).chars().take(5).collect())
                    }
                };
                if n == 0 {
                    expected.push(said);
                    continue;
                }
                // The owner's own statements use his own path and may meet a trap in it: only what
                // we run for somebody is at stake.
                let sprung = said.as_deref() == Some("ZZ666");
                if sprung || (said != expected[i] && role == MALLORY) {
                    faults.push(format!(
                        "{role}, {path}: {sql:.400}: {said:?}, without traps {:?}",
                        expected[i]
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
