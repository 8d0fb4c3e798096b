//! Kept plans: each statement is planned once a backend and role, not once a call.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{FromDatum, IntoDatum, PgSqlErrorCode, PgTryBuilder};

use crate::error::Error;
use crate::settings;
use crate::trigger::Changed;

/// The extension as this backend last saw it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Home {
    pub schema: Oid,
    pub owner: Oid,
}

const FIND_HOME: &CStr = c"select extnamespace, extowner from pg_catalog.pg_extension \
                           where extname operator(pg_catalog.=) 'pg_conversation'";

thread_local! {
    static HOME: Cell<Option<Home>> = const { Cell::new(None) };
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static PLANS: RefCell<HashMap<(usize, Oid, Oid), pg_sys::SPIPlanPtr>> = RefCell::default();
}

/// Beyond this many plans, roles share one and Postgres replans it when they take turns. Plans are
/// never freed, for one may be running further up the stack.
const MOST_PLANS: usize = 256;

/// Forgets the schema whenever a function is made or dropped, for after DROP EXTENSION and CREATE
/// EXTENSION the extension may live elsewhere; and counts changes of functions, relations (grants on
/// them are some) and roles.
pub fn watch_catalog() {
    unsafe extern "C-unwind" fn function_changed(_arg: Datum, _cache: i32, _hash: u32) {
        HOME.set(None);
        GENERATION.set(GENERATION.get() + 1);
    }
    unsafe extern "C-unwind" fn role_changed(_arg: Datum, _cache: i32, _hash: u32) {
        GENERATION.set(GENERATION.get() + 1);
    }
    unsafe extern "C-unwind" fn relation_changed(_arg: Datum, _relation: Oid) {
        GENERATION.set(GENERATION.get() + 1);
    }
    // SAFETY: called once from _PG_init; the callbacks only write thread-local cells.
    unsafe {
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::PROCOID as i32,
            Some(function_changed),
            Datum::from(0),
        );
        for cache in
            [pg_sys::SysCacheIdentifier::AUTHOID, pg_sys::SysCacheIdentifier::AUTHMEMROLEMEM]
        {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(role_changed), Datum::from(0));
        }
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), Datum::from(0));
    }
}

/// What was found out about relations and functions holds while this stays the same, seen under a
/// lock of the relation.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Where the extension lives and who owns it.
pub fn home() -> Result<Home, Error> {
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    // Where the library is preloaded no database was known when it was loaded.
    settings::require_utf8()?;
    let home = spi(|| {
        // SAFETY: connected; a constant statement without arguments.
        let status = unsafe { pg_sys::SPI_execute(FIND_HOME.as_ptr(), true, 1) };
        check("SPI_execute", status)?;
        Ok(first_row(|row| Home {
            schema: row.get(1).unwrap_or(Oid::INVALID),
            owner: row.get(2).unwrap_or(Oid::INVALID),
        }))
    })?
    .ok_or(Error::NoExtension)?;
    HOME.set(Some(home));
    Ok(home)
}

/// The schema's name, quoted where SQL needs it.
pub fn schema_name(schema: Oid) -> Result<String, Error> {
    // SAFETY: both return palloc'd or static C strings that are copied at once.
    unsafe {
        let name = pg_sys::get_namespace_name(schema);
        if name.is_null() {
            return Err(Error::NoExtension);
        }
        Ok(CStr::from_ptr(pg_sys::quote_identifier(name)).to_string_lossy().into_owned())
    }
}

/// `text` with the extension's schema in place of `@extschema@`.
pub fn in_schema(text: &str, schema: Oid) -> Result<String, Error> {
    Ok(text.replace("@extschema@", &schema_name(schema)?))
}

/// What `read` makes of the fixed part of a row of the catalog; `None` where there is no such row.
///
/// # Safety
///
/// `Form` is the struct of the catalog that the cache is of, and the cache has this key alone.
pub unsafe fn cached<Form, T>(
    cache: pg_sys::SysCacheIdentifier::Type,
    key: Datum,
    read: impl FnOnce(&Form) -> T,
) -> Option<T> {
    // SAFETY: the row stays as it is until it is released; an ERROR in between releases it, too.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache as i32, key);
        if tuple.is_null() {
            return None;
        }
        let answer = read(&*pg_sys::GETSTRUCT(tuple).cast::<Form>());
        pg_sys::ReleaseSysCache(tuple);
        Some(answer)
    }
}

