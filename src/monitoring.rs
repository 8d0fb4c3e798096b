//! What waits to be done, counted with the rights of the tables' owner and without a look at any
//! content. What the server tells anybody about itself stands in the views.
//!
//! Each figure costs a bounded number of rows, whatever the size of the tables: counts stop at a limit
//! and follow an index.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use crate::access::require_privilege;
use crate::error::Error;
use crate::function::{Composite, c_function};
use crate::owner::as_owner;
use crate::plan::{Arg, Statement, arg};
use crate::settings::{self, KEEP_DELETED, with_index_scans};

/// A stream is stalled by the default of `recover_stalled_messages`. One that is younger than that
/// cannot be, and the index has the oldest first.
static STREAMS: Statement = Statement {
    sql: "select \
              (select pg_catalog.count(*) from ( \
                  select from @extschema@.messages m \
                  where m.status operator(pg_catalog.=) 'streaming' limit 10000) s), \
              (select pg_catalog.count(*) from ( \
                  select m.id, m.stream_started_at from @extschema@.messages m \
                  where m.status operator(pg_catalog.=) 'streaming' \
                  and m.created_at operator(pg_catalog.<) \
                      (pg_catalog.clock_timestamp() operator(pg_catalog.-) interval '90 s') \
                  order by m.created_at limit 500) s \
              left join lateral ( \
                  select c.created_at from @extschema@.message_chunks c \
                  where c.message_id operator(pg_catalog.=) s.id \
                  order by c.chunk_index desc limit 1) l on true \
              where coalesce(greatest(s.stream_started_at, l.created_at), '-infinity') \
                  operator(pg_catalog.<) \
                  (pg_catalog.clock_timestamp() operator(pg_catalog.-) interval '90 s'))",
    types: &[],
};

/// Whether the walk below is short. Dead entries that lie before the first chunk are passed each time,
/// as long as an old snapshot keeps them; a standby does not know how many there are.
static MAY_WALK: Statement = Statement {
    sql: "select not pg_catalog.pg_is_in_recovery() and \
              pg_catalog.pg_stat_get_dead_tuples('@extschema@.message_chunks'::pg_catalog.regclass) \
                  operator(pg_catalog.<) 250000",
    types: &[],
};

/// From message to message through the index of chunks: ids rise with time, so those that wait the
/// longest come first. They are due by the defaults of `cleanup_finished_streams`.
static CHUNKS: Statement = Statement {
    sql: "with recursive walk (id, n) as ( \
              (select c.message_id, 1 from @extschema@.message_chunks c order by c.message_id limit 1) \
              union all \
              select (select c.message_id from @extschema@.message_chunks c \
                      where c.message_id operator(pg_catalog.>) w.id order by c.message_id limit 1), \
                  w.n operator(pg_catalog.+) 1 \
              from walk w where w.id is not null and w.n operator(pg_catalog.<) 300 \
          ) \
          select pg_catalog.count(*), \
              extract(epoch from pg_catalog.max(pg_catalog.clock_timestamp() operator(pg_catalog.-) e.at)) \
                  ::pg_catalog.float8 \
          from walk w \
          left join @extschema@.messages m on m.id operator(pg_catalog.=) w.id \
          cross join lateral (select coalesce(m.completed_at, ( \
              select c.created_at from @extschema@.message_chunks c \
              where c.message_id operator(pg_catalog.=) w.id order by c.chunk_index desc limit 1)) as at) e \
          where w.id is not null \
          and (m.id is null or (m.status operator(pg_catalog.<>) 'pending' \
                                and m.status operator(pg_catalog.<>) 'streaming')) \
          and e.at operator(pg_catalog.<) (pg_catalog.clock_timestamp() operator(pg_catalog.-) \
              case when m.status operator(pg_catalog.=) 'interrupted' then interval '1 day' \
                   else interval '1 hour' end)",
    types: &[],
};

/// What the jobs of maintenance will find to do. A day is over everywhere when a second one has begun
/// at Greenwich.
static WORK: Statement = Statement {
    sql: "select \
              (select pg_catalog.count(*) from ( \
                  select from @extschema@.conversations c \
                  where c.expires_at operator(pg_catalog.<=) pg_catalog.now() limit 10000) s), \
              (select pg_catalog.count(*) from ( \
                  select from @extschema@.conversations c \
                  where c.deleted_at operator(pg_catalog.<) (pg_catalog.now() operator(pg_catalog.-) \
                      $1::pg_catalog.interval) limit 10000) s), \
              (select pg_catalog.count(*) filter (where s.expires_at operator(pg_catalog.>) pg_catalog.now()) \
               from ( \
                  select r.expires_at from @extschema@.token_reservations r \
                  where r.closed_at is null limit 5000) s), \
              (select pg_catalog.count(*) from ( \
                  (select from @extschema@.usage_days d where d.slot operator(pg_catalog.<>) 0 \
                   and d.date operator(pg_catalog.<) o.day limit 10000) \
                  union all \
                  (select from @extschema@.usage_totals d where d.slot operator(pg_catalog.<>) 0 \
                   and d.date operator(pg_catalog.<) o.day limit 10000) \
                  union all \
                  (select from @extschema@.usage_months m where m.slot operator(pg_catalog.<>) 0 \
                   and m.month operator(pg_catalog.<) \
                       pg_catalog.date_trunc('month', o.day::pg_catalog.timestamp)::pg_catalog.date \
                   limit 10000)) s) \
          from (select pg_catalog.timezone('UTC', pg_catalog.now())::pg_catalog.date \
                    operator(pg_catalog.-) 1 as day) o",
    types: &[pg_sys::TEXTOID],
};

