alter table @extschema@.feedback enable row level security;
alter table @extschema@.feedback_counts enable row level security;

alter table @extschema@.feedback alter column id set default @extschema@.new_id();

-- Feedback is part of the conversation: whoever reads that sees who liked what.
drop policy if exists feedback_read on @extschema@.feedback;
create policy feedback_read on @extschema@.feedback for select
using (@extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'read'));

drop policy if exists feedback_insert on @extschema@.feedback;
create policy feedback_insert on @extschema@.feedback for insert
with check (
    user_id = (select @extschema@.current_user_id())
    and @extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'read')
);

drop policy if exists feedback_update on @extschema@.feedback;
create policy feedback_update on @extschema@.feedback for update
using (
    user_id = (select @extschema@.current_user_id())
    and @extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'read')
);

-- Nobody who is bound by it is granted DELETE; withdraw_feedback asks the same.
drop policy if exists feedback_delete on @extschema@.feedback;
create policy feedback_delete on @extschema@.feedback for delete
using (
    user_id = (select @extschema@.current_user_id())
    and @extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'read')
);

drop policy if exists feedback_counts_read on @extschema@.feedback_counts;
create policy feedback_counts_read on @extschema@.feedback_counts for select
using (@extschema@.has_conversation_access(conversation_id, (select @extschema@.current_user_id()), 'read'));

create or replace trigger place_feedback
before insert on @extschema@.feedback
for each row execute function @extschema@.place_feedback();

create or replace trigger refuse_move
before update on @extschema@.feedback
for each row when (
    new.id is distinct from old.id
    or new.message_id is distinct from old.message_id
    or new.user_id is distinct from old.user_id
    or new.conversation_id is distinct from old.conversation_id
    or new.tenant_id is distinct from old.tenant_id
)
execute function @extschema@.refuse_change('feedback stays with its message and its user');

create or replace trigger touch
before update on @extschema@.feedback
for each row execute function @extschema@.touch_updated_at();

-- Once a statement, however many rows it has. A trigger that sees them is for one event.
create or replace trigger count_given
after insert on @extschema@.feedback
referencing new table as new_rows
for each statement execute function @extschema@.count_feedback();

create or replace trigger count_changed
after update on @extschema@.feedback
referencing old table as old_rows new table as new_rows
for each statement execute function @extschema@.count_feedback();

create or replace trigger count_withdrawn
after delete on @extschema@.feedback
referencing old table as old_rows
for each statement execute function @extschema@.count_feedback();

create or replace trigger count_truncated
after truncate on @extschema@.feedback
for each statement execute function @extschema@.count_feedback();

comment on table @extschema@.feedback is 'What users think of messages, one row a message and user.';
comment on column @extschema@.feedback.id is 'Key.';
comment on column @extschema@.feedback.message_id is 'The message; fixed for life.';
comment on column @extschema@.feedback.conversation_id is 'Conversation, taken from the message.';
comment on column @extschema@.feedback.tenant_id is 'Tenant, taken from the message.';
comment on column @extschema@.feedback.user_id is 'Whose it is; the caller when absent. Fixed for life.';
comment on column @extschema@.feedback.rating is '1 for thumbs up, -1 for thumbs down.';
comment on column @extschema@.feedback.comment is 'Why, 5000 characters at most.';
comment on column @extschema@.feedback.metadata is 'Anything else, a JSON object.';
comment on column @extschema@.feedback.created_at is 'When it was first given.';
comment on column @extschema@.feedback.updated_at is 'When it last changed; never moves back.';
comment on constraint feedback_is_given_once on @extschema@.feedback is 'One a message and user.';
comment on index @extschema@.idx_feedback_user is 'The feedback of a user; serves its foreign key.';
comment on index @extschema@.idx_feedback_conversation is 'The feedback on a conversation.';

comment on table @extschema@.feedback_counts is
'How many thumbs a message has, up and down, kept by triggers of feedback; no row where there are none.';
comment on column @extschema@.feedback_counts.message_id is 'The message.';
comment on column @extschema@.feedback_counts.conversation_id is 'Conversation, taken from the message.';
comment on column @extschema@.feedback_counts.tenant_id is 'Tenant, taken from the message.';
comment on column @extschema@.feedback_counts.thumbs_up is 'Users who rated it 1.';
comment on column @extschema@.feedback_counts.thumbs_down is 'Users who rated it -1.';
comment on index @extschema@.idx_feedback_counts_conversation is 'The counts of a conversation.';

comment on materialized view @extschema@.message_feedback_summary is
'Feedback by message, counted from its rows by refresh_analytics(); for reports of the owner.';
comment on column @extschema@.message_feedback_summary.message_id is 'The message.';
comment on column @extschema@.message_feedback_summary.conversation_id is 'Its conversation.';
comment on column @extschema@.message_feedback_summary.tenant_id is 'Its tenant.';
comment on column @extschema@.message_feedback_summary.total_feedback is 'Users who rated it.';
comment on column @extschema@.message_feedback_summary.thumbs_up is 'Users who rated it 1.';
comment on column @extschema@.message_feedback_summary.thumbs_down is 'Users who rated it -1.';
comment on column @extschema@.message_feedback_summary.avg_rating is 'Mean of the ratings, from -1 to 1.';
comment on index @extschema@.idx_message_feedback_summary_message is
'One row a message; lets it be refreshed while it is read.';

comment on policy feedback_read on @extschema@.feedback is 'Whoever reads the conversation.';
comment on policy feedback_insert on @extschema@.feedback is 'Whoever reads the conversation, for himself.';
comment on policy feedback_update on @extschema@.feedback is 'One''s own, while one reads the conversation.';
comment on policy feedback_delete on @extschema@.feedback is 'One''s own, while one reads the conversation.';
comment on policy feedback_counts_read on @extschema@.feedback_counts is 'Whoever reads the conversation.';
comment on trigger place_feedback on @extschema@.feedback is
'Takes conversation and tenant from the message, and the caller for the user where none is named.';
comment on trigger refuse_move on @extschema@.feedback is 'Keeps feedback with its message and its user.';
comment on trigger touch on @extschema@.feedback is 'Moves updated_at forward.';
comment on trigger count_given on @extschema@.feedback is 'Counts new feedback.';
comment on trigger count_changed on @extschema@.feedback is 'Counts changed ratings.';
comment on trigger count_withdrawn on @extschema@.feedback is 'Counts what was taken away.';
comment on trigger count_truncated on @extschema@.feedback is 'Empties the counts with the table.';
