//! Two sessions at once, one of which waits for the other.

use std::thread;

use pg_conversation_tests::{Client, Server, Session, describe, versions, wait_until};

use crate::world::{World, agree};

/// `second` starts while the transaction of `first` is open; `first` commits when `second` waits, or is
/// rolled back. What became of `second` is its SQLSTATE.
fn overlap(
    world: &World,
    mut one: Client,
    first: &str,
    end: &str,
    mut two: Client,
    second: &str,
) -> Result<(), (String, String)> {
    let pid: i32 = two.value("select pg_backend_pid()");
    // Should nothing wait where something must.
    one.run("set idle_in_transaction_session_timeout = '40s'; begin");
    one.run(first);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            two.batch_execute(second).map_err(|error| match error.as_db_error() {
                Some(db) => (db.code().code().to_string(), db.message().to_string()),
                None => panic!("{}", describe(&error)),
            })
        });
        wait_until(
            &mut world.database.superuser(),
            &format!(
                "select coalesce(wait_event_type, '') = 'Lock' from pg_stat_activity where pid = {pid}"
            ),
        );
        one.run(end);
        waiting.join().expect("no panic")
    })
}

const ISOLATED: &str = "set default_transaction_isolation = 'repeatable read'";

#[test]
fn two_at_once_are_both_counted_or_one_has_to_come_again() {
    for version in versions() {
        let world = World::new(Server::shared(version), 3, 1);
        let m = world.messages[0];
        let give = |rating: i32| format!("select give_feedback('{m}', {rating})");
        let withdraw = format!("select withdraw_feedback('{m}')");
        // What users 1 and 2 have given before; who does what, and how the first one ends; the counts
        // then, without the second and with him.
        let both = [
            ("two users", "", (1, give(1)), "commit", (2, give(1)), (1, 0), (2, 0)),
            ("two opinions", "", (1, give(1)), "commit", (2, give(-1)), (1, 0), (1, 1)),
            (
                "one of them takes it back",
                "",
                (1, give(1)),
                "rollback",
                (2, give(-1)),
                (0, 0),
                (0, 1),
            ),
            ("one user twice", "", (1, give(1)), "commit", (1, give(-1)), (1, 0), (0, 1)),
            ("one user twice the same", "", (1, give(1)), "commit", (1, give(1)), (1, 0), (1, 0)),
            (
                "the first of them takes it back",
                "",
                (1, give(1)),
                "rollback",
                (1, give(-1)),
                (0, 0),
                (0, 1),
            ),
            (
                "another gives when the last withdraws",
                "1",
                (1, withdraw.clone()),
                "commit",
                (2, give(1)),
                (0, 0),
                (1, 0),
            ),
            (
                "he does not withdraw after all",
                "1",
                (1, withdraw.clone()),
                "rollback",
                (2, give(1)),
                (1, 0),
                (2, 0),
            ),
            (
                "give and withdraw",
                "1",
                (1, give(-1)),
                "commit",
                (1, withdraw.clone()),
                (0, 1),
                (0, 0),
            ),
            (
                "withdraw and give",
                "1",
                (1, withdraw.clone()),
                "commit",
                (1, give(-1)),
                (0, 0),
                (0, 1),
            ),
            (
                "withdraw twice",
                "1",
                (1, withdraw.clone()),
                "commit",
                (1, withdraw.clone()),
                (0, 0),
                (0, 0),
            ),
            (
                "two withdraw",
                "1, 2",
                (1, withdraw.clone()),
                "commit",
                (2, withdraw.clone()),
                (1, 0),
                (0, 0),
            ),
            (
                "one changes his mind, one withdraws",
                "1, 2",
                (1, give(-1)),
                "commit",
                (2, withdraw.clone()),
                (1, 1),
                (0, 1),
            ),
        ];
        for isolated in [false, true] {
            for (case, before, (who, first), end, (whom, second), without, with) in &both {
                println!("{case}, isolated {isolated}");
                let mut root = world.database.superuser();
                root.run("delete from feedback");
                for user in before.split(", ").filter_map(|n| n.parse::<usize>().ok()) {
                    world.member(user).run(&give(1));
                }
                let mut two = world.member(*whom);
                if isolated {
                    // Its snapshot is older than what the first one commits.
                    two.run(ISOLATED);
                }
                let said = overlap(&world, world.member(*who), first, end, two, second);
                let counts = world.counts(0).unwrap_or((0, 0));
                match said {
                    Ok(()) => assert_eq!(counts, *with, "{case}, isolated {isolated}"),
                    Err((code, _)) if isolated && code == "40001" => {
                        assert_eq!(counts, *without, "{case}, isolated");
                    }
                    Err((code, words)) => panic!("{case}, isolated {isolated}: {code} {words}"),
                }
                agree(&mut root);
            }
        }
    }
}

