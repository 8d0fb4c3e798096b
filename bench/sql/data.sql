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
    id, conversation_id, tenant_id, sequence_number, role, content, model_used, latency_ms, first_token_ms,
    prompt_token_count, completion_token_count, author_id, created_at
)
select
    new_id(), m.id, m.tenant_id, m.number, m.role::plain.message_role,
    -- Many short ones, few long ones: 20 to 800 characters.
    substr(words.text, 1 + (random() * 1000)::integer, 20 + (780 * random() ^ 2)::integer),
    case m.role when 'assistant' then 'model-1' end,
    case m.role when 'assistant' then (random() * 5000)::integer end,
    case m.role when 'assistant' then (random() * 900)::integer end,
    case m.role when 'assistant' then m.number * 80 end,
    case m.role when 'assistant' then (random() * 200)::integer end,
    case m.role when 'user' then m.user_id end,
    m.at
from (
    select
        t.id, p.tenant_id, p.id as user_id, number, t.began + number * t.pace as at,
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
    id, conversation_id, tenant_id, sequence_number, role, content, model_used, latency_ms, first_token_ms,
    prompt_token_count, completion_token_count, author_id, created_at
)
select
    id, conversation_id, tenant_id, sequence_number, role::text::public.message_role, content, model_used, latency_ms,
    first_token_ms, prompt_token_count, completion_token_count, author_id, created_at
from plain.messages order by id;

-- What the answers used, by user and day, and of a fifth of them the events.
insert into public.usage_days (
    tenant_id, date, user_id, model, slot, prompt_tokens, completion_tokens, request_count, unpriced_count, cost
)
select
    m.tenant_id, (m.created_at at time zone 'UTC')::date, c.user_id, m.model_used, 0, sum(m.prompt_token_count),
    sum(m.completion_token_count), count(*), 0, sum(m.prompt_token_count) * 0.000002
from plain.messages m
join plain.conversations c on c.id = m.conversation_id
where m.role = 'assistant'
group by m.tenant_id, (m.created_at at time zone 'UTC')::date, c.user_id, m.model_used
order by 2, 1, 3;

insert into public.usage_totals (
    tenant_id, date, slot, prompt_tokens, completion_tokens, request_count, unpriced_count, cost
)
select
    tenant_id, date, 0, sum(prompt_tokens), sum(completion_tokens), sum(request_count), 0, sum(cost)
from public.usage_days group by tenant_id, date
order by 2, 1;

insert into plain.usage_metrics (
    tenant_id, user_id, date, prompt_tokens, completion_tokens, request_count, estimated_cost
)
select tenant_id, user_id, date, prompt_tokens, completion_tokens, request_count, cost
from public.usage_days order by date, tenant_id, user_id;

insert into public.usage_months (
    tenant_id, month, slot, prompt_tokens, completion_tokens, request_count, unpriced_count, cost
)
select
    tenant_id, date_trunc('month', date::timestamp)::date, 0, sum(prompt_tokens), sum(completion_tokens),
    sum(request_count), 0, sum(cost)
from public.usage_totals group by 1, 2
order by 2, 1;

insert into side.usage_months
select tenant_id, month, prompt_tokens, completion_tokens, total_tokens, request_count, unpriced_count, estimated_cost
from public.usage_by_month;

insert into public.usage_events (
    tenant_id, user_id, occurred_at, recorded_at, prompt_tokens, completion_tokens, request_count, date,
    idempotency_key, kind, model, usage, cost, recorded_by
)
select
    m.tenant_id, c.user_id, m.created_at, m.created_at, m.prompt_token_count, m.completion_token_count, 1,
    (m.created_at at time zone 'UTC')::date, 'message:' || m.id, 'usage', m.model_used,
    jsonb_build_object('prompt_tokens', m.prompt_token_count, 'completion_tokens', m.completion_token_count),
    m.prompt_token_count * 0.000002, 'bench'
from plain.messages m
join plain.conversations c on c.id = m.conversation_id
where m.role = 'assistant' and m.sequence_number % 10 = 4;

insert into side.usage_events select * from public.usage_events;

insert into public.model_prices (id, pattern, usage_type, unit_price)
values (new_id(), 'model-%', 'prompt_tokens', 0.000002), (new_id(), 'model-%', 'completion_tokens', 0.000008);

-- What somebody thought of a tenth of them.
insert into plain.feedback (message_id, conversation_id, tenant_id, user_id, rating, created_at, updated_at)
select m.id, m.conversation_id, m.tenant_id, c.user_id, case when random() < 0.8 then 1 else -1 end, m.created_at,
    m.created_at
from plain.messages m
join plain.conversations c on c.id = m.conversation_id
where m.role = 'assistant' and m.sequence_number % 20 = 8;

insert into public.feedback select * from plain.feedback;

insert into public.feedback_counts (message_id, conversation_id, tenant_id, thumbs_up, thumbs_down)
select message_id, conversation_id, tenant_id, (rating > 0)::integer, (rating < 0)::integer from public.feedback;

-- Limits that nobody meets.
update public.tenants set rate_limit_per_minute = 60000000, daily_token_limit = 1000000000000000;
