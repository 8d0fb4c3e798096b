create function @extschema@.place_message() returns trigger
language c as 'MODULE_PATHNAME', 'place_message';
comment on function @extschema@.place_message() is
'Trigger: gives id, tenant, number and author to a new message.';

create function @extschema@.add_message(
    conversation_id uuid,
    role text,
    content text,
    client_message_id text default null,
    parent_id uuid default null,
    parts jsonb default null,
    metadata jsonb default null,
    out message_id uuid,
    out sequence_number integer,
    out created boolean
) language c as 'MODULE_PATHNAME', 'add_message';
comment on function @extschema@.add_message(uuid, text, text, text, uuid, jsonb, jsonb) is
'Adds a message and returns its id and number; with a client_message_id, a retry returns the first one.';

create function @extschema@.keep_revision() returns trigger
language c as 'MODULE_PATHNAME', 'keep_revision';
comment on function @extschema@.keep_revision() is 'Trigger: keeps what an edit of a message replaces.';

create function @extschema@.edit_message(message_id uuid, content text, parts jsonb default null) returns void
language c as 'MODULE_PATHNAME', 'edit_message';
comment on function @extschema@.edit_message(uuid, text, jsonb) is
'Replaces the content of a message of the caller''s own, where the tenant allows it; parts stay when null.';

create function @extschema@.get_conversation_with_messages(
    conv_id uuid,
    after_sequence integer default null,
    max_messages integer default null
) returns table (
    conversation_id uuid,
    session_id text,
    title text,
    message_id uuid,
    role text,
    content text,
    sequence_number integer,
    message_created_at timestamptz
)
language sql stable parallel safe
as $$
    select c.id, c.session_id, c.title, m.id, m.role::pg_catalog.text, m.content, m.sequence_number, m.created_at
    from @extschema@.conversations c
    left join @extschema@.messages m
        on m.conversation_id operator(pg_catalog.=) c.id
        -- Case, not coalesce: see list_conversations.
        and m.sequence_number operator(pg_catalog.>) case when after_sequence is null then 0 else after_sequence end
    where c.id operator(pg_catalog.=) conv_id and c.deleted_at is null
    and (after_sequence is null or m.id is not null)
    order by m.sequence_number
    limit max_messages;
$$;
comment on function @extschema@.get_conversation_with_messages(uuid, integer, integer) is
'A conversation with its messages in order; one row without a message for an empty one. Pages by
after_sequence and max_messages, with no row past the end.';

create function @extschema@.get_conversation_history(continuation_id text, "limit" integer default 100)
returns table (
    message_id uuid,
    role text,
    content text,
    parts jsonb,
    sequence_number integer,
    metadata jsonb,
    created_at timestamptz
)
language sql stable parallel safe
as $$
    select l.id, l.role::pg_catalog.text, l.content, l.parts, l.sequence_number, l.metadata, l.created_at
    from (
        select m.*
        from @extschema@.conversations c
        join @extschema@.messages m on m.conversation_id operator(pg_catalog.=) c.id
        where c.tenant_id operator(pg_catalog.=) coalesce(
            (select @extschema@.current_tenant_id()), '00000000-0000-7000-8000-000000000001'
        )
        and c.continuation_id operator(pg_catalog.=) get_conversation_history.continuation_id
        and c.deleted_at is null
        order by m.sequence_number desc
        limit get_conversation_history."limit"
    ) l
    order by l.sequence_number;
$$;
comment on function @extschema@.get_conversation_history(text, integer) is
'The latest messages of the conversation of that name, oldest of them first; no rows for an unknown name.';
