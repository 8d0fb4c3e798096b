//! Notices for those who listen: ids only, few, and none when nobody does.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, Session, Uuid};
use postgres::fallible_iterator::FallibleIterator;

use crate::desk::{Desk, Reader, Stream};

/// Listens by the product's own function.
fn listener(desk: &Desk) -> Client {
    let mut client = desk.member();
    let c = desk.conversation;
    let channel: String = client.value(&format!("select listen_conversation('{c}')"));
    assert_eq!(channel, format!("conversation_{c}"));
    client
}

/// Listens without a word to the product: hears whatever is sent.
fn eavesdropper(desk: &Desk) -> Client {
    let mut client = desk.database.superuser();
    client.run(&format!("listen \"conversation_{}\"", desk.conversation));
    client
}

/// Payloads that arrive within a while after the last one.
fn heard(client: &mut Client, patience_ms: u64) -> Vec<String> {
    let mut notifications = client.notifications();
    let mut payloads = Vec::new();
    let mut iter = notifications.timeout_iter(Duration::from_millis(patience_ms));
    while let Some(notice) = iter.next().expect("the connection stands") {
        assert!(notice.channel().starts_with("conversation_"), "{}", notice.channel());
        payloads.push(notice.payload().to_string());
    }
    payloads
}

fn stream(client: &mut Client, message: Uuid, tokens: i32, pause: Duration) {
    for i in 0..tokens {
        client.append(message, &format!("{i} "), None).unwrap();
        thread::sleep(pause);
    }
}

#[test]
fn a_listener_hears_of_a_stream_now_and_then_and_of_its_end() {
    let desk = Desk::new();
    let mut producer = desk.member();
    let mut listener = listener(&desk);
    let messages = [producer.open(desk.conversation), producer.open(desk.conversation)];
    heard(&mut listener, 200);
    let start = Instant::now();
    for i in 0..300 {
        producer.append(messages[i % 2], "token ", None).unwrap();
        thread::sleep(Duration::from_micros(500));
    }
    let took = start.elapsed().as_millis() as usize;
    let mut counts: HashMap<String, usize> = HashMap::new();
    for payload in heard(&mut listener, 300) {
        *counts.entry(payload).or_default() += 1;
    }
    for message in messages {
        let count = counts.remove(&message.to_string()).unwrap_or_default();
        // One in 20 ms, the first one, and half as many again for clocks that differ.
        let most = (took / 20 + 1) * 3 / 2 + 1;
        assert!((1..=most).contains(&count), "{count} notices of 150 tokens in {took} ms");
        assert!(count >= took / 20 / 4, "{count} notices in {took} ms are too few to follow it");
    }
    assert!(counts.is_empty(), "notices with anything but the id: {counts:?}");
    for message in messages {
        producer.finish(message).unwrap();
        let end = heard(&mut listener, 500);
        assert_eq!(end.last(), Some(&message.to_string()), "the end is always told: {end:?}");
        assert!(end.len() <= 2, "{end:?}");
    }
}

#[test]
fn every_end_is_told_however_shortly_after_a_token() {
    let desk = Desk::new();
    let (mut producer, mut service) = (desk.member(), desk.service());
    let mut listener = listener(&desk);
    for end in [
        "select finish_message('$m')",
        "select stop_message('$m')",
        "select stop_message('$m', 1)",
        "select fail_message('$m', 'e')",
        "select append_chunk('$m', 'z', null, true)",
        "insert into message_chunks (message_id, chunk_content, is_final) values ('$m', 'z', true)",
        "select recover_stalled_messages('0 s')",
    ] {
        let message = producer.open(desk.conversation);
        producer.append(message, "abc", None).unwrap();
        heard(&mut listener, 150);
        // One that may have been told, one that comes too soon to be, and the end.
        producer.append(message, "d", None).unwrap();
        producer.append(message, "e", None).unwrap();
        let client = if end.contains("recover") { &mut service } else { &mut producer };
        client.run(&end.replace("$m", &message.to_string()));
        let ended = producer.status(message);
        assert_ne!(ended, "streaming");
        let end_heard = heard(&mut listener, 500);
        assert!(end_heard.contains(&message.to_string()), "{end}: nothing was heard");
        assert!(end_heard.len() <= 3, "{end}: {end_heard:?}");
    }
}

