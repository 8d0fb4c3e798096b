//! COPY as a member: what he may read goes out, and nothing comes in.

use std::io::Read;

use pg_conversation_tests::{Server, Session, oldest};

use crate::answer::ask;
use crate::world::world;

const TABLES: [&str; 12] = [
    "tenants",
    "users",
    "conversations",
    "conversation_members",
    "messages",
    "message_chunks",
    "feedback",
    "feedback_counts",
    "usage_events",
    "usage_days",
    "usage_totals",
    "usage_months",
];

#[test]
fn copy_to_gives_a_member_the_rows_that_he_may_read() {
    let world = world(Server::shared(oldest()));
    for who in ["a owner", "a viewer", "a colleague", "b admin", "nobody", "a inactive"] {
        let mut session = world.session(who);
        for table in TABLES {
            let count: i64 = session.value(&format!("select count(*) from {table}"));
            for source in [table, &format!("(select * from {table})"), &format!("(table {table})")]
            {
                let mut text = String::new();
                let sql = format!("copy {source} to stdout");
                session.copy_out(&sql).expect(&sql).read_to_string(&mut text).expect("text");
                assert_eq!(text.lines().count() as i64, count, "{who}: {sql}");
                let own = world.secrets_of(world.person(who)).unwrap_or("none");
                let is_foreign = |rest: &str| !rest.starts_with(own);
                assert!(!text.split("secret-").skip(1).any(is_foreign), "{who}: {sql}: {text}");
            }
        }
    }
}

#[test]
fn nobody_whom_policies_bind_copies_rows_in_or_touches_files() {
    let world = world(Server::shared(oldest()));
    for who in ["a owner", "b admin", "nobody", "anon"] {
        let mut session = world.session(who);
        for table in TABLES {
            // A table as a whole is nobody's to write.
            assert_eq!(
                session.error(&format!("copy {table} from stdin")).0,
                "42501",
                "{who}: {table}"
            );
        }
        // Nor does Postgres copy anything past a policy.
        let (code, words) = session.error("copy messages (conversation_id, role) from stdin");
        assert_eq!(code, if who == "anon" { "42501" } else { "0A000" }, "{who}: {words}");
        for sql in [
            "copy messages to '/tmp/out'",
            "copy messages to program 'cat'",
            "copy (select 1) to '/tmp/out'",
            "select lo_export(1, '/tmp/out')",
            "select pg_read_file('base')",
        ] {
            assert!(ask(&mut session, sql).text().starts_with("42501"), "{who}: {sql}");
        }
    }
    // Who asks not to be bound is refused rather than given fewer rows than he thinks.
    let mut session = world.session("a owner");
    session.run("set row_security = off");
    for table in TABLES {
        let (code, _) = session.error(&format!("select from {table}"));
        assert_eq!(code, "42501", "{table}");
    }
}
