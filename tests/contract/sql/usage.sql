-- Usage: what is recorded, once, what it costs, and what it adds up to.
create extension pg_conversation;
select grant_access('contract_user'), grant_access('contract_service', 'service');
\set acme 00000000-0000-4000-8000-0000000000a1
\set ada 00000000-0000-4000-8000-00000000000a
\set bob 00000000-0000-4000-8000-00000000000b
\set eve 00000000-0000-4000-8000-00000000000e
\set nobody 00000000-0000-4000-8000-0000000000ff
insert into tenants (id, name, slug, time_zone) values (:'acme', 'Acme', 'acme', 'America/New_York');
insert into users (id, tenant_id, name, role) values
(:'ada', :'acme', 'Ada', 'admin'), (:'bob', :'acme', 'Bob', 'member');
insert into users (id, name) values (:'eve', 'Eve');

set role contract_service;
insert into model_prices (pattern, usage_type, unit_price) values
('%', 'prompt_tokens', 0.01), ('large%', 'prompt_tokens', 0.1), ('large%', 'completion_tokens', 0.5);
insert into model_prices (pattern, usage_type, unit_price, valid_from, valid_to) values
('large%', 'images', 2, '2025-01-01', '2025-02-01'), ('large%', 'images', 3, '2025-02-01', 'infinity');
-- One price at a time.
\set VERBOSITY terse
insert into model_prices (pattern, usage_type, unit_price) values ('large%', 'images', 9);
insert into model_prices (pattern, usage_type, unit_price) values ('x', 'input_tokens', 1);
insert into model_prices (pattern, usage_type, unit_price) values ('x', 'x', -1);
\set VERBOSITY default

-- The day is that of the tenant.
select * from record_usage(
    :'acme', :'bob', 'large-1', '{"prompt_tokens": 10, "completion_tokens": 2}', 'one', '2025-01-02 03:00:00+00'
);
-- Once, however often it is said; the same key for anything else is an error.
select * from record_usage(
    :'acme', :'bob', 'large-1', '{"completion_tokens": 2.0, "prompt_tokens": 1e1}', 'one', '2025-01-02 03:00:00+00'
);
select * from record_usage(:'acme', :'bob', 'large-1', '{"prompt_tokens": 10, "completion_tokens": 2}', 'one');
select * from record_usage(:'acme', :'bob', 'large-1', '{"prompt_tokens": 11, "completion_tokens": 2}', 'one');
select * from record_usage(:'acme', :'ada', 'large-1', '{"prompt_tokens": 10, "completion_tokens": 2}', 'one');
-- The longest pattern, the price of the time, and what has none.
select * from record_usage(
    :'acme', :'bob', 'small', '{"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}', 'two',
    '2025-01-05 12:00+00'
);
select * from record_usage(:'acme', :'bob', 'large-1', '{"images": 2, "note": "x"}', 'three', '2025-01-05 12:00+00');
select * from record_usage(:'acme', null, 'large-1', '{"images": 2}', 'four', '2025-02-05 12:00+00');
-- What is wrong.
select record_usage(:'acme', :'bob', 'm', '{"prompt_tokens": -1}', 'x');
select record_usage(:'acme', :'bob', 'm', '[1]', 'x');
select record_usage(:'acme', :'bob', 'm', '{}', 'void:x');
select record_usage(:'acme', :'bob', 'm', '{}', '');
select record_usage(:'acme', :'bob', 'm', '{}', null);
select record_usage(:'acme', :'bob', 'm', '{}', 'x', now() + interval '2 hours');
select record_usage(:'acme', :'eve', 'm', '{}', 'x');
select record_usage(:'nobody', null, 'm', '{}', 'x');
insert into usage_events (tenant_id, idempotency_key, usage) values (:'acme', 'x', '{}');
delete from usage_events;
-- Back, once.
select * from void_usage(:'acme', 'two', 'a mistake');
select * from void_usage(:'acme', 'two', 'a mistake');
select void_usage(:'acme', 'void:two', 'x');
select void_usage(:'acme', 'unknown', 'x');
-- The way that retries count twice.
select increment_usage_metrics(:'acme', :'bob', '2025-01-05', 5, 6, 0.25);
select increment_usage_metrics(
    p_tenant_id => :'acme', p_user_id => :'bob', p_date => '2025-01-05', p_prompt_tokens => 5,
    p_completion_tokens => 6, p_estimated_cost => 0.25
);
select increment_usage_metrics(:'acme', :'bob', '2025-01-05', -5, 6, 0.25);

