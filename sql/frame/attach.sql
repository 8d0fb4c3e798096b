alter table @extschema@.schema_version enable row level security;

drop policy if exists schema_version_read on @extschema@.schema_version;
create policy schema_version_read on @extschema@.schema_version for select using (true);

create or replace trigger adopt_dumped_row
before insert on @extschema@.schema_version
for each row execute function @extschema@.adopt_dumped_version();

comment on table @extschema@.schema_version is
'The migrations that shaped these tables, one row each; kept by migrate() and rollback_to().';
comment on column @extschema@.schema_version.version is 'Number of the migration; they run in this order.';
comment on column @extschema@.schema_version.name is 'What the migration brought.';
comment on column @extschema@.schema_version.checksum is
'SHA-256 of the migration as it was run; a released migration never changes.';
comment on column @extschema@.schema_version.applied_at is 'When it ran in this database.';
comment on policy schema_version_read on @extschema@.schema_version is
'Whoever may read the table may know the version.';
comment on trigger adopt_dumped_row on @extschema@.schema_version is
'Lets a dump of data alone be loaded into a database where migrate() has run.';
