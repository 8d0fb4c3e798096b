//! Rows found straight through an index, for what is asked in every statement: a third of the time
//! that a kept plan takes. No privilege and no policy is looked at, so this is only for what the
//! extension has to know before it can decide on either.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{IntoDatum, Uuid, direct_function_call};

use crate::error::Error;
use crate::owner;
use crate::plan::{self, Row};

mod place;

pub use place::Place;

/// A column and the value it must have.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    column: &'a CStr,
    value: Datum,
    of_type: Oid,
}

pub fn key<T: IntoDatum>(column: &CStr, value: T) -> Result<Key<'_>, Error> {
    let value = value.into_datum().ok_or(Error::Missing("key"))?;
    Ok(Key { column, value, of_type: T::type_oid() })
}

/// The row that the running command sees under these keys, by an index that has them in this order.
/// Without that index it is found more slowly.
pub fn find<T>(
    table: &'static CStr,
    index: &'static CStr,
    keys: &[Key],
    read: impl FnOnce(&Row) -> T,
) -> Result<Option<T>, Error> {
    find_placed(table, index, keys, |row, _| read(row))
}

/// The same, and where the row lies.
pub fn find_placed<T>(
    table: &'static CStr,
    index: &'static CStr,
    keys: &[Key],
    read: impl FnOnce(&Row, Option<Place>) -> T,
) -> Result<Option<T>, Error> {
    // SAFETY: an active snapshot stays valid for the length of the call; without one, null stands
    // for what is committed now.
    let snapshot = unsafe {
        if pg_sys::ActiveSnapshotSet() { pg_sys::GetActiveSnapshot() } else { std::ptr::null_mut() }
    };
    scan(table, index, keys, snapshot, |_, row, place| row.map(|row| read(row, place)))
}

/// The rows that the running command sees under a key, by an index that begins with that column, as
/// long as `read` wants more.
pub fn each(
    table: &'static CStr,
    index: &'static CStr,
    key: Key,
    mut read: impl FnMut(&Row) -> bool,
) -> Result<(), Error> {
    // SAFETY: see scan(); the snapshot is that of the running command.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot();
        let (relation, mut path) = open(table, index, &[key], leading_index)?;
        path.keys[0].sk_argument = key.value;
        let scan = begin(relation, &mut path, snapshot, 1);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() || !read(&Row { tuple, desc: (*relation).rd_att }) {
                break;
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, plan::READ_LOCK);
    }
    Ok(())
}

/// The conversation of the row that is under these keys once every transaction that writes one there
/// has ended: what a unique index waits for before it accepts a row.
pub fn taken_by(
    table: &'static CStr,
    index: &'static CStr,
    keys: &[Key],
) -> Result<Option<Uuid>, Error> {
    enum Seen {
        Free,
        TakenBy(Option<Uuid>),
        /// Written by a transaction that still runs.
        InFlight(pg_sys::TransactionId, u32),
    }
    loop {
        let mut dirty =
            pg_sys::SnapshotData { snapshot_type: DIRTY, ..pg_sys::SnapshotData::default() };
        let dirty: pg_sys::Snapshot = &mut dirty;
        let seen = scan(table, index, keys, dirty, |snapshot, row, _| {
            let writer = |xid: pg_sys::TransactionId| xid != pg_sys::TransactionId::INVALID;
            // SAFETY: the scan has left in its snapshot who is writing the row it returned.
            let snapshot = unsafe { &*snapshot };
            match row {
                None => Seen::Free,
                Some(_) if writer(snapshot.xmin) => {
                    Seen::InFlight(snapshot.xmin, snapshot.speculativeToken)
                }
                Some(_) if writer(snapshot.xmax) => Seen::InFlight(snapshot.xmax, 0),
                Some(row) => Seen::TakenBy(row.named(c"conversation_id")),
            }
        })?;
        match seen {
            Seen::Free => return Ok(None),
            Seen::TakenBy(conversation) => return Ok(conversation),
            // SAFETY: waits, cancellable, with deadlocks detected, and holds no table open.
            Seen::InFlight(xid, 0) => unsafe {
                let (relation, tuple) = (std::ptr::null_mut(), std::ptr::null_mut());
                pg_sys::XactLockTableWait(xid, relation, tuple, pg_sys::XLTW_Oper::XLTW_None);
            },
            Seen::InFlight(xid, token) => unsafe { pg_sys::SpeculativeInsertionWait(xid, token) },
        }
    }
}

