//! Keys cross tenants below every policy: what they tell, and what they do not.

use pg_conversation_tests::{Server, Session, Uuid, oldest};

use crate::answer::{Answer, ask};
use crate::world::{World, world};

/// Answers to the same statement about what is another tenant's and about what is not there.
struct Twice {
    real: Answer,
    unreal: Answer,
}

impl Twice {
    fn is_same(&self) -> bool {
        self.real.blanked() == self.unreal.blanked()
    }
}

fn ask_twice(world: &World, who: &str, sql: &str, real: &[(&str, String)]) -> Twice {
    let mut session = world.session(who);
    let mut ask = |ids: &dyn Fn(&str) -> String| {
        let mut sql = sql.to_string();
        for (name, value) in real {
            sql = sql.replace(name, &if value.is_empty() { ids(name) } else { value.clone() });
        }
        let answer = ask(&mut session, &format!("begin; {sql}"));
        session.run("rollback");
        answer
    };
    let foreign = |name: &str| named(world, name).to_string();
    let nothing = |_: &str| Uuid::new_v4().to_string();
    Twice { real: ask(&foreign), unreal: ask(&nothing) }
}

/// What is tenant a's under the names that statements use; the asker is of tenant b.
fn named(world: &World, name: &str) -> Uuid {
    let place = world.place("a/private");
    match name {
        "$c" => place.id,
        "$m" => place.messages[&place.owner],
        "$s" => place.stream,
        "$u" => place.owner,
        "$t" => place.tenant,
        "$auth" => world.person("a owner").login.expect("a login"),
        other => panic!("{other}"),
    }
}

/// Own things have their value, foreign ones none.
fn names(world: &World) -> Vec<(&'static str, String)> {
    let own = world.place("b/private");
    vec![
        ("$own_c", own.id.to_string()),
        ("$own_m", own.messages[&own.owner].to_string()),
        ("$auth", String::new()),
        ("$c", String::new()),
        ("$m", String::new()),
        ("$s", String::new()),
        ("$u", String::new()),
        ("$t", String::new()),
    ]
}

