//! Several tokens a call.

use uuid::Uuid;

use super::writers::{Writing, race, send_array, send_each};
use super::{APPEND, APPEND_WINDOW, Commit, Half, INSERT, INSERT_MANY};
use crate::Result;
use crate::data::{As, Bench};
use crate::measure::Plan;
use crate::row::{Line, Row, lines, row, speed_up};
use crate::wire::{Session, Statement, Value};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for commit in [Commit::Off, Commit::On] {
        for (size, target) in [(16, 12.0), (64, 25.0)] {
            let name = format!("stream-window-{size}{}", commit.suffix());
            rows.push(row(name, move |bench| window(bench, size, target, commit)));
        }
    }
    rows
}

/// COPY cannot be prepared.
const NONE: &str = "select";

const COPY: &str = "copy plain.message_chunks (message_id, chunk_content, chunk_index) from stdin";

fn window(bench: &Bench, size: usize, target: f64, commit: Commit) -> Result<Vec<Line>> {
    let clients = 8;
    let (tokens, repeat) = if commit == Commit::Off { (128, 4) } else { (64, 4) };
    let plan = Plan { turns: 8, calls: tokens / size, warm_up: 2, per_call: 1, alone: false };
    let array = Writing {
        who: As::Bypass,
        half: Half::Product,
        commit,
        statement: APPEND_WINDOW,
        send: send_array,
        window: size,
        repeat,
        clients,
        calls: plan.warm_up + plan.turns * plan.calls,
    };
    let plain = Writing { half: Half::Plain, ..array };
    let arms = [
        array,
        Writing { statement: APPEND, send: send_joined, ..array },
        Writing { statement: INSERT, send: send_each, repeat: 1, ..plain },
        Writing { statement: INSERT_MANY, send: send_array, ..plain },
        Writing { statement: NONE, send: send_copy, ..plain },
    ];
    let figures = race(bench, &plan, &arms)?;
    let names = [
        &format!("append_chunks of {size}"),
        &format!("append_chunk of {size} joined"),
        "insert a token",
        &format!("insert of {size}"),
        &format!("copy of {size}"),
    ];
    let comparisons = [(0, 2, speed_up(target)), (1, 2, None), (0, 3, None), (0, 4, None)];
    Ok(lines(&names, &figures, &comparisons))
}

fn send_joined(
    session: &mut Session,
    statement: &Statement,
    message: Uuid,
    first: i32,
    tokens: &[&str],
) -> Result<()> {
    // As many calls as windows, and one chunk a call.
    let index = first / tokens.len() as i32;
    let values = [Value::Id(message), Value::Text(&tokens.concat()), Value::Int(index)];
    session.call(statement, &values, |_| ())?;
    Ok(())
}

fn send_copy(
    session: &mut Session,
    _: &Statement,
    message: Uuid,
    first: i32,
    tokens: &[&str],
) -> Result<()> {
    let mut data = String::new();
    for (index, token) in (first..).zip(tokens) {
        let token = token.replace('\n', "\\n");
        data += &format!("{message}\t{token}\t{index}\n");
    }
    session.copy(COPY, data.as_bytes())
}
