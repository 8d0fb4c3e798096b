//! Answers by way of Redis, on disk and readable by SQL at the end.

use uuid::Uuid;

use super::writers::{send_array, send_each};
use super::{ANSWER, APPEND, APPEND_WINDOW, Commit, Tokens};
use crate::Result;
use crate::data::{As, Bench, share};
use crate::measure::{Arm, Plan, Work, pairs};
use crate::redis;
use crate::row::{Line, Row, lines, row};
use crate::wire::{Session, Value};

const CLIENTS: usize = 8;
const WINDOW: usize = 16;

pub fn rows() -> Vec<Row> {
    vec![row("stream-redis", answers)]
}

fn answers(bench: &Bench) -> Result<Vec<Line>> {
    let lazy = redis::Server::start("everysec")?;
    let strict = redis::Server::start("always")?;
    let plan = Plan { turns: 3, calls: 1, warm_up: 0, per_call: 1, alone: false };
    let figures = pairs(
        bench,
        &plan,
        |_| {
            let mut arms = Vec::new();
            for window in [1, WINDOW] {
                arms.push(through_postgres(bench, window, Commit::Default)?);
                arms.push(through_redis(bench, window, &lazy)?);
                arms.push(through_postgres(bench, window, Commit::On)?);
                arms.push(through_redis(bench, window, &strict)?);
            }
            Ok(arms)
        },
        || Ok(()),
    )?;
    let arms = [
        "append_chunk",
        "XADD a token, everysec",
        "append_chunk, sync",
        "XADD a token, always",
        "append_chunks of 16",
        "XADD of 16, everysec",
        "append_chunks of 16, sync",
        "XADD of 16, always",
    ];
    let comparisons = [(0, 1, None), (2, 3, None), (4, 5, None), (6, 7, None)];
    Ok(lines(&arms, &figures, &comparisons))
}

/// Clients that write an answer a call.
fn workers(
    bench: &Bench,
    mut work: impl FnMut(Session, Vec<Uuid>, usize) -> Result<Work>,
) -> Result<Arm> {
    let conversations = bench.small_conversations()?;
    (0..CLIENTS)
        .map(|n| work(bench.session(As::Bypass)?, share(&conversations, n, CLIENTS), n))
        .collect()
}

fn through_postgres(bench: &Bench, window: usize, commit: Commit) -> Result<Arm> {
    workers(bench, |mut session, conversations, n| {
        session.batch(commit.settings())?;
        let begin = session.prepare("select begin_message($1)")?;
        let append = session.prepare(if window == 1 { APPEND } else { APPEND_WINDOW })?;
        let finish = session.prepare("select finish_message($1)")?;
        let mut conversations = conversations.into_iter().cycle();
        let mut tokens = Tokens::new(n);
        Ok(Box::new(move || {
            let conversation = conversations.next().ok_or("no conversations")?;
            let mut message = Uuid::nil();
            let begun =
                session.call(&begin, &[Value::Id(conversation)], |row| message = row.id(0))?;
            if begun != 1 {
                return Err("no message has begun".into());
            }
            for (n, tokens) in tokens.take(ANSWER).chunks(window).enumerate() {
                let send = if window == 1 { send_each } else { send_array };
                send(&mut session, &append, message, (n * window) as i32, tokens)?;
            }
            session.call(&finish, &[Value::Id(message)], |_| ())?;
            Ok(())
        }))
    })
}

const ADD: &str = "with c as (update plain.conversations \
                set last_sequence = last_sequence + 1, updated_at = greatest(updated_at, now()) \
                where id = $1 and deleted_at is null \
                returning id, tenant_id, last_sequence) \
     insert into plain.messages (conversation_id, tenant_id, sequence_number, role, content) \
     select id, tenant_id, last_sequence, 'assistant', $2 from c";

fn through_redis(bench: &Bench, window: usize, server: &redis::Server) -> Result<Arm> {
    workers(bench, |mut session, conversations, n| {
        let mut stream = server.connect()?;
        let add = session.prepare(ADD)?;
        let key = format!("answer:{n}:{window}");
        let mut conversations = conversations.into_iter().cycle();
        let mut tokens = Tokens::new(n);
        Ok(Box::new(move || {
            let conversation = conversations.next().ok_or("no conversations")?;
            let answer = tokens.take(ANSWER);
            for tokens in answer.chunks(window) {
                stream.call(&["XADD", &key, "*", "t", &tokens.concat()])?;
            }
            let text = stream.call(&["XRANGE", &key, "-", "+"])?.contents().concat();
            if text != answer.concat() {
                return Err("Redis has lost a part of the answer".into());
            }
            session.call(&add, &[Value::Id(conversation), Value::Text(&text)], |_| ())?;
            stream.call(&["DEL", &key])?;
            Ok(())
        }))
    })
}
