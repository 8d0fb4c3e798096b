//! Sums that nobody waits for.
//!
//! A figure is the sum over the rows of its key, each in a slot. A writer takes a row that nobody has
//! locked, or else adds one, so there are as many as there were writers at once. Two transactions
//! that write to the same keys in opposite orders never meet.

use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::pg_sys::{self, Datum};
use pgrx::{FromDatum, Uuid};

use super::calendar;
use super::direct::{self, Outcome, Sum};
use crate::error::Error;
use crate::identity;
use crate::plan::{Arg, Statement, arg};

/// What an event adds.
pub struct Figures {
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub requests: i64,
    pub unpriced: i64,
    /// A numeric.
    pub cost: Datum,
}

/// Where it adds it.
pub struct Place {
    pub tenant: Uuid,
    pub date: Datum,
    pub user: Option<Uuid>,
    pub model: Datum,
}

impl Place {
    /// A number that stands for it in locks.
    pub fn id(&self) -> Uuid {
        let user = self.user.map(|user| *user.as_bytes());
        // SAFETY: a text.
        let model = unsafe { <&str>::from_datum(self.model, false) };
        let number = sum_of(&(self.tenant.as_bytes(), self.date.value() as i32, user, model));
        Uuid::from_bytes(u128::from(number).to_be_bytes())
    }
}

/// The first row that nobody has locked.
static ADD_TO_DAY: Statement = Statement {
    sql: "update @extschema@.usage_days set \
              prompt_tokens = prompt_tokens operator(pg_catalog.+) $6, \
              completion_tokens = completion_tokens operator(pg_catalog.+) $7, \
              request_count = request_count operator(pg_catalog.+) $8, \
              unpriced_count = unpriced_count operator(pg_catalog.+) $9, \
              cost = cost operator(pg_catalog.+) $10 \
          where tenant_id operator(pg_catalog.=) $1 and date operator(pg_catalog.=) $2 \
          and user_id operator(pg_catalog.=) $3 and model operator(pg_catalog.=) $4 \
          and $5 is not null and slot operator(pg_catalog.=) ( \
              select s.slot from @extschema@.usage_days s \
              where s.tenant_id operator(pg_catalog.=) $1 and s.date operator(pg_catalog.=) $2 \
              and s.user_id operator(pg_catalog.=) $3 and s.model operator(pg_catalog.=) $4 \
              order by s.slot limit 1 for no key update skip locked) \
          returning true",
    types: OF_DAY,
};

static ADD_TO_TOTAL: Statement = Statement {
    sql: "update @extschema@.usage_totals set \
              prompt_tokens = prompt_tokens operator(pg_catalog.+) $4, \
              completion_tokens = completion_tokens operator(pg_catalog.+) $5, \
              request_count = request_count operator(pg_catalog.+) $6, \
              unpriced_count = unpriced_count operator(pg_catalog.+) $7, \
              cost = cost operator(pg_catalog.+) $8 \
          where tenant_id operator(pg_catalog.=) $1 and date operator(pg_catalog.=) $2 \
          and $3 is not null and slot operator(pg_catalog.=) ( \
              select s.slot from @extschema@.usage_totals s \
              where s.tenant_id operator(pg_catalog.=) $1 and s.date operator(pg_catalog.=) $2 \
              order by s.slot limit 1 for no key update skip locked) \
          returning true",
    types: OF_TOTAL,
};

static ADD_TO_MONTH: Statement = Statement {
    sql: "update @extschema@.usage_months set \
              prompt_tokens = prompt_tokens operator(pg_catalog.+) $4, \
              completion_tokens = completion_tokens operator(pg_catalog.+) $5, \
              request_count = request_count operator(pg_catalog.+) $6, \
              unpriced_count = unpriced_count operator(pg_catalog.+) $7, \
              cost = cost operator(pg_catalog.+) $8 \
          where tenant_id operator(pg_catalog.=) $1 and month operator(pg_catalog.=) $2 \
          and $3 is not null and slot operator(pg_catalog.=) ( \
              select s.slot from @extschema@.usage_months s \
              where s.tenant_id operator(pg_catalog.=) $1 and s.month operator(pg_catalog.=) $2 \
              order by s.slot limit 1 for no key update skip locked) \
          returning true",
    types: OF_TOTAL,
};

/// A new row. Nothing is read for it: serializable transactions would meet there.
static NEW_DAY: Statement = Statement {
    sql: "insert into @extschema@.usage_days \
              (tenant_id, date, user_id, model, slot, \
               prompt_tokens, completion_tokens, request_count, unpriced_count, cost) \
          values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
          on conflict do nothing returning true",
    types: OF_DAY,
};

static NEW_TOTAL: Statement = Statement {
    sql: "insert into @extschema@.usage_totals \
              (tenant_id, date, slot, \
               prompt_tokens, completion_tokens, request_count, unpriced_count, cost) \
          values ($1, $2, $3, $4, $5, $6, $7, $8) \
          on conflict do nothing returning true",
    types: OF_TOTAL,
};