/// What `read` makes of the row of a column in pg_attribute.
pub fn column<T>(
    table: Oid,
    n: i32,
    read: impl FnOnce(&pg_sys::FormData_pg_attribute) -> T,
) -> Option<T> {
    let cache = pg_sys::SysCacheIdentifier::ATTNUM as i32;
    // SAFETY: as in cached().
    unsafe {
        let tuple = pg_sys::SearchSysCache2(cache, Datum::from(table), Datum::from(n));
        if tuple.is_null() {
            return None;
        }
        let answer = read(&*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_attribute>());
        pg_sys::ReleaseSysCache(tuple);
        Some(answer)
    }
}

/// What `read` makes of the row of a relation in pg_class.
pub fn class<T>(relation: Oid, read: impl FnOnce(&pg_sys::FormData_pg_class) -> T) -> Option<T> {
    // SAFETY: the cache of pg_class by oid.
    unsafe { cached(pg_sys::SysCacheIdentifier::RELOID, Datum::from(relation), read) }
}

/// The oid of one of our tables.
pub fn table(schema: Oid, name: &CStr) -> Result<Oid, Error> {
    // SAFETY: a syscache look-up by name and namespace.
    let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) };
    if oid == Oid::INVALID { Err(Error::NotInstalled) } else { Ok(oid) }
}

/// The same in the extension's schema.
pub fn our_table(name: &CStr) -> Result<Oid, Error> {
    table(home()?.schema, name)
}

/// Locks and opens an ordinary table; it may have been dropped since its oid was looked up.
pub fn open(table: Oid) -> Result<pg_sys::Relation, Error> {
    open_for(table, READ_LOCK)
}

pub fn open_for(table: Oid, lock: pg_sys::LOCKMODE) -> Result<pg_sys::Relation, Error> {
    // SAFETY: an ERROR releases what was opened; our errors are raised as one.
    unsafe {
        let relation = pg_sys::try_table_open(table, lock);
        if relation.is_null() {
            return Err(Error::NotInstalled);
        }
        if (*(*relation).rd_rel).relkind as u8 != pg_sys::RELKIND_RELATION {
            return Err(Error::NotATable);
        }
        Ok(relation)
    }
}

pub const READ_LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
pub const WRITE_LOCK: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
/// To close what stays locked.
pub const NO_LOCK: pg_sys::LOCKMODE = pg_sys::NoLock as pg_sys::LOCKMODE;

/// A statement over our tables. As the owner it runs on behalf of callers with a search_path of
/// their own, so its text qualifies every name and every operator.
pub struct Statement {
    pub sql: &'static str,
    pub types: &'static [Oid],
}

const MOST_ARGS: usize = 16;

/// One argument; `None` is null.
pub type Arg = Option<Datum>;

pub fn arg<T: IntoDatum>(value: T) -> Arg {
    value.into_datum()
}

impl Statement {
    /// Runs in a snapshot of its own, so it sees what was committed while it waited for a lock, and
    /// reads the first row of the answer.
    pub fn run<T>(
        &'static self,
        args: &[Arg],
        row: impl FnOnce(&Row) -> T,
    ) -> Result<Option<T>, Error> {
        self.execute(args, row, |plan, values, nulls| {
            // SAFETY: see execute().
            unsafe { pg_sys::SPI_execute_plan(plan, values, nulls, false, self.most_rows()) }
        })
    }

    /// The same in a snapshot taken now even where the transaction has one of its own, as foreign
    /// keys do: for what was found out under a lock and not in that snapshot.
    pub fn run_now<T>(
        &'static self,
        args: &[Arg],
        row: impl FnOnce(&Row) -> T,
    ) -> Result<Option<T>, Error> {
        self.execute(args, row, |plan, values, nulls| {
            // SAFETY: see execute(); the snapshot is copied.
            unsafe {
                let (now, none) = (pg_sys::GetLatestSnapshot(), std::ptr::null_mut());
                let most = self.most_rows();
                pg_sys::SPI_execute_snapshot(plan, values, nulls, now, none, false, true, most)
            }
        })
    }

    /// The same over the rows that a trigger was fired for, which have the names that CREATE TRIGGER
    /// gives them: no table of such a name is looked for.
    pub fn run_over<T>(
        &'static self,
        changed: &Changed,
        row: impl FnOnce(&Row) -> T,
    ) -> Result<Option<T>, Error> {
        self.execute_over(Some(changed), &[], row, |plan, values, nulls| {
            // SAFETY: see run_now().
            unsafe {
                let (now, none) = (pg_sys::GetLatestSnapshot(), std::ptr::null_mut());
                let most = self.most_rows();
                pg_sys::SPI_execute_snapshot(plan, values, nulls, now, none, false, true, most)
            }
        })
    }

