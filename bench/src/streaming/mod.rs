//! Streaming of answers, against what applications make for themselves: a table of chunks with a
//! surrogate key, a foreign key and two indexes, Redis, or one text that grows.

mod access;
mod append;
mod decode;
mod latency;
mod listeners;
mod read;
mod redis;
mod volume;
mod window;
mod writers;

use uuid::Uuid;

use crate::Result;
use crate::data::{As, Bench};
use crate::row::{Row, row};
use crate::wire::{Session, Value};

pub fn rows() -> Vec<Row> {
    let rows = [
        append::rows(),
        window::rows(),
        read::rows(),
        redis::rows(),
        volume::rows(),
        latency::rows(),
        listeners::rows(),
        access::rows(),
    ];
    let among_others = |Row { name, run }| {
        row(name, move |bench| {
            fill(bench)?;
            run(bench)
        })
    };
    rows.into_iter().flatten().map(among_others).collect()
}

/// Gives each table of chunks those of earlier answers, a million of them: indexes have the depth
/// that they have on a server in use.
fn fill(bench: &Bench) -> Result<()> {
    let mut client = bench.connect(As::Superuser)?;
    if client.query_one("select exists (select from plain.message_chunks)", &[])?.get(0) {
        return Ok(());
    }
    let answers = 2048 / bench.size.haste / bench.size.haste;
    let messages = open(bench, Half::Product, answers)?;
    let plain_messages = open(bench, Half::Plain, answers)?;
    client.batch_execute("set synchronous_commit = off; set session_replication_role = replica")?;
    for (table, messages) in [
        ("public.message_chunks", &messages),
        ("plain.message_chunks", &plain_messages),
        ("side.chunks", &plain_messages),
        ("side.chunks_with_key", &plain_messages),
        ("side.chunks_with_notice", &plain_messages),
    ] {
        let insert = format!(
            "insert into {table} (message_id, chunk_index, chunk_content)
             select m, n, left(md5(n::text), 4)
             from unnest($1::uuid[]) as m, generate_series(0, {ANSWER} - 1) as n"
        );
        client.execute(&insert, &[messages])?;
    }
    client.batch_execute("reset session_replication_role")?;
    client.query("select finish_message(m) from unnest($1::uuid[]) as m", &[&messages])?;
    bench.settle()
}

/// Tokens of an answer: a whole number of windows.
const ANSWER: usize = 512;

const APPEND: &str = "select append_chunk($1, $2, $3)";

const APPEND_WINDOW: &str = "select append_chunks($1, $2, $3)";

const READ: &str = "select chunk_index, content, is_final, status, whole from read_stream($1, $2)";

const WAIT: &str =
    "select chunk_index, content, is_final, status, whole from wait_for_chunks($1, $2)";

const LISTEN: &str = "select listen_conversation($1)";

const INSERT: &str =
    "insert into plain.message_chunks (message_id, chunk_content, chunk_index) values ($1, $2, $3)";

const INSERT_MANY: &str = "insert into plain.message_chunks (message_id, chunk_content, chunk_index) \
     select $1, c.content, $3 - 1 + c.number \
     from unnest($2::text[]) with ordinality as c (content, number)";

/// When a call returns, what it wrote has ...
#[derive(Clone, Copy, PartialEq, Eq)]
enum Commit {
    /// been handed to the server, on either side.
    Off,
    /// reached the disk, on either side.
    On,
    /// done what each side does if nobody asks for anything else.
    Default,
}

impl Commit {
    fn settings(self) -> &'static str {
        match self {
            Self::Off => "set synchronous_commit = off; set pg_conversation.chunk_commit = sync",
            Self::On => "set synchronous_commit = on; set pg_conversation.chunk_commit = sync",
            Self::Default => "",
        }
    }

    /// What is added to the name of a row.
    fn suffix(self) -> &'static str {
        if self == Self::On { "-sync" } else { "" }
    }
}

/// Who has the messages that are streamed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Product,
    Plain,
}

/// Messages that are open for chunks, each in a conversation of its own while there are enough.
fn open(bench: &Bench, half: Half, count: usize) -> Result<Vec<Uuid>> {
    let conversations = bench.small_conversations()?.into_iter().cycle().take(count);
    open_in(&mut bench.session(As::Bypass)?, half, &conversations.collect::<Vec<_>>())
}

fn open_in(session: &mut Session, half: Half, conversations: &[Uuid]) -> Result<Vec<Uuid>> {
    let statement = session.prepare(match half {
        Half::Product => "select begin_message(c) from unnest($1::uuid[]) as c",
        Half::Plain => {
            "select m.message_id from unnest($1::uuid[]) as c \
             cross join lateral plain.add_message(c, '') as m"
        }
    })?;
    let mut messages = Vec::new();
    session.call(&statement, &[Value::Ids(conversations)], |row| messages.push(row.id(0)))?;
    Ok(messages)
}

/// Pieces of English as models send them, about four characters each, in no order that would
/// compress.
struct Tokens {
    state: u64,
}

impl Tokens {
    const WORDS: [&str; 64] = [
        " the", " of", " and", " to", " in", " a", " is", " that", " for", " it", " as", " was",
        " with", " be", " by", " on", " not", " model", " query", " but", " at", " are", " this",
        " have", " from", " or", " write", " row", " they", " which", " one", " you", " were",
        " all", " value", " table", " there", " would", " their", " we", " column", " been",
        " has", " when", " who", " will", " no", " more", " if", " out", "ing", "ed", "s", ",",
        ".", "'", "er", "ly", "\n\n", "tion", " data", " index", " page", " lock",
    ];

    fn new(seed: usize) -> Self {
        Self { state: seed as u64 + 1 }
    }

    fn next(&mut self) -> &'static str {
        // Knuth's generator; its high bits are the good ones.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Self::WORDS[(self.state >> 58) as usize]
    }

    fn take(&mut self, count: usize) -> Vec<&'static str> {
        (0..count).map(|_| self.next()).collect()
    }
}
