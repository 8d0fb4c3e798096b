-- Edits: whose, where they are allowed, and what is kept.
create extension pg_conversation;
select grant_access('contract_user'), grant_access('contract_service', 'service');
insert into users (id, name) values
('00000000-0000-4000-8000-00000000000a', 'Ada'), ('00000000-0000-4000-8000-00000000000b', 'Bob');
insert into conversations (id, user_id) values
('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000a');
select add_member('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000b', 'editor');
\set c 00000000-0000-4000-8000-0000000000c1
\set ada 00000000-0000-4000-8000-00000000000a
\set bob 00000000-0000-4000-8000-00000000000b
\set m 00000000-0000-4000-8000-0000000000d1
\set answer 00000000-0000-4000-8000-0000000000d2
\set nobody 00000000-0000-4000-8000-0000000000ff

set role contract_user;
set pg_conversation.user_id = :'bob';
insert into messages (id, conversation_id, role, content, parts) values (:'m', :'c', 'user', 'first', '[1]')
returning author_id, edited_at;
insert into messages (id, conversation_id, role, content) values (:'answer', :'c', 'assistant', 'an answer');
-- Not unless the tenant allows it.
select may_edit_messages();
select edit_message(:'m', 'second');
update messages set content = 'second' where id = :'m';
reset role;
update tenants set features = '{"edit_messages": true}';
set role contract_user;
select may_edit_messages();
select edit_message(:'m', 'second');
select content, parts, edited_at is not null as edited from messages where id = :'m';
update messages set content = 'third', parts = '[3]' where id = :'m';
select edit_message(message_id => :'m', content => 'fourth', parts => '[4]');
select edit_message(:'m', 'fourth');
select content, parts from messages where id = :'m';
-- His own, of a user, and its text.
select edit_message(:'answer', 'mine');
update messages set content = 'mine' where id = :'answer';
update messages set role = 'assistant' where id = :'m';
update messages set author_id = null where id = :'m';
select edit_message(:'nobody', 'x');
select edit_message(:'m', null);
select edit_message(null, 'x');
-- What was replaced is for those who manage the conversation.
select count(*) from message_revisions;
set pg_conversation.user_id = :'ada';
select edit_message(:'m', 'hers');
select revision, content, parts, edited_by, replaced_at is not null as dated from message_revisions;
update message_revisions set content = 'x';
delete from message_revisions;
reset pg_conversation.user_id;
select edit_message(:'m', 'x');
reset role;

-- The service edits any, and nobody changes what was kept.
set role contract_service;
select edit_message(:'answer', 'a better answer');
select message_id = :'answer' as of_the_answer, revision, content, edited_by from message_revisions
where message_id = :'answer';
update message_revisions set content = 'x';
reset role;
update message_revisions set content = 'x';

-- A stream is not edited, until it has ended.
set role contract_service;
insert into messages (id, conversation_id, role, status)
values ('00000000-0000-4000-8000-0000000000d3', :'c', 'assistant', 'streaming');
\set s 00000000-0000-4000-8000-0000000000d3
select append_chunks(:'s', array['to', 'kens']);
select edit_message(:'s', 'x');
select finish_message(:'s');
select edit_message(:'s', 'words');
select status, whole, content from read_stream(:'s');
select count(*) from message_chunks where message_id = :'s';
reset role;

-- An edit does not make another message of a retry.
set role contract_user;
set pg_conversation.user_id = :'bob';
select sequence_number, created from add_message(:'c', 'user', 'said once', 'retry');
select edit_message(id, 'said better') from messages where client_message_id = 'retry';
select sequence_number, created from add_message(:'c', 'user', 'said once', 'retry');
