create table @extschema@.feedback (
    id uuid not null constraint feedback_pkey primary key,
    message_id uuid not null
    constraint feedback_message_exists references @extschema@.messages (id) on delete cascade,
    conversation_id uuid not null,
    tenant_id uuid not null,
    user_id uuid not null
    constraint feedback_user_exists references @extschema@.users (id) on delete cascade,
    rating integer not null constraint feedback_rating_is_1_or_minus_1 check (rating in (-1, 1)),
    comment text
    constraint feedback_comment_is_at_most_5000 check (pg_catalog.char_length(comment) <= 5000),
    metadata jsonb not null default '{}'
    constraint feedback_metadata_is_object check (pg_catalog.jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default pg_catalog.now(),
    updated_at timestamptz not null default pg_catalog.now(),
    constraint feedback_is_given_once unique (message_id, user_id)
);

create index idx_feedback_user on @extschema@.feedback (user_id);
create index idx_feedback_conversation on @extschema@.feedback (conversation_id);

-- What is asked with every message that is shown, kept beside what it counts.
create table @extschema@.feedback_counts (
    message_id uuid not null constraint feedback_counts_pkey primary key
    constraint feedback_counts_message_exists references @extschema@.messages (id) on delete cascade,
    conversation_id uuid not null,
    tenant_id uuid not null,
    thumbs_up integer not null constraint feedback_counts_thumbs_up_is_not_negative check (thumbs_up >= 0),
    thumbs_down integer not null
    constraint feedback_counts_thumbs_down_is_not_negative check (thumbs_down >= 0)
);

create index idx_feedback_counts_conversation on @extschema@.feedback_counts (conversation_id);

create materialized view @extschema@.message_feedback_summary as
select
    message_id,
    conversation_id,
    tenant_id,
    pg_catalog.count(*) as total_feedback,
    pg_catalog.count(*) filter (where rating > 0) as thumbs_up,
    pg_catalog.count(*) filter (where rating < 0) as thumbs_down,
    pg_catalog.round(pg_catalog.avg(rating), 4) as avg_rating
from @extschema@.feedback
group by message_id, conversation_id, tenant_id;

create unique index idx_message_feedback_summary_message on @extschema@.message_feedback_summary (message_id);
