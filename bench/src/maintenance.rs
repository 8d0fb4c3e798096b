//! What run_maintenance takes where there is nothing to do, for it is called every minute.

use crate::Result;
use crate::access::asker;
use crate::data::{As, Bench};
use crate::measure::{Plan, pairs};
use crate::row::{Line, Row, Side, Unit, row};

pub fn rows() -> Vec<Row> {
    vec![row("maintenance-idle", idle)]
}

const RUN: &str = "select * from run_maintenance()";

fn idle(bench: &Bench) -> Result<Vec<Line>> {
    // What is due the first time is done, and whatever other rows have left.
    let mut service = bench.connect(As::Service)?;
    service.batch_execute(RUN)?;
    let mut root = bench.connect(As::Superuser)?;
    let mut found = Vec::new();
    for (name, every, expected) in [
        ("nothing is due", "interval '1 year'", 0),
        ("all are due, none has work", "interval '0'", 1),
    ] {
        // To refresh is work.
        root.batch_execute(&format!(
            "update maintenance_runs set every = {every} where job <> 'analytics'; \
             update maintenance_runs set every = interval '1 year' where job = 'analytics'"
        ))?;
        let figures = pairs(
            bench,
            &Plan { turns: 20, calls: 1, warm_up: 3, per_call: 1, alone: true },
            |_| {
                let client = bench.connect(As::Service)?;
                Ok(vec![asker(client, RUN, Vec::new(), move |rows| {
                    rows.len() >= expected && (expected > 0 || rows.is_empty())
                })?])
            },
            || Ok(()),
        )?;
        found.push(Line::alone(Side::new(name, &figures[0]), Unit::Seconds, None));
    }
    Ok(found)
}
