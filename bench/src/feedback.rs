//! Feedback, against the same table that nobody counts.

use uuid::Uuid;

use crate::Result;
use crate::access::{asker, param};
use crate::calls::{Call, Callers, Commit, expect, plan};
use crate::data::{As, Bench, share};
use crate::measure::{Plan, pairs};
use crate::row::{Line, Row, at_most, lines, row};
use crate::wire::{Session, Statement, Value};

pub fn rows() -> Vec<Row> {
    let give = [1, 8]
        .map(|clients| row(format!("feedback-give-{clients}"), move |bench| give(bench, clients)));
    let mut rows: Vec<Row> = give.into();
    rows.push(row("feedback-read", read));
    rows
}

const GIVE: &str = "select created from give_feedback($1, 1)";

const INSERT: &str =
    "insert into feedback (message_id, user_id, rating) values ($1, $2, 1) returning id";

const INSERT_PLAIN: &str = "insert into plain.feedback (message_id, conversation_id, tenant_id, user_id, rating) \
    select m.id, m.conversation_id, m.tenant_id, $2, 1 from plain.messages m where m.id = $1 \
    on conflict (message_id, user_id) do update set rating = excluded.rating, updated_at = now() \
    returning id";

/// Each client rates answers that nobody has rated.
fn give(bench: &Bench, clients: usize) -> Result<Vec<Line>> {
    let answers = answers(bench, "not exists")?;
    let (turns, calls) = if clients == 1 { (20, 20) } else { (10, 10) };
    let plan = Plan { turns, calls, ..plan(clients, Commit::Off) };
    let sides =
        [(As::Member, GIVE, false), (As::Service, INSERT, true), (As::Service, INSERT_PLAIN, true)];
    let parts = sides.len() * bench.size.pairs;
    let figures = pairs(
        bench,
        &plan,
        |pair| {
            let arm = |(arm, (who, sql, names_user)): (usize, &(As, &str, bool))| {
                let part = share(&answers, sides.len() * pair + arm, parts);
                let callers =
                    Callers { who: *who, clients, commit: Commit::Off, statements: &[sql] };
                callers.connect(bench, |client| {
                    let mut answers = share(&part, client, clients).into_iter();
                    let (user, names_user) = (bench.owner.id, *names_user);
                    Box::new(move |session: &mut Session, statements: &[Statement]| {
                        let answer = answers.next().ok_or("no answer left")?;
                        let values = [Value::Id(answer), Value::Id(user)];
                        let values = if names_user { &values[..] } else { &values[..1] };
                        expect(session.call(&statements[0], values, |_| ())?, 1)
                    }) as Call
                })
            };
            sides.iter().enumerate().map(arm).collect()
        },
        || Ok(()),
    )?;
    let arms = ["give_feedback, as a member", "insert", "upsert, no counts"];
    Ok(lines(&arms, &figures, &[(0, 2, None), (1, 2, None)]))
}

/// Answers of user 1 which somebody has rated when the data set was made, or nobody.
fn answers(bench: &Bench, exists: &str) -> Result<Vec<Uuid>> {
    let sql = format!(
        "select m.id from plain.messages m join plain.conversations c on c.id = m.conversation_id \
         where c.user_id = $1 and m.role = 'assistant' \
         and {exists} (select from public.feedback f where f.message_id = m.id) order by md5(m.id::text)"
    );
    let rows = bench.connect(As::Superuser)?.query(&sql, &[&bench.owner.id])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

const READ: &str = "select * from get_message_feedback($1)";

const COUNTED: &str = "select thumbs_up, thumbs_down from feedback_counts where message_id = $1";

const COUNT: &str = "select count(*) filter (where rating > 0), count(*) filter (where rating < 0) \
                     from plain.feedback where message_id = $1";

fn read(bench: &Bench) -> Result<Vec<Line>> {
    let rated = *answers(bench, "exists")?.first().ok_or("nobody has rated anything")?;
    let ask = |who, statement: &str| {
        asker(bench.connect(who)?, statement, vec![param(rated)], |rows| rows.len() == 1)
    };
    let figures = pairs(
        bench,
        &Plan { turns: 100, calls: 5, warm_up: 20, per_call: 1, alone: true },
        |_| Ok(vec![ask(As::Member, READ)?, ask(As::Service, COUNTED)?, ask(As::Service, COUNT)?]),
        || Ok(()),
    )?;
    let arms = ["get_message_feedback, a member", "row of counts", "count, no policy"];
    Ok(lines(&arms, &figures, &[(0, 1, at_most(0.005)), (0, 2, at_most(0.005))]))
}
