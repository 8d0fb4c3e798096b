//! Voids, increments and repricing.

use std::thread;

use pg_conversation_tests::{Client, Session, wait_until};

use crate::books::{Books, COST, Event, Usage, code};

#[test]
fn an_event_is_taken_back_once() {
    let books = Books::new();
    let mut service = books.service();
    let tenant = books.tenant();
    let at = Some("2026-02-03 04:05+00");
    let event = Event { at, usage: r#"{"prompt_tokens": 7, "x": 1}"#, ..Event::of(&books, "k") };
    let cost = service.record(&event).unwrap().cost;
    books.database.superuser().run("update tenants set time_zone = 'Pacific/Kiritimati'");
    assert_eq!(service.void(tenant, "k").unwrap(), (true, format!("-{cost}")));
    assert_eq!(service.void(tenant, "k").unwrap(), (false, format!("-{cost}")));
    // Its key stays used.
    assert!(!service.record(&event).unwrap().applied);
    let left: String = service.value(
        "select format('%s %s %s %s %s', prompt_tokens, request_count, unpriced_count, cost = 0, date) \
         from usage_totals",
    );
    assert_eq!(left, "0 0 0 t 2026-02-03");
    for key in ["nothing", "void:k", "", "repricing:k"] {
        assert_eq!(code(&service.void(tenant, key).unwrap_err()), "P0002", "{key}");
    }
    let other = books.tenants[1].id;
    assert_eq!(code(&service.void(other, "k").unwrap_err()), "P0002");
    let long = "k".repeat(200);
    service.record(&Event::of(&books, &long)).unwrap();
    assert!(service.void(tenant, &long).unwrap().0);
    books.agree();
}

#[test]
fn two_who_take_an_event_back_at_once_take_it_back_once() {
    let books = Books::new();
    let (mut one, mut two) = (books.service(), books.service());
    one.record(&Event::of(&books, "k")).unwrap();
    one.run("begin");
    assert!(one.void(books.tenant(), "k").unwrap().0);
    let again = thread::scope(|scope| {
        let waiting = scope.spawn(|| two.void(books.tenant(), "k").unwrap());
        wait_until(
            &mut books.database.superuser(),
            "select exists (select from pg_stat_activity where datname = current_database() \
             and wait_event_type = 'Lock')",
        );
        one.run("commit");
        waiting.join().expect("no panic")
    });
    assert_eq!(again, (false, format!("-{COST}")));
    books.agree();
}

#[test]
fn increments_add_up_at_the_cost_they_bring() {
    let books = Books::new();
    let mut service = books.service();
    let call = |args: &str| {
        format!("select increment_usage_metrics('{}', '{}', {args})", books.tenant(), books.user())
    };
    for _ in 0..3 {
        service.run(&call("'2026-02-03', 5, 6, 0.25"));
    }
    for (args, expected) in [
        ("'2026-02-03', -1, 6, 0.25", "22023"),
        ("'2026-02-03', 1, -6, 0.25", "22023"),
        ("'2026-02-03', 1, 6, -0.25", "22023"),
        ("'2026-02-03', 1, 6, 'NaN'", "22023"),
        ("'2026-02-03', 1, 6, 'infinity'", "22023"),
        ("'2026-02-03', 9223372036854775807, 6, 1", "22023"),
        ("'infinity', 1, 6, 1", "22023"),
    ] {
        assert_eq!(service.error(&call(args)).0, expected, "{args}");
    }
    let stranger = call("'2026-02-03', 5, 6, 0.25")
        .replace(&books.user().to_string(), &books.tenants[1].users[0].to_string());
    assert_eq!(service.error(&stranger).0, "P0002");
    let found: String = service.value(
        "select format('%s %s %s %s %s %s', date, prompt_tokens, completion_tokens, total_tokens, \
         request_count, estimated_cost) from usage_metrics",
    );
    assert_eq!(found, "2026-02-03 15 18 33 3 0.75");
    // One is taken back by its own key; none is ever repriced.
    let key: String = service.value("select max(idempotency_key)::text from usage_events");
    assert_eq!(service.void(books.tenant(), &key).unwrap(), (true, "-0.25".into()));
    let found: i64 =
        service.value("select count(*) from recalculate_costs('-infinity', 'infinity', false)");
    assert_eq!(found, 0);
    books.agree();
}

#[test]
fn repricing_writes_the_difference_once() {
    let books = Books::new();
    let mut service = books.service();
    let day = |n: u32| format!("2026-02-{n:02} 12:00+00");
    for n in 1..=6 {
        let (key, at) = (format!("k{n}"), day(n));
        let usage = r#"{"prompt_tokens": 10, "cached": 4, "images": 1}"#;
        service.record(&Event { usage, at: Some(&at), ..Event::of(&books, &key) }).unwrap();
    }
    service.void(books.tenant(), "k6").unwrap();
    let (key, tenant) = ("other", books.tenants[1].id);
    let at = day(2);
    service
        .record(&Event { tenant, user: None, at: Some(&at), key, ..Event::of(&books, "") })
        .unwrap();
    service.run(&format!(
        "select increment_usage_metrics('{}', '{}', '2026-02-02', 1, 1, 5)",
        books.tenant(),
        books.user()
    ));
    service.run(
        "insert into model_prices (pattern, usage_type, unit_price, valid_from) \
         values ('gpt%', 'cached', 0.5, '2026-02-03 00:00+00'); \
         update model_prices set unit_price = 0.00002 where pattern = 'gpt-4%' and usage_type = 'prompt_tokens'",
    );
    let recalculate = |args: &str| {
        format!(
            "select format('%s %s %s', date, old_cost, new_cost) from recalculate_costs({args}) order by 1"
        )
    };
    let first = ["2026-02-01 0.04010 0.04020", "2026-02-02 0.04010 0.04020"];
    let all = [
        first[0],
        "2026-02-02 0.00130 0.00230",
        first[1],
        "2026-02-03 0.04010 2.04020",
        "2026-02-04 0.04010 2.04020",
        "2026-02-05 0.04010 2.04020",
    ];
    let one = format!("'2026-02-01', '2026-02-02', tenant_id => '{}'", books.tenant());
    assert_eq!(service.values::<String>(&recalculate(&one)), first);
    assert_eq!(service.values::<String>(&recalculate("'2026-02-01', '2026-02-28', true")), all);
    let repriced = "select count(*) from usage_events where kind = 'repricing'";
    assert_eq!(service.value::<i64>(repriced), 0);
    assert_eq!(service.values::<String>(&recalculate("'2026-02-01', '2026-02-28', false")), all);
    assert_eq!(service.value::<i64>(repriced), 6);
    let none: [&str; 0] = [];
    for dry_run in ["false", "true"] {
        let args = format!("'-infinity', 'infinity', {dry_run}");
        assert_eq!(service.values::<String>(&recalculate(&args)), none);
    }
    // What has a price now is no more without one; on the first two days it is.
    let unpriced: i64 = service.value("select sum(unpriced_count)::bigint from usage_totals");
    assert_eq!(unpriced, 2);
    // Tokens and requests are what they were, and a key answers what it answered.
    let requests: i64 = service.value("select sum(request_count)::bigint from usage_totals");
    assert_eq!(requests, 7);
    let at = day(1);
    let usage = r#"{"prompt_tokens": 10, "cached": 4, "images": 1}"#;
    let again = service.record(&Event { usage, at: Some(&at), ..Event::of(&books, "k1") }).unwrap();
    assert_eq!((again.applied, again.cost.as_str()), (false, "0.04010"));
    books.agree();
    // Back again.
    service.run("delete from model_prices where usage_type = 'cached'");
    service.run("select recalculate_costs('-infinity', 'infinity', false)");
    books.agree();
    let unpriced: i64 = service.value("select sum(unpriced_count)::bigint from usage_totals");
    assert_eq!(unpriced, 5);
}

#[test]
fn two_who_reprice_at_once_write_the_difference_once_and_recording_goes_on() {
    let books = Books::new();
    let (mut one, mut two, mut writer) = (books.service(), books.service(), books.service());
    writer.run("set lock_timeout = '1s'");
    for n in 0..20 {
        one.record(&Event::of(&books, &format!("k{n}"))).unwrap();
    }
    one.run("update model_prices set unit_price = unit_price * 2");
    let reprice = "select count(*) from recalculate_costs('-infinity', 'infinity', false)";
    one.run("begin");
    assert_eq!(one.value::<i64>(reprice), 1);
    let found = thread::scope(|scope| {
        let waiting = scope.spawn(|| two.value::<i64>(reprice));
        wait_until(
            &mut books.database.superuser(),
            "select exists (select from pg_stat_activity where datname = current_database() \
             and wait_event_type = 'Lock')",
        );
        writer.record(&Event::of(&books, "meanwhile")).unwrap();
        one.run("commit");
        waiting.join().expect("no panic")
    });
    assert_eq!(found, 0);
    books.agree();
    let found: i64 = two.value("select count(*) from recalculate_costs('-infinity', 'infinity')");
    assert_eq!(found, 0);
}

#[test]
fn what_is_taken_back_after_a_repricing_costs_nothing() {
    let books = Books::new();
    let mut service = books.service();
    let tenant = books.tenant();
    let sum = |service: &mut Client| -> String {
        service.value(
            "select format('%s %s %s', trim_scale(sum(cost)), sum(unpriced_count), sum(request_count)) \
             from usage_totals",
        )
    };
    let usage = r#"{"prompt_tokens": 10}"#;
    for (key, user) in
        [("k1", Some(books.user())), ("k2", Some(books.user())), ("k3", None), ("k4", None)]
    {
        let event = Event { model: Some("new"), usage, user, ..Event::of(&books, key) };
        service.record(&event).unwrap();
    }
    service.run(&format!(
        "select increment_usage_metrics('{tenant}', null, (select max(date) from usage_events), 1, 1, 5)"
    ));
    assert_eq!(sum(&mut service), "5 4 5");
    let recalculate = "select count(*) from recalculate_costs('-infinity', 'infinity', false)";
    service.run(
        "insert into model_prices (pattern, usage_type, unit_price) values ('new', 'prompt_tokens', 1)",
    );
    assert_eq!(service.value::<i64>(recalculate), 2);
    assert_eq!(sum(&mut service), "45 0 5");
    for (key, left) in [("k1", "35 0 4"), ("k3", "25 0 3"), ("k2", "15 0 2"), ("k4", "5 0 1")] {
        assert!(service.void(tenant, key).unwrap().0);
        assert!(!service.void(tenant, key).unwrap().0);
        assert_eq!(sum(&mut service), left, "{key}");
        books.agree();
    }
    assert_eq!(service.value::<i64>(recalculate), 0);
    let key: String =
        service.value("select idempotency_key::text from usage_events where kind = 'increment'");
    service.void(tenant, &key).unwrap();
    assert_eq!(sum(&mut service), "0 0 0");
    assert_eq!(service.value::<i64>(recalculate), 0);
    books.agree();
}

#[test]
fn who_takes_back_at_once_and_who_reprices_meanwhile_agree() {
    let books = Books::new();
    let (mut one, mut two) = (books.service(), books.service());
    let tenant = books.tenant();
    let recalculate = "select count(*) from recalculate_costs('-infinity', 'infinity', false)";
    let waits = "select exists (select from pg_stat_activity where datname = current_database() \
                 and wait_event_type = 'Lock')";
    let usage = r#"{"prompt_tokens": 10}"#;
    for n in 1..=4 {
        let key = format!("k{n}");
        one.record(&Event { usage, model: Some("new"), ..Event::of(&books, &key) }).unwrap();
    }
    // Whoever recalculates waits for one who takes back, and the other way round.
    one.run(
        "insert into model_prices (pattern, usage_type, unit_price) values ('new', 'prompt_tokens', 1)",
    );
    one.run("begin");
    one.void(tenant, "k1").unwrap();
    let found = thread::scope(|scope| {
        let waiting = scope.spawn(|| two.value::<i64>(recalculate));
        wait_until(&mut books.database.superuser(), waits);
        one.run("commit");
        waiting.join().expect("no panic")
    });
    assert_eq!(found, 1);
    assert_eq!(one.value::<i64>(recalculate), 0);
    // Two who take back events of one group, whose price has changed again.
    one.run("update model_prices set unit_price = 2 where pattern = 'new'");
    one.run("begin");
    one.void(tenant, "k2").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| two.void(tenant, "k3").unwrap());
        wait_until(&mut books.database.superuser(), waits);
        one.run("commit");
        waiting.join().expect("no panic")
    });
    assert_eq!(one.value::<i64>(recalculate), 0);
    let cost: String = one.value("select trim_scale(sum(cost))::text from usage_totals");
    assert_eq!(cost, "20");
    books.agree();
}
