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
    // A stream of many chunks, one of few, one that somebody else is writing.
    let [long, short, held]: [Uuid; 3] =
        std::array::from_fn(|_| member.value(&format!("select begin_message('{c}')")));
    member.run(&format!(
        "select append_chunks('{long}', array_agg('t' || n order by n)) from generate_series(1, 200000) n"
    ));
    member.run(&format!("select append_chunk('{short}', 'x')"));
    let mut holder = database.superuser();
    holder.run(&format!(
        "begin; select migrate(); update conversations set title = 'held' where id = '{d}'"
    ));

    // A table of chunks that the DBA has attached something to is written by statements.
    let attached = "create function note() returns trigger language plpgsql as 'begin return new; end'; \
                    create trigger note before insert on message_chunks for each row execute function note()";
    let window = |message: Uuid, pieces: u32| {
        format!(
            "select append_chunks('{message}', array_agg('t' || n order by n), 0) \
             from generate_series(1, {pieces}) n"
        )
    };
    let begun = |first: &str| {
        let message = Uuid::new_v4();
        format!(
            "{first}; insert into messages (id, conversation_id, role, status) \
             values ('{message}', '{c}', 'assistant', 'streaming'); {}",
            window(message, 2_000_000)
        )
    };
    holder.run(&format!("select append_chunk('{held}', 'x')"));
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
        ("member", begun("select 1")),
        ("postgres", begun(attached)),
        // What is there already is compared, again and again.
        (
            "member",
            format!(
                "select count(r) from {many}, lateral ({}) r where n > 0",
                window(long, 200_000)
            ),
        ),
        ("member", format!("select * from wait_for_chunks('{short}', 0, 2147483647)")),
        ("postgres", format!("select * from wait_for_chunks('{long}', 199999, 60000)")),
        ("member", format!("select count(reconstruct_message('{long}')) from {many} where n > 0")),
        ("member", format!("select count(r) from {many}, read_stream('{long}', n % 2, 300000) r")),
        ("member", format!("select count(begin_message('{c}')) from {many}")),
        ("member", format!("select count(append_chunk('{short}', 'x')) from {many}")),
        (
            "member",
            format!(
                "insert into message_chunks (message_id, chunk_content) select '{short}', 'x' from {many}"
            ),
        ),
        (
            "member",
            format!(
                "insert into message_chunks (message_id, chunk_content, chunk_index) \
                 select '{long}', 't', n from {many} on conflict do nothing"
            ),
        ),
        ("member", format!("select append_chunk('{held}', 'y')")),
        ("member", format!("select stop_message('{held}')")),
        ("postgres", format!("delete from messages where id = '{held}'")),
        (
            "member",
            format!("select count(has_message_access(new_id(), '{user}', 'read')) from {many}"),
        ),
        (
            "postgres",
            format!(
                "begin; insert into messages (conversation_id, role, status) \
                 select '{c}', 'assistant', 'streaming' from generate_series(1, 2000); \
                 select count(recover_stalled_messages('0 s') + cleanup_finished_streams('-1 day')) from {many}"
            ),
        ),
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
        client.run("rollback; select 1");
    }
    holder.run("rollback");
    // Nothing of all that was written, and nothing is in the way of what comes.
    for (message, chunks) in [(long, 200_000), (short, 1), (held, 0)] {
        let next: i32 = member.value(&format!("select resume_message('{message}')"));
        assert_eq!(next, chunks, "{message}");
        member.run(&format!("select append_chunk('{message}', 'end', {chunks}, true)"));
    }
    assert!(slow.is_empty(), "{slow:#?}");
}
