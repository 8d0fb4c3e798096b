-- What a user adds that hangs on our functions: DROP EXTENSION ... CASCADE takes it, a restore brings it back.

create policy notes_of_the_tenant on app.notes as restrictive
using ((select @s@.current_tenant_id()) is not null);
create view app.mine as
select c.id, u.name from @s@.conversations c join @s@.users u on u.id = c.user_id
where u.id = (select @s@.current_user_id());
create table app.labels (id uuid primary key default @s@.new_id(), label text);
insert into app.labels (label) values ('made with new_id()');
create trigger touch_tenants_twice before update on @s@.tenants
for each row execute function @s@.touch_updated_at();
