//! What is left after a server was killed.

use pg_conversation_tests::{Server, Session, Uuid, oldest};

use crate::desk::{Desk, Limits, taken};

/// What leaves nothing on disk that nobody has asked for.
const LAZY: &str = "wal_writer_delay = 10s\ncheckpoint_timeout = 1h\nautovacuum = off\n";

#[test]
fn a_crash_keeps_each_reservation_that_was_answered() {
    let server = Server::private(oldest(), LAZY);
    let desk = Desk::on(&server);
    desk.tokens("1000");
    let mut service = desk.service();
    for round in 0..3 {
        let mut open: Vec<Uuid> = Vec::new();
        for n in 0..6 {
            let id = service.reserve(desk.tenant, 40).unwrap().id.unwrap();
            match n % 3 {
                0 => open.push(id),
                1 => assert!(service.settle(id, 10).unwrap().0),
                _ => assert!(service.release(id).unwrap()),
            }
        }
        let message = desk.member().begin(desk.conversation, 15).unwrap();
        let before = taken(&mut service);
        service.run("begin");
        service.settle(open[0], 7).unwrap();
        service.reserve(desk.tenant, 1).unwrap();
        server.kill_postmaster();
        server.start();
        service = desk.service();
        assert_eq!(taken(&mut service), before, "{round}");
        desk.member().run(&format!("select finish_message('{message}', 1, 2)"));
        for id in open {
            assert!(service.settle(id, 0).unwrap().0);
        }
    }
    assert_eq!(taken(&mut service), (69, 0));
    assert_eq!(service.reserve(desk.tenant, 931).unwrap().remaining, Some(0));
}

#[test]
fn a_crash_gives_back_the_last_moments_of_a_rate_at_most() {
    let server = Server::private(oldest(), LAZY);
    let desk = Desk::on(&server);
    desk.requests("100");
    let mut member = desk.member();
    assert_eq!(member.draw(40).unwrap().remaining, Some(60));
    // Whatever waits for the disk brings what was drawn before along.
    member.run("select add_message((select id from conversations limit 1), 'user', 'x')");
    member.draw(50).unwrap();
    server.kill_postmaster();
    server.start();
    member = desk.member();
    let left = member.draw(0).unwrap().remaining.unwrap();
    assert!((60..=75).contains(&left), "{left}");
    // It goes on as if the last ones had not been.
    assert!(member.draw(left).unwrap().allowed);
    assert!(!member.draw(5).unwrap().allowed);
    assert_eq!(member.value::<i64>("select count(*) from messages"), 1);
    // After an ordinary shutdown nothing is given back.
    server.stop("fast");
    server.start();
    let left = desk.member().draw(0).unwrap().remaining.unwrap();
    assert!(left < 20, "{left}");
}

#[test]
fn a_request_does_not_make_tokens_wait_for_the_disk() {
    let server = Server::private(oldest(), LAZY);
    let desk = Desk::on(&server);
    desk.requests("1000");
    let mut member = desk.member();
    member.draw(1).unwrap();
    let message: Uuid = member.value(&format!("select begin_message('{}')", desk.conversation));
    let mut on_disk = |sql: &str| {
        member.run(sql);
        member.value::<bool>("select pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()")
    };
    let append = format!("select append_chunk('{message}', 'x')");
    let draw = "select check_rate_limit()";
    assert!(!on_disk(&append));
    assert!(!on_disk(&format!("begin; {draw}; {append}; commit")));
    assert!(!on_disk(&format!("begin; {append}; {draw}; commit")));
    assert!(!on_disk(draw));
    let other = "update users set name = 'x'";
    assert!(on_disk(&format!("begin; {draw}; {append}; {other}; commit")));
    assert!(on_disk(&format!("begin; {other}; {draw}; commit")));
}
