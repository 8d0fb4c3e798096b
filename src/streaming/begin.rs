//! The beginning of a stream.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{IntoDatum, Uuid};

use super::commit::{self, News};
use super::rights;
use crate::access::{Level, has_level, is_restricted};
use crate::error::Error;
use crate::function::{argument, c_function, raw_argument};
use crate::limits::Quota;
use crate::lookup::{self, by_id};
use crate::messages::{AddOnce, Added, known_role};
use crate::owner::as_owner;
use crate::plan::{self, Arg, Statement, arg};
use crate::view::{latest, now};

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

static WAS_BEGUN: Statement = Statement {
    sql: "select true from @extschema@.messages \
          where conversation_id operator(pg_catalog.=) $1 \
          and client_message_id operator(pg_catalog.=) $2",
    types: &[pg_sys::UUIDOID, pg_sys::TEXTOID],
};

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
    let args = [conversation, role, parent, model, metadata, key];
    // SAFETY: declared as bigint.
    let begun = match unsafe { argument(call, 6) } {
        None => BEGIN.run(&args)?,
        Some(tokens) => begin_within_quota(of, key, &args, tokens)?,
    };
    if begun.created {
        commit::tell(of, begun.id, News::State);
    }
    Ok(begun.id.into_datum().unwrap_or(Datum::from(0)))
}

/// Tokens are reserved before the conversation is locked: a transaction that has reserved may go on
/// to write in it.
fn begin_within_quota(
    conversation: Uuid,
    key: Arg,
    args: &[Arg],
    tokens: i64,
) -> Result<Added, Error> {
    if tokens < 0 {
        return Err(Error::Negative("reserve_tokens"));
    }
    let refused = Err(Error::NoSuchConversation(conversation));
    // A stranger must hear nothing about the tenant.
    if is_restricted(plan::our_table(c"messages")?)
        && !latest(|| has_level(conversation, Level::Write))?
    {
        return refused;
    }
    let keys = by_id(c"id", conversation)?;
    let tenant = now(|| {
        lookup::find(c"conversations", c"conversations_pkey", &keys, |row| row.named(c"tenant_id"))
    })?;
    let Some(tenant) = tenant.flatten() else { return refused };
    let quota = match Quota::for_message(tenant, tokens) {
        // The first call has reserved what this one lacks.
        Err(Error::NoTokensLeft { .. }) if was_begun(conversation, key)? => None,
        decided => Some(decided?),
    };
    let begun = BEGIN.run(args)?;
    if begun.created {
        match quota {
            Some(quota) => quota.reserve_for_message(begun.id, conversation)?,
            // It was deleted in between.
            None => {
                Quota::for_message(tenant, tokens)?.reserve_for_message(begun.id, conversation)?
            }
        }
    }
    Ok(begun)
}

/// Whether there is a message of this retry key by now.
fn was_begun(conversation: Uuid, key: Arg) -> Result<bool, Error> {
    if key.is_none() {
        return Ok(false);
    }
    let args = [arg(conversation), key];
    let found = as_owner(&[c"messages"], || WAS_BEGUN.run_now(&args, |_| ()))?;
    Ok(found.is_some())
}
