-- What the server hides from others than members of pg_read_all_stats (pg_monitor is one) is null for them,
-- not the part of it that they happen to see.
create or replace view @extschema@.stats
with (security_invoker = true) as
with told as (
    select
        pg_is_in_recovery() as is_standby,
        pg_has_role(current_user, 'pg_read_all_stats', 'usage') as all_sessions,
        case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as log_end
)

select
    b.streams_in_progress,
    b.streams_stalled,
    b.messages_to_clean,
    b.oldest_to_clean_seconds,
    b.conversations_expired,
    b.conversations_to_purge,
    b.reservations_open,
    b.usage_slots_to_fold,
    b.tenants_out_of_tokens,
    b.jobs_failed,
    b.jobs_late,
    b.last_job_seconds,
    case when t.is_standby then nullif(c.reltuples, -1)::bigint else pg_stat_get_live_tuples(c.oid) end as chunk_rows,
    case when not t.is_standby then pg_stat_get_dead_tuples(c.oid) end as chunk_dead_rows,
    pg_total_relation_size(c.oid) as chunk_bytes,
    (select sum(d.numbackends)::integer from pg_stat_database d) as connections,
    current_setting('max_connections')::integer as max_connections,
    a.waiting_for_locks,
    a.slow_statements,
    a.longest_statement_seconds,
    a.longest_idle_in_transaction_seconds,
    a.oldest_snapshot_seconds,
    case when t.all_sessions then greatest(a.oldest_snapshot_age, s.oldest_snapshot_age, p.oldest_snapshot_age, 0) end
        as oldest_snapshot_age,
    r.replicas,
    case
        when not t.is_standby then r.lag_bytes
        else greatest(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), t.log_end), 0)::bigint
    end as replication_lag_bytes,
    case
        when not t.is_standby then r.lag_seconds
        when t.log_end >= pg_last_wal_receive_lsn() then 0
        else extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8
    end as replication_lag_seconds,
    s.slots_inactive,
    s.slots_lost,
    s.slot_retained_bytes,
    u.subscriptions_down,
    pg_notification_queue_usage() as notify_queue_usage
from told t
cross join @extschema@.backlog() b
join pg_class c on c.oid = '@extschema@.message_chunks'::regclass
-- A reader that waits for chunks inside its statement (wait event Extension) is not slow.
left join lateral (
    select
        count(*) filter (where o.wait_event_type = 'Lock') as waiting_for_locks,
        count(*) filter (where o.is_running and o.for_statement > interval '10 s') as slow_statements,
        coalesce(extract(epoch from max(o.for_statement) filter (where o.is_running)), 0)::float8
            as longest_statement_seconds,
        coalesce(extract(epoch from max(o.for_state) filter (where o.state like 'idle in transaction%')), 0)::float8
            as longest_idle_in_transaction_seconds,
        coalesce(extract(epoch from max(o.for_transaction) filter (where o.backend_xmin is not null)), 0)::float8
            as oldest_snapshot_seconds,
        max(age(o.backend_xmin)) as oldest_snapshot_age
    from (
        select
            o.wait_event_type,
            o.state,
            o.backend_xmin,
            clock_timestamp() - o.query_start as for_statement,
            clock_timestamp() - o.state_change as for_state,
            clock_timestamp() - o.xact_start as for_transaction,
            o.state = 'active' and o.backend_type = 'client backend'
            and coalesce(o.wait_event_type, '') <> 'Extension' as is_running
        from pg_stat_activity o
        where o.pid <> pg_backend_pid()
    ) o
) a on t.all_sessions
left join lateral (
    select
        count(*) as replicas,
        max(pg_wal_lsn_diff(t.log_end, w.replay_lsn))::bigint as lag_bytes,
        extract(epoch from max(coalesce(w.replay_lag, '0')))::float8 as lag_seconds
    from pg_stat_replication w
    where w.state <> 'backup'
) r on t.all_sessions
cross join lateral (
    select
        count(*) filter (where not l.active) as slots_inactive,
        count(*) filter (where l.wal_status = 'lost') as slots_lost,
        coalesce(max(pg_wal_lsn_diff(t.log_end, l.restart_lsn)), 0)::bigint as slot_retained_bytes,
        max(greatest(age(l.xmin), age(l.catalog_xmin))) as oldest_snapshot_age
    from pg_replication_slots l
) s
cross join lateral (select max(age(x.transaction)) as oldest_snapshot_age from pg_prepared_xacts x) p
cross join lateral (
    select count(*) as subscriptions_down
    from pg_subscription n
    where n.subdbid = (select d.oid from pg_database d where d.datname = current_database()) and n.subenabled
    and not exists (
        select from pg_stat_subscription w where w.subid = n.oid and w.relid is null and w.pid is not null
    )
) u;

