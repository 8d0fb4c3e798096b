//! The background worker: what it does, and what it survives.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Client, NoTls, Server, Session, command, oldest, wait_until};

use crate::house::{House, Keeper, eventually, log, log_lines};
use crate::strangers::trapped;

const PRELOADED: &str = "fsync = off\nshared_preload_libraries = 'pg_conversation'\n\
                         pg_conversation.maintenance_interval = 1\n";

/// A server with the library preloaded, and more settings.
fn preloaded(settings: &str) -> pg_conversation_tests::Private {
    Server::private(oldest(), &format!("{PRELOADED}{settings}"))
}

/// Tells the launcher which databases are to be kept.
fn keep(server: &Server, databases: &str) {
    set(server, "maintenance_database", databases);
}

fn set(server: &Server, name: &str, value: &str) {
    let mut client = server.connect("postgres", "postgres");
    client.run(&format!("alter system set pg_conversation.{name} = '{value}'"));
    client.run("select pg_reload_conf()");
}

/// Runs of the first job in a database.
fn runs(client: &mut Client) -> i64 {
    client.value("select runs from maintenance_runs where job = 'stalled_messages'")
}

fn wait_for_run(client: &mut Client) {
    let runs = runs(client);
    wait_until(
        client,
        &format!("select runs > {runs} from maintenance_runs where job = 'stalled_messages'"),
    );
}

/// Jobs that are due each time.
fn always_due(client: &mut Client) {
    client.run("update maintenance_runs set every = '0' where job = 'stalled_messages'");
}

fn launcher(server: &Server) -> Option<i32> {
    let mut client = server.config("postgres", "postgres").connect(NoTls).ok()?;
    let sql = "select pid from pg_stat_activity where backend_type = 'pg_conversation launcher'";
    client.query_opt(sql, &[]).ok()?.map(|row| row.get(0))
}

/// A job that takes long, once something is to be removed.
fn slow(client: &mut Client, seconds: u32) {
    client.run(&format!(
        "create function slow() returns trigger language plpgsql as \
         'begin perform pg_sleep({seconds}); return old; end'; \
         create trigger slow before delete on conversations for each row execute function slow(); \
         update maintenance_runs set every = '0' where job = 'expired_conversations'"
    ));
}

const BUSY: &str = "select exists (select from pg_stat_activity where backend_type = 'pg_conversation worker' \
                    and wait_event = 'PgSleep')";

#[test]
fn it_keeps_the_databases_it_is_told_of() {
    let server = preloaded("");
    let (one, two, other) = (House::on(&server), House::on(&server), House::on(&server));
    keep(&server, &format!(" {}, \"{}\" ,", one.database.name, two.database.name));
    let (mut first, mut second) = (one.database.superuser(), two.database.superuser());
    for client in [&mut first, &mut second] {
        always_due(client);
        wait_for_run(client);
        wait_for_run(client);
        let wrong: Vec<String> = client.values(
            "select job || ': ' || last_error from maintenance_runs where last_error is not null",
        );
        assert_eq!(wrong, Vec::<String>::new());
    }
    // Each job by its interval.
    assert_eq!(one.count("maintenance_runs where job <> 'stalled_messages' and runs <> 1"), 0);
    one.expired(2, 1, "1 min");
    first.make_due("expired_conversations");
    wait_until(&mut first, "select not exists (select from conversations)");
    assert_eq!(other.count("maintenance_runs where runs > 0"), 0);
    assert!(first.value::<bool>("select has_maintenance_worker()"));
    assert_eq!(first.value::<String>("select schedule_maintenance()"), "background worker");
    assert!(!other.database.superuser().value::<bool>("select has_maintenance_worker()"));
    // Told otherwise, it does otherwise.
    keep(&server, &other.database.name);
    let mut client = other.database.superuser();
    always_due(&mut client);
    wait_for_run(&mut client);
    let before = runs(&mut first);
    wait_for_run(&mut client);
    wait_for_run(&mut client);
    assert_eq!(runs(&mut first), before);
    set(&server, "maintenance_interval", "3600");
    thread::sleep(Duration::from_millis(1500));
    let before = runs(&mut client);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(runs(&mut client), before);
    set(&server, "maintenance_interval", "1");
    wait_for_run(&mut client);
    keep(&server, "");
    thread::sleep(Duration::from_millis(1500));
    let before = runs(&mut client);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(runs(&mut client), before);
    assert!(launcher(&server).is_some(), "it sleeps, and is there");
}

