//! The conversations that the caller may read, as a list: for statements over very many, and for
//! queries that name none.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{IntoDatum, Uuid};

use crate::error::Error;
use crate::function::{argument, c_function};
use crate::identity::{self, Person};
use crate::lookup::{each, key};
use crate::plan;

c_function!(
    /// At least the conversations that a user may read; none, unless he is the caller.
    readable_conversations,
    pg_finfo_readable_conversations,
    readable
);

fn readable(call: FunctionCallInfo) -> Result<Datum, Error> {
    // SAFETY: declared as (uuid), and strict.
    let user: Option<Uuid> = unsafe { argument(call, 0) };
    let (mut all, others) = match identity::person()?.filter(|person| Some(person.id) == user) {
        Some(person) => by(&person)?,
        None => (Vec::new(), Vec::new()),
    };
    all.extend(others);
    Ok(all.into_datum().unwrap_or(Datum::from(0)))
}

/// The conversations that are a person's own, and others among which are all that he may read.
pub fn by(person: &Person) -> Result<(Vec<Uuid>, Vec<Uuid>), Error> {
    let (mut own, mut others) = (Vec::<Uuid>::new(), Vec::<Uuid>::new());
    walk(person, |conversation, is_own| {
        if is_own {
            own.extend(conversation)
        } else {
            others.extend(conversation)
        }
        true
    })?;
    Ok((own, others))
}

/// Goes through them until `next` has enough; it also hears of rows that do not count. All of a tenant
/// are an admin's; he owns no more of them than of the others.
fn walk(person: &Person, mut next: impl FnMut(Option<Uuid>, bool) -> bool) -> Result<(), Error> {
    let conversations = c"conversations";
    let (tenant, user) = (key(c"tenant_id", person.tenant)?, key(c"user_id", person.id)?);
    if person.is_admin {
        let every = c"idx_conversations_user_updated";
        return each(conversations, every, tenant, |row| next(row.named(c"id"), false));
    }
    each(conversations, c"idx_conversations_user", user, |row| {
        next(row.named(c"id"), row.named(c"tenant_id") == Some(person.tenant))
    })?;
    each(conversations, c"idx_conversations_tenant_visible", tenant, |row| {
        next(row.named(c"id").filter(|_| row.is_null(c"deleted_at")), false)
    })?;
    let joined = c"idx_conversation_members_user";
    each(c"conversation_members", joined, user, |row| next(row.named(c"conversation_id"), false))
}

/// About how many conversations the caller may read, of how many there are: for the planner, who has no
/// time to count many. A plan that is kept for another caller is right for him, too, if perhaps slower.
pub fn guess() -> Result<(f64, f64), Error> {
    const ENOUGH: usize = 1000;
    const MANY: f64 = 10_000.0;
    let all = count_of_all()?;
    // SAFETY: reads backend-local state.
    let may_look = unsafe { pg_sys::ActiveSnapshotSet() };
    let readable = match identity::person()? {
        Some(person) if person.is_admin => all * 0.2,
        Some(person) if may_look => {
            let mut found = 0;
            walk(&person, |_, _| {
                found += 1;
                found < ENOUGH
            })?;
            if found < ENOUGH { found as f64 } else { MANY }
        }
        _ => 0.0,
    };
    Ok((readable.max(1.0), all))
}

/// How many conversations there are, as far as the catalog knows; at least one.
fn count_of_all() -> Result<f64, Error> {
    let table = plan::our_table(c"conversations")?;
    let rows = plan::class(table, |row| row.reltuples).ok_or(Error::NotInstalled)?;
    Ok(f64::from(rows.max(1.0)))
}
