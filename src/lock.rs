//! Advisory locks of kinds of their own (`objsubid` in `pg_locks`), which `pg_advisory_lock` cannot
//! reach. They cost no row version, are released by the end of the transaction, whatever end that is,
//! and deadlocks between them are found.

use pgrx::Uuid;
use pgrx::pg_sys::{self, LOCKMODE, LOCKTAG};

/// What a lock is of.
#[derive(Clone, Copy)]
#[repr(u16)]
pub enum Kind {
    /// Held by whoever adds chunks to a message or ends it.
    Message = 101,
    /// Shared by those who wait for chunks of a message.
    Waiter = 102,
    /// Shared by those who listen to conversations.
    Listener = 103,
    /// Held by whoever reserves tokens of a tenant.
    Quota = 104,
    /// Held by the one session that runs the jobs of maintenance.
    Maintenance = 105,
    /// Held by the one session that folds sums of usage.
    Folder = 110,
    /// Held by whoever prices a tenant's events of a day, user and model anew.
    Group = 111,
}

pub const EXCLUSIVE: LOCKMODE = pg_sys::ExclusiveLock as LOCKMODE;

/// Two ids of a kind that fall together wait for each other, and that is all.
pub fn tag(kind: Kind, id: Uuid) -> LOCKTAG {
    let id = u128::from_be_bytes(*id.as_bytes());
    let key = (id >> 64) as u64 ^ id as u64;
    LOCKTAG {
        // SAFETY: a constant of the backend.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: (key >> 32) as u32,
        locktag_field3: key as u32,
        locktag_field4: kind as u16,
        locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    }
}

/// Waits for the lock and keeps it to the end of the transaction.
pub fn take(kind: Kind, id: Uuid) {
    // SAFETY: a valid tag; an ERROR while waiting leaves nothing behind.
    unsafe { pg_sys::LockAcquire(&tag(kind, id), EXCLUSIVE, false, false) };
}

/// The same without waiting; false where another session has it.
pub fn take_if_free(kind: Kind, id: Uuid) -> bool {
    // SAFETY: a valid tag.
    let answer = unsafe { pg_sys::LockAcquire(&tag(kind, id), EXCLUSIVE, false, true) };
    answer != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Gives a lock back that was taken for nothing; one that was held before stays held.
pub fn give_back(kind: Kind, id: Uuid) {
    // SAFETY: taken by the caller.
    unsafe { pg_sys::LockRelease(&tag(kind, id), EXCLUSIVE, false) };
}
