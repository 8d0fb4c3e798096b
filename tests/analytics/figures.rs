//! What functions say against what was counted by hand.

use pg_conversation_tests::{Rng, Server, Session, Uuid, oldest};

use crate::world::{
    DAILY_ACTIVITY, DAYS, FEEDBACK_RATE, LATENCY, LONGEST, Question, USAGE_BY_MODEL, USAGE_BY_USER,
    World, service, world,
};

/// Everybody about every tenant, and the service; of random days, among them one and all.
fn questions<'a>(world: &'a World, rng: &mut Rng) -> Vec<Question<'a>> {
    let everybody = world.people.iter().map(Some).chain([None]);
    let mut all = Vec::new();
    for person in everybody {
        for tenant in 0..world.tenants.len() {
            let first = DAYS.0 - 2 + rng.below(18) as i64;
            let length = rng.below(20) as i64;
            for days in [DAYS, (first, first), (first, first + length)] {
                all.push(Question { person, tenant, days });
            }
        }
    }
    all
}

fn check(world: &World, question: &Question, settings: &str) -> usize {
    let mut client = world.session(question);
    client.run(settings);
    let who = match question.person {
        None => "the service".into(),
        Some(person) => format!(
            "{}{}",
            if person.is_admin { "an admin" } else { "a member" },
            if person.tenant == question.tenant { "" } else { " of another tenant" }
        ),
    };
    let mut ask = |sql: &str, by_hand: Vec<String>| {
        let found = world.ask(&mut client, sql, question);
        assert_eq!(found, by_hand, "{who}, {}: {sql}", world.arguments(question));
        found.len()
    };
    let most = question.days.0 as usize % 15;
    let longest = LONGEST.replace('$', &format!("$, max_rows => {most}"));
    ask(DAILY_ACTIVITY, world.daily_activity(question))
        + ask(FEEDBACK_RATE, world.feedback_rate(question))
        + ask(LATENCY, world.latency(question))
        + ask(&longest, world.longest(question, most))
        + ask(USAGE_BY_MODEL, world.usage_by_model(question))
        + ask(USAGE_BY_USER, world.usage_by_user(question))
}

#[test]
fn everybody_counts_what_he_may_read() {
    for stream in 0..3 {
        let world = world(stream);
        let mut rng = Rng::new(100 + stream);
        let questions = questions(&world, &mut rng);
        let rows: usize = questions.iter().map(|question| check(&world, question, "")).sum();
        assert!(rows > 500, "{rows} rows");
    }
}

#[test]
fn figures_are_the_same_with_other_plans_and_in_workers() {
    let world = world(9);
    let version: i32 = world
        .database
        .superuser()
        .value("select current_setting('server_version_num')::integer / 10000");
    let force = if version < 16 { "force_parallel_mode" } else { "debug_parallel_query" };
    for settings in [
        &format!("set {force} = on; set parallel_leader_participation = off"),
        "set enable_seqscan = off; set enable_bitmapscan = off",
        "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off",
        "set enable_nestloop = off",
        "set timezone = 'Pacific/Kiritimati'; set datestyle = 'German'",
        "set search_path = pg_temp, public; create temp table messages (id uuid)",
    ] {
        let mut rng = Rng::new(200);
        for question in questions(&world, &mut rng).iter().step_by(5) {
            check(&world, question, settings);
        }
    }
}

#[test]
fn a_stranger_has_no_figures() {
    let world = world(10);
    let tenant = world.tenants[0].id;
    let stranger = world.people.iter().find(|person| person.tenant == 1 && person.is_admin);
    let nobody_anywhere = Uuid::new_v4();
    let mut admin = world.database.member(stranger.expect("an admin").id);
    let mut nobody = world.database.connect("member");
    let mut inactive = world.database.member(world.people[0].id);
    world
        .database
        .superuser()
        .run(&format!("update users set is_active = false where id = '{}'", world.people[0].id));
    for function in [
        "tenant_days",
        "daily_activity",
        "feedback_rate",
        "latency_percentiles",
        "longest_conversations",
        "usage_by_model",
        "usage_by_user",
    ] {
        for client in [&mut admin, &mut nobody, &mut inactive] {
            for arguments in [
                format!("'2025-10-25', '2025-11-10', '{tenant}'"),
                format!("tenant_id => '{tenant}'"),
                format!("tenant_id => '{nobody_anywhere}'"),
            ] {
                let rows: i64 =
                    client.value(&format!("select count(*) from {function}({arguments})"));
                assert_eq!(rows, 0, "{function}({arguments})");
            }
        }
        // Who is nobody's colleague names the tenant.
        let rows: i64 = service(&world.database)
            .value(&format!("select count(*) from {function}('2025-10-25', '2025-11-10')"));
        assert_eq!(rows, 0, "{function}");
    }
    let refused = Server::shared(oldest());
    refused.role("passer_by");
    let (code, _) = world
        .database
        .connect("passer_by")
        .error(&format!("select daily_activity(tenant_id => '{tenant}')"));
    assert_eq!(code, "42501");
}
