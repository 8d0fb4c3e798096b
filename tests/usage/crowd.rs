//! Many sessions at once: none waits for another, and nothing is lost.

use std::sync::Barrier;
use std::thread;

use pg_conversation_tests::{Client, Rng, Session, Uuid, describe, seed};

use crate::books::{Books, Event, Usage, code};

/// A wait of any length is an error.
const IMPATIENT: &str = "set lock_timeout = '2s'";

#[test]
fn sixty_four_sessions_of_one_tenant_do_not_wait_for_each_other() {
    const SESSIONS: usize = 64;
    const EACH: usize = 5;
    let books = Books::new();
    let all_have_recorded = Barrier::new(SESSIONS);
    for round in 0..3 {
        thread::scope(|scope| {
            for n in 0..SESSIONS {
                let (mut service, books) = (books.service(), &books);
                let all_have_recorded = &all_have_recorded;
                scope.spawn(move || {
                    service.run(IMPATIENT);
                    service.run("begin");
                    for i in 0..EACH {
                        let key = format!("{round} {n} {i}");
                        service.record(&Event::of(books, &key)).expect("no wait");
                    }
                    // Nobody has committed before everybody has recorded.
                    all_have_recorded.wait();
                    service.run("commit");
                });
            }
        });
    }
    let mut owner = books.database.superuser();
    let events: i64 = owner.value("select sum(request_count)::bigint from usage_totals");
    assert_eq!(events, (3 * SESSIONS * EACH) as i64);
    for table in ["usage_days", "usage_totals", "usage_months"] {
        // Rows are used again: there are as many as there were writers at once.
        let slots: i64 = owner.value(&format!("select count(*) from {table}"));
        assert_eq!(slots, SESSIONS as i64, "{table}");
    }
    books.agree();
}

#[test]
fn sessions_one_after_another_share_one_row() {
    let books = Books::new();
    for n in 0..30 {
        let key = format!("k{n}");
        books.service().record(&Event::of(&books, &key)).unwrap();
    }
    let mut owner = books.database.superuser();
    assert_eq!(owner.value::<i64>("select count(*) from usage_days"), 1);
    assert_eq!(owner.value::<i64>("select count(*) from usage_totals"), 1);
    assert_eq!(owner.value::<i64>("select count(*) from usage_months"), 1);
    books.agree();
}

/// Versions that a transaction leaves behind cannot be cleared away before it ends.
#[test]
fn the_last_event_of_a_long_transaction_is_recorded_as_fast_as_the_first() {
    let books = Books::new();
    let mut service = books.service();
    service.run("begin");
    let mut blocks = |round: usize| -> i64 {
        let of = Event::of(&books, "");
        let sql = format!(
            "explain (analyze, buffers, timing off) \
             select record_usage('{}', '{}', 'gpt-4o', '{{}}', '{round} ' || n) from generate_series(1, 500) n",
            of.tenant,
            books.user()
        );
        let plan: Vec<String> = service.values(&sql);
        let of_plan = plan.iter().find(|line| line.contains("Buffers: ")).expect("blocks");
        let hit = of_plan.split("hit=").nth(1).and_then(|rest| rest.split(' ').next());
        hit.and_then(|hit| hit.parse().ok()).expect("a number")
    };
    let all: Vec<i64> = (0..8).map(&mut blocks).collect();
    assert!(all[7] < all[1] * 2, "{all:?}");
    service.run("commit");
    books.agree();
}

#[test]
fn transactions_that_record_in_opposite_orders_do_not_meet() {
    let books = Books::new();
    let users: Vec<(Uuid, Uuid)> =
        books.tenants.iter().flat_map(|t| t.users.iter().map(|u| (t.id, *u))).collect();
    let record = |client: &mut Client, name: &str, n: usize, (tenant, user): (Uuid, Uuid)| {
        let key = format!("{name} {n}");
        let event = Event { tenant, user: Some(user), ..Event::of(&books, &key) };
        client.record(&event).unwrap_or_else(|error| panic!("{name}: {}", describe(&error)));
    };
    // The rows are there, or they are not.
    for round in 0..2 {
        let (mut one, mut two, mut three) = (books.service(), books.service(), books.service());
        for client in [&mut one, &mut two, &mut three] {
            client.run(IMPATIENT);
            client.run("begin");
        }
        for n in 0..users.len() {
            record(&mut one, &format!("one{round}"), n, users[n]);
            record(&mut two, &format!("two{round}"), n, users[users.len() - 1 - n]);
            record(&mut three, &format!("three{round}"), n, users[(n * 4 + 2) % users.len()]);
        }
        for client in [&mut two, &mut one, &mut three] {
            client.run("commit");
        }
    }
    books.agree();
}

