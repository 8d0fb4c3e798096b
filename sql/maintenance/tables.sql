create table @extschema@.maintenance_runs (
    job text not null constraint maintenance_runs_pkey primary key,
    every interval not null
    constraint maintenance_runs_every_is_at_most_1000_years
    check (every >= interval '0' and every <= interval '1000 years'),
    enabled boolean not null default true,
    last_started_at timestamptz,
    last_finished_at timestamptz,
    last_duration interval,
    last_rows bigint,
    last_error text,
    last_error_at timestamptz,
    runs bigint not null default 0,
    failures bigint not null default 0
);

-- What is to be removed, the oldest first. Most conversations are in neither.
create index idx_conversations_expires on @extschema@.conversations (expires_at) where expires_at is not null;
create index idx_conversations_deleted on @extschema@.conversations (deleted_at) where deleted_at is not null;
