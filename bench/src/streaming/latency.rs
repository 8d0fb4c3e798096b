//! How long a token takes from the writer, whose call has returned, to a reader that has it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::decode::Changes;
use super::{APPEND, Half, INSERT, LISTEN, READ, Tokens, WAIT, open, open_in};
use crate::Result;
use crate::data::{As, Bench, empty_database};
use crate::row::{Line, Row, Side, Target, Unit, at_most, row};
use crate::server::Private;
use crate::wire::{Session, Value};

const STREAMS: usize = 100;
const WRITERS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// Of a listener: pg_conversation.notify_interval.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(20);

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for rate in [1000, 5000] {
        rows.push(row(format!("stream-latency-wait-{rate}"), move |bench| waiting(bench, rate)));
        rows.push(row(format!("stream-latency-listen-{rate}"), move |bench| {
            listening(bench, rate)
        }));
        rows.push(row(format!("stream-latency-decode-{rate}"), move |bench| decoding(bench, rate)));
    }
    rows
}

/// When a token was due, when the call that wrote it returned and when the token was seen, in
/// nanoseconds since a common beginning. Token n is number n / STREAMS of stream n % STREAMS.
struct Times {
    begin: Instant,
    due: Vec<AtomicU64>,
    written: Vec<AtomicU64>,
    seen: Vec<AtomicU64>,
}

impl Times {
    fn new(tokens: usize) -> Self {
        let zeros = || (0..tokens).map(|_| AtomicU64::new(0)).collect();
        Self { begin: Instant::now(), due: zeros(), written: zeros(), seen: zeros() }
    }

    fn see(&self, stream: usize, index: i32) {
        self.note(&self.seen[index as usize * STREAMS + stream]);
    }

    fn note(&self, time: &AtomicU64) {
        time.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    /// The last chunk of each stream.
    fn last_index(&self) -> i32 {
        (self.seen.len() / STREAMS) as i32 - 1
    }

    fn lines(&self, way: &str, target: Option<Target>) -> Vec<Line> {
        let [due, written, seen] = [&self.due, &self.written, &self.seen]
            .map(|times| times.iter().map(|time| time.load(Ordering::Relaxed)).collect::<Vec<_>>());
        // A reader may have a token before its writer runs again: that is no time at all.
        let since = |begin: &[u64]| {
            let times = begin.iter().zip(&seen).map(|(begin, seen)| seen.saturating_sub(*begin));
            let mut seconds: Vec<f64> = times.map(|time| time as f64 / 1e9).collect();
            seconds.sort_by(f64::total_cmp);
            seconds
        };
        let (due, written) = (since(&due), since(&written));
        let line = |percent: usize, what: &str, seconds: &[f64], target| {
            let figure = seconds[seconds.len() * percent / 100];
            let side = Side::new(format!("{way}, p{percent}{what}"), &[figure]);
            Line::alone(side, Unit::Seconds, target)
        };
        vec![
            line(50, "", &written, None),
            line(95, "", &written, None),
            line(99, "", &written, target),
            // Long where writers cannot keep up with the rate.
            line(99, " since due", &due, target),
        ]
    }
}

/// As many as come in 4 seconds, or in one.
fn tokens(bench: &Bench, rate: usize) -> usize {
    rate * 4 / bench.size.haste.min(4)
}

type Reader<'a> = Box<dyn FnOnce(&Times) -> Result<()> + Send + 'a>;

/// Writes at that rate, a token of each stream in turn, until all readers have seen all.
fn stream(
    server: &dyn Fn() -> Result<Session>,
    statement: &str,
    messages: &[Uuid],
    rate: usize,
    tokens: usize,
    readers: Vec<Reader>,
) -> Result<Times> {
    // Readers are waiting when the first token comes.
    const HEAD_START: Duration = Duration::from_millis(300);
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let mut session = server()?;
        let statement = session.prepare(statement)?;
        writers.push((session, statement));
    }
    let times = Times::new(tokens);
    thread::scope(|scope| {
        let times = &times;
        let readers: Vec<_> =
            readers.into_iter().map(|reader| scope.spawn(move || reader(times))).collect();
        let writers = writers.into_iter().enumerate().map(|(n, (mut session, statement))| {
            scope.spawn(move || -> Result<()> {
                let mut text = Tokens::new(n);
                for token in (n..tokens).step_by(WRITERS) {
                    let due = HEAD_START + Duration::from_secs_f64(token as f64 / rate as f64);
                    times.due[token].store(due.as_nanos() as u64, Ordering::Relaxed);
                    thread::sleep(due.saturating_sub(times.begin.elapsed()));
                    let message = Value::Id(messages[token % STREAMS]);
                    let index = Value::Int((token / STREAMS) as i32);
                    let values = [message, Value::Text(text.next()), index];
                    session.call(&statement, &values, |_| ())?;
                    times.note(&times.written[token]);
                }
                Ok(())
            })
        });
        for worker in writers.collect::<Vec<_>>().into_iter().chain(readers) {
            worker.join().map_err(|_| "a client panicked")??;
        }
        Result::Ok(())
    })?;
    Ok(times)
}

