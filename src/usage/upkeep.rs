//! Sums of days and months that are over are folded; sums are compared with the ledger.

use pgrx::datum::Date;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::prelude::*;
use pgrx::{AnyNumeric, Uuid};

use super::calendar::bound;
use super::{TABLES, rights};
use crate::error::{Error, OrRaise};
use crate::function::{argument, c_function};
use crate::lock::{self, Kind};
use crate::owner::{as_owner, in_their_house};
use crate::plan::{Row, Statement, arg};

/// Keys of days that are over in every zone, with rows in slots. Of their rows those that nobody is
/// writing to become one, in slot 0; whoever has locked another adds to it as before. Below, the same of
/// totals and of months.
static FOLD_DAYS: Statement = Statement {
    sql: "with seen as ( \
              select d.tenant_id, d.date, d.user_id, d.model from @extschema@.usage_days d \
              where d.slot operator(pg_catalog.<>) 0 and d.date operator(pg_catalog.<) \
                  (pg_catalog.timezone('UTC', pg_catalog.clock_timestamp())::pg_catalog.date \
                   operator(pg_catalog.-) 1) \
              order by d.date limit $1 offset $2 for update skip locked), \
          picked as (select distinct s.tenant_id, s.date, s.user_id, s.model from seen s), \
          taken as ( \
              select l.* from picked p cross join lateral ( \
                  select d.* from @extschema@.usage_days d \
                  where d.tenant_id operator(pg_catalog.=) p.tenant_id and d.date operator(pg_catalog.=) p.date \
                  and d.user_id operator(pg_catalog.=) p.user_id and d.model operator(pg_catalog.=) p.model \
                  for update skip locked) l), \
          folded as ( \
              select t.tenant_id, t.date, t.user_id, t.model, pg_catalog.min(t.slot) as slot, \
                  pg_catalog.sum(t.prompt_tokens) as prompt_tokens, \
                  pg_catalog.sum(t.completion_tokens) as completion_tokens, \
                  pg_catalog.sum(t.request_count) as request_count, \
                  pg_catalog.sum(t.unpriced_count) as unpriced_count, \
                  pg_catalog.sum(t.cost) as cost \
              from taken t group by t.tenant_id, t.date, t.user_id, t.model \
              having pg_catalog.min(t.slot) operator(pg_catalog.=) 0 or not exists ( \
                  select from @extschema@.usage_days z \
                  where z.tenant_id operator(pg_catalog.=) t.tenant_id \
                  and z.date operator(pg_catalog.=) t.date \
                  and z.user_id operator(pg_catalog.=) t.user_id \
                  and z.model operator(pg_catalog.=) t.model and z.slot operator(pg_catalog.=) 0)), \
          gone as ( \
              delete from @extschema@.usage_days d using taken t, folded f \
              where d.tenant_id operator(pg_catalog.=) t.tenant_id and d.date operator(pg_catalog.=) t.date \
              and d.user_id operator(pg_catalog.=) t.user_id and d.model operator(pg_catalog.=) t.model \
              and d.slot operator(pg_catalog.=) t.slot \
              and f.tenant_id operator(pg_catalog.=) t.tenant_id and f.date operator(pg_catalog.=) t.date \
              and f.user_id operator(pg_catalog.=) t.user_id and f.model operator(pg_catalog.=) t.model \
              and f.slot operator(pg_catalog.<>) t.slot), \
          kept as ( \
              update @extschema@.usage_days d set slot = 0, prompt_tokens = f.prompt_tokens, \
                  completion_tokens = f.completion_tokens, request_count = f.request_count, \
                  unpriced_count = f.unpriced_count, cost = f.cost \
              from folded f \
              where d.tenant_id operator(pg_catalog.=) f.tenant_id and d.date operator(pg_catalog.=) f.date \
              and d.user_id operator(pg_catalog.=) f.user_id and d.model operator(pg_catalog.=) f.model \
              and d.slot operator(pg_catalog.=) f.slot returning 1) \
          select (select pg_catalog.count(*) from kept)::pg_catalog.int4, \
              pg_catalog.count(*)::pg_catalog.int4, \
              pg_catalog.count(*) filter (where f.slot is null)::pg_catalog.int4 \
          from seen s left join folded f on f.tenant_id operator(pg_catalog.=) s.tenant_id \
              and f.date operator(pg_catalog.=) s.date and f.user_id operator(pg_catalog.=) s.user_id \
              and f.model operator(pg_catalog.=) s.model",
    types: &[pg_sys::INT4OID, pg_sys::INT4OID],
};

