//! A thousand rows in every table, whatever tables there are.

use pg_conversation_tests::{Client, Session, Uuid};

pub const ROWS: i64 = 1000;

pub struct Table {
    pub name: String,
    /// The statement that adds the rows; those that are there already are left out.
    pub insert: String,
    /// A statement that writes every row.
    pub update: String,
}

/// Takes away what would refuse rows made up from the catalog, then makes them. They are all of one
/// tenant, user, conversation and message, which are there.
pub fn fill(client: &mut Client, user: Uuid, conversation: Uuid, message: Uuid) -> Vec<Table> {
    client.run(
        "do $$ declare x record; begin \
             for x in select c.conrelid::regclass as relation, c.conname from pg_constraint c \
             where c.contype = 'c' and c.connamespace = 'public'::regnamespace and c.conrelid <> 0 loop \
                 execute format('alter table %s drop constraint %I', x.relation, x.conname); \
             end loop; \
             for x in select c.oid::regclass as relation from pg_class c \
             where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace loop \
                 execute format('alter table %s disable trigger all', x.relation); \
             end loop; end $$",
    );
    let tenant: Uuid =
        client.value(&format!("select tenant_id from conversations where id = '{conversation}'"));
    let sql = INSERTS
        .replace("{tenant}", &tenant.to_string())
        .replace("{user}", &user.to_string())
        .replace("{conversation}", &conversation.to_string())
        .replace("{message}", &message.to_string());
    let mut tables = Vec::new();
    for row in client.query(&sql, &[]).expect("a list of tables") {
        let (name, insert, column): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        client.run(&insert);
        let update = format!("update {name} set {column} = {column}");
        let rows: i64 = client.value(&format!("select count(*) from {name}"));
        assert!(rows >= ROWS, "{name}: {rows} rows come of {insert}");
        client.run(&format!("analyze {name}"));
        tables.push(Table { name, insert, update });
    }
    tables
}

// A key of ids alone would be the same in each row: its last column is made up, the first one of a key
// that is not the primary one.
const INSERTS: &str = "\
    with columns as ( \
        select c.oid, a.attnum, a.attname, a.atttypid, a.attnotnull, a.atthasdef, \
            coalesce(a.attnum = any (x.conkey), false) as in_key, \
            coalesce(a.attnum = x.conkey[cardinality(x.conkey)] and not exists ( \
                select from pg_attribute k where k.attrelid = c.oid and k.attnum = any (x.conkey) \
                and k.atttypid <> 'uuid'::regtype), false) or exists ( \
                select from pg_constraint u where u.conrelid = c.oid and u.contype = 'u' \
                and a.attnum = u.conkey[1] and a.atttypid = 'uuid'::regtype) as varies, \
            (select quote_literal(e.enumlabel) from pg_enum e where e.enumtypid = a.atttypid \
                order by e.enumsortorder limit 1) as label \
        from pg_class c join pg_attribute a on a.attrelid = c.oid \
        left join pg_constraint x on x.conrelid = c.oid and x.contype = 'p' \
        where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace and not c.relispartition \
        and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity = ''), \
    fillings as ( \
        select oid, attnum, quote_ident(attname) as name, case \
            when varies then 'gen_random_uuid()' \
            when attname = 'tenant_id' then '''{tenant}''' \
            when attname in ('user_id', 'author_id', 'owner_id', 'created_by') then '''{user}''' \
            when attname = 'conversation_id' then '''{conversation}''' \
            when attname = 'message_id' then '''{message}''' \
            when atthasdef and not in_key or not attnotnull then null \
            when label is not null then label \
            when atttypid = 'uuid'::regtype then 'gen_random_uuid()' \
            when atttypid in ('int4'::regtype, 'int8'::regtype, 'numeric'::regtype) then 'i' \
            when atttypid = 'text'::regtype then '''x'' || i' \
            when atttypid in ('jsonb'::regtype, 'text[]'::regtype) then '''{}''' \
            when atttypid = 'bool'::regtype then 'false' \
            when atttypid in ('timestamptz'::regtype, 'date'::regtype) then 'now()' \
            when atttypid = 'interval'::regtype then '''1 day''' \
            else format('/* what is put into a %s? */', atttypid::regtype) end as filling \
        from columns) \
    select oid::regclass::text, format('insert into %s (%s) select %s from generate_series(1, 1000) i \
        on conflict do nothing', oid::regclass, string_agg(name, ', ' order by attnum), \
        string_agg(filling, ', ' order by attnum)), (array_agg(name order by attnum))[1] \
    from fillings where filling is not null group by oid order by 1";
