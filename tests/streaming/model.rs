//! Random calls from several sessions, one after the other, held against what a message ought to be.

use std::collections::BTreeMap;

use pg_conversation_tests::{Client, Rng, Session, Uuid, describe};
use postgres::Error;

use crate::desk::{Answer, Desk, Stream, broke, code, expected_index};
use crate::readers::{Life, check};

/// A message as it ought to be.
#[derive(Clone, Debug)]
struct Model {
    id: Uuid,
    life: Life,
    /// The index of the final chunk, if one was sent.
    last: Option<i32>,
    deleted: bool,
}

impl Model {
    fn next(&self) -> i32 {
        self.life.rows.keys().next_back().map_or(0, |last| last + 1)
    }

    fn has_gap(&self) -> bool {
        self.life.prefix().len() < self.life.rows.len()
    }

    fn put(&mut self, index: i32, content: &str, last: bool) {
        self.life.rows.insert(index, content.to_string());
        if last {
            self.last = Some(index);
        }
        if self.last.is_some() && !self.has_gap() {
            self.life.status = "completed";
        }
    }

    /// What an append of these contents answers, and what becomes of the message.
    fn append(
        &mut self,
        contents: &[String],
        first: Option<i32>,
        last: bool,
    ) -> Result<Answer, String> {
        if self.deleted {
            return Err("P0002".into());
        }
        let next = self.next();
        if self.life.status == "stopped" {
            let next = if self.life.whole.is_some() { 0 } else { next };
            return Ok(Answer { next, stop: true });
        }
        let start = first.unwrap_or(next);
        let end = start + contents.len() as i32;
        let differs = contents.iter().enumerate().any(|(n, content)| {
            self.life.rows.get(&(start + n as i32)).is_some_and(|there| there != content)
        });
        if !self.life.is_open() {
            let is_there = |n: usize| self.life.rows.contains_key(&(start + n as i32));
            // What is sent again is compared as long as it is there.
            return match first {
                Some(_) if self.life.whole.is_some() || end > next || last && end < next => {
                    Err("24000".into())
                }
                Some(_) if differs => Err("23505".into()),
                Some(_) if (0..contents.len()).all(is_there) => Ok(Answer { next, stop: false }),
                _ => Err("24000".into()),
            };
        }
        if start > next {
            return Err(format!("55000 {next}"));
        }
        if last && end < next || end > next && self.last.is_some() {
            return Err("24000".into());
        }
        if differs {
            return Err("23505".into());
        }
        for (n, content) in contents.iter().enumerate() {
            self.put(start + n as i32, content, last && n + 1 == contents.len());
        }
        Ok(Answer { next: end.max(next), stop: false })
    }
}

struct Play<'a> {
    desk: &'a Desk<'a>,
    rng: Rng,
    sessions: Vec<Client>,
    service: Client,
    superuser: Client,
    messages: Vec<Model>,
    /// What has happened, for whoever looks into a failure.
    story: Vec<String>,
}

