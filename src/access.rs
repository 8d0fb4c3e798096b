//! Who may do what with a conversation. Policies, triggers and functions all ask here.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::Uuid;
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use crate::error::{Error, OrRaise};
use crate::identity::{self, Person};
use crate::plan::{self, Statement, arg};

/// What a user may do, each level including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Read,
    Write,
    Manage,
}

impl Level {
    fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "read" => Ok(Level::Read),
            "write" => Ok(Level::Write),
            "manage" => Ok(Level::Manage),
            _ => Err(Error::UnknownLevel(name.into())),
        }
    }

    fn of_member(role: Option<&str>) -> Self {
        match role {
            Some("owner") => Level::Manage,
            Some("editor") => Level::Write,
            Some("viewer") => Level::Read,
            _ => Level::None,
        }
    }
}

/// What the rule looks at in a conversation.
struct Conversation<'a> {
    tenant: Option<Uuid>,
    owner: Option<Uuid>,
    visibility: &'a str,
    deleted: bool,
}

/// The rule. `membership` is asked only where nothing else decides.
fn level(
    person: &Person,
    conversation: &Conversation,
    membership: impl FnOnce() -> Result<Level, Error>,
) -> Result<Level, Error> {
    if conversation.tenant != Some(person.tenant) {
        return Ok(Level::None);
    }
    if conversation.owner == Some(person.id) || person.is_admin {
        return Ok(Level::Manage);
    }
    if conversation.deleted {
        return Ok(Level::None);
    }
    let shared = if conversation.visibility == "tenant" { Level::Read } else { Level::None };
    Ok(shared.max(membership()?))
}

static CONVERSATION: Statement = Statement {
    sql: "select tenant_id, user_id, visibility, deleted_at is not null \
          from @extschema@.conversations where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

static MEMBERSHIP: Statement = Statement {
    sql: "select role from @extschema@.conversation_members \
          where conversation_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.=) $2",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

fn membership(conversation: Uuid, person: &Person) -> Result<Level, Error> {
    as_owner(|| {
        let role = MEMBERSHIP
            .read(&[arg(conversation), arg(person.id)], |row| row.get::<String>(1))?
            .flatten();
        Ok(Level::of_member(role.as_deref()))
    })
}

/// Answers already given to one person under one view of the data.
#[derive(Default)]
struct Answers {
    of: Option<(View, Uuid)>,
    levels: HashMap<Uuid, Level>,
}

thread_local! {
    static ANSWERS: RefCell<Answers> = RefCell::default();
}

/// A statement over very many conversations starts its answers anew rather than keep them all.
const MOST_ANSWERS: usize = 100_000;

fn known(view: View, person: &Person, conversation: Uuid) -> Option<Level> {
    ANSWERS.with_borrow_mut(|answers| {
        if answers.of != Some((view, person.id)) || answers.levels.len() > MOST_ANSWERS {
            answers.of = Some((view, person.id));
            answers.levels.clear();
        }
        answers.levels.get(&conversation).copied()
    })
}

fn remember(conversation: Uuid, level: Level) {
    ANSWERS.with_borrow_mut(|answers| answers.levels.insert(conversation, level));
}

/// The caller's level in a conversation of which only the id is known.
pub fn level_in(conversation: Uuid, person: &Person) -> Result<Level, Error> {
    let view = View::now();
    if let Some(level) = view.and_then(|view| known(view, person, conversation)) {
        return Ok(level);
    }
    let found = as_owner(|| {
        CONVERSATION.read(&[arg(conversation)], |row| {
            let visibility = row.get::<String>(3).unwrap_or_default();
            let conversation_row = Conversation {
                tenant: row.get(1),
                owner: row.get(2),
                visibility: &visibility,
                deleted: row.get(4).unwrap_or(true),
            };
            level(person, &conversation_row, || membership(conversation, person))
        })
    })?;
    let level = found.unwrap_or(Ok(Level::None))?;
    if view.is_some() {
        remember(conversation, level);
    }
    Ok(level)
}

/// Whether a user has a level of access to a conversation. Policies pass the user from a sub-query
/// that runs once a statement; an answer about anybody but the caller is false.
#[pg_extern(stable, parallel_safe, cost = 20)]
fn has_conversation_access(
    conversation_id: Option<Uuid>,
    user_id: Option<Uuid>,
    level: Option<&str>,
) -> bool {
    access_by_id(conversation_id, user_id, level).or_raise()
}

fn access_by_id(
    conversation: Option<Uuid>,
    user: Option<Uuid>,
    wanted: Option<&str>,
) -> Result<bool, Error> {
    let (Some(conversation), Some(user), Some(wanted)) = (conversation, user, wanted) else {
        return Ok(false);
    };
    let wanted = Level::parse(wanted)?;
    match identity::person_if(user)? {
        Some(person) => Ok(level_in(conversation, &person)? >= wanted),
        None => Ok(false),
    }
}

/// The same for a row of conversations at hand: nothing has to be looked up for an owner.
#[pg_extern(stable, parallel_safe, cost = 10, name = "has_conversation_access")]
fn has_conversation_access_by_row(
    conversation_id: Option<Uuid>,
    user_id: Option<Uuid>,
    level: Option<&str>,
    tenant_id: Option<Uuid>,
    owner_id: Option<Uuid>,
    visibility: Option<&str>,
    deleted_at: Option<TimestampWithTimeZone>,
) -> bool {
    let conversation = Conversation {
        tenant: tenant_id,
        owner: owner_id,
        visibility: visibility.unwrap_or_default(),
        deleted: deleted_at.is_some(),
    };
    access_by_row(conversation_id, user_id, level, &conversation).or_raise()
}

fn access_by_row(
    id: Option<Uuid>,
    user: Option<Uuid>,
    wanted: Option<&str>,
    conversation: &Conversation,
) -> Result<bool, Error> {
    let (Some(id), Some(user), Some(wanted)) = (id, user, wanted) else {
        return Ok(false);
    };
    let wanted = Level::parse(wanted)?;
    match identity::person_if(user)? {
        Some(person) => Ok(level(&person, conversation, || membership(id, &person))? >= wanted),
        None => Ok(false),
    }
}

/// Whether row level security applies to the caller on this table.
pub fn is_restricted(table: Oid) -> bool {
    // SAFETY: a syscache look-up; the second argument means the current user.
    let state = unsafe { pg_sys::check_enable_rls(table, Oid::INVALID, true) };
    state == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
}

/// Runs `work` with the rights of the owner of our tables, which no policy binds: what foreign keys
/// do for their look-ups. Nothing in it may depend on the caller's search_path.
pub fn as_owner<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let owner = owner()?;
    as_role(owner, work)
}

/// The owner of the tables. After a restore it may be another than the extension's.
pub fn owner() -> Result<Oid, Error> {
    let table = plan::table(plan::home()?.schema, c"schema_version")?;
    // SAFETY: a syscache look-up, released on the spot; relowner is never null.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(table));
        if tuple.is_null() {
            return Err(Error::NotInstalled);
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Ok(owner)
    }
}

pub fn as_role<T>(role: Oid, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    struct Back(Oid, i32);
    impl Drop for Back {
        fn drop(&mut self) {
            // SAFETY: puts back what GetUserIdAndSecContext returned.
            unsafe { pg_sys::SetUserIdAndSecContext(self.0, self.1) }
        }
    }
    let mut back = Back(Oid::INVALID, 0);
    // SAFETY: the guard undoes it, and so does the abort of the transaction.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut back.0, &mut back.1);
        let context = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_NOFORCE_RLS;
        pg_sys::SetUserIdAndSecContext(role, back.1 | context as i32);
    }
    let result = work();
    drop(back);
    result
}

