//! Real servers for the tests: one shared by each version of Postgres, private ones to be killed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub use postgres::{Client, Config, NoTls};
pub use uuid::Uuid;

const PORT: u16 = 65433;

/// The versions of Postgres that the run has trees for, oldest first.
pub fn versions() -> Vec<u32> {
    (14..=18).filter(|n| env::var_os(format!("PGC_TREE_{n}")).is_some()).collect()
}

/// The version that everything is tested on.
pub fn oldest() -> u32 {
    *versions().first().expect("PGC_TREE_15 names no tree: run the tests with dev/test")
}

/// The directory of the programs of a version.
pub fn bin(version: u32) -> PathBuf {
    env::var_os(format!("PGC_TREE_{version}")).expect("a tree of this version").into()
}

fn scratch() -> PathBuf {
    env::var_os("PGC_SCRATCH").expect("PGC_SCRATCH: run the tests with dev/test").into()
}

/// A command run as the user that may run a server, which root may not.
pub fn command(program: &Path) -> Command {
    let user = env::var("PGC_RUN_AS").unwrap_or_default();
    let mut command = if user.is_empty() {
        Command::new(program)
    } else {
        let mut command = Command::new("runuser");
        command.args(["-u", &user, "--"]).arg(program);
        command
    };
    command.current_dir("/").env_remove("RUST_BACKTRACE").env("HOME", "/tmp").stdin(Stdio::null());
    for name in ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS"] {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end; a failure shows what it printed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the command starts");
    assert!(
        output.status.success(),
        "{command:?}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Ends a process as the kernel does when memory is short.
fn kill_9(pid: &str) {
    run(Command::new("kill").args(["-9", pid]));
}

/// A server reached through a socket of its own directory.
pub struct Server {
    pub version: u32,
    pub dir: PathBuf,
}

impl Server {
    /// The server that tests share; `dev/test` ends it.
    pub fn shared(version: u32) -> &'static Server {
        static SERVERS: Mutex<Vec<(u32, &'static Server)>> = Mutex::new(Vec::new());
        let mut servers = SERVERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, server)) = servers.iter().find(|(of, _)| *of == version) {
            return server;
        }
        let server = Server { version, dir: scratch().join(format!("shared-{version}")) };
        if !server.is_running() {
            server.init("fsync = off\nmax_connections = 200\nmax_prepared_transactions = 10\n");
            server.start();
        }
        let server = Box::leak(Box::new(server));
        servers.push((version, server));
        server
    }

    /// A server of the test's own, stopped when it is dropped.
    pub fn private(version: u32, settings: &str) -> Private {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("own-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let server = Server { version, dir: scratch().join(name) };
        server.init(settings);
        server.start();
        Private(server)
    }

    /// A server that follows this one, stopped when it is dropped.
    pub fn standby(&self) -> Private {
        let server = Server { version: self.version, dir: self.dir.with_extension("standby") };
        let _ = fs::remove_dir_all(&server.dir);
        run(command(Path::new("mkdir")).arg("-p").arg(&server.dir));
        run(self
            .program("pg_basebackup")
            .args(["-R", "-X", "stream", "-c", "fast", "-D"])
            .arg(server.data()));
        run(command(Path::new("chmod")).arg("700").arg(server.data()));
        // The last word counts.
        let socket = format!("-c unix_socket_directories={}", server.dir.display());
        run(command(&bin(self.version).join("pg_ctl"))
            .args(["-w", "-t", "60", "-o", &socket, "-l"])
            .arg(server.dir.join("log"))
            .arg("-D")
            .arg(server.data())
            .arg("start")
            .stdout(Stdio::null())
            .stderr(Stdio::null()));
        Private(server)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn init(&self, settings: &str) {
        let _ = fs::remove_dir_all(&self.dir);
        run(command(Path::new("mkdir")).arg("-p").arg(&self.dir));
        run(command(&bin(self.version).join("initdb"))
            .args(["--auth=trust", "--username=postgres", "-E", "UTF8", "--locale=C.UTF-8"])
            .arg("--no-sync")
            .arg("-D")
            .arg(self.data()));
        let conf = format!(
            "listen_addresses = ''\nport = {PORT}\nunix_socket_directories = '{}'\n{settings}",
            self.dir.display()
        );
        let file = scratch().join(format!("conf-{}", Uuid::new_v4()));
        fs::write(&file, conf).expect("the settings are written");
        run(command(Path::new("cp")).arg(&file).arg(self.data().join("postgresql.auto.conf")));
    }

    pub fn start(&self) {
        run(command(&bin(self.version).join("pg_ctl"))
            .args(["-w", "-t", "60", "-l"])
            .arg(self.dir.join("log"))
            .arg("-D")
            .arg(self.data())
            .arg("start")
            .stdout(Stdio::null())
            .stderr(Stdio::null()));
    }

    pub fn stop(&self, mode: &str) {
        run(command(&bin(self.version).join("pg_ctl"))
            .args(["-w", "-m", mode, "-D"])
            .arg(self.data())
            .arg("stop"));
    }

    /// Kills the postmaster alone, without a word to anybody; returns when its children are gone too.
    pub fn kill_postmaster(&self) {
        let data = self.data();
        let file = data.join("postmaster.pid");
        let pid = fs::read_to_string(&file).expect("the server runs");
        kill_9(pid.lines().next().unwrap_or_default());
        let start = Instant::now();
        let is_child = |entry: fs::DirEntry| {
            fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data)
        };
        while fs::read_dir("/proc").expect("a list of processes").flatten().any(is_child) {
            assert!(start.elapsed() < Duration::from_secs(30), "children of the postmaster stay");
            std::thread::sleep(Duration::from_millis(10));
        }
        // Until somebody has asked for its exit status, its number looks taken.
        for file in [file, self.dir.join(format!(".s.PGSQL.{PORT}.lock"))] {
            fs::remove_file(file).expect("the lock files go");
        }
    }

    /// Kills a server process as the kernel does when memory is short; returns when the postmaster has ended
    /// all others for it and takes sessions again.
    pub fn kill_backend(&self, pid: i32) {
        let mut witness = self.connect("postgres", "postgres");
        kill_9(&pid.to_string());
        let start = Instant::now();
        let wait = || {
            assert!(start.elapsed() < Duration::from_secs(60), "the server does not come back");
            std::thread::sleep(Duration::from_millis(5));
        };
        while witness.simple_query("select 1").is_ok() {
            wait();
        }
        while self.config("postgres", "postgres").connect(NoTls).is_err() {
            wait();
        }
    }

    fn is_running(&self) -> bool {
        command(&bin(self.version).join("pg_ctl"))
            .arg("status")
            .arg("-D")
            .arg(self.data())
            .output()
            .is_ok_and(|output| output.status.success())
    }

    pub fn config(&self, database: &str, user: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.dir)
            .port(PORT)
            .user(user)
            .dbname(database)
            .application_name(database);
        config
    }

    pub fn connect(&self, database: &str, user: &str) -> Client {
        self.config(database, user).connect(NoTls).expect("the server takes the connection")
    }

    /// One of Postgres' own programs, told how to reach this server as the superuser.
    pub fn program(&self, name: &str) -> Command {
        let mut command = command(&bin(self.version).join(name));
        command
            .env("PGHOST", &self.dir)
            .env("PGPORT", PORT.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    /// A new, empty database, dropped with the value.
    pub fn empty_database(&self) -> Database<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut client = self.connect("postgres", "postgres");
        client.batch_execute(&format!("create database {name}")).expect("the database is made");
        Database { server: self, name }
    }

    /// A new database with the extension, and the role `member` that may use it.
    pub fn database(&self) -> Database<'_> {
        let database = self.empty_database();
        self.role("member");
        database.superuser().run("create extension pg_conversation; select grant_access('member')");
        database
    }

    /// Makes a role unless it is there, for roles belong to all databases of the shared server.
    pub fn role(&self, name: &str) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.connect("postgres", "postgres").run(&format!(
            "do $$ begin if to_regrole('{name}') is null then create role {name} login; end if; end $$"
        ));
    }
}

