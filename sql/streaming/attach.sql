alter table @extschema@.message_chunks enable row level security;

drop policy if exists message_chunks_read on @extschema@.message_chunks;
create policy message_chunks_read on @extschema@.message_chunks for select
using (@extschema@.has_message_access(message_id, (select @extschema@.current_user_id()), 'read'));

drop policy if exists message_chunks_insert on @extschema@.message_chunks;
create policy message_chunks_insert on @extschema@.message_chunks for insert
with check (@extschema@.has_message_access(message_id, (select @extschema@.current_user_id()), 'write'));

create or replace trigger place_chunk
before insert on @extschema@.message_chunks
for each row execute function @extschema@.place_chunk();

create or replace trigger complete_streams
after insert on @extschema@.message_chunks
for each statement execute function @extschema@.complete_streams();

create or replace trigger refuse_rewrite
before update on @extschema@.message_chunks
for each row execute function @extschema@.refuse_change('a chunk is never changed');

create or replace trigger remove_chunks
before delete on @extschema@.messages
for each row execute function @extschema@.remove_chunks();

comment on table @extschema@.message_chunks is
'Pieces of messages as they are streamed, numbered from 0; removed some time after the message is finished.';
comment on column @extschema@.message_chunks.message_id is 'The message; there is no foreign key, see the trigger.';
comment on column @extschema@.message_chunks.created_at is 'When it was written.';
comment on column @extschema@.message_chunks.chunk_index is 'Place in the message, from 0; the next one when absent.';
comment on column @extschema@.message_chunks.is_final is 'True for the last one, which completes the message.';
comment on column @extschema@.message_chunks.chunk_content is 'Text, which may be empty.';
comment on column @extschema@.messages.stream_started_at is
'When its stream began, if later than the message, or was last resumed.';
comment on index @extschema@.idx_messages_streaming is 'Streams in progress, oldest first.';
comment on policy message_chunks_read on @extschema@.message_chunks is 'Whoever reads the conversation.';
comment on policy message_chunks_insert on @extschema@.message_chunks is 'Whoever writes in the conversation.';
comment on trigger place_chunk on @extschema@.message_chunks is
'Refuses chunks of messages that do not exist or are finished; numbers those without an index.';
comment on trigger complete_streams on @extschema@.message_chunks is
'Completes messages whose final chunk and all before it are there.';
comment on trigger refuse_rewrite on @extschema@.message_chunks is 'Chunks are never changed.';
comment on trigger remove_chunks on @extschema@.messages is 'Removes the chunks of a deleted message.';