-- What it adds up to.
select idempotency_key, kind, user_id, model, prompt_tokens, completion_tokens, request_count, cost, unpriced, date,
    reason
from usage_events where kind <> 'increment' order by date, idempotency_key;
select user_id, date, prompt_tokens, completion_tokens, total_tokens, request_count, estimated_cost
from usage_metrics order by date, user_id;
select month, prompt_tokens, completion_tokens, total_tokens, request_count, unpriced_count, estimated_cost
from usage_by_month order by month;
select count(*) from current_day_usage;
select * from verify_usage(:'acme', '2025-01-01', '2025-12-31');
-- Prices change.
update model_prices set unit_price = 0.2 where pattern = 'large%' and usage_type = 'prompt_tokens';
select date, user_id, model, old_cost, new_cost from recalculate_costs('2025-01-01', '2025-12-31');
select date, user_id, model, old_cost, new_cost from recalculate_costs('2025-01-01', '2025-12-31', dry_run => false);
select date, user_id, model, old_cost, new_cost from recalculate_costs('2025-01-01', '2025-12-31', false, :'acme');
select recalculate_costs(null, '2025-12-31');
select month, estimated_cost from usage_by_month order by month;
select * from verify_usage(:'acme', '2025-01-01', '2025-12-31');
select fold_usage() > 0 as folded;
select fold_usage();
select month, estimated_cost from usage_by_month order by month;
select * from verify_usage(:'acme', '2025-01-01', '2025-12-31');
select refresh_analytics();
reset role;
select user_id, month, total_tokens, total_requests, total_cost, active_days
from monthly_usage_summary order by month, user_id;
update usage_events set cost = 0;

-- A member sees his own; an admin what is the tenant's; nobody prices or what is another's.
set role contract_user;
set pg_conversation.user_id = :'bob';
select user_id, count(*) from usage_events group by user_id;
select user_id, date, estimated_cost from usage_metrics order by date;
select count(*) from usage_by_month;
select * from model_prices;
select record_usage(:'acme', :'bob', 'm', '{}', 'x');
select increment_usage_metrics(:'acme', :'bob', '2025-01-05', 5, 6, 0.25);
select void_usage(:'acme', 'one', 'x');
select fold_usage();
select * from recalculate_costs('2025-01-01', '2025-12-31');
select * from verify_usage(:'acme', '2025-01-01', '2025-12-31');
set pg_conversation.user_id = :'ada';
select user_id, count(*) from usage_events group by user_id order by user_id;
select month, estimated_cost from usage_by_month order by month;
set pg_conversation.user_id = :'eve';
select (select count(*) from usage_events) as events, (select count(*) from usage_metrics) as metrics,
(select count(*) from usage_by_month) as months;

-- A message is an event once it has ended and its tokens are known.
set pg_conversation.user_id = :'ada';
insert into conversations (id) values ('00000000-0000-4000-8000-0000000000c1');
select begin_message('00000000-0000-4000-8000-0000000000c1') as m \gset
select finish_message(:'m');
select count(*) from usage_events where idempotency_key like 'message:%';
select finish_message(:'m', 4, 6, 'large-2');
select replace(idempotency_key, :'m', 'M') as key, kind, user_id = :'ada' as hers, prompt_tokens,
    completion_tokens, cost
from usage_events where idempotency_key ~ 'message:' order by key;
select finish_message(:'m', 4, 6, 'large-2', latency_ms => 12);
select user_id = :'ada' as hers, total_tokens, request_count, estimated_cost from current_day_usage;
