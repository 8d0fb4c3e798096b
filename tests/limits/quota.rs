//! Tokens a day, one call after the other; and who waits for whom.

use std::thread;
use std::time::Duration;

use pg_conversation_tests::{Client, Session, Uuid, wait_until};

use crate::desk::{Desk, Limits, Reserved, code, taken};

fn refused(remaining: i64, retry_after: Option<i32>) -> Reserved {
    Reserved { allowed: false, remaining: Some(remaining), retry_after, id: None }
}

/// Reserves what must be there.
pub fn reserved(client: &mut Client, tenant: Uuid, tokens: i64, remaining: i64) -> Uuid {
    let answer = client.reserve(tenant, tokens).unwrap();
    let id = answer.id;
    let expected = Reserved { allowed: true, remaining: Some(remaining), retry_after: None, id };
    assert_eq!(answer, expected);
    id.expect("a reservation")
}

#[test]
fn tokens_are_reserved_settled_and_released() {
    let desk = Desk::new();
    desk.tokens("1000");
    let mut service = desk.service();
    let of = desk.tenant;
    let first = reserved(&mut service, of, 600, 400);
    let second = reserved(&mut service, of, 400, 0);
    assert!(!service.reserve(of, 1).unwrap().allowed);
    reserved(&mut service, of, 0, 0);
    assert_eq!(service.settle(first, 250).unwrap(), (true, Some(350)));
    assert_eq!(service.settle(first, 250).unwrap(), (false, Some(350)));
    assert_eq!(code(service.settle(first, 251)), "55000");
    assert!(!service.release(first).unwrap(), "what was settled is not given back");
    assert!(service.release(second).unwrap());
    assert!(!service.release(second).unwrap());
    assert_eq!(service.settle(second, 0).unwrap(), (false, Some(750)));
    assert_eq!(code(service.settle(second, 5)), "55000");
    let third = reserved(&mut service, of, 750, 0);
    // More than was reserved is what was used.
    assert_eq!(service.settle(third, 900).unwrap(), (true, Some(0)));
    assert_eq!(taken(&mut service), (1150, 0));
    assert!(!service.reserve(of, 0).unwrap().allowed, "it is over the limit");
}

#[test]
fn who_is_refused_hears_when_to_come_again() {
    let desk = Desk::new();
    desk.tokens("100");
    let mut service = desk.service();
    let of = desk.tenant;
    for (tokens, ttl) in [(30, "50 s"), (40, "100 s"), (20, "300 s")] {
        assert!(service.reserve_for(of, tokens, ttl).unwrap().allowed);
    }
    let until_tomorrow: i32 = service.value(
        "select ceil(extract(epoch from timezone('UTC', date_trunc('day', timezone('UTC', now())) \
         + '1 day') - now()))::int",
    );
    let cases = [(11, 50), (40, 50), (41, 100), (80, 100), (81, 300), (100, 300)];
    for (tokens, seconds) in cases {
        let answer = service.reserve(of, tokens).unwrap();
        let wait = answer.retry_after.unwrap();
        let seconds = seconds.min(until_tomorrow);
        assert_eq!(answer, refused(10, Some(wait)), "{tokens}");
        assert!((seconds - 20..=seconds).contains(&wait), "{tokens}: {wait}");
    }
    assert_eq!(service.reserve(of, 101).unwrap(), refused(10, None), "no day has as many");
    assert_eq!(service.reserve(of, i64::MAX).unwrap(), refused(10, None));
    // What is used does not come back before tomorrow.
    let id = service.reserve(of, 10).unwrap().id.unwrap();
    service.settle(id, 60).unwrap();
    let wait = service.reserve(of, 61).unwrap().retry_after.unwrap();
    assert!((until_tomorrow - 20..=until_tomorrow).contains(&wait), "{wait}");
    let wait = service.reserve(of, 40).unwrap().retry_after.unwrap();
    assert!((280..=300).contains(&wait) || wait <= until_tomorrow, "{wait}");
    desk.tokens("0");
    assert_eq!(service.reserve(of, 1).unwrap(), refused(0, None));
}

