//! What this backend remembers of the message it last added to. A producer sends its next window to
//! the same backend as a rule, and then two look-ups through indexes can be left out: a third of an
//! append.

use std::cell::Cell;

use pgrx::Uuid;
use pgrx::itemptr::item_pointer_get_block_number_no_check;
use pgrx::pg_sys::{self, ItemPointerData, Oid, TransactionId};

use super::message::Message;
use crate::error::Error;
use crate::plan::{self, READ_LOCK, Row};

/// A version of a row, and where it lies.
#[derive(Clone, Copy)]
pub struct Version {
    table: Oid,
    place: ItemPointerData,
    xmin: TransactionId,
}

impl Version {
    pub fn of(row: &Row) -> Self {
        // SAFETY: a row of a table.
        unsafe {
            let tuple = &*row.tuple;
            Self { table: tuple.t_tableOid, place: tuple.t_self, xmin: xmin(tuple) }
        }
    }

    /// Whether it is still the row's latest, and no transaction that still runs has it locked against
    /// changes. A table that was written anew since `generation` may have another row in its place;
    /// locking it brings the news.
    pub fn is_free(&self, generation: u64) -> Result<bool, Error> {
        let relation = plan::open(self.table)?;
        // SAFETY: the table is open and locked; a block that was cut off is not read. The place may
        // hold another row by now, which another transaction has written.
        let free = unsafe {
            let mut tuple = pg_sys::HeapTupleData { t_self: self.place, ..Default::default() };
            let mut buffer = 0;
            let block = item_pointer_get_block_number_no_check(tuple.t_self);
            let found = generation == plan::generation()
                && (*(*relation).rd_rel).relam == pg_sys::HEAP_TABLE_AM_OID
                && block < pg_sys::RelationGetNumberOfBlocksInFork(relation, MAIN)
                && pg_sys::heap_fetch(relation, self_snapshot(), &mut tuple, &mut buffer, false);
            let mut free = false;
            if found {
                // The marks and the number belong together.
                pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
                let marks = u32::from((*tuple.t_data).t_infomask);
                let xmax = (*tuple.t_data).t_choice.t_heap.t_xmax;
                pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
                free = xmin(&tuple) == self.xmin && !is_held(marks, xmax);
                pg_sys::ReleaseBuffer(buffer);
            }
            pg_sys::table_close(relation, READ_LOCK);
            free
        };
        Ok(free)
    }
}

const MAIN: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;

fn self_snapshot() -> pg_sys::Snapshot {
    &raw mut pg_sys::SnapshotSelfData
}

/// Whether the marks of a row say that another transaction that still runs has it. Locks that only
/// keep the key, those of foreign keys, do not count.
fn is_held(marks: u32, xmax: TransactionId) -> bool {
    let key_only = pg_sys::HEAP_XMAX_LOCK_ONLY | pg_sys::HEAP_XMAX_KEYSHR_LOCK;
    let strength = key_only | pg_sys::HEAP_XMAX_EXCL_LOCK;
    // SAFETY: look-ups in backend-local and shared memory.
    unsafe {
        if marks & pg_sys::HEAP_XMAX_INVALID != 0 {
            false
        } else if marks & pg_sys::HEAP_XMAX_IS_MULTI != 0 {
            pg_sys::MultiXactIdIsRunning(xmax, false)
        } else {
            marks & strength != key_only
                && !pg_sys::TransactionIdIsCurrentTransactionId(xmax)
                && pg_sys::TransactionIdIsInProgress(xmax)
        }
    }
}

/// # Safety
///
/// The tuple must be in memory.
unsafe fn xmin(tuple: &pg_sys::HeapTupleData) -> TransactionId {
    unsafe { (*tuple.t_data).t_choice.t_heap.t_xmin }
}

/// The index after the last chunk that this backend added, if it added it at the end.
#[derive(Clone, Copy)]
struct Memory {
    message: Message,
    next: Option<i32>,
    generation: u64,
}

thread_local! {
    static LAST: Cell<Option<Memory>> = const { Cell::new(None) };
}

fn of(id: Uuid) -> Option<Memory> {
    LAST.get().filter(|last| last.message.id == id)
}

/// When a transaction or a part of it is rolled back.
pub fn forget() {
    LAST.set(None);
}

pub fn keep(message: &Message) {
    LAST.set(Some(Memory { message: *message, next: None, generation: plan::generation() }));
}

/// The conversation of the message, which it never leaves.
pub fn conversation(id: Uuid) -> Option<Uuid> {
    of(id).map(|last| last.message.conversation)
}

/// The message, if nothing has changed it since; if something has, nothing is remembered of it any
/// more. Whoever asks holds its lock.
pub fn recall(id: Uuid) -> Result<Option<Message>, Error> {
    let Some(last) = of(id) else { return Ok(None) };
    if last.message.version.is_free(last.generation)? {
        return Ok(Some(last.message));
    }
    forget();
    Ok(None)
}

pub fn keep_next(id: Uuid, next: i32) {
    if let Some(last) = of(id) {
        LAST.set(Some(Memory { next: Some(next), ..last }));
    }
}

/// Where the next chunk goes, unless another backend has put one there or further on since.
pub fn next(id: Uuid) -> Option<i32> {
    of(id)?.next
}
