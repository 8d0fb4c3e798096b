//! What usage says: its tokens, what it costs, and what of it has no price. `reprice` has the same in SQL,
//! for very many events.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::{self, Datum};
use pgrx::{AnyNumeric, FromDatum, IntoDatum};

use crate::error::Error;
use crate::lookup::{each, key};
use crate::view::now;

pub struct Digest {
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub cost: Datum,
    pub unpriced: Vec<String>,
}

/// The value of a name; `None` is no number.
struct Entry {
    name: String,
    is_alias: bool,
    figure: Option<Datum>,
}

const PROMPT: &str = "prompt_tokens";
const COMPLETION: &str = "completion_tokens";
const TOTAL: &str = "total_tokens";

/// Names that other providers have for the same.
const ALIASES: [(&str, &str); 2] = [("input_tokens", PROMPT), ("output_tokens", COMPLETION)];

const MOST_ENTRIES: usize = 50;
const MOST_OF_NAME: usize = 100;
/// Largest usage, which may hold what is no figure.
const MOST_BYTES: usize = 64 << 10;
/// Largest figure: a day of them fits a sum.
pub const MOST: i64 = 1_000_000_000_000;
pub const MOST_DECIMALS: i32 = 20;

/// Takes usage apart and looks prices up, which are those of the moment of use.
pub fn digest(usage: Datum, model: Datum, at: i64) -> Result<Digest, Error> {
    let mut entries = entries(usage)?;
    for (alias, name) in ALIASES {
        let other = entries.iter().position(|entry| entry.name == name && !entry.is_alias);
        let given = entries.iter().position(|entry| entry.name == name && entry.is_alias);
        // A figure under both its names is one.
        if let (Some(other), Some(given)) = (other, given) {
            match (entries[other].figure, entries[given].figure) {
                (Some(one), Some(two)) if compare(one, two) == 0 => entries.remove(given),
                _ => return Err(Error::BadUsage(format!("{alias} is not {name}"))),
            };
        }
    }
    let mut found =
        Digest { prompt_tokens: 0, completion_tokens: 0, cost: number(0), unpriced: Vec::new() };
    for entry in entries {
        let Some(figure) = entry.figure else {
            found.unpriced.push(entry.name);
            continue;
        };
        let whole = check(&entry.name, figure)?;
        match entry.name.as_str() {
            PROMPT => found.prompt_tokens = whole,
            COMPLETION => found.completion_tokens = whole,
            TOTAL => continue,
            _ => (),
        }
        match price(&entry.name, model, at)? {
            Some(price) => {
                let price = price.into_datum().ok_or(Error::Missing("unit_price"))?;
                let cost = call(pg_sys::F_NUMERIC_MUL, figure, price);
                found.cost = call(pg_sys::F_NUMERIC_ADD, found.cost, cost);
            }
            None if compare(figure, number(0)) != 0 => found.unpriced.push(entry.name),
            None => (),
        }
    }
    found.unpriced.sort_unstable();
    Ok(found)
}

/// The first level, where all figures are.
fn entries(usage: Datum) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    // SAFETY: a jsonb, of which only what is small enough is fetched. The iterator goes through an
    // object in pairs of key and value, and steps over what lies deeper.
    unsafe {
        if pg_sys::toast_raw_datum_size(usage) > MOST_BYTES {
            return Err(Error::BadUsage(format!("it is larger than {MOST_BYTES} bytes")));
        }
        let json = pg_sys::pg_detoast_datum(usage.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        if (*json).root.header & pg_sys::JB_FOBJECT == 0 {
            return Err(Error::BadUsage("it is no object".into()));
        }
        let mut iterator = pg_sys::JsonbIteratorInit(&mut (*json).root);
        let mut value = pg_sys::JsonbValue::default();
        let (mut name, mut is_inside) = (String::new(), false);
        loop {
            use pg_sys::JsonbIteratorToken::*;
            let token = pg_sys::JsonbIteratorNext(&mut iterator, &mut value, is_inside);
            is_inside = true;
            match token {
                WJB_DONE => return Ok(entries),
                WJB_KEY => name = text(&value),
                WJB_VALUE => {
                    let is_number = value.type_ == pg_sys::jbvType::jbvNumeric;
                    let figure = is_number.then(|| Datum::from(value.val.numeric));
                    entries.push(Entry::new(std::mem::take(&mut name), figure)?);
                    if entries.len() > MOST_ENTRIES {
                        return Err(Error::BadUsage("it has more than 50 figures".into()));
                    }
                }
                _ => (),
            }
        }
    }
}

