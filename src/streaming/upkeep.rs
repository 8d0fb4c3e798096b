//! What producers leave behind: streams that nobody goes on with, chunks that are not needed any
//! more, and chunks whose message is gone.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{IntoDatum, Uuid};

use super::chunks::{Chunks, View};
use super::commit::{self, News};
use super::message::{Message, Status};
use super::{lock, rights, settle};
use crate::error::Error;
use crate::function::{argument, c_function, raw_argument};
use crate::owner::{as_owner, in_their_house};
use crate::plan::{Arg, Statement, arg};
use crate::settings::with_index_scans;
use crate::trigger::TriggerRow;
use crate::view::now;

/// Streams whose last sign of life is older, the oldest first. With an id, only that one.
static STALLED: Statement = Statement {
    sql: "select pg_catalog.array_agg(s.id) from ( \
              select m.id from @extschema@.messages m \
              left join lateral ( \
                  select c.created_at from @extschema@.message_chunks c \
                  where c.message_id operator(pg_catalog.=) m.id \
                  order by c.chunk_index desc limit 1 \
              ) l on true \
              where m.status operator(pg_catalog.=) 'streaming' \
              and greatest(m.created_at, m.stream_started_at, l.created_at) operator(pg_catalog.<) \
                  (pg_catalog.clock_timestamp() operator(pg_catalog.-) $1) \
              and ($2 is null or m.id operator(pg_catalog.=) $2) \
              order by m.created_at) s",
    types: &[pg_sys::INTERVALOID, pg_sys::UUIDOID],
};

/// Whether a message ended longer ago. Who was interrupted has a day to come back.
static IS_OVER: Statement = Statement {
    sql: "select coalesce(m.completed_at, $3) operator(pg_catalog.<) \
              (pg_catalog.clock_timestamp() operator(pg_catalog.-) \
               case when m.status operator(pg_catalog.=) 'interrupted' \
                    then greatest($2, interval '1 day') else $2 end) \
          from @extschema@.messages m where m.id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID, pg_sys::INTERVALOID, pg_sys::TIMESTAMPTZOID],
};

static ANY: Statement =
    Statement { sql: "select true from @extschema@.messages limit 1", types: &[] };

/// What is locked in one call stays so until it commits.
pub const MOST_AT_ONCE: i32 = 1000;

c_function!(
    /// Marks streams without a new chunk as interrupted.
    recover_stalled_messages,
    pg_finfo_recover_stalled_messages,
    recover
);

fn recover(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_keep_house()?;
    let idle = raw_argument(call, 0).ok_or(Error::Missing("idle"))?;
    let most = most(call)?;
    Ok(Datum::from(in_their_house(|| recover_some(idle, most))?))
}

/// Marks so many at most; how many it were.
pub fn recover_some(idle: Datum, most: i32) -> Result<i32, Error> {
    let mut recovered = 0;
    // All of them are looked at, for the oldest may be in use.
    for id in stalled(idle, None)?.unwrap_or_default() {
        if recovered == most {
            break;
        }
        // Its producer may have come back before the lock was got.
        if lock::message_if_free(id)?
            && stalled(idle, Some(id))?.is_some()
            && let Some(message) = Message::find_latest(id)?
        {
            settle::interrupt(&message)?;
            recovered += 1;
        }
        pgrx::check_for_interrupts!();
    }
    Ok(recovered)
}

fn stalled(idle: Datum, id: Option<Uuid>) -> Result<Option<Vec<Uuid>>, Error> {
    let args = [Some(idle), id.and_then(IntoDatum::into_datum)];
    let found = with_index_scans(|| {
        as_owner(&[c"messages", c"message_chunks"], || {
            STALLED.run_now(&args, |row| row.get::<Vec<Uuid>>(1))
        })
    })?;
    Ok(found.flatten())
}

fn most(call: FunctionCallInfo) -> Result<i32, Error> {
    // SAFETY: both functions are declared with an integer second.
    let most: i32 = unsafe { argument(call, 1) }.ok_or(Error::Missing("max_messages"))?;
    if most < 0 { Err(Error::Negative("max_messages")) } else { Ok(most.min(MOST_AT_ONCE)) }
}

