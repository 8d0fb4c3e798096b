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
);

alter table @extschema@.messages add column stream_started_at timestamptz;

create index idx_messages_streaming on @extschema@.messages (created_at) where status = 'streaming';
