//! Who may give feedback on what, and what is refused.

use pg_conversation_tests::{Server, Session, Uuid, oldest, versions};

use crate::world::{SERVICE, World, agree};

#[test]
fn feedback_is_given_once_changed_and_withdrawn() {
    for version in versions() {
        let world = World::new(Server::shared(version), 2, 1);
        let m = world.messages[0];
        let mut member = world.member(1);
        let give = |rest: &str| format!("select created from give_feedback('{m}', {rest})");
        let row = "select format('%s %s %s %s', ctid, xmin, rating, comment) from feedback";
        assert!(member.value::<bool>(&give("1, 'fine'")));
        let first: String = member.value(row);
        let id: Uuid = member.value("select id from feedback");
        // The same again writes nothing.
        assert!(!member.value::<bool>(&give("1, 'fine'")));
        assert_eq!(member.value::<String>(row), first);
        assert_eq!(
            member.value::<Uuid>(&format!("select id from give_feedback('{m}', 1, 'fine')")),
            id
        );
        for (rest, expected) in [
            ("1, 'better'", "1 better"),
            ("-1, 'better'", "-1 better"),
            ("-1", "-1 "),
            ("1, ''", "1 "),
            ("1, null", "1 "),
        ] {
            let before: String = member.value("select updated_at::text from feedback");
            assert!(!member.value::<bool>(&give(rest)), "{rest}");
            assert!(member.value::<String>(row).ends_with(&format!(" {expected}")), "{rest}");
            assert_ne!(member.value::<String>("select updated_at::text from feedback"), before);
            assert_eq!(member.value::<Uuid>("select id from feedback"), id);
        }
        let withdraw = format!("select withdraw_feedback('{m}')");
        assert!(member.value::<bool>(&withdraw));
        assert!(!member.value::<bool>(&withdraw));
        assert!(member.value::<bool>(&give("-1")));
        assert_ne!(member.value::<Uuid>("select id from feedback"), id);
        agree(&mut world.database.superuser());
    }
}

#[test]
fn an_upsert_of_a_client_is_his_own_and_counted() {
    for version in versions() {
        let world = World::new(Server::shared(version), 3, 2);
        let (m, me, other) = (world.messages[0], world.users[1], world.users[2]);
        let mut member = world.member(1);
        // As an API sends it: all columns of the row.
        let upsert = |rating: i32, user: Uuid| {
            format!(
                "insert into feedback (message_id, user_id, rating, comment) values ('{m}', '{user}', {rating}, 'c') \
                 on conflict (message_id, user_id) do update set message_id = excluded.message_id, \
                 user_id = excluded.user_id, rating = excluded.rating, comment = excluded.comment"
            )
        };
        for (rating, counts) in [(1, (1, 0)), (1, (1, 0)), (-1, (0, 1)), (1, (1, 0))] {
            member.run(&upsert(rating, me));
            assert_eq!(world.counts(0), Some(counts));
        }
        world.member(2).run(&upsert(1, other));
        // Not in the name of another.
        assert_eq!(
            member.error(&upsert(-1, other)),
            ("P0002".into(), format!("user {other} does not exist"))
        );
        assert_eq!(
            member.value::<i64>("select count(*) from feedback"),
            2,
            "he sees what others gave"
        );
        for sql in [
            "update feedback set rating = -1 where user_id <> current_user_id()",
            "update feedback set comment = 'x' where user_id <> current_user_id()",
        ] {
            assert_eq!(member.execute(sql, &[]).expect("nothing of his"), 0);
        }
        for sql in [
            format!("update feedback set message_id = '{}'", world.messages[1]),
            format!("update feedback set user_id = '{other}'"),
        ] {
            assert_eq!(member.error(&sql).0, "23000", "{sql}");
        }
        // What no column is granted for.
        for sql in [
            "update feedback set tenant_id = tenant_id",
            "update feedback set conversation_id = conversation_id",
            "update feedback set id = id",
            "update feedback set created_at = now()",
            "insert into feedback (id, message_id, rating) select new_id(), message_id, 1 from feedback",
            "delete from feedback",
            "truncate feedback",
            "do $$ begin lock feedback in exclusive mode; end $$",
            "delete from feedback_counts",
            "update feedback_counts set thumbs_up = 5",
            "insert into feedback_counts select * from feedback_counts",
            "select * from message_feedback_summary",
            "refresh materialized view message_feedback_summary",
        ] {
            assert_eq!(member.error(sql).0, "42501", "{sql}");
        }
        assert_eq!(world.counts(0), Some((2, 0)));
        agree(&mut world.database.superuser());
    }
}

