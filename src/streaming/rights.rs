//! What a role must have been granted: functions that go straight to the tables ask for what a
//! statement would ask for. Which rows somebody may have is asked of the message.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use crate::access::{is_restricted, require_privilege};
use crate::error::Error;
use crate::identity;
use crate::plan;

/// To add to a message or to end it.
pub fn to_write() -> Result<(), Error> {
    refuse_if_read_only();
    // SAFETY: reads backend-local state.
    let asked = Some((plan::generation(), unsafe { pg_sys::GetUserId() }));
    if WRITER.get() != asked {
        let columns = [c"message_id", c"chunk_index", c"is_final", c"chunk_content"];
        require_privilege(c"message_chunks", pg_sys::ACL_INSERT, &columns)?;
        WRITER.set(asked);
    }
    Ok(())
}

fn refuse_if_read_only() {
    // SAFETY: raises an error where nothing may be written.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"a stream".as_ptr()) };
}

/// Whether the caller is believed what he says of tokens and models.
pub fn may_note_figures() -> Result<bool, Error> {
    Ok(!is_restricted(plan::our_table(c"messages")?) || identity::lets_members_note_figures()?)
}

/// To stop what one reads.
pub fn to_stop() -> Result<(), Error> {
    refuse_if_read_only();
    to_read_text()
}

/// To follow a stream.
pub fn to_read() -> Result<(), Error> {
    require_privilege(c"message_chunks", pg_sys::ACL_SELECT, &[c"chunk_index", c"chunk_content"])?;
    to_read_text()
}

pub fn to_read_text() -> Result<(), Error> {
    require_privilege(c"messages", pg_sys::ACL_SELECT, &[c"status", c"content"])
}

/// To clean up and recover, for which every message must be seen.
pub fn to_keep_house() -> Result<(), Error> {
    refuse_if_read_only();
    require_privilege(c"message_chunks", pg_sys::ACL_DELETE, &[])?;
    if is_restricted(plan::our_table(c"message_chunks")?) {
        return Err(Error::NotForMembers("this is work for the service".into()));
    }
    Ok(())
}

const OF_MESSAGES: [&CStr; 3] = [c"messages_read", c"messages_insert", c"messages_update"];

thread_local! {
    /// The last role that was found to be allowed to write; any change of grants or roles changes the
    /// generation. A role with privileges on columns would be asked for each of them in every call.
    static WRITER: Cell<Option<(u64, Oid)>> = const { Cell::new(None) };
    static MESSAGES: Cell<Option<(u64, Oid, bool)>> = const { Cell::new(None) };
}

/// Whether the DBA has put policies of his own on messages.
pub fn has_other_policies(messages: Oid) -> Result<bool, Error> {
    if let Some((generation, table, others)) = MESSAGES.get()
        && (generation, table) == (plan::generation(), messages)
    {
        return Ok(others);
    }
    let relation = plan::open(messages)?;
    // SAFETY: open and locked.
    let others = unsafe {
        let others = !has_policies_only(relation, &OF_MESSAGES);
        pg_sys::table_close(relation, plan::READ_LOCK);
        others
    };
    MESSAGES.set(Some((plan::generation(), messages, others)));
    Ok(others)
}

/// Whether all policies of a table are among these.
///
/// # Safety
///
/// The relation must be open.
pub unsafe fn has_policies_only(relation: pg_sys::Relation, known: &[&CStr]) -> bool {
    unsafe {
        let policies = (*relation).rd_rsdesc;
        if policies.is_null() || (*policies).policies.is_null() {
            return true;
        }
        let list = &*(*policies).policies;
        (0..list.length as usize).all(|n| {
            let policy = (*list.elements.add(n)).ptr_value.cast::<pg_sys::RowSecurityPolicy>();
            known.contains(&CStr::from_ptr((*policy).policy_name))
        })
    }
}
