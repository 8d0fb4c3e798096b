//! A crowd of sessions that write messages in every way there is, and the account of what each
//! of them was told.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Database, Rng, Server, Session, Uuid, describe};
use postgres::Error;

/// What a session knows about the texts it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Committed,
    RolledBack,
    /// The connection broke before the answer came.
    Unknown,
}

/// What all sessions were told, to be held against the tables.
#[derive(Default)]
pub struct Account {
    pub texts: HashMap<String, Fate>,
    /// Retry key -> every id and number that a call with it was answered.
    pub keys: HashMap<(Uuid, String), Vec<(Uuid, i32)>>,
    pub broken: u32,
    pub retried: u32,
    pub given_up: u32,
}

pub struct Crowd<'a> {
    pub server: &'a Server,
    pub database: &'a str,
    pub owner: Uuid,
    pub conversations: Vec<Uuid>,
    pub sessions: usize,
    pub rounds: usize,
    /// Isolation levels, dealt out to the sessions in turn.
    pub isolation: &'a [&'a str],
}

pub const SERVICE: &str = "conc_service";

/// A role of the profile `service` that no policy binds, as backends have one.
pub fn grant_service(database: &Database) {
    // Roles belong to all databases, and two sessions may not alter one at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    database.server.role(SERVICE);
    database.superuser().run(&format!(
        "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
    ));
}

/// Whether the server or the network ended the session, not the statement.
fn connection_broke(error: &Error) -> bool {
    match error.as_db_error() {
        Some(db) => matches!(db.code().code(), "57P01" | "57P02" | "57P03"),
        None => true,
    }
}

fn code(error: &Error) -> &str {
    error.code().map_or("", |code| code.code())
}

impl Crowd<'_> {
    fn connect(&self, worker: usize) -> Client {
        let service = worker % 4 == 3;
        let role = if service { SERVICE } else { "member" };
        let begin = Instant::now();
        loop {
            let tried = self.server.config(self.database, role).connect(postgres::NoTls);
            let set_up = tried.and_then(|mut client| {
                let level = self.isolation[worker % self.isolation.len()];
                let user = if service { String::new() } else { self.owner.to_string() };
                client.batch_execute(&format!(
                    "set default_transaction_isolation = '{level}'; \
                     set pg_conversation.user_id = '{user}'"
                ))?;
                Ok(client)
            });
            match set_up {
                Ok(client) => return client,
                Err(error) if connection_broke(&error) => {
                    assert!(begin.elapsed() < Duration::from_secs(60), "{}", describe(&error));
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{}", describe(&error)),
            }
        }
    }

    /// Runs all sessions to their end, beside `disturb`, which is told when they are done.
    pub fn run(&self, disturb: impl FnOnce(&AtomicBool) + Send) -> Account {
        let account = Mutex::new(Account::default());
        let done = AtomicBool::new(false);
        let left = AtomicU32::new(self.sessions as u32);
        thread::scope(|scope| {
            scope.spawn(|| disturb(&done));
            for worker in 0..self.sessions {
                let (account, done, left) = (&account, &done, &left);
                scope.spawn(move || {
                    struct Leave<'a>(&'a AtomicU32, &'a AtomicBool);
                    impl Drop for Leave<'_> {
                        fn drop(&mut self) {
                            if self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
                                self.1.store(true, Ordering::SeqCst);
                            }
                        }
                    }
                    let _leave = Leave(left, done);
                    self.work(worker, account);
                });
            }
        });
        account.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends the transaction, in a new session if somebody has ended this one in the meantime.
    fn rollback(&self, client: &mut Client, worker: usize) {
        if let Err(error) = client.batch_execute("rollback") {
            assert!(connection_broke(&error), "{}", describe(&error));
            *client = self.connect(worker);
        }
    }

    fn work(&self, worker: usize, account: &Mutex<Account>) {
        let mut rng = Rng::new(worker as u64);
        let mut client = self.connect(worker);
        for round in 0..self.rounds {
            let conversation = *rng.pick(&self.conversations);
            let way = rng.below(14);
            for attempt in 0.. {
                let mut task = Task {
                    client: &mut client,
                    conversation,
                    service: worker % 4 == 3,
                    tag: format!("w{worker}-r{round}-a{attempt}"),
                    sent: Vec::new(),
                    key: None,
                };
                let result = task.go(way, &mut rng);
                let (sent, key) = (task.sent, task.key);
                let mut account = account.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let broke = result.as_ref().is_err_and(connection_broke);
                for (text, fate) in sent {
                    let fate = match (&result, fate) {
                        (Ok(()), fate) => fate,
                        (Err(_), Fate::RolledBack) => Fate::RolledBack,
                        (Err(_), _) if broke => Fate::Unknown,
                        (Err(_), _) => Fate::RolledBack,
                    };
                    let before = account.texts.insert(text, fate);
                    assert!(before.is_none(), "a text is sent once");
                }
                match result {
                    Ok(()) => {
                        if let Some((key, id, number)) = key {
                            account.keys.entry((conversation, key)).or_default().push((id, number));
                        }
                        break;
                    }
                    Err(_) if broke => {
                        account.broken += 1;
                        drop(account);
                        client = self.connect(worker);
                        break;
                    }
                    Err(error) => match code(&error) {
                        // Serialization failures and deadlocks are to be tried again.
                        "40001" | "40P01" if attempt < 20 => {
                            account.retried += 1;
                            drop(account);
                            self.rollback(&mut client, worker);
                            thread::sleep(Duration::from_millis(rng.below(10) as u64));
                        }
                        // These are what some of the ways provoke.
                        "40001" | "40P01" | "57014" | "55P03" | "P0002" | "23514" => {
                            account.given_up += 1;
                            drop(account);
                            self.rollback(&mut client, worker);
                            break;
                        }
                        _ => panic!("way {way}: {}", describe(&error)),
                    },
                }
            }
        }
    }
}

