-- No foreign key: it would cost a row lock and a record in the log for every token. The trigger that
-- places a chunk, the one that removes them with their message, and clean-up keep what it would keep.
-- Fixed-width columns first, so that no row is padded.
create table @extschema@.message_chunks (
    message_id uuid not null,
    created_at timestamptz not null default pg_catalog.clock_timestamp(),
    chunk_index integer not null,
    is_final boolean not null default false,
    chunk_content text not null,
    constraint message_chunks_pkey primary key (message_id, chunk_index)
)
-- Rows live for minutes. Vacuum follows the clean-up without pausing, never leaves out the index,
-- never freezes what is about to go, and never locks the table to cut off its end.
with (
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 2000000,
    vacuum_index_cleanup = on,
    vacuum_truncate = off
);

alter table @extschema@.messages add column stream_started_at timestamptz;

create index idx_messages_streaming on @extschema@.messages (created_at) where status = 'streaming';
