-- Both sides of the comparison: the extension in schema public, and in schema plain the same tables
-- without its triggers and policies, with the functions that a good developer would write on them.
-- The policies in schema plain are for rows about access and bind bench_naive alone.
create extension pg_conversation;

do $$
begin
    if to_regrole('bench_member') is null then
        create role bench_member login;
        create role bench_bypass login bypassrls;
    end if;
    if to_regrole('bench_gateway') is null then
        create role bench_naive login;
        create role bench_gateway login noinherit;
        grant bench_member, bench_bypass, bench_naive to bench_gateway;
    end if;
    if to_regrole('bench_service') is null then
        create role bench_service login bypassrls;
    end if;
end;
$$;
select grant_access('bench_member');
select grant_access('bench_bypass');
select grant_access('bench_service', 'service');

create schema plain;

create type plain.message_role as enum ('user', 'assistant', 'system', 'tool', 'developer');
create type plain.message_status as enum (
    'pending', 'streaming', 'completed', 'stopped', 'failed', 'interrupted'
);

create table plain.tenants (like public.tenants including all);
create table plain.users (like public.users including all);
create table plain.conversations (like public.conversations including all);
create table plain.conversation_members (like public.conversation_members including all);
create table plain.messages (like public.messages including all);

-- A dump of this schema must stand alone.
drop index plain.messages_created_at_idx;
drop index plain.messages_tenant_id_created_at_conversation_id_id_idx;
alter table plain.messages
alter column status drop default,
alter column role type plain.message_role using role::text::plain.message_role,
alter column status type plain.message_status using status::text::plain.message_status,
alter column status set default 'completed';
create index on plain.messages (tenant_id, created_at) include (conversation_id, id) where role = 'assistant';

alter table plain.tenants alter column id set default gen_random_uuid();
alter table plain.users alter column id set default gen_random_uuid();
alter table plain.conversations alter column id set default gen_random_uuid();
alter table plain.messages alter column id set default gen_random_uuid();

alter table plain.users add foreign key (tenant_id) references plain.tenants (id);
alter table plain.conversations
add foreign key (tenant_id) references plain.tenants (id),
add foreign key (user_id) references plain.users (id);
alter table plain.conversation_members
add foreign key (conversation_id) references plain.conversations (id) on delete cascade,
add foreign key (user_id) references plain.users (id) on delete cascade;
alter table plain.messages
add foreign key (conversation_id) references plain.conversations (id) on delete cascade,
add foreign key (parent_id) references plain.messages (id) on delete set null;

create function plain.get_conversation_with_messages(conv_id uuid) returns table (
    conversation_id uuid,
    session_id text,
    title text,
    message_id uuid,
    role text,
    content text,
    sequence_number integer,
    message_created_at timestamptz
)
language plpgsql stable parallel safe
as $$
begin
    return query
    select c.id, c.session_id, c.title, m.id, m.role::text, m.content, m.sequence_number, m.created_at
    from plain.conversations c
    left join plain.messages m on m.conversation_id = c.id
    where c.id = conv_id and c.deleted_at is null
    order by m.sequence_number;
end;
$$;

create function plain.add_message(
    conv_id uuid,
    content text,
    out message_id uuid,
    out sequence_number integer
)
language plpgsql
as $$
#variable_conflict use_column
declare
    tenant uuid;
begin
    update plain.conversations c
    set last_sequence = c.last_sequence + 1, updated_at = greatest(c.updated_at, now())
    where c.id = conv_id and c.deleted_at is null
    returning c.last_sequence, c.tenant_id into add_message.sequence_number, tenant;
    insert into plain.messages (conversation_id, tenant_id, sequence_number, role, content)
    values (conv_id, tenant, add_message.sequence_number, 'user', add_message.content)
    returning id into add_message.message_id;
end;
$$;

grant usage on schema plain to bench_bypass;
grant select, insert, update, delete on all tables in schema plain to bench_bypass;

-- What some rows need besides.
create schema side;
create table side.trickle (n bigint not null);
insert into side.trickle values (0);
create table side.new_id (id uuid primary key default public.new_id(), payload text);
create table side.gen_random_uuid (id uuid primary key default gen_random_uuid(), payload text);

-- Streaming as applications do it.
create table plain.message_chunks (
    id uuid primary key default gen_random_uuid(),
    message_id uuid not null references plain.messages (id) on delete cascade,
    chunk_index integer not null,
    chunk_content text not null,
    is_final boolean default false,
    created_at timestamptz default now()
);
create index on plain.message_chunks (message_id, chunk_index);
create index on plain.message_chunks (message_id, is_final);

