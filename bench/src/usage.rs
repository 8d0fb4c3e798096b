//! What recording usage costs: against a row for each day of a user that is counted up, against a
//! ledger alone, and against both as one statement, which is the least that a ledger with totals takes.

use uuid::Uuid;

use crate::Result;
use crate::access::{asker, param};
use crate::calls::{Call, Callers, Commit, expect, plan};
use crate::data::{As, Bench};
use crate::measure::{Arm, Plan, pairs};
use crate::row::{Line, Row, Side, Unit, at_most, lines, ratio, row};
use crate::wire::{Session, Statement, Value};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, function, commit) in [
        ("record", RECORD, Commit::Off),
        ("record", RECORD, Commit::On),
        ("increment", INCREMENT, Commit::Off),
    ] {
        for whose in [Whose::Spread, Whose::Hot] {
            for clients in [1, 16, 64] {
                let name = format!("usage-{what}-{}-{clients}{}", whose.name(), commit.suffix());
                rows.push(row(name, move |bench| write(bench, function, whose, clients, commit)));
            }
        }
    }
    rows.push(row("usage-finish", finish));
    rows.push(row("usage-month", month));
    rows
}

/// Whose usage it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// That of 1,000 users in 10 tenants, in turn.
    Spread,
    /// That of nobody in particular, in one tenant.
    Hot,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Hot => "hot",
        }
    }
}

/// A statement, and whether it takes a key and a payload besides tenant and user.
#[derive(Clone, Copy)]
struct Recording {
    name: &'static str,
    sql: &'static str,
    has_key: bool,
}

const PAYLOAD: &str = r#"{"prompt_tokens": 512, "completion_tokens": 128}"#;

const RECORD: Recording = Recording {
    name: "record_usage",
    sql: "select from record_usage($1, $user, 'model-1', $3::text::jsonb, $2)",
    has_key: true,
};

const INCREMENT: Recording = Recording {
    name: "increment_usage_metrics",
    sql: "select increment_usage_metrics($1, $user, current_date, 512, 128, 0.002048)",
    has_key: false,
};

const UPSERT: Recording = Recording {
    name: "upsert",
    sql: "insert into plain.usage_metrics as u \
          (tenant_id, user_id, date, prompt_tokens, completion_tokens, request_count, estimated_cost) \
          values ($1, $user, current_date, 512, 128, 1, 0.002048) \
          on conflict (tenant_id, user_id, date) do update set \
          prompt_tokens = u.prompt_tokens + excluded.prompt_tokens, \
          completion_tokens = u.completion_tokens + excluded.completion_tokens, \
          request_count = u.request_count + excluded.request_count, \
          estimated_cost = u.estimated_cost + excluded.estimated_cost returning date",
    has_key: false,
};

const LEDGER: Recording = Recording {
    name: "insert into a ledger",
    sql: "insert into side.usage_events (tenant_id, user_id, occurred_at, recorded_at, prompt_tokens, \
          completion_tokens, request_count, date, idempotency_key, kind, model, usage, cost, recorded_by) \
          values ($1, $user, now(), now(), 512, 128, 1, current_date, $2, 'usage', 'model-1', \
          $3::text::jsonb, 0.002048, current_user) on conflict do nothing returning date",
    has_key: true,
};

const BOTH: Recording = Recording {
    name: "ledger and upsert",
    sql: "with event as ( \
          insert into side.usage_events (tenant_id, user_id, occurred_at, recorded_at, prompt_tokens, \
          completion_tokens, request_count, date, idempotency_key, kind, model, usage, cost, recorded_by) \
          values ($1, $user, now(), now(), 512, 128, 1, current_date, $2, 'usage', 'model-1', \
          $3::text::jsonb, 0.002048, current_user) on conflict do nothing returning *) \
          insert into plain.usage_metrics as u \
          (tenant_id, user_id, date, prompt_tokens, completion_tokens, request_count, estimated_cost) \
          select tenant_id, user_id, date, prompt_tokens, completion_tokens, request_count, cost from event \
          on conflict (tenant_id, user_id, date) do update set \
          prompt_tokens = u.prompt_tokens + excluded.prompt_tokens, \
          completion_tokens = u.completion_tokens + excluded.completion_tokens, \
          request_count = u.request_count + excluded.request_count, \
          estimated_cost = u.estimated_cost + excluded.estimated_cost returning date",
    has_key: true,
};

fn write(
    bench: &Bench,
    function: Recording,
    whose: Whose,
    clients: usize,
    commit: Commit,
) -> Result<Vec<Line>> {
    let users = users(bench)?;
    let recordings = [function, UPSERT, LEDGER, BOTH];
    let figures = pairs(
        bench,
        &plan(clients, commit),
        |pair| {
            let arm = |(arm, recording): (usize, &Recording)| {
                let run = format!(
                    "{}-{}-{clients}{}-{pair}-{arm}",
                    recordings[0].name,
                    whose.name(),
                    commit.suffix()
                );
                recorders(bench, *recording, whose, clients, commit, &users, &run)
            };
            recordings.iter().enumerate().map(arm).collect()
        },
        || Ok(()),
    )?;
    let names = recordings.map(|recording| recording.name);
    Ok(lines(&names, &figures, &[(0, 1, None), (0, 2, None), (0, 3, None)]))
}

