//! A database as lines of text, so that two can be compared and the difference read.

use std::collections::BTreeMap;

use pg_conversation_tests::{Client, Session};

/// `{acl:NULLABLE COLUMN:KIND:OWNER}` in a query below stands for its privileges by name; kind `-`
/// has no default. MAINTAIN of the owner is left out, for Postgres 17 gives it to every owner.
const SECTIONS: &[(&str, &str)] = &[
    (
        "schema",
        "select n.nspname::text, format('owner %s, acl %s, comment %s', n.nspowner::regrole,
            {acl:n.nspacl:n:n.nspowner}, obj_description(n.oid, 'pg_namespace'))
         from pg_namespace n where {ours}",
    ),
    (
        "relation",
        "select c.oid::regclass::text, format('%s owner %s, persistence %s, rls %s %s, options %s, '
            'identity %s, populated %s, acl %s, comment %s', c.relkind, c.relowner::regrole,
            c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.reloptions, c.relreplident,
            c.relispopulated, {acl:c.relacl:r:c.relowner}, obj_description(c.oid, 'pg_class'))
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where {ours} and c.relkind in ('r', 'p', 'v', 'm', 'f')",
    ),
    (
        "column",
        // 17 writes NULL where older ones write -1 for the statistics target. 15.20 keeps a token of
        // its own, pg_attver, among the options of every column, another one for every table made.
        "select format('%s.%s', c.oid::regclass, a.attname), format('%s %s, not null %s, default %s, '
            'identity %s, generated %s, storage %s, compression %s, statistics %s, options %s, acl %s, '
            'comment %s', rank() over (partition by c.oid order by a.attnum),
            format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
            a.attidentity, a.attgenerated, a.attstorage, a.attcompression,
            nullif(a.attstattarget, -1),
            array(select o from unnest(a.attoptions) o where o not like 'pg_attver=%'), {acl:a.attacl:-:c.relowner},
            col_description(c.oid, a.attnum))
         from pg_attribute a join pg_class c on c.oid = a.attrelid
         join pg_namespace n on n.oid = c.relnamespace
         left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
         where {ours} and c.relkind in ('r', 'p', 'v', 'm', 'f') and a.attnum > 0
         and not a.attisdropped",
    ),
    (
        "constraint",
        // 18 lists NOT NULL here; every version has it with the column.
        "select format('%s on %s', o.conname, o.conrelid::regclass), format('%s, valid %s, comment %s',
            pg_get_constraintdef(o.oid), o.convalidated, obj_description(o.oid, 'pg_constraint'))
         from pg_constraint o join pg_namespace n on n.oid = o.connamespace
         where {ours} and o.contype <> 'n' and o.contypid = 0",
    ),
    (
        "index",
        "select c.oid::regclass::text, format('%s, valid %s, clustered %s, identity %s, comment %s',
            pg_get_indexdef(c.oid), i.indisvalid, i.indisclustered, i.indisreplident,
            obj_description(c.oid, 'pg_class'))
         from pg_index i join pg_class c on c.oid = i.indexrelid
         join pg_namespace n on n.oid = c.relnamespace where {ours}",
    ),
    (
        "statistics",
        "select s.stxname::text, pg_get_statisticsobjdef(s.oid)
         from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where {ours}",
    ),
    (
        "trigger",
        "select format('%s on %s', t.tgname, t.tgrelid::regclass), format('%s, enabled %s, comment %s',
            pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger'))
         from pg_trigger t join pg_class c on c.oid = t.tgrelid
         join pg_namespace n on n.oid = c.relnamespace where {ours} and not t.tgisinternal",
    ),
    (
        "policy",
        "select format('%s on %s', p.policyname, format('%I.%I', p.schemaname, p.tablename)),
            format('%s %s to %s using %s check %s, comment %s', p.permissive, p.cmd, p.roles, p.qual,
            p.with_check, (select obj_description(o.oid, 'pg_policy') from pg_policy o
                where o.polname = p.policyname
                and o.polrelid = format('%I.%I', p.schemaname, p.tablename)::regclass))
         from pg_policies p join pg_namespace n on n.nspname = p.schemaname where {ours}",
    ),
    (
        "view",
        // Postgres 18 leaves out the name of a table that is alone.
        "select c.oid::regclass::text, regexp_replace(pg_get_viewdef(c.oid), '\\m\\w+\\.', '', 'g')
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where {ours} and c.relkind in ('v', 'm')",
    ),
    (
        "sequence",
        "select format('%I.%I', s.schemaname, s.sequencename), format('%s %s %s %s %s %s %s %s, last %s, '
            'owned by %s, acl %s, comment %s', s.sequenceowner, s.data_type, s.start_value, s.min_value,
            s.max_value, s.increment_by, s.cycle, s.cache_size, s.last_value,
            pg_get_serial_sequence(d.refobjid::regclass::text, a.attname),
            {acl:c.relacl:s:c.relowner}, obj_description(c.oid, 'pg_class'))
         from pg_sequences s join pg_namespace n on n.nspname = s.schemaname
         join pg_class c on c.relnamespace = n.oid and c.relname = s.sequencename
         left join pg_depend d on d.objid = c.oid and d.classid = 'pg_class'::regclass
            and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
         left join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
         where {ours}",
    ),
    (
        "type",
        "select t.oid::regtype::text, format('%s owner %s, labels %s, acl %s, comment %s', t.typtype,
            t.typowner::regrole, (select array_agg(e.enumlabel order by e.enumsortorder)
                from pg_enum e where e.enumtypid = t.oid), {acl:t.typacl:T:t.typowner},
            obj_description(t.oid, 'pg_type'))
         from pg_type t join pg_namespace n on n.oid = t.typnamespace
         where {ours} and t.typtype in ('e', 'd')",
    ),
    (
        "function",
        "select p.oid::regprocedure::text, format('owner %s, member of %s, acl %s, comment %s: %s',
            p.proowner::regrole, (select e.extname from pg_depend d join pg_extension e
                on e.oid = d.refobjid where d.objid = p.oid and d.classid = 'pg_proc'::regclass
                and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'),
            {acl:p.proacl:f:p.proowner}, obj_description(p.oid, 'pg_proc'), pg_get_functiondef(p.oid))
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where {ours} and p.prokind in ('f', 'p')",
    ),
];

