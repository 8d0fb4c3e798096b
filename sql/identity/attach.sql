alter table @extschema@.tenants enable row level security;
alter table @extschema@.users enable row level security;

alter table @extschema@.tenants alter column id set default @extschema@.new_id();
alter table @extschema@.users alter column id set default @extschema@.new_id();
alter table @extschema@.users
alter column tenant_id set default '00000000-0000-7000-8000-000000000001';

-- A fixed id, so that a dump of one installation finds its default tenant in another.
insert into @extschema@.tenants (id, name, slug)
select '00000000-0000-7000-8000-000000000001', 'Default', 'default'
where not exists (select from @extschema@.tenants);

drop policy if exists tenants_read on @extschema@.tenants;
create policy tenants_read on @extschema@.tenants for select
using (id = (select @extschema@.current_tenant_id()));

drop policy if exists users_read on @extschema@.users;
create policy users_read on @extschema@.users for select
using (
    id = (select @extschema@.current_user_id())
    or ((select @extschema@.is_tenant_admin()) and tenant_id = (select @extschema@.current_tenant_id()))
);

drop policy if exists users_update on @extschema@.users;
create policy users_update on @extschema@.users for update
using (id = (select @extschema@.current_user_id()))
with check (id = (select @extschema@.current_user_id()));

create or replace trigger adopt_dumped_row
before insert on @extschema@.tenants
for each row when (new.id = '00000000-0000-7000-8000-000000000001' or new.slug = 'default')
execute function @extschema@.adopt_dumped_tenant();

create or replace trigger touch
before update on @extschema@.tenants
for each row execute function @extschema@.touch_updated_at();

create or replace trigger touch
before update on @extschema@.users
for each row execute function @extschema@.touch_updated_at();

create or replace trigger refuse_move
before update on @extschema@.users
for each row when (new.tenant_id is distinct from old.tenant_id or new.id is distinct from old.id)
execute function @extschema@.refuse_change('a user stays in its tenant and keeps its id');

create or replace trigger refuse_own_rights
before update on @extschema@.users
for each row when (
    new.role is distinct from old.role
    or new.is_active is distinct from old.is_active
    or new.auth_id is distinct from old.auth_id
)
execute function @extschema@.refuse_to_members('nobody gives himself a role, a login or activity');

create or replace trigger deactivate
before update of auth_id on @extschema@.users
for each row when (old.auth_id is not null and new.auth_id is null)
execute function @extschema@.deactivate_user();

comment on table @extschema@.tenants is
'Customers of the product. Rows of different tenants never meet; a default tenant exists from the start.';
comment on column @extschema@.tenants.id is 'Key; the default tenant has a fixed one.';
comment on column @extschema@.tenants.name is 'Name shown to people.';
comment on column @extschema@.tenants.slug is 'Name used in addresses, unique.';
comment on column @extschema@.tenants.llm_provider is 'Provider of the language model, for the backend.';
comment on column @extschema@.tenants.llm_model is 'Model the backend uses when nothing else is asked for.';
comment on column @extschema@.tenants.temperature is 'Sampling temperature from 0 to 2, for the backend.';
comment on column @extschema@.tenants.max_tokens is 'Longest answer in tokens, for the backend.';
comment on column @extschema@.tenants.system_prompt is 'System prompt of the tenant, for the backend.';
comment on column @extschema@.tenants.features is 'Switches of the product, a JSON object.';
comment on column @extschema@.tenants.rate_limit_per_minute is 'Requests a minute; null is no limit.';
comment on column @extschema@.tenants.daily_token_limit is 'Tokens a day; null is no limit.';
comment on column @extschema@.tenants.time_zone is 'Zone whose days its figures and limits go by.';
comment on column @extschema@.tenants.branding is 'Colours, logo and the like, a JSON object.';
comment on column @extschema@.tenants.default_visibility is 'Visibility of a conversation that names none.';
comment on column @extschema@.tenants.is_active is 'False locks out every user of the tenant at once.';
comment on column @extschema@.tenants.metadata is 'Anything else, a JSON object.';
comment on column @extschema@.tenants.created_at is 'When the tenant was made.';
comment on column @extschema@.tenants.updated_at is 'When the row last changed; never moves back.';

comment on table @extschema@.users is 'People and programs that own conversations, each in one tenant.';
comment on column @extschema@.users.id is 'Key; what current_user_id() returns.';
comment on column @extschema@.users.tenant_id is 'Tenant of the user; fixed for life.';
comment on column @extschema@.users.auth_id is 'Subject in the claims of the authentication service.';
comment on column @extschema@.users.email is 'E-mail address, unique in the tenant whatever its case.';
comment on column @extschema@.users.name is 'Name shown to people.';
comment on column @extschema@.users.role is 'member, or admin who sees all conversations of the tenant.';
comment on column @extschema@.users.preferences is 'Choices of the user, a JSON object.';
comment on column @extschema@.users.is_active is 'False locks the user out at once.';
comment on column @extschema@.users.last_active_at is 'When the user was last seen, as the backend tells it.';
comment on column @extschema@.users.metadata is 'Anything else, a JSON object.';
comment on column @extschema@.users.created_at is 'When the user was made.';
comment on column @extschema@.users.updated_at is 'When the row last changed; never moves back.';

comment on index @extschema@.idx_users_tenant_email is 'One user an e-mail address and tenant.';
comment on policy tenants_read on @extschema@.tenants is 'A user sees the tenant he belongs to.';
comment on policy users_read on @extschema@.users is 'A user sees himself; an admin sees his tenant.';
comment on policy users_update on @extschema@.users is
'A user changes himself, in the columns that grants allow.';
comment on trigger adopt_dumped_row on @extschema@.tenants is
'Lets a dump of data alone bring its own tenants beside the default one.';
comment on trigger touch on @extschema@.tenants is 'Moves updated_at forward.';
comment on trigger touch on @extschema@.users is 'Moves updated_at forward.';
comment on trigger refuse_move on @extschema@.users is 'Keeps a user in its tenant.';
comment on trigger deactivate on @extschema@.users is
'Locks a user out whose login was deleted; his conversations stay.';
comment on trigger refuse_own_rights on @extschema@.users is
'Keeps a member from changing his own role, login or activity, whatever was granted to him.';
