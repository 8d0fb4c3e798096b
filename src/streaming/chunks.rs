//! Chunk rows, read straight from their index in order.
//!
//! No privilege and no policy is looked at here: callers have asked who may read the message.

use std::cell::Cell;

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{IntoDatum, Uuid};

use crate::error::Error;
use crate::heap;
use crate::lookup::unique_index;
use crate::plan::{self, READ_LOCK, Row};

/// Column numbers of the table, and the index that has the chunks in order.
#[derive(Clone, Copy)]
pub struct Layout {
    pub table: Oid,
    pub index: Oid,
    pub message: i32,
    pub number: i32,
    pub is_final: i32,
    pub content: i32,
    pub created: i32,
    /// Whether the columns lie as migrate() made them.
    is_original: bool,
}

thread_local! {
    static LAYOUT: Cell<Option<(u64, Layout)>> = const { Cell::new(None) };
}

impl Layout {
    /// Of the open and locked table.
    fn of(relation: pg_sys::Relation, schema: Oid) -> Result<Self, Error> {
        if let Some((generation, layout)) = LAYOUT.get()
            // SAFETY: an open relation.
            && layout.table == unsafe { (*relation).rd_id }
            && generation == plan::generation()
        {
            return Ok(layout);
        }
        // SAFETY: an open relation and its descriptor; look-ups by name.
        let layout = unsafe {
            let column = |name: &std::ffi::CStr, of_type: Oid| {
                let changed = || Error::ColumnChanged(name.to_string_lossy().into_owned());
                heap::column(relation, name, of_type).ok_or_else(changed)
            };
            let mut layout = Self {
                is_original: false,
                table: (*relation).rd_id,
                index: Oid::INVALID,
                message: column(c"message_id", pg_sys::UUIDOID)?,
                number: column(c"chunk_index", pg_sys::INT4OID)?,
                is_final: column(c"is_final", pg_sys::BOOLOID)?,
                content: column(c"chunk_content", pg_sys::TEXTOID)?,
                created: column(c"created_at", pg_sys::TIMESTAMPTZOID)?,
            };
            let columns =
                [layout.message, layout.created, layout.number, layout.is_final, layout.content];
            layout.is_original = columns == [1, 2, 3, 4, 5];
            let keys = [layout.message, layout.number];
            layout.index = unique_index(c"message_chunks_pkey", schema, layout.table, &keys)
                .filter(|index| is_ascending(*index))
                .ok_or(Error::NoChunkOrder)?;
            layout
        };
        LAYOUT.set(Some((plan::generation(), layout)));
        Ok(layout)
    }
}

/// Whether the columns of an index are in ascending order.
fn is_ascending(index: Oid) -> bool {
    // SAFETY: open and locked while it is looked at; there is an option for each key column.
    unsafe {
        let relation = pg_sys::index_open(index, READ_LOCK);
        let columns = (*(*relation).rd_index).indnkeyatts as usize;
        let ascending = (0..columns).all(|n| *(*relation).rd_indoption.add(n) == 0);
        pg_sys::index_close(relation, READ_LOCK);
        ascending
    }
}

/// The open table.
pub struct Chunks {
    pub relation: pg_sys::Relation,
    pub layout: Layout,
    lock: pg_sys::LOCKMODE,
}

impl Chunks {
    pub fn open(lock: pg_sys::LOCKMODE) -> Result<Self, Error> {
        let schema = plan::home()?.schema;
        let relation = plan::open_for(plan::table(schema, c"message_chunks")?, lock)?;
        Ok(Self { relation, layout: Layout::of(relation, schema)?, lock })
    }

    pub fn read() -> Result<Self, Error> {
        Self::open(READ_LOCK)
    }

    pub fn table(&self) -> Oid {
        self.layout.table
    }

