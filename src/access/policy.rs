//! What policies ask: whether the caller may do something with the conversation of a row.

use pgrx::Uuid;
use pgrx::pg_sys::{Datum, FunctionCallInfo};

use super::{Conversation, Level, level_in, level_of};
use crate::error::Error;
use crate::function::{argument, c_function, raw_argument, scratch};
use crate::identity::{self, Person};
use crate::view::{View, still_holds};

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
    let level = level_of(question.conversation, &conversation, &person)?;
    Ok((level >= question.wanted).into())
}
