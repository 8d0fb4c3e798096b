create table @extschema@.tenants (
    id uuid not null constraint tenants_pkey primary key,
    name text not null,
    slug text not null constraint tenants_slug_is_unique unique,
    llm_provider text,
    llm_model text,
    temperature numeric(3, 2) constraint tenants_temperature_is_0_to_2 check (temperature between 0 and 2),
    max_tokens integer constraint tenants_max_tokens_is_positive check (max_tokens > 0),
    system_prompt text,
    features jsonb not null default '{}'
    constraint tenants_features_is_object check (pg_catalog.jsonb_typeof(features) = 'object'),
    rate_limit_per_minute integer
    constraint tenants_rate_limit_is_not_negative check (rate_limit_per_minute >= 0),
    daily_token_limit bigint
    constraint tenants_daily_token_limit_is_not_negative check (daily_token_limit >= 0),
    branding jsonb not null default '{}'
    constraint tenants_branding_is_object check (pg_catalog.jsonb_typeof(branding) = 'object'),
    default_visibility text not null default 'private'
    constraint tenants_default_visibility_is_known check (default_visibility in ('private', 'tenant')),
    is_active boolean not null default true,
    metadata jsonb not null default '{}'
    constraint tenants_metadata_is_object check (pg_catalog.jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default pg_catalog.now(),
    updated_at timestamptz not null default pg_catalog.now()
);

create table @extschema@.users (
    id uuid not null constraint users_pkey primary key,
    tenant_id uuid not null
    constraint users_tenant_exists references @extschema@.tenants (id),
    auth_id uuid constraint users_auth_id_is_unique unique,
    email text,
    name text,
    role text not null default 'member'
    constraint users_role_is_known check (role in ('member', 'admin')),
    preferences jsonb not null default '{}'
    constraint users_preferences_is_object check (pg_catalog.jsonb_typeof(preferences) = 'object'),
    is_active boolean not null default true,
    last_active_at timestamptz,
    metadata jsonb not null default '{}'
    constraint users_metadata_is_object check (pg_catalog.jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default pg_catalog.now(),
    updated_at timestamptz not null default pg_catalog.now()
);

-- Also serves the foreign key to tenants.
create unique index idx_users_tenant_email on @extschema@.users (tenant_id, pg_catalog.lower(email));