create function plain.reconstruct_message(msg_id uuid) returns text
language plpgsql stable parallel safe
as $$
begin
    return (
        select string_agg(chunk_content, '' order by chunk_index)
        from plain.message_chunks where message_id = msg_id
    );
end;
$$;

grant select, insert, update, delete on plain.message_chunks to bench_bypass;

-- As much of it as can be left out.
create table side.chunks (
    message_id uuid not null,
    chunk_index integer not null,
    chunk_content text not null
);
create table side.chunks_with_key (like side.chunks, primary key (message_id, chunk_index));

-- A notification a row, to whoever listens to the message.
create table side.chunks_with_notice (like plain.message_chunks including all);
alter table side.chunks_with_notice
add foreign key (message_id) references plain.messages (id) on delete cascade;
create function side.notify_of_chunk() returns trigger
language plpgsql
as $$
begin
    perform pg_notify('message_' || new.message_id, new.chunk_index::text);
    return null;
end;
$$;
create trigger notify_of_chunk after insert on side.chunks_with_notice
for each row execute function side.notify_of_chunk();

-- A whole conversation as one document.
create table side.documents (id uuid primary key, document jsonb not null);

grant usage on schema side to bench_bypass;
grant select, insert, update, delete on all tables in schema side to bench_bypass;

-- Usage as it is added up by hand: a row for each day of a user, with room on its page for its next versions.
create table plain.usage_metrics (
    tenant_id uuid not null references plain.tenants (id),
    user_id uuid references plain.users (id),
    date date not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    total_tokens bigint generated always as (prompt_tokens + completion_tokens) stored,
    request_count bigint not null,
    estimated_cost numeric not null,
    unique nulls not distinct (tenant_id, user_id, date)
) with (fillfactor = 50);

-- The ledger alone.
create table side.usage_events (like public.usage_events including all);

-- What a month comes to, in a row that somebody keeps.
create table side.usage_months (
    tenant_id uuid not null,
    month date not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    total_tokens bigint not null,
    request_count bigint not null,
    unpriced_count bigint not null,
    estimated_cost numeric not null,
    primary key (tenant_id, month)
);
alter table side.usage_months enable row level security;
create policy admins on side.usage_months for select
using (tenant_id = (select public.current_tenant_id()) and (select public.is_tenant_admin()));

-- Requests a minute and tokens a day, counted in the row of their window.
create table side.request_windows (
    tenant_id uuid not null,
    minute timestamptz not null,
    requests bigint not null,
    primary key (tenant_id, minute)
) with (fillfactor = 50);
create table side.token_windows (
    tenant_id uuid not null,
    date date not null,
    tokens bigint not null,
    primary key (tenant_id, date)
) with (fillfactor = 50);

-- Feedback that nobody counts.
create table plain.feedback (like public.feedback including all);
alter table plain.feedback
alter column id set default gen_random_uuid(),
add foreign key (message_id) references plain.messages (id) on delete cascade,
add foreign key (user_id) references plain.users (id) on delete cascade;

grant select, insert, update, delete on plain.usage_metrics, plain.feedback to bench_bypass;
grant select, insert, update, delete on all tables in schema side to bench_bypass;
grant usage on schema side to bench_member;
grant select on side.usage_months to bench_member;
grant usage on schema plain, side to bench_service;
grant select, insert, update, delete on all tables in schema plain, side to bench_service;

-- Policies as they are written by hand, about a caller as Supabase's auth.uid() finds him.
create function plain.uid() returns uuid
language sql stable
as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
    )::uuid
$$;

alter table plain.conversations enable row level security;
create policy own on plain.conversations
using (user_id = plain.uid()) with check (user_id = plain.uid());

alter table plain.messages enable row level security;
create policy of_own_conversation on plain.messages
using (exists (
    select 1 from plain.conversations c
    where c.id = conversation_id and c.user_id = plain.uid()
))
with check (exists (
    select 1 from plain.conversations c
    where c.id = conversation_id and c.user_id = plain.uid()
));

alter table plain.message_chunks enable row level security;
create policy of_own_message on plain.message_chunks
using (exists (
    select 1 from plain.messages m
    join plain.conversations c on c.id = m.conversation_id
    where m.id = message_id and c.user_id = plain.uid()
))
with check (exists (
    select 1 from plain.messages m
    join plain.conversations c on c.id = m.conversation_id
    where m.id = message_id and c.user_id = plain.uid()
));

grant usage on schema plain to bench_naive, bench_gateway;
grant select, insert, update, delete on all tables in schema plain to bench_naive;
