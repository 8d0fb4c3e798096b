//! How often policies call functions, from plans and by counting, over a thousand rows of every table.

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest, versions};

use super::FUNCTIONS;
use super::filling::{ROWS, Table, fill};

/// May be asked for each row; everything else once a statement.
const BY_ROW: &str = "('has_conversation_access', 'has_message_access')";

/// An index condition of these is made up once a scan.
const BY_SCAN: &str = "('readable_conversations')";

/// A database with a thousand rows in each table, all of the user whose session is returned. He is
/// bound by policies and by nothing else.
fn filled(server: &Server) -> (Database<'_>, Client, Vec<Table>) {
    let database = server.database();
    let ada = Uuid::new_v4();
    let mut member = database.member(ada);
    let conversation: Uuid = member.value("select create_conversation('all of it')");
    let message: Uuid =
        member.value(&format!("select message_id from add_message('{conversation}', 'user', 'x')"));
    let mut superuser = database.superuser();
    let tables = fill(&mut superuser, ada, conversation, message);
    superuser.run(&format!(
        "grant all on all tables in schema public to member; \
         alter database {} set track_functions = 'all'",
        database.name
    ));
    let member = database.member(ada);
    (database, member, tables)
}

fn statements(table: &Table) -> [(&'static str, String); 4] {
    [
        ("select", format!("select * from {}", table.name)),
        ("insert", table.insert.clone()),
        ("update", table.update.clone()),
        ("delete", format!("delete from {}", table.name)),
    ]
}

/// Functions of ours that the plan calls elsewhere than in an InitPlan.
fn outside_init_plans(member: &mut Client, tables: &[Table]) -> Vec<String> {
    member.run(
        "create function pg_temp.plan_of(statement text) returns jsonb language plpgsql as \
         $$ declare plan jsonb; begin execute 'explain (verbose, costs off, format json) ' || statement \
         into plan; return plan; end $$",
    );
    let mut found = Vec::new();
    for table in tables {
        for (verb, statement) in statements(table) {
            let statement = statement.replace('\'', "''");
            let called: Vec<String> = member.values(&format!(
                "with recursive node (node) as ( \
                     select pg_temp.plan_of('{statement}') #> '{{0,Plan}}' \
                     union all \
                     select child from node, jsonb_array_elements(node -> 'Plans') child) \
                 select distinct f.proname::text from node join {FUNCTIONS} f \
                 on (node - 'Plans' - case when f.proname in {BY_SCAN} then 'Index Cond' else '' end)::text \
                     ~ ('\\m' || f.proname || '\\(') \
                 where node ->> 'Parent Relationship' is distinct from 'InitPlan' \
                 and f.proname not in {BY_ROW} order by 1"
            ));
            found
                .extend(called.iter().map(|function| format!("{verb} {}: {function}", table.name)));
        }
    }
    found
}

/// How often this session has called each function of ours, in statistics it has not sent off yet.
fn counted(member: &mut Client) -> Vec<(String, i64)> {
    // Functions of one name count together.
    let sql = "select funcname::text, sum(calls)::bigint from pg_stat_xact_user_functions \
               where schemaname = 'public' group by funcname";
    let rows = member.query(sql, &[]).expect("the statistics are read");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Functions of ours that one statement over a thousand rows calls more than a few times.
fn called_often(member: &mut Client, tables: &[Table]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut ran, mut by_row) = ([0; 4], 0);
    for table in tables {
        for (n, (verb, statement)) in statements(table).iter().enumerate() {
            // The statistics of earlier statements may not have been sent off yet.
            let before = counted(member);
            member.run("begin");
            match member.batch_execute(statement) {
                Ok(()) => ran[n] += 1,
                Err(error) => {
                    // No policy lets a member do this at all.
                    assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{statement}");
                    member.run("rollback");
                    continue;
                }
            }
            for (function, calls) in counted(member) {
                let before =
                    before.iter().find(|(name, _)| *name == function).map_or(0, |(_, n)| *n);
                let calls = calls - before;
                if BY_ROW.contains(&format!("'{function}'")) {
                    by_row += calls;
                } else if calls > 10 {
                    found.push(format!("{verb} {}: {function}, {calls} times", table.name));
                }
            }
            member.run("rollback");
        }
    }
    assert!(ran.iter().all(|n| *n > 0), "some verb was never allowed: {ran:?}");
    assert!(by_row >= ROWS, "no policy was asked: {by_row} calls");
    found
}

#[test]
fn a_statement_over_a_thousand_rows_asks_who_is_calling_a_few_times() {
    for version in versions() {
        let (_database, mut member, tables) = filled(Server::shared(version));
        let found = outside_init_plans(&mut member, &tables);
        assert!(found.is_empty(), "plans of Postgres {version}: {found:#?}");
        let found = called_often(&mut member, &tables);
        assert!(found.is_empty(), "calls of Postgres {version}: {found:#?}");
    }
}

#[test]
fn a_function_that_is_asked_for_each_row_is_named() {
    let (database, mut member, tables) = filled(Server::shared(oldest()));
    database.superuser().run(
        "create policy p on messages as restrictive for select using (id <> current_tenant_id()); \
         create policy q on conversations as restrictive for insert with check (user_id = current_user_id()); \
         create policy r on conversations as restrictive for delete using (user_id = current_user_id())",
    );
    // Plans do not show what an insert is checked by.
    let planned = outside_init_plans(&mut member, &tables);
    assert_eq!(
        planned,
        [
            "delete conversations: current_user_id",
            "select messages: current_tenant_id",
            "update messages: current_tenant_id",
        ]
    );
    let counted = called_often(&mut member, &tables);
    for expected in [
        "delete conversations: current_user_id, ",
        "insert conversations: current_user_id, ",
        "select messages: current_tenant_id, ",
    ] {
        assert!(
            counted.iter().any(|found| found.starts_with(expected)),
            "{expected}: {counted:#?}"
        );
    }
}
