//! What comes back from a dump is counted once, also where the triggers are there before the rows.

use std::path::PathBuf;

use pg_conversation_tests::{Rng, Server, Session, Uuid, oldest, run, versions};

use crate::world::{World, agree};

#[test]
fn restored_feedback_is_counted_once() {
    for version in versions() {
        let server = Server::shared(version);
        let world = World::new(server, 30, 20);
        let mut root = world.database.superuser();
        let mut rng = Rng::new(77);
        for user in 0..30 {
            let mut member = world.member(user);
            for m in &world.messages {
                if rng.below(2) == 0 {
                    member.run(&format!("select give_feedback('{m}', {})", rng.pick(&[1, -1])));
                }
            }
        }
        let messages = agree(&mut root);
        let digest = "select md5(string_agg(f::text, ',' order by id)) from feedback f";
        let expected: String = root.value(digest);
        let scratch = PathBuf::from(std::env::var_os("PGC_SCRATCH").expect("PGC_SCRATCH"));
        // How it is dumped and restored, and whether the tables are there before.
        let cases: [(&[&str], &[&str], bool); 6] = [
            (&["-Fc"], &["-e"], false),
            (&["-Fd", "-j", "2"], &["-e", "-j", "2"], false),
            (&["-Fc", "--inserts"], &["-e", "-1"], false),
            (&["-Fc", "--data-only"], &["-e"], true),
            (&["-Fc", "--data-only"], &["-e", "-1"], true),
            (&["-Fd", "-j", "2", "--data-only"], &["-e", "-j", "2", "--disable-triggers"], true),
        ];
        for (dump, restore, has_tables) in cases {
            let file = scratch.join(format!("feedback-{}", Uuid::new_v4()));
            run(server
                .program("pg_dump")
                .args(dump)
                .arg("-f")
                .arg(&file)
                .arg(&world.database.name));
            let target = server.empty_database();
            if has_tables {
                target.superuser().run("create extension pg_conversation");
                if restore.contains(&"--disable-triggers") {
                    target.superuser().run(
                        "delete from tenants; delete from schema_version; delete from access_profiles; \
                         delete from maintenance_runs",
                    );
                }
            }
            run(server.program("pg_restore").args(restore).args(["-d", &target.name]).arg(&file));
            let mut root = target.superuser();
            assert_eq!(agree(&mut root), messages, "{dump:?} {restore:?}");
            assert_eq!(root.value::<String>(digest), expected, "{dump:?} {restore:?}");
            let _ = std::fs::remove_file(&file);
            let _ = std::fs::remove_dir_all(&file);
        }
    }
}

/// Whoever reloads the rows alone says so by row_security, as pg_dump does, and has them counted again.
#[test]
fn rows_that_came_without_their_counts_are_counted_on_demand() {
    let world = World::new(Server::shared(oldest()), 3, 3);
    for user in 0..3 {
        for m in &world.messages {
            world.member(user).run(&format!("select give_feedback('{m}', 1)"));
        }
    }
    let mut root = world.database.superuser();
    root.run(
        "create table kept as table feedback; truncate feedback; set row_security = off; \
         insert into feedback select * from kept; reset row_security",
    );
    assert_eq!(root.value::<i64>("select count(*) from feedback_counts"), 0);
    let detail = "select detail from doctor() where check_name = 'counts of feedback'";
    assert_eq!(root.value::<String>(detail), "3 messages");
    // What is taken away meanwhile is not counted below nothing.
    world.member(1).run(&format!("select withdraw_feedback('{}')", world.messages[0]));
    world.member(1).run(&format!("select give_feedback('{}', -1)", world.messages[1]));
    let mut service = world.service();
    assert_eq!(service.value::<i32>("select recount_feedback(2)"), 2);
    assert_eq!(service.value::<i32>("select recount_feedback()"), 1);
    assert_eq!(service.value::<i32>("select recount_feedback()"), 0);
    assert_eq!(agree(&mut root), 3);
    assert_eq!(world.counts(1), Some((2, 1)));
}
