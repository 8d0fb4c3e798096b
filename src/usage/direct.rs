//! A row of a sum changed where it lies, without a statement: an UPDATE of the two sums would cost more
//! than the event itself. Besides, a statement in a transaction with a snapshot of its own fails where
//! a row was changed since, and takes locks by which serializable transactions meet.
//!
//! That goes while a table is as migrate() made it; see `slots` for what is done otherwise.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};

use super::slots::Figures;
use crate::error::Error;
use crate::indexes::Indexes;
use crate::lookup::unique_index;
use crate::owner;
use crate::plan::{self, Row};

/// A table of sums: its key without the slot, and the key's index.
pub struct Sum {
    pub table: &'static CStr,
    pub index: &'static CStr,
    pub key: &'static [(&'static CStr, Oid, u32)],
    pub columns: i32,
}

pub enum Outcome {
    Added,
    /// There is none, or others have locked them all.
    NoFreeRow,
    NotPlain,
}

const FIGURES: [(&CStr, Oid); 5] = [
    (c"prompt_tokens", pg_sys::INT8OID),
    (c"completion_tokens", pg_sys::INT8OID),
    (c"request_count", pg_sys::INT8OID),
    (c"unpriced_count", pg_sys::INT8OID),
    (c"cost", pg_sys::NUMERICOID),
];

const MOST_KEYS: usize = 5;

/// Where everything is.
#[derive(Clone, Copy)]
struct Layout {
    index: Oid,
    keys: [pg_sys::ScanKeyData; MOST_KEYS],
    figures: [i32; FIGURES.len()],
    slot: i32,
}

thread_local! {
    static LAYOUTS: RefCell<HashMap<&'static CStr, (u64, Option<Layout>)>> = RefCell::default();
    /// Where the search for a row of a key begins: in the slot of the last time, so that writers at once
    /// do not all try the same rows, and one transaction adds to one.
    static PLACES: RefCell<HashMap<u64, i32>> = RefCell::default();
}

const ROW_EXCLUSIVE: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
const NO_LOCK: pg_sys::LOCKMODE = pg_sys::NoLock as pg_sys::LOCKMODE;

/// Places of more keys than these are not worth remembering.
const MOST_PLACES: usize = 256;

/// Lets the next search for a row of a key begin in this slot.
pub fn remember(key: u64, slot: i32) {
    PLACES.with_borrow_mut(|places| {
        if places.len() >= MOST_PLACES {
            places.clear();
        }
        places.insert(key, slot);
    });
}

/// Adds to the first row of the key that nobody has locked; `known` stands for the key.
pub fn add(
    sum: &'static Sum,
    known: u64,
    key: &[Datum],
    figures: &Figures,
) -> Result<Outcome, Error> {
    let relation = plan::open_for(plan::our_table(sum.table)?, ROW_EXCLUSIVE)?;
    // SAFETY: open, and locked to the end of the transaction.
    unsafe {
        let outcome = match layout(sum, relation)? {
            Some(mut layout) => add_in(relation, &mut layout, known, key, figures)?,
            None => Outcome::NotPlain,
        };
        pg_sys::table_close(relation, NO_LOCK);
        Ok(outcome)
    }
}

/// # Safety
///
/// The relation is open and locked.
unsafe fn add_in(
    relation: pg_sys::Relation,
    layout: &mut Layout,
    known: u64,
    key: &[Datum],
    figures: &Figures,
) -> Result<Outcome, Error> {
    for (scan_key, value) in layout.keys.iter_mut().zip(key) {
        scan_key.sk_argument = *value;
    }
    let start = PLACES.with_borrow(|places| places.get(&known).copied()).unwrap_or(0);
    let from = (pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_INT4GE, start);
    let before = (pg_sys::BTLessStrategyNumber, pg_sys::F_INT4LT, start);
    let ranges = if start > 0 { &[from, before][..] } else { &[from][..] };
    let slot = unsafe { pg_sys::table_slot_create(relation, std::ptr::null_mut()) };
    let mut added = false;
    for (strategy, function, bound) in ranges {
        let n = key.len();
        layout.keys[n].sk_strategy = *strategy as pg_sys::StrategyNumber;
        layout.keys[n].sk_argument = Datum::from(*bound);
        unsafe {
            pg_sys::fmgr_info(Oid::from(*function), &mut layout.keys[n].sk_func);
            added = add_in_range(relation, layout, known, n + 1, figures, slot)?;
        }
        if added {
            break;
        }
    }
    unsafe {
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        if added {
            // What follows in this command sees it.
            pg_sys::CommandCounterIncrement();
        }
    }
    Ok(if added { Outcome::Added } else { Outcome::NoFreeRow })
}

