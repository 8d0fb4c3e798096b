//! What policies ask: whether the caller may do something with the conversation of a row.

use pgrx::Uuid;
use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use super::{Conversation, Level, level_in, level_of, readable};
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

c_function!(
    /// Tells the planner how many of the rows that a policy is asked about are the caller's.
    expect_access,
    pg_finfo_expect_access,
    advise
);

c_function!(
    /// The same for functions that ask about a conversation; see `readable` for queries that name
    /// nothing.
    find_access,
    pg_finfo_find_access,
    advise_and_find
);

fn advise(call: FunctionCallInfo) -> Result<Datum, Error> {
    Ok(answer(call, |_| None))
}

fn advise_and_find(call: FunctionCallInfo) -> Result<Datum, Error> {
    // SAFETY: the planner's own request.
    Ok(answer(call, |request| unsafe { readable::index_condition(request) }))
}

fn answer(
    call: FunctionCallInfo,
    index_condition: impl FnOnce(&pg_sys::SupportRequestIndexCondition) -> Option<*mut pg_sys::List>,
) -> Datum {
    let nothing = Datum::from(0);
    let Some(request) = raw_argument(call, 0) else { return nothing };
    let node = request.cast_mut_ptr::<pg_sys::Node>();
    // SAFETY: the planner passes a node; its tag says which kind it is.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_SupportRequestSelectivity => {
                let request = &mut *node.cast::<pg_sys::SupportRequestSelectivity>();
                request.selectivity = readable::share(request);
                Datum::from(node)
            }
            pg_sys::NodeTag::T_SupportRequestIndexCondition => {
                let request = &*node.cast::<pg_sys::SupportRequestIndexCondition>();
                index_condition(request).map_or(nothing, Datum::from)
            }
            _ => nothing,
        }
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
    let level = level_of(question.conversation, &conversation, &person)?;
    Ok((level >= question.wanted).into())
}
