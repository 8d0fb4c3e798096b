//! What rows, pages and tables go through while answers rest on them.

pub const C: [&str; 3] = [
    "00000000-0000-4000-8000-0000000000c1",
    "00000000-0000-4000-8000-0000000000c2",
    "00000000-0000-4000-8000-0000000000c3",
];
pub const U: [&str; 3] = [
    "00000000-0000-4000-8000-00000000000a",
    "00000000-0000-4000-8000-00000000000b",
    "00000000-0000-4000-8000-00000000000e",
];

/// What rows may go through, in and out of transactions.
pub fn changes() -> Vec<String> {
    let mut changes = Vec::new();
    for user in &U[..2] {
        // Mostly active, or there would be little to see.
        for active in [true, true, false] {
            changes.push(format!("update users set is_active = {active} where id = '{user}'"));
        }
        changes
            .push(format!("update users set name = gen_random_uuid()::text where id = '{user}'"));
        for role in ["member", "member", "admin"] {
            changes.push(format!("update users set role = '{role}' where id = '{user}'"));
        }
    }
    for active in [true, true, true, false] {
        changes.push(format!("update tenants set is_active = {active} where slug = 'default'"));
    }
    changes.push("update tenants set name = gen_random_uuid()::text".into());
    for c in &C[..2] {
        changes.push(format!(
            "update conversations set visibility = case visibility when 'tenant' then 'private' \
             else 'tenant' end where id = '{c}'"
        ));
        changes.push(format!(
            "update conversations set user_id = case user_id when '{}' then '{}' else '{0}' end::uuid where id = '{c}'",
            U[0], U[1]
        ));
        for deleted in ["null", "null", "now()"] {
            changes
                .push(format!("update conversations set deleted_at = {deleted} where id = '{c}'"));
        }
        changes.push(format!(
            "insert into messages (conversation_id, role) select '{c}', 'user' \
             where exists (select from conversations where id = '{c}' and deleted_at is null)"
        ));
        for user in &U[..2] {
            for role in ["viewer", "editor", "owner"] {
                changes.push(format!(
                    "insert into conversation_members (conversation_id, user_id, role) \
                     values ('{c}', '{user}', '{role}') \
                     on conflict (conversation_id, user_id) do update set role = excluded.role"
                ));
            }
            changes.push(format!(
                "delete from conversation_members where conversation_id = '{c}' and user_id = '{user}'"
            ));
        }
    }
    // The row that comes in the place of another, with the same command and without.
    changes.push(
        "with gone as (delete from conversation_members returning *) \
         insert into shadow select * from gone"
            .into(),
    );
    changes.push(
        "insert into conversation_members (conversation_id, user_id, role) \
         select distinct on (conversation_id, user_id) conversation_id, user_id, role from shadow \
         on conflict do nothing"
            .into(),
    );
    changes.push("truncate conversation_members".into());
    changes.push("truncate conversation_members, shadow".into());
    changes
}

const TABLES: [&str; 4] = ["users", "tenants", "conversations", "conversation_members"];

/// What tables and pages may go through, outside of transactions.
pub fn upheavals() -> Vec<String> {
    let mut all = Vec::new();
    for table in TABLES {
        all.push(format!("vacuum {table}"));
        all.push(format!("vacuum (freeze, disable_page_skipping) {table}"));
        all.push(format!("vacuum full {table}"));
        all.push(format!("cluster {table} using {table}_pkey"));
        all.push(format!("reindex table {table}"));
        all.push(format!(
            "alter table {table} add column extra text default gen_random_uuid()::text"
        ));
        all.push(format!("alter table {table} drop column if exists extra"));
        all.push(format!("analyze {table}"));
        all.push(format!("alter table {table} set (fillfactor = 20)"));
    }
    all.push(
        "drop extension pg_conversation cascade; create extension pg_conversation; \
              select grant_access('member')"
            .into(),
    );
    all.push("select migrate()".into());
    all
}
