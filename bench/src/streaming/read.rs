//! Reading an answer while it streams: its text, and what is new of it.

use std::fs;

use uuid::Uuid;

use super::writers::send_array;
use super::{APPEND_WINDOW, Commit, Half, INSERT_MANY, READ, Tokens, open};
use crate::Result;
use crate::data::{As, Bench};
use crate::measure::{Arm, Plan, field, join_process, pairs};
use crate::row::{Line, Row, Side, Unit, at_most, lines, ratio, row};
use crate::wire::Value;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for chunks in [500, 32_000, 200_000] {
        rows.push(row(format!("stream-reconstruct-{chunks}"), move |bench| text(bench, chunks)));
    }
    rows.push(row("stream-reconstruct-memory", memory));
    rows.push(row("stream-resume", resume));
    rows
}

const RECONSTRUCT: &str = "select reconstruct_message($1)";

const AGGREGATE: &str = "select string_agg(chunk_content, '' order by chunk_index) \
     from plain.message_chunks where message_id = $1";

const AGGREGATE_SORTED: &str = "select string_agg(chunk_content, '') from ( \
         select chunk_content from plain.message_chunks \
         where message_id = $1 order by chunk_index) as c";

const RECONSTRUCT_PLPGSQL: &str = "select plain.reconstruct_message($1)";

/// The same answer on both sides.
pub struct Answer {
    pub product: Uuid,
    plain: Uuid,
    bytes: usize,
    /// Of each chunk.
    sizes: Vec<usize>,
}

impl Answer {
    /// `words` tokens a chunk.
    pub fn write(bench: &Bench, chunks: usize, words: usize) -> Result<Self> {
        const WINDOW: usize = 1000;
        let chunks: Vec<String> =
            Tokens::new(0).take(chunks * words).chunks(words).map(<[_]>::concat).collect();
        let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
        let mut session = bench.session(As::Bypass)?;
        session.batch(Commit::Off.settings())?;
        let mut write = |half, statement: &str| -> Result<Uuid> {
            let message = open(bench, half, 1)?[0];
            let statement = session.prepare(statement)?;
            for (n, window) in chunks.chunks(WINDOW).enumerate() {
                send_array(&mut session, &statement, message, (n * WINDOW) as i32, window)?;
            }
            Ok(message)
        };
        let answer = Self {
            product: write(Half::Product, APPEND_WINDOW)?,
            plain: write(Half::Plain, INSERT_MANY)?,
            bytes: chunks.iter().map(|chunk| chunk.len()).sum(),
            sizes: chunks.iter().map(|chunk| chunk.len()).collect(),
        };
        // As after a minute of autovacuum, on both sides.
        bench.settle()?;
        Ok(answer)
    }

    /// Of the chunks behind that one.
    pub fn bytes_after(&self, index: i32) -> usize {
        self.sizes[(index + 1) as usize..].iter().sum()
    }
}

/// Sums up the bytes of one column, and makes sure that it gets all of them.
pub fn reader(
    bench: &Bench,
    who: As,
    statement: &str,
    values: Vec<Value<'static>>,
    column: usize,
    bytes: usize,
) -> Result<Arm> {
    let mut session = bench.session(who)?;
    join_process(session.backend);
    let statement = session.prepare(statement)?;
    Ok(vec![Box::new(move || {
        let mut found = 0;
        session.call(&statement, &values, |row| found += row.value(column).len())?;
        if found == bytes {
            Ok(())
        } else {
            Err(format!("{found} bytes where {bytes} were expected").into())
        }
    })])
}

fn text(bench: &Bench, chunks: usize) -> Result<Vec<Line>> {
    let (turns, calls) = match chunks {
        500 => (60, 5),
        32_000 => (10, 1),
        _ => (2, 1),
    };
    let answer = Answer::write(bench, (chunks / bench.size.haste).max(500), 1)?;
    let figures = pairs(
        bench,
        &Plan { turns, calls, warm_up: 1, per_call: 1, alone: true },
        |_| {
            let reader = |statement, message| {
                reader(bench, As::Bypass, statement, vec![Value::Id(message)], 0, answer.bytes)
            };
            Ok(vec![
                reader(RECONSTRUCT, answer.product)?,
                reader(AGGREGATE, answer.plain)?,
                reader(AGGREGATE_SORTED, answer.plain)?,
                reader(RECONSTRUCT_PLPGSQL, answer.plain)?,
            ])
        },
        || Ok(()),
    )?;
    let arms =
        ["reconstruct_message", "string_agg", "string_agg, sorted first", "PL/pgSQL function"];
    let target = ratio(1.0);
    Ok(lines(&arms, &figures, &[(0, 1, target), (0, 2, target), (0, 3, target)]))
}