#[test]
fn a_reservation_counts_until_it_expires_and_is_settled_all_the_same() {
    let desk = Desk::new();
    desk.tokens("100");
    let mut service = desk.service();
    let of = desk.tenant;
    let id = service.reserve_for(of, 80, "1 s").unwrap().id.unwrap();
    assert_eq!(service.reserve(of, 50).unwrap(), refused(20, Some(1)));
    thread::sleep(Duration::from_millis(1050));
    let other = reserved(&mut service, of, 50, 50);
    assert_eq!(service.settle(id, 45).unwrap(), (true, Some(5)));
    assert_eq!(service.settle(id, 45).unwrap(), (false, Some(5)));
    assert_eq!(code(service.settle(id, 44)), "55000");
    service.release(other).unwrap();
    assert_eq!(taken(&mut service), (45, 0));
}

#[test]
fn figures_and_lengths_out_of_range_are_refused() {
    let desk = Desk::new();
    let mut service = desk.service();
    let of = desk.tenant;
    for limit in ["null", "100"] {
        desk.tokens(limit);
        for tokens in [-1, i64::MIN] {
            assert_eq!(code(service.reserve(of, tokens)), "22023");
        }
        for ttl in ["0 s", "999 ms", "-1 s", "1 day 1 us", "25 h", "1 mon", "1000000 years"] {
            assert_eq!(code(service.reserve_for(of, 1, ttl)), "22023", "{ttl}");
        }
        for ttl in ["1 s", "1 day", "24 h"] {
            assert!(service.reserve_for(of, 1, ttl).unwrap().allowed, "{ttl}");
        }
    }
    for call in [
        format!("reserve_tokens(null, tenant_id => '{of}')"),
        format!("reserve_tokens(1, null, '{of}')"),
        "reserve_tokens(1)".into(),
        "settle_tokens(null, 1)".into(),
        format!("settle_tokens('{of}', null)"),
        "release_tokens(null)".into(),
        "cleanup_reservations(null)".into(),
    ] {
        assert_eq!(service.error(&format!("select {call}")).0, "22004", "{call}");
    }
    let unknown = Uuid::new_v4();
    assert_eq!(code(service.settle(unknown, 1)), "P0002");
    assert_eq!(code(service.settle(unknown, -1)), "22023");
    assert_eq!(code(service.release(unknown)), "P0002");
    assert_eq!(code(service.reserve(unknown, 1)), "P0002");
    assert_eq!(service.error("select cleanup_reservations(-1)").0, "22023");
}

#[test]
fn the_largest_figures_overflow_nothing() {
    let desk = Desk::new();
    desk.tokens("9223372036854775807");
    let mut service = desk.service();
    let of = desk.tenant;
    let id = reserved(&mut service, of, i64::MAX, 0);
    assert!(!service.reserve(of, i64::MAX).unwrap().allowed);
    assert_eq!(service.settle(id, i64::MAX).unwrap(), (true, Some(0)));
    assert!(!service.reserve(of, i64::MAX).unwrap().allowed);
    desk.tokens("null");
    let id = service.reserve(of, i64::MAX).unwrap().id.unwrap();
    assert_eq!(service.settle(id, i64::MAX).unwrap(), (true, None));
    assert_eq!(service.settle(id, i64::MAX).unwrap(), (false, None));
    desk.tokens("5");
    for tokens in [0, 1, i64::MAX] {
        assert!(!service.reserve(of, tokens).unwrap().allowed);
    }
}

#[test]
fn limits_may_come_go_and_change() {
    let desk = Desk::new();
    let mut service = desk.service();
    let of = desk.tenant;
    let free = service.reserve(of, 1_000_000).unwrap();
    assert_eq!((free.allowed, free.remaining, free.retry_after), (true, None, None));
    // What was reserved without a limit counts when there is one.
    desk.tokens("1000010");
    reserved(&mut service, of, 10, 0);
    assert_eq!(service.settle(free.id.unwrap(), 50).unwrap(), (true, Some(999_950)));
    desk.tokens("100");
    reserved(&mut service, of, 40, 0);
    desk.tokens("50");
    assert_eq!(service.reserve(of, 1).unwrap().remaining, Some(0));
    desk.tokens("0");
    assert_eq!(service.reserve(of, 0).unwrap().remaining, Some(0));
    desk.tokens("null");
    assert!(service.reserve(of, i64::MAX).unwrap().allowed);
    // An inactive tenant reserves nothing, and settles what it has.
    desk.limit("is_active", "false");
    for limit in ["null", "1000"] {
        desk.tokens(limit);
        assert_eq!(service.reserve(of, 1).unwrap(), refused(0, None));
    }
    let open: Vec<Uuid> =
        service.values("select id from token_reservations where closed_at is null");
    for id in open {
        assert!(service.settle(id, 1).unwrap().0);
    }
}

