//! Sums that nobody waits for.
//!
//! A figure is the sum over the rows of its key, each in a slot. A writer takes a row that nobody has
//! locked, or else adds one, so there are as many as there were writers at once. Two transactions
//! that write to the same keys in opposite orders never meet.

use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::pg_sys::{self, Datum};
use pgrx::{FromDatum, Uuid};

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

static DAYS: Sum = Sum {
    table: c"usage_days",
    index: c"usage_days_pkey",
    key: &[
        (c"tenant_id", pg_sys::UUIDOID, pg_sys::F_UUID_EQ),
        (c"date", pg_sys::DATEOID, pg_sys::F_DATE_EQ),
        (c"user_id", pg_sys::UUIDOID, pg_sys::F_UUID_EQ),
        (c"model", pg_sys::TEXTOID, pg_sys::F_TEXTEQ),
    ],
    columns: 10,
};

static TOTALS: Sum = Sum {
    table: c"usage_totals",
    index: c"usage_totals_pkey",
    key: &[
        (c"tenant_id", pg_sys::UUIDOID, pg_sys::F_UUID_EQ),
        (c"date", pg_sys::DATEOID, pg_sys::F_DATE_EQ),
    ],
    columns: 8,
};

/// Adds an event to its day and to the total; the caller has the owner's rights.
pub fn add(place: &Place, figures: &Figures) -> Result<(), Error> {
    let user = place.user.unwrap_or(Uuid::from_bytes(NOBODY));
    let of_day = |slot: i32| -> [Arg; 10] {
        [
            arg(place.tenant),
            Some(place.date),
            arg(user),
            Some(place.model),
            arg(slot),
            arg(figures.prompt_tokens),
            arg(figures.completion_tokens),
            arg(figures.requests),
            arg(figures.unpriced),
            Some(figures.cost),
        ]
    };
    let of_total = |slot: i32| -> [Arg; 8] {
        let [tenant, date, _, _, slot, figures @ ..] = of_day(slot);
        let [prompt, completion, requests, unpriced, cost] = figures;
        [tenant, date, slot, prompt, completion, requests, unpriced, cost]
    };
    let [tenant, date, user_id, model, ..] = of_day(0).map(|arg| arg.unwrap_or(Datum::from(0)));

    // SAFETY: a text.
    let name = unsafe { <&str>::from_datum(place.model, false) };
    let number = place.date.value() as i32;
    let day = sum_of(&(place.tenant.as_bytes(), number, user.as_bytes(), name));
    match direct::add(&DAYS, day, &[tenant, date, user_id, model], figures)? {
        Outcome::Added => (),
        Outcome::NoFreeRow => direct::remember(day, make(&NEW_DAY, of_day)?),
        Outcome::NotPlain => somewhere(&ADD_TO_DAY, &NEW_DAY, of_day)?,
    }
    let total = sum_of(&(place.tenant.as_bytes(), number));
    match direct::add(&TOTALS, total, &[tenant, date], figures)? {
        Outcome::Added => (),
        Outcome::NoFreeRow => direct::remember(total, make(&NEW_TOTAL, of_total)?),
        Outcome::NotPlain => somewhere(&ADD_TO_TOTAL, &NEW_TOTAL, of_total)?,
    }
    Ok(())
}

/// A number for a key: two that have the same one look in the wrong place first.
fn sum_of(key: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// By statements, where the DBA has attached something to a table.
fn somewhere<const N: usize>(
    add: &'static Statement,
    new: &'static Statement,
    args: impl Fn(i32) -> [Arg; N],
) -> Result<(), Error> {
    if add.run_now(&args(0), |_| ())?.is_none() {
        make(new, args)?;
    }
    Ok(())
}

/// In a new row, for there is none or all are taken; in which slot.
fn make<const N: usize>(
    new: &'static Statement,
    args: impl Fn(i32) -> [Arg; N],
) -> Result<i32, Error> {
    loop {
        pgrx::check_for_interrupts!();
        let slot = any_slot();
        if new.run_now(&args(slot), |_| ())?.is_some() {
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
