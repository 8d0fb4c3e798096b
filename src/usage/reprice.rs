//! What events would cost by the price list as it is now.

use pgrx::datum::Date;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::{AnyNumeric, IntoDatum, Uuid};

use super::calendar::bound;
use super::slots::{self, Figures, Place};
use super::{TABLES, rights};
use crate::error::{Error, OrRaise};
use crate::identity;
use crate::lock::{self, Kind};
use crate::owner::{as_owner, in_their_house};
use crate::plan::{self, Arg, Statement, arg};

/// Sums by tenant, day, user and model that differ from what the price list says, without increments
/// and voids of them, which bring their own cost. A void has the figures of what it takes back, so the
/// two cost nothing together at any price.
///
/// Of some days, of one tenant or of all; or of one user and model.
static DIFFERENCES: Statement = Statement {
    sql: "select pg_catalog.array_agg(g.tenant_id), pg_catalog.array_agg(g.date), \
              pg_catalog.array_agg(g.user_id), pg_catalog.array_agg(g.model::pg_catalog.text), \
              pg_catalog.array_agg(g.old_cost), pg_catalog.array_agg(g.new_cost), \
              pg_catalog.array_agg(g.unpriced) \
          from ( \
              select e.tenant_id, e.date, e.user_id, e.model, \
                  pg_catalog.sum(e.cost) as old_cost, \
                  pg_catalog.sum(e.sign operator(pg_catalog.*) coalesce(p.cost, 0)) as new_cost, \
                  pg_catalog.sum(case when p.is_unpriced then e.sign else 0 end \
                      operator(pg_catalog.-) e.unpriced)::pg_catalog.int8 as unpriced \
              from ( \
                  select tenant_id, date, user_id, model, usage, occurred_at, cost, \
                      case when kind operator(pg_catalog.=) 'repricing' then 0 \
                           when kind operator(pg_catalog.=) 'void' then -1 else 1 end as sign, \
                      case when kind operator(pg_catalog.=) 'repricing' \
                           then (usage operator(pg_catalog.->>) 'unpriced')::pg_catalog.int4 \
                           when pg_catalog.cardinality(unpriced) operator(pg_catalog.=) 0 then 0 \
                           when kind operator(pg_catalog.=) 'void' then -1 else 1 end as unpriced \
                  from @extschema@.usage_events \
                  where date operator(pg_catalog.>=) $1 and date operator(pg_catalog.<=) $2 \
                  and ($3 is null or tenant_id operator(pg_catalog.=) $3) \
                  and (not $4 or model operator(pg_catalog.=) $6 \
                       and (user_id operator(pg_catalog.=) $5 or user_id is null and $5 is null)) \
                  and kind operator(pg_catalog.<>) 'increment' \
                  and not pg_catalog.starts_with(idempotency_key, 'void:increment:') \
              ) e \
              left join lateral ( \
                  select pg_catalog.sum(u.figure operator(pg_catalog.*) u.unit_price) as cost, \
                      pg_catalog.bool_or(case when u.figure is null then true \
                          when u.name operator(pg_catalog.=) 'total_tokens' then false \
                          else u.unit_price is null and u.figure operator(pg_catalog.<>) 0 end) as is_unpriced \
                  from ( \
                      select n.name, n.figure, m.unit_price \
                      from ( \
                          select j.key, \
                              case when j.key operator(pg_catalog.=) 'input_tokens' then 'prompt_tokens' \
                                   when j.key operator(pg_catalog.=) 'output_tokens' then 'completion_tokens' \
                                   else j.key end as name, \
                              case when pg_catalog.jsonb_typeof(j.value) operator(pg_catalog.=) 'number' \
                                   then j.value::pg_catalog.numeric end as figure \
                          from pg_catalog.jsonb_each(e.usage) j) n \
                      left join lateral ( \
                          select m.unit_price from @extschema@.model_prices m \
                          where m.usage_type operator(pg_catalog.=) n.name \
                          and e.model operator(pg_catalog.~~) m.pattern \
                          and m.valid_from operator(pg_catalog.<=) e.occurred_at \
                          and m.valid_to operator(pg_catalog.>) e.occurred_at \
                          order by pg_catalog.char_length(m.pattern) desc, m.pattern limit 1) m on true \
                      where n.key operator(pg_catalog.=) n.name \
                      or not e.usage operator(pg_catalog.?) n.name) u \
              ) p on e.sign operator(pg_catalog.<>) 0 \
              group by e.tenant_id, e.date, e.user_id, e.model) g \
          where g.old_cost operator(pg_catalog.<>) g.new_cost or g.unpriced operator(pg_catalog.<>) 0",
    types: &[
        pg_sys::DATEOID,
        pg_sys::DATEOID,
        pg_sys::UUIDOID,
        pg_sys::BOOLOID,
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
    ],
};

