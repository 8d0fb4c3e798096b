//! What is not needed any more: reservations that ended, and days that are over.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use super::rights;
use crate::error::Error;
use crate::function::{argument, c_function};
use crate::owner::{as_owner, in_their_house};
use crate::plan::{Statement, arg};
use crate::settings::with_index_scans;

static RESERVATIONS: Statement = Statement {
    sql: "with t (ago) as materialized ( \
              select pg_catalog.clock_timestamp() operator(pg_catalog.-) interval '2 days'), \
          old as materialized ( \
              select r.id from @extschema@.token_reservations r \
              where r.expires_at operator(pg_catalog.<) (select t.ago from t) \
              and coalesce(r.closed_at operator(pg_catalog.<) (select t.ago from t), true) \
              order by r.expires_at limit $1 for update skip locked), \
          gone as ( \
              delete from @extschema@.token_reservations r using old \
              where r.id operator(pg_catalog.=) old.id returning 1) \
          select pg_catalog.count(*)::integer from gone",
    types: &[pg_sys::INT4OID],
};

static WINDOWS: Statement = Statement {
    sql: "with old as materialized ( \
              select w.tenant_id, w.date, w.slot from @extschema@.token_windows w \
              where w.date operator(pg_catalog.<) \
                  (pg_catalog.clock_timestamp() operator(pg_catalog.-) interval '40 days')::pg_catalog.date \
              order by w.date limit $1 for update skip locked), \
          gone as ( \
              delete from @extschema@.token_windows w using old \
              where w.tenant_id operator(pg_catalog.=) old.tenant_id \
              and w.date operator(pg_catalog.=) old.date and w.slot operator(pg_catalog.=) old.slot \
              returning 1) \
          select pg_catalog.count(*)::integer from gone",
    types: &[pg_sys::INT4OID],
};

c_function!(
    /// Deletes reservations that ended long ago, and days that nobody asks about.
    cleanup_reservations, pg_finfo_cleanup_reservations, clean_up
);

fn clean_up(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_reserve(c"cleanup_reservations()")?;
    // SAFETY: declared as (integer).
    let most: i32 = unsafe { argument(call, 0) }.ok_or(Error::Missing("max_rows"))?;
    if most < 0 {
        return Err(Error::Negative("max_rows"));
    }
    Ok(Datum::from(in_their_house(|| delete_old(most))?))
}

fn delete_old(most: i32) -> Result<i32, Error> {
    let tables = [c"token_reservations", c"token_windows"];
    let delete = |statement: &'static Statement, most: i32| {
        let rows = with_index_scans(|| {
            as_owner(&tables, || statement.run_now(&[arg(most)], |row| row.get::<i32>(1)))
        })?;
        Ok::<i32, Error>(rows.flatten().unwrap_or(0))
    };
    let reservations = delete(&RESERVATIONS, most)?;
    let windows = delete(&WINDOWS, most - reservations)?;
    Ok(reservations + windows)
}