#[test]
fn limits_hold_whoever_writes() {
    let world = World::new(Server::shared(oldest()), 2, 1);
    let m = world.messages[0];
    let user = world.users[1];
    let plain = |columns: &str, values: &str| {
        format!(
            "insert into feedback (message_id, user_id, {columns}) values ('{m}', '{user}', {values})"
        )
    };
    for mut client in [world.member(1), world.service(), world.database.superuser()] {
        client.run(&format!("begin; set pg_conversation.user_id = '{user}'"));
        for (sql, code) in [
            (format!("select give_feedback('{m}', 0)"), "22023"),
            (format!("select give_feedback('{m}', 2)"), "22023"),
            (format!("select give_feedback('{m}', -2147483648)"), "22023"),
            (format!("select give_feedback('{m}', null)"), "22004"),
            ("select give_feedback(null, 1)".into(), "22004"),
            ("select withdraw_feedback(null)".into(), "22004"),
            ("select get_message_feedback(null)".into(), "22004"),
            (format!("select give_feedback('{m}', 1, repeat('☃', 5001))"), "23514"),
            (plain("rating", "0"), "23514"),
            (plain("rating", "2"), "23514"),
            (plain("rating", "null"), "23502"),
            (plain("rating, comment", "1, repeat('x', 5001)"), "23514"),
            (plain("rating, metadata", "1, '[]'"), "23514"),
            ("insert into feedback (rating) values (1)".into(), "22004"),
        ] {
            client.run("savepoint s");
            assert_eq!(client.error(&sql).0, code, "{sql}");
            client.run("rollback to savepoint s");
        }
        client.run(&format!("select give_feedback('{m}', 1, repeat('☃', 5000))"));
        let length: i32 = client
            .value(&format!("select char_length(own_comment) from get_message_feedback('{m}')"));
        assert_eq!(length, 5000);
        client.run("rollback");
    }
    agree(&mut world.database.superuser());
}

