//! Rows written into a table without a statement, as the executor does it: for what is written so often
//! that a statement would cost more than its row.

use std::ffi::CStr;

use pgrx::FromDatum;
use pgrx::pg_sys::{self, Datum, Oid};

use crate::owner;
use crate::plan;

/// A table as migrate() makes it.
pub struct Shape {
    pub columns: usize,
    /// Names of checks and what they ask, which holds for every row that is written.
    pub checks: &'static [(&'static CStr, &'static str)],
    /// Names of triggers, for which the writer answers.
    pub triggers: &'static [&'static CStr],
}

/// Whether an INSERT into a table, by its owner, would do no more than to store the row and its index
/// entries.
///
/// # Safety
///
/// The relation is open and locked.
pub unsafe fn is_plain(relation: pg_sys::Relation, shape: &Shape) -> bool {
    unsafe {
        let (row, desc) = (&*(*relation).rd_rel, &*(*relation).rd_att);
        let checks = if desc.constr.is_null() { 0 } else { (*desc.constr).num_check };
        desc.natts as usize == shape.columns
            && (*relation).rd_rules.is_null()
            && row.relam == pg_sys::HEAP_TABLE_AM_OID
            && !row.relispartition
            && !row.relhassubclass
            && (1..=desc.natts).all(|n| takes_any_value((*relation).rd_id, n))
            && usize::from(checks) == shape.checks.len()
            && shape.checks.iter().all(|(name, asks)| has_check((*relation).rd_id, name, asks))
            && !owner::has_triggers(relation, |trigger, is_ours| {
                !is_ours || !shape.triggers.contains(&CStr::from_ptr(trigger.tgname))
            })
    }
}

/// Whether a column takes the values of its type as they are.
fn takes_any_value(table: Oid, n: i32) -> bool {
    let as_they_are = |column: &pg_sys::FormData_pg_attribute| {
        column.atttypmod == -1 && column.attidentity == 0 && column.attgenerated == 0
    };
    plan::column(table, n, as_they_are) == Some(true)
}

/// The number of a column of a type.
///
/// # Safety
///
/// The relation is open.
pub unsafe fn column(relation: pg_sys::Relation, name: &CStr, of_type: Oid) -> Option<i32> {
    unsafe {
        let desc = (*relation).rd_att;
        let n = pg_sys::SPI_fnumber(desc, name.as_ptr());
        (n > 0 && pg_sys::SPI_gettypeid(desc, n) == of_type).then_some(n)
    }
}

/// Whether there is a check of a name, and it asks this.
fn has_check(table: Oid, name: &CStr, asks: &str) -> bool {
    // SAFETY: looks a name up, and spells what was found as SQL.
    unsafe {
        let check = pg_sys::get_relation_constraint_oid(table, name.as_ptr(), true);
        check != Oid::INVALID && {
            let spell = pg_sys::F_PG_GET_CONSTRAINTDEF_OID;
            let text = pg_sys::OidFunctionCall1Coll(spell, Oid::INVALID, Datum::from(check));
            <&str>::from_datum(text, false) == Some(asks)
        }
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

impl Indexes {
    /// # Safety
    ///
    /// The table is open, and locked for writing, until they are closed. An ERROR leaves the clean-up to
    /// the abort.
    pub unsafe fn open(relation: pg_sys::Relation) -> Self {
        unsafe { Self::open_for(relation, false) }
    }

    /// The same for rows that may be there already.
    ///
    /// # Safety
    ///
    /// As for `open`.
    pub unsafe fn open_to_compare(relation: pg_sys::Relation) -> Self {
        unsafe { Self::open_for(relation, true) }
    }

    unsafe fn open_for(relation: pg_sys::Relation, compares: bool) -> Self {
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let target = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>());
            let target = target.cast::<pg_sys::ResultRelInfo>();
            (*target).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            (*target).ri_RelationDesc = relation;
            pg_sys::ExecOpenIndices(target, compares);
            Self { target, state }
        }
    }

    /// Entries for a row that has just been written into the table.
    ///
    /// # Safety
    ///
    /// The slot has it.
    pub unsafe fn add(&self, slot: *mut pg_sys::TupleTableSlot) {
        unsafe { self.enter(slot, None, false) };
    }

    /// Entries for a new version of a row, of which only summarizing indexes need one, maybe.
    ///
    /// # Safety
    ///
    /// As for `add`.
    pub unsafe fn add_version(&self, slot: *mut pg_sys::TupleTableSlot, only_summarizing: bool) {
        unsafe { self.enter(slot, None, only_summarizing) };
    }

    /// Writes a row unless its key in this index is there; whether it did. Whoever is about to bring the same
    /// key is waited for.
    ///
    /// # Safety
    ///
    /// The slot has the row; the indexes are open for it, all are checked at once and none excludes.
    pub unsafe fn insert_if_new(&self, slot: *mut pg_sys::TupleTableSlot, key: Oid) -> bool {
        unsafe {
            let relation = (*self.target).ri_RelationDesc;
            let routines = &*(*relation).rd_tableam;
            let (Some(insert), Some(complete)) =
                (routines.tuple_insert_speculative, routines.tuple_complete_speculative)
            else {
                return false;
            };
            let arbiters = pg_sys::lappend_oid(std::ptr::null_mut(), key);
            loop {
                pgrx::check_for_interrupts!();
                if !self.is_new(slot, arbiters) {
                    return false;
                }
                let transaction = pg_sys::GetCurrentTransactionId();
                // Others who meet the entry wait for the attempt, not for the transaction.
                let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
                let (command, none) = (pg_sys::GetCurrentCommandId(true), std::ptr::null_mut());
                insert(relation, slot, command, 0, none, token);
                let was_new = self.enter(slot, Some(arbiters), false);
                complete(relation, slot, token, was_new);
                pg_sys::SpeculativeInsertionLockRelease(transaction);
                // Otherwise somebody has brought the key in between.
                if was_new {
                    return true;
                }
            }
        }
    }

    unsafe fn is_new(
        &self,
        slot: *mut pg_sys::TupleTableSlot,
        arbiters: *mut pg_sys::List,
    ) -> bool {
        let mut found = pg_sys::ItemPointerData::default();
        let found = &raw mut found;
        unsafe {
            #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
            let is_new =
                pg_sys::ExecCheckIndexConstraints(self.target, slot, self.state, found, arbiters);
            #[cfg(feature = "pg18")]
            let is_new = pg_sys::ExecCheckIndexConstraints(
                self.target,
                slot,
                self.state,
                found,
                &mut pg_sys::ItemPointerData::default(),
                arbiters,
            );
            is_new
        }
    }

    /// Raises an error for a key that there is; says so, if it is in one of these indexes.
    unsafe fn enter(
        &self,
        slot: *mut pg_sys::TupleTableSlot,
        arbiters: Option<*mut pg_sys::List>,
        #[cfg_attr(feature = "pg15", allow(unused_variables))] only_summarizing: bool,
    ) -> bool {
        let mut is_known = false;
        let (conflict, tells) = (&raw mut is_known, arbiters.is_some());
        let arbiters = arbiters.unwrap_or(std::ptr::null_mut());
        let (target, state) = (self.target, self.state);
        unsafe {
            #[cfg(feature = "pg15")]
            pg_sys::ExecInsertIndexTuples(target, slot, state, false, tells, conflict, arbiters);
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
