//! New chunk rows.

use std::cell::Cell;
use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{IntoDatum, Uuid};

use super::chunks::{COLUMNS, Chunks};
use super::commit;
use super::rights::has_policies_only;
use crate::error::Error;
use crate::heap::{self, Indexes, Shape};
use crate::plan::{self, Statement, arg};

#[derive(Clone, Copy)]
pub struct NewChunk {
    pub index: i32,
    pub content: Datum,
    pub is_final: bool,
}

/// The caller holds the message's lock and has found that it takes chunks, so its triggers and
/// policies have nothing to add.
///
/// While nobody but the extension has attached anything to the table, the rows go straight into it
/// and its indexes, as COPY's do: an INSERT statement would cost as much again as the row.
pub fn insert(chunks: &Chunks, message: Uuid, rows: &[NewChunk]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    if is_plain(chunks)? {
        insert_directly(chunks, message, rows);
        return Ok(());
    }
    commit::is_more_than_tokens();
    let _checked = Checked::begin(message);
    rows.iter().try_for_each(|row| {
        let args = [arg(message), arg(row.index), Some(row.content), arg(row.is_final)];
        INSERT.run(&args, |_| ()).map(|_| ())
    })
}

/// While it lives, rows of the message go by the trigger unasked.
struct Checked;

impl Checked {
    fn begin(message: Uuid) -> Self {
        CHECKED.set(Some(message));
        Self
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        CHECKED.set(None);
    }
}

static INSERT: Statement = Statement {
    sql: "insert into @extschema@.message_chunks (message_id, chunk_index, chunk_content, is_final) \
          values ($1, $2, $3, $4)",
    types: &[pg_sys::UUIDOID, pg_sys::INT4OID, pg_sys::TEXTOID, pg_sys::BOOLOID],
};

thread_local! {
    /// The message whose chunks are being inserted by statements of our own.
    static CHECKED: Cell<Option<Uuid>> = const { Cell::new(None) };
    static PLAIN: Cell<Option<(u64, Oid, bool)>> = const { Cell::new(None) };
}

pub fn is_checked(message: Uuid) -> bool {
    CHECKED.get() == Some(message)
}

/// Whether the table is as migrate() made it, but for indexes.
fn is_plain(chunks: &Chunks) -> Result<bool, Error> {
    if let Some((generation, table, plain)) = PLAIN.get()
        && (generation, table) == (plan::generation(), chunks.table())
    {
        return Ok(plain);
    }
    // SAFETY: the table is open and locked.
    let plain = unsafe {
        heap::is_plain(chunks.relation, &SHAPE) && has_policies_only(chunks.relation, &POLICIES)
    };
    PLAIN.set(Some((plan::generation(), chunks.table(), plain)));
    Ok(plain)
}

const SHAPE: Shape = Shape {
    columns: COLUMNS as usize,
    checks: &[],
    triggers: &[c"place_chunk", c"complete_streams", c"refuse_rewrite"],
};

const POLICIES: [&CStr; 2] = [c"message_chunks_read", c"message_chunks_insert"];

/// So many rows go into the table at once, each page written once and logged once.
const AT_ONCE: usize = 64;

fn insert_directly(chunks: &Chunks, message: Uuid, rows: &[NewChunk]) {
    let message = message.into_datum().unwrap_or(Datum::from(0));
    // SAFETY: what the executor does for an INSERT, on an open table locked for writing, whose
    // columns are those of the layout and no others. An ERROR leaves the clean-up to the abort.
    unsafe {
        let relation = chunks.relation;
        let layout = &chunks.layout;
        let columns =
            [layout.message, layout.created, layout.number, layout.is_final, layout.content];
        let indexes = Indexes::open(relation);
        let now = pg_sys::GetCurrentTimestamp();
        let slots: Vec<*mut pg_sys::TupleTableSlot> = (0..rows.len().min(AT_ONCE))
            .map(|_| pg_sys::table_slot_create(relation, std::ptr::null_mut()))
            .collect();
        for batch in rows.chunks(AT_ONCE) {
            for (row, slot) in batch.iter().zip(&slots) {
                let values = [
                    Some(message),
                    Some(Datum::from(now)),
                    arg(row.index),
                    arg(row.is_final),
                    Some(row.content),
                ];
                heap::fill(*slot, &columns, &values);
            }
            store(relation, &slots[..batch.len()]);
            for slot in &slots[..batch.len()] {
                indexes.add(*slot);
            }
            if rows.len() > AT_ONCE {
                pgrx::check_for_interrupts!();
            }
        }
        for slot in slots {
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
        indexes.close();
    }
}

unsafe fn store(relation: pg_sys::Relation, slots: &[*mut pg_sys::TupleTableSlot]) {
    unsafe {
        if let ([_, _, ..], Some(insert)) = (slots, (*(*relation).rd_tableam).multi_insert) {
            let command = pg_sys::GetCurrentCommandId(true);
            let mut slots = slots.to_vec();
            let bulk_insert = std::ptr::null_mut();
            insert(relation, slots.as_mut_ptr(), slots.len() as c_int, command, 0, bulk_insert);
        } else {
            slots.iter().for_each(|slot| pg_sys::simple_table_tuple_insert(relation, *slot));
        }
    }
}
