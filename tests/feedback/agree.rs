//! Random sessions at once, in every way there is to write feedback.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::thread;

use pg_conversation_tests::{Client, Rng, Server, Session, Uuid, describe, seed, versions};

use crate::world::{World, agree};

const USERS: usize = 12;
const MESSAGES: usize = 8;
const ROUNDS: usize = 60;
const LEVELS: [&str; 4] = ["read committed", "read committed", "repeatable read", "serializable"];

/// What may be answered when others write at the same time, or took something away.
const EXPECTED: [&str; 6] = ["40001", "40P01", "P0002", "23503", "23505", "25P02"];

/// The ids that sessions have not heard are gone.
struct Crowd<'a> {
    world: &'a World<'a>,
    gone: Mutex<Vec<Uuid>>,
    /// How often each way of writing succeeded.
    done: Mutex<BTreeMap<&'static str, usize>>,
}

impl Crowd<'_> {
    fn message(&self, rng: &mut Rng) -> Uuid {
        *rng.pick(&self.world.messages)
    }

    fn rating(rng: &mut Rng) -> i32 {
        *rng.pick(&[1, -1])
    }

    /// Several rows at once, of messages in any order.
    fn values(&self, rng: &mut Rng, user: Option<Uuid>) -> String {
        let mut messages = self.world.messages.clone();
        rng.shuffle(&mut messages);
        let rows: Vec<String> = messages[..1 + rng.below(5)]
            .iter()
            .map(|message| {
                let user = user.unwrap_or_else(|| *rng.pick(&self.world.users));
                format!("('{message}', '{user}', {})", Self::rating(rng))
            })
            .collect();
        rows.join(", ")
    }

    fn member_statement(&self, rng: &mut Rng, user: Uuid) -> (&'static str, String) {
        let (message, rating) = (self.message(rng), Self::rating(rng));
        match rng.below(8) {
            0 | 1 => ("give", format!("select give_feedback('{message}', {rating})")),
            2 => ("comment", format!("select give_feedback('{message}', {rating}, 'c{rating}')")),
            3 => ("withdraw", format!("select withdraw_feedback('{message}')")),
            4 => (
                "insert",
                format!("insert into feedback (message_id, rating) values ('{message}', {rating})"),
            ),
            5 => (
                "upsert",
                format!(
                    "insert into feedback (message_id, user_id, rating) values {} on conflict \
                     (message_id, user_id) do update set message_id = excluded.message_id, \
                     user_id = excluded.user_id, rating = excluded.rating",
                    self.values(rng, Some(user))
                ),
            ),
            6 => (
                "update",
                format!(
                    "update feedback set rating = -rating where user_id = '{user}' and random() < 0.5"
                ),
            ),
            _ => ("edit", format!("update feedback set comment = 'x' where user_id = '{user}'")),
        }
    }

    fn service_statement(&self, rng: &mut Rng) -> (&'static str, String) {
        let (message, user) = (self.message(rng), *rng.pick(&self.world.users));
        match rng.below(6) {
            0 => (
                "service insert",
                format!(
                    "insert into feedback (message_id, user_id, rating) values {} on conflict do nothing",
                    self.values(rng, None)
                ),
            ),
            1 => (
                "service upsert",
                format!(
                    "insert into feedback (message_id, user_id, rating) select distinct on (m, u) m::uuid, \
                     u::uuid, r from (values {}) v (m, u, r) on conflict (message_id, user_id) do update \
                     set rating = excluded.rating",
                    self.values(rng, None)
                ),
            ),
            2 => ("service delete", format!("delete from feedback where message_id = '{message}'")),
            3 => ("service delete many", "delete from feedback where random() < 0.2".into()),
            4 => (
                "service update",
                format!("update feedback set rating = -rating where user_id = '{user}'"),
            ),
            _ => (
                "service merge",
                format!(
                    "merge into feedback f using (values ('{message}'::uuid, '{user}'::uuid)) v (m, u) \
                     on f.message_id = v.m and f.user_id = v.u \
                     when matched and f.rating = 1 then delete \
                     when matched then update set rating = 1 \
                     when not matched then insert (message_id, user_id, rating) values (v.m, v.u, -1)"
                ),
            ),
        }
    }

    /// Now and then a message or a user goes, and another one comes in the next test only.
    fn take_away(&self, rng: &mut Rng) -> Option<(&'static str, String, Uuid)> {
        let mut gone = self.gone.lock().expect("no panic");
        if gone.len() >= 6 {
            return None;
        }
        let (what, table, id) = if gone.len().is_multiple_of(2) {
            ("delete message", "messages", self.message(rng))
        } else {
            ("delete user", "users", self.world.users[1 + rng.below(USERS - 1)])
        };
        if gone.contains(&id) {
            return None;
        }
        gone.push(id);
        Some((what, format!("delete from {table} where id = '{id}'"), id))
    }

    fn attempt(&self, client: &mut Client, what: &'static str, sql: &str) -> bool {
        match client.batch_execute(sql) {
            Ok(()) => {
                *self.done.lock().expect("no panic").entry(what).or_default() += 1;
                true
            }
            Err(error) => {
                let code = error.code().map_or("", |code| code.code()).to_string();
                assert!(EXPECTED.contains(&code.as_str()), "{what}: {}\n{sql}", describe(&error));
                false
            }
        }
    }

    fn copy(&self, client: &mut Client, rng: &mut Rng) -> bool {
        let rows: Vec<String> = (0..=rng.below(4))
            .map(|_| {
                let user = rng.pick(&self.world.users);
                format!("{}\t{user}\t{}\n", self.message(rng), Self::rating(rng))
            })
            .collect();
        let copied = client
            .copy_in("copy feedback (message_id, user_id, rating) from stdin")
            .and_then(|mut writer| {
                writer.write_all(rows.concat().as_bytes()).expect("the rows are sent");
                writer.finish()
            });
        match copied {
            Ok(_) => {
                *self.done.lock().expect("no panic").entry("copy").or_default() += 1;
                true
            }
            Err(error) => {
                let code = error.code().map_or("", |code| code.code()).to_string();
                assert!(EXPECTED.contains(&code.as_str()), "copy: {}", describe(&error));
                false
            }
        }
    }

    fn work(&self, worker: usize) {
        let mut rng = Rng::new(worker as u64);
        let is_service = worker.is_multiple_of(3);
        let user = self.world.users[1 + worker % (USERS - 1)];
        let mut client =
            if is_service { self.world.service() } else { self.world.database.member(user) };
        let level = LEVELS[worker % LEVELS.len()];
        client.run(&format!("set default_transaction_isolation = '{level}'"));
        let mut root = self.world.database.superuser();
        for _ in 0..ROUNDS {
            if worker == 0
                && rng.below(8) == 0
                && let Some((what, sql, _)) = self.take_away(&mut rng)
            {
                self.attempt(&mut root, what, &sql);
            }
            let mut ok = self.attempt(&mut client, "begin", "begin");
            for _ in 0..1 + rng.below(3) {
                if !ok {
                    break;
                }
                let in_savepoint = rng.below(3) == 0;
                if in_savepoint {
                    ok &= self.attempt(&mut client, "savepoint", "savepoint s");
                }
                let done = if is_service && rng.below(4) == 0 {
                    self.copy(&mut client, &mut rng)
                } else {
                    let (what, sql) = if is_service {
                        self.service_statement(&mut rng)
                    } else {
                        self.member_statement(&mut rng, user)
                    };
                    self.attempt(&mut client, what, &sql)
                };
                if in_savepoint && (!done || rng.below(2) == 0) {
                    // A deadlock's victim goes on from there, too.
                    self.attempt(&mut client, "rollback to", "rollback to savepoint s");
                } else {
                    ok &= done;
                }
            }
            let end = if ok && rng.below(5) > 0 { "commit" } else { "rollback" };
            if !self.attempt(&mut client, end, end) {
                client.run("rollback");
            }
        }
    }
}