create or replace view @extschema@.stats_tables
with (security_invoker = true) as
select
    c.relname::text as table_name,
    case when pg_is_in_recovery() then nullif(c.reltuples, -1)::bigint else s.n_live_tup end as rows_estimate,
    case when not pg_is_in_recovery() then s.n_dead_tup end as dead_rows,
    pg_relation_size(c.oid) as table_bytes,
    pg_indexes_size(c.oid) as index_bytes,
    case when c.reltoastrelid = 0 then 0 else pg_total_relation_size(c.reltoastrelid) end as toast_bytes,
    pg_total_relation_size(c.oid) as total_bytes,
    s.seq_scan as seq_scans,
    s.seq_tup_read as seq_rows_read,
    coalesce(s.idx_scan, 0) as index_scans,
    coalesce(s.idx_tup_fetch, 0) as index_rows_fetched,
    s.n_tup_ins as rows_inserted,
    s.n_tup_upd as rows_updated,
    s.n_tup_hot_upd as rows_updated_in_place,
    s.n_tup_del as rows_deleted,
    s.n_mod_since_analyze as rows_changed_since_analyze,
    s.last_vacuum,
    s.last_autovacuum,
    s.last_analyze,
    s.last_autoanalyze
from pg_class c
join pg_stat_all_tables s on s.relid = c.oid
where c.relnamespace = '@extschema@'::regnamespace
and c.relname = any ('{@tables@,message_feedback_summary,monthly_usage_summary}');

create or replace view @extschema@.stats_indexes
with (security_invoker = true) as
select
    s.relname::text as table_name,
    s.indexrelname::text as index_name,
    pg_relation_size(s.indexrelid) as index_bytes,
    s.idx_scan as scans,
    s.idx_tup_read as entries_read,
    s.idx_tup_fetch as rows_fetched,
    i.indisunique as is_unique,
    i.indisvalid as is_valid,
    s.idx_scan = 0 and not i.indisunique as is_unused
from pg_stat_all_indexes s
join pg_class c on c.oid = s.relid
join pg_index i on i.indexrelid = s.indexrelid
where c.relnamespace = '@extschema@'::regnamespace
and c.relname = any ('{@tables@,message_feedback_summary,monthly_usage_summary}');

