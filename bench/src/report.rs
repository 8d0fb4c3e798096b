//! The table on the terminal, and the same figures with the facts of the machine as JSON.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::data::{As, Bench};
use crate::measure::{field, median};
use crate::row::{Line, NOISE, Side, Target, Unit};
use crate::server::variable;

pub struct Report {
    begin: Instant,
    facts: Value,
    rows: Vec<Value>,
}

impl Report {
    pub fn begin(bench: &Bench) -> Result<Self> {
        let facts = facts(bench)?;
        println!(
            "{} · {} cores · {} GB · Postgres {} · {} conversations, {} pairs\n",
            text(&facts["cpu"]),
            facts["cores"],
            facts["ram_gb"],
            text(&facts["postgres"]),
            bench.size.conversations,
            bench.size.pairs
        );
        print_line(
            ["row", "product", "against", "product", "against", "ratio (min–max)", "target"],
            "verdict",
        );
        Ok(Self { begin: Instant::now(), facts, rows: Vec::new() })
    }

    pub fn add(&mut self, row: &str, lines: Vec<Line>, took: Duration) {
        for line in lines {
            let Line { product, against, unit, target } = &line;
            let ratios = line.ratios();
            let of_pairs =
                (!ratios.is_empty()).then(|| (median(&ratios), least(&ratios), greatest(&ratios)));
            let cells = [
                row,
                &product.name,
                against.as_ref().map_or("", |side| &side.name),
                &amount(product.median(), *unit),
                &against.as_ref().map_or(String::new(), |side| amount(side.median(), *unit)),
                &of_pairs.map_or(String::new(), |(ratio, min, max)| {
                    let digits = if ratio < 0.095 { 4 } else { 2 };
                    format!("{ratio:.digits$} ({min:.digits$}–{max:.digits$})")
                }),
                &target.map_or(String::new(), |target| words_of(target, *unit)),
            ];
            let speed = match (target, of_pairs) {
                (Some(Target::SpeedUp(_)), Some((ratio, ..))) => format!(", × {:.2}", 1.0 / ratio),
                _ => String::new(),
            };
            print_line(cells, &format!("{}{speed}", line.verdict()));
            self.rows.push(json!({
                "row": row,
                "row_seconds": took.as_secs_f64().round(),
                "product": product.name,
                "against": against.as_ref().map(|side| &side.name),
                "unit": match unit {
                    Unit::Seconds => "seconds",
                    Unit::Bytes => "bytes",
                    Unit::Times => "times",
                    Unit::Share => "share of a core",
                },
                "product_median": product.median(),
                "against_median": against.as_ref().map(Side::median),
                "ratio": of_pairs.map(|(ratio, ..)| ratio),
                "ratio_min": of_pairs.map(|(_, min, _)| min),
                "ratio_max": of_pairs.map(|(.., max)| max),
                "product_figures": product.figures,
                "against_figures": against.as_ref().map(|side| &side.figures),
                "target": target.map(|target| match target {
                    Target::Ratio(limit) => json!({ "ratio_at_most": limit }),
                    Target::SpeedUp(times) => json!({ "speed_up_at_least": times }),
                    Target::AtMost(limit) => json!({ "product_at_most": limit }),
                }),
                "verdict": line.verdict(),
            }));
        }
    }

    pub fn finish(mut self, bench: &Bench) -> Result<()> {
        self.facts["load_average_at_end"] = load_average();
        self.facts["seconds"] = json!(self.begin.elapsed().as_secs());
        let file = Path::new(&variable("PGC_BENCH_OUT")?).join("results.json");
        let results = json!({
            "facts": self.facts,
            "conversations": bench.size.conversations,
            "pairs": bench.size.pairs,
            "noise": NOISE,
            "rows": self.rows,
        });
        fs::write(&file, serde_json::to_string_pretty(&results)? + "\n")?;
        let count = |verdict| self.rows.iter().filter(|row| row["verdict"] == verdict).count();
        println!(
            "\n{} ok, {} missed, {} s; load {} at the beginning, {} at the end; {}",
            count("ok"),
            count("missed"),
            self.facts["seconds"],
            self.facts["load_average"],
            self.facts["load_average_at_end"],
            file.display()
        );
        println!(
            "Less is better everywhere; a ratio is the median of the pairs. Up to {} % above a target \
             is not told from it. A target of × n is n times as fast.",
            NOISE * 100.0
        );
        Ok(())
    }
}

/// The message of an error with what the server said.
pub fn words(error: &(dyn Error + 'static)) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", words(source)),
        None => error.to_string(),
    }
}

fn facts(bench: &Bench) -> Result<Value> {
    let mut client = bench.connect(As::Superuser)?;
    let row = client.query_one(
        "select current_setting('server_version'), now()::text,
                (select extversion from pg_extension where extname = 'pg_conversation'),
                (select json_object_agg(name, current_setting(name))::text from pg_settings
                 where source = 'configuration file'
                 or name in ('fsync', 'full_page_writes', 'jit', 'autovacuum', 'synchronous_commit'))",
        &[],
    )?;
    let mut settings: Value = serde_json::from_str(row.get(3))?;
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("unix_socket_directories");
    }
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|size| size.split(' ').next()?.parse::<f64>().ok())
        .map(|kilobytes| (kilobytes / 1024.0 / 1024.0).round());
    Ok(json!({
        "date": row.get::<_, String>(1),
        "postgres": row.get::<_, String>(0),
        "pg_conversation": row.get::<_, String>(2),
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": available_parallelism()?.get(),
        "ram_gb": memory,
        "load_average": load_average(),
        "settings": settings,
    }))
}

fn load_average() -> Value {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse::<f64>().ok()).into()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("unknown")
}

fn print_line(cells: [&str; 7], verdict: &str) {
    let [row, product, against, figure, other, ratio, target] = cells;
    println!(
        "{row:<26} {product:<32} {against:<32} {figure:>9} {other:>9}  {ratio:<19} {target:<9} {verdict}"
    );
}

fn words_of(target: Target, unit: Unit) -> String {
    match target {
        Target::Ratio(limit) => format!("≤ {limit:.2}"),
        Target::SpeedUp(times) => format!("× {times}"),
        Target::AtMost(limit) => format!("≤ {}", amount(limit, unit)),
    }
}

fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{:.1} MB", value / 1024.0 / 1024.0),
        Unit::Times if value < 100.0 => format!("{value:.2} ×"),
        Unit::Times => format!("{value:.0} ×"),
        Unit::Share => format!("{:.1} %", value * 100.0),
        Unit::Seconds if value < 1e-6 => format!("{:.0} ns", value * 1e9),
        Unit::Seconds if value < 1e-3 => format!("{:.1} µs", value * 1e6),
        Unit::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
        Unit::Seconds => format!("{value:.2} s"),
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
