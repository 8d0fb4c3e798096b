//! Numbering of messages, and `add_message`.

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{FromDatum, Uuid};

use crate::access::{Level, is_restricted, level_in, unshaken};
use crate::error::Error;
use crate::function::{Composite, c_function, raw_argument};
use crate::identity;
use crate::lookup::{by_id, key, taken_by};
use crate::owner::as_owner;
use crate::plan::{Arg, Statement, arg};
use crate::trigger::TriggerRow;
use crate::view::latest;

mod revisions;

/// The row lock queues messages of one conversation until the writer commits, so that numbers have
/// no gap; different conversations never meet.
///
/// Whether it is deleted is asked of the row found, not in the condition: on an empty table the
/// planner would take a partial index for as good as the key, and the plan is kept while it fills.
static NUMBER: Statement = Statement {
    sql: "update @extschema@.conversations \
          set last_sequence = last_sequence operator(pg_catalog.+) 1, \
              updated_at = greatest(updated_at, pg_catalog.now()) \
          where id operator(pg_catalog.=) $1 \
          returning last_sequence, tenant_id, deleted_at is null",
    types: &[pg_sys::UUIDOID],
};

static LOCK: Statement = Statement {
    sql: "select last_sequence, tenant_id, deleted_at is null from @extschema@.conversations \
          where id operator(pg_catalog.=) $1 for no key update",
    types: &[pg_sys::UUIDOID],
};

