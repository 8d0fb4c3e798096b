//! Token streaming: a message is a state machine, its text grows by rows that are only ever added.
//!
//! `append` adds them, `settle` ends a message and puts its text together, `read` follows one,
//! `upkeep` takes care of what was left behind. Whoever adds to a message or ends it holds its lock
//! (`lock`) to the end of the transaction; what happens at that end is in `commit`, which tells
//! readers the news.

mod append;
mod begin;
mod chunks;
mod commit;
mod lock;
mod memory;
mod message;
mod notice;
mod read;
mod rights;
mod settle;
mod text;
mod upkeep;
mod write;

pub use commit::{tokens, watch_transactions};
pub use message::{Message, is_restoring, may_read};
pub use rights::may_note_figures;
pub use settle::remove_chunks;
pub use upkeep::{MOST_AT_ONCE, clean_up_some, recover_some};
