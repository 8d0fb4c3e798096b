drop table @extschema@.users;
drop table @extschema@.tenants;
