-- Lists what plpgsql_check has against the PL/pgSQL functions of the extension, trigger functions with
-- each table that they are on; and exceptions of ours that it no longer needs.
with excepted (expression, reason) as (
    values
    ('format(''alter publication %I add table %s'', publication, missing)', 'made of regclass, which quotes'),
    ('format(''alter publication %I drop table %s'', publication, present)', 'made of regclass, which quotes'),
    ('format(''grant %s on %s.%I to %I'', privilege.verbs, ''public'', privilege.relation, role)', 'constants'),
    ('format(''create policy %I on storage.objects %s'', wanted.name, wanted.rule)', 'constants')
),
found as (
    select f.oid::regprocedure as function, t.tgrelid::regclass as relation, c.*,
        exists (select from excepted x where x.expression = c.query and c.level = 'security') as is_excepted
    from pg_proc f
    join pg_language l on l.oid = f.prolang and l.lanname = 'plpgsql'
    join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = f.oid and d.deptype = 'e'
    join pg_extension e
        on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass and e.extname = 'pg_conversation'
    left join (select distinct tgfoid, tgrelid from pg_trigger where not tgisinternal) t
        on t.tgfoid = f.oid and f.prorettype = 'trigger'::regtype
    cross join lateral plpgsql_check_function_tb(
        f.oid, coalesce(t.tgrelid, 0), fatal_errors => false, all_warnings => true
    ) c
    -- A guess, as it says itself.
    where c.detail is distinct from 'attention: cannot to determine volatility of used dynamic SQL'
)
select concat_ws(' ', function, 'on ' || relation, 'line ' || lineno, level || ':', message, detail, query)
from found
where not is_excepted
union all
select 'needs no exception: ' || expression from excepted
where expression not in (select query from found where is_excepted);
