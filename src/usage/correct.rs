//! Events that take another back, and those that bring their own cost.

use std::ffi::CString;

use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid};
use pgrx::{AnyNumeric, FromDatum, IntoDatum, Uuid};

use super::calendar::require_day;
use super::digest::{MOST, MOST_DECIMALS, scale};
use super::event::{kept, require_place};
use super::ledger::{self, NewEvent};
use super::slots::{self, Figures, Place};
use super::{TABLES, reprice, rights};
use crate::error::Error;
use crate::function::{Composite, argument, c_function, raw_argument};
use crate::identity;
use crate::owner::as_owner;
use crate::plan::{Statement, arg};

/// The same with all figures negated, once.
static VOID: Statement = Statement {
    sql: "insert into @extschema@.usage_events \
              (tenant_id, user_id, occurred_at, recorded_at, prompt_tokens, completion_tokens, \
               request_count, date, idempotency_key, kind, model, usage, cost, unpriced, \
               recorded_by, reason) \
          select tenant_id, user_id, occurred_at, pg_catalog.clock_timestamp(), \
              operator(pg_catalog.-) prompt_tokens, operator(pg_catalog.-) completion_tokens, \
              operator(pg_catalog.-) request_count, date, \
              'void:' operator(pg_catalog.||) idempotency_key, 'void', model, usage, \
              operator(pg_catalog.-) cost, unpriced, $4, $3 \
          from @extschema@.usage_events \
          where tenant_id operator(pg_catalog.=) $1 and idempotency_key operator(pg_catalog.=) $2 \
          and kind operator(pg_catalog.=) any (array['usage', 'increment']) \
          on conflict (tenant_id, idempotency_key) do nothing \
          returning cost, date, user_id, model::pg_catalog.text, prompt_tokens, completion_tokens, \
              request_count, pg_catalog.cardinality(unpriced) operator(pg_catalog.>) 0",
    types: &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static FIND_VOID: Statement = Statement {
    sql: "select v.cost, v.date from @extschema@.usage_events v \
          where v.tenant_id operator(pg_catalog.=) $1 \
          and v.idempotency_key operator(pg_catalog.=) ('void:' operator(pg_catalog.||) $2) \
          and v.kind operator(pg_catalog.=) 'void'",
    types: &[pg_sys::UUIDOID, pg_sys::TEXTOID],
};

pub struct Voided {
    pub applied: bool,
    cost: Datum,
    date: Datum,
}

/// Takes an event back, unless that was done; the caller has the owner's rights.
pub fn void(tenant: Uuid, key: &str, reason: &str, recorded_by: &str) -> Result<Voided, Error> {
    let args = [arg(tenant), arg(key), arg(reason), arg(recorded_by)];
    reprice::keep_costs()?;
    let voided = VOID.run_now(&args, |row| {
        // SAFETY: numeric and text.
        let (cost, model) = unsafe { (kept(row, 1)?, kept(row, 4)?) };
        let date = row.raw(2)?;
        let figures = Figures {
            prompt_tokens: row.get(5)?,
            completion_tokens: row.get(6)?,
            requests: row.get::<i32>(7)?.into(),
            unpriced: -i64::from(row.get(8) == Some(true)),
            cost,
        };
        Some((Place { tenant, date, user: row.get(3), model }, figures))
    })?;
    if let Some((place, figures)) = voided.flatten() {
        slots::add(&place, &figures)?;
        // An increment is never repriced.
        if !key.starts_with("increment:") {
            reprice::reprice(&place, recorded_by)?;
        }
        return Ok(Voided { applied: true, cost: figures.cost, date: place.date });
    }
    let found = FIND_VOID.run_now(&args[..2], |row| {
        // SAFETY: numeric.
        Some(Voided { applied: false, cost: unsafe { kept(row, 1)? }, date: row.raw(2)? })
    })?;
    found.flatten().ok_or_else(|| Error::NoSuchEvent(key.into()))
}

static VOIDED: Composite<3> = Composite::new([
    (c"applied", pg_sys::BOOLOID),
    (c"cost", pg_sys::NUMERICOID),
    (c"date", pg_sys::DATEOID),
]);

c_function!(
    /// Takes an event back, once.
    void_usage, pg_finfo_void_usage, void_one
);

fn void_one(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_record(c"void_usage()")?;
    // SAFETY: declared as (uuid, text, text).
    let (tenant, key, reason): (Option<Uuid>, Option<String>, Option<String>) =
        unsafe { (argument(call, 0), argument(call, 1), argument(call, 2)) };
    let tenant = tenant.ok_or(Error::Missing("tenant_id"))?;
    let key = key.ok_or(Error::Missing("key"))?;
    let reason = reason.ok_or(Error::Missing("reason"))?;
    let recorded_by = rights::caller();
    let voided = as_owner(&TABLES, || void(tenant, &key, &reason, &recorded_by))?;
    Ok(VOIDED.row([voided.applied.into(), voided.cost, voided.date]))
}

c_function!(
    /// Adds a request with its tokens and cost to a day.
    increment_usage_metrics,
    pg_finfo_increment_usage_metrics,
    increment
);

fn increment(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_record(c"increment_usage_metrics()")?;
    // SAFETY: declared as (uuid, uuid, date, bigint, bigint, numeric).
    let (tenant, user, prompt_tokens, completion_tokens): (_, Option<Uuid>, _, _) = unsafe {
        (argument(call, 0), argument(call, 1), argument::<i64>(call, 3), argument::<i64>(call, 4))
    };
    let tenant: Uuid = tenant.ok_or(Error::Missing("p_tenant_id"))?;
    let date = raw_argument(call, 2).ok_or(Error::Missing("p_date"))?;
    let prompt_tokens = figure("p_prompt_tokens", prompt_tokens)?;
    let completion_tokens = figure("p_completion_tokens", completion_tokens)?;
    let cost = raw_argument(call, 5).ok_or(Error::Missing("p_estimated_cost"))?;
    require_cost(cost)?;
    require_day(date)?;
    require_place(tenant, user)?;
    let recorded_by = rights::caller();
    let missing = || Error::Missing("usage");
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let model = "".into_datum().ok_or_else(missing)?;
    let mut event = NewEvent {
        tenant,
        user,
        occurred_at: now,
        recorded_at: now,
        prompt_tokens,
        completion_tokens,
        requests: 1,
        date,
        key: own_key()?,
        kind: "increment",
        model,
        usage: usage_of(prompt_tokens, completion_tokens, cost)?,
        cost,
        unpriced: Vec::<String>::new().into_datum().ok_or_else(missing)?,
        recorded_by: &recorded_by,
    };
    let figures = Figures { prompt_tokens, completion_tokens, requests: 1, unpriced: 0, cost };
    as_owner(&TABLES, || {
        while !ledger::insert(&event)? {
            pgrx::check_for_interrupts!();
            event.key = own_key()?;
        }
        slots::add(&Place { tenant, date, user, model }, &figures)
    })?;
    Ok(Datum::null())
}

/// Two increments are never the same.
fn own_key() -> Result<Datum, Error> {
    let key = format!("increment:{}", identity::new_id());
    key.into_datum().ok_or(Error::Missing("idempotency_key"))
}

/// A jsonb, of text: its cost may have more digits than other numbers of Rust take.
fn usage_of(prompt_tokens: i64, completion_tokens: i64, cost: Datum) -> Result<Datum, Error> {
    // SAFETY: a numeric, which is neither NaN nor infinite and so, as text, a number of JSON.
    let cost = unsafe { AnyNumeric::from_datum(cost, false) }.unwrap_or_default();
    let tokens =
        format!(r#""prompt_tokens": {prompt_tokens}, "completion_tokens": {completion_tokens}"#);
    let text = CString::new(format!(r#"{{{tokens}, "cost": {cost}}}"#));
    let text = text.map_err(|_| Error::Missing("usage"))?;
    // SAFETY: a C string.
    Ok(unsafe {
        let function = Oid::from(pg_sys::F_JSONB_IN);
        pg_sys::OidFunctionCall1Coll(function, Oid::INVALID, Datum::from(text.as_ptr()))
    })
}

fn figure(name: &'static str, value: Option<i64>) -> Result<i64, Error> {
    match value.ok_or(Error::Missing(name))? {
        ..0 => Err(Error::Negative(name)),
        n @ 0..=MOST => Ok(n),
        _ => Err(Error::BadUsage(format!("{name} is more than {MOST}"))),
    }
}

fn require_cost(cost: Datum) -> Result<(), Error> {
    let decimals = scale(cost);
    // SAFETY: a numeric.
    let cost = unsafe { AnyNumeric::from_datum(cost, false) }.unwrap_or_default();
    if cost < AnyNumeric::from(0) {
        Err(Error::Negative("p_estimated_cost"))
    } else if cost.is_nan() || cost > AnyNumeric::from(MOST) {
        Err(Error::BadUsage(format!("p_estimated_cost is more than {MOST}")))
    } else if decimals > MOST_DECIMALS {
        Err(Error::BadUsage(format!("p_estimated_cost has more than {MOST_DECIMALS} decimals")))
    } else {
        Ok(())
    }
}
