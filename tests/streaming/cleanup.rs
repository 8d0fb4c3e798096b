//! Clean-up takes chunks of final messages, never a text; what has stalled is told from what runs.

use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Session, Uuid};

use crate::desk::{Desk, Stream};

/// Moves all that is known of a message into the past.
fn age(superuser: &mut Client, message: Uuid, by: &str) {
    superuser.run(&format!(
        "set session_replication_role = replica; \
         update messages set created_at = created_at - interval '{by}', \
         stream_started_at = stream_started_at - interval '{by}', \
         completed_at = completed_at - interval '{by}' where id = '{message}'; \
         update message_chunks set created_at = created_at - interval '{by}' \
         where message_id = '{message}'; \
         reset session_replication_role"
    ));
}

fn age_chunks(superuser: &mut Client, message: Uuid, by: &str, which: &str) {
    superuser.run(&format!(
        "set session_replication_role = replica; \
         update message_chunks set created_at = created_at - interval '{by}' \
         where message_id = '{message}' and {which}; reset session_replication_role"
    ));
}

#[test]
fn only_final_messages_give_up_their_chunks_and_keep_their_text() {
    let cases = [
        ("", 0, "abc"),
        ("finish_message($m)", 3, "abc"),
        ("append_chunk($m, 'd', 3, true)", 4, "abcd"),
        ("stop_message($m)", 3, "abc"),
        ("stop_message($m, 2)", 0, "ab"),
        ("fail_message($m, 'e')", 3, "abc"),
        ("recover_stalled_messages('0 s')", 0, "abc"),
    ];
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    for (end, expected, text) in cases {
        let message = member.open(desk.conversation);
        member.window(message, &["a", "b", "c"], Some(0)).unwrap();
        if !end.is_empty() {
            let client = if end.contains("recover") { &mut service } else { &mut member };
            client.run(&format!("select {}", end.replace("$m", &format!("'{message}'"))));
        }
        let clean = format!("select cleanup_streaming_artifacts('{message}')");
        let before = (member.status(message), member.chunks(message));
        assert_eq!(member.value::<i32>(&clean), expected, "{end}");
        assert_eq!(member.text(message).unwrap(), text, "{end}");
        assert_eq!(member.chunks(message), before.1 - i64::from(expected), "{end}");
        assert_eq!(member.value::<i32>(&clean), 0, "{end}: a second time");
        assert_eq!(member.status(message), before.0, "{end}");
        if expected == 0 && !end.contains("stop") {
            // What is not final can go on.
            if end.contains("recover") {
                member.run(&format!("select resume_message('{message}')"));
            }
            member.append_last(message, "z", Some(3)).unwrap();
            assert_eq!(member.text(message).unwrap(), "abcz", "{end}");
        }
    }
    let unknown = format!("select cleanup_streaming_artifacts('{}')", Uuid::new_v4());
    assert_eq!(member.error(&unknown).0, "P0002");
    // A clean-up that is undone has taken nothing.
    let message = member.open(desk.conversation);
    member.append_last(message, "a", None).unwrap();
    member.run(&format!("begin; select cleanup_streaming_artifacts('{message}'); rollback"));
    assert_eq!((member.chunks(message), member.text(message).unwrap().as_str()), (1, "a"));
}

#[test]
fn the_clean_up_of_all_takes_what_was_finished_long_enough_ago() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let mut superuser = desk.database.superuser();
    let mut make = |tokens: usize, end: &str| {
        let message = member.open(desk.conversation);
        for _ in 0..tokens {
            member.append(message, "t ", None).unwrap();
        }
        if !end.is_empty() {
            member.run(&format!("select {}", end.replace("$m", &format!("'{message}'"))));
        }
        message
    };
    // How many chunks, how it ended, how long ago; whether an hour is long enough.
    let messages = [
        (make(1, "finish_message($m)"), "2 h", true),
        (make(2, "stop_message($m)"), "2 h", true),
        (make(4, "fail_message($m, 'e')"), "61 min", true),
        (make(8, "finish_message($m)"), "50 min", false),
        (make(16, "finish_message($m)"), "0", false),
        (make(32, ""), "2 h", false),
    ];
    for (message, ago, _) in &messages {
        age(&mut superuser, *message, ago);
    }
    assert_eq!(service.value::<i32>("select cleanup_finished_streams(interval '1 hour')"), 7);
    for (message, ago, taken) in &messages {
        assert_eq!(service.chunks(*message) == 0, *taken, "{ago}");
        let text = service.text(*message).unwrap();
        assert!(!text.is_empty() && text.replace("t ", "").is_empty(), "{ago}: {text}");
    }
    let all = "select cleanup_finished_streams(older_than => interval '0')";
    assert_eq!(service.value::<i32>(all), 24);
    assert_eq!(service.value::<i32>(all), 0);
    assert_eq!(service.chunks(messages[5].0), 32, "it streams still");
}

