//! Triggers of conversations and their members.

use pgrx::Uuid;
use pgrx::pg_sys::{self, Datum};

use crate::access::is_restricted;
use crate::error::Error;
use crate::function::c_function;
use crate::identity::{ensure_person, subject, tenant_of};
use crate::owner::as_owner;
use crate::plan::{Statement, arg};
use crate::trigger::TriggerRow;

mod members;

/// The tenant of those who have no other; made with the tables, under the same id everywhere.
const DEFAULT_TENANT: [u8; 16] = [0, 0, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 1];

const TITLE_START: &str = "Conversation ";

static TENANT_OF_USER: Statement = Statement {
    sql: "select t.id, t.default_visibility from @extschema@.users u \
          join @extschema@.tenants t on t.id operator(pg_catalog.=) u.tenant_id \
          where u.id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

static TENANT: Statement = Statement {
    sql: "select id, default_visibility from @extschema@.tenants \
          where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

static TENANT_OF_MEMBER: Statement = Statement {
    sql: "select c.tenant_id from @extschema@.conversations c \
          join @extschema@.users u on u.tenant_id operator(pg_catalog.=) c.tenant_id \
          where c.id operator(pg_catalog.=) $1 and u.id operator(pg_catalog.=) $2",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

c_function!(
    /// Fills owner, tenant, names, title and visibility of a new conversation where they are absent.
    place_conversation, pg_finfo_place_conversation, place
);

fn place(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::of(call, c"conversations")?;
    let restricted = is_restricted(row.table());
    let owner = owner_of(&mut row, restricted)?;
    if restricted {
        row.set(c"last_sequence", 0)?;
    }
    let given = row.get::<Uuid>(c"tenant_id")?;

    // The owner's tenant is not a matter of what the caller says.
    let (statement, key) = match owner {
        Some(user) => (&TENANT_OF_USER, user),
        None => (&TENANT, given.unwrap_or(Uuid::from_bytes(DEFAULT_TENANT))),
    };
    let (tenant, visibility) = as_owner(&[c"users", c"tenants"], || {
        statement.run(&[arg(key)], |found| (found.get::<Uuid>(1), found.get::<String>(2)))
    })?
    .ok_or(Error::NoSuchUser(key))?;
    if given != tenant {
        row.set(c"tenant_id", tenant)?;
    }
    if row.get::<&str>(c"visibility")?.is_none() {
        row.set(c"visibility", visibility)?;
    }

    let session = row.get::<String>(c"session_id")?;
    let continuation = row.get::<String>(c"continuation_id")?;
    let name = match continuation.as_ref().or(session.as_ref()) {
        Some(name) => name.clone(),
        None => row.get::<Uuid>(c"id")?.ok_or(Error::Missing("id"))?.to_string(),
    };
    if session.is_none() {
        row.set(c"session_id", name.as_str())?;
    }
    if continuation.is_none() {
        row.set(c"continuation_id", name.as_str())?;
    }
    if row.get::<&str>(c"title")?.is_none() {
        let start: String = name.chars().take(8).collect();
        row.set(c"title", format!("{TITLE_START}{start}"))?;
    }
    Ok(row.finish())
}

/// The owner of a new row. Clients name themselves by the subject of their claims.
fn owner_of(row: &mut TriggerRow, restricted: bool) -> Result<Option<Uuid>, Error> {
    let named = row.get::<Uuid>(c"user_id")?;
    let subject = subject().map(|subject| subject.id());
    let caller_is_meant = named.is_none() || named == subject;
    if restricted || (caller_is_meant && subject.is_some()) {
        let person = ensure_person()?;
        match named {
            Some(user) if user == person.id => return Ok(Some(user)),
            Some(user) if !caller_is_meant => return Err(Error::NoSuchUser(user)),
            _ => {
                row.set(c"user_id", person.id)?;
                return Ok(Some(person.id));
            }
        }
    }
    Ok(named)
}

c_function!(
    /// Takes the tenant of a membership from its conversation; a user of another tenant does not exist.
    place_member, pg_finfo_place_member, place_in_conversation
);

fn place_in_conversation(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::of(call, c"conversation_members")?;
    let conversation =
        row.get::<Uuid>(c"conversation_id")?.ok_or(Error::Missing("conversation_id"))?;
    let user = row.get::<Uuid>(c"user_id")?.ok_or(Error::Missing("user_id"))?;
    let tenant = as_owner(&[c"conversations", c"users"], || {
        TENANT_OF_MEMBER.run(&[arg(conversation), arg(user)], |found| found.get::<Uuid>(1))
    })?
    .flatten()
    .ok_or(Error::NoSuchUser(user))?;
    row.set(c"tenant_id", tenant)?;
    Ok(row.finish())
}

c_function!(
    /// A conversation changes hands within its tenant only.
    check_owner,
    pg_finfo_check_owner,
    owner_is_of_tenant
);

fn owner_is_of_tenant(call: pg_sys::FunctionCallInfo) -> Result<Datum, Error> {
    let row = TriggerRow::of(call, c"conversations")?;
    if let Some(owner) = row.get::<Uuid>(c"user_id")?
        && tenant_of(owner)? != row.get::<Uuid>(c"tenant_id")?
    {
        return Err(Error::NoSuchUser(owner));
    }
    Ok(row.finish())
}
