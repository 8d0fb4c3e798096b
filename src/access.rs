//! Who may do what with a conversation. Policies, triggers and functions all ask here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::Uuid;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Oid};

use crate::error::Error;
use crate::function::{argument, c_function, raw_argument, scratch};
use crate::identity::{self, Person};
use crate::lookup::{self, by_id, key};
use crate::plan;
use crate::view::{View, still_holds};

/// What a user may do, each level including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Read,
    Write,
    Manage,
}

impl Level {
    pub fn parse(name: &str) -> Result<Self, Error> {
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
    let member = membership()?;
    if conversation.deleted {
        return Ok(if member == Level::Manage { member } else { Level::None });
    }
    let shared = if conversation.visibility == "tenant" { Level::Read } else { Level::None };
    Ok(member.max(shared))
}

fn membership(conversation: Uuid, person: &Person) -> Result<Level, Error> {
    let keys = [key(c"conversation_id", conversation)?, key(c"user_id", person.id)?];
    let role = lookup::find(c"conversation_members", c"conversation_members_pkey", &keys, |row| {
        row.named::<String>(c"role")
    })?;
    Ok(Level::of_member(role.flatten().as_deref()))
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
        let theirs = answers.of.is_some_and(|(of, id)| view.sees_what(&of) && id == person.id);
        if !theirs || answers.levels.len() > MOST_ANSWERS {
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
    let keys = by_id(c"id", conversation)?;
    let found = lookup::find(c"conversations", c"conversations_pkey", &keys, |row| {
        let visibility = row.named::<String>(c"visibility").unwrap_or_default();
        let row = Conversation {
            tenant: row.named(c"tenant_id"),
            owner: row.named(c"user_id"),
            visibility: &visibility,
            deleted: row.named::<TimestampWithTimeZone>(c"deleted_at").is_some(),
        };
        level(person, &row, || membership(conversation, person))
    })?;
    let level = found.unwrap_or(Ok(Level::None))?;
    if view.is_some() {
        remember(conversation, level);
    }
    Ok(level)
}

/// Whether the caller, if anybody, has this level in a conversation.
pub fn has_level(conversation: Uuid, wanted: Level) -> Result<bool, Error> {
    match identity::person()? {
        Some(person) => Ok(level_in(conversation, &person)? >= wanted),
        None => Ok(false),
    }
}

c_function!(
    /// Whether a user has a level of access to a conversation. Policies pass the user from a
    /// sub-query that runs once a statement; about anybody but the caller of the statement the
    /// answer is false.
    has_conversation_access,
    pg_finfo_has_conversation_access,
    access_by_id
);

c_function!(
    /// The same for a row of conversations at hand: nothing has to be looked up for an owner.
    has_conversation_access_by_row,
    pg_finfo_has_conversation_access_by_row,
    access_by_row
);

c_function!(
    /// Tells the planner that most rows a policy is asked about are the caller's: queries name a
    /// conversation or a user. The default guess of a third would drive it away from indexes that
    /// bring rows in order.
    expect_access,
    pg_finfo_expect_access,
    estimate
);

fn estimate(call: FunctionCallInfo) -> Result<Datum, Error> {
    let Some(request) = raw_argument(call, 0) else { return Ok(Datum::from(0)) };
    let request = request.cast_mut_ptr::<pg_sys::SupportRequestSelectivity>();
    // SAFETY: the planner passes a node; its tag says which kind it is.
    unsafe {
        if (*request).type_ != pg_sys::NodeTag::T_SupportRequestSelectivity {
            return Ok(Datum::from(0));
        }
        (*request).selectivity = 0.95;
        Ok(Datum::from(request))
    }
}

/// The question both begin with; `None` where an argument is null.
struct Question {
    conversation: Uuid,
    user: Uuid,
    wanted: Level,
}

fn question(call: FunctionCallInfo) -> Result<Option<Question>, Error> {
    // SAFETY: declared as (uuid, uuid, text, ...).
    let (conversation, user, wanted) =
        unsafe { (argument(call, 0), argument(call, 1), argument::<&str>(call, 2)) };
    match (conversation, user, wanted) {
        (Some(conversation), Some(user), Some(wanted)) => {
            Ok(Some(Question { conversation, user, wanted: Level::parse(wanted)? }))
        }
        _ => Ok(None),
    }
}

/// The caller, if that is who `user` is. The settings are read once a statement: what is found is
/// kept with the call site, as long as the view stands.
fn caller_if(call: FunctionCallInfo, user: Uuid) -> Result<Option<Person>, Error> {
    let view = View::now();
    // SAFETY: nothing else is kept at these call sites.
    let kept = unsafe { scratch::<Option<(View, Person)>>(call) };
    if let Some(Some((of, person))) = kept
        && still_holds(Some(*of), view)
        && person.id == user
    {
        return Ok(Some(*person));
    }
    let person = identity::person()?.filter(|person| person.id == user);
    if let Some(kept) = kept {
        *kept = view.zip(person);
    }
    Ok(person)
}

fn access_by_id(call: FunctionCallInfo) -> Result<Datum, Error> {
    let Some(question) = question(call)? else { return Ok(false.into()) };
    let level = match caller_if(call, question.user)? {
        Some(person) => level_in(question.conversation, &person)?,
        None => Level::None,
    };
    Ok((level >= question.wanted).into())
}

fn access_by_row(call: FunctionCallInfo) -> Result<Datum, Error> {
    let Some(question) = question(call)? else { return Ok(false.into()) };
    let Some(person) = caller_if(call, question.user)? else { return Ok(false.into()) };
    // SAFETY: declared as (uuid, uuid, text, uuid, uuid, text, timestamptz).
    let conversation = unsafe {
        Conversation {
            tenant: argument(call, 3),
            owner: argument(call, 4),
            visibility: argument(call, 5).unwrap_or_default(),
            deleted: raw_argument(call, 6).is_some(),
        }
    };
    let level = level(&person, &conversation, || membership(question.conversation, &person))?;
    Ok((level >= question.wanted).into())
}

/// Whether row level security applies to the caller on this table.
pub fn is_restricted(table: Oid) -> bool {
    // SAFETY: a syscache look-up; the second argument means the current user.
    let state = unsafe { pg_sys::check_enable_rls(table, Oid::INVALID, true) };
    state == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
}

/// Whether the caller has this privilege on the table or on a column of it.
pub fn has_privilege(table: Oid, privilege: u32) -> bool {
    let (privilege, ok) = (privilege as pg_sys::AclMode, pg_sys::AclResult::ACLCHECK_OK);
    // SAFETY: look-ups in the caches of roles and privileges.
    unsafe {
        let role = pg_sys::GetUserId();
        let any = pg_sys::AclMaskHow::ACLMASK_ANY;
        pg_sys::pg_class_aclcheck(table, role, privilege) == ok
            || pg_sys::pg_attribute_aclcheck_all(table, role, privilege, any) == ok
    }
}

/// For functions that go to a table without a statement on it: what the statement would ask first.
/// The privilege is wanted on the table or on each of the columns.
pub fn require_privilege(table: &CStr, privilege: u32, columns: &[&CStr]) -> Result<(), Error> {
    let oid = plan::our_table(table)?;
    let (privilege, ok) = (privilege as pg_sys::AclMode, pg_sys::AclResult::ACLCHECK_OK);
    // SAFETY: look-ups in the caches of roles, columns and privileges; the error is that of the
    // statement.
    unsafe {
        let role = pg_sys::GetUserId();
        let has_column = |name: &&CStr| {
            let n = pg_sys::get_attnum(oid, name.as_ptr());
            n > 0 && pg_sys::pg_attribute_aclcheck(oid, n, role, privilege) == ok
        };
        if pg_sys::pg_class_aclcheck(oid, role, privilege) != ok
            && (columns.is_empty() || !columns.iter().all(has_column))
        {
            let (denied, of) =
                (pg_sys::AclResult::ACLCHECK_NO_PRIV, pg_sys::ObjectType::OBJECT_TABLE);
            pg_sys::aclcheck_error(denied, of, table.as_ptr());
        }
    }
    Ok(())
}

/// Lets answers that hold before `work` hold after it, for `work` writes nothing they rest on.
pub fn unshaken<T>(work: impl FnOnce() -> T) -> T {
    let before = View::now();
    let result = work();
    let after = View::now();
    identity::carry(before, after);
    ANSWERS.with_borrow_mut(|answers| {
        if let Some((of, _)) = &mut answers.of
            && let Some(after) = after
            && still_holds(Some(*of), before)
        {
            *of = after;
        }
    });
    result
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
            (TENANT, OTHER, "private", true, false, Level::Manage, Level::Manage),
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
