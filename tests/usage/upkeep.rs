//! Folding, and the comparison with the ledger.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pg_conversation_tests::{Client, Session};

use crate::books::{Books, Event, Usage};

/// Events of many writers at once on some days.
fn spread(books: &Books, days: &[&str], writers: usize) {
    let mut open: Vec<Client> = (0..writers).map(|_| books.service()).collect();
    for (n, client) in open.iter_mut().enumerate() {
        client.run("begin");
        for day in days {
            let (key, at) = (format!("{n} {day}"), format!("{day} 12:00+00"));
            client.record(&Event { at: Some(&at), ..Event::of(books, &key) }).unwrap();
        }
    }
    for mut client in open {
        client.run("commit");
    }
}

#[test]
fn days_that_are_over_become_one_row_and_others_stay() {
    let books = Books::new();
    let mut service = books.service();
    let day = |n: i32| -> String {
        books
            .database
            .superuser()
            .value(&format!("select ((now() at time zone 'UTC')::date - {n})::text"))
    };
    let (old, older, yesterday) = (day(2), day(40), day(1));
    spread(&books, &[&old, &older, &yesterday], 5);
    let rows = |service: &mut Client, day: &str| -> i64 {
        service.value(&format!(
            "select count(*) + 100 * (select count(*) from usage_days where date = '{day}') \
             from usage_totals where date = '{day}'"
        ))
    };
    assert_eq!(rows(&mut service, &old), 505);
    // The oldest first, and so many at a time.
    assert_eq!(service.value::<i32>("select fold_usage(0)"), 0);
    // A day, its total, and the month, which is over.
    assert_eq!(service.value::<i32>("select fold_usage(1)"), 3);
    assert_eq!(rows(&mut service, &older), 101);
    assert_eq!(rows(&mut service, &old), 505);
    books.agree();
    let has_month_ended: i32 = service.value(&format!(
        "select (date_trunc('month', date '{old}') < date_trunc('month', date '{yesterday}'))::int"
    ));
    assert_eq!(service.value::<i32>("select fold_usage()"), 2 + has_month_ended);
    assert_eq!(rows(&mut service, &old), 101);
    assert_eq!(rows(&mut service, &yesterday), 505, "a day that is not over everywhere");
    assert_eq!(service.value::<i32>("select fold_usage()"), 0);
    assert_eq!(service.error("select fold_usage(-1)").0, "22023");
    // Late ones are added to the row that is there, or beside it, and folded again.
    spread(&books, &[&old], 0);
    let at = format!("{old} 13:00+00");
    service.record(&Event { at: Some(&at), ..Event::of(&books, "late") }).unwrap();
    assert_eq!(rows(&mut service, &old), 101);
    let mut holder = books.service();
    holder.run("begin");
    holder.record(&Event { at: Some(&at), ..Event::of(&books, "held") }).unwrap();
    service.record(&Event { at: Some(&at), ..Event::of(&books, "beside") }).unwrap();
    assert_eq!(rows(&mut service, &old), 202);
    assert_eq!(service.value::<i32>("select fold_usage()"), 0, "its row is locked");
    books.agree();
    holder.run("commit");
    assert_eq!(service.value::<i32>("select fold_usage()"), 2 + has_month_ended);
    assert_eq!(rows(&mut service, &old), 101);
    books.agree();
}

#[test]
fn months_that_are_over_become_one_row_and_this_one_stays() {
    let books = Books::new();
    let mut service = books.service();
    let mut day = |expression: &str| -> String {
        service.value(&format!(
            "select (date_trunc('month', (now() at time zone 'UTC') - interval '1 day')::date {expression})::text"
        ))
    };
    // The month of yesterday, which may go on somewhere, and the last two before it.
    let (this, last, before) = (day(""), day("- 1"), day("- 40"));
    spread(&books, &[&this, &last, &before], 4);
    let rows = |service: &mut Client| -> Vec<String> {
        service.values(
            "select format('%s %s', count(*), count(*) filter (where slot = 0)) \
             from usage_months group by month order by month",
        )
    };
    assert_eq!(rows(&mut service), ["4 0", "4 0", "4 0"]);
    service.run("select fold_usage(1)");
    assert_eq!(rows(&mut service), ["1 1", "4 0", "4 0"]);
    service.run("select fold_usage()");
    assert_eq!(rows(&mut service), ["1 1", "1 1", "4 0"]);
    // A late one is added to the row that is there.
    let at = format!("{last} 13:00+00");
    service.record(&Event { at: Some(&at), ..Event::of(&books, "late") }).unwrap();
    assert_eq!(rows(&mut service), ["1 1", "1 1", "4 0"]);
    books.agree();
}

