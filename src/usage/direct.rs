//! A row of a sum changed where it lies, without a statement: three UPDATEs would cost more than the event
//! itself. Besides, a statement in a transaction with a snapshot of its own fails where
//! a row was changed since, and takes locks by which serializable transactions meet.
//!
//! That goes while a table is as migrate() made it; see `slots` for what is done otherwise.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::itemptr::item_pointer_get_block_number_no_check;
use pgrx::pg_sys::{self, Datum, Oid};

use super::slots::Figures;
use crate::error::Error;
use crate::heap::{self, Indexes, Shape};
use crate::lookup::{Place, unique_index};
use crate::plan::{self, NO_LOCK, Row, WRITE_LOCK};

/// A table of sums: its key without the slot, and the key's index.
pub struct Sum {
    pub table: &'static CStr,
    pub index: &'static CStr,
    pub key: &'static [(&'static CStr, Oid, u32)],
    pub columns: usize,
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
    /// do not all try the same rows, and one transaction adds to one; at the version of the last time,
    /// if it is known, for the way through the index leads past all that were there before it.
    static PLACES: RefCell<HashMap<u64, (i32, Option<Place>)>> = RefCell::default();
}

/// Places of more keys than these are not worth remembering.
const MOST_PLACES: usize = 256;

/// Lets the next search for a row of a key begin in this slot.
pub fn remember(key: u64, slot: i32) {
    remember_place(key, slot, None);
}

fn remember_place(key: u64, slot: i32, place: Option<Place>) {
    PLACES.with_borrow_mut(|places| {
        if places.len() >= MOST_PLACES {
            places.clear();
        }
        places.insert(key, (slot, place));
    });
}

/// Adds to the first row of the key that nobody has locked; `known` stands for the key.
pub fn add(
    sum: &'static Sum,
    known: u64,
    key: &[Datum],
    figures: &Figures,
) -> Result<Outcome, Error> {
    let relation = plan::open_for(plan::our_table(sum.table)?, WRITE_LOCK)?;
    // SAFETY: open, and locked to the end of the transaction.
    unsafe {
        let outcome = match layout(sum, relation)? {
            Some(mut layout) => {
                for (scan_key, value) in layout.keys.iter_mut().zip(key) {
                    scan_key.sk_argument = *value;
                }
                let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
                let added = Addition { relation, layout, known, figures, slot }.add(key.len())?;
                pg_sys::ExecDropSingleTupleTableSlot(slot);
                if added { Outcome::Added } else { Outcome::NoFreeRow }
            }
            None => Outcome::NotPlain,
        };
        pg_sys::table_close(relation, NO_LOCK);
        Ok(outcome)
    }
}

/// What is to be added, and where. The relation is open and locked, and the slot is one of its own.
struct Addition<'a> {
    relation: pg_sys::Relation,
    layout: Layout,
    known: u64,
    figures: &'a Figures,
    slot: *mut pg_sys::TupleTableSlot,
}