static FOLD_TOTALS: Statement = Statement {
    sql: "with seen as ( \
              select d.tenant_id, d.date from @extschema@.usage_totals d \
              where d.slot operator(pg_catalog.<>) 0 and d.date operator(pg_catalog.<) \
                  (pg_catalog.timezone('UTC', pg_catalog.clock_timestamp())::pg_catalog.date \
                   operator(pg_catalog.-) 1) \
              order by d.date limit $1 offset $2 for update skip locked), \
          picked as (select distinct s.tenant_id, s.date from seen s), \
          taken as ( \
              select l.* from picked p cross join lateral ( \
                  select d.* from @extschema@.usage_totals d \
                  where d.tenant_id operator(pg_catalog.=) p.tenant_id and d.date operator(pg_catalog.=) p.date \
                  for update skip locked) l), \
          folded as ( \
              select t.tenant_id, t.date, pg_catalog.min(t.slot) as slot, \
                  pg_catalog.sum(t.prompt_tokens) as prompt_tokens, \
                  pg_catalog.sum(t.completion_tokens) as completion_tokens, \
                  pg_catalog.sum(t.request_count) as request_count, \
                  pg_catalog.sum(t.unpriced_count) as unpriced_count, \
                  pg_catalog.sum(t.cost) as cost \
              from taken t group by t.tenant_id, t.date \
              having pg_catalog.min(t.slot) operator(pg_catalog.=) 0 or not exists ( \
                  select from @extschema@.usage_totals z \
                  where z.tenant_id operator(pg_catalog.=) t.tenant_id \
                  and z.date operator(pg_catalog.=) t.date and z.slot operator(pg_catalog.=) 0)), \
          gone as ( \
              delete from @extschema@.usage_totals d using taken t, folded f \
              where d.tenant_id operator(pg_catalog.=) t.tenant_id and d.date operator(pg_catalog.=) t.date \
              and d.slot operator(pg_catalog.=) t.slot \
              and f.tenant_id operator(pg_catalog.=) t.tenant_id and f.date operator(pg_catalog.=) t.date \
              and f.slot operator(pg_catalog.<>) t.slot), \
          kept as ( \
              update @extschema@.usage_totals d set slot = 0, prompt_tokens = f.prompt_tokens, \
                  completion_tokens = f.completion_tokens, request_count = f.request_count, \
                  unpriced_count = f.unpriced_count, cost = f.cost \
              from folded f \
              where d.tenant_id operator(pg_catalog.=) f.tenant_id and d.date operator(pg_catalog.=) f.date \
              and d.slot operator(pg_catalog.=) f.slot returning 1) \
          select (select pg_catalog.count(*) from kept)::pg_catalog.int4, \
              pg_catalog.count(*)::pg_catalog.int4, \
              pg_catalog.count(*) filter (where f.slot is null)::pg_catalog.int4 \
          from seen s left join folded f on f.tenant_id operator(pg_catalog.=) s.tenant_id \
              and f.date operator(pg_catalog.=) s.date",
    types: &[pg_sys::INT4OID, pg_sys::INT4OID],
};

