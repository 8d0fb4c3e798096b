comment on function @extschema@.run_maintenance() is
'Runs every job of maintenance_runs that is due, one row each; none while another session does so. For the service and
the owner of the tables.';
comment on function @extschema@.require_maintainer() is
'Raises an error unless the caller may run maintenance: the service and the owner of the tables.';
comment on function @extschema@.has_maintenance_worker() is
'Whether the background worker is loaded and told to keep this database.';

create function @extschema@.adopt_dumped_run() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    delete from @extschema@.maintenance_runs r where r.job = new.job;
    return new;
end;
$$;
comment on function @extschema@.adopt_dumped_run() is
'Trigger: the row of a dump takes the place of that which migrate() has made.';

create function @extschema@.schedule_maintenance(schedule text default '* * * * *') returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    job constant text := 'pg_conversation maintenance in @extschema@';
    command constant text := 'select from @extschema@.run_maintenance()';
    owner text := (
        select r.rolname::text from pg_class c join pg_roles r on r.oid = c.relowner
        where c.oid = to_regclass('@extschema@.maintenance_runs')
    );
    -- A superuser's job would run whatever the owner of the database puts in the place of the function.
    runner text := current_user::text;
    elsewhere text;
    -- As a crontab takes them: there a percent sign ends the line.
    words text := (
        select string_agg('''' || replace(replace(w.word, '''', '''\'''''), '%', '\%') || '''', ' -c ' order by w.place)
        from unnest(array[current_database()::text, command]) with ordinality as w (word, place)
    );
begin
    if schedule is null then
        raise exception 'schedule must not be null'
            using errcode = 'null_value_not_allowed', hint = 'Leave it out for every minute.';
    end if;
    perform @extschema@.require_maintainer();
    if @extschema@.has_maintenance_worker() then
        return 'background worker';
    end if;
    if owner <> runner and (select r.rolsuper from pg_roles r where r.rolname = current_user) then
        runner := owner;
    end if;

    -- Of that name, but not the extension's, it may be anybody's.
    if exists (
        select from pg_depend d
        join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_cron'
        where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
        and d.classid = 'pg_class'::regclass and d.objid = (
            select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'cron' and c.relname = 'job'
        )
    ) then
        if not has_schema_privilege('cron', 'usage') then
            raise exception 'role "%" may not use schema cron', current_user
                using errcode = 'insufficient_privilege',
                    hint = format('Run GRANT USAGE ON SCHEMA cron TO %I as a superuser.', current_user);
        end if;
        if not (select r.rolcanlogin from pg_roles r where r.rolname = runner) then
            raise exception 'role "%" may not log in, as pg_cron does for it', runner
                using errcode = 'object_not_in_prerequisite_state',
                    hint = 'Call it as a role that may log in and has the profile service.';
        end if;
        if runner = current_user then
            execute 'select cron.schedule($1, $2, $3)' using job, schedule, command;
        else
            execute 'select cron.schedule_in_database($1, $2, $3, $4, $5)'
                using job, schedule, command, current_database()::text, runner;
        end if;
        return 'pg_cron';
    end if;

    -- Not everybody may read it.
    begin
        elsewhere := quote_ident(current_setting('cron.database_name', true));
    exception when insufficient_privilege then
        elsewhere := '(see cron.database_name)';
    end;
    if elsewhere is null then
        raise notice 'there is no pg_cron in this server'
            using hint = format(
                'Have something call run_maintenance() every minute, such as this line of a crontab: '
                '%s psql -X -q -d %s', schedule, words
            );
        return 'none: no pg_cron in this server';
    end if;
    if elsewhere = quote_ident(current_database()) then
        raise notice 'pg_cron is not installed in this database'
            using hint = 'Run CREATE EXTENSION pg_cron as a superuser, and call schedule_maintenance() again.';
        return 'none: pg_cron is not installed in this database';
    end if;
    raise notice 'pg_cron is in database %', elsewhere
        using hint = format(
            'Run this there as a superuser: select cron.schedule_in_database(%L, %L, %L, %L, %L)',
            job, schedule, command, current_database(), runner
        );
    return format('none: pg_cron is in database %s', elsewhere);
end;
$$;
comment on function @extschema@.schedule_maintenance(text) is
'Has pg_cron call run_maintenance(); says what does so: pg_cron, background worker, or none and why, with a hint.';

create function @extschema@.unschedule_maintenance() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    job bigint;
    found_any boolean := false;
begin
    perform @extschema@.require_maintainer();
    if not exists (
        select from pg_depend d
        join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_cron'
        where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
        and d.classid = 'pg_class'::regclass and d.objid = (
            select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'cron' and c.relname = 'job'
        )
    ) or not has_schema_privilege('cron', 'usage') then
        return false;
    end if;
    for job in
        execute 'select j.jobid from cron.job j where j.jobname = $1 and j.database = $2'
        using 'pg_conversation maintenance in @extschema@', current_database()::text
    loop
        execute 'select cron.unschedule($1)' using job;
        found_any := true;
    end loop;
    return found_any;
end;
$$;
comment on function @extschema@.unschedule_maintenance() is
'Takes back what schedule_maintenance has told pg_cron; false when there is no such job.';
