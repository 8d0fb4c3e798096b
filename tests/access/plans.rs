//! What a member learns from plans, statistics, and the functions that he brings along.

use pg_conversation_tests::{Client, Server, Session, oldest};

use crate::answer::{Answer, ask};
use crate::world::{World, world};

/// Columns with what people write; `plant` puts a text there that begins with "hidden". Names that an
/// index serves are found before any policy is asked.
const CONTENTS: [(&str, &str); 15] = [
    ("messages", "content"),
    ("messages", "error"),
    ("messages", "metadata ->> 'note'"),
    ("message_chunks", "chunk_content"),
    ("message_revisions", "content"),
    ("feedback", "comment"),
    ("feedback", "metadata ->> 'note'"),
    ("usage_events", "usage ->> 'note'"),
    ("conversations", "title"),
    ("conversations", "summary"),
    ("users", "name"),
    ("users", "email"),
    ("users", "lower(email)"),
    ("tenants", "name"),
    ("tenants", "system_prompt"),
];

/// What of that a colleague may see.
const OF_TENANT: &str = "tenants";

fn plant(world: &World) {
    let place = world.place("a/private");
    let (id, message) = (place.id, place.messages[&place.owner]);
    world.root().run(&format!(
        "update messages set content = 'hidden first' where id = '{message}'; \
         update messages set content = 'hidden', error = 'hidden', \
             metadata = '{{\"note\": \"hidden\"}}' where id = '{message}'; \
         insert into message_chunks (message_id, chunk_content) values ('{0}', 'hidden'); \
         update feedback set comment = 'hidden', metadata = '{{\"note\": \"hidden\"}}' \
             where conversation_id = '{id}'; \
         select record_usage('{2}', '{1}', 'm', '{{\"note\": \"hidden\"}}', 'hidden'); \
         update conversations set title = 'hidden', summary = 'hidden' where id = '{id}'; \
         update users set name = 'hidden', email = 'hidden' where id = '{1}'; \
         update tenants set name = 'hidden', system_prompt = 'hidden' where id = '{2}'; \
         analyze",
        place.stream, place.owner, place.tenant
    ));
}

const TABLES: [&str; 13] = [
    "tenants",
    "users",
    "conversations",
    "conversation_members",
    "messages",
    "message_chunks",
    "message_revisions",
    "feedback",
    "feedback_counts",
    "usage_events",
    "usage_days",
    "usage_totals",
    "usage_months",
];

fn explain(client: &mut Client, sql: &str) -> String {
    let options = "analyze, costs off, timing off, summary off";
    let lines: Vec<String> = client.values(&format!("explain ({options}) {sql}"));
    // What was looked for stands in the plan.
    lines.into_iter().filter(|line| !line.contains("Cond:") && !line.contains("Filter: ")).collect()
}

/// Comparisons of texts are leakproof and cheap, so that Postgres asks them before a policy, and a plan
/// shows which parts of the policy were ever asked: it tells whether a guess is right. The statement
/// itself does not.
#[test]
fn nothing_but_a_plan_tells_a_right_guess_at_a_foreign_text_from_a_wrong_one() {
    let world = world(Server::shared(oldest()));
    plant(&world);
    let mut told = 0;
    for (who, setting) in
        [("b owner", "on"), ("b owner", "off"), ("b admin", "on"), ("a colleague", "on")]
    {
        let mut session = world.session(who);
        session.run(&format!("set enable_seqscan = {setting}"));
        for (table, column) in CONTENTS {
            if who == "a colleague" && table == OF_TENANT {
                continue;
            }
            for condition in
                ["$ ^@ '?'", "$ >= '?'", "$ between '?' and '?~'", "$ = '?'", "$ like '?%'"]
            {
                // Nobody has anything behind a tilde.
                let sql = ["hidden", "hidde~"].map(|guess| {
                    let condition = condition.replace('$', column).replace('?', guess);
                    format!("select {column} from {table} where {condition}")
                });
                let answers = sql.each_ref().map(|sql| ask(&mut session, sql).text());
                assert_eq!(answers[0], answers[1], "{who}: {sql:?}");
                assert!(!answers[0].contains("hidden"), "{who}: {sql:?}: {answers:?}");
                let plans = sql.each_ref().map(|sql| explain(&mut session, sql));
                told += usize::from(plans[0] != plans[1]);
            }
        }
    }
    assert!(told > 0, "the page says that plans tell");
}

