//! How messages begin and end: retry keys, figures, errors, and stops where the reader was.

use pg_conversation_tests::{Session, Uuid};

use crate::desk::{Answer, Desk, Reader, Stream, code};

#[test]
fn a_message_begun_again_with_its_key_is_the_same_message() {
    let desk = Desk::new();
    let mut member = desk.member();
    let (c, other) = (desk.conversation, desk.another_conversation());
    let key = "client_message_id => 'k'";
    let message: Uuid = member.value(&format!("select begin_message('{c}', {key})"));
    let again = format!("select begin_message('{c}', 'assistant', {key})");
    assert_eq!(member.value::<Uuid>(&again), message);
    member.append(message, "a", None).unwrap();
    assert_eq!(member.value::<Uuid>(&again), message, "in mid-stream");
    assert_eq!(
        (member.text(message).unwrap().as_str(), member.status(message).as_str()),
        ("a", "streaming")
    );
    member.finish(message).unwrap();
    assert_eq!(member.value::<Uuid>(&again), message, "after its end");
    assert_eq!(member.status(message), "completed");
    // The same key is another message's in another conversation.
    let elsewhere: Uuid = member.value(&format!("select begin_message('{other}', {key})"));
    assert_ne!(elsewhere, message);
    // And used for another message, it is refused.
    assert_eq!(member.error(&format!("select begin_message('{c}', 'tool', {key})")).0, "23505");
    member.run(&format!("select add_message('{c}', 'assistant', 'at once', 'written')"));
    let written = format!("select begin_message('{c}', client_message_id => 'written')");
    assert_eq!(member.error(&written).0, "23505");
    let count: i64 =
        member.value(&format!("select count(*) from messages where conversation_id = '{c}'"));
    assert_eq!(count, 2);
}

#[test]
fn what_cannot_begin_is_refused_in_the_words_of_messages() {
    let desk = Desk::new();
    let mut member = desk.member();
    let (c, other) = (desk.conversation, desk.another_conversation());
    let parent: Uuid =
        member.value(&format!("select message_id from add_message('{other}', 'user', 'hi')"));
    let cases = [
        (format!("'{}'", Uuid::new_v4()), "P0002"),
        ("null".into(), "22004"),
        (format!("'{c}', 'robot'"), "22023"),
        (format!("'{c}', parent_id => '{parent}'"), "P0002"),
        (format!("'{c}', parent_id => '{}'", Uuid::new_v4()), "P0002"),
        (format!("'{c}', metadata => '[]'"), "23514"),
        (format!("'{c}', client_message_id => repeat('k', 201)"), "23514"),
    ];
    for (arguments, expected) in cases {
        let (code, words) = member.error(&format!("select begin_message({arguments})"));
        assert_eq!(code, expected, "{arguments}: {words}");
    }
    member
        .run(&format!("select begin_message('{c}', 'tool', null, 'k', 'model-1', '{{\"a\": 1}}')"));
    let found: String = member.value(&format!(
        "select concat_ws(' ', role, status, model_used, metadata, '[' || content || ']', \
         completed_at is null) from messages \
         where conversation_id = '{c}' and client_message_id = 'k'"
    ));
    assert_eq!(found, "tool streaming model-1 {\"a\": 1} [] t");
}

