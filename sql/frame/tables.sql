create table @extschema@.schema_version (
    version integer not null constraint schema_version_pkey primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default pg_catalog.now()
);
