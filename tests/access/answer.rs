//! What the server says to a statement, in a form that can be compared.

use pg_conversation_tests::{Client, Uuid};
use postgres::SimpleQueryMessage;

/// What the server says to a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Rows as text, and how many were read or written.
    Rows(Vec<Vec<Option<String>>>, u64),
    /// SQLSTATE, and every word of the error.
    Refusal(String, String),
}

impl Answer {
    /// How the matrix writes it.
    pub fn cell(&self, writes: bool) -> String {
        let some =
            |row: &Vec<Option<String>>| matches!(row.first(), Some(Some(value)) if value != "f");
        match self {
            Answer::Refusal(code, _) => code.clone(),
            Answer::Rows(_, n) if writes => if *n > 0 { "yes" } else { "-" }.into(),
            Answer::Rows(rows, _) => if rows.iter().any(some) { "yes" } else { "-" }.into(),
        }
    }

    pub fn text(&self) -> String {
        match self {
            Answer::Refusal(code, words) => format!("{code} {words}"),
            Answer::Rows(rows, n) => {
                let cells = rows.iter().flatten().map(|cell| cell.as_deref().unwrap_or("null"));
                format!("{n}: {}", cells.collect::<Vec<_>>().join("|"))
            }
        }
    }

    /// The same without ids, which differ from call to call.
    pub fn blanked(&self) -> String {
        let text = self.text();
        let mut blanked = String::new();
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            if rest.get(..36).is_some_and(|id| Uuid::parse_str(id).is_ok()) {
                blanked.push_str("ID");
                rest = &rest[36..];
            } else {
                blanked.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        blanked
    }
}

/// Runs a statement, and says what came of it.
pub fn ask(client: &mut Client, sql: &str) -> Answer {
    match client.simple_query(sql) {
        Err(error) => {
            let Some(db) = error.as_db_error() else { panic!("the connection ended: {sql}") };
            // All that a client is told, up to the line of the source.
            let words = [
                Some(db.message()),
                db.detail(),
                db.hint(),
                db.where_(),
                db.table(),
                db.column(),
                db.constraint(),
                db.file(),
                db.routine(),
            ];
            let mut words: Vec<String> = words.into_iter().flatten().map(String::from).collect();
            words.extend(db.line().map(|line| line.to_string()));
            Answer::Refusal(db.code().code().into(), words.join(" | "))
        }
        Ok(messages) => {
            let mut rows = Vec::new();
            let mut count = 0;
            for message in messages {
                match message {
                    SimpleQueryMessage::Row(row) => {
                        rows.push((0..row.len()).map(|n| row.get(n).map(Into::into)).collect());
                    }
                    // What comes before and after it reads and writes nothing.
                    SimpleQueryMessage::CommandComplete(n) => count = n.max(count),
                    _ => (),
                }
            }
            Answer::Rows(rows, count)
        }
    }
}
