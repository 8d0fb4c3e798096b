//! Notices for those who LISTEN: few, with ids only, and none while nobody listens.
//!
//! A notice takes a lock of the whole server when the transaction commits, so tokens share them: the
//! reader of a notice reads once more when the interval is over.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{IntoDatum, Uuid};

use super::lock;
use super::message::table;
use crate::access::{Level, is_restricted, level_in};
use crate::error::Error;
use crate::function::{argument, c_function};
use crate::identity::person;
use crate::lookup::{self, by_id};
use crate::settings::NOTIFY_INTERVAL;

thread_local! {
    /// When this backend last gave notice of a message.
    static GIVEN: RefCell<HashMap<Uuid, Instant>> = RefCell::default();
}

/// More streams than this at once in one backend share their memory of it.
const MOST_GIVEN: usize = 1000;

/// Tells of new chunks.
pub fn of_chunks(conversation: Uuid, message: Uuid) {
    let Ok(interval) = u64::try_from(NOTIFY_INTERVAL.get()) else { return };
    let interval = Duration::from_millis(interval);
    if !lock::has_listeners(conversation) {
        return;
    }
    let now = Instant::now();
    let due = GIVEN.with_borrow_mut(|given| {
        if given.len() > MOST_GIVEN {
            given.retain(|_, at| now.duration_since(*at) < interval);
        }
        let due = given.get(&message).is_none_or(|at| now.duration_since(*at) >= interval);
        if due {
            given.insert(message, now);
        }
        due
    });
    if due {
        give(conversation, message);
    }
}

/// Tells at once that a message began or ended.
pub fn of_state(conversation: Uuid, message: Uuid) {
    GIVEN.with_borrow_mut(|given| given.remove(&message));
    if NOTIFY_INTERVAL.get() >= 0 && lock::has_listeners(conversation) {
        give(conversation, message);
    }
}

fn give(conversation: Uuid, message: Uuid) {
    let payload = CString::new(words(message)).unwrap_or_default();
    // SAFETY: C strings, which are copied.
    unsafe { pg_sys::Async_Notify(channel(conversation).as_ptr(), payload.as_ptr()) }
}

fn words(id: Uuid) -> String {
    uuid::Uuid::from_bytes(*id.as_bytes()).to_string()
}

fn channel(conversation: Uuid) -> CString {
    CString::new(format!("conversation_{}", words(conversation))).unwrap_or_default()
}

c_function!(
    /// Begins to listen to the streams of a conversation.
    listen_conversation,
    pg_finfo_listen_conversation,
    listen
);

fn listen(call: FunctionCallInfo) -> Result<Datum, Error> {
    let conversation = subject(call)?;
    if !may_read(conversation)? {
        return Err(Error::NoSuchConversation(conversation));
    }
    let channel = channel(conversation);
    lock::listen(conversation);
    // SAFETY: a C string, which is copied.
    unsafe { pg_sys::Async_Listen(channel.as_ptr().cast::<c_char>()) };
    let channel = channel.into_string().unwrap_or_default();
    Ok(channel.into_datum().unwrap_or(Datum::from(0)))
}

fn may_read(conversation: Uuid) -> Result<bool, Error> {
    if is_restricted(table(c"conversations")?) {
        let Some(person) = person()? else { return Ok(false) };
        return Ok(level_in(conversation, &person)? >= Level::Read);
    }
    let keys = by_id(c"id", conversation)?;
    Ok(lookup::find(c"conversations", c"conversations_pkey", &keys, |_| ())?.is_some())
}

c_function!(
    /// Ends what `listen_conversation` began.
    unlisten_conversation,
    pg_finfo_unlisten_conversation,
    unlisten
);

fn unlisten(call: FunctionCallInfo) -> Result<Datum, Error> {
    let conversation = subject(call)?;
    lock::unlisten(conversation);
    // SAFETY: a C string, which is copied.
    unsafe { pg_sys::Async_Unlisten(channel(conversation).as_ptr()) };
    Ok(Datum::from(0))
}

fn subject(call: FunctionCallInfo) -> Result<Uuid, Error> {
    // SAFETY: declared as (uuid).
    unsafe { argument(call, 0) }.ok_or(Error::Missing("conversation_id"))
}
