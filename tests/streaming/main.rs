//! Promises 6 and 7: a token that was acknowledged is there exactly once, and a reader that
//! reconnects gets exactly what it lacks, in order.

mod appends;
mod authors;
mod cleanup;
mod crash;
mod crowd;
mod desk;
mod disk;
mod endings;
mod limits;
mod model;
mod notices;
mod plain;
mod races;
mod readers;
mod remembered;
mod rights;
mod standby;
mod states;
mod transactions;
mod waiting;
mod wire;