static FOLD_MONTHS: Statement = Statement {
    sql: "with seen as ( \
              select d.tenant_id, d.month from @extschema@.usage_months d \
              where d.slot operator(pg_catalog.<>) 0 and d.month operator(pg_catalog.<) \
                  pg_catalog.date_trunc('month', pg_catalog.timezone('UTC', pg_catalog.clock_timestamp()) \
                      operator(pg_catalog.-) '1 day'::pg_catalog.interval)::pg_catalog.date \
              order by d.month limit $1 offset $2 for update skip locked), \
          picked as (select distinct s.tenant_id, s.month from seen s), \
          taken as ( \
              select l.* from picked p cross join lateral ( \
                  select d.* from @extschema@.usage_months d \
                  where d.tenant_id operator(pg_catalog.=) p.tenant_id and d.month operator(pg_catalog.=) p.month \
                  for update skip locked) l), \
          folded as ( \
              select t.tenant_id, t.month, pg_catalog.min(t.slot) as slot, \
                  pg_catalog.sum(t.prompt_tokens) as prompt_tokens, \
                  pg_catalog.sum(t.completion_tokens) as completion_tokens, \
                  pg_catalog.sum(t.request_count) as request_count, \
                  pg_catalog.sum(t.unpriced_count) as unpriced_count, \
                  pg_catalog.sum(t.cost) as cost \
              from taken t group by t.tenant_id, t.month \
              having pg_catalog.min(t.slot) operator(pg_catalog.=) 0 or not exists ( \
                  select from @extschema@.usage_months z \
                  where z.tenant_id operator(pg_catalog.=) t.tenant_id \
                  and z.month operator(pg_catalog.=) t.month and z.slot operator(pg_catalog.=) 0)), \
          gone as ( \
              delete from @extschema@.usage_months d using taken t, folded f \
              where d.tenant_id operator(pg_catalog.=) t.tenant_id and d.month operator(pg_catalog.=) t.month \
              and d.slot operator(pg_catalog.=) t.slot \
              and f.tenant_id operator(pg_catalog.=) t.tenant_id and f.month operator(pg_catalog.=) t.month \
              and f.slot operator(pg_catalog.<>) t.slot), \
          kept as ( \
              update @extschema@.usage_months d set slot = 0, prompt_tokens = f.prompt_tokens, \
                  completion_tokens = f.completion_tokens, request_count = f.request_count, \
                  unpriced_count = f.unpriced_count, cost = f.cost \
              from folded f \
              where d.tenant_id operator(pg_catalog.=) f.tenant_id and d.month operator(pg_catalog.=) f.month \
              and d.slot operator(pg_catalog.=) f.slot returning 1) \
          select (select pg_catalog.count(*) from kept)::pg_catalog.int4, \
              pg_catalog.count(*)::pg_catalog.int4, \
              pg_catalog.count(*) filter (where f.slot is null)::pg_catalog.int4 \
          from seen s left join folded f on f.tenant_id operator(pg_catalog.=) s.tenant_id \
              and f.month operator(pg_catalog.=) s.month",
    types: &[pg_sys::INT4OID, pg_sys::INT4OID],
};

