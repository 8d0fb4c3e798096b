-- Who is calling: claims first, then the setting; whoever cannot be told is nobody.
create extension pg_conversation;
select grant_access('contract_user');
insert into tenants (id, name, slug) values ('00000000-0000-4000-8000-0000000000e1', 'One', 'one');
insert into users (id, auth_id, tenant_id, name, role) values
('00000000-0000-4000-8000-00000000000a', '00000000-0000-4000-8000-0000000000aa',
 '00000000-0000-4000-8000-0000000000e1', 'Ada', 'member'),
('00000000-0000-4000-8000-00000000000b', '00000000-0000-4000-8000-0000000000bb',
 '00000000-0000-4000-8000-0000000000e1', 'Bea', 'admin'),
('00000000-0000-4000-8000-00000000000c', '00000000-0000-4000-8000-0000000000cc', default, 'Cleo', 'member');
set role contract_user;

select current_user_id(), current_tenant_id(), is_tenant_admin();
select ensure_user();

set request.jwt.claims = '{"sub": "00000000-0000-4000-8000-0000000000AA", "role": "authenticated"}';
select current_user_id(), current_tenant_id(), is_tenant_admin(), ensure_user();
select name from users order by name;
select name from tenants;
set request.jwt.claims = '{"sub": "00000000-0000-4000-8000-0000000000bb"}';
select name, is_tenant_admin() from users order by name;
set request.jwt.claims = '{"sub": "00000000-0000-4000-8000-0000000000cc"}';
select name, tenant_id from users order by name;

-- Claims that are there but name nobody do not fall back to the setting.
set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000a';
set request.jwt.claims = 'not json';
select current_user_id();
set request.jwt.claims = '{"role": "anon"}';
select current_user_id();
set request.jwt.claims = '{"sub": "nobody"}';
select current_user_id();
set request.jwt.claims = '';
select current_user_id();
set request.jwt.claim.sub = '00000000-0000-4000-8000-0000000000bb';
select current_user_id();
reset request.jwt.claim.sub;
select current_user_id();
set pg_conversation.user_id = 'nobody';
select current_user_id();

-- Inactive users and tenants are nobody, at once.
set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000a';
select count(*) from users;
reset role;
update users set is_active = false where name = 'Ada';
set role contract_user;
select count(*), current_user_id() from users;
select ensure_user();
reset role;
update users set is_active = true where name = 'Ada';
update tenants set is_active = false where slug = 'one';
set role contract_user;
select count(*), current_user_id() from users;
reset role;
update tenants set is_active = true where slug = 'one';
set role contract_user;
select current_user_id();

-- A user changes himself in a few columns, and nobody else.
update users set name = 'Ada L.' returning name;
update users set role = 'admin';
update users set tenant_id = default;
insert into users (id) values (new_id());
reset role;
update users set tenant_id = default where name = 'Bea';
select new_id() < new_id() as rising, substr(new_id()::text, 15, 1) as version;
