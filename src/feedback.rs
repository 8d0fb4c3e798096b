//! What users think of messages, and how many of them think so.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};
use pgrx::{AnyNumeric, IntoDatum, PgSqlErrorCode, PgTryBuilder, Uuid};

use crate::access::{is_restricted, require_privilege};
use crate::analytics::require_service;
use crate::error::Error;
use crate::function::{Composite, argument, c_function, raw_argument};
use crate::identity;
use crate::lookup::{self, by_id};
use crate::owner::{as_owner, in_their_house};
use crate::plan::{self, Statement, arg};
use crate::settings::with_index_scans;
use crate::streaming::{is_restoring, may_read};
use crate::trigger::{Changed, Event, TriggerRow};
use crate::view::{latest, now};

/// Runs with the caller's rights: the trigger names him, policies say where. That a row is new is told by
/// who has locked it: nobody.
static GIVE: Statement = Statement {
    sql: "insert into @extschema@.feedback as f (message_id, rating, comment) values ($1, $2, $3) \
          on conflict (message_id, user_id) do update \
          set rating = excluded.rating, comment = excluded.comment \
          where f.rating operator(pg_catalog.<>) excluded.rating \
          or coalesce(f.comment operator(pg_catalog.<>) excluded.comment, \
              (f.comment is null) operator(pg_catalog.<>) (excluded.comment is null)) \
          returning f.id, f.xmax operator(pg_catalog.=) '0'::pg_catalog.xid",
    types: &[pg_sys::UUIDOID, pg_sys::INT4OID, pg_sys::TEXTOID],
};

