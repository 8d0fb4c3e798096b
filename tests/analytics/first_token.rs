//! How long a reader waited for the first token.

use std::time::Duration;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest};

const PAUSE: Duration = Duration::from_millis(150);

struct Desk {
    database: Database<'static>,
    member: Client,
    conversation: Uuid,
}

fn desk() -> Desk {
    let database = Server::shared(oldest()).database();
    let mut member = database.member(Uuid::new_v4());
    let conversation = member.value("select create_conversation('talk')");
    Desk { database, member, conversation }
}

impl Desk {
    fn begin(&mut self) -> Uuid {
        self.member.value(&format!("select begin_message('{}')", self.conversation))
    }

    fn append(&mut self, message: Uuid, index: i32) {
        self.member.run(&format!("select append_chunk('{message}', 'x', {index})"));
    }

    fn noted(&mut self, message: Uuid) -> Option<i32> {
        let sql = format!("select first_token_ms from messages where id = '{message}'");
        self.member.value(&sql)
    }

    fn interrupt(&mut self) {
        let recovered: i32 =
            self.database.superuser().value("select recover_stalled_messages('0 s')");
        assert_eq!(recovered, 1);
    }
}

fn is_pause(noted: Option<i32>) -> bool {
    noted.is_some_and(|ms| (150..150 + 2000).contains(&ms))
}

#[test]
fn it_is_noted_however_the_stream_ends() {
    let mut desk = desk();
    for end in [
        "select finish_message('$')",
        "select stop_message('$')",
        "select stop_message('$', 0)",
        "select fail_message('$', 'broken')",
        "select append_chunk('$', '', null, true)",
        "insert into message_chunks (message_id, chunk_content, is_final) values ('$', '', true)",
    ] {
        let message = desk.begin();
        std::thread::sleep(PAUSE);
        desk.append(message, 0);
        assert_eq!(desk.noted(message), None, "while it is written");
        std::thread::sleep(PAUSE);
        let took_with_the_rest = 2 * PAUSE.as_millis() as i32;
        desk.member.run(&end.replace('$', &message.to_string()));
        let noted = desk.noted(message);
        assert!(is_pause(noted), "{end}: {noted:?}");
        assert!(noted.is_some_and(|ms| ms < took_with_the_rest + 1500), "{end}: {noted:?}");
    }
    // By an UPDATE of its status alone.
    let message = desk.begin();
    std::thread::sleep(PAUSE);
    desk.append(message, 0);
    let sql = format!("update messages set status = 'stopped' where id = '{message}'");
    desk.database.superuser().run(&sql);
    assert_eq!(desk.noted(message), None, "its text has not been put together yet");
    desk.database
        .superuser()
        .value::<i32>(&format!("select cleanup_streaming_artifacts('{message}')"));
    let noted = desk.noted(message);
    assert!(is_pause(noted), "{noted:?}");
}

#[test]
fn it_is_that_of_the_first_chunk_whatever_comes_later() {
    let mut desk = desk();
    let message = desk.begin();
    desk.append(message, 0);
    std::thread::sleep(PAUSE);
    desk.append(message, 1);
    std::thread::sleep(PAUSE);
    desk.member.run(&format!("select finish_message('{message}', latency_ms => 300)"));
    let noted = desk.noted(message).expect("there are chunks");
    assert!((0..100).contains(&noted), "{noted}");
    // Figures that come later do not touch it, nor does clean-up.
    desk.member.run(&format!("select finish_message('{message}', 1, 2)"));
    let backend = &mut desk.database.superuser();
    let removed: i32 = backend.value(&format!("select cleanup_streaming_artifacts('{message}')"));
    assert_eq!((removed, desk.noted(message)), (2, Some(noted)));
}

#[test]
fn a_stream_that_is_resumed_keeps_its_first_token() {
    let mut desk = desk();
    let message = desk.begin();
    std::thread::sleep(PAUSE);
    desk.append(message, 0);
    desk.interrupt();
    let noted = desk.noted(message);
    assert!(is_pause(noted), "{noted:?}");
    for index in 1..3 {
        std::thread::sleep(PAUSE);
        desk.member.run(&format!("select resume_message('{message}')"));
        desk.append(message, index);
        if index == 1 {
            desk.interrupt();
        } else {
            desk.member.run(&format!("select finish_message('{message}')"));
        }
        assert_eq!(desk.noted(message), noted, "after {index} chunks");
    }
}

#[test]
fn what_was_no_stream_or_came_to_nothing_has_none() {
    let mut desk = desk();
    let written: Uuid = desk.member.value(&format!(
        "select message_id from add_message('{}', 'assistant', 'at once')",
        desk.conversation
    ));
    assert_eq!(desk.noted(written), None);
    for end in ["finish_message('$')", "stop_message('$')", "fail_message('$', 'e')"] {
        let message = desk.begin();
        desk.member.run(&format!("select {}", end.replace('$', &message.to_string())));
        assert_eq!(desk.noted(message), None, "{end}");
    }
    let message = desk.begin();
    desk.interrupt();
    assert_eq!(desk.noted(message), None);
    // Resumed before it had any, it has one in the end.
    desk.member.run(&format!("select resume_message('{message}')"));
    std::thread::sleep(PAUSE);
    desk.append(message, 0);
    desk.member.run(&format!("select finish_message('{message}')"));
    let noted = desk.noted(message);
    assert!(is_pause(noted), "{noted:?}");
}

#[test]
fn times_that_somebody_made_up_never_keep_a_stream_from_its_end() {
    let mut desk = desk();
    let conversation = desk.conversation;
    for created in [
        "infinity",
        "-infinity",
        "294276-12-31 23:59:59",
        "4713-01-01 00:00:00 BC",
        "2100-01-01",
        "2000-01-01",
    ] {
        for status in ["pending", "streaming"] {
            let message: Uuid = desk.member.value(&format!(
                "insert into messages (conversation_id, role, status, created_at) \
                 values ('{conversation}', 'assistant', '{status}', '{created}') returning id"
            ));
            desk.append(message, 0);
            desk.member.run(&format!("select finish_message('{message}')"));
            let noted = desk.noted(message);
            // Of one that was pending it is known at least when its stream began.
            let is_right = noted.is_none() || status == "pending" && noted < Some(1000);
            assert!(is_right, "{created}, {status}: {noted:?}");
        }
    }
    // One that was announced a while ago was asked for then, whatever became of it since.
    for status in ["pending", "streaming", "completed"] {
        let begun: Uuid = desk.member.value(&format!(
            "insert into messages (conversation_id, role, status, created_at) values \
             ('{conversation}', 'assistant', '{status}', clock_timestamp() - interval '3 s') \
             returning id"
        ));
        desk.append(begun, 0);
        desk.member.run(&format!("select finish_message('{begun}')"));
        let noted = desk.noted(begun);
        assert!(noted.is_some_and(|ms| (3000..5000).contains(&ms)), "{status}: {noted:?}");
    }
}
