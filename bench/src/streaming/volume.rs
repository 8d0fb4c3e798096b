//! What an answer leaves in the log and on disk, in bytes per byte of its text.

use postgres::Client;
use uuid::Uuid;

use super::writers::{Send, send_array, send_each};
use super::{APPEND, APPEND_WINDOW, Commit, Half, INSERT, Tokens, open_in};
use crate::Result;
use crate::data::{Bench, empty_database};
use crate::row::{Line, Row, Side, Unit, row};
use crate::wire::{Session, Statement, Value};

const DATABASE: &str = "bench_volume";

/// Files grow by this much at least.
const PAGE: f64 = 8192.0;

pub fn rows() -> Vec<Row> {
    vec![row("stream-volume", volume)]
}

/// One way to keep an answer while it comes in.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    half: Half,
    tokens: usize,
    window: usize,
    statement: &'static str,
    send: Send,
    tables: &'static [&'static str],
    /// What ends the answer and takes away what is no longer needed.
    finish: &'static [&'static str],
}

const GROW: &str = "update plain.messages set content = content || $2 where id = $1";

const REWRITE: &str = "update side.documents set document = jsonb_set( \
         document, '{answer}', to_jsonb(document ->> 'answer' || $2)) \
     where id = $1";

fn ways(tokens: usize) -> [Way; 5] {
    let product = Way {
        name: "append_chunk",
        half: Half::Product,
        tokens,
        window: 1,
        statement: APPEND,
        send: send_each,
        tables: &["public.messages", "public.message_chunks"],
        finish: &["select finish_message($1)", "select cleanup_streaming_artifacts($1::uuid)"],
    };
    // Each token costs these as much as the answer is long so far. They get an eighth of the
    // answer, and would take eight times as much per byte for all of it.
    let quadratic = tokens / 8;
    [
        product,
        Way {
            name: "append_chunks of 16",
            window: 16,
            statement: APPEND_WINDOW,
            send: send_array,
            ..product
        },
        Way {
            name: "insert",
            half: Half::Plain,
            tokens,
            window: 1,
            statement: INSERT,
            send: send_each,
            tables: &["plain.messages", "plain.message_chunks"],
            finish: &[
                "update plain.messages set content = ( \
                     select string_agg(chunk_content, '' order by chunk_index) \
                     from plain.message_chunks where message_id = $1) \
                 where id = $1",
                "delete from plain.message_chunks where message_id = $1",
            ],
        },
        Way {
            name: "content || token",
            half: Half::Plain,
            tokens: quadratic,
            window: 1,
            statement: GROW,
            send: send_text,
            tables: &["plain.messages"],
            finish: &[],
        },
        Way {
            name: "JSON document",
            half: Half::Plain,
            tokens: quadratic,
            window: 1,
            statement: REWRITE,
            send: send_text,
            tables: &["side.documents"],
            finish: &[],
        },
    ]
}

fn send_text(
    session: &mut Session,
    statement: &Statement,
    message: Uuid,
    _: i32,
    tokens: &[&str],
) -> Result<()> {
    for token in tokens {
        session.call(statement, &[Value::Id(message), Value::Text(token)], |_| ())?;
    }
    Ok(())
}

/// In a database of its own, where nothing else writes and no table has room to fill.
fn volume(bench: &Bench) -> Result<Vec<Line>> {
    let mut client = empty_database(&bench.server, DATABASE)?;
    let conversation: Uuid = client.query_one("select create_conversation('Volume')", &[])?.get(0);
    client.batch_execute(
        "insert into plain.tenants select * from public.tenants;
         insert into plain.conversations select * from public.conversations;
         set synchronous_commit = off",
    )?;
    let mut session = bench.server.session(DATABASE, "postgres")?;
    session.batch(Commit::Off.settings())?;
    let ways = ways(32_000 / bench.size.haste);
    let found = ways
        .iter()
        .map(|way| measure(&mut client, &mut session, conversation, way))
        .collect::<Result<Vec<_>>>()?;
    drop((client, session));
    bench
        .server
        .client("postgres", "postgres")?
        .batch_execute(&format!("drop database {DATABASE}"))?;

    let [tokens, windows, insert, grow, document] = [0, 1, 2, 3, 4];
    let kinds = ["log", "size", "log at end", "growth"];
    let comparisons = [
        (tokens, insert, kinds.len()),
        (windows, insert, kinds.len()),
        // These have no end: the text is where it stays.
        (tokens, grow, 2),
        (tokens, document, 2),
    ];
    let side = |way: usize, kind: usize| {
        Side::new(format!("{}: {}", ways[way].name, kinds[kind]), &[found[way][kind]])
    };
    let lines = comparisons.iter().flat_map(|&(product, against, kinds)| {
        (0..kinds).map(move |kind| (product, against, kind))
    });
    let lines = lines.map(|(product, against, kind)| Line {
        product: side(product, kind),
        against: Some(side(against, kind)),
        unit: Unit::Times,
        target: None,
    });
    Ok(lines.collect())
}

/// Bytes per byte of text: in the log and on disk before the answer ends, in the log to its end, and
/// on disk for one more answer that finds the room of others.
fn measure(
    client: &mut Client,
    session: &mut Session,
    conversation: Uuid,
    way: &Way,
) -> Result<[f64; 4]> {
    client.batch_execute("truncate public.message_chunks, plain.message_chunks")?;
    let tokens = Tokens::new(0).take(way.tokens);
    let text = tokens.concat().len() as f64;
    let mut answer = || -> Result<[f64; 4]> {
        let message = open_in(session, way.half, &[conversation])?[0];
        // The conversation so far: 20 messages of 400 characters.
        client.execute(
            "insert into side.documents
             select $1, jsonb_build_object('messages', jsonb_agg(m), 'answer', '')
             from (select 'user' as role, string_agg(md5(20 * n + i || ''), ' ') as content
                   from generate_series(1, 20) as n, generate_series(1, 12) as i
                   group by n) as m",
            &[&message],
        )?;
        let statement = session.prepare(way.statement)?;
        client.batch_execute("checkpoint")?;
        let (log, size) = (log_position(client)?, size(client, way)?);
        for (n, window) in tokens.chunks(way.window).enumerate() {
            (way.send)(session, &statement, message, (n * way.window) as i32, window)?;
        }
        let (log_before, size_before) = (log_position(client)?, self::size(client, way)?);
        for statement in way.finish {
            let statement = session.prepare(statement)?;
            session.call(&statement, &[Value::Id(message)], |_| ())?;
        }
        for table in way.tables {
            client.batch_execute(&format!("vacuum {table}"))?;
        }
        let (log_after, size_after) = (log_position(client)?, self::size(client, way)?);
        Ok([log_before - log, size_before - size, log_after - log, size_after - size])
    };
    let [log_before, size_before, log_after, _] = answer()?;
    let growth = if way.finish.is_empty() {
        0.0
    } else {
        // Pages of an index that became empty are free after the next vacuum, if nobody holds it up.
        answer()?;
        answer()?[3].min(answer()?[3]).max(PAGE)
    };
    Ok([log_before, size_before, log_after, growth].map(|bytes| bytes / text))
}

fn log_position(client: &mut Client) -> Result<f64> {
    let statement = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
    Ok(client.query_one(statement, &[])?.get(0))
}

fn size(client: &mut Client, way: &Way) -> Result<f64> {
    let statement =
        "select sum(pg_total_relation_size(t::regclass))::float8 from unnest($1::text[]) as t";
    Ok(client.query_one(statement, &[&way.tables])?.get(0))
}
