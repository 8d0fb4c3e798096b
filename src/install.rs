//! Tables, and all that hangs on them: made, checked, rolled back and removed here.
//!
//! Migrations make tables and run once; attachments (triggers, policies, defaults, comments) are
//! replayed by every `migrate()`. Neither becomes a member of the extension.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use crate::error::{Error, OrRaise};
use crate::owner;
use crate::plan::{self, Statement, arg};

/// One step of the schema. Frozen once released: a change is a new step.
pub struct Migration {
    pub version: i32,
    pub name: &'static str,
    pub up: &'static str,
    down: &'static str,
}

macro_rules! first {
    ($version:literal, $domain:literal) => {
        Migration {
            version: $version,
            name: $domain,
            up: include_str!(concat!("../sql/", $domain, "/tables.sql")),
            down: include_str!(concat!("../sql/", $domain, "/down.sql")),
        }
    };
}

/// A later step of a domain, in files of its own.
macro_rules! later {
    ($version:literal, $domain:literal, $name:literal, $number:literal) => {
        Migration {
            version: $version,
            name: $name,
            up: include_str!(concat!("../sql/", $domain, "/", $number, "_", $name, ".sql")),
            down: include_str!(concat!("../sql/", $domain, "/", $number, "_down.sql")),
        }
    };
}

pub const MIGRATIONS: [Migration; 14] = [
    first!(1, "frame"),
    first!(2, "identity"),
    first!(3, "conversations"),
    first!(4, "messages"),
    first!(5, "streaming"),
    later!(6, "messages", "revisions", "0006"),
    first!(7, "access"),
    later!(8, "conversations", "visible", "0008"),
    later!(9, "identity", "time_zone", "0009"),
    first!(10, "feedback"),
    first!(11, "usage"),
    first!(12, "limits"),
    later!(13, "messages", "first_token", "0013"),
    first!(14, "maintenance"),
];

pub const LATEST: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// Triggers, policies, defaults and comments of each domain; always those of the latest version.
pub const ATTACHMENTS: [&str; 11] = [
    include_str!("../sql/frame/attach.sql"),
    include_str!("../sql/identity/attach.sql"),
    include_str!("../sql/conversations/attach.sql"),
    include_str!("../sql/messages/attach.sql"),
    include_str!("../sql/streaming/attach.sql"),
    include_str!("../sql/feedback/attach.sql"),
    include_str!("../sql/usage/attach.sql"),
    include_str!("../sql/limits/attach.sql"),
    include_str!("../sql/maintenance/attach.sql"),
    include_str!("../sql/monitoring/attach.sql"),
    include_str!("../sql/access/attach.sql"),
];

/// Privileges of relations that were just made.
const NEW_TABLES: &str = include_str!("../sql/access/new_tables.sql");

/// Triggers that fire on a logical subscriber too: replaying them would make them ordinary ones.
const ALWAYS: &str = "select string_agg( \
        format('alter table %s enable always trigger %I', t.tgrelid::regclass, t.tgname), ';') \
    from pg_trigger t join pg_class c on c.oid = t.tgrelid \
    where c.relnamespace = '@extschema@'::regnamespace and c.relname = any ('{@tables@}') \
    and t.tgenabled = 'A' and not t.tgisinternal";

/// What stands under a name that a view of ours needs. Before the first migration anything is somebody
/// else's; later, what is no view of ours. One that a DBA has altered is mended by a migrate() that
/// brings nothing new.
const TAKEN: &str = "select format('relation \"%s\" already exists', c.relname) from pg_class c \
    where c.relnamespace = '@extschema@'::regnamespace and c.relname = any ('{@views@}') \
    and (@installed@ = 0 or c.relkind <> 'v' or @installed@ < @latest@ \
        and not 'security_invoker=true' = any (coalesce(c.reloptions, '{}'))) limit 1";

static APPLIED: Statement =
    Statement { sql: "select pg_catalog.max(version) from @extschema@.schema_version", types: &[] };

static CHANGED: Statement = Statement {
    sql: "select name from @extschema@.schema_version where version = $1 \
          and checksum <> encode(sha256(convert_to($2, 'UTF8')), 'hex')",
    types: &[pg_sys::INT4OID, pg_sys::TEXTOID],
};

