//! The row that is changed in place.

use std::thread;
use std::time::Duration;

use pg_conversation_tests::{Server, Session, oldest, wait_until};

use crate::desk::{Desk, Limits, code};

#[test]
fn what_was_drawn_stays_drawn_whatever_becomes_of_the_transaction() {
    let desk = Desk::new();
    desk.requests("20");
    let mut member = desk.member();
    assert_eq!(member.draw(1).unwrap().remaining, Some(19));
    member.run("begin");
    assert_eq!(member.draw(2).unwrap().remaining, Some(17));
    member.run("savepoint a");
    assert_eq!(member.draw(3).unwrap().remaining, Some(14));
    member.run("rollback to a");
    assert_eq!(member.draw(0).unwrap().remaining, Some(14));
    member.run("rollback");
    assert_eq!(member.draw(0).unwrap().remaining, Some(14));
    assert!(member.batch_execute("select check_rate_limit(4); select 1 / 0").is_err());
    assert_eq!(member.draw(0).unwrap().remaining, Some(10));
    // An old snapshot does not hide what others have drawn since.
    member.run("begin isolation level repeatable read; select 1 from tenants");
    let mut another = desk.member();
    assert_eq!(another.draw(10).unwrap().remaining, Some(0));
    assert!(!member.draw(1).unwrap().allowed);
    member.run("commit; begin isolation level serializable; select 1 from tenants");
    desk.database.superuser().run("delete from rate_states");
    assert_eq!(another.draw(5).unwrap().remaining, Some(15));
    assert_eq!(member.draw(1).unwrap().remaining, Some(14));
    member.run("commit");
}

#[test]
fn nobody_waits_for_another_request_of_the_tenant() {
    let desk = Desk::new();
    desk.requests("100");
    let (mut one, mut two) = (desk.member(), desk.member());
    one.draw(1).unwrap();
    one.run("begin");
    one.draw(1).unwrap();
    two.run("set lock_timeout = 1");
    assert_eq!(two.draw(1).unwrap().remaining, Some(97));
    assert_eq!(one.draw(1).unwrap().remaining, Some(96));
    // Nothing that a commit has to wait for, either.
    assert!(one.value::<bool>("select pg_current_xact_id_if_assigned() is null"));
    one.run("rollback");
    // Where somebody has deleted the row, the next request makes it: that one is waited for.
    desk.database.superuser().run("delete from rate_states");
    one.run("begin");
    one.draw(60).unwrap();
    assert_eq!(code(two.draw(60)), "55P03");
    two.run("set lock_timeout = 0");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| two.draw(60).unwrap());
        wait_until(
            &mut desk.database.superuser(),
            "select exists (select from pg_locks l join pg_stat_activity a using (pid) \
             where not l.granted and a.datname = current_database())",
        );
        one.run("commit");
        assert!(!waiting.join().unwrap().allowed);
    });
}

#[test]
fn a_refusal_writes_nothing() {
    let server = Server::private(oldest(), "autovacuum = off\n");
    let desk = Desk::on(&server);
    desk.requests("3");
    let mut member = desk.member();
    member.draw(3).unwrap();
    member.draw(1).unwrap();
    let mut watcher = desk.database.superuser();
    watcher.run("checkpoint");
    thread::sleep(Duration::from_millis(300));
    let mut written = || -> String { watcher.value("select pg_current_wal_insert_lsn()::text") };
    let before = written();
    for cost in [1, 2, 3, 4, 0] {
        assert_eq!(member.draw(cost).unwrap().allowed, cost == 0);
    }
    assert_eq!(written(), before);
}

#[test]
fn nothing_is_drawn_where_nothing_may_be_written() {
    let desk = Desk::new();
    for limit in ["null", "5"] {
        desk.requests(limit);
        let mut member = desk.member();
        member.run("begin read only");
        assert!(member.draw(0).unwrap().allowed);
        assert_eq!(code(member.draw(1)), "25006");
        member.run("rollback");
    }
}

#[test]
fn a_standby_knows_what_was_drawn_and_draws_nothing() {
    let server = Server::private(oldest(), "wal_level = replica\nwal_writer_delay = 10ms\n");
    let desk = Desk::on(&server);
    desk.requests("5");
    let standby = server.standby();
    let mut here = standby.connect(&desk.database.name, "member");
    here.run(&format!("set pg_conversation.user_id = '{}'", desk.user));
    assert_eq!(here.draw(0).unwrap().remaining, Some(5));
    let mut there = desk.member();
    assert_eq!(there.draw(5).unwrap().remaining, Some(0));
    wait_until(&mut here, "select remaining < 3 from check_rate_limit(0)");
    assert_eq!(code(here.draw(1)), "25006");
    // What the standby has is whole when it takes over.
    standby.connect(&desk.database.name, "postgres").run("select pg_promote()");
    wait_until(&mut here, "select not pg_is_in_recovery()");
    assert!(!here.draw(5).unwrap().allowed);
    let left = here.draw(0).unwrap().remaining.unwrap();
    assert!(here.draw(left).unwrap().allowed);
}

