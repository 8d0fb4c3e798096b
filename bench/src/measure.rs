//! Paired runs: every arm works in short turns of equal length, in the same run on the same server,
//! so that whatever else the machine does falls on all of them.

use std::fs;
use std::process::{self, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use postgres::types::ToSql;
use postgres::{Client, Statement};

use crate::Result;
use crate::data::{As, Bench};

/// One call to the server.
pub type Work = Box<dyn FnMut() -> Result<()> + Send>;

/// One way to do the work, with as many clients as it has workers.
pub type Arm = Vec<Work>;

pub struct Plan {
    /// Turns of each arm in a pair; the median turn stands for the pair.
    pub turns: usize,
    /// Calls of each worker in a turn.
    pub calls: usize,
    /// Calls of each worker before a pair: plans are made, caches filled.
    pub warm_up: usize,
    /// What one call does, where it does a thing many times.
    pub per_call: usize,
    /// Whether one client at a time works, on the core of its backend.
    pub alone: bool,
}

/// Seconds per operation: for each arm, one figure a pair.
pub type Figures = Vec<Vec<f64>>;

/// `arms` connects anew for each pair: what a single backend happens to have in its memory is not
/// in all of them.
pub fn pairs(
    bench: &Bench,
    plan: &Plan,
    arms: impl FnMut(usize) -> Result<Vec<Arm>>,
    after: impl FnMut() -> Result<()>,
) -> Result<Figures> {
    pairs_amid(bench, plan, || Ok(()), arms, after)
}

/// The same where another session commits before each call, which is not in the figures: what a
/// backend remembers from one call for the next must be looked at again.
pub fn pairs_amid_commits(
    bench: &Bench,
    plan: Plan,
    arms: impl FnMut(usize) -> Result<Vec<Arm>>,
) -> Result<Figures> {
    let mut client = bench.connect(As::Superuser)?;
    client.batch_execute("set synchronous_commit = off")?;
    let write = client.prepare("update side.trickle set n = n + 1")?;
    let plan = Plan { turns: plan.turns * plan.calls, calls: 1, ..plan };
    let commit = || Ok(client.execute(&write, &[]).map(|_| ())?);
    pairs_amid(bench, &plan, commit, arms, || Ok(()))
}

fn pairs_amid(
    bench: &Bench,
    plan: &Plan,
    mut before_turn: impl FnMut() -> Result<()>,
    mut arms: impl FnMut(usize) -> Result<Vec<Arm>>,
    mut after: impl FnMut() -> Result<()>,
) -> Result<Figures> {
    let _core = plan.alone.then(OneCore::enter);
    let mut figures: Figures = Vec::new();
    for pair in 0..bench.size.pairs {
        let mut arms = arms(pair)?;
        figures.resize(arms.len(), Vec::new());
        if plan.warm_up > 0 {
            for arm in &mut arms {
                turn(arm, plan.warm_up)?;
            }
        }
        let mut turns = vec![Vec::new(); arms.len()];
        for i in 0..plan.turns.div_ceil(bench.size.haste) {
            // Each arm is first as often as the others, and has each neighbour as often.
            for k in 0..arms.len() {
                let k = if i % 2 == 0 { k } else { arms.len() - 1 - k };
                let n = (pair + i / 2 + k) % arms.len();
                before_turn()?;
                let operations = plan.calls * plan.per_call * arms[n].len();
                turns[n].push(turn(&mut arms[n], plan.calls)?.as_secs_f64() / operations as f64);
            }
        }
        for (figure, turns) in figures.iter_mut().zip(turns) {
            figure.push(median(&turns));
        }
        after()?;
    }
    Ok(figures)
}

/// How long until the last worker has made so many calls.
fn turn(arm: &mut Arm, calls: usize) -> Result<Duration> {
    let (_, took) = together(arm, |work| {
        (0..calls).try_for_each(|_| work())?;
        Ok(calls)
    })?;
    Ok(took)
}

/// Seconds a call, of workers that go on for that time.
pub fn turn_for(arm: &mut Arm, time: Duration) -> Result<f64> {
    let (calls, took) = together(arm, |work| {
        let begin = Instant::now();
        let mut calls = 0;
        while begin.elapsed() < time {
            work()?;
            calls += 1;
        }
        Ok(calls)
    })?;
    Ok(took.as_secs_f64() / calls as f64)
}

/// Lets all workers of an arm go at once. Returns the calls that they have made, and the time that
/// the last of them took.
fn together(
    arm: &mut Arm,
    run: impl Fn(&mut Work) -> Result<usize> + Sync,
) -> Result<(usize, Duration)> {
    if let [only] = arm.as_mut_slice() {
        let begin = Instant::now();
        let calls = run(only)?;
        return Ok((calls, begin.elapsed()));
    }
    let ready = Barrier::new(arm.len() + 1);
    thread::scope(|scope| {
        let (ready, run) = (&ready, &run);
        let workers: Vec<_> = arm
            .iter_mut()
            .map(|work| {
                scope.spawn(move || {
                    ready.wait();
                    run(work)
                })
            })
            .collect();
        ready.wait();
        let begin = Instant::now();
        let mut calls = 0;
        for worker in workers {
            calls += worker.join().map_err(|_| "a client panicked")??;
        }
        Ok((calls, begin.elapsed()))
    })
}

/// Client and backend take turns, so one core serves both. Where they may wander, a call is 40 µs
/// longer in one connection than in the next, for waking another core is slow on virtual machines.
/// Where the system refuses to pin a process, figures are noisier.
struct OneCore {
    all: String,
}

impl OneCore {
    fn enter() -> Self {
        let all = cores();
        pin(process::id(), last(&all));
        Self { all }
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        pin(process::id(), &self.all);
    }
}

/// Moves the backend of a client to the core that the client is on, if it is on one alone.
pub fn join_backend(client: &mut Client) -> Result<()> {
    let backend: i32 = client.query_one("select pg_backend_pid()", &[])?.get(0);
    join_process(backend.unsigned_abs());
    Ok(())
}

pub fn join_process(process: u32) {
    let cores = cores();
    if last(&cores) == cores {
        pin(process, &cores);
    }
}

/// The cores that this process may use, such as "0-3,6".
fn cores() -> String {
    field("/proc/self/status", "Cpus_allowed_list").unwrap_or_else(|| "0".into())
}

/// A line of a file such as /proc/meminfo.
pub fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let (_, value) = text.lines().find(|line| line.starts_with(name))?.split_once(':')?;
    Some(value.trim().into())
}

fn last(cores: &str) -> &str {
    cores.rsplit(['-', ',']).next().unwrap_or(cores)
}

fn pin(process: u32, cores: &str) {
    let _ = Command::new("taskset")
        .args(["-pc", cores, &process.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// A call of which the answer must have so many rows.
pub fn expect_rows(
    client: &mut Client,
    statement: &Statement,
    params: &[&(dyn ToSql + Sync)],
    expected: usize,
) -> Result<()> {
    let found = client.query(statement, params)?.len();
    if found == expected {
        Ok(())
    } else {
        Err(format!("{found} rows where {expected} were expected").into())
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
