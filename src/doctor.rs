//! `doctor()`: what is installed here, held against what the library expects.

use pgrx::prelude::*;

use crate::error::{Error, OrRaise};
use crate::install;
use crate::{owner, plan};

/// A check is a query for one text: what is wrong, or null. `@name@` stands for a list of the
/// objects that the scripts make.
struct Check {
    name: &'static str,
    sql: &'static str,
    hint: &'static str,
}

const RUN_MIGRATE: &str = "Run migrate() as the owner of the tables.";

const CHECKS: &[Check] = &[
    Check {
        name: "library",
        sql: "select format('library %s, extension %s', '@library@', extversion) from pg_extension \
              where extname = 'pg_conversation' and extversion <> '@library@'",
        hint: "Run ALTER EXTENSION pg_conversation UPDATE.",
    },
    Check {
        name: "schema version",
        sql: "select format('schema %s, library %s', coalesce(max(version), 0), @latest@) \
              from @extschema@.schema_version having coalesce(max(version), 0) <> @latest@",
        hint: RUN_MIGRATE,
    },
    Check {
        name: "tables are the owner's, not the extension's",
        sql: "select string_agg(d.objid::regclass::text, ', ') from pg_depend d \
              join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_conversation' \
              where d.classid = 'pg_class'::regclass and d.deptype = 'e' \
              and d.refclassid = 'pg_extension'::regclass",
        hint: "Run ALTER EXTENSION pg_conversation DROP TABLE for each, or a dump loses its policies.",
    },
    Check {
        name: "tables",
        sql: "select string_agg(t, ', ') from unnest(array[@tables@]) t \
              where to_regclass('@extschema@.' || t) is null",
        hint: "Restore them from a backup; migrate() makes only what was never made.",
    },
    Check {
        name: "materialized views",
        sql: "select string_agg(format('%s is %s', m, case when c.oid is null then 'not there' \
                     else 'not filled' end), ', ') \
              from unnest(array[@matviews@]::text[]) m left join pg_class c on c.relname = m \
              and c.relnamespace = '@extschema@'::regnamespace and c.relkind = 'm' \
              where c.oid is null or not c.relispopulated",
        hint: "Run refresh_analytics(), after creating what is not there as in docs/reference.md.",
    },
    Check {
        name: "views",
        sql: "select string_agg(format('%s is %s', v, case when c.oid is null then 'not there' \
                     else 'read with the rights of its owner' end), ', ') \
              from unnest(array[@views@]::text[]) v left join pg_class c on c.relname = v \
              and c.relnamespace = '@extschema@'::regnamespace and c.relkind = 'v' \
              where c.oid is null or not exists (select from pg_options_to_table(c.reloptions) o \
                  where o.option_name = 'security_invoker' and o.option_value::boolean)",
        hint: RUN_MIGRATE,
    },
    Check {
        name: "row level security",
        sql: "select string_agg(c.relname, ', ') from pg_class c \
              where c.relnamespace = '@extschema@'::regnamespace and c.relname = any (array[@tables@]) \
              and (not c.relrowsecurity \
                   or not exists (select from pg_policy p where p.polrelid = c.oid))",
        hint: RUN_MIGRATE,
    },
    Check {
        name: "policies",
        sql: "select string_agg(x, ', ') from unnest(array[@policies@]) x \
              where not exists (select from pg_policy p where p.polname = split_part(x, ' on ', 1) \
              and p.polrelid = to_regclass('@extschema@.' || split_part(x, ' on ', 2)))",
        hint: RUN_MIGRATE,
    },
    Check {
        name: "triggers",
        sql: "select string_agg(x, ', ') from unnest(array[@triggers@]) x \
              where not exists (select from pg_trigger t where t.tgname = split_part(x, ' on ', 1) \
              and t.tgenabled in ('O', 'A') \
              and t.tgrelid = to_regclass('@extschema@.' || split_part(x, ' on ', 2)))",
        hint: "Run migrate(), and ALTER TABLE ... ENABLE TRIGGER for one that was disabled.",
    },
    Check {
        name: "defaults",
        sql: "select string_agg(x, ', ') from unnest(array[@defaults@]) x \
              where not exists (select from pg_attribute a \
              where a.attrelid = to_regclass('@extschema@.' || split_part(x, '.', 1)) \
              and a.attname = split_part(x, '.', 2) and a.atthasdef)",
        hint: RUN_MIGRATE,
    },
    Check {
        name: "indexes",
        sql: "select string_agg(x, ', ') from unnest(array[@indexes@]) x \
              where not exists (select from pg_index i \
              where i.indexrelid = to_regclass('@extschema@.' || x) and i.indisvalid)",
        hint: "Create them again as in docs/reference.md, or REINDEX those that are invalid.",
    },
    Check {
        name: "grants",
        sql: "select string_agg(distinct format('%s on %s to %s', a.privilege_type, c.relname, \
                     case a.grantee when 0 then 'public' else a.grantee::regrole::text end), ', ') \
              from pg_class c cross join lateral (select * from aclexplode(c.relacl) union all \
                  select k.* from pg_attribute t cross join aclexplode(t.attacl) k \
                  where t.attrelid = c.oid and c.relkind <> 'r') a \
              left join pg_roles r on r.oid = a.grantee \
              left join @extschema@.access_profiles p on p.role_name = r.rolname \
              where c.relnamespace = '@extschema@'::regnamespace and a.grantee <> c.relowner \
              and (c.relname = any (array[@matviews@]::text[]) \
                   or c.relname = any (array[@views@]::text[]) and (a.grantee = 0 \
                      or p.profile in ('anon', 'none') or a.privilege_type <> 'SELECT') \
                   or c.relname = any (array[@tables@]) and (a.grantee = 0 or p.profile in ('anon', 'none') \
                      or a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN') \
                      or not (r.rolsuper or r.rolbypassrls) and (a.privilege_type in ('INSERT', 'UPDATE') \
                         or a.privilege_type = 'DELETE' and c.relname <> 'conversations')))",
        hint: "Run migrate(): no policy holds back TRUNCATE, a foreign key or trigger reads rows, whole \
               tables are not for members to write, and no policy stands before a materialized view.",
    },
    Check {
        name: "profiles",
        sql: "select string_agg(format('%s (%s)', p.role_name, p.profile), ', ') \
              from @extschema@.access_profiles p left join pg_roles r on r.rolname = p.role_name \
              where p.profile <> 'none' and (r.oid is null \
                  or p.profile in ('service', 'syncer') and not (r.rolsuper or r.rolbypassrls))",
        hint: "Create the role, with BYPASSRLS for service and syncer, and run migrate(); or delete its \
               row from access_profiles.",
    },
    Check {
        name: "replica identity",
        sql: "select string_agg(c.relname, ', ') from pg_class c \
              where c.relnamespace = '@extschema@'::regnamespace and c.relname = any (array[@tables@]) \
              and c.relreplident <> 'd'",
        hint: "Run ALTER TABLE ... REPLICA IDENTITY DEFAULT: anything else tells subscribers what was \
               in a deleted row.",
    },
    Check {
        name: "default tenant",
        sql: "select 'not there' where not exists (select from @extschema@.tenants \
              where id = '00000000-0000-7000-8000-000000000001')",
        hint: "Fine if every user is given a tenant; otherwise insert it again with this id.",
    },
    Check {
        name: "rows lie in the tenant of their parent",
        sql: "select format('%s messages, %s conversations, %s revisions, %s feedback', m.n, c.n, r.n, f.n) \
              from (select count(*) n from @extschema@.feedback f join @extschema@.messages m \
               on m.id = f.message_id where f.tenant_id <> m.tenant_id) f, \
              (select count(*) n from @extschema@.message_revisions r join @extschema@.messages m \
               on m.id = r.message_id where r.tenant_id <> m.tenant_id) r, \
              (select count(*) n from @extschema@.messages m join @extschema@.conversations c \
               on c.id = m.conversation_id where c.tenant_id <> m.tenant_id) m, \
              (select count(*) n from @extschema@.conversations c join @extschema@.users u \
               on u.id = c.user_id where u.tenant_id <> c.tenant_id) c where m.n + c.n + r.n + f.n > 0",
        hint: "Rows were written with triggers disabled; correct tenant_id from the parent.",
    },
    Check {
        name: "counters are not behind their messages",
        sql: "select format('%s conversations', count(*)) from @extschema@.conversations c \
              where c.last_sequence < (select max(m.sequence_number) from @extschema@.messages m \
              where m.conversation_id = c.id) having count(*) > 0",
        hint: "Rows were written with triggers disabled; set last_sequence to the highest number.",
    },
    Check {
        name: "counts of feedback",
        sql: "select format('%s messages', count(*)) from \
              (select message_id, count(*) filter (where rating > 0) as up, \
                   count(*) filter (where rating < 0) as down \
               from @extschema@.feedback group by message_id) f \
              full join @extschema@.feedback_counts c on c.message_id = f.message_id \
              where f.message_id is null or c.message_id is null \
              or f.up <> c.thumbs_up or f.down <> c.thumbs_down having count(*) > 0",
        hint: "Rows were written with triggers disabled; run recount_feedback().",
    },
    Check {
        name: "settings",
        sql: "select string_agg(format('%s for %s', setting, coalesce(r.rolname, 'all roles')), ', ') \
              from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole, \
              unnest(s.setconfig) as setting \
              where setting ~ '^(pg_conversation[.]user_id|request[.]jwt[.]claim|row_security=off)' \
              and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))",
        hint: "Identity belongs to a session or transaction; reset it for the role or database.",
    },
];

