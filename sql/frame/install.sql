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

-- Roles that tables are granted to: also in a restore, before its grants. Only for a superuser, whose
-- rights the script of a trusted extension has in any case.
do $$
declare
    wanted text;
begin
    if (
        select not r.rolsuper from pg_catalog.pg_extension e
        join pg_catalog.pg_roles r on r.oid = e.extowner where e.extname = 'pg_conversation'
    ) then
        return;
    end if;
    foreach wanted in array array['conversation_service', 'conversation_syncer'] loop
        if not exists (select from pg_catalog.pg_roles r where r.rolname = wanted) then
            begin
                execute format('create role %I nologin bypassrls', wanted);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
end;
$$;

-- pg_dump and pg_restore turn row_security off and bring the tables themselves.
select @extschema@.migrate()
where current_setting('row_security')::boolean
and current_setting('pg_conversation.auto_install')::boolean;
