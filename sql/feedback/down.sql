drop materialized view @extschema@.message_feedback_summary;
drop table @extschema@.feedback_counts;
drop table @extschema@.feedback;
