-- Prints docs/reference.md from the comments in the catalog of a fresh installation.
\pset tuples_only on
\pset format unaligned
load 'pg_conversation';
set intervalstyle = postgres_verbose;
select set_config('search_path', 'public', false) \g /dev/null

select E'# Reference\n\nMade by `make docs` from the comments in the catalog; do not edit.\n';

select E'## Settings\n\n| setting | default | meaning |\n|---|---|---|';
select format('| `%s` | %s | %s |', name,
    coalesce('`' || nullif(boot_val, '') || coalesce(' ' || unit, '') || '`', ''),
    concat_ws(' ', short_desc, extra_desc))
from pg_settings where name like 'pg\_conversation.%' order by name;

select E'\n## Functions\n\n| function | returns | what it does |\n|---|---|---|';
select format('| `%s(%s)` | `%s` | %s |', p.proname,
    regexp_replace(
        replace(replace(pg_get_function_arguments(p.oid), 'timestamp with time zone', 'timestamptz'), $$'@ $$, $$'$$),
        $$ DEFAULT (?:'(-?\d+)'|('[^']*'|[^:,']*))(?:::[a-z]+)?$$, ' = \1\2', 'g'
    ),
    replace(pg_get_function_result(p.oid), 'timestamp with time zone', 'timestamptz'),
    replace(obj_description(p.oid, 'pg_proc'), E'\n', ' '))
from pg_proc p
join pg_depend d on d.objid = p.oid and d.classid = 'pg_proc'::regclass and d.deptype = 'e'
join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_conversation'
where p.prorettype <> 'trigger'::regtype
order by p.proname, pg_get_function_arguments(p.oid);

select E'\n## Types\n\n| type | values | meaning |\n|---|---|---|';
select format('| `%s` | %s | %s |', t.typname,
    (select string_agg(enumlabel, ', ' order by enumsortorder) from pg_enum where enumtypid = t.oid),
    obj_description(t.oid, 'pg_type'))
from pg_type t where t.typtype = 'e' and t.typnamespace = 'public'::regnamespace order by t.typname;

select E'\n## Tables';
with tables as (
    select c.oid, c.relname
    from pg_class c where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace
),
lines as (
    select relname, 1 as part, 0 as nr, '' as key,
        format(E'\n### %s\n\n%s\n\n| column | type | default | meaning |\n|---|---|---|---|',
            relname, obj_description(oid, 'pg_class')) as line
    from tables
    union all
    select t.relname, 2, a.attnum, '',
        format('| `%s` | %s%s | %s | %s |', a.attname,
            replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz'),
            case when a.attnotnull then '' else ', null' end,
            coalesce('`' || pg_get_expr(d.adbin, d.adrelid) || '`', ''),
            col_description(t.oid, a.attnum))
    from tables t
    join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = t.oid and d.adnum = a.attnum
    union all
    select relname, 3, 0, '', E'\n| on it | definition | meaning |\n|---|---|---|' from tables
    union all
    select t.relname, 4, 0, i.indexrelid::regclass::text,
        format('| index | `%s` | %s |', pg_get_indexdef(i.indexrelid),
            coalesce(obj_description(i.indexrelid, 'pg_class'), ''))
    from tables t join pg_index i on i.indrelid = t.oid
    where not exists (select from pg_constraint x where x.conindid = i.indexrelid and x.contype in ('p', 'u'))
    union all
    select t.relname, 5, 0, x.conname, format('| constraint | `%s`: `%s` | |', x.conname,
        replace(pg_get_constraintdef(x.oid), '|', '\|'))
    from tables t join pg_constraint x on x.conrelid = t.oid and x.contype <> 'n'
    union all
    select t.relname, 6, 0, p.polname, format('| policy | `%s` for %s | %s |', p.polname,
        case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'
            when 'd' then 'delete' else 'all' end, obj_description(p.oid, 'pg_policy'))
    from tables t join pg_policy p on p.polrelid = t.oid
    union all
    select t.relname, 7, 0, g.tgname, format('| trigger | `%s` | %s |', g.tgname,
        obj_description(g.oid, 'pg_trigger'))
    from tables t join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal
)
select line from lines order by relname, part, nr, key;

-- Indexes of materialized views are listed with them.
select E'\n## Views\n\nA view shows what its reader may see in the tables. A materialized one is for its owner, and as old as '
    'the last refresh.' where exists (
    select from pg_class where relkind in ('v', 'm') and relnamespace = 'public'::regnamespace
);
with views as (
    select c.oid, c.relname, c.relkind
    from pg_class c where c.relkind in ('v', 'm') and c.relnamespace = 'public'::regnamespace
),
lines as (
    select relname, 1 as part, 0 as nr, '' as key,
        format(E'\n### %s\n\n%s%s\n\n| column | type | meaning |\n|---|---|---|', relname,
            case relkind when 'm' then 'Materialized. ' end, obj_description(oid, 'pg_class')) as line
    from views
    union all
    select v.relname, 2, a.attnum, '',
        format('| `%s` | %s | %s |', a.attname,
            replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz'),
            coalesce(col_description(v.oid, a.attnum), ''))
    from views v
    join pg_attribute a on a.attrelid = v.oid and a.attnum > 0 and not a.attisdropped
    union all
    select v.relname, 3, 0, i.indexrelid::regclass::text,
        format(E'\nIndex `%s`: %s', pg_get_indexdef(i.indexrelid), obj_description(i.indexrelid, 'pg_class'))
    from views v join pg_index i on i.indrelid = v.oid
    union all
    select relname, 4, 0, '', format(E'\n```sql\n%s\n```', pg_get_viewdef(oid)) from views where relkind = 'm'
)
select line from lines order by relname, part, nr, key;
