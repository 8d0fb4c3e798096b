-- A stand-in for the database of a Supabase deployment: its roles, default privileges, schemas and
-- refusals, written from their public description. Run once in a new database by supabase_admin,
-- the superuser of such a server. Roles belong to the whole server and are made once.

do $$
declare
    wanted record;
begin
    for wanted in
        select * from (values
            -- Everybody's administrator: may do much, is no superuser.
            ('postgres', 'login createdb createrole replication bypassrls'),
            ('anon', 'nologin'),
            ('authenticated', 'nologin'),
            ('service_role', 'nologin bypassrls'),
            ('authenticator', 'login noinherit'),
            ('supabase_auth_admin', 'login noinherit createrole'),
            ('supabase_storage_admin', 'login noinherit createrole')
        ) as w (name, attributes)
    loop
        if to_regrole(wanted.name) is null then
            execute format('create role %I %s', wanted.name, wanted.attributes);
        end if;
    end loop;
end;
$$;

grant anon, authenticated, service_role to authenticator, postgres;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;
alter role supabase_admin set search_path = "$user", public, auth, extensions;
alter role supabase_auth_admin set search_path = auth;
alter role supabase_storage_admin set search_path = storage;

do $$
begin
    execute format('alter database %I owner to postgres', current_database());
    execute format('grant create on database %I to supabase_storage_admin', current_database());
end;
$$;

-- The schema of the API. Whatever its two administrators make is open to every role of the API.
grant usage on schema public to postgres, anon, authenticated, service_role;
alter default privileges for role postgres, supabase_admin in schema public
grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres, supabase_admin in schema public
grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role postgres, supabase_admin in schema public
grant all on sequences to postgres, anon, authenticated, service_role;

create schema extensions;
grant all on schema extensions to postgres;
grant usage on schema extensions to anon, authenticated, service_role;

-- PostgREST hears of every change of the schema.
create function extensions.pgrst_ddl_watch() returns event_trigger
language plpgsql
as $$
begin
    if exists (
        select from pg_event_trigger_ddl_commands() c
        where c.command_tag ~ '^(CREATE|ALTER) (SCHEMA|TABLE|VIEW|FUNCTION|TRIGGER|TYPE)|^COMMENT'
        and c.schema_name is distinct from 'pg_temp'
    ) then
        notify pgrst, 'reload schema';
    end if;
end;
$$;
create event trigger pgrst_ddl_watch on ddl_command_end
execute function extensions.pgrst_ddl_watch();

-- Who signs in.
create schema auth authorization supabase_admin;
grant all on schema auth to supabase_auth_admin;
grant usage on schema auth to postgres, anon, authenticated, service_role;

create table auth.users (
    instance_id uuid,
    id uuid not null primary key,
    aud varchar(255),
    role varchar(255),
    email varchar(255),
    encrypted_password varchar(255),
    email_confirmed_at timestamptz,
    last_sign_in_at timestamptz,
    raw_app_meta_data jsonb,
    raw_user_meta_data jsonb,
    is_super_admin boolean,
    phone text unique,
    banned_until timestamptz,
    is_sso_user boolean not null default false,
    deleted_at timestamptz,
    is_anonymous boolean not null default false,
    created_at timestamptz,
    updated_at timestamptz
);
create unique index users_email_partial_key on auth.users (email) where is_sso_user = false;
alter table auth.users owner to supabase_auth_admin;
alter table auth.users enable row level security;
grant insert, update, delete, truncate, references, trigger on auth.users to postgres;
grant select on auth.users to postgres with grant option;

create function auth.jwt() returns jsonb
language sql stable
as $$
    select nullif(current_setting('request.jwt.claims', true), '')::jsonb
$$;
create function auth.uid() returns uuid
language sql stable
as $$
    select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''), auth.jwt() ->> 'sub')::uuid
$$;
create function auth.role() returns text
language sql stable
as $$
    select coalesce(nullif(current_setting('request.jwt.claim.role', true), ''), auth.jwt() ->> 'role')
$$;
create function auth.email() returns text
language sql stable
as $$
    select coalesce(nullif(current_setting('request.jwt.claim.email', true), ''), auth.jwt() ->> 'email')
$$;

