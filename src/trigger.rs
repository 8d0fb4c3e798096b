//! Row triggers without copies: read the columns that matter, write back those that changed.

use std::ffi::CStr;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{FromDatum, IntoDatum};

use crate::access::is_restricted;
use crate::error::Error;
use crate::function::c_function;
use crate::plan::{self, Row};

/// The row a BEFORE trigger was fired for.
pub struct TriggerRow {
    data: *mut pg_sys::TriggerData,
    row: Row,
    changes: Vec<(i32, Option<Datum>)>,
}

impl TriggerRow {
    /// The new row of an INSERT or UPDATE.
    pub fn new(call: pg_sys::FunctionCallInfo) -> Result<Self, Error> {
        // SAFETY: the context of a call by the trigger manager is a TriggerData that lives as long
        // as the call.
        unsafe {
            if !pgrx::trigger_support::called_as_trigger(call) {
                return Err(Error::NotATrigger);
            }
            let data = (*call).context.cast::<pg_sys::TriggerData>();
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
            let desc = (*(*data).tg_relation).rd_att;
            Ok(Self { data, row: Row { tuple, desc }, changes: Vec::new() })
        }
    }

    /// The same, for a trigger that works with the rights of the table's owner and so for our
    /// table only, whatever other table somebody puts it on.
    pub fn of(call: pg_sys::FunctionCallInfo, table: &CStr) -> Result<Self, Error> {
        let row = Self::new(call)?;
        if row.table() == plan::our_table(table)? { Ok(row) } else { Err(Error::NotATrigger) }
    }

    /// The row that a DELETE is about to take away.
    pub fn deleted(call: pg_sys::FunctionCallInfo, table: &CStr) -> Result<Self, Error> {
        Self::without_changes(call, pg_sys::TRIGGER_EVENT_DELETE, table)
    }

    fn without_changes(
        call: pg_sys::FunctionCallInfo,
        event: u32,
        table: &CStr,
    ) -> Result<Self, Error> {
        let data = data_of(call, event, table)?;
        // SAFETY: see data_of(); this is a trigger for each row.
        unsafe {
            if (*data).tg_event & pg_sys::TRIGGER_EVENT_ROW == 0 {
                return Err(Error::NotATrigger);
            }
            let row = Row { tuple: (*data).tg_trigtuple, desc: (*(*data).tg_relation).rd_att };
            Ok(Self { data, row, changes: Vec::new() })
        }
    }

    /// The row that an INSERT has added.
    pub fn inserted(call: pg_sys::FunctionCallInfo, table: &CStr) -> Result<Self, Error> {
        Self::without_changes(call, pg_sys::TRIGGER_EVENT_INSERT, table)
    }

    pub fn table(&self) -> Oid {
        // SAFETY: see new().
        unsafe { (*(*self.data).tg_relation).rd_id }
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

    fn read<T: FromDatum + IntoDatum>(row: Row, name: &CStr) -> Result<Option<T>, Error> {
        let n = Self::column::<T>(row, name)?;
        Ok(row.get(n))
    }

    fn column<T: IntoDatum>(row: Row, name: &CStr) -> Result<i32, Error> {
        let n = row.column(name).ok_or(Error::NotInstalled)?;
        // SAFETY: n is a column of this descriptor.
        let found = unsafe { pg_sys::SPI_gettypeid(row.desc, n) };
        if found == T::type_oid() {
            Ok(n)
        } else {
            Err(Error::ColumnChanged(name.to_string_lossy().into_owned()))
        }
    }

    /// A value of a text column as it is stored.
    pub fn text(&self, name: &CStr) -> Result<Option<Datum>, Error> {
        Ok(self.row.raw(Self::column::<&str>(self.row, name)?))
    }

    pub fn get<T: FromDatum + IntoDatum>(&self, name: &CStr) -> Result<Option<T>, Error> {
        Self::read(self.row, name)
    }

    /// The value before an UPDATE.
    pub fn old<T: FromDatum + IntoDatum>(&self, name: &CStr) -> Result<Option<T>, Error> {
        Self::read(self.old_row(), name)
    }

    /// The same as it is stored, in a column of the type that `T` stands for.
    pub fn old_raw<T: IntoDatum>(&self, name: &CStr) -> Result<Option<Datum>, Error> {
        Ok(self.old_row().raw(Self::column::<T>(self.row, name)?))
    }

    fn old_row(&self) -> Row {
        // SAFETY: see new(); for an UPDATE tg_trigtuple is the old row.
        let tuple = unsafe { (*self.data).tg_trigtuple };
        Row { tuple, ..self.row }
    }

    pub fn set<T: IntoDatum>(&mut self, name: &CStr, value: T) -> Result<(), Error> {
        let n = Self::column::<T>(self.row, name)?;
        self.changes.push((n, value.into_datum()));
        Ok(())
    }

    /// The row to go on with, as the trigger manager takes it.
    pub fn finish(self) -> Datum {
        if self.changes.is_empty() {
            return Datum::from(self.row.tuple);
        }
        let mut columns: Vec<i32> = self.changes.iter().map(|(n, _)| *n).collect();
        let mut values: Vec<Datum> =
            self.changes.iter().map(|(_, value)| value.unwrap_or(Datum::from(0))).collect();
        let mut nulls: Vec<bool> = self.changes.iter().map(|(_, value)| value.is_none()).collect();
        // SAFETY: the three arrays are of one length and name columns of this descriptor.
        let tuple = unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.row.tuple,
                self.row.desc,
                columns.len() as i32,
                columns.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            )
        };
        Datum::from(tuple)
    }
}

