alter table @extschema@.usage_events enable row level security;
alter table @extschema@.usage_days enable row level security;
alter table @extschema@.usage_totals enable row level security;
alter table @extschema@.usage_months enable row level security;
alter table @extschema@.model_prices enable row level security;

alter table @extschema@.model_prices alter column id set default @extschema@.new_id();

drop policy if exists usage_events_read on @extschema@.usage_events;
create policy usage_events_read on @extschema@.usage_events for select
using (
    tenant_id = (select @extschema@.current_tenant_id())
    and (user_id = (select @extschema@.current_user_id()) or (select @extschema@.is_tenant_admin()))
);

drop policy if exists usage_days_read on @extschema@.usage_days;
create policy usage_days_read on @extschema@.usage_days for select
using (
    tenant_id = (select @extschema@.current_tenant_id())
    and (user_id = (select @extschema@.current_user_id()) or (select @extschema@.is_tenant_admin()))
);

drop policy if exists usage_totals_read on @extschema@.usage_totals;
create policy usage_totals_read on @extschema@.usage_totals for select
using (tenant_id = (select @extschema@.current_tenant_id()) and (select @extschema@.is_tenant_admin()));

drop policy if exists usage_months_read on @extschema@.usage_months;
create policy usage_months_read on @extschema@.usage_months for select
using (tenant_id = (select @extschema@.current_tenant_id()) and (select @extschema@.is_tenant_admin()));

-- What is charged is between the service and its providers.
drop policy if exists model_prices_read on @extschema@.model_prices;
create policy model_prices_read on @extschema@.model_prices for select using (false);

create or replace trigger refuse_insert
before insert on @extschema@.usage_events
for each statement execute function @extschema@.refuse_event();

create or replace trigger refuse_rewrite
before update on @extschema@.usage_events
for each row execute function @extschema@.refuse_change('what was recorded is never changed');

create or replace view @extschema@.usage_metrics with (security_invoker = true) as
select
    d.tenant_id,
    nullif(d.user_id, '00000000-0000-0000-0000-000000000000') as user_id,
    d.date,
    sum(d.prompt_tokens)::bigint as prompt_tokens,
    sum(d.completion_tokens)::bigint as completion_tokens,
    sum(d.prompt_tokens + d.completion_tokens)::bigint as total_tokens,
    sum(d.request_count)::bigint as request_count,
    sum(d.cost) as estimated_cost
from @extschema@.usage_days d
group by d.tenant_id, d.date, d.user_id;

create or replace view @extschema@.usage_by_month with (security_invoker = true) as
select
    m.tenant_id,
    m.month,
    sum(m.prompt_tokens)::bigint as prompt_tokens,
    sum(m.completion_tokens)::bigint as completion_tokens,
    sum(m.prompt_tokens + m.completion_tokens)::bigint as total_tokens,
    sum(m.request_count)::bigint as request_count,
    sum(m.unpriced_count)::bigint as unpriced_count,
    sum(m.cost) as estimated_cost
from @extschema@.usage_months m
group by m.tenant_id, m.month;

-- Which day it is depends on a column, and so is not for an index of a table with policies to know; that it
-- is one of three is.
create or replace view @extschema@.current_day_usage with (security_invoker = true) as
select
    d.tenant_id,
    nullif(d.user_id, '00000000-0000-0000-0000-000000000000') as user_id,
    d.date,
    sum(d.prompt_tokens)::bigint as prompt_tokens,
    sum(d.completion_tokens)::bigint as completion_tokens,
    sum(d.prompt_tokens + d.completion_tokens)::bigint as total_tokens,
    sum(d.request_count)::bigint as request_count,
    sum(d.cost) as estimated_cost
from @extschema@.tenants t
join @extschema@.usage_days d on d.tenant_id = t.id and d.date = timezone(t.time_zone, now())::date
where d.date >= timezone('UTC', now())::date - 1 and d.date <= timezone('UTC', now())::date + 1
group by d.tenant_id, d.date, d.user_id;

