//! Rows written into a table without a statement, as the executor does it: for what is written so often
//! that a statement would cost more than its row.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum};

use crate::owner;
use crate::plan;

/// Whether an INSERT into a table, by its owner, would do no more than to store the row and its index
/// entries: it has so many columns, checks of these names at most, whatever they ask holds for the row,
/// and triggers of the extension's own, which the caller answers for.
///
/// # Safety
///
/// The relation is open and locked.
pub unsafe fn is_plain(relation: pg_sys::Relation, columns: usize, checks: &[&CStr]) -> bool {
    unsafe {
        let (row, desc) = (&*(*relation).rd_rel, &*(*relation).rd_att);
        let has_known_checks = || {
            let constraints = &*desc.constr;
            !constraints.has_generated_stored
                && (0..usize::from(constraints.num_check)).all(|n| {
                    let name = (*constraints.check.add(n)).ccname;
                    checks.contains(&CStr::from_ptr(name))
                })
        };
        desc.natts as usize == columns
            && (*relation).rd_rules.is_null()
            && row.relam == pg_sys::HEAP_TABLE_AM_OID
            && !row.relispartition
            && !row.relhassubclass
            && (desc.constr.is_null() || has_known_checks())
            && !owner::has_triggers(relation, |_, is_ours| !is_ours)
    }
}

/// Whether no index excludes, or is checked later.
///
/// # Safety
///
/// The relation is open and locked.
pub unsafe fn has_simple_keys(relation: pg_sys::Relation) -> bool {
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(relation);
        let count = if indexes.is_null() { 0 } else { (*indexes).length as usize };
        (0..count).all(|n| {
            let index = (*(*indexes).elements.add(n)).oid_value;
            let is_simple =
                |row: &pg_sys::FormData_pg_index| row.indimmediate && !row.indisexclusion;
            let cache = pg_sys::SysCacheIdentifier::INDEXRELID;
            plan::cached(cache, Datum::from(index), is_simple) == Some(true)
        })
    }
}

/// A row to be: the columns that have a value, by their numbers.
///
/// # Safety
///
/// The slot is one of the table; the columns have these types.
pub unsafe fn fill(slot: *mut pg_sys::TupleTableSlot, columns: &[i32], values: &[Option<Datum>]) {
    unsafe {
        if let Some(clear) = (*(*slot).tts_ops).clear {
            clear(slot);
        }
        let count = (*(*slot).tts_tupleDescriptor).natts as usize;
        std::slice::from_raw_parts_mut((*slot).tts_isnull, count).fill(true);
        for (column, value) in columns.iter().zip(values) {
            let n = *column as usize - 1;
            *(*slot).tts_isnull.add(n) = value.is_none();
            *(*slot).tts_values.add(n) = value.unwrap_or(Datum::from(0));
        }
        pg_sys::ExecStoreVirtualTuple(slot);
    }
}

/// The open indexes of a table.
pub struct Indexes {
    target: *mut pg_sys::ResultRelInfo,
    state: *mut pg_sys::EState,
}

/// What to do about entries.
#[derive(Clone, Copy, Default)]
struct Options {
    /// Not to raise an error for a key that there is, but to say so.
    tells: bool,
    only_summarizing: bool,
}

impl Indexes {
    /// # Safety
    ///
    /// The table is open, and locked for writing, until they are closed. An ERROR leaves the clean-up to
    /// the abort.
    pub unsafe fn open(relation: pg_sys::Relation) -> Self {
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let target = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>());
            let target = target.cast::<pg_sys::ResultRelInfo>();
            (*target).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            (*target).ri_RelationDesc = relation;
            pg_sys::ExecOpenIndices(target, false);
            Self { target, state }
        }
    }

    /// Entries for a row that has just been written into the table.
    ///
    /// # Safety
    ///
    /// The slot has it.
    pub unsafe fn add(&self, slot: *mut pg_sys::TupleTableSlot) {
        unsafe { self.enter(slot, Options::default()) };
    }

    /// Entries for a new version of a row, of which only summarizing indexes need one, maybe.
    ///
    /// # Safety
    ///
    /// As for `add`.
    pub unsafe fn add_version(&self, slot: *mut pg_sys::TupleTableSlot, only_summarizing: bool) {
        unsafe { self.enter(slot, Options { only_summarizing, ..Options::default() }) };
    }

    /// Writes a row unless some key of it is there, or is being written; whether it did. Nobody is waited
    /// for: what is left of the attempt is for vacuum, so this is for keys that are new as a rule.
    ///
    /// # Safety
    ///
    /// The slot has the row; the unique indexes are checked at once and none excludes.
    pub unsafe fn insert_if_new(&self, slot: *mut pg_sys::TupleTableSlot) -> bool {
        unsafe {
            let relation = (*self.target).ri_RelationDesc;
            let routines = &*(*relation).rd_tableam;
            let (Some(insert), Some(complete)) =
                (routines.tuple_insert_speculative, routines.tuple_complete_speculative)
            else {
                return false;
            };
            let transaction = pg_sys::GetCurrentTransactionId();
            // Others who meet the entry wait for the attempt, not for the transaction.
            let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
            let (command, none) = (pg_sys::GetCurrentCommandId(true), std::ptr::null_mut());
            insert(relation, slot, command, 0, none, token);
            let is_new = self.enter(slot, Options { tells: true, ..Options::default() });
            complete(relation, slot, token, is_new);
            pg_sys::SpeculativeInsertionLockRelease(transaction);
            is_new
        }
    }

    unsafe fn enter(&self, slot: *mut pg_sys::TupleTableSlot, options: Options) -> bool {
        let Options { tells, only_summarizing } = options;
        let mut is_known = false;
        let (conflict, arbiters) = (&raw mut is_known, std::ptr::null_mut());
        let (target, state) = (self.target, self.state);
        unsafe {
            #[cfg(feature = "pg15")]
            {
                let _ = only_summarizing;
                pg_sys::ExecInsertIndexTuples(
                    target, slot, state, false, tells, conflict, arbiters,
                );
            }
            #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
            pg_sys::ExecInsertIndexTuples(
                target,
                slot,
                state,
                false,
                tells,
                conflict,
                arbiters,
                only_summarizing,
            );
        }
        !is_known
    }

    /// # Safety
    ///
    /// The table is still open.
    pub unsafe fn close(self) {
        unsafe {
            pg_sys::ExecCloseIndices(self.target);
            pg_sys::FreeExecutorState(self.state);
        }
    }
}
