//! A row found again where it was before, for a fifth of the time that the way through the index takes.

use pgrx::itemptr::{
    item_pointer_get_block_number_no_check, item_pointer_get_offset_number_no_check,
};
use pgrx::pg_sys::{self, Buffer, ItemPointerData, Oid, TransactionId};

use crate::plan;

#[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
use pg_sys::RelFileLocator as File;
#[cfg(feature = "pg15")]
use pg_sys::RelFileNode as File;

/// Where a version of a row lies. While a command sees that version, it sees no other row under the
/// same unique key, and all that was read from it is still so.
#[derive(Clone, Copy)]
pub struct Place {
    table: Oid,
    /// Of the time when it was found: a table that is written anew gets another file.
    generation: u64,
    file: File,
    buffer: Buffer,
    at: ItemPointerData,
    xmin: TransactionId,
}

impl Place {
    /// The place of the row that a scan has just returned, in a table of the usual kind.
    ///
    /// # Safety
    ///
    /// The scan is of this relation, has returned a row, and goes through an index of the table.
    pub(super) unsafe fn of(relation: pg_sys::Relation, scan: pg_sys::SysScanDesc) -> Option<Self> {
        unsafe {
            let slot = (*scan).slot;
            if slot.is_null()
                || (*slot).tts_ops != &raw const pg_sys::TTSOpsBufferHeapTuple
                || (*(*relation).rd_rel).relam != pg_sys::HEAP_TABLE_AM_OID
            {
                return None;
            }
            let slot = &*slot.cast::<pg_sys::BufferHeapTupleTableSlot>();
            Some(Self::in_buffer(relation, slot.base.tuple, slot.buffer))
        }
    }

    /// The place of a version that lies in this buffer.
    ///
    /// # Safety
    ///
    /// The relation is open, of the usual kind; the buffer holds the page of it that the tuple is on.
    pub unsafe fn in_buffer(
        relation: pg_sys::Relation,
        tuple: pg_sys::HeapTuple,
        buffer: Buffer,
    ) -> Self {
        unsafe {
            #[cfg(feature = "pg15")]
            let file = (*relation).rd_node;
            #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
            let file = (*relation).rd_locator;
            Self {
                table: (*relation).rd_id,
                generation: plan::generation(),
                file,
                buffer,
                at: (*tuple).t_self,
                xmin: (*(*tuple).t_data).t_choice.t_heap.t_xmin,
            }
        }
    }

    /// The version, pinned so that nobody clears it away, if it still lies there: current or not. The
    /// caller unpins the buffer.
    ///
    /// # Safety
    ///
    /// The table is open and locked.
    pub unsafe fn pin(&self, table: pg_sys::Relation) -> Option<(Buffer, ItemPointerData)> {
        unsafe {
            let is_same = self.table == (*table).rd_id && self.read_again();
            is_same.then(|| {
                let is_there = self.item().is_some();
                pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
                if !is_there {
                    pg_sys::ReleaseBuffer(self.buffer);
                }
                is_there.then_some((self.buffer, self.at))
            })?
        }
    }

    /// Pins the buffer and locks its content, if it still holds the page.
    ///
    /// # Safety
    ///
    /// The table is locked.
    unsafe fn read_again(&self) -> bool {
        unsafe {
            let block = item_pointer_get_block_number_no_check(self.at);
            let is_same = self.generation == plan::generation()
                && pg_sys::ReadRecentBuffer(self.file, MAIN, block, self.buffer);
            if is_same {
                pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            }
            is_same
        }
    }

    /// Whether the running command sees this version. `false` may also mean that it would take
    /// longer to find out.
    pub fn still_holds(&self) -> bool {
        // SAFETY: the lock, which ends with the transaction, brings news of changes in and keeps the
        // table as it is. The buffer is pinned only if it still holds the block, and what lies there
        // is a page of this table.
        unsafe {
            // Serializable transactions meet by locks that only a scan takes.
            if !pg_sys::ActiveSnapshotSet()
                || pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32
            {
                return false;
            }
            pg_sys::LockRelationOid(self.table, plan::READ_LOCK);
            if !self.read_again() {
                return false;
            }
            let holds = self.item().is_some_and(|mut tuple| {
                let snapshot = pg_sys::GetActiveSnapshot();
                pg_sys::HeapTupleSatisfiesVisibility(&mut tuple, snapshot, self.buffer)
            });
            pg_sys::UnlockReleaseBuffer(self.buffer);
            holds
        }
    }

    /// The version, if no other lies in its place.
    ///
    /// # Safety
    ///
    /// The buffer is pinned and locked.
    unsafe fn item(&self) -> Option<pg_sys::HeapTupleData> {
        unsafe {
            let page = pg_sys::BufferGetPage(self.buffer);
            let offset = item_pointer_get_offset_number_no_check(self.at);
            if offset > pg_sys::PageGetMaxOffsetNumber(page) {
                return None;
            }
            let item = pg_sys::PageGetItemId(page, offset);
            if (*item).lp_flags() != pg_sys::LP_NORMAL {
                return None;
            }
            let tuple = pg_sys::HeapTupleData {
                t_len: (*item).lp_len(),
                t_self: self.at,
                t_tableOid: self.table,
                t_data: pg_sys::PageGetItem(page, item).cast(),
            };
            ((*tuple.t_data).t_choice.t_heap.t_xmin == self.xmin).then_some(tuple)
        }
    }
}

const MAIN: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;