/// The ledger's sums beside those that are kept, where they differ; in one snapshot. A month
/// has days that were not asked about: for these its totals stand, for the ledger of a month may be long.
static COMPARE: Statement = Statement {
    sql: "with events as ( \
              select date, \
                  pg_catalog.date_trunc('month', date::pg_catalog.timestamp)::pg_catalog.date as month, \
                  coalesce(user_id, '00000000-0000-0000-0000-000000000000') as user_id, model, \
                  prompt_tokens, completion_tokens, request_count, cost, \
                  case when kind operator(pg_catalog.=) 'repricing' \
                       then (usage operator(pg_catalog.->>) 'unpriced')::pg_catalog.int4 \
                       when pg_catalog.cardinality(unpriced) operator(pg_catalog.=) 0 then 0 \
                       when kind operator(pg_catalog.=) 'void' then -1 else 1 end as unpriced_count \
              from @extschema@.usage_events \
              where tenant_id operator(pg_catalog.=) $1 \
              and date operator(pg_catalog.>=) $2 and date operator(pg_catalog.<=) $3), \
          sums as ( \
              select 'usage_days' as source, false as is_found, date, user_id, model, prompt_tokens, \
                  completion_tokens, request_count, unpriced_count, cost from events \
              union all \
              select 'usage_days', true, date, user_id, model, prompt_tokens, \
                  completion_tokens, request_count, unpriced_count, cost from @extschema@.usage_days \
              where tenant_id operator(pg_catalog.=) $1 \
              and date operator(pg_catalog.>=) $2 and date operator(pg_catalog.<=) $3 \
              union all \
              select 'usage_totals', false, date, null, null, prompt_tokens, \
                  completion_tokens, request_count, unpriced_count, cost from events \
              union all \
              select 'usage_totals', true, date, null, null, prompt_tokens, \
                  completion_tokens, request_count, unpriced_count, cost from @extschema@.usage_totals \
              where tenant_id operator(pg_catalog.=) $1 \
              and date operator(pg_catalog.>=) $2 and date operator(pg_catalog.<=) $3 \
              union all \
              select 'usage_months', false, month, null, null, prompt_tokens, \
                  completion_tokens, request_count, unpriced_count, cost from events \
              union all \
              select 'usage_months', false, \
                  pg_catalog.date_trunc('month', date::pg_catalog.timestamp)::pg_catalog.date, null, null, \
                  prompt_tokens, completion_tokens, request_count, unpriced_count, cost \
              from @extschema@.usage_totals \
              where tenant_id operator(pg_catalog.=) $1 \
              and ((date operator(pg_catalog.>=) \
                      pg_catalog.date_trunc('month', $2::pg_catalog.timestamp)::pg_catalog.date \
                   and date operator(pg_catalog.<) $2) \
                  or (date operator(pg_catalog.>) $3 \
                   and date operator(pg_catalog.<) (pg_catalog.date_trunc('month', $3::pg_catalog.timestamp) \
                      operator(pg_catalog.+) '1 month'::pg_catalog.interval)::pg_catalog.date)) \
              union all \
              select 'usage_months', true, month, null, null, prompt_tokens, \
                  completion_tokens, request_count, unpriced_count, cost from @extschema@.usage_months \
              where tenant_id operator(pg_catalog.=) $1 \
              and month operator(pg_catalog.>=) \
                  pg_catalog.date_trunc('month', $2::pg_catalog.timestamp)::pg_catalog.date \
              and month operator(pg_catalog.<=) $3), \
          compared as ( \
              select s.source, s.date, s.user_id, s.model, f.figure, \
                  coalesce(pg_catalog.sum(f.value) filter (where not s.is_found), 0) as ledger, \
                  coalesce(pg_catalog.sum(f.value) filter (where s.is_found), 0) as found \
              from sums s cross join lateral ( \
                  values ('prompt_tokens', s.prompt_tokens::pg_catalog.numeric), \
                  ('completion_tokens', s.completion_tokens), ('request_count', s.request_count), \
                  ('unpriced_count', s.unpriced_count), ('cost', s.cost)) f (figure, value) \
              group by s.source, s.date, s.user_id, s.model, f.figure) \
          select pg_catalog.array_agg(source), pg_catalog.array_agg(date), \
              pg_catalog.array_agg(case when user_id operator(pg_catalog.<>) \
                  '00000000-0000-0000-0000-000000000000' then user_id end), \
              pg_catalog.array_agg(model::pg_catalog.text), pg_catalog.array_agg(figure), \
              pg_catalog.array_agg(ledger), pg_catalog.array_agg(found) \
          from compared where ledger operator(pg_catalog.<>) found",
    types: &[pg_sys::UUIDOID, pg_sys::DATEOID, pg_sys::DATEOID],
};

c_function!(
    /// Folds the slots of days and months that are over.
    fold_usage, pg_finfo_fold_usage, fold
);

