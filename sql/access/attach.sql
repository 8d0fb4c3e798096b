alter table @extschema@.access_profiles enable row level security;

drop policy if exists access_profiles_read on @extschema@.access_profiles;
create policy access_profiles_read on @extschema@.access_profiles for select using (true);

create or replace trigger adopt_dumped_row
before insert on @extschema@.access_profiles
for each row execute function @extschema@.adopt_dumped_profile();

-- Roles of hosted deployments, and the two that CREATE EXTENSION makes, get their grants without being
-- asked for.
insert into @extschema@.access_profiles (role_name, profile)
select known.role_name, known.profile
from (
    values
    ('anon', 'anon'), ('authenticated', 'member'), ('service_role', 'service'),
    ('conversation_service', 'service'), ('conversation_syncer', 'syncer')
) as known (role_name, profile)
join pg_roles r on r.rolname = known.role_name
where (r.rolbypassrls or known.profile in ('anon', 'member'))
-- Roles belong to the cluster: who owns this database alone need not want those of another one in it.
and (
    known.role_name not in ('conversation_service', 'conversation_syncer')
    or exists (select from pg_roles o where o.rolname = current_user and o.rolsuper)
)
and not exists (select from @extschema@.access_profiles p where p.role_name = known.role_name);

-- Each role that is listed gets what its profile says, also of tables that this version has brought,
-- and nothing else: a restore makes the tables anew, and the default privileges of the target open them.
select
    case
        when p.profile = 'none' then @extschema@.revoke_all(p.role_name)
        else @extschema@.grant_access(p.role_name, p.profile)
    end
from @extschema@.access_profiles p
join pg_roles r on r.rolname = p.role_name
where r.rolsuper or r.rolbypassrls or p.profile not in ('service', 'syncer');

-- Of the others, nobody gets what passes by policies: TRUNCATE does, foreign keys and triggers read rows,
-- and whoever is bound by policies gets columns to write, never whole tables: a table's UPDATE or
-- DELETE is also the right to lock it.
do $$
declare
    found record;
begin
    for found in
        select
            c.oid::regclass as relation,
            g.grantee,
            string_agg(distinct a.privilege_type, ', ') as verbs,
            (
                select string_agg(
                    format('grant %s (%I) on %s to %s', k.privilege_type, t.attname, c.oid::regclass, g.grantee), ';'
                )
                from pg_attribute t
                cross join aclexplode(t.attacl) k
                where t.attrelid = c.oid and k.grantee = a.grantee and a.grantee <> 0
                and k.privilege_type in ('SELECT', 'INSERT', 'UPDATE')
            ) as columns
        from pg_class c
        cross join aclexplode(c.relacl) a
        left join pg_roles r on r.oid = a.grantee
        cross join lateral (
            select case a.grantee when 0 then 'public' else quote_ident(r.rolname) end
        ) as g (grantee)
        where c.relnamespace = '@extschema@'::regnamespace and c.relname = any ('{@tables@}')
        and a.grantee <> c.relowner
        and (
            a.grantee = 0
            or a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')
            or (
                a.privilege_type in ('INSERT', 'UPDATE', 'DELETE')
                and not (r.rolsuper or r.rolbypassrls)
                and not (a.privilege_type = 'DELETE' and c.relname = 'conversations')
                and not exists (select from @extschema@.access_profiles p where p.role_name = r.rolname)
            )
        )
        group by c.oid, a.grantee, g.grantee
    loop
        execute format('revoke %s on %s from %s cascade', found.verbs, found.relation, found.grantee);
        if found.columns is not null then
            execute found.columns;
        end if;
    end loop;
end;
$$;

-- A materialized view has rows of every tenant and no policy, so it is its owner's alone. A view asks the
-- policies of the tables in the name of its reader, and is for reading.
do $$
declare
    found record;
begin
    for found in
        select distinct
            c.oid::regclass as relation,
            case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee,
            case when c.relkind = 'm' or a.grantee = 0 then 'all' else a.privilege_type end as verb
        from pg_class c
        cross join lateral (
            select of_all.grantee, of_all.privilege_type from aclexplode(c.relacl) of_all
            union all
            select of_column.grantee, of_column.privilege_type
            from pg_attribute t
            cross join aclexplode(t.attacl) of_column
            where t.attrelid = c.oid
        ) a
        where c.relnamespace = '@extschema@'::regnamespace and a.grantee <> c.relowner
        and (
            c.relname = any ('{@matviews@}')
            or (c.relname = any ('{@views@}') and (a.grantee = 0 or a.privilege_type <> 'SELECT'))
        )
    loop
        execute format('revoke %s on %s from %s cascade', found.verb, found.relation, found.grantee);
    end loop;
end;
$$;

comment on table @extschema@.access_profiles is
'What grant_access was last asked to give each role; migrate() gives it again.';
comment on column @extschema@.access_profiles.role_name is 'The role.';
comment on column @extschema@.access_profiles.profile is
'anon, member, service, syncer, monitor; none after revoke_access.';
comment on column @extschema@.access_profiles.granted_at is 'Since when.';
comment on policy access_profiles_read on @extschema@.access_profiles is
'Whoever may read the table may know who was let in.';
comment on trigger adopt_dumped_row on @extschema@.access_profiles is
'The last word about a role counts, also when a dump of data alone brings it.';
