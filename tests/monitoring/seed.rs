//! Test data: how much of what, made anew each time, among nobody's rows, and taken away whole.

use pg_conversation_tests::{Client, Database, NoTls, Server, Session, Uuid, oldest, versions};

const EXPECTED: [(&str, i64); 6] = [
    ("tenants", 3),
    ("users", 6),
    ("conversations", 7),
    ("messages", 14),
    ("feedback", 7),
    ("usage_metrics", 11),
];

fn summary(client: &mut Client, call: &str) -> Vec<(String, i64)> {
    let rows = client.query(&format!("select what, rows from {call}"), &[]);
    let rows = rows.unwrap_or_else(|error| panic!("{}", pg_conversation_tests::describe(&error)));
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn expected() -> Vec<(String, i64)> {
    EXPECTED.map(|(what, rows)| (what.to_string(), rows)).into()
}

/// Rows of every table and matview; what says who runs the database is left out.
fn counts(client: &mut Client) -> Vec<(String, i64)> {
    let tables: Vec<String> = client.values(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'm') \
         and relname <> all ('{schema_version,access_profiles,maintenance_runs}') order by 1",
    );
    tables
        .into_iter()
        .map(|table| {
            let rows = client.value(&format!("select count(*) from {table}"));
            (table, rows)
        })
        .collect()
}

fn database(server: &Server) -> (Database<'_>, Client) {
    let database = server.database();
    let superuser = database.superuser();
    (database, superuser)
}

#[test]
fn seeding_says_what_there_is_and_again_makes_the_same() {
    for version in versions() {
        let (_database, mut owner) = database(Server::shared(version));
        let before = counts(&mut owner);
        assert_eq!(summary(&mut owner, "seed_test_data()"), expected());
        let seeded = counts(&mut owner);
        for (table, rows) in EXPECTED {
            // The default tenant is nobody's test data.
            let of_default = i64::from(table == "tenants");
            let found: i64 = owner.value(&format!("select count(*) from {table}"));
            assert_eq!(found, rows + of_default, "{table}");
        }
        owner.run(
            "update conversations set title = 'changed'; update users set name = 'changed'; \
             delete from messages where id = test_id(4, 2); \
             select settle_tokens(reservation_id, 5) from reserve_tokens(5, tenant_id => test_id(1, 1)); \
             select check_rate_limit(1, test_id(1, 1)); \
             select void_usage(test_id(1, 1), 'test:1', 'tried')",
        );
        for table in ["token_reservations", "token_windows"] {
            assert_eq!(owner.value::<i64>(&format!("select count(*) from {table}")), 1, "{table}");
        }
        assert_eq!(summary(&mut owner, "seed_test_data()"), expected());
        assert_eq!(counts(&mut owner), seeded);
        assert_eq!(
            owner.value::<i64>("select count(*) from conversations where title = 'changed'"),
            0
        );

        assert_eq!(summary(&mut owner, "remove_test_data()"), expected());
        assert_eq!(counts(&mut owner), before);
        let none: Vec<_> = expected().into_iter().map(|(what, _)| (what, 0)).collect();
        assert_eq!(summary(&mut owner, "remove_test_data()"), none);
        assert_eq!(summary(&mut owner, "seed_test_data()"), expected());
    }
}

#[test]
fn it_is_as_what_clients_make() {
    let (database, mut owner) = database(Server::shared(oldest()));
    owner.run("select seed_test_data()");
    // Numbers without gaps, sums that agree with the ledger, text that was put together from its chunks.
    assert!(owner.value::<bool>("select bool_and(ok) from doctor()"));
    assert_eq!(
        owner.value::<i64>(
            "select count(*) from tenants t cross join verify_usage(t.id, current_date - 30, current_date + 1)"
        ),
        0
    );
    let content: String = owner.value("select content from messages where id = test_id(4, 6)");
    assert_eq!(content, "Both came within a minute of a door being opened.");
    assert_eq!(
        owner.value::<i64>("select count(*) from message_chunks where message_id = test_id(4, 6)"),
        11
    );
    assert!(owner.value::<bool>(
        "select bool_and(status = 'completed') and count(*) filter (where author_id is not null) = 7 from messages"
    ));
    // What the message used is on the day that it ended; other usage is late, and comes once.
    assert!(owner.value::<bool>(
        "select prompt_tokens = 2210 and request_count = 1 and estimated_cost > 0 from usage_metrics \
         where user_id = test_id(2, 2) order by date desc limit 1"
    ));
    assert_eq!(
        owner.value::<i64>(
            "select count(*) from usage_events where recorded_at - occurred_at > '2 days'"
        ),
        5
    );
    assert_eq!(owner.value::<i64>("select count(*) from usage_events"), 11);
    assert_eq!(
        owner.value::<i64>("select count(*) from usage_events where unpriced = '{batch_items}'"),
        1
    );
    assert_eq!(
        owner.value::<i64>(
            "select total_feedback from message_feedback_summary where message_id = test_id(4, 6)"
        ),
        2
    );

    // Everybody sees his own: Alan is in Grace's conversation, and reads what Ada shows to the tenant.
    let seen = |person: i32| -> Vec<String> {
        let id: Uuid = database.superuser().value(&format!("select test_id(2, {person})"));
        database.member(id).values("select title from conversations order by id")
    };
    assert_eq!(seen(3), ["Release notes 4.2", "Incident on line 3", "Naming the new arm"]);
    assert_eq!(seen(5), ["A letter of complaint"]);
    assert_eq!(seen(6), ["Beds by ward"]);
    let mut ada = database.member(owner.value("select test_id(2, 1)"));
    assert_eq!(ada.value::<i64>("select count(*) from conversations"), 4);
    assert_eq!(ada.value::<i64>("select count(*) from usage_metrics"), 7);
}

