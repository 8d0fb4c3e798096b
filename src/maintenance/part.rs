//! Parts of a transaction that may fail alone.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

use crate::error::{Error, OrRaise};

/// What an error said.
#[derive(Debug)]
pub struct Failure {
    /// As Postgres packs it: five characters of six bits each.
    code: i32,
    message: String,
}

impl Failure {
    /// Called while Postgres has the error still.
    fn of(cause: &CaughtError) -> Self {
        let (report, code) = match cause {
            // The code of somebody's own is none that pgrx knows.
            CaughtError::PostgresError(report) => (report, unsafe { pg_sys::geterrcode() }),
            CaughtError::ErrorReport(report) | CaughtError::RustPanic { ereport: report, .. } => {
                (report, report.sql_error_code() as i32)
            }
        };
        Self { code, message: report.message().into() }
    }

    /// The same, and whose it is.
    pub fn about(self, what: String) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    fn is(&self, code: PgSqlErrorCode) -> bool {
        self.code == code as i32
    }

    /// Whether somebody else was in the way.
    pub fn is_lock(&self) -> bool {
        self.is(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE)
            || self.is(PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED)
    }

    fn sqlstate(&self) -> String {
        (0..5).map(|n| char::from(b'0' + (self.code >> (6 * n) & 0x3F) as u8)).collect()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.sqlstate(), self.message)
    }
}

/// Runs `work` so that its error undoes what it has done and nothing else; but who cancels the statement
/// means all of it.
pub fn attempt<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Failure> {
    let part = Part::begin();
    let caught = move |cause: CaughtError| {
        let failure = Failure::of(&cause);
        if failure.is(PgSqlErrorCode::ERRCODE_QUERY_CANCELED)
            && matches!(cause, CaughtError::PostgresError(_))
        {
            part.undo_and_go_on();
        }
        Err(failure)
    };
    let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(work().or_raise())))
        .catch_others(caught)
        .catch_rust_panic(|cause| Err(Failure::of(&cause)))
        .execute();
    part.end(result.is_ok());
    result
}

/// What PL/pgSQL does for a block with an EXCEPTION clause.
#[derive(Clone, Copy)]
struct Part {
    context: pg_sys::MemoryContext,
    resources: pg_sys::ResourceOwner,
}

impl Part {
    fn begin() -> Self {
        // SAFETY: ended by end() or undo_and_go_on(), whatever happens in between.
        unsafe {
            let part = Self {
                context: pg_sys::CurrentMemoryContext,
                resources: pg_sys::CurrentResourceOwner,
            };
            pg_sys::BeginInternalSubTransaction(std::ptr::null());
            pg_sys::MemoryContextSwitchTo(part.context);
            part
        }
    }

    fn end(self, is_fine: bool) {
        // SAFETY: begun, and not ended yet.
        unsafe {
            if is_fine {
                pg_sys::ReleaseCurrentSubTransaction();
            } else {
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
            }
            pg_sys::MemoryContextSwitchTo(self.context);
            pg_sys::CurrentResourceOwner = self.resources;
        }
    }

    /// Lets the error that Postgres has at hand go on. The part does not outlive it: left open, it would be
    /// taken for a savepoint of the client's.
    fn undo_and_go_on(self) {
        // SAFETY: called by the handler of an error. Its data is copied to where it outlives the part.
        unsafe {
            pg_sys::MemoryContextSwitchTo(self.context);
            let error = pg_sys::CopyErrorData();
            pg_sys::FlushErrorState();
            self.end(false);
            pg_sys::ReThrowError(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_its_sqlstate() {
        let code = PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE as i32;
        let failure = Failure { code, message: "in the way".into() };
        assert!(failure.is_lock());
        assert_eq!(failure.to_string(), "55P03: in the way");
    }
}
