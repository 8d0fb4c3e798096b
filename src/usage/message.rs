//! What finished messages have used.
//!
//! What finish_message notes is an event, and no event is taken back for what a message says later: whoever
//! may write in a conversation may also delete it, and make a message of the same id anew.

use pgrx::pg_sys::{self, Datum};
use pgrx::{IntoDatum, JsonB, Uuid};
use serde_json::{Map, Value};

use super::event::{self, Event, MOST_OF_MODEL, kept};
use super::{TABLES, correct, rights};
use crate::error::Error;
use crate::lookup::{self, by_id, key};
use crate::owner::as_owner;
use crate::plan::{self, Statement, arg};
use crate::view::now;

/// Figures that a call has written, where there were none before.
#[derive(Clone, Copy, Default)]
pub struct Noted {
    pub prompt_tokens: Option<i32>,
    pub completion_tokens: Option<i32>,
    pub model: bool,
    /// Whether the message ended just now.
    pub is_end: bool,
}

/// An event of a message for which no model was known.
static NAMELESS: Statement = Statement {
    sql: "select e.user_id, e.usage, e.request_count, \
              e.model operator(pg_catalog.=) '' and not exists ( \
                  select from @extschema@.usage_events v \
                  where v.tenant_id operator(pg_catalog.=) $1 \
                  and v.idempotency_key operator(pg_catalog.=) \
                      ('void:' operator(pg_catalog.||) $2)) \
          from @extschema@.usage_events e \
          where e.tenant_id operator(pg_catalog.=) $1 and e.idempotency_key operator(pg_catalog.=) $2",
    types: &[pg_sys::UUIDOID, pg_sys::TEXTOID],
};

/// Records what a message has used. Finishing must not fail for this: nobody who may be gone is looked up,
/// and what does not fit is cut. The caller holds the lock of the message.
pub fn record_message(message: Uuid, noted: Noted) -> Result<(), Error> {
    let has_tokens = noted.prompt_tokens.is_some() || noted.completion_tokens.is_some();
    if !has_tokens && !noted.model {
        return Ok(());
    }
    let recorded_by = rights::caller();
    as_owner(&TABLES, || {
        let Some(of) = find(message)? else { return Ok(()) };
        let mut keys = Keys { message, tenant: of.tenant, next: 1 };
        match (has_tokens, noted.is_end) {
            (true, _) => record(&of, &mut keys, noted, &recorded_by),
            (false, false) => name(&of, &mut keys, &recorded_by),
            // Nothing of it was recorded.
            (false, true) => Ok(()),
        }
    })
}

/// Whose a message is, and what has answered.
struct Of {
    tenant: Uuid,
    user: Option<Uuid>,
    model: String,
}

/// A message belongs to its author; an answer that a service wrote, to whom it answers, or else to the
/// owner of the conversation.
fn find(message: Uuid) -> Result<Option<Of>, Error> {
    type Row = (Option<Uuid>, Option<Uuid>, Option<Uuid>, Option<Uuid>, Option<String>);
    let read = |row: &plan::Row| -> Row {
        (
            row.named(c"tenant_id"),
            row.named(c"author_id"),
            row.named(c"parent_id"),
            row.named(c"conversation_id"),
            row.named(c"model_used"),
        )
    };
    let by_message =
        |id| now(|| lookup::find(c"messages", c"messages_pkey", &by_id(c"id", id)?, read));
    let Some((Some(tenant), author, parent, conversation, model)) = by_message(message)? else {
        return Ok(None);
    };
    let mut user = author;
    if let (None, Some(parent)) = (user, parent) {
        user = by_message(parent)?.and_then(|(_, author, ..)| author);
    }
    if let (None, Some(conversation)) = (user, conversation) {
        let keys = by_id(c"id", conversation)?;
        let owner = now(|| {
            lookup::find(c"conversations", c"conversations_pkey", &keys, |row| {
                row.named(c"user_id")
            })
        })?;
        user = owner.flatten();
    }
    let model = model.unwrap_or_default().chars().take(MOST_OF_MODEL).collect();
    Ok(Some(Of { tenant, user, model }))
}

