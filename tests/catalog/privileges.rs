//! Who may do what, and what else there is besides tables.

use pg_conversation_tests::{Server, Session, versions};

use super::Check;

// Column privileges count as those of their table.
const PRIVILEGES: Check = Check(
    "with granted as ( \
         select c.oid, c.relname, c.relkind, c.relowner, a.grantee, a.privilege_type \
         from {relations} c cross join aclexplode(c.relacl) a where a.grantee <> c.relowner \
         union \
         select c.oid, c.relname, c.relkind, c.relowner, a.grantee, a.privilege_type \
         from {relations} c join pg_attribute t on t.attrelid = c.oid cross join aclexplode(t.attacl) a \
         where a.grantee <> c.relowner) \
     select format('%s: %s to %s', g.oid::regclass, g.privilege_type, \
         case g.grantee when 0 then 'public' else g.grantee::regrole::text end) \
     from granted g left join pg_roles r on r.oid = g.grantee \
     where g.grantee = 0 \
     or g.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN') \
     or g.relkind in ('m', 'f') and not r.rolbypassrls \
     or not exists (select from access_profiles p where p.role_name = r.rolname and p.profile not in ('none', 'anon'))",
);

#[test]
fn nobody_holds_what_passes_by_policies_and_nobody_holds_anything_unasked() {
    PRIVILEGES.finds_nothing();
}

#[test]
fn default_privileges_of_the_database_leave_nothing_on_the_tables() {
    for version in versions() {
        let server = Server::shared(version);
        server.role("catalog_other");
        let database = server.empty_database();
        let mut client = database.superuser();
        client.run(
            "alter default privileges grant all on tables to public; \
             alter default privileges in schema public grant all on tables to catalog_other; \
             alter default privileges grant all on sequences to public; \
             create extension pg_conversation",
        );
        let found = PRIVILEGES.offenders(&mut client);
        assert!(found.is_empty(), "Postgres {version}: {found:#?}");
        assert!(client.value::<i64>("select count(*) from pg_default_acl") > 0);
        // Views that a later version might make are held to the same.
        client.run("create table t ()");
        assert!(!PRIVILEGES.offenders(&mut client).is_empty(), "the default privileges do nothing");
        // The role outlives the database.
        client.run("drop owned by catalog_other");
    }
}

#[test]
fn a_privilege_that_nobody_should_have_is_named() {
    let service = "create role s bypassrls; select grant_access('s', 'service');";
    PRIVILEGES.names(&[
        ("grant select on users to public", &["users: SELECT to public"]),
        ("grant update (role) on users to public", &["users: UPDATE to public"]),
        (
            "grant truncate, references, trigger on messages to member",
            &[
                "messages: REFERENCES to member",
                "messages: TRIGGER to member",
                "messages: TRUNCATE to member",
            ],
        ),
        (service, &[]),
        (&format!("{service} grant references (id) on users to s"), &["users: REFERENCES to s"]),
        ("create role r; grant select on users to r", &["users: SELECT to r"]),
        (
            "create materialized view v as select 1 as a; grant select on v to member",
            &["v: SELECT to member"],
        ),
        ("create sequence s; grant usage on sequence s to public", &["s: USAGE to public"]),
    ]);
}

const VIEWS: Check = Check(
    "select format('%s: reads with the rights of its owner', c.oid::regclass) from {relations} c \
     where c.relkind = 'v' and not coalesce( \
         (select o.option_value::boolean from pg_options_to_table(c.reloptions) o \
             where o.option_name = 'security_invoker'), false) \
     union all \
     select format('%s: a sequence has holes and one counter for all tenants', c.oid::regclass) \
     from {relations} c where c.relkind = 'S'",
);

#[test]
fn every_view_asks_the_policies_and_nothing_counts_by_sequence() {
    VIEWS.finds_nothing();
}

#[test]
fn a_view_of_its_owner_and_a_sequence_are_named() {
    VIEWS.names(&[
        ("create view v as select 1 as a", &["v: reads with the rights of its owner"]),
        (
            "create view v with (security_invoker = off) as select 1 as a",
            &["v: reads with the rights of its owner"],
        ),
        ("create view v with (security_invoker = on) as select 1 as a", &[]),
        (
            "create table t (n bigserial)",
            &["t_n_seq: a sequence has holes and one counter for all tenants"],
        ),
        (
            "create table t (n int generated always as identity)",
            &["t_n_seq: a sequence has holes and one counter for all tenants"],
        ),
    ]);
}

const MEMBERS: Check = Check(
    "select pg_describe_object(d.classid, d.objid, d.objsubid) from pg_depend d \
     join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_conversation' \
     where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e' \
     and d.classid <> 'pg_proc'::regclass",
);

#[test]
fn only_functions_are_members_of_the_extension() {
    MEMBERS.finds_nothing();
}

#[test]
fn a_member_that_is_no_function_is_named() {
    let add = |what: &str| format!("create {what}; alter extension pg_conversation add ");
    MEMBERS.names(&[
        (&(add("table t ()") + "table t"), &["table t"]),
        (&(add("type x as enum ('a')") + "type x"), &["type x"]),
        (&(add("view v as select 1 as a") + "view v"), &["view v"]),
        (&(add("sequence s") + "sequence s"), &["sequence s"]),
        (&(add("schema a") + "schema a"), &["schema a"]),
        ("alter extension pg_conversation add table users", &["table users"]),
    ]);
}
