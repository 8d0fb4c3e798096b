//! The row of a tenant in rate_states, changed in place as a sequence is: at once, for everybody, and
//! whatever becomes of the transaction.
//!
//! An UPDATE would keep the row locked to the end of the request, and all requests of the tenant would
//! wait for each other; one that fails would have drawn nothing; and each would leave a dead row, and
//! wait for the disk. Here the page is locked for the length of a decision, and what changes goes into
//! the log by Postgres' interface for that (`generic_xlog.h`). Nothing is decided by next_at
//! but here, no index has it, and a row is never moved but by an UPDATE of the DBA's own, which is
//! waited for.

use std::cell::Cell;
use std::ptr;

use pgrx::itemptr::{
    item_pointer_get_block_number_no_check, item_pointer_get_offset_number_no_check,
};
use pgrx::pg_sys::{
    self, Buffer, Datum, FunctionCallInfo, ItemPointerData, Relation, TransactionId,
};
use pgrx::{Uuid, datum::TimestampWithTimeZone};

use crate::error::Error;
use crate::function::c_function;
use crate::heap;
use crate::lookup::{self, by_id};
use crate::owner::as_owner;
use crate::plan::{self, Statement, WRITE_LOCK, arg};
use crate::streaming::{self, is_restoring};
use crate::trigger::TriggerRow;
use crate::view::now;

static ADD: Statement = Statement {
    sql: "insert into @extschema@.rate_states (tenant_id, next_at) \
          values ($1, pg_catalog.clock_timestamp()) on conflict do nothing",
    types: &[pg_sys::UUIDOID],
};

/// A version of a tenant's row.
#[derive(Clone, Copy)]
struct Version {
    at: ItemPointerData,
    xmin: TransactionId,
    next_at: i64,
}

/// When all that was drawn will have come back; `None` if nothing ever was.
pub fn read(tenant: Uuid) -> Result<Option<i64>, Error> {
    Ok(find(tenant)?.map(|version| version.next_at))
}

fn find(tenant: Uuid) -> Result<Option<Version>, Error> {
    let keys = by_id(c"tenant_id", tenant)?;
    let found = now(|| {
        lookup::find(c"rate_states", c"rate_states_pkey", &keys, |row| {
            let next_at: TimestampWithTimeZone = row.named(c"next_at")?;
            // SAFETY: a row of a table.
            let (at, xmin) =
                unsafe { ((*row.tuple).t_self, (*(*row.tuple).t_data).t_choice.t_heap.t_xmin) };
            Some(Version { at, xmin, next_at: next_at.into() })
        })
    })?;
    match found {
        Some(None) => Err(Error::NoPlainStates),
        found => Ok(found.flatten()),
    }
}

/// Has `decide` look at what was drawn, while nobody else does, and writes what it says. An answer that
/// writes nothing needs no lock: what was drawn since it was read can only make it worse.
pub fn change<T>(tenant: Uuid, decide: impl Fn(i64) -> (T, Option<i64>)) -> Result<T, Error> {
    loop {
        // To the end of the work on it no index can come up, and what is seen is there to be looked at.
        let relation = plan::open_for(plan::our_table(c"rate_states")?, WRITE_LOCK)?;
        require_plain(relation)?;
        let seen = match find(tenant)? {
            None => Seen::Nothing,
            Some(version) => match decide(version.next_at) {
                (answer, None) => Seen::Answer(answer),
                // SAFETY: the table is open and locked.
                _ => unsafe { change_version(relation, tenant, version, &decide) },
            },
        };
        // SAFETY: opened above.
        unsafe { pg_sys::table_close(relation, WRITE_LOCK) };
        match seen {
            Seen::Answer(answer) => return Ok(answer),
            Seen::Nothing => add(tenant)?,
            Seen::Moved => (),
            Seen::NotPlain => return Err(Error::NoPlainStates),
            // SAFETY: shows this transaction what it has done.
            Seen::ChangedHere => unsafe { pg_sys::CommandCounterIncrement() },
            // SAFETY: waits, cancellable, with deadlocks detected, and holds no table open.
            Seen::ChangedBy(xid) => unsafe {
                let (relation, tuple) = (ptr::null_mut(), ptr::null_mut());
                pg_sys::XactLockTableWait(xid, relation, tuple, pg_sys::XLTW_Oper::XLTW_None);
            },
        }
        pgrx::check_for_interrupts!();
    }
}

c_function!(
    /// Gives a new tenant its row: one that were made by its first request would be taken back with
    /// that, and others would wait for it.
    make_rate_state, pg_finfo_make_rate_state, make
);

fn make(call: FunctionCallInfo) -> Result<Datum, Error> {
    let row = TriggerRow::inserted(call, c"tenants")?;
    // A dump brings the rows.
    if !is_restoring(row.table()) {
        add(row.get(c"id")?.ok_or(Error::Missing("id"))?)?;
    }
    Ok(row.finish())
}

/// For a tenant that has none, for somebody has deleted it. Others wait for the end of the transaction.
fn add(tenant: Uuid) -> Result<(), Error> {
    as_owner(&[c"rate_states", c"tenants"], || ADD.run(&[arg(tenant)], |_| ()))?;
    // SAFETY: makes the row visible to what follows in this transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
    Ok(())
}

/// What came of a look at the page.
enum Seen<T> {
    Answer(T),
    Nothing,
    /// It is to be found elsewhere now.
    Moved,
    /// It is shorter than it must be to be changed in place.
    NotPlain,
    /// The running command has changed the row otherwise.
    ChangedHere,
    /// Another transaction has, or is about to.
    ChangedBy(TransactionId),
}

