//! Every error a user can meet: one message, one SQLSTATE and one hint each.

use std::ffi::CString;

use pgrx::pg_sys::{self, panic::ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the tables of pg_conversation are missing or of an older version")]
    NotInstalled,
    #[error("column {0} is not of the type that the extension made it with")]
    ColumnChanged(String),
    #[error("message_chunks_pkey does not have the chunks of each message in order")]
    NoChunkOrder,
    #[error("a name of pg_conversation stands for something other than an ordinary table")]
    NotATable,
    #[error("table {0} does not belong to the owner of schema_version")]
    NotOurTable(String),
    #[error("message {0} exists in another conversation")]
    IdTaken(pgrx::Uuid),
    #[error("this role may not make conversations")]
    NotGranted,
    #[error("pg_conversation needs a database with encoding UTF8")]
    NotUtf8,
    #[error("extension pg_conversation is not installed in this database")]
    NoExtension,
    #[error("schema version {found} is newer than version {known} of the library")]
    SchemaTooNew { found: i32, known: i32 },
    #[error("migration \"{name}\" is not the one that was run here")]
    MigrationChanged { name: String },
    #[error("{message}")]
    NameTaken { message: String },
    #[error("only the owner of pg_conversation may do this")]
    NotOwner,
    #[error("migrate() needs a read committed transaction")]
    SnapshotTooOld,
    #[error("version {0} is not a version of the schema")]
    NoSuchVersion(i32),
    #[error("table \"{table}\" has rows that rolling back to version {version} would delete")]
    RowsWouldBeLost { table: String, version: i32 },
    #[error(
        "column \"{column}\" of table \"{table}\" has values that rolling back to version {version} would delete"
    )]
    ValuesWouldBeLost { table: &'static str, column: &'static str, version: i32 },
    #[error("the confirmation does not name this database")]
    NotConfirmed { database: String },
    #[error("no user is signed in")]
    NotSignedIn,
    #[error("user {0} is not active")]
    UserInactive(pgrx::Uuid),
    #[error("user {0} does not exist")]
    NoSuchUser(pgrx::Uuid),
    #[error("conversation {0} does not exist")]
    NoSuchConversation(pgrx::Uuid),
    #[error("conversation {0} is not the caller's to manage")]
    NotManager(pgrx::Uuid),
    #[error("user {user} is not a member of conversation {conversation}")]
    NoSuchMember { user: pgrx::Uuid, conversation: pgrx::Uuid },
    #[error("conversation {0} would have no owner")]
    LastOwner(pgrx::Uuid),
    #[error("unknown role \"{0}\" of a member")]
    UnknownMemberRole(String),
    #[error("message {parent} does not exist in conversation {conversation}")]
    NoSuchParent { parent: pgrx::Uuid, conversation: pgrx::Uuid },
    #[error("unknown role \"{0}\"")]
    UnknownRole(String),
    #[error("unknown access level \"{0}\"")]
    UnknownLevel(String),
    #[error("client_message_id \"{0}\" was used for another message")]
    RetryDiffers(String),
    #[error("message {0} does not exist")]
    NoSuchMessage(pgrx::Uuid),
    #[error("chunk {got} of message {message} is out of order, expected {expected}")]
    OutOfOrder { message: pgrx::Uuid, got: i32, expected: i32 },
    #[error("chunk {index} of message {message} is there with another content")]
    ChunkDiffers { message: pgrx::Uuid, index: i32 },
    #[error("chunk {last} is the last of message {message}")]
    NotTheLast { message: pgrx::Uuid, last: i32 },
    #[error("only a client's own statement may listen")]
    CannotListen,
    #[error("chunk index {0} is out of range")]
    BadIndex(i32),
    #[error("message {message} is {status}")]
    NotStreaming { message: pgrx::Uuid, status: &'static str },
    #[error("message {0} is still being written")]
    StillWritten(pgrx::Uuid),
    #[error("message {0} is not the caller's to edit")]
    NotYours(pgrx::Uuid),
    #[error("message {0} was finished with other figures")]
    FiguresDiffer(pgrx::Uuid),
    #[error("the chunks of message {0} were cleaned up")]
    ChunksGone(pgrx::Uuid),
    #[error("the text of the message is larger than 32 MB")]
    TextTooLarge,
    #[error("a rating is 1 or -1, not {0}")]
    BadRating(i32),
    #[error("tenant {0} does not exist")]
    NoSuchTenant(pgrx::Uuid),
    #[error("tenant {tenant} has no tokens left today")]
    NoTokensLeft { tenant: pgrx::Uuid, retry_after: Option<i32> },
    #[error("reservation {0} does not exist")]
    NoSuchReservation(pgrx::Uuid),
    #[error("reservation {0} was settled with another number of tokens")]
    SettledOtherwise(pgrx::Uuid),
    #[error("ttl is not between a second and a day")]
    BadTtl,
    #[error("rate_states is not as migrate() makes it")]
    NoPlainStates,
    #[error("event \"{0}\" does not exist")]
    NoSuchEvent(String),
    #[error("idempotency_key \"{0}\" was used for another event")]
    UsageDiffers(String),
    #[error("idempotency_key \"{0}\" begins like one of the extension's own")]
    ReservedKey(String),
    #[error("{name} must have {least} to {most} characters")]
    BadLength { name: &'static str, least: usize, most: usize },
    #[error("usage cannot be recorded: {0}")]
    BadUsage(String),
    #[error("a sum of usage is too large")]
    SumTooLarge,
    #[error("usage is recorded after the fact, and on a day of the calendar")]
    BadMoment,
    #[error("{0} must not be negative")]
    Negative(&'static str),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NotForMembers(String),
    #[error("{0} must not be null")]
    Missing(&'static str),
    #[error("{0}")]
    Drift(String),
    #[error("this function can only be called by its trigger")]
    NotATrigger,
    #[error("SPI failed in {call}: {code}")]
    Spi { call: &'static str, code: i32 },
}

impl Error {
    /// What a program needs of it.
    fn detail(&self) -> Option<String> {
        match self {
            Error::OutOfOrder { expected, .. } => Some(format!("expected_index: {expected}")),
            Error::NoTokensLeft { retry_after, .. } => {
                retry_after.map(|seconds| format!("retry_after: {seconds}"))
            }
            _ => None,
        }
    }

    /// A SQLSTATE that Postgres has no name for. PostgREST makes the HTTP status of PT and its number.
    fn own_code(&self) -> Option<[u8; 5]> {
        match self {
            Error::NoTokensLeft { .. } => Some(*b"PT429"),
            _ => None,
        }
    }

    fn code_and_hint(&self) -> (PgSqlErrorCode, Option<String>) {
        use PgSqlErrorCode::*;
        let (code, hint) = match self {
            Error::NotInstalled => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Run migrate() as the owner of the extension.".into(),
            ),
            Error::ColumnChanged(_) => (
                ERRCODE_DATATYPE_MISMATCH,
                "Change it back with ALTER TABLE ... ALTER COLUMN ... TYPE.".into(),
            ),
            Error::NoChunkOrder => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Run ALTER TABLE message_chunks ADD CONSTRAINT message_chunks_pkey \
                 PRIMARY KEY (message_id, chunk_index)."
                    .into(),
            ),
            Error::NotATable => (
                ERRCODE_WRONG_OBJECT_TYPE,
                "Put the ordinary table back; partitions and views cannot stand for it.".into(),
            ),
            Error::NotOurTable(_) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Give all tables of the extension to one owner with ALTER TABLE ... OWNER TO."
                    .into(),
            ),
            Error::IdTaken(_) => {
                (ERRCODE_UNIQUE_VIOLATION, "Leave the id out, or use a new one.".into())
            }
            Error::NotGranted => {
                (ERRCODE_INSUFFICIENT_PRIVILEGE, "Run grant_access for the role.".into())
            }
            Error::NotUtf8 => (
                ERRCODE_FEATURE_NOT_SUPPORTED,
                "Create the database with ENCODING 'UTF8' TEMPLATE template0.".into(),
            ),
            Error::NoExtension => {
                (ERRCODE_UNDEFINED_OBJECT, "Run CREATE EXTENSION pg_conversation.".into())
            }
            Error::SchemaTooNew { .. } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Install the newer library, then run ALTER EXTENSION pg_conversation UPDATE."
                    .into(),
            ),
            Error::MigrationChanged { .. } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Install the library that made these tables; released migrations never change."
                    .into(),
            ),
            Error::NameTaken { .. } => (
                ERRCODE_DUPLICATE_OBJECT,
                "Install into a schema of its own: CREATE SCHEMA chat; \
                 CREATE EXTENSION pg_conversation WITH SCHEMA chat."
                    .into(),
            ),
            Error::NotOwner => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "Run it as the role that owns the tables, or that ran CREATE EXTENSION.".into(),
            ),
            Error::SnapshotTooOld => (
                ERRCODE_ACTIVE_SQL_TRANSACTION,
                "Run it in a transaction of isolation level READ COMMITTED.".into(),
            ),
            Error::NoSuchVersion(_) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "Name a version from schema_version, or 0 for an empty schema.".into(),
            ),
            Error::RowsWouldBeLost { .. } | Error::ValuesWouldBeLost { .. } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Take a backup, then call it with force => true.".into(),
            ),
            Error::NotConfirmed { database } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!(
                    "It deletes every conversation. Call uninstall(confirm => '{}') to go on.",
                    database.replace('\'', "''")
                ),
            ),
            Error::NotSignedIn => (
                ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
                "Set request.jwt.claims, or pg_conversation.user_id, to the caller's id.".into(),
            ),
            Error::UserInactive(_) => (
                ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
                "An administrator can activate the user and the tenant.".into(),
            ),
            Error::NoSuchUser(_)
            | Error::NoSuchConversation(_)
            | Error::NoSuchMessage(_)
            | Error::NoSuchTenant(_) => {
                (ERRCODE_NO_DATA_FOUND, "Check the id, and that the caller may use it.".into())
            }
            Error::NoSuchEvent(_) => (
                ERRCODE_NO_DATA_FOUND,
                "Name an event of kind usage or increment by its idempotency_key.".into(),
            ),
            Error::UsageDiffers(_) => (
                ERRCODE_UNIQUE_VIOLATION,
                "Retry with the same user, model, usage and occurred_at, or use a new key.".into(),
            ),
            Error::ReservedKey(_) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "Begin it otherwise than message:, void:, repricing: and increment:.".into(),
            ),
            Error::BadLength { .. } => {
                (ERRCODE_INVALID_PARAMETER_VALUE, "Give one of that length.".into())
            }
            Error::SumTooLarge => (
                ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                "Void what was recorded by mistake.".into(),
            ),
            Error::BadUsage(_) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "Give an object of at most 50 figures from 0 to 1000000000000, tokens in whole numbers, under \
                 names of at most 100 characters; input_tokens and prompt_tokens are the same."
                    .into(),
            ),
            Error::BadMoment => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "Give a moment of use from the year 1 on, at most an hour ahead, or leave it out; a day up to \
                 9999-12-31."
                    .into(),
            ),
            Error::NoSuchParent { .. } => (
                ERRCODE_NO_DATA_FOUND,
                "A parent is an earlier message of the same conversation.".into(),
            ),
            Error::NotManager(_) => {
                (ERRCODE_INSUFFICIENT_PRIVILEGE, "Ask an owner of the conversation.".into())
            }
            Error::NoSuchMember { .. } => {
                (ERRCODE_NO_DATA_FOUND, "Call add_member for somebody who is not there yet.".into())
            }
            Error::LastOwner(_) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Call transfer_conversation first, or delete_conversation.".into(),
            ),
            Error::UnknownMemberRole(_) => {
                (ERRCODE_INVALID_PARAMETER_VALUE, "Use owner, editor or viewer.".into())
            }
            Error::UnknownRole(_) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "Use user, assistant, system, tool or developer.".into(),
            ),
            Error::UnknownLevel(_) => {
                (ERRCODE_INVALID_PARAMETER_VALUE, "Use read, write or manage.".into())
            }
            Error::RetryDiffers(_) => (
                ERRCODE_UNIQUE_VIOLATION,
                "Retry with the same role, content, parts, parent and metadata, or use a new key."
                    .into(),
            ),
            Error::OutOfOrder { .. } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Send again from the expected index.".into(),
            ),
            Error::ChunkDiffers { .. } => (
                ERRCODE_UNIQUE_VIOLATION,
                "Another producer writes this message, or this one sent something else before: \
                 ask resume_message for the index to go on from."
                    .into(),
            ),
            Error::NotTheLast { .. } => (
                ERRCODE_INVALID_CURSOR_STATE,
                "A final chunk is the one with the highest index.".into(),
            ),
            Error::CannotListen => {
                (ERRCODE_INSUFFICIENT_PRIVILEGE, "Call it as a statement of its own.".into())
            }
            Error::BadIndex(_) => {
                (ERRCODE_INVALID_PARAMETER_VALUE, "Chunks are numbered from 0.".into())
            }
            Error::NotStreaming { status, .. } => (
                ERRCODE_INVALID_CURSOR_STATE,
                if *status == "interrupted" {
                    "Call resume_message and go on from the index it returns.".into()
                } else {
                    "Begin a new message; this one has ended.".into()
                },
            ),
            Error::StillWritten(_) => {
                (ERRCODE_INVALID_CURSOR_STATE, "Edit it when it has ended.".into())
            }
            Error::NotYours(_) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "Users edit their own messages, if features of their tenant has \
                 \"edit_messages\": true."
                    .into(),
            ),
            Error::FiguresDiffer(_) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Figures are written once; finish with the same ones.".into(),
            ),
            Error::ChunksGone(_) => (
                ERRCODE_INVALID_CURSOR_STATE,
                "Begin a new message; the text so far is kept in this one.".into(),
            ),
            Error::TextTooLarge => (
                ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                "End it with stop_message or fail_message, which keep the first 32 MB.".into(),
            ),
            Error::BadRating(_) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "Use 1 for thumbs up and -1 for thumbs down, or call withdraw_feedback.".into(),
            ),
            Error::NoTokensLeft { .. } => (
                ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "Try again later, with fewer tokens, or raise daily_token_limit of the tenant."
                    .into(),
            ),
            Error::NoSuchReservation(_) => (
                ERRCODE_NO_DATA_FOUND,
                "Check the id; reservations are kept for two days after their end.".into(),
            ),
            Error::SettledOtherwise(_) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "A reservation is settled once; one that was released is settled with 0.".into(),
            ),
            Error::BadTtl => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "Give as long as the answer may take, a day at most.".into(),
            ),
            Error::NoPlainStates => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "Its rows are changed in place: drop what indexes it but its key, and the columns \
                 that were put before next_at."
                    .into(),
            ),
            Error::Negative(_) => {
                (ERRCODE_INVALID_PARAMETER_VALUE, "Give 0 or more, or leave it out.".into())
            }
            Error::Refused(_) => {
                (ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION, "Insert a new row instead.".into())
            }
            Error::NotForMembers(_) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "The service and the owner of the tables may change it.".into(),
            ),
            Error::Missing(_) => (ERRCODE_NULL_VALUE_NOT_ALLOWED, "Give it a value.".into()),
            Error::Drift(_) => (
                ERRCODE_DATA_CORRUPTED,
                "Rows were written with triggers disabled, or by hand; docs/maintenance.md tells what to do."
                    .into(),
            ),
            Error::NotATrigger => (
                ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "migrate() makes the triggers that call it.".into(),
            ),
            Error::Spi { .. } => return (ERRCODE_INTERNAL_ERROR, None),
        };
        (code, Some(hint))
    }
}

