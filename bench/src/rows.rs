//! What is measured. The baselines are written to win: prepared statements, no policy, no trigger.

use std::time::SystemTime;

use postgres::types::ToSql;
use postgres::{Client, Statement};
use uuid::Uuid;

use crate::Result;
use crate::data::{As, Bench, connect, program};
use crate::measure::{Arm, Figures, Plan, Work, beside_a_writer, join_backend, pairs};
use crate::report::{Line, Unit};

type Run = dyn Fn(&Bench) -> Result<Vec<Line>>;

pub struct Row {
    pub name: String,
    pub run: Box<Run>,
}

fn row(name: impl Into<String>, run: impl Fn(&Bench) -> Result<Vec<Line>> + 'static) -> Row {
    Row { name: name.into(), run: Box::new(run) }
}

pub fn all() -> Vec<Row> {
    let mut rows = vec![row("noise", noise)];
    for messages in [20, 100, 1000] {
        rows.push(row(format!("read-{messages}"), move |bench| read(bench, messages)));
    }
    for messages in [20, 100, 1000] {
        rows.push(row(format!("rls-{messages}"), move |bench| rls(bench, messages)));
    }
    for messages in [20, 100, 1000] {
        rows.push(row(format!("rls-writer-{messages}"), move |bench| {
            beside_a_writer(bench, || rls(bench, messages))
        }));
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
    rows.push(row("list-50", |bench| list(bench, 50, 200)));
    rows.push(row("list-25", |bench| list(bench, 25, 400)));
    rows.push(row("id-call", id_call));
    rows.push(row("id-insert", id_insert));
    rows.push(row("dump", dump));
    rows
}

const READ: &str = "select * from get_conversation_with_messages($1)";

const JOIN: &str = "select c.id, c.session_id, c.title, m.id, m.role::text, m.content, \
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
    Ok(lines(&arms, &figures, &[(0, 1, Some(1.0)), (0, 2, Some(1.0))]))
}

fn rls(bench: &Bench, messages: i32) -> Result<Vec<Line>> {
    let keys = bench.conversations_of(messages)?;
    let figures = pairs(
        bench,
        &reading(messages),
        |pair| {
            let arm = |arm, who| reader(bench, who, READ, share(&keys, arm + pair, 2), messages);
            Ok(vec![arm(0, As::Member)?, arm(1, As::Bypass)?])
        },
        || Ok(()),
    )?;
    Ok(lines(&["member", "role that bypasses RLS"], &figures, &[(0, 1, Some(1.25))]))
}

/// Turns of a few milliseconds at most: what disturbs one arm disturbs the others too.
fn reading(messages: i32) -> Plan {
    let turns = match messages {
        20 => 120,
        100 => 90,
        _ => 60,
    };
    Plan { turns, calls: 5, warm_up: 20, per_call: 1, alone: true }
}

/// One of several equal parts. What one arm has just read or written is warm in the processor's
/// cache: another arm on the same conversations would be the faster for it.
fn share(keys: &[Uuid], part: usize, of: usize) -> Vec<Uuid> {
    if keys.len() < of {
        return keys.to_vec();
    }
    keys.iter().copied().skip(part % of).step_by(of).collect()
}

/// Reads one conversation after the other, and makes sure that it gets all of each.
fn reader(bench: &Bench, who: As, statement: &str, keys: Vec<Uuid>, messages: i32) -> Result<Arm> {
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

fn expect_rows(
    client: &mut Client,
    statement: &Statement,
    params: &[&(dyn ToSql + Sync)],
    expected: usize,
) -> Result<()> {
    let found = client.query(statement, params)?.len();
    if found == expected {
        Ok(())
    } else {
        Err(format!("{found} rows where {expected} were expected").into())
    }
}

const ADD: &str = "select message_id, sequence_number from add_message($1, 'user', $2)";

const INSERT: &str = "insert into messages (conversation_id, role, content) \
                      values ($1, 'user', $2) returning id, sequence_number";

const ADD_PLAIN: &str = "with c as (update plain.conversations \
                set last_sequence = last_sequence + 1, updated_at = greatest(updated_at, now()) \
                where id = $1 and deleted_at is null \
                returning id, tenant_id, last_sequence) \
     insert into plain.messages (conversation_id, tenant_id, sequence_number, role, content) \
     select id, tenant_id, last_sequence, 'user', $2 from c \
     returning id, sequence_number";

const ADD_PLPGSQL: &str = "select message_id, sequence_number from plain.add_message($1, $2)";

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
    let target = Some(1.1);
    Ok(lines(&arms, &figures, &[(0, 2, target), (0, 3, target), (1, 2, target), (1, 3, target)]))
}

