//! Keys, indexes and row level security of tables.

use super::Check;

const KEYS_WITHOUT_INDEX: Check = Check(
    "select format('%s: no index begins with %s', x.conrelid::regclass, x.conname) \
     from pg_constraint x join {relations} c on c.oid = x.conrelid \
     where x.contype = 'f' and not exists ( \
         select from pg_index i where i.indrelid = x.conrelid and i.indisvalid \
         and (i.indpred is null or pg_get_expr(i.indpred, i.indrelid) = ( \
             select format('(%s IS NOT NULL)', string_agg(quote_ident(a.attname), ',')) from pg_attribute a \
             where a.attrelid = x.conrelid and a.attnum = any (x.conkey))) \
         and (select array_agg(k order by k) from unnest(x.conkey) k) = (select array_agg(k order by k) \
             from unnest((i.indkey::int2[])[0:cardinality(x.conkey) - 1]) k))",
);

#[test]
fn every_foreign_key_has_an_index() {
    KEYS_WITHOUT_INDEX.finds_nothing();
}

#[test]
fn a_foreign_key_without_an_index_is_named() {
    let key = "create table t (a uuid, b uuid constraint t_b references users (id));";
    let with = |index: &str| format!("{key} create index on t {index}");
    KEYS_WITHOUT_INDEX.names(&[
        (key, &["t: no index begins with t_b"]),
        (&with("(a, b)"), &["t: no index begins with t_b"]),
        (&with("(b) where a is not null"), &["t: no index begins with t_b"]),
        (&with("(lower(b::text))"), &["t: no index begins with t_b"]),
        (&with("(b, a)"), &[]),
        (&with("(b) where b is not null"), &[]),
        (
            "drop index idx_conversation_members_user",
            &["conversation_members: no index begins with conversation_members_user_exists"],
        ),
    ]);
}

const OPEN_TABLES: Check = Check(
    "select format('%s: %s', c.oid::regclass, case when c.relrowsecurity then 'no policy' \
         else 'row level security is off' end) \
     from {relations} c where c.relkind in ('r', 'p') \
     and (not c.relrowsecurity or not exists (select from pg_policy p where p.polrelid = c.oid))",
);

#[test]
fn every_table_and_partition_has_row_level_security_and_a_policy() {
    OPEN_TABLES.finds_nothing();
}

#[test]
fn a_table_or_partition_without_row_level_security_or_policy_is_named() {
    let closed = "create table t (a int) partition by list (a); alter table t enable row level security; \
                  create policy p on t using (true);";
    OPEN_TABLES.names(&[
        ("create table t ()", &["t: row level security is off"]),
        ("create table t (); alter table t enable row level security", &["t: no policy"]),
        ("alter table users disable row level security", &["users: row level security is off"]),
        (
            "drop policy users_read on users; drop policy users_update on users",
            &["users: no policy"],
        ),
        (closed, &[]),
        (
            &format!("{closed} create table t1 partition of t for values in (1)"),
            &["t1: row level security is off"],
        ),
    ]);
}

// The key in the database of a publication's reader, and what one may guess.
const GUESSED_KEYS: Check = Check(
    "select format('%s: %s', c.oid::regclass, case when x.oid is null then 'no primary key' \
         when c.relreplident <> 'd' then 'replica identity is not the key' else 'its key can be guessed' end) \
     from {relations} c left join pg_constraint x on x.conrelid = c.oid and x.contype = 'p' \
     where c.relkind in ('r', 'p') and (x.oid is null or c.relreplident <> 'd' or not exists ( \
         select from pg_attribute a \
         where a.attrelid = c.oid and a.attnum = any (x.conkey) and a.atttypid = 'uuid'::regtype)) \
     and not (c.relreplident = 'd' and (c.relname, pg_get_constraintdef(x.oid)) in ( \
         /* versions are no secret, and a member may not read them */ \
         ('schema_version', 'PRIMARY KEY (version)'), \
         /* roles are the DBA's, and a member may not read them */ \
         ('access_profiles', 'PRIMARY KEY (role_name)'), \
         /* jobs are the same everywhere, and a member may not read them */ \
         ('maintenance_runs', 'PRIMARY KEY (job)')))",
);

#[test]
fn every_table_has_a_key_that_nobody_guesses_and_is_replicated_by_it() {
    GUESSED_KEYS.finds_nothing();
}

#[test]
fn a_key_that_can_be_guessed_or_is_not_replicated_is_named() {
    GUESSED_KEYS.names(&[
        ("create table t ()", &["t: no primary key"]),
        ("create table t (id int primary key)", &["t: its key can be guessed"]),
        ("create table t (id uuid, n int, primary key (id, n))", &[]),
        ("alter table users replica identity full", &["users: replica identity is not the key"]),
        (
            "alter table schema_version replica identity nothing",
            &["schema_version: replica identity is not the key"],
        ),
    ]);
}

// A key without the tenant tells whoever meets it that the value exists with somebody else.
const KEYS_ACROSS_TENANTS: Check = Check(
    "select format('%s: %s', c.oid::regclass, regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING ', '')) \
     from {relations} c join pg_index i on i.indrelid = c.oid and i.indisunique \
     where c.relkind in ('r', 'p') and not exists ( \
         select from pg_attribute a \
         where a.attrelid = c.oid and a.attnum = any (i.indkey) \
         and (a.attname = 'tenant_id' or (a.atttypid = 'uuid'::regtype and exists ( \
             /* made by us, so that to know it is to have been given it */ \
             select from pg_constraint x where x.conrelid = c.oid and x.contype in ('p', 'f') \
             and a.attnum = any (x.conkey))))) \
     and (c.relname::text, pg_get_indexdef(i.indexrelid, 1, true)) not in ( \
         /* the tenant's own name: it comes before any tenant is known */ \
         ('tenants', 'slug'), \
         /* the subject of a login: it decides the tenant */ \
         ('users', 'auth_id'), \
         /* not the tenants' */ \
         ('schema_version', 'version'), ('access_profiles', 'role_name'), ('maintenance_runs', 'job'))",
);

#[test]
fn every_unique_key_has_the_tenant_or_an_id_of_ours() {
    KEYS_ACROSS_TENANTS.finds_nothing();
}

#[test]
fn a_unique_key_across_tenants_is_named() {
    KEYS_ACROSS_TENANTS.names(&[
        ("create unique index on conversations (title)", &["conversations: btree (title)"]),
        ("create unique index on users (lower(email))", &["users: btree (lower(email))"]),
        ("create unique index on tenants (slug, name)", &[]),
        ("create unique index on conversations (tenant_id, title)", &[]),
        ("create unique index on messages (conversation_id, model_used)", &[]),
        ("alter table messages add column given uuid unique", &["messages: btree (given)"]),
        ("alter table users add foreign_id text unique", &["users: btree (foreign_id)"]),
    ]);
}
