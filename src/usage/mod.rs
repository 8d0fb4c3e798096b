//! What models have used, to the token: a ledger of events, and what it adds up to.
//!
//! An event is a row that is never changed. What it adds to the sums is written in its transaction, so
//! the sums are those of the ledger whatever becomes of it.

use std::ffi::CStr;

mod calendar;
mod correct;
mod digest;
mod direct;
mod event;
mod ledger;
mod message;
mod reprice;
mod rights;
mod slots;
mod upkeep;

pub use message::{Noted, record_message};
pub use slots::any_slot;

/// What recording touches.
const TABLES: [&CStr; 7] = [
    c"usage_events",
    c"usage_days",
    c"usage_totals",
    c"usage_months",
    c"model_prices",
    c"tenants",
    c"users",
];
