//! Notices for those who LISTEN: few, with ids only, and none while nobody listens.
//!
//! A notice takes a lock of the whole server when the transaction commits, so tokens share them: the
//! reader of a notice reads once more two intervals later.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{IntoDatum, Uuid};

use super::commit::News;
use super::lock::{self, Ear};
use crate::access::{Level, has_level, is_restricted};
use crate::error::Error;
use crate::function::{argument, c_function};
use crate::lookup::{self, by_id};
use crate::plan;
use crate::settings::NOTIFY_INTERVAL;

thread_local! {
    /// When this backend last gave notice of a message, or would have if anybody had listened.
    static GIVEN: RefCell<HashMap<Uuid, Instant>> = RefCell::default();
    /// What the running transaction gives notice of.
    static GIVING: RefCell<Vec<Uuid>> = const { RefCell::new(Vec::new()) };
}

/// More streams than this at once in one backend share their memory of it.
const MOST_GIVEN: usize = 1000;

/// Gives notice in the transaction that is about to commit.
pub fn give(conversation: Uuid, message: Uuid, news: News) {
    let Ok(interval) = u64::try_from(NOTIFY_INTERVAL.get()) else { return };
    let interval = Duration::from_millis(interval);
    let is_due = |given: &Instant| given.elapsed() >= interval;
    let due = GIVEN.with_borrow(|given| given.get(&message).is_none_or(is_due));
    if !due && news == News::Chunks {
        return;
    }
    GIVING.with_borrow_mut(|giving| giving.push(message));
    if lock::has_listeners(conversation) {
        let payload = CString::new(words(message)).unwrap_or_default();
        // SAFETY: C strings, which are copied.
        unsafe { pg_sys::Async_Notify(channel(conversation).as_ptr(), payload.as_ptr()) }
    }
}

pub fn committed() {
    let giving = GIVING.take();
    if !giving.is_empty() {
        GIVEN.with_borrow_mut(|given| {
            if given.len() > MOST_GIVEN {
                given.clear();
            }
            let now = Instant::now();
            given.extend(giving.into_iter().map(|message| (message, now)));
        });
    }
    LISTENING.with_borrow_mut(Listening::committed);
}

pub fn aborted() {
    GIVING.with_borrow_mut(Vec::clear);
    LISTENING.with_borrow_mut(Listening::aborted);
}

pub fn rolled_back(part: pg_sys::SubTransactionId) {
    LISTENING.with_borrow_mut(|listening| listening.rolled_back(part));
}

fn words(id: Uuid) -> String {
    uuid::Uuid::from_bytes(*id.as_bytes()).to_string()
}

fn channel(conversation: Uuid) -> CString {
    CString::new(format!("conversation_{}", words(conversation))).unwrap_or_default()
}

thread_local! {
    static LISTENING: RefCell<Listening> = RefCell::default();
}

/// What this session listens to, as LISTEN itself sees it: from one commit to another.
#[derive(Default)]
struct Listening {
    conversations: HashSet<Uuid>,
    /// What the running transaction begins and ends, in order.
    pending: Vec<Change>,
}

struct Change {
    conversation: Uuid,
    begins: bool,
    part: pg_sys::SubTransactionId,
}

impl Listening {
    fn change(&mut self, conversation: Uuid, begins: bool) {
        // SAFETY: reads backend-local state.
        let part = unsafe { pg_sys::GetCurrentSubTransactionId() };
        self.pending.push(Change { conversation, begins, part });
    }

    /// Parts are numbered as they begin: what is in one that is rolled back has no lower number.
    fn rolled_back(&mut self, part: pg_sys::SubTransactionId) {
        let kept = self.pending.iter().position(|change| change.part >= part);
        let gone = self.pending.split_off(kept.unwrap_or(self.pending.len()));
        self.release(&gone);
    }

    fn committed(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for change in &pending {
            if change.begins {
                self.conversations.insert(change.conversation);
            } else {
                self.conversations.remove(&change.conversation);
            }
        }
        self.release(&pending);
    }

    fn aborted(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.release(&pending);
    }

    /// Gives back the locks that nothing needs any more.
    fn release(&self, changed: &[Change]) {
        let needs = |conversation| {
            self.conversations.contains(conversation)
                || self.pending.iter().any(|c| c.begins && c.conversation == *conversation)
        };
        for change in changed {
            if !needs(&change.conversation) {
                Ear::One(change.conversation).close();
            }
        }
        if !changed.is_empty() && self.conversations.is_empty() && self.pending.is_empty() {
            Ear::All.close();
        }
    }

    /// The lock for one more conversation.
    fn ear(&self, conversation: Uuid) -> Ear {
        if self.conversations.len() + self.pending.len() < lock::most_locks() {
            Ear::One(conversation)
        } else {
            Ear::All
        }
    }
}

c_function!(
    /// Begins to listen to the streams of a conversation.
    listen_conversation,
    pg_finfo_listen_conversation,
    listen
);

fn listen(call: FunctionCallInfo) -> Result<Datum, Error> {
    require_client()?;
    let conversation = subject(call)?;
    if !may_read(conversation)? {
        return Err(Error::NoSuchConversation(conversation));
    }
    let channel = channel(conversation);
    // SAFETY: a C string, which is copied.
    unsafe { pg_sys::Async_Listen(channel.as_ptr()) };
    // Before the transaction commits, for from then on notices are expected.
    LISTENING.with_borrow(|listening| listening.ear(conversation)).open();
    LISTENING.with_borrow_mut(|listening| listening.change(conversation, true));
    let channel = channel.into_string().unwrap_or_default();
    Ok(channel.into_datum().unwrap_or(Datum::from(0)))
}

/// What LISTEN and UNLISTEN ask: functions in indexes and the like must not change what the session
/// of somebody else listens to.
fn require_client() -> Result<(), Error> {
    // SAFETY: backend-local state; in recovery it raises an error.
    let is_client = unsafe {
        pg_sys::PreventCommandDuringRecovery(c"LISTEN".as_ptr());
        !pg_sys::InSecurityRestrictedOperation()
            && pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND
    };
    if is_client { Ok(()) } else { Err(Error::CannotListen) }
}

fn may_read(conversation: Uuid) -> Result<bool, Error> {
    if is_restricted(plan::our_table(c"conversations")?) {
        return has_level(conversation, Level::Read);
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
    require_client()?;
    let conversation = subject(call)?;
    // SAFETY: a C string, which is copied.
    unsafe { pg_sys::Async_Unlisten(channel(conversation).as_ptr()) };
    LISTENING.with_borrow_mut(|listening| listening.change(conversation, false));
    Ok(Datum::from(0))
}

fn subject(call: FunctionCallInfo) -> Result<Uuid, Error> {
    // SAFETY: declared as (uuid).
    unsafe { argument(call, 0) }.ok_or(Error::Missing("conversation_id"))
}
