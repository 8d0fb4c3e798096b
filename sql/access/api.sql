create function @extschema@.expect_access(internal) returns internal
language c strict as 'MODULE_PATHNAME', 'expect_access';
comment on function @extschema@.expect_access(internal) is
'For the planner: most rows that a policy is asked about are the caller''s.';

create function @extschema@.find_access(internal) returns internal
language c strict as 'MODULE_PATHNAME', 'find_access';
comment on function @extschema@.find_access(internal) is
'For the planner: the same, and where to look for the rows of a query that names none.';

create function @extschema@.expect_list(internal) returns internal
language c strict as 'MODULE_PATHNAME', 'expect_list';
comment on function @extschema@.expect_list(internal) is 'For the planner: what a list of conversations costs.';

create function @extschema@.readable_conversations(user_id uuid) returns uuid []
language c stable strict parallel safe support expect_list
as 'MODULE_PATHNAME', 'readable_conversations';
comment on function @extschema@.readable_conversations(uuid) is
'Ids among which are all conversations that the caller, named by his users.id, may read.';

create function @extschema@.has_conversation_access(conversation_id uuid, user_id uuid, level text)
returns boolean
language c stable parallel safe cost 20 support find_access
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
language c stable parallel safe cost 10 support find_access
as 'MODULE_PATHNAME', 'has_conversation_access_by_row';
comment on function @extschema@.has_conversation_access(uuid, uuid, text) is
'Whether the caller, named by his users.id, may read, write or manage a conversation.';
comment on function @extschema@.has_conversation_access(
    uuid, uuid, text, uuid, uuid, text, timestamptz
) is 'The same for a row of conversations at hand.';
comment on function @extschema@.note_access(text, text) is 'Notes which profile a role has.';
comment on function @extschema@.require_owner() is
'Raises an error unless the caller owns the tables of the extension.';

-- What each profile may do, table by table. Policies decide on rows; these are the verbs and
-- columns. Numbers, tenants and authors are never a member's to choose. An upsert sets the key, which a
-- trigger keeps as it is.
create function @extschema@.access_privileges()
returns table (profile text, verbs text, relation text)
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    with columns (of_new_messages, of_conversations, of_chunks, of_feedback) as (values (
        'id, conversation_id, role, status, content, parts, parent_id, client_message_id, '
        'prompt_token_count, completion_token_count, model_used, latency_ms, error, metadata, '
        'created_at, completed_at',
        'session_id, continuation_id, title, visibility, is_archived, is_pinned, tags, summary, '
        'expires_at, metadata',
        'message_id, chunk_index, is_final, chunk_content',
        'message_id, user_id, rating, comment, metadata'
    ))
    select p.profile, p.verbs, p.relation
    from columns c
    cross join lateral (values
        ('member', 'select', 'tenants'),
        ('member', 'select, update (name, preferences, last_active_at)', 'users'),
        ('member', 'select, delete', 'conversations'),
        ('member', 'insert (id, user_id, created_at, ' || c.of_conversations || ')', 'conversations'),
        ('member', 'update (id, deleted_at, ' || c.of_conversations || ')', 'conversations'),
        ('member', 'select', 'conversation_members'),
        ('member', 'select, insert (' || c.of_new_messages || '), update (content, parts)', 'messages'),
        ('member', 'select', 'message_revisions'),
        ('member', 'select, insert (' || c.of_chunks || ')', 'message_chunks'),
        ('member', 'select, insert (' || c.of_feedback || '), update (' || c.of_feedback || ')', 'feedback'),
        ('member', 'select', 'feedback_counts'),
        ('service', 'select, insert, update', 'tenants'),
        ('service', 'select, insert, update', 'users'),
        ('service', 'select, delete', 'conversations'),
        ('service', 'insert (id, tenant_id, user_id, created_at, ' || c.of_conversations || ')',
            'conversations'),
        ('service', 'update (id, user_id, deleted_at, ' || c.of_conversations || ')', 'conversations'),
        ('service', 'select, delete, insert (conversation_id, user_id, role, created_at), update (role)',
            'conversation_members'),
        ('service', 'select, delete, insert (author_id, ' || c.of_new_messages || ')', 'messages'),
        ('service', 'update (status, content, parts, prompt_token_count, completion_token_count, '
            'model_used, latency_ms, error, metadata, completed_at)', 'messages'),
        ('service', 'select', 'message_revisions'),
        ('service', 'select, delete, insert (' || c.of_chunks || ')', 'message_chunks'),
        ('service', 'select, delete, insert (id, created_at, ' || c.of_feedback || ')', 'feedback'),
        ('service', 'update (' || c.of_feedback || ')', 'feedback'),
        ('service', 'select', 'feedback_counts'),
        -- A reservation takes more columns than this one: the functions ask for it, a statement cannot use it.
        ('service', 'select, insert (id)', 'token_reservations'),
        ('service', 'select', 'token_windows'),
        ('service', 'select', 'rate_states'),
        ('member', 'select', 'usage_events'),
        ('member', 'select', 'usage_days'),
        ('member', 'select', 'usage_totals'),
        ('member', 'select', 'usage_months'),
        ('member', 'select', 'usage_metrics'),
        ('member', 'select', 'usage_by_month'),
        ('member', 'select', 'current_day_usage'),
        ('service', 'select, insert (tenant_id, user_id, model, usage, idempotency_key, occurred_at)',
            'usage_events'),
        ('service', 'select', 'usage_days'),
        ('service', 'select', 'usage_totals'),
        ('service', 'select', 'usage_months'),
        ('service', 'select', 'usage_metrics'),
        ('service', 'select', 'usage_by_month'),
        ('service', 'select', 'current_day_usage'),
        ('service', 'select, insert, update, delete', 'model_prices'),
        ('service', 'select', 'access_profiles'),
        ('service', 'select', 'schema_version'),
        ('service', 'select, update (every, enabled)', 'maintenance_runs'),
        ('syncer', 'select, insert', 'tenants'),
        ('syncer', 'select, insert, update', 'users'),
        ('syncer', 'select, insert (id, tenant_id, user_id, created_at, ' || c.of_conversations || ')',
            'conversations'),
        ('syncer', 'update (deleted_at, ' || c.of_conversations || ')', 'conversations'),
        ('syncer', 'select', 'conversation_members'),
        ('syncer', 'select, insert (author_id, ' || c.of_new_messages || ')', 'messages'),
        ('syncer', 'update (status, content, parts, error, metadata, completed_at)', 'messages'),
        ('syncer', 'select', 'message_chunks'),
        ('syncer', 'select', 'schema_version'),
        ('monitor', 'select', 'access_profiles'),
        ('monitor', 'select', 'schema_version'),
        ('service', 'select', 'stats'),
        ('service', 'select', 'stats_tables'),
        ('service', 'select', 'stats_indexes'),
        ('monitor', 'select', 'stats'),
        ('monitor', 'select', 'stats_tables'),
        ('monitor', 'select', 'stats_indexes'),
        ('monitor', 'select', 'usage_totals'),
        ('monitor', 'select', 'usage_months'),
        ('monitor', 'select (tenant_id, date, model, slot, prompt_tokens, completion_tokens, request_count, '
            'unpriced_count, cost)', 'usage_days'),
        ('monitor', 'select (tenant_id, rating, created_at)', 'feedback'),
        ('monitor', 'select', 'maintenance_runs')
    ) as p (profile, verbs, relation);
