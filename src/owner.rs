//! The rights of the tables' owner: whose they are, and what may be done with them.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

use crate::error::Error;
use crate::plan;
use crate::settings::{with_own_settings, with_search_path};

/// Runs `work` with the rights of the owner of our tables, which no policy binds: what foreign keys
/// do for their look-ups. `tables` are all that it touches, and must be that owner's: whoever owns
/// the schema could have put his own in their place, with triggers and policies that would run with
/// these rights. Nothing in `work` may depend on the caller's search_path.
pub fn as_owner<T>(tables: &[&CStr], work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let schema = plan::home()?.schema;
    let owner = role()?;
    let mut has_other_triggers = false;
    for table in tables {
        let found = inspect(plan::table(schema, table)?, schema)?;
        if found.owner != owner {
            return Err(Error::NotOurTable(table.to_string_lossy().into_owned()));
        }
        has_other_triggers |= found.has_other_triggers;
    }
    as_role(owner, 0, || {
        if has_other_triggers {
            // Triggers of the DBA's own fire, and an unqualified name in them must not be found
            // where the caller wants it to be.
            with_search_path(schema, work)
        } else {
            work()
        }
    })
}

struct Inspected {
    owner: Oid,
    has_other_triggers: bool,
}

/// An ordinary table, its owner, and whether functions of others hang on it.
fn inspect(table: Oid, schema: Oid) -> Result<Inspected, Error> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the table is open while its relcache entry is read.
    unsafe {
        let relation = pg_sys::try_table_open(table, lock);
        if relation.is_null() {
            return Err(Error::NotInstalled);
        }
        let form = &*(*relation).rd_rel;
        let is_table = form.relkind as u8 == pg_sys::RELKIND_RELATION;
        let mut found = Inspected { owner: form.relowner, has_other_triggers: false };
        if !(*relation).trigdesc.is_null() {
            let triggers = &*(*relation).trigdesc;
            for n in 0..triggers.numtriggers as usize {
                let trigger = &*triggers.triggers.add(n);
                found.has_other_triggers |=
                    !trigger.tgisinternal && pg_sys::get_func_namespace(trigger.tgfoid) != schema;
            }
        }
        pg_sys::table_close(relation, lock);
        if is_table { Ok(found) } else { Err(Error::NotATable) }
    }
}

/// Refuses to work on tables of which some are another role's.
pub fn require_one_owner(schema: Oid, tables: &[CString], owner: Oid) -> Result<(), Error> {
    for name in tables {
        if let Ok(table) = plan::table(schema, name)
            && inspect(table, schema)?.owner != owner
        {
            return Err(Error::NotOurTable(name.to_string_lossy().into_owned()));
        }
    }
    Ok(())
}

/// schema_version, unless there is none; a table of that name with other columns is somebody
/// else's, for it is a name that other tools use too.
pub fn ledger(schema: Oid) -> Result<Option<Oid>, Error> {
    let Ok(table) = plan::table(schema, c"schema_version") else { return Ok(None) };
    let columns = [(c"version", pg_sys::INT4OID), (c"checksum", pg_sys::TEXTOID)];
    // SAFETY: syscache look-ups; an unknown column has number 0.
    let ours = columns.iter().all(|(name, of_type)| unsafe {
        let n = pg_sys::get_attnum(table, name.as_ptr());
        n > 0 && pg_sys::get_atttype(table, n) == *of_type
    });
    if ours {
        Ok(Some(table))
    } else {
        Err(Error::NameTaken { message: "relation \"schema_version\" already exists".into() })
    }
}

/// The owner of the tables. After a restore it may be another than the extension's.
pub fn role() -> Result<Oid, Error> {
    let schema = plan::home()?.schema;
    let table = ledger(schema)?.ok_or(Error::NotInstalled)?;
    Ok(inspect(table, schema)?.owner)
}

/// Also keeps what `work` sets off from running later, with the rights of the caller: for a
/// superuser who runs a function in somebody else's database.
pub fn as_owner_confined<T>(
    owner: Oid,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    as_role(owner, pg_sys::SECURITY_RESTRICTED_OPERATION, || with_own_settings(work))
}

fn as_role<T>(
    role: Oid,
    restriction: u32,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    struct Back(Oid, i32);
    impl Drop for Back {
        fn drop(&mut self) {
            // SAFETY: puts back what GetUserIdAndSecContext returned.
            unsafe { pg_sys::SetUserIdAndSecContext(self.0, self.1) }
        }
    }
    let mut back = Back(Oid::INVALID, 0);
    // SAFETY: the guard undoes it, and so does the abort of the transaction.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut back.0, &mut back.1);
        let change = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_NOFORCE_RLS;
        pg_sys::SetUserIdAndSecContext(role, back.1 | (change | restriction) as i32);
    }
    work()
}
