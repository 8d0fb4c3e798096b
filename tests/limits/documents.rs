//! What docs/limits.md shows works as it is shown.

use pg_conversation_tests::Session;

use crate::desk::{Desk, Limits};

const LIMITS: &str = include_str!("../../docs/limits.md");

/// The block of code that begins so.
fn block(begin: &str) -> &'static str {
    let from = LIMITS.find(&format!("```sql\n{begin}")).expect("the block is there") + 7;
    let rest = &LIMITS[from..];
    &rest[..rest.find("```").expect("its end")]
}

#[test]
fn a_request_over_the_rate_is_a_429_in_postgrest() {
    let desk = Desk::new();
    desk.requests("3");
    desk.database.superuser().run(block("create function check_request()"));
    let mut member = desk.member();
    for _ in 0..3 {
        member.run("begin; select check_request(); rollback");
    }
    member.run("begin");
    let error = member.batch_execute("select check_request()").unwrap_err();
    let db = error.as_db_error().unwrap();
    assert_eq!(db.code().code(), "PT429");
    let seconds: i32 = db.detail().unwrap().strip_prefix("retry_after: ").unwrap().parse().unwrap();
    assert!((1..=20).contains(&seconds), "{seconds}");
    member.run("rollback; begin read only; select check_request(); rollback");
    // Whoever is not signed in is not counted.
    desk.database.connect("member").run("select check_request()");
    desk.requests("null");
    member.run("select check_request()");
    assert!(member.draw(0).unwrap().allowed);
}

#[test]
fn the_message_of_a_refusal_is_the_one_that_is_shown() {
    let desk = Desk::new();
    desk.tokens("10");
    let error = desk.member().begin(desk.conversation, 11).unwrap_err();
    let db = error.as_db_error().unwrap();
    let shown = db.message().replace(&desk.tenant.to_string(), "0198c...");
    assert!(LIMITS.contains(&format!("{}: {shown}", db.code().code())), "{shown}");
    assert!(LIMITS.contains(db.hint().unwrap()));
}
