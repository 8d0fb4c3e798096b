//! What the end of a transaction means for streams: tokens commit asynchronously, and those who wait
//! for them are woken once they can see them.

use std::cell::{Cell, RefCell};

use pgrx::pg_guard;
use pgrx::pg_sys::{self, XLogRecPtr};
use pgrx::Uuid;

use super::{append, lock};
use crate::settings::{CHUNK_COMMIT, ChunkCommit};

thread_local! {
    /// Messages with news.
    static TOUCHED: RefCell<Vec<Uuid>> = const { RefCell::new(Vec::new()) };
    static TOKENS: Cell<Tokens> = const { Cell::new(Tokens::NONE) };
    static SYNCHRONOUS_COMMIT: Cell<Option<i32>> = const { Cell::new(None) };
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
    let result = work()?;
    TOKENS.set(Tokens { only, end: written() });
    Ok(result)
}

/// Wakes those who wait for the message when the transaction commits.
pub fn touch(message: Uuid) {
    TOUCHED.with_borrow_mut(|touched| {
        if touched.last() != Some(&message) {
            touched.push(message);
        }
    });
}

/// Runs once in each backend that loads the library.
pub fn watch_transactions() {
    // SAFETY: called once from _PG_init; the callback lives as long as the library.
    unsafe { pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut()) }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT => relax(),
        XACT_EVENT_COMMIT => {
            restore();
            TOUCHED.with_borrow_mut(|touched| touched.drain(..).for_each(lock::wake));
            forget();
        }
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            restore();
            TOUCHED.with_borrow_mut(Vec::clear);
            forget();
        }
        _ => {}
    }
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
            pg_sys::synchronous_commit =
                pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
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
    lock::forget();
    append::forget();
}