#[test]
fn the_clean_up_of_all_takes_so_many_messages_at_once_and_gets_through() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let messages: Vec<Uuid> = (0..7)
        .map(|_| {
            let message = member.open(desk.conversation);
            member.window(message, &["a", "b", "c"], None).unwrap();
            member.finish(message).unwrap();
            message
        })
        .collect();
    // One that never had a chunk, and one that was stopped, must not hold up the rest.
    for end in ["finish_message", "stop_message"] {
        let empty = member.open(desk.conversation);
        member.run(&format!("select {end}('{empty}')"));
    }
    let mut taken = Vec::new();
    for _ in 0..20 {
        taken.push(service.value::<i32>("select cleanup_finished_streams(interval '0', 2)"));
        assert!(taken.last().is_some_and(|n| (0..=6).contains(n)), "{taken:?}");
    }
    assert_eq!(taken.iter().sum::<i32>(), 21, "{taken:?}");
    assert!(messages.iter().all(|message| member.text(*message).unwrap() == "abc"));
}

#[test]
fn the_clean_up_of_all_waits_for_nobody() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let mut holder = desk.database.superuser();
    let messages: Vec<Uuid> = (0..5)
        .map(|_| {
            let message = member.open(desk.conversation);
            member.window(message, &["a", "b"], None).unwrap();
            message
        })
        .collect();
    for message in &messages[..4] {
        member.finish(*message).unwrap();
    }
    // A row is locked by somebody, one message is being cleaned, one is being written.
    holder.run(&format!("begin; select from messages where id = '{}' for update", messages[0]));
    let mut cleaner = desk.service();
    cleaner.run(&format!("begin; select cleanup_streaming_artifacts('{}')", messages[1]));
    member.run("begin");
    member.append(messages[4], "c", None).unwrap();
    service.run("set statement_timeout = '5s'");
    let start = Instant::now();
    let taken: i32 = service.value("select cleanup_finished_streams(interval '0')");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(taken, 6, "all but the one that is being cleaned");
    let start = Instant::now();
    service.run("select recover_stalled_messages('0 s')");
    assert!(start.elapsed() < Duration::from_secs(2), "recovery waits for a producer");
    // However few it is asked for, those who hang do not keep it from the others.
    let stalled = desk.member().open(desk.conversation);
    assert_eq!(service.value::<i32>("select recover_stalled_messages('0 s', 1)"), 1);
    assert_eq!(service.status(stalled), "interrupted");
    cleaner.run("rollback");
    holder.run("rollback");
    member.run("commit");
    assert_eq!(service.value::<i32>("select cleanup_finished_streams(interval '0')"), 2);
    assert_eq!(service.text(messages[4]).unwrap(), "abc");
}

#[test]
fn chunks_whose_message_is_gone_are_removed() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let mut superuser = desk.database.superuser();
    let messages: Vec<Uuid> = (0..4).map(|_| member.open(desk.conversation)).collect();
    for message in &messages {
        member.window(*message, &["a", "b", "c"], None).unwrap();
    }
    superuser.run(&format!(
        "set session_replication_role = replica; \
         delete from messages where id in ('{}', '{}'); reset session_replication_role",
        messages[0], messages[1]
    ));
    assert_eq!(superuser.chunks(messages[0]), 3, "nothing has cleared them away yet");
    assert_eq!(member.chunks(messages[0]), 0, "nobody sees chunks of no message");
    let taken: i32 = service.value("select cleanup_finished_streams(interval '0')");
    assert_eq!(taken, 6);
    let counts = messages.map_chunks(&mut superuser);
    assert_eq!(counts, [0, 0, 3, 3]);
    // What is deleted as usual takes its chunks along.
    service.run(&format!("delete from messages where id = '{}'", messages[2]));
    member.run(&format!("select purge_conversation('{}')", desk.conversation));
    assert_eq!(messages.map_chunks(&mut superuser), [0, 0, 0, 0]);
}

