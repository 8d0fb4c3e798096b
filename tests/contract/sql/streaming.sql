-- Streams: as a member, who writes, reads, stops and resumes them, and as a service that keeps house.
create extension pg_conversation;
select grant_access('contract_user');
select grant_access('contract_service', 'service');
insert into users (id, name) values
('00000000-0000-4000-8000-00000000000a', 'owner'),
('00000000-0000-4000-8000-00000000000c', 'viewer'),
('00000000-0000-4000-8000-00000000000f', 'stranger');
insert into conversations (id, user_id, title) values
('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000a', 'talk'),
('00000000-0000-4000-8000-0000000000c2', '00000000-0000-4000-8000-00000000000a', 'other talk');
insert into conversation_members (conversation_id, user_id, role)
values ('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000c', 'viewer');
\set c 00000000-0000-4000-8000-0000000000c1
\set d 00000000-0000-4000-8000-0000000000c2
\set nothing 00000000-0000-4000-8000-00000000dead
create view states as
select right(m.id::text, 2) as id, m.status, m.content, m.error, m.completed_at is not null as ended,
    m.stream_started_at is not null as restarted,
    (select count(*) from message_chunks c where c.message_id = m.id) as chunks
from messages m where m.id::text like '00000000-0000-4000-8000-%' order by m.sequence_number;
alter view states set (security_invoker = on);
grant select on states to contract_user, contract_service;
set role contract_user;
set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000a';

-- A message is begun once, however often the request is sent.
insert into messages (id, conversation_id, role, content)
values ('00000000-0000-4000-8000-000000000001', :'c', 'user', 'What is it?');
select begin_message(:'c', 'assistant', '00000000-0000-4000-8000-000000000001', 'request', 'model-1',
    '{"a": 1}') as begun \gset
select begin_message(conversation_id => :'c', client_message_id => 'request', metadata => '{"a": 1}',
    parent_id => '00000000-0000-4000-8000-000000000001', model => 'model-1') = :'begun' as again;
select begin_message(:'c', 'tool', '00000000-0000-4000-8000-000000000001', 'request');
select begin_message(:'c', client_message_id => 'request');
select begin_message(:'c', 'assistant', '00000000-0000-4000-8000-000000000001', 'request',
    metadata => '{"a": 2}');
select sequence_number, role, status, content, parent_id, client_message_id, model_used, metadata
from messages where id = :'begun';
select * from append_chunk(:'begun', 'It');
select begin_message(:'c', client_message_id => 'request', metadata => '{"a": 1}',
    parent_id => '00000000-0000-4000-8000-000000000001') = :'begun' as later;
select finish_message(:'begun', model => 'model-1-turbo', metadata => '{"b": 2}');
select begin_message(:'c', 'assistant', '00000000-0000-4000-8000-000000000001', 'request', 'model-1',
    '{"a": 1}') = :'begun' as at_the_end;
select message_id is not null as added from add_message(:'c', 'assistant', 'said at once', 'said');
select begin_message(:'c', client_message_id => 'said');
select begin_message(:'c', 'boss');
select begin_message(:'c', null);
select begin_message(null);
select begin_message(:'nothing');
select begin_message(:'c', parent_id => :'nothing');
select begin_message(:'d', parent_id => '00000000-0000-4000-8000-000000000001');
select begin_message(:'c', metadata => '[]');
select begin_message(:'c', client_message_id => repeat('k', 201));

-- Chunks go to the end, or to the index they are meant for.
insert into messages (id, conversation_id, role, status)
values ('00000000-0000-4000-8000-000000000011', :'c', 'assistant', 'streaming');
\set m 00000000-0000-4000-8000-000000000011
select * from append_chunk(:'m', 'An');
select * from append_chunk(:'m', ' analytical', 1);
select * from append_chunk(message_id => :'m', content => '', chunk_index => 2);
select * from append_chunks(:'m', array[' engine', ' weaves'], 3);
select * from append_chunks(:'m', array[' al', 'ge'], is_final => false);
select append_chunks(:'m', '{}');
select append_chunks(:'m', '{}', 7);
select append_chunks(:'m', '{}', 3);
select append_chunks(:'m', array[['bra', 'ical'], [' pat', 'terns']]);

