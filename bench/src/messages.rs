//! Reading and adding messages. The baselines are written to win: prepared statements, no policy,
//! no trigger.

use uuid::Uuid;

use crate::Result;
use crate::data::{As, Bench, share};
use crate::measure::{Arm, Plan, Work, expect_rows, join_backend, pairs};
use crate::row::{Line, Row, lines, ratio, row};

pub fn rows() -> Vec<Row> {
    let mut rows = vec![row("noise", noise)];
    for messages in [20, 100, 1000] {
        rows.push(row(format!("read-{messages}"), move |bench| read(bench, messages)));
    }
    for (name, who, clients, commit) in [
        ("add-1", As::Bypass, 1, "off"),
        ("add-1-member", As::Member, 1, "off"),
        ("add-1-sync", As::Bypass, 1, "on"),
        ("add-8", As::Bypass, 8, "off"),
        ("add-8-member", As::Member, 8, "off"),
        ("add-8-sync", As::Bypass, 8, "on"),
    ] {
        rows.push(row(name, move |bench| add(bench, who, clients, commit)));
    }
    rows
}

pub const READ: &str = "select * from get_conversation_with_messages($1)";

pub const JOIN: &str = "select c.id, c.session_id, c.title, m.id, m.role::text, m.content, \
                           m.sequence_number, m.created_at \
                    from plain.conversations c \
                    left join plain.messages m on m.conversation_id = c.id \
                    where c.id = $1 and c.deleted_at is null \
                    order by m.sequence_number";

const READ_PLPGSQL: &str = "select * from plain.get_conversation_with_messages($1)";

/// The same statement on both sides: whatever is not 1.00 here is the machine's.
fn noise(bench: &Bench) -> Result<Vec<Line>> {
    let keys = bench.conversations_of(20)?;
    let figures = pairs(
        bench,
        &reading(20),
        |pair| {
            let keys = |arm| share(&keys, arm + pair, 3);
            Ok(vec![
                reader(bench, As::Bypass, JOIN, keys(0), 20)?,
                reader(bench, As::Bypass, JOIN, keys(1), 20)?,
                reader(bench, As::Bypass, "select $1::uuid", keys(2), 1)?,
            ])
        },
        || Ok(()),
    )?;
    let arms = ["join", "join again", "empty statement"];
    Ok(lines(&arms, &figures, &[(0, 1, None), (0, 2, None)]))
}

fn read(bench: &Bench, messages: i32) -> Result<Vec<Line>> {
    let keys = bench.conversations_of(messages)?;
    let figures = pairs(
        bench,
        &reading(messages),
        |pair| {
            let statements = [READ, JOIN, READ_PLPGSQL].into_iter().enumerate();
            let arm = |(arm, statement)| {
                reader(bench, As::Bypass, statement, share(&keys, arm + pair, 3), messages)
            };
            statements.map(arm).collect()
        },
        || Ok(()),
    )?;
    let arms = ["get_conversation…", "join", "PL/pgSQL function"];
    Ok(lines(&arms, &figures, &[(0, 1, ratio(1.0)), (0, 2, ratio(1.0))]))
}

/// Turns of a few milliseconds at most: what disturbs one arm disturbs the others too.
pub fn reading(messages: i32) -> Plan {
    let turns = match messages {
        20 => 120,
        100 => 90,
        _ => 60,
    };
    Plan { turns, calls: 5, warm_up: 20, per_call: 1, alone: true }
}

/// Reads one conversation after the other, and makes sure that it gets all of each.
pub fn reader(
    bench: &Bench,
    who: As,
    statement: &str,
    keys: Vec<Uuid>,
    messages: i32,
) -> Result<Arm> {
    let mut client = bench.connect(who)?;
    join_backend(&mut client)?;
    let statement = client.prepare(statement)?;
    let mut keys = keys.into_iter().cycle();
    let work = move || {
        let key = keys.next().ok_or("no conversations")?;
        expect_rows(&mut client, &statement, &[&key], messages as usize)
    };
    Ok(vec![Box::new(work)])
}

pub const ADD: &str = "select message_id, sequence_number from add_message($1, 'user', $2)";

pub const INSERT: &str = "insert into messages (conversation_id, role, content) \
                      values ($1, 'user', $2) returning id, sequence_number";

const ADD_PLAIN: &str = "with c as (update plain.conversations \
                set last_sequence = last_sequence + 1, updated_at = greatest(updated_at, now()) \
                where id = $1 and deleted_at is null \
                returning id, tenant_id, last_sequence) \
     insert into plain.messages (conversation_id, tenant_id, sequence_number, role, content) \
     select id, tenant_id, last_sequence, 'user', $2 from c \
     returning id, sequence_number";

pub const ADD_PLPGSQL: &str = "select message_id, sequence_number from plain.add_message($1, $2)";

/// Two arms on either side, so that both grow alike.
fn add(bench: &Bench, who: As, clients: usize, commit: &str) -> Result<Vec<Line>> {
    let keys = bench.small_conversations()?;
    let (turns, calls) = match (clients, commit) {
        (1, "off") => (100, 5),
        (1, _) => (60, 2),
        (_, "off") => (25, 20),
        _ => (15, 10),
    };
    let plan = Plan { turns, calls, warm_up: 10, per_call: 1, alone: clients == 1 };
    let figures = pairs(
        bench,
        &plan,
        |pair| {
            let statements =
                [(who, ADD), (who, INSERT), (As::Bypass, ADD_PLAIN), (As::Bypass, ADD_PLPGSQL)];
            let arm = |(arm, (who, statement))| {
                writers(bench, who, statement, &share(&keys, arm + pair, 4), clients, commit)
            };
            statements.into_iter().enumerate().map(arm).collect()
        },
        || Ok(()),
    )?;
    let arms = ["add_message", "insert", "update + insert", "PL/pgSQL function"];
    let target = ratio(1.1);
    Ok(lines(&arms, &figures, &[(0, 2, target), (0, 3, target), (1, 2, target), (1, 3, target)]))
}

/// Clients that write into conversations of their own, one after the other.
pub fn writers(
    bench: &Bench,
    who: As,
    statement: &str,
    keys: &[Uuid],
    clients: usize,
    commit: &str,
) -> Result<Arm> {
    let text = "What is an analytical engine? ".repeat(8);
    (0..clients)
        .map(|n| {
            let mut client = bench.connect(who)?;
            join_backend(&mut client)?;
            client.batch_execute(&format!("set synchronous_commit = {commit}"))?;
            let statement = client.prepare(statement)?;
            let mut keys = share(keys, n, clients).into_iter().cycle();
            let text = text.clone();
            let work = move || {
                let key = keys.next().ok_or("no conversations")?;
                expect_rows(&mut client, &statement, &[&key, &text], 1)
            };
            Ok(Box::new(work) as Work)
        })
        .collect()
}
