drop table @extschema@.messages;
drop type @extschema@.message_status;
drop type @extschema@.message_role;