static RECORD: Statement = Statement {
    sql: "insert into @extschema@.schema_version (version, name, checksum) \
          values ($1, $2, encode(sha256(convert_to($3, 'UTF8')), 'hex'))",
    types: &[pg_sys::INT4OID, pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static FORGET: Statement = Statement {
    sql: "delete from @extschema@.schema_version where version = $1",
    types: &[pg_sys::INT4OID],
};

/// Brings the schema to the version of the library.
#[pg_extern]
fn migrate() -> i32 {
    as_installer(|schema| {
        let installed = match installed_version(schema)? {
            None => 0,
            Some(0) => adopt(schema)?,
            Some(version) => version,
        };
        if installed > LATEST {
            return Err(Error::SchemaTooNew { found: installed, known: LATEST });
        }
        if installed > 0
            && let Some(name) = changed_migration()?
        {
            return Err(Error::MigrationChanged { name });
        }
        refuse_taken_views(schema, installed)?;
        for migration in MIGRATIONS.iter().filter(|m| m.version > installed) {
            apply(migration, schema)?;
        }
        let always = plan::query_text(&fill(ALWAYS, schema)?)?;
        for attachment in ATTACHMENTS {
            attach(attachment, schema)?;
        }
        plan::script(&always.unwrap_or_default())?;
        fill_views(schema)?;
        Ok(LATEST)
    })
    .or_raise()
}

/// Takes the schema back to a version.
#[pg_extern]
fn rollback_to(version: i32, force: default!(bool, "false")) -> i32 {
    as_installer(|schema| roll_back(schema, version, force)).or_raise()
}

/// Drops every table with its rows.
#[pg_extern]
fn uninstall(confirm: Option<&str>) {
    as_installer(|schema| {
        let database = current_database();
        if confirm != Some(database.as_str()) {
            return Err(Error::NotConfirmed { database });
        }
        roll_back(schema, 0, true)
    })
    .or_raise();
}

fn apply(migration: &Migration, schema: Oid) -> Result<(), Error> {
    make(migration.up, schema)?;
    let made = objects(migration.up).into_iter().filter(|(kind, _)| is_relation(kind));
    close(&list(made.map(|(_, name)| name)), schema)?;
    record(migration)
}

/// Views that it makes start without privileges; those that were there keep theirs.
fn attach(attachment: &str, schema: Oid) -> Result<(), Error> {
    let is_new = |view: &String| {
        let name = CString::new(view.as_str()).unwrap_or_default();
        plan::table(schema, &name).is_err()
    };
    let new: Vec<String> = of_kind(attachment, "view").filter(is_new).collect();
    make(&fill(attachment, schema)?, schema)?;
    if new.is_empty() { Ok(()) } else { close(&list(new.into_iter()), schema) }
}

fn make(script: &str, schema: Oid) -> Result<(), Error> {
    let sql = plan::in_schema(script, schema)?;
    PgTryBuilder::new(|| plan::script(&sql))
        .catch_when(PgSqlErrorCode::ERRCODE_DUPLICATE_TABLE, name_taken)
        .catch_when(PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT, name_taken)
        // A view whose columns are not ours is somebody else's.
        .catch_when(PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION, name_taken)
        .execute()
}

/// Takes every privilege on these relations from all but their owner.
fn close(relations: &str, schema: Oid) -> Result<(), Error> {
    plan::script(&plan::in_schema(&NEW_TABLES.replace("@relations@", relations), schema)?)
}

/// A dump of the schema alone brings materialized views that nobody can read, nor refresh beside
/// readers.
fn fill_views(schema: Oid) -> Result<(), Error> {
    for view in all("matview") {
        let name = CString::new(view.as_str()).unwrap_or_default();
        let Ok(oid) = plan::table(schema, &name) else { continue };
        if plan::class(oid, |row| row.relispopulated) == Some(false) {
            let sql = format!("refresh materialized view @extschema@.{view}");
            plan::script(&plan::in_schema(&sql, schema)?)?;
        }
    }
    Ok(())
}

fn refuse_taken_views(schema: Oid, installed: i32) -> Result<(), Error> {
    let sql = TAKEN
        .replace("@installed@", &installed.to_string())
        .replace("@latest@", &LATEST.to_string());
    match plan::query_text(&fill(&sql, schema)?)? {
        Some(message) => Err(Error::NameTaken { message }),
        None => Ok(()),
    }
}

fn record(migration: &Migration) -> Result<(), Error> {
    RECORD.run(&[arg(migration.version), arg(migration.name), arg(migration.up)], |_| ())?;
    Ok(())
}

/// A dump of the schema alone brings the tables and an empty schema_version: what is there is
/// recorded as it would have been.
fn adopt(schema: Oid) -> Result<i32, Error> {
    let is_there = |table: String| {
        let name = CString::new(table).unwrap_or_default();
        plan::table(schema, &name).is_ok()
    };
    let whole = |m: &&Migration| tables_of(m).all(is_there);
    let mut version = 0;
    for migration in MIGRATIONS.iter().take_while(whole) {
        record(migration)?;
        version = migration.version;
    }
    Ok(version)
}

/// The caller raises the error again at once, so the failed statement leaves nothing behind.
fn name_taken(cause: pg_sys::panic::CaughtError) -> Result<(), Error> {
    match cause {
        pg_sys::panic::CaughtError::PostgresError(report)
        | pg_sys::panic::CaughtError::ErrorReport(report) => {
            Err(Error::NameTaken { message: report.message().into() })
        }
        other => other.rethrow(),
    }
}

/// The first migration that was run here in another form than the library has.
pub fn changed_migration() -> Result<Option<String>, Error> {
    for migration in &MIGRATIONS {
        let args = [arg(migration.version), arg(migration.up)];
        if let Some(name) = CHANGED.run(&args, |row| row.get::<String>(1))?.flatten() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn roll_back(schema: Oid, version: i32, force: bool) -> Result<i32, Error> {
    if version != 0 && !MIGRATIONS.iter().any(|m| m.version == version) {
        return Err(Error::NoSuchVersion(version));
    }
    let installed = installed_version(schema)?.unwrap_or(0);
    let undone = || {
        let applied = move |m: &&Migration| version < m.version && m.version <= installed;
        MIGRATIONS.iter().rev().filter(applied)
    };
    if !force {
        for migration in undone() {
            for table in tables_of(migration) {
                refuse_loss(schema, &table, version)?;
            }
        }
        for migration in undone() {
            for (table, column) in columns_undone(migration.down) {
                refuse_loss_of_column(schema, table, column, version)?;
            }
        }
    }
    for migration in undone() {
        plan::script(&plan::in_schema(migration.down, schema)?)?;
        if migration.version > 1 {
            FORGET.run(&[arg(migration.version)], |_| ())?;
        }
    }
    Ok(version.min(installed))
}

/// Rows that migrate() makes are no loss.
fn refuse_loss(schema: Oid, table: &str, version: i32) -> Result<(), Error> {
    let ours = match table {
        // What was drawn of a minute is no loss, either.
        "schema_version" | "rate_states" => return Ok(()),
        "tenants" => " where slug <> 'default' or updated_at <> created_at",
        "access_profiles" => {
            " where (role_name, profile) not in (values ('anon', 'anon'), ('authenticated', 'member'), \
             ('service_role', 'service'), ('conversation_service', 'service'), \
             ('conversation_syncer', 'syncer'))"
        }
        // What is noted of runs is nobody's work; that somebody has turned a job off is.
        "maintenance_runs" => " where not enabled",
        _ => "",
    };
    let sql = format!("select 'rows' from @extschema@.{table}{ours} limit 1");
    if plan::query_text(&plan::in_schema(&sql, schema)?)?.is_some() {
        return Err(Error::RowsWouldBeLost { table: table.into(), version });
    }
    Ok(())
}

/// The columns that a script drops from tables that stay.
fn columns_undone(script: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let words: Vec<&str> = script.split_whitespace().collect();
    let found = |n: usize| match words.get(n..n + 6)? {
        ["alter", "table", table, "drop", "column", column] => {
            Some((table.strip_prefix("@extschema@.")?, column.strip_suffix(';')?))
        }
        _ => None,
    };
    (0..words.len()).filter_map(found).collect::<Vec<_>>().into_iter()
}

fn refuse_loss_of_column(
    schema: Oid,
    table: &'static str,
    column: &'static str,
    version: i32,
) -> Result<(), Error> {
    let given = match column {
        "time_zone" => "time_zone <> 'UTC'".into(),
        _ => format!("{column} is not null"),
    };
    let sql = format!("select 'values' from @extschema@.{table} where {given} limit 1");
    if plan::query_text(&plan::in_schema(&sql, schema)?)?.is_some() {
        return Err(Error::ValuesWouldBeLost { table, column, version });
    }
    Ok(())
}

/// The version recorded in the database; `None` when there are no tables.
pub fn installed_version(schema: Oid) -> Result<Option<i32>, Error> {
    match owner::ledger(schema)? {
        Some(_) => Ok(Some(APPLIED.run(&[], |row| row.get(1))?.flatten().unwrap_or(0))),
        None => Ok(None),
    }
}

/// Kind and name of every object that a script makes, read from the script itself so that there is
/// no second list to keep.
pub fn objects(script: &str) -> Vec<(&'static str, String)> {
    let words: Vec<&str> = script.split_whitespace().collect();
    let plain = |word: &str| {
        let word = word.strip_prefix("@extschema@.").unwrap_or(word);
        word.trim_end_matches([';', '(', ')', ',']).to_string()
    };
    let mut found = Vec::new();
    for (i, window) in words.windows(8).enumerate() {
        let on = || {
            words[i..].iter().position(|word| *word == "on").and_then(|at| words.get(i + at + 1))
        };
        match window {
            ["create", "table", name, ..] => found.push(("table", plain(name))),
            ["create", "materialized", "view", name, ..] => found.push(("matview", plain(name))),
            ["create", "or", "replace", "view", name, ..] => found.push(("view", plain(name))),
            ["create", "index", name, ..] | ["create", "unique", "index", name, ..] => {
                found.push(("index", plain(name)));
            }
            ["constraint", name, "primary" | "unique", ..] => found.push(("index", plain(name))),
            ["create", "policy", name, "on", table, ..] => {
                found.push(("policy", format!("{name} on {}", plain(table))));
            }
            ["create", "or", "replace", "trigger", name, ..] => {
                if let Some(table) = on() {
                    found.push(("trigger", format!("{name} on {}", plain(table))));
                }
            }
            ["alter", "table", table, "alter", "column", column, "set", "default"] => {
                found.push(("default", format!("{}.{column}", plain(table))));
            }
            _ => {}
        }
    }
    found
}

fn of_kind(script: &str, wanted: &'static str) -> impl Iterator<Item = String> {
    let objects = objects(script).into_iter();
    objects.filter(move |(kind, _)| *kind == wanted).map(|(_, name)| name)
}

/// The tables that a migration makes.
fn tables_of(migration: &Migration) -> impl Iterator<Item = String> {
    of_kind(migration.up, "table")
}

/// Every object of a kind.
pub fn all(kind: &'static str) -> impl Iterator<Item = String> {
    let scripts = MIGRATIONS.iter().map(|m| m.up).chain(ATTACHMENTS);
    scripts.flat_map(move |script| of_kind(script, kind))
}

fn is_relation(kind: &str) -> bool {
    RELATIONS.iter().any(|(name, _)| *name == kind)
}

/// Kinds of relations, as scripts and as pg_class call them.
const RELATIONS: [(&str, u8); 3] = [
    ("table", pg_sys::RELKIND_RELATION),
    ("view", pg_sys::RELKIND_VIEW),
    ("matview", pg_sys::RELKIND_MATVIEW),
];

/// Every table, as Postgres takes names.
pub fn table_names() -> Vec<CString> {
    all("table").filter_map(|table| CString::new(table).ok()).collect()
}

/// Every table, view and materialized view, with its kind.
pub fn relations() -> Vec<(CString, u8)> {
    let named = |(kind, relkind): (&'static str, u8)| {
        all(kind).filter_map(move |name| Some((CString::new(name).ok()?, relkind)))
    };
    RELATIONS.into_iter().flat_map(named).collect()
}

/// Names as the elements of an array.
fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(",")
}

fn fill(sql: &str, schema: Oid) -> Result<String, Error> {
    let sql = sql
        .replace("@tables@", &list(all("table")))
        .replace("@views@", &list(all("view")))
        .replace("@matviews@", &list(all("matview")));
    plan::in_schema(&sql, schema)
}

fn current_database() -> String {
    // SAFETY: the name of the session's own database, copied at once.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        if name.is_null() {
            return String::new();
        }
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Runs `work` as the owner of the tables, with a search_path of our own, outside the membership
/// that CREATE EXTENSION gives to what its script makes, and in one session at a time.
///
/// A trusted extension's script runs as the bootstrap superuser. Tables made as that role would
/// not be the installer's, so the role is changed first.
fn as_installer<T>(work: impl FnOnce(Oid) -> Result<T, Error>) -> Result<T, Error> {
    // SAFETY: the lock is held to the end of the transaction; DROP EXTENSION waits for it.
    unsafe {
        if pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 {
            return Err(Error::SnapshotTooOld);
        }
        let extension = pg_sys::get_extension_oid(c"pg_conversation".as_ptr(), true);
        if extension == Oid::INVALID {
            return Err(Error::NoExtension);
        }
        let lock = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
        pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, lock);
    }
    let home = plan::home()?;
    let owner = match owner::role() {
        Ok(owner) => {
            owner::require_one_owner(home.schema, &relations(), owner)?;
            owner
        }
        Err(Error::NotInstalled) => home.owner,
        Err(other) => return Err(other),
    };
    // SAFETY: backend-local state and the role cache. While a script runs the user is the bootstrap
    // superuser; whose script it is, is the extension's owner.
    let may = unsafe {
        let caller = if pg_sys::creating_extension { home.owner } else { pg_sys::GetUserId() };
        pg_sys::has_privs_of_role(caller, owner)
    };
    if !may {
        return Err(Error::NotOwner);
    }
    let _membership = NoMembership::begin();
    owner::as_owner_confined(owner, || work(home.schema))
}

/// While it lives, what is made does not become a member of the extension being created.
struct NoMembership(bool);

impl NoMembership {
    fn begin() -> Self {
        // SAFETY: backend-local flags, which CREATE EXTENSION resets itself after an ERROR.
        unsafe {
            let before = pg_sys::creating_extension;
            pg_sys::creating_extension = false;
            Self(before)
        }
    }
}

impl Drop for NoMembership {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: see begin().
            unsafe { pg_sys::creating_extension = self.0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rise_by_one() {
        for (i, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version, i as i32 + 1);
        }
    }

    #[test]
    fn scripts_tell_what_they_create() {
        let tables: Vec<_> = MIGRATIONS.iter().flat_map(tables_of).collect();
        let expected = [
            "schema_version",
            "tenants",
            "users",
            "conversations",
            "conversation_members",
            "messages",
            "message_chunks",
            "message_revisions",
            "access_profiles",
            "feedback",
            "feedback_counts",
            "usage_events",
            "usage_days",
            "usage_totals",
            "usage_months",
            "model_prices",
            "rate_states",
            "token_windows",
            "token_reservations",
            "maintenance_runs",
        ];
        assert_eq!(tables, expected);
        for migration in &MIGRATIONS {
            for table in tables_of(migration) {
                assert!(migration.down.contains(&format!("drop table @extschema@.{table};")));
            }
            let dropped = migration.down.matches("drop column").count();
            assert_eq!(columns_undone(migration.down).count(), dropped, "{}", migration.name);
            for view in of_kind(migration.up, "matview") {
                let drop = format!("drop materialized view @extschema@.{view};");
                assert!(migration.down.contains(&drop), "{drop}");
            }
        }
    }

    /// Views come with the attachments, which nothing takes back: a migration of the same domain, or
    /// of one that it needs, takes its views along.
    #[test]
    fn every_view_goes_with_a_migration() {
        for view in ATTACHMENTS.iter().flat_map(|script| of_kind(script, "view")) {
            let drop = format!("drop view if exists @extschema@.{view};");
            assert!(MIGRATIONS.iter().any(|m| m.down.contains(&drop)), "{drop}");
        }
    }

    #[test]
    fn scripts_tell_what_to_expect() {
        let script = "create table @extschema@.a (\n  id uuid\n);\n\
                      create unique index i on @extschema@.a (id);\n\
                      create policy p on @extschema@.a for select using (true);\n\
                      create materialized view @extschema@.m as select 1 as one;\n\
                      create or replace view @extschema@.v with (security_invoker = true) as\n\
                      select 1 as one;\n\
                      create or replace trigger t\nbefore insert on @extschema@.a\n\
                      for each row execute function @extschema@.f();\n\
                      alter table @extschema@.a alter column id set default @extschema@.g();";
        let expected = [
            ("table", "a"),
            ("index", "i"),
            ("policy", "p on a"),
            ("matview", "m"),
            ("view", "v"),
            ("trigger", "t on a"),
            ("default", "a.id"),
        ];
        let found = objects(script);
        let found: Vec<_> = found.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
        assert_eq!(found, expected);
    }
}
