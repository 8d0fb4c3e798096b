//! What roles may do with tables: asked as a statement would ask, and noted when it is granted.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use crate::error::{Error, OrRaise};
use crate::owner::{self, as_owner, as_owner_confined};
use crate::plan::{self, Statement, arg};

/// Whether row level security applies to the caller on this table.
pub fn is_restricted(table: Oid) -> bool {
    // SAFETY: a syscache look-up; the second argument means the current user.
    let state = unsafe { pg_sys::check_enable_rls(table, Oid::INVALID, true) };
    state == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
}

/// Whether the caller has this privilege on the table or on a column of it.
pub fn has_privilege(table: Oid, privilege: u32) -> bool {
    let (privilege, ok) = (privilege as pg_sys::AclMode, pg_sys::AclResult::ACLCHECK_OK);
    // SAFETY: look-ups in the caches of roles and privileges.
    unsafe {
        let role = pg_sys::GetUserId();
        let any = pg_sys::AclMaskHow::ACLMASK_ANY;
        pg_sys::pg_class_aclcheck(table, role, privilege) == ok
            || pg_sys::pg_attribute_aclcheck_all(table, role, privilege, any) == ok
    }
}

/// For functions that go to a table without a statement on it: what the statement would ask first.
/// The privilege is wanted on the table or on each of the columns.
pub fn require_privilege(table: &CStr, privilege: u32, columns: &[&CStr]) -> Result<(), Error> {
    let oid = plan::our_table(table)?;
    let (privilege, ok) = (privilege as pg_sys::AclMode, pg_sys::AclResult::ACLCHECK_OK);
    // SAFETY: look-ups in the caches of roles, columns and privileges; the error is that of the
    // statement.
    unsafe {
        let role = pg_sys::GetUserId();
        let has_column = |name: &&CStr| {
            let n = pg_sys::get_attnum(oid, name.as_ptr());
            n > 0 && pg_sys::pg_attribute_aclcheck(oid, n, role, privilege) == ok
        };
        if pg_sys::pg_class_aclcheck(oid, role, privilege) != ok
            && (columns.is_empty() || !columns.iter().all(has_column))
        {
            let (denied, of) =
                (pg_sys::AclResult::ACLCHECK_NO_PRIV, pg_sys::ObjectType::OBJECT_TABLE);
            pg_sys::aclcheck_error(denied, of, table.as_ptr());
        }
    }
    Ok(())
}

/// Raises an error unless the caller owns the tables.
#[pg_extern(stable, parallel_safe)]
fn require_owner() {
    owner::for_caller().or_raise();
}

static NOTE_PROFILE: Statement = Statement {
    sql: "insert into @extschema@.access_profiles (role_name, profile) \
          select $1, $2 where not exists ( \
              select from @extschema@.access_profiles \
              where role_name operator(pg_catalog.=) $1 and profile operator(pg_catalog.=) $2)",
    types: &[pg_sys::TEXTOID, pg_sys::TEXTOID],
};

/// Notes which profile a role has. A trigger takes away what was noted before.
#[pg_extern(strict)]
fn note_access(role: &str, profile: &str) {
    let owner = owner::for_caller().or_raise();
    let note = || NOTE_PROFILE.run(&[arg(role), arg(profile)], |_| ());
    as_owner(&[c"access_profiles"], || as_owner_confined(owner, note)).or_raise();
}
