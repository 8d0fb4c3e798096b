//! The message that a stream belongs to, and who may do what with it.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::Uuid;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid};

use super::lock;
use super::memory::{self, Version};
use super::rights::has_other_policies;
use crate::access::{Level, has_level, is_restricted, level_in};
use crate::error::Error;
use crate::function::{argument, c_function};
use crate::identity;
use crate::lookup::{self, by_id};
use crate::plan::{self, Row, Statement, arg};
use crate::view::{View, now, still_holds};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Pending,
    Streaming,
    Completed,
    Stopped,
    Failed,
    Interrupted,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Streaming => "streaming",
            Status::Completed => "completed",
            Status::Stopped => "stopped",
            Status::Failed => "failed",
            Status::Interrupted => "interrupted",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        use Status::*;
        let all = [Pending, Streaming, Completed, Stopped, Failed, Interrupted];
        all.into_iter().find(|status| status.name() == name)
    }
}

#[derive(Clone, Copy)]
pub struct Message {
    pub id: Uuid,
    pub conversation: Uuid,
    pub status: Status,
    /// Whether it has no text and no parts and was never finished: older clients insert an empty message, whose
    /// status is completed like that of any other, and stream into it.
    pub is_blank: bool,
    pub was_streamed: bool,
    pub version: Version,
}

impl Message {
    /// Whether chunks may be added.
    pub fn is_open(&self) -> bool {
        match self.status {
            Status::Pending | Status::Streaming => true,
            Status::Completed => self.is_blank,
            Status::Stopped | Status::Failed | Status::Interrupted => false,
        }
    }

    /// Whether somebody is writing it, or may take it up again.
    pub fn may_go_on(&self) -> bool {
        matches!(self.status, Status::Pending | Status::Streaming | Status::Interrupted)
    }

    /// As the running command sees it.
    pub fn find(id: Uuid) -> Result<Option<Self>, Error> {
        let found = lookup::find(c"messages", c"messages_pkey", &by_id(c"id", id)?, Self::of)?;
        found.flatten().transpose()
    }

    /// As it is now, for whoever has just got its lock.
    pub fn find_latest(id: Uuid) -> Result<Option<Self>, Error> {
        now(|| Self::find(id))
    }

    fn of(row: &Row) -> Option<Result<Self, Error>> {
        Some(Ok(Self {
            id: row.named(c"id")?,
            conversation: row.named(c"conversation_id")?,
            status: match status_of(row) {
                Some(status) => status,
                None => return Some(Err(Error::ColumnChanged("status".into()))),
            },
            is_blank: row.is_empty_text(c"content")
                && row.is_null(c"parts")
                && row.is_null(c"completed_at"),
            was_streamed: !row.is_null(c"completed_at"),
            version: Version::of(row),
        }))
    }

    /// Locks a message for somebody who may write in it. For others there is no such message, and
    /// they do not wait to hear it: the lock would tell them, and they would stand in the way.
    pub fn claim(id: Uuid) -> Result<Self, Error> {
        let refused = || Error::NoSuchMessage(id);
        let messages = plan::our_table(c"messages")?;
        let is_restricted = is_restricted(messages);
        let may_write = |conversation| may(messages, id, conversation, Level::Write);
        if is_restricted {
            let known = memory::conversation(id);
            let conversation = || Ok(Self::find(id)?.map(|message| message.conversation));
            now(|| match known.map_or_else(conversation, |known| Ok(Some(known)))? {
                Some(conversation) if may_write(conversation)? => Ok(()),
                _ => Err(refused()),
            })?;
        }
        let mut has_waited = lock::message(id)?;
        if let Some(message) = memory::recall(id)? {
            // He may have lost the right while he waited.
            if is_restricted && has_waited && !now(|| may_write(message.conversation))? {
                return Err(refused());
            }
            return Ok(message);
        }
        let mut message = Self::find_latest(id)?.ok_or_else(refused)?;
        if !message.version.is_free(plan::generation())? {
            // It may be held by somebody who writes to more messages than he can have locks of.
            lock::row(id)?;
            has_waited = true;
            message = Self::find_latest(id)?.ok_or_else(refused)?;
        }
        if is_restricted && has_waited && !now(|| may_write(message.conversation))? {
            return Err(refused());
        }
        if message.status == Status::Streaming {
            memory::keep(&message);
        }
        Ok(message)
    }

