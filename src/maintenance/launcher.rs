//! The process that starts a worker for each database from time to time.
//!
//! There is one where the library is in shared_preload_libraries. It is bound to no database and reads
//! nothing but the shared catalogs, so that a name without a database costs one warning and not a
//! failed connection each minute, and nobody's DROP DATABASE waits for it. It calls Postgres directly
//! where pgrx would keep the handle of each worker for ever, wait for a worker longer than for the end
//! of the server, or put its guards around a signal handler.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder};
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::prelude::*;

use crate::plan;
use crate::settings::{MAINTENANCE_DATABASE, MAINTENANCE_INTERVAL, MAINTENANCE_ROLE};

const LIBRARY: &str = "pg_conversation";
const LAUNCHER: &str = "pg_conversation launcher";

/// A worker that takes longer is left to itself; its database gets no other before it has ended.
const MOST_WAIT: Duration = Duration::from_secs(30);

unsafe extern "C-unwind" {
    // Not through pgrx, whose guards are not meant for signal handlers.
    fn SignalHandlerForShutdownRequest(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
}

/// Whether this server was started with the library preloaded; backends inherit it.
static IS_PRELOADED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Registers the launcher, while the server is starting.
pub fn register() {
    // SAFETY: reads globals. During pg_upgrade nothing may write.
    let is_time =
        unsafe { pg_sys::process_shared_preload_libraries_in_progress && !pg_sys::IsBinaryUpgrade };
    if is_time {
        IS_PRELOADED.store(true, std::sync::atomic::Ordering::Relaxed);
        // Once recovery has finished: on a standby there is none.
        BackgroundWorkerBuilder::new(LAUNCHER)
            .set_library(LIBRARY)
            .set_function("maintenance_launcher")
            .enable_spi_access()
            .set_restart_time(Some(Duration::from_secs(10)))
            .load();
    }
}

/// Whether the launcher is there and looks after this database.
#[pg_extern(stable, parallel_safe)]
fn has_maintenance_worker() -> bool {
    let here = unsafe {
        // SAFETY: the name of the session's own database, copied at once.
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        !name.is_null() && databases().iter().any(|of| of.as_c_str() == CStr::from_ptr(name))
    };
    here && IS_PRELOADED.load(std::sync::atomic::Ordering::Relaxed) && is_there()
}

/// Whether there is a launcher: it was not given a place if max_worker_processes is too few.
fn is_there() -> bool {
    // SAFETY: the entries are a copy of this transaction's; the type is a C string that is read at once.
    unsafe {
        (1..=pg_sys::pgstat_fetch_stat_numbackends()).any(|n| {
            #[cfg(feature = "pg15")]
            let entry = pg_sys::pgstat_fetch_stat_local_beentry(n);
            #[cfg(not(feature = "pg15"))]
            let entry = pg_sys::pgstat_get_local_beentry_by_index(n);
            if entry.is_null() {
                return false;
            }
            let process = pg_sys::GetBackgroundWorkerTypeByPid((*entry).backendStatus.st_procpid);
            !process.is_null() && CStr::from_ptr(process).to_bytes() == LAUNCHER.as_bytes()
        })
    }
}

fn databases() -> Vec<CString> {
    let list = MAINTENANCE_DATABASE.get().unwrap_or_default();
    let names = names(&list.to_string_lossy()).into_iter();
    names.filter_map(|name| CString::new(name).ok()).collect()
}

/// The names in a list, once each. One with a comma or a space at its end stands in double quotes.
fn names(list: &str) -> Vec<String> {
    let mut names: Vec<String> = vec![String::new()];
    let (mut is_quoted, mut rest) = (false, list.chars().peekable());
    // Where a quoted part ends, for spaces in it count.
    let mut kept = 0;
    while let (Some(c), Some(name)) = (rest.next(), names.last_mut()) {
        match c {
            '"' if is_quoted && rest.peek() == Some(&'"') => {
                rest.next();
                name.push('"');
            }
            '"' => {
                is_quoted = !is_quoted;
                kept = name.len();
            }
            ',' if !is_quoted => {
                name.truncate(kept.max(name.trim_end().len()));
                names.push(String::new());
                kept = 0;
            }
            c if !is_quoted && c.is_whitespace() && name.is_empty() => {}
            c => name.push(c),
        }
    }
    if let Some(name) = names.last_mut() {
        name.truncate(kept.max(name.trim_end().len()));
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}

/// The entry point that `register` names.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn maintenance_launcher(_argument: Datum) {
    // SAFETY: the first thing that a background worker does.
    unsafe {
        handle(pg_sys::SIGTERM as i32, SignalHandlerForShutdownRequest);
        handle(pg_sys::SIGHUP as i32, SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
    BackgroundWorker::connect_worker_to_spi(None, None);
    let mut launcher = Launcher::default();
    loop {
        let begin = Instant::now();
        let has_work = launcher.round();
        while !is_over() {
            let interval = Duration::from_secs(MAINTENANCE_INTERVAL.get().max(1) as u64);
            let left = interval.saturating_sub(begin.elapsed());
            if has_work && left.is_zero() {
                break;
            }
            sleep(has_work.then_some(left));
            // SAFETY: a flag that the handler sets; read here and nowhere else.
            unsafe {
                if pg_sys::ConfigReloadPending != 0 {
                    pg_sys::ConfigReloadPending = 0;
                    pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
                    launcher.complaints.clear();
                    if !has_work {
                        break;
                    }
                }
            }
        }
        if is_over() {
            // Postgres starts it again, unless the server is stopping.
            // SAFETY: ends the process.
            unsafe { pg_sys::proc_exit(1) }
        }
    }
}

/// Has a signal handled from now on.
///
/// # Safety
///
/// The handler does nothing that a signal handler may not do.
pub unsafe fn handle(signal: i32, handler: unsafe extern "C-unwind" fn(i32)) {
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal, Some(handler));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal, Some(handler));
    }
}

