//! What the planner is told of policies. Queries may name nothing, like `select count(*) from
//! messages`: whoever passes the policy has the conversation among those that he may read, and an
//! index with them is a better way in than the whole table.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, FunctionCallInfo, List, Node, NodeTag, Oid};

use super::readable::guess;
use crate::error::Error;
use crate::function::{c_function, raw_argument};

c_function!(
    /// For functions that policies ask: how many rows they let through.
    expect_access,
    pg_finfo_expect_access,
    expect
);

c_function!(
    /// For those that ask about a conversation also where to look for its rows.
    find_access,
    pg_finfo_find_access,
    find
);

c_function!(
    /// For the list of conversations: what it costs, with a descent of an index for each element, of
    /// which the planner expects ten.
    expect_list,
    pg_finfo_expect_list,
    cost
);

const NO_ANSWER: Datum = Datum::null();

/// The request, if it is of this kind.
///
/// # Safety
///
/// `T` is the struct of that tag.
unsafe fn request<'a, T>(call: FunctionCallInfo, tag: NodeTag) -> Option<&'a mut T> {
    let node = raw_argument(call, 0)?.cast_mut_ptr::<Node>();
    // SAFETY: the planner passes a node, which its tag describes.
    unsafe { if (*node).type_ == tag { node.cast::<T>().as_mut() } else { None } }
}

fn expect(call: FunctionCallInfo) -> Result<Datum, Error> {
    use pg_sys::SupportRequestSelectivity as Request;
    // SAFETY: see request() and share().
    unsafe {
        match request::<Request>(call, NodeTag::T_SupportRequestSelectivity) {
            Some(request) => {
                request.selectivity = share(request)?;
                Ok(Datum::from(std::ptr::from_mut(request)))
            }
            None => Ok(NO_ANSWER),
        }
    }
}

fn find(call: FunctionCallInfo) -> Result<Datum, Error> {
    use pg_sys::SupportRequestIndexCondition as Request;
    // SAFETY: see request() and index_condition().
    unsafe {
        match request::<Request>(call, NodeTag::T_SupportRequestIndexCondition) {
            Some(request) => Ok(index_condition(request).map_or(NO_ANSWER, Datum::from)),
            None => expect(call),
        }
    }
}

fn cost(call: FunctionCallInfo) -> Result<Datum, Error> {
    use pg_sys::SupportRequestCost as Request;
    // SAFETY: see request().
    unsafe {
        match request::<Request>(call, NodeTag::T_SupportRequestCost) {
            Some(request) => {
                let (readable, _) = guess()?;
                request.startup = 0.0;
                request.per_tuple = 1.5 * readable;
                Ok(Datum::from(std::ptr::from_mut(request)))
            }
            None => Ok(NO_ANSWER),
        }
    }
}

/// What an index can make of `has_conversation_access(column, user, ...)`: the column is one of
/// `readable_conversations(user)`. The condition lets more through than the policy, which is asked
/// again for each row.
///
/// Only where the query has no way in of its own: it would compute the list for nothing, and for the
/// inner side of a join once a row.
///
/// # Safety
///
/// The request is one that the planner has made.
unsafe fn index_condition(request: &pg_sys::SupportRequestIndexCondition) -> Option<*mut List> {
    unsafe {
        let index = &*request.index;
        let call = request.node.cast::<pg_sys::FuncExpr>();
        let is_call = (*request.node).type_ == NodeTag::T_FuncExpr;
        if request.indexarg != 0
            || request.indexcol != 0
            || index.relam != pg_sys::BTREE_AM_OID
            || !is_call
            || is_joined(&*index.rel)
            || is_compared(&*index.rel)
        {
            return None;
        }
        let strategy = pg_sys::BTEqualStrategyNumber as i16;
        let uuid = pg_sys::UUIDOID;
        let equal = pg_sys::get_opfamily_member(request.opfamily, uuid, uuid, strategy);
        let (of_column, user) = (nth((*call).args, 0), nth((*call).args, 1));
        let opcode = pg_sys::get_opcode(equal);
        if opcode != Oid::from(pg_sys::F_UUID_EQ)
            || pg_sys::contain_var_clause(user)
            || pg_sys::contain_volatile_functions(user)
        {
            return None;
        }
        let array = pg_sys::makeFuncExpr(
            sibling(request.funcid)?,
            pg_sys::UUIDARRAYOID,
            list_of([user]),
            Oid::INVALID,
            Oid::INVALID,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        );
        let condition = pg_sys::palloc0(size_of::<pg_sys::ScalarArrayOpExpr>())
            .cast::<pg_sys::ScalarArrayOpExpr>();
        (*condition).xpr.type_ = NodeTag::T_ScalarArrayOpExpr;
        (*condition).opno = equal;
        (*condition).opfuncid = opcode;
        (*condition).useOr = true;
        (*condition).args = list_of([of_column, array.cast()]);
        (*condition).location = -1;
        Some(list_of([condition.cast()]))
    }
}