$$;
comment on function @extschema@.access_privileges() is
'What grant_access grants: verbs and columns, by profile and table.';

create function @extschema@.revoke_all(role text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    held record;
begin
    perform @extschema@.require_owner();
    -- The owner of the tables keeps what he has.
    for held in
        select distinct p.relation from @extschema@.access_privileges() p
        join pg_class c on c.oid = to_regclass(format('%s.%I', '@extschema@', p.relation))
        join pg_roles r on r.rolname = revoke_all.role and r.oid <> c.relowner
    loop
        execute format('revoke all on %s.%I from %I cascade', '@extschema@', held.relation, role);
    end loop;
end;
$$;
comment on function @extschema@.revoke_all(text) is
'Takes back what a role holds on the tables of the extension; revoke_access also remembers it.';

create function @extschema@.grant_access(role text, profile text default 'member') returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    privilege record;
begin
    if profile is null or profile not in ('anon', 'member', 'service', 'syncer', 'monitor') then
        raise exception 'unknown profile "%"', profile
            using errcode = 'invalid_parameter_value',
                hint = 'Use anon, member, service, syncer or monitor.';
    end if;
    if role is null or not exists (select from pg_roles r where r.rolname = grant_access.role) then
        raise exception 'role "%" does not exist', role
            using errcode = 'undefined_object', hint = 'Create the role first.';
    end if;
    if profile in ('service', 'syncer') and not exists (
        select from pg_roles r
        where r.rolname = grant_access.role and (r.rolsuper or r.rolbypassrls)
    ) then
        raise exception 'role "%" does not bypass row level security', role
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'It acts for every tenant. Run ALTER ROLE ... BYPASSRLS as a superuser.';
    end if;
    if exists (
        select from @extschema@.access_privileges() p where to_regclass(format('%s.%I', '@extschema@', p.relation)) is null
    ) then
        raise exception 'the tables of pg_conversation are missing or of an older version'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run migrate() as the owner of the extension.';
    end if;
    perform @extschema@.note_access(role, profile);

    -- Exactly the profile: another one, or the default privileges of a database, may have left more.
    perform @extschema@.revoke_all(role);
    execute format('grant usage on schema %s to %I', '@extschema@', role);
    for privilege in
        select p.verbs, p.relation from @extschema@.access_privileges() p
        where p.profile = grant_access.profile
    loop
        execute format('grant %s on %s.%I to %I', privilege.verbs, '@extschema@', privilege.relation, role);
    end loop;
end;
$$;
comment on function @extschema@.grant_access(text, text) is
'Grants a role what a profile needs, and takes back what else it holds on the tables: member for people behind row
level security, service and syncer for programs, monitor for watching, anon for nothing yet.';

create function @extschema@.revoke_access(role text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if role is null or not exists (select from pg_roles r where r.rolname = revoke_access.role) then
        raise exception 'role "%" does not exist', role
            using errcode = 'undefined_object', hint = 'Check the name.';
    end if;
    perform @extschema@.note_access(role, 'none');
    perform @extschema@.revoke_all(role);
end;
$$;
comment on function @extschema@.revoke_access(text) is
'Takes back every privilege of a role on the tables of the extension; migrate() does not grant it anything again.';

create function @extschema@.adopt_dumped_profile() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    delete from @extschema@.access_profiles p where p.role_name = new.role_name;
    return new;
end;
$$;
comment on function @extschema@.adopt_dumped_profile() is
'Trigger: the last word about a role counts, also when a dump of data alone brings it.';