static IS_REPRICED: Statement = Statement {
    sql: "select from @extschema@.usage_events \
          where tenant_id operator(pg_catalog.=) $1 and date operator(pg_catalog.=) $2 \
          and (user_id operator(pg_catalog.=) $3 or user_id is null and $3 is null) \
          and model operator(pg_catalog.=) $4 and kind operator(pg_catalog.=) 'repricing' \
          and idempotency_key operator(pg_catalog.>=) 'repricing:' \
          and idempotency_key operator(pg_catalog.<) 'repricing;'",
    types: OF_GROUP,
};

const OF_GROUP: &[pg_sys::Oid] =
    &[pg_sys::UUIDOID, pg_sys::DATEOID, pg_sys::UUIDOID, pg_sys::TEXTOID];

static REPRICE: Statement = Statement {
    sql: "insert into @extschema@.usage_events \
              (tenant_id, user_id, occurred_at, recorded_at, prompt_tokens, completion_tokens, \
               request_count, date, idempotency_key, kind, model, usage, cost, recorded_by, reason) \
          values ($1, $2, pg_catalog.now(), pg_catalog.now(), 0, 0, 0, $3, $5, 'repricing', $4, \
              pg_catalog.jsonb_build_object('unpriced', $7), $6, $8, 'recalculate_costs')",
    types: &[
        pg_sys::UUIDOID,
        pg_sys::UUIDOID,
        pg_sys::DATEOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::NUMERICOID,
        pg_sys::INT8OID,
        pg_sys::TEXTOID,
    ],
};

/// What events of some days cost, and what they would cost now, where that is not the same; unless it
/// is a dry run, the difference is written.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the columns of the answer")]
fn recalculate_costs(
    from_date: Option<Date>,
    to_date: Option<Date>,
    dry_run: default!(Option<bool>, "true"),
    tenant_id: default!(Option<Uuid>, "null"),
) -> TableIterator<
    'static,
    (
        name!(tenant_id, Uuid),
        name!(date, Date),
        name!(user_id, Option<Uuid>),
        name!(model, String),
        name!(old_cost, AnyNumeric),
        name!(new_cost, AnyNumeric),
    ),
> {
    let found = recalculate(from_date, to_date, dry_run, tenant_id).or_raise();
    TableIterator::new(found.into_iter().map(|group| {
        (group.tenant, group.date, group.user, group.model, group.old_cost, group.new_cost)
    }))
}

struct Group {
    tenant: Uuid,
    date: Date,
    user: Option<Uuid>,
    model: String,
    old_cost: AnyNumeric,
    new_cost: AnyNumeric,
    unpriced: i64,
}

fn recalculate(
    from_date: Option<Date>,
    to_date: Option<Date>,
    dry_run: Option<bool>,
    tenant: Option<Uuid>,
) -> Result<Vec<Group>, Error> {
    let dry_run = dry_run.ok_or(Error::Missing("dry_run"))?;
    if dry_run {
        rights::to_see_costs()?;
    } else {
        rights::to_record(c"recalculate_costs()")?;
    }
    let (from_date, to_date) = (bound(from_date, "from_date")?, bound(to_date, "to_date")?);
    let recorded_by = rights::caller();
    let work = || {
        if !dry_run {
            lock_prices(pg_sys::ShareRowExclusiveLock)?;
        }
        let tenant = tenant.and_then(IntoDatum::into_datum);
        let found = differences(&[Some(from_date), Some(to_date), tenant, arg(false), None, None])?;
        if !dry_run {
            for group in &found {
                pgrx::check_for_interrupts!();
                write(group, &recorded_by)?;
            }
        }
        Ok(found)
    };
    in_their_house(|| as_owner(&TABLES, work))
}

