-- A restore makes the tables anew, and the default privileges of the target open them. TRUNCATE
-- passes by every policy, foreign keys and triggers read rows, and whoever is bound by policies gets
-- columns to write, never whole tables: a table's UPDATE is a user's own role.
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
                where t.attrelid = c.oid and k.grantee = a.grantee
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
            a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')
            or (a.privilege_type in ('INSERT', 'UPDATE') and not coalesce(r.rolsuper or r.rolbypassrls, false))
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

-- Roles of hosted deployments get their grants without being asked for.
select @extschema@.grant_access(known.role, known.profile)
from (values ('authenticated', 'member'), ('service_role', 'service')) as known (role, profile)
join pg_roles r on r.rolname = known.role and (r.rolbypassrls or known.profile = 'member');