comment on view @extschema@.stats is 'What there is to watch, in one row.';
comment on column @extschema@.stats.streams_in_progress is 'Messages that are being written, counted up to 10,000.';
comment on column @extschema@.stats.streams_stalled is
'Of these, those without a sign of life for 90 s, counted up to 500.';
comment on column @extschema@.stats.messages_to_clean is
'Messages that ended over an hour ago (a day, if they were interrupted) and still have chunks, of the 300 oldest
that have any; null on a standby, and while over 250,000 dead chunks are in the way.';
comment on column @extschema@.stats.oldest_to_clean_seconds is 'Seconds since the first of these ended.';
comment on column @extschema@.stats.conversations_expired is
'Conversations past their expires_at that are still there, counted up to 10,000.';
comment on column @extschema@.stats.conversations_to_purge is
'Conversations deleted longer ago than pg_conversation.keep_deleted that are still there, counted up to 10,000.';
comment on column @extschema@.stats.reservations_open is
'Tokens reserved and neither settled, released nor expired: how many reservations, counted up to 5,000.';
comment on column @extschema@.stats.usage_slots_to_fold is
'Rows of usage of days that are over, not folded yet, counted up to 20,000.';
comment on column @extschema@.stats.tenants_out_of_tokens is
'Active tenants whose tokens of today have reached their limit, of 500 that have one.';
comment on column @extschema@.stats.jobs_failed is 'Jobs of run_maintenance() whose last run failed.';
comment on column @extschema@.stats.jobs_late is 'Jobs that have not run for twice their interval and 15 minutes.';
comment on column @extschema@.stats.last_job_seconds is 'Seconds since any job finished; null if none ever has.';
comment on column @extschema@.stats.chunk_rows is 'Rows of message_chunks, as the statistics have it.';
comment on column @extschema@.stats.chunk_dead_rows is
'Dead rows of message_chunks that vacuum has not removed; null on a standby.';
comment on column @extschema@.stats.chunk_bytes is 'Bytes of message_chunks with its index.';
comment on column @extschema@.stats.connections is
'Sessions connected to any database of the server, of clients and of its own.';
comment on column @extschema@.stats.max_connections is 'Sessions that the server takes.';
comment on column @extschema@.stats.waiting_for_locks is 'Sessions that wait for a lock; null without pg_monitor.';
comment on column @extschema@.stats.slow_statements is
'Statements that have been running for more than 10 s, without readers that wait for chunks; null without pg_monitor.';
comment on column @extschema@.stats.longest_statement_seconds is
'Seconds that the longest of the running statements has taken; null without pg_monitor.';
comment on column @extschema@.stats.longest_idle_in_transaction_seconds is
'Longest time that a session has been idle inside a transaction; null without pg_monitor.';
comment on column @extschema@.stats.oldest_snapshot_seconds is
'Seconds since the beginning of the oldest transaction with a snapshot, which keeps dead rows from vacuum; null
without pg_monitor.';
comment on column @extschema@.stats.oldest_snapshot_age is
'Transactions that have begun since whatever keeps dead rows from vacuum: session, prepared transaction,
replication slot or standby; null without pg_monitor.';
comment on column @extschema@.stats.replicas is
'Standbys and subscribers that are connected; null without pg_monitor.';
comment on column @extschema@.stats.replication_lag_bytes is
'Bytes of log that the slowest of them has not replayed; on a standby, that it has received and not replayed.
Null without either, or without pg_monitor.';
comment on column @extschema@.stats.replication_lag_seconds is 'The same in seconds.';
comment on column @extschema@.stats.slots_inactive is 'Replication slots that nobody reads.';
comment on column @extschema@.stats.slots_lost is 'Replication slots whose log has been removed.';
comment on column @extschema@.stats.slot_retained_bytes is
'Bytes of log kept for the slot that is the furthest behind.';
comment on column @extschema@.stats.subscriptions_down is
'Enabled subscriptions of this database that no process applies.';
comment on column @extschema@.stats.notify_queue_usage is 'Part of the queue of notices that is in use, 0 to 1.';
comment on view @extschema@.stats_tables is
'Size, use and upkeep of each table of the extension; counters since the statistics of the database begin.';
comment on column @extschema@.stats_tables.table_name is 'The table.';
comment on column @extschema@.stats_tables.rows_estimate is 'Rows, as the statistics have it.';
comment on column @extschema@.stats_tables.dead_rows is 'Dead rows that vacuum has not removed; null on a standby.';
comment on column @extschema@.stats_tables.table_bytes is 'Bytes of the rows.';
comment on column @extschema@.stats_tables.index_bytes is 'Bytes of all indexes.';
comment on column @extschema@.stats_tables.toast_bytes is
'Bytes of long values that are stored apart, with their index.';
comment on column @extschema@.stats_tables.total_bytes is 'Bytes of all of it.';
comment on column @extschema@.stats_tables.seq_scans is 'Scans of the whole table.';
comment on column @extschema@.stats_tables.seq_rows_read is 'Rows read by these.';
comment on column @extschema@.stats_tables.index_scans is 'Scans of its indexes.';
comment on column @extschema@.stats_tables.index_rows_fetched is 'Rows found by these.';
comment on column @extschema@.stats_tables.rows_inserted is 'Rows inserted.';
comment on column @extschema@.stats_tables.rows_updated is 'Rows updated.';
comment on column @extschema@.stats_tables.rows_updated_in_place is 'Of these, updates that touched no index.';
comment on column @extschema@.stats_tables.rows_deleted is 'Rows deleted.';
comment on column @extschema@.stats_tables.rows_changed_since_analyze is
'Rows changed since its statistics were made.';
comment on column @extschema@.stats_tables.last_vacuum is 'When somebody last vacuumed it.';
comment on column @extschema@.stats_tables.last_autovacuum is 'When autovacuum last did.';
comment on column @extschema@.stats_tables.last_analyze is 'When somebody last had its statistics made.';
comment on column @extschema@.stats_tables.last_autoanalyze is 'When autovacuum last did.';
comment on view @extschema@.stats_indexes is 'Size and use of each index of these tables.';
comment on column @extschema@.stats_indexes.table_name is 'The table.';
comment on column @extschema@.stats_indexes.index_name is 'The index.';
comment on column @extschema@.stats_indexes.index_bytes is 'Its size.';
comment on column @extschema@.stats_indexes.scans is 'How often a query has used it.';
comment on column @extschema@.stats_indexes.entries_read is 'Entries that these have read.';
comment on column @extschema@.stats_indexes.rows_fetched is 'Rows that these have fetched through it.';
comment on column @extschema@.stats_indexes.is_unique is
'Whether it also keeps something unique, and so is of use without being read.';
comment on column @extschema@.stats_indexes.is_valid is
'False where it was not built to its end, and no query uses it.';
comment on column @extschema@.stats_indexes.is_unused is
'Whether it keeps nothing unique and no query has used it since the statistics begin.';