/// # Safety
///
/// The relation is open and locked, the slot is one of its own.
unsafe fn add_in_range(
    relation: pg_sys::Relation,
    layout: &Layout,
    known: u64,
    keys: usize,
    figures: &Figures,
    slot: *mut pg_sys::TupleTableSlot,
) -> Result<bool, Error> {
    let mut snapshot = pg_sys::SnapshotData {
        snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF,
        ..pg_sys::SnapshotData::default()
    };
    let snapshot: pg_sys::Snapshot = &mut snapshot;
    let mut added = false;
    unsafe {
        // The scan makes columns of the table ones of the index, in place.
        let mut scan_keys = layout.keys;
        let scan = pg_sys::systable_beginscan(
            relation,
            layout.index,
            true,
            snapshot,
            keys as i32,
            scan_keys.as_mut_ptr(),
        );
        loop {
            let found = pg_sys::systable_getnext(scan);
            if found.is_null() {
                break;
            }
            let mut at = (*found).t_self;
            // Otherwise somebody else has it, or it was folded into another, or has become one of
            // another key.
            if lock(relation, &mut at, snapshot, slot) == pg_sys::TM_Result::TM_Ok
                && has_key(relation, &layout.keys[..keys - 1], slot)
            {
                update(relation, layout, slot, figures)?;
                let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &mut false);
                let row = Row { tuple, desc: (*relation).rd_att };
                remember(known, row.get(layout.slot).unwrap_or(0));
                added = true;
                break;
            }
        }
        pg_sys::systable_endscan(scan);
    }
    Ok(added)
}

/// Locks the last version of a row unless somebody else has; the slot has it then.
///
/// # Safety
///
/// As for `add_in_range`.
unsafe fn lock(
    relation: pg_sys::Relation,
    at: pg_sys::ItemPointer,
    snapshot: pg_sys::Snapshot,
    slot: *mut pg_sys::TupleTableSlot,
) -> pg_sys::TM_Result::Type {
    unsafe {
        let Some(lock) = (*(*relation).rd_tableam).tuple_lock else {
            return pg_sys::TM_Result::TM_WouldBlock;
        };
        let mut failure = pg_sys::TM_FailureData::default();
        lock(
            relation,
            at,
            snapshot,
            slot,
            pg_sys::GetCurrentCommandId(true),
            pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
            pg_sys::LockWaitPolicy::LockWaitSkip,
            pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION as u8,
            &mut failure,
        )
    }
}

/// Whether the version that was locked, which may be a later one than was found, is of the key.
///
/// # Safety
///
/// The slot has a row of the relation; the keys are of its columns.
unsafe fn has_key(
    relation: pg_sys::Relation,
    keys: &[pg_sys::ScanKeyData],
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    unsafe {
        let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &mut false);
        let row = Row { tuple, desc: (*relation).rd_att };
        keys.iter().all(|key| {
            let function = std::ptr::from_ref(&key.sk_func).cast_mut();
            row.raw(key.sk_attno.into()).is_some_and(|value| {
                let (collation, wanted) = (key.sk_collation, key.sk_argument);
                pg_sys::FunctionCall2Coll(function, collation, value, wanted).value() != 0
            })
        })
    }
}

