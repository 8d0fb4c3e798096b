//! The data set: loaded once, cloned for each run, so that every run begins with the same files.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use uuid::Uuid;

use crate::Result;
use crate::server::{Server, variable};
use crate::wire::Session;

const TABLES: &str = include_str!("../sql/tables.sql");
const DATA: &str = include_str!("../sql/data.sql");

/// The database that rows may write into.
const CLONE: &str = "bench";

/// How much data, and how much patience.
#[derive(Clone, Copy)]
pub struct Size {
    pub database: &'static str,
    pub conversations: u32,
    pub pairs: usize,
    /// Divides the number of turns.
    pub haste: usize,
}

pub const FULL: Size = Size { database: "data_full", conversations: 100_000, pairs: 7, haste: 1 };
pub const QUICK: Size = Size { database: "data_quick", conversations: 5_000, pairs: 3, haste: 10 };

/// Who a session is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum As {
    Superuser,
    /// Sees every row: no policy is asked.
    Bypass,
    /// A program that acts for everybody.
    Service,
    /// Behind row level security.
    Member,
    /// The same before the tables of schema plain, whose policies are written as by hand.
    Naive,
    /// Nobody yet: becomes one of the others in each transaction, as PostgREST does.
    Gateway,
}

impl As {
    fn user(self) -> &'static str {
        match self {
            Self::Superuser => "postgres",
            Self::Bypass => "bench_bypass",
            Self::Service => "bench_service",
            Self::Member => "bench_member",
            Self::Naive => "bench_naive",
            Self::Gateway => "bench_gateway",
        }
    }

    fn claims(self, person: &Person) -> String {
        let subject = match self {
            Self::Superuser | Self::Bypass | Self::Service | Self::Gateway => return String::new(),
            Self::Member => person.auth_id,
            // Spared to look the user up.
            Self::Naive => person.id,
        };
        format!(r#"set request.jwt.claims = '{{"sub": "{subject}", "role": "{}"}}'"#, self.user())
    }
}

/// A user of the data set.
#[derive(Clone, Copy)]
pub struct Person {
    pub id: Uuid,
    pub auth_id: Uuid,
    pub tenant: Uuid,
}

pub struct Bench {
    pub size: Size,
    pub server: Server,
    /// User 1, who owns a tenth of all conversations.
    pub owner: Person,
    /// User 2, who has as many as most, in the same tenant.
    pub ordinary: Person,
    /// User 3, who may read whatever that tenant has: three tenths of all.
    pub admin: Person,
}

impl Bench {
    pub fn prepare(size: Size) -> Result<Self> {
        let server = Server::of_bench()?;
        let mut admin = server.client("postgres", "postgres")?;
        if !is_loaded(&mut admin, size)? {
            load(&server, &mut admin, size)?;
        }
        admin.batch_execute(&format!("drop database if exists {CLONE} with (force)"))?;
        admin.batch_execute(&format!(
            "create database {CLONE} template {} strategy file_copy",
            size.database
        ))?;
        let mut client = server.client(CLONE, "postgres")?;
        client.batch_execute(
            "create extension pg_prewarm schema side;
             select side.pg_prewarm(oid) from pg_class
             where relnamespace in ('public'::regnamespace, 'plain'::regnamespace) and relkind in ('r', 'i')",
        )?;
        let mut person = |email: &str| -> Result<Person> {
            let find = "select id, auth_id, tenant_id from plain.users where email = $1";
            let row = client.query_one(find, &[&email])?;
            Ok(Person { id: row.get(0), auth_id: row.get(1), tenant: row.get(2) })
        };
        let owner = person("user1@example.com")?;
        let ordinary = person("user2@example.com")?;
        let admin = person("user3@example.com")?;
        Ok(Self { size, server, owner, ordinary, admin })
    }

    /// As user 1, where it is somebody.
    pub fn connect(&self, who: As) -> Result<Client> {
        self.connect_for(who, &self.owner)
    }

    pub fn connect_for(&self, who: As, person: &Person) -> Result<Client> {
        let mut client = self.server.client(CLONE, who.user())?;
        client.batch_execute(&who.claims(person))?;
        Ok(client)
    }