static NEW_MONTH: Statement = Statement {
    sql: "insert into @extschema@.usage_months \
              (tenant_id, month, slot, \
               prompt_tokens, completion_tokens, request_count, unpriced_count, cost) \
          values ($1, $2, $3, $4, $5, $6, $7, $8) \
          on conflict do nothing returning true",
    types: OF_TOTAL,
};

const OF_DAY: &[pg_sys::Oid] = &[
    pg_sys::UUIDOID,
    pg_sys::DATEOID,
    pg_sys::UUIDOID,
    pg_sys::TEXTOID,
    pg_sys::INT4OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::NUMERICOID,
];

const OF_TOTAL: &[pg_sys::Oid] = &[
    pg_sys::UUIDOID,
    pg_sys::DATEOID,
    pg_sys::INT4OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::NUMERICOID,
];

/// A table of sums, and what is done by statements: where there is no row to add to, and where the DBA has
/// attached something to the table.
struct Table {
    sum: Sum,
    add: &'static Statement,
    new: &'static Statement,
}

static DAYS: Table = Table {
    sum: Sum {
        table: c"usage_days",
        index: c"usage_days_pkey",
        key: &[
            (c"tenant_id", pg_sys::UUIDOID, pg_sys::F_UUID_EQ),
            (c"date", pg_sys::DATEOID, pg_sys::F_DATE_EQ),
            (c"user_id", pg_sys::UUIDOID, pg_sys::F_UUID_EQ),
            (c"model", pg_sys::TEXTOID, pg_sys::F_TEXTEQ),
        ],
        columns: 10,
    },
    add: &ADD_TO_DAY,
    new: &NEW_DAY,
};

static TOTALS: Table = Table {
    sum: Sum {
        table: c"usage_totals",
        index: c"usage_totals_pkey",
        key: &[
            (c"tenant_id", pg_sys::UUIDOID, pg_sys::F_UUID_EQ),
            (c"date", pg_sys::DATEOID, pg_sys::F_DATE_EQ),
        ],
        columns: 8,
    },
    add: &ADD_TO_TOTAL,
    new: &NEW_TOTAL,
};

static MONTHS: Table = Table {
    sum: Sum {
        table: c"usage_months",
        index: c"usage_months_pkey",
        key: &[
            (c"tenant_id", pg_sys::UUIDOID, pg_sys::F_UUID_EQ),
            (c"month", pg_sys::DATEOID, pg_sys::F_DATE_EQ),
        ],
        columns: 8,
    },
    add: &ADD_TO_MONTH,
    new: &NEW_MONTH,
};

/// Adds an event to its day, to the tenant's day and to the tenant's month; the caller has the owner's
/// rights.
pub fn add(place: &Place, figures: &Figures) -> Result<(), Error> {
    let tenant = Datum::from(place.tenant.as_bytes().as_ptr());
    let user = place.user.unwrap_or(Uuid::from_bytes(NOBODY));
    let user_id = Datum::from(user.as_bytes().as_ptr());
    let month = calendar::month(place.date);
    // SAFETY: a text.
    let model = unsafe { <&str>::from_datum(place.model, false) };
    let (of, date) = (place.tenant.as_bytes(), place.date.value() as i32);
    let day = sum_of(&(of, date, user.as_bytes(), model));
    add_to(&DAYS, day, &[tenant, place.date, user_id, place.model], figures)?;
    add_to(&TOTALS, sum_of(&("day", of, date)), &[tenant, place.date], figures)?;
    add_to(&MONTHS, sum_of(&("month", of, month.value() as i32)), &[tenant, month], figures)
}

fn add_to(
    table: &'static Table,
    known: u64,
    key: &[Datum],
    figures: &Figures,
) -> Result<(), Error> {
    let in_slot = |slot: i32| -> Vec<Arg> {
        let key = key.iter().map(|value| Some(*value));
        let figures = [
            arg(slot),
            arg(figures.prompt_tokens),
            arg(figures.completion_tokens),
            arg(figures.requests),
            arg(figures.unpriced),
            Some(figures.cost),
        ];
        key.chain(figures).collect()
    };
    match direct::add(&table.sum, known, key, figures)? {
        Outcome::Added => (),
        Outcome::NoFreeRow => direct::remember(known, make(table, in_slot)?),
        Outcome::NotPlain => {
            if table.add.run_now(&in_slot(0), |_| ())?.is_none() {
                make(table, in_slot)?;
            }
        }
    }
    Ok(())
}

/// A number for a key: two that have the same one look in the wrong place first.
fn sum_of(key: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// In a new row, for there is none or all are taken; in which slot.
fn make(table: &Table, in_slot: impl Fn(i32) -> Vec<Arg>) -> Result<i32, Error> {
    loop {
        pgrx::check_for_interrupts!();
        let slot = any_slot();
        if table.new.run_now(&in_slot(slot), |_| ())?.is_some() {
            return Ok(slot);
        }
    }
}

/// Stands for nobody, for a key has no nulls.
const NOBODY: [u8; 16] = [0; 16];

/// A number from 1 that nobody else is likely to have just taken: he would be waited for.
pub fn any_slot() -> i32 {
    let id = identity::new_id();
    let [.., a, b, c, d] = *id.as_bytes();
    (i32::from_be_bytes([a, b, c, d]) & i32::MAX).max(1)
}
