//! The jobs, each a batch at a time.

use std::time::Instant;

use pgrx::datum::Interval;
use pgrx::pg_sys::{self, Datum};
use pgrx::{IntoDatum, Uuid};

use super::part::{Failure, attempt};
use crate::error::Error;
use crate::owner::as_owner;
use crate::plan::{Row, Statement, arg};
use crate::settings::{KEEP_DELETED, read, with_index_scans, with_patience};
use crate::streaming;

/// A job by the name that it has in maintenance_runs.
pub struct Job {
    pub name: &'static str,
    /// Does a part of it that takes a moment.
    pub batch: fn(&mut Run) -> Result<Batch, Error>,
}

pub struct Batch {
    pub rows: i64,
    /// Whether it may go on at once.
    pub is_more: bool,
}

impl Batch {
    fn all(rows: i64) -> Self {
        Self { rows, is_more: false }
    }
}

/// What one run of a job remembers from batch to batch.
pub struct Run {
    /// When it should end.
    pub until: Instant,
    /// Conversations that cannot be removed now.
    stuck: Vec<Uuid>,
    /// What went wrong with single ones of them; the others are gone all the same.
    pub failure: Option<Failure>,
}

impl Run {
    pub fn new(until: Instant) -> Self {
        Self { until, stuck: Vec::new(), failure: None }
    }
}

/// In this order: what people wait for first; what holds locks to the end of the run last.
pub const JOBS: &[Job] = &[
    Job { name: "stalled_messages", batch: stalled_messages },
    Job { name: "finished_chunks", batch: finished_chunks },
    Job { name: "expired_conversations", batch: expired_conversations },
    Job { name: "deleted_conversations", batch: deleted_conversations },
    Job { name: "usage_folding", batch: usage_folding },
    Job { name: "reservations", batch: reservations },
    Job { name: "feedback_check", batch: feedback_check },
    Job { name: "usage_check", batch: usage_check },
    Job { name: "analytics", batch: analytics },
];

fn interval(seconds: i64) -> Datum {
    Interval::from_micros(seconds * 1_000_000).into_datum().unwrap_or(Datum::from(0))
}

fn stalled_messages(_run: &mut Run) -> Result<Batch, Error> {
    let most = streaming::MOST_AT_ONCE;
    let recovered = streaming::recover_some(interval(90), most)?;
    Ok(Batch { rows: recovered.into(), is_more: recovered == most })
}

fn finished_chunks(_run: &mut Run) -> Result<Batch, Error> {
    const MESSAGES: i32 = 100;
    let (messages, chunks) = streaming::clean_up_some(interval(3600), MESSAGES)?;
    Ok(Batch { rows: chunks.into(), is_more: messages == MESSAGES })
}

/// Conversations to remove, locked, as many as have so many messages together, the oldest first. One that
/// somebody is changing is left for later, and so is one in which an answer is being written: it is let
/// finish.
static EXPIRED: Statement = Statement {
    sql: "with due as ( \
              select c.id, c.last_sequence from @extschema@.conversations c \
              where c.expires_at operator(pg_catalog.<=) pg_catalog.now() \
              and not c.id operator(pg_catalog.=) any ($1) and not exists ( \
                  select from @extschema@.messages m \
                  where m.conversation_id operator(pg_catalog.=) c.id \
                  and m.status operator(pg_catalog.=) 'streaming') \
              order by c.expires_at limit 100 for update skip locked), \
          placed as ( \
              select id, pg_catalog.row_number() over () as place, \
                  pg_catalog.sum(last_sequence) over (rows unbounded preceding) as so_far from due) \
          select pg_catalog.array_agg(id) from placed \
          where place operator(pg_catalog.=) 1 or so_far operator(pg_catalog.<=) 2000",
    types: &[pg_sys::UUIDARRAYOID],
};