#[test]
fn of_many_who_bring_one_event_one_records_it() {
    let books = Books::new();
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let start = Barrier::new(8);
        let applied: Vec<usize> = thread::scope(|scope| {
            let sessions: Vec<_> = (0..8)
                .map(|_| {
                    let (mut service, books, start) = (books.service(), &books, &start);
                    scope.spawn(move || {
                        service.run(&format!("set default_transaction_isolation = '{isolation}'"));
                        start.wait();
                        let mut applied = 0;
                        for n in 0..20 {
                            let key = format!("{isolation} {n}");
                            loop {
                                match service.record(&Event::of(books, &key)) {
                                    Ok(answer) => {
                                        applied += usize::from(answer.applied);
                                        break;
                                    }
                                    // Who has a snapshot of his own begins anew, as ever.
                                    Err(error) => assert!(
                                        isolation != "read committed" && code(&error) == "40001",
                                        "{}",
                                        describe(&error)
                                    ),
                                }
                            }
                        }
                        applied
                    })
                })
                .collect();
            sessions.into_iter().map(|session| session.join().expect("no panic")).collect()
        });
        assert_eq!(applied.iter().sum::<usize>(), 20, "{isolation}: {applied:?}");
    }
    books.agree();
}

#[test]
fn a_duplicate_waits_for_the_first_and_takes_its_place_if_that_is_rolled_back() {
    let books = Books::new();
    for end in ["commit", "rollback"] {
        let (mut first, mut second) = (books.service(), books.service());
        first.run("begin");
        assert!(first.record(&Event::of(&books, end)).unwrap().applied);
        let applied = thread::scope(|scope| {
            let waiting = scope.spawn(|| second.record(&Event::of(&books, end)).unwrap().applied);
            pg_conversation_tests::wait_until(
                &mut books.database.superuser(),
                "select exists (select from pg_stat_activity where datname = current_database() \
                 and wait_event_type = 'Lock')",
            );
            first.run(end);
            waiting.join().expect("no panic")
        });
        assert_eq!(applied, end == "rollback");
    }
    books.agree();
}

#[test]
fn a_transaction_with_a_snapshot_of_its_own_adds_to_what_others_have_written_since() {
    let books = Books::new();
    let mut other = books.service();
    for round in 0..10 {
        let isolation = ["repeatable read", "serializable"][round % 2];
        let mut service = books.service();
        service.run(&format!("begin isolation level {isolation}"));
        let _: i64 = service.value("select count(*) from tenants");
        let isolation = format!("{round} {isolation}");
        other.record(&Event::of(&books, &format!("{isolation} before"))).unwrap();
        for n in 0..4 {
            other.record(&Event::of(&books, &format!("{isolation} other {n}"))).unwrap();
            // A key that was used since is a duplicate, too.
            let key = format!("{isolation} other {n}");
            assert!(!service.record(&Event::of(&books, &key)).unwrap().applied);
            service.record(&Event::of(&books, &format!("{isolation} {n}"))).unwrap();
        }
        service.run("commit");
    }
    let rows: i64 = other.value("select count(*) from usage_totals");
    let list: Vec<String> =
        other.values("select format('%s %s', slot, request_count) from usage_totals order by slot");
    assert!(rows <= 2, "{rows} rows of two sessions: {list:?}");
    books.agree();
}

#[test]
fn serializable_transactions_do_not_meet_in_the_sums() {
    let books = Books::new();
    let all_have_recorded = Barrier::new(16);
    thread::scope(|scope| {
        for n in 0..16 {
            let (mut service, books) = (books.service(), &books);
            let all_have_recorded = &all_have_recorded;
            scope.spawn(move || {
                service.run(IMPATIENT);
                service.run("begin isolation level serializable");
                for i in 0..5 {
                    let key = format!("{n} {i}");
                    let user = Some(books.tenants[0].users[i % 3]);
                    service
                        .record(&Event { user, ..Event::of(books, &key) })
                        .unwrap_or_else(|error| panic!("{}", describe(&error)));
                }
                all_have_recorded.wait();
                service.run("commit");
            });
        }
    });
    assert_eq!(
        books
            .database
            .superuser()
            .value::<i64>("select sum(request_count)::bigint from usage_days"),
        80
    );
    books.agree();
}

