-- No foreign keys: one would lock the tenant's row for every event, and history outlives users. Names
-- are compared byte by byte, for keys of the extension's own begin with a kind and a colon.
create table @extschema@.usage_events (
    tenant_id uuid not null,
    user_id uuid,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    request_count integer not null,
    date date not null,
    idempotency_key text collate pg_catalog."C" not null
    constraint usage_events_key_is_1_to_220 check (pg_catalog.char_length(idempotency_key) between 1 and 220),
    kind text not null
    constraint usage_events_kind_is_known check (kind in ('usage', 'increment', 'void', 'repricing')),
    model text collate pg_catalog."C" not null default '',
    usage jsonb not null
    constraint usage_events_usage_is_object check (pg_catalog.jsonb_typeof(usage) = 'object'),
    cost numeric not null,
    unpriced text [] not null default '{}',
    recorded_by text not null,
    reason text,
    constraint usage_events_pkey primary key (tenant_id, idempotency_key)
);

create index idx_usage_events_tenant_date on @extschema@.usage_events (tenant_id, date, user_id);

-- What events add up to, in the transaction of each. A figure is the sum over the slots of its key:
-- a writer takes one that nobody has locked, so that none waits for another. Slot 0 is that of days
-- that were folded. Pages have room for the next versions of their rows.
create table @extschema@.usage_days (
    tenant_id uuid not null,
    user_id uuid not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    request_count bigint not null,
    unpriced_count bigint not null,
    date date not null,
    slot integer not null,
    model text collate pg_catalog."C" not null,
    cost numeric not null,
    constraint usage_days_pkey primary key (tenant_id, date, user_id, model, slot)
) with (fillfactor = 60);

create index idx_usage_days_unfolded on @extschema@.usage_days (date) where slot <> 0;

create table @extschema@.usage_totals (
    tenant_id uuid not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    request_count bigint not null,
    unpriced_count bigint not null,
    date date not null,
    slot integer not null,
    cost numeric not null,
    constraint usage_totals_pkey primary key (tenant_id, date, slot)
) with (fillfactor = 50);

create index idx_usage_totals_unfolded on @extschema@.usage_totals (date) where slot <> 0;

create table @extschema@.usage_months (
    tenant_id uuid not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    request_count bigint not null,
    unpriced_count bigint not null,
    month date not null,
    slot integer not null,
    cost numeric not null,
    constraint usage_months_pkey primary key (tenant_id, month, slot)
) with (fillfactor = 50);

create index idx_usage_months_unfolded on @extschema@.usage_months (month) where slot <> 0;

create table @extschema@.model_prices (
    id uuid not null constraint model_prices_pkey primary key,
    pattern text collate pg_catalog."C" not null
    constraint model_prices_pattern_is_1_to_200 check (pg_catalog.char_length(pattern) between 1 and 200)
    constraint model_prices_pattern_is_whole check (pattern !~ '(^|[^\\])(\\\\)*\\$'),
    usage_type text collate pg_catalog."C" not null
    constraint model_prices_usage_type_is_1_to_100 check (pg_catalog.char_length(usage_type) between 1 and 100)
    constraint model_prices_usage_type_is_priced
    check (usage_type not in ('input_tokens', 'output_tokens', 'total_tokens')),
    -- The upper bound also keeps out NaN and infinity.
    unit_price numeric not null
    constraint model_prices_unit_price_is_0_to_a_million check (unit_price between 0 and 1000000)
    constraint model_prices_unit_price_has_20_decimals check (pg_catalog.scale(unit_price) <= 20),
    valid_from timestamptz not null default '-infinity',
    valid_to timestamptz not null default 'infinity',
    metadata jsonb not null default '{}'
    constraint model_prices_metadata_is_object check (pg_catalog.jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default pg_catalog.now(),
    constraint model_prices_valid_for_a_time check (valid_from < valid_to),
    -- One price at a time for a pattern and type. A range of the hash of both stands for them, for
    -- which no other extension is needed.
    constraint model_prices_do_not_overlap exclude using gist (
        pg_catalog.int8range(
            pg_catalog.hashtextextended(usage_type, pg_catalog.hashtextextended(pattern, 0)),
            pg_catalog.hashtextextended(usage_type, pg_catalog.hashtextextended(pattern, 0)),
            '[]'
        ) with &&,
        pg_catalog.tstzrange(valid_from, valid_to) with &&
    )
);

create index idx_model_prices_usage_type on @extschema@.model_prices (usage_type);

create materialized view @extschema@.monthly_usage_summary as
select
    d.tenant_id,
    nullif(d.user_id, '00000000-0000-0000-0000-000000000000') as user_id,
    pg_catalog.date_trunc('month', d.date::timestamp)::date as month,
    pg_catalog.sum(d.prompt_tokens)::bigint as total_prompt_tokens,
    pg_catalog.sum(d.completion_tokens)::bigint as total_completion_tokens,
    pg_catalog.sum(d.prompt_tokens + d.completion_tokens)::bigint as total_tokens,
    pg_catalog.sum(d.request_count)::bigint as total_requests,
    pg_catalog.sum(d.cost) as total_cost,
    pg_catalog.count(distinct d.date) as active_days
from @extschema@.usage_days d
group by d.tenant_id, d.user_id, pg_catalog.date_trunc('month', d.date::timestamp)::date;

create unique index idx_monthly_usage_summary
on @extschema@.monthly_usage_summary (tenant_id, user_id, month) nulls not distinct;
