create function @extschema@.expect_access(internal) returns internal
language c strict as 'MODULE_PATHNAME', 'expect_access';
comment on function @extschema@.expect_access(internal) is
'For the planner: most rows that a policy is asked about are the caller''s.';

create function @extschema@.has_conversation_access(conversation_id uuid, user_id uuid, level text)
returns boolean
language c stable parallel safe cost 20 support expect_access
as 'MODULE_PATHNAME', 'has_conversation_access';
create function @extschema@.has_conversation_access(
    conversation_id uuid,
    user_id uuid,
    level text,
    tenant_id uuid,
    owner_id uuid,
    visibility text,
    deleted_at timestamptz
) returns boolean
language c stable parallel safe cost 10 support expect_access
as 'MODULE_PATHNAME', 'has_conversation_access_by_row';
comment on function @extschema@.has_conversation_access(uuid, uuid, text) is
'Whether the caller, named by his users.id, may read, write or manage a conversation.';
comment on function @extschema@.has_conversation_access(
    uuid, uuid, text, uuid, uuid, text, timestamptz
) is 'The same for a row of conversations at hand.';
-- What each profile may do, table by table. Policies decide on rows; these are the verbs and
-- columns. Numbers and tenants are never the caller's to choose.
create function @extschema@.grant_access(role text, profile text default 'member') returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    privilege record;
    message_columns constant text := 'id, conversation_id, role, status, content, parts, parent_id, '
        'client_message_id, prompt_token_count, completion_token_count, model_used, latency_ms, error, '
        'metadata, created_at, completed_at';
    conversation_columns constant text := 'session_id, continuation_id, title, visibility, is_archived, '
        'is_pinned, tags, summary, expires_at, metadata';
begin
    if profile is null or profile not in ('member', 'service') then
        raise exception 'unknown profile "%"', profile
            using errcode = 'invalid_parameter_value', hint = 'Use member or service.';
    end if;
    if role is null or not exists (select from pg_roles r where r.rolname = grant_access.role) then
        raise exception 'role "%" does not exist', role
            using errcode = 'undefined_object', hint = 'Create the role first.';
    end if;
    if profile = 'service' and not exists (
        select from pg_roles r
        where r.rolname = grant_access.role and (r.rolsuper or r.rolbypassrls)
    ) then
        raise exception 'role "%" does not bypass row level security', role
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'A service acts for every tenant. Run ALTER ROLE ... BYPASSRLS as a superuser.';
    end if;
    if not exists (
        select from pg_class c
        where c.oid = to_regclass('@extschema@.schema_version') and pg_has_role(c.relowner, 'usage')
    ) then
        raise exception 'only the owner of the tables may grant access to them'
            using errcode = 'insufficient_privilege',
                hint = 'Run it as the role that ran CREATE EXTENSION.';
    end if;

    execute format('grant usage on schema %s to %I', '@extschema@', role);
    for privilege in
        select p.verbs, p.object
        from (values
            ('member', 'select', 'tenants'),
            ('member', 'select, update (name, preferences, last_active_at)', 'users'),
            ('member', 'select, delete', 'conversations'),
            ('member', 'insert (id, user_id, created_at, ' || conversation_columns || ')', 'conversations'),
            ('member', 'update (deleted_at, ' || conversation_columns || ')', 'conversations'),
            ('member', 'select', 'conversation_members'),
            ('member', 'select, insert (' || message_columns || ')', 'messages'),
            ('member', 'select, insert (message_id, chunk_index, is_final, chunk_content)', 'message_chunks'),
            ('service', 'select, insert, update', 'tenants'),
            ('service', 'select, insert, update', 'users'),
            ('service', 'select, delete', 'conversations'),
            ('service', 'insert (id, tenant_id, user_id, created_at, ' || conversation_columns || ')',
                'conversations'),
            ('service', 'update (user_id, deleted_at, ' || conversation_columns || ')', 'conversations'),
            ('service', 'select, delete, insert (conversation_id, user_id, role, created_at), update (role)',
                'conversation_members'),
            ('service', 'select, delete, insert (' || message_columns || ')', 'messages'),
            ('service', 'update (status, content, parts, prompt_token_count, completion_token_count, '
                'model_used, latency_ms, error, metadata, completed_at)', 'messages'),
            ('service', 'select, delete, insert (message_id, chunk_index, is_final, chunk_content)',
                'message_chunks'),
            ('service', 'select', 'schema_version')
        ) as p (profile, verbs, object)
        where p.profile = grant_access.profile
    loop
        execute format('grant %s on %s.%I to %I', privilege.verbs, '@extschema@', privilege.object, role);
    end loop;
end;
$$;
comment on function @extschema@.grant_access(text, text) is
'Grants a role what a profile needs: member for people behind row level security, service for backends.';
