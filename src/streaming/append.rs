//! New chunks: by function, and by plain INSERT or COPY.

use std::cell::{Cell, RefCell};

use pgrx::Uuid;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use super::chunks::{Chunks, View};
use super::commit::News;
use super::message::{Message, Status, is_restoring};
use super::text::same;
use super::write::{self, NewChunk};
use super::{commit, memory, rights, settle};
use crate::error::Error;
use crate::function::{Composite, argument, c_function, raw_argument};
use crate::owner::as_owner;
use crate::plan::{Statement, arg};
use crate::trigger::{self, TriggerRow};

// It was asked for when it was announced: its first token is here. See SETTLE about made-up times.
static START: Statement = Statement {
    sql: "update @extschema@.messages set \
              status = 'streaming', \
              stream_started_at = pg_catalog.clock_timestamp(), \
              first_token_ms = coalesce(first_token_ms, ( \
                  select pg_catalog.floor(took.s operator(pg_catalog.*) 1000)::pg_catalog.int4 \
                  from (select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) \
                      operator(pg_catalog.-) pg_catalog.date_part('epoch', created_at)) as took (s) \
                  where took.s operator(pg_catalog.>=) 0 and took.s operator(pg_catalog.<) 2000000)) \
          where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

c_function!(
    /// Adds a piece of text to a message.
    append_chunk, pg_finfo_append_chunk, append_one
);

fn append_one(call: FunctionCallInfo) -> Result<Datum, Error> {
    let content = raw_argument(call, 1).ok_or(Error::Missing("content"))?;
    append(call, &[content])
}

c_function!(
    /// Adds several pieces of text to a message.
    append_chunks, pg_finfo_append_chunks, append_many
);

fn append_many(call: FunctionCallInfo) -> Result<Datum, Error> {
    let contents = raw_argument(call, 1).ok_or(Error::Missing("contents"))?;
    // SAFETY: a text[]; its elements live as long as the argument.
    let contents = unsafe {
        let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        let array = pg_sys::pg_detoast_datum(contents.cast_mut_ptr()).cast();
        let (text, int) = (pg_sys::TEXTOID, pg_sys::TYPALIGN_INT as std::ffi::c_char);
        let (elements, nulls, count) = (&mut elements, &mut nulls, &mut count);
        pg_sys::deconstruct_array(array, text, -1, false, int, elements, nulls, count);
        if *count == 0 {
            &[]
        } else {
            let count = *count as usize;
            if std::slice::from_raw_parts(*nulls, count).contains(&true) {
                return Err(Error::Missing("contents"));
            }
            std::slice::from_raw_parts(*elements, count)
        }
    };
    append(call, contents)
}

static ANSWER: Composite<2> =
    Composite::new([(c"next_index", pg_sys::INT4OID), (c"stop_requested", pg_sys::BOOLOID)]);

/// What both functions answer.
struct Answer {
    next: i32,
    stop: bool,
}

fn append(call: FunctionCallInfo, contents: &[Datum]) -> Result<Datum, Error> {
    // SAFETY: declared as (uuid, ..., integer, boolean).
    let (message, first, is_final) =
        unsafe { (argument(call, 0), argument::<i32>(call, 2), argument(call, 3)) };
    let message: Uuid = message.ok_or(Error::Missing("message_id"))?;
    rights::to_write()?;
    let answer = commit::tokens(|| add(message, contents, first, is_final.unwrap_or(false)))?;
    Ok(ANSWER.row([answer.next.into(), answer.stop.into()]))
}

fn add(id: Uuid, contents: &[Datum], first: Option<i32>, is_final: bool) -> Result<Answer, Error> {
    let message = Message::claim(id)?;
    // An INSERT that is running may have to count on from what is added here.
    CLAIMED.set(None);
    let chunks = Chunks::open(pg_sys::RowExclusiveLock as pg_sys::LOCKMODE)?;
    let next = memory::next(id);
    if let Some(next) = next
        && first.is_none_or(|first| first == next)
        && !contents.is_empty()
        && !is_final
        && chunks.from(id, next, View::Instant).next().is_none()
    {
        return go_on(&message, &chunks, &Window::place(id, contents, next, false)?);
    }
    let last = chunks.last_near(id, first.or(next).unwrap_or(0), View::Instant);
    let end = last.as_ref().map_or(0, |last| last.index + 1);
    if message.status == Status::Stopped {
        return Ok(Answer { next: end, stop: true });
    }
    let window = Window::place(id, contents, first.unwrap_or(end), is_final)?;
    if !message.is_open() && (first.is_none() || window.end > end || contents.is_empty()) {
        return Err(message.not_streaming());
    }
    if window.start > end {
        return Err(Error::OutOfOrder { message: id, got: window.start, expected: end });
    }
    let is_ended = last.is_some_and(|last| last.is_final);
    if window.end > end && is_ended || is_final && window.end < end {
        return Err(Error::NotTheLast { message: id, last: end - 1 });
    }
    let new = window.without_known(&chunks, end)?;
    if !message.is_open() {
        return if new.is_empty() {
            Ok(Answer { next: end, stop: false })
        } else {
            Err(message.not_streaming())
        };
    }
    if !new.is_empty() {
        start(&message)?;
    }
    write::insert(&chunks, id, &new)?;
    if is_final || is_ended {
        settle::complete(&message, &chunks, is_final)?;
    } else if !new.is_empty() {
        commit::touch(&message, News::Chunks);
    }
    let next = end.max(window.end);
    if !is_final && !is_ended {
        memory::keep_next(id, next);
    }
    Ok(Answer { next, stop: false })
}

/// Adds a window at the end that this backend remembers, where nothing has come since.
fn go_on(message: &Message, chunks: &Chunks, window: &Window) -> Result<Answer, Error> {
    write::insert(chunks, message.id, &window.chunks())?;
    memory::keep_next(message.id, window.end);
    commit::touch(message, News::Chunks);
    Ok(Answer { next: window.end, stop: false })
}

/// The first chunk of a message that was only announced makes it a stream.
fn start(message: &Message) -> Result<(), Error> {
    if message.status != Status::Streaming {
        as_owner(&[c"messages"], || START.run_now(&[arg(message.id)], |_| ()))?;
    }
    Ok(())
}

/// Pieces of text and the places they are meant for.
struct Window<'a> {
    message: Uuid,
    contents: &'a [Datum],
    start: i32,
    /// The index after the last of them.
    end: i32,
    is_final: bool,
}

