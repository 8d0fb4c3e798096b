//! New rows of the ledger.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{IntoDatum, Uuid};

use crate::error::Error;
use crate::heap::{self, Indexes, Shape};
use crate::lookup::unique_index;
use crate::plan::{self, Arg, NO_LOCK, Statement, WRITE_LOCK, arg};

const EVENTS: &CStr = c"usage_events";

/// What a new row says; all of it has been looked at.
pub struct NewEvent<'a> {
    pub tenant: Uuid,
    pub user: Option<Uuid>,
    pub occurred_at: i64,
    pub recorded_at: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub requests: i32,
    pub date: Datum,
    pub key: Datum,
    pub kind: &'static str,
    pub model: Datum,
    /// A jsonb.
    pub usage: Datum,
    /// A numeric.
    pub cost: Datum,
    /// An array of texts.
    pub unpriced: Datum,
    pub recorded_by: &'a str,
}

impl NewEvent<'_> {
    fn values(&self) -> [Arg; GIVEN.len()] {
        [
            arg(self.tenant),
            self.user.and_then(IntoDatum::into_datum),
            Some(Datum::from(self.occurred_at)),
            Some(Datum::from(self.recorded_at)),
            arg(self.prompt_tokens),
            arg(self.completion_tokens),
            arg(self.requests),
            Some(self.date),
            Some(self.key),
            arg(self.kind),
            Some(self.model),
            Some(self.usage),
            Some(self.cost),
            Some(self.unpriced),
            arg(self.recorded_by),
        ]
    }
}

/// Its columns.
const GIVEN: [(&CStr, Oid); 15] = [
    (c"tenant_id", pg_sys::UUIDOID),
    (c"user_id", pg_sys::UUIDOID),
    (c"occurred_at", pg_sys::TIMESTAMPTZOID),
    (c"recorded_at", pg_sys::TIMESTAMPTZOID),
    (c"prompt_tokens", pg_sys::INT8OID),
    (c"completion_tokens", pg_sys::INT8OID),
    (c"request_count", pg_sys::INT4OID),
    (c"date", pg_sys::DATEOID),
    (c"idempotency_key", pg_sys::TEXTOID),
    (c"kind", pg_sys::TEXTOID),
    (c"model", pg_sys::TEXTOID),
    (c"usage", pg_sys::JSONBOID),
    (c"cost", pg_sys::NUMERICOID),
    (c"unpriced", pg_sys::TEXTARRAYOID),
    (c"recorded_by", pg_sys::TEXTOID),
];

const SHAPE: Shape = Shape {
    // With the reason, which a new row has not.
    columns: GIVEN.len() + 1,
    checks: &[
        (
            c"usage_events_key_is_1_to_220",
            "CHECK (((char_length(idempotency_key) >= 1) AND (char_length(idempotency_key) <= 220)))",
        ),
        (
            c"usage_events_kind_is_known",
            "CHECK ((kind = ANY (ARRAY['usage'::text, 'increment'::text, 'void'::text, 'repricing'::text])))",
        ),
        (c"usage_events_usage_is_object", "CHECK ((jsonb_typeof(usage) = 'object'::text))"),
    ],
    triggers: &[c"refuse_insert", c"refuse_rewrite"],
};

/// One row, unless the key is used.
static INSERT: Statement = Statement {
    sql: "insert into @extschema@.usage_events \
              (tenant_id, user_id, occurred_at, recorded_at, prompt_tokens, completion_tokens, \
               request_count, date, idempotency_key, kind, model, usage, cost, unpriced, recorded_by) \
          values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
          on conflict (tenant_id, idempotency_key) do nothing returning true",
    types: &TYPES,
};

const TYPES: [Oid; GIVEN.len()] = {
    let mut types = [Oid::INVALID; GIVEN.len()];
    let mut n = 0;
    while n < types.len() {
        types[n] = GIVEN[n].1;
        n += 1;
    }
    types
};

/// Where everything is, in a table that is as migrate() made it.
#[derive(Clone, Copy)]
struct Layout {
    columns: [i32; GIVEN.len()],
    key: Oid,
}

thread_local! {
    static LAYOUT: Cell<Option<(u64, Option<Layout>)>> = const { Cell::new(None) };
}

/// Writes an event, unless its key is used; whether it did. The caller has the owner's rights, and goes on
/// to add the event to its sums, by which later commands see it.
///
/// While nobody but the extension has attached anything to the table, the row goes straight into it: an
/// INSERT statement, which reads the checks of the table each time, costs twice as much.
pub fn insert(event: &NewEvent) -> Result<bool, Error> {
    let values = event.values();
    let relation = plan::open_for(plan::our_table(EVENTS)?, WRITE_LOCK)?;
    // SAFETY: open, and locked to the end of the transaction; the slot is one of its own, and has what
    // its columns take.
    let is_new = unsafe {
        let is_new = layout(relation).map(|Layout { columns, key }| {
            let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            heap::fill(slot, &columns, &values);
            let indexes = Indexes::open_to_compare(relation);
            let is_new = indexes.insert_if_new(slot, key);
            indexes.close();
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            is_new
        });
        pg_sys::table_close(relation, NO_LOCK);
        is_new
    };
    match is_new {
        Some(is_new) => Ok(is_new),
        None => Ok(INSERT.run_now(&values, |_| ())?.is_some()),
    }
}

/// # Safety
///
/// The relation is open and locked.
unsafe fn layout(relation: pg_sys::Relation) -> Option<Layout> {
    let generation = plan::generation();
    if let Some((of, layout)) = LAYOUT.get()
        && of == generation
    {
        return layout;
    }
    let layout = unsafe {
        let is_plain = heap::is_plain(relation, &SHAPE) && heap::has_simple_keys(relation);
        is_plain.then(|| find(relation)).flatten()
    };
    LAYOUT.set(Some((generation, layout)));
    layout
}

/// # Safety
///
/// The relation is open.
unsafe fn find(relation: pg_sys::Relation) -> Option<Layout> {
    unsafe {
        let (table, schema) = ((*relation).rd_id, (*(*relation).rd_rel).relnamespace);
        let mut columns = [0; GIVEN.len()];
        for (column, (name, of_type)) in columns.iter_mut().zip(GIVEN) {
            *column = heap::column(relation, name, of_type)?;
        }
        let [user, reason] = [
            heap::column(relation, c"user_id", pg_sys::UUIDOID)?,
            heap::column(relation, c"reason", pg_sys::TEXTOID)?,
        ];
        let may_be_null = plan::column(table, user, |column| !column.attnotnull)?
            && plan::column(table, reason, |column| !column.attnotnull && !column.atthasdef)?;
        let key = [
            heap::column(relation, c"tenant_id", pg_sys::UUIDOID)?,
            heap::column(relation, c"idempotency_key", pg_sys::TEXTOID)?,
        ];
        let key = unique_index(c"usage_events_pkey", schema, table, &key)?;
        may_be_null.then_some(Layout { columns, key })
    }
}
