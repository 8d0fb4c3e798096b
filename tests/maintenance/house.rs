//! What these tests share: a database with conversations, and the role that keeps it.

use std::fs;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest};

const SERVICE: &str = "maint_service";

/// A database with one user.
pub struct House<'a> {
    pub database: Database<'a>,
    pub user: Uuid,
}

impl House<'static> {
    pub fn new() -> Self {
        House::on(Server::shared(oldest()))
    }
}

impl<'a> House<'a> {
    pub fn on(server: &'a Server) -> Self {
        Self { database: server.database(), user: Uuid::new_v4() }
    }

    pub fn member(&self) -> Client {
        self.database.member(self.user)
    }

    /// A session of a role of the profile `service`.
    pub fn service(&self) -> Client {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.database.server.role(SERVICE);
        self.database.superuser().run(&format!(
            "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
        ));
        drop(guard);
        self.database.connect(SERVICE)
    }

    /// So many conversations with so many messages each, expired that long ago.
    pub fn expired(&self, count: usize, messages: usize, ago: &str) -> Vec<Uuid> {
        let mut member = self.member();
        let ids: Vec<Uuid> = member.values(&format!(
            "insert into conversations (title, expires_at) \
             select 'c' || n, now() - interval '{ago}' from generate_series(1, {count}) n returning id"
        ));
        if messages > 0 {
            member.run(&format!(
                "insert into messages (conversation_id, role, content) \
                 select c.id, 'user', 'm' from conversations c, generate_series(1, {messages}) \
                 where c.expires_at < now() order by c.id"
            ));
        }
        ids
    }

    pub fn count(&self, of: &str) -> i64 {
        self.database.superuser().value(&format!("select count(*) from {of}"))
    }
}

/// What a run said of one job: rows and error.
pub type Said = Option<(i64, Option<String>)>;

pub trait Keeper {
    /// Runs what is due; the jobs that ran, in order.
    fn keep(&mut self) -> Vec<String>;
    /// Makes one job due, runs all that is, and tells what was said of it.
    fn keep_at(&mut self, job: &str) -> Said;
    /// The same, where it must go well.
    fn done(&mut self, job: &str) -> i64;
    /// Leaves these jobs only.
    fn only(&mut self, jobs: &[&str]);
    fn make_due(&mut self, job: &str);
}

impl Keeper for Client {
    fn keep(&mut self) -> Vec<String> {
        self.values("select job from run_maintenance()")
    }

    fn keep_at(&mut self, job: &str) -> Said {
        self.make_due(job);
        let sql = "select row_count, error from run_maintenance() where job = $1";
        let row = self.query_opt(sql, &[&job]).expect("a run");
        row.map(|row| (row.get(0), row.get(1)))
    }

    fn done(&mut self, job: &str) -> i64 {
        match self.keep_at(job) {
            Some((rows, None)) => rows,
            other => panic!("{job}: {other:?}"),
        }
    }

    fn only(&mut self, jobs: &[&str]) {
        let list = jobs.join("', '");
        self.run(&format!("update maintenance_runs set enabled = job in ('{list}')"));
    }

    fn make_due(&mut self, job: &str) {
        // With an interval of nothing it is, without a right on the figures.
        self.run(&format!("update maintenance_runs set every = '0' where job = '{job}'"));
    }
}

/// The lines that a server has written into its log.
pub fn log(server: &Server) -> Vec<String> {
    let text = fs::read_to_string(server.dir.join("log")).expect("the server's log");
    text.lines().map(String::from).collect()
}

pub fn log_lines(server: &Server, with: &str) -> usize {
    log(server).iter().filter(|line| line.contains(with)).count()
}

/// Waits until something is so.
pub fn eventually(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
