//! What has to be done from time to time.
//!
//! `jobs` says what, `run` does what is due, each job in a part of the transaction of its own (`part`).
//! Who calls it is the DBA's choice (`sql/maintenance/api.sql` helps with pg_cron); where the library is
//! preloaded it may be the `launcher`, which starts a `worker` for each database.

mod jobs;
mod launcher;
mod part;
mod run;
mod worker;

pub use launcher::register;
