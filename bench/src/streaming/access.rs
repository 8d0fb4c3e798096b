//! What access costs where an answer streams: a member against a role that bypasses row level
//! security.

use super::append::{per_token, plan};
use super::read::{Answer, reader};
use super::writers::{Writing, race, send_array};
use super::{APPEND_WINDOW, Commit, Half, INSERT, READ};
use crate::Result;
use crate::access::{BY_HAND, BYPASS, Others};
use crate::data::{As, Bench};
use crate::measure::Plan;
use crate::row::{Line, Row, lines, ratio, row};
use crate::wire::Value;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for clients in [1, 8] {
        rows.push(row(format!("access-append-{clients}"), move |bench| append(bench, clients)));
    }
    for clients in [1, 8] {
        rows.push(row(format!("access-window-{clients}"), move |bench| window(bench, clients)));
    }
    for (name, after) in [("access-stream", -1), ("access-stream-end", 494)] {
        for others in [Others::Rest, Others::Write] {
            let name = format!("{name}{}", others.suffix());
            rows.push(row(name, move |bench| stream(bench, after, others)));
        }
    }
    rows
}

fn append(bench: &Bench, clients: usize) -> Result<Vec<Line>> {
    let plan = plan(clients, Commit::Off);
    let bypass = per_token(&plan, clients, Commit::Off);
    let arms = [
        Writing { who: As::Member, ..bypass },
        bypass,
        Writing { who: As::Naive, half: Half::Plain, statement: INSERT, ..bypass },
    ];
    let figures = race(bench, &plan, &arms)?;
    let names = ["append_chunk of a member", BYPASS, BY_HAND];
    Ok(lines(&names, &figures, &[(0, 1, ratio(1.15)), (0, 2, None)]))
}

fn window(bench: &Bench, clients: usize) -> Result<Vec<Line>> {
    let (window, repeat) = (16, 4);
    let plan = Plan { turns: 20, calls: 8, warm_up: 2, per_call: 1, alone: clients == 1 };
    let bypass = Writing {
        statement: APPEND_WINDOW,
        send: send_array,
        window,
        repeat,
        ..per_token(&plan, clients, Commit::Off)
    };
    let figures = race(bench, &plan, &[Writing { who: As::Member, ..bypass }, bypass])?;
    let names = ["append_chunks of a member", BYPASS];
    Ok(lines(&names, &figures, &[(0, 1, ratio(1.15))]))
}

/// What is behind that chunk of an answer of 500.
fn stream(bench: &Bench, after: i32, others: Others) -> Result<Vec<Line>> {
    let chunks = 500;
    let answer = Answer::write(bench, chunks, 1)?;
    let bytes = answer.bytes_after(after);
    let plan = Plan { turns: 60, calls: 5, warm_up: 10, per_call: 1, alone: true };
    let figures = others.pairs(bench, plan, |_| {
        let values = || vec![Value::Id(answer.product), Value::Int(after)];
        let arm = |who| reader(bench, who, READ, values(), 1, bytes);
        Ok(vec![arm(As::Member)?, arm(As::Bypass)?])
    })?;
    Ok(lines(&["read_stream of a member", BYPASS], &figures, &[(0, 1, ratio(1.15))]))
}
