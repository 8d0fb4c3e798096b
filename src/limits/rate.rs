//! Requests a minute. What was drawn comes back evenly, and a whole minute of it may be drawn at once
//! (the generic cell rate algorithm): all that there is to keep is when everything will have come back.

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use super::{Tenant, clock, state};
use crate::access::require_privilege;
use crate::error::Error;
use crate::function::{Composite, argument, c_function};
use crate::identity;
use crate::plan::arg;

static ANSWER: Composite<3> = Composite::new([
    (c"allowed", pg_sys::BOOLOID),
    (c"remaining", pg_sys::INT4OID),
    (c"retry_after", pg_sys::INT4OID),
]);

c_function!(
    /// Draws on the requests a minute of a tenant.
    check_rate_limit, pg_finfo_check_rate_limit, check
);

fn check(call: FunctionCallInfo) -> Result<Datum, Error> {
    // SAFETY: declared as (integer, uuid).
    let (cost, named) = unsafe { (argument(call, 0), argument(call, 1)) };
    let cost: i32 = cost.ok_or(Error::Missing("cost"))?;
    if cost < 0 {
        return Err(Error::Negative("cost"));
    }
    if cost > 0 {
        // SAFETY: raises an error where nothing may be written, limit or not: one that comes later
        // must not be the first to show it.
        unsafe { pg_sys::PreventCommandIfReadOnly(c"check_rate_limit()".as_ptr()) };
    }
    if named.is_none() && identity::subject().is_none() {
        return Ok(Answer::NOBODY.row());
    }
    require_privilege(c"tenants", pg_sys::ACL_SELECT, &[c"id", c"rate_limit_per_minute"])?;
    let Some(tenant) = Tenant::meant(named)? else { return Ok(Answer::NOBODY.row()) };
    let Some(limit) = tenant.requests_a_minute else { return Ok(Answer::UNLIMITED.row()) };
    Ok(draw(&tenant, Bucket { limit, cost })?.row())
}

