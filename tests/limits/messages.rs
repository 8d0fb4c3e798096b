//! Messages that begin with a reservation.

use std::thread;

use pg_conversation_tests::{Client, Session, Uuid, wait_until};
use postgres::Error;

use crate::desk::{Desk, Limits, code, taken};

fn finish(client: &mut Client, message: Uuid, figures: &str) {
    client.run(&format!("select finish_message('{message}'{figures})"));
}

fn messages(client: &mut Client) -> i64 {
    client.value("select count(*) from messages")
}

/// What a client sees of a refusal.
fn seen(error: &Error) -> (String, String, Option<String>, Option<String>) {
    let db = error.as_db_error().expect("an answer of the server");
    let text = |text: Option<&str>| text.map(str::to_string);
    (db.code().code().into(), db.message().into(), text(db.detail()), text(db.hint()))
}

#[test]
fn a_message_reserves_and_settles_what_it_took() {
    let desk = Desk::new();
    desk.tokens("1000");
    let mut member = desk.member();
    let mut service = desk.service();
    let message = member.begin(desk.conversation, 400).unwrap();
    assert_eq!(taken(&mut service), (0, 400));
    assert_eq!(
        service.value::<Uuid>("select user_id from token_reservations"),
        desk.user,
        "its author"
    );
    finish(&mut member, message, ", 100, 50");
    assert_eq!(taken(&mut service), (150, 0));
    finish(&mut member, message, ", 100, 50");
    assert_eq!(taken(&mut service), (150, 0), "once");
    assert_eq!(service.reserve(desk.tenant, 0).unwrap().remaining, Some(850), "and in the ledger");
    // 0 is a reservation, too; null is none.
    let message = member.begin(desk.conversation, 0).unwrap();
    finish(&mut member, message, ", 10");
    assert_eq!(taken(&mut service), (160, 0));
    let message: Uuid = member.value(&format!("select begin_message('{}')", desk.conversation));
    finish(&mut member, message, ", 10");
    assert_eq!(taken(&mut service), (160, 0));
    assert_eq!(service.value::<i64>("select count(*) from token_reservations"), 3);
}

#[test]
fn figures_that_come_later_are_settled_later() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let message = member.begin(desk.conversation, 400).unwrap();
    finish(&mut member, message, "");
    assert_eq!(taken(&mut service), (0, 400), "nobody knows yet");
    finish(&mut member, message, ", 100");
    assert_eq!(taken(&mut service), (100, 0));
    finish(&mut member, message, ", completion_tokens => 30");
    assert_eq!(taken(&mut service), (130, 0));
    finish(&mut member, message, ", 100, 30, 'm', 5");
    assert_eq!(taken(&mut service), (130, 0));
    member.error(&format!("select finish_message('{message}', 101)"));
    assert_eq!(taken(&mut service), (130, 0));
    // A message whose last chunk completes it is no different.
    let message = member.begin(desk.conversation, 50).unwrap();
    member.run(&format!("select append_chunk('{message}', 'x', 0, true)"));
    finish(&mut member, message, ", 1, 2");
    assert_eq!(taken(&mut service), (133, 0));
    // What the service has settled is no less for what is noted.
    let message = member.begin(desk.conversation, 50).unwrap();
    service.settle(message, 10).unwrap();
    finish(&mut member, message, ", 3");
    assert_eq!(taken(&mut service), (143, 0));
    finish(&mut member, message, ", 3, 8");
    assert_eq!(taken(&mut service), (144, 0));
}

#[test]
fn a_message_that_fails_gives_back_and_one_that_is_stopped_waits_for_its_figures() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let failed = member.begin(desk.conversation, 400).unwrap();
    member.run(&format!("select fail_message('{failed}', 'no model')"));
    assert_eq!(taken(&mut service), (0, 0));
    member.run(&format!("select fail_message('{failed}', 'no model')"));
    assert_eq!(taken(&mut service), (0, 0));
    let stopped = member.begin(desk.conversation, 100).unwrap();
    member.run(&format!("select stop_message('{stopped}')"));
    assert_eq!(taken(&mut service), (0, 100));
    finish(&mut member, stopped, ", 10, 20");
    assert_eq!(taken(&mut service), (30, 0));
    let interrupted = member.begin(desk.conversation, 100).unwrap();
    service.run("select recover_stalled_messages('0 s')");
    member.run(&format!("select resume_message('{interrupted}')"));
    assert_eq!(taken(&mut service), (30, 100));
    finish(&mut member, interrupted, ", 1, 1");
    assert_eq!(taken(&mut service), (32, 0));
    // Of one that is deleted the reservation stays until it expires.
    let deleted = member.begin(desk.conversation, 7).unwrap();
    service.run(&format!("delete from messages where id = '{deleted}'"));
    assert_eq!(taken(&mut service), (32, 7));
    assert!(service.release(deleted).unwrap());
}