/// Not only the code: whoever may not read a message hears what is said of one that does not exist, and
/// waits for nothing to hear it.
#[test]
fn a_stranger_hears_of_a_message_what_is_said_of_none() {
    for version in versions() {
        let world = World::new(Server::shared(version), 3, 1);
        let m = world.messages[0];
        world.member(1).run(&format!("select give_feedback('{m}', 1)"));
        let mut root = world.database.superuser();
        root.run(&format!(
            "insert into tenants (id, name, slug) values ('{0}', 'Other', 'other'); \
             insert into users (id, tenant_id) values ('{1}', '{0}')",
            Uuid::new_v4(),
            Uuid::new_v4()
        ));
        let other: Uuid = root.value(
            "select u.id from users u join tenants t on t.id = u.tenant_id where slug = 'other'",
        );
        root.run("update conversations set visibility = 'private'");
        // Somebody holds it all.
        let mut holder = world.database.superuser();
        holder.run(
            "begin; select from messages for update; select from users for update; \
             select from feedback for update; select from feedback_counts for update; \
             select from conversations for update",
        );
        let none = Uuid::new_v4();
        let nobody = Uuid::new_v4();
        for user in [world.users[2], other, nobody, world.users[1]] {
            let mut stranger = world.database.member(user);
            stranger.run("set lock_timeout = '1s'");
            for sql in [
                "select give_feedback('$m', 1)",
                "select give_feedback('$m', -1, 'x')",
                "select withdraw_feedback('$m')",
                "select get_message_feedback('$m')",
                "insert into feedback (message_id, rating) values ('$m', 1)",
                "insert into feedback (message_id, rating) values ('$m', 7)",
                "insert into feedback (message_id, user_id, rating) values ('$m', '$u', 1) on conflict do nothing",
                "insert into feedback (message_id, rating) values ('$m', 1) \
                 on conflict (message_id, user_id) do update set rating = 1",
            ] {
                let sql = sql.replace("$u", &user.to_string());
                let real = stranger.error(&sql.replace("$m", &m.to_string()));
                let unreal = stranger.error(&sql.replace("$m", &none.to_string()));
                assert_eq!(real.0, "P0002", "{sql}: {real:?}");
                assert_eq!(real.1.replace(&m.to_string(), &none.to_string()), unreal.1, "{sql}");
                assert_eq!(real.0, unreal.0, "{sql}");
            }
            for table in ["feedback", "feedback_counts"] {
                let seen: i64 = stranger.value(&format!("select count(*) from {table}"));
                assert_eq!(seen, 0, "{table}");
            }
            for sql in ["update feedback set rating = -1", "update feedback set comment = 'x'"] {
                assert_eq!(stranger.execute(sql, &[]).expect("nothing of his"), 0);
            }
        }
        holder.run("rollback");
        assert_eq!(world.counts(0), Some((1, 0)));
    }
}

#[test]
fn whoever_is_shut_out_keeps_his_word_and_cannot_touch_it() {
    let world = World::new(Server::shared(oldest()), 3, 1);
    let m = world.messages[0];
    let mut owner = world.member(0);
    owner.run("update conversations set visibility = 'private'");
    owner.run(&format!("select add_member('{}', '{}')", world.conversation, world.users[1]));
    let mut viewer = world.member(1);
    viewer.run(&format!("select give_feedback('{m}', -1, 'no')"));
    let seen: (i32, Option<i32>) = {
        let row = owner
            .query_one(
                &format!("select thumbs_down, own_rating from get_message_feedback('{m}')"),
                &[],
            )
            .expect("a row");
        (row.get(0), row.get(1))
    };
    assert_eq!(seen, (1, None));
    owner.run(&format!("select remove_member('{}', '{}')", world.conversation, world.users[1]));
    for sql in [
        format!("select withdraw_feedback('{m}')"),
        format!("select give_feedback('{m}', 1)"),
        format!("select get_message_feedback('{m}')"),
    ] {
        assert_eq!(viewer.error(&sql), ("P0002".into(), format!("message {m} does not exist")));
    }
    assert_eq!(viewer.execute("update feedback set rating = 1", &[]).expect("nothing to see"), 0);
    assert_eq!(world.counts(0), Some((0, 1)));
}