#[test]
fn nothing_of_it_is_there_where_it_is_not_preloaded() {
    let house = House::new();
    let mut superuser = house.database.superuser();
    assert_eq!(superuser.value::<String>("show shared_preload_libraries"), "");
    assert!(!superuser.value::<bool>("select has_maintenance_worker()"));
    superuser.run("set pg_conversation.keep_deleted = '1 day'");
    assert_eq!(superuser.error("set pg_conversation.maintenance_interval = 5").0, "55P02");
    assert_eq!(superuser.keep().len(), 9);
}

#[test]
fn what_is_not_there_costs_a_word_and_no_more() {
    let server = preloaded(
        "pg_conversation.maintenance_database = 'nowhere, template0, postgres, \"t e\"'\n",
    );
    let house = House::on(&server);
    let mut client = house.database.superuser();
    keep(&server, &format!("nowhere, template0, postgres, {}", house.database.name));
    always_due(&mut client);
    for _ in 0..4 {
        wait_for_run(&mut client);
    }
    // Said once when the settings are read, not each time.
    for complaint in ["no such database", "takes no connections"] {
        let said = log_lines(&server, complaint);
        assert!((1..=3).contains(&said), "{complaint}: {said} times");
    }
    let quiet = |server: &Server| {
        log(server)
            .iter()
            .filter(|line| {
                ["ERROR", "FATAL", "PANIC", "exited"].iter().any(|word| line.contains(word))
            })
            .cloned()
            .collect::<Vec<_>>()
    };
    // postgres has no extension.
    assert_eq!(quiet(&server), Vec::<String>::new());
    // No such role; one that may not log in.
    for (role, complaint) in
        [("nobody_at_all", "there is no role"), ("pg_monitor", "may not log in")]
    {
        set(&server, "maintenance_role", role);
        eventually(complaint, 10, || log_lines(&server, complaint) >= 1);
    }
    set(&server, "maintenance_role", "");
    wait_for_run(&mut client);
    // Tables of an older version, none at all, an extension without tables.
    for damage in [
        "select rollback_to(13, true)",
        "select rollback_to(4, true)",
        "select uninstall(current_database())",
        "drop extension pg_conversation cascade",
    ] {
        client.run(damage);
        thread::sleep(Duration::from_millis(2200));
        assert_eq!(quiet(&server), Vec::<String>::new(), "{damage}");
    }
    client.run("create extension pg_conversation");
    always_due(&mut client);
    wait_for_run(&mut client);
}

#[test]
fn an_error_in_a_job_is_logged_once_and_the_others_run() {
    let server = preloaded("");
    let house = House::on(&server);
    let mut client = house.database.superuser();
    client.run(
        "alter table conversations rename column expires_at to ends_at; \
         update maintenance_runs set every = '0' where job = 'expired_conversations'",
    );
    always_due(&mut client);
    keep(&server, &house.database.name);
    for _ in 0..3 {
        wait_for_run(&mut client);
    }
    assert_eq!(log_lines(&server, "job expired_conversations of maintenance_runs failed"), 1);
    let failures: i64 =
        client.value("select failures from maintenance_runs where job = 'expired_conversations'");
    assert!(failures >= 3);
    assert_eq!(house.count("maintenance_runs where runs = 0"), 0);
}