/// The same of those that were deleted longer ago than `$2`.
static DELETED: Statement = Statement {
    sql: "with due as ( \
              select c.id, c.last_sequence from @extschema@.conversations c \
              where c.deleted_at operator(pg_catalog.<) \
                  (pg_catalog.now() operator(pg_catalog.-) $2::pg_catalog.interval) \
              and not c.id operator(pg_catalog.=) any ($1) and not exists ( \
                  select from @extschema@.messages m \
                  where m.conversation_id operator(pg_catalog.=) c.id \
                  and m.status operator(pg_catalog.=) 'streaming') \
              order by c.deleted_at limit 100 for update skip locked), \
          placed as ( \
              select id, pg_catalog.row_number() over () as place, \
                  pg_catalog.sum(last_sequence) over (rows unbounded preceding) as so_far from due) \
          select pg_catalog.array_agg(id) from placed \
          where place operator(pg_catalog.=) 1 or so_far operator(pg_catalog.<=) 2000",
    types: &[pg_sys::UUIDARRAYOID, pg_sys::TEXTOID],
};

/// With the messages and what hangs on them, by their foreign keys.
static PURGE: Statement = Statement {
    sql: "with gone as ( \
              delete from @extschema@.conversations where id operator(pg_catalog.=) any ($1) \
              returning 1) \
          select pg_catalog.count(*) from gone",
    types: &[pg_sys::UUIDARRAYOID],
};

fn expired_conversations(run: &mut Run) -> Result<Batch, Error> {
    purge(&EXPIRED, None, run)
}

fn deleted_conversations(run: &mut Run) -> Result<Batch, Error> {
    match read(KEEP_DELETED).map(String::from_utf8_lossy) {
        Some(keep) => purge(&DELETED, Some(&keep), run),
        None => Ok(Batch::all(0)),
    }
}

fn purge(due: &'static Statement, keep: Option<&str>, run: &mut Run) -> Result<Batch, Error> {
    let mut args = vec![arg(run.stuck.clone())];
    args.extend(keep.map(arg));
    // Planned for an index: these are tables that change much, and the plan is kept.
    let found = with_index_scans(|| due.run_now(&args, |row| row.get::<Vec<Uuid>>(1)))?;
    let ids = found.flatten().unwrap_or_default();
    if ids.is_empty() {
        return Ok(Batch::all(0));
    }
    match attempt(|| remove(ids.clone())) {
        Ok(rows) => Ok(Batch { rows, is_more: true }),
        Err(_) => purge_singly(&ids, run),
    }
}

fn remove(ids: Vec<Uuid>) -> Result<i64, Error> {
    Ok(PURGE.run_now(&[arg(ids)], |row| row.get(1))?.flatten().unwrap_or(0))
}

/// One that cannot be removed must not keep the others.
fn purge_singly(ids: &[Uuid], run: &mut Run) -> Result<Batch, Error> {
    const PATIENCE: i32 = 50;
    let mut rows = 0;
    for id in ids {
        if rows > 0 && Instant::now() >= run.until {
            break;
        }
        match with_patience(PATIENCE, || Ok(attempt(|| remove(vec![*id]))))? {
            Ok(gone) => rows += gone,
            Err(failure) => {
                run.stuck.push(*id);
                // Who is in the way now may be gone the next time.
                if !failure.is_lock() {
                    run.failure.get_or_insert(failure.about(format!("conversation {id}")));
                }
            }
        }
        pgrx::check_for_interrupts!();
    }
    Ok(Batch { rows, is_more: true })
}

const AT_ONCE: i32 = 1000;

static FOLD_USAGE: Statement =
    Statement { sql: "select @extschema@.fold_usage($1)", types: &[pg_sys::INT4OID] };

static CLEAN_UP_RESERVATIONS: Statement =
    Statement { sql: "select @extschema@.cleanup_reservations($1)", types: &[pg_sys::INT4OID] };

fn usage_folding(_run: &mut Run) -> Result<Batch, Error> {
    many(&FOLD_USAGE)
}

fn reservations(_run: &mut Run) -> Result<Batch, Error> {
    many(&CLEAN_UP_RESERVATIONS)
}

