drop policy if exists messages_update on @extschema@.messages;
drop trigger if exists keep_revision on @extschema@.messages;
drop table @extschema@.message_revisions;
alter table @extschema@.messages drop column edited_at;
alter table @extschema@.messages drop column author_id;
