//! Edits of messages: who may, and what was there before.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{JsonB, Uuid};

use crate::access::Level;
use crate::error::Error;
use crate::function::{argument, c_function, raw_argument};
use crate::identity;
use crate::owner::as_owner;
use crate::plan::{Statement, arg};
use crate::streaming::{Message, remove_chunks};
use crate::trigger::{self, TriggerRow};

static KEEP: Statement = Statement {
    sql: "insert into @extschema@.message_revisions \
              (message_id, revision, tenant_id, content, parts, edited_by) \
          select $1, 1 operator(pg_catalog.+) coalesce(pg_catalog.max(revision), 0), $2, $3, $4, $5 \
          from @extschema@.message_revisions where message_id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::JSONBOID, pg_sys::UUIDOID],
};

/// Runs with the caller's rights: a policy says whose messages these are.
static EDIT: Statement = Statement {
    sql: "update @extschema@.messages set content = $2, parts = coalesce($3, parts) \
          where id operator(pg_catalog.=) $1 \
          and status operator(pg_catalog.<>) 'pending' and status operator(pg_catalog.<>) 'streaming' \
          and status operator(pg_catalog.<>) 'interrupted' \
          returning true",
    types: &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::JSONBOID],
};

c_function!(
    /// Keeps what an edit replaces. The row is locked, so its edits are counted one after another.
    keep_revision, pg_finfo_keep_revision, keep
);

fn keep(call: FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::of(call, c"messages")?;
    let id = row.old::<Uuid>(c"id")?.ok_or(Error::Missing("id"))?;
    let tenant = row.old::<Uuid>(c"tenant_id")?;
    let editor = identity::person()?.filter(|person| Some(person.tenant) == tenant);
    let args = [
        arg(id),
        tenant.and_then(arg),
        row.old_raw::<&str>(c"content")?,
        row.old_raw::<JsonB>(c"parts")?,
        editor.and_then(|person| arg(person.id)),
    ];
    as_owner(&[c"message_revisions"], || KEEP.run(&args, |_| ()))?;
    // Readers of a stream that has just ended would go on reading what was taken back.
    remove_chunks(id)?;
    row.set(c"edited_at", trigger::now())?;
    Ok(row.finish())
}

c_function!(
    /// Replaces the content of a message that the caller may edit.
    edit_message, pg_finfo_edit_message, edit
);

fn edit(call: FunctionCallInfo) -> Result<Datum, Error> {
    // SAFETY: declared as (uuid, text, jsonb).
    let id: Uuid = unsafe { argument(call, 0) }.ok_or(Error::Missing("message_id"))?;
    let content = raw_argument(call, 1).ok_or(Error::Missing("content"))?;
    let args = [arg(id), Some(content), raw_argument(call, 2)];
    if EDIT.run(&args, |_| ())?.is_none() {
        // It may have changed while this waited for its row.
        let message = Message::find_latest(id)?.ok_or(Error::NoSuchMessage(id))?;
        if !message.allows(Level::Read)? {
            return Err(Error::NoSuchMessage(id));
        }
        if message.may_go_on() {
            return Err(Error::StillWritten(id));
        }
        // Its stream may have ended just now.
        EDIT.run(&args, |_| ())?.ok_or(Error::NotYours(id))?;
    }
    Ok(Datum::from(0))
}
