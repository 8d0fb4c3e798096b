create function @extschema@.refuse_event() returns trigger
language c as 'MODULE_PATHNAME', 'refuse_event';
comment on function @extschema@.refuse_event() is
'Trigger: events come by functions; only the owner of the table, who restores, may insert.';

create function @extschema@.record_usage(
    tenant_id uuid,
    user_id uuid,
    model text,
    usage jsonb,
    idempotency_key text,
    occurred_at timestamptz default null,
    out applied boolean,
    out cost numeric,
    out unpriced text [],
    out date date
) language c as 'MODULE_PATHNAME', 'record_usage';
comment on function @extschema@.record_usage(uuid, uuid, text, jsonb, text, timestamptz) is
'Records what a model has used, once for each idempotency_key, and what it cost; for the service.';

create function @extschema@.void_usage(
    tenant_id uuid,
    key text,
    reason text,
    out applied boolean,
    out cost numeric,
    out date date
) language c as 'MODULE_PATHNAME', 'void_usage';
comment on function @extschema@.void_usage(uuid, text, text) is
'Takes an event back, once, by another that negates its figures on the same day; for the service.';

create function @extschema@.increment_usage_metrics(
    p_tenant_id uuid,
    p_user_id uuid,
    p_date date,
    p_prompt_tokens bigint,
    p_completion_tokens bigint,
    p_estimated_cost numeric
) returns void
language c as 'MODULE_PATHNAME', 'increment_usage_metrics';
comment on function @extschema@.increment_usage_metrics(uuid, uuid, date, bigint, bigint, numeric) is
'Adds a request with its tokens and cost to a day. A retry adds it again: record_usage does not; for the service.';

create function @extschema@.fold_usage(max_keys integer default 1000) returns integer
language c as 'MODULE_PATHNAME', 'fold_usage';
comment on function @extschema@.fold_usage(integer) is
'Folds the slots of days and months that are over everywhere into one row each, and returns how many; for the service.';

comment on function @extschema@.recalculate_costs(date, date, boolean, uuid) is
'What events of these days would cost at today''s price list, where that is not what they cost; writes the difference
unless dry_run; for the service.';
comment on function @extschema@.verify_usage(uuid, date, date) is
'Sums of a tenant that disagree with its ledger: none, ever; for the service.';
