//! The caller's search_path: no function may find a name there.

use pg_conversation_tests::{Database, Rng, Server, Session, oldest, versions};

use super::calls::{World, functions};
use super::traps::{NOT_A_TRIGGER, SPRUNG, set_temporary_traps, set_traps, sprung};
use super::{FUNCTIONS, attempt};

/// Calls of each function.
const CALLS: usize = 12;

// Types are written out, for a signature is looked up where the function is made.
const COPIES: &str = "\
    with args as ( \
        select p.oid, coalesce(p.proargmodes[a.n], 'i') as mode, \
            format('%I pg_catalog.%I', coalesce(p.proargnames[a.n], 'a' || a.n), t.typname) as arg, a.n \
        from {functions} p \
        cross join unnest(coalesce(p.proallargtypes, p.proargtypes)) with ordinality as a (of, n) \
        join pg_type t on t.oid = a.of) \
    select p.oid::regprocedure::text, format( \
        'create function copied.%I(%s) returns %s language sql begin atomic %s; end', p.proname, \
        (select string_agg(arg, ', ' order by n) from args a where a.oid = p.oid and a.mode = 'i'), \
        coalesce( \
            (select 'table (' || string_agg(arg, ', ' order by n) || ')' from args a \
                where a.oid = p.oid and a.mode = 't'), \
            (select case when p.proretset then 'setof ' else '' end || format('pg_catalog.%I', t.typname) \
                from pg_type t where t.oid = p.prorettype)), p.prosrc) \
    from {functions} p join pg_language l on l.oid = p.prolang and l.lanname = 'sql' \
    where p.prosqlbody is null \
    and not exists (select from unnest(p.proconfig) s (setting) where s.setting like 'search\\_path=%') \
    order by 1";

/// Names in SQL functions without a search_path that are found where the caller says. The body is
/// parsed among the traps, in the form whose dependencies Postgres notes.
fn unqualified(database: &Database) -> Vec<String> {
    let mut client = database.superuser();
    set_traps(&mut client);
    client.run("create schema copied; set search_path = pg_catalog, public");
    let copies =
        client.query(&COPIES.replace("{functions}", FUNCTIONS), &[]).expect("a list of functions");
    assert!(!copies.is_empty(), "there are such functions");
    let mut found = Vec::new();
    for row in copies {
        let (function, copy): (String, String) = (row.get(0), row.get(1));
        client.run("begin; set local search_path = trap, pg_catalog");
        match client.batch_execute(&copy) {
            Ok(()) => {
                client.run("set local search_path = pg_catalog");
                let trapped: Vec<String> = client.values(
                    "select i.type || ' ' || i.identity from pg_depend d, \
                     lateral pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid) i \
                     where d.classid = 'pg_proc'::regclass and d.deptype = 'n' and i.schema = 'trap' \
                     and d.objid = (select oid from pg_proc where pronamespace = 'copied'::regnamespace) \
                     order by 1",
                );
                found.extend(trapped.iter().map(|name| format!("{function}: {name}")));
            }
            Err(error) => {
                found.push(format!("{function}: {}", pg_conversation_tests::describe(&error)))
            }
        }
        client.run("rollback");
    }
    found
}

#[test]
fn sql_functions_without_a_search_path_qualify_every_name() {
    for version in versions() {
        let found = unqualified(&Server::shared(version).database());
        assert!(found.is_empty(), "Postgres {version}: {found:#?}");
    }
}

#[test]
fn an_unqualified_name_in_a_sql_function_is_named() {
    let database = Server::shared(oldest()).database();
    let mut client = database.superuser();
    for (name, body) in [
        ("f1", "select count(*)::pg_catalog.text from public.users u where u.id = a"),
        ("f2", "select a::text"),
        ("f3", "select pg_catalog.max(role::text) from public.users u where id in (a, a)"),
        ("f4", "select name from users"),
        ("f5", "select lower(a::pg_catalog.text)"),
        ("f6", "select null where a is distinct from a"),
        ("f7", "select u.name from public.users u where u.id operator(pg_catalog.=) a"),
    ] {
        client.run(&format!(
            "create function {name}(a uuid) returns setof text language sql as $$ {body} $$; \
             alter extension pg_conversation add function {name}"
        ));
    }
    let found = unqualified(&database);
    for (function, name) in [
        ("f1", "count(*) specified"),
        ("f2", "type trap.text"),
        ("f3", "operator trap.=(pg_catalog.uuid,pg_catalog.uuid)"),
        ("f3", "type trap.text"),
        ("f4", "trap.users"),
        ("f5", "function trap.lower(pg_catalog.text)"),
        ("f6", "operator trap.=(pg_catalog.uuid,pg_catalog.uuid)"),
    ] {
        let named = found
            .iter()
            .any(|found| found.starts_with(&format!("{function}(")) && found.contains(name));
        assert!(named, "{function}, {name}: {found:#?}");
    }
    assert!(!found.iter().any(|found| found.starts_with("f7(")), "{found:#?}");
}

