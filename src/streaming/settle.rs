//! The end of a stream: its chunks become the text of the message, once.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{FromDatum, IntoDatum, Uuid};

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
use crate::usage::{self, Noted};

// The first token counts once, whatever comes of the stream afterwards. One that is resumed before it had any
// begins anew.
// Times that a client has made up, infinite ones among them, give none rather than an error.
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
              first_token_ms = coalesce(first_token_ms, ( \
                  select pg_catalog.floor(took.s operator(pg_catalog.*) 1000)::pg_catalog.int4 \
                  from (select pg_catalog.date_part('epoch', $10) operator(pg_catalog.-) \
                      pg_catalog.date_part('epoch', coalesce(stream_started_at, created_at))) as took (s) \
                  where took.s operator(pg_catalog.>=) 0 and took.s operator(pg_catalog.<) 2000000)), \
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
        pg_sys::TIMESTAMPTZOID,
    ],
};

/// Whether figures agree with those that are noted, whether they add to them, and whether tokens and model
/// were not known.
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
              or not metadata operator(pg_catalog.@>) coalesce($6, '{}'), \
              prompt_token_count is null, completion_token_count is null, model_used is null \
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

    /// What is billed is for those to say whom the DBA trusts with it.
    fn require_trust(&self) -> Result<(), Error> {
        if (self.has_tokens() || self.model.is_some()) && !rights::may_note_figures()? {
            return Err(Error::NotForMembers("figures are for the service to note".into()));
        }
        Ok(())
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
    so_far: SoFar,
    error: Arg,
    figures: &Figures,
) -> Result<(), Error> {
    let args = [
        arg(message.id),
        arg(status.name()),
        so_far.text.map(Builder::into_text),
        error,
        figures.prompt_tokens,
        figures.completion_tokens,
        figures.model,
        figures.latency,
        figures.metadata,
        so_far.first_at.map(Datum::from),
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

/// What has been streamed.
struct SoFar {
    /// `None` where there are no chunks, and what the message has is its text.
    text: Option<Builder>,
    /// When its first chunk was written.
    first_at: Option<i64>,
}

impl SoFar {
    fn new(text: Builder, prefix: &Prefix) -> Self {
        Self { text: (prefix.next > 0).then_some(text), first_at: prefix.first_at }
    }
}

/// The text so far, as much of it as a message takes.
fn text_so_far(chunks: &Chunks, message: &Message) -> Result<SoFar, Error> {
    let (mut text, prefix) = assemble(chunks, message.id, View::Instant)?;
    let length = up_to(text.bytes(), MOST_BYTES);
    text.truncate(length);
    Ok(SoFar::new(text, &prefix))
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
    settle(message, Status::Completed, SoFar::new(text, prefix), None, figures)
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
    figures.require_trust()?;
    let message = claim(call)?;
    let noted = if message.is_unfinished() {
        let chunks = Chunks::read()?;
        let (text, prefix) = assemble(&chunks, message.id, View::Instant)?;
        if let Some(got) = behind_gap(&chunks, &message, &prefix) {
            let (message, expected) = (message.id, prefix.next);
            return Err(Error::OutOfOrder { message, got, expected });
        }
        settle_whole(&message, text, &prefix, &figures)?;
        // SAFETY: declared as integers.
        let (prompt_tokens, completion_tokens) = unsafe { (argument(call, 1), argument(call, 2)) };
        let model = figures.model.is_some();
        Noted { prompt_tokens, completion_tokens, model, is_end: true }
    } else if message.status == Status::Failed || !message.was_streamed {
        return Err(message.not_streaming());
    } else {
        fill_in(&message, &figures)?
    };
    usage::record_message(message.id, noted)?;
    if figures.has_tokens() {
        limits::settle_message(message.id)?;
    }
    Ok(Datum::null())
}

/// Notes figures of a message that has ended already: each is written once.
fn fill_in(message: &Message, figures: &Figures) -> Result<Noted, Error> {
    let args = [
        arg(message.id),
        figures.prompt_tokens,
        figures.completion_tokens,
        figures.model,
        figures.latency,
        figures.metadata,
    ];
    as_owner(&[c"messages"], || {
        let found = COMPARE.run_now(&args, |row| {
            let is_true = |n| row.get(n) == Some(true);
            // SAFETY: integers.
            let tokens = |n, arg: Arg| {
                arg.filter(|_| is_true(n)).and_then(|arg| unsafe { i32::from_datum(arg, false) })
            };
            let noted = Noted {
                prompt_tokens: tokens(3, figures.prompt_tokens),
                completion_tokens: tokens(4, figures.completion_tokens),
                model: figures.model.is_some() && is_true(5),
                is_end: false,
            };
            (is_true(1), is_true(2), noted)
        });
        let (agree, add, noted) = found?.unwrap_or_default();
        if !agree {
            return Err(Error::FiguresDiffer(message.id));
        }
        if add {
            FILL_IN.run_now(&args, |_| ())?;
        }
        Ok(noted)
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
        let so_far = text_so_far(&Chunks::read()?, &message)?;
        settle(&message, Status::Failed, so_far, Some(error), &Figures::default())?;
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
    let mut so_far = text_so_far(&Chunks::read()?, &message)?;
    let mut is_cut = false;
    if let (Some(text), Some(seen)) = (&mut so_far.text, seen) {
        let length = bytes_of(text.bytes(), seen);
        is_cut = length < text.bytes().len();
        text.truncate(length);
    }
    settle(&message, Status::Stopped, so_far, None, &Figures::default())?;
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
    let so_far = text_so_far(&Chunks::read()?, message)?;
    settle(message, Status::Interrupted, so_far, None, &Figures::default())
}

/// Puts the text of a message together that a client has ended by an UPDATE of its status alone.
pub fn keep_text(message: &Message) -> Result<(), Error> {
    let so_far = text_so_far(&Chunks::read()?, message)?;
    settle(message, message.status, so_far, None, &Figures::default())
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
