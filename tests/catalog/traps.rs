//! Traps: everything that Postgres and the extension have once more, in a schema that stands in the
//! search_path before pg_catalog, and as temporary objects. Whoever looks a name up steps into one.

use pg_conversation_tests::{Client, Database, Server, Session, oldest};

/// What a trap raises.
pub const SPRUNG: &str = "TRAP0";
/// What those raise that PL/pgSQL cannot have.
pub const NOT_A_TRIGGER: &str = "39P01";

/// Functions, operators, types and relations of Postgres and of the extension, all of which raise.
pub fn set_traps(client: &mut Client) {
    client.run(
        "set search_path = pg_catalog; set client_min_messages = error; create schema trap; \
         grant usage on schema trap to public; \
         create sequence trap.sprung; grant usage, select on sequence trap.sprung to public; \
         create function trap.fire(what text) returns boolean language plpgsql as $$ begin \
             perform pg_catalog.nextval('trap.sprung'); \
             raise exception 'trap: %', what using errcode = 'TRAP0'; \
         end $$; \
         create function trap.fire() returns trigger language plpgsql as \
         $$ begin perform trap.fire(tg_relid::pg_catalog.regclass::pg_catalog.text); end $$;",
    );
    client.run(FUNCTION_TRAPS);
    client.run(&RELATION_TRAPS.replace("{schema}", "trap").replace("{temporary}", ""));
    client.run("grant all on all tables in schema trap to public; reset search_path");
}

/// Temporary relations and types are found before all others, for whoever has not said otherwise;
/// functions and operators never.
pub fn set_temporary_traps(client: &mut Client) {
    client.run("set search_path = pg_catalog, pg_temp; set client_min_messages = error");
    client.run(&RELATION_TRAPS.replace("{schema}", "pg_temp").replace("{temporary}", "temporary"));
    for relation in ["messages", "pg_class", "pg_roles", "text", "uuid"] {
        let made = format!("select to_regtype('pg_temp.{relation}') is not null");
        assert!(client.value::<bool>(&made), "no trap {relation}");
    }
    client.run("reset search_path");
}

// Where PL/pgSQL does not take the arguments, a trigger function of ours does: it is refused as one.
const FUNCTION_TRAPS: &str = "do $do$ \
    declare \
        x record; \
        body constant text := 'begin perform trap.fire(%L); end'; \
    begin \
        for x in select p.oid, p.proname, pg_get_function_arguments(p.oid) as arguments, \
            pg_get_function_result(p.oid) as result \
        from pg_proc p where p.pronamespace in ('pg_catalog'::regnamespace, 'public'::regnamespace) \
        and p.prokind in ('f', 'a', 'w') loop \
            begin \
                execute format('create function trap.%I(%s) returns %s language plpgsql as %L', \
                    x.proname, x.arguments, x.result, format(body, x.oid::regprocedure)); \
            exception when others then \
                begin \
                    execute format('create function trap.%I(%s) returns %s language c as %L, %L', \
                        x.proname, x.arguments, x.result, '$libdir/pg_conversation', 'refuse_change'); \
                exception when others then null; end; \
            end; \
        end loop; \
        for x in select o.oid, o.oprname, o.oprleft, o.oprright, o.oprresult from pg_operator o \
        where o.oprnamespace = 'pg_catalog'::regnamespace loop \
            begin \
                execute format('create function trap.%I(%s) returns %s language plpgsql as %L', \
                    'operator ' || x.oid, \
                    concat_ws(', ', nullif(x.oprleft, 0)::regtype, x.oprright::regtype), x.oprresult::regtype, \
                    format(body, 'operator ' || x.oid::regoperator)); \
                execute format('create operator trap.%s (%s, function = trap.%I)', x.oprname, \
                    concat_ws(', ', 'leftarg = ' || nullif(x.oprleft, 0)::regtype, \
                        'rightarg = ' || x.oprright::regtype), 'operator ' || x.oid); \
            exception when others then null; end; \
        end loop; \
    end $do$";

// Tables of ours are not read, for a view would keep them from being dropped.
const RELATION_TRAPS: &str = "do $do$ \
    declare \
        x record; \
    begin \
        for x in select c.relname, case when c.relnamespace = 'pg_catalog'::regnamespace \
            then format('select t.* from pg_catalog.%I t', c.relname) \
            else (select 'select ' || string_agg(format('null::%s as %I', \
                case when t.typnamespace = c.relnamespace then 'text' else a.atttypid::regtype::text end, \
                a.attname), ', ' order by a.attnum) \
                from pg_attribute a join pg_type t on t.oid = a.atttypid \
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) end as query \
        from pg_class c where c.relnamespace in ('pg_catalog'::regnamespace, 'public'::regnamespace) \
        and c.relkind in ('r', 'v') loop \
            begin \
                execute format('create {temporary} view {schema}.%1$I as \
                    select t.* from (%2$s) t where trap.fire(%1$L)', x.relname, x.query); \
                execute format('create trigger fire instead of insert or update or delete on {schema}.%1$I \
                    for each row execute function trap.fire()', x.relname); \
            exception when others then null; end; \
        end loop; \
        for x in select t.typname from pg_type t where t.typnamespace = 'pg_catalog'::regnamespace \
        and t.typtype = 'b' and t.typcategory <> 'A' loop \
            begin \
                execute format('create domain {schema}.%1$I as pg_catalog.%1$I \
                    check (trap.fire(%1$L))', x.typname); \
            exception when others then null; end; \
        end loop; \
    end $do$";

#[test]
fn traps_shadow_nearly_everything() {
    let database = Server::shared(oldest()).database();
    let mut client = database.superuser();
    set_traps(&mut client);
    for (what, here, there, needed) in [
        (
            "functions",
            "pg_proc f where f.prokind <> 'p' and f.pronamespace",
            "pg_proc t where t.proname = f.proname and t.proargtypes = f.proargtypes and t.pronamespace",
            0.98,
        ),
        (
            "operators",
            "pg_operator f where f.oprnamespace",
            "pg_operator t where t.oprname = f.oprname and t.oprleft = f.oprleft \
             and t.oprright = f.oprright and t.oprnamespace",
            0.99,
        ),
        (
            "types",
            "pg_type f where f.typtype = 'b' and f.typcategory <> 'A' and f.typnamespace",
            "pg_type t where t.typname = f.typname and t.typnamespace",
            0.9,
        ),
        (
            "relations",
            "pg_class f where f.relkind in ('r', 'v') and f.relnamespace",
            "pg_class t where t.relname = f.relname and t.relnamespace",
            0.95,
        ),
    ] {
        let shadowed: f64 = client.value(&format!(
            "select avg(exists (select from {there} = 'trap'::regnamespace)::int::float8) \
             from {here} = 'pg_catalog'::regnamespace"
        ));
        assert!(shadowed >= needed, "{shadowed} of the {what}");
    }
    client.run("set search_path = trap, pg_catalog");
    for sql in [
        "select 1 = 1",
        "select 'a'::text",
        "select current_setting('port')",
        "select from conversations",
        "insert into tenants (name) values ('x')",
        "select from pg_roles",
        "select 1 is not distinct from 2",
    ] {
        assert_eq!(client.error(sql).0, SPRUNG, "{sql}");
    }
    assert_eq!(client.error("select concat('a', 'b')").0, NOT_A_TRIGGER);
}

/// How often a trap has sprung, whatever became of the error.
pub fn sprung(database: &Database) -> i64 {
    let sql = "select case when is_called then last_value else 0 end from trap.sprung";
    database.superuser().value(sql)
}
