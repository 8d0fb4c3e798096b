//! Functions that take a call as Postgres hands it over: triggers, hot functions, and those whose
//! arguments should not be taken apart.

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::FromDatum;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid};

/// A function whose SQL stands in `api.sql`. Its body takes the call and returns a value or our
/// error.
macro_rules! c_function {
    ($(#[$doc:meta])* $name:ident, $info:ident, $body:path) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            const V1: pgrx::pg_sys::Pg_finfo_record =
                pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &V1
        }

        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[pgrx::pg_guard]
        pub unsafe extern "C-unwind" fn $name(
            call: pgrx::pg_sys::FunctionCallInfo,
        ) -> pgrx::pg_sys::Datum {
            $crate::error::OrRaise::or_raise($body(call))
        }
    };
}
pub(crate) use c_function;

/// Argument `n`, counted from 0, as it came; `None` is null.
pub fn raw_argument(call: FunctionCallInfo, n: usize) -> Option<Datum> {
    // SAFETY: Postgres hands over a valid call; a number past its arguments is null.
    unsafe {
        let call = &*call;
        let argument = call.args.as_slice(call.nargs as usize).get(n)?;
        (!argument.isnull).then_some(argument.value)
    }
}

/// Argument `n` as a Rust value.
///
/// # Safety
///
/// `T` must be what the function is declared with.
pub unsafe fn argument<T: FromDatum>(call: FunctionCallInfo, n: usize) -> Option<T> {
    raw_argument(call, n).and_then(|datum| unsafe { T::from_datum(datum, false) })
}

/// The columns of a row that a function returns. To derive them from the function's declaration in
/// every call would take as long as looking up a row.
pub struct Composite<const N: usize> {
    columns: [(&'static CStr, Oid); N],
    desc: AtomicPtr<pg_sys::TupleDescData>,
}

impl<const N: usize> Composite<N> {
    /// As the function's OUT parameters are declared.
    pub const fn new(columns: [(&'static CStr, Oid); N]) -> Self {
        Self { columns, desc: AtomicPtr::new(std::ptr::null_mut()) }
    }

    pub fn row(&self, values: [Datum; N]) -> Datum {
        self.row_of(values.map(Some))
    }

    /// The same where values may be null.
    pub fn row_of(&self, values: [Option<Datum>; N]) -> Datum {
        let mut nulls = values.map(|value| value.is_none());
        let mut values = values.map(|value| value.unwrap_or(Datum::from(0)));
        // SAFETY: a value for each column. The descriptor is made once and lives as long as the
        // backend, which has a single thread.
        unsafe {
            let mut desc = self.desc.load(Ordering::Relaxed);
            if desc.is_null() {
                desc = self.make();
                self.desc.store(desc, Ordering::Relaxed);
            }
            let tuple = pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data)
        }
    }

    unsafe fn make(&self) -> pg_sys::TupleDesc {
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let desc = pg_sys::CreateTemplateTupleDesc(N as i32);
            for (n, (name, of_type)) in self.columns.iter().enumerate() {
                let n = n as pg_sys::AttrNumber + 1;
                pg_sys::TupleDescInitEntry(desc, n, name.as_ptr(), *of_type, -1, 0);
            }
            let desc = pg_sys::BlessTupleDesc(desc);
            pg_sys::MemoryContextSwitchTo(before);
            desc
        }
    }
}

/// Memory that a call site keeps from row to row, as long as the statement runs.
///
/// # Safety
///
/// One type a function, without a destructor that matters.
pub unsafe fn scratch<'a, T: Default>(call: FunctionCallInfo) -> Option<&'a mut T> {
    unsafe {
        let info = (*call).flinfo;
        if info.is_null() {
            return None;
        }
        if (*info).fn_extra.is_null() {
            let place = pg_sys::MemoryContextAlloc((*info).fn_mcxt, size_of::<T>()).cast::<T>();
            place.write(T::default());
            (*info).fn_extra = place.cast();
        }
        (*info).fn_extra.cast::<T>().as_mut()
    }
}
