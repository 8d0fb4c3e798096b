//! The table on the terminal, and the same figures with the facts of the machine as JSON.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Result;
use crate::data::{As, Bench, variable};
use crate::measure::median;
use crate::rows::Row;

/// A ratio this close to its target is not told from it.
const NOISE: f64 = 0.02;

#[derive(Clone, Copy)]
pub enum Unit {
    Seconds,
    Bytes,
}

/// One comparison: a figure a pair of either side.
pub struct Line {
    pub product: String,
    pub baseline: String,
    pub figures: Vec<(f64, f64)>,
    pub unit: Unit,
    pub target: Option<f64>,
}

impl Line {
    fn ratios(&self) -> Vec<f64> {
        self.figures.iter().map(|(product, baseline)| product / baseline).collect()
    }

    fn verdict(&self) -> &'static str {
        match self.target {
            None => "",
            Some(target) if median(&self.ratios()) <= target + NOISE => "ok",
            Some(_) => "missed",
        }
    }
}

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
        println!(
            "{:<18} {:<22} {:<26} {:>9} {:>9}  {:<19} {:<7} verdict",
            "row", "product", "against", "product", "against", "ratio (min–max)", "target"
        );
        Ok(Self { begin: Instant::now(), facts, rows: Vec::new() })
    }

    pub fn add(&mut self, row: &Row, lines: Vec<Line>) {
        for line in lines {
            let ratios = line.ratios();
            let (min, max) = (least(&ratios), greatest(&ratios));
            let (ratio, verdict) = (median(&ratios), line.verdict());
            let (product, baseline): (Vec<f64>, Vec<f64>) = line.figures.iter().copied().unzip();
            let target = line.target.map_or(String::new(), |target| format!("≤ {target:.2}"));
            println!(
                "{:<18} {:<22} {:<26} {:>9} {:>9}  {:<19} {target:<7} {verdict}",
                row.name,
                line.product,
                line.baseline,
                amount(median(&product), line.unit),
                amount(median(&baseline), line.unit),
                format!("{ratio:.2} ({min:.2}–{max:.2})"),
            );
            self.rows.push(json!({
                "row": row.name,
                "product": line.product,
                "against": line.baseline,
                "unit": match line.unit { Unit::Seconds => "seconds", Unit::Bytes => "bytes" },
                "product_median": median(&product),
                "against_median": median(&baseline),
                "ratio": ratio,
                "ratio_min": min,
                "ratio_max": max,
                "pairs": line.figures,
                "target": line.target,
                "verdict": verdict,
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
            "A ratio is the median of the pairs; up to {NOISE} above its target it is not told from it."
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

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let (_, value) = text.lines().find(|line| line.starts_with(name))?.split_once(':')?;
    Some(value.trim().into())
}

fn load_average() -> Value {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse::<f64>().ok()).into()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("unknown")
}

fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{:.1} MB", value / 1024.0 / 1024.0),
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
