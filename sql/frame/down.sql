drop table @extschema@.schema_version;
