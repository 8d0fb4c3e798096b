//! The state machine of a message: every state against every call.

use pg_conversation_tests::{Client, Session, Uuid};

use crate::desk::{Desk, Stream, code};

/// Ways to get a message into a state; `$m` is an open message without text.
const STATES: [(&str, &[&str]); 13] = [
    ("pending", &[]),
    ("begun", &[]),
    ("streaming", &["append_chunks($m, array['a', 'b', 'c'])"]),
    (
        "interrupted",
        &["append_chunks($m, array['a', 'b', 'c'])", "recover_stalled_messages('0 s')"],
    ),
    ("completed", &["append_chunks($m, array['a', 'b', 'c'])", "finish_message($m)"]),
    ("stopped", &["append_chunks($m, array['a', 'b', 'c'])", "stop_message($m)"]),
    ("clamped", &["append_chunks($m, array['a', 'b', 'c'])", "stop_message($m, 2)"]),
    ("failed", &["append_chunks($m, array['a', 'b', 'c'])", "fail_message($m, 'boom')"]),
    (
        "cleaned",
        &[
            "append_chunks($m, array['a', 'b', 'c'])",
            "finish_message($m)",
            "cleanup_streaming_artifacts($m)",
        ],
    ),
    (
        "stopped, cleaned",
        &[
            "append_chunks($m, array['a', 'b', 'c'])",
            "stop_message($m)",
            "cleanup_streaming_artifacts($m)",
        ],
    ),
    ("of an older client", &[]),
    ("written at once", &[]),
    ("unknown", &[]),
];

const CALLS: [&str; 15] = [
    "append_chunk($m, 'd')",
    "append_chunk($m, 'd', 3)",
    "append_chunk($m, 'd', 0)",
    "append_chunk($m, 'd', null, true)",
    "append_chunks($m, '{}')",
    "finish_message($m)",
    "finish_message($m, prompt_tokens => 7)",
    "fail_message($m, 'boom')",
    "fail_message($m, 'other')",
    "stop_message($m)",
    "stop_message($m, 1)",
    "resume_message($m)",
    "cleanup_streaming_artifacts($m)",
    "read_stream($m)",
    "reconstruct_message($m)",
];

/// What becomes of the message: its state and text, or an SQLSTATE and no change. In the order of
/// CALLS; "=" stands for no error and no change.
#[rustfmt::skip]
const TABLE: [[&str; 15]; 13] = [
    // pending: nothing written yet
    [
        "streaming d", "55000", "streaming d", "completed d", "=", "completed ", "completed ",
        "failed ", "failed ", "stopped ", "stopped ", "=|24000|streaming ", "=", "=", "=",
    ],
    // begun: streaming, without a chunk
    [
        "streaming d", "55000", "streaming d", "completed d", "=", "completed ", "completed ",
        "failed ", "failed ", "stopped ", "stopped ", "=", "=", "=", "=",
    ],
    // streaming
    [
        "streaming abcd", "streaming abcd", "23505", "completed abcd", "=", "completed abc",
        "completed abc", "failed abc", "failed abc", "stopped abc", "stopped a", "=", "=", "=",
        "=",
    ],
    // interrupted
    [
        "24000", "24000", "24000|23505", "24000", "=|24000", "completed abc", "completed abc",
        "failed abc", "failed abc", "stopped abc", "stopped a", "streaming abc", "=", "=", "=",
    ],
    // completed
    [
        "24000", "24000", "24000|23505", "24000", "=|24000", "=", "=", "24000", "24000", "24000",
        "24000", "24000", "=", "=", "=",
    ],
    // stopped
    ["=", "=", "=", "=", "=", "=", "=", "24000", "24000", "=", "=", "24000", "=", "=", "="],
    // clamped: stopped where the reader was
    ["=", "=", "=", "=", "=", "=", "=", "24000", "24000", "=", "=", "24000", "=", "=", "="],
    // failed
    [
        "24000", "24000", "24000|23505", "24000", "=|24000", "24000", "24000", "=", "24000|55000",
        "24000", "24000", "24000", "=", "=", "=",
    ],
    // cleaned
    [
        "24000", "24000", "24000|23505", "24000", "=|24000", "=", "=", "24000", "24000", "24000",
        "24000", "24000", "=", "=", "=",
    ],
    // stopped, cleaned
    ["=", "=", "=", "=", "=", "=", "=", "24000", "24000", "=", "=", "24000", "=", "=", "="],
    // of an older client: completed, but nothing written yet
    [
        "streaming d", "55000", "streaming d", "completed d", "=", "completed |=", "completed |=",
        "failed ", "failed ", "stopped ", "stopped ", "=|24000|streaming ", "=", "=", "=",
    ],
    // written at once, by INSERT or add_message
    [
        "24000", "24000", "24000|23505", "24000", "=|24000", "24000", "24000", "24000", "24000", "24000",
        "24000", "24000", "=", "=", "=",
    ],
    // unknown
    [
        "P0002", "P0002", "P0002", "P0002", "P0002", "P0002", "P0002", "P0002", "P0002", "P0002",
        "P0002", "P0002", "P0002", "P0002", "=",
    ],
];

struct Machine<'a> {
    desk: &'a Desk<'a>,
    member: Client,
    service: Client,
}

