//! SQL in, expected out: each file of `sql/` against its twin in `expected/`, on every version.
//!
//! `PGC_BLESS=1` writes what the oldest version prints; read the difference before it is committed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use pg_conversation_tests::{Server, Session, oldest, versions};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contract")
}

/// What psql prints for the file in an empty database, errors where they happen.
fn printed(version: u32, sql: &Path) -> String {
    let server = Server::shared(version);
    server.role("contract_user");
    server.role("contract_service");
    server.connect("postgres", "postgres").run("alter role contract_service bypassrls");
    let database = server.empty_database();
    let out = std::env::temp_dir().join(format!("contract-{}-{}", version, database.name));
    let file = File::create(&out).expect("a file for the output");
    let status = database
        .psql()
        .args(["-a", "-q", "-v", "SHOW_CONTEXT=never"])
        .env("PGOPTIONS", "-c client_min_messages=warning -c timezone=UTC -c datestyle=ISO")
        .stdin(File::open(sql).expect("the SQL is read"))
        .stdout(file.try_clone().expect("a second handle"))
        .stderr(file)
        .status()
        .expect("psql starts");
    assert!(status.success(), "psql ended with {status}");
    let text = fs::read_to_string(&out).expect("the output is read");
    let _ = fs::remove_file(&out);
    text
}

#[test]
fn sql_answers_as_agreed_on_every_version() {
    let mut files: Vec<PathBuf> = fs::read_dir(folder().join("sql"))
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut differences = Vec::new();
    for sql in &files {
        let name = sql.file_stem().expect("a name").to_string_lossy();
        let expected_file = folder().join("expected").join(format!("{name}.out"));
        if std::env::var_os("PGC_BLESS").is_some() {
            fs::write(&expected_file, printed(oldest(), sql)).expect("the file is written");
        }
        let expected = fs::read_to_string(&expected_file).unwrap_or_default();
        for version in versions() {
            let printed = printed(version, sql);
            println!("{name} on {version}: {}", if printed == expected { "ok" } else { "differs" });
            if printed != expected {
                differences.push(first_difference(&name, version, &expected, &printed));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn first_difference(name: &str, version: u32, expected: &str, printed: &str) -> String {
    let mut lines = expected.lines().zip(printed.lines()).enumerate();
    match lines.find(|(_, (a, b))| a != b) {
        Some((n, (a, b))) => format!("{name} on {version}, line {}:\n- {a}\n+ {b}", n + 1),
        None => format!("{name} on {version}: one output is longer than the other"),
    }
}
