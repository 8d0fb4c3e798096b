//! Rows found straight through an index, for what is asked in every statement: a third of the time
//! that a kept plan takes. No privilege and no policy is looked at, so this is only for what the
//! extension has to know before it can decide on either.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{IntoDatum, Uuid};

use crate::error::Error;
use crate::plan::{self, Row};

/// A column and the value it must have.
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
    table: &CStr,
    index: &CStr,
    keys: &[Key],
    read: impl FnOnce(&Row) -> T,
) -> Result<Option<T>, Error> {
    // SAFETY: an active snapshot stays valid for the length of the call; without one, null stands
    // for what is committed now.
    let snapshot = unsafe {
        if pg_sys::ActiveSnapshotSet() { pg_sys::GetActiveSnapshot() } else { std::ptr::null_mut() }
    };
    scan(table, index, keys, snapshot, |_, row| row.map(read))
}

/// Whether a row is under these keys once every transaction that writes one there has ended: what a
/// unique index does before it accepts a row.
pub fn is_taken(table: &CStr, index: &CStr, keys: &[Key]) -> Result<bool, Error> {
    enum Seen {
        Free,
        Taken,
        /// Written by a transaction that still runs.
        InFlight(pg_sys::TransactionId, u32),
    }
    loop {
        let mut dirty =
            pg_sys::SnapshotData { snapshot_type: DIRTY, ..pg_sys::SnapshotData::default() };
        let dirty: pg_sys::Snapshot = &mut dirty;
        let seen = scan(table, index, keys, dirty, |snapshot, row| {
            let writer = |xid: pg_sys::TransactionId| xid != pg_sys::TransactionId::INVALID;
            // SAFETY: the scan has left in its snapshot who is writing the row it returned.
            let snapshot = unsafe { &*snapshot };
            match row {
                None => Seen::Free,
                Some(_) if writer(snapshot.xmin) => {
                    Seen::InFlight(snapshot.xmin, snapshot.speculativeToken)
                }
                Some(_) if writer(snapshot.xmax) => Seen::InFlight(snapshot.xmax, 0),
                Some(_) => Seen::Taken,
            }
        })?;
        match seen {
            Seen::Free => return Ok(false),
            Seen::Taken => return Ok(true),
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
    table: &CStr,
    index: &CStr,
    keys: &[Key],
    snapshot: pg_sys::Snapshot,
    read: impl FnOnce(pg_sys::Snapshot, Option<&Row>) -> T,
) -> Result<T, Error> {
    let schema = plan::home()?.schema;
    let table = plan::table(schema, table)?;
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the table stays open and locked while it is scanned; keys and snapshot outlive the
    // scan. An ERROR in between releases all of it with the transaction.
    unsafe {
        let index = pg_sys::get_relname_relid(index.as_ptr(), schema);
        let relation = pg_sys::table_open(table, lock);
        let desc = (*relation).rd_att;
        let mut scan_keys = [pg_sys::ScanKeyData::default(); 2];
        for (scan_key, key) in scan_keys.iter_mut().zip(keys) {
            let n = pg_sys::SPI_fnumber(desc, key.column.as_ptr());
            if n <= 0 || pg_sys::SPI_gettypeid(desc, n) != key.of_type {
                return Err(Error::ColumnChanged(key.column.to_string_lossy().into_owned()));
            }
            let equal = if key.of_type == pg_sys::UUIDOID { UUID_EQUAL } else { TEXT_EQUAL };
            pg_sys::ScanKeyEntryInitialize(
                scan_key,
                0,
                n as pg_sys::AttrNumber,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                Oid::INVALID,
                // An index is searched with the collation that it was built with.
                pg_sys::DEFAULT_COLLATION_OID,
                Oid::from(equal),
                key.value,
            );
        }
        let scan = pg_sys::systable_beginscan(
            relation,
            index,
            index != Oid::INVALID,
            snapshot,
            keys.len() as i32,
            scan_keys.as_mut_ptr(),
        );
        let tuple = pg_sys::systable_getnext(scan);
        let row = (!tuple.is_null()).then_some(Row { tuple, desc });
        let answer = read(snapshot, row.as_ref());
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
        Ok(answer)
    }
}

const UUID_EQUAL: u32 = pg_sys::F_UUID_EQ;
const TEXT_EQUAL: u32 = pg_sys::F_TEXTEQ;

/// The keys of most look-ups: one UUID.
pub fn by_id(column: &CStr, id: Uuid) -> Result<[Key<'_>; 1], Error> {
    Ok([key(column, id)?])
}
