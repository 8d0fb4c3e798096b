//! What the end of a transaction means for streams: tokens commit asynchronously, and those who wait
//! for them are woken once they can see them.

use std::cell::{Cell, RefCell};

use pgrx::Uuid;
use pgrx::pg_guard;
use pgrx::pg_sys::{self, XLogRecPtr};

use super::message::Message;
use super::{append, lock, memory, notice};
use crate::settings::{CHUNK_COMMIT, ChunkCommit};

thread_local! {
    static NEWS: RefCell<Vec<Item>> = const { RefCell::new(Vec::new()) };
    static TOKENS: Cell<Tokens> = const { Cell::new(Tokens::NONE) };
    static SYNCHRONOUS_COMMIT: Cell<Option<i32>> = const { Cell::new(None) };
}

/// What readers of a message will see once the transaction has committed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum News {
    Chunks,
    /// It began, ended, or was taken up again.
    State,
}

#[derive(Clone, Copy)]
struct Item {
    conversation: Uuid,
    message: Uuid,
    news: News,
}

/// What a transaction has written so far.
#[derive(Clone, Copy)]
struct Tokens {
    /// Whether it is nothing but tokens.
    only: bool,
    /// End of the last record of them.
    end: XLogRecPtr,
}

impl Tokens {
    const NONE: Self = Self { only: true, end: 0 };
}

/// End of the last record that this transaction wrote, 0 if it wrote none.
fn written() -> XLogRecPtr {
    // SAFETY: reads backend-local state.
    unsafe { pg_sys::XactLastRecEnd }
}

/// Runs `work`, which writes tokens and what goes with them.
pub fn tokens<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let before = TOKENS.get();
    let only = before.only && before.end == written();
    TOKENS.set(Tokens { only, ..before });
    let result = work()?;
    TOKENS.set(Tokens { end: written(), ..TOKENS.get() });
    Ok(result)
}

/// What goes by triggers and columns of the DBA's own may be more than tokens.
pub fn is_more_than_tokens() {
    TOKENS.set(Tokens { only: false, ..TOKENS.get() });
}

/// Has the news told when the transaction commits.
pub fn touch(message: &Message, news: News) {
    tell(message.conversation, message.id, news);
}

pub fn tell(conversation: Uuid, message: Uuid, news: News) {
    NEWS.with_borrow_mut(|items| match items.last_mut() {
        Some(last) if last.message == message => {
            if news == News::State {
                last.news = news;
            }
        }
        _ => items.push(Item { conversation, message, news }),
    });
}

/// Runs once in each backend that loads the library.
pub fn watch_transactions() {
    // SAFETY: called once from _PG_init; the callbacks live as long as the library.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_end_of_part), std::ptr::null_mut());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT => {
            relax();
            // Not before: a transaction may go on for long after its last chunk.
            each_news(|item| notice::give(item.conversation, item.message, item.news));
        }
        XACT_EVENT_COMMIT => {
            restore();
            each_news(|item| lock::wake(item.message));
            notice::committed();
            forget();
        }
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            restore();
            memory::forget();
            notice::aborted();
            forget();
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end_of_part(
    event: pg_sys::SubXactEvent::Type,
    id: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        memory::forget();
        append::forget_claim();
        lock::rolled_back(id);
        notice::rolled_back(id);
    }
}

fn each_news(mut each: impl FnMut(&Item)) {
    // What is told calls into Postgres, which may come back here with an error.
    let items = NEWS.take();
    items.iter().for_each(&mut each);
    NEWS.set(items);
}

/// Lets a transaction that wrote nothing but tokens commit without waiting for the disk. What a crash
/// takes of them is the end of an unfinished message, which its producer is asked for again.
///
/// No user code runs between here and the end of the transaction, where `restore` takes it back; a
/// setting changed by its own functions would cost as much as the insert.
fn relax() {
    let tokens = TOKENS.get();
    if tokens.end == 0 || !tokens.only || tokens.end != written() {
        return;
    }
    if CHUNK_COMMIT.get() == ChunkCommit::Async {
        // SAFETY: backend-local state.
        unsafe {
            SYNCHRONOUS_COMMIT.set(Some(pg_sys::synchronous_commit));
            pg_sys::synchronous_commit = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
        }
    }
}

fn restore() {
    if let Some(before) = SYNCHRONOUS_COMMIT.take() {
        // SAFETY: backend-local state.
        unsafe { pg_sys::synchronous_commit = before }
    }
}

fn forget() {
    TOKENS.set(Tokens::NONE);
    NEWS.with_borrow_mut(Vec::clear);
    lock::forget();
    append::forget();
}
