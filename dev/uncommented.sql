-- Lists what the extension makes without saying what it is for.
select p.oid::regprocedure::text
from pg_proc p
join pg_depend d on d.objid = p.oid and d.classid = 'pg_proc'::regclass and d.deptype = 'e'
where obj_description(p.oid, 'pg_proc') is null
and d.refobjid = (select oid from pg_extension where extname = 'pg_conversation')
union all
select c.oid::regclass::text from pg_class c
where c.relnamespace = 'public'::regnamespace and obj_description(c.oid, 'pg_class') is null
and not exists (select from pg_constraint x where x.conindid = c.oid and x.contype in ('p', 'u'))
union all
select format('%s.%s', a.attrelid::regclass, a.attname)
from pg_attribute a join pg_class c on c.oid = a.attrelid and c.relkind = 'r'
where c.relnamespace = 'public'::regnamespace and a.attnum > 0 and not a.attisdropped
and col_description(a.attrelid, a.attnum) is null
union all
select format('policy %s on %s', polname, polrelid::regclass) from pg_policy p
where obj_description(p.oid, 'pg_policy') is null
union all
select format('trigger %s on %s', tgname, tgrelid::regclass) from pg_trigger t
where not tgisinternal and obj_description(t.oid, 'pg_trigger') is null
union all
select typname from pg_type t
where typtype = 'e' and typnamespace = 'public'::regnamespace and obj_description(t.oid, 'pg_type') is null;
