create function @extschema@.has_message_access(message_id uuid, user_id uuid, level text) returns boolean
language c stable parallel safe cost 20 support expect_access
as 'MODULE_PATHNAME', 'has_message_access';
comment on function @extschema@.has_message_access(uuid, uuid, text) is
'Whether the caller, named by his users.id, may read or write the conversation of a message.';

create function @extschema@.place_chunk() returns trigger
language c as 'MODULE_PATHNAME', 'place_chunk';
comment on function @extschema@.place_chunk() is
'Trigger: refuses chunks of messages that do not exist or are finished; numbers those without an index.';

create function @extschema@.complete_streams() returns trigger
language c as 'MODULE_PATHNAME', 'complete_streams';
comment on function @extschema@.complete_streams() is
'Trigger: completes messages whose final chunk and all before it are there.';

create function @extschema@.remove_chunks() returns trigger
language c as 'MODULE_PATHNAME', 'remove_chunks';
comment on function @extschema@.remove_chunks() is 'Trigger: removes the chunks of a deleted message.';

create function @extschema@.begin_message(
    conversation_id uuid,
    role text default 'assistant',
    parent_id uuid default null,
    client_message_id text default null,
    model text default null,
    metadata jsonb default null,
    reserve_tokens bigint default null
) returns uuid
language c as 'MODULE_PATHNAME', 'begin_message';
comment on function @extschema@.begin_message(uuid, text, uuid, text, text, jsonb, bigint) is
'Begins a streamed message and returns its id; with a client_message_id, a retry returns the first one. With
reserve_tokens, only if the tenant has as many left today, which finish_message settles.';

create function @extschema@.append_chunk(
    message_id uuid,
    content text,
    chunk_index integer default null,
    is_final boolean default false,
    out next_index integer,
    out stop_requested boolean
)
language c as 'MODULE_PATHNAME', 'append_chunk';
comment on function @extschema@.append_chunk(uuid, text, integer, boolean) is
'Adds a piece of text to a message. With a chunk_index, sending it again writes nothing, and a gap is an error
that names the expected index.';

create function @extschema@.append_chunks(
    message_id uuid,
    contents text[],
    first_index integer default null,
    is_final boolean default false,
    out next_index integer,
    out stop_requested boolean
)
language c as 'MODULE_PATHNAME', 'append_chunks';
comment on function @extschema@.append_chunks(uuid, text[], integer, boolean) is
'Adds several pieces of text to a message at once, the first of them at first_index.';

create function @extschema@.finish_message(
    message_id uuid,
    prompt_tokens integer default null,
    completion_tokens integer default null,
    model text default null,
    latency_ms integer default null,
    metadata jsonb default null
) returns void
language c as 'MODULE_PATHNAME', 'finish_message';
comment on function @extschema@.finish_message(uuid, integer, integer, text, integer, jsonb) is
'Completes a streamed message and notes its figures; each figure is written once.';

create function @extschema@.fail_message(message_id uuid, error text) returns void
language c as 'MODULE_PATHNAME', 'fail_message';
comment on function @extschema@.fail_message(uuid, text) is
'Ends a streamed message that went wrong; the text so far is kept.';

create function @extschema@.stop_message(message_id uuid, seen_chars integer default null) returns void
language c as 'MODULE_PATHNAME', 'stop_message';
comment on function @extschema@.stop_message(uuid, integer) is
'Ends a streamed message for its reader, cut to the characters he has seen if he says how many; the producer
is told by its next append.';

create function @extschema@.resume_message(message_id uuid) returns integer
language c as 'MODULE_PATHNAME', 'resume_message';
comment on function @extschema@.resume_message(uuid) is
'Takes up a streamed message again after an interruption; returns the index to go on from.';

create function @extschema@.reconstruct_message(msg_id uuid) returns text
language c stable parallel safe as 'MODULE_PATHNAME', 'reconstruct_message';
comment on function @extschema@.reconstruct_message(uuid) is
'The text of a message at any time: while it is streamed, after, and after clean-up.';