#[test]
fn who_was_signed_in_still_is() {
    let (_database, mut owner) = database(Server::shared(oldest()));
    let settings = "select concat(current_setting('pg_conversation.user_id'), '|', \
                    current_setting('request.jwt.claims', true), '|', current_setting('search_path'))";
    owner.run(
        "set request.jwt.claims = '{\"sub\": \"5eed0000-0000-4000-8000-000000000000\"}'; \
         set pg_conversation.user_id = '5eed0000-0000-4000-8000-000000000001'",
    );
    let before: String = owner.value(settings);
    owner.run("begin; select seed_test_data()");
    assert_eq!(owner.value::<String>(settings), before);
    owner.run("commit");
    assert_eq!(owner.value::<String>(settings), before);
    assert_eq!(owner.value::<i64>("select count(*) from users"), 6);
    assert_eq!(owner.value::<i64>("select count(distinct user_id) from feedback"), 5);
}

#[test]
fn other_data_stays_alone() {
    let server = Server::shared(oldest());
    let (database, mut owner) = database(server);
    let tenant = "'11111111-1111-4111-8111-111111111111'";
    let tenants = format!("insert into tenants (id, name, slug) values ({tenant}, 'x', 'x')");
    let user = "insert into users (id) values ('22222222-2222-4222-8222-222222222222')";
    for (sql, table) in [
        (tenants.clone(), "tenants"),
        (user.to_string(), "users"),
        ("insert into conversations (title) values ('x')".into(), "conversations"),
        (
            "with c as (insert into conversations (title) values ('x') returning id) \
             insert into messages (conversation_id, role, content) select id, 'user', 'x' from c"
                .into(),
            "conversations",
        ),
        (
            "select record_usage('00000000-0000-7000-8000-000000000001', null, 'm', '{\"prompt_tokens\": 1}', 'k')"
                .into(),
            "usage_events",
        ),
    ] {
        for seeded in [false, true] {
            owner.run("begin");
            if seeded {
                owner.run("select seed_test_data()");
            }
            owner.run(&sql);
            let before = counts(&mut owner);
            owner.run("savepoint s");
            let (code, said) = owner.error("select seed_test_data()");
            assert_eq!((code.as_str(), said), ("55000", format!("table \"{table}\" has rows that are not test data")));
            owner.run("rollback to s");
            assert_eq!(counts(&mut owner), before, "{sql}");
            if seeded {
                // To take away what is its own needs no empty database.
                owner.run("select remove_test_data()");
                assert_eq!(owner.value::<i64>("select sum(rows)::bigint from remove_test_data()"), 0);
            }
            owner.run("rollback");
        }
    }
    drop(database);
}

#[test]
fn nobodys_row_goes_along_with_what_it_hangs_on() {
    let (_database, mut owner) = database(Server::shared(oldest()));
    owner.run("select seed_test_data()");
    for (sql, table) in [
        ("insert into users (id, tenant_id) values (new_id(), test_id(1, 1))", "users"),
        ("insert into conversations (user_id) values (test_id(2, 1))", "conversations"),
        ("select add_message(test_id(3, 1), 'user', 'x')", "messages"),
        (
            "select record_usage(test_id(1, 1), null, 'm', '{\"prompt_tokens\": 1}', 'of-somebody')",
            "usage_events",
        ),
    ] {
        for call in ["select seed_test_data()", "select remove_test_data()"] {
            owner.run("begin");
            owner.run(sql);
            owner.run("savepoint s");
            let (code, said) = owner.error(call);
            assert_eq!(
                (code.as_str(), said),
                ("55000", format!("table \"{table}\" has rows that are not test data"))
            );
            owner.run("rollback");
        }
    }
    assert_eq!(summary(&mut owner, "remove_test_data()"), expected());
}

