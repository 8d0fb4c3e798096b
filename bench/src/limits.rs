//! What limits cost, against a row for each window that is counted up.

use uuid::Uuid;

use crate::Result;
use crate::calls::{Call, Callers, Commit, expect, plan};
use crate::data::{As, Bench};
use crate::measure::{Arm, pairs};
use crate::row::{Line, Row, lines, row};
use crate::wire::{Session, Statement, Value};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, run) in
        [("rate", rate as fn(&Bench, Tenants, usize) -> Result<Vec<Line>>), ("tokens", tokens)]
    {
        for tenants in [Tenants::Spread, Tenants::One] {
            for clients in [1, 16, 64] {
                let name = format!("limits-{what}-{}-{clients}", tenants.name());
                rows.push(row(name, move |bench| run(bench, tenants, clients)));
            }
        }
    }
    rows
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tenants {
    /// Ten, in turn.
    Spread,
    One,
}

impl Tenants {
    fn name(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::One => "hot",
        }
    }

    fn of(self, bench: &Bench) -> Result<Vec<Uuid>> {
        let sql = "select id from plain.tenants where slug <> 'default' order by id = $1 desc, id";
        let rows = bench.connect(As::Superuser)?.query(sql, &[&bench.owner.tenant])?;
        let all = rows.iter().map(|row| row.get(0));
        Ok(if self == Self::One { all.take(1).collect() } else { all.collect() })
    }
}

const CHECK: &str = "select allowed from check_rate_limit(1, $1)";

const COUNT: &str = "insert into side.request_windows as w (tenant_id, minute, requests) \
    values ($1, date_trunc('minute', now()), 1) \
    on conflict (tenant_id, minute) do update set requests = w.requests + 1 \
    where w.requests < 60000000 returning requests";

fn rate(bench: &Bench, tenants: Tenants, clients: usize) -> Result<Vec<Line>> {
    let tenants = tenants.of(bench)?;
    let figures = pairs(
        bench,
        &plan(clients, Commit::Off),
        |_| [CHECK, COUNT].iter().map(|sql| one_call(bench, sql, &tenants, clients)).collect(),
        || Ok(()),
    )?;
    Ok(lines(&["check_rate_limit", "upsert"], &figures, &[(0, 1, None)]))
}

/// Clients that ask one question about each tenant in turn.
fn one_call(bench: &Bench, sql: &str, tenants: &[Uuid], clients: usize) -> Result<Arm> {
    let callers = Callers { who: As::Service, clients, commit: Commit::Off, statements: &[sql] };
    callers.connect(bench, |client| {
        let tenants = tenants.to_vec();
        let mut n = client;
        Box::new(move |session: &mut Session, statements: &[Statement]| {
            n += 1;
            let tenant = tenants[n % tenants.len()];
            let mut is_allowed = true;
            let found = session.call(&statements[0], &[Value::Id(tenant)], |row| {
                is_allowed = row.value(0) != [0];
            })?;
            if is_allowed { expect(found, 1) } else { Err("refused".into()) }
        }) as Call
    })
}

const RESERVE: &str = "select reservation_id from reserve_tokens(1000, tenant_id => $1)";
const SETTLE: &str = "select applied from settle_tokens($1, 700)";

const TAKE: &str = "insert into side.token_windows as w (tenant_id, date, tokens) \
    values ($1, current_date, 1000) \
    on conflict (tenant_id, date) do update set tokens = w.tokens + 1000 \
    where w.tokens + 1000 <= 1000000000000000 returning tenant_id";
const GIVE_BACK: &str = "update side.token_windows set tokens = tokens - 300 where tenant_id = $1 and date = current_date \
     returning tokens";

/// Before and after an answer; the figures are for both together. What is counted up knows nothing of an
/// answer that never came to its end.
fn tokens(bench: &Bench, tenants: Tenants, clients: usize) -> Result<Vec<Line>> {
    let tenants = tenants.of(bench)?;
    let figures = pairs(
        bench,
        &plan(clients, Commit::Off),
        |_| {
            let arm = |statements: &[&str; 2]| {
                let callers =
                    Callers { who: As::Service, clients, commit: Commit::Off, statements };
                callers.connect(bench, |client| {
                    let tenants = tenants.clone();
                    let mut n = client;
                    Box::new(move |session: &mut Session, statements: &[Statement]| {
                        n += 1;
                        let mut taken = Value::Id(tenants[n % tenants.len()]);
                        for statement in statements {
                            let mut next = None;
                            let values = [taken];
                            let found = session.call(statement, &values, |row| {
                                next = (row.value(0).len() == 16).then(|| row.id(0));
                            });
                            expect(found?, 1)?;
                            taken = next.map_or(taken, Value::Id);
                        }
                        Ok(())
                    }) as Call
                })
            };
            [[RESERVE, SETTLE], [TAKE, GIVE_BACK]].iter().map(arm).collect()
        },
        || Ok(()),
    )?;
    Ok(lines(&["reserve and settle", "upsert and update"], &figures, &[(0, 1, None)]))
}
