//! Who may do what with a conversation. Policies, triggers and functions all ask here.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use pgrx::Uuid;
use pgrx::datum::TimestampWithTimeZone;

use crate::error::Error;
use crate::identity::{self, Person};
use crate::lookup::{self, Place, by_id, key};
use crate::view::{View, still_holds};

mod policy;
mod privileges;
mod readable;

pub use privileges::{has_privilege, is_restricted, require_privilege};

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

fn membership(
    conversation: Uuid,
    person: &Person,
    found_at: &mut Option<Place>,
) -> Result<Level, Error> {
    let keys = [key(c"conversation_id", conversation)?, key(c"user_id", person.id)?];
    let role = lookup::find_placed(
        c"conversation_members",
        c"conversation_members_pkey",
        &keys,
        |row, place| {
            *found_at = place;
            row.named::<String>(c"role")
        },
    )?;
    Ok(Level::of_member(role.flatten().as_deref()))
}

/// Answers already given to one person under one view of the data.
#[derive(Default)]
struct Answers {
    of: Option<(View, Uuid)>,
    levels: HashMap<Uuid, Level>,
    /// How many conversations had to be looked up, and all that need to be, once that has become worth
    /// finding out.
    looked_up: usize,
    readable: Option<HashSet<Uuid>>,
    /// The last answer, with the rows that it rests on: under another view it holds if they do.
    last: Option<Answer>,
}

struct Answer {
    person: Person,
    conversation: Uuid,
    level: Level,
    rows: [Option<Place>; 2],
}

thread_local! {
    static ANSWERS: RefCell<Answers> = RefCell::default();
}

/// A statement over very many conversations starts its answers anew rather than keep them all.
const MOST_ANSWERS: usize = 100_000;

/// A statement over this many conversations is likely to meet many more that are not the caller's.
const MANY: usize = 200;

fn known(view: View, person: &Person, conversation: Uuid) -> Option<Level> {
    ANSWERS.with_borrow_mut(|answers| {
        let theirs = answers.of.is_some_and(|(of, id)| view.sees_what(&of) && id == person.id);
        if !theirs || answers.levels.len() > MOST_ANSWERS {
            answers.of = Some((view, person.id));
            answers.levels.clear();
            answers.looked_up = 0;
            answers.readable = None;
        }
        if let Some(level) = answers.levels.get(&conversation) {
            return Some(*level);
        }
        if answers.readable.as_ref().is_some_and(|all| !all.contains(&conversation)) {
            return Some(Level::None);
        }
        let last = answers.last.as_ref()?;
        let same = last.conversation == conversation && last.person == *person;
        (same && last.rows.iter().flatten().all(Place::still_holds)).then(|| {
            answers.levels.insert(conversation, last.level);
            last.level
        })
    })
}

/// Finds out once, for a statement over very many conversations, which it need not look up.
fn learn_readable(person: &Person) -> Result<(), Error> {
    let is_worth_it = |answers: &Answers| answers.looked_up == MANY && answers.readable.is_none();
    // All of a tenant are an admin's.
    if person.is_admin || !ANSWERS.with_borrow(is_worth_it) {
        return Ok(());
    }
    let (own, others) = readable::by(person)?;
    ANSWERS.with_borrow_mut(|answers| {
        if own.len() + others.len() < MOST_ANSWERS {
            answers.levels.extend(own.iter().map(|id| (*id, Level::Manage)));
            answers.readable = Some(own.into_iter().chain(others).collect());
        }
    });
    Ok(())
}

/// The caller's level in a conversation of which only the id is known.
pub fn level_in(conversation: Uuid, person: &Person) -> Result<Level, Error> {
    let view = View::now();
    if let Some(view) = view {
        if let Some(level) = known(view, person, conversation) {
            return Ok(level);
        }
        learn_readable(person)?;
        if let Some(level) = known(view, person, conversation) {
            return Ok(level);
        }
    }
    let keys = by_id(c"id", conversation)?;
    let mut rows = [None; 2];
    // Of a row that is not there no place can be kept.
    let mut is_placed = false;
    let found =
        lookup::find_placed(c"conversations", c"conversations_pkey", &keys, |row, place| {
            let visibility = row.named::<String>(c"visibility").unwrap_or_default();
            let conversation_row = Conversation {
                tenant: row.named(c"tenant_id"),
                owner: row.named(c"user_id"),
                visibility: &visibility,
                deleted: row.named::<TimestampWithTimeZone>(c"deleted_at").is_some(),
            };
            rows[0] = place;
            is_placed = place.is_some();
            level(person, &conversation_row, || {
                let level = membership(conversation, person, &mut rows[1])?;
                is_placed &= rows[1].is_some();
                Ok(level)
            })
        })?;
    let level = found.unwrap_or(Ok(Level::None))?;
    if view.is_some() {
        ANSWERS.with_borrow_mut(|answers| {
            answers.levels.insert(conversation, level);
            answers.looked_up += 1;
            answers.last =
                is_placed.then_some(Answer { person: *person, conversation, level, rows });
        });
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