    /// Chunks of a message from an index on.
    pub fn from(&self, message: Uuid, index: i32, view: View) -> Scan<'_> {
        Scan::begin(
            self,
            &[
                (self.layout.message, EQUAL, pg_sys::F_UUID_EQ, arg(message)),
                (self.layout.number, GREATER_EQUAL, pg_sys::F_INT4GE, arg(index)),
            ],
            view,
            FORWARD,
        )
    }

    /// The last chunk of a message.
    pub fn last(&self, message: Uuid, view: View) -> Option<Last> {
        let key = [(self.layout.message, EQUAL, pg_sys::F_UUID_EQ, arg(message))];
        Scan::begin(self, &key, view, BACKWARD).next().map(Last::from)
    }

    /// The same, sought first behind a place where it was or is to be: to find the end of a message
    /// from the other side takes a look at every chunk on the index page.
    pub fn last_near(&self, message: Uuid, next: i32, view: View) -> Option<Last> {
        const NEAR: usize = 16;
        if next > 0 {
            let mut scan = self.from(message, next - 1, view);
            let mut found = scan.next().filter(|first| first.index == next - 1);
            for _ in 0..NEAR {
                let Some(last) = found else { break };
                found = scan.next();
                if found.is_none() {
                    return Some(last.into());
                }
            }
        }
        self.last(message, view)
    }

    /// The first message after this one that has chunks.
    pub fn next_message(&self, after: Option<Uuid>, view: View) -> Option<Uuid> {
        let after = after.unwrap_or(Uuid::from_bytes([0; 16]));
        let key = [(self.layout.message, GREATER, pg_sys::F_UUID_GT, arg(after))];
        let mut scan = Scan::begin(self, &key, view, FORWARD);
        scan.next_row()?.get(self.layout.message)
    }

    /// Runs `read` for each chunk from the first to the last before a gap.
    pub fn prefix(
        &self,
        message: Uuid,
        view: View,
        mut read: impl FnMut(&Chunk),
    ) -> Result<Prefix, Error> {
        let mut prefix = Prefix { next: 0, is_final: false, first_at: None };
        let mut scan = self.from(message, 0, view);
        while let Some(chunk) = scan.next() {
            if chunk.index != prefix.next || prefix.is_final {
                break;
            }
            read(&chunk);
            let first_at = prefix.first_at.or(Some(chunk.created));
            prefix = Prefix { next: chunk.index + 1, is_final: chunk.is_final, first_at };
            if prefix.next % 1024 == 0 {
                pgrx::check_for_interrupts!();
            }
        }
        Ok(prefix)
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What was written stays locked to the end of the transaction.
            let lock = if self.lock == READ_LOCK { READ_LOCK } else { pg_sys::NoLock as i32 };
            // SAFETY: opened in open(); an ERROR closes it.
            unsafe { pg_sys::table_close(self.relation, lock) }
        }
    }
}

/// The chunks of a message up to the first gap.
pub struct Prefix {
    /// The index that follows them.
    pub next: i32,
    /// Whether the last of them is final.
    pub is_final: bool,
    /// When the first of them was written, as Postgres counts time.
    pub first_at: Option<i64>,
}

/// Which rows a scan sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Those of the running command.
    Command,
    /// All that is committed and all of this transaction's own: the truth for whoever holds the
    /// message's lock, since nobody else adds rows meanwhile.
    Instant,
}

pub struct Chunk {
    pub index: i32,
    /// Text as it is stored; it lives until the next chunk is read.
    pub content: Datum,
    pub is_final: bool,
    created: i64,
}

/// The last chunk of a message.
pub struct Last {
    pub index: i32,
    pub is_final: bool,
    pub created: i64,
}

impl From<Chunk> for Last {
    fn from(chunk: Chunk) -> Self {
        Self { index: chunk.index, is_final: chunk.is_final, created: chunk.created }
    }
}

pub struct Scan<'a> {
    chunks: &'a Chunks,
    index: pg_sys::Relation,
    scan: pg_sys::SysScanDesc,
    direction: pg_sys::ScanDirection::Type,
}

type Key = (i32, u32, u32, Datum);

const EQUAL: u32 = pg_sys::BTEqualStrategyNumber;
const GREATER: u32 = pg_sys::BTGreaterStrategyNumber;
const GREATER_EQUAL: u32 = pg_sys::BTGreaterEqualStrategyNumber;
const FORWARD: pg_sys::ScanDirection::Type = pg_sys::ScanDirection::ForwardScanDirection;
const BACKWARD: pg_sys::ScanDirection::Type = pg_sys::ScanDirection::BackwardScanDirection;

