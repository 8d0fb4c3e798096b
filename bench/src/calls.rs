//! Clients that make small calls, each on its own, with little cost to the client.

use crate::Result;
use crate::data::{As, Bench};
use crate::measure::{Arm, Plan, Work, join_process};
use crate::wire::{Session, Statement};

/// What a client does in one call.
pub type Call = Box<dyn FnMut(&mut Session, &[Statement]) -> Result<()> + Send>;

/// Whether a call returns before what it wrote is on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    Off,
    On,
}

impl Commit {
    /// What is added to the name of a row.
    pub fn suffix(self) -> &'static str {
        if self == Self::On { "-sync" } else { "" }
    }
}

pub struct Callers<'a> {
    pub who: As,
    pub clients: usize,
    pub commit: Commit,
    pub statements: &'a [&'a str],
}

impl Callers<'_> {
    /// Each client gets a call of its own by its number.
    pub fn connect(&self, bench: &Bench, call: impl Fn(usize) -> Call) -> Result<Arm> {
        let one = |n| {
            let mut session = bench.session(self.who)?;
            join_process(session.backend);
            session.batch(match self.commit {
                Commit::Off => "set synchronous_commit = off",
                Commit::On => "set synchronous_commit = on",
            })?;
            let statements: Result<Vec<Statement>> =
                self.statements.iter().map(|sql| session.prepare(sql)).collect();
            let (statements, mut call) = (statements?, call(n));
            Ok(Box::new(move || call(&mut session, &statements)) as Work)
        };
        (0..self.clients).map(one).collect()
    }
}

/// Turns of some milliseconds, whatever the clients.
pub fn plan(clients: usize, commit: Commit) -> Plan {
    let (turns, calls) = match (clients, commit) {
        (1, Commit::Off) => (40, 40),
        (1, Commit::On) => (30, 10),
        (2..=16, Commit::Off) => (10, 40),
        (2..=16, Commit::On) => (10, 20),
        _ => (6, 20),
    };
    Plan { turns, calls, warm_up: 10, per_call: 1, alone: clients == 1 }
}

/// As many rows as there must be.
pub fn expect(found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{found} rows where {expected} were expected").into())
    }
}