impl Addition<'_> {
    /// # Safety
    ///
    /// The layout has so many keys, with their values.
    unsafe fn add(&mut self, keys: usize) -> Result<bool, Error> {
        let known = PLACES.with_borrow(|places| places.get(&self.known).copied());
        let (start, place) = known.unwrap_or((0, None));
        let from = (pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_INT4GE);
        let before = (pg_sys::BTLessStrategyNumber, pg_sys::F_INT4LT);
        let ranges = if start > 0 { &[from, before][..] } else { &[from][..] };
        unsafe {
            let mut added = match place {
                Some(place) => self.add_at(&place, keys)?,
                None => false,
            };
            for (strategy, function) in ranges {
                if added {
                    break;
                }
                let of_slot = &mut self.layout.keys[keys];
                of_slot.sk_strategy = *strategy as pg_sys::StrategyNumber;
                of_slot.sk_argument = Datum::from(start);
                pg_sys::fmgr_info(Oid::from(*function), &mut of_slot.sk_func);
                added = self.add_in_range(keys)?;
            }
            if added {
                // What follows in this command sees it.
                pg_sys::CommandCounterIncrement();
            }
            Ok(added)
        }
    }

    /// To the row of which this session has written that version, if it is still the last.
    ///
    /// # Safety
    ///
    /// As for `add`.
    unsafe fn add_at(&self, place: &Place, keys: usize) -> Result<bool, Error> {
        unsafe {
            let Some((buffer, mut at)) = place.pin(self.relation) else { return Ok(false) };
            let added = self.add_to(&mut at, 0, keys);
            pg_sys::ReleaseBuffer(buffer);
            added
        }
    }

    /// To the first row, of those whose slots are in the range, that nobody has locked.
    ///
    /// # Safety
    ///
    /// As for `add`, and the slot is one of the keys.
    unsafe fn add_in_range(&self, keys: usize) -> Result<bool, Error> {
        // The scan keeps a pointer to it.
        let mut snapshot = as_of_now();
        let mut added = false;
        unsafe {
            // The scan makes columns of the table ones of the index, in place.
            let mut scan_keys = self.layout.keys;
            let scan = pg_sys::systable_beginscan(
                self.relation,
                self.layout.index,
                true,
                &mut snapshot,
                keys as i32 + 1,
                scan_keys.as_mut_ptr(),
            );
            while !added {
                let found = pg_sys::systable_getnext(scan);
                if found.is_null() {
                    break;
                }
                let mut at = (*found).t_self;
                let options = if !has_own_snapshot() {
                    pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION
                } else if self.is_seen((*scan).slot) {
                    0
                } else {
                    continue;
                };
                added = self.add_to(&mut at, options as u8, keys)?;
            }
            pg_sys::systable_endscan(scan);
        }
        Ok(added)
    }

    /// To a row, unless somebody else has it, or it was folded into another, or has become one of another
    /// key.
    ///
    /// # Safety
    ///
    /// As for `add`; there is a version.
    unsafe fn add_to(
        &self,
        at: pg_sys::ItemPointer,
        options: u8,
        keys: usize,
    ) -> Result<bool, Error> {
        unsafe {
            if !self.lock(at, options)
                || !self.has_key(keys)
                || has_own_snapshot() && !self.is_seen(self.slot)
            {
                return Ok(false);
            }
            self.update()?;
        }
        Ok(true)
    }

    /// Whether the transaction's own snapshot sees a row. Of one that others have changed since, it would
    /// see two versions: theirs is not for it, but what is made of theirs is, and what was before.
    ///
    /// # Safety
    ///
    /// The slot has one of the relation, in a buffer.
    unsafe fn is_seen(&self, slot: *mut pg_sys::TupleTableSlot) -> bool {
        unsafe {
            let sees = (*(*self.relation).rd_tableam).tuple_satisfies_snapshot;
            sees.is_some_and(|sees| sees(self.relation, slot, pg_sys::GetTransactionSnapshot()))
        }
    }

    /// Locks a row unless somebody else has, or it is no more as it was found; with an option, its last
    /// version. The slot has it then.
    ///
    /// # Safety
    ///
    /// As for `add_to`.
    unsafe fn lock(&self, at: pg_sys::ItemPointer, options: u8) -> bool {
        unsafe {
            let Some(lock) = (*(*self.relation).rd_tableam).tuple_lock else { return false };
            let result = lock(
                self.relation,
                at,
                &mut as_of_now(),
                self.slot,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                pg_sys::LockWaitPolicy::LockWaitSkip,
                options,
                &mut pg_sys::TM_FailureData::default(),
            );
            result == pg_sys::TM_Result::TM_Ok
        }
    }

    /// The version that was locked.
    ///
    /// # Safety
    ///
    /// The slot has one.
    unsafe fn row(&self) -> Row {
        unsafe {
            let tuple = pg_sys::ExecFetchSlotHeapTuple(self.slot, false, &mut false);
            Row { tuple, desc: (*self.relation).rd_att }
        }
    }

    /// Whether the version that was locked, which may be a later one than was found, is of the key.
    ///
    /// # Safety
    ///
    /// The slot has it.
    unsafe fn has_key(&self, keys: usize) -> bool {
        let row = unsafe { self.row() };
        self.layout.keys[..keys].iter().all(|key| {
            let function = std::ptr::from_ref(&key.sk_func).cast_mut();
            row.raw(key.sk_attno.into()).is_some_and(|value| {
                let (collation, wanted) = (key.sk_collation, key.sk_argument);
                // SAFETY: it compares columns of this type.
                unsafe { pg_sys::FunctionCall2Coll(function, collation, value, wanted) }.value()
                    != 0
            })
        })
    }

    /// # Safety
    ///
    /// The slot has a row that this transaction has locked.
    unsafe fn update(&self) -> Result<(), Error> {
        // Null, where the DBA lets it be.
        let changed = |n: usize| Error::ColumnChanged(FIGURES[n].0.to_string_lossy().into_owned());
        let Self { relation, layout, figures, slot, .. } = *self;
        let counts =
            [figures.prompt_tokens, figures.completion_tokens, figures.requests, figures.unpriced];
        unsafe {
            let row = self.row();
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
                row.tuple,
                row.desc,
                columns.len() as i32,
                columns.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            // What an UPDATE of a published table needs.
            pg_sys::CheckCmdReplicaIdentity(relation, pg_sys::CmdType::CMD_UPDATE);
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
            let page = |at| item_pointer_get_block_number_no_check(at);
            let is_near = page((*new).t_self) == page((*slot).tts_tid);
            let buffer = (*slot.cast::<pg_sys::BufferHeapTupleTableSlot>()).buffer;
            let place = is_near.then(|| Place::in_buffer(relation, new, buffer));
            remember_place(self.known, row.get(layout.slot).unwrap_or(0), place);
            pg_sys::heap_freetuple(new);
        }
        Ok(())
    }
}

/// Whether the transaction keeps to the snapshot that it has begun with.
fn has_own_snapshot() -> bool {
    // SAFETY: reads a global.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// Sees what is committed, and what this transaction has done.
fn as_of_now() -> pg_sys::SnapshotData {
    pg_sys::SnapshotData {
        snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF,
        ..pg_sys::SnapshotData::default()
    }
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
        indexes.add_version(slot, only_summarizing);
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
    let shape = Shape { columns: sum.columns, checks: &[], triggers: &[] };
    unsafe {
        heap::is_plain(relation, &shape)
            && heap::has_simple_keys(relation)
            && (*(*relation).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_DEFAULT
    }
}

/// # Safety
///
/// The relation is open and locked.
unsafe fn find(sum: &Sum, relation: pg_sys::Relation) -> Option<Layout> {
    let (table, schema) = unsafe { ((*relation).rd_id, (*(*relation).rd_rel).relnamespace) };
    // SAFETY: the relation is open.
    let column = |name: &CStr, of_type: Oid| unsafe { heap::column(relation, name, of_type) };
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