type Finding = (&'static str, bool, Option<String>, Option<&'static str>);

/// One row a check; `ok` is false where something is missing, and `hint` says what to do.
#[pg_extern]
fn doctor() -> TableIterator<
    'static,
    (
        name!(check_name, &'static str),
        name!(ok, bool),
        name!(detail, Option<String>),
        name!(hint, Option<&'static str>),
    ),
> {
    TableIterator::new(examine().or_raise())
}

fn examine() -> Result<Vec<Finding>, Error> {
    let schema = plan::home()?.schema;
    let owner = owner::for_caller()?;
    // The checks read the tables with the rights of their owner, and a view would run its own code.
    if let Err(error) = owner::require_one_owner(schema, &install::relations(), owner) {
        let hint = "Put the extension's own table back; its data is in a backup.";
        return Ok(vec![(
            "tables belong to one owner",
            false,
            Some(error.to_string()),
            Some(hint),
        )]);
    }
    let here = install::installed_version(schema)?.unwrap_or(0);
    owner::as_owner_confined(owner, || {
        let mut findings = vec![("tables belong to one owner", true, None, None), frozen()?];
        for check in CHECKS {
            // With tables of an older version the later checks would only fail.
            if here < install::LATEST && check.name != "schema version" {
                continue;
            }
            let sql = plan::in_schema(&fill_in(check.sql), schema)?;
            let wrong = plan::query_text(&sql)?;
            let ok = wrong.is_none();
            findings.push((check.name, ok, wrong, (!ok).then_some(check.hint)));
            // The later ones read them.
            if check.name == "tables" && !ok {
                break;
            }
        }
        Ok(findings)
    })
}

/// Whether the migrations that were run here are those of the library.
fn frozen() -> Result<Finding, Error> {
    let changed = install::changed_migration()?;
    let hint = changed.is_some().then_some("Install the library that made these tables.");
    Ok(("migrations unchanged", changed.is_none(), changed, hint))
}

fn fill_in(sql: &str) -> String {
    let list = |kind| {
        let names: Vec<String> = install::all(kind).map(|name| format!("'{name}'")).collect();
        names.join(", ")
    };
    sql.replace("@library@", env!("CARGO_PKG_VERSION"))
        .replace("@latest@", &install::LATEST.to_string())
        .replace("@tables@", &list("table"))
        .replace("@views@", &list("view"))
        .replace("@matviews@", &list("matview"))
        .replace("@policies@", &list("policy"))
        .replace("@triggers@", &list("trigger"))
        .replace("@defaults@", &list("default"))
        .replace("@indexes@", &list("index"))
}