-- What is there already is accepted if it is the same, alone or in a window.
select * from append_chunk(:'m', ' analytical', 1);
select * from append_chunks(:'m', array[' analytical', '', ' engine'], 1);
select * from append_chunks(:'m', array[' pat', 'terns', ' just'], 9);
select append_chunk(:'m', 'other', 1);
select append_chunks(:'m', array[' analytical', 'other', ' engine'], 1);
select append_chunks(:'m', array['terns', 'other'], 10);

-- A gap tells where to go on.
select append_chunk(:'m', 'far', 14);
select append_chunks(:'m', array['far', 'away'], 2000000000);
select append_chunks(:'m', '{}', 99);

-- What is no chunk.
select append_chunk(:'m', null);
select append_chunks(:'m', null);
select append_chunks(:'m', array['a', null, 'c']);
select append_chunk(null, 'x');
select append_chunk(:'m', 'x', -1);
select append_chunk(:'m', 'x', 2147483647);
select append_chunk(:'nothing', 'x');
select append_chunk('00000000-0000-4000-8000-000000000001', 'x');
select append_chunk(:'m', ' as', 12, null);

-- Readers follow by the index that they have.
select * from read_stream(:'m');
select * from read_stream(:'m', 8, 2);
select * from read_stream(message_id => :'m', after_index => 11);
select * from read_stream(:'m', 12);
select * from read_stream(:'m', 0, 0);
select * from read_stream(:'m', 12, -1);
select chunk_index from read_stream(:'m', null, null) order by 1 desc limit 1;
select chunk_index from read_stream(:'m', -2147483648) order by 1 limit 1;
select * from read_stream(:'m', 2147483647);
select * from read_stream(:'m', 100);
select * from read_stream(:'nothing');
select * from read_stream(null);
select * from wait_for_chunks(:'m', 10);
select * from wait_for_chunks(:'m', 10, max_chunks => 1);
select * from wait_for_chunks(:'m', 12, 0);
select * from wait_for_chunks(:'m', 12, 30);
select * from wait_for_chunks(:'m', 12, -1);
select * from wait_for_chunks(:'nothing', timeout_ms => 0);
select * from wait_for_chunks(null);
select reconstruct_message(:'m');
select content from messages where id = :'m';

-- The final one completes the message.
select * from append_chunks(:'m', array[' the', ' loom.'], 13, true);
select * from states where id = '11';
select * from append_chunks(:'m', array[' the', ' loom.'], 13, true);
select * from append_chunk(:'m', ' loom.', 14);
select append_chunk(:'m', ' loom?', 14);
select append_chunk(:'m', 'more');
select append_chunk(:'m', 'more', 15);
select append_chunks(:'m', '{}');
select * from read_stream(:'m', 12);
select * from read_stream(:'m', 14);
select * from read_stream(:'m', 15);
select * from wait_for_chunks(:'m', 14);
select reconstruct_message(:'m') = content as same from messages where id = :'m';

-- Figures are written once.
select finish_message(:'m', 10, 20);
select finish_message(:'m', 10, 20, 'model-1', 812, '{"cost": 1.50}');
select finish_message(:'m', 10, 20, 'model-1', 812, '{"cost": 1.50}');
select finish_message(:'m');
select finish_message(:'m', completion_tokens => 21);
select finish_message(:'m', metadata => '{"cost": 2}');
select finish_message(:'m', model => 'model-2');
select finish_message(:'m', latency_ms => -1);
select prompt_token_count, completion_token_count, model_used, latency_ms, metadata from messages where id = :'m';
select finish_message(:'nothing');
select finish_message(null);

-- After clean-up there is the text.
select cleanup_streaming_artifacts(:'m');
select cleanup_streaming_artifacts(msg_id => :'m');
select * from read_stream(:'m', 3);
select * from wait_for_chunks(:'m');
select reconstruct_message(:'m');
select reconstruct_message(:'nothing'), reconstruct_message(null);
select cleanup_streaming_artifacts(:'nothing');
select cleanup_streaming_artifacts(null);

