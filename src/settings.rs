//! Every setting of the extension, in one place, and settings of the server for the length of some
//! work.

use std::ffi::{CStr, CString};

use pgrx::PostgresGucEnum;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys::{self, Oid};

use crate::error::Error;
use crate::plan;

/// Whether CREATE EXTENSION and ALTER EXTENSION UPDATE run `migrate()`.
pub static AUTO_INSTALL: GucSetting<bool> = GucSetting::<bool>::new(true);

/// The caller's `users.id` where no authentication service sets claims.
pub static USER_ID: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// How transactions that write nothing but tokens commit.
pub static CHUNK_COMMIT: GucSetting<ChunkCommit> =
    GucSetting::<ChunkCommit>::new(ChunkCommit::Async);

#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum ChunkCommit {
    /// Without waiting for the disk.
    #[name = c"async"]
    Async,
    /// As `synchronous_commit` says.
    #[name = c"sync"]
    Sync,
}

/// Milliseconds between notices of one message; -1 for none.
pub static NOTIFY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(20);

/// Text crosses between Postgres and Rust as UTF-8.
pub fn require_utf8() -> Result<(), Error> {
    // SAFETY: reads globals; a postmaster that preloads the library has no database yet.
    unsafe {
        let in_database = pg_sys::MyDatabaseId != pg_sys::Oid::INVALID;
        if in_database && pg_sys::GetDatabaseEncoding() != pg_sys::pg_enc::PG_UTF8 as i32 {
            return Err(Error::NotUtf8);
        }
    }
    Ok(())
}

pub fn define() {
    GucRegistry::define_bool_guc(
        c"pg_conversation.auto_install",
        c"Lets CREATE EXTENSION make the tables.",
        c"Turn it off to restore a dump of a schema, which brings the tables itself.",
        &AUTO_INSTALL,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_conversation.user_id",
        c"users.id of the caller where no claims are set.",
        c"Claims in request.jwt.claims or request.jwt.claim.sub win over it.",
        &USER_ID,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"pg_conversation.chunk_commit",
        c"How transactions that write nothing but tokens commit: async, or sync.",
        c"sync is as synchronous_commit says. Ending a message is always synchronous.",
        &CHUNK_COMMIT,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pg_conversation.notify_interval",
        c"Least time between two notices of one message.",
        c"-1 sends none.",
        &NOTIFY_INTERVAL,
        -1,
        60_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    unsafe {
        // SAFETY: called from _PG_init; the name is a static C string.
        pg_sys::MarkGUCPrefixReserved(c"pg_conversation".as_ptr());
    }
}

/// The value of any setting, ours or not; empty counts as absent, as `SET LOCAL` leaves it behind.
pub fn read(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: missing_ok makes an unknown name null; the string lives at least until the setting
    // changes, and callers copy what they keep.
    let value = unsafe { pg_sys::GetConfigOption(name.as_ptr(), true, false) };
    if value.is_null() {
        return None;
    }
    let bytes = unsafe { CStr::from_ptr(value) }.to_bytes();
    (!bytes.is_empty()).then_some(bytes)
}

/// Runs `work` with a search_path that holds nothing of the caller's, and quietly. Whatever settings
/// it changes, it leaves them as they were: a trigger could set the caller's search_path for later.
pub fn with_own_settings<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let mut settings = OwnSettings::begin(&[
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"client_min_messages", c"warning"),
        (c"check_function_bodies", c"on"),
    ]);
    settings.keeps_changes = false;
    work()
}

/// Runs `work` with a search_path of the system's schema and these.
pub fn with_search_path<T>(
    schemas: impl Iterator<Item = Oid>,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let names: Vec<String> = schemas.map(plan::schema_name).collect::<Result<_, _>>()?;
    let path = format!("pg_catalog, {}, pg_temp", names.join(", "));
    let path = CString::new(path).unwrap_or_default();
    let _settings = OwnSettings::begin(&[(c"search_path", &path)]);
    work()
}

/// Plans `work` for an index, whatever the statistics of a table say that fills and empties all day.
pub fn with_index_scans<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let _settings = OwnSettings::begin(&[(c"enable_seqscan", c"off"), (c"jit", c"off")]);
    work()
}

/// Settings for the length of some work, undone at its end or by the abort.
struct OwnSettings {
    level: i32,
    /// Whether what the work has set itself stays.
    keeps_changes: bool,
}

impl OwnSettings {
    fn begin(settings: &[(&CStr, &CStr)]) -> Self {
        // SAFETY: the level is closed in drop, or by the abort of the transaction.
        let level = Self { level: unsafe { pg_sys::NewGUCNestLevel() }, keeps_changes: true };
        for (name, value) in settings {
            // SAFETY: C strings that are copied; the action is undone with the level.
            unsafe {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
        }
        level
    }
}

impl Drop for OwnSettings {
    fn drop(&mut self) {
        // After an ERROR the abort of the transaction closes all levels.
        if !std::thread::panicking() {
            // SAFETY: the level opened in begin().
            unsafe { pg_sys::AtEOXact_GUC(self.keeps_changes, self.level) }
        }
    }
}
