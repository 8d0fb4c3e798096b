//! New events: what they cost, and that a key is used once.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{FromDatum, IntoDatum, Uuid};

use super::calendar::{require_day, require_past};
use super::digest::{Digest, digest};
use super::ledger::{self, NewEvent};
use super::slots::{self, Figures, Place};
use super::{TABLES, rights};
use crate::error::Error;
use crate::function::{Composite, argument, c_function, raw_argument};
use crate::identity;
use crate::lookup::{self, by_id};
use crate::owner::as_owner;
use crate::plan::{Row, Statement, arg};
use crate::view::now;

/// What is under a key, and whether it is the same. When nobody said when it occurred, it occurred when
/// it was recorded.
static FIND: Statement = Statement {
    sql: "select cost, unpriced, date, \
              coalesce(user_id operator(pg_catalog.=) $3, user_id is null and $3 is null) \
              and model operator(pg_catalog.=) $4 and usage operator(pg_catalog.=) $5 \
              and ($6 is null or occurred_at operator(pg_catalog.=) recorded_at \
                   or occurred_at operator(pg_catalog.=) $6) \
          from @extschema@.usage_events \
          where tenant_id operator(pg_catalog.=) $1 and idempotency_key operator(pg_catalog.=) $2",
    types: &[
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::TIMESTAMPTZOID,
    ],
};

/// What is to be recorded. Texts and JSON stay as they came.
pub struct Event<'a> {
    pub tenant: Uuid,
    pub user: Option<Uuid>,
    pub model: Datum,
    pub usage: Datum,
    pub key: Datum,
    pub occurred_at: Option<i64>,
    pub recorded_by: &'a str,
    pub requests: i32,
    /// Whether the user is taken from a row of ours, which may have outlived him.
    pub is_of_message: bool,
}

/// What is answered to the caller.
pub struct Recorded {
    pub applied: bool,
    pub cost: Datum,
    pub unpriced: Datum,
    pub date: Datum,
}

/// A value of a result that outlives it.
///
/// # Safety
///
/// Called while the result is read; the column is a varlena.
pub unsafe fn kept(row: &Row, n: i32) -> Option<Datum> {
    row.raw(n).map(|value| unsafe { pg_sys::SPI_datumTransfer(value, false, -1) })
}

/// Records an event, or tells what is under its key; the caller has the owner's rights.
pub fn record(event: &Event) -> Result<Recorded, Error> {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let at = event.occurred_at.unwrap_or(now);
    let (date, digest) = match look_at(event, at) {
        Ok(seen) => seen,
        // A retry is answered whatever has become of the user since.
        Err(error) => return find(event)?.ok_or(error),
    };
    let unpriced = digest.unpriced.len();
    let list = digest.unpriced.into_datum().ok_or(Error::Missing("unpriced"))?;
    let row = NewEvent {
        tenant: event.tenant,
        user: event.user,
        occurred_at: at,
        recorded_at: now,
        prompt_tokens: digest.prompt_tokens,
        completion_tokens: digest.completion_tokens,
        requests: event.requests,
        date,
        key: event.key,
        kind: "usage",
        model: event.model,
        usage: event.usage,
        cost: digest.cost,
        unpriced: list,
        recorded_by: event.recorded_by,
    };
    // What was in the way may be gone once it is looked at: then it is tried again.
    loop {
        pgrx::check_for_interrupts!();
        if ledger::insert(&row)? {
            break;
        }
        if let Some(found) = find(event)? {
            return Ok(found);
        }
    }
    let place = Place { tenant: event.tenant, date, user: event.user, model: event.model };
    let figures = Figures {
        prompt_tokens: digest.prompt_tokens,
        completion_tokens: digest.completion_tokens,
        requests: event.requests.into(),
        unpriced: i64::from(unpriced > 0),
        cost: digest.cost,
    };
    slots::add(&place, &figures)?;
    Ok(Recorded { applied: true, cost: digest.cost, unpriced: list, date })
}

/// The day in the tenant's time zone, and what the usage comes to.
fn look_at(event: &Event, at: i64) -> Result<(Datum, Digest), Error> {
    let keys = by_id(c"id", event.tenant)?;
    let zone = now(|| {
        lookup::find(c"tenants", c"tenants_pkey", &keys, |row| row.named::<String>(c"time_zone"))
    })?;
    let zone = zone.ok_or(Error::NoSuchTenant(event.tenant))?.ok_or(Error::NotInstalled)?;
    match event.user {
        Some(user) if !event.is_of_message => require_user(event.tenant, user)?,
        _ => (),
    }
    let day = day(&zone, at)?;
    require_day(day)?;
    Ok((day, digest(event.usage, event.model, at)?))
}

/// The day of a moment in a time zone.
fn day(zone: &str, at: i64) -> Result<Datum, Error> {
    let zone = zone.into_datum().ok_or(Error::Missing("time_zone"))?;
    let none = pg_sys::Oid::INVALID;
    let to_zone = pg_sys::Oid::from(pg_sys::F_TIMEZONE_TEXT_TIMESTAMPTZ);
    let to_date = pg_sys::Oid::from(pg_sys::F_DATE_TIMESTAMP);
    // SAFETY: a text and a timestamptz make a timestamp, and that a date.
    unsafe {
        let at = Datum::from(at);
        let local = pg_sys::OidFunctionCall2Coll(to_zone, none, zone, at);
        Ok(pg_sys::OidFunctionCall1Coll(to_date, none, local))
    }
}

