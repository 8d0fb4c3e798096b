//! What a role must have been granted to reserve and settle. Members do neither: begin_message and
//! finish_message do it for them.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::access::{is_restricted, require_privilege};
use crate::error::Error;
use crate::plan;

/// `function` is what a transaction hears that may not write.
pub fn to_reserve(function: &CStr) -> Result<(), Error> {
    // SAFETY: raises an error where nothing may be written.
    unsafe { pg_sys::PreventCommandIfReadOnly(function.as_ptr()) };
    require_privilege(c"token_reservations", pg_sys::ACL_INSERT, &[c"id"])?;
    if is_restricted(plan::our_table(c"token_reservations")?) {
        return Err(Error::NotForMembers("tokens are reserved by the service".into()));
    }
    Ok(())
}
