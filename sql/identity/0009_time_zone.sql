-- Days of a tenant's figures and limits are those of its own calendar. An unknown zone raises an error.
-- A zone may also be spelled out, with any offset and rules for summer; today is within a day of UTC's.
alter table @extschema@.tenants add column time_zone text not null default 'UTC'
constraint tenants_time_zone_is_known
check (pg_catalog.timezone(time_zone, timestamp '2000-01-01 00:00:00') is not null)
constraint tenants_time_zone_is_near_utc
check (
    pg_catalog.timezone(time_zone, timestamptz '2000-01-01 00:00:00+00') >= timestamp '1999-12-31 09:00:00'
    and pg_catalog.timezone(time_zone, timestamptz '2000-01-01 00:00:00+00') <= timestamp '2000-01-01 15:00:00'
    and pg_catalog.timezone(time_zone, timestamptz '2000-07-01 00:00:00+00') >= timestamp '2000-06-30 09:00:00'
    and pg_catalog.timezone(time_zone, timestamptz '2000-07-01 00:00:00+00') <= timestamp '2000-07-01 15:00:00'
    and pg_catalog.strpos(time_zone, ',') = 0
);