#[test]
fn two_who_fold_at_once_do_not_wait() {
    let books = Books::new();
    spread(&books, &["2026-01-01"], 4);
    let (mut one, mut two) = (books.service(), books.service());
    two.run("set lock_timeout = '1s'");
    // A row that was in use when the first one looked is free for the second.
    let mut holder = books.service();
    holder.run("begin");
    let at = Some("2026-01-01 12:00+00");
    holder.record(&Event { at, ..Event::of(&books, "held") }).unwrap();
    one.run("begin");
    assert_eq!(one.value::<i32>("select fold_usage()"), 3);
    holder.run("commit");
    assert_eq!(two.value::<i32>("select fold_usage()"), 0);
    one.run("rollback");
    assert_eq!(two.value::<i32>("select fold_usage()"), 3);
    books.agree();
}

#[test]
fn sums_stay_exact_while_they_are_folded() {
    let books = Books::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..6)
            .map(|n| {
                let books = &books;
                scope.spawn(move || {
                    let mut service = books.service();
                    service.run("set lock_timeout = '2s'");
                    for i in 0..80 {
                        if i % 4 == 0 {
                            service.run("begin");
                        }
                        let (key, at) =
                            (format!("{n} {i}"), format!("2026-01-0{} 12:00+00", i % 3 + 1));
                        service.record(&Event { at: Some(&at), ..Event::of(books, &key) }).unwrap();
                        if i % 4 == 3 {
                            service.run(if i % 16 == 15 { "rollback" } else { "commit" });
                        }
                    }
                })
            })
            .collect();
        let (books, done) = (&books, &done);
        let folder = scope.spawn(move || {
            let mut service = books.service();
            let (mut folded, mut looked) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                folded += service.value::<i32>("select fold_usage()");
                // Whoever looks in between sees sums that are the ledger's.
                let drift: i64 = service.value(&format!(
                    "select count(*) from verify_usage('{}', '-infinity', 'infinity')",
                    books.tenant()
                ));
                assert_eq!(drift, 0);
                looked += 1;
            }
            (folded, looked)
        });
        for writer in writers {
            writer.join().expect("no panic");
        }
        done.store(true, Ordering::SeqCst);
        let (folded, looked) = folder.join().expect("no panic");
        assert!(folded > 4 && looked > 4, "{folded} {looked}");
    });
    let mut service = books.service();
    assert_eq!(service.value::<i64>("select sum(request_count)::bigint from usage_totals"), 360);
    books.agree();
    service.run("select fold_usage()");
    assert_eq!(service.value::<i64>("select count(*) from usage_totals"), 3);
    assert_eq!(service.value::<i64>("select count(*) from usage_days"), 3);
    assert_eq!(service.value::<i64>("select count(*) from usage_months"), 1);
    books.agree();
}

#[test]
fn a_sum_that_is_not_the_ledgers_is_named() {
    let books = Books::new();
    let mut service = books.service();
    let at = Some("2026-02-03 12:00+00");
    service.record(&Event { at, ..Event::of(&books, "k") }).unwrap();
    service.record(&Event { at, user: None, model: None, ..Event::of(&books, "n") }).unwrap();
    let mut owner = books.database.superuser();
    let cases = [
        (
            "update usage_days set prompt_tokens = prompt_tokens + 1 where model <> ''",
            "usage_days prompt_tokens 100 101 gpt-4o t",
        ),
        (
            "update usage_days set completion_tokens = 9 where model = ''",
            "usage_days completion_tokens 10 9  f",
        ),
        ("update usage_totals set request_count = 3", "usage_totals request_count 2 3  f"),
        ("update usage_totals set unpriced_count = 0", "usage_totals unpriced_count 1 0  f"),
        ("update usage_totals set cost = cost * 2", "usage_totals cost 0.00130 0.00260  f"),
        (
            "insert into usage_totals values ('$t', 1, 0, 0, 0, '2026-02-03', 77, 0)",
            "usage_totals prompt_tokens 200 201  f",
        ),
        ("update usage_months set request_count = 1", "usage_months request_count 2 1  f"),
        ("update usage_months set cost = cost * 2", "usage_months cost 0.00130 0.00260  f"),
    ];
    for (change, expected) in cases {
        owner.run("begin");
        owner.run(&change.replace("$t", &books.tenant().to_string()));
        let found: Vec<String> = owner.values(&format!(
            "select format('%s %s %s %s %s %s', source, figure, ledger, found, model, user_id is not null) \
             from verify_usage('{}', '2026-02-01', '2026-02-28')",
            books.tenant()
        ));
        assert_eq!(found, [expected], "{change}");
        owner.run("rollback");
    }
    for change in [
        "delete from usage_days",
        "delete from usage_totals",
        "delete from usage_months",
        "update usage_months set month = '2026-03-01'",
        "delete from usage_events",
        "update usage_days set date = date + 1",
        "update usage_days set user_id = tenant_id",
    ] {
        owner.run("begin");
        owner.run(change);
        let found: i64 = owner.value(&format!(
            "select count(*) from verify_usage('{}', '2026-02-01', '2026-02-28')",
            books.tenant()
        ));
        assert!(found > 1, "{change}");
        owner.run("rollback");
    }
    books.agree();
}

