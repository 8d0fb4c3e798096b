//! What stands in policies.

use super::Check;

// A policy's function whose answer depends on the row; every other one is asked once a statement, as
// (select f()). The arguments of those that are allowed are looked at as well.
const ROW_BY_ROW: Check = Check(
    "with expressions as ( \
         select p.polname, p.polrelid, \
         /* what is asked once */ \
         regexp_replace(pg_get_expr(e.tree, p.polrelid), '\\( SELECT (\\w+\\.)?\\w+\\(\\) AS \\w+\\)', 'once', 'g') \
             as expression \
         from {relations} c join pg_policy p on p.polrelid = c.oid \
         cross join lateral (values (p.polqual), (p.polwithcheck)) as e (tree) where e.tree is not null) \
     select format('policy %s on %s: %s', polname, polrelid::regclass, called[1]) \
     from expressions cross join lateral regexp_matches(expression, '(\\w+)\\(', 'g') called \
     where called[1] not in ('has_conversation_access', 'has_message_access') \
     union \
     select format('policy %s on %s: a sub-query of its own', polname, polrelid::regclass) \
     from expressions where expression ~ '\\mSELECT\\M' \
     union \
     select format('policy %s on %s: %s', polname, polrelid::regclass, word) \
     from expressions cross join lateral \
     unnest(array['CURRENT_USER', 'SESSION_USER', 'CURRENT_ROLE', 'CURRENT_TIMESTAMP']) word \
     where expression like '%' || word || '%'",
);

#[test]
fn policies_ask_who_is_calling_once_a_statement() {
    ROW_BY_ROW.finds_nothing();
}

#[test]
fn a_policy_that_asks_again_for_each_row_is_named() {
    let read = |condition: &str| format!("create policy p on users for select using ({condition})");
    ROW_BY_ROW.names(&[
        (&read("id = current_user_id()"), &["policy p on users: current_user_id"]),
        (&read("id = (select current_user_id())"), &[]),
        (
            &read("id = (select current_user_id()) and tenant_id = current_tenant_id()"),
            &["policy p on users: current_tenant_id"],
        ),
        (
            &read("has_conversation_access(id, current_user_id(), 'read')"),
            &["policy p on users: current_user_id"],
        ),
        (&read("has_conversation_access(id, (select current_user_id()), 'read')"), &[]),
        (
            &read("exists (select from tenants t where t.id = tenant_id)"),
            &["policy p on users: a sub-query of its own"],
        ),
        (&read("name = current_user"), &["policy p on users: CURRENT_USER"]),
        (&read("lower(name) = 'x'"), &["policy p on users: lower"]),
        (
            "create policy p on users for insert with check (id = current_user_id())",
            &["policy p on users: current_user_id"],
        ),
        (
            "create policy p on users for update using (true) with check (id = current_user_id())",
            &["policy p on users: current_user_id"],
        ),
    ]);
}

// Built-in functions and those behind operators leave no dependency: their oids are in the tree.
const UNSTABLE: Check = Check(
    "select distinct format('policy %s on %s: %s is %s', p.polname, c.oid::regclass, f.oid::regprocedure, \
         case f.provolatile when 'v' then 'volatile' else 'not for parallel workers' end) \
     from {relations} c join pg_policy p on p.polrelid = c.oid \
     cross join lateral regexp_matches(concat(p.polqual, p.polwithcheck), ':(?:op)?func(?:id)? ?(\\d+)', 'g') m \
     join pg_proc f on f.oid = m[1]::oid \
     where f.provolatile = 'v' or f.proparallel <> 's'",
);

#[test]
fn functions_in_policies_are_stable_and_parallel_safe() {
    UNSTABLE.finds_nothing();
}

#[test]
fn a_policy_with_a_volatile_function_is_named() {
    UNSTABLE.names(&[
        ("create policy p on users using (random() < 2)", &[
            "policy p on users: random() is volatile",
        ]),
        ("create policy p on users using (id = (select ensure_user()))", &[
            "policy p on users: ensure_user() is volatile",
        ]),
        (
            "create function f(uuid, uuid) returns boolean language plpgsql as 'begin return true; end'; \
             create operator === (leftarg = uuid, rightarg = uuid, function = f); \
             create policy p on users for insert with check (id === id)",
            &["policy p on users: f(uuid,uuid) is volatile"],
        ),
        ("alter function may_edit_messages parallel restricted", &[
            "policy messages_update on messages: may_edit_messages() is not for parallel workers",
        ]),
    ]);
}

// What binds the caller binds him in whatever role: a policy for one role, or a permissive one that
// says true, would stand beside the others and open the table.
const OPEN: Check = Check(
    "select format('policy %s on %s: %s', p.polname, c.oid::regclass, wrong) \
     from {relations} c join pg_policy p on p.polrelid = c.oid cross join lateral ( \
         select 'lets everybody in' where 'true' in ( \
             pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid)) \
         /* members are not granted these */ \
         and c.relname not in ('schema_version', 'access_profiles', 'maintenance_runs') \
         union all \
         select 'is for some roles only' where p.polroles <> '{0}' \
     ) w (wrong)",
);

#[test]
fn no_policy_opens_a_table() {
    OPEN.finds_nothing();
    let mut client = super::installed(pg_conversation_tests::oldest()).superuser();
    for table in ["schema_version", "access_profiles", "maintenance_runs"] {
        let granted = format!("select has_table_privilege('member', '{table}', 'select')");
        assert!(!pg_conversation_tests::Session::value::<bool>(&mut client, &granted), "{table}");
    }
}

#[test]
fn a_policy_that_opens_a_table_is_named() {
    OPEN.names(&[
        ("create policy p on users using (true)", &["policy p on users: lets everybody in"]),
        (
            "create policy p on users for insert with check (true)",
            &["policy p on users: lets everybody in"],
        ),
        (
            "create policy p on users to member using (false)",
            &["policy p on users: is for some roles only"],
        ),
    ]);
}