#[test]
fn nobody_gains_the_rights_of_the_superuser_that_it_begins_as() {
    let server = preloaded("");
    let house = trapped(&server);
    house.expired(3, 2, "1 min");
    keep(&server, &house.database.name);
    let mut owner = house.database.connect("maint_owner");
    wait_until(&mut owner, "select not exists (select from conversations)");
    let who: Vec<String> = owner.values("select distinct who from caught");
    assert_eq!(who, ["maint_owner"]);
    let how: Vec<String> = owner.values("select distinct how from caught order by 1");
    assert_eq!(how, ["conversations DELETE", "maintenance_runs UPDATE", "messages DELETE"]);
    // Settings of the database that make its sessions somebody else's.
    let mut postgres = server.connect("postgres", "postgres");
    let name = &house.database.name;
    for setting in [
        "role = 'maint_owner'",
        "session_authorization = 'maint_owner'",
        "row_security = off",
        "lock_timeout = '1ms'",
    ] {
        owner.run("update maintenance_runs set enabled = false");
        house.expired(1, 0, "1 min");
        // Where Postgres lets him.
        let _ = owner.batch_execute(&format!("alter database {name} set {setting}"));
        owner.run(
            "update maintenance_runs set enabled = true; \
             update maintenance_runs set every = '0' where job = 'expired_conversations'",
        );
        wait_until(&mut owner, "select not exists (select from conversations)");
        let who: Vec<String> = owner.values("select distinct who from caught");
        assert_eq!(who, ["maint_owner"], "{setting}");
        postgres.run(&format!("alter database {name} reset all"));
    }
    // As the owner himself, it is a session like any other of his.
    set(&server, "maintenance_role", "maint_owner");
    always_due(&mut owner);
    wait_for_run(&mut owner);
    wait_for_run(&mut owner);
    let who: Vec<String> = owner.values("select distinct who from caught");
    assert_eq!(who, ["maint_owner"]);
    // As somebody who may not.
    server.role("maint_other");
    set(&server, "maintenance_role", "maint_other");
    eventually("it is refused", 10, || log_lines(&server, "permission denied") > 0);
    set(&server, "maintenance_role", "");
    wait_for_run(&mut owner);
}

