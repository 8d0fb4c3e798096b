drop table @extschema@.access_profiles;
