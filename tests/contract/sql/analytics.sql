-- Figures of a tenant: by its own days, and of what the caller reads.
create extension pg_conversation;
select grant_access('contract_user'), grant_access('contract_service', 'service');
\set acme 00000000-0000-4000-8000-0000000000a1
\set other 00000000-0000-4000-8000-0000000000a2
\set ada 00000000-0000-4000-8000-00000000000a
\set bob 00000000-0000-4000-8000-00000000000b
\set eve 00000000-0000-4000-8000-00000000000e
insert into tenants (id, name, slug, time_zone) values
(:'acme', 'Acme', 'acme', 'Asia/Tokyo'), (:'other', 'Other', 'other', 'UTC');
insert into users (id, tenant_id, name, role) values
(:'ada', :'acme', 'Ada', 'admin'), (:'bob', :'acme', 'Bob', 'member'), (:'eve', :'other', 'Eve', 'member');
insert into conversations (id, user_id, title) values
('00000000-0000-4000-8000-0000000000c1', :'ada', 'hers'), ('00000000-0000-4000-8000-0000000000c2', :'bob', 'his'),
('00000000-0000-4000-8000-0000000000c3', :'eve', 'of another tenant');
-- The first two are of two days in Tokyo, and of one in Greenwich.
insert into messages (id, conversation_id, role, author_id, model_used, latency_ms, created_at)
select
    format('00000000-0000-4000-8000-0000000000d%s', n)::uuid,
    format('00000000-0000-4000-8000-0000000000c%s', c)::uuid,
    role::message_role, author::uuid, model, latency, at::timestamptz
from (values
    (1, 1, 'user', :'ada', null, null, '2025-03-01 14:00+00'),
    (2, 1, 'assistant', null, 'large', 1000, '2025-03-01 16:00+00'),
    (3, 1, 'user', :'ada', null, null, '2025-03-02 01:00+00'),
    (4, 1, 'assistant', null, 'large', 3000, '2025-03-02 01:00+00'),
    (5, 2, 'user', :'bob', null, null, '2025-03-02 02:00+00'),
    (6, 2, 'assistant', null, 'small', 500, '2025-03-02 02:00+00'),
    (7, 3, 'user', :'eve', null, null, '2025-03-02 02:00+00')
) v (n, c, role, author, model, latency, at);
insert into feedback (message_id, user_id, rating) values
('00000000-0000-4000-8000-0000000000d4', :'ada', 1), ('00000000-0000-4000-8000-0000000000d4', :'bob', -1),
('00000000-0000-4000-8000-0000000000d6', :'bob', 1);
insert into model_prices (pattern, usage_type, unit_price) values ('%', 'prompt_tokens', 0.5);
select record_usage(:'acme', :'ada', 'large', '{"prompt_tokens": 10, "images": 1}', 'a', '2025-03-01 16:00+00');
select record_usage(
    :'acme', :'bob', 'small', '{"prompt_tokens": 4, "completion_tokens": 0}', 'b', '2025-03-02 02:00+00'
);
select record_usage(:'acme', null, 'small', '{"prompt_tokens": 2}', 'c', '2025-03-02 02:00+00');

set role contract_user;
\set period '''2025-03-01'', ''2025-03-03'''
-- An admin.
set pg_conversation.user_id = :'ada';
select date, began, ended from tenant_days(:period);
select * from daily_activity(:period);
select * from usage_by_model(:period);
select * from usage_by_user(:period);
select * from latency_percentiles(:period);
select * from feedback_rate(:period);
select * from longest_conversations(:period);
select * from longest_conversations(:period, max_rows => 1);
-- A member.
set pg_conversation.user_id = :'bob';
select * from daily_activity(from_date => '2025-03-01', to_date => '2025-03-03');
select * from usage_by_model(:period);
select * from usage_by_user(:period);
select * from latency_percentiles(:period);
select * from feedback_rate(:period);
select * from longest_conversations(:period);
-- Of another tenant there is nothing.
select * from daily_activity(:period, :'other');
select * from usage_by_model(:period, :'other');
select * from tenant_days(:period, :'other');
set pg_conversation.user_id = :'eve';
select * from daily_activity(:period, :'acme');
select * from daily_activity(:period);
-- The last 30 days, and a period that is none, or too long.
select count(*), max(date) = (now() at time zone 'UTC')::date as to_today from daily_activity();
select count(*) from daily_activity('2025-03-03', '2025-03-01');
select * from daily_activity('2024-01-01', '2025-03-01');
select * from daily_activity('-infinity', 'infinity');
select * from longest_conversations(:period, max_rows => -1);
reset pg_conversation.user_id;
select * from daily_activity(:period);
reset role;

-- The service says whose.
set role contract_service;
select * from daily_activity(:period);
select * from daily_activity(:period, tenant_id => :'acme');
select * from usage_by_user(:period, :'acme');
select title, messages from longest_conversations(:period, :'other');
