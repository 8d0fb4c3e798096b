//! Who else is in a conversation: all changes of that, one after another.

use std::ffi::CStr;

use pgrx::Uuid;
use pgrx::pg_sys::{Datum, FunctionCallInfo};
use pgrx::prelude::*;

use crate::access::{Level, has_level, is_restricted, level_of_caller, require_privilege};
use crate::error::{Error, OrRaise};
use crate::function::{argument, c_function};
use crate::identity;
use crate::owner::as_owner;
use crate::plan::{self, Statement, arg};
use crate::view::now;

/// What a conversation says of itself while nobody else changes its members.
static LOCK: Statement = Statement {
    sql: "select tenant_id, user_id from @extschema@.conversations \
          where id operator(pg_catalog.=) $1 and deleted_at is null for no key update",
    types: &[pg_sys::UUIDOID],
};

static IS_MEMBER: Statement = Statement {
    sql: "select role from @extschema@.conversation_members \
          where conversation_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.=) $2",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

static OTHER_OWNER: Statement = Statement {
    sql: "select true from @extschema@.conversation_members \
          where conversation_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.<>) $2 \
          and role operator(pg_catalog.=) 'owner'",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

/// The rows that foreign keys will lock, the owner's among them, before that of the conversation:
/// whoever holds his own row must not hold up those who write there.
static KEEP_USERS: Statement = Statement {
    sql: "select pg_catalog.count(*) from ( \
              select from @extschema@.users u \
              where u.tenant_id operator(pg_catalog.=) (select c.tenant_id \
                  from @extschema@.conversations c where c.id operator(pg_catalog.=) $1) \
              and (u.id operator(pg_catalog.=) $2 \
                   or u.id operator(pg_catalog.=) (select c.user_id \
                       from @extschema@.conversations c where c.id operator(pg_catalog.=) $1)) \
              for key share) kept",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

static IS_COLLEAGUE: Statement = Statement {
    sql: "select true from @extschema@.users \
          where id operator(pg_catalog.=) $1 and tenant_id operator(pg_catalog.=) $2 and is_active",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

static ADD: Statement = Statement {
    sql: "insert into @extschema@.conversation_members (conversation_id, user_id, role) \
          values ($1, $2, $3) on conflict do nothing returning true",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID, pg_sys::TEXTOID],
};

static CHANGE: Statement = Statement {
    sql: "update @extschema@.conversation_members set role = $3 \
          where conversation_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.=) $2 \
          returning true",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID, pg_sys::TEXTOID],
};

static REMOVE: Statement = Statement {
    sql: "delete from @extschema@.conversation_members \
          where conversation_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.=) $2 \
          returning true",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

/// Of those who leave only owners matter to the others.
static LEAVE: Statement = Statement {
    sql: "delete from @extschema@.conversation_members \
          where conversation_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.=) $2 \
          and role operator(pg_catalog.<>) 'owner' returning true",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

static HAND_OVER: Statement = Statement {
    sql: "update @extschema@.conversations set user_id = $2 where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

/// Table, privilege and columns.
type Privilege = (&'static CStr, u32, &'static [&'static CStr]);

/// What whoever is bound by policies needs: to share is to change whom a conversation is visible to.
const SHARE: Privilege = (c"conversations", pg_sys::ACL_UPDATE, &[c"visibility"]);

const MEMBERS: &CStr = c"conversation_members";

/// A conversation whose row the caller has locked, so that its members stay as they are.
struct Held {
    id: Uuid,
    tenant: Uuid,
    owner: Option<Uuid>,
}

impl Held {
    /// For somebody who may change its members. Rights are asked before the lock, or a stranger would
    /// stand in the way, and again under it, for they may have been taken while he waited.
    fn claim(id: Uuid, user: Uuid, needs: Privilege) -> Result<Self, Error> {
        let restricted = may_share(needs)?;
        if restricted {
            now(|| may_manage(id))?;
        }
        let held = as_owner(&[c"conversations", c"users"], || {
            KEEP_USERS.run(&[arg(id), arg(user)], |_| ())?;
            LOCK.run(&[arg(id)], |row| Some(Self { id, tenant: row.get(1)?, owner: row.get(2) }))
        })?;
        let held = held.flatten().ok_or(Error::NoSuchConversation(id))?;
        if restricted {
            now(|| may_manage(id))?;
        }
        Ok(held)
    }

    fn role_of(&self, user: Uuid) -> Result<Option<String>, Error> {
        Ok(IS_MEMBER.run_now(&[arg(self.id), arg(user)], |row| row.get(1))?.flatten())
    }

    /// Refuses to leave it without anybody who may manage it.
    fn keep_an_owner(&self, without: Uuid) -> Result<(), Error> {
        let has_other = match self.owner {
            Some(owner) => owner != without,
            None => {
                self.role_of(without)?.as_deref() != Some("owner")
                    || OTHER_OWNER.run_now(&[arg(self.id), arg(without)], |_| ())?.is_some()
            }
        };
        if has_other { Ok(()) } else { Err(Error::LastOwner(self.id)) }
    }

    /// A user of another tenant does not exist, nor does one who is locked out.
    fn require_colleague(&self, user: Uuid) -> Result<(), Error> {
        let found = IS_COLLEAGUE.run_now(&[arg(user), arg(self.tenant)], |_| ())?;
        found.ok_or(Error::NoSuchUser(user))
    }
}

/// Whether the caller is bound by row level security; whoever is not needs what a statement would.
fn may_share(needs: Privilege) -> Result<bool, Error> {
    // SAFETY: raises an error where nothing may be written.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"a change of members".as_ptr()) };
    let restricted = is_restricted(plan::our_table(MEMBERS)?);
    let (table, privilege, columns) = if restricted { SHARE } else { needs };
    require_privilege(table, privilege, columns)?;
    Ok(restricted)
}

/// The caller's level, if he may know of the conversation at all.
fn level(conversation: Uuid) -> Result<Level, Error> {
    let level = level_of_caller(conversation)?;
    if level == Level::None { Err(Error::NoSuchConversation(conversation)) } else { Ok(level) }
}

fn may_manage(conversation: Uuid) -> Result<(), Error> {
    if level(conversation)? == Level::Manage {
        Ok(())
    } else {
        Err(Error::NotManager(conversation))
    }
}

/// The conversation and the user that a call names.
fn named(call: FunctionCallInfo) -> Result<(Uuid, Option<Uuid>), Error> {
    // SAFETY: all are declared with (uuid, uuid, ...).
    let (conversation, user) = unsafe { (argument(call, 0), argument(call, 1)) };
    Ok((conversation.ok_or(Error::Missing("conversation_id"))?, user))
}

fn role(call: FunctionCallInfo) -> Result<String, Error> {
    // SAFETY: declared as (uuid, uuid, text).
    let role: String = unsafe { argument(call, 2) }.ok_or(Error::Missing("role"))?;
    match role.as_str() {
        "owner" | "editor" | "viewer" => Ok(role),
        _ => Err(Error::UnknownMemberRole(role)),
    }
}

fn with_rights<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    as_owner(&[c"conversations", MEMBERS, c"users"], work)
}

c_function!(
    /// Lets a user of the tenant in.
    add_member, pg_finfo_add_member, add
);

fn add(call: FunctionCallInfo) -> Result<Datum, Error> {
    let (conversation, user) = named(call)?;
    let user = user.ok_or(Error::Missing("user_id"))?;
    let role = role(call)?;
    let held =
        Held::claim(conversation, user, (MEMBERS, pg_sys::ACL_INSERT, &[c"user_id", c"role"]))?;
    let done = with_rights(|| {
        held.require_colleague(user)?;
        Ok(held.owner != Some(user)
            && ADD.run_now(&[arg(conversation), arg(user), arg(role)], |_| ())?.is_some())
    })?;
    Ok(done.into())
}

c_function!(
    /// Changes what a member may do.
    set_member_role, pg_finfo_set_member_role, change
);

fn change(call: FunctionCallInfo) -> Result<Datum, Error> {
    let (conversation, user) = named(call)?;
    let user = user.ok_or(Error::Missing("user_id"))?;
    let role = role(call)?;
    let held = Held::claim(conversation, user, (MEMBERS, pg_sys::ACL_UPDATE, &[c"role"]))?;
    let done = with_rights(|| {
        let no_member = Error::NoSuchMember { user, conversation };
        if held.owner == Some(user) {
            return if role == "owner" { Ok(false) } else { Err(Error::LastOwner(conversation)) };
        }
        let Some(before) = held.role_of(user)? else { return Err(no_member) };
        if before == role {
            return Ok(false);
        }
        if before == "owner" {
            held.keep_an_owner(user)?;
        }
        // He may leave without the lock.
        let changed = CHANGE.run_now(&[arg(conversation), arg(user), arg(role)], |_| ())?;
        changed.map(|()| true).ok_or(no_member)
    })?;
    Ok(done.into())
}

c_function!(
    /// Takes a member out; anybody may take himself out.
    remove_member, pg_finfo_remove_member, remove
);

fn remove(call: FunctionCallInfo) -> Result<Datum, Error> {
    let (conversation, user) = named(call)?;
    let user = match user {
        Some(user) => user,
        None => identity::person()?.map(|person| person.id).ok_or(Error::NotSignedIn)?,
    };
    let needs = (MEMBERS, pg_sys::ACL_DELETE, [].as_slice());
    let is_me = identity::person()?.is_some_and(|person| person.id == user);
    if is_me && may_share(needs)? && level(conversation)? < Level::Manage {
        // He is no member, unless another has just made him an owner.
        let has_left = leave(conversation, user)?;
        if has_left || !matches!(now(|| level(conversation)), Ok(Level::Manage)) {
            return Ok(has_left.into());
        }
    }
    let held = match Held::claim(conversation, user, needs) {
        // Another owner was faster.
        Err(Error::NotManager(_)) if is_me => return Ok(leave(conversation, user)?.into()),
        held => held?,
    };
    let removed = with_rights(|| {
        held.keep_an_owner(user)?;
        Ok(REMOVE.run_now(&[arg(conversation), arg(user)], |_| ())?.is_some())
    })?;
    Ok(removed.into())
}

/// Takes somebody out who owns nothing, without the lock of the conversation.
fn leave(conversation: Uuid, user: Uuid) -> Result<bool, Error> {
    with_rights(|| Ok(LEAVE.run_now(&[arg(conversation), arg(user)], |_| ())?.is_some()))
}

c_function!(
    /// Gives a conversation to another user, beside whom the owner stays as editor.
    transfer_conversation, pg_finfo_transfer_conversation, transfer
);

fn transfer(call: FunctionCallInfo) -> Result<Datum, Error> {
    let (conversation, user) = named(call)?;
    let user = user.ok_or(Error::Missing("user_id"))?;
    let held =
        Held::claim(conversation, user, (c"conversations", pg_sys::ACL_UPDATE, &[c"user_id"]))?;
    let done = with_rights(|| {
        held.require_colleague(user)?;
        if held.owner == Some(user) {
            return Ok(false);
        }
        HAND_OVER.run_now(&[arg(conversation), arg(user)], |_| ())?;
        REMOVE.run_now(&[arg(conversation), arg(user)], |_| ())?;
        if let Some(owner) = held.owner {
            ADD.run_now(&[arg(conversation), arg(owner), arg("editor")], |_| ())?;
        }
        Ok(true)
    })?;
    Ok(done.into())
}

/// The owner of record first. Names are for whoever reads the conversation; the users themselves are
/// not, nor what somebody has put in the place of a name to stop others.
static PEOPLE: Statement = Statement {
    sql: "select pg_catalog.array_agg(p.user_id order by p.place, p.since, p.user_id), \
              pg_catalog.array_agg( \
                  case when pg_catalog.octet_length(u.name) operator(pg_catalog.<=) 2000 then u.name end \
                  order by p.place, p.since, p.user_id), \
              pg_catalog.array_agg(p.role order by p.place, p.since, p.user_id), \
              pg_catalog.array_agg(p.since order by p.place, p.since, p.user_id) \
          from (select id, user_id, 'owner' as role, created_at as since, 1 as place \
                from @extschema@.conversations \
                union all \
                select conversation_id, user_id, role, created_at, 2 \
                from @extschema@.conversation_members) p \
          join @extschema@.users u on u.id operator(pg_catalog.=) p.user_id \
          where p.id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

type Member = (Uuid, Option<String>, String, TimestampWithTimeZone);

/// Who is in a conversation, for whoever reads it.
#[pg_extern(stable, parallel_safe, strict)]
fn list_members(
    conversation_id: Uuid,
) -> TableIterator<
    'static,
    (
        name!(user_id, Uuid),
        name!(name, Option<String>),
        name!(role, String),
        name!(since, TimestampWithTimeZone),
    ),
> {
    TableIterator::new(people(conversation_id).or_raise())
}

fn people(conversation: Uuid) -> Result<impl Iterator<Item = Member>, Error> {
    require_privilege(MEMBERS, pg_sys::ACL_SELECT, &[c"user_id", c"role"])?;
    if is_restricted(plan::our_table(MEMBERS)?) && !has_level(conversation, Level::Read)? {
        return Err(Error::NoSuchConversation(conversation));
    }
    let columns = with_rights(|| {
        PEOPLE.read(&[arg(conversation)], |row| {
            let ids: Vec<Uuid> = row.get(1)?;
            let names: Vec<Option<String>> = row.get(2)?;
            let roles: Vec<String> = row.get(3)?;
            let since: Vec<TimestampWithTimeZone> = row.get(4)?;
            Some((ids, names, roles, since))
        })
    })?;
    let (ids, names, roles, since) = columns.flatten().unwrap_or_default();
    let members = ids.into_iter().zip(names).zip(roles).zip(since);
    Ok(members.map(|(((id, name), role), since)| (id, name, role, since)))
}
