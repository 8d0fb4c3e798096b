//! Who may do what with a conversation. Policies, triggers and functions all ask here.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use pgrx::Uuid;
use pgrx::datum::TimestampWithTimeZone;

use crate::error::Error;
use crate::identity::{self, Person};
use crate::lookup::{self, Place, by_id, key};
use crate::view::{View, still_holds};

mod planner;
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

impl Answers {
    /// Forgets what was answered to somebody else or under another view.
    fn renew(&mut self, view: View, person: &Person) {
        let theirs = self.of.is_some_and(|(of, id)| view.sees_what(&of) && id == person.id);
        if !theirs || self.levels.len() > MOST_ANSWERS {
            self.of = Some((view, person.id));
            self.levels.clear();
            self.looked_up = 0;
            self.readable = None;
        }
    }

    fn excludes(&self, conversation: Uuid) -> bool {
        self.readable.as_ref().is_some_and(|all| !all.contains(&conversation))
    }
}

fn known(view: View, person: &Person, conversation: Uuid) -> Option<Level> {
    ANSWERS.with_borrow_mut(|answers| {
        answers.renew(view, person);
        if let Some(level) = answers.levels.get(&conversation) {
            return Some(*level);
        }
        if answers.excludes(conversation) {
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
    let is_time = ANSWERS.with_borrow_mut(|answers| {
        answers.looked_up += 1;
        answers.looked_up == MANY
    });
    // All of a tenant are an admin's.
    if person.is_admin || !is_time {
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

/// An answer without a look at the conversation.
fn answer(conversation: Uuid, person: &Person) -> Result<Option<Level>, Error> {
    let Some(view) = View::now() else { return Ok(None) };
    if let Some(level) = known(view, person, conversation) {
        return Ok(Some(level));
    }
    learn_readable(person)?;
    Ok(known(view, person, conversation))
}

/// The caller's level in a conversation of which only the id is known.
pub fn level_in(conversation: Uuid, person: &Person) -> Result<Level, Error> {
    if let Some(level) = answer(conversation, person)? {
        return Ok(level);
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
    if View::now().is_some() {
        ANSWERS.with_borrow_mut(|answers| {
            answers.levels.insert(conversation, level);
            answers.last =
                is_placed.then_some(Answer { person: *person, conversation, level, rows });
        });
    }
    Ok(level)
}

/// The caller's level in a conversation of which the row is at hand: it may be one that is about to be
/// written, so that no answer about what is there counts, only who its members are.
fn level_of(id: Uuid, row: &Conversation, person: &Person) -> Result<Level, Error> {
    level(person, row, || {
        if let Some(view) = View::now() {
            ANSWERS.with_borrow_mut(|answers| answers.renew(view, person));
            learn_readable(person)?;
            if ANSWERS.with_borrow(|answers| answers.excludes(id)) {
                return Ok(Level::None);
            }
        }
        membership(id, person, &mut None)
    })
}

/// The caller's level in a conversation; nobody signed in has none.
pub fn level_of_caller(conversation: Uuid) -> Result<Level, Error> {
    identity::person()?.map_or(Ok(Level::None), |person| level_in(conversation, &person))
}

pub fn has_level(conversation: Uuid, wanted: Level) -> Result<bool, Error> {
    Ok(level_of_caller(conversation)? >= wanted)
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