-- Without a chunk there is no text, and with an empty one an empty text.
insert into messages (id, conversation_id, role, status) values
('00000000-0000-4000-8000-000000000012', :'c', 'assistant', 'streaming'),
('00000000-0000-4000-8000-000000000013', :'c', 'assistant', 'pending');
select reconstruct_message('00000000-0000-4000-8000-000000000012');
select * from read_stream('00000000-0000-4000-8000-000000000012');
select finish_message('00000000-0000-4000-8000-000000000012', 1);
select * from read_stream('00000000-0000-4000-8000-000000000012');
select * from append_chunks('00000000-0000-4000-8000-000000000013', '{}');
select status from messages where id = '00000000-0000-4000-8000-000000000013';
select * from append_chunk('00000000-0000-4000-8000-000000000013', '', is_final => true);
select * from states where id in ('12', '13');

-- A reader stops it, and keeps what he has seen; the producer hears of it.
insert into messages (id, conversation_id, role, status) values
('00000000-0000-4000-8000-000000000021', :'c', 'assistant', 'streaming'),
('00000000-0000-4000-8000-000000000022', :'c', 'assistant', 'streaming'),
('00000000-0000-4000-8000-000000000023', :'c', 'assistant', 'streaming');
select count(append_chunks(id, array['Größe ', '☃ ', 'Ende'])) from messages where status = 'streaming';
select stop_message('00000000-0000-4000-8000-000000000021', 7);
select stop_message('00000000-0000-4000-8000-000000000022', seen_chars => 1000);
select stop_message('00000000-0000-4000-8000-000000000023');
select * from states where id in ('21', '22', '23');
select stop_message('00000000-0000-4000-8000-000000000021', 2);
select * from append_chunk('00000000-0000-4000-8000-000000000021', ' oder', 3);
select * from append_chunks('00000000-0000-4000-8000-000000000023', array['x', 'y'], 700, true);
select * from read_stream('00000000-0000-4000-8000-000000000021', 2);
select * from read_stream('00000000-0000-4000-8000-000000000023', 1);
select finish_message('00000000-0000-4000-8000-000000000021', 5, 6);
select finish_message('00000000-0000-4000-8000-000000000021', 5, 7);
select fail_message('00000000-0000-4000-8000-000000000021', 'too late');
select resume_message('00000000-0000-4000-8000-000000000021');
select stop_message(:'m');
select stop_message('00000000-0000-4000-8000-000000000022', -1);
select stop_message(:'nothing', 0);
select stop_message(null);
select status, content, prompt_token_count, completion_token_count
from messages where id = '00000000-0000-4000-8000-000000000021';

-- One that went wrong keeps what there was.
insert into messages (id, conversation_id, role, status)
values ('00000000-0000-4000-8000-000000000031', :'c', 'assistant', 'streaming');
\set f 00000000-0000-4000-8000-000000000031
select append_chunk(:'f', 'half of');
select fail_message(:'f', 'model went away');
select fail_message(message_id => :'f', error => 'model went away');
select fail_message(:'f', 'another');
select fail_message(:'f', null);
select fail_message(:'nothing', 'x');
select append_chunk(:'f', ' it');
select * from append_chunk(:'f', 'half of', 0);
select finish_message(:'f');
select stop_message(:'f');
select resume_message(:'f');
select * from states where id = '31';
select * from read_stream(:'f');

-- Nobody but the service keeps house.
select recover_stalled_messages('0 s');
select cleanup_finished_streams('0 s');
select recover_stalled_messages(null, -1);

-- An interrupted one is taken up where it was.
insert into messages (id, conversation_id, role, status, completed_at) values
('00000000-0000-4000-8000-000000000041', :'c', 'assistant', 'streaming', null),
('00000000-0000-4000-8000-000000000042', :'c', 'assistant', 'streaming', null),
('00000000-0000-4000-8000-000000000043', :'c', 'assistant', 'streaming', null);
\set i 00000000-0000-4000-8000-000000000041
select append_chunks(id, array['to be', ' continued']) from messages where status = 'streaming';
select resume_message(:'i');
reset role;
set role contract_service;
select recover_stalled_messages('1 day');
select recover_stalled_messages('0 s', 2);
select recover_stalled_messages(idle => '0 s');
select recover_stalled_messages(null);
select recover_stalled_messages('0 s', null);
select recover_stalled_messages('0 s', -1);
select * from states where id in ('41', '42', '43');
select cleanup_streaming_artifacts(:'i');
reset role;
set role contract_user;
select append_chunk(:'i', ' here');
select append_chunk(:'i', ' continued', 1);
select * from read_stream(:'i', 0);
select * from read_stream(:'i', 1);
select resume_message(:'i');
select * from states where id = '41';
select reconstruct_message(:'i');
select * from read_stream(:'i', 1);
select * from append_chunk(:'i', ' here', 2);
select finish_message(:'i');
select finish_message('00000000-0000-4000-8000-000000000042', 1, 2);
select stop_message('00000000-0000-4000-8000-000000000043', 5);
select * from states where id in ('41', '42', '43');
select resume_message(:'i');
select resume_message(:'nothing');
select resume_message(null);