static FIND: Statement = Statement {
    sql: "select id from @extschema@.feedback \
          where message_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.=) $2",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

static WITHDRAW: Statement = Statement {
    sql: "delete from @extschema@.feedback \
          where message_id operator(pg_catalog.=) $1 and user_id operator(pg_catalog.=) $2 \
          returning true",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

/// Runs with the caller's rights; a row of the counts is only there where somebody has given feedback.
static READ: Statement = Statement {
    sql: "select c.thumbs_up operator(pg_catalog.+) c.thumbs_down, c.thumbs_up, c.thumbs_down, \
          pg_catalog.round((c.thumbs_up operator(pg_catalog.-) c.thumbs_down)::pg_catalog.numeric \
              operator(pg_catalog./) (c.thumbs_up operator(pg_catalog.+) c.thumbs_down), 4), \
          f.rating, f.comment \
          from @extschema@.feedback_counts c \
          left join @extschema@.feedback f on f.message_id operator(pg_catalog.=) c.message_id \
          and f.user_id operator(pg_catalog.=) $2 \
          where c.message_id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID, pg_sys::UUIDOID],
};

/// Rows are written in the order of their messages, so that statements over many queue for them and do
/// not wait for each other in a circle.
static COUNT_GIVEN: Statement = Statement {
    sql: "insert into @extschema@.feedback_counts as c \
              (message_id, conversation_id, tenant_id, thumbs_up, thumbs_down) \
          select message_id, conversation_id, tenant_id, \
              pg_catalog.count(*) filter (where rating operator(pg_catalog.>) 0), \
              pg_catalog.count(*) filter (where rating operator(pg_catalog.<) 0) \
          from new_rows group by message_id, conversation_id, tenant_id order by message_id \
          on conflict (message_id) do update \
          set thumbs_up = c.thumbs_up operator(pg_catalog.+) excluded.thumbs_up, \
              thumbs_down = c.thumbs_down operator(pg_catalog.+) excluded.thumbs_down",
    types: &[],
};

/// Most updates are of a comment, and change no count.
static COUNT_CHANGED: Statement = Statement {
    sql: "with deltas as materialized ( \
              select message_id, pg_catalog.sum(rating)::pg_catalog.int4 operator(pg_catalog./) 2 as more \
              from (select message_id, rating from new_rows \
                    union all \
                    select message_id, operator(pg_catalog.-) rating from old_rows) r \
              group by message_id \
              having pg_catalog.sum(rating) operator(pg_catalog.<>) 0), \
          held as materialized ( \
              select c.message_id, c.thumbs_up operator(pg_catalog.+) d.more as up, \
                  c.thumbs_down operator(pg_catalog.-) d.more as down \
              from @extschema@.feedback_counts c \
              join deltas d on d.message_id operator(pg_catalog.=) c.message_id \
              order by c.message_id for update) \
          update @extschema@.feedback_counts c \
          set thumbs_up = greatest(h.up, 0), thumbs_down = greatest(h.down, 0) \
          from held h where c.message_id operator(pg_catalog.=) h.message_id",
    types: &[],
};

/// A message that nobody thinks anything of has no row. Where it has gone with its conversation, the row
/// may be gone before.
static COUNT_WITHDRAWN: Statement = Statement {
    sql: "with deltas as materialized ( \
              select message_id, \
                  pg_catalog.count(*) filter (where rating operator(pg_catalog.>) 0)::pg_catalog.int4 as up, \
                  pg_catalog.count(*) filter (where rating operator(pg_catalog.<) 0)::pg_catalog.int4 as down \
              from old_rows group by message_id), \
          held as materialized ( \
              select c.message_id, c.thumbs_up operator(pg_catalog.-) d.up as up, \
                  c.thumbs_down operator(pg_catalog.-) d.down as down \
              from @extschema@.feedback_counts c \
              join deltas d on d.message_id operator(pg_catalog.=) c.message_id \
              order by c.message_id for update), \
          gone as ( \
              delete from @extschema@.feedback_counts c using held h \
              where c.message_id operator(pg_catalog.=) h.message_id \
              and h.up operator(pg_catalog.<=) 0 and h.down operator(pg_catalog.<=) 0) \
          update @extschema@.feedback_counts c \
          set thumbs_up = greatest(h.up, 0), thumbs_down = greatest(h.down, 0) \
          from held h where c.message_id operator(pg_catalog.=) h.message_id \
          and (h.up operator(pg_catalog.>) 0 or h.down operator(pg_catalog.>) 0)",
    types: &[],
};

static COUNT_TRUNCATED: Statement =
    Statement { sql: "delete from @extschema@.feedback_counts", types: &[] };

c_function!(
    /// Gives new feedback its conversation, tenant and user.
    place_feedback, pg_finfo_place_feedback, place
);

fn place(call: FunctionCallInfo) -> Result<Datum, Error> {
    let mut row = TriggerRow::of(call, c"feedback")?;
    if is_restoring(row.table()) {
        return Ok(row.finish());
    }
    let message = row.get::<Uuid>(c"message_id")?.ok_or(Error::Missing("message_id"))?;
    // Before any lock and before the foreign key is looked at: a stranger hears the same as of a message
    // that does not exist.
    let (conversation, tenant) = latest(|| readable(message))?;
    let restricted = is_restricted(row.table());
    let caller = latest(identity::person)?;
    let given = row.get::<Uuid>(c"user_id")?;
    // Clients name themselves by the subject of their claims.
    let caller_is_meant =
        given.is_none() || given == identity::subject().map(|subject| subject.id());
    let user = match (given, caller) {
        (_, Some(person)) if caller_is_meant => person.id,
        (None, _) => return Err(Error::NotSignedIn),
        (Some(user), Some(person)) if restricted && user != person.id => {
            return Err(Error::NoSuchUser(user));
        }
        (Some(user), _) => user,
    };
    if latest(|| identity::tenant_of(user))? != Some(tenant) {
        return Err(Error::NoSuchUser(user));
    }
    row.set(c"conversation_id", conversation)?;
    row.set(c"tenant_id", tenant)?;
    row.set(c"user_id", user)?;
    if row.get::<Uuid>(c"id")?.is_none() {
        row.set(c"id", identity::new_id())?;
    }
    Ok(row.finish())
}

/// Conversation and tenant of a message, for a caller who may read it.
fn readable(message: Uuid) -> Result<(Uuid, Uuid), Error> {
    let found = lookup::find(c"messages", c"messages_pkey", &by_id(c"id", message)?, |row| {
        Some((row.named::<Uuid>(c"conversation_id")?, row.named::<Uuid>(c"tenant_id")?))
    })?;
    match found.flatten() {
        Some((conversation, tenant)) if may_read(message, conversation)? => {
            Ok((conversation, tenant))
        }
        _ => Err(Error::NoSuchMessage(message)),
    }
}

c_function!(
    /// Keeps the counts of a statement's messages.
    count_feedback, pg_finfo_count_feedback, count
);

fn count(call: FunctionCallInfo) -> Result<Datum, Error> {
    let changed = Changed::of(call, c"feedback")?;
    let statement = match changed.event {
        // A dump brings the counts of the rows that it brings.
        Event::Insert if is_restoring(changed.table()) => return Ok(Datum::from(0)),
        Event::Insert => &COUNT_GIVEN,
        Event::Update => &COUNT_CHANGED,
        Event::Delete => &COUNT_WITHDRAWN,
        Event::Truncate => &COUNT_TRUNCATED,
    };
    if !changed.is_empty() {
        as_owner(&[c"feedback", c"feedback_counts"], || statement.run_over(&changed, |_| ()))?;
    }
    Ok(Datum::from(0))
}

/// The message that a call names first.
fn named(call: FunctionCallInfo) -> Result<Uuid, Error> {
    // SAFETY: all are declared with (uuid, ...).
    unsafe { argument(call, 0) }.ok_or(Error::Missing("message_id"))
}

static GIVEN: Composite<2> =
    Composite::new([(c"id", pg_sys::UUIDOID), (c"created", pg_sys::BOOLOID)]);

c_function!(
    /// Rates a message.
    give_feedback, pg_finfo_give_feedback, give
);

fn give(call: FunctionCallInfo) -> Result<Datum, Error> {
    let message = named(call)?;
    // SAFETY: declared as (uuid, integer, text).
    let rating: i32 = unsafe { argument(call, 1) }.ok_or(Error::Missing("rating"))?;
    if rating != 1 && rating != -1 {
        return Err(Error::BadRating(rating));
    }
    let args = [arg(message), arg(rating), raw_argument(call, 2)];
    let given = PgTryBuilder::new(AssertUnwindSafe(|| {
        GIVE.run(&args, |row| Some((row.get::<Uuid>(1)?, row.get::<bool>(2)?)))
    }))
    // The message was deleted after the trigger has seen it, or the user was, who reads nothing then.
    .catch_when(PgSqlErrorCode::ERRCODE_FOREIGN_KEY_VIOLATION, |_| {
        Err(Error::NoSuchMessage(message))
    })
    .execute()?;
    let (id, created) = match given.flatten() {
        Some(given) => given,
        None => {
            // The same again: the statement has locked the row and left it as it was.
            let caller = identity::person()?.ok_or(Error::NotSignedIn)?;
            let id = FIND.run(&[arg(message), arg(caller.id)], |row| row.get(1))?.flatten();
            (id.ok_or(Error::NoSuchMessage(message))?, false)
        }
    };
    // He may have lost the right while he waited for himself in another session.
    now(|| readable(message))?;
    Ok(GIVEN.row_of([id.into_datum(), created.into_datum()]))
}

c_function!(
    /// Takes the caller's feedback back.
    withdraw_feedback, pg_finfo_withdraw_feedback, withdraw
);

/// Members hold no DELETE, which is also the right to lock the table: whoever may change what he gave
/// may take it back.
fn withdraw(call: FunctionCallInfo) -> Result<Datum, Error> {
    let message = named(call)?;
    // SAFETY: raises an error where nothing may be written.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"withdraw_feedback()".as_ptr()) };
    let restricted = is_restricted(plan::our_table(c"feedback")?);
    if restricted {
        require_privilege(c"feedback", pg_sys::ACL_UPDATE, &[c"rating"])?;
    } else {
        require_privilege(c"feedback", pg_sys::ACL_DELETE, &[])?;
    }
    now(|| readable(message))?;
    let caller = now(identity::person)?.ok_or(Error::NotSignedIn)?;
    let withdrawn = as_owner(&[c"feedback", c"feedback_counts"], || {
        WITHDRAW.run_now(&[arg(message), arg(caller.id)], |_| ())
    })?;
    now(|| readable(message))?;
    Ok(withdrawn.is_some().into())
}

static SUMMARY: Composite<6> = Composite::new([
    (c"total_feedback", pg_sys::INT4OID),
    (c"thumbs_up", pg_sys::INT4OID),
    (c"thumbs_down", pg_sys::INT4OID),
    (c"avg_rating", pg_sys::NUMERICOID),
    (c"own_rating", pg_sys::INT4OID),
    (c"own_comment", pg_sys::TEXTOID),
]);

c_function!(
    /// Counts of a message, and what the caller gave himself.
    get_message_feedback, pg_finfo_get_message_feedback, summary
);

fn summary(call: FunctionCallInfo) -> Result<Datum, Error> {
    let message = named(call)?;
    let caller = identity::person()?.and_then(|person| arg(person.id));
    // The plan is kept, and must not be one for the small tables of the first day.
    let found = with_index_scans(|| {
        READ.read(&[arg(message), caller], |row| {
            let count = |n| row.get::<i32>(n);
            let mean = row.get::<AnyNumeric>(4);
            (count(1), count(2), count(3), mean, count(5), row.get::<String>(6))
        })
    })?;
    let (total, up, down, mean, rating, comment) = match found {
        Some(found) => found,
        None => {
            // Nobody has said anything, or it is not for the caller to know.
            readable(message)?;
            (Some(0), Some(0), Some(0), None, None, None)
        }
    };
    Ok(SUMMARY.row_of([
        total.into_datum(),
        up.into_datum(),
        down.into_datum(),
        mean.into_datum(),
        rating.into_datum(),
        comment.into_datum(),
    ]))
}

/// Messages whose counts are not those of their feedback, as far as this snapshot can tell.
static DIFFERING: Statement = Statement {
    sql: "select pg_catalog.array_agg(d.message_id order by d.message_id) from ( \
              select coalesce(f.message_id, c.message_id) as message_id \
              from (select message_id, \
                        pg_catalog.count(*) filter (where rating operator(pg_catalog.>) 0) as up, \
                        pg_catalog.count(*) filter (where rating operator(pg_catalog.<) 0) as down \
                    from @extschema@.feedback group by message_id) f \
              full join @extschema@.feedback_counts c \
              on c.message_id operator(pg_catalog.=) f.message_id \
              where coalesce(f.up, 0) operator(pg_catalog.<>) coalesce(c.thumbs_up, 0) \
              or coalesce(f.down, 0) operator(pg_catalog.<>) coalesce(c.thumbs_down, 0) \
              or f.message_id is null \
              order by 1 limit $1) d",
    types: &[pg_sys::INT4OID],
};

/// Whoever counts the message meets this row and waits.
static HOLD: Statement = Statement {
    sql: "insert into @extschema@.feedback_counts \
              (message_id, conversation_id, tenant_id, thumbs_up, thumbs_down) \
          select id, conversation_id, tenant_id, 0, 0 from @extschema@.messages \
          where id operator(pg_catalog.=) $1 on conflict do nothing",
    types: &[pg_sys::UUIDOID],
};

static LOCK: Statement = Statement {
    sql: "select true from @extschema@.feedback_counts \
          where message_id operator(pg_catalog.=) $1 for update",
    types: &[pg_sys::UUIDOID],
};

static RECOUNT: Statement = Statement {
    sql: "update @extschema@.feedback_counts c set thumbs_up = f.up, thumbs_down = f.down \
          from (select pg_catalog.count(*) filter (where rating operator(pg_catalog.>) 0) as up, \
                    pg_catalog.count(*) filter (where rating operator(pg_catalog.<) 0) as down \
                from @extschema@.feedback where message_id operator(pg_catalog.=) $1) f \
          where c.message_id operator(pg_catalog.=) $1 \
          and (c.thumbs_up operator(pg_catalog.<>) f.up or c.thumbs_down operator(pg_catalog.<>) f.down) \
          returning true",
    types: &[pg_sys::UUIDOID],
};

static DROP_EMPTY: Statement = Statement {
    sql: "delete from @extschema@.feedback_counts where message_id operator(pg_catalog.=) $1 \
          and thumbs_up operator(pg_catalog.=) 0 and thumbs_down operator(pg_catalog.=) 0 \
          returning true",
    types: &[pg_sys::UUIDOID],
};

c_function!(
    /// Counts again where counts disagree.
    recount_feedback, pg_finfo_recount_feedback, recount
);

fn recount(call: FunctionCallInfo) -> Result<Datum, Error> {
    // SAFETY: declared as (integer).
    let most: i32 = unsafe { argument(call, 0) }.ok_or(Error::Missing("max_rows"))?;
    if most < 0 {
        return Err(Error::Negative("max_rows"));
    }
    require_service()?;
    let mut done = 0;
    in_their_house(|| {
        as_owner(&[c"feedback", c"feedback_counts", c"messages"], || {
            let differing = DIFFERING.run_now(&[arg(most)], |row| row.get::<Vec<Uuid>>(1))?;
            for message in differing.flatten().unwrap_or_default() {
                pgrx::check_for_interrupts!();
                // Once nobody else can change the row, whatever has been counted there is committed, and so is
                // the feedback that was counted.
                HOLD.run_now(&[arg(message)], |_| ())?;
                LOCK.run_now(&[arg(message)], |_| ())?;
                let differs = RECOUNT.run_now(&[arg(message)], |_| ())?.is_some();
                let is_empty = DROP_EMPTY.run_now(&[arg(message)], |_| ())?.is_some();
                done += i32::from(differs || is_empty);
            }
            Ok(())
        })
    })?;
    Ok(done.into())
}