/// # Safety
///
/// The slot has a row that this transaction has locked.
unsafe fn update(
    relation: pg_sys::Relation,
    layout: &Layout,
    slot: *mut pg_sys::TupleTableSlot,
    figures: &Figures,
) -> Result<(), Error> {
    // Null, where the DBA lets it be.
    let changed = |n: usize| Error::ColumnChanged(FIGURES[n].0.to_string_lossy().into_owned());
    let counts =
        [figures.prompt_tokens, figures.completion_tokens, figures.requests, figures.unpriced];
    unsafe {
        let desc = (*relation).rd_att;
        let mut is_copy = false;
        let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &mut is_copy);
        let row = Row { tuple, desc };
        let mut values = [Datum::from(0); FIGURES.len()];
        for (n, more) in counts.iter().enumerate() {
            let sum: i64 = row.get(layout.figures[n]).ok_or_else(|| changed(n))?;
            values[n] = Datum::from(sum.checked_add(*more).ok_or(Error::SumTooLarge)?);
        }
        let cost = row.raw(layout.figures[4]).ok_or_else(|| changed(4))?;
        values[4] = pg_sys::OidFunctionCall2Coll(
            Oid::from(pg_sys::F_NUMERIC_ADD),
            Oid::INVALID,
            cost,
            figures.cost,
        );
        let (mut columns, mut nulls) = (layout.figures, [false; FIGURES.len()]);
        let new = pg_sys::heap_modify_tuple_by_cols(
            tuple,
            desc,
            columns.len() as i32,
            columns.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        );
        let mut at = (*slot).tts_tid;
        #[cfg(feature = "pg15")]
        {
            pg_sys::simple_heap_update(relation, &mut at, new);
            let is_heap_only =
                u32::from((*(*new).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE != 0;
            if !is_heap_only {
                index(relation, new, false);
            }
        }
        #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
        {
            use pg_sys::TU_UpdateIndexes::{self, *};
            let mut indexes: TU_UpdateIndexes::Type = TU_None;
            pg_sys::simple_heap_update(relation, &mut at, new, &mut indexes);
            if indexes != TU_None {
                index(relation, new, indexes == TU_Summarizing);
            }
        }
        pg_sys::heap_freetuple(new);
    }
    Ok(())
}

/// Entries for a version that does not lie on the page of the one before, or that an index of the DBA's
/// own tells from it.
///
/// # Safety
///
/// The tuple has just been written into the relation.
unsafe fn index(relation: pg_sys::Relation, tuple: pg_sys::HeapTuple, only_summarizing: bool) {
    unsafe {
        let indexes = Indexes::open(relation);
        let slot = pg_sys::MakeSingleTupleTableSlot(
            (*relation).rd_att,
            &raw const pg_sys::TTSOpsHeapTuple,
        );
        pg_sys::ExecStoreHeapTuple(tuple, slot, false);
        indexes.add(slot, only_summarizing);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        indexes.close();
    }
}

/// Where everything is in a table that is as migrate() made it, but for indexes that demand nothing;
/// `None` for another.
///
/// # Safety
///
/// The relation is open and locked.
unsafe fn layout(sum: &'static Sum, relation: pg_sys::Relation) -> Result<Option<Layout>, Error> {
    let generation = plan::generation();
    let known = LAYOUTS.with_borrow(|layouts| layouts.get(sum.table).copied());
    if let Some((of, layout)) = known
        && of == generation
    {
        return Ok(layout);
    }
    let layout = unsafe { is_plain(sum, relation) }.then(|| unsafe { find(sum, relation) });
    let layout = layout.flatten();
    LAYOUTS.with_borrow_mut(|layouts| layouts.insert(sum.table, (generation, layout)));
    Ok(layout)
}

/// # Safety
///
/// The relation is open and locked.
unsafe fn is_plain(sum: &Sum, relation: pg_sys::Relation) -> bool {
    unsafe {
        let (row, desc) = (&*(*relation).rd_rel, &*(*relation).rd_att);
        desc.natts == sum.columns
            && (*relation).rd_rules.is_null()
            && row.relam == pg_sys::HEAP_TABLE_AM_OID
            && !row.relispartition
            && !row.relhassubclass
            && row.relreplident as u8 == pg_sys::REPLICA_IDENTITY_DEFAULT
            && (desc.constr.is_null()
                || (*desc.constr).num_check == 0 && !(*desc.constr).has_generated_stored)
            && !owner::has_triggers(relation, |_, _| true)
            && has_simple_keys(relation)
    }
}

/// Whether no index excludes, or is checked later.
///
/// # Safety
///
/// The relation is open and locked.
unsafe fn has_simple_keys(relation: pg_sys::Relation) -> bool {
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

/// # Safety
///
/// The relation is open and locked.
unsafe fn find(sum: &Sum, relation: pg_sys::Relation) -> Option<Layout> {
    let (table, schema) = unsafe { ((*relation).rd_id, (*(*relation).rd_rel).relnamespace) };
    let column = |name: &CStr, of_type: Oid| unsafe {
        let desc = (*relation).rd_att;
        let n = pg_sys::SPI_fnumber(desc, name.as_ptr());
        (n > 0 && pg_sys::SPI_gettypeid(desc, n) == of_type).then_some(n)
    };
    let mut keys = [pg_sys::ScanKeyData::default(); MOST_KEYS];
    let mut columns = Vec::with_capacity(MOST_KEYS);
    let last = (c"slot", pg_sys::INT4OID, pg_sys::F_INT4GE);
    for (key, (name, of_type, equal)) in keys.iter_mut().zip(sum.key.iter().chain([&last])) {
        let n = column(name, *of_type)?;
        columns.push(n);
        // SAFETY: n is a column of the table; the function compares its type.
        unsafe {
            let (mut of, mut modifier, mut collation) = (Oid::INVALID, 0, Oid::INVALID);
            let n = n as pg_sys::AttrNumber;
            pg_sys::get_atttypetypmodcoll(table, n, &mut of, &mut modifier, &mut collation);
            pg_sys::ScanKeyEntryInitialize(
                key,
                0,
                n,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                Oid::INVALID,
                collation,
                Oid::from(*equal),
                Datum::from(0),
            );
        }
    }
    let mut figures = [0; FIGURES.len()];
    for (place, (name, of_type)) in figures.iter_mut().zip(FIGURES) {
        *place = column(name, of_type)?;
    }
    let index = unique_index(sum.index, schema, table, &columns)?;
    let slot = column(c"slot", pg_sys::INT4OID)?;
    Some(Layout { index, keys, figures, slot })
}
