//! Measures the extension against the same tables without it. `dev/bench` runs it.

mod access;
mod analytics;
mod calls;
mod conversations;
mod data;
mod dump;
mod feedback;
mod ids;
mod limits;
mod maintenance;
mod measure;
mod messages;
mod redis;
mod report;
mod row;
mod server;
mod streaming;
mod usage;
mod wire;

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {}", report::words(&*error));
            ExitCode::FAILURE
        }
    }
}

fn rows() -> Vec<row::Row> {
    let rows = [
        messages::rows(),
        conversations::rows(),
        access::rows(),
        ids::rows(),
        dump::rows(),
        streaming::rows(),
        usage::rows(),
        limits::rows(),
        feedback::rows(),
        analytics::rows(),
        maintenance::rows(),
    ];
    rows.into_iter().flatten().collect()
}

fn run() -> Result<()> {
    let (flags, wanted): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let mut size = data::FULL;
    for flag in &flags {
        match flag.as_str() {
            "--quick" => size = data::QUICK,
            "--list" => {
                rows().iter().for_each(|row| println!("{}", row.name));
                return Ok(());
            }
            _ => return Err(format!("unknown option {flag}").into()),
        }
    }
    let mut rows = rows();
    if let Some(name) =
        wanted.iter().find(|name| !rows.iter().any(|row| row.name.starts_with(*name)))
    {
        return Err(format!("no row begins with \"{name}\": see dev/bench --list").into());
    }
    rows.retain(|row| {
        wanted.is_empty() || wanted.iter().any(|name| row.name.starts_with(name.as_str()))
    });

    let bench = data::Bench::prepare(size)?;
    let mut report = report::Report::begin(&bench)?;
    for row in &rows {
        let begin = Instant::now();
        bench.settle()?;
        let lines = (row.run)(&bench)?;
        report.add(&row.name, lines, begin.elapsed());
    }
    report.finish(&bench)
}