#[test]
fn a_listener_that_keeps_the_rule_misses_nothing() {
    let desk = Desk::new();
    for interval in [0, 5, 20] {
        let mut producer = desk.member();
        producer.run(&format!("set pg_conversation.notify_interval = {interval}"));
        let mut listener = listener(&desk);
        let message = producer.open(desk.conversation);
        let text = thread::scope(|scope| {
            let listening = scope.spawn(move || {
                let mut reader = Reader::new();
                let mut look_again = None;
                let start = Instant::now();
                while !reader.done {
                    assert!(start.elapsed() < Duration::from_secs(20), "after {}", reader.after);
                    let patience = look_again.take().unwrap_or(Duration::from_secs(10));
                    let noticed = {
                        let mut notifications = listener.notifications();
                        let mut iter = notifications.timeout_iter(patience);
                        iter.next().expect("the connection stands").is_some()
                    };
                    let pieces = listener.read(message, reader.after, 1000).unwrap();
                    reader.take(&pieces);
                    // Once more two intervals later, while reads bring something.
                    if noticed || !pieces.is_empty() {
                        look_again = Some(Duration::from_millis(2 * interval.max(1)));
                    }
                }
                reader.text
            });
            stream(&mut producer, message, 120, Duration::from_micros(700));
            thread::sleep(Duration::from_millis(60));
            // A single token after a silence is told at once; the end, too.
            producer.append(message, "late ", None).unwrap();
            thread::sleep(Duration::from_millis(60));
            producer.finish(message).unwrap();
            listening.join().expect("no panic")
        });
        assert_eq!(text, producer.text(message).unwrap());
    }
}

#[test]
fn nothing_is_sent_while_nobody_listens() {
    let desk = Desk::new();
    let c = desk.conversation;
    let mut producer = desk.member();
    let mut ear = eavesdropper(&desk);
    let mut stranger = desk.member();
    // Conversations may share what tells of listeners; these do not.
    let other = loop {
        let other = desk.another_conversation();
        if other.as_bytes()[15] != c.as_bytes()[15] {
            break other;
        }
    };
    stranger.run(&format!("select listen_conversation('{other}')"));
    let mut rounds = 0;
    let mut told = |what: &str, expected: bool| {
        let message = producer.open(c);
        stream(&mut producer, message, 3, Duration::from_millis(1));
        producer.finish(message).unwrap();
        let stop = producer.open(c);
        producer.stop(stop, None).unwrap();
        let count = heard(&mut ear, 250).len();
        assert_eq!(count > 0, expected, "{what}: {count} notices");
        rounds += 1;
    };
    told("nobody has ever listened", false);
    let mut one = listener(&desk);
    let mut two = listener(&desk);
    told("two listen", true);
    one.run(&format!("select unlisten_conversation('{c}')"));
    told("one is left", true);
    two.run(&format!("select unlisten_conversation('{c}')"));
    told("both have gone", false);
    // Listened to twice is listened to; one word ends it, as with LISTEN.
    one.run(&format!("select listen_conversation('{c}'), listen_conversation('{c}')"));
    told("listened twice", true);
    one.run(&format!("select unlisten_conversation('{c}')"));
    told("and ended once", false);
    one.run(&format!("select listen_conversation('{c}')"));
    one.run("discard all");
    told("after DISCARD ALL", false);
    two.run(&format!("select listen_conversation('{c}')"));
    drop(two);
    thread::sleep(Duration::from_millis(200));
    told("after the listener has left", false);
    one = desk.member();
    one.run(&format!("begin; select listen_conversation('{c}'); rollback"));
    told("listened in a transaction that was rolled back", false);
    one.run(&format!(
        "begin; savepoint s; select listen_conversation('{c}'); rollback to s; commit"
    ));
    told("listened in a savepoint that was rolled back", false);
    one.run(&format!("begin; select listen_conversation('{c}'); commit"));
    told("listened in a transaction", true);
    one.run(&format!("begin; select unlisten_conversation('{c}'); rollback"));
    told("ended in a transaction that was rolled back", true);
    let pid: i32 = one.value("select pg_backend_pid()");
    desk.database.superuser().run(&format!("select pg_terminate_backend({pid}, 5000)"));
    told("after the listener was killed", false);
}

