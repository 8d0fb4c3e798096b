//! The dashboard: JSON as Grafana takes it, and every statement of it runs for the role that the
//! documentation makes.

use pg_conversation_tests::{Client, Session, describe};

use super::{example, watched};

/// What is wrong with the file, for this role in this database, which has test data.
fn complaints(text: &str, grafana: &mut Client) -> Vec<String> {
    // Postgres reads JSON: that saves a library.
    let mut list = |sql: &str| -> Result<Vec<String>, String> {
        let rows = grafana.query(sql, &[&text]).map_err(|error| describe(&error))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    let shape = list(
        "select wrong from (select ($1::text)::json::jsonb as d) x, lateral ( \
             select 'no title, uid or schemaVersion' as wrong \
             where not (d ? 'title' and d ? 'uid' and jsonb_typeof(d -> 'schemaVersion') = 'number') \
             union all select 'no time range' where d #>> '{time,from}' is null or d #>> '{time,to}' is null \
             union all select 'an id is on the board' where d ? 'id' \
             union all \
             select format('panel %s: of id %s there are %s', min(p ->> 'title'), p -> 'id', count(*)) \
             from jsonb_array_elements(d -> 'panels') p group by p -> 'id' \
             having count(*) > 1 or jsonb_typeof(p -> 'id') is distinct from 'number' \
             union all \
             select format('panel %s: no title, description, place or query', p -> 'id') \
             from jsonb_array_elements(d -> 'panels') p \
             where p ->> 'title' is null or p ->> 'description' is null or p #>> '{gridPos,w}' is null \
             or p #>> '{targets,0,rawSql}' is null \
             union all \
             select format('panel %s: over the edge', p ->> 'title') from jsonb_array_elements(d -> 'panels') p \
             where (p #>> '{gridPos,x}')::int + (p #>> '{gridPos,w}')::int > 24 \
             union all \
             select format('panels %s and %s overlap', p ->> 'title', q ->> 'title') \
             from jsonb_array_elements(d -> 'panels') with ordinality a (p, n), \
                 jsonb_array_elements(d -> 'panels') with ordinality b (q, m) \
             where n < m and box( \
                     point((p #>> '{gridPos,x}')::int + 0.1, (p #>> '{gridPos,y}')::int + 0.1), \
                     point((p #>> '{gridPos,x}')::int + (p #>> '{gridPos,w}')::int - 0.1, \
                         (p #>> '{gridPos,y}')::int + (p #>> '{gridPos,h}')::int - 0.1)) \
                 && box( \
                     point((q #>> '{gridPos,x}')::int + 0.1, (q #>> '{gridPos,y}')::int + 0.1), \
                     point((q #>> '{gridPos,x}')::int + (q #>> '{gridPos,w}')::int - 0.1, \
                         (q #>> '{gridPos,y}')::int + (q #>> '{gridPos,h}')::int - 0.1)) \
             union all \
             select format('panel %s: data source %s', p ->> 'title', s) \
             from jsonb_array_elements(d -> 'panels') p, \
                 jsonb_path_query(p, 'strict $.**.datasource') s \
             where s <> '{\"type\": \"grafana-postgresql-datasource\", \"uid\": \"${datasource}\"}' \
             union all select 'no variable datasource' where not d @@ \
                 '$.templating.list[*].name == \"datasource\" && $.templating.list[*].type == \"datasource\"' \
         ) w",
    );
    let mut wrong = match shape {
        Ok(wrong) => wrong,
        Err(error) => return vec![error],
    };
    let mut column = |name: &str| -> Vec<String> {
        list(&format!(
            "select t ->> '{name}' from jsonb_array_elements(($1::text)::jsonb -> 'panels') p, \
             jsonb_array_elements(p -> 'targets') t order by p -> 'id', t ->> 'refId'"
        ))
        .unwrap_or_default()
    };
    let (statements, formats) = (column("rawSql"), column("format"));
    for (sql, format) in statements.iter().zip(formats) {
        let filled = fill_in(sql);
        if filled.contains('$') {
            wrong.push(format!("unknown macro: {sql}"));
            continue;
        }
        let statement = match grafana.prepare(&filled) {
            Ok(statement) => statement,
            Err(error) => {
                wrong.push(format!("{}: {sql}", describe(&error)));
                continue;
            }
        };
        match grafana.query(&statement, &[]) {
            Ok(rows) if rows.is_empty() => wrong.push(format!("no row: {sql}")),
            Ok(_) => {}
            Err(error) => wrong.push(format!("{}: {sql}", describe(&error))),
        }
        // A series has its time first, and then numbers.
        let types: Vec<&str> =
            statement.columns().iter().map(|column| column.type_().name()).collect();
        let is_series = statement.columns()[0].name() == "time"
            && types[0] == "timestamptz"
            && types[1..].iter().all(|name| ["int8", "numeric", "float8"].contains(name));
        if is_series != (format == "time_series") {
            wrong.push(format!("format {format} of {types:?}: {sql}"));
        }
        // Every table is a time series' own, or is asked for the time shown.
        if sql.contains("usage_")
            && sql.contains("from public.usage")
            && !sql.contains("$__timeFilter(")
        {
            wrong.push(format!("not only the time shown: {sql}"));
        }
    }
    wrong
}

/// The statement as Grafana sends it.
fn fill_in(sql: &str) -> String {
    let (from, to) = ("'2000-01-01T00:00:00Z'", "'2100-01-01T00:00:00Z'");
    let mut filled = String::new();
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once("$__timeFilter(") {
        let (column, after) = after.split_once(')').unwrap_or((after, ""));
        filled += &format!("{before}{column} BETWEEN {from} AND {to}");
        rest = after;
    }
    filled += rest;
    filled.replace("$__timeFrom()", from).replace("$__timeTo()", to)
}

#[test]
fn every_statement_runs_and_finds_something() {
    let database = watched();
    database.superuser().run("select seed_test_data()");
    let found = complaints(&example("dashboard.json"), &mut database.connect("grafana"));
    assert!(found.is_empty(), "{found:#?}");
}

/// Figures are not content, and policies still keep them from a monitor who is bound by them.
#[test]
fn who_is_bound_by_policies_sees_no_figures_of_tenants() {
    let database = watched();
    database.superuser().run("select seed_test_data()");
    let (mut grafana, mut watcher) = (database.connect("grafana"), database.connect("watcher"));
    for table in ["usage_totals", "usage_days", "feedback"] {
        let count = format!("select count(tenant_id) from {table}");
        let of = |client: &mut Client| -> i64 {
            client.query_one(&count, &[]).expect("it is granted").get(0)
        };
        assert!(of(&mut grafana) > 0, "{table}");
        assert_eq!(of(&mut watcher), 0, "{table}");
    }
    for hidden in [
        "select user_id from usage_days",
        "select comment from feedback",
        "select user_id from feedback",
    ] {
        let error = grafana.query(hidden, &[]).expect_err("it is not granted");
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{hidden}");
    }
}

#[test]
fn a_broken_file_is_named() {
    let database = watched();
    database.superuser().run("select seed_test_data()");
    let mut grafana = database.connect("grafana");
    let text = example("dashboard.json");
    for (from, to, expected) in [
        ("\"panels\": [", "\"panels\": [,", "22P02"),
        ("\"id\": 2,", "\"id\": 1,", "of id 1 there are 2"),
        ("\"id\": 2,", "\"id\": \"2\",", "of id \"2\" there are 1"),
        ("\"uid\": \"pg_conversation\"", "\"udi\": \"pg_conversation\"", "no title, uid"),
        ("\"title\": \"Streams\",", "", "no title, description"),
        ("\"from\": \"now-30d\"", "\"since\": \"now-30d\"", "no time range"),
        ("\"x\": 20,", "\"x\": 21,", "over the edge"),
        ("\"x\": 20,", "\"x\": 19,", "overlap"),
        ("${datasource}", "mine", "data source {\"uid\": \"mine\""),
        ("\"name\": \"datasource\"", "\"name\": \"database\"", "no variable"),
        ("select streams_stalled from", "select streams_stale from", "42703"),
        ("from public.stats_tables", "from public.messages", "42"),
        ("$__timeFilter(date)", "$__timeFilters(date)", "unknown macro"),
        ("$__timeFilter(date)", "true", "not only the time shown"),
        ("date::timestamptz as time", "date::text as time", "format time_series of"),
        ("\"format\": \"time_series\"", "\"format\": \"table\"", "format table of"),
        ("order by job\"", "where false order by job\"", "no row"),
    ] {
        assert!(text.contains(from), "{from}");
        let found = complaints(&text.replacen(from, to, 1), &mut grafana);
        assert!(found.iter().any(|found| found.contains(expected)), "{expected}: {found:#?}");
    }
}