trait MapChunks {
    fn map_chunks(&self, client: &mut Client) -> Vec<i64>;
}

impl MapChunks for Vec<Uuid> {
    fn map_chunks(&self, client: &mut Client) -> Vec<i64> {
        self.iter().map(|message| client.chunks(*message)).collect()
    }
}

#[test]
fn interrupted_messages_keep_their_chunks_for_a_day() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let mut superuser = desk.database.superuser();
    let message = member.open(desk.conversation);
    member.window(message, &["a", "b", "c"], None).unwrap();
    service.run("select recover_stalled_messages('0 s')");
    for (ago, expected) in [("1 h", 0), ("20 h", 0), ("4 h", 3)] {
        age(&mut superuser, message, ago);
        let taken: i32 = service.value("select cleanup_finished_streams(interval '0')");
        assert_eq!(taken, expected, "{ago} more");
        assert_eq!(member.text(message).unwrap(), "abc");
    }
    // Cleaned, it may still be resumed or refuse to be, but its text never goes.
    let _ = member.batch_execute(&format!("select resume_message('{message}')"));
    assert_eq!(member.text(message).unwrap(), "abc");
    let _ = member.append(message, "d", None);
    let text = member.text(message).unwrap();
    assert!(text == "abc" || text == "abcd", "{text}");
    member.finish(message).unwrap();
    assert_eq!(member.text(message).unwrap(), text);
}

#[test]
fn what_has_stalled_is_judged_by_its_last_chunk() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let mut superuser = desk.database.superuser();
    let recover = "select recover_stalled_messages()";
    // Begun long ago, written just now.
    let busy = member.open(desk.conversation);
    member.append(busy, "a", None).unwrap();
    age(&mut superuser, busy, "1 h");
    member.append(busy, "b", None).unwrap();
    // Written 80 seconds ago, and 100.
    let (slow, stalled) = (member.open(desk.conversation), member.open(desk.conversation));
    for (message, ago) in [(slow, "80 s"), (stalled, "100 s")] {
        member.window(message, &["a", "b"], None).unwrap();
        age(&mut superuser, message, ago);
    }
    // Without a word so far: begun just now, and long ago.
    let (fresh, silent) = (member.open(desk.conversation), member.open(desk.conversation));
    age(&mut superuser, silent, "2 min");
    // The latest row may be one beyond a gap.
    let gap = member.open(desk.conversation);
    member.append(gap, "a", None).unwrap();
    age(&mut superuser, gap, "1 h");
    member.insert(gap, "c", 2, false).unwrap();
    assert_eq!(service.value::<i32>(recover), 2);
    for (message, expected) in [
        (busy, "streaming"),
        (slow, "streaming"),
        (stalled, "interrupted"),
        (fresh, "streaming"),
        (silent, "interrupted"),
        (gap, "streaming"),
    ] {
        assert_eq!(member.status(message), expected);
    }
    let stored: String =
        member.value(&format!("select content from messages where id = '{stalled}'"));
    assert_eq!(stored, "ab", "the partial text is kept");
    // Resumed, it is given its time again, before its first chunk and after it.
    for message in [stalled, silent] {
        member.run(&format!("select resume_message('{message}')"));
    }
    assert_eq!(service.value::<i32>(recover), 0);
    member.append(stalled, "c", Some(2)).unwrap();
    assert_eq!(service.value::<i32>(recover), 0);
    age_chunks(&mut superuser, stalled, "1 h", "chunk_index < 2");
    assert_eq!(service.value::<i32>(recover), 0);
    // As many as were asked for.
    let all = "select recover_stalled_messages('0 s', 2)";
    let taken: Vec<i32> = (0..4).map(|_| service.value::<i32>(all)).collect();
    assert_eq!(taken, [2, 2, 2, 0]);
    assert_eq!(member.text(busy).unwrap(), "ab");
}
