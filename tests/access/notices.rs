//! What sessions learn from each other without reading a table: notices, locks, and who does what.

use std::time::Duration;

use pg_conversation_tests::{Client, Server, Session, Uuid, oldest};
use postgres::fallible_iterator::FallibleIterator;

use crate::answer::ask;
use crate::world::{World, world};

fn heard(client: &mut Client) -> Vec<(String, String)> {
    let mut notifications = client.notifications();
    let mut waiting = notifications.timeout_iter(Duration::from_millis(400));
    let mut heard = Vec::new();
    while let Some(notice) = waiting.next().expect("the connection lives") {
        heard.push((notice.channel().to_string(), notice.payload().to_string()));
    }
    heard
}

/// Writes to the stream of a place, with a listener of its own so that notices are sent.
fn stream(world: &World, place: &str) -> Client {
    let place = world.place(place);
    let mut reader = world.session("a owner");
    reader.run(&format!("select listen_conversation('{}')", place.id));
    let mut producer = world.session("service");
    producer.run(&format!("select append_chunk('{}', 'secret-a more')", place.stream));
    producer.run(&format!("select finish_message('{}')", place.stream));
    reader
}

/// Postgres lets everybody LISTEN to every channel. Who knows the id of a foreign conversation hears
/// the id of the message that is being written in it, which opens nothing.
#[test]
fn a_notice_carries_the_id_of_a_message_and_nothing_else() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    let mut strangers =
        [world.session("b owner"), world.session("a colleague"), world.session("anon")];
    for stranger in &mut strangers {
        let refused = ask(stranger, &format!("select listen_conversation('{}')", place.id)).text();
        assert!(refused.starts_with("P0002"), "{refused}");
        stranger.run(&format!("listen \"conversation_{}\"", place.id));
    }
    let mut reader = stream(&world, "a/private");
    let expected = (format!("conversation_{}", place.id), place.stream.to_string());
    let notices = heard(&mut reader);
    assert!(!notices.is_empty() && notices.iter().all(|notice| *notice == expected), "{notices:?}");
    for mut stranger in strangers {
        let notices = heard(&mut stranger);
        assert!(notices.iter().all(|notice| *notice == expected), "{notices:?}");
        let read =
            ask(&mut stranger, &format!("select content from read_stream('{}')", place.stream));
        assert!(["P0002", "42501"].contains(&&read.text()[..5]), "{}", read.text());
    }
}

#[test]
fn who_was_refused_hears_nothing() {
    let world = world(Server::shared(oldest()));
    let mut stranger = world.session("b owner");
    let place = world.place("a/private");
    let refused = ask(&mut stranger, &format!("select listen_conversation('{}')", place.id));
    assert!(refused.text().starts_with("P0002"));
    // His own, so that he hears at all.
    let own = world.place("b/private");
    stranger.run(&format!("select listen_conversation('{}')", own.id));
    let mut reader = stream(&world, "a/private");
    world.session("service").run(&format!("select append_chunk('{}', 'x')", own.stream));
    assert!(!heard(&mut reader).is_empty());
    let expected = (format!("conversation_{}", own.id), own.stream.to_string());
    assert_eq!(heard(&mut stranger), [expected]);
}

/// Locks are told apart by numbers made of the ids; an id has more bits than a lock has room for.
#[test]
fn the_view_of_locks_shows_no_id() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    let mut producer = world.session("service");
    producer.run(&format!("begin; select append_chunk('{}', 'secret-a')", place.stream));
    let mut reader = world.session("a owner");
    reader.run(&format!("select listen_conversation('{}')", place.id));
    let mut stranger = world.session("b owner");
    let rows: Vec<String> = stranger.values(
        "select l::text from pg_locks l where database = \
         (select oid from pg_database where datname = current_database())",
    );
    assert!(rows.iter().any(|row| row.contains("advisory")), "{rows:?}");
    for id in [place.id, place.stream] {
        let (text, plain) = (id.to_string(), id.simple().to_string());
        assert!(!rows.iter().any(|row| row.contains(&text) || row.contains(&plain)), "{rows:?}");
    }
    // 64 bits of 128: no id can be made of them.
    let bits = "select max(length(classid::bigint::bit(32)::text) + length(objid::bigint::bit(32)::text)) \
                from pg_locks where locktype = 'advisory'";
    assert_eq!(stranger.value::<i32>(bits), 64);
    producer.run("rollback");
}

/// Sessions of one database role see each other's statements, as Postgres has it: values belong into
/// parameters. Statements inside our functions never show.
#[test]
fn sessions_of_one_role_see_literals_of_each_other_and_no_parameters() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    let mut writer = world.session("a owner");
    let mut stranger = world.session("b owner");
    let pid: i32 = writer.value("select pg_backend_pid()");
    let mut seen = |sql: &str| -> bool {
        stranger
            .value::<Option<String>>(&format!(
                "select query from pg_stat_activity where pid = {pid}"
            ))
            .unwrap_or_default()
            .contains(sql)
    };
    writer.run(&format!("select add_message('{}', 'user', 'literal-a')", place.id));
    assert!(seen("literal-a"));
    let sql = "select message_id from add_message($1, 'user', $2)";
    let _: Uuid = writer.query_one(sql, &[&place.id, &"parameter-a"]).expect(sql).get(0);
    assert!(seen("add_message($1") && !seen("parameter-a"));
    let mut other = world.session("anon");
    let activity = format!("select query from pg_stat_activity where pid = {pid}");
    assert_eq!(other.value::<String>(&activity), "<insufficient privilege>");
}

/// There is no sequence whose value tells how much others write.
#[test]
fn numbers_tell_nothing_of_other_tenants() {
    let world = world(Server::shared(oldest()));
    let mut session = world.session("b owner");
    let sequences: i64 = session.value("select count(*) from pg_class where relkind = 'S'");
    assert_eq!(sequences, 0);
    let call = format!(
        "select sequence_number from add_message('{}', 'user', 'x')",
        world.place("b/private").id
    );
    let number: i32 = session.value(&call);
    let mut service = world.session("service");
    for _ in 0..5 {
        service.run(&format!("select add_message('{}', 'user', 'x')", world.place("a/private").id));
    }
    assert_eq!(session.value::<i32>(&call), number + 1);
}