impl<'a> Window<'a> {
    fn place(
        message: Uuid,
        contents: &'a [Datum],
        start: i32,
        is_final: bool,
    ) -> Result<Self, Error> {
        let end = i32::try_from(contents.len()).ok().and_then(|count| start.checked_add(count));
        match end {
            Some(end) if start >= 0 => Ok(Self { message, contents, start, end, is_final }),
            _ => Err(Error::BadIndex(start)),
        }
    }

    fn chunks(&self) -> Vec<NewChunk> {
        let chunk = |(n, content): (usize, &Datum)| {
            let index = self.start + n as i32;
            NewChunk { index, content: *content, is_final: self.is_final && index + 1 == self.end }
        };
        self.contents.iter().enumerate().map(chunk).collect()
    }

    /// What is not there yet; what is there must be the same. `end` is the index after the last
    /// chunk of the message.
    fn without_known(&self, chunks: &Chunks, end: i32) -> Result<Vec<NewChunk>, Error> {
        let pieces = self.chunks();
        if self.start >= end {
            return Ok(pieces);
        }
        let mut scan = chunks.from(self.message, self.start, View::Instant);
        let mut known = scan.next();
        let mut new = Vec::new();
        for piece in pieces {
            match &known {
                Some(chunk) if chunk.index == piece.index => {
                    if !same(chunk.content, piece.content) {
                        let (message, index) = (self.message, piece.index);
                        return Err(Error::ChunkDiffers { message, index });
                    }
                    known = scan.next();
                }
                _ => new.push(piece),
            }
        }
        Ok(new)
    }
}

