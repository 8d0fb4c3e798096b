//! The queries of postgres_exporter: they run for the role that the documentation makes, and give the
//! columns that their metrics name.

use pg_conversation_tests::{Client, describe};
use postgres::types::Type;
use yaml_rust2::{Yaml, YamlLoader};

use super::{example, watched};

const NUMBERS: [Type; 6] =
    [Type::INT2, Type::INT4, Type::INT8, Type::FLOAT4, Type::FLOAT8, Type::NUMERIC];

/// The one document of a file.
pub fn document(text: &str) -> Result<Yaml, String> {
    let mut documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    match documents.len() {
        1 => Ok(documents.remove(0)),
        n => Err(format!("{n} documents")),
    }
}

/// Name and value of each entry, of which none may be another than these.
pub fn entries<'a>(
    yaml: &'a Yaml,
    allowed: &[&str],
    place: &str,
    wrong: &mut Vec<String>,
) -> Vec<(&'a str, &'a Yaml)> {
    let Some(map) = yaml.as_hash() else {
        wrong.push(format!("{place}: not a map"));
        return Vec::new();
    };
    let mut entries = Vec::new();
    for (key, value) in map {
        match key.as_str() {
            Some(key) if allowed.is_empty() || allowed.contains(&key) => entries.push((key, value)),
            _ => wrong.push(format!("{place}: unknown {key:?}")),
        }
    }
    entries
}

/// What a metric of the file is exported as.
pub struct Metric {
    pub name: String,
    pub usage: String,
}

/// The metrics of the file, without the labels, and what is wrong with it.
pub fn metrics(text: &str) -> (Vec<Metric>, Vec<String>) {
    let (mut metrics, mut wrong) = (Vec::new(), Vec::new());
    for (namespace, query) in queries(text, &mut wrong) {
        for (column, usage) in query.columns {
            if usage != "LABEL" {
                metrics.push(Metric { name: format!("{namespace}_{column}"), usage });
            }
        }
    }
    (metrics, wrong)
}

struct Query {
    sql: String,
    /// With the usage of each.
    columns: Vec<(String, String)>,
}

fn queries(text: &str, wrong: &mut Vec<String>) -> Vec<(String, Query)> {
    let document = match document(text) {
        Ok(document) => document,
        Err(error) => {
            wrong.push(error);
            return Vec::new();
        }
    };
    let mut queries = Vec::new();
    for (namespace, entry) in entries(&document, &[], "file", wrong) {
        let mut query = Query { sql: String::new(), columns: Vec::new() };
        for (key, value) in entries(entry, &["query", "metrics", "cache_seconds"], namespace, wrong)
        {
            match key {
                "query" => query.sql = value.as_str().unwrap_or_default().to_string(),
                "cache_seconds" if value.as_i64().is_none() => {
                    wrong.push(format!("{namespace}: cache_seconds is no number"));
                }
                "metrics" => {
                    for metric in value.as_vec().into_iter().flatten() {
                        let found = entries(metric, &[], namespace, wrong);
                        let [(column, about)] = found[..] else {
                            wrong.push(format!(
                                "{namespace}: one name a metric, not {}",
                                found.len()
                            ));
                            continue;
                        };
                        let place = format!("{namespace}.{column}");
                        let (mut usage, mut described) = (String::new(), false);
                        for (key, value) in entries(about, &["usage", "description"], &place, wrong)
                        {
                            let text = value.as_str().unwrap_or_default();
                            if key == "usage" {
                                usage = text.to_string();
                            } else {
                                described = !text.is_empty();
                            }
                        }
                        if !["LABEL", "GAUGE", "COUNTER"].contains(&usage.as_str()) {
                            wrong.push(format!("{place}: usage is {usage:?}"));
                        }
                        if !described {
                            wrong.push(format!("{place}: no description"));
                        }
                        query.columns.push((column.to_string(), usage));
                    }
                }
                _ => {}
            }
        }
        if query.sql.is_empty() || query.columns.is_empty() {
            wrong.push(format!("{namespace}: no query or no metrics"));
        }
        queries.push((namespace.to_string(), query));
    }
    queries
}

