drop table @extschema@.conversation_members;
drop table @extschema@.conversations;