#[test]
fn figures_are_written_once() {
    // Calls of finish_message in turn, what each answers, and the figures afterwards.
    type Calls = &'static [(&'static str, &'static str)];
    let cases: &[(&str, Calls, &str)] = &[
        ("", &[("", "ok"), ("", "ok")], "completed - - - -"),
        ("", &[("10, 20, 'm', 300", "ok"), ("10, 20, 'm', 300", "ok")], "completed 10 20 m 300"),
        ("", &[("", "ok"), ("10, 20, 'm', 300", "ok")], "completed 10 20 m 300"),
        ("", &[("10", "ok"), ("10, 20", "ok"), ("latency_ms => 5", "ok")], "completed 10 20 - 5"),
        ("", &[("10", "ok"), ("", "ok"), ("null, 20", "ok")], "completed 10 20 - -"),
        ("", &[("10, 20", "ok"), ("11, 20", "55000")], "completed 10 20 - -"),
        ("", &[("10, 20", "ok"), ("10, 21, 'm'", "55000")], "completed 10 20 - -"),
        ("", &[("model => 'm'", "ok"), ("model => 'n'", "55000")], "completed - - m -"),
        ("", &[("latency_ms => 5", "ok"), ("latency_ms => 6", "55000")], "completed - - - 5"),
        (
            "",
            &[("0, 0, null, 0", "ok"), ("0, 0, null, 0", "ok"), ("1", "55000")],
            "completed 0 0 - 0",
        ),
        ("", &[("-1", "23514|22023"), ("1", "ok")], "completed 1 - - -"),
        (
            "append_chunk($m, 'z', null, true)",
            &[("10, 20", "ok"), ("10, 20", "ok"), ("9", "55000")],
            "completed 10 20 - -",
        ),
        (
            "stop_message($m)",
            &[("10, 20", "ok"), ("10, 20", "ok"), ("9", "55000")],
            "stopped 10 20 - -",
        ),
        ("stop_message($m, 0)", &[("", "ok"), ("10, 20", "ok")], "stopped 10 20 - -"),
        ("fail_message($m, 'e')", &[("10, 20", "24000")], "failed - - - -"),
    ];
    let desk = Desk::new();
    let mut member = desk.member();
    let mut wrong = Vec::new();
    for (before, calls, expected) in cases {
        let message = member.open(desk.conversation);
        member.append(message, "a", None).unwrap();
        if !before.is_empty() {
            member.run(&format!("select {}", before.replace("$m", &format!("'{message}'"))));
        }
        let text = member.text(message);
        for (arguments, expected) in *calls {
            let comma = if arguments.is_empty() { "" } else { ", " };
            let sql = format!("select finish_message('{message}'{comma}{arguments})");
            let found = member
                .batch_execute(&sql)
                .map_or_else(|error| code(&error).into(), |()| "ok".to_string());
            if !expected.split('|').any(|one| one == found) {
                wrong.push(format!("{before} {calls:?}: {arguments}: {found}, not {expected}"));
            }
        }
        let found: String = member.value(&format!(
            "select concat_ws(' ', status, coalesce(prompt_token_count::text, '-'), \
             coalesce(completion_token_count::text, '-'), coalesce(model_used, '-'), \
             coalesce(latency_ms::text, '-')) from messages where id = '{message}'"
        ));
        if found != *expected {
            wrong.push(format!("{before} {calls:?}: {found}, not {expected}"));
        }
        assert_eq!(member.text(message), text);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn metadata_given_at_the_end_is_there_and_costs_none_of_the_beginning() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message: Uuid = member.value(&format!(
        "select begin_message('{}', metadata => '{{\"request\": 1}}')",
        desk.conversation
    ));
    let finish =
        format!("select finish_message('{message}', metadata => '{{\"reason\": \"length\"}}')");
    member.run(&finish);
    member.run(&finish);
    let metadata: String =
        member.value(&format!("select metadata::text from messages where id = '{message}'"));
    assert_eq!(metadata, "{\"reason\": \"length\", \"request\": 1}");
}

#[test]
fn a_failed_message_keeps_its_text_and_says_why() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    member.window(message, &["half ", "a sen"], None).unwrap();
    let fail = format!("select fail_message('{message}', 'provider: 529 overloaded')");
    member.run(&fail);
    member.run(&fail);
    let found: String = member.value(&format!(
        "select concat_ws('|', status, content, error) from messages where id = '{message}'"
    ));
    assert_eq!(found, "failed|half a sen|provider: 529 overloaded");
    assert_eq!(member.text(message).unwrap(), "half a sen");
    let null = member.open(desk.conversation);
    assert_eq!(member.error(&format!("select fail_message('{null}', null)")).0, "22004");
    assert_eq!(member.status(null), "streaming");
}

#[test]
fn a_stop_keeps_as_many_characters_as_the_reader_saw() {
    let chunks = ["a\u{f1}", "\u{1f600}", "", "e\u{301}\u{6f22}", "z"];
    let whole: Vec<char> = chunks.concat().chars().collect();
    let desk = Desk::new();
    let mut member = desk.member();
    let mut reader_member = desk.member();
    for seen in 0..whole.len() + 3 {
        let text: String = whole.iter().take(seen).collect();
        let message = member.open(desk.conversation);
        member.window(message, &chunks, Some(0)).unwrap();
        // One reader has all of it, the other nothing.
        let mut ahead = Reader::new();
        ahead.take(&reader_member.read(message, -1, 1000).unwrap());
        assert_eq!(ahead.text, chunks.concat());
        member.stop(message, Some(seen as i32)).unwrap();
        let stored: String = member.value(&format!(
            "select status || '|' || content from messages where id = '{message}'"
        ));
        assert_eq!(stored, format!("stopped|{text}"), "seen {seen}");
        assert_eq!(member.text(message).unwrap(), text, "seen {seen}");
        let mut behind = Reader::new();
        for reader in [&mut ahead, &mut behind] {
            let pieces = reader_member.read(message, reader.after, 1000).unwrap();
            if seen < whole.len() {
                assert!(pieces.len() == 1 && pieces[0].whole, "{pieces:?}");
            }
            reader.take(&pieces);
            assert!(reader.done && reader.text == text, "seen {seen}: {reader:?}");
        }
        if seen < whole.len() {
            assert_eq!(member.chunks(message), 0, "what was cut away is gone");
        }
        // A second stop, whatever it says, changes nothing; nor does the producer.
        member.stop(message, Some(1)).unwrap();
        member.stop(message, None).unwrap();
        assert!(member.append(message, "more", None).unwrap().stop);
        assert!(member.append(message, "more", Some(5)).unwrap().stop);
        member.finish(message).unwrap();
        assert_eq!(member.text(message).unwrap(), text, "seen {seen}");
        assert_eq!(member.status(message), "stopped");
    }
    let message = member.open(desk.conversation);
    member.append(message, "abc", None).unwrap();
    let _ = member.stop(message, Some(-1));
    assert!(["", "abc"].contains(&member.text(message).unwrap().as_str()));
}

#[test]
fn a_stopped_producer_learns_it_with_its_next_append() {
    let desk = Desk::new();
    let (mut producer, mut reader) = (desk.member(), desk.member());
    let message = producer.open(desk.conversation);
    assert_eq!(producer.append(message, "a", Some(0)).unwrap(), Answer { next: 1, stop: false });
    reader.stop(message, None).unwrap();
    for _ in 0..3 {
        assert_eq!(producer.append(message, "b", Some(1)).unwrap(), Answer { next: 1, stop: true });
    }
    assert_eq!(producer.window(message, &["b"; 0], None).unwrap(), Answer { next: 1, stop: true });
    producer.run(&format!("select finish_message('{message}', 5, 1)"));
    let found: String = reader.value(&format!(
        "select concat_ws(' ', status, content, prompt_token_count) from messages where id = '{message}'"
    ));
    assert_eq!(found, "stopped a 5");
}