    /// Whether it may be ended, or be taken up again.
    pub fn is_unfinished(&self) -> bool {
        self.is_open() || self.status == Status::Interrupted
    }

    /// What whoever needs it otherwise is told.
    pub fn not_streaming(&self) -> Error {
        Error::NotStreaming { message: self.id, status: self.status.name() }
    }

    pub fn allows(&self, level: Level) -> Result<bool, Error> {
        let messages = plan::our_table(c"messages")?;
        Ok(!is_restricted(messages) || may(messages, self.id, self.conversation, level)?)
    }
}

static VISIBLE: Statement = Statement {
    sql: "select true from @extschema@.messages where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

/// Whether a caller who is bound by row level security has this level. Where the DBA has policies of
/// his own, they have a say.
fn may(messages: Oid, id: Uuid, conversation: Uuid, level: Level) -> Result<bool, Error> {
    Ok(has_level(conversation, level)?
        && (!has_other_policies(messages)? || VISIBLE.read(&[arg(id)], |_| ())?.is_some()))
}

/// The same for a caller of whom it is not known whether he is bound: what hangs on a message is for
/// those who read it.
pub fn may_read(message: Uuid, conversation: Uuid) -> Result<bool, Error> {
    let messages = plan::our_table(c"messages")?;
    Ok(!is_restricted(messages) || may(messages, message, conversation, Level::Read)?)
}

/// The label of the enum value in the column of that name.
fn status_of(row: &Row) -> Option<Status> {
    let value = row.raw(row.column(c"status")?)?;
    let of_label = |row: &pg_sys::FormData_pg_enum| {
        // SAFETY: a label is a C string.
        let label = unsafe { CStr::from_ptr(row.enumlabel.data.as_ptr()) };
        label.to_str().ok().and_then(Status::parse)
    };
    // SAFETY: the cache of pg_enum by oid, asked for what may be any number.
    unsafe { plan::cached(pg_sys::SysCacheIdentifier::ENUMOID, value, of_label) }.flatten()
}

/// Whether a dump is being loaded, whose rows stay as they were: pg_dump turns `row_security` off,
/// which nobody does who is bound by it.
pub fn is_restoring(table: Oid) -> bool {
    // SAFETY: reads a setting.
    let row_security = unsafe { pg_sys::row_security };
    !row_security && !is_restricted(table)
}

c_function!(
    /// Whether a user has a level of access to the conversation of a message: what policies on
    /// chunks ask for every row.
    has_message_access,
    pg_finfo_has_message_access,
    access
);

thread_local! {
    /// The last answer: rows of one message come together.
    static KNOWN: RefCell<Option<(View, Uuid, Uuid, Level)>> = const { RefCell::new(None) };
}

fn access(call: FunctionCallInfo) -> Result<Datum, Error> {
    // SAFETY: declared as (uuid, uuid, text).
    let (message, user, wanted) =
        unsafe { (argument(call, 0), argument(call, 1), argument::<&str>(call, 2)) };
    let (Some(message), Some(user), Some(wanted)) = (message, user, wanted) else {
        return Ok(false.into());
    };
    let wanted = Level::parse(wanted)?;
    Ok((level_of(message, user)? >= wanted).into())
}

fn level_of(message: Uuid, user: Uuid) -> Result<Level, Error> {
    let view = View::now();
    let known = KNOWN.with_borrow(|known| match known {
        Some((of, id, person, level)) if (*id, *person) == (message, user) => {
            still_holds(Some(*of), view).then_some(*level)
        }
        _ => None,
    });
    if let Some(level) = known {
        return Ok(level);
    }
    let Some(person) = identity::person()?.filter(|person| person.id == user) else {
        return Ok(Level::None);
    };
    let level = match Message::find(message)? {
        Some(message) => level_in(message.conversation, &person)?,
        None => Level::None,
    };
    if let Some(view) = view {
        KNOWN.set(Some((view, message, user, level)));
    }
    Ok(level)
}
