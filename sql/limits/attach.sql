alter table @extschema@.rate_states enable row level security;
alter table @extschema@.token_windows enable row level security;
alter table @extschema@.token_reservations enable row level security;

-- For tenants that were there before the trigger was.
insert into @extschema@.rate_states (tenant_id, next_at)
select t.id, now() from @extschema@.tenants t
where not exists (select from @extschema@.rate_states s where s.tenant_id = t.id);

create or replace trigger make_rate_state
after insert on @extschema@.tenants
for each row execute function @extschema@.make_rate_state();

drop policy if exists rate_states_read on @extschema@.rate_states;
create policy rate_states_read on @extschema@.rate_states for select
using ((select @extschema@.is_tenant_admin()) and tenant_id = (select @extschema@.current_tenant_id()));

drop policy if exists token_windows_read on @extschema@.token_windows;
create policy token_windows_read on @extschema@.token_windows for select
using ((select @extschema@.is_tenant_admin()) and tenant_id = (select @extschema@.current_tenant_id()));

drop policy if exists token_reservations_read on @extschema@.token_reservations;
create policy token_reservations_read on @extschema@.token_reservations for select
using (
    tenant_id = (select @extschema@.current_tenant_id())
    and (user_id = (select @extschema@.current_user_id()) or (select @extschema@.is_tenant_admin()))
);

comment on table @extschema@.rate_states is
'How far each tenant has drawn on its requests a minute. Rows are changed in place, without a new version: the table
has no index but its key.';
comment on column @extschema@.rate_states.tenant_id is 'The tenant.';
comment on column @extschema@.rate_states.next_at is
'When all that was drawn will have come back; a minute ahead nothing is left.';
comment on table @extschema@.token_windows is
'Tokens that were settled, by tenant and day: the sum of its slots, so that nobody waits to add to it.';
comment on column @extschema@.token_windows.tenant_id is 'The tenant.';
comment on column @extschema@.token_windows.date is 'The day, in the time zone of the tenant.';
comment on column @extschema@.token_windows.slot is 'Tells the rows of one day apart; it means nothing else.';
comment on column @extschema@.token_windows.used is 'Tokens.';
comment on table @extschema@.token_reservations is
'Tokens that somebody is about to use: they count until they are settled, released or expired.';
comment on column @extschema@.token_reservations.id is 'Key; that of the message where begin_message has reserved.';
comment on column @extschema@.token_reservations.tenant_id is 'The tenant.';
comment on column @extschema@.token_reservations.user_id is 'User who asked for them; null when nobody was signed in.';
comment on column @extschema@.token_reservations.conversation_id is
'Conversation of the message that begin_message has reserved for; null for reserve_tokens.';
comment on column @extschema@.token_reservations.tokens is 'How many, at most.';
comment on column @extschema@.token_reservations.settled is
'How many it were; 0 when they were released, null while nobody has said.';
comment on column @extschema@.token_reservations.created_at is 'When they were reserved.';
comment on column @extschema@.token_reservations.expires_at is 'From when on they do not count any more.';
comment on column @extschema@.token_reservations.closed_at is 'When they were settled or released.';
comment on column @extschema@.token_reservations.date is
'The day that they count against, in the time zone of the tenant; that of their reservation.';

comment on index @extschema@.idx_token_windows_date is 'Windows by age, for clean-up.';
comment on index @extschema@.idx_token_reservations_open is 'What is reserved on a day and not closed.';
comment on index @extschema@.idx_token_reservations_expires is 'Reservations by age, for clean-up.';
comment on trigger make_rate_state on @extschema@.tenants is
'Gives a tenant the row that its requests are drawn on.';
comment on policy rate_states_read on @extschema@.rate_states is 'Tenant admins.';
comment on policy token_windows_read on @extschema@.token_windows is 'Tenant admins.';
comment on policy token_reservations_read on @extschema@.token_reservations is
'Whoever reserved them, and tenant admins.';
