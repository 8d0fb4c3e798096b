alter table @extschema@.conversations enable row level security;
alter table @extschema@.conversation_members enable row level security;

alter table @extschema@.conversations alter column id set default @extschema@.new_id();

drop policy if exists conversations_read on @extschema@.conversations;
create policy conversations_read on @extschema@.conversations for select
using (
    tenant_id = (select @extschema@.current_tenant_id())
    and @extschema@.has_conversation_access(
        id, (select @extschema@.current_user_id()), 'read', tenant_id, user_id, visibility, deleted_at
    )
);

drop policy if exists conversations_insert on @extschema@.conversations;
create policy conversations_insert on @extschema@.conversations for insert
with check (
    tenant_id = (select @extschema@.current_tenant_id())
    and user_id = (select @extschema@.current_user_id())
);

drop policy if exists conversations_update on @extschema@.conversations;
create policy conversations_update on @extschema@.conversations for update
using (
    tenant_id = (select @extschema@.current_tenant_id())
    and @extschema@.has_conversation_access(
        id, (select @extschema@.current_user_id()), 'manage', tenant_id, user_id, visibility, deleted_at
    )
);

drop policy if exists conversations_delete on @extschema@.conversations;
create policy conversations_delete on @extschema@.conversations for delete
using (
    tenant_id = (select @extschema@.current_tenant_id())
    and @extschema@.has_conversation_access(
        id, (select @extschema@.current_user_id()), 'manage', tenant_id, user_id, visibility, deleted_at
    )
);

drop policy if exists conversation_members_read on @extschema@.conversation_members;
create policy conversation_members_read on @extschema@.conversation_members for select
using (@extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'read'));

create or replace trigger place_conversation
before insert on @extschema@.conversations
for each row execute function @extschema@.place_conversation();

create or replace trigger place_member
before insert on @extschema@.conversation_members
for each row execute function @extschema@.place_member();

-- Numbering a message sets updated_at itself. Triggers here name their columns, for a condition is
-- compiled for every statement that the trigger could fire for.
create or replace trigger touch
before update of user_id, session_id, continuation_id, title, visibility, is_archived, is_pinned,
tags, summary, expires_at, deleted_at, metadata on @extschema@.conversations
for each row execute function @extschema@.touch_updated_at();

create or replace trigger check_owner
before update of user_id on @extschema@.conversations
for each row when (new.user_id is distinct from old.user_id)
execute function @extschema@.check_owner();

create or replace trigger refuse_move
before update of id, tenant_id on @extschema@.conversations
for each row when (new.tenant_id is distinct from old.tenant_id or new.id is distinct from old.id)
execute function @extschema@.refuse_change('a conversation stays in its tenant and keeps its id');

create or replace trigger refuse_move
before update on @extschema@.conversation_members
for each row when (
    new.conversation_id is distinct from old.conversation_id
    or new.user_id is distinct from old.user_id
    or new.tenant_id is distinct from old.tenant_id
)
execute function @extschema@.refuse_change('a membership keeps its conversation and its user');

comment on table @extschema@.conversations is 'Conversations, each owned by a user of a tenant.';
comment on column @extschema@.conversations.id is 'Key.';
comment on column @extschema@.conversations.tenant_id is 'Tenant, taken from the owner; fixed for life.';
comment on column @extschema@.conversations.user_id is
'Owner; null for a conversation that only the service and admins see.';
comment on column @extschema@.conversations.session_id is
'Name given by the client, unique in the tenant; filled from continuation_id or the id.';
comment on column @extschema@.conversations.continuation_id is
'Name under which the conversation goes on, unique in the tenant; filled from session_id or the id.';
comment on column @extschema@.conversations.title is
'Title, 500 characters at most; ''Conversation '' and the first 8 characters of its name when absent.';
comment on column @extschema@.conversations.visibility is
'private: owner and members. tenant: every user of the tenant may read.';
comment on column @extschema@.conversations.is_archived is 'True hides it from the list of the owner.';
comment on column @extschema@.conversations.is_pinned is 'True asks clients to show it first.';
comment on column @extschema@.conversations.tags is 'Labels of the owner.';
comment on column @extschema@.conversations.summary is 'What it is about, in short.';
comment on column @extschema@.conversations.expires_at is 'When it may be removed; null is never.';
comment on column @extschema@.conversations.deleted_at is
'When it was deleted; from then on only the owner sees it, until it is purged.';
comment on column @extschema@.conversations.last_sequence is 'Number of its latest message; 0 when it has none.';
comment on column @extschema@.conversations.metadata is 'Anything else, a JSON object.';
comment on column @extschema@.conversations.created_at is 'When it was made.';
comment on column @extschema@.conversations.updated_at is
'When it last changed or got a message; never moves back.';

comment on table @extschema@.conversation_members is 'Who else may read or write a conversation.';
comment on column @extschema@.conversation_members.conversation_id is 'The conversation.';
comment on column @extschema@.conversation_members.user_id is 'The user, of the same tenant.';
comment on column @extschema@.conversation_members.tenant_id is 'Tenant, taken from the conversation.';
comment on column @extschema@.conversation_members.role is
'viewer reads, editor also writes, owner also manages.';
comment on column @extschema@.conversation_members.created_at is 'When the user joined.';

comment on index @extschema@.idx_conversations_user is
'The conversations of a user; serves its foreign key.';
comment on statistics @extschema@.conversations_tenant_of_user is
'Tells the planner that the user decides the tenant.';
comment on index @extschema@.idx_conversations_tenant_session is 'One conversation a session_id and tenant.';
comment on index @extschema@.idx_conversations_tenant_continuation is
'One conversation a continuation_id and tenant.';
comment on index @extschema@.idx_conversations_user_updated is
'Pages of a user''s list, latest first, at any depth; serves the foreign key to tenants.';
comment on index @extschema@.idx_conversations_tenant_visible is
'The conversations that every user of a tenant may read.';
comment on index @extschema@.idx_conversation_members_user is 'The conversations a user was added to.';
comment on policy conversations_read on @extschema@.conversations is
'Owner, members, tenant when visible to it, tenant admins.';
comment on policy conversations_insert on @extschema@.conversations is 'A user makes his own.';
comment on policy conversations_update on @extschema@.conversations is 'Owners and tenant admins.';
comment on policy conversations_delete on @extschema@.conversations is 'Owners and tenant admins.';
comment on policy conversation_members_read on @extschema@.conversation_members is
'Whoever reads the conversation sees who else does.';
comment on trigger place_conversation on @extschema@.conversations is
'Fills owner, tenant, names, title and visibility where they are absent.';
comment on trigger place_member on @extschema@.conversation_members is
'Takes the tenant from the conversation and refuses users of another.';
comment on trigger touch on @extschema@.conversations is 'Moves updated_at forward.';
comment on trigger check_owner on @extschema@.conversations is
'Lets it change hands within its tenant only.';
comment on trigger refuse_move on @extschema@.conversations is 'Keeps a conversation in its tenant.';
comment on trigger refuse_move on @extschema@.conversation_members is 'Keeps a membership where it is.';