#[test]
fn counts_are_those_of_the_rows_after_any_crowd() {
    for version in versions() {
        println!("PGC_SEED={}", seed());
        let world = World::new(Server::shared(version), USERS, MESSAGES);
        let crowd =
            Crowd { world: &world, gone: Mutex::default(), done: Mutex::new(BTreeMap::new()) };
        let mut root = world.database.superuser();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..9)
                .map(|worker| {
                    let crowd = &crowd;
                    scope.spawn(move || crowd.work(worker))
                })
                .collect();
            // A reader never sees the two apart.
            while workers.iter().any(|worker| !worker.is_finished()) {
                agree_now(&mut root);
                thread::sleep(std::time::Duration::from_millis(30));
            }
            for worker in workers {
                worker.join().expect("no panic");
            }
        });
        let done = crowd.done.into_inner().expect("no panic");
        println!("{done:?}");
        for what in
            ["give", "withdraw", "upsert", "service merge", "copy", "delete user", "rollback to"]
        {
            assert!(done.contains_key(what), "{what} never succeeded: {done:?}");
        }
        assert!(agree(&mut root) > 0);
    }
}

/// One snapshot of both, taken while others write.
fn agree_now(root: &mut Client) {
    let differ: i64 = root.value(
        "select count(*) from (select message_id, count(*) filter (where rating = 1) as up, \
             count(*) filter (where rating = -1) as down from feedback group by 1) f \
         full join feedback_counts c using (message_id) \
         where (f.up, f.down) is distinct from (c.thumbs_up, c.thumbs_down)",
    );
    assert_eq!(differ, 0, "messages whose counts are not those of their rows");
}
