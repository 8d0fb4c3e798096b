//! Views for whoever watches, what the examples make of them, and test data.

use pg_conversation_tests::{Database, Server, Session, oldest};

mod alerts;
mod dashboard;
mod exporter;
mod seed;
mod stats;

/// A file of the examples.
fn example(name: &str) -> String {
    let path = format!("{}/../examples/monitoring/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A database with roles as the documentation makes them: `watcher` for the exporter, `grafana` for
/// the dashboard, and `guest`, who was not granted pg_monitor.
fn watched() -> Database<'static> {
    let server = Server::shared(oldest());
    let database = server.database();
    for role in ["watcher", "grafana", "guest"] {
        server.role(role);
    }
    database.superuser().run(
        "alter role grafana bypassrls; grant pg_monitor to watcher, grafana; \
         select grant_access('watcher', 'monitor'); select grant_access('grafana', 'monitor'); \
         select grant_access('guest', 'monitor')",
    );
    database
}

#[test]
fn the_documentation_has_every_column_and_alert() {
    let path = format!("{}/../docs/monitoring.md", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the documentation is read");
    let database = watched();
    let mut names: Vec<String> = database.superuser().values(
        "select distinct column_name::text from information_schema.columns \
         where table_schema = 'public' and table_name like 'stats%'",
    );
    names.extend(alerts::names());
    assert!(names.len() > 70, "{names:?}");
    for name in names {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}