create function @extschema@.read_stream(
    message_id uuid,
    after_index integer default -1,
    max_chunks integer default 1000
) returns table (chunk_index integer, content text, is_final boolean, status text, whole boolean)
language c stable parallel safe as 'MODULE_PATHNAME', 'read_stream';
comment on function @extschema@.read_stream(uuid, integer, integer) is
'What follows an index, without a gap; is_final in the last row of a message that has ended. A row marked whole
holds all of the text, in place of what was read before.';

create function @extschema@.wait_for_chunks(
    message_id uuid,
    after_index integer default -1,
    timeout_ms integer default 30000,
    max_chunks integer default 1000
) returns table (chunk_index integer, content text, is_final boolean, status text, whole boolean)
language c as 'MODULE_PATHNAME', 'wait_for_chunks';
comment on function @extschema@.wait_for_chunks(uuid, integer, integer, integer) is
'The same as read_stream, as soon as there is a row; none when the time is over.';

create function @extschema@.listen_conversation(conversation_id uuid) returns text
language c as 'MODULE_PATHNAME', 'listen_conversation';
comment on function @extschema@.listen_conversation(uuid) is
'Begins to LISTEN to the streams of a conversation and returns the channel; notices carry the message id.';

create function @extschema@.unlisten_conversation(conversation_id uuid) returns void
language c as 'MODULE_PATHNAME', 'unlisten_conversation';
comment on function @extschema@.unlisten_conversation(uuid) is 'Ends what listen_conversation began.';

create function @extschema@.recover_stalled_messages(
    idle interval default '90 s',
    max_messages integer default 1000
) returns integer
language c as 'MODULE_PATHNAME', 'recover_stalled_messages';
comment on function @extschema@.recover_stalled_messages(interval, integer) is
'Marks streams without a new chunk for that long as interrupted and keeps their text; returns how many.';

create function @extschema@.cleanup_streaming_artifacts(msg_id uuid) returns integer
language c as 'MODULE_PATHNAME', 'cleanup_streaming_artifacts';
comment on function @extschema@.cleanup_streaming_artifacts(uuid) is
'Deletes the chunks of a finished message, whose text stays; returns how many.';

create function @extschema@.cleanup_finished_streams(
    older_than interval default '1 hour',
    max_messages integer default 100
) returns integer
language c as 'MODULE_PATHNAME', 'cleanup_finished_streams';
comment on function @extschema@.cleanup_finished_streams(interval, integer) is
'Deletes the chunks of messages that finished longer ago, skipping those in use, and of messages that are gone;
returns how many.';

create function @extschema@.enable_realtime(
    publication text default 'supabase_realtime',
    include_chunks boolean default false
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
begin
    if publication is null then
        raise exception 'publication must not be null'
            using errcode = 'null_value_not_allowed', hint = 'Name it, or leave the argument out.';
    end if;
    if not exists (select from pg_publication p where p.pubname = publication) then
        execute format('create publication %I', publication);
    end if;
    select string_agg(c.oid::regclass::text, ', ' order by c.relname) into missing
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.oid = '@extschema@'::regnamespace and (
        c.relname in ('conversations', 'messages') or (c.relname = 'message_chunks' and include_chunks)
    )
    and not exists (
        select from pg_publication_tables p
        where p.pubname = publication and p.schemaname = n.nspname and p.tablename = c.relname
    );
    if missing is not null then
        execute format('alter publication %I add table %s', publication, missing);
    end if;
end;
$$;
comment on function @extschema@.enable_realtime(text, boolean) is
'Adds conversations and messages to a publication, and chunks if asked; makes the publication if there is none.';

create function @extschema@.disable_realtime(publication text default 'supabase_realtime') returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    present text;
begin
    select string_agg(r.prrelid::regclass::text, ', ') into present
    from pg_publication_rel r
    join pg_publication p on p.oid = r.prpubid
    where p.pubname = publication and r.prrelid in (
        select c.oid from pg_class c
        where c.relnamespace = '@extschema@'::regnamespace
        and c.relname in ('conversations', 'messages', 'message_chunks')
    );
    if present is not null then
        execute format('alter publication %I drop table %s', publication, present);
    end if;
end;
$$;
comment on function @extschema@.disable_realtime(text) is
'Takes conversations, messages and chunks out of a publication.';
