//! Random calls from several sessions, one after the other, each answer held against what it ought to
//! be.

use std::collections::BTreeMap;

use pg_conversation_tests::{Client, Rng, Session, Uuid};
use postgres::Error;

use crate::desk::{Desk, Limits};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reservation {
    tokens: i64,
    settled: Option<i64>,
    has_expired: bool,
    /// Days ago.
    day: i32,
}

/// A tenant's tokens as they ought to be.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Model {
    limit: Option<i64>,
    reservations: BTreeMap<Uuid, Reservation>,
    /// In the ledger, of today.
    recorded: i64,
}

impl Model {
    fn taken(&self) -> i64 {
        let of_today = || self.reservations.values().filter(|one| one.day == 0);
        let settled: i64 = of_today().filter_map(|one| one.settled).sum();
        let open = of_today().filter(|one| one.settled.is_none() && !one.has_expired);
        settled.max(self.recorded) + open.map(|one| one.tokens).sum::<i64>()
    }

    fn remaining(&self) -> Option<i64> {
        self.limit.map(|limit| (limit - self.taken()).max(0))
    }

    fn fits(&self, tokens: i64) -> bool {
        self.limit.is_none_or(|limit| self.taken() + tokens <= limit)
    }
}

fn code(error: Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_string())
}

struct Play<'a> {
    desk: &'a Desk<'a>,
    rng: Rng,
    sessions: Vec<Client>,
    member: Client,
    superuser: Client,
    model: Model,
    story: Vec<String>,
    days: i32,
}

impl Play<'_> {
    fn any(&mut self) -> Uuid {
        let ids: Vec<Uuid> = self.model.reservations.keys().copied().collect();
        if ids.is_empty() || self.rng.below(20) == 0 {
            Uuid::new_v4()
        } else {
            *self.rng.pick(&ids)
        }
    }

    fn step(&mut self, n: usize) {
        let tenant = self.desk.tenant;
        match self.rng.below(13) {
            0..=3 => {
                let tokens = self.rng.below(400) as i64;
                let fits = self.model.fits(tokens);
                let left = self.model.remaining();
                let answer = self.sessions[n].reserve(tenant, tokens).unwrap();
                self.story.push(format!("{n}: reserve {tokens}: {answer:?}"));
                assert_eq!(answer.allowed, fits, "{}", self.story());
                assert_eq!(answer.id.is_some(), fits);
                let expected = if fits { left.map(|left| left - tokens) } else { left };
                assert_eq!(answer.remaining, expected, "{}", self.story());
                let may_come = !fits && self.model.limit.is_some_and(|limit| tokens <= limit);
                assert_eq!(answer.retry_after.is_some(), may_come, "{}", self.story());
                if let Some(id) = answer.id {
                    let new = Reservation { tokens, settled: None, has_expired: false, day: 0 };
                    self.model.reservations.insert(id, new);
                }
            }
            4 | 5 => {
                let (id, actual) = (self.any(), self.rng.below(300) as i64);
                let again = self.model.reservations.get(&id).and_then(|one| one.settled);
                let actual = again.filter(|_| self.rng.below(2) == 0).unwrap_or(actual);
                let expected = match self.model.reservations.get_mut(&id) {
                    None => Err("P0002".to_string()),
                    Some(one) => match one.settled {
                        None => {
                            one.settled = Some(actual);
                            Ok(true)
                        }
                        Some(settled) if settled == actual => Ok(false),
                        Some(_) => Err("55000".to_string()),
                    },
                };
                let expected = expected.map(|applied| (applied, self.model.remaining()));
                let found = self.sessions[n].settle(id, actual).map_err(code);
                self.story.push(format!("{n}: settle {id} {actual}: {found:?}"));
                assert_eq!(found, expected, "{}", self.story());
            }
            6 => {
                let id = self.any();
                let expected = match self.model.reservations.get_mut(&id) {
                    None => Err("P0002".to_string()),
                    Some(one) if one.settled.is_some() => Ok(false),
                    Some(one) => {
                        one.settled = Some(0);
                        Ok(true)
                    }
                };
                let found = self.sessions[n].release(id).map_err(code);
                self.story.push(format!("{n}: release {id}: {found:?}"));
                assert_eq!(found, expected, "{}", self.story());
            }
            7 | 8 => {
                let tokens = self.rng.below(200) as i64;
                let fits = self.model.fits(tokens);
                let found = self.member.begin(self.desk.conversation, tokens).map_err(code);
                self.story.push(format!("begin {tokens}: {found:?}"));
                assert_eq!(found.is_ok(), fits, "{}", self.story());
                let Ok(id) = found else { return assert_eq!(found, Err("PT429".into())) };
                let mut new = Reservation { tokens, settled: None, has_expired: false, day: 0 };
                let (prompt, completion) = (self.rng.below(50) as i64, self.rng.below(100) as i64);
                match self.rng.below(4) {
                    0 => {
                        self.member.run(&format!("select fail_message('{id}', 'x')"));
                        new.settled = Some(0);
                    }
                    1 => self.member.run(&format!("select stop_message('{id}')")),
                    2 => {
                        self.member
                            .run(&format!("select finish_message('{id}', {prompt}, {completion})"));
                        new.settled = Some(prompt + completion);
                        self.model.recorded += prompt + completion;
                    }
                    _ => (),
                }
                self.story.push(format!("it is {new:?}"));
                self.model.reservations.insert(id, new);
            }
            9 => {
                let limit = [None, Some(0), Some(500), Some(2000), Some(5000)][self.rng.below(5)];
                self.model.limit = limit;
                let value = limit.map_or("null".into(), |limit| limit.to_string());
                self.desk.tokens(&value);
                self.story.push(format!("limit {value}"));
            }
            10 => {
                let id = self.any();
                self.superuser.run(&format!(
                    "update token_reservations set expires_at = clock_timestamp() where id = '{id}'"
                ));
                if let Some(one) = self.model.reservations.get_mut(&id) {
                    one.has_expired = true;
                }
                self.story.push(format!("{id} expires"));
            }
            11 if self.rng.below(6) == 0 => {
                // Further and further back, for each day has its rows.
                self.days += 1;
                for table in ["token_reservations", "token_windows", "usage_totals"] {
                    self.superuser.run(&format!(
                        "update {table} set date = date - {} where date = (now() at time zone 'UTC')::date",
                        self.days
                    ));
                }
                self.model.reservations.values_mut().for_each(|one| one.day += 1);
                self.model.recorded = 0;
                self.story.push("a day passes".into());
            }
            _ => {
                let tokens = self.rng.below(60) as i64;
                let sql = format!(
                    "select record_usage('{tenant}', null, 'm', '{{\"prompt_tokens\": {tokens}}}', '{}')",
                    Uuid::new_v4()
                );
                self.sessions[n].run(&sql);
                self.model.recorded += tokens;
                self.story.push(format!("{n}: record {tokens}"));
            }
        }
    }

    fn story(&self) -> String {
        let from = self.story.len().saturating_sub(40);
        format!("{:#?}\n{}", self.model, self.story[from..].join("\n"))
    }
}

