//! CREATE EXTENSION by an administrator who is no superuser, in a database whose default privileges
//! open every new table; and what is left open when tables come out of a dump.

use std::process::Command;

use pg_conversation_tests::{Client, Session, Uuid, oldest, versions};

use crate::rest::{Rest, Returning, user};
use crate::stack::{ADMIN, Deployment, POSTGRES};

pub const SCHEMAS: [&str; 2] = ["public", "chat"];

/// What no role of the API may hold: verbs that pass by policies, and whole tables to write to.
pub fn holes(client: &mut Client, schema: &str) -> Vec<String> {
    client.values(&format!(
        "select format('%s: %s %s', g.grantee, a.privilege_type, c.relname)
         from pg_class c
         cross join aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
         cross join lateral (
            select case a.grantee when 0 then 'public' else a.grantee::regrole::text end
         ) g (grantee)
         where c.relnamespace = '{schema}'::regnamespace and c.relkind in ('r', 'v', 'm', 'p', 'S')
         and a.grantee <> c.relowner and (
            a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')
            or g.grantee in ('anon', 'public')
            or g.grantee = 'authenticated' and (
                a.privilege_type in ('INSERT', 'UPDATE')
                or (a.privilege_type = 'DELETE' and c.relname <> 'conversations')
            )
            or g.grantee = 'service_role' and a.privilege_type in ('INSERT', 'UPDATE')
                and c.relname not in ('tenants', 'users', 'model_prices')
         )
         order by 1"
    ))
}

const ROLES: &str = "'anon'::regrole, 'authenticated'::regrole, 'service_role'::regrole";

/// Every right of the roles of the API, on tables and on columns.
pub fn rights(client: &mut Client, schema: &str) -> Vec<String> {
    client.values(&format!(
        "select format('%s %s %s', a.grantee::regrole, a.privilege_type, c.relname)
         from pg_class c cross join aclexplode(c.relacl) a
         where c.relnamespace = '{schema}'::regnamespace and a.grantee in ({ROLES})
         union all
         select format('%s %s %s.%s', a.grantee::regrole, a.privilege_type, c.relname, t.attname)
         from pg_class c join pg_attribute t on t.attrelid = c.oid cross join aclexplode(t.attacl) a
         where c.relnamespace = '{schema}'::regnamespace and a.grantee in ({ROLES})
         order by 1"
    ))
}

fn assert_same(before: &[String], after: &[String]) {
    let lost: Vec<_> = before.iter().filter(|right| !after.contains(right)).collect();
    let new: Vec<_> = after.iter().filter(|right| !before.contains(right)).collect();
    assert!(lost.is_empty() && new.is_empty(), "lost {lost:?}, new {new:?}");
}

#[test]
fn an_administrator_who_is_no_superuser_installs_it_and_owns_the_tables() {
    for schema in SCHEMAS {
        let mut deployment = Deployment::bare();
        deployment.schema = schema;
        deployment.install();
        let mut postgres = deployment.postgres();
        let is_superuser = "select rolsuper from pg_roles where rolname = current_user";
        assert!(!postgres.value::<bool>(is_superuser));
        let owners: Vec<String> = postgres.values(&format!(
            "select distinct relowner::regrole::text from pg_class
             where relnamespace = '{schema}'::regnamespace and relkind = 'r'"
        ));
        assert_eq!(owners, [POSTGRES]);
        let complaints: Vec<String> = postgres
            .values("select format('%s: %s', check_name, detail) from doctor() where not ok");
        assert!(complaints.is_empty(), "{complaints:?}");
        // Other tests of this server may have let a superuser make roles of the extension's own.
        let let_in: Vec<String> = postgres.values(
            "select role_name || ' ' || profile from access_profiles
             where role_name not like 'conversation%' order by 1",
        );
        assert_eq!(let_in, ["anon anon", "authenticated member", "service_role service"]);
        // Again, and after an upgrade, nothing else.
        let before = rights(&mut postgres, schema);
        postgres.run("select migrate()");
        assert_same(&before, &rights(&mut postgres, schema));
    }
}

