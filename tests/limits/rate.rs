//! Requests a minute.

use std::thread;
use std::time::Duration;

use pg_conversation_tests::{Session, Uuid};

use crate::desk::{Desk, Drawn, Limits, NOBODY, UNLIMITED, code};

fn allowed(remaining: i32) -> Drawn {
    Drawn { allowed: true, remaining: Some(remaining), retry_after: None }
}

fn refused(remaining: i32, retry_after: Option<i32>) -> Drawn {
    Drawn { allowed: false, remaining: Some(remaining), retry_after }
}

#[test]
fn a_minutes_requests_may_come_at_once_and_no_more() {
    let desk = Desk::new();
    let mut member = desk.member();
    for limit in [1, 7, 20] {
        desk.database.superuser().run("delete from rate_states");
        desk.requests(&limit.to_string());
        for n in (0..limit).rev() {
            assert_eq!(member.draw(1).unwrap(), allowed(n), "of {limit}");
        }
        let answer = member.draw(1).unwrap();
        assert_eq!(answer, refused(0, answer.retry_after), "of {limit}");
        let wait = answer.retry_after.unwrap();
        assert!(wait > 0 && wait <= 60 / limit + 1, "{wait} s of {limit}");
    }
}

#[test]
fn what_was_drawn_comes_back_evenly() {
    let desk = Desk::new();
    desk.requests("6000");
    let mut member = desk.member();
    assert_eq!(member.draw(6000).unwrap(), allowed(0));
    assert_eq!(member.draw(100).unwrap().retry_after, Some(1));
    assert_eq!(member.draw(3000).unwrap().retry_after, Some(30));
    thread::sleep(Duration::from_millis(300));
    let answer = member.draw(30).unwrap();
    assert!(answer.allowed, "{answer:?}");
    assert!(answer.remaining.unwrap() < 100, "{answer:?}");
    // As much as it says is left may be had, and no more.
    desk.requests("60");
    desk.database.superuser().run("update rate_states set next_at = now() + '29.5 s'");
    let left = member.draw(0).unwrap().remaining.unwrap();
    assert!(matches!(left, 30 | 31), "{left}");
    assert!(!member.draw(left + 2).unwrap().allowed);
    assert_eq!(member.draw(left).unwrap(), allowed(0));
}

#[test]
fn costs() {
    let desk = Desk::new();
    desk.requests("10");
    let mut member = desk.member();
    assert_eq!(member.draw(0).unwrap(), allowed(10));
    assert_eq!(member.draw(4).unwrap(), allowed(6));
    assert_eq!(member.draw(11).unwrap(), refused(6, None), "never, however long one waits");
    assert_eq!(member.draw(i32::MAX).unwrap(), refused(6, None));
    assert_eq!(member.draw(7).unwrap(), refused(6, Some(6)));
    assert_eq!(member.draw(6).unwrap(), allowed(0));
    assert_eq!(member.draw(0).unwrap(), allowed(0));
    assert_eq!(code(member.draw(-1)), "22023");
    assert_eq!(code(member.draw(i32::MIN)), "22023");
    assert_eq!(member.error("select check_rate_limit(null)").0, "22004");
}

#[test]
fn limits_of_all_kinds_and_changed_in_between() {
    let desk = Desk::new();
    let mut member = desk.member();
    assert_eq!(member.draw(1).unwrap(), UNLIMITED);
    assert_eq!(member.draw(i32::MAX).unwrap(), UNLIMITED);
    desk.requests("0");
    assert_eq!(member.draw(1).unwrap(), refused(0, None));
    desk.requests("2147483647");
    assert_eq!(member.draw(i32::MAX).unwrap(), allowed(0));
    // Half a minute's worth is half a minute's worth under another limit, too.
    desk.database.superuser().run("update rate_states set next_at = now() + '30 s'");
    desk.requests("100");
    assert_eq!(member.draw(1).unwrap().remaining, Some(49));
    desk.requests("10");
    assert_eq!(member.draw(1).unwrap().remaining, Some(3));
    desk.requests("null");
    assert_eq!(member.draw(1).unwrap(), UNLIMITED);
    desk.requests("10");
    assert_eq!(member.draw(1).unwrap().remaining, Some(2));
}

#[test]
fn tenants_do_not_share_a_limit() {
    let desk = Desk::new();
    let (other, user) = desk.stranger();
    desk.requests("2");
    let (mut member, mut stranger) = (desk.member(), desk.database.member(user));
    assert_eq!(member.draw(2).unwrap(), allowed(0));
    assert_eq!(stranger.draw(1).unwrap(), allowed(1));
    let mut service = desk.service();
    assert_eq!(service.draw_of(other, 1).unwrap(), allowed(0));
    assert!(!service.draw_of(other, 1).unwrap().allowed);
    assert!(!service.draw_of(desk.tenant, 1).unwrap().allowed);
    // Naming the own tenant is as good as naming none.
    desk.database.superuser().run("delete from rate_states");
    assert_eq!(member.draw_of(desk.tenant, 1).unwrap(), allowed(1));
    // A service may also speak for somebody.
    service.run(&format!("set pg_conversation.user_id = '{}'", desk.user));
    assert_eq!(service.draw(1).unwrap(), allowed(0));
}

#[test]
fn a_tenant_that_is_unknown_inactive_or_somebody_elses_is_refused_in_the_same_words() {
    let desk = Desk::new();
    let (other, _) = desk.stranger();
    let (mut member, mut service) = (desk.member(), desk.service());
    assert_eq!(member.draw_of(other, 1).unwrap(), NOBODY);
    assert_eq!(member.draw_of(Uuid::new_v4(), 1).unwrap(), NOBODY);
    assert_eq!(service.draw_of(Uuid::new_v4(), 1).unwrap(), NOBODY);
    assert_eq!(service.draw(1).unwrap(), NOBODY, "it speaks for nobody");
    for limit in ["null", "10"] {
        desk.requests(limit);
        assert!(member.draw(1).unwrap().allowed);
        desk.limit("is_active", "false");
        assert_eq!(member.draw(1).unwrap(), NOBODY);
        assert_eq!(service.draw_of(desk.tenant, 1).unwrap(), NOBODY);
        desk.limit("is_active", "true");
        assert!(member.draw(1).unwrap().allowed);
    }
}

#[test]
fn a_clock_that_was_set_back_costs_a_minute_at_most() {
    let desk = Desk::new();
    desk.requests("60");
    let (mut member, mut superuser) = (desk.member(), desk.database.superuser());
    assert_eq!(member.draw(10).unwrap(), allowed(50));
    // What an hour back leaves behind.
    for ahead in ["1 h", "100 years"] {
        superuser.run(&format!("update rate_states set next_at = now() + '{ahead}'"));
        let answer = member.draw(1).unwrap();
        assert_eq!(answer, refused(0, Some(1)), "{ahead}");
        let within: bool = superuser.value(
            "select next_at between clock_timestamp() + '50 s' and clock_timestamp() + '60 s' from rate_states",
        );
        assert!(within, "{ahead}");
    }
    superuser.run("update rate_states set next_at = 'infinity'");
    assert_eq!(code(member.draw(-1)), "22023");
    assert!(!member.draw(1).unwrap().allowed);
    superuser.run("update rate_states set next_at = '-infinity'");
    assert_eq!(member.draw(1).unwrap(), allowed(59));
}
