//! Whatever runs long ends within a second of being asked to.

use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{NoTls, Server, Session, Uuid, oldest};

#[test]
fn whatever_runs_long_can_be_cancelled_within_a_second() {
    let database = Server::shared(oldest()).database();
    let user = Uuid::new_v4();
    let mut member = database.member(user);
    let c: Uuid = member.value("select create_conversation('long')");
    let d: Uuid = member.value("select create_conversation('locked')");
    member.run(&format!(
        "insert into messages (conversation_id, role) select '{c}', 'user' from generate_series(1, 2000)"
    ));
    let mut holder = database.superuser();
    holder.run(&format!(
        "begin; select migrate(); update conversations set title = 'held' where id = '{d}'"
    ));

    let many = "generate_series(1, 100000000) n";
    let cases = [
        (
            "member",
            format!(
                "insert into messages (conversation_id, role) select '{c}', 'user' from {many}"
            ),
        ),
        ("member", format!("select count(add_message('{c}', 'user', 'x', n::text)) from {many}")),
        (
            "member",
            format!(
                "select count(has_conversation_access(new_id(), '{user}', 'read')) from {many}"
            ),
        ),
        ("member", format!("select count(new_id()), count(current_user_id()) from {many}")),
        ("member", format!("select count(ensure_user()) from {many}")),
        ("member", "select count(*) from messages a, messages b, messages c".into()),
        (
            "member",
            format!("select count(h.*) from {many}, get_conversation_with_messages('{c}', n, 1) h"),
        ),
        ("member", format!("insert into conversations (title) select 'x' from {many}")),
        ("member", format!("select count(create_conversation('x')) from {many}")),
        ("member", format!("select count(get_or_create_conversation(n::text)) from {many}")),
        ("member", format!("select add_message('{d}', 'user', 'waits')")),
        ("member", format!("update conversations set title = 'x' where id = '{d}'")),
        ("postgres", "select migrate()".into()),
        ("postgres", "select rollback_to(0, true)".into()),
        ("postgres", "drop extension pg_conversation cascade".into()),
    ];
    let mut slow = Vec::new();
    for (role, sql) in &cases {
        let mut client = database.connect(role);
        client.run(&format!("set pg_conversation.user_id = '{user}'"));
        let token = client.cancel_token();
        thread::scope(|scope| {
            let running = scope.spawn(|| {
                let code = match client.batch_execute(sql) {
                    Ok(()) => "no error".to_string(),
                    Err(error) => error.code().map_or("lost".into(), |code| code.code().into()),
                };
                (code, Instant::now())
            });
            thread::sleep(Duration::from_millis(150));
            let asked = Instant::now();
            token.cancel_query(NoTls).expect("the server takes the request");
            let (code, ended) = running.join().expect("no panic");
            let took = ended.saturating_duration_since(asked);
            if code != "57014" || took > Duration::from_secs(1) {
                slow.push(format!("{sql}: {code} after {took:?}"));
            }
        });
        client.run("select 1");
    }
    holder.run("rollback");
    assert!(slow.is_empty(), "{slow:#?}");
}
