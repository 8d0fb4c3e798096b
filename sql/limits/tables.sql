create table @extschema@.rate_states (
    tenant_id uuid not null
    constraint rate_states_pkey primary key
    constraint rate_states_tenant_exists references @extschema@.tenants (id) on delete cascade,
    next_at timestamptz not null
);

-- No foreign keys: they would lock the tenant's row for every answer. Rows go when they are old.
create table @extschema@.token_windows (
    tenant_id uuid not null,
    date date not null,
    slot integer not null,
    used bigint not null,
    constraint token_windows_pkey primary key (tenant_id, date, slot)
)
-- Rows are updated all day; with room on their page, no index is touched.
with (fillfactor = 50);

create table @extschema@.token_reservations (
    id uuid not null constraint token_reservations_pkey primary key,
    tenant_id uuid not null,
    user_id uuid,
    conversation_id uuid,
    tokens bigint not null constraint token_reservations_tokens_is_not_negative check (tokens >= 0),
    settled bigint constraint token_reservations_settled_is_not_negative check (settled >= 0),
    created_at timestamptz not null,
    expires_at timestamptz not null,
    closed_at timestamptz,
    date date not null,
    constraint token_reservations_is_closed_when_settled check ((settled is null) = (closed_at is null))
);

-- For clean-up alone: a btree would be taken for a way to the rows of a tenant while there are few.
create index idx_token_windows_date on @extschema@.token_windows using brin (date);
create index idx_token_reservations_open on @extschema@.token_reservations (tenant_id, date)
where closed_at is null;
create index idx_token_reservations_expires on @extschema@.token_reservations (expires_at);
