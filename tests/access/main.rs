//! Two tenants: no row of one is seen, changed or guessed by the other.

use pg_conversation_tests::{Server, Session, Uuid, oldest};

#[test]
fn strangers_do_not_see_the_conversation() {
    let database = Server::shared(oldest()).database();
    let (ada, eve) = (Uuid::new_v4(), Uuid::new_v4());
    let mut owner = database.member(ada);
    let conversation: Uuid = owner.value("select create_conversation('mine')");
    owner.run(&format!("select add_message('{conversation}', 'user', 'secret')"));

    let mut stranger = database.member(eve);
    stranger.run("select ensure_user()");
    for table in ["conversations", "messages", "conversation_members"] {
        assert_eq!(stranger.value::<i64>(&format!("select count(*) from {table}")), 0, "{table}");
    }
    assert_eq!(owner.value::<i64>("select count(*) from messages"), 1);
}
