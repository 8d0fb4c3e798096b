//! The beginning of a stream.

use pgrx::IntoDatum;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use super::commit::{self, News};
use super::rights;
use crate::error::Error;
use crate::function::{argument, c_function, raw_argument};
use crate::messages::{AddOnce, known_role};
use crate::plan::Statement;

static BEGIN: AddOnce = AddOnce {
    add: Statement {
        sql: "insert into @extschema@.messages \
              (conversation_id, role, status, parent_id, model_used, metadata) \
              values ($1, $2::@extschema@.message_role, 'streaming', $3, $4, coalesce($5, '{}')) \
              returning id, sequence_number",
        types: WITH_KEY.split_at(5).0,
    },
    add_once: Statement {
        sql: "insert into @extschema@.messages \
              (conversation_id, role, status, parent_id, model_used, metadata, client_message_id) \
              values ($1, $2::@extschema@.message_role, 'streaming', $3, $4, coalesce($5, '{}'), $6) \
              on conflict (conversation_id, client_message_id) where client_message_id is not null \
              do nothing \
              returning id, sequence_number",
        types: WITH_KEY,
    },
    // What finishing may have changed since is not compared. One that was never a stream is no retry.
    find: Statement {
        sql: "select id, sequence_number, \
              role operator(pg_catalog.=) $2::@extschema@.message_role \
              and coalesce(parent_id operator(pg_catalog.=) $3, parent_id is null and $3 is null) \
              and ($4 is null or model_used is not null) \
              and (status operator(pg_catalog.<>) 'completed' or completed_at is not null) \
              and metadata operator(pg_catalog.@>) coalesce($5, '{}') \
              from @extschema@.messages \
              where conversation_id operator(pg_catalog.=) $1 \
              and client_message_id operator(pg_catalog.=) $6",
        types: WITH_KEY,
    },
};

const WITH_KEY: &[pg_sys::Oid] = &[
    pg_sys::UUIDOID,
    pg_sys::TEXTOID,
    pg_sys::UUIDOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTOID,
];

c_function!(
    /// Begins a streamed message; with a retry key, once.
    begin_message, pg_finfo_begin_message, begin
);

fn begin(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_write()?;
    let raw = |n| raw_argument(call, n);
    let (conversation, role, parent, key, model, metadata) =
        (raw(0), raw(1), raw(2), raw(3), raw(4), raw(5));
    // SAFETY: declared with the conversation first.
    let of = unsafe { argument(call, 0) }.ok_or(Error::Missing("conversation_id"))?;
    known_role(role)?;
    let begun = BEGIN.run(&[conversation, role, parent, model, metadata, key])?;
    if begun.created {
        commit::tell(of, begun.id, News::State);
    }
    Ok(begun.id.into_datum().unwrap_or(Datum::from(0)))
}
