create function @extschema@.touch_updated_at() returns trigger
language c as 'MODULE_PATHNAME', 'touch_updated_at';
create function @extschema@.refuse_change() returns trigger
language c as 'MODULE_PATHNAME', 'refuse_change';
create function @extschema@.refuse_to_members() returns trigger
language c as 'MODULE_PATHNAME', 'refuse_to_members';

comment on function @extschema@.migrate() is
'Brings tables, triggers, policies and comments to the version of the library; returns that version.';
comment on function @extschema@.rollback_to(integer, boolean) is
'Takes the schema back to a version; refuses while rows or values would be lost, unless force is true.';
comment on function @extschema@.uninstall(text) is
'Drops every table of the extension with its rows; confirm must be the name of the database.';
comment on function @extschema@.doctor() is
'One row a check: what is installed, what is missing and what to do about it.';
comment on function @extschema@.touch_updated_at() is 'Trigger: moves updated_at forward, never back.';
comment on function @extschema@.refuse_change() is 'Trigger: refuses the update.';
comment on function @extschema@.refuse_to_members() is
'Trigger: refuses the update to those whom row level security binds.';
comment on function @extschema@.new_id() is
'A UUID of version 7: rows made together lie together in an index.';

-- A dump of data alone brings rows that migrate() has made already. The dumped row takes the place
-- of its twin; anything else is left to the primary key to refuse.
create function @extschema@.adopt_dumped_version() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    delete from @extschema@.schema_version v
    where v.version = new.version and v.name = new.name and v.checksum = new.checksum;
    return new;
end;
$$;
comment on function @extschema@.adopt_dumped_version() is
'Trigger: lets a dump of data alone bring its schema_version.';