comment on table @extschema@.usage_events is
'The ledger: what models have used, one row an event, never changed. A mistake is voided by another row.';
comment on column @extschema@.usage_events.tenant_id is 'Tenant that is charged.';
comment on column @extschema@.usage_events.idempotency_key is
'Key of the caller, unique in the tenant. message:, void:, repricing: and increment: are the extension''s own.';
comment on column @extschema@.usage_events.kind is 'usage, increment, void or repricing.';
comment on column @extschema@.usage_events.user_id is
'User who caused it; null for nobody. He may have been deleted since.';
comment on column @extschema@.usage_events.model is 'Model that was used; empty when nobody said.';
comment on column @extschema@.usage_events.usage is 'Figures as they were given, a JSON object.';
comment on column @extschema@.usage_events.prompt_tokens is 'Tokens of the prompt; negative in a void.';
comment on column @extschema@.usage_events.completion_tokens is 'Tokens of the answer; negative in a void.';
comment on column @extschema@.usage_events.request_count is 'Requests: 1, or -1 in a void, or 0 in a repricing.';
comment on column @extschema@.usage_events.cost is 'Cost at the prices of occurred_at; negative in a void.';
comment on column @extschema@.usage_events.unpriced is
'Types of usage that had no price, and values that are no numbers.';
comment on column @extschema@.usage_events.occurred_at is
'When it was used; that of recording, to the microsecond, when nobody said.';
comment on column @extschema@.usage_events.date is 'Day of occurred_at in the time zone that the tenant had.';
comment on column @extschema@.usage_events.recorded_at is 'When it was recorded.';
comment on column @extschema@.usage_events.recorded_by is 'Role that recorded it.';
comment on column @extschema@.usage_events.reason is 'Why it was voided or repriced.';
comment on index @extschema@.idx_usage_events_tenant_date is 'Events of a tenant''s days, and of a user in them.';
comment on policy usage_events_read on @extschema@.usage_events is 'A user sees his own; an admin sees his tenant''s.';
comment on trigger refuse_insert on @extschema@.usage_events is
'Events come by functions, which keep the sums; only the owner, who restores, may insert.';
comment on trigger refuse_rewrite on @extschema@.usage_events is 'What was recorded is never changed.';

comment on table @extschema@.usage_days is
'What events add up to by tenant, day, user and model: the sum over the slots of a key.';
comment on column @extschema@.usage_days.tenant_id is 'Tenant.';
comment on column @extschema@.usage_days.date is 'Day in the tenant''s time zone.';
comment on column @extschema@.usage_days.user_id is 'User; all zeros for nobody.';
comment on column @extschema@.usage_days.model is 'Model; empty when nobody said.';
comment on column @extschema@.usage_days.slot is
'One of several rows that are added up, so that writers do not wait for one another; 0 once folded.';
comment on column @extschema@.usage_days.prompt_tokens is 'Tokens of prompts.';
comment on column @extschema@.usage_days.completion_tokens is 'Tokens of answers.';
comment on column @extschema@.usage_days.request_count is 'Requests.';
comment on column @extschema@.usage_days.unpriced_count is 'Events with something that has no price.';
comment on column @extschema@.usage_days.cost is 'Cost.';
comment on index @extschema@.idx_usage_days_unfolded is 'Rows that fold_usage has still to look at.';
comment on policy usage_days_read on @extschema@.usage_days is 'A user sees his own; an admin sees his tenant''s.';

comment on table @extschema@.usage_totals is
'What events add up to by tenant and day: the sum over the slots of a key.';
comment on column @extschema@.usage_totals.tenant_id is 'Tenant.';
comment on column @extschema@.usage_totals.date is 'Day in the tenant''s time zone.';
comment on column @extschema@.usage_totals.slot is
'One of several rows that are added up, so that writers do not wait for one another; 0 once folded.';
comment on column @extschema@.usage_totals.prompt_tokens is 'Tokens of prompts.';
comment on column @extschema@.usage_totals.completion_tokens is 'Tokens of answers.';
comment on column @extschema@.usage_totals.request_count is 'Requests.';
comment on column @extschema@.usage_totals.unpriced_count is 'Events with something that has no price.';
comment on column @extschema@.usage_totals.cost is 'Cost.';
comment on index @extschema@.idx_usage_totals_unfolded is 'Rows that fold_usage has still to look at.';
comment on policy usage_totals_read on @extschema@.usage_totals is 'Admins see their tenant''s.';

comment on table @extschema@.usage_months is
'What events add up to by tenant and month: the sum over the slots of a key.';
comment on column @extschema@.usage_months.tenant_id is 'Tenant.';
comment on column @extschema@.usage_months.month is 'First day of the month.';
comment on column @extschema@.usage_months.slot is
'One of several rows that are added up, so that writers do not wait for one another; 0 once folded.';
comment on column @extschema@.usage_months.prompt_tokens is 'Tokens of prompts.';
comment on column @extschema@.usage_months.completion_tokens is 'Tokens of answers.';
comment on column @extschema@.usage_months.request_count is 'Requests.';
comment on column @extschema@.usage_months.unpriced_count is 'Events with something that has no price.';
comment on column @extschema@.usage_months.cost is 'Cost.';
comment on index @extschema@.idx_usage_months_unfolded is 'Rows that fold_usage has still to look at.';
comment on policy usage_months_read on @extschema@.usage_months is 'Admins see their tenant''s.';

