//! The shortest way to say it: a stranger sees nothing, and hears what he would hear of nothing.

use pg_conversation_tests::{Server, Session, Uuid, oldest};

#[test]
fn strangers_do_not_see_the_conversation() {
    let database = Server::shared(oldest()).database();
    let (ada, eve) = (Uuid::new_v4(), Uuid::new_v4());
    let mut owner = database.member(ada);
    let conversation: Uuid = owner.value("select create_conversation('mine')");
    owner.run(&format!("select add_message('{conversation}', 'user', 'secret')"));
    let stream: Uuid = owner.value(&format!("select begin_message('{conversation}')"));
    owner.run(&format!("select append_chunks('{stream}', array['secret', ' too'])"));

    let mut stranger = database.member(eve);
    stranger.run("select ensure_user()");
    for table in ["conversations", "messages", "message_chunks", "conversation_members", "feedback"]
    {
        assert_eq!(stranger.value::<i64>(&format!("select count(*) from {table}")), 0, "{table}");
    }
    let text = format!("select reconstruct_message('{stream}')");
    assert_eq!(stranger.value::<Option<String>>(&text), None);
    let unknown = Uuid::new_v4();
    for call in [
        "read_stream('$m')",
        "wait_for_chunks('$m', -1, 0)",
        "append_chunk('$m', 'x')",
        "append_chunk('$m', 'secret', 0)",
        "append_chunks('$m', '{}')",
        "finish_message('$m')",
        "fail_message('$m', 'x')",
        "stop_message('$m', 0)",
        "resume_message('$m')",
        "cleanup_streaming_artifacts('$m')",
        "give_feedback('$m', 1)",
        "withdraw_feedback('$m')",
        "get_message_feedback('$m')",
    ] {
        // In the words for a message that does not exist.
        let [real, unreal] = [stream, unknown].map(|id| {
            let id = id.to_string();
            let (code, words) = stranger.error(&format!("select {}", call.replace("$m", &id)));
            (code, words.replace(&id, ""))
        });
        assert_eq!(real.0, "P0002", "{call}");
        assert_eq!(real, unreal, "{call}");
    }
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 2);
    assert_eq!(owner.value::<String>(&text), "secret too");
}
