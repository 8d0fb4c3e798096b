//! Days that usage is recorded on: those whose month Postgres can tell, and that other programs know, too.

use pgrx::IntoDatum;
use pgrx::datum::Date;
use pgrx::pg_sys::{self, Datum};

use crate::error::Error;

/// 0001-01-01 and 9999-12-31, counted from 2000-01-01.
const FIRST: i32 = -730_119;
const LAST: i32 = 2_921_939;

const HOUR: i64 = 3_600_000_000;

/// A day that usage is recorded on.
pub fn require_day(date: Datum) -> Result<(), Error> {
    if (FIRST..=LAST).contains(&(date.value() as i32)) { Ok(()) } else { Err(Error::BadMoment) }
}

/// What has not happened yet is not recorded; clocks differ a little.
pub fn require_past(at: i64) -> Result<(), Error> {
    const EARLIEST: i64 = FIRST as i64 * 24 * HOUR;
    // SAFETY: reads the clock.
    let latest = unsafe { pg_sys::GetCurrentTimestamp() } + HOUR;
    if (EARLIEST..=latest).contains(&at) { Ok(()) } else { Err(Error::BadMoment) }
}

/// The end of a range of days. An infinite one takes in all there are.
pub fn bound(date: Option<Date>, name: &'static str) -> Result<Datum, Error> {
    let date = date.and_then(IntoDatum::into_datum).ok_or(Error::Missing(name))?;
    match date.value() as i32 {
        i32::MIN => Ok(Datum::from(FIRST)),
        i32::MAX => Ok(Datum::from(LAST)),
        _ => require_day(date).map(|()| date),
    }
}

/// The first day of the month of one that usage is recorded on.
pub fn month(date: Datum) -> Datum {
    let (mut year, mut month, mut day) = (0, 0, 0);
    // SAFETY: computes.
    unsafe {
        let epoch = pg_sys::POSTGRES_EPOCH_JDATE as i32;
        pg_sys::j2date(date.value() as i32 + epoch, &mut year, &mut month, &mut day);
        Datum::from(pg_sys::date2j(year, month, 1) - epoch)
    }
}