/// What Postgres itself lets through: plans count the rows that a policy has kept back, and estimates
/// come from everybody's rows.
#[test]
fn plans_do_tell_how_many_rows_there_are() {
    let world = world(Server::shared(oldest()));
    let mut session = world.session("b owner");
    let all: i64 = world.root().value("select count(*) from messages");
    let own: i64 = session.value("select count(*) from messages");
    session.run("set enable_indexscan = off; set enable_bitmapscan = off");
    let plan =
        session.values::<String>("explain (analyze, costs off) select from messages").concat();
    assert!(plan.contains(&format!("Rows Removed by Filter: {}", all - own)), "{plan}");
    // An id or a name that somebody knows already is found in an index before the policy is asked.
    session.run("reset all");
    let person = world.person("b owner").clone();
    session.run(&crate::world::claims(&person));
    session.run("set enable_seqscan = off");
    for id in [world.place("a/private").id, world.place("b/private").id] {
        let sql = format!(
            "explain (analyze, costs off) select from messages where conversation_id = '{id}'"
        );
        let plan = session.values::<String>(&sql).concat();
        let told = plan.contains("Rows Removed by Filter: 9");
        assert_eq!(told, id == world.place("a/private").id, "{plan}");
    }
}

/// Functions that look at what they are given and say it, called before everything else if the
/// planner may choose.
const SPIES: &str = "
    create function playground.spy(anyelement) returns boolean language plpgsql cost 0.0000001
        as 'begin raise notice ''%'', $1; return true; end';
    create function playground.spy_text(text, text) returns boolean language plpgsql cost 0.0000001
        as 'begin raise notice ''% %'', $1, $2; return true; end';
    create operator playground.~~~ (leftarg = text, rightarg = text, function = playground.spy_text);
    create function playground.loud(text) returns text language plpgsql cost 0.0000001 immutable
        as 'begin raise notice ''%'', $1; return $1; end'";