impl Entry {
    fn new(name: String, figure: Option<Datum>) -> Result<Self, Error> {
        if name.chars().count() > MOST_OF_NAME {
            let name: String = name.chars().take(MOST_OF_NAME).collect();
            return Err(Error::BadUsage(format!("the name {name}... is longer than 100")));
        }
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
        let is_alias = alias.is_some();
        Ok(Self { name: alias.map_or(name, |(_, name)| (*name).into()), is_alias, figure })
    }
}

/// # Safety
///
/// A key of an object.
unsafe fn text(value: &pg_sys::JsonbValue) -> String {
    // SAFETY: keys are strings of that length, in the encoding of the database.
    let bytes = unsafe {
        let string = value.val.string;
        std::slice::from_raw_parts(string.val.cast::<u8>(), string.len.max(0) as usize)
    };
    String::from_utf8_lossy(bytes).into_owned()
}

/// A figure that can be added up; tokens are whole.
fn check(name: &str, figure: Datum) -> Result<i64, Error> {
    let refused = |why: &str| Err(Error::BadUsage(format!("{name} {why}")));
    if compare(figure, number(0)) < 0 {
        return refused("is negative");
    }
    if compare(figure, number(MOST)) > 0 {
        return refused("is more than 1000000000000");
    }
    // Fits a bigint.
    let whole = call(pg_sys::F_INT8_NUMERIC, figure, figure).value() as i64;
    if scale(figure) > MOST_DECIMALS {
        return refused("has more than 20 decimals");
    }
    if name.ends_with("tokens") && compare(figure, number(whole)) != 0 {
        return refused("is not whole");
    }
    Ok(whole)
}

/// Decimals of a number; NaN and infinity, whose scale is null, have none.
pub fn scale(number: Datum) -> i32 {
    // SAFETY: a numeric; the answer is an integer, or null for what is no number.
    let scale =
        unsafe { pgrx::direct_function_call::<i32>(pg_sys::numeric_scale, &[Some(number)]) };
    scale.unwrap_or(0)
}

/// The price of a unit: of the patterns that match the model, the longest one's.
fn price(name: &str, model: Datum, at: i64) -> Result<Option<AnyNumeric>, Error> {
    let mut best: Option<(usize, String, AnyNumeric)> = None;
    let by_type = key(c"usage_type", name)?;
    now(|| {
        each(c"model_prices", c"idx_model_prices_usage_type", by_type, |row| {
            let moment = |name| row.named::<TimestampWithTimeZone>(name).map(i64::from);
            let is_valid = moment(c"valid_from").is_some_and(|from| from <= at)
                && moment(c"valid_to").is_some_and(|to| at < to);
            if is_valid
                && let Some(pattern) = row.text(c"pattern")
                && matches(model, pattern)
            {
                // SAFETY: a text.
                let pattern = unsafe { String::from_datum(pattern, false) }.unwrap_or_default();
                let length = pattern.chars().count();
                let is_better = best.as_ref().is_none_or(|(most, other, _)| {
                    length > *most || length == *most && pattern < *other
                });
                if is_better && let Some(price) = row.named(c"unit_price") {
                    best = Some((length, pattern, price));
                }
            }
            true
        })
    })?;
    Ok(best.map(|(_, _, price)| price))
}

/// LIKE, byte by byte.
fn matches(model: Datum, pattern: Datum) -> bool {
    let collation = pg_sys::C_COLLATION_OID;
    // SAFETY: two texts; patterns are whole.
    let found = unsafe {
        let like = pg_sys::Oid::from(pg_sys::F_TEXTLIKE);
        pg_sys::OidFunctionCall2Coll(like, collation, model, pattern)
    };
    found.value() != 0
}

/// A function of two numerics, or of one, which does not look at the second.
fn call(function: u32, a: Datum, b: Datum) -> Datum {
    let (function, none) = (pg_sys::Oid::from(function), pg_sys::Oid::INVALID);
    // SAFETY: as said; none of them returns null.
    unsafe { pg_sys::OidFunctionCall2Coll(function, none, a, b) }
}

fn compare(a: Datum, b: Datum) -> i32 {
    call(pg_sys::F_NUMERIC_CMP, a, b).value() as i32
}

fn number(n: i64) -> Datum {
    call(pg_sys::F_NUMERIC_INT8, Datum::from(n), Datum::from(n))
}