impl Machine<'_> {
    fn message(&mut self, state: &str, steps: &[&str]) -> Uuid {
        let insert = |rest: &str| {
            let c = self.desk.conversation;
            format!("insert into messages (conversation_id, role, {rest}) returning id")
                .replace("$c", &c.to_string())
        };
        let message = match state {
            "unknown" => Uuid::new_v4(),
            "pending" => self.member.value(&insert("status) values ('$c', 'assistant', 'pending'")),
            "of an older client" => {
                self.member.value(&insert("content) values ('$c', 'assistant', ''"))
            }
            "written at once" => {
                self.member.value(&insert("content) values ('$c', 'assistant', 'abc'"))
            }
            _ => self.member.open(self.desk.conversation),
        };
        for step in steps {
            let sql = format!("select {}", step.replace("$m", &format!("'{message}'")));
            // The clean-up of all messages is the service's.
            let client =
                if step.contains("recover") { &mut self.service } else { &mut self.member };
            client.run(&sql);
        }
        message
    }

    /// State, text and all that is kept of it.
    fn look(&mut self, message: Uuid) -> (String, String) {
        let row = self
            .service
            .query_opt(
                "select status || ' ' || coalesce(reconstruct_message(id), ''), to_jsonb(m)::text \
                 from messages m where id = $1",
                &[&message],
            )
            .unwrap();
        row.map_or_else(Default::default, |row| (row.get(0), row.get(1)))
    }
}

#[test]
fn every_call_in_every_state_moves_the_message_or_is_refused() {
    let desk = Desk::new();
    let mut machine = Machine { desk: &desk, member: desk.member(), service: desk.service() };
    let mut wrong = Vec::new();
    for ((state, steps), expected) in STATES.iter().zip(TABLE) {
        for (call, expected) in CALLS.iter().zip(expected) {
            let message = machine.message(state, steps);
            let before = machine.look(message);
            let sql = format!("select {}", call.replace("$m", &format!("'{message}'")));
            let error = machine.member.execute(&sql, &[]).err();
            let after = machine.look(message);
            let found = match &error {
                Some(error) => code(error).to_string(),
                None if after.0 == before.0 => "=".to_string(),
                None => after.0.clone(),
            };
            if !expected.split('|').any(|one| one == found) {
                wrong.push(format!("{state}: {call}: {found:?}, not {expected:?}"));
            }
            if error.is_some() && before != after {
                wrong
                    .push(format!("{state}: {call}: refused, and changed {before:?} to {after:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_interrupted_message_says_how_to_go_on() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let message = member.open(desk.conversation);
    member.window(message, &["a", "b", "c"], Some(0)).unwrap();
    assert_eq!(service.value::<i32>("select recover_stalled_messages('0 s')"), 1);
    let stored: String =
        member.value(&format!("select content from messages where id = '{message}'"));
    assert_eq!(stored, "abc", "the partial text is kept with the message");
    let error = member.append(message, "d", Some(3)).unwrap_err();
    let hint = error.as_db_error().and_then(|db| db.hint()).unwrap_or_default();
    assert_eq!(code(&error), "24000");
    assert!(hint.contains("resume_message"), "{hint}");
    let resume = format!("select resume_message('{message}')");
    assert_eq!(member.value::<i32>(&resume), 3);
    assert_eq!(member.value::<i32>(&resume), 3, "asked again by a producer that lost the answer");
    assert_eq!(member.append(message, "d", Some(3)).unwrap().next, 4);
    assert_eq!(member.append(message, "b", Some(1)).unwrap().next, 4);
    member.append_last(message, "e", Some(4)).unwrap();
    assert_eq!(
        (member.status(message).as_str(), member.text(message).unwrap().as_str()),
        ("completed", "abcde")
    );
}

#[test]
fn a_message_may_be_interrupted_and_resumed_time_and_again() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let message = member.open(desk.conversation);
    for i in 0..5 {
        member.append(message, &format!("{i} "), Some(i)).unwrap();
        assert_eq!(service.value::<i32>("select recover_stalled_messages('0 s')"), 1);
        assert_eq!(service.value::<i32>("select recover_stalled_messages('0 s')"), 0);
        assert_eq!(member.value::<i32>(&format!("select resume_message('{message}')")), i + 1);
    }
    member.finish(message).unwrap();
    assert_eq!(member.text(message).unwrap(), "0 1 2 3 4 ");
}

#[test]
fn no_call_leaves_a_finished_text_without_its_state_or_a_state_without_its_time() {
    let desk = Desk::new();
    let mut machine = Machine { desk: &desk, member: desk.member(), service: desk.service() };
    for (state, steps) in STATES.iter().filter(|(state, _)| !["unknown", "pending"].contains(state))
    {
        machine.message(state, steps);
    }
    let broken: Vec<String> = machine.service.values(
        "select status || ' ' || coalesce(content, 'null') || ' ' || coalesce(completed_at::text, '-') \
         from messages where status in ('completed', 'stopped', 'failed') and content <> '' \
         and completed_at is null and stream_started_at is not null \
         or status in ('pending', 'streaming') and completed_at is not null \
         or status = 'failed' and error is null",
    );
    assert!(broken.is_empty(), "{broken:#?}");
}
