//! The server of a deployment and its databases.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use pg_conversation_tests::{Client, Private, Server, Session, Uuid, oldest};

/// The superuser, whom nobody signs in as from outside.
pub const ADMIN: &str = "supabase_admin";
/// Who installs extensions and owns the tables of the product: no superuser.
pub const POSTGRES: &str = "postgres";

const STAND_IN: &str = include_str!("stand_in.sql");

/// A server on which `postgres` is not the superuser.
struct Stack {
    server: Private,
    copying: Mutex<()>,
    /// Schemas for which there is a database with the extension to be copied.
    templates: Mutex<Vec<&'static str>>,
}

impl Stack {
    /// The one that runs, or a new one: it is stopped when the last test has let go of it.
    fn shared(version: u32) -> Arc<Stack> {
        static RUNNING: Mutex<Vec<(u32, Weak<Stack>)>> = Mutex::new(Vec::new());
        let mut running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = running.iter().find(|(of, _)| *of == version).and_then(|(_, it)| it.upgrade());
        found.unwrap_or_else(|| {
            let stack = Arc::new(Stack::new(version));
            // What the guide asks for once: roles and their members belong to the whole server.
            stack.server.connect("postgres", ADMIN).run("grant supabase_storage_admin to postgres");
            running.retain(|(of, _)| *of != version);
            running.push((version, Arc::downgrade(&stack)));
            stack
        })
    }

    fn new(version: u32) -> Self {
        let server = Server::private(
            version,
            "fsync = off\nwal_level = logical\nmax_replication_slots = 20\nmax_wal_senders = 20\n",
        );
        // The first superuser is the one in whose name trusted extensions are made.
        server.connect("postgres", "postgres").run("create role midwife superuser login");
        server.connect("postgres", "midwife").run("alter role postgres rename to supabase_admin");
        let mut admin = server.connect("postgres", ADMIN);
        admin.run("drop role midwife");
        // Minor releases of 2026 decode by no library that is not listed.
        let listed =
            "select exists (select from pg_settings where name = 'output_plugin_libraries')";
        if admin.value::<bool>(listed) {
            admin.run("alter system set output_plugin_libraries = pgoutput, wal2json");
            admin.run("select pg_reload_conf()");
        }
        admin.run("create database stand_in");
        server.connect("stand_in", ADMIN).run(STAND_IN);
        Self { server, copying: Mutex::default(), templates: Mutex::default() }
    }
}

/// A database of a deployment, dropped with the value.
pub struct Deployment {
    stack: Arc<Stack>,
    pub name: String,
    /// Where the extension is, or is to be.
    pub schema: &'static str,
}

impl Deployment {
    /// The database as the deployment makes it, without the extension.
    pub fn bare() -> Self {
        Self::bare_on(oldest())
    }

    pub fn bare_on(version: u32) -> Self {
        Self::copy_of(Stack::shared(version), "stand_in")
    }

    /// The only one of a server on which nobody has prepared anything yet.
    pub fn untouched() -> Self {
        Self::copy_of(Arc::new(Stack::new(oldest())), "stand_in")
    }

    /// A database of the same server that knows nothing of the deployment but its roles.
    pub fn plain() -> Self {
        Self::plain_on(oldest())
    }

    pub fn plain_on(version: u32) -> Self {
        let plain = Self::copy_of(Stack::shared(version), "template0");
        plain.admin().run(&format!("alter database {} owner to postgres", plain.name));
        plain
    }

    fn copy_of(stack: Arc<Stack>, template: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", NEXT.fetch_add(1, Ordering::Relaxed));
        {
            // Copies of one template wait for one another, and its sessions must be gone.
            let _guard = stack.copying.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            stack
                .server
                .connect("postgres", ADMIN)
                .run(&format!("create database {name} template {template} owner postgres"));
        }
        Self { stack, name, schema: "public" }
    }

    /// With the extension in `public`, as most have it.
    pub fn new() -> Self {
        Self::with_schema("public")
    }

    /// With the extension in a schema of its own that the API serves.
    pub fn with_schema(schema: &'static str) -> Self {
        Self::with_schema_on(oldest(), schema)
    }

    pub fn with_schema_on(version: u32, schema: &'static str) -> Self {
        let stack = Stack::shared(version);
        let template = format!("with_{schema}");
        let mut made = stack.templates.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !made.contains(&schema) {
            let mut deployment = Self::bare_on(version);
            deployment.schema = schema;
            deployment.install();
            let sql = format!("alter database {} rename to {template}", deployment.name);
            stack.server.connect("postgres", ADMIN).run(&sql);
            made.push(schema);
        }
        drop(made);
        let mut deployment = Self::copy_of(stack, &template);
        deployment.schema = schema;
        deployment
    }

    pub fn install(&self) {
        let mut postgres = self.postgres();
        if self.schema == "public" {
            postgres.run("create extension pg_conversation");
        } else {
            postgres.run(&format!(
                "create schema {0};
                 alter default privileges in schema {0} grant all on tables to anon, authenticated, service_role;
                 create extension pg_conversation with schema {0}",
                self.schema
            ));
        }
    }

    pub fn server(&self) -> &Server {
        &self.stack.server
    }

    pub fn connect(&self, user: &str) -> Client {
        self.stack.server.connect(&self.name, user)
    }

    pub fn admin(&self) -> Client {
        self.connect(ADMIN)
    }

    pub fn postgres(&self) -> Client {
        let mut client = self.connect(POSTGRES);
        client.run(&format!("set search_path = {}, public, extensions", self.schema));
        client
    }

    /// Somebody who has signed up.
    pub fn sign_up(&self, name: &str) -> Uuid {
        let id = Uuid::new_v4();
        self.connect("supabase_auth_admin").run(&format!(
            "insert into users (id, aud, role, email, created_at)
             values ('{id}', 'authenticated', 'authenticated', '{name}@{id}.example', now())"
        ));
        id
    }

    /// One of Postgres' own programs in this database.
    pub fn program(&self, name: &str, user: &str) -> std::process::Command {
        let mut program = self.stack.server.program(name);
        program.env("PGUSER", user).env("PGDATABASE", &self.name);
        program
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.stack
            .server
            .connect("postgres", ADMIN)
            .run(&format!("drop database if exists {} with (force)", self.name));
    }
}