#[test]
fn a_refusal_is_a_429_with_a_time_and_leaves_no_message() {
    let desk = Desk::new();
    desk.tokens("100");
    let (mut member, mut service) = (desk.member(), desk.service());
    member.begin(desk.conversation, 60).unwrap();
    let message = format!("tenant {} has no tokens left today", desk.tenant);
    let hint = Some(
        "Try again later, with fewer tokens, or raise daily_token_limit of the tenant.".to_string(),
    );
    for client in [&mut member, &mut service] {
        let error = client.begin(desk.conversation, 41).unwrap_err();
        let (code, text, detail, advice) = seen(&error);
        assert_eq!((code.as_str(), &text, &advice), ("PT429", &message, &hint));
        let detail = detail.expect("a time");
        let seconds: i32 = detail.strip_prefix("retry_after: ").unwrap().parse().unwrap();
        assert!((1..=600).contains(&seconds), "{detail}");
        let error = client.begin(desk.conversation, 101).unwrap_err();
        assert_eq!(seen(&error), ("PT429".into(), message.clone(), None, hint.clone()));
    }
    assert_eq!(messages(&mut member), 1);
    // It is an error like any other: it can be caught, and a savepoint takes it back.
    member.run("begin; savepoint a");
    assert_eq!(code(member.begin(desk.conversation, 41)), "PT429");
    member.run("rollback to a");
    member.begin(desk.conversation, 40).unwrap();
    member.run("commit");
    member.run(&format!(
        "do $$ begin perform begin_message('{}', reserve_tokens => 1); raise 'not reached'; \
         exception when sqlstate 'PT429' then null; end $$",
        desk.conversation
    ));
    assert_eq!(messages(&mut member), 2);
    let numbers: Vec<i32> = member.values("select sequence_number from messages order by 1");
    assert_eq!(numbers, [1, 2], "no number was lost");
    desk.limit("is_active", "false");
    let error = service.begin(desk.conversation, 1).unwrap_err();
    assert_eq!(seen(&error), ("PT429".into(), message, None, hint));
    assert_eq!(code(service.begin(desk.conversation, -1)), "22023");
}

#[test]
fn a_retry_reserves_nothing_and_is_not_refused_for_its_own_reservation() {
    let desk = Desk::new();
    desk.tokens("100");
    let (mut member, mut service) = (desk.member(), desk.service());
    for level in ["read committed", "repeatable read", "serializable"] {
        member.run(&format!("set default_transaction_isolation = '{level}'"));
        let key = format!("key of {level}");
        let first = member.begin_once(desk.conversation, &key, 100).unwrap();
        for tokens in [100, 1, 1000] {
            assert_eq!(member.begin_once(desk.conversation, &key, tokens).unwrap(), first);
            assert_eq!(service.begin_once(desk.conversation, &key, tokens).unwrap(), first);
        }
        assert_eq!(taken(&mut service), (0, 100));
        assert_eq!(code(member.begin_once(desk.conversation, "another", 1)), "PT429");
        finish(&mut member, first, ", 0, 0");
        assert_eq!(member.begin_once(desk.conversation, &key, 5).unwrap(), first);
        assert_eq!(taken(&mut service), (0, 0));
    }
    // A retry that differs is refused for that.
    member.begin_once(desk.conversation, "full", 100).unwrap();
    let differs = format!(
        "select begin_message('{}', 'user', client_message_id => 'full', reserve_tokens => 1)",
        desk.conversation
    );
    assert_eq!(member.error(&differs).0, "23505");
    // A message that was begun without a reservation gets none by a retry with one.
    service.run("select release_tokens(id) from token_reservations where closed_at is null");
    let bare: Uuid = member.value(&format!(
        "select begin_message('{}', client_message_id => 'bare')",
        desk.conversation
    ));
    assert_eq!(member.begin_once(desk.conversation, "bare", 50).unwrap(), bare);
    assert_eq!(taken(&mut service), (0, 0));
}

