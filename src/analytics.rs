//! Figures that are kept for reports.

use std::ffi::CString;

use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid};

use crate::access::{is_restricted, require_privilege};
use crate::error::Error;
use crate::function::{argument, c_function};
use crate::install;
use crate::owner::{self, as_owner};
use crate::plan;
use crate::settings::with_search_path;

c_function!(
    /// Refreshes the materialized views.
    refresh_analytics, pg_finfo_refresh_analytics, refresh
);

fn refresh(call: FunctionCallInfo) -> Result<Datum, Error> {
    // SAFETY: declared as (boolean).
    let concurrently: bool = unsafe { argument(call, 0) }.ok_or(Error::Missing("concurrently"))?;
    require_service()?;
    let schema = plan::home()?.schema;
    let name = plan::schema_name(schema)?;
    // One that is missing is doctor()'s to tell.
    for view in install::all("matview") {
        let Some(is_populated) = state(schema, &view)? else { continue };
        let how = if concurrently && is_populated { " concurrently" } else { "" };
        let sql = format!("refresh materialized view{how} {name}.{view}");
        // Not confined: beside its readers a refresh compares by way of a temporary table. The view's
        // own query is confined by Postgres.
        as_owner(&[], || with_search_path(std::iter::once(schema), || plan::script(&sql)))?;
    }
    Ok(Datum::from(0))
}

/// Whether a materialized view of ours is filled; `None` where there is none.
fn state(schema: Oid, view: &str) -> Result<Option<bool>, Error> {
    let name = CString::new(view).unwrap_or_default();
    let Ok(relation) = plan::table(schema, &name) else { return Ok(None) };
    let owner = owner::role()?;
    let found = plan::class(relation, |row| {
        let is_ours = row.relkind as u8 == pg_sys::RELKIND_MATVIEW && row.relowner == owner;
        is_ours.then_some(row.relispopulated)
    });
    found.flatten().map(Some).ok_or_else(|| Error::NotOurTable(view.into()))
}

/// Work for those who keep house: the owner, and the service, which sees every row.
pub fn require_service() -> Result<(), Error> {
    if owner::for_caller().is_ok() {
        return Ok(());
    }
    require_privilege(c"feedback", pg_sys::ACL_DELETE, &[])?;
    if is_restricted(plan::our_table(c"feedback")?) {
        return Err(Error::NotForMembers("this is work for the service".into()));
    }
    Ok(())
}
