//! Days, their change, and what is left of them.

use pg_conversation_tests::{Session, Uuid};

use crate::desk::{Desk, Limits, taken};
use crate::quota::reserved;

#[test]
fn a_day_is_one_of_the_tenants_calendar() {
    let desk = Desk::new();
    desk.tokens("100");
    let mut service = desk.service();
    let of = desk.tenant;
    // These two never have the same date.
    let zones = ["Pacific/Kiritimati", "Etc/GMT+12"];
    for zone in zones {
        desk.limit("time_zone", &format!("'{zone}'"));
        let id = reserved(&mut service, of, 60, 40);
        let today: bool = service.value(&format!(
            "select date = (clock_timestamp() at time zone '{zone}')::date from token_reservations \
             where id = '{id}'"
        ));
        assert!(today, "{zone}");
        service.settle(id, 100).unwrap();
        let answer = service.reserve(of, 1).unwrap();
        let until: i32 = service.value(&format!(
            "select ceil(extract(epoch from date_trunc('day', now() at time zone '{zone}') + '1 day' \
             - now() at time zone '{zone}'))::int"
        ));
        let wait = answer.retry_after.unwrap();
        assert!((until - 5..=until + 1).contains(&wait), "{zone}: {wait}, {until}");
    }
    assert_eq!(taken(&mut service), (200, 0));
    assert_eq!(service.value::<i64>("select count(distinct date) from token_windows"), 2);
}

#[test]
fn a_reservation_is_settled_in_the_day_it_was_made_in() {
    let desk = Desk::new();
    desk.tokens("100");
    let mut service = desk.service();
    let of = desk.tenant;
    let open = reserved(&mut service, of, 50, 50);
    let used = reserved(&mut service, of, 50, 0);
    service.settle(used, 50).unwrap();
    // A day passes.
    desk.database.superuser().run(
        "update token_reservations set date = date - 1; update token_windows set date = date - 1",
    );
    reserved(&mut service, of, 100, 0);
    assert_eq!(service.settle(open, 40).unwrap(), (true, Some(0)));
    let days: Vec<i64> =
        service.values("select sum(used)::bigint from token_windows group by date order by date");
    assert_eq!(days, [90], "yesterday's");
    // The ledger's days are the same ones.
    service.run(&format!(
        "select record_usage('{of}', null, 'm', '{{\"prompt_tokens\": 100}}', 'k', \
         clock_timestamp() - interval '1 day')"
    ));
    desk.tokens("110");
    reserved(&mut service, of, 10, 0);
}

#[test]
fn cleaning_up_leaves_what_somebody_may_ask_for() {
    let desk = Desk::new();
    let (mut service, mut superuser) = (desk.service(), desk.database.superuser());
    let ids: Vec<Uuid> =
        (0..6).map(|_| service.reserve(desk.tenant, 1).unwrap().id.unwrap()).collect();
    for id in &ids[..3] {
        service.settle(*id, 1).unwrap();
    }
    assert_eq!(service.value::<i32>("select cleanup_reservations()"), 0);
    let age = |id: Uuid, expired: &str, closed: &str| {
        format!(
            "update token_reservations set expires_at = now() - interval '{expired}', \
             closed_at = case when settled is not null then now() - interval '{closed}' end \
             where id = '{id}';"
        )
    };
    superuser.run(&age(ids[0], "3 days", "3 days"));
    superuser.run(&age(ids[1], "3 days", "47 hours"));
    superuser.run(&age(ids[2], "47 hours", "3 days"));
    superuser.run(&age(ids[3], "49 hours", "0"));
    superuser.run(&age(ids[4], "47 hours", "0"));
    superuser.run(
        "insert into token_windows (tenant_id, date, slot, used) \
         select tenant_id, date - n, slot, used from token_windows, unnest(array[38, 42, 50]) n",
    );
    assert_eq!(service.value::<i32>("select cleanup_reservations(0)"), 0);
    assert_eq!(service.value::<i32>("select cleanup_reservations(1)"), 1);
    assert_eq!(service.value::<i32>("select cleanup_reservations()"), 3);
    assert_eq!(service.value::<i32>("select cleanup_reservations()"), 0);
    let mut left: Vec<Uuid> = service.values("select id from token_reservations");
    let mut expected = vec![ids[1], ids[2], ids[4], ids[5]];
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(service.value::<i64>("select count(*) from token_windows"), 2);
    // What is in use is left for the next time.
    superuser.run("update token_reservations set expires_at = now() - interval '3 days', closed_at = null, settled = null");
    superuser.run("begin; select from token_reservations for update");
    assert_eq!(service.value::<i32>("select cleanup_reservations()"), 0);
    superuser.run("commit");
    assert_eq!(service.value::<i32>("select cleanup_reservations()"), 4);
}
