//! What each job does.

use std::time::{Duration, Instant};

use pg_conversation_tests::{Session, Uuid};

use crate::house::{House, Keeper};

#[test]
fn streams_that_nobody_goes_on_with_are_interrupted() {
    let house = House::new();
    let (mut member, mut service) = (house.member(), house.service());
    let c: Uuid = member.value("select create_conversation('talk')");
    let begin = format!("select begin_message('{c}')");
    let (old, fresh): (Uuid, Uuid) = (member.value(&begin), member.value(&begin));
    house.database.superuser().run(&format!(
        "set session_replication_role = replica; \
         update messages set created_at = created_at - interval '2 min' where id = '{old}'"
    ));
    assert_eq!(service.done("stalled_messages"), 1);
    for (message, status) in [(old, "interrupted"), (fresh, "streaming")] {
        let found: String =
            service.value(&format!("select status::text from messages where id = '{message}'"));
        assert_eq!(found, status);
    }
    assert_eq!(service.done("stalled_messages"), 0);
}

#[test]
fn chunks_of_finished_messages_go_after_an_hour_and_those_without_a_message_at_once() {
    let house = House::new();
    let (mut member, mut service) = (house.member(), house.service());
    let mut superuser = house.database.superuser();
    let c: Uuid = member.value("select create_conversation('talk')");
    let mut ended = || -> Uuid {
        let message = member.value(&format!("select begin_message('{c}')"));
        member.run(&format!(
            "select append_chunks('{message}', array['a', 'b', 'c']); select finish_message('{message}')"
        ));
        message
    };
    let (old, young, gone) = (ended(), ended(), ended());
    superuser.run(&format!(
        "set session_replication_role = replica; \
         update messages set completed_at = completed_at - interval '61 min' where id = '{old}'; \
         delete from messages where id = '{gone}'"
    ));
    assert_eq!(service.done("finished_chunks"), 6);
    let left: Vec<Uuid> = superuser.values("select distinct message_id from message_chunks");
    assert_eq!(left, [young]);
    let text: String = member.value(&format!("select reconstruct_message('{old}')"));
    assert_eq!(text, "abc");
}

#[test]
fn expired_conversations_go_with_all_that_hangs_on_them() {
    let house = House::new();
    let (mut member, mut service) = (house.member(), house.service());
    house.expired(250, 3, "1 s");
    member.run(
        "insert into conversations (title, expires_at) values \
         ('later', now() + interval '1 hour'), ('never', null), ('always', 'infinity')",
    );
    let message: Uuid =
        member.value("select begin_message(id) from conversations where title = 'c7'");
    member.run(&format!(
        "select append_chunks('{message}', array['a', 'b']); select finish_message('{message}')"
    ));
    assert_eq!(service.done("expired_conversations"), 250);
    let left: Vec<String> = member.values("select title from conversations order by 1");
    assert_eq!(left, ["always", "later", "never"]);
    assert_eq!((house.count("messages"), house.count("message_chunks")), (0, 0));
    assert_eq!(service.done("expired_conversations"), 0);
}

#[test]
fn deleted_conversations_are_kept_for_as_long_as_the_setting_says() {
    let house = House::new();
    let (mut member, mut service) = (house.member(), house.service());
    member.run(
        "insert into conversations (title) select n || ' days' from unnest(array[0, 6, 8, 29, 31, 400]) n",
    );
    house.database.superuser().run(
        "update conversations set deleted_at = now() - title::interval where title <> '0 days'",
    );
    let mut left = |setting: Option<&str>| -> Vec<String> {
        if let Some(setting) = setting {
            service.run(&format!("set pg_conversation.keep_deleted = '{setting}'"));
        }
        service.done("deleted_conversations");
        service.values("select title from conversations order by title::interval")
    };
    assert_eq!(left(Some("")).len(), 6);
    assert_eq!(left(Some("1000 years")).len(), 6);
    assert_eq!(left(Some("2 years")).len(), 6);
    service_reset(&house);
    assert_eq!(left(Some("30 days")), ["0 days", "6 days", "8 days", "29 days"]);
    assert_eq!(left(Some("1 week")), ["0 days", "6 days"]);
    // What is not deleted stays, whatever the setting.
    assert_eq!(left(Some("0")), ["0 days"]);
}

/// The sessions of others keep the default.
fn service_reset(house: &House) {
    let mut client = house.database.connect("maint_service");
    client.run("select current_user_id()");
    let kept: String = client.value("show pg_conversation.keep_deleted");
    assert_eq!(kept, "30 days");
}

