-- pg_dump and pg_restore turn row_security off and bring the tables themselves.
select @extschema@.migrate()
where current_setting('row_security')::boolean
and current_setting('pg_conversation.auto_install')::boolean;