#[test]
fn whatever_is_called_in_whatever_order_each_answer_is_what_it_ought_to_be() {
    let desk = Desk::new();
    let (sessions, superuser) =
        ((0..3).map(|_| desk.service()).collect(), desk.database.superuser());
    let (rng, member) = (Rng::new(700), desk.member());
    let mut play = Play {
        desk: &desk,
        rng,
        sessions,
        member,
        superuser,
        model: Model::default(),
        story: Vec::new(),
        days: 0,
    };
    for _ in 0..900 {
        let n = play.rng.below(3);
        // Some of it is undone with its transaction.
        let is_undone = play.rng.below(8) == 0;
        if is_undone {
            let (before, level) = (play.model.clone(), play.rng.below(2));
            let level = ["read committed", "repeatable read"][level];
            play.sessions[n].run(&format!("begin isolation level {level}"));
            let tenant = desk.tenant;
            for _ in 0..3 {
                let tokens = play.rng.below(300) as i64;
                let fits = play.model.fits(tokens);
                let answer = play.sessions[n].reserve(tenant, tokens).unwrap();
                assert_eq!(answer.allowed, fits, "{}", play.story());
                if let Some(id) = answer.id {
                    let new = Reservation { tokens, settled: None, has_expired: false, day: 0 };
                    play.model.reservations.insert(id, new);
                }
            }
            play.sessions[n].run("rollback");
            play.model = before;
        } else {
            play.step(n);
        }
    }
    let allowed = play.story.iter().filter(|line| line.contains("allowed: true")).count();
    let refused = play.story.iter().filter(|line| line.contains("allowed: false")).count();
    assert!(allowed > 50 && refused > 50, "{allowed} and {refused}: nothing is tried");
}
