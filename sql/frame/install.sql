-- Tables that are here already must be the installer's: somebody else's would give him all rows.
do $$
begin
    if exists (
        select from pg_catalog.pg_class c
        join pg_catalog.pg_extension e on e.extname = 'pg_conversation'
        where c.relnamespace = e.extnamespace and c.relname = 'schema_version' and c.relowner <> e.extowner
    )
    and current_setting('row_security')::boolean
    and current_setting('pg_conversation.auto_install')::boolean then
        raise exception 'table schema_version belongs to another role'
            using errcode = 'insufficient_privilege',
                hint = 'Create the extension as that role, or with pg_conversation.auto_install = off, '
                    'then look at the tables and run migrate().';
    end if;
end;
$$;

-- pg_dump and pg_restore turn row_security off and bring the tables themselves.
select @extschema@.migrate()
where current_setting('row_security')::boolean
and current_setting('pg_conversation.auto_install')::boolean;
