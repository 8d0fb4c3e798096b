//! Who is calling: the subject of the claims, and the user and tenant it stands for.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::time::{SystemTime, UNIX_EPOCH};

use pgrx::Uuid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;

use crate::access::has_privilege;
use crate::error::{Error, OrRaise};
use crate::lookup::{self, Place, by_id};
use crate::owner::as_owner;
use crate::plan::{self, Statement, arg};
use crate::settings;
use crate::view::{View, now, still_holds};

/// An active user of an active tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Person {
    pub id: Uuid,
    pub tenant: Uuid,
    pub is_admin: bool,
}

/// Whom the session speaks for, before any table is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `users.auth_id`, from the claims of an authentication service.
    Auth(Uuid),
    /// `users.id`, from `pg_conversation.user_id`.
    User(Uuid),
}

impl Subject {
    pub fn id(self) -> Uuid {
        match self {
            Subject::Auth(id) | Subject::User(id) => id,
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
}

fn parse_uuid(text: &[u8]) -> Option<Uuid> {
    let text = std::str::from_utf8(text).ok()?;
    uuid::Uuid::try_parse(text.trim()).ok().map(|id| Uuid::from_bytes(id.into_bytes()))
}

fn subject_of_claims(claims: &[u8]) -> Option<Uuid> {
    let claims: Claims = serde_json::from_slice(claims).ok()?;
    parse_uuid(claims.sub?.as_bytes())
}

/// Claims that are there but name nobody never fall through to a weaker source.
fn subject_from(sources: &[Option<&[u8]>; 3]) -> Option<Subject> {
    match sources {
        [Some(sub), _, _] => parse_uuid(sub).map(Subject::Auth),
        [None, Some(claims), _] => subject_of_claims(claims).map(Subject::Auth),
        [None, None, Some(user)] => parse_uuid(user).map(Subject::User),
        [None, None, None] => None,
    }
}

/// The rows of a user and his tenant.
type Rows = [Option<Place>; 2];

fn look_up(subject: Subject, rows: &mut Rows) -> Result<Option<Person>, Error> {
    let (index, column) = match subject {
        Subject::Auth(_) => (c"users_auth_id_is_unique", c"auth_id"),
        Subject::User(_) => (c"users_pkey", c"id"),
    };
    let user =
        lookup::find_placed(c"users", index, &by_id(column, subject.id())?, |row, place| {
            rows[0] = place;
            row.named::<bool>(c"is_active")?.then_some(())?;
            let is_admin = row.named::<String>(c"role")? == "admin";
            Some(Person { id: row.named(c"id")?, tenant: row.named(c"tenant_id")?, is_admin })
        })?;
    let Some(person) = user.flatten() else { return Ok(None) };
    let key = by_id(c"id", person.tenant)?;
    let tenant = lookup::find_placed(c"tenants", c"tenants_pkey", &key, |row, place| {
        rows[1] = place;
        row.named::<bool>(c"is_active")
    })?;
    Ok((tenant.flatten() == Some(true)).then_some(person))
}

/// The last answer and all that it rests on.
#[derive(Default)]
struct Known {
    sources: [Option<Vec<u8>>; 3],
    subject: Option<Subject>,
    view: Option<View>,
    person: Option<Person>,
    rows: Rows,
    /// Start of the transaction that made the user's row: its first statement cannot see it.
    made_in: Option<i64>,
}

impl Known {
    /// The person, if his rows and his tenant's are those that were seen under another view.
    fn same_person(&self) -> Option<Person> {
        let is_there = |row: &Option<Place>| row.as_ref().is_some_and(Place::still_holds);
        self.person.filter(|_| self.rows.iter().all(is_there))
    }

    fn rests_on(&self, sources: &[Option<&[u8]>; 3]) -> bool {
        self.sources.iter().zip(sources).all(|(known, now)| known.as_deref() == *now)
    }
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Whom the session speaks for now; parsed again only when a setting has changed.
pub fn subject() -> Option<Subject> {
    let sources = [
        settings::read(c"request.jwt.claim.sub"),
        settings::read(c"request.jwt.claims"),
        settings::read(c"pg_conversation.user_id"),
    ];
    KNOWN.with_borrow_mut(|known| {
        if !known.rests_on(&sources) {
            *known = Known {
                sources: sources.map(|source| source.map(<[u8]>::to_vec)),
                subject: subject_from(&sources),
                ..Known::default()
            };
        }
        known.subject
    })
}

/// The user and tenant of the caller; `None` when there is no such user, or it or its tenant is
/// inactive. Looked up anew whenever another view of the data could give another answer.
pub fn person() -> Result<Option<Person>, Error> {
    let Some(subject) = subject() else {
        return Ok(None);
    };
    let view = View::now();
    let known = KNOWN.with_borrow(|known| still_holds(known.view, view).then_some(known.person));
    if let Some(person) = known {
        return Ok(person);
    }
    if let Some(person) = KNOWN.with_borrow(Known::same_person) {
        KNOWN.with_borrow_mut(|known| known.view = view);
        return Ok(Some(person));
    }
    let mut rows = Rows::default();
    let mut person = look_up(subject, &mut rows)?;
    // Parallel workers take no snapshots of their own; nothing is made beside them.
    let may_be_new = !unsafe { pg_sys::IsInParallelMode() }
        && KNOWN.with_borrow(|known| known.made_in == Some(transaction_start()));
    if person.is_none() && may_be_new {
        person = now(|| look_up(subject, &mut rows))?;
    }
    KNOWN.with_borrow_mut(|known| {
        known.view = view;
        known.person = person;
        known.rows = rows;
    });
    Ok(person)
}

static ADD_USER: Statement = Statement {
    sql: "insert into @extschema@.users (id, auth_id) values ($1, $1) on conflict do nothing",
    types: &[pg_sys::UUIDOID],
};

/// The caller, who gets a users row in the default tenant if he has none.
pub fn ensure_person() -> Result<Person, Error> {
    let subject = subject().ok_or(Error::NotSignedIn)?;
    if let Some(person) = person()? {
        return Ok(person);
    }
    if !may_begin()? {
        return Err(Error::NotGranted);
    }
    // A key to the users of an authentication service refuses one who was deleted there.
    PgTryBuilder::new(AssertUnwindSafe(|| {
        as_owner(&[c"users", c"tenants"], || ADD_USER.run(&[arg(subject.id())], |_| ()))
    }))
    .catch_when(PgSqlErrorCode::ERRCODE_FOREIGN_KEY_VIOLATION, |_| {
        Err(Error::UserInactive(subject.id()))
    })
    .execute()?;
    // SAFETY: makes the row visible to what follows in this transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
    let person =
        now(|| look_up(subject, &mut Rows::default()))?.ok_or(Error::UserInactive(subject.id()))?;
    KNOWN.with_borrow_mut(|known| {
        known.made_in = Some(transaction_start());
        known.view = None;
    });
    Ok(person)
}

/// The tenant of a user, active or not.
pub fn tenant_of(user: Uuid) -> Result<Option<Uuid>, Error> {
    let tenant = lookup::find(c"users", c"users_pkey", &by_id(c"id", user)?, |row| {
        row.named::<Uuid>(c"tenant_id")
    })?;
    Ok(tenant.flatten())
}

/// Whether there is such a tenant, active or not.
pub fn is_tenant(id: Uuid) -> Result<bool, Error> {
    let found = lookup::find(c"tenants", c"tenants_pkey", &by_id(c"id", id)?, |_| ())?;
    Ok(found.is_some())
}

/// Whether the role may make conversations at all: nobody else leaves a row in users.
fn may_begin() -> Result<bool, Error> {
    let conversations = plan::our_table(c"conversations")?;
    Ok(has_privilege(conversations, pg_sys::ACL_INSERT))
}

/// Moves the last answer from one view to the next; see `access::unshaken`.
pub fn carry(before: Option<View>, after: Option<View>) {
    KNOWN.with_borrow_mut(|known| {
        if still_holds(known.view, before) {
            known.view = after;
        }
    });
}

fn transaction_start() -> i64 {
    // SAFETY: reads backend-local state.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// The users.id of the caller; null when nobody is signed in.
#[pg_extern(stable, parallel_safe)]
fn current_user_id() -> Option<Uuid> {
    person().or_raise().map(|person| person.id)
}

/// The tenant of the caller; null when nobody is signed in.
#[pg_extern(stable, parallel_safe)]
fn current_tenant_id() -> Option<Uuid> {
    person().or_raise().map(|person| person.tenant)
}

/// Whether the caller is an admin of his tenant.
#[pg_extern(stable, parallel_safe)]
fn is_tenant_admin() -> bool {
    person().or_raise().is_some_and(|person| person.is_admin)
}

static LETS_EDIT: Statement = Statement {
    sql: "select features operator(pg_catalog.@>) '{\"edit_messages\": true}' \
          from @extschema@.tenants where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

static KEEPS_FIGURES: Statement = Statement {
    sql: "select features operator(pg_catalog.@>) '{\"figures_from_members\": false}' \
          from @extschema@.tenants where id operator(pg_catalog.=) $1",
    types: &[pg_sys::UUIDOID],
};

/// What the caller's tenant says; no, where there is none.
fn tenant_says(what: &'static Statement) -> Result<bool, Error> {
    match person()? {
        Some(person) => as_owner(&[c"tenants"], || {
            Ok(what.read(&[arg(person.tenant)], |row| row.get(1))?.flatten() == Some(true))
        }),
        None => Ok(false),
    }
}

/// Whether the tenant of the caller lets users edit their own messages.
#[pg_extern(stable, parallel_safe)]
fn may_edit_messages() -> bool {
    tenant_says(&LETS_EDIT).or_raise()
}

/// Whether the tenant of the caller believes its users what they say of tokens and models.
pub fn lets_members_note_figures() -> Result<bool, Error> {
    Ok(!tenant_says(&KEEPS_FIGURES)?)
}

/// The folder of the caller in a file storage: his subject, unless he or his tenant is inactive.
/// Somebody who has no users row yet has one already.
#[pg_extern(stable, parallel_safe)]
fn storage_folder() -> Option<String> {
    let folder = || -> Result<Option<String>, Error> {
        let Some(Subject::Auth(id)) = subject() else { return Ok(None) };
        // Whoever was deleted from the authentication service has left his row under its key only.
        let ways = [(c"users_auth_id_is_unique", c"auth_id"), (c"users_pkey", c"id")];
        for (index, column) in ways {
            if lookup::find(c"users", index, &by_id(column, id)?, |_| ())?.is_some() {
                return Ok(person()?.map(|_| id.to_string()));
            }
        }
        Ok(Some(id.to_string()))
    };
    folder().or_raise()
}

/// The users.id of the caller, whose users row is made if it is not there yet.
#[pg_extern]
fn ensure_user() -> Uuid {
    ensure_person().or_raise().id
}

/// A UUID of version 7: rows made together lie together in an index.
#[pg_extern(volatile, parallel_safe)]
pub fn new_id() -> Uuid {
    Uuid::from_bytes(IDS.with_borrow_mut(Ids::next))
}

thread_local! {
    static IDS: RefCell<Ids> = const { RefCell::new(Ids::new()) };
}

/// Makes ids that rise within a backend: 48 bits of milliseconds, 12 of their fraction, 62 random.
struct Ids {
    ticks: u64,
    random: [u8; 512],
    unused: usize,
}

impl Ids {
    const fn new() -> Self {
        Self { ticks: 0, random: [0; 512], unused: 0 }
    }

    fn next(&mut self) -> [u8; 16] {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // 4096 ticks a millisecond; a clock that stands or steps back only adds one.
        let ticks = now.as_millis() as u64 * 4096
            + u64::from(now.subsec_nanos() % 1_000_000) * 4096 / 1_000_000;
        self.ticks = ticks.max(self.ticks + 1);
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&((self.ticks % 4096) as u16).to_be_bytes());
        bytes[2..].copy_from_slice(&self.random_bytes());
        uuid::Builder::from_unix_timestamp_millis(self.ticks / 4096, &bytes)
            .into_uuid()
            .into_bytes()
    }

    /// Eight bytes, drawn from the server's strong source 64 times less often than one by one.
    fn random_bytes(&mut self) -> [u8; 8] {
        if self.unused == 0 {
            // SAFETY: fills exactly the buffer it is given.
            let filled = unsafe {
                pg_sys::pg_strong_random(self.random.as_mut_ptr().cast(), self.random.len())
            };
            if !filled {
                error!("could not generate random values");
            }
            self.unused = self.random.len();
        }
        self.unused -= 8;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.random[self.unused..self.unused + 8]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUB: &str = "11111111-1111-4111-8111-111111111111";

    #[test]
    fn claims_name_a_subject_or_nobody() {
        let id = parse_uuid(SUB.as_bytes());
        assert!(id.is_some());
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        let large = format!("{{\"a\":\"{}\",\"sub\":\"{SUB}\"}}", "x".repeat(1 << 20));
        let cases: Vec<(String, Option<Uuid>)> = vec![
            (format!("{{\"sub\":\"{SUB}\"}}"), id),
            (format!("{{\"role\":\"x\",\"sub\":\"{SUB}\",\"aud\":[1]}}"), id),
            (large, id),
            ("{}".into(), None),
            ("{\"sub\":null}".into(), None),
            ("{\"sub\":7}".into(), None),
            ("{\"sub\":\"nobody\"}".into(), None),
            ("not json".into(), None),
            ("[]".into(), None),
            (deep, None),
        ];
        for (claims, expected) in cases {
            assert_eq!(subject_of_claims(claims.as_bytes()), expected, "{:.80}", claims);
        }
    }

    #[test]
    fn claims_that_name_nobody_never_fall_back_to_a_setting() {
        let sub = Some(SUB.as_bytes());
        let id = parse_uuid(SUB.as_bytes()).map(Subject::Auth);
        assert_eq!(subject_from(&[Some(b"x"), None, sub]), None);
        assert_eq!(subject_from(&[None, Some(b"{}"), sub]), None);
        assert_eq!(subject_from(&[sub, Some(b"{}"), None]), id);
        assert_eq!(subject_from(&[None, None, sub]), id.map(|subject| Subject::User(subject.id())));
    }
}
