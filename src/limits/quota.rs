//! Tokens a day. They are reserved before an answer is asked for, one reservation of a tenant after the
//! other, and settled when it is known how many it took.
//!
//! Whoever reserves holds the tenant's lock until he commits, and adds up in a snapshot taken under it:
//! nobody adds up beside him. Settling takes no lock of the tenant. It puts tokens that were used in
//! the place of a reservation, in one transaction, so that a sum has the one or the other.

use pgrx::Uuid;
use pgrx::datum::Date;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use super::{Tenant, clock, rights};
use crate::error::Error;
use crate::function::{Composite, argument, c_function, raw_argument};
use crate::identity;
use crate::lock::{self, Kind};
use crate::lookup::{self, by_id};
use crate::owner::as_owner;
use crate::plan::{Statement, arg};
use crate::settings::with_index_scans;
use crate::streaming;
use crate::usage::any_slot;
use crate::view::{latest, now};

/// What counts against the day: tokens that were settled or that are in the ledger, whichever is
/// more, for whoever does both has counted them twice; and what is reserved.
static ADD_UP: Statement = Statement {
    sql: "select d.date, d.most is not null, \
              d.is_active and (d.most is null \
                  or (s.taken operator(pg_catalog.+) $3::numeric) operator(pg_catalog.<=) d.most), \
              case when d.most is not null \
                   then greatest(d.most operator(pg_catalog.-) s.taken, 0)::bigint end, \
              least((s.taken operator(pg_catalog.+) $3::numeric) operator(pg_catalog.-) d.most, \
                    9223372036854775807)::bigint \
          from ( \
              select t.is_active, t.daily_token_limit::numeric as most, \
                  pg_catalog.timezone(t.time_zone, $2)::pg_catalog.date as date \
              from @extschema@.tenants t where t.id operator(pg_catalog.=) $1 offset 0 \
          ) d cross join lateral ( \
              select greatest( \
                  (select coalesce(pg_catalog.sum(w.used), 0) from @extschema@.token_windows w \
                   where w.tenant_id operator(pg_catalog.=) $1 and w.date operator(pg_catalog.=) d.date), \
                  (select coalesce(pg_catalog.sum(u.prompt_tokens) operator(pg_catalog.+) \
                                   pg_catalog.sum(u.completion_tokens), 0) \
                   from @extschema@.usage_totals u \
                   where u.tenant_id operator(pg_catalog.=) $1 and u.date operator(pg_catalog.=) d.date) \
              ) operator(pg_catalog.+) ( \
                  select coalesce(pg_catalog.sum(r.tokens), 0) from @extschema@.token_reservations r \
                  where r.tenant_id operator(pg_catalog.=) $1 and r.date operator(pg_catalog.=) d.date \
                  and r.closed_at is null and r.expires_at operator(pg_catalog.>) $2 \
              ) as taken offset 0 \
          ) s",
    types: &[pg_sys::UUIDOID, pg_sys::TIMESTAMPTZOID, pg_sys::INT8OID],
};

/// Seconds until there will be room: when as much as is lacking has expired, or on the next day. Never
/// for more than a day has.
static WAIT: Statement = Statement {
    sql: "select greatest(1, pg_catalog.ceil(pg_catalog.date_part('epoch', least( \
              pg_catalog.timezone(t.time_zone, ($3 operator(pg_catalog.+) 1)::timestamp), \
              (select pg_catalog.min(o.expires_at) from ( \
                   select r.expires_at, \
                       pg_catalog.sum(r.tokens) over (order by r.expires_at, r.id) as back \
                   from @extschema@.token_reservations r \
                   where r.tenant_id operator(pg_catalog.=) $1 and r.date operator(pg_catalog.=) $3 \
                   and r.closed_at is null and r.expires_at operator(pg_catalog.>) $2) o \
               where o.back operator(pg_catalog.>=) $5::numeric) \
          ) operator(pg_catalog.-) $2)))::integer \
          from @extschema@.tenants t \
          where t.id operator(pg_catalog.=) $1 and t.daily_token_limit operator(pg_catalog.>=) $4",
    types: &[
        pg_sys::UUIDOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::DATEOID,
        pg_sys::INT8OID,
        pg_sys::INT8OID,
    ],
};

static RESERVE: Statement = Statement {
    sql: "insert into @extschema@.token_reservations \
          (id, tenant_id, user_id, tokens, created_at, expires_at, date, conversation_id) \
          values ($1, $2, $3, $4, $5, $6, $7, $8)",
    types: &[
        pg_sys::UUIDOID,
        pg_sys::UUIDOID,
        pg_sys::UUIDOID,
        pg_sys::INT8OID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::DATEOID,
        pg_sys::UUIDOID,
    ],
};

