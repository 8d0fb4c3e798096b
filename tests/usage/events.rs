//! What is recorded, what it costs, and what is refused.

use pg_conversation_tests::{Rng, Session, Uuid, describe};

use crate::books::{Answer, Books, COST, Event, Usage, code};

#[test]
fn an_event_is_recorded_once_and_a_retry_hears_the_same() {
    let books = Books::new();
    let mut service = books.service();
    let event = Event::of(&books, "k");
    let first = service.record(&event).unwrap();
    assert_eq!((first.applied, first.cost.as_str(), first.unpriced.as_str()), (true, COST, "{}"));
    let again = Answer { applied: false, ..first.clone() };
    assert_eq!(service.record(&event).unwrap(), again);
    // Whatever has become of the prices, the user and the tenant's calendar since.
    books.database.superuser().run(&format!(
        "update model_prices set unit_price = 7; delete from users where id = '{}'; \
         update tenants set time_zone = 'Pacific/Kiritimati', is_active = false where id = '{}'",
        books.user(),
        books.tenant()
    ));
    assert_eq!(service.record(&event).unwrap(), again);
    let rows: i64 = service.value("select count(*) from usage_events");
    assert_eq!(rows, 1);
    let sum: String = service.value(
        "select format('%s %s %s %s', prompt_tokens, completion_tokens, request_count, cost) \
         from usage_totals",
    );
    assert_eq!(sum, format!("100 10 1 {COST}"));
    // Keys are the tenant's own.
    let other =
        Event { tenant: books.tenants[1].id, user: None, model: None, ..Event::of(&books, "k") };
    assert!(service.record(&other).unwrap().applied);
    books.agree();
}

