//! What finish_message records.

use std::sync::Barrier;
use std::thread;

use pg_conversation_tests::{Client, Session, Uuid, describe};

use crate::books::{Books, Usage};

/// A conversation of the first user, whose session it is.
fn talk(books: &Books) -> (Client, Uuid) {
    let mut member = books.database.member(books.user());
    let conversation = member.value("select create_conversation('talk')");
    (member, conversation)
}

fn begin(client: &mut Client, conversation: Uuid, more: &str) -> Uuid {
    client.value(&format!("select begin_message('{conversation}'{more})"))
}

/// The events of a message, as they follow each other.
fn events(books: &Books, message: Uuid) -> Vec<String> {
    books.database.superuser().values(&format!(
        "select format('%s %s %s %s %s', replace(idempotency_key, '{message}', ''), kind, \
             prompt_tokens, completion_tokens, model) \
         from usage_events where idempotency_key ~ '{message}' order by recorded_at, idempotency_key"
    ))
}

#[test]
fn a_finished_message_is_recorded_once_however_often_it_is_finished() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    let message = begin(&mut member, conversation, ", model => 'gpt-4o'");
    member.run(&format!("select append_chunks('{message}', array['a', 'b'], 0)"));
    for _ in 0..3 {
        member.run(&format!("select finish_message('{message}', 100, 10)"));
    }
    assert_eq!(events(&books, message), ["message: usage 100 10 gpt-4o"]);
    let found: bool = books.database.superuser().value(&format!(
        "select e.occurred_at between m.completed_at and now() and e.user_id = '{}' and e.recorded_by = 'member' \
             and e.cost = 0.0013 and e.tenant_id = '{}' and e.usage = '{{\"prompt_tokens\": 100, \
             \"completion_tokens\": 10}}' \
         from usage_events e join messages m on m.id = '{message}'",
        books.user(),
        books.tenant()
    ));
    assert!(found);
    // He sees his own.
    assert_eq!(member.value::<i64>("select sum(total_tokens)::bigint from usage_metrics"), 110);
    books.agree();
}

#[test]
fn without_figures_there_is_no_event() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    for end in [
        "finish_message('$m')",
        "finish_message('$m', model => 'gpt-4o', latency_ms => 5)",
        "stop_message('$m')",
        "fail_message('$m', 'why')",
    ] {
        let message = begin(&mut member, conversation, "");
        member.run(&format!("select {}", end.replace("$m", &message.to_string())));
        assert!(events(&books, message).is_empty(), "{end}");
    }
    let message = begin(&mut member, conversation, "");
    member.run(&format!("begin; select finish_message('{message}', 1, 1); rollback"));
    assert!(events(&books, message).is_empty());
    let message = begin(&mut member, conversation, "");
    assert_eq!(member.error(&format!("select finish_message('{message}', -1)")).0, "23514");
    assert!(events(&books, message).is_empty());
    books.agree();
}

#[test]
fn figures_that_come_later_are_added_and_a_model_names_them_all() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    let message = begin(&mut member, conversation, "");
    for figures in [
        "prompt_tokens => 100",
        "prompt_tokens => 100",
        "completion_tokens => 10",
        "100, 10, latency_ms => 7",
        "model => 'gpt-4o'",
        "100, 10, 'gpt-4o'",
    ] {
        member.run(&format!("select finish_message('{message}', {figures})"));
    }
    assert_eq!(
        events(&books, message),
        [
            "message: usage 100 0 ",
            "message:/2 usage 0 10 ",
            "void:message: void -100 0 ",
            "message:/3 usage 100 0 gpt-4o",
            "void:message:/2 void 0 -10 ",
            "message:/4 usage 0 10 gpt-4o",
        ]
    );
    let sum: String = books.database.superuser().value(
        "select format('%s %s %s %s', sum(prompt_tokens), sum(completion_tokens), \
         sum(request_count), sum(cost)) from usage_totals",
    );
    assert_eq!(sum, "100 10 1 0.00130");
    // Each part is priced as it is; to price them again changes nothing.
    let again = "select count(*) from recalculate_costs('2000-01-01', '2100-01-01', false)";
    assert_eq!(books.service().value::<i64>(again), 0);
    books.agree();
    // Other figures are refused, and recorded nowhere.
    assert_eq!(member.error(&format!("select finish_message('{message}', 101)")).0, "55000");
    assert_eq!(events(&books, message).len(), 6);
    // A stopped message is finished by its producer.
    let message = begin(&mut member, conversation, "");
    member.run(&format!(
        "select stop_message('{message}'); select finish_message('{message}', 5, 6)"
    ));
    assert_eq!(events(&books, message), ["message: usage 5 6 "]);
    books.agree();
}