fn fold(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_record(c"fold_usage()")?;
    // SAFETY: declared as (integer).
    let most: i32 = unsafe { argument(call, 0) }.ok_or(Error::Missing("max_keys"))?;
    if most < 0 {
        return Err(Error::Negative("max_keys"));
    }
    // What is locked stays so until the caller commits.
    let most = most.min(MOST_KEYS);
    // One at a time, for two would make the same slot 0; whoever comes second has nothing to do.
    if !lock::take_if_free(Kind::Folder, Uuid::from_bytes([0; 16])) {
        return Ok(Datum::from(0));
    }
    let work = || {
        let tables = [&FOLD_DAYS, &FOLD_TOTALS, &FOLD_MONTHS];
        tables.into_iter().map(|table| fold_most(table, most)).sum()
    };
    let folded: i32 = in_their_house(|| as_owner(&TABLES, work))?;
    Ok(Datum::from(folded))
}

const MOST_KEYS: i32 = 100_000;
const ROWS_AT_ONCE: i32 = 1000;

/// Folds so many keys of a table, or all that can be folded, and returns how many.
fn fold_most(table: &'static Statement, most: i32) -> Result<i32, Error> {
    // Rows of keys that cannot be folded now, for somebody writes to them, come first again each time.
    let (mut folded, mut stuck) = (0, 0);
    while folded < most {
        pgrx::check_for_interrupts!();
        let rows = (most - folded).min(ROWS_AT_ONCE);
        let read = |row: &Row| Some((row.get::<i32>(1)?, row.get::<i32>(2)?, row.get::<i32>(3)?));
        let found = table.run_now(&[arg(rows), arg(stuck)], read)?.flatten();
        let (done, seen, unfolded) = found.unwrap_or_default();
        folded += done;
        stuck += unfolded;
        if seen < rows {
            break;
        }
    }
    Ok(folded)
}

/// Sums that disagree with the ledger: none, ever.
#[pg_extern(stable)]
#[allow(clippy::type_complexity, reason = "the columns of the answer")]
fn verify_usage(
    tenant_id: Option<Uuid>,
    from_date: Option<Date>,
    to_date: Option<Date>,
) -> TableIterator<
    'static,
    (
        name!(source, String),
        name!(date, Date),
        name!(user_id, Option<Uuid>),
        name!(model, Option<String>),
        name!(figure, String),
        name!(ledger, AnyNumeric),
        name!(found, AnyNumeric),
    ),
> {
    TableIterator::new(compare(tenant_id, from_date, to_date).or_raise())
}

type Difference = (String, Date, Option<Uuid>, Option<String>, String, AnyNumeric, AnyNumeric);

fn compare(
    tenant: Option<Uuid>,
    from_date: Option<Date>,
    to_date: Option<Date>,
) -> Result<Vec<Difference>, Error> {
    rights::to_verify()?;
    let tenant = tenant.ok_or(Error::Missing("tenant_id"))?;
    let (first, last) = (bound(from_date, "from_date")?, bound(to_date, "to_date")?);
    if first.value() as i32 > last.value() as i32 {
        return Ok(Vec::new());
    }
    let args = [arg(tenant), Some(first), Some(last)];
    let work = || {
        COMPARE.read(&args, |row| {
            let (sources, dates): (Vec<String>, Vec<Date>) = (row.get(1)?, row.get(2)?);
            let (users, models): (Vec<Option<Uuid>>, Vec<Option<String>>) =
                (row.get(3)?, row.get(4)?);
            let figures: Vec<String> = row.get(5)?;
            let (ledger, found): (Vec<AnyNumeric>, Vec<AnyNumeric>) = (row.get(6)?, row.get(7)?);
            let places = sources.into_iter().zip(dates).zip(users).zip(models);
            let figures = figures.into_iter().zip(ledger).zip(found);
            let rows = places.zip(figures).map(|(place, figure)| {
                let (((source, date), user), model) = place;
                let ((figure, ledger), found) = figure;
                (source, date, user, model, figure, ledger, found)
            });
            Some(rows.collect())
        })
    };
    let found = in_their_house(|| as_owner(&TABLES, work))?;
    Ok(found.flatten().unwrap_or_default())
}
