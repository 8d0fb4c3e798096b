//! Who may do what with usage.

use pg_conversation_tests::{Client, Server, Session, Uuid, oldest, wait_until};

use crate::books::{Books, Event, Usage};

fn calls(books: &Books) -> Vec<String> {
    let (tenant, user) = (books.tenant(), books.user());
    vec![
        format!(
            "select record_usage('{tenant}', '{user}', 'm', '{{\"prompt_tokens\": 1}}', 'mine')"
        ),
        format!("select void_usage('{tenant}', 'k', 'r')"),
        format!("select increment_usage_metrics('{tenant}', '{user}', current_date, 1, 1, 1)"),
        "select fold_usage()".into(),
        "select recalculate_costs(current_date, current_date)".into(),
        format!("select verify_usage('{tenant}', current_date, current_date)"),
    ]
}

#[test]
fn members_read_their_own_usage_and_write_none() {
    let books = Books::new();
    let mut service = books.service();
    for (n, tenant) in books.tenants.iter().enumerate() {
        for (i, user) in tenant.users.iter().enumerate() {
            let key = format!("{n} {i}");
            let event = Event { tenant: tenant.id, user: Some(*user), ..Event::of(&books, &key) };
            service.record(&event).unwrap();
        }
        let key = format!("{n} nobody");
        service
            .record(&Event { tenant: tenant.id, user: None, ..Event::of(&books, &key) })
            .unwrap();
    }
    let admin = books.tenants[0].users[2];
    books
        .database
        .superuser()
        .run(&format!("update users set role = 'admin' where id = '{admin}'"));
    let mut member = books.database.member(books.user());
    let mut stranger = books.database.member(Uuid::new_v4());
    let mut admin = books.database.member(admin);
    let count = |client: &mut Client, table: &str| {
        client.value::<i64>(&format!("select count(*) from {table}"))
    };
    let relations = [
        // What the member, the admin and a stranger see.
        ("usage_events", [1, 4, 0]),
        ("usage_days", [1, 4, 0]),
        ("usage_totals", [0, 1, 0]),
        ("usage_months", [0, 1, 0]),
        ("usage_metrics", [1, 4, 0]),
        ("usage_by_month", [0, 1, 0]),
        ("current_day_usage", [1, 4, 0]),
    ];
    for (relation, expected) in relations {
        let found = [&mut member, &mut admin, &mut stranger].map(|client| count(client, relation));
        assert_eq!(found, expected, "{relation}");
        for sql in [
            format!("delete from {relation}"),
            format!("truncate {relation}"),
            format!("update {relation} set tenant_id = tenant_id"),
            format!("insert into {relation} (tenant_id) values ('{}')", books.tenant()),
            format!("begin; lock table {relation} in row exclusive mode"),
        ] {
            let (found, _) = member.error(&sql);
            member.run("rollback");
            assert!(["42501", "55000", "42809"].contains(&found.as_str()), "{sql}: {found}");
        }
    }
    for table in ["model_prices", "monthly_usage_summary"] {
        assert_eq!(member.error(&format!("select * from {table}")).0, "42501");
    }
    for client in [&mut member, &mut admin, &mut stranger] {
        for sql in calls(&books) {
            assert_eq!(client.error(&sql).0, "42501", "{sql}");
        }
    }
    books.agree();
}

#[test]
fn who_is_bound_by_policies_records_nothing_whatever_he_was_granted() {
    let books = Books::new();
    books.database.superuser().run(
        "grant all on usage_events, usage_days, usage_totals, usage_months, model_prices to member",
    );
    let mut member = books.database.member(books.user());
    for sql in calls(&books) {
        assert_eq!(member.error(&sql).0, "42501", "{sql}");
    }
}

#[test]
fn events_come_by_functions_and_are_never_changed() {
    let books = Books::new();
    let mut service = books.service();
    service.record(&Event::of(&books, "k")).unwrap();
    let insert = format!(
        "insert into usage_events (tenant_id, user_id, model, usage, idempotency_key, occurred_at) \
         values ('{}', null, '', '{{}}', 'x', now())",
        books.tenant()
    );
    assert_eq!(service.error(&insert).0, "42501");
    for sql in
        ["update usage_events set cost = 0", "delete from usage_events", "truncate usage_events"]
    {
        assert_eq!(service.error(sql).0, "42501", "{sql}");
    }
    let mut owner = books.database.superuser();
    assert_eq!(owner.error("update usage_events set cost = 0").0, "23000");
    assert_eq!(service.error("update usage_totals set cost = 0").0, "42501");
    assert_eq!(service.error("delete from usage_days").0, "42501");
    books.agree();
}

