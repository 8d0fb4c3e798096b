-- Days of a tenant's figures and limits are those of its own calendar. An unknown zone raises an error.
alter table @extschema@.tenants add column time_zone text not null default 'UTC'
constraint tenants_time_zone_is_known
check (pg_catalog.timezone(time_zone, timestamp '2000-01-01 00:00:00') is not null);