c_function!(
    /// Deletes the chunks of a finished message.
    cleanup_streaming_artifacts,
    pg_finfo_cleanup_streaming_artifacts,
    clean_up_one
);

fn clean_up_one(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_write()?;
    // SAFETY: declared as (uuid).
    let id: Uuid = unsafe { argument(call, 0) }.ok_or(Error::Missing("msg_id"))?;
    let message = Message::claim(id)?;
    Ok(Datum::from(if message.is_unfinished() { 0 } else { clean_up(&message)? }))
}

/// The caller holds the message's lock; no text is lost.
fn clean_up(message: &Message) -> Result<i32, Error> {
    if message.is_blank {
        settle::keep_text(message)?;
    }
    settle::remove_chunks(message.id)
}

c_function!(
    /// Deletes the chunks of messages that finished longer ago, and of those that are gone.
    cleanup_finished_streams,
    pg_finfo_cleanup_finished_streams,
    clean_up_many
);

fn clean_up_many(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_keep_house()?;
    let older_than = raw_argument(call, 0).ok_or(Error::Missing("older_than"))?;
    let most = most(call)?;
    let (_, removed) = in_their_house(|| clean_up_some(older_than, most))?;
    Ok(Datum::from(removed))
}

/// Takes the chunks of so many messages at most; how many messages it were, and how many chunks.
pub fn clean_up_some(older_than: Datum, most: i32) -> Result<(i32, i32), Error> {
    let (mut messages, mut removed) = (0, 0);
    let mut after = None;
    let chunks = Chunks::read()?;
    while messages < most {
        pgrx::check_for_interrupts!();
        // From message to message through the index, whatever the number of chunks between them.
        let Some(id) = now(|| Ok(chunks.next_message(after, View::Command)))? else { break };
        after = Some(id);
        let Some(message) = Message::find_latest(id)? else {
            // Nobody can add to what is not there. While a dump is loaded, chunks come before any
            // message does.
            if as_owner(&[c"messages"], || ANY.run_now(&[], |_| ()))?.is_none() {
                break;
            }
            removed += settle::remove_chunks(id)?;
            messages += 1;
            continue;
        };
        if is_over(&chunks, &message, older_than)?
            && lock::message_if_free(id)?
            // What was found before the lock was got may have changed since.
            && let Some(message) = Message::find_latest(id)?
            && is_over(&chunks, &message, older_than)?
        {
            removed += clean_up(&message)?;
            messages += 1;
        }
    }
    Ok((messages, removed))
}

/// Whether nobody needs the chunks of a message any more.
fn is_over(chunks: &Chunks, message: &Message, older_than: Datum) -> Result<bool, Error> {
    let id = message.id;
    let Some(last) = now(|| Ok(chunks.last(id, View::Command)))? else { return Ok(false) };
    if matches!(message.status, Status::Pending | Status::Streaming) {
        return Ok(false);
    }
    let args: [Arg; 3] = [arg(id), Some(older_than), Some(Datum::from(last.created))];
    let over = as_owner(&[c"messages"], || IS_OVER.run_now(&args, |row| row.get(1)))?;
    Ok(over.flatten().unwrap_or(false))
}

c_function!(
    /// Removes the chunks of a deleted message.
    remove_chunks, pg_finfo_remove_chunks, remove
);

fn remove(call: FunctionCallInfo) -> Result<Datum, Error> {
    let row = TriggerRow::deleted(call, c"messages")?;
    let id = row.get::<Uuid>(c"id")?.ok_or(Error::Missing("id"))?;
    let chunks = Chunks::read()?;
    // With the lock, a producer's next chunk waits and finds no message. One who has it now is not
    // waited for: to end the message he will want the row, which is locked here. What he has written
    // is left to the clean-up.
    if let Some(message) = Message::find_latest(id)?
        && message.is_open()
    {
        lock::message_if_free(id)?;
        commit::touch(&message, News::State);
    }
    if chunks.last(id, View::Instant).is_some() {
        settle::remove_chunks(id)?;
    }
    Ok(row.finish())
}