    /// The same with the lighter client.
    pub fn session(&self, who: As) -> Result<Session> {
        let mut session = self.server.session(CLONE, who.user())?;
        session.batch(&who.claims(&self.owner))?;
        Ok(session)
    }

    /// The conversations of user 1 with that many messages when the data set was made.
    pub fn conversations_of(&self, messages: i32) -> Result<Vec<Uuid>> {
        self.conversations("last_sequence = $2", messages)
    }

    pub fn small_conversations(&self) -> Result<Vec<Uuid>> {
        self.conversations("last_sequence < $2", 20)
    }

    fn conversations(&self, which: &str, messages: i32) -> Result<Vec<Uuid>> {
        // The template still has the numbers that the rows of this run have moved.
        let rows = self.server.client(self.size.database, "postgres")?.query(
            &format!(
                "select id from plain.conversations where user_id = $1 and {which} order by md5(id::text)"
            ),
            &[&self.owner.id, &messages],
        )?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Leaves autovacuum nothing to do in the next row.
    pub fn settle(&self) -> Result<()> {
        let mut client = self.connect(As::Superuser)?;
        let begin = Instant::now();
        loop {
            let workers: i64 = client
                .query_one(
                    "select count(*) from pg_stat_activity where backend_type = 'autovacuum worker'",
                    &[],
                )?
                .get(0);
            if workers == 0 || begin.elapsed() > Duration::from_secs(60) {
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        for row in client.query(
            "select relid::regclass::text from pg_stat_user_tables
             where n_mod_since_analyze + n_ins_since_vacuum + n_dead_tup > 0",
            &[],
        )? {
            client.batch_execute(&format!("vacuum (analyze) {}", row.get::<_, String>(0)))?;
        }
        Ok(())
    }
}

/// One of several equal parts. What one arm has just read or written is warm in the processor's
/// cache: another arm on the same conversations would be the faster for it.
pub fn share(keys: &[Uuid], part: usize, of: usize) -> Vec<Uuid> {
    if keys.len() < of {
        return keys.to_vec();
    }
    keys.iter().copied().skip(part % of).step_by(of).collect()
}

/// What the data set was made of; a change of it makes a new one.
fn definition(size: Size) -> Result<String> {
    Ok(format!("{} {}\n{TABLES}\n{DATA}", variable("PGC_BENCH_SCRIPTS")?, size.conversations))
}

fn is_loaded(admin: &mut Client, size: Size) -> Result<bool> {
    let found = admin.query_opt(
        "select shobj_description(oid, 'pg_database') is not distinct from md5($2)
         from pg_database where datname = $1",
        &[&size.database, &definition(size)?],
    )?;
    Ok(found.is_some_and(|row| row.get(0)))
}

fn load(server: &Server, admin: &mut Client, size: Size) -> Result<()> {
    let begin = Instant::now();
    eprint!("loading {} conversations ... ", size.conversations);
    let database = size.database;
    let mut client = empty_database(server, database)?;
    client.batch_execute(&format!("set bench.conversations = {}", size.conversations))?;
    client.batch_execute(DATA)?;
    // Frozen and with statistics: nothing is left for autovacuum.
    client.batch_execute("vacuum (freeze, analyze)")?;
    client.batch_execute("checkpoint")?;
    // Last, so that a load that broke off is done again.
    let mark: String = admin.query_one("select md5($1)", &[&definition(size)?])?.get(0);
    admin.batch_execute(&format!("comment on database {database} is '{mark}'"))?;
    eprintln!("{} s", begin.elapsed().as_secs());
    Ok(())
}

/// The tables of both sides and no data.
pub fn empty_database(server: &Server, database: &str) -> Result<Client> {
    let mut admin = server.client("postgres", "postgres")?;
    admin.batch_execute(&format!("drop database if exists {database} with (force)"))?;
    admin.batch_execute(&format!("create database {database}"))?;
    let mut client = server.client(database, "postgres")?;
    client.batch_execute(TABLES)?;
    Ok(client)
}
