//! The rights of the tables' owner: whose they are, and what may be done with them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::rc::Rc;

use pgrx::pg_sys::{self, Oid};

use crate::error::Error;
use crate::install;
use crate::plan;
use crate::settings::{with_own_settings, with_search_path};

mod code;

/// Runs `work` with the rights of the owner of our tables, which no policy binds: what foreign keys
/// do for their look-ups. `tables` are all that it touches, and must be that owner's: whoever owns
/// the schema could have put his own in their place, with triggers and policies that would run with
/// these rights. Nothing in `work` may depend on the caller's search_path.
pub fn as_owner<T>(
    tables: &[&'static CStr],
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let schema = plan::home()?.schema;
    let owner = role()?;
    let mut others = BTreeSet::new();
    for name in tables {
        let table = locked(name, schema)?;
        if table.owner != owner {
            return Err(Error::NotOurTable(name.to_string_lossy().into_owned()));
        }
        others.extend(table.others.iter().flat_map(|others| others.iter().copied()));
    }
    as_role(owner, 0, || {
        if others.is_empty() {
            work()
        } else {
            // Functions of the DBA's own run, and an unqualified name in them must not be found
            // where the caller wants it to be, but where they are.
            with_search_path(std::iter::once(schema).chain(others.into_iter().map(Oid::from)), work)
        }
    })
}

/// What is known of an ordinary table.
#[derive(Clone)]
struct Table {
    oid: Oid,
    owner: Oid,
    /// The schemas of functions that are not the extension's and run when rows are written; `None` for
    /// a table as the extension makes it.
    others: Option<Rc<BTreeSet<u32>>>,
}

thread_local! {
    static TABLES: RefCell<HashMap<&'static CStr, (u64, Table)>> = RefCell::default();
}

/// One of our tables, locked to the end of the transaction, so that what was found out about it
/// still holds when it is used.
fn locked(name: &'static CStr, schema: Oid) -> Result<Table, Error> {
    let known = TABLES.with_borrow(|tables| tables.get(name).cloned());
    if let Some((generation, table)) = known
        && generation == plan::generation()
    {
        // SAFETY: a lock that ends with the transaction; taking it brings news of changes in.
        unsafe { pg_sys::LockRelationOid(table.oid, plan::READ_LOCK) };
        if generation == plan::generation() {
            return Ok(table);
        }
    }
    loop {
        let table = inspect(plan::table(schema, name)?)?;
        let generation = plan::generation();
        // Under the lock it can be neither renamed nor dropped; before, it could.
        if plan::table(schema, name)? == table.oid {
            TABLES.with_borrow_mut(|tables| tables.insert(name, (generation, table.clone())));
            return Ok(table);
        }
    }
}

/// What a table is; locked from now on.
fn inspect(table: Oid) -> Result<Table, Error> {
    // SAFETY: the table is open while its relcache entry is read.
    unsafe {
        let relation = plan::open(table)?;
        let owner = (*(*relation).rd_rel).relowner;
        let others = code::of_others(relation);
        let others = (!others.is_empty()).then(|| Rc::new(others));
        let found = Table { oid: table, owner, others };
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        Ok(found)
    }
}

/// Whether a table has triggers of a kind; `wanted` also hears whether one calls a function of the
/// extension.
///
/// # Safety
///
/// The relation must be open.
pub unsafe fn has_triggers(
    relation: pg_sys::Relation,
    mut wanted: impl FnMut(&pg_sys::Trigger, bool) -> bool,
) -> bool {
    unsafe {
        if (*relation).trigdesc.is_null() {
            return false;
        }
        let extension = pg_sys::get_extension_oid(c"pg_conversation".as_ptr(), true);
        // A copy: each look-up may bring the news that the table has changed (a GRANT on it will do), and
        // then what the relation has is made anew and the old freed.
        let triggers = pg_sys::CopyTriggerDesc((*relation).trigdesc);
        let found = (0..(*triggers).numtriggers as usize).any(|n| {
            let trigger = &*(*triggers).triggers.add(n);
            let of = pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, trigger.tgfoid);
            wanted(trigger, of == extension)
        });
        pg_sys::FreeTriggerDesc(triggers);
        found
    }
}

/// Refuses to work on relations of which some are another role's. Tables stay as they are to the end
/// of the transaction.
pub fn require_one_owner(schema: Oid, named: &[(CString, u8)], owner: Oid) -> Result<(), Error> {
    for (name, kind) in named {
        let Ok(relation) = plan::table(schema, name) else { continue };
        let found = if *kind == pg_sys::RELKIND_RELATION {
            Some(inspect(relation)?.owner)
        } else {
            // What else may stand under the name of a view is told apart by whoever makes it.
            let of_kind = |row: &pg_sys::FormData_pg_class| {
                (row.relkind as u8 == *kind).then_some(row.relowner)
            };
            plan::class(relation, of_kind).flatten()
        };
        if found.is_some_and(|found| found != owner) {
            return Err(Error::NotOurTable(name.to_string_lossy().into_owned()));
        }
    }
    Ok(())
}

/// The same, from what the caches say, for what is read without a statement: whoever owns the schema
/// could have put his own tables in the place of some, and be anybody in them. Found out once, until
/// something changes.
pub fn require_ours(schema: Oid) -> Result<(), Error> {
    thread_local! {
        static NAMES: Vec<CString> = install::table_names();
        static CHECKED: Cell<Option<u64>> = const { Cell::new(None) };
    }
    if CHECKED.get() == Some(plan::generation()) {
        return Ok(());
    }
    let owner = role()?;
    NAMES.with(|names| {
        let of_another = |name: &&CString| {
            let table = plan::table(schema, name);
            table.is_ok_and(|table| plan::class(table, |row| row.relowner) != Some(owner))
        };
        match names.iter().find(of_another) {
            Some(name) => Err(Error::NotOurTable(name.to_string_lossy().into_owned())),
            None => Ok(()),
        }
    })?;
    CHECKED.set(Some(plan::generation()));
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
    let known = TABLES.with_borrow(|tables| tables.get(LEDGER).map(|(generation, _)| *generation));
    if known != Some(plan::generation()) {
        ledger(schema)?.ok_or(Error::NotInstalled)?;
    }
    Ok(locked(LEDGER, schema)?.owner)
}

/// The same, for a caller who has his rights.
pub fn for_caller() -> Result<Oid, Error> {
    let owner = role()?;
    // SAFETY: look-ups in the role cache.
    let may = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) };
    if may { Ok(owner) } else { Err(Error::NotOwner) }
}

const LEDGER: &CStr = c"schema_version";

/// Also keeps what `work` sets off from running later, with the rights of the caller: for a
/// superuser who runs a function in somebody else's database.
pub fn as_owner_confined<T>(
    owner: Oid,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    as_role(owner, pg_sys::SECURITY_RESTRICTED_OPERATION, || with_own_settings(work))
}

/// A superuser who keeps house in somebody else's database leaves nothing behind that would run with
/// his rights. He is one though he has become somebody else for now: what he sets off could set him back.
pub fn in_their_house<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let owner = role()?;
    // SAFETY: reads backend-local state and the role cache.
    let is_guest = unsafe {
        let user = pg_sys::GetUserId();
        let roles = [user, pg_sys::GetSessionUserId(), pg_sys::GetAuthenticatedUserId()];
        let is_owner = user == owner && pg_sys::superuser_arg(owner);
        roles.into_iter().any(|role| pg_sys::superuser_arg(role)) && !is_owner
    };
    if is_guest { as_owner_confined(owner, work) } else { work() }
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