#[test]
fn a_retry_that_meets_the_first_call_half_way_waits_for_it() {
    let desk = Desk::new();
    desk.tokens("100");
    for (level, end) in [
        ("read committed", "commit"),
        ("read committed", "rollback"),
        ("repeatable read", "rollback"),
    ] {
        desk.database.superuser().run("delete from token_reservations; delete from messages");
        let (mut one, mut two) = (desk.member(), desk.member());
        one.run("begin");
        let first = one.begin_once(desk.conversation, "k", 100).unwrap();
        two.run(&format!("set default_transaction_isolation = '{level}'"));
        let answer = thread::scope(|scope| {
            let waiting = scope.spawn(|| two.begin_once(desk.conversation, "k", 100).unwrap());
            let mut watcher = desk.database.superuser();
            wait_until(&mut watcher, "select exists (select from pg_locks where not granted)");
            one.run(end);
            waiting.join().unwrap()
        });
        assert_eq!(answer == first, end == "commit", "{level}, {end}");
        assert_eq!(taken(&mut desk.service()), (0, 100));
        assert_eq!(messages(&mut one), 1);
    }
}

#[test]
fn reserving_first_and_writing_then_deadlocks_with_nobody_who_begins() {
    let desk = Desk::new();
    desk.tokens("1000000");
    let sql = format!(
        "begin; select reserve_tokens(1, tenant_id => '{}'); \
         select add_message('{}', 'user', 'x'); commit",
        desk.tenant, desk.conversation
    );
    thread::scope(|scope| {
        for n in 0..8 {
            let (desk, sql) = (&desk, &sql);
            scope.spawn(move || {
                let mut client = if n % 2 == 0 { desk.service() } else { desk.member() };
                for _ in 0..40 {
                    if n % 2 == 0 {
                        client.run(sql);
                    } else {
                        let message = client.begin(desk.conversation, 1).unwrap();
                        finish(&mut client, message, ", 1, 1");
                    }
                }
            });
        }
    });
    assert_eq!(taken(&mut desk.service()), (320, 160));
}

#[test]
fn a_message_that_somebody_makes_under_the_id_of_a_reservation_has_no_part_in_it() {
    let desk = Desk::new();
    let (other, _) = desk.stranger();
    let (mut member, mut service) = (desk.member(), desk.service());
    let insert = |client: &mut Client, id: Uuid| {
        let conversation: Uuid = client.value("select create_conversation()");
        client.run(&format!(
            "insert into messages (id, conversation_id, role, status) \
             values ('{id}', '{conversation}', 'assistant', 'streaming')"
        ));
        conversation
    };
    // The service's own, of this tenant and another.
    for (n, tenant) in [(0, desk.tenant), (0, other), (7, desk.tenant), (7, other)] {
        let id = service.reserve(tenant, 500).unwrap().id.unwrap();
        insert(&mut member, id);
        let before = taken(&mut service);
        finish(&mut member, id, &format!(", {n}"));
        assert_eq!(taken(&mut service), before);
        let id = service.reserve(tenant, 500).unwrap().id.unwrap();
        insert(&mut member, id);
        let before = taken(&mut service);
        member.run(&format!("select fail_message('{id}', 'x')"));
        assert_eq!(taken(&mut service), before);
        assert!(service.release(id).unwrap());
    }
    // That of a message whose conversation he has done away with, settled or not.
    for settled in [true, false] {
        let conversation: Uuid = member.value("select create_conversation()");
        let message = member.begin(conversation, 300).unwrap();
        if settled {
            finish(&mut service, message, ", 200, 50");
        }
        let before = taken(&mut service);
        member.run(&format!("select purge_conversation('{conversation}')"));
        insert(&mut member, message);
        finish(&mut member, message, ", 0, 0, 'm'");
        assert_eq!(taken(&mut service), before);
    }
}

#[test]
fn where_figures_are_the_services_to_note_members_neither_settle_nor_release() {
    let desk = Desk::new();
    desk.limit("features", "'{\"figures_from_members\": false}'");
    let (mut member, mut service) = (desk.member(), desk.service());
    let message = member.begin(desk.conversation, 100).unwrap();
    assert_eq!(member.error(&format!("select finish_message('{message}', 0, 0)")).0, "42501");
    finish(&mut member, message, "");
    assert_eq!(taken(&mut service), (0, 100));
    finish(&mut service, message, ", 30, 40");
    assert_eq!(taken(&mut service), (70, 0));
    let message = member.begin(desk.conversation, 100).unwrap();
    member.run(&format!("select fail_message('{message}', 'x')"));
    assert_eq!(taken(&mut service), (70, 100));
    service.settle(message, 10).unwrap();
    assert_eq!(taken(&mut service), (80, 0));
    let message = member.begin(desk.conversation, 100).unwrap();
    service.run(&format!("select fail_message('{message}', 'x')"));
    assert_eq!(taken(&mut service), (80, 0));
}