const DIRTY: pg_sys::SnapshotType::Type = pg_sys::SnapshotType::SNAPSHOT_DIRTY;

fn scan<T>(
    table: &'static CStr,
    index: &'static CStr,
    keys: &[Key],
    snapshot: pg_sys::Snapshot,
    read: impl FnOnce(pg_sys::Snapshot, Option<&Row>, Option<Place>) -> T,
) -> Result<T, Error> {
    // SAFETY: the table stays open and locked while it is scanned; keys and snapshot outlive the
    // scan. An ERROR in between releases all of it with the transaction.
    unsafe {
        let (relation, mut path) = open(table, index, keys, unique_index)?;
        let desc = (*relation).rd_att;
        for (scan_key, key) in path.keys.iter_mut().zip(keys) {
            scan_key.sk_argument = key.value;
        }
        let scan = begin(relation, &mut path, snapshot, keys.len());
        let tuple = pg_sys::systable_getnext(scan);
        let row = (!tuple.is_null()).then_some(Row { tuple, desc });
        let place = row.and_then(|_| Place::of(relation, scan));
        let answer = read(snapshot, row.as_ref(), place);
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, plan::READ_LOCK);
        Ok(answer)
    }
}

/// # Safety
///
/// The relation is open, and path and snapshot outlive the scan.
unsafe fn begin(
    relation: pg_sys::Relation,
    path: &mut Path,
    snapshot: pg_sys::Snapshot,
    keys: usize,
) -> pg_sys::SysScanDesc {
    let by_index = path.index != Oid::INVALID;
    let scan_keys = path.keys.as_mut_ptr();
    unsafe {
        pg_sys::systable_beginscan(relation, path.index, by_index, snapshot, keys as i32, scan_keys)
    }
}

type TableAndIndex = (&'static CStr, &'static CStr);

/// How rows of a table are found by certain columns.
#[derive(Clone, Copy)]
struct Path {
    table: Oid,
    index: Oid,
    keys: [pg_sys::ScanKeyData; 2],
}

thread_local! {
    static PATHS: RefCell<HashMap<TableAndIndex, (u64, Path)>> = RefCell::default();
}

/// The table, locked and open, and the way to its rows. What was found out about it is kept as long
/// as no relation changes.
///
/// # Safety
///
/// The caller closes the table.
unsafe fn open(
    table: &'static CStr,
    index: &'static CStr,
    keys: &[Key],
    find_index: fn(&CStr, Oid, Oid, &[i32]) -> Option<Oid>,
) -> Result<(pg_sys::Relation, Path), Error> {
    let known = PATHS.with_borrow(|paths| paths.get(&(table, index)).copied());
    if let Some((generation, path)) = known
        && generation == plan::generation()
    {
        // Locking brings news of changes in.
        let relation = plan::open(path.table)?;
        if generation == plan::generation() {
            return Ok((relation, path));
        }
        // SAFETY: opened just now.
        unsafe { pg_sys::table_close(relation, plan::READ_LOCK) };
    }
    let schema = plan::home()?.schema;
    let oid = plan::table(schema, table)?;
    let relation = plan::open(oid)?;
    owner::require_ours(schema)?;
    let generation = plan::generation();
    let mut path =
        Path { table: oid, index: Oid::INVALID, keys: [pg_sys::ScanKeyData::default(); 2] };
    let mut columns = Vec::with_capacity(keys.len());
    for (scan_key, key) in path.keys.iter_mut().zip(keys) {
        // SAFETY: the open table's descriptor.
        unsafe {
            let desc = (*relation).rd_att;
            let n = pg_sys::SPI_fnumber(desc, key.column.as_ptr());
            if n <= 0 || pg_sys::SPI_gettypeid(desc, n) != key.of_type {
                return Err(Error::ColumnChanged(key.column.to_string_lossy().into_owned()));
            }
            columns.push(n);
            let equal = if key.of_type == pg_sys::UUIDOID { UUID_EQUAL } else { TEXT_EQUAL };
            pg_sys::ScanKeyEntryInitialize(
                scan_key,
                0,
                n as pg_sys::AttrNumber,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                Oid::INVALID,
                // An index is in the order of its column's collation.
                collation_of(oid, n),
                Oid::from(equal),
                Datum::from(0),
            );
        }
    }
    path.index = find_index(index, schema, oid, &columns).unwrap_or(Oid::INVALID);
    PATHS.with_borrow_mut(|paths| paths.insert((table, index), (generation, path)));
    Ok((relation, path))
}