// Whatever fires a trigger, and what follows from it.
const STATEMENTS: &str = "\
    with tables as ( \
        select c.oid, c.relname, array_agg(a.attname) as columns, \
            array_agg(a.attname) filter (where a.atttypid = 'text'::regtype) as texts \
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
        where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace group by c.oid) \
    select format('select * from public.%I', relname) from pg_class \
        where relkind in ('r', 'v', 'm') and relnamespace = 'public'::regnamespace union all \
    select format('delete from public.%I', relname) from tables union all \
    select format('insert into public.%1$I select * from public.%1$I', relname) from tables union all \
    select format('update public.%I set %s', relname, \
        (select string_agg(format('%1$I = %1$I', name), ', ') from unnest(columns) name)) from tables union all \
    select format('update public.%I set %I = %L', relname, name, 'x') from tables, unnest(texts) name";

/// Functions of these names, and statements, that step into a trap, as the owner and as a member.
fn stepping_in(database: &Database, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let world = World::build(database);
    set_traps(&mut database.superuser());
    let statements: Vec<String> = database.superuser().values(STATEMENTS);
    let mut found = Vec::new();
    let mut succeeded = Vec::new();
    let mut refused = Vec::new();
    for is_temporary in [false, true] {
        for is_member in [false, true] {
            let mut client =
                if is_member { database.member(world.user) } else { database.superuser() };
            let mut functions = functions(&mut client);
            functions.retain(|function| wanted(&function.name));
            if is_temporary {
                set_temporary_traps(&mut client);
            }
            client.run("begin");
            if !is_member {
                // Undone with the transaction, for roles belong to all databases.
                client.run(
                    "do $$ begin if to_regrole('authenticated') is null then \
                     create role authenticated; end if; end $$",
                );
            }
            let path = if is_temporary { "public" } else { "trap, pg_catalog" };
            client.run(&format!("set local search_path = {path}"));
            let mut rng = Rng::new(3);
            let mut calls: Vec<(String, String)> = Vec::new();
            for function in &functions {
                for call in world.calls(function, CALLS, &mut rng) {
                    calls.push((function.signature.clone(), call));
                }
            }
            calls.extend(statements.iter().map(|sql| (sql.clone(), sql.clone())));
            let before = sprung(database);
            let mut heard = 0;
            for (name, call) in calls {
                match attempt(&mut client, &call) {
                    Ok(()) => succeeded.push(name),
                    Err((code, words)) if code == SPRUNG => {
                        heard += 1;
                        found.push(format!("{name}: {words}"));
                    }
                    Err((code, words)) if code == NOT_A_TRIGGER => {
                        found.push(format!("{name}: {words}"));
                    }
                    Err((code, words)) => refused.push(format!("{name}: {code} {words}")),
                }
            }
            if sprung(database) != before + heard {
                found.push("a trap has sprung, and something has kept quiet about it".into());
            }
        }
    }
    for function in functions(&mut database.superuser()).iter().filter(|f| wanted(&f.name)) {
        // Refuses where there is other data; make_test_data and count_test_data are the rest of it.
        if function.name == "seed_test_data" {
            continue;
        }
        let did = succeeded.contains(&function.signature)
            || found.iter().any(|found| found.starts_with(&function.signature));
        refused.retain(|words| did || words.starts_with(&function.name));
        assert!(did, "no call of {} succeeded: {refused:#?}", function.signature);
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn no_function_and_no_statement_looks_up_a_name_where_the_caller_says() {
    let found = stepping_in(&Server::shared(oldest()).database(), |_| true);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_function_that_looks_up_names_where_the_caller_says_is_named() {
    let database = Server::shared(oldest()).database();
    database.superuser().run(
        "alter function enable_realtime reset search_path; \
         alter function delete_conversation reset search_path; \
         create function f() returns trigger language plpgsql as \
         'begin if old.id = old.id then end if; return null; end'; \
         create trigger f after delete on schema_version for each row execute function f(); \
         alter table schema_version add column id int; \
         create function quiet() returns void language plpgsql as \
         'begin perform 1 = 1; exception when others then null; end'; \
         alter extension pg_conversation add function quiet()",
    );
    let planted = ["enable_realtime", "delete_conversation", "current_user_id", "quiet"];
    let found = stepping_in(&database, |name| planted.contains(&name));
    for expected in [
        "a trap has sprung, and something",
        "delete from public.schema_version: trap: operator",
        "delete_conversation(uuid): trap: ",
        "enable_realtime(text,boolean): trap: ",
    ] {
        assert!(found.iter().any(|found| found.starts_with(expected)), "{expected}: {found:#?}");
    }
    assert!(!found.iter().any(|found| found.starts_with("current_user_id")), "{found:#?}");
}