/// # Safety
///
/// The relation is open, locked and plain, and the version was seen under that lock: its block is
/// there. What lies in it by now is looked at under the lock of the page.
unsafe fn change_version<T>(
    relation: Relation,
    tenant: Uuid,
    version: Version,
    decide: &impl Fn(i64) -> (T, Option<i64>),
) -> Seen<T> {
    unsafe {
        let block = item_pointer_get_block_number_no_check(version.at);
        let buffer = pg_sys::ReadBuffer(relation, block);
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
        let seen = match place(buffer, tenant, version) {
            Ok(offset) => {
                let next_at = pg_sys::BufferGetPage(buffer).cast::<u8>().add(offset).cast::<i64>();
                let (answer, written) = decide(next_at.read());
                if let Some(written) = written {
                    write(relation, buffer, offset, written);
                }
                Seen::Answer(answer)
            }
            Err(seen) => seen,
        };
        pg_sys::UnlockReleaseBuffer(buffer);
        seen
    }
}

/// Where on the page next_at is, if the version is the latest one.
///
/// # Safety
///
/// The buffer is pinned and locked.
unsafe fn place<T>(buffer: Buffer, tenant: Uuid, version: Version) -> Result<usize, Seen<T>> {
    const KEY: usize = 16;
    unsafe {
        let page = pg_sys::BufferGetPage(buffer);
        let n = item_pointer_get_offset_number_no_check(version.at);
        if n > pg_sys::PageGetMaxOffsetNumber(page) {
            return Err(Seen::Moved);
        }
        let item = pg_sys::PageGetItemId(page, n);
        if (*item).lp_flags() != pg_sys::LP_NORMAL {
            return Err(Seen::Moved);
        }
        let header = pg_sys::PageGetItem(page, item).cast::<pg_sys::HeapTupleHeaderData>();
        // A column that was added later may not be in it.
        let columns = u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
        let marks = u32::from((*header).t_infomask);
        let has_nulls = marks & pg_sys::HEAP_HASNULL != 0;
        let least = usize::from((*header).t_hoff) + KEY + size_of::<i64>();
        if least > (*item).lp_len() as usize
            || columns < 2
            || has_nulls && (*header).t_bits.as_slice(1)[0] & 0b11 != 0b11
        {
            return Err(Seen::NotPlain);
        }
        let row = (*item).lp_off() as usize + usize::from((*header).t_hoff);
        let key = std::slice::from_raw_parts(page.cast::<u8>().add(row), KEY);
        if (*header).t_choice.t_heap.t_xmin != version.xmin || key != tenant.as_bytes() {
            return Err(Seen::Moved);
        }
        let is_latest = marks & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_LOCK_ONLY) != 0;
        if !is_latest {
            let by = if marks & pg_sys::HEAP_XMAX_IS_MULTI == 0 {
                (*header).t_choice.t_heap.t_xmax
            } else {
                pg_sys::HeapTupleGetUpdateXid(header)
            };
            if pg_sys::TransactionIdIsCurrentTransactionId(by) {
                return Err(Seen::ChangedHere);
            }
            if pg_sys::TransactionIdIsInProgress(by) || pg_sys::TransactionIdDidCommit(by) {
                return Err(Seen::ChangedBy(by));
            }
        }
        Ok(row + KEY)
    }
}

/// # Safety
///
/// The buffer is pinned and locked against everybody, and has a timestamp at `offset`.
unsafe fn write(relation: Relation, buffer: Buffer, offset: usize, next_at: i64) {
    // Beside tokens it is nothing that a commit should wait for the disk for.
    let logged = streaming::tokens(|| unsafe {
        let state = pg_sys::GenericXLogStart(relation);
        let page = pg_sys::GenericXLogRegisterBuffer(state, buffer, 0);
        page.cast::<u8>().add(offset).cast::<i64>().write(next_at);
        pg_sys::GenericXLogFinish(state);
        Ok::<(), std::convert::Infallible>(())
    });
    let Ok(()) = logged;
}

thread_local! {
    static PLAIN: Cell<Option<(u64, pg_sys::Oid)>> = const { Cell::new(None) };
}

/// A row changed in place must be one of a heap, with next_at behind the key, and in no index.
fn require_plain(relation: Relation) -> Result<(), Error> {
    // SAFETY: the table is open and locked.
    unsafe {
        let found = (plan::generation(), (*relation).rd_id);
        if PLAIN.get() == Some(found) {
            return Ok(());
        }
        let has = |n: i32, name, of_type| {
            heap::column(relation, name, of_type) == Some(n) && is_stored((*relation).rd_id, n)
        };
        let indexes = pg_sys::RelationGetIndexList(relation);
        let (schema, table) = ((*(*relation).rd_rel).relnamespace, (*relation).rd_id);
        let is_plain = (*(*relation).rd_rel).relam == pg_sys::HEAP_TABLE_AM_OID
            && !(*(*relation).rd_rel).relispartition
            && has(1, c"tenant_id", pg_sys::UUIDOID)
            && has(2, c"next_at", pg_sys::TIMESTAMPTZOID)
            && !indexes.is_null()
            && (*indexes).length == 1
            && lookup::unique_index(c"rate_states_pkey", schema, table, &[1]).is_some();
        if !is_plain {
            return Err(Error::NoPlainStates);
        }
        PLAIN.set(Some(found));
        Ok(())
    }
}

/// Whether each row has a value of its own in a column.
fn is_stored(table: pg_sys::Oid, n: i32) -> bool {
    plan::column(table, n, |column| column.attnotnull && !column.atthasmissing) == Some(true)
}
