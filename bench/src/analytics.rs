//! Figures of 30 days, as everybody.

use crate::Result;
use crate::access::{asker, param};
use crate::data::{As, Bench, Person};
use crate::measure::{Plan, pairs};
use crate::row::{Line, Row, Side, Unit, at_most, row};

const FUNCTIONS: [(&str, &str); 6] = [
    ("days", "daily_activity"),
    ("models", "usage_by_model"),
    ("users", "usage_by_user"),
    ("latency", "latency_percentiles"),
    ("feedback", "feedback_rate"),
    ("longest", "longest_conversations"),
];

pub fn rows() -> Vec<Row> {
    let of =
        |(name, function)| row(format!("analytics-{name}"), move |bench| month(bench, function));
    FUNCTIONS.into_iter().map(of).collect()
}

/// A month near the end of the data set.
fn month(bench: &Bench, function: &str) -> Result<Vec<Line>> {
    let own = format!("select * from {function}('2025-09-20', '2025-10-19')");
    let named = format!("select * from {function}('2025-09-20', '2025-10-19', $1)");
    let everybody: [(&str, As, &Person); 4] = [
        ("with 90 conversations", As::Member, &bench.ordinary),
        ("with 10,000 conversations", As::Member, &bench.owner),
        ("admin, 30 % of all", As::Member, &bench.admin),
        ("service, of that tenant", As::Service, &bench.admin),
    ];
    let figures = pairs(
        bench,
        &Plan { turns: 20, calls: 1, warm_up: 3, per_call: 1, alone: true },
        |_| {
            let arm = |(_, who, person): &(&str, As, &Person)| {
                let client = bench.connect_for(*who, person)?;
                let (sql, params) = match who {
                    As::Service => (&named, vec![param(bench.admin.tenant)]),
                    _ => (&own, Vec::new()),
                };
                asker(client, sql, params, |rows| !rows.is_empty())
            };
            everybody.iter().map(arm).collect()
        },
        || Ok(()),
    )?;
    let line = |((name, ..), figures): (&(&str, As, &Person), &Vec<f64>)| {
        Line::alone(Side::new(*name, figures), Unit::Seconds, at_most(0.05))
    };
    Ok(everybody.iter().zip(&figures).map(line).collect())
}
