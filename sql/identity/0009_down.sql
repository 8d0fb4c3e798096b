alter table @extschema@.tenants drop column time_zone;