#[test]
fn a_row_that_is_added_meanwhile_is_seen() {
    let (database, mut owner) = database(Server::shared(oldest()));
    owner.run("select seed_test_data()");
    let mut other = database.superuser();
    other.run("begin; select add_message(test_id(3, 1), 'user', 'x')");
    std::thread::scope(|scope| {
        let seeding = scope.spawn(move || owner.error("select seed_test_data()"));
        pg_conversation_tests::wait_until(
            &mut database.superuser(),
            "select exists (select from pg_stat_activity where datname = current_database() \
             and wait_event_type = 'Lock')",
        );
        other.run("commit");
        assert_eq!(seeding.join().expect("it ends").0, "55000");
    });
    let mut owner = database.superuser();
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 15);
    owner.run("begin isolation level repeatable read");
    assert_eq!(owner.error("select seed_test_data()").0, "25001");
}

#[test]
fn two_at_once_seed_one_after_the_other() {
    let (database, mut owner) = database(Server::shared(oldest()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(summary(&mut database.superuser(), "seed_test_data()"), expected())
            });
        }
    });
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 14);
}

#[test]
fn production_is_refused_and_only_a_superuser_says_what_is_none() {
    let server = Server::shared(oldest());
    server.role("seed_owner");
    let empty = server.empty_database();
    let mut superuser = empty.superuser();
    superuser.run(&format!(
        "grant create on database {0} to seed_owner; grant all on schema public to seed_owner",
        empty.name
    ));
    let mut owner = empty.connect("seed_owner");
    owner.run("create extension pg_conversation");
    superuser.run(&format!("alter database {} set pg_conversation.production = on", empty.name));

    let mut owner = empty.connect("seed_owner");
    // Before the library is loaded, nobody knows the setting yet.
    let _ = owner.batch_execute("set pg_conversation.production = off");
    let (code, said) = owner.error("select seed_test_data()");
    assert_eq!((code.as_str(), said.as_str()), ("55000", "this is a production database"));
    assert_eq!(owner.error("set pg_conversation.production = off").0, "42501");
    assert_eq!(owner.error("select seed_test_data()").0, "55000");
    let mut config = server.config(&empty.name, "seed_owner");
    let mut owner =
        config.options("-c pg_conversation.production=off").connect(NoTls).expect("a session");
    assert_eq!(owner.error("select seed_test_data()").0, "55000");
    // What was seeded before can still go.
    assert_eq!(summary(&mut owner, "remove_test_data()").len(), 6);
    let mut superuser = empty.superuser();
    assert_eq!(superuser.error("select seed_test_data()").0, "55000");
    superuser.run("set pg_conversation.production = off; select seed_test_data()");

    superuser.run(&format!("alter database {} reset pg_conversation.production", empty.name));
    let mut owner = empty.connect("seed_owner");
    assert_eq!(summary(&mut owner, "seed_test_data()"), expected());
}

#[test]
fn it_is_for_the_owner_of_the_tables() {
    let server = Server::shared(oldest());
    let (database, mut owner) = database(server);
    server.role("backend");
    owner.run("alter role backend bypassrls; select grant_access('backend', 'service')");
    owner.run("select seed_test_data()");
    for role in ["member", "backend"] {
        let mut client = database.connect(role);
        for call in [
            "seed_test_data()",
            "remove_test_data()",
            "test_data(true)",
            "test_data(false)",
            "make_test_data()",
        ] {
            assert_eq!(client.error(&format!("select * from {call}")).0, "42501", "{role}: {call}");
        }
    }
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 14);
}

/// Whoever owns the tables may have put code on them: a superuser who seeds does not run it as one.
#[test]
fn a_superuser_who_seeds_runs_nothing_as_a_superuser() {
    let server = Server::shared(oldest());
    server.role("seed_owner");
    let empty = server.empty_database();
    let mut superuser = empty.superuser();
    superuser.run(&format!(
        "grant create on database {0} to seed_owner; grant all on schema public to seed_owner",
        empty.name
    ));
    let mut owner = empty.connect("seed_owner");
    owner.run(
        "create extension pg_conversation; create table ran_as (role text, super boolean); \
         create function note() returns trigger language plpgsql as $$ begin \
             insert into public.ran_as select current_user, rolsuper from pg_roles where rolname = current_user; \
             return new; end $$; \
         create trigger note before insert on tenants for each row execute function note(); \
         create trigger note before insert on feedback for each row execute function note()",
    );
    superuser.run("select seed_test_data()");
    assert_eq!(owner.values::<String>("select distinct role from ran_as"), ["seed_owner"]);
    assert!(owner.value::<bool>("select count(*) = 10 and not bool_or(super) from ran_as"));
}
