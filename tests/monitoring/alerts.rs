//! The alerts: Prometheus takes them, their metrics are exported, and each sounds when it should and
//! not before.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pg_conversation_tests::{Session, Uuid};
use yaml_rust2::Yaml;

use super::example;
use super::exporter::{document, entries, metrics};

struct Alert {
    name: String,
    expr: String,
    /// Minutes that the condition must hold.
    minutes: u32,
    severity: String,
}

fn text_of(yaml: &Yaml) -> String {
    yaml.as_str().unwrap_or_default().to_string()
}

/// The alerts of the file, and what is wrong with it beyond what Prometheus itself would find.
fn alerts(text: &str) -> (Vec<Alert>, Vec<String>) {
    let (mut alerts, mut wrong) = (Vec::new(), Vec::new());
    let document = match document(text) {
        Ok(document) => document,
        Err(error) => return (alerts, vec![error]),
    };
    let known = ["alert", "expr", "for", "labels", "annotations"];
    for group in document["groups"].as_vec().into_iter().flatten() {
        for rule in group["rules"].as_vec().into_iter().flatten() {
            let name = text_of(&rule["alert"]);
            entries(rule, &known, &name, &mut wrong);
            let severity = text_of(&rule["labels"]["severity"]);
            if severity != "warning" && severity != "critical" {
                wrong.push(format!("{name}: severity is {severity:?}"));
            }
            for annotation in ["summary", "description"] {
                if text_of(&rule["annotations"][annotation]).is_empty() {
                    wrong.push(format!("{name}: no {annotation}"));
                }
            }
            let minutes = match rule["for"].as_str() {
                None => Some(0),
                Some(time) => time.strip_suffix('m').and_then(|minutes| minutes.parse().ok()),
            };
            if minutes.is_none() {
                wrong.push(format!("{name}: for is not in minutes"));
            }
            let (expr, minutes) = (text_of(&rule["expr"]), minutes.unwrap_or_default());
            alerts.push(Alert { name, expr, minutes, severity });
        }
    }
    let names: BTreeSet<&str> = alerts.iter().map(|alert| alert.name.as_str()).collect();
    if alerts.is_empty() || names.len() != alerts.len() {
        wrong.push("no alerts, or two of one name".into());
    }
    (alerts, wrong)
}

pub fn names() -> Vec<String> {
    alerts(&example("alerts.yaml")).0.into_iter().map(|alert| alert.name).collect()
}

/// The metrics of ours that an expression names.
fn named_in(expr: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut names: Vec<&str> =
        expr.split(|c| !is_part(c)).filter(|word| word.starts_with("pg_")).collect();
    names.dedup();
    names
}

fn complaints(text: &str) -> Vec<String> {
    let (exported, mut wrong) = metrics(&example("postgres_exporter.yaml"));
    let (alerts, found) = alerts(text);
    wrong.extend(found);
    for alert in &alerts {
        let named = named_in(&alert.expr);
        if named.is_empty() {
            wrong.push(format!("{}: no metric", alert.name));
        }
        for name in named {
            match exported.iter().find(|metric| metric.name == name) {
                None => wrong.push(format!("{}: {name} is not exported", alert.name)),
                // A counter says nothing by itself.
                Some(metric) if metric.usage != "GAUGE" => {
                    wrong.push(format!("{}: {name} is a counter", alert.name));
                }
                Some(_) => {}
            }
        }
    }
    if let Err(said) = promtool(&["check", "rules"], text) {
        wrong.push(said);
    }
    wrong
}

/// Prometheus' own word on a file.
fn promtool(args: &[&str], text: &str) -> Result<(), String> {
    let cache = std::env::var("PGC_CACHE").unwrap_or("/var/cache/pg_conversation".into());
    let path = std::env::var("PATH").unwrap_or_default();
    let folder = Folder::new();
    let file = folder.0.join("file.yaml");
    fs::write(&file, text).expect("the file is written");
    fs::write(folder.0.join("alerts.yaml"), without_annotations(&example("alerts.yaml")))
        .expect("the rules are written");
    let output = Command::new("promtool")
        .env("PATH", format!("{path}:{cache}/bin"))
        .args(args)
        .arg(&file)
        .output()
        .expect("promtool, which comes with Prometheus: run dev/setup 15, or install the package prometheus");
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("alerts-{}", Uuid::new_v4()));
        fs::create_dir(&folder).expect("a folder is made");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// promtool would have each of them repeated word for word; `check rules` looks at them.
