-- Conversations and messages through the functions, as a member.
create extension pg_conversation;
select grant_access('contract_user');
set role contract_user;
set request.jwt.claims = '{"sub": "00000000-0000-4000-8000-00000000000a"}';

-- A first insert makes the user.
select current_user_id(), current_tenant_id();
insert into conversations (id, user_id, session_id)
values ('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000a', 'first-session')
returning user_id, tenant_id, session_id, continuation_id, title, visibility, last_sequence;
select current_user_id(), current_tenant_id(), ensure_user();
\set c 00000000-0000-4000-8000-0000000000c1

-- Names and titles fill each other in.
select create_conversation('Given title') is not null as made;
select title, session_id = id::text as named_by_id, continuation_id = id::text as both
from conversations where title = 'Given title';
select create_conversation(continuation_id => 'long-continuation-name') is not null as made;
select title, session_id, continuation_id from conversations where continuation_id = 'long-continuation-name';
select create_conversation(continuation_id => 'long-continuation-name');
select create_conversation(title => repeat('x', 501));
select create_conversation(visibility => 'public');
select create_conversation(metadata => '[]');

-- The same name is the same conversation.
select get_or_create_conversation('first-session') = :'c' as same;
select get_or_create_conversation('new') = get_or_create_conversation(continuation_id => 'new') as same;
select get_or_create_conversation(null);

-- Messages are numbered; a retry returns the first.
select sequence_number, created from add_message(:'c', 'user', 'one');
select sequence_number, created
from add_message(conversation_id => :'c', role => 'assistant', content => 'two', client_message_id => 'k');
select sequence_number, created from add_message(:'c', 'assistant', 'two', 'k');
select add_message(:'c', 'assistant', 'other', 'k');
select add_message(:'c', 'user', 'two', 'k');
select add_message(:'c', 'assistant', 'two', 'k', metadata => '{"a": 1}');
select sequence_number, created
from add_message(:'c', 'tool', null, parts => '[{"type": "image"}]', metadata => '{"n": 1.10}');

-- Plain inserts: own ids, many rows, COPY, upserts that change nothing.
insert into messages (id, conversation_id, role, content) values
('00000000-0000-4000-8000-0000000000d1', :'c', 'user', 'four'),
('00000000-0000-4000-8000-0000000000d2', :'c', 'assistant', 'five')
returning sequence_number, tenant_id, status;
insert into messages (id, conversation_id, role, content)
values ('00000000-0000-4000-8000-0000000000d1', :'c', 'user', 'four') on conflict (id) do nothing;
insert into messages (conversation_id, role, content, client_message_id)
values (:'c', 'assistant', 'two', 'k') on conflict do nothing;
copy messages (conversation_id, role, content) from stdin with (format csv);
00000000-0000-4000-8000-0000000000c1,user,six
00000000-0000-4000-8000-0000000000c1,assistant,seven
\.
select sequence_number, role, content, status, metadata from messages order by sequence_number;
select last_sequence from conversations where id = :'c';

-- Parents are earlier messages of the same conversation.
select sequence_number from add_message(:'c', 'assistant', 'eight',
    parent_id => '00000000-0000-4000-8000-0000000000d1');
insert into conversations (id, session_id) values ('00000000-0000-4000-8000-0000000000c2', 'second');
select add_message('00000000-0000-4000-8000-0000000000c2', 'assistant', 'stray',
    parent_id => '00000000-0000-4000-8000-0000000000d1');
select add_message(:'c', 'assistant', 'stray', parent_id => '00000000-0000-4000-8000-00000000dead');

-- Reading, whole and in pages.
select session_id, title, role, content, sequence_number from get_conversation_with_messages(:'c');
select sequence_number from get_conversation_with_messages(:'c', after_sequence => 3, max_messages => 2);
select title, message_id, role, content, sequence_number, message_created_at
from get_conversation_with_messages(get_or_create_conversation('new'));
select * from get_conversation_with_messages('00000000-0000-4000-8000-00000000dead');
select role, content, sequence_number from get_conversation_history('first-session', 3);
select sequence_number from get_conversation_history(continuation_id => 'first-session', "limit" => 1);
select * from get_conversation_history('unknown');

-- The list, latest first, in pages.
select title, message_count from list_conversations();
select title from list_conversations(2);
with page as (select * from list_conversations(2)),
last as (select updated_at, conversation_id from page order by updated_at, conversation_id limit 1)
select l.title from last, list_conversations(10, last.updated_at, last.conversation_id) l;
select archive_conversation(:'c');
select count(*) from list_conversations();
select title from list_conversations(archived => true);
select archive_conversation(:'c', archived => false);

-- Deleting hides and gives the name back, purging removes.
select delete_conversation(get_or_create_conversation('new'));
select count(*) from list_conversations();
select delete_conversation('00000000-0000-4000-8000-00000000dead'), archive_conversation(null),
    purge_conversation('00000000-0000-4000-8000-00000000dead');
select get_or_create_conversation('new') is not null as anew;
select count(*), count(deleted_at) from conversations where continuation_id = 'new';
select add_message('00000000-0000-4000-8000-0000000000d0', 'user', 'too late');
select count(purge_conversation(id)) from conversations where deleted_at is not null;
select purge_conversation(:'c');
select count(*) from messages;
