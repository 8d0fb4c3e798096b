alter table @extschema@.maintenance_runs enable row level security;

drop policy if exists maintenance_runs_read on @extschema@.maintenance_runs;
create policy maintenance_runs_read on @extschema@.maintenance_runs for select using (true);

create or replace trigger adopt_dumped_row
before insert on @extschema@.maintenance_runs
for each row execute function @extschema@.adopt_dumped_run();

-- Jobs are called every minute by most who call them: 30 seconds are "each time", however late the call.
insert into @extschema@.maintenance_runs (job, every)
select known.job, known.every
from (
    values
    ('stalled_messages', interval '30 s'),
    ('finished_chunks', interval '30 s'),
    ('expired_conversations', interval '5 min'),
    ('deleted_conversations', interval '1 hour'),
    ('usage_folding', interval '1 hour'),
    ('reservations', interval '1 hour'),
    ('feedback_check', interval '1 day'),
    ('usage_check', interval '1 day'),
    ('analytics', interval '1 day')
) as known (job, every)
where not exists (select from @extschema@.maintenance_runs r where r.job = known.job);

comment on table @extschema@.maintenance_runs is
'The jobs of run_maintenance(), one row each: how often, and what came of it; kept as the DBA sets every and enabled.';
comment on column @extschema@.maintenance_runs.job is 'Name of the job.';
comment on column @extschema@.maintenance_runs.every is
'Time from the start of one run to that of the next, which waits for a call of run_maintenance().';
comment on column @extschema@.maintenance_runs.enabled is 'False to leave the job out.';
comment on column @extschema@.maintenance_runs.last_started_at is 'When it last began.';
comment on column @extschema@.maintenance_runs.last_finished_at is
'When it last came to an end, be it by an error; before last_started_at while more is left than one run takes.';
comment on column @extschema@.maintenance_runs.last_duration is 'How long the last run took.';
comment on column @extschema@.maintenance_runs.last_rows is
'How many rows, messages or conversations it dealt with.';
comment on column @extschema@.maintenance_runs.last_error is
'SQLSTATE and message of the last run; null if it went well.';
comment on column @extschema@.maintenance_runs.last_error_at is
'When a run last failed; stays when the next goes well.';
comment on column @extschema@.maintenance_runs.runs is 'How often it ran.';
comment on column @extschema@.maintenance_runs.failures is 'How many of the runs failed.';
comment on index @extschema@.idx_conversations_expires is 'Conversations that expire, in that order.';
comment on index @extschema@.idx_conversations_deleted is 'Deleted conversations, the longest deleted first.';
comment on policy maintenance_runs_read on @extschema@.maintenance_runs is
'Whoever may read the table may know what runs; members may not.';
comment on trigger adopt_dumped_row on @extschema@.maintenance_runs is
'Lets a dump of data alone bring intervals and figures.';