fn without_annotations(text: &str) -> String {
    let is_one = |line: &&str| {
        let line = line.trim_start();
        ["annotations:", "summary:", "description:"].iter().any(|key| line.starts_with(key))
    };
    text.lines().filter(|line| !is_one(line)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn prometheus_takes_the_alerts_and_their_metrics_are_exported() {
    let found = complaints(&example("alerts.yaml"));
    assert!(found.is_empty(), "{found:#?}");
}

/// An alert about a job of another name would never sound.
#[test]
fn jobs_that_alerts_name_are_there() {
    let text = example("alerts.yaml");
    let database = super::watched();
    let jobs: Vec<String> = database.connect("watcher").values("select job from maintenance_runs");
    let named: Vec<&str> =
        text.split("{job").skip(1).filter_map(|after| after.split('"').nth(1)).collect();
    assert!(named.len() > 1);
    for name in named {
        assert!(jobs.iter().any(|job| job == name), "{name}: {jobs:?}");
    }
}

#[test]
fn a_broken_file_is_named() {
    let text = example("alerts.yaml");
    for (from, to, expected) in [
        (
            "absent(pg_conversation_streams_in_progress)",
            "absent(pg_conversation_streams)",
            "ConversationMetricsMissing: pg_conversation_streams is not exported",
        ),
        (
            "pg_conversation_job_failed{job!",
            "pg_conversation_job_failures{job!",
            "ConversationMaintenanceFailing: pg_conversation_job_failures is a counter",
        ),
        (
            "pg_conversation_jobs_late > 0",
            "jobs_late > 0",
            "ConversationMaintenanceLate: no metric",
        ),
        (
            "pg_conversation_jobs_late > 0",
            "pg_conversation_jobs_late >",
            "could not parse expression",
        ),
        (
            "pg_conversation_jobs_late > 0",
            "max(pg_conversation_jobs_late",
            "could not parse expression",
        ),
        ("humanizePercentage", "percentage", "function \"percentage\" not defined"),
        ("for: 5m", "for: 5 minutes", "ConversationMetricsMissing: for is not in minutes"),
        ("for: 5m", "since: 5m", "ConversationMetricsMissing: unknown String(\"since\")"),
        ("severity: critical", "severity: bad", "ConversationMetricsMissing: severity is \"bad\""),
        ("          severity: critical\n", "          severity:\n", "severity is \"\""),
        ("summary: No", "summaries: No", "ConversationMetricsMissing: no summary"),
        ("alert: ConversationSlotLost", "alert: ConversationSlotInactive", "two of one name"),
    ] {
        assert!(text.contains(from), "{from}");
        let found = complaints(&text.replacen(from, to, 1));
        assert!(found.iter().any(|found| found.contains(expected)), "{expected}: {found:#?}");
    }
}

/// Each alert with its series: name and labels, value while all is well, value that is too much. Where
/// there is no second, the series ends.
type Case = (&'static str, &'static [(&'static str, f64, Option<f64>)]);

const CASES: &[Case] = &[
    ("ConversationMetricsMissing", &[("streams_in_progress", 5.0, None)]),
    (
        "ConversationPoolExhausted",
        &[("connections", 80.0, Some(90.0)), ("max_connections", 100.0, Some(100.0))],
    ),
    ("ConversationNotifyQueueFilling", &[("notify_queue_usage", 0.1, Some(0.6))]),
    ("ConversationOldSnapshot", &[("oldest_snapshot_seconds", 1700.0, Some(1900.0))]),
    ("ConversationOldHorizon", &[("oldest_snapshot_age", 1e6, Some(3e7))]),
    (
        "ConversationIdleInTransaction",
        &[("longest_idle_in_transaction_seconds", 200.0, Some(301.0))],
    ),
    ("ConversationSlowStatements", &[("slow_statements", 2.0, Some(3.0))]),
    ("ConversationLockQueue", &[("waiting_for_locks", 10.0, Some(11.0))]),
    ("ConversationStreamsStalled", &[("streams_stalled", 0.0, Some(1.0))]),
    ("ConversationChunksNotCleanedUp", &[("oldest_to_clean_seconds", 4000.0, Some(11_000.0))]),
    (
        "ConversationChunkTableBloated",
        &[("chunk_dead_rows", 2e6, Some(2e6)), ("chunk_rows", 3e6, Some(1e6))],
    ),
    (
        "ConversationChunkTableBloated",
        &[("chunk_dead_rows", 9e5, Some(2e6)), ("chunk_rows", 1.0, Some(1.0))],
    ),
    ("ConversationMaintenanceNotRunning", &[("last_job_seconds", 800.0, Some(901.0))]),
    ("ConversationMaintenanceLate", &[("jobs_late", 0.0, Some(1.0))]),
    ("ConversationMaintenanceFailing", &[("job_failed{job=\"analytics\"}", 0.0, Some(1.0))]),
    ("ConversationUsageDrift", &[("job_failed{job=\"usage_check\"}", 0.0, Some(1.0))]),
    ("ConversationTenantOutOfTokens", &[("tenants_out_of_tokens", 0.0, Some(1.0))]),
    ("ConversationReplicaBehind", &[("replication_lag_seconds", 59.0, Some(61.0))]),
    ("ConversationReplicaBehind", &[("replication_lag_bytes", 1e8, Some(2e9))]),
    ("ConversationSlotInactive", &[("slots_inactive", 0.0, Some(1.0))]),
    ("ConversationSlotRetainsLog", &[("slot_retained_bytes", 9e9, Some(11e9))]),
    ("ConversationSlotLost", &[("slots_lost", 0.0, Some(1.0))]),
    ("ConversationSubscriptionDown", &[("subscriptions_down", 0.0, Some(1.0))]),
];

/// All is well for this long.
const QUIET: u32 = 60;

/// A test for promtool: not while all is well, not before its time, and then.
fn scenario(case: &Case, alert: &Alert) -> String {
    let (mut series, mut labels) = (String::new(), String::new());
    for (name, well, too_much) in case.1 {
        let after = match too_much {
            Some(value) => format!(" {value}+0x{QUIET}"),
            None => format!(" _x{QUIET} stale"),
        };
        series += &format!(
            "      - series: 'pg_conversation_{name}'\n        values: '{well}+0x{}{after}'\n",
            QUIET - 1
        );
        if let Some((_, found)) = name.split_once('{') {
            labels = format!(", {}", found.trim_end_matches('}').replace('=', ": "));
        }
    }
    let at = |minute: u32, sounds: bool| {
        let expected = if sounds {
            format!("[{{exp_labels: {{severity: {}{labels}}}}}]", alert.severity)
        } else {
            "[]".into()
        };
        format!(
            "      - eval_time: {minute}m\n        alertname: {}\n        exp_alerts: {expected}\n",
            alert.name
        )
    };
    let mut tests = at(QUIET - 1, false);
    // A series that has ended is remembered for five minutes.
    let since =
        if case.1.iter().any(|(_, _, too_much)| too_much.is_none()) { QUIET + 4 } else { QUIET };
    if alert.minutes > 0 {
        tests += &at(since + alert.minutes - 1, false);
    }
    tests += &at(since + alert.minutes + 1, true);
    format!("  - interval: 1m\n    input_series:\n{series}    alert_rule_test:\n{tests}")
}

#[test]
fn each_alert_sounds_when_it_should_and_not_before() {
    let (alerts, _) = alerts(&example("alerts.yaml"));
    for alert in &alerts {
        let mut cases = CASES.iter().filter(|(name, _)| *name == alert.name).peekable();
        assert!(cases.peek().is_some(), "{}: no case", alert.name);
        for case in cases {
            let header = "rule_files: [alerts.yaml]\nevaluation_interval: 1m\ntests:\n";
            let test = format!("{header}{}", scenario(case, alert));
            if let Err(said) = promtool(&["test", "rules"], &test) {
                panic!("{}\n{test}\n{said}", alert.name);
            }
        }
    }
}

#[test]
fn an_alert_that_sounds_at_another_time_is_named() {
    let (alerts, _) = alerts(&example("alerts.yaml"));
    let header = "rule_files: [alerts.yaml]\nevaluation_interval: 1m\ntests:\n";
    for (minutes, series) in [
        // Later than said, sooner than said, never, and from the beginning.
        (2, ("slots_inactive", 0.0, Some(1.0))),
        (20, ("slots_inactive", 0.0, Some(1.0))),
        (10, ("slots_inactive", 0.0, Some(0.0))),
        (10, ("slots_inactive", 1.0, Some(1.0))),
    ] {
        let alert = alerts.iter().find(|alert| alert.name == "ConversationSlotInactive");
        let alert = alert.expect("there is such an alert");
        assert_eq!(alert.minutes, 10);
        let wrong = Alert {
            minutes,
            name: alert.name.clone(),
            expr: String::new(),
            severity: alert.severity.clone(),
        };
        let case: (&str, &[_]) = ("ConversationSlotInactive", &[series]);
        let test = format!("{header}{}", scenario(&(case.0, Box::leak(case.1.into())), &wrong));
        assert!(promtool(&["test", "rules"], &test).is_err(), "{test}");
    }
}