static KEEP_ID: Statement = Statement {
    sql: "select true from @extschema@.messages \
          where id operator(pg_catalog.=) $1 and conversation_id operator(pg_catalog.=) $2 \
          for key share",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

static KEEP_KEY: Statement = Statement {
    sql: "select true from @extschema@.messages \
          where conversation_id operator(pg_catalog.=) $1 \
          and client_message_id operator(pg_catalog.=) $2 for key share",
    types: &[pg_sys::UUIDOID, pg_sys::TEXTOID],
};

static COUNT_TO: Statement = Statement {
    sql: "update @extschema@.conversations set last_sequence = $2 \
          where id operator(pg_catalog.=) $1 and last_sequence operator(pg_catalog.<) $2",
    types: &[pg_sys::UUIDOID, pg_sys::INT4OID],
};

static TENANT_OF: Statement = Statement {
    sql: "select tenant_id from @extschema@.conversations where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

static IS_PARENT: Statement = Statement {
    sql: "select true from @extschema@.messages \
          where id operator(pg_catalog.=) $1 and conversation_id operator(pg_catalog.=) $2",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

c_function!(
    /// Gives id, tenant, number and author to a new message. A row that brings its number is a restored one and
    /// stays as it was.
    place_message, pg_finfo_place_message, place
);

fn place(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::of(call, c"messages")?;
    let conversation =
        row.get::<Uuid>(c"conversation_id")?.ok_or(Error::Missing("conversation_id"))?;

    let restricted = is_restricted(row.table());
    let caller = latest(identity::person)?;
    // Before the lock: a stranger must not hold up those who write here, and hears the same as for
    // a conversation that does not exist.
    if restricted {
        let may_write = match &caller {
            Some(person) => latest(|| level_in(conversation, person))? >= Level::Write,
            None => false,
        };
        if !may_write {
            return Err(Error::NoSuchConversation(conversation));
        }
    }
    // Whatever was granted, a number is not the caller's to choose.
    let number_given = row.get::<i32>(c"sequence_number")?.filter(|_| !restricted);

    let (number, tenant) = unshaken(|| {
        as_owner(&[c"messages", c"conversations"], || match number_given {
            None => number(&row, conversation),
            Some(number) => keep_number(number, conversation),
        })
    })?;
    row.set(c"sequence_number", number)?;
    row.set(c"tenant_id", tenant)?;
    if row.get::<Uuid>(c"id")?.is_none() {
        row.set(c"id", identity::new_id())?;
    }
    if restricted || number_given.is_none() {
        let author = row.get::<Uuid>(c"author_id")?.filter(|_| !restricted);
        match author {
            Some(user) if identity::tenant_of(user)? != Some(tenant) => {
                return Err(Error::NoSuchUser(user));
            }
            Some(_) => (),
            None => {
                let caller = caller.filter(|person| person.tenant == tenant);
                row.set(c"author_id", caller.map(|person| person.id))?;
            }
        }
    }
    Ok(row.finish())
}

fn number(row: &TriggerRow, conversation: Uuid) -> Result<(i32, Uuid), Error> {
    if let Some(parent) = row.get::<Uuid>(c"parent_id")?
        && IS_PARENT.run(&[arg(parent), arg(conversation)], |_| ())?.is_none()
    {
        return Err(Error::NoSuchParent { parent, conversation });
    }
    // A row that is about to conflict must not use up a number, for ON CONFLICT DO NOTHING would
    // leave a gap. An id that is still to be made cannot conflict; one that the caller brings, and
    // a retry key, are looked up under the lock.
    let id = row.get::<Uuid>(c"id")?;
    let retry_key = row.get::<&str>(c"client_message_id")?;
    if id.is_some() || retry_key.is_some() {
        let (last, tenant) = read_number(&LOCK, conversation)?;
        if conflicts(conversation, id, retry_key)? {
            return Ok((last, tenant));
        }
    }
    read_number(&NUMBER, conversation)
}

/// Whether a row with this id or retry key will conflict. What it conflicts with is kept from being
/// deleted before it does, or the new row would come in with a number that was not counted. Rows of
/// another conversation are not touched; to bring the id of one is an error, conflict or not.
fn conflicts(conversation: Uuid, id: Option<Uuid>, retry_key: Option<&str>) -> Result<bool, Error> {
    if let Some(id) = id
        && let Some(of) = taken_by(c"messages", c"messages_pkey", &by_id(c"id", id)?)?
    {
        if of != conversation {
            return Err(Error::IdTaken(id));
        }
        if KEEP_ID.run(&[arg(id), arg(conversation)], |_| ())?.is_some() {
            return Ok(true);
        }
    }
    if let Some(retry_key) = retry_key {
        let keys = [key(c"conversation_id", conversation)?, key(c"client_message_id", retry_key)?];
        return Ok(taken_by(c"messages", c"idx_messages_retry_key", &keys)?.is_some()
            && KEEP_KEY.run(&[arg(conversation), arg(retry_key)], |_| ())?.is_some());
    }
    Ok(false)
}

fn read_number(statement: &'static Statement, conversation: Uuid) -> Result<(i32, Uuid), Error> {
    statement
        .run(&[arg(conversation)], |found| {
            found.get::<bool>(3)?.then_some((found.get(1)?, found.get(2)?))
        })?
        .flatten()
        .ok_or(Error::NoSuchConversation(conversation))
}

/// The counter follows numbers that rows bring along; a dump brings a counter that is high enough.
fn keep_number(number: i32, conversation: Uuid) -> Result<(i32, Uuid), Error> {
    COUNT_TO.run(&[arg(conversation), arg(number)], |_| ())?;
    let tenant = TENANT_OF
        .run(&[arg(conversation)], |found| found.get(1))?
        .flatten()
        .ok_or(Error::NoSuchConversation(conversation))?;
    Ok((number, tenant))
}

const ROLES: [&str; 5] = ["user", "assistant", "system", "tool", "developer"];

static ADD: AddOnce = AddOnce {
    add: Statement {
        sql: "insert into @extschema@.messages \
              (conversation_id, role, content, parent_id, parts, metadata) \
              values ($1, $2::@extschema@.message_role, coalesce($3, ''), $4, $5, coalesce($6, '{}')) \
              returning id, sequence_number",
        types: WITH_KEY.split_at(6).0,
    },
    add_once: Statement {
        sql: "insert into @extschema@.messages \
              (conversation_id, role, content, parent_id, parts, metadata, client_message_id) \
              values ($1, $2::@extschema@.message_role, coalesce($3, ''), $4, $5, \
                      coalesce($6, '{}'), $7) \
              on conflict (conversation_id, client_message_id) where client_message_id is not null \
              do nothing \
              returning id, sequence_number",
        types: WITH_KEY,
    },
    find: Statement {
        sql: "select id, sequence_number, \
              role operator(pg_catalog.=) $2::@extschema@.message_role \
              and (edited_at is not null or content operator(pg_catalog.=) coalesce($3, '')) \
              and coalesce(parent_id operator(pg_catalog.=) $4, parent_id is null and $4 is null) \
              and (edited_at is not null \
                   or coalesce(parts operator(pg_catalog.=) $5, parts is null and $5 is null)) \
              and metadata operator(pg_catalog.=) coalesce($6, '{}') \
              from @extschema@.messages \
              where conversation_id operator(pg_catalog.=) $1 \
              and client_message_id operator(pg_catalog.=) $7",
        types: WITH_KEY,
    },
};

const WITH_KEY: &[Oid] = &[
    pg_sys::UUIDOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::UUIDOID,
    pg_sys::JSONBOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTOID,
];

static ADDED: Composite<3> = Composite::new([
    (c"message_id", pg_sys::UUIDOID),
    (c"sequence_number", pg_sys::INT4OID),
    (c"created", pg_sys::BOOLOID),
]);

c_function!(
    /// Adds a message; with a retry key, once.
    add_message, pg_finfo_add_message, added_row
);

/// Arguments go to the statements as they came: no text or JSON is taken apart on the way.
fn added_row(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let raw = |n| raw_argument(call, n);
    let (conversation, role, content, key) = (raw(0), raw(1), raw(2), raw(3));
    let (parent, parts, metadata) = (raw(4), raw(5), raw(6));
    if conversation.is_none() {
        return Err(Error::Missing("conversation_id"));
    }
    known_role(role)?;
    let added = ADD.run(&[conversation, role, content, parent, parts, metadata, key])?;
    let id = arg(added.id).unwrap_or(Datum::from(0));
    Ok(ADDED.row([id, added.number.into(), added.created.into()]))
}

/// Refuses a role that there is not, before the type does it with less help.
pub fn known_role(role: Arg) -> Result<(), Error> {
    // SAFETY: callers pass a text.
    let name = role.and_then(|role| unsafe { <&str>::from_datum(role, false) });
    let name = name.ok_or(Error::Missing("role"))?;
    if ROLES.contains(&name) { Ok(()) } else { Err(Error::UnknownRole(name.into())) }
}

pub struct Added {
    pub id: Uuid,
    pub number: i32,
    pub created: bool,
}

/// Three statements that take the same arguments, the last of them a retry key.
pub struct AddOnce {
    /// Adds a message; for want of a key it takes one argument less.
    pub add: Statement,
    /// Adds it unless the key was used.
    pub add_once: Statement,
    /// Finds the message of the key, and tells whether it is the same.
    pub find: Statement,
}

impl AddOnce {
    pub fn run(&'static self, args: &[Arg]) -> Result<Added, Error> {
        let (key, others) = args.split_last().ok_or(Error::Missing("message"))?;
        let Some(key) = *key else {
            return insert(&self.add, others)?.ok_or(Error::Missing("message"));
        };
        // A retry long after is the rule, one that meets the first call half-way the exception.
        if let Some(first) = self.find(args, key)? {
            return Ok(first);
        }
        if let Some(added) = insert(&self.add_once, args)? {
            return Ok(added);
        }
        self.find(args, key)?.ok_or(Error::Missing("message"))
    }

    fn find(&'static self, args: &[Arg], key: Datum) -> Result<Option<Added>, Error> {
        let found = self.find.run(args, |row| {
            let added = Added { id: row.get(1)?, number: row.get(2)?, created: false };
            Some((added, row.get(3).unwrap_or(false)))
        })?;
        match found.flatten() {
            Some((added, true)) => Ok(Some(added)),
            Some((_, false)) => {
                // SAFETY: the retry key is a text.
                let key = unsafe { String::from_datum(key, false) };
                Err(Error::RetryDiffers(key.unwrap_or_default()))
            }
            None => Ok(None),
        }
    }
}

fn insert(statement: &'static Statement, args: &[Arg]) -> Result<Option<Added>, Error> {
    let added = statement
        .run(args, |row| Some(Added { id: row.get(1)?, number: row.get(2)?, created: true }))?;
    Ok(added.flatten())
}
