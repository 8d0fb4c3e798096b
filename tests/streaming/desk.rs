//! What the tests of streaming share: a conversation, the calls by name, and a reader.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Database, NoTls, Server, Session, Uuid, describe, oldest};
use postgres::{Error, Row};

const SERVICE: &str = "stream_service";

/// A database with one user, who has one conversation.
pub struct Desk<'a> {
    pub database: Database<'a>,
    pub user: Uuid,
    pub conversation: Uuid,
}

impl Desk<'static> {
    pub fn new() -> Self {
        Desk::on(Server::shared(oldest()))
    }
}

impl<'a> Desk<'a> {
    pub fn on(server: &'a Server) -> Self {
        let database = server.database();
        let user = Uuid::new_v4();
        let conversation = database.member(user).value("select create_conversation('talk')");
        Self { database, user, conversation }
    }

    pub fn member(&self) -> Client {
        self.database.member(self.user)
    }

    /// Another conversation of the same user.
    pub fn another_conversation(&self) -> Uuid {
        self.member().value("select create_conversation('another')")
    }

    /// A session of a role of the profile `service`.
    pub fn service(&self) -> Client {
        // Roles belong to all databases, and two sessions may not alter one at once.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.database.server.role(SERVICE);
        self.database.superuser().run(&format!(
            "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
        ));
        drop(guard);
        self.database.connect(SERVICE)
    }

    /// A session once the server takes any, for it may be on its way up again.
    pub fn reconnect(&self) -> Client {
        let start = Instant::now();
        loop {
            let tried = self.database.server.config(&self.database.name, "member").connect(NoTls);
            let user = format!("set pg_conversation.user_id = '{}'", self.user);
            match tried.and_then(|mut client| client.batch_execute(&user).map(|()| client)) {
                Ok(client) => return client,
                Err(error) if broke(&error) && start.elapsed() < Duration::from_secs(60) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{}", describe(&error)),
            }
        }
    }
}

/// What an append answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub next: i32,
    pub stop: bool,
}

impl From<Row> for Answer {
    fn from(row: Row) -> Self {
        Self { next: row.get(0), stop: row.get(1) }
    }
}

/// One row of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub index: i32,
    pub content: String,
    pub last: bool,
    pub status: String,
    pub whole: bool,
}

impl From<&Row> for Piece {
    fn from(row: &Row) -> Self {
        Self {
            index: row.get(0),
            content: row.get(1),
            last: row.get(2),
            status: row.get(3),
            whole: row.get(4),
        }
    }
}

/// The calls of streaming; those that tests expect to be refused give the error back.
pub trait Stream {
    fn open(&mut self, conversation: Uuid) -> Uuid;
    fn append(&mut self, message: Uuid, content: &str, index: Option<i32>)
    -> Result<Answer, Error>;
    fn append_last(
        &mut self,
        message: Uuid,
        content: &str,
        index: Option<i32>,
    ) -> Result<Answer, Error>;
    fn window<S: AsRef<str>>(
        &mut self,
        message: Uuid,
        contents: &[S],
        first: Option<i32>,
    ) -> Result<Answer, Error>;
    fn insert(
        &mut self,
        message: Uuid,
        content: &str,
        index: i32,
        last: bool,
    ) -> Result<u64, Error>;
    fn finish(&mut self, message: Uuid) -> Result<u64, Error>;
    fn stop(&mut self, message: Uuid, seen: Option<i32>) -> Result<u64, Error>;
    fn text(&mut self, message: Uuid) -> Option<String>;
    fn status(&mut self, message: Uuid) -> String;
    /// Rows of message_chunks.
    fn chunks(&mut self, message: Uuid) -> i64;
    fn read(&mut self, message: Uuid, after: i32, max: i32) -> Result<Vec<Piece>, Error>;
    fn wait(
        &mut self,
        message: Uuid,
        after: i32,
        timeout_ms: i32,
        max: i32,
    ) -> Result<Vec<Piece>, Error>;
}

const READ: &str = "select chunk_index, content, is_final, status, whole from";

impl Stream for Client {
    fn open(&mut self, conversation: Uuid) -> Uuid {
        self.value(&format!("select begin_message('{conversation}')"))
    }

    fn append(
        &mut self,
        message: Uuid,
        content: &str,
        index: Option<i32>,
    ) -> Result<Answer, Error> {
        let sql = "select next_index, stop_requested from append_chunk($1, $2, $3)";
        self.query_one(sql, &[&message, &content, &index]).map(Answer::from)
    }