static CLAIM: Statement = Statement {
    sql: "select tenant_id, date, settled from @extschema@.token_reservations \
          where id operator(pg_catalog.=) $1 for no key update",
    types: &[pg_sys::UUIDOID],
};

static CLOSE: Statement = Statement {
    sql: "update @extschema@.token_reservations set settled = $2, closed_at = coalesce(closed_at, $3) \
          where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID, pg_sys::INT8OID, pg_sys::TIMESTAMPTZOID],
};

/// To the first row of the day that nobody else is writing to, and that has room for as many.
static ADD: Statement = Statement {
    sql: "with free as materialized ( \
              select w.slot from @extschema@.token_windows w \
              where w.tenant_id operator(pg_catalog.=) $1 and w.date operator(pg_catalog.=) $2 \
              and w.used operator(pg_catalog.<=) (9223372036854775807 operator(pg_catalog.-) $3) \
              limit 1 for no key update skip locked) \
          update @extschema@.token_windows w set used = w.used operator(pg_catalog.+) $3 from free f \
          where w.tenant_id operator(pg_catalog.=) $1 and w.date operator(pg_catalog.=) $2 \
          and w.slot operator(pg_catalog.=) f.slot \
          returning true",
    types: &[pg_sys::UUIDOID, pg_sys::DATEOID, pg_sys::INT8OID],
};

/// A row of this number that is in use would be waited for.
static ADD_ROW: Statement = Statement {
    sql: "insert into @extschema@.token_windows (tenant_id, date, slot, used) \
          select $1, $2, $4, $3 where not exists ( \
              select from @extschema@.token_windows w \
              where w.tenant_id operator(pg_catalog.=) $1 and w.date operator(pg_catalog.=) $2 \
              and w.slot operator(pg_catalog.=) $4) \
          on conflict do nothing returning true",
    types: &[pg_sys::UUIDOID, pg_sys::DATEOID, pg_sys::INT8OID, pg_sys::INT4OID],
};

