//! Servers, and the ways to reach them.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use postgres::{Client, Config, NoTls};

use crate::Result;
use crate::wire::Session;

/// A server of Postgres on this machine.
#[derive(Clone)]
pub struct Server {
    socket: String,
    port: u16,
}

impl Server {
    /// The one that dev/bench has started.
    pub fn of_bench() -> Result<Self> {
        Ok(Self { socket: variable("PGHOST")?, port: variable("PGPORT")?.parse()? })
    }

    pub fn client(&self, database: &str, user: &str) -> Result<Client> {
        let mut config = Config::new();
        config
            .host(&self.socket)
            .port(self.port)
            .user(user)
            .dbname(database)
            .application_name("pg_conversation bench");
        Ok(config.connect(NoTls)?)
    }

    pub fn session(&self, database: &str, user: &str) -> Result<Session> {
        Session::connect(&self.path(), &[("user", user), ("database", database)])
    }

    /// A session that may ask for the changes of a database.
    pub fn receiver(&self, database: &str, user: &str) -> Result<Session> {
        let options = [("user", user), ("database", database), ("replication", "database")];
        Session::connect(&self.path(), &options)
    }

    fn path(&self) -> PathBuf {
        [&self.socket, &format!(".s.PGSQL.{}", self.port)].iter().collect()
    }
}

/// One more private server, for what only some row needs. It stops when this is dropped.
pub struct Private {
    name: &'static str,
    pub server: Server,
}

impl Private {
    pub fn start(name: &'static str, settings: &[&str]) -> Result<Self> {
        program("dev/cluster", &[&["start", name, "--"], settings].concat())?;
        let environment = Command::new("dev/cluster").args(["env", name]).output()?;
        let environment = String::from_utf8(environment.stdout)?;
        let find = |variable: &str| -> Result<&str> {
            let mut lines = environment.lines().filter_map(|line| line.strip_prefix("export "));
            let value = lines.find_map(|line| line.strip_prefix(variable)?.strip_prefix('='));
            Ok(value.ok_or_else(|| format!("dev/cluster env does not tell {variable}"))?)
        };
        let server = Server { socket: find("PGHOST")?.into(), port: find("PGPORT")?.parse()? };
        Ok(Self { name, server })
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = program("dev/cluster", &["stop", self.name]);
    }
}

/// Runs a program, which the environment tells where the server is if it is one of Postgres' own.
pub fn program(name: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(name).args(args).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed: {args:?}").into()) }
}

pub fn variable(name: &str) -> Result<String> {
    env::var(name).map_err(|_| format!("{name} is not set: run dev/bench").into())
}