comment on table @extschema@.model_prices is 'What a unit of usage costs, by model, type and time.';
comment on column @extschema@.model_prices.id is 'Key.';
comment on column @extschema@.model_prices.pattern is
'LIKE pattern of models; of those that match, the longest counts.';
comment on column @extschema@.model_prices.usage_type is
'What is priced: prompt_tokens, completion_tokens, or whatever else usage has.';
comment on column @extschema@.model_prices.unit_price is 'Price of one token, or other unit.';
comment on column @extschema@.model_prices.valid_from is 'Since when.';
comment on column @extschema@.model_prices.valid_to is 'Until when, that moment left out.';
comment on column @extschema@.model_prices.metadata is 'Anything else, a JSON object.';
comment on column @extschema@.model_prices.created_at is 'When it was made.';
comment on index @extschema@.model_prices_do_not_overlap is 'One price at a time for a pattern and a usage type.';
comment on index @extschema@.idx_model_prices_usage_type is 'Prices of a type of usage.';
comment on policy model_prices_read on @extschema@.model_prices is
'Nobody who is bound by policies: prices are for the service.';

comment on view @extschema@.usage_metrics is 'Usage by tenant, user and day, as of now; a null user is nobody.';
comment on column @extschema@.usage_metrics.tenant_id is 'Tenant.';
comment on column @extschema@.usage_metrics.user_id is 'User; null for nobody.';
comment on column @extschema@.usage_metrics.date is 'Day in the tenant''s time zone.';
comment on column @extschema@.usage_metrics.prompt_tokens is 'Tokens of prompts.';
comment on column @extschema@.usage_metrics.completion_tokens is 'Tokens of answers.';
comment on column @extschema@.usage_metrics.total_tokens is 'Both.';
comment on column @extschema@.usage_metrics.request_count is 'Requests.';
comment on column @extschema@.usage_metrics.estimated_cost is 'Cost at the prices that were known.';
comment on view @extschema@.usage_by_month is 'Usage by tenant and month, as of now.';
comment on column @extschema@.usage_by_month.tenant_id is 'Tenant.';
comment on column @extschema@.usage_by_month.month is 'First day of the month.';
comment on column @extschema@.usage_by_month.prompt_tokens is 'Tokens of prompts.';
comment on column @extschema@.usage_by_month.completion_tokens is 'Tokens of answers.';
comment on column @extschema@.usage_by_month.total_tokens is 'Both.';
comment on column @extschema@.usage_by_month.request_count is 'Requests.';
comment on column @extschema@.usage_by_month.unpriced_count is 'Events with something that has no price.';
comment on column @extschema@.usage_by_month.estimated_cost is 'Cost at the prices that were known.';
comment on view @extschema@.current_day_usage is 'Usage of today, in the tenant''s time zone, by user.';
comment on column @extschema@.current_day_usage.tenant_id is 'Tenant.';
comment on column @extschema@.current_day_usage.user_id is 'User; null for nobody.';
comment on column @extschema@.current_day_usage.date is 'Today.';
comment on column @extschema@.current_day_usage.prompt_tokens is 'Tokens of prompts.';
comment on column @extschema@.current_day_usage.completion_tokens is 'Tokens of answers.';
comment on column @extschema@.current_day_usage.total_tokens is 'Both.';
comment on column @extschema@.current_day_usage.request_count is 'Requests.';
comment on column @extschema@.current_day_usage.estimated_cost is 'Cost at the prices that were known.';
comment on materialized view @extschema@.monthly_usage_summary is
'Usage by tenant, user and month, as of the last refresh_analytics; usage_by_month is always up to date.';
comment on column @extschema@.monthly_usage_summary.tenant_id is 'Tenant.';
comment on column @extschema@.monthly_usage_summary.user_id is 'User; null for nobody.';
comment on column @extschema@.monthly_usage_summary.month is 'First day of the month.';
comment on column @extschema@.monthly_usage_summary.total_prompt_tokens is 'Tokens of prompts.';
comment on column @extschema@.monthly_usage_summary.total_completion_tokens is 'Tokens of answers.';
comment on column @extschema@.monthly_usage_summary.total_tokens is 'Both.';
comment on column @extschema@.monthly_usage_summary.total_requests is 'Requests.';
comment on column @extschema@.monthly_usage_summary.total_cost is 'Cost at the prices that were known.';
comment on column @extschema@.monthly_usage_summary.active_days is 'Days with events.';
comment on index @extschema@.idx_monthly_usage_summary is
'One row a tenant, user and month; refreshes beside readers need it.';
