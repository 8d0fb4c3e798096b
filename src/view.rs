//! What a command can see, so that answers can be kept for exactly as long as they hold.

use pgrx::pg_sys;

use crate::error::Error;

/// What the running command can see. While two commands see the same, an answer computed under one
/// holds under the other.
///
/// Between two snapshots with the same bounds the set of running transactions can only shrink, so
/// their number tells it. What a transaction has changed itself is told by its command and
/// subtransaction.
#[derive(Clone, Copy)]
pub struct View {
    bounds: (pg_sys::TransactionId, pg_sys::TransactionId),
    running: (u32, i32, bool),
    command: (pg_sys::CommandId, pg_sys::SubTransactionId),
    transaction: pg_sys::LocalTransactionId,
    has_xid: bool,
    /// End of the last record that this transaction wrote: a volatile function that is called by a
    /// running INSERT, UPDATE or DELETE sees more rows from call to call.
    written: pg_sys::XLogRecPtr,
    is_serializable: bool,
}

impl View {
    pub fn now() -> Option<Self> {
        // Policies ask for every row. These look at backend-local state and raise nothing, so they
        // go without the guard that pgrx puts around calls into Postgres.
        unsafe extern "C" {
            fn ActiveSnapshotSet() -> bool;
            fn GetActiveSnapshot() -> pg_sys::Snapshot;
            fn GetTopTransactionIdIfAny() -> pg_sys::TransactionId;
            fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
        }
        // SAFETY: called on the backend's own thread; the snapshot is not kept.
        unsafe {
            if !ActiveSnapshotSet() {
                return None;
            }
            let snapshot = &*GetActiveSnapshot();
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            let transaction = (*pg_sys::MyProc).lxid;
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let transaction = (*pg_sys::MyProc).vxid.lxid;
            Some(Self {
                bounds: (snapshot.xmin, snapshot.xmax),
                running: (snapshot.xcnt, snapshot.subxcnt, snapshot.suboverflowed),
                command: (snapshot.curcid, GetCurrentSubTransactionId()),
                transaction,
                has_xid: GetTopTransactionIdIfAny() != pg_sys::TransactionId::INVALID,
                written: pg_sys::XactLastRecEnd,
                is_serializable: pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32,
            })
        }
    }

    /// Within one transaction the command and what was written say it all, and an id that it gets in
    /// between changes nothing. In another transaction nothing may have been written under either
    /// view: one that writes later gets an id beyond the upper bound, and its end moves that.
    pub fn sees_what(&self, other: &View) -> bool {
        self.bounds == other.bounds
            && self.running == other.running
            && self.command == other.command
            && if self.transaction == other.transaction {
                self.written == other.written
            } else {
                // A kept answer takes none of the locks by which serializable transactions meet.
                !(self.has_xid || other.has_xid || self.is_serializable)
            }
    }
}

/// Whether an answer given under `then` holds now.
pub fn still_holds(then: Option<View>, now: Option<View>) -> bool {
    matches!((then, now), (Some(then), Some(now)) if now.sees_what(&then))
}

/// Runs `work` in a snapshot taken now, not when the statement or the transaction began.
pub fn now<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // SAFETY: popped below; after an ERROR the abort pops it.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let result = work();
    // SAFETY: the snapshot pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// The same where a transaction has one snapshot for all its statements: whoever was shut out since
/// writes no more. Elsewhere the statement's own is young enough.
pub fn latest<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // SAFETY: reads a global.
    if unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ as i32 {
        now(work)
    } else {
        work()
    }
}