/// What lies in no schema.
const DATABASE: &[(&str, &str)] = &[
    (
        "extension",
        "select e.extname::text, format('version %s in %s, configuration %s %s, comment %s', e.extversion,
            e.extnamespace::regnamespace, e.extconfig::regclass[], e.extcondition,
            obj_description(e.oid, 'pg_extension'))
         from pg_extension e",
    ),
    ("extension owner", "select e.extname::text, e.extowner::regrole::text from pg_extension e"),
    (
        "member",
        "select e.extname::text, pg_describe_object(d.classid, d.objid, d.objsubid)
         from pg_depend d join pg_extension e on e.oid = d.refobjid
         where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
         and e.extname = 'pg_conversation'",
    ),
    (
        "publication",
        "select p.pubname::text, format('owner %s, all %s, %s %s %s %s, via root %s', p.pubowner::regrole,
            p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot)
         from pg_publication p",
    ),
    (
        "publication table",
        "select pubname::text, format('%I.%I %s where %s', schemaname, tablename, attnames, rowfilter)
         from pg_publication_tables",
    ),
    (
        "default privileges",
        "select format('%s in %s', defaclrole::regrole, nullif(defaclnamespace, 0)::regnamespace),
            format('%s %s', defaclobjtype, {acl:defaclacl:-:defaclrole}) from pg_default_acl",
    ),
];

const PRIVILEGES: &str = "(select string_agg(x, ' ' order by x) from (select format('%s=%s%s/%s', \
    case grantee when 0 then 'public' else grantee::regrole::text end, privilege_type, \
    case when is_grantable then '*' end, grantor::regrole) as x from aclexplode({list}) \
    where privilege_type <> 'MAINTAIN' or grantee <> {owner}) privileges)";

#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint(Vec<String>);

impl Fingerprint {
    /// Everything a dump of the database must bring back.
    pub fn of(client: &mut Client) -> Self {
        let everywhere = "n.nspname !~ '^pg_' and n.nspname <> 'information_schema'";
        let mut lines = catalog(client, SECTIONS, everywhere);
        lines.extend(catalog(client, DATABASE, everywhere));
        lines.extend(rows(client, everywhere));
        Self::new(lines)
    }

    /// The same for what lies in one schema, with the schema itself.
    pub fn of_schema(client: &mut Client, schema: &str) -> Self {
        let here = format!("n.nspname = '{schema}'");
        let mut lines = catalog(client, SECTIONS, &here);
        lines.extend(rows(client, &here));
        Self::new(lines)
    }

