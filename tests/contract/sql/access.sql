-- Owner, members, the tenant and its admins; strangers hear the same as for what does not exist.
create extension pg_conversation;
select grant_access('contract_user');
select grant_access('contract_user', 'king');
select grant_access('nobody_here');
select grant_access('contract_user', 'service');
insert into tenants (id, name, slug) values ('00000000-0000-4000-8000-0000000000e1', 'One', 'one');
insert into users (id, tenant_id, name, role) values
('00000000-0000-4000-8000-00000000000a', '00000000-0000-4000-8000-0000000000e1', 'owner', 'member'),
('00000000-0000-4000-8000-00000000000b', '00000000-0000-4000-8000-0000000000e1', 'editor', 'member'),
('00000000-0000-4000-8000-00000000000c', '00000000-0000-4000-8000-0000000000e1', 'viewer', 'member'),
('00000000-0000-4000-8000-00000000000d', '00000000-0000-4000-8000-0000000000e1', 'colleague', 'member'),
('00000000-0000-4000-8000-00000000000e', '00000000-0000-4000-8000-0000000000e1', 'admin', 'admin'),
('00000000-0000-4000-8000-00000000000f', default, 'stranger', 'admin');
insert into conversations (id, user_id, title, visibility) values
('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000a', 'private', 'private'),
('00000000-0000-4000-8000-0000000000c2', '00000000-0000-4000-8000-00000000000a', 'shared', 'tenant');
insert into conversation_members (conversation_id, user_id, role) values
('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000b', 'editor'),
('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000c', 'viewer');
insert into conversation_members (conversation_id, user_id)
values ('00000000-0000-4000-8000-0000000000c1', '00000000-0000-4000-8000-00000000000f');
insert into messages (conversation_id, role, content)
select id, 'user', title from conversations;

-- What each of them can do, tried for real and rolled back.
create function attempt(statement text) returns text language plpgsql as $$
declare n bigint;
begin
    execute statement;
    get diagnostics n = row_count;
    return n;
exception when others then
    return sqlstate;
end $$;
create table attempts (who text, n int generated always as identity, what text, private text, shared text);
grant all on attempts to contract_user;
create function try_as(who text, id text) returns setof attempts language plpgsql as $$
declare what text; statement text; answer text[];
begin
    perform set_config('pg_conversation.user_id', id, true);
    foreach what in array array[
        'select from conversations where id = %L',
        'select from messages where conversation_id = %L',
        'select from conversation_members where conversation_id = %L',
        'insert into messages (conversation_id, role) values (%L, ''user'')',
        'select add_message(%L, ''user'', ''x'')',
        'update conversations set title = ''x'' where id = %L',
        'update messages set content = ''x'' where conversation_id = %L',
        'delete from messages where conversation_id = %L',
        'insert into conversation_members (conversation_id, user_id) values (%L, new_id())',
        'select from delete_conversation(%L) as deleted where deleted',
        'select from purge_conversation(%L) as purged where purged'
    ] loop
        begin
            answer := array[
                attempt(format(what, '00000000-0000-4000-8000-0000000000c1')),
                attempt(format(what, '00000000-0000-4000-8000-0000000000c2'))];
            raise exception 'undo';
        exception when raise_exception then null;
        end;
        return query select who, 0, what, answer[1], answer[2];
    end loop;
end $$;
set role contract_user;
select who, what, private, shared from try_as('owner', '00000000-0000-4000-8000-00000000000a');
select who, what, private, shared from try_as('editor', '00000000-0000-4000-8000-00000000000b');
select who, what, private, shared from try_as('viewer', '00000000-0000-4000-8000-00000000000c');
select who, what, private, shared from try_as('colleague', '00000000-0000-4000-8000-00000000000d');
select who, what, private, shared from try_as('admin', '00000000-0000-4000-8000-00000000000e');
select who, what, private, shared from try_as('stranger', '00000000-0000-4000-8000-00000000000f');
select who, what, private, shared from try_as('nobody', '');

-- The same words for a stranger's conversation and for none.
set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000f';
select add_message('00000000-0000-4000-8000-0000000000c1', 'user', 'x');
select add_message('00000000-0000-4000-8000-00000000dead', 'user', 'x');
insert into messages (conversation_id, role, parent_id)
select '00000000-0000-4000-8000-0000000000c1', 'user', new_id();

-- Nobody asks for another's rights.
select has_conversation_access('00000000-0000-4000-8000-0000000000c1',
    '00000000-0000-4000-8000-00000000000a', 'read');
select has_conversation_access('00000000-0000-4000-8000-0000000000c1', current_user_id(), 'own');

-- Number, tenant and table-wide verbs are not granted.
insert into messages (conversation_id, role, sequence_number) values (new_id(), 'user', 7);
insert into conversations (title, tenant_id) values ('x', '00000000-0000-4000-8000-0000000000e1');
update conversations set last_sequence = 7;
truncate messages;
reset role;

-- Even the owner of the tables does not move rows.
update messages set sequence_number = sequence_number + 1;
update messages set conversation_id = '00000000-0000-4000-8000-0000000000c2';
update conversations set tenant_id = '00000000-0000-7000-8000-000000000001';
update conversation_members set user_id = '00000000-0000-4000-8000-00000000000a';
select place_message();