fn is_over() -> bool {
    // SAFETY: a flag that the signal handler sets.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}

/// Until a signal, or the time is over. Should the postmaster be gone, this process goes too.
fn sleep(time: Option<Duration>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if time.is_some() {
        events |= pg_sys::WL_TIMEOUT;
    }
    // A moment more, so as not to wake up just before.
    let millis = time.map_or(-1, |time| time.as_millis() as i64 + 1);
    // SAFETY: the latch of this process.
    unsafe {
        let extension = pg_sys::PG_WAIT_EXTENSION;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, millis, extension);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

#[derive(Default)]
struct Launcher {
    running: HashMap<CString, Handle>,
    /// What was last complained of, so that it is said once.
    complaints: HashMap<CString, String>,
}

impl Launcher {
    /// A worker for each database, one after another; false where there is none to look after.
    fn round(&mut self) -> bool {
        let databases = databases();
        self.running.retain(|_, worker| !worker.has_ended());
        for database in &databases {
            if is_over() {
                break;
            }
            if self.running.contains_key(database) {
                continue;
            }
            match find(database).and_then(start) {
                Ok(worker) => {
                    self.complaints.remove(database);
                    if !worker.wait() {
                        self.running.insert(database.clone(), worker);
                    }
                }
                Err(complaint) => self.complain(database, complaint),
            }
        }
        !databases.is_empty()
    }

    fn complain(&mut self, database: &CString, complaint: String) {
        if self.complaints.get(database) != Some(&complaint) {
            pgrx::warning!("no maintenance of database {database:?}: {complaint}");
            self.complaints.insert(database.clone(), complaint);
        }
    }
}

/// Where a worker has to connect, and as whom.
struct Target {
    name: String,
    database: Oid,
    role: Oid,
}

impl Target {
    fn pack(&self) -> Datum {
        Datum::from(u64::from(self.database.to_u32()) << 32 | u64::from(self.role.to_u32()))
    }
}

/// Database and role as `Target` packs them.
pub fn unpack(argument: Datum) -> (Oid, Oid) {
    let packed = argument.value() as u64;
    (Oid::from((packed >> 32) as u32), Oid::from(packed as u32))
}

/// Looks a database and the role up in the shared catalogs.
fn find(database: &CString) -> Result<Target, String> {
    let role = MAINTENANCE_ROLE.get().filter(|role| !role.is_empty());
    // SAFETY: a transaction of its own, in which nothing but look-ups happens; what they raise ends the
    // process, which is started again.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        let found = look_up(database, role.as_ref());
        pg_sys::CommitTransactionCommand();
        found
    }
}

/// # Safety
///
/// Within a transaction.
unsafe fn look_up(database: &CString, role: Option<&CString>) -> Result<Target, String> {
    let name = database.to_string_lossy().into_owned();
    let found = unsafe {
        find_row(pg_sys::DatabaseRelationId, |row: &pg_sys::FormData_pg_database| {
            // One that was being dropped when the server crashed has -2.
            let is_open = row.datallowconn && row.datconnlimit != -2;
            is_named(&row.datname, database).then_some((row.oid, is_open))
        })
    };
    let database = match found {
        None => return Err("there is no such database".into()),
        Some((_, false)) => return Err("it takes no connections".into()),
        Some((database, true)) => database,
    };
    let Some(role) = role else {
        return Ok(Target { name, database, role: Oid::INVALID });
    };
    let found = unsafe {
        find_row(pg_sys::AuthIdRelationId, |row: &pg_sys::FormData_pg_authid| {
            is_named(&row.rolname, role).then_some((row.oid, row.rolcanlogin))
        })
    };
    match found {
        None => Err(format!("there is no role {role:?}")),
        Some((_, false)) => Err(format!("role {role:?} may not log in")),
        Some((role, true)) => Ok(Target { name, database, role }),
    }
}

fn is_named(name: &pg_sys::NameData, wanted: &CStr) -> bool {
    // SAFETY: a name ends with a zero.
    unsafe { CStr::from_ptr(name.data.as_ptr()) == wanted }
}

/// The first row of a shared catalog that `read` finds something in. Row by row: without a database the
/// caches have no way to the indexes when the server has just been started.
///
/// # Safety
///
/// `Form` is the struct of the catalog, which is one that is known to every process.
unsafe fn find_row<Form, T>(catalog: Oid, read: impl Fn(&Form) -> Option<T>) -> Option<T> {
    unsafe {
        let relation = pg_sys::table_open(catalog, plan::READ_LOCK);
        let (none, keys) = (std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, Oid::INVALID, false, none, 0, keys);
        let mut found = None;
        while found.is_none() {
            let row = pg_sys::systable_getnext(scan);
            if row.is_null() {
                break;
            }
            found = read(&*pg_sys::GETSTRUCT(row).cast::<Form>());
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, plan::READ_LOCK);
        found
    }
}

/// A worker that was asked for.
struct Handle(*mut pg_sys::BackgroundWorkerHandle);

fn start(target: Target) -> Result<Handle, String> {
    let builder = BackgroundWorkerBuilder::new(&format!("pg_conversation in {}", target.name))
        .set_type("pg_conversation worker")
        .set_library(LIBRARY)
        .set_function("maintenance_worker")
        .enable_spi_access()
        .set_argument(Some(target.pack()));
    // SAFETY: the struct is copied; the handle is allocated where it stays until it is freed.
    unsafe {
        let mut worker = pg_sys::BackgroundWorker::from(&builder);
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let mut handle = std::ptr::null_mut();
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        if pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) {
            Ok(Handle(handle))
        } else {
            Err("all background workers are in use, see max_worker_processes".into())
        }
    }
}

impl Handle {
    fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle is valid until it is dropped.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) };
        status == pg_sys::BgwHandleStatus::BGWH_STOPPED
    }

    /// Waits for its end, which the postmaster tells, but no longer than is reasonable.
    fn wait(&self) -> bool {
        let begin = Instant::now();
        loop {
            if self.has_ended() {
                return true;
            }
            let left = MOST_WAIT.saturating_sub(begin.elapsed());
            if is_over() || left.is_zero() {
                return false;
            }
            sleep(Some(left));
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by Postgres, and nobody else has it.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_databases_is_taken_apart() {
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            (" , ,", &[]),
            ("chat", &["chat"]),
            (" chat , Shop", &["chat", "Shop"]),
            ("a b,c", &["a b", "c"]),
            ("\"a,b\",c", &["a,b", "c"]),
            ("\"a \" ,\"b\"\"c\"", &["a ", "b\"c"]),
            ("chat,chat", &["chat"]),
            ("\"chat", &["chat"]),
        ];
        for (list, expected) in cases {
            assert_eq!(names(list), expected, "{list}");
        }
    }
}