#[test]
fn an_old_snapshot_is_no_reason_not_to_be_counted() {
    for version in versions() {
        let world = World::new(Server::shared(version), 4, 1);
        let give = format!("select give_feedback('{}', 1)", world.messages[0]);
        for level in ["repeatable read", "serializable"] {
            let mut member = world.member(1);
            member.run(&format!("begin isolation level {level}; select count(*) from feedback"));
            world.member(2).run(&give);
            world.member(3).run(&give);
            member.run(&give);
            member.run("commit");
            assert_eq!(world.counts(0), Some((3, 0)), "{level}");
            // Nor not to be counted any more.
            member.run(&format!("begin isolation level {level}; select count(*) from feedback"));
            world.member(2).run(&give.replace(", 1)", ", -1)"));
            member.run(&format!("select withdraw_feedback('{}')", world.messages[0]));
            member.run("commit");
            assert_eq!(world.counts(0), Some((1, 1)), "{level}");
            world.database.superuser().run("delete from feedback");
            agree(&mut world.database.superuser());
        }
    }
}

#[test]
fn feedback_on_what_is_being_deleted_is_on_nothing_that_exists() {
    for version in versions() {
        let world = World::new(Server::shared(version), 4, 6);
        let m = |n: usize| world.messages[n];
        let root = || world.database.superuser();
        let missing = |n: usize| format!("message {} does not exist", m(n));
        // A message goes while feedback is given.
        let delete = format!("delete from messages where id = '{}'", m(0));
        let give = format!("select give_feedback('{}', 1)", m(0));
        let said = overlap(&world, root(), &delete, "commit", world.member(1), &give);
        assert_eq!(said, Err(("P0002".into(), missing(0))));
        // It does not go after all.
        let delete = format!("delete from messages where id = '{}'", m(1));
        let give = format!("select give_feedback('{}', 1)", m(1));
        let said = overlap(&world, root(), &delete, "rollback", world.member(1), &give);
        assert_eq!(said, Ok(()));
        assert_eq!(world.counts(1), Some((1, 0)));
        // Feedback is given while it goes.
        let said = overlap(&world, world.member(2), &give, "commit", root(), &delete);
        assert_eq!(said, Ok(()));
        assert_eq!(world.counts(1), None);
        // A user goes while he gives feedback, and the other way round.
        let leave = format!("delete from users where id = '{}'", world.users[1]);
        let give = format!("select give_feedback('{}', 1)", m(2));
        let said = overlap(&world, root(), &leave, "commit", world.member(1), &give);
        assert_eq!(said, Err(("P0002".into(), missing(2))));
        let leave = format!("delete from users where id = '{}'", world.users[2]);
        world.member(3).run(&give);
        let said = overlap(&world, world.member(2), &give, "commit", root(), &leave);
        assert_eq!(said, Ok(()));
        assert_eq!(world.counts(2), Some((1, 0)));
        agree(&mut root());
        // All of it goes, while somebody is at its last message.
        for n in 3..6 {
            world.member(3).run(&format!("select give_feedback('{}', -1)", m(n)));
        }
        let all = format!("delete from conversations where id = '{}'", world.conversation);
        let give = format!("select give_feedback('{}', 1)", m(5));
        let said = overlap(&world, world.member(0), &give, "commit", root(), &all);
        assert_eq!(said, Ok(()));
        assert_eq!(agree(&mut root()), 0);
        assert_eq!(root().value::<i64>("select count(*) from feedback_counts"), 0);
    }
}