/// Clients that write into conversations of their own, one after the other.
fn writers(
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

const LIST: &str = "select * from list_conversations($1)";

const LIST_BEFORE: &str = "select * from list_conversations($1, $2, $3)";

const LIST_PLAIN: &str = "select id, session_id, continuation_id, title, visibility, is_pinned, \
                                 last_sequence, created_at, updated_at \
                          from plain.conversations \
                          where tenant_id = $2 and user_id = $3 and not is_archived and deleted_at is null \
                          order by updated_at desc, id desc limit $1";

const LIST_PLAIN_BEFORE: &str = "select id, session_id, continuation_id, title, visibility, is_pinned, \
                                        last_sequence, created_at, updated_at \
                                 from plain.conversations \
                                 where tenant_id = $2 and user_id = $3 and not is_archived and deleted_at is null \
                                 and (updated_at, id) < ($4, $5) \
                                 order by updated_at desc, id desc limit $1";

fn list(bench: &Bench, rows: i32, page: i32) -> Result<Vec<Line>> {
    let mut client = bench.connect(As::Superuser)?;
    let owned: i64 = client
        .query_one("select count(*) from conversations where user_id = $1", &[&bench.user])?
        .get(0);
    let page = page.min(owned as i32 / rows);
    let offset = i64::from((page - 1) * rows - 1);
    let cursor = |client: &mut Client, table: &str| -> Result<(SystemTime, Uuid)> {
        let last = client.query_one(
            &format!(
                "select updated_at, id from {table} where user_id = $1 \
                 order by updated_at desc, id desc limit 1 offset $2"
            ),
            &[&bench.user, &offset],
        )?;
        Ok((last.get(0), last.get(1)))
    };
    let (before, before_id) = cursor(&mut client, "public.conversations")?;
    let (plain_before, plain_before_id) = cursor(&mut client, "plain.conversations")?;

    let (tenant, user) = (bench.tenant, bench.user);
    let limit = i64::from(rows);
    let figures = pairs(
        bench,
        &Plan { turns: 100, calls: 5, warm_up: 20, per_call: 1, alone: true },
        |_| {
            let arm = |who, statement: &str, params: Vec<Box<dyn ToSql + Sync + Send>>| {
                let mut client = bench.connect(who)?;
                join_backend(&mut client)?;
                let statement = client.prepare(statement)?;
                let work = move || {
                    let params: Vec<&(dyn ToSql + Sync)> =
                        params.iter().map(|param| &**param as _).collect();
                    expect_rows(&mut client, &statement, &params, rows as usize)
                };
                Ok::<Arm, Box<dyn std::error::Error + Send + Sync>>(vec![Box::new(work)])
            };
            Ok(vec![
                arm(As::Member, LIST, vec![Box::new(rows)])?,
                arm(
                    As::Member,
                    LIST_BEFORE,
                    vec![Box::new(rows), Box::new(before), Box::new(before_id)],
                )?,
                arm(
                    As::Bypass,
                    LIST_PLAIN,
                    vec![Box::new(limit), Box::new(tenant), Box::new(user)],
                )?,
                arm(
                    As::Bypass,
                    LIST_PLAIN_BEFORE,
                    vec![
                        Box::new(limit),
                        Box::new(tenant),
                        Box::new(user),
                        Box::new(plain_before),
                        Box::new(plain_before_id),
                    ],
                )?,
            ])
        },
        || Ok(()),
    )?;
    let last = format!("page {page}");
    let plain_last = format!("query on plain, page {page}");
    let arms = ["page 1", &last, "query on plain, page 1", &plain_last];
    Ok(lines(&arms, &figures, &[(1, 0, Some(1.3)), (0, 2, None), (1, 3, None)]))
}

fn id_call(bench: &Bench) -> Result<Vec<Line>> {
    let count = 20_000;
    let plan = Plan { turns: 50, calls: 1, warm_up: 1, per_call: count, alone: true };
    let figures = pairs(
        bench,
        &plan,
        |_| {
            let arm = |function: &str| -> Result<Arm> {
                let mut client = bench.connect(As::Bypass)?;
                join_backend(&mut client)?;
                let statement = client.prepare(&format!(
                    "select count({function}()) from generate_series(1, {count})"
                ))?;
                Ok(vec![Box::new(move || expect_rows(&mut client, &statement, &[], 1))])
            };
            Ok(vec![arm("new_id")?, arm("gen_random_uuid")?])
        },
        || Ok(()),
    )?;
    Ok(lines(&["new_id", "gen_random_uuid"], &figures, &[(0, 1, Some(1.0))]))
}

fn id_insert(bench: &Bench) -> Result<Vec<Line>> {
    let arms = ["new_id", "gen_random_uuid"];
    let count = 100_000;
    let plan = Plan { turns: 10, calls: 1, warm_up: 0, per_call: count, alone: true };
    let mut client = bench.connect(As::Superuser)?;
    let mut sizes: Figures = vec![Vec::new(); 2];
    let figures = pairs(
        bench,
        &plan,
        |_| {
            arms.iter()
                .map(|table| -> Result<Arm> {
                    let mut client = bench.connect(As::Superuser)?;
                    join_backend(&mut client)?;
                    client.batch_execute(&format!(
                        "truncate side.{table}; set synchronous_commit = off"
                    ))?;
                    let statement = client.prepare(&format!(
                        "insert into side.{table} (payload) \
                         select 'Payload of row ' || n from generate_series(1, {count}) as n"
                    ))?;
                    Ok(vec![Box::new(move || {
                        client.execute(&statement, &[])?;
                        Ok(())
                    })])
                })
                .collect()
        },
        || {
            for (table, sizes) in arms.iter().zip(&mut sizes) {
                let size: i64 = client
                    .query_one(&format!("select pg_relation_size('side.{table}_pkey')"), &[])?
                    .get(0);
                sizes.push(size as f64);
            }
            Ok(())
        },
    )?;
    client.batch_execute("truncate side.new_id, side.gen_random_uuid")?;
    let mut found = lines(&["insert of new_id", arms[1]], &figures, &[(0, 1, Some(1.0))]);
    for mut line in lines(&["its index", "its index"], &sizes, &[(0, 1, Some(1.0))]) {
        line.unit = Unit::Bytes;
        found.push(line);
    }
    Ok(found)
}

/// What is dumped, and a question that a complete copy answers with true.
struct Copy {
    database: &'static str,
    schemas: &'static [&'static str],
    is_complete: &'static str,
}

