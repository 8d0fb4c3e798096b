-- The data set: 10 tenants, 1,000 users, bench.conversations conversations of 7 messages on average
-- and some of 20, 100 and 1,000. User 1 owns every tenth conversation, so a tenth of each size, and
-- his tenant, of which user 3 is an admin, has three tenths of them.
-- Made in schema plain and copied, row by row in the same order: both sides lie alike on disk.
set work_mem = '256MB';
set session_replication_role = replica;
set synchronous_commit = off;
select setseed(0.5);

insert into plain.tenants (id, name, slug)
select id, name, slug from public.tenants
union all
select new_id(), 'Tenant ' || n, 'tenant-' || n from generate_series(1, 10) as n;

create temp table person as
select n, new_id() as id, gen_random_uuid() as auth_id, t.id as tenant_id
from generate_series(1, 1000) as n
join plain.tenants t on t.slug = 'tenant-' || case when n % 40 < 9 then 1 else 2 + n % 9 end;

insert into plain.users (id, tenant_id, auth_id, email, name, role)
select id, tenant_id, auth_id, 'user' || n || '@example.com', 'User ' || n, case n when 3 then 'admin' else 'member' end
from person order by n;

create temp table talk as
select n, new_id() as id, size, began, began + size * pace as ended, pace, user_number
from (
    select
        n,
        case
            when n / 10 % 1000 = 7 then 1000
            when n / 10 % 100 = 3 then 100
            when n / 10 % 10 = 5 then 20
            else 3 + n % 9
        end as size,
        timestamptz '2025-01-01' + random() * interval '300 days' as began,
        interval '5 s' + random() * interval '1 min' as pace,
        case when n % 10 = 0 then 1 else 2 + n % 999 end as user_number
    from generate_series(1, current_setting('bench.conversations')::integer) as n
    order by began
) as t;

insert into plain.conversations (
    id, tenant_id, user_id, session_id, continuation_id, title, visibility, last_sequence, created_at, updated_at
)
select
    t.id, p.tenant_id, p.id, 'session-' || t.n, 'continuation-' || t.n, 'Conversation about subject ' || t.n,
    'private', t.size, t.began, t.ended
from talk t
join person p on p.n = t.user_number
order by t.began;

insert into plain.messages (
    id, conversation_id, tenant_id, sequence_number, role, content, model_used, latency_ms,
    prompt_token_count, completion_token_count, created_at
)
select
    new_id(), m.id, m.tenant_id, m.number, m.role::plain.message_role,
    -- Many short ones, few long ones: 20 to 800 characters.
    substr(words.text, 1 + (random() * 1000)::integer, 20 + (780 * random() ^ 2)::integer),
    case m.role when 'assistant' then 'model-1' end,
    case m.role when 'assistant' then (random() * 5000)::integer end,
    case m.role when 'assistant' then m.number * 80 end,
    case m.role when 'assistant' then (random() * 200)::integer end,
    m.at
from (
    select
        t.id, p.tenant_id, number, t.began + number * t.pace as at,
        case number % 2 when 1 then 'user' else 'assistant' end as role
    from talk t
    join person p on p.n = t.user_number
    cross join lateral generate_series(1, t.size) as number
    order by 4
) as m
cross join (
    select left(string_agg(left(md5(n::text), 2 + n % 9), ' '), 2000) as text from generate_series(1, 400) as n
) as words;

insert into public.tenants (id, name, slug)
select id, name, slug from plain.tenants where slug <> 'default';

insert into public.users (id, tenant_id, auth_id, email, name, role)
select id, tenant_id, auth_id, email, name, role from plain.users order by id;

insert into public.conversations (
    id, tenant_id, user_id, session_id, continuation_id, title, visibility, last_sequence, created_at, updated_at
)
select
    id, tenant_id, user_id, session_id, continuation_id, title, visibility, last_sequence, created_at, updated_at
from plain.conversations order by id;

insert into public.messages (
    id, conversation_id, tenant_id, sequence_number, role, content, model_used, latency_ms,
    prompt_token_count, completion_token_count, created_at
)
select
    id, conversation_id, tenant_id, sequence_number, role::text::public.message_role, content, model_used, latency_ms,
    prompt_token_count, completion_token_count, created_at
from plain.messages order by id;