/// What the rows of one INSERT statement share.
#[derive(Clone, Copy)]
struct Insertion {
    command: (pg_sys::CommandId, pg_sys::SubTransactionId),
    message: Message,
    /// The last chunk so far.
    last: Option<(i32, bool)>,
}

thread_local! {
    static CLAIMED: Cell<Option<Insertion>> = const { Cell::new(None) };
    /// Messages that may be whole once the running statement is through.
    static ENDING: RefCell<Vec<Uuid>> = const { RefCell::new(Vec::new()) };
}

/// When a part of a transaction is rolled back: a claim may have gone with it. A message in `ENDING`
/// without its final chunk does no harm.
pub fn forget_claim() {
    CLAIMED.set(None);
}

/// At the end of a transaction.
pub fn forget() {
    CLAIMED.set(None);
    ENDING.with_borrow_mut(Vec::clear);
}

fn command() -> (pg_sys::CommandId, pg_sys::SubTransactionId) {
    // SAFETY: reads backend-local state.
    unsafe { (pg_sys::GetCurrentCommandId(false), pg_sys::GetCurrentSubTransactionId()) }
}

c_function!(
    /// Refuses chunks of messages that do not exist or are finished; numbers those without an index.
    place_chunk, pg_finfo_place_chunk, place
);

fn place(call: FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::of(call, c"message_chunks")?;
    let id = row.get::<Uuid>(c"message_id")?.ok_or(Error::Missing("message_id"))?;
    if write::is_checked(id) || is_restoring(row.table()) {
        return Ok(row.finish());
    }
    let known = CLAIMED.get().filter(|known| known.command == command() && known.message.id == id);
    let chunks = Chunks::read()?;
    let mut statement = match known {
        Some(known) => known,
        None => {
            let message = Message::claim(id)?;
            let last = chunks.last(id, View::Instant).map(|last| (last.index, last.is_final));
            Insertion { command: command(), message, last }
        }
    };
    let message = statement.message;
    let end = statement.last.map_or(0, |(index, _)| index + 1);
    let index = row.get::<i32>(c"chunk_index")?.unwrap_or(end);
    if index < 0 || index == i32::MAX {
        return Err(Error::BadIndex(index));
    }
    if !message.is_open() {
        // What is sent again is left to the primary key, or to ON CONFLICT.
        let content = row.text(c"chunk_content")?;
        let chunk = chunks.from(id, index, View::Instant).next();
        let is_known = chunk
            .zip(content)
            .is_some_and(|(chunk, content)| chunk.index == index && same(chunk.content, content));
        return if is_known { Ok(row.finish()) } else { Err(message.not_streaming()) };
    }
    let is_final = row.get::<bool>(c"is_final")?.unwrap_or(false);
    let is_ended = statement.last.is_some_and(|(_, is_final)| is_final);
    if is_ended && index >= end || is_final && index + 1 < end {
        return Err(Error::NotTheLast { message: id, last: end - 1 });
    }
    if known.is_none() {
        start(&message)?;
        commit::touch(&message, News::Chunks);
    }
    if is_final || is_ended {
        ENDING.with_borrow_mut(|ending| {
            if ending.last() != Some(&id) {
                ending.push(id);
            }
        });
    }
    row.set(c"chunk_index", index)?;
    if index >= end {
        statement.last = Some((index, is_final));
    }
    // Starting the stream was a command of its own.
    statement.command = command();
    CLAIMED.set(Some(statement));
    Ok(row.finish())
}

c_function!(
    /// Completes messages whose final chunk and all before it are there.
    complete_streams,
    pg_finfo_complete_streams,
    complete
);

fn complete(call: FunctionCallInfo) -> Result<Datum, Error> {
    trigger::inserted(call, c"message_chunks")?;
    let ending = ENDING.take();
    if !ending.is_empty() {
        let chunks = Chunks::read()?;
        for id in ending {
            // One that is gone or has ended meanwhile needs nothing.
            if let Some(message) = Message::find_latest(id)?
                && message.is_open()
            {
                settle::complete(&message, &chunks, false)?;
            }
        }
    }
    Ok(Datum::null())
}