#[test]
fn a_prepared_transaction_holds_up_nobody() {
    let books = Books::new();
    let (mut service, mut other) = (books.service(), books.service());
    for client in [&mut service, &mut other] {
        client.run(IMPATIENT);
    }
    let name = format!("usage-{}", books.database.name);
    service.run("begin");
    service.record(&Event::of(&books, "prepared")).unwrap();
    service.run(&format!("prepare transaction '{name}'"));
    service.record(&Event::of(&books, "after")).unwrap();
    other.record(&Event::of(&books, "other")).unwrap();
    service.run("begin");
    service.record(&Event::of(&books, "later")).unwrap();
    service.run("commit");
    service.run(&format!("commit prepared '{name}'"));
    assert_eq!(service.value::<i64>("select sum(request_count)::bigint from usage_totals"), 4);
    books.agree();
}

/// Whoever keeps to a snapshot of his own reads sums that are those of the events in it.
#[test]
fn in_a_transaction_with_a_snapshot_sums_are_those_of_the_events_it_sees() {
    let books = Books::new();
    let mut other = books.service();
    let mut service = books.service();
    let differences =
        format!("select count(*) from verify_usage('{}', '-infinity', 'infinity')", books.tenant());
    for round in 0..6 {
        let isolation = ["repeatable read", "serializable"][round % 2];
        other.record(&Event::of(&books, &format!("{round} before"))).unwrap();
        service.record(&Event::of(&books, &format!("{round} own"))).unwrap();
        service.run(&format!("begin isolation level {isolation}"));
        assert_eq!(service.value::<i64>(&differences), 0);
        for n in 0..3 {
            other.record(&Event::of(&books, &format!("{round} other {n}"))).unwrap();
            service.record(&Event::of(&books, &format!("{round} mine {n}"))).unwrap();
            service.run("savepoint s");
            service.record(&Event::of(&books, &format!("{round} undone {n}"))).unwrap();
            assert_eq!(service.value::<i64>(&differences), 0, "{isolation}");
            service.run("rollback to s");
            assert_eq!(service.value::<i64>(&differences), 0, "{isolation}");
            let requests = "select (select count(*) from usage_events), request_count::bigint from usage_by_month";
            let row = service.query_one(requests, &[]).expect("a month");
            assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1), "{isolation}");
        }
        service.run("commit");
        books.agree();
    }
    let rows: i64 = other.value("select count(*) from usage_months");
    assert!(rows <= 4, "{rows} rows of two sessions");
    // Of its own, too: what was prepared, and committed by somebody else since.
    let name = format!("own {}", books.database.name);
    service.run("begin");
    service.record(&Event::of(&books, "prepared")).unwrap();
    service.run(&format!("prepare transaction '{name}'; begin isolation level repeatable read"));
    assert_eq!(service.value::<i64>(&differences), 0);
    other.run(&format!("commit prepared '{name}'"));
    service.record(&Event::of(&books, "beside")).unwrap();
    assert_eq!(service.value::<i64>(&differences), 0);
    service.run("commit");
    books.agree();
}

#[test]
fn the_same_key_again_writes_nothing() {
    let books = Books::new();
    let mut service = books.service();
    service.record(&Event::of(&books, "k")).unwrap();
    let size = "select pg_total_relation_size('usage_events')";
    let before: i64 = service.value(size);
    for isolation in ["read committed", "repeatable read", "serializable"] {
        service.run(&format!("begin isolation level {isolation}"));
        for _ in 0..200 {
            assert!(!service.record(&Event::of(&books, "k")).unwrap().applied);
        }
        let wrote: bool = service.value("select pg_current_xact_id_if_assigned() is not null");
        assert!(!wrote, "{isolation}");
        service.run("commit");
    }
    assert_eq!(service.value::<i64>(size), before);
}