    /// Reads in the snapshot of the running command, and may do so in a parallel worker.
    pub fn read<T>(
        &'static self,
        args: &[Arg],
        row: impl FnOnce(&Row) -> T,
    ) -> Result<Option<T>, Error> {
        self.execute(args, row, |plan, values, nulls| {
            // SAFETY: see execute().
            unsafe { pg_sys::SPI_execute_plan(plan, values, nulls, true, 1) }
        })
    }

    /// A search ends with the first row. What writes goes to its end, however many rows it returns:
    /// triggers of the statement come after the last one.
    fn most_rows(&self) -> std::ffi::c_long {
        if self.sql.starts_with("select") { 1 } else { 0 }
    }

    fn execute<T>(
        &'static self,
        args: &[Arg],
        row: impl FnOnce(&Row) -> T,
        call: impl FnOnce(pg_sys::SPIPlanPtr, *mut Datum, *const std::ffi::c_char) -> i32,
    ) -> Result<Option<T>, Error> {
        self.execute_over(None, args, row, call)
    }

    fn execute_over<T>(
        &'static self,
        changed: Option<&Changed>,
        args: &[Arg],
        row: impl FnOnce(&Row) -> T,
        call: impl FnOnce(pg_sys::SPIPlanPtr, *mut Datum, *const std::ffi::c_char) -> i32,
    ) -> Result<Option<T>, Error> {
        let home = home()?;
        let mut values: [Datum; MOST_ARGS] = [Datum::from(0); MOST_ARGS];
        let mut nulls = [b' ' as std::ffi::c_char; MOST_ARGS];
        for (i, arg) in args.iter().enumerate() {
            match arg {
                Some(datum) => values[i] = *datum,
                None => nulls[i] = b'n' as std::ffi::c_char,
            }
        }
        spi(|| {
            if let Some(changed) = changed {
                // SAFETY: connected; the data of a trigger that is running.
                let status = unsafe { pg_sys::SPI_register_trigger_data(changed.data()) };
                check("SPI_register_trigger_data", status)?;
            }
            let plan = self.plan(home.schema)?;
            // Connected; values and nulls are as long as the plan's arguments.
            check("SPI_execute_plan", call(plan, values.as_mut_ptr(), nulls.as_ptr()))?;
            Ok(first_row(row))
        })
    }

    fn plan(&'static self, schema: Oid) -> Result<pg_sys::SPIPlanPtr, Error> {
        // One plan a role: with row level security a plan made for one role is thrown away when
        // another one runs it, and poolers switch roles all the time.
        let role = if PLANS.with_borrow(HashMap::len) < MOST_PLANS {
            // SAFETY: reads a global.
            unsafe { pg_sys::GetUserId() }
        } else {
            Oid::INVALID
        };
        let key = (std::ptr::from_ref(self) as usize, schema, role);
        if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&key).copied()) {
            return Ok(plan);
        }
        let text = in_schema(self.sql, schema)?;
        let text = CString::new(text).map_err(|_| Error::Spi { call: "CString", code: 0 })?;
        let mut types = self.types.to_vec();
        // SAFETY: connected; a failed prepare raises an ERROR or returns null.
        let plan = unsafe {
            let plan = PgTryBuilder::new(AssertUnwindSafe(|| {
                Ok(pg_sys::SPI_prepare(text.as_ptr(), types.len() as i32, types.as_mut_ptr()))
            }))
            .catch_when(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, |_| Err(Error::NotInstalled))
            .catch_when(PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN, |_| Err(Error::NotInstalled))
            .execute()?;
            if plan.is_null() {
                return Err(Error::Spi { call: "SPI_prepare", code: pg_sys::SPI_result });
            }
            check("SPI_keepplan", pg_sys::SPI_keepplan(plan))?;
            plan
        };
        PLANS.with_borrow_mut(|plans| plans.insert(key, plan));
        Ok(plan)
    }
}

/// A row at hand: of a result, of a scan, or of a trigger.
#[derive(Clone, Copy)]
pub struct Row {
    pub tuple: pg_sys::HeapTuple,
    pub desc: pg_sys::TupleDesc,
}