#[test]
fn the_owner_may_change_delete_and_rewrite_the_rows() {
    let desk = Desk::new();
    desk.requests("60");
    let (mut member, mut superuser) = (desk.member(), desk.database.superuser());
    assert_eq!(member.draw(10).unwrap().remaining, Some(50));
    superuser.run("vacuum full rate_states");
    assert_eq!(member.draw(1).unwrap().remaining, Some(49));
    superuser.run("vacuum freeze rate_states");
    superuser.run("cluster rate_states using rate_states_pkey");
    assert_eq!(member.draw(1).unwrap().remaining, Some(48));
    // A change under way is waited for; one that is taken back has never been.
    for (end, left) in [("rollback", 47), ("commit", 29)] {
        superuser.run("begin; update rate_states set next_at = now() + '30 s'");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| member.draw(1).unwrap());
            let mut watcher = desk.database.superuser();
            wait_until(&mut watcher, "select exists (select from pg_locks where not granted)");
            superuser.run(end);
            let found = waiting.join().unwrap().remaining.unwrap();
            assert!(found == left || found == left + 1, "{end}: {found}");
        });
    }
    superuser.run("begin; delete from rate_states");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| member.draw(1).unwrap());
        let mut watcher = desk.database.superuser();
        wait_until(&mut watcher, "select exists (select from pg_locks where not granted)");
        superuser.run("commit");
        assert_eq!(waiting.join().unwrap().remaining, Some(59));
    });
    // Locks of rows are nothing to wait for.
    superuser.run("begin; select from rate_states for share");
    let mut another = desk.database.superuser();
    another.run("begin; select from rate_states for share");
    member.run("set lock_timeout = 1");
    assert_eq!(member.draw(1).unwrap().remaining, Some(58));
    superuser.run("commit");
    another.run("commit");
    superuser.run("truncate rate_states");
    member.run("set lock_timeout = 0");
    assert_eq!(member.draw(1).unwrap().remaining, Some(59));
    superuser
        .run("alter table rate_states add column note text; update rate_states set note = 'x'");
    assert_eq!(member.draw(1).unwrap().remaining, Some(58));
}

#[test]
fn a_table_that_cannot_be_changed_in_place_is_refused() {
    let desk = Desk::new();
    desk.requests("60");
    let (mut member, mut superuser) = (desk.member(), desk.database.superuser());
    for (change, back) in [
        ("create index mine on rate_states (next_at)", "drop index mine"),
        (
            "alter table rate_states rename column next_at to at",
            "alter table rate_states rename column at to next_at",
        ),
        (
            "alter table rate_states alter column next_at type timestamp",
            "alter table rate_states alter column next_at type timestamptz",
        ),
    ] {
        member.draw(1).unwrap();
        superuser.run(change);
        assert!(["55000", "42804"].contains(&code(member.draw(1)).as_str()), "{change}");
        superuser.run(back);
        assert!(member.draw(1).unwrap().allowed, "{back}");
    }
}

#[test]
fn a_tenant_takes_its_state_along() {
    let desk = Desk::new();
    let (other, user) = desk.stranger();
    desk.requests("5");
    desk.database.member(user).draw(1).unwrap();
    let mut superuser = desk.database.superuser();
    assert_eq!(superuser.value::<i64>("select count(*) from rate_states"), 2);
    superuser.run(&format!(
        "delete from users where tenant_id = '{other}'; delete from tenants where id = '{other}'"
    ));
    assert_eq!(superuser.value::<i64>("select count(*) from rate_states"), 1);
}

#[test]
fn the_first_request_of_a_tenant_is_one_like_any_other() {
    let desk = Desk::new();
    // The tenant that is there from the start, and one that comes later.
    let (_, user) = desk.stranger();
    desk.requests("5");
    for mut client in [desk.member(), desk.database.member(user)] {
        for left in (0..5).rev() {
            client.run("begin");
            assert_eq!(client.draw(1).unwrap().remaining, Some(left));
            client.run("rollback");
        }
        assert!(!client.draw(1).unwrap().allowed);
    }
    desk.database.superuser().run("delete from rate_states; select migrate()");
    let rows = desk.database.superuser().value::<i64>("select count(*) from rate_states");
    assert_eq!(rows, 2, "what is missing is made by migrate()");
}

#[test]
fn a_command_that_deletes_the_row_may_draw_on_it() {
    let desk = Desk::new();
    desk.requests("5");
    let mut superuser = desk.database.superuser();
    superuser.run("set statement_timeout = '5s'");
    superuser.run("delete from rate_states returning check_rate_limit(1, tenant_id)");
    superuser
        .run("update rate_states set next_at = now() returning check_rate_limit(1, tenant_id)");
    assert!(desk.member().draw(0).unwrap().allowed);
}

#[test]
fn a_row_that_lacks_what_would_be_written_is_not_written() {
    let desk = Desk::new();
    desk.stranger();
    desk.requests("5");
    let mut superuser = desk.database.superuser();
    superuser.run(
        "drop table rate_states; create table rate_states ( \
             tenant_id uuid not null constraint rate_states_pkey primary key); \
         insert into rate_states select id from tenants; \
         alter table rate_states add column next_at timestamptz not null default '2020-01-01'",
    );
    assert_eq!(code(desk.member().draw(1)), "55000");
    superuser.run("alter table rate_states alter column next_at drop not null");
    assert_eq!(code(desk.member().draw(1)), "55000");
    // Written anew, each row has it.
    superuser.run("update rate_states set next_at = now()");
    superuser.run("vacuum full rate_states");
    superuser.run("alter table rate_states alter column next_at set not null");
    assert_eq!(desk.member().draw(1).unwrap().remaining, Some(4));
    assert_eq!(superuser.value::<i64>("select count(*) from rate_states"), 2);
}