/// The ledger obeys, too: rows go into it without a statement only while nothing of the DBA's is on it.
#[test]
fn an_event_is_refused_by_what_a_dba_has_put_on_the_ledger() {
    let changes = [
        ("alter table usage_events add constraint few check (prompt_tokens < 100)", "23514"),
        ("alter table usage_events alter column user_id set not null", "23502"),
        ("alter table usage_events alter column reason set not null", "23502"),
        ("alter table usage_events add column note text not null", "23502"),
        ("create unique index on usage_events (tenant_id, date)", "23505"),
        ("alter table usage_events add exclude using btree (tenant_id with =)", "23P01"),
        (
            "alter table usage_events drop constraint usage_events_kind_is_known, \
             add constraint usage_events_kind_is_known check (prompt_tokens < 100)",
            "23514",
        ),
        ("alter table usage_events alter column prompt_tokens type numeric(2, 0)", "22003"),
        ("alter table usage_events alter column model type varchar(2)", "22001"),
        (
            "create domain why as text check (value is not null); \
             alter table usage_events alter column reason type why",
            "23514",
        ),
        (
            "create trigger frozen before insert on usage_events for each row \
             execute function refuse_change('closed')",
            "23000",
        ),
        ("create publication counted for table usage_totals where (request_count > 0)", "42P10"),
        (
            "create function refuse() returns trigger language plpgsql as \
             'begin raise ''refused'' using errcode = ''PX001''; end'; \
             create trigger refuse before insert on usage_events for each row execute function refuse()",
            "PX001",
        ),
        (
            "create function refuse() returns trigger language plpgsql as \
             'begin raise ''refused'' using errcode = ''PX001''; end'; \
             create constraint trigger refuse after insert on usage_events \
             for each row execute function refuse()",
            "PX001",
        ),
        ("create rule refuse as on insert to usage_events do instead nothing", "0A000"),
    ];
    for (change, expected) in changes {
        let books = Books::new();
        let mut early = books.service();
        early.record(&Event::of(&books, "early")).unwrap();
        // Some changes are possible only while it is empty.
        let empty = "truncate usage_events, usage_days, usage_totals, usage_months";
        books.database.superuser().run(&format!("{empty}; {change}"));
        let refused = (0..2).find_map(|n| {
            let key = format!("late {n}");
            early.record(&Event { user: None, ..Event::of(&books, &key) }).err()
        });
        let error = refused.expect(change);
        assert_eq!(code(&error), expected, "{change}: {}", describe(&error));
        books.agree();
    }
    // What may be there is written.
    let books = Books::new();
    let mut early = books.service();
    early.record(&Event::of(&books, "early")).unwrap();
    books.database.superuser().run(
        "alter table usage_events alter column reason set default 'none'; alter table usage_events add column note text default 'x'; \
         create table notes (key text); \
         create function note() returns trigger language plpgsql as \
         'begin new.note := ''y''; insert into notes values (new.idempotency_key); return new; end'; \
         create trigger note before insert on usage_events for each row execute function note()",
    );
    early.record(&Event::of(&books, "late")).unwrap();
    let mut superuser = books.database.superuser();
    let notes: Vec<String> = superuser.values("select note from usage_events order by recorded_at");
    assert_eq!(notes, ["x", "y"]);
    let reasons: i64 = superuser.value("select count(*) from usage_events where reason = 'none'");
    assert_eq!(reasons, 1);
    assert_eq!(superuser.value::<i64>("select count(*) from notes"), 1);
    books.agree();
}

/// What a DBA puts on a table is obeyed; the sums are then kept by statements.
#[test]
fn sums_are_exact_whatever_a_dba_has_put_on_their_tables() {
    let changes = [
        "create function noted() returns trigger language plpgsql as \
         'begin insert into notes values (new.slot); return new; end'; create table notes (slot int); \
         create trigger noted before update on usage_days for each row execute function noted(); \
         create trigger noted before update on usage_totals for each row execute function noted(); \
         create trigger noted before update on usage_months for each row execute function noted()",
        "create index on usage_days (cost); create index on usage_totals (prompt_tokens, cost)",
        "create index on usage_totals using brin (request_count)",
        "create index on usage_months (cost); alter table usage_months set (fillfactor = 100)",
        "alter table usage_months add constraint few check (request_count < 1000)",
        "alter table usage_months drop constraint usage_months_pkey, add primary key (slot, month, tenant_id)",
        "alter table usage_totals add constraint few check (request_count < 1000)",
        "alter table usage_days add column note text default 'x'",
        "alter table usage_totals drop constraint usage_totals_pkey, add primary key (slot, date, tenant_id)",
        "alter table usage_days set (fillfactor = 100); alter table usage_totals set (fillfactor = 100)",
        "drop index idx_model_prices_usage_type",
    ];
    for change in changes {
        let books = Books::new();
        let mut early = books.service();
        early.record(&Event::of(&books, "early")).unwrap();
        books.database.superuser().run(change);
        thread::scope(|scope| {
            for n in 0..6 {
                let (mut service, books) = (books.service(), &books);
                scope.spawn(move || {
                    for i in 0..20 {
                        let key = format!("{n} {i}");
                        service
                            .record(&Event::of(books, &key))
                            .unwrap_or_else(|error| panic!("{change}: {}", describe(&error)));
                    }
                });
            }
        });
        early.record(&Event::of(&books, "late")).unwrap();
        let sum: i64 = early.value("select sum(request_count)::bigint from usage_totals");
        assert_eq!(sum, 122, "{change}");
        if change.contains("notes") {
            let notes: i64 = books.database.superuser().value("select count(*) from notes");
            assert!(notes > 100, "{notes}");
        }
        let mut owner = books.database.superuser();
        owner.run("set enable_seqscan = off");
        let found: i64 =
            owner.value("select sum(request_count)::bigint from usage_totals where cost > 0");
        assert_eq!(found, 122, "{change}: by an index");
        books.agree();
    }
}