impl Play<'_> {
    fn token(&mut self) -> String {
        let words = ["", "a", "bc ", "é", "😀", "\n", "word ", "'quoted' "];
        format!("{}{}", self.rng.pick(&words), self.rng.below(10))
    }

    /// A session, now and then a new one in place of one that somebody has ended.
    fn session(&mut self) -> usize {
        let n = self.rng.below(self.sessions.len());
        if self.rng.below(25) == 0 {
            let pid: i32 = self.sessions[n].value("select pg_backend_pid()");
            self.superuser.run(&format!("select pg_terminate_backend({pid}, 5000)"));
            self.story.push(format!("session {n} is ended"));
            self.sessions[n] = self.desk.member();
        }
        n
    }

    fn step(&mut self) {
        let n = self.session();
        let of = self.rng.below(self.messages.len());
        let id = self.messages[of].id;
        let stays = if self.messages[of].life.is_open() { 60 } else { 5 };
        if self.messages[of].deleted || self.rng.below(stays) == 0 {
            // Another message takes its place.
            let id = self.sessions[n].open(self.desk.conversation);
            self.story.push(format!("message {of} is {id}"));
            self.messages[of] = Model { id, life: Life::new(), last: None, deleted: false };
            return;
        }
        // Some of it is undone, by a savepoint or with the whole transaction.
        let frame = self.rng.below(6);
        let before = self.messages[of].clone();
        match frame {
            0 | 1 => self.sessions[n].run("begin"),
            2 => self.sessions[n].run("begin; savepoint s"),
            _ => (),
        }
        for _ in 0..1 + self.rng.below(3) {
            if !self.call(n, of) && frame < 3 || self.messages[of].deleted {
                break;
            }
        }
        let end = match frame {
            0 => "rollback",
            1 => "commit",
            2 => "rollback to s; commit",
            _ => "",
        };
        self.story.push(format!("{n}: {end}"));
        if !end.is_empty() {
            self.sessions[n].run(end);
        }
        // An error inside has undone what came before it.
        let failed = self.story.iter().rev().nth(1).is_some_and(|line| line.contains("error"));
        if frame == 0 || frame == 2 || frame == 1 && failed {
            self.messages[of] = before;
        }
        let model = &self.messages[of];
        if model.deleted {
            assert_eq!(self.service.text(id), None);
            assert_eq!(self.service.chunks(id), 0);
        } else {
            check(&mut self.service, id, &model.life, &format!("{id}"));
        }
    }

    /// One call of a session about a message; false if it failed, as it ought to.
    fn call(&mut self, n: usize, of: usize) -> bool {
        let id = self.messages[of].id;
        let way = self.rng.below(20);
        match way {
            0..=9 => {
                let count = [1, 1, 1, 2, 5][self.rng.below(5)];
                let next = self.messages[of].next();
                let first = match self.rng.below(8) {
                    0..=2 => None,
                    3..=5 => Some(next),
                    6 => Some(self.rng.below(next as usize + 1) as i32),
                    _ => Some(next + self.rng.below(3) as i32),
                };
                // Half of what is sent to a place where something is, is that.
                let again = self.rng.below(2) == 0;
                let contents: Vec<String> = (0..count)
                    .map(|i| {
                        let there =
                            first.and_then(|first| self.messages[of].life.rows.get(&(first + i)));
                        let there = there.filter(|_| again).cloned();
                        there.unwrap_or_else(|| self.token())
                    })
                    .collect();
                let last = self.rng.below(14) == 0;
                let expected = self.messages[of].append(&contents, first, last);
                let sql = "select next_index, stop_requested from append_chunks($1, $2, $3, $4)";
                let client = &mut self.sessions[n];
                let found = client
                    .query_one(sql, &[&id, &contents, &first, &last])
                    .map(Answer::from)
                    .map_err(|error| short(&error));
                self.tell(n, &format!("append {contents:?} at {first:?} {last}"), &found);
                assert_eq!(found, expected, "{}", self.story());
                found.is_ok()
            }
            // A row of plain SQL, perhaps ahead of its turn.
            10 | 11 => {
                let model = &self.messages[of];
                if !model.life.is_open() || model.last.is_some() {
                    return true;
                }
                let gap = (0..).find(|i| !model.life.rows.contains_key(i)).unwrap_or_default();
                let next = model.next();
                let index = if model.has_gap() { gap } else { next + self.rng.below(2) as i32 };
                // A final one behind a gap, so that filling it is what completes.
                let last = !self.messages[of].has_gap() && self.rng.below(8) == 0;
                let content = self.token();
                let found = self.sessions[n]
                    .insert(id, &content, index, last)
                    .map_err(|error| short(&error));
                self.tell(n, &format!("insert {content:?} at {index} {last}"), &found);
                assert_eq!(found, Ok(1), "{}", self.story());
                self.messages[of].put(index, &content, last);
                true
            }
            12 => self.end(n, of, "finish_message($m)", "completed"),
            13 => self.end(n, of, "fail_message($m, 'e')", "failed"),
            14 => self.end(n, of, "stop_message($m)", "stopped"),
            15 => {
                let length = self.messages[of].life.text().chars().count();
                let seen = self.rng.below(length + 2);
                let was_open = self.messages[of].life.is_open()
                    || self.messages[of].life.status == "interrupted";
                let ok = self.end(n, of, &format!("stop_message($m, {seen})"), "stopped");
                if ok && was_open && seen < length {
                    let life = &mut self.messages[of].life;
                    life.whole = Some(life.text().chars().take(seen).collect());
                }
                ok
            }
            16 => self.interrupt_all_or(n, of),
            17 => {
                let model = &mut self.messages[of];
                let expected = match model.life.status {
                    // A gap is filled from its beginning.
                    "streaming" | "interrupted" => Ok(model.life.prefix().len() as i32),
                    _ => Err("24000".to_string()),
                };
                if expected.is_ok() {
                    model.life.status = "streaming";
                }
                let found = self.sessions[n]
                    .query_one(&format!("select resume_message('{id}')"), &[])
                    .map(|row| row.get::<_, i32>(0))
                    .map_err(|error| short(&error));
                self.tell(n, "resume", &found);
                assert_eq!(found, expected, "{}", self.story());
                found.is_ok()
            }
            18 => {
                let life = &mut self.messages[of].life;
                let is_final = ["completed", "stopped", "failed"].contains(&life.status);
                let there = if life.whole.is_some() { 0 } else { life.rows.len() as i32 };
                let expected = if is_final { there } else { 0 };
                if is_final && there > 0 {
                    life.whole = Some(life.text());
                }
                let found: i32 =
                    self.sessions[n].value(&format!("select cleanup_streaming_artifacts('{id}')"));
                self.tell(n, "clean up", &Ok::<_, String>(found));
                assert_eq!(found, expected, "{}", self.story());
                true
            }
            _ => true,
        }
    }

    fn end(&mut self, n: usize, of: usize, call: &str, status: &'static str) -> bool {
        let model = &mut self.messages[of];
        let before = model.life.status;
        let expected = if model.life.is_open() || before == "interrupted" {
            if status == "completed" && model.has_gap() { Err("55000") } else { Ok(status) }
        } else if before == status || before == "stopped" && status == "completed" {
            Ok(before)
        } else {
            Err("24000")
        };
        if let Ok(status) = expected {
            model.life.status = status;
        }
        let sql = format!("select {}", call.replace("$m", &format!("'{}'", model.id)));
        let found = self.sessions[n].batch_execute(&sql).map_err(|error| code(&error).to_string());
        self.tell(n, call, &found);
        assert_eq!(found, expected.map(|_| ()).map_err(str::to_string), "{}", self.story());
        found.is_ok()
    }

    /// Outside of transactions of ours, all open messages are interrupted, or this one is deleted.
    fn interrupt_all_or(&mut self, n: usize, of: usize) -> bool {
        let is_idle = self.superuser.value::<bool>(
            "select not exists (select from pg_stat_activity where datname = current_database() \
             and state like 'idle in transaction%')",
        );
        if !is_idle {
            return true;
        }
        if self.rng.below(3) == 0 {
            let id = self.messages[of].id;
            self.service.run(&format!("delete from messages where id = '{id}'"));
            self.messages[of].deleted = true;
            self.story.push(format!("{id} is deleted"));
            return true;
        }
        let open = self.messages.iter().filter(|one| one.life.is_open() && !one.deleted).count();
        let found: i32 = self.service.value("select recover_stalled_messages('0 s')");
        assert!(found as usize >= open, "{found} of {open}: {}", self.story());
        for model in self.messages.iter_mut().filter(|one| one.life.is_open() && !one.deleted) {
            model.life.status = "interrupted";
        }
        self.story.push(format!("{n}: all are interrupted"));
        true
    }

    fn tell<T: std::fmt::Debug, E: std::fmt::Debug>(
        &mut self,
        n: usize,
        what: &str,
        found: &Result<T, E>,
    ) {
        let found = match found {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("error {error:?}"),
        };
        self.story.push(format!("{n}: {what}: {found}"));
    }

    fn story(&self) -> String {
        let from = self.story.len().saturating_sub(40);
        self.story[from..].join("\n")
    }
}

fn short(error: &Error) -> String {
    assert!(!broke(error), "{}", describe(error));
    match code(error) {
        "55000" => format!("55000 {}", expected_index(error)),
        other => other.to_string(),
    }
}

#[test]
fn whatever_is_called_in_whatever_order_a_message_is_what_it_ought_to_be() {
    let desk = Desk::new();
    let rng = Rng::new(80);
    let (sessions, service) = ((0..4).map(|_| desk.member()).collect(), desk.service());
    let life = Life { rows: BTreeMap::new(), status: "streaming", whole: None };
    let mut play = Play {
        desk: &desk,
        rng,
        sessions,
        service,
        superuser: desk.database.superuser(),
        messages: (0..5)
            .map(|_| Model { id: Uuid::nil(), life: life.clone(), last: None, deleted: true })
            .collect(),
        story: Vec::new(),
    };
    for _ in 0..500 {
        play.step();
    }
}
