//! Test data: the work is SQL, done with the rights of the tables' owner and never with those of a
//! superuser who calls it, for triggers of others may be on the tables.

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error::{Error, OrRaise};
use crate::owner::{self, as_owner_confined};
use crate::plan::{Statement, arg};

static TEST_DATA: Statement = Statement {
    sql: "select pg_catalog.array_agg(what), pg_catalog.array_agg(row_count) from @extschema@.test_data($1)",
    types: &[pg_sys::BOOLOID],
};

/// Makes it anew.
#[pg_extern]
fn seed_test_data() -> TableIterator<'static, (name!(what, String), name!(rows, i64))> {
    TableIterator::new(test_data(true).or_raise())
}

/// Takes it away.
#[pg_extern]
fn remove_test_data() -> TableIterator<'static, (name!(what, String), name!(rows, i64))> {
    TableIterator::new(test_data(false).or_raise())
}

fn test_data(wanted: bool) -> Result<impl Iterator<Item = (String, i64)>, Error> {
    let owner = owner::for_caller()?;
    let columns = as_owner_confined(owner, || {
        TEST_DATA.run(&[arg(wanted)], |row| {
            let what: Vec<String> = row.get(1)?;
            let rows: Vec<i64> = row.get(2)?;
            Some((what, rows))
        })
    })?;
    let (what, rows) = columns.flatten().unwrap_or_default();
    Ok(what.into_iter().zip(rows))
}
