create extension pg_conversation;
select check_name, ok from doctor();
