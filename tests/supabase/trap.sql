-- What a hostile owner would have others run: it tries what only a superuser may and what would wait
-- for the next statement of whoever has called it, and notes what it could do.
create schema evil;
grant usage on schema evil to public;
create table evil.loot (seen text);
grant insert on evil.loot to public;

create function evil.is_sprung() returns boolean
language plpgsql
as $$
declare
    deed text;
    could text := '';
begin
    foreach deed in array array [
        'reset role', 'set role none', 'set role supabase_admin', 'set local role supabase_admin',
        'select set_config(''role'', ''supabase_admin'', false)',
        'set session authorization default', 'set session authorization supabase_admin',
        'select pg_read_file(''PG_VERSION'')', 'set session_replication_role = replica',
        'create temporary table conversations ()', 'prepare evil as select 1', 'listen evil'
    ] loop
        begin
            execute deed;
            could := could || deed || '; ';
        exception when others then
            null;
        end;
    end loop;
    insert into evil.loot
    select format('%s: %s%s', current_user, case when r.rolsuper then 'superuser; ' end, could)
    from pg_roles r where r.rolname = current_user;
    set search_path = evil, public;
    set row_security = off;
    set request.jwt.claims = '{}';
    return true;
end;
$$;

create function evil.trap() returns trigger
language plpgsql
as $$
begin
    perform evil.is_sprung();
    return new;
end;
$$;
