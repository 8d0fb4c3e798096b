-- Limits: requests a minute, tokens a day.
create extension pg_conversation;
select grant_access('contract_user'), grant_access('contract_service', 'service');
\set acme 00000000-0000-4000-8000-0000000000a1
\set other 00000000-0000-4000-8000-0000000000a2
\set ada 00000000-0000-4000-8000-00000000000a
\set eve 00000000-0000-4000-8000-00000000000e
\set nobody 00000000-0000-4000-8000-0000000000ff
insert into tenants (id, name, slug, rate_limit_per_minute, daily_token_limit) values
(:'acme', 'Acme', 'acme', 3, 100), (:'other', 'Other', 'other', null, null);
insert into users (id, tenant_id, name) values (:'ada', :'acme', 'Ada'), (:'eve', :'other', 'Eve');

set role contract_user;
-- Nobody.
select * from check_rate_limit();
set pg_conversation.user_id = :'ada';
select * from check_rate_limit();
select * from check_rate_limit(cost => 0);
-- More than there ever are, then all that are left; nothing is drawn by a refusal.
select * from check_rate_limit(4);
select * from check_rate_limit(2);
select allowed, remaining, retry_after between 1 and 20 as soon from check_rate_limit();
select allowed, remaining, retry_after between 21 and 60 as later from check_rate_limit(3);
select * from check_rate_limit(-1);
select * from check_rate_limit(null);
-- Of another tenant as of none.
select * from check_rate_limit(tenant_id => :'other');
select * from check_rate_limit(tenant_id => :'nobody');
set pg_conversation.user_id = :'eve';
select * from check_rate_limit();
select * from check_rate_limit(1000000);
reset pg_conversation.user_id;
select * from rate_states;
select reserve_tokens(1);
select settle_tokens(:'nobody', 1);
select release_tokens(:'nobody');
select cleanup_reservations();
reset role;

set role contract_service;
select * from check_rate_limit(tenant_id => :'other');
select * from check_rate_limit(tenant_id => :'nobody');
-- A reservation is settled, or released.
select allowed, remaining, retry_after, reservation_id as first from reserve_tokens(60, tenant_id => :'acme') \gset
\echo :allowed :remaining :retry_after
select allowed, remaining, retry_after between 1 and 600 as soon, reservation_id
from reserve_tokens(tokens => 41, tenant_id => :'acme');
select allowed, remaining, retry_after, reservation_id from reserve_tokens(101, '1 hour', :'acme');
select allowed, remaining, reservation_id as second from reserve_tokens(40, '1 hour', :'acme') \gset
\echo :allowed :remaining
select * from settle_tokens(:'first', 50);
select * from settle_tokens(reservation_id => :'first', actual => 50);
\set VERBOSITY sqlstate
select * from settle_tokens(:'first', 51);
\set VERBOSITY default
select release_tokens(:'first');
select release_tokens(:'second');
select release_tokens(:'second');
\set VERBOSITY sqlstate
select * from settle_tokens(:'second', 1);
\set VERBOSITY default
select allowed, remaining from reserve_tokens(0, tenant_id => :'acme');
-- More than was reserved may have been used.
select allowed, remaining, reservation_id as third from reserve_tokens(50, '1 s', :'acme') \gset
\echo :allowed :remaining
select pg_sleep(1.1);
select allowed, remaining from reserve_tokens(0, tenant_id => :'acme');
select * from settle_tokens(:'third', 70);
select allowed, remaining, retry_after between 1 and 86400 as tomorrow from reserve_tokens(1, tenant_id => :'acme');
-- No limit.
select allowed, remaining, retry_after, reservation_id is not null as noted
from reserve_tokens(9223372036854775807, tenant_id => :'other');
-- What is wrong.
select reserve_tokens(1);
select reserve_tokens(-1, tenant_id => :'acme');
select reserve_tokens(null, tenant_id => :'acme');
select reserve_tokens(1, '0 s', :'acme');
select reserve_tokens(1, '2 days', :'acme');
select reserve_tokens(1, tenant_id => :'nobody');
select settle_tokens(:'nobody', 1);
select settle_tokens(:'first', -1);
select settle_tokens(:'first', null);
select settle_tokens(null, 1);
select release_tokens(:'nobody');
select release_tokens(null);
\set VERBOSITY terse
insert into token_reservations (id) values (:'nobody');
\set VERBOSITY default
select cleanup_reservations(), cleanup_reservations(max_rows => 1);
select cleanup_reservations(-1);
select tokens, settled, closed_at is not null as closed from token_reservations
where tenant_id = :'acme' order by created_at;
select sum(used) from token_windows;
reset role;

-- A message reserves what its answer may take.
update tenants set daily_token_limit = 200 where id = :'acme';
set role contract_user;
set pg_conversation.user_id = :'ada';
insert into conversations (id) values ('00000000-0000-4000-8000-0000000000c1');
\set c 00000000-0000-4000-8000-0000000000c1
select begin_message(:'c', client_message_id => 'a', reserve_tokens => 60) as m \gset
select begin_message(:'c', client_message_id => 'a', reserve_tokens => 60) = :'m' as is_the_same;
\set VERBOSITY terse
select begin_message(:'c', client_message_id => 'b', reserve_tokens => 21);
\set VERBOSITY default
\echo :LAST_ERROR_SQLSTATE
select count(*) from messages;
select begin_message(:'c', reserve_tokens => -1);
select begin_message(:'c', reserve_tokens => 20) as failed \gset
select fail_message(:'failed', 'x');
select finish_message(:'m', 10, 20);
reset role;
select tokens, settled, user_id = :'ada' as hers from token_reservations where id = :'m';
select tokens, settled from token_reservations where id = :'failed';