/// What a backend holds at most while it puts a text together, in lengths of the text.
fn memory(bench: &Bench) -> Result<Vec<Line>> {
    // Chunks of about 100 bytes: the text is larger than what each of many rows costs.
    let answer = Answer::write(bench, 200_000 / bench.size.haste, 25)?;
    let small = Answer::write(bench, 100, 1)?;
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..bench.size.pairs {
        let product = ("public", answer.product, small.product);
        let plain = ("plain", answer.plain, small.plain);
        for (figures, (schema, message, small)) in figures.iter_mut().zip([product, plain]) {
            figures.push(peak(bench, schema, message, small)? / answer.bytes as f64);
        }
    }
    Ok(vec![Line {
        product: Side::new("reconstruct_message", &figures[0]),
        against: Some(Side::new("string_agg in PL/pgSQL", &figures[1])),
        unit: Unit::Times,
        target: at_most(2.0),
    }])
}

fn peak(bench: &Bench, schema: &str, message: Uuid, small: Uuid) -> Result<f64> {
    let mut session = bench.session(As::Bypass)?;
    let statement =
        session.prepare(&format!("select octet_length({schema}.reconstruct_message($1))"))?;
    // What the first call of a session takes is none of the text's.
    session.call(&statement, &[Value::Id(small)], |_| ())?;
    // Shared memory counts once it is touched: all of it is, before what comes is counted.
    session.batch("set enable_seqscan = off; set enable_bitmapscan = off")?;
    session.batch(&format!(
        "begin; set local max_parallel_workers_per_gather = 0;
         select sum(length(chunk_content)) from {schema}.message_chunks
         where message_id = '{message}';
         commit"
    ))?;
    let process = format!("/proc/{}", session.backend);
    let status = |name| -> Result<f64> {
        let value =
            field(&format!("{process}/status"), name).ok_or("no memory figures in /proc")?;
        Ok(value.trim_end_matches(" kB").parse::<f64>()? * 1024.0)
    };
    // Sets the peak back to what is held now.
    fs::write(format!("{process}/clear_refs"), "5")?;
    let before = status("VmRSS")?;
    session.call(&statement, &[Value::Id(message)], |_| ())?;
    Ok(status("VmHWM")? - before)
}

const READ_AFTER: &str = "select chunk_index, chunk_content, is_final from plain.message_chunks \
     where message_id = $1 and chunk_index > $2 order by chunk_index";

const READ_ALL: &str = "select chunk_index, chunk_content, is_final from plain.message_chunks \
     where message_id = $1 order by chunk_index";

/// A reader that comes back for the last 100 chunks.
fn resume(bench: &Bench) -> Result<Vec<Line>> {
    let chunks = 32_000 / bench.size.haste;
    let answer = Answer::write(bench, chunks, 1)?;
    let after = chunks - 100;
    let tail = answer.bytes_after(after as i32);
    let figures = pairs(
        bench,
        &Plan { turns: 30, calls: 2, warm_up: 5, per_call: 1, alone: true },
        |_| {
            let after = Value::Int(after as i32);
            Ok(vec![
                reader(bench, As::Bypass, READ, vec![Value::Id(answer.product), after], 1, tail)?,
                reader(
                    bench,
                    As::Bypass,
                    READ_AFTER,
                    vec![Value::Id(answer.plain), after],
                    1,
                    tail,
                )?,
                reader(
                    bench,
                    As::Bypass,
                    READ_ALL,
                    vec![Value::Id(answer.plain)],
                    1,
                    answer.bytes,
                )?,
            ])
        },
        || Ok(()),
    )?;
    let arms = ["read_stream, last 100", "the same query", "all chunks again"];
    Ok(lines(&arms, &figures, &[(0, 1, None), (0, 2, None)]))
}
