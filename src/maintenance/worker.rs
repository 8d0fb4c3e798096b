//! The process that runs the jobs once, in one database.

use std::ffi::CStr;

use pgrx::bgworkers::BackgroundWorker;
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::prelude::*;

use super::launcher::{handle, unpack};
use super::run::{Outcome, run};
use crate::error::{Error, OrRaise};
use crate::owner;

unsafe extern "C-unwind" {
    // Not through pgrx, whose guards are not meant for signal handlers.
    fn die(signal: i32);
}

/// What the owner of the database may have set for all its sessions. The role comes first: what was set
/// before it would decide as whom this process looks at anything.
const SETTINGS: [(&CStr, &CStr); 9] = [
    (c"role", c"none"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"row_security", c"on"),
    (c"session_replication_role", c"origin"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"0"),
    (c"application_name", c"pg_conversation maintenance"),
];

/// The entry point that the launcher names.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn maintenance_worker(argument: Datum) {
    let (database, role) = unpack(argument);
    // SAFETY: the first thing that a background worker does. What comes by a signal ends it at the next
    // place where it may be interrupted, not in the midst of something.
    unsafe {
        handle(pg_sys::SIGTERM as i32, die);
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, role, 0);
        for (name, value) in SETTINGS {
            set(name, value);
        }
        pg_sys::pgstat_report_activity(
            pg_sys::BackendState::STATE_RUNNING,
            c"jobs of maintenance_runs".as_ptr(),
        );
    }
    let outcomes = BackgroundWorker::transaction(|| match keep_house() {
        // No extension, or tables of another version: nothing to do here, or not yet.
        Err(error @ (Error::NoExtension | Error::NotInstalled)) => {
            pgrx::debug1!("no maintenance: {error}");
            Vec::new()
        }
        other => other.or_raise(),
    });
    for Outcome { job, error, is_news, .. } in outcomes {
        if let Some(error) = error
            && is_news
        {
            pgrx::warning!("job {job} of maintenance_runs failed: {error}");
        }
    }
}

/// For a superuser, as what Postgres takes it for anyway: to ask who this is would need a transaction.
unsafe fn set(name: &CStr, value: &CStr) {
    unsafe {
        let (context, source) = (pg_sys::GucContext::PGC_SUSET, pg_sys::GucSource::PGC_S_SESSION);
        pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), context, source);
    }
}

/// Nothing of what somebody has put into this database runs before the session is that of the owner of
/// the tables: up to there the catalog alone is read. And he could go back from there, so that the run
/// is confined as well. Who the process is, is asked of the role that it has connected as: the database
/// may have settings that make it another.
fn keep_house() -> Result<Vec<Outcome>, Error> {
    // SAFETY: reads backend-local state and the catalog.
    unsafe {
        if pg_sys::get_extension_oid(c"pg_conversation".as_ptr(), true) == Oid::INVALID {
            return Err(Error::NoExtension);
        }
        let owner = owner::role()?;
        if !pg_sys::superuser_arg(pg_sys::GetAuthenticatedUserId()) {
            return run();
        }
        pg_sys::SetSessionAuthorization(owner, pg_sys::superuser_arg(owner));
        owner::as_owner_confined(owner, run)
    }
}