/// Raises the error in Postgres, with its SQLSTATE and hint.
pub trait OrRaise<T> {
    fn or_raise(self) -> T;
}

impl<T> OrRaise<T> for Result<T, Error> {
    fn or_raise(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => raise(error),
        }
    }
}

fn raise(error: Error) -> ! {
    let (code, hint) = error.code_and_hint();
    let detail = error.detail();
    if let Some(code) = error.own_code() {
        throw(code, error.to_string(), detail, hint);
    }
    let report = ErrorReport::new(code, error.to_string(), "pg_conversation");
    let report = match hint {
        Some(hint) => report.set_hint(hint),
        None => report,
    };
    let report = match detail {
        Some(detail) => report.set_detail(detail),
        None => report,
    };
    report.report(PgLogLevel::ERROR);
    // The report never returns at this level; the type system does not know.
    std::process::abort()
}

/// The same with a SQLSTATE that pgrx, which knows those of Postgres alone, would replace.
fn throw(code: [u8; 5], message: String, detail: Option<String>, hint: Option<String>) -> ! {
    let sqlstate = |code: [u8; 5]| {
        let sixbit =
            |(n, letter): (usize, u8)| i32::from(letter.wrapping_sub(b'0') & 0x3F) << (6 * n);
        code.into_iter().enumerate().map(sixbit).sum()
    };
    // As Postgres keeps them: to the end of the transaction, which is at hand.
    let words = |text: Option<String>| {
        text.and_then(|text| CString::new(text).ok()).map_or(std::ptr::null_mut(), |text| {
            // SAFETY: copies a C string.
            unsafe { pg_sys::pstrdup(text.as_ptr()) }
        })
    };
    let mut report = pg_sys::ErrorData {
        elevel: PgLogLevel::ERROR as i32,
        sqlerrcode: sqlstate(code),
        message: words(Some(message)),
        detail: words(detail),
        hint: words(hint),
        ..Default::default()
    };
    // SAFETY: what is not set is null, as for any report that lacks it. All of it is copied.
    unsafe { pg_sys::ThrowErrorData(&mut report) };
    std::process::abort()
}
