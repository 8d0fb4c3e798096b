-- Feedback: who rates what, what is told of it, and what is counted.
create extension pg_conversation;
select grant_access('contract_user'), grant_access('contract_service', 'service');
insert into users (id, name) values
('00000000-0000-4000-8000-00000000000a', 'Ada'), ('00000000-0000-4000-8000-00000000000b', 'Bob'),
('00000000-0000-4000-8000-00000000000e', 'Eve');
insert into conversations (id, user_id) values
('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000a');
select add_member('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000b', 'viewer');
\set c 00000000-0000-4000-8000-0000000000c1
\set ada 00000000-0000-4000-8000-00000000000a
\set bob 00000000-0000-4000-8000-00000000000b
\set eve 00000000-0000-4000-8000-00000000000e
\set m 00000000-0000-4000-8000-0000000000d1
\set nobody 00000000-0000-4000-8000-0000000000ff
insert into messages (id, conversation_id, role, content) values (:'m', :'c', 'assistant', 'an answer');

set role contract_user;
set pg_conversation.user_id = :'ada';
select * from get_message_feedback(:'m');
select id is not null as has_id, created from give_feedback(:'m', 1);
-- The same again, with a comment, and without.
select created from give_feedback(:'m', 1);
select created from give_feedback(message_id => :'m', rating => -1, comment => 'too long');
select rating, comment, user_id, tenant_id = current_tenant_id() as of_the_tenant from feedback;
select created from give_feedback(:'m', -1);
select rating, comment from feedback;
-- A viewer has an opinion, too.
set pg_conversation.user_id = :'bob';
select * from get_message_feedback(:'m');
insert into feedback (message_id, rating, metadata) values (:'m', 1, '{"shown": "list"}')
returning conversation_id, user_id, comment, metadata;
select * from get_message_feedback(:'m');
select message_id, conversation_id, thumbs_up, thumbs_down from feedback_counts;
-- His own, and nobody else's.
insert into feedback (message_id, rating) values (:'m', 1);
insert into feedback (message_id, user_id, rating) values (:'m', :'ada', 1);
update feedback set rating = 1 where user_id = :'ada';
update feedback set comment = 'fine' where user_id = :'bob';
update feedback set user_id = :'ada' where user_id = :'bob';
update feedback set message_id = :'nobody' where user_id = :'bob';
delete from feedback;
update feedback_counts set thumbs_up = 100;
select user_id, rating, comment from feedback order by user_id;
-- What is no rating.
select give_feedback(:'m', 0);
select give_feedback(:'m', 2);
select give_feedback(:'m', null);
select give_feedback(null, 1);
select give_feedback(:'m', 1, repeat('x', 5001));
insert into feedback (message_id, rating) values (:'m', 5);
select give_feedback(:'nobody', 1);
select withdraw_feedback(:'nobody');
select withdraw_feedback(null);
select get_message_feedback(:'nobody');
-- Whoever does not read the message hears what he would hear of none.
set pg_conversation.user_id = :'eve';
select give_feedback(:'m', 1);
select withdraw_feedback(:'m');
select get_message_feedback(:'m');
select count(*) from feedback;
reset pg_conversation.user_id;
select give_feedback(:'m', 1);
-- Back.
set pg_conversation.user_id = :'ada';
select withdraw_feedback(:'m');
select withdraw_feedback(:'m');
select * from get_message_feedback(:'m');
select refresh_analytics();
select recount_feedback();
select * from message_feedback_summary;
reset role;
reset pg_conversation.user_id;

-- The service gives for others, and keeps the figures.
set role contract_service;
insert into feedback (message_id, user_id, rating) values (:'m', :'eve', -1) returning rating;
insert into feedback (message_id, rating) values (:'m', 1);
insert into feedback (message_id, user_id, rating) values (:'m', :'nobody', 1);
select give_feedback(:'m', 1);
select total_feedback, thumbs_up, thumbs_down, avg_rating, own_rating from get_message_feedback(:'m');
select refresh_analytics(), refresh_analytics(concurrently => false);
select recount_feedback();
reset role;
select message_id, total_feedback, thumbs_up, thumbs_down, avg_rating from message_feedback_summary;
delete from users where id = :'eve';
select thumbs_up, thumbs_down from feedback_counts;
delete from conversations;
select (select count(*) from feedback) as feedback, (select count(*) from feedback_counts) as counts;