#[test]
fn notices_can_be_off() {
    let desk = Desk::new();
    let mut listener = listener(&desk);
    let mut producer = desk.member();
    producer.run("set pg_conversation.notify_interval = -1");
    let message = producer.open(desk.conversation);
    stream(&mut producer, message, 20, Duration::from_millis(2));
    producer.finish(message).unwrap();
    assert_eq!(heard(&mut listener, 300), Vec::<String>::new());
    producer.run("reset pg_conversation.notify_interval");
    let message = producer.open(desk.conversation);
    stream(&mut producer, message, 3, Duration::from_millis(30));
    assert!(!heard(&mut listener, 300).is_empty());
}

#[test]
fn what_is_rolled_back_is_not_told() {
    let desk = Desk::new();
    let mut listener = listener(&desk);
    let mut producer = desk.member();
    let message = producer.open(desk.conversation);
    heard(&mut listener, 150);
    producer.run("begin");
    stream(&mut producer, message, 20, Duration::from_millis(3));
    producer.run("rollback");
    assert_eq!(heard(&mut listener, 250), Vec::<String>::new());
    // A notice that was rolled back does not stand in the way of the next one.
    producer.append(message, "a", None).unwrap();
    assert_eq!(heard(&mut listener, 250), vec![message.to_string()]);
    thread::sleep(Duration::from_millis(50));
    producer.run("begin");
    producer.append(message, "lost", None).unwrap();
    producer.run("rollback");
    producer.append(message, "b", None).unwrap();
    assert_eq!(heard(&mut listener, 250), vec![message.to_string()]);
    producer.run("begin; savepoint s");
    producer.append(message, "lost", None).unwrap();
    producer.run("rollback to s; commit");
    producer.append(message, "c", None).unwrap();
    assert!(heard(&mut listener, 250).contains(&message.to_string()));
    producer.run("begin");
    stream(&mut producer, message, 50, Duration::from_millis(1));
    producer.run("commit");
    let count = heard(&mut listener, 250).len();
    assert!((1..=2).contains(&count), "{count} notices of one transaction");
}

#[test]
fn a_token_that_is_committed_late_is_told_then() {
    let desk = Desk::new();
    let mut listener = listener(&desk);
    let mut producer = desk.member();
    let message = producer.open(desk.conversation);
    heard(&mut listener, 150);
    // The second one is written while the first one's notice is fresh, and seen long after.
    producer.append(message, "a", None).unwrap();
    producer.run("begin");
    producer.append(message, "b", None).unwrap();
    thread::sleep(Duration::from_millis(200));
    producer.run("commit");
    assert_eq!(heard(&mut listener, 250).len(), 2);
}

#[test]
fn listening_to_one_conversation_is_not_ended_with_another() {
    let desk = Desk::new();
    let (mut producer, mut client) = (desk.member(), desk.member());
    let c = desk.conversation;
    // Ids that differ in one byte each, the last one included.
    for byte in 0..16 {
        let mut bytes = *c.as_bytes();
        bytes[byte] ^= 1;
        let other = Uuid::from_bytes(bytes);
        producer.run(&format!("insert into conversations (id) values ('{other}')"));
        client.run(&format!("select listen_conversation('{c}'), listen_conversation('{other}')"));
        client.run(&format!("select unlisten_conversation('{other}')"));
        client.run(&format!("select unlisten_conversation('{other}')"));
        heard(&mut client, 30);
        let message = producer.open(c);
        producer.finish(message).unwrap();
        assert!(heard(&mut client, 250).contains(&message.to_string()), "{other} beside {c}");
        client.run(&format!("select unlisten_conversation('{c}')"));
    }
}