#[test]
fn naming_what_is_another_tenants_is_like_naming_nothing() {
    let world = world(Server::shared(oldest()));
    let names = names(&world);
    // Each names something foreign as a parent, an owner, a member or a target.
    let statements = [
        "insert into messages (conversation_id, role) values ('$c', 'user')",
        "insert into messages (conversation_id, role, parent_id) values ('$own_c', 'user', '$m')",
        "insert into messages (conversation_id, role, parent_id) values ('$c', 'user', '$m')",
        "insert into messages (conversation_id, role, client_message_id) \
         values ('$c', 'user', 'key a owner') on conflict do nothing",
        "insert into message_chunks (message_id, chunk_content) values ('$s', 'x')",
        "insert into message_chunks (message_id, chunk_content, chunk_index) values ('$s', 'x', 0) \
         on conflict do nothing",
        "insert into message_chunks (message_id, chunk_content, chunk_index) values ('$s', 'x', 0) \
         on conflict (message_id, chunk_index) do nothing",
        "insert into conversations (user_id) values ('$u')",
        "insert into conversations (user_id) values ('$u') on conflict do nothing",
        "insert into feedback (message_id, rating) values ('$m', 1)",
        "insert into feedback (message_id, rating) values ('$m', 1) on conflict do nothing",
        "insert into feedback (message_id, user_id, rating) values ('$m', '$u', 1) \
         on conflict (message_id, user_id) do update set rating = -1",
        "insert into feedback (message_id, user_id, rating) values ('$own_m', '$u', 1)",
        "select give_feedback('$m', 1)",
        "select withdraw_feedback('$m')",
        "select get_message_feedback('$m')",
        "update feedback set rating = 1 where message_id = '$m'",
        "select * from feedback where message_id = '$m' or user_id = '$u' or tenant_id = '$t'",
        "select * from feedback_counts where message_id = '$m'",
        "select * from usage_events where tenant_id = '$t' or user_id = '$u'",
        "select * from usage_metrics where tenant_id = '$t' or user_id = '$u'",
        "select * from usage_by_month where tenant_id = '$t'",
        "select * from current_day_usage where tenant_id = '$t'",
        "select record_usage('$t', '$u', 'm', '{}', 'key')",
        "select void_usage('$t', 'key', 'x')",
        "select verify_usage('$t', '2020-01-01', '2100-01-01')",
        "select check_rate_limit(1, '$t')",
        "select reserve_tokens(1, tenant_id => '$t')",
        "select begin_message('$c', reserve_tokens => 1)",
        "select daily_activity(tenant_id => '$t')",
        "select usage_by_user(tenant_id => '$t')",
        "select tenant_days(tenant_id => '$t')",
        "select add_message('$c', 'user', 'x')",
        "select add_message('$c', 'user', 'x', client_message_id => 'key a owner')",
        "select add_message('$own_c', 'user', 'x', parent_id => '$m')",
        "select begin_message('$c')",
        "select begin_message('$own_c', parent_id => '$m')",
        "select begin_message('$c', client_message_id => 'key a owner')",
        "select append_chunk('$s', 'secret-a', 0)",
        "select append_chunk('$s', 'x', 7)",
        "select edit_message('$m', 'x')",
        "select add_member('$own_c', '$u')",
        "select add_member('$c', '$u')",
        "select set_member_role('$own_c', '$u', 'editor')",
        "select set_member_role('$c', '$u', 'editor')",
        "select remove_member('$own_c', '$u')",
        "select remove_member('$c', '$u')",
        "select transfer_conversation('$own_c', '$u')",
        "select transfer_conversation('$c', '$u')",
        "select list_members('$c')",
        "select archive_conversation('$c')",
        "update conversations set title = 'x' where id = '$c'",
        "update messages set content = 'x' where id = '$m'",
        "update users set name = 'x' where id = '$u'",
        "delete from conversations where id = '$c' returning title",
        "select * from conversations where id = '$c' for update",
        "select * from messages where id = '$m' and conversation_id = '$c'",
        "select * from users where id = '$u' or auth_id = '$auth' or tenant_id = '$t'",
        "select * from tenants where id = '$t'",
        "merge into conversations c using (values (1)) v on c.id = '$c' \
         when matched then update set title = 'x'",
        "insert into messages (conversation_id, role, content) \
         select conversation_id, role, content from messages where id = '$m'",
    ];
    let mut wrong = Vec::new();
    for who in ["b owner", "b admin"] {
        for sql in statements {
            let twice = ask_twice(&world, who, sql, &names);
            if !twice.is_same() {
                wrong.push(format!(
                    "{who}: {sql}\n  {}\n  {}",
                    twice.real.text(),
                    twice.unreal.text()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The ids of conversations, messages and users are keys of the whole database: to bring one along
/// tells whether it is taken. That is all it tells, and nothing is done to what has it.
#[test]
fn an_id_that_is_taken_says_so_and_nothing_else() {
    let world = world(Server::shared(oldest()));
    let names = names(&world);
    // The statement, and what is said where the id is taken. Where an update is not to happen, Postgres
    // looks at the policy first, or at the condition, by its minor release.
    let cases = [
        ("insert into conversations (id) values ('$c')", "23505"),
        (
            "insert into conversations (id) values ('$c') on conflict do nothing returning title",
            "0: ",
        ),
        (
            "insert into conversations (id, title) values ('$c', 'x') \
             on conflict (id) do update set title = 'x' returning title",
            "42501",
        ),
        (
            "insert into conversations (id, title) values ('$c', 'x') on conflict (id) \
             do update set title = conversations.title where false returning title",
            "42501|0: ",
        ),
        (
            "insert into messages (id, conversation_id, role) values ('$m', '$own_c', 'user')",
            "23505",
        ),
        (
            "insert into messages (id, conversation_id, role) values ('$m', '$own_c', 'user') \
             on conflict do nothing",
            "23505",
        ),
        (
            "insert into messages (id, conversation_id, role) values ('$m', '$own_c', 'user') \
             on conflict (id) do update set content = 'x' returning content",
            "23505",
        ),
        (
            "merge into conversations c using (values ('$c'::uuid)) v (id) on c.id = v.id \
             when matched then update set title = 'x' \
             when not matched then insert (id) values (v.id)",
            "23505",
        ),
    ];
    let mut wrong = Vec::new();
    for (sql, expected) in cases {
        let twice = ask_twice(&world, "b owner", sql, &names);
        let said = twice.real.text();
        if !expected.split('|').any(|expected| said.starts_with(expected))
            || said.contains("secret")
            || twice.is_same()
        {
            wrong.push(format!("{sql}\n  {said}\n  {}", twice.unreal.text()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Names and retry keys are unique in a tenant, or in a conversation: nobody learns what others chose.
#[test]
fn a_name_that_is_taken_in_another_tenant_is_free() {
    let world = world(Server::shared(oldest()));
    let names = names(&world);
    let statements = [
        "insert into conversations (session_id) values ('session a/private')",
        "insert into conversations (continuation_id) values ('a/private')",
        "insert into conversations (session_id, continuation_id) values ('session a/private', 'a/private') \
         on conflict do nothing",
        "select create_conversation('x', 'session a/private', 'a/private')",
        "select get_or_create_conversation('a/private')",
        "update conversations set session_id = 'session a/private', continuation_id = 'a/private' \
         where id = '$own_c'",
        "insert into messages (conversation_id, role, client_message_id) \
         values ('$own_c', 'user', 'key a owner')",
        "select created from add_message('$own_c', 'user', 'x', client_message_id => 'key a owner')",
    ];
    let mut session = world.session("b owner");
    for sql in statements {
        let sql = sql.replace("$own_c", &names[0].1);
        session.run("begin");
        assert_eq!(session.execute(&sql, &[]).expect(&sql), 1, "{sql}");
        session.run("rollback");
    }
    // E-mail addresses are unique in a tenant, logins everywhere: both are for the service to write.
    let mut service = world.session("service");
    let emails: Vec<i64> =
        service.values("select count(*) from users where email is not null group by email");
    assert!(emails.iter().all(|n| *n == 3), "{emails:?}");
    let login = world.person("a owner").login.expect("a login");
    let sql = format!("insert into users (name, auth_id) values ('x', '{login}')");
    assert_eq!(service.error(&sql).0, "23505");
    assert_eq!(session.error(&sql).0, "42501");
}

/// Within a tenant, a name is taken for all of it: that is heard, and nothing of what has it.
#[test]
fn a_name_that_a_colleague_has_taken_is_refused_without_a_word_on_what_has_it() {
    let world = world(Server::shared(oldest()));
    let cases = [
        ("insert into conversations (session_id) values ('session a/private')", "23505"),
        (
            "insert into conversations (continuation_id) values ('a/private') on conflict do nothing",
            "0",
        ),
        (
            "insert into conversations (session_id) values ('session a/private') \
             on conflict (tenant_id, session_id) where deleted_at is null \
             do update set title = 'stolen' returning title, id",
            "42501",
        ),
        ("select get_or_create_conversation('a/private')", "23505"),
        ("select get_or_create_conversation('new', session_id => 'session a/private')", "23505"),
    ];
    let mut session = world.session("a colleague");
    for (sql, expected) in cases {
        session.run("begin");
        let said = ask(&mut session, sql).text();
        session.run("rollback");
        assert!(said.starts_with(expected), "{sql}: {said}");
        let id = world.place("a/private").id.to_string();
        assert!(!said.contains("secret") && !said.contains(&id), "{sql}: {said}");
    }
    let titles = "select count(*) from conversations where title = 'stolen'";
    assert_eq!(world.root().value::<i64>(titles), 0);
}