#[test]
fn the_service_speaks_for_users_of_the_messages_tenant() {
    let world = World::new(Server::shared(oldest()), 3, 1);
    let m = world.messages[0];
    let mut root = world.database.superuser();
    root.run(&format!(
        "insert into tenants (id, name, slug) values ('{0}', 'Other', 'other'); \
         insert into users (id, tenant_id) values ('{1}', '{0}')",
        Uuid::new_v4(),
        Uuid::new_v4()
    ));
    let other: Uuid = root.value(
        "select u.id from users u join tenants t on t.id = u.tenant_id where slug = 'other'",
    );
    let mut service = world.service();
    let insert = |user: Uuid| {
        format!("insert into feedback (message_id, user_id, rating) values ('{m}', '{user}', 1)")
    };
    assert_eq!(
        service.error(&insert(other)),
        ("P0002".into(), format!("user {other} does not exist"))
    );
    let nobody = Uuid::new_v4();
    assert_eq!(
        service.error(&insert(nobody)),
        ("P0002".into(), format!("user {nobody} does not exist"))
    );
    assert_eq!(
        service.error(&insert(world.users[1]).replace(&m.to_string(), &nobody.to_string())),
        ("P0002".into(), format!("message {nobody} does not exist"))
    );
    assert_eq!(service.error(&format!("select give_feedback('{m}', 1)")).0, "28000");
    assert_eq!(service.error(&format!("select withdraw_feedback('{m}')")).0, "28000");
    service.run(&insert(world.users[1]));
    service.run(&format!("set pg_conversation.user_id = '{other}'"));
    assert_eq!(service.error(&format!("select give_feedback('{m}', 1)")).0, "P0002");
    service.run(&format!("set pg_conversation.user_id = '{}'", world.users[2]));
    service.run(&format!("select give_feedback('{m}', -1)"));
    assert_eq!(world.counts(0), Some((1, 1)));
    assert!(service.value::<bool>(&format!("select withdraw_feedback('{m}')")));
    // Whoever brings a tenant of his own choice is not believed.
    root.run(&format!(
        "insert into feedback (message_id, conversation_id, tenant_id, user_id, rating) \
         values ('{m}', '{nobody}', '{nobody}', '{}', -1)",
        world.users[2]
    ));
    assert_eq!(agree(&mut root), 1);
    // A dump that is loaded is.
    root.run(
        "begin; set local row_security = off; delete from feedback; rollback; truncate feedback",
    );
    assert_eq!(root.value::<i64>("select count(*) from feedback_counts"), 0);
}

#[test]
fn what_keeps_house_is_for_the_service_and_the_owner() {
    for version in versions() {
        let world = World::new(Server::shared(version), 2, 1);
        let server = world.database.server;
        for role in ["feedback_monitor", "feedback_nobody"] {
            server.role(role);
        }
        world.database.superuser().run("select grant_access('feedback_monitor', 'monitor')");
        let statements = [
            "select refresh_analytics()",
            "select refresh_analytics(false)",
            "select recount_feedback()",
        ];
        for sql in statements {
            for role in ["feedback_monitor", "feedback_nobody"] {
                assert_eq!(world.database.connect(role).error(sql).0, "42501", "{role}: {sql}");
            }
            assert_eq!(world.member(1).error(sql).0, "42501", "{sql}");
            world.database.connect(SERVICE).run(sql);
            world.database.superuser().run(sql);
        }
        let mut service = world.service();
        assert_eq!(service.error("select refresh_analytics(null)").0, "22004");
        assert_eq!(service.error("select recount_feedback(null)").0, "22004");
        assert_eq!(service.error("select recount_feedback(-1)").0, "22023");
    }
}

/// Triggers of a statement fire when it is done: with the last row, not with the first.
#[test]
fn triggers_of_a_dba_hear_of_what_functions_write() {
    let world = World::new(Server::shared(oldest()), 2, 1);
    let mut root = world.database.superuser();
    root.run(
        "create table heard (what text); \
         create function hear() returns trigger language plpgsql as \
         $$ begin insert into public.heard select tg_table_name || ' ' || tg_op; return null; end $$; \
         create trigger a after insert or update or delete on feedback for each statement execute function hear(); \
         create trigger a after insert or update or delete on messages for each statement execute function hear(); \
         grant insert on heard to public",
    );
    let mut member = world.member(0);
    member.run(&format!("select add_message('{}', 'user', 'x')", world.conversation));
    member.run(&format!("select give_feedback('{}', 1)", world.messages[0]));
    member.run(&format!("select withdraw_feedback('{}')", world.messages[0]));
    let heard: Vec<String> = root.values("select what from heard");
    for what in ["messages INSERT", "feedback INSERT", "feedback DELETE"] {
        assert!(heard.contains(&what.to_string()), "{what}: {heard:?}");
    }
}