#[test]
fn a_function_that_a_member_brings_along_is_shown_his_own_rows_only() {
    let world = world(Server::shared(oldest()));
    world.session("a owner").run(SPIES);
    let (mut session, heard) = world.overheard("b owner");
    let foreign = world.place("a/private");
    for setting in ["on", "off"] {
        session.run(&format!("set enable_seqscan = {setting}; set enable_hashjoin = {setting}"));
        for table in TABLES {
            let id = if table == "conversation_members" { "user_id" } else { "tenant_id" };
            let id = match table {
                "tenants" => "id",
                "message_chunks" => "message_id",
                _ => id,
            };
            for sql in [
                format!("select from {table} t where playground.spy(t)"),
                format!(
                    "select from {table} t where playground.spy(t.*) and {id} = '{}'",
                    foreign.tenant
                ),
                format!(
                    "select from {table} t where {id} = '{}' and playground.spy(t)",
                    foreign.stream
                ),
                format!("select from {table} t where t::text operator(playground.~~~) 'x'"),
                format!("select from {table} t order by playground.loud(t::text)"),
                format!("select playground.loud(t::text) from {table} t"),
                format!(
                    "select from {table} t join {table} u on playground.spy(t) and playground.spy(u)"
                ),
                format!("select from {table} t left join {table} u on playground.spy(u)"),
                format!("select from (select * from {table} offset 0) t where playground.spy(t)"),
                format!("select from {table} t tablesample system (100) where playground.spy(t)"),
                format!(
                    "select from {table} t tablesample bernoulli (100) repeatable (1) \
                         where playground.spy(t.ctid)"
                ),
                format!(
                    "select count(*) filter (where playground.spy(t)) from {table} t group by t"
                ),
                format!(
                    "select from {table} t where exists (select from {table} u where playground.spy(u))"
                ),
                format!("explain analyze select from {table} t where playground.spy(t)"),
                format!("select playground.loud(string_agg(t::text, ' ')) from {table} t"),
                format!("select playground.loud(to_jsonb(t)::text) from {table} t"),
            ] {
                session.run(&sql);
            }
        }
    }
    let own = world.place("b/private");
    let changes = [
        "update conversations c set title = 'x' where playground.spy(c)",
        "update conversations c set title = 'x' from messages m where playground.spy(m)",
        "update messages m set content = 'x' where playground.spy(m) returning playground.spy(m)",
        "delete from conversations c where playground.spy(c) returning playground.spy(c)",
        "delete from conversations c using message_chunks k where playground.spy(k)",
        "insert into messages (conversation_id, role) values ('$c', 'user') \
         returning playground.loud((select string_agg(m::text, '') from messages m))",
        "insert into conversations (title) values ('x') \
         returning playground.loud((select string_agg(t::text, '') from tenants t))",
        "select playground.loud(query_to_xml('select * from messages', true, false, '')::text)",
        "select playground.loud(table_to_xml('conversations', true, false, '')::text)",
        "select playground.loud(m::text) from messages m where ctid = any \
         (select format('(0,%s)', n)::tid from generate_series(1, 200) n)",
        "select playground.loud(row(xmin, xmax, cmin, tableoid, m)::text) from messages m",
        "do $do$ declare r record; begin for r in select * from messages loop raise notice '%', r; \
         end loop; end $do$",
    ];
    let has_xml: bool = world
        .root()
        .value("select setting ~ 'with-libxml' from pg_config where name = 'CONFIGURE'");
    for sql in changes.into_iter().filter(|sql| has_xml || !sql.contains("_to_xml")) {
        session.run("begin");
        session.run(&sql.replace("$c", &own.id.to_string()));
        session.run("rollback");
    }
    let heard = heard.lock().expect("nobody panics");
    let is_foreign = |words: &&String| {
        words.contains("secret-a")
            || words.contains("secret-off")
            || words.contains(&foreign.id.to_string())
    };
    let leaked: Vec<&String> = heard.iter().filter(is_foreign).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    assert!(
        heard.iter().filter(|words| words.contains("secret-b")).count() > 100,
        "the spies said nothing"
    );
    // Nobody but a superuser may promise that a function keeps what it sees to itself.
    let promise = "create function playground.quiet(text) returns boolean language sql leakproof \
                   as 'select true'";
    assert_eq!(session.error(promise).0, "42501");
}

/// Casts and the like that fail on a value quote it.
#[test]
fn an_error_about_a_value_is_about_ones_own() {
    let world = world(Server::shared(oldest()));
    let foreign = world.place("a/private").id;
    let mut stranger = world.session("b owner");
    let mut nobody = world.session("nobody");
    let mut own = 0;
    for expression in [
        "content::integer > 0",
        "content::json is not null",
        "content::uuid = id",
        "content::timestamptz > now()",
        "1 / (length(content) - length(content)) = 1",
        "to_tsquery('simple', content || ' secret &&&') is null",
        "regexp_match('x', content || '(') is null",
        "convert_to(content, content) is null",
    ] {
        for condition in ["", &format!(" and conversation_id = '{foreign}'"), " limit 1"] {
            let sql = format!("select from messages where {expression}{condition}");
            let said = ask(&mut stranger, &sql).text();
            assert!(!said.contains("secret-a") && !said.contains("secret-off"), "{sql}: {said}");
            own += usize::from(said.contains("secret-b"));
            let said = ask(&mut nobody, &sql).text();
            assert!(said == "0: ", "{sql}: {said}");
        }
    }
    assert!(own > 5, "no error was about a value");
}