/// The call of a trigger for this event on a table of ours.
fn data_of(
    call: pg_sys::FunctionCallInfo,
    event: u32,
    table: &CStr,
) -> Result<*mut pg_sys::TriggerData, Error> {
    // SAFETY: the context of a call by the trigger manager is a TriggerData.
    unsafe {
        if !pgrx::trigger_support::called_as_trigger(call) {
            return Err(Error::NotATrigger);
        }
        let data = (*call).context.cast::<pg_sys::TriggerData>();
        let is_ours = (*(*data).tg_relation).rd_id == plan::our_table(table)?;
        if is_ours && (*data).tg_event & pg_sys::TRIGGER_EVENT_OPMASK == event {
            Ok(data)
        } else {
            Err(Error::NotATrigger)
        }
    }
}

/// Makes sure that a trigger was called for an INSERT statement on a table of ours.
pub fn inserted(call: pg_sys::FunctionCallInfo, table: &CStr) -> Result<(), Error> {
    data_of(call, pg_sys::TRIGGER_EVENT_INSERT, table).map(|_| ())
}

/// What a statement has done to rows of a table of ours, as a trigger after it hears.
pub struct Changed {
    data: *mut pg_sys::TriggerData,
    pub event: Event,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Changed {
    pub fn of(call: pg_sys::FunctionCallInfo, table: &CStr) -> Result<Self, Error> {
        let events = [
            (pg_sys::TRIGGER_EVENT_INSERT, Event::Insert),
            (pg_sys::TRIGGER_EVENT_UPDATE, Event::Update),
            (pg_sys::TRIGGER_EVENT_DELETE, Event::Delete),
            (pg_sys::TRIGGER_EVENT_TRUNCATE, Event::Truncate),
        ];
        // SAFETY: the context of a call by the trigger manager is a TriggerData.
        unsafe {
            if !pgrx::trigger_support::called_as_trigger(call) {
                return Err(Error::NotATrigger);
            }
            let data = (*call).context.cast::<pg_sys::TriggerData>();
            let fired = (*data).tg_event;
            let kind = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_TIMINGMASK;
            let event = fired & pg_sys::TRIGGER_EVENT_OPMASK;
            let event = events.iter().find(|(of, _)| *of == event).map(|(_, event)| *event);
            match event {
                // A trigger after the statement has neither bit.
                Some(event)
                    if fired & kind == 0
                        && (*(*data).tg_relation).rd_id == plan::our_table(table)? =>
                {
                    let changed = Self { data, event };
                    if changed.has_tables() { Ok(changed) } else { Err(Error::NotATrigger) }
                }
                _ => Err(Error::NotATrigger),
            }
        }
    }

    pub fn data(&self) -> *mut pg_sys::TriggerData {
        self.data
    }

    pub fn table(&self) -> Oid {
        // SAFETY: see of().
        unsafe { (*(*self.data).tg_relation).rd_id }
    }

    /// Whether no row was changed at all.
    pub fn is_empty(&self) -> bool {
        // SAFETY: see of(); where a row was changed one of the tables has it.
        let count = |table: *mut pg_sys::Tuplestorestate| unsafe {
            if table.is_null() { 0 } else { pg_sys::tuplestore_tuple_count(table) }
        };
        // SAFETY: see of().
        let (old, new) = unsafe { ((*self.data).tg_oldtable, (*self.data).tg_newtable) };
        self.event != Event::Truncate && count(old) == 0 && count(new) == 0
    }

    /// Whether the trigger was made with the names that statements over its rows go by.
    fn has_tables(&self) -> bool {
        // SAFETY: see of(); names are C strings, or null.
        let is = |name: *mut std::ffi::c_char, wanted: &CStr| unsafe {
            !name.is_null() && CStr::from_ptr(name) == wanted
        };
        // SAFETY: see of().
        let trigger = unsafe { &*(*self.data).tg_trigger };
        let (old, new) = (is(trigger.tgoldtable, c"old_rows"), is(trigger.tgnewtable, c"new_rows"));
        match self.event {
            Event::Insert => new,
            Event::Update => old && new,
            Event::Delete => old,
            Event::Truncate => true,
        }
    }
}

/// When the transaction began, as `now()` says it.
pub fn now() -> Option<TimestampWithTimeZone> {
    // SAFETY: a trigger runs inside a transaction.
    let start = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
    TimestampWithTimeZone::try_from(start).ok()
}

c_function!(
    /// Moves `updated_at` forward, never back.
    touch_updated_at, pg_finfo_touch_updated_at, touch
);

fn touch(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::new(call)?;
    let mut latest = now();
    for known in [row.old(c"updated_at")?, row.get(c"updated_at")?] {
        latest = latest.max(known);
    }
    row.set(c"updated_at", latest)?;
    Ok(row.finish())
}

c_function!(
    /// Refuses the update, in the words that CREATE TRIGGER gives.
    refuse_change, pg_finfo_refuse_change, refuse
);

fn refuse(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    Err(Error::Refused(TriggerRow::new(call)?.argument()))
}

c_function!(
    /// Refuses the update to those whom row level security binds, whatever was granted to them.
    refuse_to_members,
    pg_finfo_refuse_to_members,
    refuse_if_restricted
);

fn refuse_if_restricted(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let row = TriggerRow::new(call)?;
    if is_restricted(row.table()) {
        return Err(Error::NotForMembers(row.argument()));
    }
    Ok(row.finish())
}