-- By plain SQL, in any order; clients of old begin with an empty message.
insert into messages (id, conversation_id, role, content) values
('00000000-0000-4000-8000-000000000051', :'c', 'assistant', ''),
('00000000-0000-4000-8000-000000000052', :'c', 'assistant', '');
\set p 00000000-0000-4000-8000-000000000051
insert into message_chunks (message_id, chunk_content) values (:'p', 'zero') returning chunk_index, is_final;
insert into message_chunks (message_id, chunk_content, chunk_index, is_final) values
(:'p', ' four', 4, true), (:'p', ' two', 2, false);
select * from states where id = '51';
select * from read_stream(:'p');
select reconstruct_message(:'p');
select finish_message(:'p');
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', 'other', 2);
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', 'other', 2) on conflict do nothing;
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', 'beyond', 5);
insert into message_chunks (message_id, chunk_content) values (:'p', 'beyond');
insert into message_chunks (message_id, chunk_content, chunk_index, is_final) values (:'p', 'end', 1, true);
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', ' one', 1), (:'p', ' three', 3);
select * from states where id = '51';
insert into message_chunks (message_id, chunk_content) values (:'p', 'late');
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', ' three', 3) on conflict do nothing;
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', ' three', 3);
insert into message_chunks (message_id, chunk_content, is_final)
select '00000000-0000-4000-8000-000000000052', n || ' ', n = 5 from generate_series(1, 5) n;
select * from states where id = '52';
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', 'x', -1);
insert into message_chunks (message_id, chunk_content, chunk_index) values (:'p', 'x', 2147483647);
insert into message_chunks (message_id, chunk_content) values (:'p', null);
insert into message_chunks (message_id, chunk_content) values (null, 'x');
insert into message_chunks (message_id, chunk_content) values (:'nothing', 'x');
insert into message_chunks (message_id, chunk_content, created_at) values (:'p', 'x', '2000-01-01');
update message_chunks set chunk_content = 'x';
delete from message_chunks;
truncate message_chunks;
copy message_chunks (message_id, chunk_content) from stdin;
00000000-0000-4000-8000-000000000052	x
\.

-- A notice is for those who may read; nobody else listens.
select listen_conversation(:'c');
select pg_listening_channels();
select unlisten_conversation(:'c');
select count(*) from pg_listening_channels();
select unlisten_conversation(:'d');
select listen_conversation(:'nothing');
select listen_conversation(null);
select unlisten_conversation(null);

-- A viewer reads.
set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000c';
select reconstruct_message(:'m');
select * from read_stream(:'p', 2);
select append_chunk(:'m', 'x');
select append_chunk(:'nothing', 'x');
select stop_message(:'m');
select cleanup_streaming_artifacts(:'p');
select begin_message(:'c');
insert into message_chunks (message_id, chunk_content) values (:'m', 'x');
select has_message_access(:'m', current_user_id(), 'read') as read,
    has_message_access(:'m', current_user_id(), 'write') as write,
    has_message_access(:'m', '00000000-0000-4000-8000-00000000000a', 'read') as as_another;
select has_message_access(:'m', current_user_id(), 'own');
select has_message_access(:'nothing', current_user_id(), 'read'), has_message_access(null, null, null);

-- A stranger hears the same as for what does not exist.
set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000f';
select reconstruct_message(:'m');
select * from read_stream(:'m');
select * from wait_for_chunks(:'m');
select append_chunk(:'m', 'x');
select append_chunks(:'m', '{}');
select finish_message(:'m');
select fail_message(:'m', 'x');
select stop_message(:'m');
select resume_message(:'m');
select cleanup_streaming_artifacts(:'m');
select begin_message(:'c');
select listen_conversation(:'c');
insert into message_chunks (message_id, chunk_content) values (:'m', 'x');
select count(*) from message_chunks;
set pg_conversation.user_id = '';
select append_chunk(:'m', 'x');
select count(*) from message_chunks;