#[test]
fn a_model_that_comes_after_a_repricing_leaves_nothing_of_it() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    let message = begin(&mut member, conversation, "");
    member.run(&format!("select finish_message('{message}', prompt_tokens => 100)"));
    member.run(&format!("select finish_message('{message}', completion_tokens => 10)"));
    let mut service = books.service();
    // A price for all models, for now.
    service.run(
        "insert into model_prices (pattern, usage_type, unit_price) \
         values ('%', 'prompt_tokens', 1), ('%', 'completion_tokens', 1)",
    );
    let recalculate = "select count(*) from recalculate_costs('-infinity', 'infinity', false)";
    let cost = "select trim_scale(sum(cost))::text from usage_totals";
    assert_eq!(service.value::<i64>(recalculate), 1);
    assert_eq!(service.value::<String>(cost), "110");
    member.run(&format!("select finish_message('{message}', model => 'gpt-4o')"));
    assert_eq!(service.value::<String>(cost), "0.0013");
    assert_eq!(service.value::<i64>(recalculate), 0);
    books.agree();
}

#[test]
fn what_was_voided_by_the_service_stays_so() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    let message = begin(&mut member, conversation, "");
    member.run(&format!("select finish_message('{message}', prompt_tokens => 5)"));
    books.service().void(books.tenant(), &format!("message:{message}")).unwrap();
    member.run(&format!("select finish_message('{message}', prompt_tokens => 5)"));
    member.run(&format!("select finish_message('{message}', completion_tokens => 5)"));
    assert_eq!(events(&books, message), ["message: usage 5 0 ", "void:message: void -5 0 "]);
    books.agree();
}

#[test]
fn of_many_who_finish_a_message_one_records_it() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    for _ in 0..10 {
        let message = begin(&mut member, conversation, "");
        let start = Barrier::new(6);
        thread::scope(|scope| {
            for n in 0..6 {
                let (books, start) = (&books, &start);
                scope.spawn(move || {
                    let mut session = books.database.member(books.user());
                    let figures = ["prompt_tokens => 5", "completion_tokens => 6", "5, 6"][n % 3];
                    start.wait();
                    session.run(&format!("select finish_message('{message}', {figures})"));
                });
            }
        });
        let sum: String = books.database.superuser().value(&format!(
            "select format('%s %s %s', sum(prompt_tokens), sum(completion_tokens), sum(request_count)) \
             from usage_events where idempotency_key ~ '{message}'"
        ));
        assert_eq!(sum, "5 6 1");
    }
    books.agree();
}

#[test]
fn an_answer_is_charged_to_whom_it_answers() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    let other = books.tenants[0].users[1];
    let mut owner = books.database.superuser();
    owner.run(&format!(
        "insert into conversation_members (conversation_id, user_id, role) \
         values ('{conversation}', '{other}', 'editor')"
    ));
    let question: Uuid = books
        .database
        .member(other)
        .value(&format!("select message_id from add_message('{conversation}', 'user', 'what?')"));
    let mut service = books.service();
    // The producer is a program; its messages have no author.
    let cases = [
        (begin(&mut service, conversation, &format!(", parent_id => '{question}'")), other),
        (begin(&mut service, conversation, ""), books.user()),
        (begin(&mut member, conversation, &format!(", parent_id => '{question}'")), books.user()),
    ];
    for (message, user) in cases {
        service.run(&format!("select finish_message('{message}', 1, 1)"));
        let found: Uuid = owner.value(&format!(
            "select user_id from usage_events where idempotency_key = 'message:{message}'"
        ));
        assert_eq!(found, user);
    }
    books.agree();
}

