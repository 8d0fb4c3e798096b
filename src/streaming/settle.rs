//! The end of a stream: its chunks become the text of the message, once.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{IntoDatum, Uuid};

use super::chunks::{Chunks, Prefix, View};
use super::commit::{self, News};
use super::message::{Message, Status};
use super::text::{Builder, assemble};
use super::{lock, rights};
use crate::error::Error;
use crate::function::{argument, c_function, raw_argument};
use crate::limits;
use crate::owner::as_owner;
use crate::plan::{Arg, Statement, arg};
use crate::settings::with_index_scans;
use crate::usage;

static SETTLE: Statement = Statement {
    sql: "update @extschema@.messages set \
              status = $2::@extschema@.message_status, \
              content = coalesce($3, content), \
              error = coalesce($4, error), \
              prompt_token_count = coalesce($5, prompt_token_count), \
              completion_token_count = coalesce($6, completion_token_count), \
              model_used = coalesce($7, model_used), \
              latency_ms = coalesce($8, latency_ms), \
              metadata = metadata operator(pg_catalog.||) coalesce($9, '{}'), \
              completed_at = case when $2 operator(pg_catalog.<>) 'interrupted' \
                             then pg_catalog.clock_timestamp() end \
          where id operator(pg_catalog.=) $1",
    types: &[
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::INT4OID,
        pg_sys::INT4OID,
        pg_sys::TEXTOID,
        pg_sys::INT4OID,
        pg_sys::JSONBOID,
    ],
};

/// Whether figures agree with those that are noted, and whether they add to them.
static COMPARE: Statement = Statement {
    sql: "select coalesce(prompt_token_count operator(pg_catalog.=) $2, true) \
              and coalesce(completion_token_count operator(pg_catalog.=) $3, true) \
              and coalesce(model_used operator(pg_catalog.=) $4, true) \
              and coalesce(latency_ms operator(pg_catalog.=) $5, true) \
              and (metadata operator(pg_catalog.||) coalesce($6, '{}')) \
                  operator(pg_catalog.=) (coalesce($6, '{}') operator(pg_catalog.||) metadata), \
              (prompt_token_count is null and $2 is not null) \
              or (completion_token_count is null and $3 is not null) \
              or (model_used is null and $4 is not null) \
              or (latency_ms is null and $5 is not null) \
              or not metadata operator(pg_catalog.@>) coalesce($6, '{}') \
          from @extschema@.messages where id operator(pg_catalog.=) $1",
    types: FIGURES,
};

static FILL_IN: Statement = Statement {
    sql: "update @extschema@.messages set \
              prompt_token_count = coalesce(prompt_token_count, $2), \
              completion_token_count = coalesce(completion_token_count, $3), \
              model_used = coalesce(model_used, $4), \
              latency_ms = coalesce(latency_ms, $5), \
              metadata = coalesce($6, '{}') operator(pg_catalog.||) metadata \
          where id operator(pg_catalog.=) $1",
    types: FIGURES,
};

const FIGURES: &[pg_sys::Oid] = &[
    pg_sys::UUIDOID,
    pg_sys::INT4OID,
    pg_sys::INT4OID,
    pg_sys::TEXTOID,
    pg_sys::INT4OID,
    pg_sys::JSONBOID,
];

static ERROR_OF: Statement = Statement {
    sql: "select coalesce(error operator(pg_catalog.=) $2, false) from @extschema@.messages \
          where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID, pg_sys::TEXTOID],
};

static REMOVE: Statement = Statement {
    sql: "with gone as ( \
              delete from @extschema@.message_chunks where message_id operator(pg_catalog.=) $1 \
              returning 1) \
          select pg_catalog.count(*)::integer from gone",
    types: &[pg_sys::UUIDOID],
};

