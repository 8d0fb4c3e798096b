//! Dump and restore.

use crate::Result;
use crate::data::Bench;
use crate::measure::{Arm, Plan, pairs};
use crate::row::{Line, Row, lines, ratio, row};
use crate::server::program;

pub fn rows() -> Vec<Row> {
    vec![row("dump", dump)]
}

/// What is dumped, and a question that a complete copy answers with true.
struct Copy {
    database: &'static str,
    schemas: &'static [&'static str],
    is_complete: &'static str,
}

const COPIES: [Copy; 2] = [
    Copy {
        database: "bench_copy",
        schemas: &["-N", "plain", "-N", "side"],
        is_complete: "select exists (select from pg_extension where extname = 'pg_conversation') \
                      and exists (select from public.messages)",
    },
    Copy {
        database: "bench_copy_plain",
        schemas: &["-n", "plain"],
        is_complete: "select exists (select from plain.messages)",
    },
];

/// Without compression, which would take most of the time of both sides.
fn dump(bench: &Bench) -> Result<Vec<Line>> {
    let file = std::env::temp_dir().join(format!("pg_conversation-{}.dump", std::process::id()));
    let name = file.to_string_lossy().into_owned();
    let source = bench.size.database;
    let arm = |copy: &'static Copy| -> Arm {
        let (server, name) = (bench.server.clone(), name.clone());
        vec![Box::new(move || {
            let database = copy.database;
            let mut args = vec!["-Fc", "-Z0", "-d", source, "-f", &name];
            args.extend(copy.schemas);
            program("pg_dump", &args)?;
            server
                .client("postgres", "postgres")?
                .batch_execute(&format!("create database {database}"))?;
            program("pg_restore", &["-e", "-d", database, &name])?;
            if server.client(database, "postgres")?.query_one(copy.is_complete, &[])?.get(0) {
                Ok(())
            } else {
                Err(format!("the restored database {database} lacks something").into())
            }
        })]
    };
    // Not in the figures, for it waits until all that is dirty is on disk.
    let drop_copies = || -> Result<()> {
        let mut client = bench.server.client("postgres", "postgres")?;
        for copy in &COPIES {
            client.batch_execute(&format!("drop database if exists {}", copy.database))?;
        }
        Ok(())
    };
    drop_copies()?;
    let figures = pairs(
        bench,
        &Plan { turns: 1, calls: 1, warm_up: 0, per_call: 1, alone: false },
        |_| Ok(COPIES.iter().map(arm).collect()),
        drop_copies,
    );
    let _ = std::fs::remove_file(&file);
    Ok(lines(&["dump and restore", "plain tables"], &figures?, &[(0, 1, ratio(1.1))]))
}