fn draw(tenant: &Tenant, bucket: Bucket) -> Result<Answer, Error> {
    if bucket.cost == 0 || bucket.cost > bucket.limit {
        let next_at = state::read(tenant.id)?.unwrap_or(i64::MIN);
        return Ok(bucket.decide(next_at, clock()).0);
    }
    state::change(tenant.id, |next_at| bucket.decide(next_at, clock()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    allowed: bool,
    remaining: Option<i32>,
    retry_after: Option<i32>,
}

impl Answer {
    const NOBODY: Self = Self { allowed: false, remaining: Some(0), retry_after: None };
    const UNLIMITED: Self = Self { allowed: true, remaining: None, retry_after: None };

    fn row(self) -> Datum {
        let (remaining, retry_after) = (self.remaining, self.retry_after);
        ANSWER.row_of([arg(self.allowed), arg(remaining), arg(retry_after)])
    }
}

/// What is asked of a minute of which at most `limit` may be drawn.
#[derive(Clone, Copy)]
struct Bucket {
    limit: i32,
    cost: i32,
}

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;

impl Bucket {
    /// The answer, and what is to be written if anything is.
    fn decide(self, next_at: i64, now: i64) -> (Answer, Option<i64>) {
        // Nobody can have drawn more than a minute: the clock was set back, and what was drawn
        // before is forgotten as soon as a minute by the new time has passed.
        let ahead = next_at.saturating_sub(now);
        let drawn = ahead.clamp(0, MINUTE);
        let repaired = (ahead > MINUTE).then_some(now + MINUTE);
        if self.cost > self.limit {
            return (self.refused(drawn, None), None);
        }
        let after = drawn + self.price();
        if after > MINUTE {
            let seconds = (after - MINUTE + SECOND - 1) / SECOND;
            return (self.refused(drawn, i32::try_from(seconds).ok()), repaired);
        }
        let remaining = self.left(after).min(self.limit - self.cost);
        let answer = Answer { allowed: true, remaining: Some(remaining), retry_after: None };
        (answer, (self.cost > 0).then_some(now + after))
    }

    fn refused(self, drawn: i64, retry_after: Option<i32>) -> Answer {
        let remaining = self.left(drawn).min(self.cost - 1);
        Answer { allowed: false, remaining: Some(remaining), retry_after }
    }

    /// How long it takes until what is drawn has come back. Rounded up, for nothing may be had for
    /// nothing; the microseconds come back before anybody can ask again.
    fn price(self) -> i64 {
        if self.limit <= 0 {
            return 0;
        }
        (i64::from(self.cost) * MINUTE + i64::from(self.limit) - 1) / i64::from(self.limit)
    }

    /// How many more there are. What was lost to rounding is counted as it will have come back.
    fn left(self, drawn: i64) -> i32 {
        let limit = i128::from(self.limit);
        let lost = limit.min(1000).min(i128::from(MINUTE) / limit.max(1) / 2);
        let free = (i128::from(MINUTE - drawn) + lost) * limit / i128::from(MINUTE);
        free.min(limit) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(remaining: i32) -> Answer {
        Answer { allowed: true, remaining: Some(remaining), retry_after: None }
    }

    fn refused(remaining: i32, retry_after: Option<i32>) -> Answer {
        Answer { allowed: false, remaining: Some(remaining), retry_after }
    }

    #[test]
    fn decisions() {
        const NOW: i64 = 800_000_000_000_000;
        let sixtieth = SECOND;
        // limit, cost, next_at - now -> answer, what is written - now
        let cases = [
            (60, 1, -5, allowed(59), Some(sixtieth)),
            (60, 1, 0, allowed(59), Some(sixtieth)),
            (60, 60, 0, allowed(0), Some(MINUTE)),
            (60, 61, 0, refused(60, None), None),
            (60, 1, MINUTE - sixtieth, allowed(0), Some(MINUTE)),
            (60, 1, MINUTE - sixtieth + 1, refused(0, Some(1)), None),
            (60, 1, MINUTE, refused(0, Some(1)), None),
            (60, 30, MINUTE, refused(0, Some(30)), None),
            (60, 30, MINUTE - SECOND / 2, refused(0, Some(30)), None),
            (60, 1, MINUTE + 1, refused(0, Some(1)), Some(MINUTE)),
            (60, 1, 100 * MINUTE, refused(0, Some(1)), Some(MINUTE)),
            (60, 0, 0, allowed(60), None),
            (60, 0, MINUTE, allowed(0), None),
            (0, 0, 0, allowed(0), None),
            (0, 1, 0, refused(0, None), None),
            (1, 1, 0, allowed(0), Some(MINUTE)),
            (1, 1, 1, refused(0, Some(1)), None),
            (7, 1, 0, allowed(6), Some(8_571_429)),
            (i32::MAX, i32::MAX, 0, allowed(0), Some(MINUTE)),
            (i32::MAX, 1, 0, allowed(i32::MAX - 36), Some(1)),
        ];
        for (limit, cost, ahead, answer, written) in cases {
            let found = Bucket { limit, cost }.decide(NOW + ahead, NOW);
            assert_eq!(found, (answer, written.map(|at| NOW + at)), "{limit} {cost} {ahead}");
        }
        for next_at in [i64::MIN, i64::MAX] {
            Bucket { limit: 5, cost: 1 }.decide(next_at, NOW);
        }
    }

    #[test]
    fn no_minute_has_more_than_the_limit_and_what_comes_back() {
        for limit in [1, 3, 7, 60, 100, 999, 6000, 59_999, 100_003] {
            let (mut now, mut next_at, mut admitted) = (0, i64::MIN, 0);
            let begin = now;
            while now < begin + 3 * MINUTE {
                let (answer, written) = Bucket { limit, cost: 1 }.decide(next_at, now);
                if let Some(at) = written {
                    next_at = at;
                }
                admitted += i64::from(answer.allowed);
                now += if answer.allowed { 20 } else { MINUTE / i64::from(limit) / 3 + 1 };
            }
            let most = i64::from(limit) + (now - begin) * i64::from(limit) / MINUTE;
            assert!(
                admitted <= most && admitted * 100 >= (most - 1) * 96,
                "{limit}: {admitted} of {most}"
            );
        }
    }

    #[test]
    fn a_burst_is_the_limit_exactly() {
        for limit in [1, 3, 7, 20, 60, 100, 999] {
            let (mut next_at, mut admitted) = (i64::MIN, 0);
            // Twenty microseconds are less than any answer takes.
            for now in (0..).step_by(20).take(limit as usize + 10) {
                let (answer, written) = Bucket { limit, cost: 1 }.decide(next_at, now);
                if let Some(at) = written {
                    next_at = at;
                }
                admitted += i32::from(answer.allowed);
            }
            assert_eq!(admitted, limit);
        }
    }
}