fn find(event: &Event) -> Result<Option<Recorded>, Error> {
    let args = [
        arg(event.tenant),
        Some(event.key),
        event.user.and_then(IntoDatum::into_datum),
        Some(event.model),
        Some(event.usage),
        event.occurred_at.map(Datum::from),
    ];
    let found = FIND.run_now(&args, |row| {
        // SAFETY: numeric and text[].
        let (cost, unpriced) = unsafe { (kept(row, 1)?, kept(row, 2)?) };
        let recorded = Recorded { applied: false, cost, unpriced, date: row.raw(3)? };
        Some((recorded, row.get(4) == Some(true)))
    })?;
    match found.flatten() {
        Some((recorded, true)) => Ok(Some(recorded)),
        Some((_, false)) => {
            // SAFETY: a text.
            let key = unsafe { String::from_datum(event.key, false) };
            Err(Error::UsageDiffers(key.unwrap_or_default()))
        }
        None => Ok(None),
    }
}

fn require_tenant(tenant: Uuid) -> Result<(), Error> {
    if now(|| identity::is_tenant(tenant))? { Ok(()) } else { Err(Error::NoSuchTenant(tenant)) }
}

fn require_user(tenant: Uuid, user: Uuid) -> Result<(), Error> {
    if now(|| identity::tenant_of(user))? == Some(tenant) {
        Ok(())
    } else {
        Err(Error::NoSuchUser(user))
    }
}

/// The tenant is one of ours, and the user one of its.
pub fn require_place(tenant: Uuid, user: Option<Uuid>) -> Result<(), Error> {
    require_tenant(tenant)?;
    user.map_or(Ok(()), |user| require_user(tenant, user))
}

static RECORDED: Composite<4> = Composite::new([
    (c"applied", pg_sys::BOOLOID),
    (c"cost", pg_sys::NUMERICOID),
    (c"unpriced", pg_sys::TEXTARRAYOID),
    (c"date", pg_sys::DATEOID),
]);

c_function!(
    /// Records what a model has used, once for each key.
    record_usage, pg_finfo_record_usage, record_one
);

fn record_one(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_record(c"record_usage()")?;
    // SAFETY: declared as (uuid, uuid, text, jsonb, text, timestamptz).
    let (tenant, user): (Option<Uuid>, Option<Uuid>) =
        unsafe { (argument(call, 0), argument(call, 1)) };
    let tenant = tenant.ok_or(Error::Missing("tenant_id"))?;
    let model = raw_argument(call, 2);
    require_length("model", model, 0..=MOST_OF_MODEL)?;
    let usage = raw_argument(call, 3).ok_or(Error::Missing("usage"))?;
    let key = raw_argument(call, 4).ok_or(Error::Missing("idempotency_key"))?;
    require_own_key(key)?;
    let occurred_at = unsafe { argument::<TimestampWithTimeZone>(call, 5) }.map(i64::from);
    if let Some(at) = occurred_at {
        require_past(at)?;
    }
    let recorded_by = rights::caller();
    let event = Event {
        tenant,
        user,
        model: model.or_else(|| "".into_datum()).ok_or(Error::Missing("model"))?,
        usage,
        key,
        occurred_at,
        recorded_by: &recorded_by,
        requests: 1,
        is_of_message: false,
    };
    let recorded = as_owner(&TABLES, || record(&event))?;
    Ok(RECORDED.row([recorded.applied.into(), recorded.cost, recorded.unpriced, recorded.date]))
}

/// Keys of the extension's own begin like this.
const OURS: [&str; 4] = ["message:", "void:", "repricing:", "increment:"];

/// Longest name of a model: it is part of a key.
pub const MOST_OF_MODEL: usize = 200;

fn require_own_key(key: Datum) -> Result<(), Error> {
    require_length("idempotency_key", Some(key), 1..=200)?;
    // SAFETY: a text.
    let key = unsafe { String::from_datum(key, false) }.unwrap_or_default();
    if OURS.iter().any(|start| key.starts_with(start)) {
        return Err(Error::ReservedKey(key));
    }
    Ok(())
}

fn require_length(
    name: &'static str,
    text: Option<Datum>,
    allowed: std::ops::RangeInclusive<usize>,
) -> Result<(), Error> {
    let Some(text) = text else { return Ok(()) };
    // SAFETY: a text; one that cannot be short enough is not fetched.
    let count = unsafe {
        match pg_sys::toast_raw_datum_size(text) {
            size if size > 4 * allowed.end() + pg_sys::VARHDRSZ => usize::MAX,
            _ => <&str>::from_datum(text, false).map_or(0, |text| text.chars().count()),
        }
    };
    if allowed.contains(&count) {
        Ok(())
    } else {
        Err(Error::BadLength { name, least: *allowed.start(), most: *allowed.end() })
    }
}