/// What is wrong with the file, for this role in this database.
fn complaints(text: &str, watcher: &mut Client) -> Vec<String> {
    let mut wrong = Vec::new();
    for (namespace, query) in queries(text, &mut wrong) {
        let rows = watcher.prepare(&query.sql).and_then(|statement| {
            let rows = watcher.query(&statement, &[])?;
            Ok((statement, rows))
        });
        let (statement, rows) = match rows {
            Ok(found) => found,
            Err(error) => {
                wrong.push(format!("{namespace}: {}", describe(&error)));
                continue;
            }
        };
        if rows.is_empty() {
            wrong.push(format!("{namespace}: no row"));
        }
        for column in statement.columns() {
            if !query.columns.iter().any(|(name, _)| name == column.name()) {
                wrong.push(format!("{namespace}: {} is selected and no metric", column.name()));
            }
        }
        for (name, usage) in &query.columns {
            let place = format!("{namespace}.{name}");
            match statement.columns().iter().position(|column| column.name() == name) {
                None => wrong.push(format!("{place}: not selected")),
                Some(n) => {
                    let of_type = statement.columns()[n].type_();
                    let is_label = usage == "LABEL";
                    if is_label != (*of_type == Type::TEXT)
                        || !is_label && !NUMBERS.contains(of_type)
                    {
                        wrong.push(format!("{place}: a {usage} of type {of_type}"));
                    }
                }
            }
        }
    }
    wrong
}

#[test]
fn every_query_gives_what_its_metrics_name() {
    let database = watched();
    let found = complaints(&example("postgres_exporter.yaml"), &mut database.connect("watcher"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn all_of_the_views_is_exported_but_what_only_a_person_reads() {
    let (exported, _) = metrics(&example("postgres_exporter.yaml"));
    let database = watched();
    let mut watcher = database.connect("watcher");
    let rows = watcher
        .query(
            "select case table_name when 'stats' then 'pg_conversation_' \
                 else 'pg_conversation_' || rtrim(substr(table_name, 7), 's') || '_' end || column_name, column_name \
             from information_schema.columns where table_schema = 'public' and table_name like 'stats%'",
            &[],
        )
        .expect("a list of columns");
    let left_out = [
        "pg_conversation_table_table_name",
        "pg_conversation_table_total_bytes",
        "pg_conversation_table_index_rows_fetched",
        "pg_conversation_table_rows_changed_since_analyze",
        "pg_conversation_table_last_vacuum",
        "pg_conversation_table_last_autovacuum",
        "pg_conversation_table_last_analyze",
        "pg_conversation_table_last_autoanalyze",
        "pg_conversation_indexe_table_name",
        "pg_conversation_indexe_index_name",
        "pg_conversation_indexe_index_bytes",
        "pg_conversation_indexe_scans",
        "pg_conversation_indexe_entries_read",
        "pg_conversation_indexe_rows_fetched",
        "pg_conversation_indexe_is_unique",
        "pg_conversation_indexe_is_valid",
        "pg_conversation_indexe_is_unused",
    ];
    for row in &rows {
        let name: String = row.get(0);
        let is_exported = exported.iter().any(|metric| metric.name == name);
        assert!(is_exported != left_out.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn a_broken_file_is_named() {
    let database = watched();
    let mut watcher = database.connect("watcher");
    let text = example("postgres_exporter.yaml");
    for (from, to, expected) in [
        (
            "streams_in_progress, streams",
            "streams",
            "pg_conversation.streams_in_progress: not selected",
        ),
        ("    - chunk_bytes:\n", "    - chunk_byte:\n", "pg_conversation.chunk_byte: not selected"),
        (
            "    - chunk_bytes:\n",
            "    - chunk_byte:\n",
            "pg_conversation: chunk_bytes is selected and no metric",
        ),
        ("from public.stats\n", "from public.stats2\n", "pg_conversation: 42P01"),
        ("from public.stats\n", "from public.messages\n", "pg_conversation: 42"),
        (
            "enabled::integer as enabled",
            "enabled",
            "pg_conversation_job.enabled: a GAUGE of type bool",
        ),
        ("usage: LABEL", "usage: GAUGE", "pg_conversation_job.job: a GAUGE of type text"),
        ("usage: COUNTER", "usage: COUNT", "pg_conversation_job.runs: usage is \"COUNT\""),
        (
            "usage: GAUGE",
            "use: GAUGE",
            "pg_conversation.streams_in_progress: unknown String(\"use\")",
        ),
        ("cache_seconds: 60", "cache: 60", "pg_conversation_table: unknown String(\"cache\")"),
        (
            "cache_seconds: 60",
            "cache_seconds: 1 min",
            "pg_conversation_table: cache_seconds is no number",
        ),
        ("  metrics:\n", "  metrics\n", ""),
        (
            "from public.stats_indexes\n",
            "from public.stats_indexes where false\n",
            "pg_conversation_index: no row",
        ),
        ("description: The job.", "description: ''", "pg_conversation_job.job: no description"),
    ] {
        assert!(text.contains(from), "{from}");
        let found = complaints(&text.replacen(from, to, 1), &mut watcher);
        assert!(found.iter().any(|found| found.starts_with(expected)), "{expected}: {found:#?}");
    }
}