/// Newer versions have more kinds of privileges.
fn kinds() -> Vec<(u32, &'static str)> {
    let newest = *versions().last().expect("a version");
    let mut kinds = SCHEMAS.map(|schema| (oldest(), schema)).to_vec();
    if newest != oldest() {
        kinds.push((newest, SCHEMAS[0]));
    }
    kinds
}

#[test]
fn default_privileges_open_no_table() {
    for (version, schema) in kinds() {
        let deployment = Deployment::with_schema_on(version, schema);
        let mut admin = deployment.admin();
        // The deployment does open what others make there, or this shows nothing.
        deployment.postgres().run("create table opened (id int)");
        let found = holes(&mut admin, schema);
        assert!(found.iter().any(|hole| hole == "anon: TRUNCATE opened"), "{found:?}");
        deployment.postgres().run("drop table opened");
        assert_eq!(holes(&mut admin, schema), [""; 0]);
    }
}

/// The statements themselves, as the roles of the API.
#[test]
fn no_role_of_the_api_passes_by_the_policies() {
    let deployment = Deployment::new();
    let mut admin = deployment.admin();
    let tables: Vec<String> = admin.values(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'",
    );
    assert!(tables.len() >= 8, "{tables:?}");
    for role in ["anon", "authenticated", "service_role"] {
        let mut pool = deployment.connect("authenticator");
        pool.run(&format!("set role {role}"));
        for table in &tables {
            for sql in [
                format!("truncate public.{table} cascade"),
                format!(
                    "create trigger t before insert on public.{table} for each row execute function suppress_redundant_updates_trigger()"
                ),
                format!("alter table public.{table} disable row level security"),
                format!("create policy p on public.{table} using (true)"),
                format!(
                    "insert into public.{table} select (p).* from (select null::public.{table} p) x"
                ),
            ] {
                // These are the service's to write, and null is no key there.
                let expected = match (role, table.as_str()) {
                    ("service_role", "users" | "tenants" | "model_prices")
                        if sql.starts_with("insert") =>
                    {
                        "23502"
                    }
                    _ => "42501",
                };
                assert_eq!(pool.error(&sql).0, expected, "{role}: {sql}");
            }
        }
    }
}

/// Rows of two people, so that there is something to be seen after a restore.
fn filled(version: u32, schema: &'static str) -> (Deployment, [Uuid; 2]) {
    let deployment = Deployment::with_schema_on(version, schema);
    let people = ["ada", "eve"].map(|name| deployment.sign_up(name));
    let mut rest = Rest::new(&deployment);
    for id in people {
        let made = rest.rpc(&user(id), "create_conversation", "{}").unwrap();
        let c = rest.at(&made, "");
        let body = format!(r#"{{"conversation_id": "{c}", "role": "user", "content": "of {id}"}}"#);
        rest.post(&user(id), "messages", &body, "", Returning::Nothing).unwrap();
    }
    deployment.postgres().run("select link_supabase()");
    (deployment, people)
}

fn must(command: &mut Command) {
    let output = command.output().expect("it starts");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.is_empty(), "{command:?}\n{words}");
}

fn dump(deployment: &Deployment, user: &str, options: &[&str]) -> std::path::PathBuf {
    let scratch = std::env::var_os("PGC_SCRATCH").expect("PGC_SCRATCH");
    let file = std::path::Path::new(&scratch).join(format!("supabase-{}", Uuid::new_v4()));
    must(deployment.program("pg_dump", user).args(["-Fc", "-f"]).arg(&file).args(options));
    file
}

