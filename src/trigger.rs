//! Row triggers without copies: read the columns that matter, write back those that changed.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{FromDatum, IntoDatum};

use crate::error::Error;

/// A function that takes the call as Postgres hands it over: triggers, and calls whose arguments
/// should not be taken apart. Its SQL stands in `api.sql`.
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
            fcinfo: pgrx::pg_sys::FunctionCallInfo,
        ) -> pgrx::pg_sys::Datum {
            $crate::error::OrRaise::or_raise($body(fcinfo))
        }
    };
}
pub(crate) use c_function;

/// The row a BEFORE trigger was fired for.
pub struct TriggerRow {
    data: *mut pg_sys::TriggerData,
    tuple: pg_sys::HeapTuple,
    changes: Vec<(i32, Option<Datum>)>,
}

impl TriggerRow {
    /// The new row of an INSERT or UPDATE.
    pub fn new(fcinfo: pg_sys::FunctionCallInfo) -> Result<Self, Error> {
        // SAFETY: the context of a call by the trigger manager is a TriggerData that lives as long
        // as the call.
        unsafe {
            if !pgrx::trigger_support::called_as_trigger(fcinfo) {
                return Err(Error::NotATrigger);
            }
            let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
            let event = (*data).tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
            let tuple = match event {
                pg_sys::TRIGGER_EVENT_INSERT => (*data).tg_trigtuple,
                pg_sys::TRIGGER_EVENT_UPDATE => (*data).tg_newtuple,
                _ => return Err(Error::NotATrigger),
            };
            if (*data).tg_event & pg_sys::TRIGGER_EVENT_ROW == 0
                || (*data).tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK
                    != pg_sys::TRIGGER_EVENT_BEFORE
            {
                return Err(Error::NotATrigger);
            }
            Ok(Self { data, tuple, changes: Vec::new() })
        }
    }

    pub fn table(&self) -> Oid {
        // SAFETY: see new().
        unsafe { (*(*self.data).tg_relation).rd_id }
    }

    pub fn table_owner(&self) -> Oid {
        // SAFETY: see new(); an open relation has its pg_class row.
        unsafe { (*(*(*self.data).tg_relation).rd_rel).relowner }
    }

    /// The first argument given in CREATE TRIGGER.
    pub fn argument(&self) -> String {
        // SAFETY: see new(); tg_trigger lists tgnargs C strings.
        unsafe {
            let trigger = (*self.data).tg_trigger;
            if (*trigger).tgnargs < 1 {
                return String::new();
            }
            CStr::from_ptr(*(*trigger).tgargs).to_string_lossy().into_owned()
        }
    }

    fn column(&self, name: &CStr) -> Result<i32, Error> {
        // SAFETY: see new(); the descriptor belongs to the open relation.
        let n = unsafe { pg_sys::SPI_fnumber((*(*self.data).tg_relation).rd_att, name.as_ptr()) };
        if n > 0 { Ok(n) } else { Err(Error::NotInstalled) }
    }

    fn read<T: FromDatum>(
        &self,
        tuple: pg_sys::HeapTuple,
        name: &CStr,
    ) -> Result<Option<T>, Error> {
        let n = self.column(name)?;
        let mut is_null = false;
        // SAFETY: n is a column of this tuple's descriptor, and T the type the column was made with.
        unsafe {
            let desc = (*(*self.data).tg_relation).rd_att;
            let datum = pg_sys::SPI_getbinval(tuple, desc, n, &mut is_null);
            Ok(T::from_datum(datum, is_null))
        }
    }

    pub fn get<T: FromDatum>(&self, name: &CStr) -> Result<Option<T>, Error> {
        self.read(self.tuple, name)
    }

    /// The value before an UPDATE.
    pub fn old<T: FromDatum>(&self, name: &CStr) -> Result<Option<T>, Error> {
        // SAFETY: see new(); for an UPDATE tg_trigtuple is the old row.
        self.read(unsafe { (*self.data).tg_trigtuple }, name)
    }

    pub fn set<T: IntoDatum>(&mut self, name: &CStr, value: T) -> Result<(), Error> {
        let n = self.column(name)?;
        self.changes.push((n, value.into_datum()));
        Ok(())
    }

    /// The row to go on with, as the trigger manager takes it.
    pub fn finish(self) -> Datum {
        if self.changes.is_empty() {
            return Datum::from(self.tuple);
        }
        let mut columns: Vec<i32> = self.changes.iter().map(|(n, _)| *n).collect();
        let mut values: Vec<Datum> =
            self.changes.iter().map(|(_, value)| value.unwrap_or(Datum::from(0))).collect();
        let mut nulls: Vec<bool> = self.changes.iter().map(|(_, value)| value.is_none()).collect();
        // SAFETY: the three arrays are of one length and name columns of this descriptor.
        let tuple = unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.tuple,
                (*(*self.data).tg_relation).rd_att,
                columns.len() as i32,
                columns.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            )
        };
        Datum::from(tuple)
    }
}

c_function!(
    /// Moves `updated_at` forward, never back.
    touch_updated_at, pg_finfo_touch_updated_at, touch
);

fn touch(fcinfo: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::new(fcinfo)?;
    // SAFETY: a trigger runs inside a transaction.
    let mut latest = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
    for known in [row.old::<i64>(c"updated_at")?, row.get::<i64>(c"updated_at")?] {
        latest = latest.max(known.unwrap_or(latest));
    }
    row.set(c"updated_at", latest)?;
    Ok(row.finish())
}

c_function!(
    /// Refuses the update, in the words that CREATE TRIGGER gives.
    refuse_change, pg_finfo_refuse_change, refuse
);

fn refuse(fcinfo: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    Err(Error::Refused(TriggerRow::new(fcinfo)?.argument()))
}
