//! What a tenant may ask for: requests a minute (`rate`), tokens a day (`quota`).
//!
//! A request is drawn at once and stays drawn (`state`); tokens are reserved, settled and released by
//! transactions.

use pgrx::Uuid;
use pgrx::pg_sys;

use crate::access::is_restricted;
use crate::error::Error;
use crate::identity;
use crate::lookup::{self, by_id};
use crate::plan;
use crate::view::{latest, now};

mod cleanup;
mod quota;
mod rate;
mod rights;
mod state;

pub use quota::{Quota, release_message, settle_message};

/// An active tenant and its limits, as they are now.
#[derive(Clone, Copy)]
struct Tenant {
    id: Uuid,
    requests_a_minute: Option<i32>,
    tokens_a_day: Option<i64>,
}

impl Tenant {
    fn find(id: Uuid) -> Result<Option<Self>, Error> {
        let keys = by_id(c"id", id)?;
        let found = now(|| {
            lookup::find(c"tenants", c"tenants_pkey", &keys, |row| {
                row.named::<bool>(c"is_active")?.then(|| Self {
                    id,
                    requests_a_minute: row.named(c"rate_limit_per_minute"),
                    tokens_a_day: row.named(c"daily_token_limit"),
                })
            })
        })?;
        Ok(found.flatten())
    }

    /// The tenant that a caller means. There is none but his own for whom policies bind.
    fn meant(named: Option<Uuid>) -> Result<Option<Self>, Error> {
        let own = || Ok(latest(identity::person)?.map(|person| person.tenant));
        let id = match named {
            None => own()?,
            Some(id) if is_restricted(plan::our_table(c"tenants")?) => {
                own()?.filter(|own| *own == id)
            }
            Some(id) => Some(id),
        };
        id.map_or(Ok(None), Self::find)
    }
}

/// The clock, which a decision reads once.
fn clock() -> i64 {
    // SAFETY: reads the clock of the system.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
