//! Entries in the indexes of a table for rows that were written without a statement.

use pgrx::pg_sys;

/// The open indexes of a table.
pub struct Indexes {
    target: *mut pg_sys::ResultRelInfo,
    state: *mut pg_sys::EState,
}

impl Indexes {
    /// # Safety
    ///
    /// The table is open, and locked for writing, until they are closed. An ERROR leaves the clean-up to
    /// the abort.
    pub unsafe fn open(relation: pg_sys::Relation) -> Self {
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let target = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>());
            let target = target.cast::<pg_sys::ResultRelInfo>();
            (*target).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            (*target).ri_RelationDesc = relation;
            pg_sys::ExecOpenIndices(target, false);
            Self { target, state }
        }
    }

    /// # Safety
    ///
    /// The slot has a row that has just been written into the table.
    pub unsafe fn add(
        &self,
        slot: *mut pg_sys::TupleTableSlot,
        #[cfg_attr(feature = "pg15", allow(unused_variables))] only_summarizing: bool,
    ) {
        let (target, state) = (self.target, self.state);
        let (conflict, arbiters) = (std::ptr::null_mut(), std::ptr::null_mut());
        unsafe {
            #[cfg(feature = "pg15")]
            pg_sys::ExecInsertIndexTuples(target, slot, state, false, false, conflict, arbiters);
            #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
            pg_sys::ExecInsertIndexTuples(
                target,
                slot,
                state,
                false,
                false,
                conflict,
                arbiters,
                only_summarizing,
            );
        }
    }

    /// # Safety
    ///
    /// The table is still open.
    pub unsafe fn close(self) {
        unsafe {
            pg_sys::ExecCloseIndices(self.target);
            pg_sys::FreeExecutorState(self.state);
        }
    }
}
