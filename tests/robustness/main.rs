//! Promise 9: bad input, hostile objects and impatient callers get an error with an SQLSTATE and a
//! hint; no session and no server is lost.

mod calls;
mod cancel;
mod chunks;
mod contexts;
mod input;
mod names;
mod paths;
mod replaced;
mod rights;
mod triggers;

use std::sync::Mutex;

use pg_conversation_tests::{Client, Database, Session, describe};
use postgres::Error;

/// The role of a backend that acts for every user.
const SERVICE: &str = "conc_service";

fn grant_service(database: &Database) {
    // Roles belong to all databases, and two sessions may not alter one at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    database.server.role(SERVICE);
    database.superuser().run(&format!(
        "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
    ));
}

/// What is wrong with the way an error was raised, if anything.
fn fault(error: &Error) -> Option<String> {
    let Some(db) = error.as_db_error() else {
        return Some(format!("the connection ended: {error}"));
    };
    let words = format!("{} {}", describe(error), db.where_().unwrap_or_default());
    let code = db.code().code();
    // Raised by our Rust code, or by RAISE in our PL/pgSQL.
    let ours = db.file().is_some_and(|file| file.ends_with(".rs") || file == "pg_conversation")
        || db.routine() == Some("exec_stmt_raise");
    let trace = [
        "panicked",
        "RUST_BACKTRACE",
        "backtrace",
        "unwrap",
        "stack trace",
        "Option::",
        "called `",
    ];
    if code.starts_with("XX") || code == "P0001" {
        Some(words)
    } else if let Some(word) = trace.iter().find(|word| words.contains(**word)) {
        Some(format!("says {word:?}: {words}"))
    } else if ours && db.hint().is_none_or(str::is_empty) {
        Some(format!("no hint: {words}"))
    } else {
        None
    }
}

/// Runs it in a subtransaction that leaves nothing behind.
fn attempt(client: &mut Client, sql: &str) -> Result<(), Error> {
    client.batch_execute("savepoint attempt")?;
    let result = client.batch_execute(sql);
    client.batch_execute("rollback to attempt; release attempt")?;
    result
}
