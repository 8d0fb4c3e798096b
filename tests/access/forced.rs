//! FORCE ROW LEVEL SECURITY: the owner of the tables is bound like everybody else, and still keeps house.

use pg_conversation_tests::{Server, Session, Uuid, oldest};

use crate::answer::ask;
use crate::matrix::Matrix;
use crate::whole::force;
use crate::world::{claims, world};

#[test]
fn an_owner_who_binds_himself_reads_what_a_member_reads() {
    let world = world(Server::shared(oldest()));
    let mut owner = world.session("table owner");
    let all: i64 = owner.value("select count(*) from messages");
    assert!(all > 0);
    force(&mut owner, &Matrix::read());
    for table in [
        "tenants",
        "users",
        "conversations",
        "messages",
        "message_chunks",
        "message_revisions",
        "feedback",
        "feedback_counts",
        "usage_events",
        "usage_days",
        "usage_totals",
        "usage_months",
        "model_prices",
        "rate_states",
        "token_windows",
        "token_reservations",
    ] {
        assert_eq!(owner.value::<i64>(&format!("select count(*) from {table}")), 0, "{table}");
    }
    // Signed in, he is who he says.
    for who in ["a owner", "a viewer", "a colleague", "b admin"] {
        owner.run(&claims(world.person(who)));
        let count = "select count(*) from messages";
        let expected: i64 = world.session(who).value(count);
        assert_eq!(owner.value::<i64>(count), expected, "{who}");
        let write =
            format!("begin; select add_message('{}', 'user', 'x')", world.place("a/private").id);
        let said = ask(&mut owner, &write).blanked();
        owner.run("rollback");
        let mut session = world.session(who);
        let theirs = ask(&mut session, &write).blanked();
        assert_eq!(said, theirs, "{who}");
    }
}

#[test]
fn an_owner_who_binds_himself_still_keeps_house() {
    let world = world(Server::shared(oldest()));
    let mut owner = world.session("table owner");
    force(&mut owner, &Matrix::read());
    let wrong: Vec<String> = owner.values("select d::text from doctor() d where not ok");
    assert_eq!(wrong, [""; 0]);
    owner.run("select migrate()");
    owner.run("select grant_access('access_member'); select revoke_access('access_monitor')");
    owner.run("select grant_access('access_monitor', 'monitor')");
    let counts = "select count(*) from schema_version";
    assert!(owner.value::<i64>(counts) > 0);
    owner.run("select migrate()");
    let place = world.place("a/private");
    let mut member = world.session("a owner");
    member.run(&format!("select append_chunk('{}', 'x', is_final => true)", place.stream));
    member.run(&format!("select add_message('{}', 'user', 'x')", place.id));
    member.run("select create_conversation('new')");
    world
        .session("service")
        .run("select cleanup_finished_streams('0 s'), recover_stalled_messages('0 s')");
    // Sums, counts, limits and figures are kept as before.
    let rated = place.ended;
    let count = format!("select thumbs_up from feedback_counts where message_id = '{rated}'");
    let before: i32 = world.root().value(&count);
    member.run(&format!("select withdraw_feedback('{rated}')"));
    assert_eq!(world.root().value::<i32>(&count), before - 1);
    assert!(member.value::<bool>("select allowed from check_rate_limit()"));
    let reserved = format!("select begin_message('{}', reserve_tokens => 5)", place.id);
    let reserved: Uuid = member.value(&reserved);
    member.run(&format!("select finish_message('{reserved}', 2, 3, 'm')"));
    let tenant = place.tenant;
    let mut service = world.session("service");
    assert_eq!(
        service.value::<i64>(&format!(
            "select settled from token_reservations where id = '{reserved}'"
        )),
        5
    );
    for call in [
        "select count(*) from run_maintenance() where error is null",
        "select increment_usage_metrics('$t', null, current_date, 1, 1, 2)",
        "select fold_usage()",
        "select recount_feedback()",
        "select refresh_analytics()",
        "select count(*) from stats",
    ] {
        service.run(&call.replace("$t", &tenant.to_string()));
    }
    let drift =
        format!("select count(*) from verify_usage('{tenant}', '2020-01-01', '2100-01-01')");
    assert_eq!(service.value::<i64>(&drift), 0);
    let failed = "select string_agg(last_error, ', ') from maintenance_runs";
    assert_eq!(service.value::<Option<String>>(failed), None);
    let mut root = world.root();
    assert_eq!(root.value::<i64>("select count(*) from messages where status = 'streaming'"), 0);
    let still: i64 = root.value(
        "select count(*) from pg_class where relforcerowsecurity and relnamespace = 'public'::regnamespace",
    );
    assert!(still >= 19, "{still}");
    owner.run("select rollback_to(0, true)");
    owner.run("select migrate()");
}