fn many(statement: &'static Statement) -> Result<Batch, Error> {
    let rows = statement.run_now(&[arg(AT_ONCE)], |row| row.get::<i32>(1))?.flatten().unwrap_or(0);
    // What they take at once is not what they count.
    Ok(Batch { rows: rows.into(), is_more: rows > 0 })
}

/// Messages whose counts are not those of their feedback.
static MISCOUNTED: Statement = Statement {
    sql: "select pg_catalog.count(*) from ( \
              select message_id, \
                  pg_catalog.count(*) filter (where rating operator(pg_catalog.>) 0) as ups, \
                  pg_catalog.count(*) filter (where rating operator(pg_catalog.<) 0) as downs \
              from @extschema@.feedback group by message_id) f \
          full join @extschema@.feedback_counts c on c.message_id operator(pg_catalog.=) f.message_id \
          where coalesce(f.ups, 0) operator(pg_catalog.<>) coalesce(c.thumbs_up, 0) \
          or coalesce(f.downs, 0) operator(pg_catalog.<>) coalesce(c.thumbs_down, 0)",
    types: &[],
};

fn feedback_check(_run: &mut Run) -> Result<Batch, Error> {
    let tables = [c"feedback", c"feedback_counts"];
    let found = as_owner(&tables, || MISCOUNTED.run_now(&[], |row| row.get::<i64>(1)))?;
    match found.flatten().unwrap_or(0) {
        0 => Ok(Batch::all(0)),
        n => Err(Error::Drift(format!("feedback_counts of {n} messages disagree with feedback"))),
    }
}

/// Yesterday and today of every tenant that has used something; each in its own calendar.
static DRIFT: Statement = Statement {
    sql: "with active as materialized ( \
              select t.id, d.today from @extschema@.tenants t \
              cross join lateral ( \
                  select pg_catalog.timezone(t.time_zone, pg_catalog.now())::pg_catalog.date as today) d \
              where exists (select from @extschema@.usage_events e \
                  where e.tenant_id operator(pg_catalog.=) t.id \
                  and e.date operator(pg_catalog.>=) (d.today operator(pg_catalog.-) 1)) \
              or exists (select from @extschema@.usage_totals s \
                  where s.tenant_id operator(pg_catalog.=) t.id \
                  and s.date operator(pg_catalog.>=) (d.today operator(pg_catalog.-) 1))) \
          select (select pg_catalog.count(*) from active), pg_catalog.count(*), \
              pg_catalog.min(pg_catalog.format('tenant %s on %s: %s is %s in %s and %s in the ledger', \
                  a.id, v.date, v.figure, v.found, v.source, v.ledger)) \
          from active a cross join lateral \
          @extschema@.verify_usage(a.id, a.today operator(pg_catalog.-) 1, a.today) v",
    types: &[],
};

fn usage_check(_run: &mut Run) -> Result<Batch, Error> {
    let read = |row: &Row| (row.get(1), row.get::<i64>(2), row.get::<String>(3));
    let (tenants, wrong, first) = DRIFT.run_now(&[], read)?.unwrap_or_default();
    match wrong.unwrap_or(0) {
        0 => Ok(Batch::all(tenants.unwrap_or(0))),
        n => {
            let first = first.unwrap_or_default();
            Err(Error::Drift(format!("{n} figures of usage disagree with the ledger; {first}")))
        }
    }
}

static REFRESH: Statement = Statement {
    sql: "select pg_catalog.count(*) from @extschema@.refresh_analytics($1) as refreshed",
    types: &[pg_sys::BOOLOID],
};

fn analytics(_run: &mut Run) -> Result<Batch, Error> {
    // A superuser's run is confined, and then no temporary table can be made, which CONCURRENTLY needs.
    // SAFETY: reads backend-local state.
    let concurrently = !unsafe { pg_sys::InSecurityRestrictedOperation() };
    REFRESH.run_now(&[arg(concurrently)], |_| ())?;
    Ok(Batch::all(0))
}
