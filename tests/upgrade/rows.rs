//! Rows of older versions, through the update and back.

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest};

use crate::workshop::Workshop;
use crate::{OWNER, empty};

const USER: &str = "a1000000-0000-0000-0000-000000000001";

/// A database of an older version with a conversation in it: a question, an answer, and, where there
/// are streams, one that is being written.
fn older<'a>(server: &'a Server, version: i32) -> (Database<'a>, Client, Uuid) {
    let database = empty(server, "chat");
    let mut owner = database.connect(OWNER);
    owner.run(&format!(
        "create extension pg_conversation with schema chat version '0.0.{version}'; \
         set search_path = chat; set pg_conversation.user_id = '{USER}'; \
         insert into users (id, name) values ('{USER}', 'Ada')"
    ));
    let c = owner.value("insert into conversations (title) values ('old') returning id");
    // Today's trigger knows columns that version 5 does not have.
    owner.run(&format!(
        "alter table messages disable trigger place_message; \
         insert into messages (id, conversation_id, tenant_id, sequence_number, role, content, parts, status) \
         select new_id(), '{c}', tenant_id, n, v.role::message_role, content, parts, status::message_status \
         from users, (values (1, 'user', 'asked', '[1]'::jsonb, 'completed'), \
             (2, 'assistant', 'answered', null, 'completed'), (3, 'assistant', '', null, 'streaming')) \
             v (n, role, content, parts, status); \
         update conversations set last_sequence = 3; \
         alter table messages enable trigger place_message; \
         insert into message_chunks (message_id, chunk_index, chunk_content) \
         select id, 0, 'begun' from messages where status = 'streaming'"
    ));
    (database, owner, c)
}

const ROWS: &str = "select string_agg(concat_ws(' ', sequence_number, role, status, content, parts, \
    created_at, completed_at), E'\\n' order by sequence_number) from messages";

#[test]
fn rows_of_older_versions_are_edited_after_the_update() {
    let server = Workshop::new(oldest());
    for role in ["member", "app"] {
        server.role(role);
    }
    for version in [5, 6, 7] {
        let (database, mut owner, c) = older(&server, version);
        if version > 5 {
            // What version 6 kept is there afterwards, and counted on.
            owner.run("update messages set content = 'asked well' where role = 'user'");
        }
        if version > 6 {
            owner.run("insert into access_profiles (role_name, profile) values ('app', 'monitor')");
        }
        let before: String = owner.value(ROWS);
        owner.run("alter extension pg_conversation update");
        assert_eq!(owner.value::<String>(ROWS), before, "{version}");
        assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
        let authors: i64 = owner.value("select count(*) from messages where author_id is not null");
        assert_eq!(authors, 0, "{version}: nobody knows who wrote them");
        let app: Option<String> =
            owner.value("select (select profile from access_profiles where role_name = 'app')");
        assert_eq!(app.as_deref(), (version > 6).then_some("monitor"));

        // A row without an author is nobody's to edit, but the service's and the owner's.
        owner.run(
            "select grant_access('member'); update tenants set features = '{\"edit_messages\": true}'",
        );
        let mut member = database.member(USER.parse().expect("an id"));
        member.run("set search_path = chat");
        let first: Uuid = member.value("select id from messages where sequence_number = 1");
        let edit = format!("select edit_message('{first}', 'asked again')");
        assert_eq!(member.error(&edit).0, "42501", "{version}");
        owner.run(&edit);
        let kept: Vec<String> =
            member.values("select content from message_revisions order by revision");
        let expected: &[&str] = if version > 5 { &["asked", "asked well"] } else { &["asked"] };
        assert_eq!(kept, expected, "{version}");
        member.run(&format!(
            "select edit_message(message_id, 'mine') from add_message('{c}', 'user', 'x')"
        ));
        assert_eq!(member.value::<i32>("select last_sequence from conversations"), 4);
        // The stream of before goes on.
        member.run(
            "select append_chunk(id, ' and ended', 1, true) from messages where status = 'streaming'",
        );
        let third = "select content from messages where sequence_number = 3";
        assert_eq!(member.value::<String>(third), "begun and ended");

        // Back, and forth again.
        let texts: String =
            owner.value("select string_agg(content, ', ' order by sequence_number) from messages");
        owner.run("delete from access_profiles where role_name in ('member', 'app')");
        owner.run("select rollback_to(6, force => true)");
        assert_eq!(owner.error("select rollback_to(5)").0, "55000", "{version}");
        owner.run("select rollback_to(5, force => true); select migrate()");
        let now: String =
            owner.value("select string_agg(content, ', ' order by sequence_number) from messages");
        assert_eq!(now, texts);
        assert_eq!(owner.value::<i64>("select count(*) from message_revisions"), 0);
        assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
    }
}

/// A role that was let in when there were fewer tables: today's function says so of any older schema.
#[test]
fn nobody_is_let_into_an_older_schema_and_whoever_is_listed_keeps_his_profile() {
    let server = Workshop::new(oldest());
    server.role("app");
    for version in [5, 6, 7, 10] {
        let (_database, mut owner, _) = older(&server, version);
        let grant = "select grant_access('app')";
        let error = owner.batch_execute(grant).expect_err("no list of profiles");
        let db = error.as_db_error().expect("from the server");
        assert_eq!(db.code().code(), "55000", "{version}");
        assert!(db.hint().is_some_and(|hint| hint.contains("migrate()")), "{version}");
        owner.run(&format!("alter extension pg_conversation update; {grant}"));
    }
    let (database, mut owner, _) = older(&server, 7);
    owner.run("insert into access_profiles (role_name, profile) values ('app', 'member')");
    let held =
        "select count(*) from pg_class c, aclexplode(c.relacl) a where a.grantee = 'app'::regrole";
    owner.run("alter extension pg_conversation update");
    let given: i64 = owner.value(held);
    owner.run("select grant_access('app')");
    assert!(given > 10);
    assert_eq!(owner.value::<i64>(held), given);
    assert_eq!(
        database
            .superuser()
            .value::<i64>("select count(*) from pg_extension where extversion like '0.0.%'"),
        0
    );
}