fn collation_of(table: Oid, n: i32) -> Oid {
    let (mut of_type, mut modifier, mut collation) = (Oid::INVALID, 0, Oid::INVALID);
    // SAFETY: n is a column of the open table.
    unsafe {
        let n = n as pg_sys::AttrNumber;
        pg_sys::get_atttypetypmodcoll(table, n, &mut of_type, &mut modifier, &mut collation);
    }
    collation
}

/// The index of that name, if it is one that finds every row that is looked for by these columns.
pub fn unique_index(name: &CStr, schema: Oid, table: Oid, columns: &[i32]) -> Option<Oid> {
    index_that(name, schema, table, |index, keys| {
        index.indisunique && keys.len() == columns.len() && begin_with(keys, columns)
    })
}

/// The same for one that begins with these columns.
fn leading_index(name: &CStr, schema: Oid, table: Oid, columns: &[i32]) -> Option<Oid> {
    index_that(name, schema, table, |_, keys| begin_with(keys, columns))
}

/// What indexes may leave out: nobody looks for messages without a retry key under one, or among those
/// for the whole tenant for private conversations.
const MAY_LACK: [(&CStr, &str); 2] = [
    (c"idx_messages_retry_key", "(client_message_id IS NOT NULL)"),
    (c"idx_conversations_tenant_visible", "(visibility = 'tenant'::text)"),
];

fn begin_with(keys: &[i16], columns: &[i32]) -> bool {
    keys.len() >= columns.len()
        && keys.iter().zip(columns).all(|(key, column)| i32::from(*key) == *column)
}

/// The btree of that name on this table, if it is as wanted and has every row that is looked for;
/// `wanted` also hears its key columns.
fn index_that(
    name: &CStr,
    schema: Oid,
    table: Oid,
    wanted: impl FnOnce(&pg_sys::FormData_pg_index, &[i16]) -> bool,
) -> Option<Oid> {
    // SAFETY: syscache look-ups, released on the spot; the tuple has its fixed part, and an entry
    // for each column of the index.
    unsafe {
        let index = pg_sys::get_relname_relid(name.as_ptr(), schema);
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, Datum::from(index));
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_index>();
        let keys = form.indkey.values.as_slice(form.indnkeyatts as usize);
        let mut is_whole = true;
        let predicate = pg_sys::Anum_pg_index_indpred as pg_sys::AttrNumber;
        let predicate = pg_sys::SysCacheGetAttr(cache, tuple, predicate, &mut is_whole);
        let has_all = is_whole || {
            let args = [Some(predicate), Some(Datum::from(table))];
            let lacks: Option<String> = direct_function_call(pg_sys::pg_get_expr, &args);
            MAY_LACK.iter().any(|(of, most)| *of == name && lacks.as_deref() == Some(*most))
        };
        let fits = form.indrelid == table
            && form.indisvalid
            && has_all
            && wanted(form, keys)
            && plan::class(index, |row| row.relam) == Some(pg_sys::BTREE_AM_OID);
        pg_sys::ReleaseSysCache(tuple);
        fits.then_some(index)
    }
}

const UUID_EQUAL: u32 = pg_sys::F_UUID_EQ;
const TEXT_EQUAL: u32 = pg_sys::F_TEXTEQ;

/// The keys of most look-ups: one UUID.
pub fn by_id(column: &CStr, id: Uuid) -> Result<[Key<'_>; 1], Error> {
    Ok([key(column, id)?])
}
