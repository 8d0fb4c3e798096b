//! Promise 8: what was used is in the ledger once, and all sums are those of the ledger, always.

mod books;
mod corrections;
mod crash;
mod crowd;
mod events;
mod messages;
mod restore;
mod rights;
mod upkeep;
