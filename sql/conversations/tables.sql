create table @extschema@.conversations (
    id uuid not null constraint conversations_pkey primary key,
    tenant_id uuid not null
    constraint conversations_tenant_exists references @extschema@.tenants (id),
    user_id uuid
    constraint conversations_user_exists references @extschema@.users (id),
    session_id text not null
    constraint conversations_session_id_is_at_most_500 check (pg_catalog.char_length(session_id) <= 500),
    continuation_id text not null
    constraint conversations_continuation_id_is_at_most_500
    check (pg_catalog.char_length(continuation_id) <= 500),
    title text not null
    constraint conversations_title_is_at_most_500 check (pg_catalog.char_length(title) <= 500),
    visibility text not null
    constraint conversations_visibility_is_known check (visibility in ('private', 'tenant')),
    is_archived boolean not null default false,
    is_pinned boolean not null default false,
    tags text [] not null default '{}',
    summary text,
    expires_at timestamptz,
    deleted_at timestamptz,
    last_sequence integer not null default 0
    constraint conversations_last_sequence_is_not_negative check (last_sequence >= 0),
    metadata jsonb not null default '{}'
    constraint conversations_metadata_is_object check (pg_catalog.jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default pg_catalog.now(),
    updated_at timestamptz not null default pg_catalog.now()
);

-- A deleted conversation gives its names back.
create unique index idx_conversations_tenant_session
on @extschema@.conversations (tenant_id, session_id) where deleted_at is null;
create unique index idx_conversations_tenant_continuation
on @extschema@.conversations (tenant_id, continuation_id) where deleted_at is null;
-- Pages of a user's list. The tenant leads, for policies compare it in every query.
create index idx_conversations_user_updated
on @extschema@.conversations (tenant_id, user_id, is_archived, updated_at desc, id desc);
create index idx_conversations_user on @extschema@.conversations (user_id);
-- A user has one tenant: without this the planner multiplies the two and expects too few rows.
create statistics @extschema@.conversations_tenant_of_user (dependencies)
on tenant_id, user_id from @extschema@.conversations;

create table @extschema@.conversation_members (
    conversation_id uuid not null
    constraint conversation_members_conversation_exists
    references @extschema@.conversations (id) on delete cascade,
    user_id uuid not null
    constraint conversation_members_user_exists
    references @extschema@.users (id) on delete cascade,
    tenant_id uuid not null,
    role text not null default 'viewer'
    constraint conversation_members_role_is_known check (role in ('owner', 'editor', 'viewer')),
    created_at timestamptz not null default pg_catalog.now(),
    constraint conversation_members_pkey primary key (conversation_id, user_id)
);

create index idx_conversation_members_user on @extschema@.conversation_members (user_id);