-- The service writes and reads every stream, in rows that come from anywhere.
reset role;
set role contract_service;
select begin_message(:'d', 'tool', client_message_id => 'k') as served \gset
select * from append_chunk(:'served', 'by the ', 0);
insert into messages (id, conversation_id, role, status)
values ('00000000-0000-4000-8000-000000000061', :'d', 'assistant', 'pending');
\set s 00000000-0000-4000-8000-000000000061
copy message_chunks (message_id, chunk_content, chunk_index, is_final) from stdin;
00000000-0000-4000-8000-000000000061	 copy	1	t
00000000-0000-4000-8000-000000000061	by	0	f
\.
select * from append_chunk(:'served', 'service', is_final => true);
select role, status, content from messages where id = :'served';
select * from states where id = '61';
copy message_chunks (message_id, chunk_content) from stdin;
00000000-0000-4000-8000-000000000061	late
\.
select * from read_stream(:'s', 0);
select * from wait_for_chunks(:'s', 0);
select reconstruct_message(:'m');
select stop_message(begin_message(:'d'));
select fail_message(begin_message(:'d'), 'x');
select resume_message(begin_message(:'d'));
select listen_conversation(:'d');
select unlisten_conversation(:'d');
update message_chunks set chunk_content = 'x';
truncate message_chunks;
delete from message_chunks where message_id = :'nothing';
insert into messages (id, conversation_id, role, status)
values ('00000000-0000-4000-8000-000000000062', :'d', 'assistant', 'streaming');
select append_chunk('00000000-0000-4000-8000-000000000062', 'kept for a day');
select recover_stalled_messages('0 s');

-- Clean-up: what has ended long enough ago, some messages at a time, and what has no message any more.
select count(*), count(distinct message_id) from message_chunks;
select cleanup_finished_streams();
select cleanup_finished_streams('0 s', 0);
select cleanup_finished_streams('0 s', max_messages => 1) > 0 as some;
select cleanup_finished_streams(older_than => '0 s') > 0 as the_rest;
select cleanup_finished_streams('0 s');
select cleanup_finished_streams(null);
select cleanup_finished_streams('0 s', null);
select cleanup_finished_streams('0 s', -1);
select status, count(*) from message_chunks c join messages m on m.id = c.message_id group by status;
select reconstruct_message(:'p');
delete from messages where conversation_id = :'d';
select append_chunks(begin_message(:'d'), array['a', 'b']);
select purge_conversation(:'d');
select count(*) from message_chunks;

-- Chunks are added and removed, never changed; the owner of the tables is told why.
reset role;
insert into messages (id, conversation_id, role, status)
values ('00000000-0000-4000-8000-000000000071', :'c', 'assistant', 'streaming');
select * from append_chunk('00000000-0000-4000-8000-000000000071', 'kept', 0);
update message_chunks set chunk_content = 'x';
insert into message_chunks (message_id, chunk_content, chunk_index)
values ('00000000-0000-4000-8000-000000000071', 'x', 0)
on conflict (message_id, chunk_index) do update set chunk_content = 'x';
select place_chunk();
select complete_streams();
select remove_chunks();

-- Settings.
show pg_conversation.chunk_commit;
show pg_conversation.notify_interval;
set pg_conversation.chunk_commit = 'sync';
set pg_conversation.chunk_commit = 'perhaps';
set pg_conversation.notify_interval = '1 s';
set pg_conversation.notify_interval = -1;

-- Publications.
set client_min_messages = error;
select enable_realtime('contract_pub');
select schemaname, tablename from pg_publication_tables where pubname = 'contract_pub' order by 2;
select enable_realtime('contract_pub', include_chunks => true);
select enable_realtime('contract_pub');
select tablename from pg_publication_tables where pubname = 'contract_pub' order by 1;
select disable_realtime('contract_pub');
select count(*) from pg_publication_tables where pubname = 'contract_pub';
select disable_realtime('no such publication');
select enable_realtime(null);
set role contract_user;
select enable_realtime('contract_pub');
reset role;
set role contract_service;
select enable_realtime('contract_pub');