static RESUME: Statement = Statement {
    sql: "update @extschema@.messages set status = 'streaming', content = '', \
              stream_started_at = pg_catalog.clock_timestamp(), completed_at = null \
          where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

/// Longest text that a message takes.
const MOST_BYTES: usize = 32 << 20;

/// What is noted of a message when it ends; null leaves what is there.
#[derive(Default)]
struct Figures {
    prompt_tokens: Arg,
    completion_tokens: Arg,
    model: Arg,
    latency: Arg,
    metadata: Arg,
}

impl Figures {
    fn has_tokens(&self) -> bool {
        self.prompt_tokens.is_some() || self.completion_tokens.is_some()
    }
}

/// Removes all chunks of a message; how many there were.
pub fn remove_chunks(id: Uuid) -> Result<i32, Error> {
    let removed = with_index_scans(|| {
        as_owner(&[c"message_chunks"], || REMOVE.run_now(&[arg(id)], |row| row.get(1)))
    })?;
    Ok(removed.flatten().unwrap_or(0))
}

/// Locks a message that somebody wants to end, who may write in it. The row is locked, too: whoever
/// adds to more messages than he may hold locks of has locked it instead.
fn claim(call: FunctionCallInfo) -> Result<Message, Error> {
    // SAFETY: all are declared with the message first.
    let id: Uuid = unsafe { argument(call, 0) }.ok_or(Error::Missing("message_id"))?;
    Message::claim(id)?;
    lock::row(id)?;
    Message::find_latest(id)?.ok_or(Error::NoSuchMessage(id))
}

/// Writes the end of a stream, which is on disk when the transaction has committed.
fn settle(
    message: &Message,
    status: Status,
    text: Option<Builder>,
    error: Arg,
    figures: &Figures,
) -> Result<(), Error> {
    let args = [
        arg(message.id),
        arg(status.name()),
        text.map(Builder::into_text),
        error,
        figures.prompt_tokens,
        figures.completion_tokens,
        figures.model,
        figures.latency,
        figures.metadata,
    ];
    as_owner(&[c"messages"], || SETTLE.run_now(&args, |_| ()))?;
    if let Some(text) = args[2] {
        // SAFETY: put together for this; many may be settled in one call.
        unsafe { pg_sys::pfree(text.cast_mut_ptr()) };
    }
    // SAFETY: marks the running transaction.
    unsafe { pg_sys::ForceSyncCommit() };
    commit::touch(message, News::State);
    Ok(())
}

/// The text so far; `None` where there are no chunks, and what the message has is its text.
fn text_so_far(chunks: &Chunks, message: &Message) -> Result<Option<Builder>, Error> {
    let (mut text, prefix) = assemble(chunks, message.id, View::Instant)?;
    let length = up_to(text.bytes(), MOST_BYTES);
    text.truncate(length);
    Ok((prefix.next > 0).then_some(text))
}

/// At most so many bytes, and whole characters.
fn up_to(text: &[u8], most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    (0..=most).rev().find(|n| text[*n] & 0xC0 != 0x80).unwrap_or(0)
}

/// Completes a message whose final chunk is there, or that is told to be whole, unless a chunk is
/// missing.
pub fn complete(message: &Message, chunks: &Chunks, is_whole: bool) -> Result<(), Error> {
    let (text, prefix) = assemble(chunks, message.id, View::Instant)?;
    if behind_gap(chunks, message, &prefix).is_some() || !(prefix.is_final || is_whole) {
        commit::touch(message, News::Chunks);
        return Ok(());
    }
    settle_whole(message, text, &prefix, &Figures::default())
}

/// The last chunk, if there is none where the text so far ends.
fn behind_gap(chunks: &Chunks, message: &Message, prefix: &Prefix) -> Option<i32> {
    let last = chunks.last(message.id, View::Instant)?.index;
    (last >= prefix.next).then_some(last)
}

/// Completes a message of which nothing is missing.
fn settle_whole(
    message: &Message,
    text: Builder,
    prefix: &Prefix,
    figures: &Figures,
) -> Result<(), Error> {
    if text.bytes().len() > MOST_BYTES {
        return Err(Error::TextTooLarge);
    }
    let text = (prefix.next > 0).then_some(text);
    settle(message, Status::Completed, text, None, figures)
}

c_function!(
    /// Completes a streamed message and notes its figures.
    finish_message, pg_finfo_finish_message, finish
);

fn finish(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_write()?;
    let figures = Figures {
        prompt_tokens: raw_argument(call, 1),
        completion_tokens: raw_argument(call, 2),
        model: raw_argument(call, 3),
        latency: raw_argument(call, 4),
        metadata: raw_argument(call, 5),
    };
    let message = claim(call)?;
    if message.is_unfinished() {
        let chunks = Chunks::read()?;
        let (text, prefix) = assemble(&chunks, message.id, View::Instant)?;
        if let Some(got) = behind_gap(&chunks, &message, &prefix) {
            let (message, expected) = (message.id, prefix.next);
            return Err(Error::OutOfOrder { message, got, expected });
        }
        settle_whole(&message, text, &prefix, &figures)?;
    } else if message.status == Status::Failed || !message.was_streamed {
        return Err(message.not_streaming());
    } else {
        fill_in(&message, &figures)?;
    }
    if figures.has_tokens() {
        usage::record_message(message.id)?;
        limits::settle_message(message.id)?;
    }
    Ok(Datum::null())
}

/// Notes figures of a message that has ended already: each is written once.
fn fill_in(message: &Message, figures: &Figures) -> Result<(), Error> {
    let args = [
        arg(message.id),
        figures.prompt_tokens,
        figures.completion_tokens,
        figures.model,
        figures.latency,
        figures.metadata,
    ];
    as_owner(&[c"messages"], || {
        let found =
            COMPARE.run_now(&args, |row| (row.get(1) == Some(true), row.get(2) == Some(true)));
        let (agree, add) = found?.unwrap_or((false, false));
        if !agree {
            return Err(Error::FiguresDiffer(message.id));
        }
        if add {
            FILL_IN.run_now(&args, |_| ())?;
        }
        Ok(())
    })
}

c_function!(
    /// Ends a streamed message that went wrong.
    fail_message, pg_finfo_fail_message, fail
);

fn fail(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_write()?;
    let error = raw_argument(call, 1).ok_or(Error::Missing("error"))?;
    let message = claim(call)?;
    if message.is_unfinished() {
        let text = text_so_far(&Chunks::read()?, &message)?;
        settle(&message, Status::Failed, text, Some(error), &Figures::default())?;
        limits::release_message(message.id)?;
        return Ok(Datum::null());
    }
    let is_again = message.status == Status::Failed
        && as_owner(&[c"messages"], || {
            ERROR_OF.run_now(&[arg(message.id), Some(error)], |row| row.get(1) == Some(true))
        })? == Some(true);
    if is_again { Ok(Datum::null()) } else { Err(message.not_streaming()) }
}

c_function!(
    /// Ends a streamed message for its reader.
    stop_message, pg_finfo_stop_message, stop
);

fn stop(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_stop()?;
    // SAFETY: declared as (uuid, integer).
    let seen: Option<i32> = unsafe { argument(call, 1) };
    let seen = seen.map(usize::try_from).transpose().map_err(|_| Error::Negative("seen_chars"))?;
    let message = claim(call)?;
    if message.status == Status::Stopped {
        return Ok(Datum::null());
    }
    if !message.is_unfinished() {
        return Err(message.not_streaming());
    }
    let mut text = text_so_far(&Chunks::read()?, &message)?;
    let mut is_cut = false;
    if let (Some(text), Some(seen)) = (&mut text, seen) {
        let length = bytes_of(text.bytes(), seen);
        is_cut = length < text.bytes().len();
        text.truncate(length);
    }
    settle(&message, Status::Stopped, text, None, &Figures::default())?;
    if is_cut {
        // They hold more than the text does now; readers get it whole.
        remove_chunks(message.id)?;
    }
    Ok(Datum::null())
}

/// The length of so many characters.
fn bytes_of(text: &[u8], characters: usize) -> usize {
    let starts = text.iter().enumerate().filter(|(_, byte)| **byte & 0xC0 != 0x80);
    starts.map(|(n, _)| n).nth(characters).unwrap_or(text.len())
}

c_function!(
    /// Takes up a streamed message again.
    resume_message, pg_finfo_resume_message, resume
);

fn resume(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_write()?;
    let message = claim(call)?;
    if !message.is_unfinished() {
        return Err(message.not_streaming());
    }
    let prefix = Chunks::read()?.prefix(message.id, View::Instant, |_| {})?;
    if message.status == Status::Interrupted {
        if prefix.next == 0 && !message.is_blank {
            return Err(Error::ChunksGone(message.id));
        }
        as_owner(&[c"messages"], || RESUME.run_now(&[arg(message.id)], |_| ()))?;
        commit::touch(&message, News::State);
    }
    Ok(prefix.next.into_datum().unwrap_or(Datum::from(0)))
}

/// Marks a stream that nobody goes on with, and keeps its text. The caller holds its lock.
pub fn interrupt(message: &Message) -> Result<(), Error> {
    let text = text_so_far(&Chunks::read()?, message)?;
    settle(message, Status::Interrupted, text, None, &Figures::default())
}

/// Puts the text of a message together that a client has ended by an UPDATE of its status alone.
pub fn keep_text(message: &Message) -> Result<(), Error> {
    let text = text_so_far(&Chunks::read()?, message)?;
    settle(message, message.status, text, None, &Figures::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "aé€😀z".as_bytes();
        let cases = [(0, 0), (1, 1), (2, 3), (3, 6), (4, 10), (5, 11), (6, 11), (usize::MAX, 11)];
        for (characters, bytes) in cases {
            assert_eq!(bytes_of(text, characters), bytes, "{characters} characters");
        }
        let cases = [(0, 0), (1, 1), (2, 1), (3, 3), (5, 3), (9, 6), (10, 10), (11, 11), (99, 11)];
        for (most, bytes) in cases {
            assert_eq!(up_to(text, most), bytes, "{most} bytes");
        }
    }
}