/// A server that is stopped when the test is done with it.
pub struct Private(Server);

impl std::ops::Deref for Private {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if self.is_running() {
            self.stop("immediate");
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub struct Database<'a> {
    pub server: &'a Server,
    pub name: String,
}

impl Database<'_> {
    pub fn connect(&self, user: &str) -> Client {
        self.server.connect(&self.name, user)
    }

    pub fn superuser(&self) -> Client {
        self.connect("postgres")
    }

    /// A session of the role `member` that speaks for this user.
    pub fn member(&self, user: Uuid) -> Client {
        let mut client = self.connect("member");
        client.run(&format!("set pg_conversation.user_id = '{user}'"));
        client
    }

    /// psql in this database, without anybody's settings.
    pub fn psql(&self) -> Command {
        let mut psql = self.server.program("psql");
        psql.args(["-X", "-d", &self.name]);
        psql
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // Left for whoever looks into the failure.
        }
        if let Ok(mut client) = self.server.config("postgres", "postgres").connect(NoTls) {
            let _ = client
                .batch_execute(&format!("drop database if exists {} with (force)", self.name));
        }
    }
}

/// What tests say to a session, with the server's words in the failure.
pub trait Session {
    fn run(&mut self, sql: &str);
    fn value<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> T;
    fn values<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> Vec<T>;
    /// SQLSTATE and message of the error it must raise.
    fn error(&mut self, sql: &str) -> (String, String);
}

impl Session for Client {
    fn run(&mut self, sql: &str) {
        if let Err(error) = self.batch_execute(sql) {
            panic!("{}\n{sql:.2000}", describe(&error));
        }
    }

    fn value<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> T {
        match self.query_one(sql, &[]) {
            Ok(row) => row.get(0),
            Err(error) => panic!("{}\n{sql}", describe(&error)),
        }
    }

    fn values<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> Vec<T> {
        match self.query(sql, &[]) {
            Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
            Err(error) => panic!("{}\n{sql}", describe(&error)),
        }
    }

    fn error(&mut self, sql: &str) -> (String, String) {
        match self.batch_execute(sql) {
            Ok(()) => panic!("no error from {sql:.2000}"),
            Err(error) => match error.as_db_error() {
                Some(db) => (db.code().code().to_string(), db.message().to_string()),
                None => panic!("the connection ended: {error}\n{sql:.2000}"),
            },
        }
    }
}

pub fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!(
            "{} {} | {} | {}",
            db.code().code(),
            db.message(),
            db.detail().unwrap_or_default(),
            db.hint().unwrap_or_default()
        ),
        None => error.to_string(),
    }
}

/// Waits until the query says true, for what another session is about to do.
pub fn wait_until(client: &mut Client, sql: &str) {
    let start = Instant::now();
    while !client.value::<bool>(sql) {
        assert!(start.elapsed() < Duration::from_secs(30), "never true: {sql}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A seed for random tests: given by `PGC_SEED`, or new; print it with what it explains.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = env::var("PGC_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| Uuid::new_v4().as_u128() as u64);
        println!("PGC_SEED={seed}");
        seed
    })
}

/// Numbers that look random and come back with the seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(stream: u64) -> Self {
        let mut rng = Self(seed() ^ (stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rng.next();
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
