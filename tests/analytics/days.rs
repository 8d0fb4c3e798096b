//! Days begin and end at midnight of the tenant.

use pg_conversation_tests::{Database, Server, Session, Uuid, oldest};

/// A database in which the only tenant has this time zone, its user, and a conversation of his.
fn in_zone(zone: &str) -> (Database<'static>, Uuid, Uuid) {
    let database = Server::shared(oldest()).database();
    let user = Uuid::new_v4();
    let conversation = database.member(user).value("select create_conversation('talk')");
    database.superuser().run(&format!("update tenants set time_zone = '{zone}'"));
    (database, user, conversation)
}

#[test]
fn a_message_counts_on_the_day_that_it_was_there() {
    // Zone, moment, day; among them the days on which clocks are set, and one that never was.
    let cases = [
        ("Asia/Tokyo", "2025-03-01 14:59:59.999999Z", "2025-03-01"),
        ("Asia/Tokyo", "2025-03-01 15:00:00Z", "2025-03-02"),
        ("America/New_York", "2025-03-09 04:59:59.999999Z", "2025-03-08"),
        ("America/New_York", "2025-03-09 05:00:00Z", "2025-03-09"),
        ("America/New_York", "2025-03-10 03:59:59.999999Z", "2025-03-09"),
        ("America/New_York", "2025-03-10 04:00:00Z", "2025-03-10"),
        ("America/New_York", "2025-11-02 04:00:00Z", "2025-11-02"),
        ("America/New_York", "2025-11-03 04:59:59.999999Z", "2025-11-02"),
        ("America/New_York", "2025-11-03 05:00:00Z", "2025-11-03"),
        // Midnight itself does not exist.
        ("America/Sao_Paulo", "2018-11-04 02:59:59.999999Z", "2018-11-03"),
        ("America/Sao_Paulo", "2018-11-04 03:00:00Z", "2018-11-04"),
        // The hour before midnight comes twice.
        ("America/Sao_Paulo", "2018-02-18 02:30:00Z", "2018-02-17"),
        ("America/Sao_Paulo", "2018-02-18 01:30:00Z", "2018-02-17"),
        ("America/Sao_Paulo", "2018-02-18 03:00:00Z", "2018-02-18"),
        ("Pacific/Apia", "2011-12-30 09:59:59Z", "2011-12-29"),
        ("Pacific/Apia", "2011-12-30 10:00:00Z", "2011-12-31"),
        ("Asia/Kathmandu", "2025-06-01 18:14:59Z", "2025-06-01"),
        ("Asia/Kathmandu", "2025-06-01 18:15:00Z", "2025-06-02"),
    ];
    let (database, user, conversation) = in_zone("UTC");
    let (mut root, mut member) = (database.superuser(), database.member(user));
    for (zone, moment, day) in cases {
        root.run(&format!(
            "update tenants set time_zone = '{zone}'; delete from messages; \
             insert into messages (conversation_id, role, created_at) \
             values ('{conversation}', 'assistant', '{moment}')"
        ));
        for function in ["daily_activity", "feedback_rate"] {
            let figure = if function == "daily_activity" { "messages" } else { "answers" };
            let days: Vec<String> = member.values(&format!(
                "select date::text from {function}(date '{day}' - 3, date '{day}' + 3) where {figure} = 1"
            ));
            assert_eq!(days, [day], "{function}: {zone}, {moment}");
        }
        let count: i64 = member.value(&format!(
            "select sum(messages)::bigint from longest_conversations('{day}', '{day}')"
        ));
        assert_eq!(count, 1, "{zone}, {moment}");
    }
}

#[test]
fn days_follow_one_another_without_a_gap() {
    for zone in ["Asia/Tokyo", "America/New_York", "America/Sao_Paulo", "Pacific/Apia", "UTC"] {
        let (database, user, _) = in_zone(zone);
        for first in ["2011-11-01", "2018-01-01", "2018-10-15", "2025-01-01"] {
            let sql = format!(
                "select count(*) from (select *, lag(ended) over w as before, \
                     row_number() over w - 1 as n \
                 from tenant_days('{first}', date '{first}' + 399) window w as (order by date)) d \
                 where before is distinct from began and n > 0 or date <> date '{first}' + n::integer \
                 or ended < began or (began < ended and timezone('{zone}', began)::date <> date)"
            );
            assert_eq!(database.member(user).value::<i64>(&sql), 0, "{zone}, {first}");
        }
    }
}

#[test]
fn the_last_thirty_days_end_with_the_tenants_today() {
    // It is never the same day in both.
    let mut ends = Vec::new();
    for zone in ["Pacific/Kiritimati", "Pacific/Pago_Pago"] {
        let (database, user, conversation) = in_zone(zone);
        let mut member = database.member(user);
        member.run(&format!("select add_message('{conversation}', 'user', 'now')"));
        for session in ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"] {
            member.run(&format!("set timezone = '{session}'"));
            let today = format!("timezone('{zone}', now())::date");
            let sql = format!(
                "select count(*) = 30 and min(date) = {today} - 29 and max(date) = {today} \
                 and sum(messages) filter (where date = {today}) = 1 from daily_activity()"
            );
            assert!(member.value::<bool>(&sql), "{zone} in {session}");
        }
        ends.push(member.value::<String>("select max(date)::text from daily_activity()"));
        let of_one = "select count(*) = 3 and min(date) = '2025-01-05' \
                      from daily_activity(to_date => '2025-01-07') where date > '2025-01-04'";
        assert!(member.value::<bool>(of_one));
    }
    assert_ne!(ends[0], ends[1]);
}

#[test]
fn no_days_have_no_figures_and_very_many_are_refused() {
    let (database, user, conversation) = in_zone("UTC");
    let mut member = database.member(user);
    member.run(&format!("select add_message('{conversation}', 'user', 'now')"));
    for function in [
        "tenant_days",
        "daily_activity",
        "feedback_rate",
        "latency_percentiles",
        "longest_conversations",
        "usage_by_model",
        "usage_by_user",
    ] {
        let sql = format!("select count(*) from {function}('2025-02-02', '2025-02-01')");
        assert_eq!(member.value::<i64>(&sql), 0, "{function}");
        for days in
            ["'2025-01-01', '2026-02-05'", "'-infinity'", "null, 'infinity'", "'0001-01-01'"]
        {
            let (code, words) = member.error(&format!("select {function}({days})"));
            assert_eq!(code, "22023", "{function}({days}): {words}");
            assert!(words.ends_with("is too long"), "{words}");
        }
    }
    for (rows, code) in [("-1", "22023"), ("null", "22004")] {
        let sql = format!("select longest_conversations(max_rows => {rows})");
        assert_eq!(member.error(&sql).0, code, "{rows}");
    }
    let sql = "select count(*), sum(messages)::bigint, sum(conversations)::bigint \
               from daily_activity('2020-02-01', '2020-02-29')";
    let row = member.query_one(sql, &[]).expect("figures");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (29, 0, 0));
    let sql = "select count(*) from daily_activity('2024-12-31', '2026-02-03')";
    assert_eq!(member.value::<i64>(sql), 400);
}