#[test]
fn what_the_ledger_has_counts_and_what_is_in_both_counts_once() {
    let desk = Desk::new();
    desk.tokens("1000");
    let mut service = desk.service();
    let of = desk.tenant;
    let record = |service: &mut Client, prompt: i64, completion: i64| {
        let usage = format!("{{\"prompt_tokens\": {prompt}, \"completion_tokens\": {completion}}}");
        service.run(&format!(
            "select record_usage('{of}', null, 'm', '{usage}', '{}')",
            Uuid::new_v4()
        ));
    };
    record(&mut service, 100, 200);
    assert_eq!(service.reserve(of, 0).unwrap().remaining, Some(700), "recorded alone");
    let id = reserved(&mut service, of, 250, 450);
    assert_eq!(service.settle(id, 250).unwrap(), (true, Some(700)), "the ledger has more");
    let id = reserved(&mut service, of, 100, 600);
    assert_eq!(service.settle(id, 100).unwrap(), (true, Some(650)), "the windows have more");
    record(&mut service, 40, 10);
    assert_eq!(service.reserve(of, 0).unwrap().remaining, Some(650), "both have as much");
    assert!(!service.reserve(of, 651).unwrap().allowed);
}

#[test]
fn whoever_settles_waits_for_nobody() {
    let desk = Desk::new();
    desk.tokens("1000");
    let of = desk.tenant;
    let mut sessions: Vec<Client> = (0..6).map(|_| desk.service()).collect();
    let ids: Vec<Uuid> =
        (0..6).map(|_| sessions[0].reserve(of, 100).unwrap().id.unwrap()).collect();
    // One holds the tenant's lock, all others settle and leave their transactions open.
    sessions[0].run("begin");
    reserved(&mut sessions[0], of, 100, 300);
    for (session, id) in sessions.iter_mut().zip(&ids) {
        session.run("set lock_timeout = 1");
        if !session.value::<bool>("select pg_current_xact_id_if_assigned() is not null") {
            session.run("begin");
        }
        assert!(session.settle(*id, 50).unwrap().0);
    }
    // Each has a row of its own as long as the others are in use.
    for session in &mut sessions {
        session.run("commit");
    }
    assert_eq!(taken(&mut sessions[0]), (300, 100));
    assert_eq!(sessions[0].value::<i64>("select count(*) from token_windows"), 6);
    // Alone, one uses a row that is there.
    for _ in 0..10 {
        let id = sessions[0].reserve(of, 10).unwrap().id.unwrap();
        sessions[0].settle(id, 10).unwrap();
    }
    assert_eq!(sessions[0].value::<i64>("select count(*) from token_windows"), 6);
    assert_eq!(taken(&mut sessions[0]), (400, 100));
}

#[test]
fn a_row_of_ones_own_number_that_is_in_use_is_not_waited_for() {
    let desk = Desk::new();
    desk.tokens("1000");
    let (mut one, mut two) = (desk.service(), desk.service());
    let ids: Vec<Uuid> =
        (0..3).map(|_| one.reserve(desk.tenant, 10).unwrap().id.unwrap()).collect();
    one.settle(ids[0], 10).unwrap();
    two.run("begin");
    two.settle(ids[1], 10).unwrap();
    one.run("set lock_timeout = 1");
    one.settle(ids[2], 10).unwrap();
    two.run("commit");
    assert_eq!(taken(&mut one), (30, 0));
}

#[test]
fn reserving_waits_for_whoever_has_reserved_and_sees_what_became_of_it() {
    let desk = Desk::new();
    desk.tokens("100");
    let of = desk.tenant;
    for (level, end, fits) in [
        ("read committed", "commit", false),
        ("read committed", "rollback", true),
        ("repeatable read", "commit", false),
        ("repeatable read", "rollback", true),
        ("serializable", "rollback to a; commit", true),
    ] {
        desk.database.superuser().run("delete from token_reservations; delete from token_windows");
        let (mut one, mut two) = (desk.service(), desk.service());
        one.run("begin; savepoint a");
        reserved(&mut one, of, 60, 40);
        two.run(&format!("begin isolation level {level}; select count(*) from tenants"));
        let answer = thread::scope(|scope| {
            let waiting = scope.spawn(|| two.reserve(of, 60).unwrap());
            let mut watcher = desk.database.superuser();
            wait_until(
                &mut watcher,
                "select exists (select from pg_locks where not granted and locktype = 'advisory' \
                 and objsubid = 104)",
            );
            one.run(end);
            waiting.join().unwrap()
        });
        assert_eq!(answer.allowed, fits, "{level}, {end}");
        two.run("commit");
        assert_eq!(taken(&mut two), (0, 60), "{level}, {end}");
    }
}