/// One try to write something in one of the ways.
struct Task<'a> {
    client: &'a mut Client,
    conversation: Uuid,
    service: bool,
    tag: String,
    /// Texts and their fate if the whole succeeds.
    sent: Vec<(String, Fate)>,
    key: Option<(String, Uuid, i32)>,
}

impl Task<'_> {
    fn text(&mut self, fate: Fate) -> String {
        let text = format!("{}-{}", self.tag, self.sent.len());
        self.sent.push((text.clone(), fate));
        text
    }

    fn add(&mut self, fate: Fate) -> Result<(), Error> {
        let text = self.text(fate);
        let sql = format!("select add_message('{}', 'user', '{text}')", self.conversation);
        self.client.batch_execute(&sql)
    }

    fn insert(&mut self, fate: Fate, more: &str) -> String {
        let text = self.text(fate);
        format!("('{}', 'assistant', '{text}', {more})", self.conversation)
    }

    /// An id that other sessions choose too.
    fn shared_id(&self, rng: &mut Rng) -> Uuid {
        let n = self.conversation.as_u128() & !0xffff;
        Uuid::from_u128(n | rng.below(400) as u128)
    }

    fn go(&mut self, way: usize, rng: &mut Rng) -> Result<(), Error> {
        let conversation = self.conversation;
        match way {
            0 | 1 => self.add(Fate::Committed),
            2 => {
                let row = self.insert(Fate::Committed, "null");
                self.client.batch_execute(&format!(
                    "insert into messages (conversation_id, role, content, parent_id) values {row}"
                ))
            }
            // Postgres takes no COPY into a table whose policies bind the caller.
            4 if self.service => {
                let lines: String = (0..5)
                    .map(|_| format!("{conversation}\tuser\t{}\n", self.text(Fate::Committed)))
                    .collect();
                let mut copy = self
                    .client
                    .copy_in("copy messages (conversation_id, role, content) from stdin")?;
                if copy.write_all(lines.as_bytes()).is_err() {
                    // The error itself comes with finish().
                }
                copy.finish().map(|_| ())
            }
            3 | 4 => {
                let rows: Vec<_> = (0..4).map(|_| self.insert(Fate::Committed, "null")).collect();
                self.client.batch_execute(&format!(
                    "insert into messages (conversation_id, role, content, parent_id) values {}",
                    rows.join(", ")
                ))
            }
            5 | 6 => {
                // Two rows, so that one may conflict while the other does not.
                let texts = [self.text(Fate::Committed), self.text(Fate::Committed)];
                let rows = texts
                    .each_ref()
                    .map(|text| {
                        format!("('{}', '{conversation}', 'user', '{text}')", self.shared_id(rng))
                    })
                    .join(", ");
                let action = if self.service && way == 6 {
                    "do update set metadata = '{\"again\": true}'"
                } else {
                    "do nothing"
                };
                let rows = self.client.query(
                    &format!(
                        "insert into messages (id, conversation_id, role, content) values {rows} \
                         on conflict (id) {action} returning content"
                    ),
                    &[],
                );
                // A command may not update a row twice, and two of ours may have one id.
                if rows.as_ref().is_err_and(|error| code(error) == "21000") {
                    self.sent.iter_mut().for_each(|(_, fate)| *fate = Fate::RolledBack);
                    return Ok(());
                }
                let there: Vec<String> = rows?.iter().map(|row| row.get(0)).collect();
                for (text, fate) in &mut self.sent {
                    if !there.contains(text) {
                        *fate = Fate::RolledBack;
                    }
                }
                Ok(())
            }
            7 | 8 => {
                let key = format!("key-{}", rng.below(300));
                let row = self.client.query_one(
                    "select message_id, sequence_number from add_message($1, 'tool', $2, $2)",
                    &[&conversation, &key],
                )?;
                self.key = Some((key, row.get(0), row.get(1)));
                Ok(())
            }
            9 => {
                self.client.batch_execute("begin")?;
                self.add(Fate::RolledBack)?;
                self.add(Fate::RolledBack)?;
                self.client.batch_execute("rollback")
            }
            10 => {
                self.client.batch_execute("begin")?;
                self.add(Fate::Committed)?;
                self.client.batch_execute("savepoint a")?;
                self.add(Fate::RolledBack)?;
                self.client.batch_execute("savepoint b")?;
                self.add(Fate::RolledBack)?;
                self.client.batch_execute("rollback to a; savepoint c")?;
                self.add(Fate::Committed)?;
                self.client.batch_execute("release c; commit")
            }
            11 => {
                let bad =
                    if rng.below(2) == 0 { format!("'{}'", Uuid::new_v4()) } else { "null".into() };
                let good = self.insert(Fate::Committed, "null, 1");
                let bad = self.insert(Fate::Committed, &format!("{bad}, -1"));
                self.client.batch_execute(&format!(
                    "insert into messages (conversation_id, role, content, parent_id, latency_ms) \
                     values {good}, {bad}"
                ))
            }
            12 => {
                self.client.batch_execute("begin; set local statement_timeout = '3ms'")?;
                self.add(Fate::Committed)?;
                self.client.batch_execute("select pg_sleep(0.01)")?;
                self.client.batch_execute("commit")
            }
            _ => {
                self.client.batch_execute("begin; set local lock_timeout = '2ms'")?;
                self.add(Fate::Committed)?;
                self.client.batch_execute("commit")
            }
        }
    }
}