#[test]
fn rights_that_are_lost_while_one_waits_are_lost() {
    for version in versions() {
        let world = World::new(Server::shared(version), 2, 1);
        let m = world.messages[0];
        let mut owner = world.member(0);
        owner.run("update conversations set visibility = 'private'");
        let let_in = format!("select add_member('{}', '{}')", world.conversation, world.users[1]);
        for sql in [
            format!("select withdraw_feedback('{m}')"),
            format!("select give_feedback('{m}', -1)"),
            format!("select give_feedback('{m}', 1)"),
        ] {
            owner.run(&let_in);
            world.member(1).run(&format!("select give_feedback('{m}', 1)"));
            let said = overlap(
                &world,
                world.database.superuser(),
                "select from feedback for update; delete from conversation_members",
                "commit",
                world.member(1),
                &sql,
            );
            assert_eq!(said, Err(("P0002".into(), format!("message {m} does not exist"))), "{sql}");
            assert_eq!(world.counts(0), Some((1, 0)), "{sql}");
        }
    }
}

/// Statements over the same messages in other orders, again and again: their rows of feedback are
/// different ones, and the counts are locked in one order.
#[test]
fn statements_over_many_messages_do_not_wait_in_a_circle() {
    for version in versions() {
        let world = World::new(Server::shared(version), 7, 40);
        thread::scope(|scope| {
            for user in 1..7 {
                let world = &world;
                scope.spawn(move || {
                    let mut client = world.member(user);
                    let direction = if user % 2 == 0 { "desc" } else { "asc" };
                    for round in 0..25 {
                        client.run(&format!(
                            "insert into feedback (message_id, rating) select id, 1 from messages \
                             order by id {direction} \
                             on conflict (message_id, user_id) do update set rating = -feedback.rating"
                        ));
                        if round % 5 == 4 {
                            let id = world.users[user];
                            world.service().run(&format!("delete from feedback where user_id = '{id}'"));
                        }
                    }
                });
            }
        });
        let mut root = world.database.superuser();
        assert_eq!(agree(&mut root), 0);
    }
}

#[test]
fn counting_again_waits_for_whoever_is_being_counted() {
    for version in versions() {
        let world = World::new(Server::shared(version), 4, 1);
        let give = format!("select give_feedback('{}', 1)", world.messages[0]);
        let recount = "select recount_feedback()";
        let mut root = world.database.superuser();
        world.member(1).run(&give);
        // The counts are wrong, or not there at all.
        for (wrong, user, expected) in [
            ("update feedback_counts set thumbs_up = 8", 2, 2),
            ("delete from feedback_counts", 3, 3),
        ] {
            root.run(&format!(
                "begin; set local session_replication_role = replica; {wrong}; commit"
            ));
            let said =
                overlap(&world, world.member(user), &give, "commit", world.service(), recount);
            assert_eq!(said, Ok(()));
            assert_eq!(world.counts(0), Some((expected, 0)), "{wrong}");
        }
        // Somebody has the row before he counts anything there.
        root.run("begin; set local session_replication_role = replica; update feedback_counts set thumbs_up = 8; commit");
        let mut first = world.database.superuser();
        first.run(&format!("set pg_conversation.user_id = '{}'", world.users[0]));
        let (lock, end) = ("select from feedback_counts for update", format!("{give}; commit"));
        let said = overlap(&world, first, lock, &end, world.service(), recount);
        assert_eq!(said, Ok(()));
        assert_eq!(world.counts(0), Some((4, 0)));
        agree(&mut root);
    }
}

#[test]
fn counting_again_beside_those_who_give_counts_right() {
    for version in versions() {
        let world = World::new(Server::shared(version), 6, 3);
        let mut root = world.database.superuser();
        thread::scope(|scope| {
            let workers: Vec<_> = (1..6)
                .map(|user| {
                    let world = &world;
                    scope.spawn(move || {
                        let mut client = world.member(user);
                        for n in 0..60 {
                            let m = world.messages[n % 3];
                            client.run(&format!("select give_feedback('{m}', 1)"));
                            client.run(&format!("select withdraw_feedback('{m}')"));
                        }
                        for m in &world.messages {
                            client.run(&format!("select give_feedback('{m}', -1)"));
                        }
                    })
                })
                .collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                // As with triggers disabled; in a transaction of its own, for it locks what it writes.
                root.run(
                    "begin; set local session_replication_role = replica; \
                     update feedback_counts set thumbs_up = thumbs_up + 7 where random() < 0.5; commit",
                );
                root.run("select recount_feedback()");
            }
        });
        assert_eq!(root.value::<i32>("select recount_feedback()"), 0);
        assert_eq!(agree(&mut root), 3);
        assert_eq!(world.counts(0), Some((0, 5)));
    }
}