const COPIES: [Copy; 2] = [
    Copy {
        database: "bench_copy",
        schemas: &["-N", "plain", "-N", "side"],
        is_complete: "select exists (select from pg_extension where extname = 'pg_conversation') \
                      and exists (select from public.messages)",
    },
    Copy {
        database: "bench_copy_plain",
        schemas: &["-n", "plain"],
        is_complete: "select exists (select from plain.messages)",
    },
];

/// Without compression, which would take most of the time of both sides.
fn dump(bench: &Bench) -> Result<Vec<Line>> {
    let file = std::env::temp_dir().join(format!("pg_conversation-{}.dump", std::process::id()));
    let name = file.to_string_lossy().into_owned();
    let source = bench.size.database;
    let arm = |copy: &'static Copy| -> Arm {
        let name = name.clone();
        vec![Box::new(move || {
            let database = copy.database;
            let mut args = vec!["-Fc", "-Z0", "-d", source, "-f", &name];
            args.extend(copy.schemas);
            program("pg_dump", &args)?;
            connect("postgres", "postgres")?
                .batch_execute(&format!("create database {database}"))?;
            program("pg_restore", &["-e", "-d", database, &name])?;
            if connect(database, "postgres")?.query_one(copy.is_complete, &[])?.get(0) {
                Ok(())
            } else {
                Err(format!("the restored database {database} lacks something").into())
            }
        })]
    };
    // Not in the figures, for it waits until all that is dirty is on disk.
    let drop_copies = || -> Result<()> {
        let mut client = connect("postgres", "postgres")?;
        for copy in &COPIES {
            client.batch_execute(&format!("drop database if exists {}", copy.database))?;
        }
        Ok(())
    };
    drop_copies()?;
    let figures = pairs(
        bench,
        &Plan { turns: 1, calls: 1, warm_up: 0, per_call: 1, alone: false },
        |_| Ok(COPIES.iter().map(arm).collect()),
        drop_copies,
    );
    let _ = std::fs::remove_file(&file);
    Ok(lines(&["dump and restore", "plain tables"], &figures?, &[(0, 1, Some(1.1))]))
}

fn lines(
    arms: &[&str],
    figures: &Figures,
    comparisons: &[(usize, usize, Option<f64>)],
) -> Vec<Line> {
    comparisons
        .iter()
        .map(|&(product, baseline, target)| Line {
            product: arms[product].into(),
            baseline: arms[baseline].into(),
            figures: figures[product]
                .iter()
                .copied()
                .zip(figures[baseline].iter().copied())
                .collect(),
            unit: Unit::Seconds,
            target,
        })
        .collect()
}