impl Account {
    /// Holds what the sessions were told against the tables, and says how much that was.
    pub fn check(&self, client: &mut Client, conversations: &[Uuid]) -> String {
        let mut found: HashMap<String, i64> = HashMap::new();
        let mut total = 0;
        for conversation in conversations {
            check_numbers(client, *conversation);
            let rows = client
                .query("select content from messages where conversation_id = $1", &[conversation])
                .expect("the messages are read");
            total += rows.len();
            for row in rows {
                *found.entry(row.get(0)).or_default() += 1;
            }
        }
        for (text, fate) in &self.texts {
            let times = found.get(text).copied().unwrap_or(0);
            let expected = match fate {
                Fate::Committed => times == 1,
                Fate::RolledBack => times == 0,
                Fate::Unknown => times <= 1,
            };
            assert!(expected, "{text} is {fate:?} and there {times} times");
        }
        for ((conversation, key), answers) in &self.keys {
            let rows = client
                .query(
                    "select id, sequence_number from messages \
                     where conversation_id = $1 and client_message_id = $2",
                    &[conversation, key],
                )
                .expect("the messages are read");
            assert_eq!(rows.len(), 1, "rows with {key}");
            let row = (rows[0].get(0), rows[0].get(1));
            assert!(answers.iter().all(|answer| *answer == row), "{key}: {row:?} {answers:?}");
        }
        let count = |fate| self.texts.values().filter(|of| **of == fate).count();
        format!(
            "{total} messages; texts committed {}, rolled back {}, unknown {}; keys {} for {} calls; \
             connections broken {}, tries again {}, given up {}",
            count(Fate::Committed),
            count(Fate::RolledBack),
            count(Fate::Unknown),
            self.keys.len(),
            self.keys.values().map(Vec::len).sum::<usize>(),
            self.broken,
            self.retried,
            self.given_up
        )
    }
}

/// Numbers are 1 to n, each once, and the counter says n.
pub fn check_numbers(client: &mut Client, conversation: Uuid) {
    let numbers = client
        .query_one(
            "select count(*), count(distinct m.sequence_number), coalesce(min(m.sequence_number), 1), \
                    coalesce(max(m.sequence_number), 0), \
                    (select last_sequence from conversations where id = $1) \
             from messages m where m.conversation_id = $1",
            &[&conversation],
        )
        .expect("the numbers are read");
    let (count, distinct): (i64, i64) = (numbers.get(0), numbers.get(1));
    let (min, max, last): (i32, i32, i32) = (numbers.get(2), numbers.get(3), numbers.get(4));
    assert_eq!(
        (distinct, min, i64::from(max), i64::from(last)),
        (count, 1, count, count),
        "{count} messages: distinct numbers, lowest, highest, counter"
    );
}