/// Locks the price list. Who recalculates does so alone, or two would write the same difference, and it
/// stays as it is meanwhile; whoever records only reads it, and does not wait.
fn lock_prices(mode: u32) -> Result<(), Error> {
    let prices = plan::our_table(c"model_prices")?;
    // SAFETY: as_owner has made sure of the table, and holds it; the lock ends with the transaction.
    unsafe { pg_sys::LockRelationOid(prices, mode as pg_sys::LOCKMODE) };
    Ok(())
}

/// Before an event is taken back: nobody recalculates until the transaction is over, for he would not see
/// that it is gone.
pub fn keep_costs() -> Result<(), Error> {
    lock_prices(pg_sys::RowExclusiveLock)
}

/// After an event was taken back at what it cost: what repricings have made of it goes, too. They are of
/// its group, so the group is priced anew; the caller keeps the costs.
pub fn reprice(place: &Place, recorded_by: &str) -> Result<(), Error> {
    let user = place.user.and_then(IntoDatum::into_datum);
    let args = [arg(place.tenant), Some(place.date), user, Some(place.model)];
    if IS_REPRICED.run_now(&args, |_| ())?.is_none() {
        return Ok(());
    }
    // One at a time, as above.
    lock::take(Kind::Group, place.id());
    let day = Some(place.date);
    let args = [day, day, arg(place.tenant), arg(true), user, Some(place.model)];
    for group in differences(&args)? {
        write(&group, recorded_by)?;
    }
    Ok(())
}

fn differences(args: &[Arg]) -> Result<Vec<Group>, Error> {
    let found = DIFFERENCES.run_now(args, |row| {
        let (tenants, dates): (Vec<Uuid>, Vec<Date>) = (row.get(1)?, row.get(2)?);
        let (users, models): (Vec<Option<Uuid>>, Vec<String>) = (row.get(3)?, row.get(4)?);
        let (old, new): (Vec<AnyNumeric>, Vec<AnyNumeric>) = (row.get(5)?, row.get(6)?);
        let unpriced: Vec<i64> = row.get(7)?;
        let costs = old.into_iter().zip(new).zip(unpriced);
        let places = tenants.into_iter().zip(dates).zip(users).zip(models);
        let groups = places.zip(costs).map(|((((tenant, date), user), model), costs)| {
            let ((old_cost, new_cost), unpriced) = costs;
            Group { tenant, date, user, model, old_cost, new_cost, unpriced }
        });
        Some(groups.collect())
    })?;
    Ok(found.flatten().unwrap_or_default())
}

fn write(group: &Group, recorded_by: &str) -> Result<(), Error> {
    let missing = || Error::Missing("cost");
    let cost = group.new_cost.clone() - group.old_cost.clone();
    let cost = cost.into_datum().ok_or_else(missing)?;
    let model = group.model.as_str().into_datum().ok_or_else(missing)?;
    let date = group.date.into_datum().ok_or_else(missing)?;
    let args = [
        arg(group.tenant),
        group.user.and_then(IntoDatum::into_datum),
        Some(date),
        Some(model),
        arg(format!("repricing:{}", identity::new_id())),
        Some(cost),
        arg(group.unpriced),
        arg(recorded_by),
    ];
    REPRICE.run_now(&args, |_| ())?;
    let place = Place { tenant: group.tenant, date, user: group.user, model };
    let figures = Figures {
        prompt_tokens: 0,
        completion_tokens: 0,
        requests: 0,
        unpriced: group.unpriced,
        cost,
    };
    slots::add(&place, &figures)
}