impl Row {
    /// Column `n`, counted from 1. Null, too, when the column is of another type than `T`: whoever
    /// owns the tables may have changed it, and memory must not be read as what it is not.
    pub fn get<T: FromDatum + IntoDatum>(&self, n: i32) -> Option<T> {
        // SAFETY: tuple and descriptor belong together, and the type was looked at.
        unsafe {
            if pg_sys::SPI_gettypeid(self.desc, n) != T::type_oid() {
                return None;
            }
            let mut is_null = false;
            let datum = pg_sys::SPI_getbinval(self.tuple, self.desc, n, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// Column `n` as it is stored, whatever its type; `None` is null.
    pub fn raw(&self, n: i32) -> Option<Datum> {
        let mut is_null = false;
        // SAFETY: tuple and descriptor belong together.
        let datum = unsafe { pg_sys::SPI_getbinval(self.tuple, self.desc, n, &mut is_null) };
        (!is_null).then_some(datum)
    }

    pub fn is_null(&self, name: &CStr) -> bool {
        self.column(name).and_then(|n| self.raw(n)).is_none()
    }

    /// A text as it is stored; null, too, when the column is of another type.
    pub fn text(&self, name: &CStr) -> Option<Datum> {
        let n = self.column(name)?;
        // SAFETY: a column of the descriptor.
        let is_text = unsafe { pg_sys::SPI_gettypeid(self.desc, n) } == pg_sys::TEXTOID;
        is_text.then(|| self.raw(n)).flatten()
    }

    /// Whether a text is empty; a long one, which may be stored elsewhere, is not fetched for that.
    pub fn is_empty_text(&self, name: &CStr) -> bool {
        // SAFETY: the size of a text is told by its first bytes.
        let size = |text| unsafe { pg_sys::toast_raw_datum_size(text) };
        self.text(name).is_some_and(|text| size(text) == pg_sys::VARHDRSZ)
    }

    /// The number of a column.
    pub fn column(&self, name: &CStr) -> Option<i32> {
        // SAFETY: the descriptor is valid as long as the row.
        let n = unsafe { pg_sys::SPI_fnumber(self.desc, name.as_ptr()) };
        (n > 0).then_some(n)
    }

    pub fn named<T: FromDatum + IntoDatum>(&self, name: &CStr) -> Option<T> {
        self.get(self.column(name)?)
    }
}

fn first_row<T>(read: impl FnOnce(&Row) -> T) -> Option<T> {
    // SAFETY: SPI_tuptable and SPI_processed describe the statement that has just run.
    unsafe {
        let result = pg_sys::SPI_tuptable;
        if result.is_null() || pg_sys::SPI_processed == 0 {
            return None;
        }
        Some(read(&Row { tuple: *(*result).vals, desc: (*result).tupdesc }))
    }
}

/// Runs `work` connected to SPI. After an ERROR the transaction's abort cleans up, as for PL/pgSQL.
pub fn spi<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // SAFETY: balanced by SPI_finish on every path that does not abort the transaction.
    check("SPI_connect", unsafe { pg_sys::SPI_connect() })?;
    let result = work();
    check("SPI_finish", unsafe { pg_sys::SPI_finish() })?;
    result
}

/// Runs SQL text of several statements; for set-up only, for it plans anew each time.
pub fn script(sql: &str) -> Result<(), Error> {
    let text = CString::new(sql).map_err(|_| Error::Spi { call: "CString", code: 0 })?;
    spi(|| {
        // SAFETY: connected; the text is a valid C string.
        check("SPI_execute", unsafe { pg_sys::SPI_execute(text.as_ptr(), false, 0) })
    })
}

/// The first column of the first row, as text; for checks, for it plans anew each time.
pub fn query_text(sql: &str) -> Result<Option<String>, Error> {
    let text = CString::new(sql).map_err(|_| Error::Spi { call: "CString", code: 0 })?;
    spi(|| {
        // In a snapshot of its own: the caller's may be from before a lock that was waited for.
        // SAFETY: connected; the text is a valid C string.
        check("SPI_execute", unsafe { pg_sys::SPI_execute(text.as_ptr(), false, 1) })?;
        Ok(first_row(|row| row.get(1)).flatten())
    })
}

fn check(call: &'static str, code: i32) -> Result<(), Error> {
    if code < 0 { Err(Error::Spi { call, code }) } else { Ok(()) }
}
