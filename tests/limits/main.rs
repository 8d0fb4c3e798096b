//! Requests a minute and tokens a day: never more than the limit, whoever asks beside whom, and whatever
//! becomes of the transactions.

mod crash;
mod crowd;
mod desk;
mod documents;
mod messages;
mod model;
mod quota;
mod rate;
mod restore;
mod rights;
mod state;
mod windows;
