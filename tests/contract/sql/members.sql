-- Members of a conversation: who may add, change and remove them, and who is told what.
create extension pg_conversation;
select grant_access('contract_user');
insert into tenants (id, name, slug) values ('00000000-0000-4000-8000-0000000000e1', 'Other', 'other');
insert into users (id, name) values
('00000000-0000-4000-8000-00000000000a', 'Ada'), ('00000000-0000-4000-8000-00000000000b', 'Bob'),
('00000000-0000-4000-8000-00000000000c', 'Cyd'), ('00000000-0000-4000-8000-00000000000d', null);
insert into users (id, name, is_active) values ('00000000-0000-4000-8000-0000000000f0', 'Gone', false);
insert into users (id, name, tenant_id) values
('00000000-0000-4000-8000-0000000000f1', 'Eve', '00000000-0000-4000-8000-0000000000e1');
insert into conversations (id, user_id, title) values
('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000a', 'Shared');
\set c 00000000-0000-4000-8000-0000000000c1
\set ada 00000000-0000-4000-8000-00000000000a
\set bob 00000000-0000-4000-8000-00000000000b
\set cyd 00000000-0000-4000-8000-00000000000c
\set dan 00000000-0000-4000-8000-00000000000d
\set gone 00000000-0000-4000-8000-0000000000f0
\set eve 00000000-0000-4000-8000-0000000000f1
\set nobody 00000000-0000-4000-8000-0000000000ff

set role contract_user;
set pg_conversation.user_id = :'ada';
-- A viewer unless another role is named; once.
select add_member(:'c', :'bob');
select add_member(:'c', :'bob', 'editor');
select add_member(conversation_id => :'c', user_id => :'cyd', role => 'editor');
select add_member(:'c', :'ada');
select user_id, name, role, since is not null as dated from list_members(:'c');
select add_member(:'c', :'dan', 'boss');
select add_member(:'c', :'dan', null);
select add_member(:'c', null);
select add_member(null, :'dan');
-- Users of another tenant, locked out or unknown: the same words.
select add_member(:'c', :'eve');
select add_member(:'c', :'gone');
select add_member(:'c', :'nobody');
-- A conversation that is not there, or not to be seen: the same words.
select add_member(:'nobody', :'dan');
set pg_conversation.user_id = :'eve';
select add_member(:'c', :'eve');
select * from list_members(:'c');

-- Whoever reads sees who else does, and changes nothing but that he is there.
set pg_conversation.user_id = :'bob';
select name, role from list_members(:'c');
select add_member(:'c', :'dan');
select set_member_role(:'c', :'bob', 'owner');
select remove_member(:'c', :'cyd');
select transfer_conversation(:'c', :'bob');
set pg_conversation.user_id = :'cyd';
select remove_member(:'c');
select remove_member(:'c');
select * from list_members(:'c');

set pg_conversation.user_id = :'ada';
select set_member_role(:'c', :'bob', 'viewer');
select set_member_role(:'c', :'bob', 'owner');
select set_member_role(:'c', :'cyd', 'viewer');
select set_member_role(:'c', :'bob', 'king');
select remove_member(:'c', :'cyd');
-- A conversation always has an owner.
select remove_member(:'c');
select set_member_role(:'c', :'ada', 'viewer');
set pg_conversation.user_id = :'bob';
select remove_member(:'c', :'ada');
select transfer_conversation(:'c', :'ada');
select transfer_conversation(:'c', :'bob');
select name, role from list_members(:'c');
select transfer_conversation(:'c', :'gone');
select transfer_conversation(:'c', :'eve');
select remove_member(:'c', :'ada');
select delete_conversation(:'c');
select add_member(:'c', :'dan');
reset role;
reset pg_conversation.user_id;

-- One that is nobody's has owners among its members, and keeps the last of them.
insert into conversations (id) values ('00000000-0000-4000-8000-0000000000c2');
\set d 00000000-0000-4000-8000-0000000000c2
select add_member(:'d', :'ada', 'owner'), add_member(:'d', :'dan');
select name, role from list_members(:'d');
select remove_member(:'d', :'ada');
select set_member_role(:'d', :'ada', 'viewer');
select remove_member(:'d');
select transfer_conversation(:'d', :'dan');
select name, role from list_members(:'d');