    /// The objects of one schema and the extension, without rows.
    pub fn of_catalog(client: &mut Client, schema: &str) -> Self {
        let here = format!("n.nspname = '{schema}'");
        let mut lines = catalog(client, SECTIONS, &here);
        lines.extend(catalog(client, DATABASE, &here));
        Self::new(lines)
    }

    fn new(mut lines: Vec<String>) -> Self {
        lines.sort();
        Self(lines)
    }

    pub fn with(mut self, lines: Vec<String>) -> Self {
        self.0.extend(lines);
        Self::new(self.0)
    }

    /// A line of text a line, so that it can be kept in a file and read in a diff.
    pub fn sorted_text(&self) -> String {
        let lines: Vec<String> = self.0.iter().map(|line| line.replace('\n', "\\n")).collect();
        lines.join("\n") + "\n"
    }

    pub fn parse(text: &str) -> Self {
        Self::new(text.lines().map(str::to_string).collect())
    }

    pub fn filter(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|line| keep(line)).cloned().collect())
    }

    /// The sections that start with one of these names are not compared.
    pub fn without(&self, sections: &[&str]) -> Self {
        self.filter(|line| !sections.iter().any(|s| line.starts_with(&format!("{s} | "))))
    }

    pub fn only(&self, sections: &[&str]) -> Self {
        self.filter(|line| sections.iter().any(|s| line.starts_with(&format!("{s} | "))))
    }

    /// Lines that only one of the two has: `-` is the expected one, `+` the found one.
    pub fn difference(&self, found: &Self) -> Vec<String> {
        let mut count: BTreeMap<&str, i32> = BTreeMap::new();
        for line in &self.0 {
            *count.entry(line).or_default() -= 1;
        }
        for line in &found.0 {
            *count.entry(line).or_default() += 1;
        }
        let mut lines = Vec::new();
        for (line, n) in count {
            let sign = if n < 0 { '-' } else { '+' };
            lines.extend((0..n.abs()).map(|_| format!("{sign} {line}")));
        }
        // Both faces of one object below each other.
        lines.sort_by(|a, b| a[2..].cmp(&b[2..]));
        lines
    }

    pub fn assert_same(&self, found: &Self, what: &str) {
        let difference = self.difference(found);
        assert!(
            difference.is_empty(),
            "{what}: {} lines differ (- expected, + found)\n{}",
            difference.len(),
            difference.join("\n")
        );
    }
}

fn catalog(client: &mut Client, sections: &[(&str, &str)], schemas: &str) -> Vec<String> {
    settle(client);
    let mut lines = Vec::new();
    for (section, sql) in sections {
        for row in client.query(&spell_out(sql, schemas), &[]).unwrap_or_else(|error| {
            panic!("{section}: {}", pg_conversation_tests::describe(&error))
        }) {
            let (subject, text): (String, String) = (row.get(0), row.get(1));
            lines.push(format!("{section} | {subject} | {text}"));
        }
    }
    lines
}

/// Every row of every table and matview.
fn rows(client: &mut Client, schemas: &str) -> Vec<String> {
    settle(client);
    let tables: Vec<String> = client.values(&format!(
        "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where {schemas} and c.relkind in ('r', 'm') and c.relispopulated"
    ));
    let mut lines = Vec::new();
    for table in tables {
        for row in client.values::<String>(&format!("select t::text from {table} t")) {
            lines.push(format!("row | {table} | {row}"));
        }
    }
    lines
}

/// Names come out with their schema, times in one zone.
fn settle(client: &mut Client) {
    client.run("set search_path = pg_catalog; set timezone = 'UTC'; set datestyle = 'ISO'");
}

fn spell_out(sql: &str, schemas: &str) -> String {
    let mut text = sql.replace("{ours}", &format!("({schemas})"));
    while let Some(start) = text.find("{acl:") {
        let end = start + text[start..].find('}').expect("a closing brace");
        let parts: Vec<&str> = text[start + 1..end].split(':').collect();
        let list = match parts[2] {
            "-" => parts[1].to_string(),
            kind => format!("coalesce({}, acldefault('{kind}', {}))", parts[1], parts[3]),
        };
        let privileges = PRIVILEGES.replace("{list}", &list).replace("{owner}", parts[3]);
        text.replace_range(start..=end, &privileges);
    }
    text
}
