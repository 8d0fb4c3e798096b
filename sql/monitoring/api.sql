create function @extschema@.backlog(
    out streams_in_progress bigint,
    out streams_stalled bigint,
    out messages_to_clean bigint,
    out oldest_to_clean_seconds float8,
    out conversations_expired bigint,
    out conversations_to_purge bigint,
    out reservations_open bigint,
    out usage_slots_to_fold bigint,
    out tenants_out_of_tokens bigint,
    out jobs_failed bigint,
    out jobs_late bigint,
    out last_job_seconds float8
)
language c stable as 'MODULE_PATHNAME', 'backlog';
comment on function @extschema@.backlog() is
'What waits to be done, in one row, for whoever may read maintenance_runs; the view stats has it.';