    fn append_last(
        &mut self,
        message: Uuid,
        content: &str,
        index: Option<i32>,
    ) -> Result<Answer, Error> {
        let sql = "select next_index, stop_requested from append_chunk($1, $2, $3, true)";
        self.query_one(sql, &[&message, &content, &index]).map(Answer::from)
    }

    fn window<S: AsRef<str>>(
        &mut self,
        message: Uuid,
        contents: &[S],
        first: Option<i32>,
    ) -> Result<Answer, Error> {
        let contents: Vec<&str> = contents.iter().map(S::as_ref).collect();
        let sql = "select next_index, stop_requested from append_chunks($1, $2, $3)";
        self.query_one(sql, &[&message, &contents, &first]).map(Answer::from)
    }

    fn insert(
        &mut self,
        message: Uuid,
        content: &str,
        index: i32,
        last: bool,
    ) -> Result<u64, Error> {
        self.execute(
            "insert into message_chunks (message_id, chunk_content, chunk_index, is_final) \
             values ($1, $2, $3, $4)",
            &[&message, &content, &index, &last],
        )
    }

    fn finish(&mut self, message: Uuid) -> Result<u64, Error> {
        self.execute("select finish_message($1)", &[&message])
    }

    fn stop(&mut self, message: Uuid, seen: Option<i32>) -> Result<u64, Error> {
        self.execute("select stop_message($1, $2)", &[&message, &seen])
    }

    fn text(&mut self, message: Uuid) -> Option<String> {
        self.value(&format!("select reconstruct_message('{message}')"))
    }

    fn status(&mut self, message: Uuid) -> String {
        self.value(&format!("select status::text from messages where id = '{message}'"))
    }

    fn chunks(&mut self, message: Uuid) -> i64 {
        self.value(&format!("select count(*) from message_chunks where message_id = '{message}'"))
    }

    fn read(&mut self, message: Uuid, after: i32, max: i32) -> Result<Vec<Piece>, Error> {
        let rows =
            self.query(&format!("{READ} read_stream($1, $2, $3)"), &[&message, &after, &max])?;
        Ok(rows.iter().map(Piece::from).collect())
    }

    fn wait(
        &mut self,
        message: Uuid,
        after: i32,
        timeout_ms: i32,
        max: i32,
    ) -> Result<Vec<Piece>, Error> {
        let rows = self.query(
            &format!("{READ} wait_for_chunks($1, $2, $3, $4)"),
            &[&message, &after, &timeout_ms, &max],
        )?;
        Ok(rows.iter().map(Piece::from).collect())
    }
}

/// A reader that knows nothing but what its reads gave it.
#[derive(Clone, Debug)]
pub struct Reader {
    pub after: i32,
    pub text: String,
    /// The message is final and all of it was read.
    pub done: bool,
}

impl Reader {
    pub fn new() -> Self {
        Self { after: -1, text: String::new(), done: false }
    }

    /// Takes the rows of a read from `self.after`; they must follow on what it has.
    pub fn take(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            assert!(!self.done, "a row after the last one: {pieces:?}");
            if piece.whole {
                assert!(pieces.len() == 1, "{pieces:?}");
                self.text.clone_from(&piece.content);
            } else if piece.index == self.after {
                assert!(piece.content.is_empty() && piece.last, "read again: {piece:?}");
            } else {
                assert_eq!(piece.index, self.after + 1, "out of order: {pieces:?}");
                self.after = piece.index;
                self.text += &piece.content;
            }
            self.done = piece.last && piece.status != "interrupted";
        }
    }
}

/// SQLSTATE of an error of the server.
pub fn code(error: &Error) -> &str {
    match error.as_db_error() {
        Some(db) => db.code().code(),
        None => panic!("the connection ended: {error}"),
    }
}

/// Where a refused producer is told to go on.
pub fn expected_index(error: &Error) -> i32 {
    let detail = error.as_db_error().and_then(|db| db.detail()).unwrap_or_default();
    let number = detail.strip_prefix("expected_index: ").and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("names no index: {}", describe(error)))
}

/// Whether the server or the network ended the session, not the statement.
pub fn broke(error: &Error) -> bool {
    match error.as_db_error() {
        Some(db) => matches!(db.code().code(), "57P01" | "57P02" | "57P03"),
        None => true,
    }
}
