-- Two tenants with the same kinds of people, conversations and streams, and one that is suspended.
-- Every text carries the name of its tenant behind "secret-", so that a leak can be told from anything.
create schema playground;
grant all on schema playground to public;
create function playground.idle() returns trigger language plpgsql as 'begin return null; end';

insert into tenants (id, name, slug, features, system_prompt, rate_limit_per_minute, daily_token_limit)
select md5('tenant ' || t)::uuid, t, t, '{"edit_messages": true}', 'secret-' || t, 1000000, 1000000
from unnest(array['a', 'b', 'off']) t;

insert into users (id, tenant_id, auth_id, name, role, email, metadata)
select md5(t || ' ' || who)::uuid, md5('tenant ' || t)::uuid, md5('login of ' || t || ' ' || who)::uuid,
    t || ' ' || who, case who when 'admin' then 'admin' else 'member' end, who || '@example.org',
    jsonb_build_object('note', 'secret-' || t)
from unnest(array['a', 'b', 'off']) t, unnest(array[
    'owner', 'co-owner', 'editor', 'viewer', 'colleague', 'admin', 'inactive'
]) who;

insert into conversations (id, user_id, title, continuation_id, session_id, visibility)
select md5(t || '/' || c.name)::uuid, md5(t || ' ' || c.owner)::uuid, 'secret-' || t, t || '/' || c.name,
    'session ' || t || '/' || c.name, case when c.name like '%shared' then 'tenant' else 'private' end
from unnest(array['a', 'b', 'off']) t, (values
    ('private', 'owner'), ('shared', 'owner'), ('left', 'inactive'),
    ('deleted', 'owner'), ('deleted-shared', 'owner')
) as c (name, owner);

insert into conversation_members (conversation_id, user_id, role)
select c.id, u.id, m.role
from conversations c join users u on u.tenant_id = c.tenant_id
join (values ('co-owner', 'owner'), ('editor', 'editor'), ('viewer', 'viewer')) as m (who, role)
on split_part(u.name, ' ', 2) = m.who;

-- Everybody of the tenant has written once, also those who may not any more.
insert into messages (conversation_id, role, content, client_message_id, author_id)
select c.id, 'user', 'secret-' || split_part(u.name, ' ', 1) || ' by ' || u.name, 'key ' || u.name, u.id
from conversations c join users u on u.tenant_id = c.tenant_id
order by c.continuation_id, u.name;
update messages set content = content || ', edited';

-- A stream that is going on, and one that has ended and still has its chunks.
insert into messages (id, conversation_id, role, status, content)
select md5(s || c.id)::uuid, c.id, 'assistant', 'streaming', ''
from conversations c, unnest(array['stream ', 'ended ']) s
order by c.continuation_id, s;
insert into message_chunks (message_id, chunk_content)
select m.id, 'secret-' || split_part(c.continuation_id, '/', 1)
from messages m join conversations c on c.id = m.conversation_id, generate_series(1, 2)
where m.status = 'streaming';
select finish_message(md5('ended ' || id)::uuid, 3, 4, 'm', 120) from conversations;

-- Everybody thinks something of its answer.
insert into feedback (message_id, user_id, rating, comment)
select md5('ended ' || c.id)::uuid, u.id, 1, 'secret-' || split_part(u.name, ' ', 1)
from conversations c join users u on u.tenant_id = c.tenant_id;

-- Everybody, and nobody, has used something, and has reserved more. Prices came later.
select record_usage(u.tenant_id, u.id, 'm', jsonb_build_object('prompt_tokens', 1, 'note', 'secret-' || t.slug),
    t.id || ' ' || u.n)
from (
    select id, tenant_id, row_number() over (partition by tenant_id order by name) as n from users
    union all
    select null, id, 100 from tenants where slug in ('a', 'b', 'off')
) u join tenants t on t.id = u.tenant_id;
insert into model_prices (pattern, usage_type, unit_price) values ('%', 'prompt_tokens', 0.5);
select check_rate_limit(1, id) from tenants where slug in ('a', 'b', 'off');
insert into token_windows select id, now(), 0, 5 from tenants where slug in ('a', 'b', 'off');
insert into token_reservations (id, tenant_id, user_id, tokens, created_at, expires_at, date)
select md5('reserved ' || t.id || coalesce(' ' || u.id, ''))::uuid, t.id, u.id, 7,
    now(), now() + interval '1 day', now()
from tenants t join (
    select id, tenant_id from users union all select null, id from tenants
) u on u.tenant_id = t.id
where t.slug in ('a', 'b', 'off');

update conversations set deleted_at = now() where continuation_id like '%/deleted%';
update users set is_active = false where name like '% inactive';
update tenants set is_active = false where slug = 'off';
select refresh_analytics();