/// What the running command can see. Two commands with equal views see the same rows, so an answer
/// computed under one holds under the other, across statements and transactions.
///
/// Between two snapshots with the same bounds the set of running transactions can only shrink, so
/// their number tells it; a transaction's own changes move its command or its (sub)transaction id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct View {
    xmin: pg_sys::TransactionId,
    xmax: pg_sys::TransactionId,
    running: (u32, i32, bool),
    command: pg_sys::CommandId,
    transaction: pg_sys::TransactionId,
    subtransaction: pg_sys::SubTransactionId,
}

impl View {
    pub fn now() -> Option<Self> {
        // SAFETY: reads backend-local state; the snapshot is not kept.
        unsafe {
            if !pg_sys::ActiveSnapshotSet() {
                return None;
            }
            let snapshot = &*pg_sys::GetActiveSnapshot();
            Some(Self {
                xmin: snapshot.xmin,
                xmax: snapshot.xmax,
                running: (snapshot.xcnt, snapshot.subxcnt, snapshot.suboverflowed),
                command: snapshot.curcid,
                transaction: pg_sys::GetTopTransactionIdIfAny(),
                subtransaction: pg_sys::GetCurrentSubTransactionId(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: [u8; 16] = [1; 16];
    const OTHER: [u8; 16] = [2; 16];
    const TENANT: [u8; 16] = [3; 16];

    #[test]
    fn the_rule_of_access() {
        let id = Uuid::from_bytes;
        let person = |is_admin| Person { id: id(ME), tenant: id(TENANT), is_admin };
        // tenant, owner, visibility, deleted, admin, membership -> level
        let cases = [
            (TENANT, ME, "private", false, false, Level::None, Level::Manage),
            (TENANT, ME, "private", true, false, Level::None, Level::Manage),
            (TENANT, OTHER, "private", false, false, Level::None, Level::None),
            (TENANT, OTHER, "private", false, false, Level::Read, Level::Read),
            (TENANT, OTHER, "private", false, false, Level::Write, Level::Write),
            (TENANT, OTHER, "tenant", false, false, Level::None, Level::Read),
            (TENANT, OTHER, "tenant", false, false, Level::Write, Level::Write),
            (TENANT, OTHER, "tenant", true, false, Level::Write, Level::None),
            (TENANT, OTHER, "private", false, true, Level::None, Level::Manage),
            (OTHER, ME, "tenant", false, true, Level::Manage, Level::None),
        ];
        for (tenant, owner, visibility, deleted, admin, member, expected) in cases {
            let conversation = Conversation {
                tenant: Some(id(tenant)),
                owner: Some(id(owner)),
                visibility,
                deleted,
            };
            let found = level(&person(admin), &conversation, || Ok(member));
            assert!(found.is_ok_and(|found| found == expected), "{visibility} {deleted} {admin}");
        }
    }
}
