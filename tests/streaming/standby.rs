//! A standby follows streams and writes none.

use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Server, Session, Uuid, oldest, wait_until};

use crate::desk::{Desk, Reader, Stream, code};

#[test]
fn a_standby_reads_streams_while_they_are_written_elsewhere() {
    let server = Server::private(oldest(), "wal_level = replica\nwal_writer_delay = 10ms\n");
    let desk = Desk::on(&server);
    let mut producer = desk.member();
    let message = producer.open(desk.conversation);
    producer.append(message, "0 ", None).unwrap();
    let standby = server.standby();
    let member = || {
        let mut client = standby.connect(&desk.database.name, "member");
        client.run(&format!("set pg_conversation.user_id = '{}'", desk.user));
        client
    };
    let mut here = member();
    assert!(here.value::<bool>("select pg_is_in_recovery()"));
    wait_until(&mut here, &format!("select reconstruct_message('{message}') = '0 '"));
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut client, mut reader) = (member(), Reader::new());
            while !reader.done {
                let pieces = client.wait(message, reader.after, 20_000, 1000).unwrap();
                assert!(!pieces.is_empty(), "timed out after {}", reader.after);
                reader.take(&pieces);
            }
            (reader.text, Instant::now())
        });
        for i in 1..100 {
            producer.append(message, &format!("{i} "), Some(i)).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        producer.finish(message).unwrap();
        let finished = Instant::now();
        let (text, read) = reading.join().expect("no panic");
        assert_eq!(text, (0..100).map(|i| format!("{i} ")).collect::<String>());
        assert!(read.saturating_duration_since(finished) < Duration::from_secs(1));
    });
    assert_eq!(here.status(message), "completed");
    for call in [
        format!("append_chunk('{message}', 'x')"),
        format!("begin_message('{}')", desk.conversation),
        format!("finish_message('{message}', 1)"),
        format!("stop_message('{message}')"),
        format!("cleanup_streaming_artifacts('{message}')"),
    ] {
        assert_eq!(here.error(&format!("select {call}")).0, "25006", "{call}");
    }
    let unknown = here.read(Uuid::new_v4(), -1, 9).unwrap_err();
    assert_eq!(code(&unknown), "P0002");
}