/// The events of a message are message:<id>, then message:<id>/2 and so on.
struct Keys {
    message: Uuid,
    tenant: Uuid,
    next: u32,
}

impl Keys {
    fn of(message: Uuid, n: u32) -> String {
        if n == 1 { format!("message:{message}") } else { format!("message:{message}/{n}") }
    }

    fn is_used(&self, n: u32) -> Result<bool, Error> {
        self.is_there(Self::of(self.message, n))
    }

    fn is_void(&self, n: u32) -> Result<bool, Error> {
        self.is_there(format!("void:{}", Self::of(self.message, n)))
    }

    fn is_there(&self, name: String) -> Result<bool, Error> {
        let keys = [key(c"tenant_id", self.tenant)?, key(c"idempotency_key", name.as_str())?];
        let found = now(|| lookup::find(c"usage_events", c"usage_events_pkey", &keys, |_| ()))?;
        Ok(found.is_some())
    }

    /// The first that is free.
    fn take(&mut self) -> Result<String, Error> {
        while self.is_used(self.next)? {
            self.next += 1;
            pgrx::check_for_interrupts!();
        }
        let taken = Self::of(self.message, self.next);
        self.next += 1;
        Ok(taken)
    }
}

/// Tokens; of a message they come in parts at times, which are one request.
fn record(of: &Of, keys: &mut Keys, noted: Noted, recorded_by: &str) -> Result<(), Error> {
    let key = keys.take()?;
    let is_part = !noted.is_end && keys.next > 2;
    // What the service has taken back stays so, and its other parts with it.
    if is_part && keys.is_void(keys.next - 2)? {
        return Ok(());
    }
    let figures =
        [("prompt_tokens", noted.prompt_tokens), ("completion_tokens", noted.completion_tokens)];
    let usage: Map<String, Value> =
        figures.into_iter().filter_map(|(name, n)| Some((name.into(), n?.into()))).collect();
    let usage = JsonB(Value::Object(usage)).into_datum().ok_or(Error::Missing("usage"))?;
    add(of, &key, of.user, usage, i32::from(!is_part), recorded_by)
}

fn add(
    of: &Of,
    key: &str,
    user: Option<Uuid>,
    usage: Datum,
    requests: i32,
    recorded_by: &str,
) -> Result<(), Error> {
    let missing = || Error::Missing("usage");
    event::record(&Event {
        tenant: of.tenant,
        user,
        model: of.model.as_str().into_datum().ok_or_else(missing)?,
        usage,
        key: key.into_datum().ok_or_else(missing)?,
        // A member may have chosen the times of the row.
        occurred_at: None,
        recorded_by,
        requests,
        is_of_message: true,
    })?;
    Ok(())
}

/// The model has become known after the tokens, and with it their price. What was taken back stays so.
fn name(of: &Of, keys: &mut Keys, recorded_by: &str) -> Result<(), Error> {
    let mut there = 0;
    while keys.is_used(there + 1)? {
        there += 1;
    }
    for n in 1..=there {
        let old = Keys::of(keys.message, n);
        let found = NAMELESS.run_now(&[arg(of.tenant), arg(old.as_str())], |row| {
            let is_nameless = row.get(4) == Some(true);
            // SAFETY: a jsonb.
            let usage = is_nameless.then(|| unsafe { kept(row, 2) }).flatten()?;
            Some((row.get::<Uuid>(1), usage, row.get::<i32>(3)?))
        })?;
        if let Some((user, usage, requests)) = found.flatten()
            && correct::void(of.tenant, &old, "the model is known", recorded_by)?.applied
        {
            let key = keys.take()?;
            add(of, &key, user, usage, requests, recorded_by)?;
        }
        pgrx::check_for_interrupts!();
    }
    Ok(())
}