-- Files. The rows are the storage service's; to delete one elsewhere would leave its bytes behind.
create schema storage authorization supabase_admin;
grant all on schema storage to supabase_storage_admin with grant option;
grant usage on schema storage to postgres, anon, authenticated, service_role;

create table storage.buckets (
    id text not null primary key,
    name text not null unique,
    owner uuid,
    created_at timestamptz default now(),
    updated_at timestamptz default now(),
    public boolean default false,
    avif_autodetection boolean default false,
    file_size_limit bigint,
    allowed_mime_types text [],
    owner_id text
);
create table storage.objects (
    id uuid not null default gen_random_uuid() primary key,
    bucket_id text references storage.buckets (id),
    name text,
    owner uuid,
    created_at timestamptz default now(),
    updated_at timestamptz default now(),
    last_accessed_at timestamptz default now(),
    metadata jsonb,
    path_tokens text [] generated always as (string_to_array(name, '/')) stored,
    version text,
    owner_id text,
    user_metadata jsonb,
    unique (bucket_id, name)
);
alter table storage.buckets owner to supabase_storage_admin;
alter table storage.objects owner to supabase_storage_admin;
alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;
grant all on storage.buckets, storage.objects to anon, authenticated, service_role;
grant all on storage.buckets, storage.objects to postgres with grant option;

create function storage.foldername(name text) returns text []
language sql immutable
as $$
    select parts[1 : cardinality(parts) - 1] from string_to_array(name, '/') as parts
$$;
create function storage.filename(name text) returns text
language sql immutable
as $$
    select parts[cardinality(parts)] from string_to_array(name, '/') as parts
$$;
create function storage.extension(name text) returns text
language sql immutable
as $$
    select reverse(split_part(reverse(storage.filename(name)), '.', 1))
$$;
create function storage.protect_delete() returns trigger
language plpgsql
as $$
begin
    if current_setting('storage.allow_delete_query', true) is distinct from 'true' then
        raise exception 'rows of storage are deleted by the storage service only'
            using errcode = 'insufficient_privilege';
    end if;
    return null;
end;
$$;
create trigger protect_buckets_delete before delete on storage.buckets
for each statement execute function storage.protect_delete();
create trigger protect_objects_delete before delete on storage.objects
for each statement execute function storage.protect_delete();

-- Changes on their way to browsers: each is looked up again for each subscriber, as him.
create publication supabase_realtime;
alter publication supabase_realtime owner to postgres;

create schema realtime authorization supabase_admin;
create table realtime.subscription (
    id uuid not null default gen_random_uuid() primary key,
    entity regclass not null,
    claims jsonb not null
);

-- Takes a change in the words of wal2json, format 2. Roles and claims follow one another within one
-- statement, and the look-up is prepared once for all of them.
create function realtime.readers(change jsonb) returns setof uuid
language plpgsql
as $$
declare
    table_of regclass := format('%I.%I', change ->> 'schema', change ->> 'table')::regclass;
    subscriber realtime.subscription;
    sees boolean;
begin
    if change ->> 'action' = 'D' then
        -- A row that is gone cannot be looked up: everybody hears of it.
        return query select s.id from realtime.subscription s where s.entity = table_of;
        return;
    end if;
    execute (
        select format(
            'prepare reader_sees as select exists (select 1 from %s where %s)', table_of,
            string_agg(format('%I = %L', c ->> 'name', c ->> 'value'), ' and ')
        )
        from jsonb_array_elements(change -> 'columns') c
        where exists (
            select from jsonb_array_elements(change -> 'pk') k where k ->> 'name' = c ->> 'name'
        )
    );
    for subscriber in
        select * from realtime.subscription s where s.entity = table_of order by s.id
    loop
        perform
            set_config('role', subscriber.claims ->> 'role', true),
            set_config('request.jwt.claims', subscriber.claims::text, true);
        execute 'execute reader_sees' into sees;
        perform set_config('role', 'none', true);
        if sees then
            return next subscriber.id;
        end if;
    end loop;
    deallocate reader_sees;
    perform set_config('request.jwt.claims', '', true);
end;
$$;

-- Jobs, where the server has been told to load them for this database.
do $$
begin
    if current_setting('cron.database_name', true) = current_database() then
        create extension if not exists pg_cron;
        grant usage on schema cron to postgres;
    end if;
end;
$$;
