//! What functions declare.

use super::Check;

// Each with its reason, and none that everybody may call. There is no such function.
const DEFINERS: Check = Check(
    "select format('%s: %s', p.oid::regprocedure, case when exists ( \
             select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
             where a.grantee = 0 and a.privilege_type = 'EXECUTE') \
         then 'everybody may call it with the rights of its owner' \
         else 'runs with the rights of its owner, and is not on the list' end) \
     from {functions} p \
     left join (values (null::text, null::text)) as known (name, reason) on known.name = p.oid::regprocedure::text \
     where p.prosecdef and (known.reason is null or exists ( \
         select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
         where a.grantee = 0 and a.privilege_type = 'EXECUTE'))",
);

#[test]
fn no_function_runs_with_the_rights_of_its_owner() {
    DEFINERS.finds_nothing();
}

#[test]
fn a_security_definer_is_named() {
    DEFINERS.names(&[
        ("alter function delete_conversation security definer", &[
            "delete_conversation(uuid): everybody may call it with the rights of its owner",
        ]),
        (
            "alter function delete_conversation security definer; \
             revoke execute on function delete_conversation from public",
            &["delete_conversation(uuid): runs with the rights of its owner, and is not on the list"],
        ),
    ]);
}

// SQL functions without one are inlined; names.rs proves that they qualify everything.
const UNPINNED: Check = Check(
    "select format('%s: %s', p.oid::regprocedure, coalesce(s.setting, 'no search_path')) \
     from {functions} p join pg_language l on l.oid = p.prolang \
     left join lateral (select s.setting from unnest(p.proconfig) s (setting) \
         where s.setting like 'search\\_path=%') s on true \
     where l.lanname not in ('c', 'internal') and s.setting is distinct from 'search_path=pg_catalog, pg_temp' \
     and not (l.lanname = 'sql' and s.setting is null)",
);

#[test]
fn every_function_in_pl_pgsql_has_a_search_path_of_its_own() {
    UNPINNED.finds_nothing();
}

#[test]
fn a_function_in_pl_pgsql_that_looks_up_names_where_the_caller_says_is_named() {
    UNPINNED.names(&[
        (
            "alter function enable_realtime reset search_path",
            &["enable_realtime(text,boolean): no search_path"],
        ),
        (
            "alter function enable_realtime set search_path = public, pg_temp",
            &["enable_realtime(text,boolean): search_path=public, pg_temp"],
        ),
        (
            "alter function delete_conversation set search_path = pg_catalog",
            &["delete_conversation(uuid): search_path=pg_catalog"],
        ),
    ]);
}

// At a restore the functions come before our types.
const SIGNATURES: Check = Check(
    "select distinct format('%s: %s is not built in', p.oid::regprocedure, t.oid::regtype) \
     from {functions} p \
     join pg_type t on t.oid = p.prorettype or t.oid = any (p.proargtypes) or t.oid = any (p.proallargtypes) \
     where t.typnamespace <> 'pg_catalog'::regnamespace",
);

#[test]
fn signatures_use_built_in_types_only() {
    SIGNATURES.finds_nothing();
}

#[test]
fn a_type_of_ours_in_a_signature_is_named() {
    let f = |signature: &str| {
        format!(
            "create function f{signature} language plpgsql as 'begin end'; \
             alter extension pg_conversation add function f"
        )
    };
    SIGNATURES.names(&[
        (&f("(a message_role) returns text"), &["f(message_role): message_role is not built in"]),
        (&f("(a text) returns setof users"), &["f(text): users is not built in"]),
        (&f("() returns table (a message_status[])"), &["f(): message_status[] is not built in"]),
        (&f("(a text[], b uuid) returns jsonb"), &[]),
    ]);
}

const DECLARATIONS: Check = Check(
    "select format('%s: %s', p.oid::regprocedure, wrong) from {functions} p cross join lateral ( \
         select 'strict, and null where an argument is left out' where p.proisstrict \
         and pg_get_function_arguments(p.oid) ~ 'DEFAULT NULL' \
         union all \
         select 'a trigger function is volatile and not for parallel workers' \
         where p.prorettype = 'trigger'::regtype and (p.provolatile <> 'v' or p.proparallel <> 'u') \
         union all \
         select 'volatile, and yet for parallel workers' where p.provolatile = 'v' and p.proparallel <> 'u' \
         /* depends on nothing but the clock and chance, of which each worker has its own */ \
         and p.proname <> 'new_id' \
         union all \
         select 'immutable' where p.provolatile = 'i' \
         /* constants, and what is made of its arguments alone */ \
         and p.proname not in ('access_privileges', 'test_id', 'is_test_id', 'row_limit') \
     ) w (wrong)",
);

#[test]
fn what_functions_declare_is_plausible() {
    DECLARATIONS.finds_nothing();
}

#[test]
fn an_implausible_declaration_is_named() {
    DECLARATIONS.names(&[
        ("alter function begin_message strict", &[
            "begin_message(uuid,text,uuid,text,text,jsonb,bigint): strict, and null where an argument is left out",
        ]),
        ("alter function place_chunk parallel safe stable", &[
            "place_chunk(): a trigger function is volatile and not for parallel workers",
        ]),
        ("alter function ensure_user parallel safe", &["ensure_user(): volatile, and yet for parallel workers"]),
        ("alter function current_user_id immutable", &["current_user_id(): immutable"]),
    ]);
}
