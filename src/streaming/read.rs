//! Following a stream, and the text of a message at any time.

use std::ptr::addr_of_mut;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{IntoDatum, Uuid};

use super::chunks::{Chunks, View};
use super::message::Message;
use super::text::assemble;
use super::{lock, rights};
use crate::access::Level;
use crate::error::Error;
use crate::function::{argument, c_function};
use crate::lookup::{self, by_id};
use crate::view::now;

c_function!(
    /// The text of a message at any time.
    reconstruct_message,
    pg_finfo_reconstruct_message,
    reconstruct
);

fn reconstruct(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_read_text()?;
    // SAFETY: declared as (uuid).
    let id: Option<Uuid> = unsafe { argument(call, 0) };
    let text = match id.map(visible).transpose()?.flatten() {
        Some(message) => text_of(&message)?,
        None => None,
    };
    if text.is_none() {
        // SAFETY: a valid call.
        unsafe { (*call).isnull = true };
    }
    Ok(text.unwrap_or(Datum::from(0)))
}

fn visible(id: Uuid) -> Result<Option<Message>, Error> {
    match Message::find(id)? {
        Some(message) if message.allows(Level::Read)? => Ok(Some(message)),
        _ => Ok(None),
    }
}

/// The chunks say it until the message has ended, and after that where a client has ended it by an
/// UPDATE of its status alone.
fn text_of(message: &Message) -> Result<Option<Datum>, Error> {
    if message.is_open() || message.is_blank {
        let (text, prefix) = assemble(&Chunks::read()?, message.id, View::Command)?;
        if prefix.next > 0 {
            return Ok(Some(text.into_text()));
        }
    }
    stored_text(message.id)
}

fn stored_text(id: Uuid) -> Result<Option<Datum>, Error> {
    let text = lookup::find(c"messages", c"messages_pkey", &by_id(c"id", id)?, |row| {
        row.text(c"content").map(copy)
    })?;
    Ok(text.flatten())
}

/// What a reader asks for.
struct Wish {
    message: Uuid,
    after: i32,
    most: i32,
}

/// Rows of the answer.
struct Rows {
    call: FunctionCallInfo,
    count: i32,
}

impl Rows {
    fn begin(call: FunctionCallInfo) -> Self {
        // SAFETY: a call of a set-returning function, which this checks.
        unsafe { pg_sys::InitMaterializedSRF(call, 0) };
        Self { call, count: 0 }
    }

    fn put(&mut self, index: i32, text: Datum, is_final: bool, status: &str, whole: bool) {
        let mut values = [
            index.into(),
            text,
            is_final.into(),
            status.into_datum().unwrap_or(Datum::from(0)),
            whole.into(),
        ];
        let mut nulls = [false; 5];
        // SAFETY: the columns that both functions are declared with; the row is copied.
        unsafe {
            let result = (*self.call).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            pg_sys::tuplestore_putvalues(
                (*result).setResult,
                (*result).setDesc,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
        self.count += 1;
    }
}

fn empty_text() -> Datum {
    "".into_datum().unwrap_or(Datum::from(0))
}

/// Puts what follows the reader's index, as the running command sees it.
fn put_rows(rows: &mut Rows, wish: &Wish) -> Result<(), Error> {
    let message = visible(wish.message)?.ok_or(Error::NoSuchMessage(wish.message))?;
    let status = message.status.name();
    let has_ended = !message.is_open();
    let chunks = Chunks::read()?;
    let last = chunks.last(wish.message, View::Command).map(|last| last.index);
    let seen_last = last.is_some_and(|last| last >= wish.after) || wish.after < 0 && !has_ended;
    if !seen_last {
        // The chunks are gone, or he has seen some that a crash has taken: he gets all of it.
        let text = text_of(&message)?.unwrap_or_else(empty_text);
        rows.put(last.unwrap_or(-1), text, has_ended, status, true);
        return Ok(());
    }
    let mut next = wish.after.saturating_add(1).max(0);
    let mut scan = chunks.from(wish.message, next, View::Command);
    while rows.count < wish.most
        && let Some(chunk) = scan.next()
        && chunk.index == next
    {
        rows.put(next, chunk.content, has_ended && last == Some(next), status, false);
        next += 1;
        if next % 1024 == 0 {
            pgrx::check_for_interrupts!();
        }
    }
    // Nothing is left for him, or nothing before a gap that will not be filled.
    let is_through = rows.count < wish.most;
    if has_ended && is_through && (rows.count == 0 || last >= Some(next)) {
        rows.put(next - 1, empty_text(), true, status, false);
    }
    Ok(())
}

/// A copy of a stored text, which outlives its row.
fn copy(stored: Datum) -> Datum {
    // SAFETY: a text.
    unsafe { Datum::from(pg_sys::pg_detoast_datum_copy(stored.cast_mut_ptr())) }
}

c_function!(
    /// What follows an index.
    read_stream, pg_finfo_read_stream, read
);

fn read(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_read()?;
    // SAFETY: declared as (uuid, integer, integer).
    let wish = unsafe {
        Wish {
            message: argument(call, 0).ok_or(Error::Missing("message_id"))?,
            after: argument(call, 1).unwrap_or(-1),
            most: argument(call, 2).unwrap_or(i32::MAX),
        }
    };
    let mut rows = Rows::begin(call);
    put_rows(&mut rows, &wish)?;
    Ok(Datum::null())
}

c_function!(
    /// The same, as soon as there is something.
    wait_for_chunks, pg_finfo_wait_for_chunks, wait
);

/// Commits that wake nobody (of prepared transactions, or applied by replication) are found so late
/// at most; a standby has no others.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);
const LOOK_ON_STANDBY: Duration = Duration::from_millis(50);

fn wait(call: FunctionCallInfo) -> Result<Datum, Error> {
    rights::to_read()?;
    // SAFETY: declared as (uuid, integer, integer, integer).
    let (wish, timeout) = unsafe {
        let timeout = argument::<i32>(call, 2).unwrap_or(30_000);
        let wish = Wish {
            message: argument(call, 0).ok_or(Error::Missing("message_id"))?,
            after: argument(call, 1).unwrap_or(-1),
            most: argument(call, 3).unwrap_or(i32::MAX),
        };
        (wish, timeout)
    };
    let timeout = u64::try_from(timeout).map_err(|_| Error::Negative("timeout_ms"))?;
    let end = Instant::now() + Duration::from_millis(timeout);
    let mut rows = Rows::begin(call);
    now(|| put_rows(&mut rows, &wish))?;
    if rows.count > 0 {
        return Ok(Datum::null());
    }
    // SAFETY: reads shared memory.
    let on_standby = unsafe { pg_sys::RecoveryInProgress() };
    // Whoever commits from here on wakes us; what was committed before is read below.
    let _waiting = lock::Waiting::begin(wish.message);
    loop {
        // SAFETY: this backend's own latch.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        pgrx::check_for_interrupts!();
        now(|| put_rows(&mut rows, &wish))?;
        let left = end.saturating_duration_since(Instant::now());
        if rows.count > 0 || left.is_zero() {
            return Ok(Datum::null());
        }
        sleep(left.min(if on_standby { LOOK_ON_STANDBY } else { LOOK_ANYWAY }));
    }
}

fn sleep(time: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = time.as_millis().max(1) as std::ffi::c_long;
    // SAFETY: this backend's own latch.
    unsafe {
        let latch = *addr_of_mut!(pg_sys::MyLatch);
        pg_sys::WaitLatch(latch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
    }
}