#[test]
fn a_database_can_be_dropped_while_it_is_kept() {
    let server = preloaded("");
    let mut postgres = server.connect("postgres", "postgres");
    // Many short runs.
    for _ in 0..5 {
        let house = House::on(&server);
        keep(&server, &house.database.name);
        let mut client = house.database.superuser();
        always_due(&mut client);
        wait_for_run(&mut client);
        drop(client);
        let start = Instant::now();
        // Its last session may be ending still.
        postgres.run(&format!("drop database {}", house.database.name));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    // One that takes long, by force.
    let house = House::on(&server);
    house.expired(1, 0, "1 min");
    slow(&mut house.database.superuser(), 60);
    keep(&server, &house.database.name);
    wait_until(&mut postgres, BUSY);
    let start = Instant::now();
    postgres.run(&format!("drop database {} with (force)", house.database.name));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(postgres.value::<bool>(&BUSY.replace("exists", "not exists")));
    assert_eq!(log_lines(&server, "PANIC"), 0);
}

#[test]
fn who_is_stopped_is_replaced() {
    let server = preloaded("");
    let house = House::on(&server);
    house.expired(1, 0, "1 min");
    let mut client = house.database.superuser();
    slow(&mut client, 60);
    keep(&server, &house.database.name);
    let worker = "select pid from pg_stat_activity where backend_type = 'pg_conversation worker'";
    for signal in ["pg_terminate_backend", "pg_cancel_backend"] {
        wait_until(&mut client, BUSY);
        let pid: i32 = client.value(worker);
        let start = Instant::now();
        client.run(&format!("select {signal}({pid})"));
        wait_until(
            &mut client,
            &format!("select not exists (select from pg_stat_activity where pid = {pid})"),
        );
        assert!(start.elapsed() < Duration::from_secs(1), "{signal}: {:?}", start.elapsed());
        // Undone as a whole.
        assert_eq!(house.count("maintenance_runs where runs > 0"), 0);
    }
    // The launcher ends at once, though a worker is busy, and is started again.
    wait_until(&mut client, BUSY);
    let pid = launcher(&server).expect("a launcher");
    let start = Instant::now();
    client.run(&format!("select pg_terminate_backend({pid})"));
    eventually("it has ended", 5, || launcher(&server) != Some(pid));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let pid: i32 = client.value(worker);
    client.run(&format!("drop trigger slow on conversations; select pg_terminate_backend({pid})"));
    eventually("there is a launcher again", 30, || launcher(&server).is_some());
    wait_until(&mut client, "select not exists (select from conversations)");
}

#[test]
fn a_worker_that_is_killed_and_a_server_that_is_leave_nothing_undone() {
    let server = preloaded("restart_after_crash = on\n");
    let house = House::on(&server);
    house.expired(1, 0, "1 min");
    let mut client = house.database.superuser();
    slow(&mut client, 60);
    keep(&server, &house.database.name);
    wait_until(&mut client, BUSY);
    let pid: i32 = client
        .value("select pid from pg_stat_activity where backend_type = 'pg_conversation worker'");
    server.kill_backend(pid);
    let again = || {
        let start = Instant::now();
        loop {
            let config = server.config(&house.database.name, "postgres");
            match config.connect(NoTls) {
                Ok(mut client) => {
                    if client.simple_query("select 1").is_ok() {
                        return client;
                    }
                }
                Err(error) => assert!(start.elapsed() < Duration::from_secs(60), "{error}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    };
    let mut client = again();
    // It is at it again, and holds no lock that it should not.
    wait_until(&mut client, BUSY);
    assert_eq!(house.count("maintenance_runs where runs > 0"), 0);
    server.kill_postmaster();
    server.start();
    let mut client = again();
    wait_until(&mut client, BUSY);
    // To stop the server, nobody waits for it.
    drop(client);
    let start = Instant::now();
    server.stop("fast");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    server.start();
    let mut client = again();
    client.run("drop trigger slow on conversations");
    client.run(
        "select pg_terminate_backend(pid) from pg_stat_activity \
         where backend_type = 'pg_conversation worker'",
    );
    wait_until(&mut client, "select not exists (select from conversations)");
}

#[test]
fn without_a_free_worker_it_waits_for_one() {
    // The launcher and that of logical replication.
    let server = preloaded("max_worker_processes = 2\n");
    let house = House::on(&server);
    let mut client = house.database.superuser();
    always_due(&mut client);
    keep(&server, &house.database.name);
    eventually("it says so", 10, || log_lines(&server, "max_worker_processes") > 0);
    thread::sleep(Duration::from_secs(3));
    let said = log_lines(&server, "all background workers are in use");
    assert!((1..=2).contains(&said), "{said}");
    assert_eq!(runs(&mut client), 0);
    drop(client);
    let conf = server.dir.join("data/postgresql.auto.conf");
    let text = fs::read_to_string(&conf).expect("the settings");
    let text =
        text.replace("max_worker_processes = '2'", "").replace("max_worker_processes = 2", "");
    let copy = server.dir.join("conf");
    pg_conversation_tests::run(command(std::path::Path::new("touch")).arg(&copy));
    fs::write(&copy, text).expect("the settings are written");
    pg_conversation_tests::run(command(std::path::Path::new("cp")).arg(&copy).arg(&conf));
    server.stop("fast");
    server.start();
    wait_for_run(&mut house.database.superuser());
}

#[test]
fn where_the_launcher_has_no_place_nobody_says_that_it_is_there() {
    let server = preloaded("max_worker_processes = 0\n");
    let house = House::on(&server);
    keep(&server, &house.database.name);
    let mut client = house.database.superuser();
    wait_until(&mut client, "select current_setting('pg_conversation.maintenance_database') <> ''");
    assert!(!client.value::<bool>("select has_maintenance_worker()"));
    assert_eq!(
        client.value::<String>("select schedule_maintenance()"),
        "none: no pg_cron in this server"
    );
}

#[test]
fn a_database_that_takes_long_does_not_hold_up_the_others_for_ever() {
    let server = preloaded("");
    let (stuck, other) = (House::on(&server), House::on(&server));
    stuck.expired(1, 0, "1 min");
    slow(&mut stuck.database.superuser(), 600);
    let mut client = other.database.superuser();
    always_due(&mut client);
    keep(&server, &format!("{},{}", stuck.database.name, other.database.name));
    let start = Instant::now();
    eventually("the other is kept", 60, || runs(&mut client) > 1);
    assert!(start.elapsed() > Duration::from_secs(20), "nobody has waited");
    // The stuck one gets no second worker.
    let workers = "select count(*) from pg_stat_activity where backend_type = 'pg_conversation worker' \
                   and wait_event = 'PgSleep'";
    assert_eq!(client.value::<i64>(workers), 1);
}

#[test]
fn a_standby_waits_until_it_is_promoted() {
    let server = preloaded("wal_level = replica\n");
    let house = House::on(&server);
    let mut client = house.database.superuser();
    always_due(&mut client);
    keep(&server, &house.database.name);
    wait_for_run(&mut client);
    let standby = server.standby();
    let mut there = standby.connect(&house.database.name, "postgres");
    thread::sleep(Duration::from_secs(2));
    assert!(there.value::<bool>("select pg_is_in_recovery()"));
    assert_eq!(launcher(&standby), None);
    assert_eq!(there.error("select run_maintenance()").0, "25006");
    let lines = log(&standby);
    let loud =
        lines.iter().filter(|line| line.contains("FATAL") || line.contains("WARNING")).count();
    assert_eq!(loud, 0, "{lines:#?}");
    there.run("select pg_promote()");
    wait_for_run(&mut there);
}

#[test]
fn settings_of_the_database_reach_it_and_those_that_would_stop_it_do_not() {
    let server = preloaded("");
    let house = House::on(&server);
    let name = &house.database.name;
    let mut client = house.database.superuser();
    house.member().run("insert into conversations (title) values ('a')");
    client.run("update conversations set deleted_at = now() - interval '2 days'");
    client.run(&format!("alter database {name} set pg_conversation.keep_deleted = '1 day'"));
    client
        .run(&format!("alter database {name} set default_transaction_isolation = 'serializable'"));
    client.run(&format!("alter database {name} set statement_timeout = '1ms'"));
    client.run(&format!("alter database {name} set search_path = nowhere"));
    always_due(&mut client);
    keep(&server, name);
    wait_until(&mut client, "select not exists (select from conversations)");
    client.run(&format!("alter database {name} set default_transaction_read_only = on"));
    thread::sleep(Duration::from_millis(1500));
    wait_for_run(&mut client);
    assert_eq!(log_lines(&server, "ERROR"), 0);
}

#[test]
fn a_preloaded_library_refuses_databases_of_other_encodings() {
    let server = preloaded("");
    let mut postgres = server.connect("postgres", "postgres");
    postgres.run("create database latin encoding 'LATIN1' locale 'C' template template0");
    let mut client = server.connect("latin", "postgres");
    let (code, message) = client.error("create extension pg_conversation");
    assert_eq!((code.as_str(), message.contains("UTF8")), ("0A000", true), "{message}");
    client.run("set pg_conversation.auto_install = off");
    assert_eq!(client.error("create extension pg_conversation").0, "0A000");
    keep(&server, "latin");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(log_lines(&server, "FATAL"), 0);
}