/// Tenants with a limit that their tokens of today have reached; of 500 at most.
static LIMITS: Statement = Statement {
    sql: "select pg_catalog.count(*) \
          from ( \
              select t.id, t.daily_token_limit, \
                  pg_catalog.timezone(t.time_zone, pg_catalog.now())::pg_catalog.date as today \
              from @extschema@.tenants t where t.is_active and t.daily_token_limit is not null limit 500) t \
          where greatest( \
              (select pg_catalog.sum(w.used) from @extschema@.token_windows w \
               where w.tenant_id operator(pg_catalog.=) t.id and w.date operator(pg_catalog.=) t.today), \
              (select pg_catalog.sum(u.prompt_tokens operator(pg_catalog.+) u.completion_tokens) \
               from @extschema@.usage_totals u \
               where u.tenant_id operator(pg_catalog.=) t.id and u.date operator(pg_catalog.=) t.today), \
              0) operator(pg_catalog.>=) t.daily_token_limit",
    types: &[],
};

/// A job is late when two of its intervals and a quarter of an hour have passed.
static JOBS: Statement = Statement {
    sql: "select \
              pg_catalog.count(*) filter (where r.enabled and r.last_error is not null), \
              pg_catalog.count(*) filter (where r.enabled and coalesce( \
                  extract(epoch from pg_catalog.now() operator(pg_catalog.-) r.last_finished_at) \
                      operator(pg_catalog.>) ((extract(epoch from r.every) operator(pg_catalog.*) 2) \
                          operator(pg_catalog.+) 900), \
                  true)), \
              extract(epoch from pg_catalog.now() operator(pg_catalog.-) \
                  pg_catalog.max(r.last_finished_at))::pg_catalog.float8 \
          from @extschema@.maintenance_runs r",
    types: &[],
};

/// What a role must be able to read to hear any of this.
const ASKED: &CStr = c"maintenance_runs";

const TABLES: [&CStr; 9] = [
    c"messages",
    c"message_chunks",
    c"conversations",
    c"token_reservations",
    c"token_windows",
    c"usage_days",
    c"usage_totals",
    c"usage_months",
    c"tenants",
];

/// As backlog() is declared.
static BACKLOG: Composite<12> = Composite::new([
    (c"streams_in_progress", pg_sys::INT8OID),
    (c"streams_stalled", pg_sys::INT8OID),
    (c"messages_to_clean", pg_sys::INT8OID),
    (c"oldest_to_clean_seconds", pg_sys::FLOAT8OID),
    (c"conversations_expired", pg_sys::INT8OID),
    (c"conversations_to_purge", pg_sys::INT8OID),
    (c"reservations_open", pg_sys::INT8OID),
    (c"usage_slots_to_fold", pg_sys::INT8OID),
    (c"tenants_out_of_tokens", pg_sys::INT8OID),
    (c"jobs_failed", pg_sys::INT8OID),
    (c"jobs_late", pg_sys::INT8OID),
    (c"last_job_seconds", pg_sys::FLOAT8OID),
]);

c_function!(
    /// What waits to be done, in one row.
    backlog, pg_finfo_backlog, look
);

fn look(_call: FunctionCallInfo) -> Result<Datum, Error> {
    require_privilege(ASKED, pg_sys::ACL_SELECT, &[])?;
    with_index_scans(|| {
        let [failed, late, last] = as_owner(&[ASKED], || figures(&JOBS, &[]))?;
        as_owner(&TABLES, || {
            let [streams, stalled] = figures(&STREAMS, &[])?;
            let may_walk = MAY_WALK.read(&[], |row| row.get(1) == Some(true))? == Some(true);
            let [messages, oldest] = if may_walk { figures(&CHUNKS, &[])? } else { [None; 2] };
            // Without a word they are kept for ever.
            let keep = settings::read(KEEP_DELETED).and_then(|text| std::str::from_utf8(text).ok());
            let [expired, deleted, open, slots] = figures(&WORK, &[keep.and_then(arg)])?;
            let [out] = figures(&LIMITS, &[])?;
            Ok(BACKLOG.row_of([
                streams, stalled, messages, oldest, expired, deleted, open, slots, out, failed,
                late, last,
            ]))
        })
    })
}

/// The figures of a statement, numbers that need no memory of their own.
fn figures<const N: usize>(statement: &'static Statement, args: &[Arg]) -> Result<[Arg; N], Error> {
    let row = statement.read(args, |row| std::array::from_fn(|n| row.raw(n as i32 + 1)))?;
    Ok(row.unwrap_or([None; N]))
}
