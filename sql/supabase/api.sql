comment on function @extschema@.storage_folder() is
'First folder of the caller in a file storage: the subject of his claims; null when he is locked out.';

create function @extschema@.deactivate_user() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    new.is_active := false;
    return new;
end;
$$;
comment on function @extschema@.deactivate_user() is 'Trigger: locks a user out who has lost his login.';

comment on function @extschema@.link_supabase() is
'Joins the tables to a Supabase-style deployment: users, buckets, storage policies, realtime and roles. Can be called
at any time, and says what it did.';

-- Each part is a statement or two that may be refused; the others go on.
create function @extschema@.link_parts() returns table (part text, done boolean, detail text)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    wanted text;
begin
    foreach wanted in array array['auth users', 'buckets', 'storage policies', 'realtime', 'grants'] loop
        part := wanted;
        begin
            -- What others have put on their tables would run with his rights.
            if wanted in ('auth users', 'buckets', 'storage policies')
            and exists (select from pg_roles r where r.rolname = current_user and r.rolsuper) then
                raise exception 'the tables belong to a superuser'
                    using errcode = 'insufficient_privilege',
                        hint = 'Create the extension as the administrator of the deployment.';
            end if;
            detail := case wanted
                when 'auth users' then @extschema@.link_auth_users()
                when 'buckets' then @extschema@.link_buckets()
                when 'storage policies' then @extschema@.link_storage_policies()
                when 'realtime' then @extschema@.link_realtime()
                when 'grants' then @extschema@.link_roles()
            end;
            done := true;
        exception
            when serialization_failure or deadlock_detected then
                raise;
            when others then
                done := false;
                detail := sqlerrm;
        end;
        return next;
    end loop;
end;
$$;
comment on function @extschema@.link_parts() is
'What link_supabase does, with the rights of whoever calls it.';

create function @extschema@.link_auth_users() returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    strangers bigint;
    is_valid boolean;
begin
    select c.convalidated into is_valid from pg_constraint c
    where c.conrelid = '@extschema@.users'::regclass and c.conname = 'users_auth_id_exists' and c.contype = 'f';
    if is_valid is null then
        -- Not valid at first: what is there may be from before, and must not stop what comes.
        alter table @extschema@.users add constraint users_auth_id_exists
        foreign key (auth_id) references auth.users (id) on delete set null not valid;
    elsif is_valid then
        return 'linked';
    end if;
    begin
        alter table @extschema@.users validate constraint users_auth_id_exists;
    exception when foreign_key_violation then
        select count(*) into strangers from @extschema@.users u
        where u.auth_id is not null and not exists (select from auth.users a where a.id = u.auth_id);
        return format('linked; %s users are not in auth.users', strangers);
    end;
    return 'linked';
end;
$$;
comment on function @extschema@.link_auth_users() is
'Part of link_supabase: ties users.auth_id to auth.users; whoever is deleted there is locked out here.';

create function @extschema@.link_buckets() returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    made bigint;
    open_to_all text;
begin
    with made_now as (
        insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
        values
        ('documents', 'documents', false, 104857600, array[
            'application/pdf', 'application/msword',
            'application/vnd.openxmlformats-officedocument.wordprocessingml.document', 'text/plain'
        ]),
        ('user-files', 'user-files', false, 52428800, array['text/*', 'application/pdf', 'image/*']),
        ('generated-files', 'generated-files', false, 10485760, array['text/*', 'application/json'])
        on conflict (id) do nothing
        returning 1
    )
    select count(*) into made from made_now;
    -- A public bucket is served without a question to any policy.
    select string_agg(b.id, ', ') into open_to_all from storage.buckets b
    where b.public and b.id in ('documents', 'user-files', 'generated-files');
    return format('%s made, %s were there', made, 3 - made) || coalesce('; public: ' || open_to_all, '');
end;
$$;
comment on function @extschema@.link_buckets() is
'Part of link_supabase: makes the buckets documents, user-files and generated-files, all private.';

create function @extschema@.link_storage_policies() returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    wanted record;
    condition constant text := format(
        'bucket_id = any (%%L) and (storage.foldername(name))[1] = (select %s.storage_folder())', '@extschema@'
    );
    own constant text := format(condition, '{documents,user-files}');
    readable constant text := format(condition, '{documents,user-files,generated-files}');
begin
    -- What the service has generated is for the user to read and to throw away.
    for wanted in
        select v.name, v.rule
        from (values
            ('pg_conversation_read', format('for select to authenticated using (%s)', readable)),
            ('pg_conversation_upload', format('for insert to authenticated with check (%s)', own)),
            ('pg_conversation_replace', format('for update to authenticated using (%s) with check (%s)', own, own)),
            ('pg_conversation_remove', format('for delete to authenticated using (%s)', readable))
        ) as v (name, rule)
    loop
        execute format('drop policy if exists %I on storage.objects', wanted.name);
        execute format('create policy %I on storage.objects %s', wanted.name, wanted.rule);
    end loop;
    return 'the first folder is the user''s';
end;
$$;
comment on function @extschema@.link_storage_policies() is
'Part of link_supabase: gives each user the folder of his name in the buckets.';

create function @extschema@.link_realtime() returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pg_publication p where p.pubname = 'supabase_realtime') then
        raise exception 'publication "supabase_realtime" does not exist'
            using errcode = 'undefined_object', hint = 'Create it, or call enable_realtime with another name.';
    end if;
    perform @extschema@.enable_realtime('supabase_realtime', include_chunks => true);
    return 'conversations, messages and message_chunks are published';
end;
$$;
comment on function @extschema@.link_realtime() is
'Part of link_supabase: publishes conversations, messages and chunks through supabase_realtime.';

create function @extschema@.link_roles() returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    known record;
    let_in text [] := array[]::text [];
begin
    for known in
        select v.role_name, v.profile
        from (values ('anon', 'anon'), ('authenticated', 'member'), ('service_role', 'service'))
            as v (role_name, profile)
        join pg_roles r on r.rolname = v.role_name
    loop
        -- Who was shut out on purpose stays out.
        if exists (
            select from @extschema@.access_profiles p
            where p.role_name = known.role_name and p.profile = 'none'
        ) then
            let_in := let_in || format('%s shut out', known.role_name);
        else
            perform @extschema@.grant_access(known.role_name, known.profile);
            let_in := let_in || format('%s as %s', known.role_name, known.profile);
        end if;
    end loop;
    if cardinality(let_in) = 0 then
        raise exception 'no role of the name anon, authenticated or service_role'
            using errcode = 'undefined_object', hint = 'Call grant_access for the roles that there are.';
    end if;
    return array_to_string(let_in, ', ');
end;
$$;
comment on function @extschema@.link_roles() is
'Part of link_supabase: lets anon, authenticated and service_role in.';