fn waiting(bench: &Bench, rate: usize) -> Result<Vec<Line>> {
    let messages = open(bench, Half::Product, STREAMS)?;
    let mut readers: Vec<Reader> = Vec::new();
    for (n, &message) in messages.iter().enumerate() {
        let mut session = bench.session(As::Bypass)?;
        let wait = session.prepare(WAIT)?;
        readers.push(Box::new(move |times| {
            let mut after = -1;
            while after < times.last_index() {
                let values = [Value::Id(message), Value::Int(after)];
                let rows = session.call(&wait, &values, |row| {
                    after = row.int(0);
                    times.see(n, after);
                })?;
                if rows == 0 {
                    return Err(format!("no chunk after {after} for as long as one waits").into());
                }
            }
            Ok(())
        }));
    }
    let session = || bench.session(As::Bypass);
    let times = stream(&session, APPEND, &messages, rate, tokens(bench, rate), readers)?;
    Ok(times.lines("wait_for_chunks", at_most(0.05)))
}

fn listening(bench: &Bench, rate: usize) -> Result<Vec<Line>> {
    let conversations: Vec<Uuid> = bench.small_conversations()?.into_iter().take(STREAMS).collect();
    let messages = open_in(&mut bench.session(As::Bypass)?, Half::Product, &conversations)?;
    let mut readers: Vec<Reader> = Vec::new();
    for (n, (&message, &conversation)) in messages.iter().zip(&conversations).enumerate() {
        let mut session = bench.session(As::Bypass)?;
        let listen = session.prepare(LISTEN)?;
        let read = session.prepare(READ)?;
        session.call(&listen, &[Value::Id(conversation)], |_| ())?;
        readers.push(Box::new(move |times| {
            let mut after = -1;
            loop {
                let values = [Value::Id(message), Value::Int(after)];
                let rows = session.call(&read, &values, |row| {
                    after = row.int(0);
                    times.see(n, after);
                })?;
                if after == times.last_index() {
                    return Ok(());
                }
                // Notices are coalesced: after one that brought something, one looks once more.
                let patience = if rows > 0 { NOTIFY_INTERVAL } else { PATIENCE };
                if session.notice(patience)?.is_none() && rows == 0 {
                    return Err(format!("no notice of a chunk after {after}").into());
                }
            }
        }));
    }
    let session = || bench.session(As::Bypass);
    let times = stream(&session, APPEND, &messages, rate, tokens(bench, rate), readers)?;
    Ok(times.lines("listen_conversation", at_most(0.05)))
}

/// On a server of its own: the others do not run with the level of the log that decoding needs.
fn decoding(bench: &Bench, rate: usize) -> Result<Vec<Line>> {
    const DATABASE: &str = "bench_decode";
    let private = Private::start("bench-logical", &["wal_level = logical"])?;
    let server = &private.server;
    let mut client = empty_database(server, DATABASE)?;
    let conversations: Vec<Uuid> = client
        .query(
            "select create_conversation('Stream ' || n) from generate_series(1, $1) as n",
            &[&(STREAMS as i32)],
        )?
        .iter()
        .map(|row| row.get(0))
        .collect();
    client.batch_execute(
        "insert into plain.tenants select * from public.tenants;
         insert into plain.conversations select * from public.conversations;
         create publication product for table public.message_chunks;
         create publication plain for table plain.message_chunks",
    )?;
    let session = || server.session(DATABASE, "postgres");
    let mut found = Vec::new();
    for (half, publication, statement) in
        [(Half::Product, "product", APPEND), (Half::Plain, "plain", INSERT)]
    {
        let messages = open_in(&mut session()?, half, &conversations)?;
        let receiver = server.receiver(DATABASE, "postgres")?;
        let mut changes = Changes::begin(receiver, publication, PATIENCE)?;
        let streams: HashMap<String, usize> =
            messages.iter().enumerate().map(|(n, message)| (message.to_string(), n)).collect();
        let reader: Reader = Box::new(move |times| {
            for _ in 0..times.seen.len() {
                let (message, index) = changes.next()?;
                times.see(*streams.get(&message).ok_or("a chunk of no stream")?, index);
            }
            Ok(())
        });
        let times =
            stream(&session, statement, &messages, rate, tokens(bench, rate), vec![reader])?;
        found.extend(times.lines(&format!("decoding, {publication}"), None));
    }
    Ok(found)
}
