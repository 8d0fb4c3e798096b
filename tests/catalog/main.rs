//! What the catalog of an installed extension must say, for every table, policy and function there is:
//! nothing here lists what is checked, so that whatever a later version brings is checked as well.
//! For each check there is a test that plants offenders and sees them named.

use std::sync::Mutex;

use pg_conversation_tests::{Client, Database, Server, Session, describe, oldest, versions};

mod calls;
mod filling;
mod functions;
mod names;
mod policies;
mod privileges;
mod scans;
mod tables;
mod traps;
mod triggers;
mod writes;

/// A query whose rows, one text each, name what is wrong. `{relations}` stands for the relations in
/// the schema of the extension, `{functions}` for the extension's functions.
struct Check(&'static str);

const RELATIONS: &str = "(select c.* from pg_class c join pg_extension e on e.extnamespace = c.relnamespace \
    where e.extname = 'pg_conversation' and not exists (select from pg_depend d \
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e' and d.refobjid <> e.oid))";

const FUNCTIONS: &str = "(select p.* from pg_proc p join pg_depend d on d.objid = p.oid \
    join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_conversation' \
    where d.classid = 'pg_proc'::regclass and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e')";

impl Check {
    fn sql(&self) -> String {
        self.0.replace("{relations}", RELATIONS).replace("{functions}", FUNCTIONS)
    }

    fn offenders(&self, client: &mut Client) -> Vec<String> {
        client.values(&self.sql())
    }

    /// Nothing is wrong in a fresh installation, whatever the version of Postgres.
    fn finds_nothing(&self) {
        for version in versions() {
            let found = self.offenders(&mut installed(version).superuser());
            assert!(found.is_empty(), "Postgres {version}: {found:#?}");
        }
    }

    /// Each of these, made alone and undone again, adds what it says and nothing else.
    fn names(&self, planted: &[(&str, &[&str])]) {
        let database = Server::shared(oldest()).database();
        let mut client = database.superuser();
        let before = self.offenders(&mut client);
        for (plant, expected) in planted {
            client.run("begin");
            client.run(plant);
            let mut found = self.offenders(&mut client);
            found.retain(|name| !before.contains(name));
            found.sort();
            assert_eq!(found, *expected, "{plant}");
            client.run("rollback");
        }
    }
}

/// One database with the extension for the tests that leave it as it is; ended with the server.
fn installed(version: u32) -> &'static Database<'static> {
    static MADE: Mutex<Vec<(u32, &'static Database<'static>)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((_, database)) = made.iter().find(|(of, _)| *of == version) {
        return database;
    }
    let database = &*Box::leak(Box::new(Server::shared(version).database()));
    made.push((version, database));
    database
}

/// What the statement raises, if it does; it leaves nothing behind.
fn attempt(client: &mut Client, sql: &str) -> Result<(), (String, String)> {
    client.run("savepoint attempt");
    let result = client.batch_execute(sql);
    let result = match result {
        Ok(()) => Ok(()),
        Err(error) => match error.as_db_error() {
            Some(db) => Err((db.code().code().to_string(), db.message().to_string())),
            None => panic!("the connection ended: {}\n{sql:.2000}", describe(&error)),
        },
    };
    client.run("rollback to savepoint attempt; release savepoint attempt");
    result
}