fn arg<T: IntoDatum>(value: T) -> Datum {
    value.into_datum().unwrap_or(Datum::from(0))
}

impl<'a> Scan<'a> {
    fn begin(
        chunks: &'a Chunks,
        keys: &[Key],
        view: View,
        direction: pg_sys::ScanDirection::Type,
    ) -> Self {
        let mut scan_keys = [pg_sys::ScanKeyData::default(); 2];
        // SAFETY: the index is one of the table, which is open; keys are compared by the functions
        // of their types. An ERROR closes all of it.
        unsafe {
            for (scan_key, (column, strategy, function, value)) in scan_keys.iter_mut().zip(keys) {
                pg_sys::ScanKeyEntryInitialize(
                    scan_key,
                    0,
                    *column as pg_sys::AttrNumber,
                    *strategy as pg_sys::StrategyNumber,
                    Oid::INVALID,
                    Oid::INVALID,
                    Oid::from(*function),
                    *value,
                );
            }
            let index = pg_sys::index_open(chunks.layout.index, READ_LOCK);
            let snapshot = match view {
                View::Instant => &raw mut pg_sys::SnapshotSelfData,
                View::Command => pg_sys::GetActiveSnapshot(),
            };
            let scan = pg_sys::systable_beginscan_ordered(
                chunks.relation,
                index,
                snapshot,
                keys.len() as i32,
                scan_keys.as_mut_ptr(),
            );
            Self { chunks, index, scan, direction }
        }
    }

    fn next_row(&mut self) -> Option<Row> {
        // SAFETY: the scan is open; a row lives until the next one is read.
        unsafe {
            let tuple = pg_sys::systable_getnext_ordered(self.scan, self.direction);
            let desc = (*self.chunks.relation).rd_att;
            (!tuple.is_null()).then_some(Row { tuple, desc })
        }
    }

    pub fn next(&mut self) -> Option<Chunk> {
        let row = self.next_row()?;
        let layout = &self.chunks.layout;
        // SAFETY: a row of the table.
        if layout.is_original
            && let Some(chunk) = unsafe { Self::read_in_place(&row) }
        {
            return Some(chunk);
        }
        Some(Chunk {
            index: row.raw(layout.number)?.value() as i32,
            content: row.raw(layout.content)?,
            is_final: row.raw(layout.is_final)?.value() & 1 == 1,
            created: row.raw(layout.created)?.value() as i64,
        })
    }
}

/// As many as migrate() makes.
pub const COLUMNS: u32 = 5;

/// The columns before the text, as they lie in a row without nulls.
#[repr(C)]
struct Fixed {
    message: [u8; 16],
    created: i64,
    index: i32,
    is_final: bool,
}

impl Scan<'_> {
    /// Reads a row as Postgres reads those of its catalogs: to look up each column costs more than
    /// the rest of a long text.
    ///
    /// # Safety
    ///
    /// The row must have the original columns.
    unsafe fn read_in_place(row: &Row) -> Option<Chunk> {
        unsafe {
            let header = (*row.tuple).t_data;
            let columns = u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
            let has_null = u32::from((*header).t_infomask) & pg_sys::HEAP_HASNULL != 0;
            // A row may be older than a column.
            if has_null || columns < COLUMNS {
                return None;
            }
            let start = header.cast::<u8>().add(usize::from((*header).t_hoff));
            let fixed = &*start.cast::<Fixed>();
            // A short text follows at once, a long one at the next multiple of 4, after zeros.
            let end = std::mem::offset_of!(Fixed, is_final) + 1;
            let text = if *start.add(end) == 0 { end.next_multiple_of(4) } else { end };
            Some(Chunk {
                index: fixed.index,
                content: Datum::from(start.add(text)),
                is_final: fixed.is_final,
                created: fixed.created,
            })
        }
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened in begin(); an ERROR closes both.
            unsafe {
                pg_sys::systable_endscan_ordered(self.scan);
                pg_sys::index_close(self.index, READ_LOCK);
            }
        }
    }
}
