-- The library says so as well, but not in a server that has preloaded it.
do $$
begin
    if pg_catalog.current_setting('server_encoding') operator(pg_catalog.<>) 'UTF8' then
        raise exception 'pg_conversation needs a database with encoding UTF8'
            using errcode = 'feature_not_supported',
                hint = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0.';
    end if;
end;
$$;

-- Tables that are here already must be the installer's: somebody else's would give him all rows.
do $$
begin
    if exists (
        select from pg_catalog.pg_class c
        join pg_catalog.pg_extension e on e.extname operator(pg_catalog.=) 'pg_conversation'
        where c.relnamespace operator(pg_catalog.=) e.extnamespace
        and c.relname operator(pg_catalog.=) 'schema_version'
        and c.relowner operator(pg_catalog.<>) e.extowner
    )
    and pg_catalog.current_setting('row_security')::pg_catalog.bool
    and pg_catalog.current_setting('pg_conversation.auto_install')::pg_catalog.bool then
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
        join pg_catalog.pg_roles r on r.oid operator(pg_catalog.=) e.extowner
        where e.extname operator(pg_catalog.=) 'pg_conversation'
    ) then
        return;
    end if;
    foreach wanted in array array['conversation_service', 'conversation_syncer'] loop
        if not exists (select from pg_catalog.pg_roles r where r.rolname operator(pg_catalog.=) wanted) then
            begin
                execute pg_catalog.format('create role %I nologin bypassrls', wanted);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
end;
$$;

-- pg_dump and pg_restore turn row_security off and bring the tables themselves.
select @extschema@.migrate()
where pg_catalog.current_setting('row_security')::pg_catalog.bool
and pg_catalog.current_setting('pg_conversation.auto_install')::pg_catalog.bool;