/// The part of the rows that a policy lets through. Nearly all where a query names a conversation or a
/// user: the planner's own guess, a third, would drive it away from indexes that bring rows in order.
/// Of the rows of a query that names nothing as many are his as of all conversations.
///
/// # Safety
///
/// The request is one that the planner has made.
unsafe fn share(request: &pg_sys::SupportRequestSelectivity) -> Result<f64, Error> {
    const NAMED: f64 = 0.95;
    unsafe {
        let rows = nth(request.args, 0).cast::<pg_sys::Var>();
        if request.is_join || rows.is_null() || (*rows).xpr.type_ != NodeTag::T_Var {
            return Ok(NAMED);
        }
        let (root, relation) = (&*request.root, (*rows).varno as usize);
        if (*rows).varlevelsup > 0
            || root.simple_rel_array.is_null()
            || relation >= root.simple_rel_array_size as usize
        {
            return Ok(NAMED);
        }
        let rel = *root.simple_rel_array.add(relation);
        if rel.is_null() {
            return Ok(NAMED);
        }
        // What joins conversations has them narrowed; they themselves are where it begins.
        let begins_here = (*request.args).length > 3;
        let is_named = is_compared(&*rel) || (!begins_here && is_joined(&*rel));
        if is_named {
            return Ok(NAMED);
        }
        let (readable, all) = guess()?;
        Ok((readable / all).min(NAMED))
    }
}

/// The part of a table's rows that is worth a look at each.
const FEW: f64 = 0.02;

/// Whether rows are looked for by those of another relation.
fn is_joined(rel: &pg_sys::RelOptInfo) -> bool {
    rel.has_eclass_joins || !rel.joininfo.is_null()
}

/// Whether the query says what the first column of an index equals, or a later one where those before
/// are known; or asks for the few rows that an index has alone. What policies say comes before what
/// the query says. The tenant is no way in: a policy lets nobody into another one.
///
/// # Safety
///
/// The relation is one that is being planned.
unsafe fn is_compared(rel: &pg_sys::RelOptInfo) -> bool {
    unsafe {
        let compared = |column, by_query: bool| {
            elements(rel.baserestrictinfo).any(|clause| {
                let clause = &*clause.cast::<pg_sys::RestrictInfo>();
                let is_of_query = clause.security_level > rel.baserestrict_min_security;
                (is_of_query || !by_query)
                    && is_equality(clause.clause.cast())
                    && mentions(clause, rel.relid, column)
            })
        };
        elements(rel.indexlist).any(|index| {
            let index = &*index.cast::<pg_sys::IndexOptInfo>();
            let is_whole = index.indpred.is_null();
            let has_few = !is_whole && index.tuples < FEW * rel.tuples;
            let is_tenant = |n| {
                let name = pg_sys::get_attname(index.indexoid, n as i16 + 1, true);
                !name.is_null() && CStr::from_ptr(name) == c"tenant_id"
            };
            let mut columns = (0..index.nkeycolumns as usize)
                .map(|n| (n, *index.indexkeys.add(n)))
                .take_while(|(_, column)| compared(*column, false));
            (is_whole || index.predOK)
                && (has_few || columns.any(|(n, column)| compared(column, true) && !is_tenant(n)))
        })
    }
}

/// # Safety
///
/// A node of a query that is being planned.
unsafe fn is_equality(node: *mut Node) -> bool {
    unsafe {
        let operator = match (*node).type_ {
            NodeTag::T_OpExpr => (*node.cast::<pg_sys::OpExpr>()).opno,
            NodeTag::T_ScalarArrayOpExpr => (*node.cast::<pg_sys::ScalarArrayOpExpr>()).opno,
            NodeTag::T_BoolExpr => {
                let any = &*node.cast::<pg_sys::BoolExpr>();
                return any.boolop == pg_sys::BoolExprType::OR_EXPR
                    && elements(any.args).all(|node| is_equality(node));
            }
            _ => return false,
        };
        pg_sys::get_oprrest(operator) == Oid::from(pg_sys::F_EQSEL)
    }
}

/// # Safety
///
/// The clause is one of a query that is being planned.
unsafe fn mentions(clause: &pg_sys::RestrictInfo, relation: pg_sys::Index, column: i32) -> bool {
    unsafe {
        let mut columns = std::ptr::null_mut();
        pg_sys::pull_varattnos(clause.clause.cast(), relation, &mut columns);
        pg_sys::bms_is_member(column - pg_sys::FirstLowInvalidHeapAttributeNumber, columns)
    }
}

/// `readable_conversations`, which lives where the function of a policy does.
///
/// # Safety
///
/// A look-up in the cache of functions; never fails.
unsafe fn sibling(function: Oid) -> Option<Oid> {
    unsafe {
        let uuid = pg_sys::UUIDOID;
        let arguments = pg_sys::buildoidvector(&uuid, 1);
        let found = pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as pg_sys::AttrNumber,
            Datum::from(c"readable_conversations".as_ptr()),
            Datum::from(arguments),
            Datum::from(pg_sys::get_func_namespace(function)),
            Datum::from(0),
        );
        (found != Oid::INVALID).then_some(found)
    }
}

/// # Safety
///
/// The list is one of nodes, and has that many.
unsafe fn nth(list: *mut List, n: usize) -> *mut Node {
    unsafe { (*(*list).elements.add(n)).ptr_value.cast() }
}

/// # Safety
///
/// The list, if there is one, is one of nodes and stays as it is.
unsafe fn elements(list: *mut List) -> impl Iterator<Item = *mut Node> {
    let length = if list.is_null() { 0 } else { unsafe { (*list).length as usize } };
    (0..length).map(move |n| unsafe { nth(list, n) })
}

unsafe fn list_of<const N: usize>(nodes: [*mut Node; N]) -> *mut List {
    nodes
        .into_iter()
        .fold(std::ptr::null_mut(), |list, node| unsafe { pg_sys::lappend(list, node.cast()) })
}
