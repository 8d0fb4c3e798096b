alter table @extschema@.messages enable row level security;
alter table @extschema@.message_revisions enable row level security;

-- Policies on what hangs on a conversation ask about that alone: its tenant is part of the answer, and
-- a second look at the row's own would keep the index from answering.
drop policy if exists messages_read on @extschema@.messages;
create policy messages_read on @extschema@.messages for select
using (@extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'read'));

drop policy if exists messages_insert on @extschema@.messages;
create policy messages_insert on @extschema@.messages for insert
with check (@extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'write'));

drop policy if exists messages_update on @extschema@.messages;
create policy messages_update on @extschema@.messages for update
using (
    author_id = (select @extschema@.current_user_id())
    and role = 'user'
    and status not in ('pending', 'streaming', 'interrupted')
    and (select @extschema@.may_edit_messages())
    and @extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'write')
);

-- What somebody took back is for those who answer for the conversation, not for its readers.
drop policy if exists message_revisions_read on @extschema@.message_revisions;
create policy message_revisions_read on @extschema@.message_revisions for select
using (@extschema@.has_message_access(message_id, (select @extschema@.current_user_id()), 'manage'));

create or replace trigger place_message
before insert on @extschema@.messages
for each row execute function @extschema@.place_message();

create or replace trigger refuse_move
before update on @extschema@.messages
for each row when (
    new.conversation_id is distinct from old.conversation_id
    or new.sequence_number is distinct from old.sequence_number
    or new.tenant_id is distinct from old.tenant_id
    or new.id is distinct from old.id
)
execute function @extschema@.refuse_change('a message stays in its conversation and keeps its number and id');

-- A stream that ends, or is taken up again, changes its text too: that replaces nothing.
create or replace trigger keep_revision
before update of content, parts on @extschema@.messages
for each row when (
    (new.content is distinct from old.content or new.parts is distinct from old.parts)
    and old.status not in ('pending', 'streaming', 'interrupted')
    and (old.content <> '' or old.parts is not null)
)
execute function @extschema@.keep_revision();

create or replace trigger refuse_rewrite
before update on @extschema@.message_revisions
for each row execute function @extschema@.refuse_change('what was replaced is never changed');

comment on type @extschema@.message_role is 'Who speaks in a message.';
comment on type @extschema@.message_status is
'Life of a message: pending and streaming are unfinished, the others final.';
comment on table @extschema@.messages is 'Messages, numbered 1, 2, 3 ... in each conversation without a gap.';
comment on column @extschema@.messages.id is 'Key; made at insert when absent.';
comment on column @extschema@.messages.conversation_id is 'Conversation it belongs to; fixed for life.';
comment on column @extschema@.messages.tenant_id is 'Tenant, taken from the conversation; fixed for life.';
comment on column @extschema@.messages.sequence_number is
'Place in the conversation, given at insert; fixed for life.';
comment on column @extschema@.messages.role is 'Who speaks: user, assistant, system, tool or developer.';
comment on column @extschema@.messages.status is
'pending, streaming, completed, stopped, failed or interrupted.';
comment on column @extschema@.messages.content is 'Text, 32 MB at most.';
comment on column @extschema@.messages.parts is 'Structured content: tool calls, images and the like.';
comment on column @extschema@.messages.parent_id is 'Message of the same conversation that it answers.';
comment on column @extschema@.messages.client_message_id is
'Key of the client for retries: the same key makes no second message in the conversation.';
comment on column @extschema@.messages.prompt_token_count is 'Tokens of the prompt, as the provider counted.';
comment on column @extschema@.messages.completion_token_count is 'Tokens of the answer, as the provider counted.';
comment on column @extschema@.messages.model_used is 'Model that wrote it.';
comment on column @extschema@.messages.latency_ms is 'Milliseconds from request to end of the answer.';
comment on column @extschema@.messages.first_token_ms is
'Milliseconds from the beginning of its stream to the first chunk; noted when the stream ends, once.';
comment on column @extschema@.messages.error is 'Why it failed.';
comment on column @extschema@.messages.metadata is 'Anything else, a JSON object.';
comment on column @extschema@.messages.created_at is 'When it was made.';
comment on column @extschema@.messages.completed_at is 'When a streamed message was finished.';
comment on column @extschema@.messages.author_id is
'User who wrote it; null when nobody was signed in. He may have been deleted since.';
comment on column @extschema@.messages.edited_at is 'When its content was last replaced; null is never.';

comment on table @extschema@.message_revisions is
'What edits have replaced, oldest first; for the owner of the conversation and the admins of the tenant.';
comment on column @extschema@.message_revisions.message_id is 'The message.';
comment on column @extschema@.message_revisions.revision is 'Counts the edits of the message from 1.';
comment on column @extschema@.message_revisions.tenant_id is 'Tenant, taken from the message.';
comment on column @extschema@.message_revisions.content is 'Text before the edit.';
comment on column @extschema@.message_revisions.parts is 'Structured content before the edit.';
comment on column @extschema@.message_revisions.edited_by is
'User who replaced it; null when nobody was signed in.';
comment on column @extschema@.message_revisions.replaced_at is 'When it was replaced.';

comment on index @extschema@.idx_messages_conversation_seq is
'Messages of a conversation in order; one message a number.';
comment on index @extschema@.idx_messages_retry_key is 'One message a retry key and conversation.';
comment on index @extschema@.idx_messages_parent is 'Answers to a message; serves its foreign key.';
comment on index @extschema@.idx_messages_tenant_created is
'Messages of a tenant by time, with what is counted of them.';
comment on index @extschema@.idx_messages_tenant_answers is 'Answers of a tenant by time.';
comment on policy messages_read on @extschema@.messages is 'Whoever reads the conversation.';
comment on policy messages_insert on @extschema@.messages is 'Whoever writes in the conversation.';
comment on policy messages_update on @extschema@.messages is
'Users replace the text of their own messages, while the tenant allows it.';
comment on policy message_revisions_read on @extschema@.message_revisions is
'Owners of the conversation and tenant admins.';
comment on trigger place_message on @extschema@.messages is
'Gives id, tenant, number and author to a new message.';
comment on trigger keep_revision on @extschema@.messages is 'Keeps what an edit replaces.';
comment on trigger refuse_rewrite on @extschema@.message_revisions is 'What was replaced is never changed.';
comment on trigger refuse_move on @extschema@.messages is 'Keeps a message where it is.';
