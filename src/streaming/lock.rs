//! Locks of messages, and locks that only say who is there.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use pgrx::Uuid;
use pgrx::pg_sys::{self, LOCKMODE, LOCKTAG};

use crate::error::Error;
use crate::lock::{EXCLUSIVE, Kind, tag};
use crate::owner::as_owner;
use crate::plan::{Statement, arg};

const ROW_EXCLUSIVE: LOCKMODE = pg_sys::RowExclusiveLock as LOCKMODE;
const SHARE: LOCKMODE = pg_sys::ShareLock as LOCKMODE;

/// The lock table of a server has room for so many locks a transaction. One that writes to more
/// messages than half of that locks the rows of the rest.
pub fn most_locks() -> usize {
    // SAFETY: a setting that never changes.
    let most = unsafe { pg_sys::max_locks_per_xact };
    usize::try_from(most / 2).unwrap_or_default()
}

static LOCK_ROW: Statement = Statement {
    sql: "select true from @extschema@.messages where id operator(pg_catalog.=) $1 \
          for no key update",
    types: &[pg_sys::UUIDOID],
};

static LOCK_ROW_IF_FREE: Statement = Statement {
    sql: "select true from @extschema@.messages where id operator(pg_catalog.=) $1 \
          for no key update skip locked",
    types: &[pg_sys::UUIDOID],
};

thread_local! {
    /// Locks of messages taken in this transaction.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    /// Messages whose rows it has locked instead, and in which part of it.
    static ROWS: RefCell<HashMap<Uuid, pg_sys::SubTransactionId>> = RefCell::default();
}

/// At the end of a transaction.
pub fn forget() {
    TAKEN.set(0);
    ROWS.with_borrow_mut(HashMap::clear);
}

/// When a part of it is rolled back, for locks of rows go with it. Parts are numbered as they begin.
pub fn rolled_back(part: pg_sys::SubTransactionId) {
    ROWS.with_borrow_mut(|rows| rows.retain(|_, of| *of < part));
}

/// Waits until nobody else writes to the message, and tells whether it had to.
pub fn message(id: Uuid) -> Result<bool, Error> {
    if TAKEN.get() < most_locks() {
        let is_free = take(id, true);
        if !is_free {
            take(id, false);
        }
        return Ok(!is_free);
    }
    // To ask for it again would be to wait for those who wait for the row.
    if ROWS.with_borrow(|rows| rows.contains_key(&id)) {
        return Ok(false);
    }
    take(id, false);
    row(id)?;
    give_back(id);
    // SAFETY: reads backend-local state.
    let part = unsafe { pg_sys::GetCurrentSubTransactionId() };
    ROWS.with_borrow_mut(|rows| rows.insert(id, part));
    Ok(true)
}

/// From here on the row says that the message is in use. What was taken before, too, stays taken.
fn give_back(id: Uuid) {
    // SAFETY: taken by the caller.
    unsafe { pg_sys::LockRelease(&tag(Kind::Message, id), EXCLUSIVE, false) };
    TAKEN.set(most_locks());
}

/// Waits for those who have locked the message's row, and does so, too.
pub fn row(id: Uuid) -> Result<(), Error> {
    as_owner(&[c"messages"], || LOCK_ROW.run_now(&[arg(id)], |_| ())).map(|_| ())
}

/// The same without waiting: whether nobody else writes to the message.
pub fn message_if_free(id: Uuid) -> Result<bool, Error> {
    let has_room = TAKEN.get() < most_locks();
    if !take(id, true) {
        return Ok(false);
    }
    if has_room {
        return Ok(true);
    }
    let locked =
        as_owner(&[c"messages"], || LOCK_ROW_IF_FREE.run_now(&[arg(id)], |_| ()))?.is_some();
    give_back(id);
    Ok(locked)
}

fn take(id: Uuid, dont_wait: bool) -> bool {
    // SAFETY: a valid tag; the lock ends with the transaction.
    let answer =
        unsafe { pg_sys::LockAcquire(&tag(Kind::Message, id), EXCLUSIVE, false, dont_wait) };
    if answer == pg_sys::LockAcquireResult::LOCKACQUIRE_OK {
        TAKEN.set(TAKEN.get() + 1);
    }
    answer != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Says, as long as it lives, that somebody waits for chunks of a message.
pub struct Waiting(LOCKTAG);

impl Waiting {
    pub fn begin(message: Uuid) -> Self {
        let tag = tag(Kind::Waiter, message);
        // SAFETY: nobody takes this lock but shared, so it is free. An ERROR releases it.
        unsafe { pg_sys::LockAcquire(&tag, SHARE, false, false) };
        Self(tag)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: taken in begin().
            unsafe { pg_sys::LockRelease(&self.0, SHARE, false) };
        }
    }
}

/// Wakes those who wait for chunks of a message. They must be able to see the news by now.
pub fn wake(message: Uuid) {
    let tag = tag(Kind::Waiter, message);
    // SAFETY: reads the lock table under its own locks; the array is ours to free. Its entries name
    // processes that may be gone by now, which the look-up tells. A process slot never goes away:
    // should it have a new tenant, he looks around and goes on sleeping.
    unsafe {
        let mut count = 0;
        let found = pg_sys::GetLockConflicts(&tag, EXCLUSIVE, &mut count);
        for n in 0..count.max(0) as usize {
            let process = process(*found.add(n));
            if !process.is_null() {
                pg_sys::SetLatch(&mut (*process).procLatch);
            }
        }
        pg_sys::pfree(found.cast());
    }
}

/// What a session listens to: a conversation, or so many that one lock stands for all of them.
#[derive(Clone, Copy)]
pub enum Ear {
    One(Uuid),
    All,
}

impl Ear {
    fn tag(self) -> LOCKTAG {
        match self {
            Ear::One(conversation) => tag(Kind::Listener, conversation),
            Ear::All => tag(Kind::Listener, Uuid::from_bytes([0; 16])),
        }
    }

    /// Held to the end of the session, or until it discards what it holds.
    pub fn open(self) {
        let tag = self.tag();
        if !is_listening(&tag) {
            // SAFETY: writers hold it for moments only.
            unsafe { pg_sys::LockAcquire(&tag, SHARE, true, false) };
        }
    }

    pub fn close(self) {
        let tag = self.tag();
        if is_listening(&tag) {
            // SAFETY: it is held; what is not would raise a warning.
            unsafe { pg_sys::LockRelease(&tag, SHARE, true) };
        }
    }

    /// Whether a session has it open.
    fn is_open(self) -> bool {
        let tag = self.tag();
        // SAFETY: does not wait, and gives back at once what it gets. Writers do not see each
        // other: the mode goes with itself, not with that of listeners.
        unsafe {
            let answer = pg_sys::LockAcquire(&tag, ROW_EXCLUSIVE, false, true);
            if answer == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
                return true;
            }
            pg_sys::LockRelease(&tag, ROW_EXCLUSIVE, false);
        }
        is_listening(&tag)
    }
}

pub fn has_listeners(conversation: Uuid) -> bool {
    Ear::One(conversation).is_open() || Ear::All.is_open()
}

fn is_listening(tag: &LOCKTAG) -> bool {
    // SAFETY: reads what this backend holds.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        return pg_sys::LockHeldByMe(tag, SHARE);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        return pg_sys::LockHeldByMe(tag, SHARE, false);
    }
}

unsafe fn process(of: pg_sys::VirtualTransactionId) -> *mut pg_sys::PGPROC {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    return unsafe { pg_sys::BackendIdGetProc(of.backendId) };
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    return unsafe { pg_sys::ProcNumberGetProc(of.procNumber) };
}