#[test]
fn statistics_show_members_nothing_of_the_tables() {
    let world = world(Server::shared(oldest()));
    world
        .root()
        .run("create statistics playground.pairs (mcv) on role, content from messages; analyze");
    let schema = "public";
    for (view, table) in [
        ("pg_stats", "tablename"),
        ("pg_stats_ext", "tablename"),
        ("pg_stats_ext_exprs", "tablename"),
    ] {
        let sql =
            format!("select count(*) from {view} where {table} = any ($1) and schemaname = $2");
        let count = |mut client: Client| -> i64 {
            client.query_one(&sql, &[&TABLES.to_vec(), &schema]).expect(&sql).get(0)
        };
        assert_eq!(count(world.session("b owner")), 0, "{view}");
        assert_eq!(count(world.session("anon")), 0, "{view}");
        if view != "pg_stats_ext_exprs" {
            assert!(count(world.session("service")) > 0 || view == "pg_stats_ext", "{view}");
            assert!(count(world.root()) > 0, "{view}");
        }
    }
    let mut session = world.session("b owner");
    let toast =
        "select reltoastrelid::regclass::text from pg_class where oid = 'messages'::regclass";
    let toast: String = session.value(toast);
    for table in ["pg_statistic", "pg_statistic_ext_data", &toast] {
        assert_eq!(session.error(&format!("select from {table}")).0, "42501");
    }
}

#[test]
fn a_view_that_a_member_makes_opens_nothing_to_anybody() {
    let world = world(Server::shared(oldest()));
    world.session("a owner").run(
        "create view playground.texts as select content from messages; \
         create view playground.own_rights with (security_invoker) as select content from messages; \
         create materialized view playground.kept as select content from messages; \
         create function playground.texts() returns setof text language sql security definer \
             as 'select content from public.messages'; \
         create rule also as on insert to playground.texts do instead select content from messages; \
         grant all on all tables in schema playground to public",
    );
    let count = |world: &World, who: &str, sql: &str| match ask(&mut world.session(who), sql) {
        Answer::Refusal(code, _) => code,
        Answer::Rows(rows, _) => {
            let foreign = rows.iter().flatten().flatten().any(|text| {
                let own = if who.starts_with("b ") { "secret-b" } else { "secret-a" };
                text.contains("secret-") && !text.contains(own)
            });
            if foreign { "foreign".into() } else { format!("{} rows", rows.len()) }
        }
    };
    // A view reads with the rights of the role that made it, for whoever is signed in.
    let own = |who: &str| count(&world, who, "select content from messages");
    for sql in [
        "select content from playground.texts",
        "select * from playground.texts()",
        "insert into playground.texts values ('x')",
    ] {
        for (who, expected) in [
            ("a owner", own("a owner")),
            ("b owner", own("b owner")),
            ("a colleague", own("a colleague")),
            ("nobody", "0 rows".into()),
            ("anon", "0 rows".into()),
            ("service", "0 rows".into()),
            ("table owner", "0 rows".into()),
        ] {
            assert_eq!(count(&world, who, sql), expected, "{who}: {sql}");
        }
    }
    let invoked = "select content from playground.own_rights";
    assert_eq!(count(&world, "b owner", invoked), own("b owner"));
    assert_eq!(count(&world, "anon", invoked), "42501");
    // What a member has copied out is his to give away: it holds what he could read.
    let mut root = world.root();
    assert_eq!(
        root.value::<i64>("select count(*) from playground.kept where content like '%secret-b%'"),
        0
    );
    assert!(
        root.value::<i64>("select count(*) from playground.kept where content like '%secret-a%'")
            > 0
    );
}
