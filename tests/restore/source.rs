//! The database that is dumped: all that our tables can hold and all that a user hangs on them.

use std::process::Command;
use std::sync::Mutex;

use pg_conversation_tests::{Database, Server, Session, bin, command};

/// Owns the databases, is no superuser, and runs CREATE EXTENSION as the extension is trusted.
pub const OWNER: &str = "restore_owner";

pub const SCHEMAS: [&str; 2] = ["public", "chat"];

pub const ADA: &str = "a1000000-0000-0000-0000-000000000001";
pub const BOB: &str = "a1000000-0000-0000-0000-000000000002";
pub const LIVE: &str = "c0000000-0000-0000-0000-000000000001";
pub const ARCHIVED: &str = "c0000000-0000-0000-0000-000000000002";

const ROLES: [&str; 6] = [
    OWNER,
    "restore_member",
    "restore_service",
    "restore_monitor",
    "restore_former",
    "restore_auditor",
];

pub struct Source<'a> {
    pub database: Database<'a>,
    pub schema: &'static str,
}

impl<'a> Source<'a> {
    pub fn new(server: &'a Server, schema: &'static str) -> Self {
        let source = Self::independent(server, schema);
        source.run(include_str!("depend.sql"));
        source
    }

    /// Nothing of the user's own hangs on a function of the extension.
    pub fn independent(server: &'a Server, schema: &'static str) -> Self {
        let source = Self::tables(server, schema);
        source.run(include_str!("rows.sql"));
        source
    }

    /// The same rows, and nothing outside the schema of the extension.
    pub fn plain(server: &'a Server, schema: &'static str) -> Self {
        let source = Self::tables(server, schema);
        source.run("drop schema app cascade; drop publication app_pub");
        let rows = include_str!("rows.sql");
        // Without what goes that names a table of his.
        let ours: Vec<&str> = rows
            .split_inclusive(";\n")
            .filter(|statement| {
                !statement.contains(" app.") && !statement.contains("ticket_numbers")
            })
            .collect();
        source.run(&ours.concat());
        source
    }

    /// Whether the server writes tokens of its own into column options; see `Dump::strip_tokens`.
    pub fn has_tokens(&self) -> bool {
        self.database.superuser().value(
            "select exists (select from pg_attribute where attoptions::text like '%pg_attver=%')",
        )
    }

    /// All that a dump of data alone needs to find.
    pub fn without_rows(server: &'a Server, schema: &'static str) -> Self {
        let source = Self::tables(server, schema);
        source.run(include_str!("depend.sql"));
        source.run("truncate app.labels");
        source
    }

    fn tables(server: &'a Server, schema: &'static str) -> Self {
        let source = Self { database: empty(server), schema };
        if schema != "public" {
            source.run("create schema @s@");
        }
        source.run("create extension pg_conversation with schema @s@");
        source.run(include_str!("theirs.sql"));
        source
    }

    fn run(&self, sql: &str) {
        self.database.connect(OWNER).run(&sql.replace("@s@", self.schema));
    }
}

/// A database of the owner's with nothing in it.
pub fn empty(server: &Server) -> Database<'_> {
    make_roles(server);
    let database = server.empty_database();
    database.superuser().run(&format!("alter database {} owner to {OWNER}", database.name));
    database
}

/// Roles belong to all databases, and two sessions must not alter one at once.
fn make_roles(server: &Server) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for role in ROLES {
        server.role(role);
    }
    server
        .connect("postgres", "postgres")
        .run("alter role restore_service bypassrls; alter role restore_former bypassrls");
}

/// What pg_dumpall --roles-only is for: grants name roles, which belong to no database.
pub fn copy_roles(from: &Server, to: &Server) {
    let mut source = from.connect("postgres", "postgres");
    let roles: Vec<String> =
        source.values("select rolname::text from pg_roles where rolname !~ '^pg_'");
    for role in roles {
        to.role(&role);
    }
    let alter: Option<String> = source.value(
        "select string_agg(format('alter role %I bypassrls', rolname), ';') from pg_roles \
         where rolbypassrls and rolname !~ '^pg_'",
    );
    to.connect("postgres", "postgres").run(&alter.unwrap_or_default());
}

/// A program of one version told how to reach a server of any.
pub fn program(version: u32, server: &Server, name: &str, user: &str) -> Command {
    let mut command = command(&bin(version).join(name));
    for variable in server.program(name).get_envs() {
        if let (name, Some(value)) = variable {
            command.env(name, value);
        }
    }
    command.env("PGUSER", user);
    command
}

/// What may be said on stderr, and why.
const JUSTIFIED: &[&str] = &[
    // The test servers do not replicate; said of every publication that is made.
    " is insufficient to publish logical changes",
    " to \"logical\" before creating subscriptions.",
    // messages refers to itself. COPY checks at its end, so nothing need be disabled.
    "pg_dump: warning: there are circular foreign-key constraints on this table:",
    "pg_dump: detail: messages",
    "pg_dump: hint: You might not be able to restore the dump without using --disable-triggers",
    "pg_dump: hint: Consider using a full dump instead of a --data-only dump",
];

/// Runs to the end, with success and without a word that is not justified.
pub fn quiet(command: &mut Command) {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let unexpected: Vec<&str> = said
        .lines()
        .filter(|line| !JUSTIFIED.iter().any(|justified| line.contains(justified)))
        .collect();
    assert!(
        output.status.success() && unexpected.is_empty(),
        "{command:?}\n{}\n{}",
        output.status,
        unexpected.join("\n")
    );
}
