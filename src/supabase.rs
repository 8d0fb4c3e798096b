//! `link_supabase()`: the work is SQL, done with the rights of the tables' owner.

use pgrx::prelude::*;

use crate::error::{Error, OrRaise};
use crate::owner::{self, as_owner_confined};
use crate::plan::Statement;

static LINK: Statement = Statement {
    sql: "select pg_catalog.array_agg(part), pg_catalog.array_agg(done), pg_catalog.array_agg(detail) \
          from @extschema@.link_parts()",
    types: &[],
};

type Part = (String, bool, String);

/// Joins the tables to a Supabase-style deployment, part by part. What others have put on tables there
/// runs with no more rights than the owner's, and never with those of a superuser who calls it.
#[pg_extern]
fn link_supabase()
-> TableIterator<'static, (name!(part, String), name!(done, bool), name!(detail, String))> {
    TableIterator::new(link().or_raise())
}

fn link() -> Result<impl Iterator<Item = Part>, Error> {
    let owner = owner::for_caller()?;
    let columns = as_owner_confined(owner, || {
        LINK.run(&[], |row| {
            let parts: Vec<String> = row.get(1)?;
            let done: Vec<bool> = row.get(2)?;
            let details: Vec<String> = row.get(3)?;
            Some((parts, done, details))
        })
    })?;
    let (parts, done, details) = columns.flatten().unwrap_or_default();
    let rows = parts.into_iter().zip(done).zip(details);
    Ok(rows.map(|((part, done), detail)| {
        if !done {
            notice!("{part} skipped: {detail}");
        }
        (part, done, detail)
    }))
}
