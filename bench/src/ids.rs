//! Making ids, and what an index of them takes.

use crate::Result;
use crate::data::{As, Bench};
use crate::measure::{Arm, Figures, Plan, expect_rows, join_backend, pairs};
use crate::row::{Line, Row, Unit, lines, ratio, row};

pub fn rows() -> Vec<Row> {
    vec![row("id-call", id_call), row("id-insert", id_insert)]
}

fn id_call(bench: &Bench) -> Result<Vec<Line>> {
    let count = 20_000;
    let plan = Plan { turns: 50, calls: 1, warm_up: 1, per_call: count, alone: true };
    let figures = pairs(
        bench,
        &plan,
        |_| {
            let arm = |function: &str| -> Result<Arm> {
                let mut client = bench.connect(As::Bypass)?;
                join_backend(&mut client)?;
                let statement = client.prepare(&format!(
                    "select count({function}()) from generate_series(1, {count})"
                ))?;
                Ok(vec![Box::new(move || expect_rows(&mut client, &statement, &[], 1))])
            };
            Ok(vec![arm("new_id")?, arm("gen_random_uuid")?])
        },
        || Ok(()),
    )?;
    Ok(lines(&["new_id", "gen_random_uuid"], &figures, &[(0, 1, ratio(1.0))]))
}

fn id_insert(bench: &Bench) -> Result<Vec<Line>> {
    let arms = ["new_id", "gen_random_uuid"];
    let count = 100_000;
    let plan = Plan { turns: 10, calls: 1, warm_up: 0, per_call: count, alone: true };
    let mut client = bench.connect(As::Superuser)?;
    let mut sizes: Figures = vec![Vec::new(); 2];
    let figures = pairs(
        bench,
        &plan,
        |_| {
            arms.iter()
                .map(|table| -> Result<Arm> {
                    let mut client = bench.connect(As::Superuser)?;
                    join_backend(&mut client)?;
                    client.batch_execute(&format!(
                        "truncate side.{table}; set synchronous_commit = off"
                    ))?;
                    let statement = client.prepare(&format!(
                        "insert into side.{table} (payload) \
                         select 'Payload of row ' || n from generate_series(1, {count}) as n"
                    ))?;
                    Ok(vec![Box::new(move || {
                        client.execute(&statement, &[])?;
                        Ok(())
                    })])
                })
                .collect()
        },
        || {
            for (table, sizes) in arms.iter().zip(&mut sizes) {
                let size: i64 = client
                    .query_one(&format!("select pg_relation_size('side.{table}_pkey')"), &[])?
                    .get(0);
                sizes.push(size as f64);
            }
            Ok(())
        },
    )?;
    client.batch_execute("truncate side.new_id, side.gen_random_uuid")?;
    let mut found = lines(&["insert of new_id", arms[1]], &figures, &[(0, 1, ratio(1.0))]);
    for mut line in lines(&["its index", "its index"], &sizes, &[(0, 1, ratio(1.0))]) {
        line.unit = Unit::Bytes;
        found.push(line);
    }
    Ok(found)
}