/// Each sees his own message, the stranger nothing, and the next number is the next.
fn works(deployment: &Deployment, people: &[Uuid; 2]) {
    let schema = deployment.schema;
    let mut rest = Rest::new(deployment);
    let select = format!(
        r#"SELECT "{schema}"."messages"."content", "{schema}"."messages"."conversation_id" FROM "{schema}"."messages""#
    );
    for id in people {
        let seen = rest.read(&user(*id), &select, None, &[]).unwrap();
        assert_eq!((seen.rows, rest.at(&seen, "0,content")), (1, format!("of {id}")));
        let c = rest.at(&seen, "0,conversation_id");
        let body = format!(r#"{{"conversation_id": "{c}", "role": "user", "content": "next"}}"#);
        let sent = rest.post(&user(*id), "messages", &body, "", Returning::Rows).unwrap();
        assert_eq!(rest.at(&sent, "0,sequence_number"), "2");
    }
    let stranger = rest.read(&user(Uuid::new_v4()), &select, None, &[]).unwrap();
    assert_eq!(stranger.rows, 0);
}

/// A whole dump into a new database of the server: what the dump carries is there.
#[test]
fn a_restored_deployment_is_closed_and_linked_again() {
    for (version, schema) in kinds() {
        let (source, people) = filled(version, schema);
        let before = rights(&mut source.admin(), schema);
        let file = dump(&source, ADMIN, &[]);
        let mut target = Deployment::plain_on(version);
        target.schema = schema;
        if schema == "public" {
            // As a new deployment has it, before anything is restored.
            target.admin().run(
                "alter default privileges for role postgres, supabase_admin in schema public
                 grant all on tables to postgres, anon, authenticated, service_role",
            );
        }
        must(target.program("pg_restore", ADMIN).args(["-e", "-d", &target.name]).arg(&file));
        std::fs::remove_file(&file).expect("the dump goes");

        let mut admin = target.admin();
        let carried: Vec<String> = admin.values(&format!(
            "select 'key' from pg_constraint where conname = 'users_auth_id_exists' and convalidated
             union all select 'policy' from pg_policies where tablename = 'objects' and schemaname = 'storage'
             union all select 'bucket' from storage.buckets
             union all select 'table' from pg_publication_tables
                where pubname = 'supabase_realtime' and schemaname = '{schema}'
             order by 1"
        ));
        let expected = ["bucket", "key", "policy", "table"];
        for (what, count) in expected.iter().zip([3, 1, 4, 3]) {
            assert_eq!(carried.iter().filter(|item| item == what).count(), count, "{what}");
        }
        if schema == "public" {
            let open = holes(&mut admin, schema);
            assert!(!open.is_empty(), "the default privileges of the target have opened nothing");
        }
        admin.run(&format!("select {schema}.migrate()"));
        assert_eq!(holes(&mut admin, schema), [""; 0]);
        assert_same(&before, &rights(&mut admin, schema));
        let parts: Vec<bool> = admin.values(&format!("select done from {schema}.link_supabase()"));
        assert_eq!(parts, [true; 5]);
        works(&target, &people);
    }
}

/// The schema alone into the database of a new deployment, as `postgres` may do it.
#[test]
fn the_schema_alone_moves_to_a_new_deployment() {
    for schema in SCHEMAS {
        let (source, people) = filled(oldest(), schema);
        let before = rights(&mut source.admin(), schema);
        let file = dump(&source, POSTGRES, &["-n", schema]);
        let mut target = Deployment::bare();
        target.schema = schema;
        for id in people {
            let sql = format!("insert into auth.users (id) values ('{id}')");
            target.admin().run(&sql);
        }
        let mut postgres = target.connect(POSTGRES);
        if schema != "public" {
            postgres.run(&format!("create schema {schema}"));
        }
        postgres.run(&format!(
            "set pg_conversation.auto_install = off;
             create extension pg_conversation with schema {schema}"
        ));
        // The default privileges of supabase_admin are not for postgres to set.
        let list =
            target.program("pg_restore", POSTGRES).arg("-l").arg(&file).output().expect("a list");
        let list = String::from_utf8(list.stdout).expect("text");
        let kept: Vec<&str> = list.lines().filter(|line| !line.contains("DEFAULT ACL")).collect();
        let chosen = file.with_extension("list");
        std::fs::write(&chosen, kept.join("\n")).expect("the list is written");
        must(
            target
                .program("pg_restore", POSTGRES)
                .args(["-e", "-n", schema, "-d", &target.name, "-L"])
                .args([&chosen, &file]),
        );
        std::fs::remove_file(&chosen).expect("the list goes");
        std::fs::remove_file(&file).expect("the dump goes");
        postgres.run(&format!("select {schema}.migrate()"));
        postgres.run(&format!("select {schema}.link_supabase()"));
        let mut admin = target.admin();
        assert_eq!(holes(&mut admin, schema), [""; 0]);
        assert_same(&before, &rights(&mut admin, schema));
        works(&target, &people);
    }
}
