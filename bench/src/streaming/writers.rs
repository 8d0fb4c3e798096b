//! Clients that write tokens, and races between ways to do it.

use uuid::Uuid;

use super::{ANSWER, Commit, Half, Tokens, open};
use crate::Result;
use crate::data::{As, Bench, share};
use crate::measure::{Arm, Figures, Plan, Work, join_process, pairs};
use crate::wire::{Session, Statement, Value};

/// How a worker sends `tokens` as the next chunks of `message`, the first of which has that number.
pub type Send = fn(&mut Session, &Statement, Uuid, i32, &[&str]) -> Result<()>;

pub fn send_each(
    session: &mut Session,
    statement: &Statement,
    message: Uuid,
    first: i32,
    tokens: &[&str],
) -> Result<()> {
    for (index, token) in (first..).zip(tokens) {
        let values = [Value::Id(message), Value::Text(token), Value::Int(index)];
        session.call(statement, &values, |_| ())?;
    }
    Ok(())
}

pub fn send_array(
    session: &mut Session,
    statement: &Statement,
    message: Uuid,
    first: i32,
    tokens: &[&str],
) -> Result<()> {
    let values = [Value::Id(message), Value::Texts(tokens), Value::Int(first)];
    session.call(statement, &values, |_| ())?;
    Ok(())
}

/// What an arm of writers does.
#[derive(Clone, Copy)]
pub struct Writing {
    pub who: As,
    pub half: Half,
    pub commit: Commit,
    pub statement: &'static str,
    pub send: Send,
    /// Tokens that are sent together.
    pub window: usize,
    /// How many windows make a call, so that turns of fast arms are not too short to measure.
    pub repeat: usize,
    pub clients: usize,
    /// Calls of each client.
    pub calls: usize,
}

/// As many as all calls of all clients fill, of which each gets a whole answer.
pub fn messages_for(bench: &Bench, writing: &Writing) -> Result<Vec<Uuid>> {
    open(bench, writing.half, count_for(writing))
}

fn count_for(writing: &Writing) -> usize {
    (writing.calls * writing.repeat * writing.window).div_ceil(ANSWER) * writing.clients
}

/// The same for several arms, dealt out in turn: whoever had the latest of them all would add at
/// the end of an index, which is faster than in the middle.
fn messages_for_all(bench: &Bench, arms: &[Writing]) -> Result<Vec<Vec<Uuid>>> {
    let mut dealt = vec![Vec::new(); arms.len()];
    for half in [Half::Product, Half::Plain] {
        let of_half: Vec<(usize, usize)> = arms
            .iter()
            .enumerate()
            .filter(|(_, arm)| arm.half == half)
            .map(|(n, arm)| (n, count_for(arm)))
            .collect();
        let rounds = of_half.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let turns: Vec<usize> = (0..rounds)
            .flat_map(|round| of_half.iter().filter(move |(_, count)| round < *count))
            .map(|(n, _)| *n)
            .collect();
        for (n, message) in turns.iter().zip(open(bench, half, turns.len())?) {
            dealt[*n].push(message);
        }
    }
    Ok(dealt)
}

/// Clients that write, each into messages of its own.
pub fn writers(bench: &Bench, writing: Writing, messages: &[Uuid]) -> Result<Arm> {
    let Writing { window, clients, .. } = writing;
    (0..clients)
        .map(|n| {
            let mut session = bench.session(writing.who)?;
            join_process(session.backend);
            session.batch(writing.commit.settings())?;
            let statement = session.prepare(writing.statement)?;
            let messages = share(messages, n, clients);
            let mut tokens = Tokens::new(n);
            let mut sent = 0;
            let work = move || {
                for _ in 0..writing.repeat {
                    let message = *messages.get(sent / ANSWER).ok_or("no message left")?;
                    let first = (sent % ANSWER) as i32;
                    let tokens = tokens.take(window);
                    (writing.send)(&mut session, &statement, message, first, &tokens)?;
                    sent += window;
                }
                Ok(())
            };
            Ok(Box::new(work) as Work)
        })
        .collect()
}

/// Seconds a token of each arm.
pub fn race(bench: &Bench, plan: &Plan, arms: &[Writing]) -> Result<Figures> {
    let writers = |_| {
        let messages = messages_for_all(bench, arms)?;
        arms.iter().zip(&messages).map(|(arm, messages)| writers(bench, *arm, messages)).collect()
    };
    let mut figures = pairs(bench, plan, writers, || Ok(()))?;
    for (figures, arm) in figures.iter_mut().zip(arms) {
        figures.iter_mut().for_each(|seconds| *seconds /= (arm.window * arm.repeat) as f64);
    }
    Ok(figures)
}