#[test]
fn a_read_only_transaction_records_nothing() {
    let books = Books::new();
    let mut service = books.service();
    let mut calls = calls(&books);
    calls.truncate(4);
    calls.push("select recalculate_costs(current_date, current_date, false)".into());
    for sql in calls {
        service.run("begin read only");
        let (code, message) = service.error(&sql);
        let name = sql.trim_start_matches("select ").split('(').next().unwrap();
        assert_eq!(code, "25006", "{sql}");
        assert_eq!(message, format!("cannot execute {name}() in a read-only transaction"));
        service.run("rollback");
    }
}

#[test]
fn what_costs_would_be_is_told_where_nothing_is_written() {
    let server = Server::private(oldest(), "wal_level = replica\nwal_writer_delay = 10ms\n");
    let books = Books::on(&server);
    let mut service = books.service();
    service.record(&Event::of(&books, "k")).unwrap();
    service.run("update model_prices set unit_price = unit_price * 2");
    let dry = "select count(*) from recalculate_costs('-infinity', 'infinity')";
    service.run("begin read only");
    assert_eq!(service.value::<i64>(dry), 1);
    service.run("rollback");
    let standby = server.standby();
    let mut there = standby.connect(&books.database.name, "usage_service");
    wait_until(&mut there, "select exists (select from usage_events)");
    assert_eq!(there.value::<i64>(dry), 1);
    let drift =
        format!("select count(*) from verify_usage('{}', '-infinity', 'infinity')", books.tenant());
    assert_eq!(there.value::<i64>(&drift), 0);
    let (code, _) = there.error("select recalculate_costs('-infinity', 'infinity', false)");
    assert_eq!(code, "25006");
}

/// Whoever owns the schema may put a table of his own in the place of one of ours; nothing is written
/// to it with the rights of the tables' owner.
#[test]
fn a_table_of_somebody_else_is_not_written_to() {
    let books = Books::new();
    books.database.server.role("usage_intruder");
    for table in ["usage_events", "usage_days", "usage_totals", "usage_months", "model_prices"] {
        let mut owner = books.database.superuser();
        owner.run("begin");
        owner.run(&format!(
            "alter table {table} rename to aside; create table {table} (like aside including all); \
             alter table {table} owner to usage_intruder; \
             grant all on {table} to public; grant usage_service to postgres; set local role usage_service"
        ));
        let (found, words) = owner.error(&calls(&books)[0]);
        assert_eq!(found, "55000", "{table}: {words}");
        owner.run("rollback");
    }
}

#[test]
fn sums_of_a_tenants_days_are_read_by_the_index() {
    let books = Books::new();
    let mut owner = books.database.superuser();
    owner.run(&format!(
        "insert into usage_days select t.id, u.id, 1, 1, 1, 0, date '2026-01-01' + d, 0, 'm', 1 \
         from tenants t join users u on u.tenant_id = t.id, generate_series(0, 300) d; \
         insert into usage_days select t.id, gen_random_uuid(), 1, 1, 1, 0, date '2026-01-01' + d, 0, 'm', 1 \
         from tenants t, generate_series(0, 300) d, generate_series(1, 10); \
         insert into usage_months select t.id, 1, 1, 1, 0, date '1900-01-01' + 31 * d, 0, 1 \
         from tenants t, generate_series(0, 3000) d; \
         analyze usage_days; analyze usage_months; update users set role = 'admin' where id = '{}'",
        books.user()
    ));
    let mut sessions = [
        books.service(),
        books.database.member(books.user()),
        books.database.member(books.tenants[0].users[1]),
    ];
    for session in &mut sessions {
        let plans = [
            (
                "usage_metrics where tenant_id = '$t' and date = '2026-03-01'",
                "usage_days_pkey",
                "date =",
            ),
            (
                "usage_metrics where tenant_id = '$t' and date >= '2026-03-01' and date < '2026-03-05'",
                "usage_days_pkey",
                "date >=",
            ),
            (
                "usage_by_month where tenant_id = '$t' and month = '2026-03-01'",
                "usage_months_pkey",
                "month =",
            ),
            ("current_day_usage where tenant_id = '$t'", "usage_days_pkey", "date >="),
        ];
        for (from, index, condition) in plans {
            let sql = format!(
                "explain (costs off) select * from {}",
                from.replace("$t", &books.tenant().to_string())
            );
            let plan = session.values::<String>(&sql).join("\n");
            let by_index = index.split('|').any(|index| plan.contains(index));
            let conditions: Vec<&str> =
                plan.lines().filter(|line| line.contains("Index Cond")).collect();
            assert!(
                by_index && conditions.iter().any(|line| line.contains(condition)),
                "{from}:\n{plan}"
            );
        }
    }
}
