//! One run: every job that is due, and a note of what came of it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pgrx::Uuid;
use pgrx::datum::Interval;
use pgrx::pg_sys::{self, Datum, TimestampTz};
use pgrx::prelude::*;

use super::jobs::{JOBS, Job, Run};
use super::part::{Failure, attempt};
use crate::access::{is_restricted, require_privilege};
use crate::error::{Error, OrRaise};
use crate::lock;
use crate::owner::{as_owner, in_their_house};
use crate::plan::{self, Statement, arg};
use crate::settings::with_patience;

/// A run is one transaction, beside which nobody can drop the database: who tries waits five seconds.
const MOST_TIME: Duration = Duration::from_secs(4);

/// A job that meets a lock for so many milliseconds gives way.
const PATIENCE: i32 = 1000;

/// Of one job in one run.
const MOST_ROWS: i64 = 1_000_000;

/// The row of a job, locked so that nobody changes it before the note is made; none while somebody else
/// has it locked.
static CLAIM: Statement = Statement {
    sql: "select last_error from @extschema@.maintenance_runs \
          where job operator(pg_catalog.=) $1 for no key update skip locked",
    types: &[pg_sys::TEXTOID],
};

/// Never run, left unfinished, or long enough ago. What began in the future began before the clock was
/// set back.
static IS_DUE: Statement = Statement {
    sql: "select coalesce(enabled, false) and every is not null and ( \
              last_started_at is null or last_finished_at is null \
              or last_finished_at operator(pg_catalog.<) last_started_at \
              or last_started_at operator(pg_catalog.>) $2 \
              or $2 operator(pg_catalog.>=) (last_started_at operator(pg_catalog.+) every)) \
          from @extschema@.maintenance_runs where job operator(pg_catalog.=) $1",
    types: &[pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID],
};

static NOTE: Statement = Statement {
    sql: "update @extschema@.maintenance_runs set \
              last_started_at = $2, \
              last_finished_at = case when $5 then $3 else last_finished_at end, \
              last_duration = $3 operator(pg_catalog.-) $2, \
              last_rows = $4, \
              last_error = $6, \
              last_error_at = case when $6 is null then last_error_at else $3 end, \
              runs = runs operator(pg_catalog.+) 1, \
              failures = failures operator(pg_catalog.+) \
                         case when $6 is null then 0 else 1 end \
          where job operator(pg_catalog.=) $1",
    types: &[
        pg_sys::TEXTOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::INT8OID,
        pg_sys::BOOLOID,
        pg_sys::TEXTOID,
    ],
};

/// What came of a job.
pub struct Outcome {
    pub job: &'static str,
    rows: i64,
    took: TimestampTz,
    pub error: Option<String>,
    /// Whether the run before said something else.
    pub is_news: bool,
}

/// Runs every job that is due.
#[pg_extern]
fn run_maintenance() -> TableIterator<
    'static,
    (
        name!(job, &'static str),
        name!(row_count, i64),
        name!(duration, Interval),
        name!(error, Option<String>),
    ),
> {
    let outcomes = run().or_raise().into_iter();
    TableIterator::new(outcomes.map(|outcome| {
        let took = Interval::from_micros(outcome.took);
        (outcome.job, outcome.rows, took, outcome.error)
    }))
}

/// Raises an error unless the caller may run maintenance.
#[pg_extern]
fn require_maintainer() {
    refuse_strangers().or_raise();
}

/// The same for callers in Rust; nothing while another session is at it.
pub fn run() -> Result<Vec<Outcome>, Error> {
    refuse_strangers()?;
    // What a job sets off may come back here.
    let Some(_running) = Running::begin() else { return Ok(Vec::new()) };
    if !lock::take_if_free(lock::Kind::Maintenance, Uuid::from_bytes([0; 16])) {
        return Ok(Vec::new());
    }
    in_their_house(|| {
        // Who is confined may leave nothing for the end of the transaction; what can be done at once is.
        // SAFETY: reads backend-local state.
        if unsafe { pg_sys::InSecurityRestrictedOperation() } {
            plan::script("set constraints all immediate")?;
        }
        with_patience(PATIENCE, || {
            let end = Instant::now() + time();
            let mut outcomes = Vec::new();
            for job in JOBS {
                outcomes.extend(run_if_due(job, end)?);
                pgrx::check_for_interrupts!();
            }
            Ok(outcomes)
        })
    })
}

/// The service, and the owner of the tables.
fn refuse_strangers() -> Result<(), Error> {
    // SAFETY: raises an error where nothing may be written.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"run_maintenance()".as_ptr()) };
    let table = c"maintenance_runs";
    require_privilege(table, pg_sys::ACL_UPDATE, &[c"every", c"enabled"])?;
    if is_restricted(plan::our_table(table)?) {
        return Err(Error::NotForMembers("this is work for the service".into()));
    }
    Ok(())
}

/// A statement that is cancelled when its time is over would never get anywhere if it took more.
fn time() -> Duration {
    // SAFETY: reads a setting.
    let statement = u64::try_from(unsafe { pg_sys::StatementTimeout }).unwrap_or_default();
    if statement == 0 { MOST_TIME } else { MOST_TIME.min(Duration::from_millis(statement / 2)) }
}

struct Running;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

impl Running {
    fn begin() -> Option<Self> {
        (!RUNNING.replace(true)).then(|| Self)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(false);
    }
}

fn clock() -> TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

fn run_if_due(job: &Job, end: Instant) -> Result<Option<Outcome>, Error> {
    let table = [c"maintenance_runs"];
    let claimed = as_owner(&table, || CLAIM.run_now(&[arg(job.name)], |row| row.get::<String>(1)))?;
    let Some(said_before) = claimed else { return Ok(None) };
    let started = clock();
    let args = [arg(job.name), Some(Datum::from(started))];
    // Whoever may set an interval may set one that leads out of the calendar.
    let is_due = attempt(|| as_owner(&table, || IS_DUE.run_now(&args, |row| row.get(1))));
    let result = match is_due {
        Ok(due) if due.flatten() != Some(true) => return Ok(None),
        Ok(_) => attempt(|| drain(job, end)),
        Err(failure) => Err(failure),
    };
    let finished = clock();
    let (rows, is_done, failure) = result.unwrap_or_else(|failure| (0, true, Some(failure)));
    let error = failure.map(|failure| failure.to_string());
    let args = [
        arg(job.name),
        Some(Datum::from(started)),
        Some(Datum::from(finished)),
        arg(rows),
        arg(is_done),
        error.as_deref().and_then(arg),
    ];
    as_owner(&table, || NOTE.run_now(&args, |_| ()))?;
    let is_news = error.is_some() && error != said_before;
    Ok(Some(Outcome { job: job.name, rows, took: finished - started, error, is_news }))
}

/// Batch after batch, until there is nothing left or the job has had its share of the time; how many
/// rows, whether that was all, and what was left because it cannot be done. There is always one batch.
fn drain(job: &Job, end: Instant) -> Result<(i64, bool, Option<Failure>), Error> {
    // Those behind it get as much as it does.
    let now = Instant::now();
    let mut run = Run::new(now + end.saturating_duration_since(now) / 2);
    let mut rows = 0;
    loop {
        let batch = (job.batch)(&mut run)?;
        rows += batch.rows;
        let is_out_of_time = rows >= MOST_ROWS || Instant::now() >= run.until;
        if !batch.is_more || is_out_of_time {
            return Ok((rows, !batch.is_more, run.failure));
        }
        pgrx::check_for_interrupts!();
    }
}