/// Of a month whose days were not all asked about, too.
#[test]
fn a_month_is_compared_whatever_day_of_it_is_asked_about() {
    let books = Books::new();
    let mut service = books.service();
    for day in ["2026-01-31", "2026-02-01", "2026-02-14", "2026-02-28", "2026-03-01"] {
        let at = format!("{day} 12:00+00");
        service.record(&Event { at: Some(&at), ..Event::of(&books, day) }).unwrap();
    }
    let mut owner = books.database.superuser();
    let mut drift = |days: (&str, &str)| -> Vec<String> {
        owner.values(&format!(
            "select format('%s %s %s %s', source, date, ledger, found) \
             from verify_usage('{}', '{}', '{}') where figure = 'request_count'",
            books.tenant(),
            days.0,
            days.1
        ))
    };
    let ranges = [
        ("2026-02-14", "2026-02-14"),
        ("2026-02-03", "2026-02-07"),
        ("2026-02-01", "2026-02-28"),
        ("2026-01-31", "2026-02-01"),
        ("2026-02-28", "2026-03-01"),
        ("-infinity", "infinity"),
    ];
    for range in ranges {
        assert!(drift(range).is_empty(), "{range:?}");
    }
    books
        .database
        .superuser()
        .run("update usage_months set request_count = 7 where month = '2026-02-01'");
    for range in ranges {
        assert_eq!(drift(range), ["usage_months 2026-02-01 3 7"], "{range:?}");
    }
    assert!(drift(("2026-03-01", "2026-03-31")).is_empty());
    assert!(drift(("2026-03-05", "2026-02-10")).is_empty(), "no days");
}

#[test]
fn who_is_in_the_way_keeps_nobody_else_from_being_folded() {
    let books = Books::new();
    // Of the oldest day one row is locked, of the next the folded one, and behind them is the rest.
    spread(&books, &["2026-01-01"], 1);
    spread(&books, &["2026-01-02"], 2);
    let mut service = books.service();
    let mut owner = books.database.superuser();
    owner.run(
        "update usage_days set slot = 0 where date = '2026-01-02' and slot = ( \
             select min(slot) from usage_days where date = '2026-01-02'); \
         update usage_totals set slot = 0 where date = '2026-01-02' and slot = ( \
             select min(slot) from usage_totals where date = '2026-01-02')",
    );
    for n in 3..=9 {
        spread(&books, &[&format!("2026-01-0{n}")], 2);
    }
    let mut holder = books.database.superuser();
    holder.run(
        "begin; select from usage_days where date = '2026-01-01' or date = '2026-01-02' and slot = 0 for update; \
         select from usage_totals where date = '2026-01-01' or date = '2026-01-02' and slot = 0 for update",
    );
    // Of days and totals; and their month.
    assert_eq!(service.value::<i32>("select fold_usage(1)"), 3);
    assert_eq!(service.value::<i32>("select fold_usage(2)"), 4);
    assert_eq!(service.value::<i32>("select fold_usage(100)"), 8);
    assert_eq!(service.value::<i32>("select fold_usage(100)"), 0);
    let left = "select count(*) from usage_days where slot <> 0";
    assert_eq!(service.value::<i64>(left), 2);
    holder.run("rollback");
    assert_eq!(service.value::<i32>("select fold_usage(100)"), 4);
    assert_eq!(service.value::<i64>(left), 0);
    books.agree();
}

#[test]
fn so_many_keys_are_folded_however_many_rows_they_have() {
    let books = Books::new();
    for n in 1..=6 {
        spread(&books, &[&format!("2026-01-0{n}")], 3);
    }
    let mut service = books.service();
    assert_eq!(service.value::<i32>("select fold_usage(5)"), 11);
    assert_eq!(service.value::<i32>("select fold_usage(5)"), 2);
    books.agree();
}

#[test]
fn a_superuser_who_keeps_house_lends_nobody_his_rights() {
    let books = Books::new();
    let mut superuser = books.database.superuser();
    spread(&books, &["2026-01-01"], 3);
    superuser.run("update model_prices set unit_price = unit_price * 2");
    books.database.server.role("usage_owner");
    superuser.run(
        "do $$ declare t text; begin \
             for t in select tablename from pg_tables where schemaname = 'public' loop \
                 execute format('alter table public.%I owner to usage_owner', t); \
             end loop; end $$; \
         grant create, usage on schema public to usage_owner; \
         create function trap() returns trigger language plpgsql as 'begin raise ''sprung by %'', current_user; end'; \
         create constraint trigger trap after delete on usage_days \
             deferrable initially deferred for each row execute function trap(); \
         create constraint trigger trap after insert on usage_events \
             deferrable initially deferred for each row execute function trap()",
    );
    for call in ["fold_usage()", "recalculate_costs('-infinity', 'infinity', false)"] {
        let (code, message) = superuser.error(&format!("select {call}"));
        assert_eq!(code, "42501", "{call}: {message}");
    }
    superuser.run("drop trigger trap on usage_days; drop trigger trap on usage_events");
    superuser.run("select fold_usage(); select recalculate_costs('-infinity', 'infinity', false)");
}
