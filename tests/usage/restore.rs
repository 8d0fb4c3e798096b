//! A dump has the ledger and its sums; nothing is counted again when it is loaded.

use pg_conversation_tests::{Database, Session, command, run};
use std::path::Path;

use crate::books::{Books, Event, Usage};

const TABLES: [&str; 5] =
    ["usage_events", "usage_days", "usage_totals", "usage_months", "model_prices"];

fn content(database: &Database) -> Vec<String> {
    let mut owner = database.superuser();
    let digest = |table: &str| {
        format!(
            "select coalesce(md5(string_agg(t::text, ',' order by t::text)), 'none') from {table} t"
        )
    };
    TABLES.iter().map(|table| owner.value(&digest(table))).collect()
}

#[test]
fn a_restored_ledger_has_the_sums_it_had() {
    let books = Books::new();
    let mut service = books.service();
    for n in 0..20 {
        let (key, at) = (format!("k{n}"), format!("2026-01-{:02} 12:00+00", n + 1));
        service.record(&Event { at: Some(&at), ..Event::of(&books, &key) }).unwrap();
    }
    service.void(books.tenant(), "k3").unwrap();
    service.run("update model_prices set unit_price = unit_price * 2");
    service.run("select recalculate_costs('2026-01-01', '2026-01-10', false)");
    books.agree();
    let before = content(&books.database);
    let server = books.database.server;
    let modes: [(&[&str], &[&str], bool); 3] = [
        (&["-Fc"], &["-e"], false),
        (&["-Fc"], &["-e", "-j", "2"], false),
        (&["-Fc", "-a"], &["-e"], true),
    ];
    for (dump, restore, is_data_only) in modes {
        let file = format!("/tmp/usage-{}-{}", books.database.name, std::process::id());
        run(server.program("pg_dump").args(dump).args(["-f", &file, &books.database.name]));
        let target = if is_data_only { server.database() } else { server.empty_database() };
        run(server.program("pg_restore").args(restore).args(["-d", &target.name, &file]));
        run(command(Path::new("rm")).arg(&file));
        target.superuser().run("select migrate()");
        assert_eq!(content(&target), before, "{dump:?} {restore:?}");
        let restored = Books { database: target, tenants: Vec::new() };
        let mut owner = restored.database.superuser();
        let drift: i64 = owner.value(&format!(
            "select count(*) from verify_usage('{}', '-infinity', 'infinity')",
            books.tenant()
        ));
        assert_eq!(drift, 0, "{dump:?}");
        restored.agree();
        // And it is one to go on with.
        let mut service = restored.service();
        let at = Some("2026-01-01 12:00+00");
        assert!(!service.record(&Event { at, ..Event::of(&books, "k0") }).unwrap().applied);
        assert!(service.record(&Event::of(&books, "new")).unwrap().applied);
        assert!(!service.void(books.tenant(), "k3").unwrap().0);
        restored.agree();
    }
}
