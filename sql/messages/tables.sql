create type @extschema@.message_role as enum ('user', 'assistant', 'system', 'tool', 'developer');
create type @extschema@.message_status as enum (
    'pending', 'streaming', 'completed', 'stopped', 'failed', 'interrupted'
);

create table @extschema@.messages (
    id uuid not null constraint messages_pkey primary key,
    conversation_id uuid not null
    constraint messages_conversation_exists references @extschema@.conversations (id) on delete cascade,
    tenant_id uuid not null,
    sequence_number integer not null
    constraint messages_sequence_number_is_positive check (sequence_number > 0),
    role @extschema@.message_role not null,
    status @extschema@.message_status not null default 'completed',
    content text not null default ''
    constraint messages_content_is_at_most_32_mb check (pg_catalog.octet_length(content) <= 33554432),
    parts jsonb,
    parent_id uuid
    constraint messages_parent_exists references @extschema@.messages (id) on delete set null,
    client_message_id text
    constraint messages_client_message_id_is_at_most_200
    check (pg_catalog.char_length(client_message_id) <= 200),
    prompt_token_count integer
    constraint messages_prompt_token_count_is_not_negative check (prompt_token_count >= 0),
    completion_token_count integer
    constraint messages_completion_token_count_is_not_negative check (completion_token_count >= 0),
    model_used text,
    latency_ms integer constraint messages_latency_is_not_negative check (latency_ms >= 0),
    error text,
    metadata jsonb not null default '{}'
    constraint messages_metadata_is_object check (pg_catalog.jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default pg_catalog.now(),
    completed_at timestamptz
);

create unique index idx_messages_conversation_seq
on @extschema@.messages (conversation_id, sequence_number);
create unique index idx_messages_retry_key
on @extschema@.messages (conversation_id, client_message_id) where client_message_id is not null;
create index idx_messages_parent on @extschema@.messages (parent_id) where parent_id is not null;
