//! Trigger functions where they do not belong: called by hand, or put on a table of somebody else's.

use pg_conversation_tests::{Client, Database, Server, Session, oldest, versions};

use super::calls::World;
use super::{FUNCTIONS, attempt};

fn trigger_functions(client: &mut Client) -> Vec<String> {
    let found = client.values(&format!(
        "select p.proname::text from {FUNCTIONS} p where p.prorettype = 'trigger'::regtype order by 1"
    ));
    assert!(found.len() > 5, "the extension has trigger functions");
    found
}

#[test]
fn trigger_functions_are_refused_when_called_by_hand() {
    for version in versions() {
        let mut client = super::installed(version).superuser();
        client.run("begin");
        for function in trigger_functions(&mut client) {
            let (code, words) = attempt(&mut client, &format!("select {function}()"))
                .expect_err("a trigger function");
            // Postgres itself refuses those in PL/pgSQL.
            let in_plpgsql = code == "0A000" && words.contains("only be called as triggers");
            assert!(code == "39P01" || in_plpgsql, "{function}: {code} {words}");
        }
    }
}

/// Makes the statement that digests everything in tables of ours.
const CONTENT: &str = "select format('select md5(concat(%s))', string_agg(format( \
    '(select string_agg(t::text, %L order by t::text) from %s t)', ',', c.oid::regclass), ', ')) \
    from pg_class c where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace";

/// Rows of the stranger's table, without what triggers set to the clock or to a constant.
const ROWS: &str = "select coalesce(string_agg((to_jsonb(t) - '{updated_at,is_active}'::text[])::text, E'\\n' \
    order by (to_jsonb(t) - '{updated_at,is_active}'::text[])::text), 'none') from stranger.t t";

const TRIGGERS: [(&str, &str); 4] = [
    ("before insert or update or delete", "row"),
    ("after insert or update or delete", "row"),
    ("before insert or update or delete", "statement"),
    ("after insert or update or delete", "statement"),
];

/// Trigger functions of these names that did something on a table of a stranger's, shaped like one of ours.
fn gains(database: &Database, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    World::build(database);
    database.server.role("catalog_stranger");
    let mut client = database.superuser();
    client.run("create schema stranger authorization catalog_stranger");
    let shapes: Vec<String> = client.values(
        "select relname::text from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace",
    );
    let mut functions = trigger_functions(&mut client);
    functions.retain(|function| wanted(function));
    let content: String = client.value(CONTENT);
    let mut found = Vec::new();
    for shape in shapes {
        // Rows like ours, and rows that have nothing but ids.
        client.run(&format!(
            "create table stranger.t as select * from {shape}; \
             alter table stranger.t owner to catalog_stranger; \
             do $$ declare x text; begin \
                 select string_agg(case when a.atttypid = 'uuid'::regtype and a.attname <> 'tenant_id' \
                     then quote_ident(a.attname) else 'null' end, ', ' order by a.attnum) into x \
                 from pg_attribute a where a.attrelid = 'stranger.t'::regclass and a.attnum > 0; \
                 execute 'insert into stranger.t select ' || x || ' from stranger.t'; \
             end $$; \
             create table stranger.copy as select * from stranger.t"
        ));
        client.run("grant select on stranger.copy to catalog_stranger");
        let column: String = client.value(
            "select attname::text from pg_attribute where attrelid = 'stranger.t'::regclass and attnum = 1",
        );
        let before: (String, String) = (client.value(&content), client.value(ROWS));
        for function in &functions {
            for (event, each) in TRIGGERS {
                client.run(&format!(
                    "begin; set local role catalog_stranger; \
                     create trigger a {event} on stranger.t for each {each} \
                     execute function public.{function}('x')"
                ));
                // Each leaves the rows as they were, unless the trigger does not.
                for (verb, statement) in [
                    (
                        "insert",
                        "truncate stranger.t; insert into stranger.t select * from stranger.copy",
                    ),
                    ("update", &format!("update stranger.t set {column} = {column}")),
                    ("delete", "delete from stranger.t"),
                ] {
                    client.run("savepoint s");
                    if client.batch_execute(statement).is_ok() {
                        client.run("reset role");
                        if client.value::<String>(&content) != before.0 {
                            found.push(format!(
                                "{function}: {verb} on a {shape} reaches tables of ours"
                            ));
                        }
                        let rows: String = client.value(ROWS);
                        if verb != "delete" && rows != before.1 {
                            found.push(format!(
                                "{function}: {verb} changes a row like one of {shape}"
                            ));
                        }
                    }
                    client.run("rollback to savepoint s");
                }
                client.run("rollback");
            }
        }
        client.run("drop table stranger.t, stranger.copy");
    }
    client.run("drop schema stranger");
    found.sort();
    found.dedup();
    found
}

#[test]
fn trigger_functions_do_nothing_on_tables_of_somebody_else() {
    let found = gains(&Server::shared(oldest()).database(), |_| true);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_trigger_function_that_works_on_tables_of_somebody_else_is_named() {
    let database = Server::shared(oldest()).database();
    database.superuser().run(
        "create function leaks() returns trigger language plpgsql security definer as \
         $$ begin new.title := (select max(title) || 'x' from public.conversations); return new; end $$; \
         create function writes() returns trigger language plpgsql security definer as \
         $$ begin delete from public.message_chunks c where c.message_id = old.id; return coalesce(new, old); end $$; \
         alter extension pg_conversation add function leaks(); \
         alter extension pg_conversation add function writes()",
    );
    assert_eq!(
        gains(&database, |name| ["leaks", "writes"].contains(&name)),
        [
            "leaks: insert changes a row like one of conversations",
            "leaks: update changes a row like one of conversations",
            "writes: delete on a messages reaches tables of ours",
            "writes: update on a messages reaches tables of ours",
        ]
    );
}
