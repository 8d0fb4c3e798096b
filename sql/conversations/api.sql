create function @extschema@.place_conversation() returns trigger
language c as 'MODULE_PATHNAME', 'place_conversation';
comment on function @extschema@.place_conversation() is
'Trigger: fills owner, tenant, names, title and visibility where they are absent.';

create function @extschema@.check_owner() returns trigger
language c as 'MODULE_PATHNAME', 'check_owner';
comment on function @extschema@.check_owner() is
'Trigger: lets a conversation change hands within its tenant only.';

create function @extschema@.place_member() returns trigger
language c as 'MODULE_PATHNAME', 'place_member';
comment on function @extschema@.place_member() is
'Trigger: takes the tenant from the conversation; a user of another tenant does not exist.';

create function @extschema@.create_conversation(
    title text default null,
    session_id text default null,
    continuation_id text default null,
    visibility text default null,
    metadata jsonb default '{}'
) returns uuid
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into @extschema@.conversations (title, session_id, continuation_id, visibility, metadata)
    values (title, session_id, continuation_id, visibility, coalesce(metadata, '{}'))
    returning id;
$$;
comment on function @extschema@.create_conversation(text, text, text, text, jsonb) is
'Makes a conversation owned by the caller and returns its id.';

create function @extschema@.get_or_create_conversation(
    continuation_id text,
    title text default null,
    session_id text default null,
    visibility text default null,
    metadata jsonb default '{}'
) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    found_id uuid;
begin
    if get_or_create_conversation.continuation_id is null then
        raise exception 'continuation_id must not be null'
            using errcode = 'null_value_not_allowed', hint = 'Use create_conversation to get a new name.';
    end if;
    select c.id into found_id from @extschema@.conversations c
    where c.tenant_id = coalesce(@extschema@.current_tenant_id(), '00000000-0000-7000-8000-000000000001')
    and c.continuation_id = get_or_create_conversation.continuation_id and c.deleted_at is null;
    if found_id is null then
        insert into @extschema@.conversations
        (continuation_id, title, session_id, visibility, metadata)
        values (
            get_or_create_conversation.continuation_id, get_or_create_conversation.title,
            get_or_create_conversation.session_id, get_or_create_conversation.visibility,
            coalesce(get_or_create_conversation.metadata, '{}')
        )
        on conflict do nothing
        returning id into found_id;
    end if;
    if found_id is null then
        -- Another session was faster: it has committed, and this statement sees its row.
        select c.id into found_id from @extschema@.conversations c
        where c.tenant_id = coalesce(@extschema@.current_tenant_id(), '00000000-0000-7000-8000-000000000001')
        and c.continuation_id = get_or_create_conversation.continuation_id and c.deleted_at is null;
    end if;
    if found_id is null then
        raise exception 'continuation_id "%" or the session_id is taken',
            get_or_create_conversation.continuation_id
            using errcode = 'unique_violation', hint = 'Use another name, or ask its owner to share it.';
    end if;
    return found_id;
end;
$$;
comment on function @extschema@.get_or_create_conversation(text, text, text, text, jsonb) is
'The conversation of that name in the caller''s tenant, made if it is not there; safe to call at once.';

create function @extschema@.list_conversations(
    max_rows integer default 50,
    before timestamptz default null,
    before_id uuid default null,
    archived boolean default false
) returns table (
    conversation_id uuid,
    session_id text,
    continuation_id text,
    title text,
    visibility text,
    is_pinned boolean,
    message_count integer,
    created_at timestamptz,
    updated_at timestamptz
)
language sql stable parallel safe
as $$
    select c.id, c.session_id, c.continuation_id, c.title, c.visibility, c.is_pinned, c.last_sequence,
        c.created_at, c.updated_at
    from @extschema@.conversations c
    where c.tenant_id operator(pg_catalog.=) (select @extschema@.current_tenant_id())
    and c.user_id operator(pg_catalog.=) (select @extschema@.current_user_id())
    and c.is_archived operator(pg_catalog.=) archived
    and c.deleted_at is null
    -- Case, not coalesce: the planner takes coalesce for leaky, and behind policies such a condition
    -- does not reach the index.
    and row(c.updated_at, c.id) operator(pg_catalog.<) row(
        case when before is null then 'infinity' else before end,
        case when before_id is null then '00000000-0000-0000-0000-000000000000' else before_id end
    )
    order by c.updated_at desc, c.id desc
    limit max_rows;
$$;
comment on function @extschema@.list_conversations(integer, timestamptz, uuid, boolean) is
'The caller''s own conversations, latest first; updated_at and conversation_id of the last row are
before and before_id of the next page.';

create function @extschema@.archive_conversation(conversation_id uuid, archived boolean default true)
returns boolean
language sql set search_path = pg_catalog, pg_temp
as $$
    with changed as (
        update @extschema@.conversations c
        set is_archived = coalesce(archive_conversation.archived, true)
        where c.id = archive_conversation.conversation_id and c.deleted_at is null
        returning 1
    )
    select exists (select from changed);
$$;
comment on function @extschema@.archive_conversation(uuid, boolean) is
'Hides a conversation from the list, or shows it again; false when the caller has no such conversation.';

create function @extschema@.delete_conversation(conversation_id uuid) returns boolean
language sql set search_path = pg_catalog, pg_temp
as $$
    with changed as (
        update @extschema@.conversations c
        set deleted_at = now()
        where c.id = delete_conversation.conversation_id and c.deleted_at is null
        returning 1
    )
    select exists (select from changed);
$$;
comment on function @extschema@.delete_conversation(uuid) is
'Deletes a conversation for everybody; its owner can still see the rows until they are purged.';

create function @extschema@.purge_conversation(conversation_id uuid) returns boolean
language sql set search_path = pg_catalog, pg_temp
as $$
    with changed as (
        delete from @extschema@.conversations c
        where c.id = purge_conversation.conversation_id
        returning 1
    )
    select exists (select from changed);
$$;
comment on function @extschema@.purge_conversation(uuid) is
'Removes a conversation and its messages for good; false when the caller has no such conversation.';

create function @extschema@.add_member(conversation_id uuid, user_id uuid, role text default 'viewer')
returns boolean
language c as 'MODULE_PATHNAME', 'add_member';
comment on function @extschema@.add_member(uuid, uuid, text) is
'Lets a user of the tenant into a conversation as owner, editor or viewer; false when he is in it already.';

create function @extschema@.set_member_role(conversation_id uuid, user_id uuid, role text) returns boolean
language c as 'MODULE_PATHNAME', 'set_member_role';
comment on function @extschema@.set_member_role(uuid, uuid, text) is
'Changes what a member may do; false when he has that role already.';

create function @extschema@.remove_member(conversation_id uuid, user_id uuid default null) returns boolean
language c as 'MODULE_PATHNAME', 'remove_member';
comment on function @extschema@.remove_member(uuid, uuid) is
'Takes a member out of a conversation, the caller himself if nobody is named; false when he is no member.';

create function @extschema@.transfer_conversation(conversation_id uuid, user_id uuid) returns boolean
language c as 'MODULE_PATHNAME', 'transfer_conversation';
comment on function @extschema@.transfer_conversation(uuid, uuid) is
'Gives a conversation to another user of the tenant, beside whom the owner stays as editor; false when it is his.';

comment on function @extschema@.list_members(uuid) is
'Who is in a conversation, its owner first; for whoever reads it.';
