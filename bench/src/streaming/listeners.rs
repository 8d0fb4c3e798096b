//! What readers cost who have nothing to read.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::writers::{Writing, messages_for, send_each, writers};
use super::{ANSWER, APPEND, Commit, Half, WAIT, open};
use crate::Result;
use crate::data::{As, Bench};
use crate::measure::turn_for;
use crate::row::{Line, Row, Side, Unit, at_most, lines, row};
use crate::wire::{Session, Value};

pub fn rows() -> Vec<Row> {
    vec![row("stream-listeners", listeners), row("stream-waiters", waiters)]
}

const LISTENERS: [usize; 3] = [0, 10, 500];

const INSERT_AND_NOTIFY: &str = "insert into side.chunks_with_notice (message_id, chunk_content, chunk_index) \
     values ($1, $2, $3)";

const PATIENCE: Duration = Duration::from_secs(60);

/// A turn has several intervals between notices.
const TURN: Duration = Duration::from_millis(300);

/// Says to those who listen that it is over.
const END: &str = "bench_end";

/// Writers while others listen: some of these to what is written, most to what is not.
fn listeners(bench: &Bench) -> Result<Vec<Line>> {
    let product = Writing {
        who: As::Bypass,
        half: Half::Product,
        commit: Commit::Off,
        statement: APPEND,
        send: send_each,
        window: 1,
        repeat: 1,
        clients: 8,
        // More than there is time for.
        calls: 8 * ANSWER,
    };
    let plain = Writing { half: Half::Plain, statement: INSERT_AND_NOTIFY, ..product };
    let most = LISTENERS.iter().max().copied().unwrap_or(0);
    let mut sessions =
        (0..most).map(|_| bench.session(As::Bypass)).collect::<Result<Vec<Session>>>()?;
    let mut figures = vec![Vec::new(); 2 * LISTENERS.len()];
    for _ in 0..bench.size.pairs {
        for (n, &count) in LISTENERS.iter().enumerate() {
            let listening = &mut sessions[..count];
            figures[n].push(write_to(bench, listening, product)?);
            figures[LISTENERS.len() + n].push(write_to(bench, listening, plain)?);
        }
    }
    let names = ["append_chunk", "insert and notify"]
        .map(|side| LISTENERS.map(|count| format!("{side}, {count} listeners")))
        .concat();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok(lines(
        &names,
        &figures,
        &[(0, 3, None), (1, 4, None), (2, 5, None), (1, 0, None), (2, 0, None)],
    ))
}

/// Seconds a token.
fn write_to(bench: &Bench, listening: &mut [Session], writing: Writing) -> Result<f64> {
    let messages = messages_for(bench, &writing)?;
    let conversations = bench.small_conversations()?;
    let mut ends = Vec::new();
    for (n, session) in listening.iter_mut().enumerate() {
        let (listen, unlisten) = match writing.half {
            Half::Product => {
                let conversation = conversations[n % conversations.len()];
                ["listen", "unlisten"]
                    .map(|verb| format!("select {verb}_conversation('{conversation}')"))
                    .into()
            }
            Half::Plain => {
                let message = messages.get(n).copied().unwrap_or_default();
                (format!("listen \"message_{message}\""), "unlisten *".into())
            }
        };
        session.batch(&format!("{listen}; listen {END}"))?;
        ends.push(unlisten);
    }
    let mut arm = writers(bench, writing, &messages)?;
    let mut control = bench.session(As::Bypass)?;
    thread::scope(|scope| {
        let listeners: Vec<_> = listening
            .iter_mut()
            .zip(&ends)
            .map(|(session, end)| {
                scope.spawn(move || -> Result<usize> {
                    let mut heard = 0;
                    while session.notice(PATIENCE)?.ok_or("no end of notices")? != END {
                        heard += 1;
                    }
                    session.batch(&format!("{end}; unlisten {END}"))?;
                    Ok(heard)
                })
            })
            .collect();
        let took = turn_for(&mut arm, TURN);
        control.batch(&format!("notify {END}"))?;
        let mut heard = Vec::new();
        for listener in listeners {
            heard.push(listener.join().map_err(|_| "a listener panicked")??);
        }
        // The first one listens to the first message.
        if heard.first() == Some(&0) { Err("a listener heard nothing".into()) } else { took }
    })
}

/// What sessions take of a core while they wait for chunks that do not come.
fn waiters(bench: &Bench) -> Result<Vec<Line>> {
    let pause = Duration::from_secs(10) / bench.size.haste.min(5) as u32;
    let mut sessions = Vec::new();
    for message in open(bench, Half::Product, 200)? {
        let mut session = bench.session(As::Bypass)?;
        let wait = session.prepare(WAIT)?;
        session.ask(&wait, &[Value::Id(message), Value::Int(-1)])?;
        sessions.push(session);
    }
    // All have looked once.
    thread::sleep(Duration::from_secs(1));
    let begin = Instant::now();
    let before = processor_time(&sessions)?;
    thread::sleep(pause);
    let share = (processor_time(&sessions)? - before).as_secs_f64() / begin.elapsed().as_secs_f64();

    let backends: Vec<i32> = sessions.iter().map(|session| session.backend as i32).collect();
    let mut client = bench.connect(As::Superuser)?;
    let waiting = "select count(*) from pg_stat_activity where pid = any($1) and state = 'active'";
    if client.query_one(waiting, &[&backends])?.get::<_, i64>(0) < sessions.len() as i64 {
        return Err("somebody does not wait".into());
    }
    // Nobody reads what they answer, and a lost client would not end them before their time.
    client.query("select pg_terminate_backend(unnest($1::integer[]))", &[&backends])?;
    let left = "select count(*) from pg_stat_activity where pid = any($1)";
    while client.query_one(left, &[&backends])?.get::<_, i64>(0) > 0 {
        thread::sleep(Duration::from_millis(20));
    }
    let side = Side::new("200 sessions that wait", &[share]);
    Ok(vec![Line::alone(side, Unit::Share, at_most(0.05))])
}

fn processor_time(sessions: &[Session]) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for session in sessions {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", session.backend))?;
        sum += Duration::from_nanos(text.split(' ').next().unwrap_or_default().parse()?);
    }
    Ok(sum)
}