#[test]
fn a_key_that_was_used_for_something_else_is_refused() {
    let books = Books::new();
    let mut service = books.service();
    let at = Some("2026-01-02 03:04:05.000006+00");
    service.record(&Event { at, ..Event::of(&books, "k") }).unwrap();
    service.record(&Event::of(&books, "now")).unwrap();
    let others = [
        Event { user: Some(books.tenants[0].users[1]), ..Event::of(&books, "k") },
        Event { user: None, ..Event::of(&books, "k") },
        Event { model: Some("gpt-4"), ..Event::of(&books, "k") },
        Event { model: None, ..Event::of(&books, "k") },
        Event { usage: r#"{"prompt_tokens": 100}"#, ..Event::of(&books, "k") },
        Event {
            usage: r#"{"input_tokens": 100, "completion_tokens": 10}"#,
            ..Event::of(&books, "k")
        },
        Event { at: Some("2026-01-02 03:04:05.000007+00"), ..Event::of(&books, "k") },
    ];
    for event in others {
        let error = service.record(&event).unwrap_err();
        assert_eq!(code(&error), "23505", "{}", describe(&error));
    }
    // A moment is compared where both have said one.
    let same = [
        Event { at, ..Event::of(&books, "k") },
        Event { at: Some("2026-01-02 12:04:05.000006+09"), ..Event::of(&books, "k") },
        Event::of(&books, "k"),
        Event::of(&books, "now"),
        Event { at, ..Event::of(&books, "now") },
        Event {
            usage: r#"{"completion_tokens": 10.0, "prompt_tokens": 1e2}"#,
            ..Event::of(&books, "k")
        },
    ];
    for event in same {
        assert!(!service.record(&event).unwrap().applied);
    }
    books.agree();
}

#[test]
fn what_cannot_be_recorded_is_refused_and_leaves_nothing() {
    let books = Books::new();
    let mut service = books.service();
    let long = |n: usize| "x".repeat(n);
    let many = |n: usize| {
        let figures: Vec<String> = (0..n).map(|n| format!("\"f{n}\": 1")).collect();
        format!("{{{}}}", figures.join(", "))
    };
    let usage = |usage: &str| usage.replace('\'', "\"");
    let stranger = Uuid::new_v4();
    let base = || Event::of(&books, "k");
    let (k201, m201, n101) = (long(201), long(201), format!("{{\"{}\": 1}}", long(101)));
    let (f51, huge) = (many(51), format!("{{\"text\": \"{}\"}}", long(70_000)));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let quoted: Vec<String> = [
        "{'prompt_tokens': -1}",
        "{'prompt_tokens': -0.000001}",
        "{'images': -1}",
        "{'total_tokens': -1}",
        "{'prompt_tokens': 1.5}",
        "{'cached_tokens': 0.5}",
        "{'prompt_tokens': 1000000000001}",
        "{'seconds': 1e13}",
        "{'prompt_tokens': 1e400}",
        "{'seconds': 1e-21}",
        "{'prompt_tokens': 1, 'input_tokens': 2}",
        "{'prompt_tokens': 'x', 'input_tokens': 2}",
        "{'completion_tokens': 1, 'output_tokens': 0}",
    ]
    .iter()
    .map(|text| usage(text))
    .collect();
    let mut cases = vec![
        (Event { tenant: stranger, user: None, ..base() }, "P0002"),
        (Event { user: Some(stranger), ..base() }, "P0002"),
        (Event { user: Some(books.tenants[1].users[0]), ..base() }, "P0002"),
        (Event { key: "", ..base() }, "22023"),
        (Event { key: &k201, ..base() }, "22023"),
        (Event { key: "void:k", ..base() }, "22023"),
        (Event { key: "repricing:k", ..base() }, "22023"),
        (Event { key: "increment:k", ..base() }, "22023"),
        (Event { key: "message:k", ..base() }, "22023"),
        (Event { model: Some(&m201), ..base() }, "22023"),
        (Event { usage: "[]", ..base() }, "22023"),
        (Event { usage: "1", ..base() }, "22023"),
        (Event { usage: "null", ..base() }, "22023"),
        (Event { usage: "\"prompt_tokens\"", ..base() }, "22023"),
        (Event { usage: &n101, ..base() }, "22023"),
        (Event { usage: &f51, ..base() }, "22023"),
        (Event { usage: &huge, ..base() }, "22023"),
        (Event { at: Some("infinity"), ..base() }, "22023"),
        (Event { at: Some("-infinity"), ..base() }, "22023"),
        (Event { usage: &deep, ..base() }, "54001"),
    ];
    let soon: String = service.value("select (now() + interval '61 minutes')::text");
    cases.push((Event { at: Some(&soon), ..base() }, "22023"));
    cases.extend(quoted.iter().map(|usage| (Event { usage, ..base() }, "22023")));
    for (event, expected) in cases {
        let error =
            service.record(&event).expect_err(&format!("{:.90} {}", event.usage, event.key));
        assert_eq!(code(&error), expected, "{:.90}: {}", event.usage, describe(&error));
        assert!(expected == "54001" || error.as_db_error().is_some_and(|db| db.hint().is_some()));
    }
    for sql in [
        "select record_usage(null, null, '', '{}', 'k')",
        "select record_usage('$t', null, '', null, 'k')",
        "select record_usage('$t', null, '', '{}', null)",
        "select void_usage(null, 'k', 'r')",
        "select void_usage('$t', null, 'r')",
        "select void_usage('$t', 'k', null)",
        "select increment_usage_metrics(null, null, current_date, 1, 1, 1)",
        "select increment_usage_metrics('$t', null, null, 1, 1, 1)",
        "select increment_usage_metrics('$t', null, current_date, null, 1, 1)",
        "select increment_usage_metrics('$t', null, current_date, 1, 1, null)",
        "select fold_usage(null)",
        "select verify_usage('$t', null, current_date)",
        "select recalculate_costs(current_date, null)",
        "select recalculate_costs(current_date, current_date, null)",
    ] {
        let sql = sql.replace("$t", &books.tenant().to_string());
        assert_eq!(service.error(&sql).0, "22004", "{sql}");
    }
    for table in ["usage_events", "usage_days", "usage_totals", "usage_months"] {
        assert_eq!(service.value::<i64>(&format!("select count(*) from {table}")), 0, "{table}");
    }
}

#[test]
fn whatever_fits_is_recorded() {
    let books = Books::new();
    let mut service = books.service();
    let (key, model) = ("ü".repeat(200), "é".repeat(200));
    let name = "n".repeat(100);
    let cases = [
        ("{}".to_string(), "0", "{}"),
        (format!("{{\"{name}\": 0}}"), "0", "{}"),
        (r#"{"prompt_tokens": 1000000000000}"#.into(), "0", "{prompt_tokens}"),
        (r#"{"seconds": 0.00000000000000000001}"#.into(), "0", "{seconds}"),
        (r#"{"images": 2.5, "total_tokens": 7}"#.into(), "0.100", "{}"),
        (
            r#"{"input_tokens": 3, "prompt_tokens": 3.0, "x": null}"#.into(),
            "0",
            "{prompt_tokens,x}",
        ),
        (r#"{"a": {"b": [1]}, "c": "1", "d": true, "e": []}"#.into(), "0", "{a,c,d,e}"),
    ];
    for (n, (usage, cost, unpriced)) in cases.iter().enumerate() {
        let key = format!("{}{n}", &key[..key.len() - 2]);
        let event = Event { usage, key: &key, model: Some(&model), ..Event::of(&books, "") };
        let answer = service.record(&event).unwrap_or_else(|e| panic!("{usage}: {}", describe(&e)));
        assert_eq!((answer.cost.as_str(), answer.unpriced.as_str()), (*cost, *unpriced), "{usage}");
    }
    let tokens: i64 = service.value("select sum(prompt_tokens)::bigint from usage_totals");
    assert_eq!(tokens, 1_000_000_000_003);
    let unpriced: i64 = service.value("select sum(unpriced_count)::bigint from usage_days");
    assert_eq!(unpriced, 4);
    books.agree();
}

#[test]
fn a_price_is_that_of_the_longest_pattern_at_the_moment_of_use() {
    let books = Books::new();
    let mut service = books.service();
    service.run(
        "delete from model_prices; \
         insert into model_prices (pattern, usage_type, unit_price, valid_from, valid_to) values \
         ('%', 'prompt_tokens', 1, '-infinity', 'infinity'), \
         ('gpt%', 'prompt_tokens', 2, '-infinity', 'infinity'), \
         ('gpt-4_', 'prompt_tokens', 3, '2026-01-01 00:00+00', '2026-02-01 00:00+00'), \
         ('gpt-4_', 'prompt_tokens', 4, '2026-02-01 00:00+00', 'infinity'), \
         ('gpt-4%', 'prompt_tokens', 5, '2026-01-01 00:00+00', '2026-02-01 00:00+00'), \
         ('50\\%', 'prompt_tokens', 6, '-infinity', 'infinity')",
    );
    let cases = [
        ("llama", "2026-01-15", "1"),
        ("GPT-4", "2026-01-15", "1"),
        ("gpt-3", "2026-01-15", "2"),
        ("gpt-4o", "2025-12-31 23:59:59.999999", "2"),
        // Two of the same length: the one that comes first, byte by byte.
        ("gpt-4o", "2026-01-01", "5"),
        ("gpt-4o", "2026-01-31 23:59:59.999999", "5"),
        ("gpt-4o", "2026-02-01", "4"),
        ("gpt-4oo", "2026-02-01", "2"),
        ("50%", "2026-02-01", "6"),
        ("500", "2026-02-01", "1"),
    ];
    for (n, (model, at, cost)) in cases.iter().enumerate() {
        let (key, at) = (format!("k{n}"), format!("{at}+00"));
        let event = Event {
            model: Some(model),
            at: Some(&at),
            usage: r#"{"input_tokens": 1}"#,
            ..Event::of(&books, &key)
        };
        assert_eq!(service.record(&event).unwrap().cost, *cost, "{model} {at}");
    }
    let found: i64 =
        service.value("select count(*) from recalculate_costs('-infinity', 'infinity')");
    assert_eq!(found, 0, "what was recorded is what the price list says");
}

#[test]
fn a_price_list_has_one_price_at_a_time() {
    let books = Books::new();
    let mut service = books.service();
    let insert =
        "insert into model_prices (pattern, usage_type, unit_price, valid_from, valid_to) values";
    service.run(&format!("{insert} ('a%', 'x', 1, '2026-01-01', '2026-02-01')"));
    service.run(&format!("{insert} ('a%', 'x', 1, '2026-02-01', 'infinity')"));
    service.run(&format!("{insert} ('a%', 'y', 1, '2026-01-01', '2026-02-01')"));
    service.run(&format!("{insert} ('b%', 'x', 1, '2026-01-01', '2026-02-01')"));
    for (row, expected) in [
        ("('a%', 'x', 1, '2026-01-15', '2026-01-16')", "23P01"),
        ("('a%', 'x', 1, '-infinity', 'infinity')", "23P01"),
        ("('c', 'x', 1, '2026-01-15', '2026-01-15')", "23514"),
        ("('c', 'x', -1, '2026-01-15', 'infinity')", "23514"),
        ("('c', 'x', 'NaN', '2026-01-15', 'infinity')", "23514"),
        ("('c', 'x', 'infinity', '2026-01-15', 'infinity')", "23514"),
        ("('c', 'input_tokens', 1, '2026-01-15', 'infinity')", "23514"),
        ("('c\\', 'x', 1, '2026-01-15', 'infinity')", "23514"),
        ("('c\\\\\\', 'x', 1, '2026-01-15', 'infinity')", "23514"),
        ("('', 'x', 1, '2026-01-15', 'infinity')", "23514"),
    ] {
        assert_eq!(service.error(&format!("{insert} {row}")).0, expected, "{row}");
    }
    service.run(&format!("{insert} ('c\\\\', 'x', 1, '2026-01-15', 'infinity')"));
}

#[test]
fn a_day_is_one_of_the_tenants_calendar() {
    let books = Books::new();
    let mut service = books.service();
    let cases = [
        ("UTC", "2026-03-01 23:59:59.999999+00", "2026-03-01"),
        ("UTC", "2026-03-02 00:00:00+00", "2026-03-02"),
        ("Pacific/Kiritimati", "2026-03-01 10:00:00+00", "2026-03-02"),
        ("Etc/GMT+12", "2026-03-02 11:59:59+00", "2026-03-01"),
        ("Europe/Berlin", "2026-03-29 21:59:59+00", "2026-03-29"),
        ("Europe/Berlin", "2026-03-29 22:00:00+00", "2026-03-30"),
        ("Europe/Berlin", "2026-10-25 22:59:59+00", "2026-10-25"),
        ("Asia/Kathmandu", "2026-03-01 18:14:59+00", "2026-03-01"),
        ("Asia/Kathmandu", "2026-03-01 18:15:00+00", "2026-03-02"),
        ("America/St_Johns", "1990-01-01 03:29:59+00", "1989-12-31"),
        ("UTC", "1969-12-31 23:59:59.999999+00", "1969-12-31"),
    ];
    for (n, (zone, at, date)) in cases.iter().enumerate() {
        books.database.superuser().run(&format!("update tenants set time_zone = '{zone}'"));
        let key = format!("k{n}");
        let answer = service.record(&Event { at: Some(at), ..Event::of(&books, &key) }).unwrap();
        assert_eq!(answer.date, *date, "{zone} {at}");
    }
    books.agree();
    // Today's view goes by the calendar as it is.
    books.database.superuser().run("update tenants set time_zone = 'Pacific/Kiritimati'");
    service.record(&Event::of(&books, "now")).unwrap();
    let shown: bool = service.value(
        "select count(*) = 1 and min(date) = (now() at time zone 'Pacific/Kiritimati')::date \
         from current_day_usage",
    );
    assert!(shown);
}

/// Prices are looked up by two programs: one for an event, one for all.
#[test]
fn what_is_recorded_is_what_repricing_says() {
    let books = Books::new();
    let mut service = books.service();
    let mut rng = Rng::new(8);
    let patterns = ["%", "g%", "gpt-4%", "gpt-4o%", "gpt-4_", "%o", "claude-%", "gpt-4o"];
    let types = ["prompt_tokens", "completion_tokens", "images", "cached_tokens"];
    for _ in 0..40 {
        let (pattern, of) = (rng.pick(&patterns), rng.pick(&types));
        let (price, day) = (rng.below(1000), rng.below(28) + 1);
        // Some of them overlap.
        let _ = service.batch_execute(&format!(
            "insert into model_prices (pattern, usage_type, unit_price, valid_from, valid_to) \
             values ('{pattern}', '{of}', {price} / 1000.0, '2026-01-{day:02}', '2026-02-{day:02}')"
        ));
    }
    let names = [
        "input_tokens",
        "prompt_tokens",
        "output_tokens",
        "completion_tokens",
        "images",
        "cached_tokens",
        "total_tokens",
        "other",
    ];
    let values = ["0", "1", "17", "1000000", "null", "\"x\"", "3.0"];
    let models = ["gpt-4o", "gpt-4", "gpt-4o-mini", "claude-3", "o", ""];
    let mut refused = 0;
    for n in 0..300 {
        let mut figures = Vec::new();
        for name in names {
            if rng.below(3) == 0 {
                figures.push(format!("\"{name}\": {}", rng.pick(&values)));
            }
        }
        let (usage, key) = (format!("{{{}}}", figures.join(", ")), format!("k{n}"));
        let at = format!("2026-01-{:02} 12:00+00", rng.below(31) + 1);
        let event = Event {
            model: Some(*rng.pick(&models)),
            usage: &usage,
            at: Some(&at),
            ..Event::of(&books, &key)
        };
        // A figure under two names.
        refused += usize::from(service.record(&event).is_err_and(|e| code(&e) == "22023"));
    }
    assert!(refused < 100, "{refused}");
    let found: Vec<String> =
        service.values("select c::text from recalculate_costs('-infinity', 'infinity') c");
    assert!(found.is_empty(), "{found:#?}");
    books.agree();
}

#[test]
fn a_figure_recorded_in_a_rolled_back_part_counts_nowhere() {
    let books = Books::new();
    let mut service = books.service();
    service.run("begin");
    service.record(&Event::of(&books, "a")).unwrap();
    for (n, end) in ["rollback to s", "release s", "rollback to s"].iter().enumerate() {
        service.run("savepoint s");
        let key = format!("s{n}");
        service.record(&Event::of(&books, &key)).unwrap();
        service.record(&Event { user: None, ..Event::of(&books, &format!("{key}b")) }).unwrap();
        service.run(end);
    }
    service.record(&Event::of(&books, "s0")).unwrap();
    service.run("commit; begin");
    service.record(&Event::of(&books, "gone")).unwrap();
    service.run("rollback");
    let keys: Vec<String> =
        service.values("select idempotency_key::text from usage_events order by 1");
    assert_eq!(keys, ["a", "s0", "s1", "s1b"]);
    books.agree();
    assert_eq!(service.value::<i64>("select sum(request_count)::bigint from usage_totals"), 4);
    assert_eq!(service.value::<i64>("select count(*) from usage_totals"), 1);
}

#[test]
fn many_events_of_one_statement_are_all_counted() {
    let books = Books::new();
    let mut service = books.service();
    let applied: i64 = service.value(&format!(
        "select count(*) from generate_series(1, 500) n, \
         lateral record_usage('{}', null, 'gpt-4', '{{\"prompt_tokens\": 2}}', 'k' || n % 400) r where r.applied",
        books.tenant()
    ));
    assert_eq!(applied, 400);
    assert_eq!(service.value::<i64>("select sum(prompt_tokens)::bigint from usage_totals"), 800);
    assert_eq!(service.value::<i64>("select count(*) from usage_days"), 1);
    books.agree();
}

/// Days whose month Postgres could not tell, or that other programs do not know.
#[test]
fn a_day_out_of_the_calendar_is_refused() {
    let books = Books::new();
    let mut service = books.service();
    let (tenant, user) = (books.tenant(), books.user());
    let far = ["4714-11-24 BC", "0001-12-31 BC", "10000-01-01", "5874897-12-31"];
    let ranges = [
        format!("verify_usage('{tenant}', '$d', 'infinity')"),
        format!("verify_usage('{tenant}', '-infinity', '$d')"),
        "recalculate_costs('$d', 'infinity')".into(),
        "recalculate_costs('-infinity', '$d', false)".into(),
    ];
    let increment = format!("increment_usage_metrics('{tenant}', '{user}', '$d', 1, 1, 1)");
    let calls = ranges.iter().flat_map(|call| far.map(|day| (call, day)));
    let days = ["infinity", "-infinity"].into_iter().chain(far).map(|day| (&increment, day));
    for (call, day) in calls.chain(days) {
        let call = call.replace("$d", day);
        assert_eq!(service.error(&format!("select {call}")).0, "22023", "{call}");
    }
    for zone in ["UTC", "Pacific/Kiritimati", "America/New_York"] {
        books.database.superuser().run(&format!("update tenants set time_zone = '{zone}'"));
        for at in ["4714-11-24 00:00:00+00 BC", "0001-12-31 12:00+00 BC", "10000-01-01 00:00+00"] {
            let error = service.record(&Event { at: Some(at), ..Event::of(&books, "k") });
            assert_eq!(code(&error.unwrap_err()), "22023", "{zone} {at}");
        }
    }
    // There it is still the year before.
    let at = Some("0001-01-01 00:00+00");
    assert_eq!(
        code(&service.record(&Event { at, ..Event::of(&books, "k") }).unwrap_err()),
        "22023"
    );
    for day in ["0001-01-01", "9999-12-31"] {
        service.run(&format!("select {}", increment.replace("$d", day)));
    }
    books.agree();
    // A cost has as many decimals as a price.
    let cost = |cost: &str| {
        format!(
            "select increment_usage_metrics('{tenant}', null, '2026-01-01', 1, 1, {cost}::numeric)"
        )
    };
    service.run(&cost("1e-20"));
    for bad in ["1e-21", "1e-16000"] {
        assert_eq!(service.error(&cost(bad)).0, "22023", "{bad}");
    }
    books.agree();
}

/// Otherwise today would be next week.
#[test]
fn a_tenants_day_is_within_one_of_utc() {
    let books = Books::new();
    let mut owner = books.database.superuser();
    let set = |zone: &str| format!("update tenants set time_zone = '{zone}'");
    for zone in ["FOO-167:59:59", "FOO+20", "AAA-10BBB-160", "UTC0FOO-100,J2,J20"] {
        assert_eq!(owner.error(&set(zone)).0, "23514", "{zone}");
    }
    owner.run(
        "do $$ declare zone text; begin for zone in select name from pg_timezone_names loop \
         update tenants set time_zone = zone; end loop; end $$",
    );
    owner.run(&set("<+0530>-5:30"));
}
