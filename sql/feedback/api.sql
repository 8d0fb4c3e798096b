create function @extschema@.place_feedback() returns trigger
language c as 'MODULE_PATHNAME', 'place_feedback';
comment on function @extschema@.place_feedback() is
'Trigger: takes conversation and tenant of feedback from its message, and the caller for its user.';

create function @extschema@.count_feedback() returns trigger
language c as 'MODULE_PATHNAME', 'count_feedback';
comment on function @extschema@.count_feedback() is 'Trigger: keeps feedback_counts.';

create function @extschema@.give_feedback(
    message_id uuid,
    rating integer,
    comment text default null,
    out id uuid,
    out created boolean
) language c as 'MODULE_PATHNAME', 'give_feedback';
comment on function @extschema@.give_feedback(uuid, integer, text) is
'Rates a message that the caller reads, 1 up or -1 down; again replaces rating and comment, the same again writes
nothing.';

create function @extschema@.withdraw_feedback(message_id uuid) returns boolean
language c as 'MODULE_PATHNAME', 'withdraw_feedback';
comment on function @extschema@.withdraw_feedback(uuid) is
'Takes the caller''s feedback on a message back; false when there is none.';

create function @extschema@.get_message_feedback(
    message_id uuid,
    out total_feedback integer,
    out thumbs_up integer,
    out thumbs_down integer,
    out avg_rating numeric,
    out own_rating integer,
    out own_comment text
) language c stable parallel safe as 'MODULE_PATHNAME', 'get_message_feedback';
comment on function @extschema@.get_message_feedback(uuid) is
'Counts of the feedback on a message that the caller reads, and what he gave himself; all from keys.';

create function @extschema@.recount_feedback(max_rows integer default 1000) returns integer
language c as 'MODULE_PATHNAME', 'recount_feedback';
comment on function @extschema@.recount_feedback(integer) is
'Counts messages again whose feedback_counts disagree with their feedback, as rows written with triggers disabled
leave them; returns how many there were. For the service and the owner.';

create function @extschema@.refresh_analytics(concurrently boolean default true) returns void
language c as 'MODULE_PATHNAME', 'refresh_analytics';
comment on function @extschema@.refresh_analytics(boolean) is
'Refreshes the materialized views, beside their readers unless told otherwise. For the service and the owner.';