#[test]
fn finishing_does_not_fail_for_reasons_of_usage() {
    let setups = [
        // Whoever wrote it is gone.
        "delete from users where id = '$author'",
        "update users set is_active = false where id = '$author'; update tenants set is_active = false",
        "update messages set model_used = repeat('é', 5000) where id = '$m'",
        "update messages set model_used = '' where id = '$m'",
        "update tenants set time_zone = 'Pacific/Kiritimati'",
        "delete from model_prices",
        "update conversations set deleted_at = now()",
        "alter table usage_totals add column note text; alter table usage_days add column note text; \
         alter table usage_months add column note text",
    ];
    for setup in setups {
        let books = Books::new();
        let (_, conversation) = talk(&books);
        let mut service = books.service();
        let message = begin(&mut service, conversation, "");
        let author = books.tenants[0].users[2];
        books.database.superuser().run(&format!(
            "update messages set author_id = '{author}' where id = '{message}'; {}",
            setup.replace("$author", &author.to_string()).replace("$m", &message.to_string())
        ));
        let finish = format!("select finish_message('{message}', 2147483647, 2147483647)");
        service.batch_execute(&finish).unwrap_or_else(|e| panic!("{setup}: {}", describe(&e)));
        service.run(&finish);
        let found: i64 = service.value(&format!(
            "select count(*) from usage_events where idempotency_key = 'message:{message}' \
             and user_id = '{author}' and char_length(model) <= 200"
        ));
        assert_eq!(found, 1, "{setup}");
        books.agree();
    }
}

/// Whoever may write in a conversation may purge it, and choose the ids and times of new messages.
#[test]
fn a_message_made_anew_takes_nothing_back() {
    let books = Books::new();
    let (mut member, mut conversation) = talk(&books);
    let message = begin(&mut member, conversation, "");
    let mut service = books.service();
    service.run(&format!("select finish_message('{message}', 1000, 100, 'gpt-4o')"));
    for (status, content, completed_at) in [
        ("streaming", "", "null"),
        ("completed", "x", "'2020-02-02'"),
        ("completed", "x", "'infinity'"),
    ] {
        member.run(&format!("select purge_conversation('{conversation}')"));
        // A session remembers whose the message was.
        member = books.database.member(books.user());
        conversation = member.value("select create_conversation('anew')");
        member.run(&format!(
            "insert into messages (id, conversation_id, role, status, content, completed_at) \
             values ('{message}', '{conversation}', 'assistant', '{status}', '{content}', {completed_at}); \
             select finish_message('{message}', 0, 0, 'gpt-4o')"
        ));
    }
    let sum: String = books.database.superuser().value(
        "select format('%s %s', sum(prompt_tokens), sum(completion_tokens)) from usage_totals \
         where date between current_date - 1 and current_date + 1",
    );
    assert_eq!(sum, "1000 100");
    books.agree();
}

#[test]
fn where_members_are_not_believed_the_service_notes_figures() {
    let books = Books::new();
    let (mut member, conversation) = talk(&books);
    books.database.superuser().run(&format!(
        "update tenants set features = '{{\"figures_from_members\": false}}' where id = '{}'",
        books.tenant()
    ));
    let message = begin(&mut member, conversation, ", reserve_tokens => 50");
    for figures in ["0, 0", "prompt_tokens => 5", "model => 'gpt-4o'"] {
        let (code, _) = member.error(&format!("select finish_message('{message}', {figures})"));
        assert_eq!(code, "42501", "{figures}");
    }
    member.run(&format!("select finish_message('{message}', latency_ms => 5)"));
    assert!(events(&books, message).is_empty());
    books.service().run(&format!("select finish_message('{message}', 1000, 100, 'gpt-4o')"));
    assert_eq!(events(&books, message), ["message: usage 1000 100 gpt-4o"]);
    let settled = |message: Uuid| -> Option<i64> {
        books
            .database
            .superuser()
            .value(&format!("select settled from token_reservations where id = '{message}'"))
    };
    assert_eq!(settled(message), Some(1100));
    // To say that it failed gives nothing back, either.
    let message = begin(&mut member, conversation, ", reserve_tokens => 50");
    member.run(&format!("select fail_message('{message}', 'no')"));
    assert_eq!(settled(message), None);
    books.agree();
}
