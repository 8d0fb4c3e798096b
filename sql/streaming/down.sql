drop trigger if exists remove_chunks on @extschema@.messages;
drop table @extschema@.message_chunks;
drop index @extschema@.idx_messages_streaming;
alter table @extschema@.messages drop column stream_started_at;
