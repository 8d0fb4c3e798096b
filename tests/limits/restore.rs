//! Dumps bring limits along.

use std::process::Stdio;

use pg_conversation_tests::{Database, Server, Session, oldest, run};

use crate::desk::{Desk, Limits, taken};

fn dump(desk: &Desk, args: &[&str]) -> String {
    let output = run(desk
        .database
        .server
        .program("pg_dump")
        .args(args)
        .arg(&desk.database.name)
        .stdout(Stdio::piped()));
    String::from_utf8(output.stdout).expect("a dump is text")
}

fn restore(database: &Database, dump: &str) {
    let file = std::env::temp_dir().join(format!("dump-{}", database.name));
    std::fs::write(&file, dump).expect("the dump is written");
    let mut psql = database.psql();
    psql.args(["-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file);
    run(&mut psql);
    std::fs::remove_file(&file).expect("the dump goes");
}

#[test]
fn a_dump_brings_what_was_drawn_and_reserved() {
    let server = Server::shared(oldest());
    let desk = Desk::on(server);
    desk.requests("100");
    desk.tokens("1000");
    let mut service = desk.service();
    let open = service.reserve(desk.tenant, 100).unwrap().id.unwrap();
    let settled = service.reserve(desk.tenant, 100).unwrap().id.unwrap();
    service.settle(settled, 70).unwrap();
    let message = desk.member().begin(desk.conversation, 50).unwrap();
    desk.member().draw(90).unwrap();
    for data_only in [false, true] {
        let target = if data_only { server.database() } else { server.empty_database() };
        restore(&target, &dump(&desk, if data_only { &["-a"] } else { &[] }));
        let there = Desk { database: target, ..desk_of(&desk) };
        let mut service = there.service();
        assert_eq!(taken(&mut service), (70, 150));
        let left = there.member().draw(0).unwrap().remaining.unwrap();
        assert!((10..60).contains(&left), "{left}");
        assert_eq!(there.member().draw(1).unwrap().remaining, Some(left - 1));
        assert_eq!(service.settle(settled, 70).unwrap(), (false, Some(780)));
        assert_eq!(service.settle(open, 30).unwrap(), (true, Some(850)));
        there.member().run(&format!("select finish_message('{message}', 20, 20)"));
        assert_eq!(taken(&mut service), (140, 0));
        assert_eq!(service.reserve(there.tenant, 861).unwrap().remaining, Some(860));
    }
}

/// The same people, in another database.
fn desk_of<'a>(desk: &Desk) -> Desk<'a> {
    Desk {
        database: Database { server: Server::shared(oldest()), name: "none".into() },
        user: desk.user,
        tenant: desk.tenant,
        conversation: desk.conversation,
    }
}