#[test]
fn a_refusal_holds_nobody_up() {
    let desk = Desk::new();
    desk.tokens("100");
    let (mut one, mut two) = (desk.service(), desk.service());
    one.run("begin");
    assert!(!one.reserve(desk.tenant, 101).unwrap().allowed);
    two.run("set lock_timeout = 1");
    reserved(&mut two, desk.tenant, 50, 50);
    // But what was reserved before in the transaction stays held.
    reserved(&mut one, desk.tenant, 10, 40);
    assert!(!one.reserve(desk.tenant, 100).unwrap().allowed);
    assert_eq!(code(two.reserve(desk.tenant, 1)), "55P03");
    one.run("commit");
}

#[test]
fn tenants_without_a_limit_and_other_tenants_take_no_lock() {
    let desk = Desk::new();
    let (other, _) = desk.stranger();
    let (mut one, mut two) = (desk.service(), desk.service());
    two.run("set lock_timeout = 1");
    one.run("begin");
    assert!(one.reserve(desk.tenant, 5).unwrap().allowed);
    assert!(two.reserve(desk.tenant, 5).unwrap().allowed);
    one.run("commit");
    desk.tokens("100");
    one.run("begin");
    reserved(&mut one, desk.tenant, 5, 85);
    reserved(&mut two, other, 5, 95);
    one.run("commit");
}

#[test]
fn a_savepoint_that_is_rolled_back_gives_back_what_was_done_in_it() {
    let desk = Desk::new();
    desk.tokens("100");
    let mut service = desk.service();
    let of = desk.tenant;
    service.run("begin");
    let kept = reserved(&mut service, of, 30, 70);
    service.run("savepoint a");
    reserved(&mut service, of, 70, 0);
    assert!(!service.reserve(of, 1).unwrap().allowed);
    service.run("rollback to a");
    assert_eq!(service.settle(kept, 20).unwrap(), (true, Some(80)));
    service.run("savepoint b");
    reserved(&mut service, of, 80, 0);
    service.run("release b; commit");
    assert_eq!(taken(&mut service), (20, 80));
}

#[test]
fn whoever_settles_waits_for_no_prepared_transaction() {
    let desk = Desk::new();
    let mut service = desk.service();
    let ids: Vec<Uuid> =
        (0..4).map(|_| service.reserve(desk.tenant, 10).unwrap().id.unwrap()).collect();
    service.run("set lock_timeout = 1");
    let name = desk.database.name.clone();
    for (n, id) in ids[..3].iter().enumerate() {
        service.run("begin");
        service.settle(*id, 10).unwrap();
        service.run(&format!("prepare transaction '{name}-{n}'"));
    }
    service.settle(ids[3], 10).unwrap();
    for n in 0..3 {
        desk.database.superuser().run(&format!("commit prepared '{name}-{n}'"));
    }
    assert_eq!(taken(&mut service), (40, 0));
}

#[test]
fn a_superuser_who_cleans_up_lends_nobody_his_rights() {
    let desk = Desk::new();
    let mut superuser = desk.database.superuser();
    desk.database.server.role("limits_owner");
    superuser.run(
        "do $$ declare t text; begin \
             for t in select tablename from pg_tables where schemaname = 'public' loop \
                 execute format('alter table public.%I owner to limits_owner', t); \
             end loop; end $$; \
         grant create, usage on schema public to limits_owner; \
         create function trap() returns trigger language plpgsql as 'begin raise ''sprung by %'', current_user; end'; \
         create constraint trigger trap after delete on token_reservations \
             deferrable initially deferred for each row execute function trap()",
    );
    superuser.run(&format!("select reserve_tokens(1, tenant_id => '{}')", desk.tenant));
    superuser.run("update token_reservations set expires_at = now() - interval '3 days'");
    let (code, message) = superuser.error("select cleanup_reservations()");
    assert_eq!(code, "42501", "{message}");
}
