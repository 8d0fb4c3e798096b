//! What runs when rows of a table are written, and is not the extension's: triggers, checks, defaults,
//! generated columns, indexes of expressions and rules that a DBA has added.

use std::collections::BTreeSet;
use std::ffi::CStr;

use pgrx::FromDatum;
use pgrx::pg_sys::{self, Datum, Oid};

use super::has_triggers;
use crate::plan;

/// The schemas that such functions lie in.
///
/// # Safety
///
/// The relation must be open.
pub unsafe fn of_others(relation: pg_sys::Relation) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    unsafe {
        has_triggers(relation, |trigger, is_ours| {
            if !trigger.tgisinternal && !is_ours {
                found.insert(pg_sys::get_func_namespace(trigger.tgfoid).to_u32());
            }
            collect(trigger.tgqual, &mut found);
            false
        });
        // A copy for the same reason as of the triggers.
        let desc = pg_sys::CreateTupleDescCopyConstr((*relation).rd_att);
        for column in 1..=(*desc).natts {
            let has_checks = |kind| kind == pg_sys::TYPTYPE_DOMAIN;
            collect_type(pg_sys::SPI_gettypeid(desc, column), has_checks, &mut found);
        }
        if !(*relation).rd_rules.is_null() {
            found.insert((*(*relation).rd_rel).relnamespace.to_u32());
        }
        let constraints = (*desc).constr;
        if !constraints.is_null() {
            let constraints = &*constraints;
            for n in 0..constraints.num_check as usize {
                collect((*constraints.check.add(n)).ccbin, &mut found);
            }
            for n in 0..constraints.num_defval as usize {
                collect((*constraints.defval.add(n)).adbin, &mut found);
            }
        }
        pg_sys::FreeTupleDesc(desc);
        let indexes = pg_sys::RelationGetIndexList(relation);
        let count = if indexes.is_null() { 0 } else { (*indexes).length as usize };
        for n in 0..count {
            collect_index((*(*indexes).elements.add(n)).oid_value, &mut found);
        }
    }
    found
}

/// # Safety
///
/// A syscache look-up, released on the spot.
unsafe fn collect_index(index: Oid, found: &mut BTreeSet<u32>) {
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, Datum::from(index));
        if tuple.is_null() {
            return;
        }
        for column in [pg_sys::Anum_pg_index_indexprs, pg_sys::Anum_pg_index_indpred] {
            let mut is_null = true;
            let column = column as pg_sys::AttrNumber;
            let tree = pg_sys::SysCacheGetAttr(cache, tuple, column, &mut is_null);
            if let Some(tree) = String::from_datum(tree, is_null) {
                collect_text(&tree, found);
            }
        }
        pg_sys::ReleaseSysCache(tuple);
    }
}

/// The schema of a type whose checks or input may be functions of others.
fn collect_type(oid: Oid, wanted: impl FnOnce(u8) -> bool, found: &mut BTreeSet<u32>) {
    let collect = |row: &pg_sys::FormData_pg_type| {
        if wanted(row.typtype as u8) {
            found.insert(row.typnamespace.to_u32());
        }
    };
    // SAFETY: the cache of pg_type by oid.
    unsafe { plan::cached(pg_sys::SysCacheIdentifier::TYPEOID, Datum::from(oid), collect) };
}

/// # Safety
///
/// An expression tree as the catalog stores it, or null.
unsafe fn collect(tree: *const std::ffi::c_char, found: &mut BTreeSet<u32>) {
    if !tree.is_null() {
        collect_text(&unsafe { CStr::from_ptr(tree) }.to_string_lossy(), found);
    }
}

/// Adds the schemas of functions, operators and types that a tree names. Those of the system have numbers below the first one that is given to users.
fn collect_text(tree: &str, found: &mut BTreeSet<u32>) {
    for (key, number) in numbers(tree) {
        if number < pg_sys::FirstNormalObjectId {
            continue;
        }
        let oid = Oid::from(number);
        // SAFETY: look-ups in caches; an unknown number gives an invalid one.
        unsafe {
            let function = match key {
                ":funcid" | ":opfuncid" => oid,
                ":opno" => pg_sys::get_opcode(oid),
                _ => {
                    collect_type(oid, |_| true, found);
                    continue;
                }
            };
            let is_ours = pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, function)
                == pg_sys::get_extension_oid(c"pg_conversation".as_ptr(), true);
            if !is_ours && function.to_u32() >= pg_sys::FirstNormalObjectId {
                found.insert(pg_sys::get_func_namespace(function).to_u32());
            }
        }
    }
}

const KEYS: [&str; 4] = [":funcid", ":opfuncid", ":opno", ":resulttype"];

/// The numbers behind the keys that stand for something that runs.
fn numbers(tree: &str) -> impl Iterator<Item = (&str, u32)> {
    let words = tree.split_whitespace();
    words
        .clone()
        .zip(words.skip(1))
        .filter(|(key, _)| KEYS.contains(key))
        .filter_map(|(key, number)| Some((key, number.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_what_runs_are_found() {
        let tree = "{FUNCEXPR :funcid 16999 :funcresulttype 16 :args ({OPEXPR :opno 98 :opfuncid 67 \
                    :opresulttype 16 :args ({VAR :varno 1}) :location 7})}";
        let found: Vec<_> = numbers(tree).collect();
        assert_eq!(found, [(":funcid", 16999), (":opno", 98), (":opfuncid", 67)]);
    }
}