/// Every user with his tenant, in no order.
fn users(bench: &Bench) -> Result<Vec<(Uuid, Uuid)>> {
    let sql = "select tenant_id, id from plain.users order by md5(id::text)";
    let rows = bench.connect(As::Superuser)?.query(sql, &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn recorders(
    bench: &Bench,
    recording: Recording,
    whose: Whose,
    clients: usize,
    commit: Commit,
    users: &[(Uuid, Uuid)],
    run: &str,
) -> Result<Arm> {
    let user = match (whose, recording.has_key) {
        (Whose::Hot, _) => "null::uuid",
        (Whose::Spread, true) => "$4",
        (Whose::Spread, false) => "$2",
    };
    let sql = recording.sql.replace("$user", user);
    let hot = bench.owner.tenant;
    let callers = Callers { who: As::Service, clients, commit, statements: &[&sql] };
    callers.connect(bench, |client| {
        let (users, run) = (users.to_vec(), run.to_string());
        let mut n = 0;
        Box::new(move |session: &mut Session, statements: &[Statement]| {
            n += 1;
            // Two clients are seldom at the same user.
            let (tenant, user) = users[(client * 397 + n) % users.len()];
            let key = format!("{run}-{client}-{n}");
            let mut values = vec![Value::Id(if whose == Whose::Hot { hot } else { tenant })];
            if recording.has_key {
                values.extend([Value::Text(&key), Value::Text(PAYLOAD)]);
            }
            if whose == Whose::Spread {
                values.push(Value::Id(user));
            }
            expect(session.call(&statements[0], &values, |_| ())?, 1)
        }) as Call
    })
}

const FINISH: [(&str, &str); 2] = [
    ("finish_message, with tokens", "select finish_message($1, 512, 128, 'model-1', 800)"),
    ("without", "select finish_message($1, latency_ms => 800)"),
];

/// What it adds to the end of an answer.
fn finish(bench: &Bench) -> Result<Vec<Line>> {
    let plan = plan(1, Commit::Off);
    let conversations = bench.small_conversations()?;
    let figures = pairs(
        bench,
        &plan,
        |pair| {
            let arm = |(arm, (_, sql)): (usize, &(&str, &str))| {
                let count = plan.warm_up + plan.turns * plan.calls;
                let mut places =
                    conversations.iter().copied().cycle().skip((2 * pair + arm) * count);
                let places: Vec<Uuid> = places.by_ref().take(count).collect();
                let mut session = bench.session(As::Service)?;
                let begin = session.prepare("select begin_message(c) from unnest($1::uuid[]) c")?;
                let append =
                    session.prepare("select append_chunk(m, 'x', 0) from unnest($1::uuid[]) m")?;
                let mut messages = Vec::new();
                session.call(&begin, &[Value::Ids(&places)], |row| messages.push(row.id(0)))?;
                session.call(&append, &[Value::Ids(&messages)], |_| ())?;
                let callers = Callers {
                    who: As::Service,
                    clients: 1,
                    commit: Commit::Off,
                    statements: &[sql],
                };
                callers.connect(bench, |_| {
                    let mut messages = messages.clone().into_iter();
                    Box::new(move |session: &mut Session, statements: &[Statement]| {
                        let message = messages.next().ok_or("no message left")?;
                        expect(session.call(&statements[0], &[Value::Id(message)], |_| ())?, 1)
                    }) as Call
                })
            };
            FINISH.iter().enumerate().map(arm).collect()
        },
        || Ok(()),
    )?;
    Ok(lines(&FINISH.map(|(name, _)| name), &figures, &[(0, 1, None)]))
}

const MONTH: &str = "select * from usage_by_month where tenant_id = $1 and month = $2::text::date";

const MONTH_PLAIN: &str =
    "select * from side.usage_months where tenant_id = $1 and month = $2::text::date";

/// A month of one tenant, and one that has as many rows as 64 clients leave behind.
fn month(bench: &Bench) -> Result<Vec<Line>> {
    let folded = "2025-08-01";
    let in_slots = "2025-09-01";
    let mut client = bench.connect(As::Superuser)?;
    client.batch_execute("set session_replication_role = replica")?;
    client.execute(
        "insert into usage_months (tenant_id, month, slot, prompt_tokens, completion_tokens, request_count, \
         unpriced_count, cost) \
         select tenant_id, month, 1000 + n, 0, 0, 0, 0, 0 from usage_months, generate_series(1, 64) n \
         where month = '2025-09-01' and tenant_id = $1",
        &[&bench.admin.tenant],
    )?;
    bench.settle()?;
    let ask = |who, statement: &str, month: &'static str| {
        let params = vec![param(bench.admin.tenant), param(month)];
        let client = bench.connect_for(who, &bench.admin)?;
        asker(client, statement, params, |rows| rows.len() == 1)
    };
    let figures = pairs(
        bench,
        &Plan { turns: 100, calls: 5, warm_up: 20, per_call: 1, alone: true },
        |_| {
            Ok(vec![
                ask(As::Service, MONTH, folded)?,
                ask(As::Service, MONTH, in_slots)?,
                ask(As::Member, MONTH, folded)?,
                ask(As::Service, MONTH_PLAIN, folded)?,
                ask(As::Member, MONTH_PLAIN, folded)?,
            ])
        },
        || Ok(()),
    )?;
    let arms = [
        "usage_by_month",
        "of 65 rows",
        "as an admin",
        "row of a month",
        "row of a month, as an admin",
    ];
    let comparisons = [(0, 3, ratio(1.5)), (1, 3, ratio(1.5)), (2, 4, ratio(1.5))];
    let mut found = lines(&arms, &figures, &comparisons);
    let slowest = figures[1].iter().zip(&figures[2]).map(|(one, other)| one.max(*other));
    let slowest = Side::new("slowest of them", &slowest.collect::<Vec<_>>());
    found.push(Line::alone(slowest, Unit::Seconds, at_most(0.015)));
    Ok(found)
}