#[test]
fn the_sums_are_those_of_the_ledger_whatever_happens() {
    let books = Books::new();
    let steps = 120;
    thread::scope(|scope| {
        for n in 0..8 {
            let books = &books;
            scope.spawn(move || {
                let mut rng = Rng::new(100 + n);
                let mut service = books.service();
                for step in 0..steps {
                    random_step(books, &mut service, &mut rng, step);
                }
            });
        }
    });
    seed();
    let mut owner = books.database.superuser();
    let kinds: Vec<String> = owner.values(
        "select format('%s %s', kind, count(*)) from usage_events group by kind order by 1",
    );
    println!("{kinds:?}");
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    books.agree();
    owner.run("select fold_usage(100000)");
    books.agree();
}

/// One transaction of a few calls, that may fail or be rolled back.
fn random_step(books: &Books, service: &mut Client, rng: &mut Rng, step: usize) {
    let isolation = ["read committed", "read committed", "repeatable read", "serializable"];
    service.run(&format!("begin isolation level {}", rng.pick(&isolation)));
    let mut parts = 0;
    for _ in 0..rng.below(6) + 1 {
        let tenant = rng.pick(&books.tenants);
        let key = format!("k{}", rng.below(400));
        let day = format!("2026-0{}-{:02} 12:00+00", rng.below(3) + 1, rng.below(28) + 1);
        let models = ["gpt-4o", "gpt-4o-mini", "llama", ""];
        let usages =
            [r#"{"prompt_tokens": 7}"#, r#"{"input_tokens": 3, "images": 2, "x": 1}"#, "{}"];
        let user = rng.pick(&tenant.users);
        let done = match rng.below(20) {
            0..11 => {
                let event = Event {
                    tenant: tenant.id,
                    user: (rng.below(4) > 0).then_some(*user),
                    model: Some(*rng.pick(&models)),
                    usage: usages[rng.below(usages.len())],
                    key: &key,
                    at: (rng.below(3) > 0).then_some(&day),
                };
                service.record(&event).map(|_| ())
            }
            11..13 => service.void(tenant.id, &key).map(|_| ()),
            13 => service.batch_execute(&format!(
                "select increment_usage_metrics('{}', '{user}', '2026-02-03', 5, 6, 0.7)",
                tenant.id
            )),
            14 => service.batch_execute(&format!(
                "update model_prices set unit_price = {} / 1000.0 where usage_type = 'images'",
                rng.below(50)
            )),
            15 => service.batch_execute(
                "select count(*) from recalculate_costs('-infinity', 'infinity', false)",
            ),
            16 => service.batch_execute("select fold_usage(3)"),
            17 => books.database.superuser().batch_execute(&format!(
                "set lock_timeout = '200ms'; delete from users where id = '{user}'; \
                 insert into users (id, tenant_id) values ('{user}', '{}')",
                tenant.id
            )),
            _ if parts > 0 && rng.below(2) == 0 => {
                parts -= 1;
                service.batch_execute("rollback to savepoint s; release savepoint s")
            }
            _ => {
                parts += 1;
                service.batch_execute("savepoint s")
            }
        };
        if let Err(error) = done {
            let refused = ["23505", "P0002", "40001", "40P01", "55P03"];
            assert!(refused.contains(&code(&error)), "step {step}: {}", describe(&error));
            service.run("rollback");
            return;
        }
    }
    let end = if rng.below(6) == 0 { "rollback" } else { "commit" };
    if let Err(error) = service.batch_execute(end) {
        assert_eq!(code(&error), "40001", "{}", describe(&error));
    }
}
