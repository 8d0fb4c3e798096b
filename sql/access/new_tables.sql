-- Default privileges of the installer's database are not ours: new tables and views start with none.
do $$
declare
    found record;
begin
    for found in
        select distinct
            c.oid::regclass as relation,
            case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
        from pg_class c
        cross join aclexplode(c.relacl) a
        where c.relnamespace = '@extschema@'::regnamespace and c.relname = any ('{@relations@}')
        and a.grantee <> c.relowner
    loop
        execute format('revoke all on %s from %s', found.relation, found.grantee);
    end loop;
end;
$$;
