//! Every setting of the extension, in one place, and settings of the server for the length of some
//! work.

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::AssertUnwindSafe;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys::{self, Oid};
use pgrx::{PgTryBuilder, PostgresGucEnum, pg_guard};

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

/// Whether the database is one that no test data may be put into.
static PRODUCTION: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Databases that the background worker looks after; `None` for none.
pub static MAINTENANCE_DATABASE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(None);

/// The role it connects as; `None` for the bootstrap superuser.
pub static MAINTENANCE_ROLE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// Seconds from one of its runs to the next.
pub static MAINTENANCE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);

/// How long deleted conversations are kept; empty is for ever.
pub const KEEP_DELETED: &CStr = c"pg_conversation.keep_deleted";

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
    GucRegistry::define_bool_guc(
        c"pg_conversation.production",
        c"Whether this is a production database.",
        c"If it is, seed_test_data() refuses.",
        &PRODUCTION,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_conversation.maintenance_database",
        c"Databases, separated by commas, in which the background worker runs run_maintenance().",
        c"It runs where shared_preload_libraries has pg_conversation.",
        &MAINTENANCE_DATABASE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_conversation.maintenance_role",
        c"Role that the background worker connects as.",
        c"Empty is the superuser that initdb made; it becomes the owner of the tables.",
        &MAINTENANCE_ROLE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pg_conversation.maintenance_interval",
        c"Time from one run of the background worker to the next.",
        c"Which jobs are due then is said in maintenance_runs.",
        &MAINTENANCE_INTERVAL,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    define_keep_deleted();
    unsafe {
        // SAFETY: called from _PG_init; the name is a static C string.
        pg_sys::MarkGUCPrefixReserved(c"pg_conversation".as_ptr());
    }
}

/// pgrx defines no settings with a check of their own.
fn define_keep_deleted() {
    static mut VALUE: *mut c_char = std::ptr::null_mut();
    // SAFETY: called once from _PG_init; the strings are static, and so is the place for the value,
    // which only Postgres reads and writes.
    unsafe {
        pg_sys::DefineCustomStringVariable(
            KEEP_DELETED.as_ptr(),
            c"How long deleted conversations are kept, an interval.".as_ptr(),
            c"Empty is for ever. run_maintenance() removes what was deleted longer ago.".as_ptr(),
            &raw mut VALUE,
            c"30 days".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            0,
            Some(check_keep_deleted),
            None,
            None,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_keep_deleted(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: Postgres hands over a C string, or null for none.
    let is_fine = unsafe {
        let text = *value;
        text.is_null() || *text == 0 || interval_days(text).is_some_and(|d| (0..=DAYS).contains(&d))
    };
    if !is_fine {
        // SAFETY: Postgres takes the text into its message and forgets it.
        unsafe {
            let hint =
                c"Give an interval from 0 to 1000 years, such as 30 days, or nothing at all.";
            pg_sys::GUC_check_errhint_string = pg_sys::pstrdup(hint.as_ptr());
        }
    }
    is_fine
}

/// A thousand years of twelve such months.
const DAYS: i64 = 360_000;

/// An interval in whole days, a month being 30; `None` for what is none.
unsafe fn interval_days(text: *const c_char) -> Option<i64> {
    // A setting may be checked in any process of the server, at any time: this needs no catalog and no
    // transaction. Versions before 16 tell by an error what is no interval.
    unsafe extern "C-unwind" {
        fn interval_in(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum;
    }
    PgTryBuilder::new(AssertUnwindSafe(|| {
        let (text, none) = (pg_sys::Datum::from(text), pg_sys::Datum::from(0));
        // SAFETY: the arguments of interval_in: text, element type, modifier.
        let interval = unsafe {
            let parsed = pg_sys::DirectFunctionCall3Coll(
                Some(interval_in),
                Oid::INVALID,
                text,
                none,
                pg_sys::Datum::from(-1i32),
            );
            &*parsed.cast_mut_ptr::<pg_sys::Interval>()
        };
        let days = interval.time.div_euclid(86_400_000_000) + i64::from(interval.day);
        Some(days + 30 * i64::from(interval.month))
    }))
    .catch_others(|_| None)
    .execute()
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

/// Lets `work` wait for a lock so many milliseconds at most.
pub fn with_patience<T>(
    milliseconds: i32,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    // SAFETY: reads a setting.
    let own = unsafe { pg_sys::LockTimeout };
    if (1..=milliseconds).contains(&own) {
        return work();
    }
    let value = CString::new(milliseconds.to_string()).unwrap_or_default();
    let _settings = OwnSettings::begin(&[(c"lock_timeout", &value)]);
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