#[test]
fn a_time_to_keep_that_is_none_is_refused() {
    let house = House::new();
    let mut service = house.service();
    service.run("select current_user_id()");
    for wrong in ["x", "-1 day", "30 days ago", "1001 years", "1 day -25 hours", "5", "a\\b"] {
        let set = format!("set pg_conversation.keep_deleted = '{wrong}'");
        // A number alone is seconds to Postgres.
        if wrong == "5" {
            service.run(&set);
        } else {
            let (code, message) = service.error(&set);
            assert_eq!(code, "22023", "{wrong}: {message}");
        }
    }
    for right in ["", "0", "P1M", "1 mon 2 days 03:04:05", "1000 years"] {
        service.run(&format!("set pg_conversation.keep_deleted = '{right}'"));
        service.done("deleted_conversations");
    }
    // The database has a say, too, which sessions to come hear.
    let mut superuser = house.database.superuser();
    let name = &house.database.name;
    superuser.run(&format!("alter database {name} set pg_conversation.keep_deleted = '7 days'"));
    assert_eq!(
        house
            .database
            .connect("maint_service")
            .value::<String>("show pg_conversation.keep_deleted"),
        "7 days"
    );
    superuser.run("select current_user_id()");
    let wrong = format!("alter database {name} set pg_conversation.keep_deleted = 'x'");
    assert_eq!(superuser.error(&wrong).0, "22023");
    // Set before anything of ours is loaded, it is held against the rules when it is.
    let mut early = house.database.connect("maint_service");
    early.run("set pg_conversation.keep_deleted = 'x'");
    early.run("select current_user_id()");
    assert_eq!(early.value::<String>("show pg_conversation.keep_deleted"), "7 days");
}

#[test]
fn an_answer_that_is_being_written_is_let_finish() {
    let house = House::new();
    let (mut member, mut service) = (house.member(), house.service());
    let ids = house.expired(3, 1, "1 min");
    let message: Uuid = member.value(&format!("select begin_message('{}')", ids[1]));
    member.run(&format!("select append_chunk('{message}', 'a')"));
    assert_eq!(service.done("expired_conversations"), 2);
    member
        .run(&format!("select append_chunk('{message}', 'b'); select finish_message('{message}')"));
    assert_eq!(service.done("expired_conversations"), 1);
    // A producer who comes back hears what he hears of any message that is gone.
    let (code, _) = member.error(&format!("select append_chunk('{message}', 'c')"));
    assert_eq!(code, "P0002");
    // One that nobody goes on with does not keep its conversation for ever.
    let ids = house.expired(1, 0, "1 min");
    let message: Uuid = member.value(&format!("select begin_message('{}')", ids[0]));
    house.database.superuser().run(&format!(
        "set session_replication_role = replica; \
         update messages set created_at = created_at - interval '1 hour' where id = '{message}'"
    ));
    service.make_due("stalled_messages");
    assert_eq!(service.done("expired_conversations"), 1);
}

#[test]
fn what_somebody_has_locked_is_left_for_later() {
    let house = House::new();
    let mut service = house.service();
    let ids = house.expired(5, 2, "1 min");
    let mut holder = house.database.superuser();
    holder.run(&format!("begin; select from conversations where id = '{}' for key share", ids[0]));
    // A message that is locked is found out only when it is to go.
    holder.run(&format!("select from messages where conversation_id = '{}' for update", ids[2]));
    let start = Instant::now();
    assert_eq!(service.done("expired_conversations"), 3);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let left: Vec<Uuid> = service.values("select id from conversations order by id");
    let mut expected = vec![ids[0], ids[2]];
    expected.sort();
    assert_eq!(left, expected);
    holder.run("rollback");
    assert_eq!(service.done("expired_conversations"), 2);
}

#[test]
fn one_that_cannot_be_removed_is_named_and_the_others_go() {
    let house = House::new();
    let mut service = house.service();
    let ids = house.expired(230, 0, "1 min");
    house.database.superuser().run(&format!(
        "create function keep() returns trigger language plpgsql as $$ begin \
             if old.id in ('{}', '{}') then raise exception 'under seal' using errcode = 'ZZ001'; end if; \
             return old; end $$; \
         create trigger keep before delete on conversations for each row execute function keep()",
        ids[0], ids[120]
    ));
    let (rows, error) = service.keep_at("expired_conversations").expect("it ran");
    assert_eq!(rows, 228);
    let error = error.expect("an error");
    assert!(error.starts_with("ZZ001: conversation "), "{error}");
    assert!(error.ends_with(": under seal"), "{error}");
    assert_eq!(house.count("conversations"), 2);
}

#[test]
fn a_plan_made_while_there_was_nothing_serves_when_there_is_much() {
    let house = House::new();
    let mut service = house.service();
    let mut superuser = house.database.superuser();
    superuser.run("vacuum analyze conversations");
    // Six times, after which Postgres keeps a plan for all arguments.
    for _ in 0..7 {
        service.done("expired_conversations");
        service.done("deleted_conversations");
    }
    let mut member = house.member();
    member.run("insert into conversations (title) select 'c' from generate_series(1, 20000)");
    house.expired(10, 1, "1 min");
    superuser.run(
        "update conversations set deleted_at = now() - interval '40 days' \
                   where id in (select id from conversations where expires_at is null limit 10)",
    );
    superuser.run("select pg_stat_force_next_flush()");
    let scans =
        "select coalesce(seq_tup_read, 0) from pg_stat_user_tables where relname = 'conversations'";
    let settle = |client: &mut pg_conversation_tests::Client| {
        client.run("select pg_stat_force_next_flush()");
        client.run("select 1");
    };
    settle(&mut service);
    let before: i64 = superuser.value(scans);
    assert_eq!(service.done("expired_conversations"), 10);
    settle(&mut service);
    let read = superuser.value::<i64>(scans) - before;
    assert!(read < 1000, "{read} rows read one after another");
    // Both were made due before.
    assert_eq!(house.count("conversations"), 20_000 - 10);
}
