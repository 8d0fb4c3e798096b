//! What reading costs, and that it waits for nobody.

use std::time::Instant;

use pg_conversation_tests::{Client, Server, Session, Uuid, oldest, versions};

use crate::world::{World, agree};

/// Blocks that a statement touches, once what it needs is remembered and its plan is kept, which is after
/// five times.
fn blocks(client: &mut Client, sql: &str) -> i64 {
    let explain = format!("explain (analyze, buffers, timing off, summary off, format json) {sql}");
    let mut read = || -> i64 {
        let rows = client.query(&explain, &[]).expect("a plan");
        let plan: String = rows[0].get::<_, Json>(0).0;
        let number = |key: &str| -> i64 {
            let at = plan.find(&format!("\"{key}\": ")).expect("blocks are told") + key.len() + 4;
            let digits: String = plan[at..].chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("a number")
        };
        number("Shared Hit Blocks") + number("Shared Read Blocks")
    };
    for _ in 0..8 {
        read();
    }
    read()
}

/// JSON as the text that it is.
struct Json(String);

impl<'a> postgres::types::FromSql<'a> for Json {
    fn from_sql(
        _: &postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8(raw.to_vec())?))
    }
    postgres::types::accepts!(JSON);
}

#[test]
fn one_look_at_the_counts_tells_how_many_whatever_their_number() {
    for version in versions() {
        let world = World::new(Server::shared(version), 3000, 3);
        let mut root = world.database.superuser();
        root.run(&format!(
            "insert into feedback (message_id, user_id, rating) \
             select '{}', id, case when random() < 0.5 then 1 else -1 end from users; \
             select give_feedback('{}', 1) from (select set_config('pg_conversation.user_id', '{}', true)) s",
            world.messages[0], world.messages[1], world.users[5]
        ));
        root.run("vacuum analyze feedback");
        root.run("vacuum analyze feedback_counts");
        let mut member = world.member(5);
        let call =
            |n: usize| format!("select * from get_message_feedback('{}')", world.messages[n]);
        let (many, one) = (blocks(&mut member, &call(0)), blocks(&mut member, &call(1)));
        assert!(many <= one + 2 && many < 20, "{many} blocks for 3000, {one} for 1");
        // One search in each key, and none through the rows. Statistics of earlier statements may not
        // have been sent off yet.
        let expected = [
            ("feedback_counts_pkey", 1),
            ("idx_feedback_counts_conversation", 0),
            ("feedback_counts", 0),
            // Of so few rows that of the user alone may be as good.
            ("feedback_is_given_once, idx_feedback_user", 1),
            ("feedback_pkey", 0),
            ("idx_feedback_conversation", 0),
            ("feedback", 0),
        ];
        let searched = |client: &mut Client| -> Vec<i64> {
            let names = expected.map(|(names, _)| format!("'{names}'")).join(", ");
            client.values(&format!(
                "select (select sum(pg_stat_get_xact_numscans(name::regclass))::bigint \
                     from string_to_table(names, ', ') name) \
                 from unnest(array[{names}]) with ordinality as n (names, place) order by place"
            ))
        };
        member.run("begin");
        let before = searched(&mut member);
        member.run(&call(0));
        let after = searched(&mut member);
        for (n, (name, expected)) in expected.iter().enumerate() {
            assert_eq!(after[n] - before[n], *expected, "{name}: {before:?}, {after:?}");
        }
        member.run("rollback");
        let begin = Instant::now();
        for _ in 0..200 {
            member.run(&call(0));
        }
        let each = begin.elapsed().as_secs_f64() * 1000.0 / 200.0;
        assert!(each < 5.0, "{each} ms");
        agree(&mut root);
    }
}

#[test]
fn a_message_without_feedback_has_none() {
    let world = World::new(Server::shared(oldest()), 2, 1);
    let sql = format!("select g::text from get_message_feedback('{}') g", world.messages[0]);
    assert_eq!(world.member(1).value::<String>(&sql), "(0,0,0,,,)");
    world.member(1).run(&format!("select give_feedback('{}', -1, 'a, \"b\"')", world.messages[0]));
    assert_eq!(world.member(1).value::<String>(&sql), "(1,0,1,-1.0000,-1,\"a, \"\"b\"\"\")");
    assert_eq!(world.member(0).value::<String>(&sql), "(1,0,1,-1.0000,,)");
    world.member(0).run(&format!("select give_feedback('{}', 1)", world.messages[0]));
    assert_eq!(world.service().value::<String>(&sql), "(2,1,1,0.0000,,)");
}

#[test]
fn readers_and_a_refresh_do_not_wait_for_each_other() {
    for version in versions() {
        let world = World::new(Server::shared(version), 2, 1);
        world.member(1).run(&format!("select give_feedback('{}', 1)", world.messages[0]));
        let count = "select coalesce(sum(total_feedback), 0)::bigint from message_feedback_summary";
        let mut reader = world.database.superuser();
        let mut service = world.service();
        for client in [&mut reader, &mut service] {
            client.run("set lock_timeout = '1s'");
        }
        // A reader is there before.
        reader.run("begin");
        assert_eq!(reader.value::<i64>(count), 0);
        service.run("select refresh_analytics()");
        assert_eq!(service.error("select refresh_analytics(false)").0, "55P03");
        reader.run("commit");
        assert_eq!(reader.value::<i64>(count), 1);
        // One comes while it is refreshed.
        world.member(0).run(&format!("select give_feedback('{}', 1)", world.messages[0]));
        service.run("begin; select refresh_analytics()");
        assert_eq!(reader.value::<i64>(count), 1);
        // And nobody who gives feedback waits.
        let mut member = world.member(1);
        member.run("set lock_timeout = '1s'");
        member.run(&format!("select give_feedback('{}', -1)", world.messages[0]));
        service.run("commit");
        assert_eq!(reader.value::<i64>(count), 2);
        // What is not filled cannot be refreshed beside readers, and is all the same.
        reader.run("refresh materialized view message_feedback_summary with no data");
        service.run("select refresh_analytics()");
        assert_eq!(agree(&mut reader), 1);
        // One that is gone is left out.
        reader.run("begin; drop materialized view message_feedback_summary; select refresh_analytics(); rollback");
        reader.run("select refresh_analytics()");
    }
}

/// Somebody who owns the schema and not the tables puts another one in its place.
#[test]
fn a_view_in_the_place_of_ours_is_not_refreshed() {
    let world = World::new(Server::shared(oldest()), 2, 1);
    world.database.server.role("feedback_nobody");
    let mut root = world.database.superuser();
    root.run(
        "drop materialized view message_feedback_summary; create materialized view message_feedback_summary \
         as select 1 as one; alter materialized view message_feedback_summary owner to feedback_nobody",
    );
    assert_eq!(root.error("select refresh_analytics(false)").0, "55000");
    assert_eq!(world.service().error("select refresh_analytics(false)").0, "55000");
    let _: Uuid = root.value("select new_id()");
}
