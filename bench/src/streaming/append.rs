//! One call a token.

use super::writers::{Writing, race, send_each};
use super::{APPEND, Commit, Half, INSERT};
use crate::Result;
use crate::data::{As, Bench};
use crate::measure::Plan;
use crate::row::{Line, Row, lines, row, speed_up};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for commit in [Commit::Off, Commit::On] {
        for clients in [1, 8, 64] {
            let name = format!("stream-append-{clients}{}", commit.suffix());
            rows.push(row(name, move |bench| append(bench, clients, commit)));
        }
    }
    rows
}

const INSERT_BARE: &str =
    "insert into side.chunks (message_id, chunk_content, chunk_index) values ($1, $2, $3)";

const INSERT_KEYED: &str =
    "insert into side.chunks_with_key (message_id, chunk_content, chunk_index) values ($1, $2, $3)";

pub fn plan(clients: usize, commit: Commit) -> Plan {
    let (turns, calls) = match (clients, commit) {
        (1, Commit::Off) => (16, 250),
        (1, _) => (20, 20),
        (8, Commit::Off) => (10, 125),
        (8, _) => (10, 50),
        (_, Commit::Off) => (4, 50),
        _ => (4, 25),
    };
    Plan { turns, calls, warm_up: 10, per_call: 1, alone: clients == 1 }
}

pub fn per_token(plan: &Plan, clients: usize, commit: Commit) -> Writing {
    Writing {
        who: As::Bypass,
        half: Half::Product,
        commit,
        statement: APPEND,
        send: send_each,
        window: 1,
        repeat: 1,
        clients,
        calls: plan.warm_up + plan.turns * plan.calls,
    }
}

fn append(bench: &Bench, clients: usize, commit: Commit) -> Result<Vec<Line>> {
    let plan = plan(clients, commit);
    let product = per_token(&plan, clients, commit);
    let plain = |statement| Writing { half: Half::Plain, statement, ..product };
    let mut arms = vec![product, plain(INSERT), plain(INSERT_BARE), plain(INSERT_KEYED)];
    let mut names = vec!["append_chunk", "insert", "insert, no index", "insert, key alone"];
    let mut comparisons = vec![(0, 1, speed_up(1.5)), (0, 2, speed_up(0.45)), (0, 3, None)];
    if commit == Commit::On {
        arms.push(Writing { commit: Commit::Default, ..product });
        names.push("append_chunk, as it comes");
        comparisons.push((4, 1, speed_up(2.5)));
    }
    let figures = race(bench, &plan, &arms)?;
    Ok(lines(&names, &figures, &comparisons))
}
