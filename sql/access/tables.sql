create table @extschema@.access_profiles (
    role_name text not null constraint access_profiles_pkey primary key,
    profile text not null
    constraint access_profiles_profile_is_known
    check (profile in ('anon', 'member', 'service', 'syncer', 'monitor', 'none')),
    granted_at timestamptz not null default pg_catalog.now()
);