static NOTED: Statement = Statement {
    sql: "select conversation_id, coalesce(prompt_token_count, 0)::bigint \
              operator(pg_catalog.+) coalesce(completion_token_count, 0)::bigint \
          from @extschema@.messages where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

static RESERVED: Composite<4> = Composite::new([
    (c"allowed", pg_sys::BOOLOID),
    (c"remaining", pg_sys::INT8OID),
    (c"retry_after", pg_sys::INT4OID),
    (c"reservation_id", pg_sys::UUIDOID),
]);

static SETTLED: Composite<2> =
    Composite::new([(c"applied", pg_sys::BOOLOID), (c"remaining", pg_sys::INT8OID)]);

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// How long the tokens of a message stay reserved.
const ANSWER: i64 = 600 * SECOND;

c_function!(
    /// Reserves tokens of a tenant's day.
    reserve_tokens, pg_finfo_reserve_tokens, reserve
);

fn reserve(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_reserve(c"reserve_tokens()")?;
    // SAFETY: declared as (bigint, interval, uuid).
    let (tokens, named) = unsafe { (argument(call, 0), argument(call, 2)) };
    let tokens = not_negative(tokens, "tokens")?;
    let length = length(raw_argument(call, 1).ok_or(Error::Missing("ttl"))?)?;
    let decided = match (Tenant::meant(named)?, named) {
        (Some(tenant), _) => decide(&tenant, tokens)?,
        (None, Some(id)) if now(|| identity::is_tenant(id))? => {
            Err(Refusal { remaining: Some(0), retry_after: None })
        }
        (None, Some(id)) => return Err(Error::NoSuchTenant(id)),
        (None, None) => return Err(Error::Missing("tenant_id")),
    };
    let row = match decided {
        Ok(quota) => {
            let id = identity::new_id();
            quota.reserve(id, length, None)?;
            [arg(true), arg(quota.remaining), None, arg(id)]
        }
        Err(refusal) => [arg(false), arg(refusal.remaining), arg(refusal.retry_after), None],
    };
    Ok(RESERVED.row_of(row))
}

fn not_negative(tokens: Option<i64>, name: &'static str) -> Result<i64, Error> {
    let tokens = tokens.ok_or(Error::Missing(name))?;
    if tokens < 0 { Err(Error::Negative(name)) } else { Ok(tokens) }
}

/// Microseconds, whatever the calendar says of a day.
fn length(ttl: Datum) -> Result<i64, Error> {
    // SAFETY: an interval, which is passed by reference.
    let ttl = unsafe { ttl.cast_mut_ptr::<pg_sys::Interval>().read() };
    let length = i64::from(ttl.day).saturating_mul(DAY).saturating_add(ttl.time);
    if ttl.month == 0 && (SECOND..=DAY).contains(&length) { Ok(length) } else { Err(Error::BadTtl) }
}

/// Tokens that may be reserved in this transaction: nobody else decides about the tenant's before its
/// end.
pub struct Quota {
    tenant: Uuid,
    tokens: i64,
    date: Date,
    decided_at: i64,
    remaining: Option<i64>,
}

struct Refusal {
    remaining: Option<i64>,
    retry_after: Option<i32>,
}

/// What the sum of a day says.
struct Sum {
    date: Option<Date>,
    is_limited: bool,
    fits: bool,
    free: Option<i64>,
    lacking: Option<i64>,
}

fn add_up(tenant: Uuid, at: i64, tokens: i64) -> Result<Option<Sum>, Error> {
    let tables = [c"tenants", c"token_windows", c"token_reservations", c"usage_totals"];
    with_index_scans(|| {
        as_owner(&tables, || {
            ADD_UP.run_now(&[arg(tenant), timestamp(at), arg(tokens)], |row| Sum {
                date: row.get(1),
                is_limited: row.get(2) == Some(true),
                fits: row.get(3) == Some(true),
                free: row.get(4),
                lacking: row.get(5),
            })
        })
    })
}

fn decide(tenant: &Tenant, tokens: i64) -> Result<Result<Quota, Refusal>, Error> {
    let mut is_locked = false;
    if tenant.tokens_a_day.is_some() {
        lock::take(Kind::Quota, tenant.id);
        is_locked = true;
    }
    let (sum, decided_at) = loop {
        let decided_at = clock();
        let sum = add_up(tenant.id, decided_at, tokens)?;
        // Without a limit there is nothing to wait for; one may have been set since it was read.
        match sum {
            Some(Sum { is_limited: true, .. }) if !is_locked => {
                lock::take(Kind::Quota, tenant.id);
                is_locked = true;
            }
            sum => break (sum, decided_at),
        }
    };
    let refused = |remaining, retry_after| {
        if is_locked {
            lock::give_back(Kind::Quota, tenant.id);
        }
        Ok(Err(Refusal { remaining, retry_after }))
    };
    let Some(Sum { date: Some(date), is_limited, fits, free, lacking }) = sum else {
        return refused(Some(0), None);
    };
    if fits {
        let remaining = free.map(|free| free - tokens);
        return Ok(Ok(Quota { tenant: tenant.id, tokens, date, decided_at, remaining }));
    }
    let Some(lacking) = lacking.filter(|_| is_limited) else { return refused(Some(0), None) };
    let args = [arg(tenant.id), timestamp(decided_at), arg(date), arg(tokens), arg(lacking)];
    let wait = with_index_scans(|| {
        as_owner(&[c"tenants", c"token_reservations"], || WAIT.run_now(&args, |row| row.get(1)))
    })?;
    refused(free, wait.flatten())
}

fn timestamp(at: i64) -> Option<Datum> {
    Some(Datum::from(at))
}

impl Quota {
    /// For a message of this tenant that is about to begin.
    pub fn for_message(tenant: Uuid, tokens: i64) -> Result<Self, Error> {
        let refused = |retry_after| Error::NoTokensLeft { tenant, retry_after };
        match Tenant::find(tenant)? {
            Some(found) => decide(&found, tokens)?.map_err(|refusal| refused(refusal.retry_after)),
            None => Err(refused(None)),
        }
    }

    pub fn reserve_for_message(&self, message: Uuid, conversation: Uuid) -> Result<(), Error> {
        self.reserve(message, ANSWER, Some(conversation))
    }

    fn reserve(&self, id: Uuid, length: i64, conversation: Option<Uuid>) -> Result<(), Error> {
        let user = latest(identity::person)?.filter(|person| person.tenant == self.tenant);
        let args = [
            arg(id),
            arg(self.tenant),
            user.and_then(|person| arg(person.id)),
            arg(self.tokens),
            timestamp(self.decided_at),
            timestamp(self.decided_at + length),
            arg(self.date),
            arg(conversation),
        ];
        as_owner(&[c"token_reservations"], || RESERVE.run(&args, |_| ()))?;
        Ok(())
    }
}

/// Waits for somebody else who settles the same reservation.
struct Reservation {
    id: Uuid,
    tenant: Uuid,
    date: Date,
    settled: Option<i64>,
}

impl Reservation {
    fn claim(id: Uuid) -> Result<Option<Self>, Error> {
        let found = as_owner(&[c"token_reservations"], || {
            CLAIM.run_now(&[arg(id)], |row| {
                Some(Self { id, tenant: row.get(1)?, date: row.get(2)?, settled: row.get(3) })
            })
        })?;
        Ok(found.flatten())
    }

    /// Counts so many tokens, and no others any more. Nobody is waited for.
    fn settle(&self, tokens: i64) -> Result<(), Error> {
        let more = tokens - self.settled.unwrap_or(0);
        as_owner(&[c"token_reservations", c"token_windows"], || {
            CLOSE.run_now(&[arg(self.id), arg(tokens), timestamp(clock())], |_| ())?;
            if more == 0 { Ok(()) } else { self.add(more) }
        })
    }

    fn add(&self, more: i64) -> Result<(), Error> {
        let (tenant, date, more) = (arg(self.tenant), arg(self.date), arg(more));
        if with_index_scans(|| ADD.run_now(&[tenant, date, more], |_| ()))?.is_some() {
            return Ok(());
        }
        // A row of the same number would be waited for.
        while ADD_ROW.run_now(&[tenant, date, more, arg(any_slot())], |_| ())?.is_none() {
            pgrx::check_for_interrupts!();
        }
        Ok(())
    }
}

fn claim(call: FunctionCallInfo) -> Result<Reservation, Error> {
    // SAFETY: both functions are declared with the reservation first.
    let id: Uuid = unsafe { argument(call, 0) }.ok_or(Error::Missing("reservation_id"))?;
    Reservation::claim(id)?.ok_or(Error::NoSuchReservation(id))
}

c_function!(
    /// Puts the tokens that were used in the place of a reservation.
    settle_tokens, pg_finfo_settle_tokens, settle
);

fn settle(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_reserve(c"settle_tokens()")?;
    // SAFETY: declared as (uuid, bigint).
    let actual = not_negative(unsafe { argument(call, 1) }, "actual")?;
    let reservation = claim(call)?;
    let is_new = match reservation.settled {
        None => true,
        Some(settled) if settled == actual => false,
        Some(_) => return Err(Error::SettledOtherwise(reservation.id)),
    };
    if is_new {
        reservation.settle(actual)?;
    }
    let free = add_up(reservation.tenant, clock(), 0)?.and_then(|sum| sum.free);
    Ok(SETTLED.row_of([arg(is_new), arg(free)]))
}

c_function!(
    /// Gives back what was reserved and not used.
    release_tokens, pg_finfo_release_tokens, release
);

fn release(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_reserve(c"release_tokens()")?;
    let reservation = claim(call)?;
    if reservation.settled.is_none() {
        reservation.settle(0)?;
    }
    Ok(reservation.settled.is_none().into())
}

/// The message of this id and what is noted on it, if tokens were reserved for it: most messages go
/// without. One of the same id that somebody has made later, elsewhere, is another one.
fn reserved_message(id: Uuid) -> Result<Option<i64>, Error> {
    let keys = by_id(c"id", id)?;
    let (table, index) = (c"token_reservations", c"token_reservations_pkey");
    let of =
        now(|| lookup::find(table, index, &keys, |row| row.named::<Uuid>(c"conversation_id")))?;
    let Some(of) = of.flatten() else { return Ok(None) };
    let noted = as_owner(&[c"messages"], || {
        NOTED.run_now(&[arg(id)], |row| (row.get::<Uuid>(1) == Some(of)).then(|| row.get(2)))
    })?;
    Ok(noted.flatten().flatten())
}

/// Ends the reservation of a message that has ended, with the tokens that are noted on it. What is
/// noted later is settled later, and is never less. The caller holds the lock of the message.
pub fn settle_message(message: Uuid) -> Result<(), Error> {
    if let Some(tokens) = reserved_message(message)?
        && let Some(reservation) = Reservation::claim(message)?
        && reservation.settled.is_none_or(|settled| settled < tokens)
    {
        reservation.settle(tokens)?;
    }
    Ok(())
}

/// Gives back what was reserved for a message that came to nothing, if whoever says so may decide
/// about figures.
pub fn release_message(message: Uuid) -> Result<(), Error> {
    if streaming::may_note_figures()?
        && reserved_message(message)?.is_some()
        && let Some(reservation) = Reservation::claim(message)?
        && reservation.settled.is_none()
    {
        reservation.settle(0)?;
    }
    Ok(())
}
