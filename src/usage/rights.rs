//! What a role must have been granted: functions keep the sums, so they ask for what an event would.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use crate::access::{is_restricted, require_privilege};
use crate::error::Error;
use crate::function::c_function;
use crate::owner;
use crate::plan;
use crate::trigger;

const EVENTS: &CStr = c"usage_events";

thread_local! {
    /// The last role that was found to be allowed to record.
    static RECORDER: Cell<Option<(u64, Oid)>> = const { Cell::new(None) };
}

/// To record, correct and fold. `function` is what a transaction hears that may not write.
pub fn to_record(function: &CStr) -> Result<(), Error> {
    // SAFETY: raises an error where nothing may be written.
    unsafe { pg_sys::PreventCommandIfReadOnly(function.as_ptr()) };
    to_see_costs()
}

/// The same for what writes nothing.
pub fn to_see_costs() -> Result<(), Error> {
    // SAFETY: reads backend-local state.
    let asked = Some((plan::generation(), unsafe { pg_sys::GetUserId() }));
    if RECORDER.get() != asked {
        let columns =
            [c"tenant_id", c"user_id", c"model", c"usage", c"idempotency_key", c"occurred_at"];
        require_privilege(EVENTS, pg_sys::ACL_INSERT, &columns)?;
        require_unrestricted()?;
        RECORDER.set(asked);
    }
    Ok(())
}

/// To compare all sums with the ledger.
pub fn to_verify() -> Result<(), Error> {
    for table in [EVENTS, c"usage_days", c"usage_totals", c"usage_months"] {
        require_privilege(table, pg_sys::ACL_SELECT, &[])?;
    }
    require_unrestricted()
}

fn require_unrestricted() -> Result<(), Error> {
    if is_restricted(plan::our_table(EVENTS)?) {
        return Err(Error::NotForMembers("usage is recorded by the service".into()));
    }
    Ok(())
}

/// The name of the role that calls.
pub fn caller() -> String {
    // SAFETY: a palloc'd C string, copied at once; null for a role that was dropped meanwhile.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetUserId(), true);
        if name.is_null() {
            return String::new();
        }
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

c_function!(
    /// Refuses events that do not come by a function, which would be in no sum.
    refuse_event, pg_finfo_refuse_event, refuse
);

fn refuse(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum, Error> {
    trigger::inserted(call, EVENTS)?;
    match owner::for_caller() {
        Ok(_) => Ok(pg_sys::Datum::null()),
        Err(Error::NotOwner) => {
            Err(Error::NotForMembers("events are recorded by record_usage".into()))
        }
        Err(other) => Err(other),
    }
}
