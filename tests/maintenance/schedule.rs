//! schedule_maintenance, with the real pg_cron.

use std::path::Path;

use pg_conversation_tests::{Private, Server, Session, bin, command, oldest, run, wait_until};

use crate::house::{House, Keeper};

fn with_cron(database: &str) -> Private {
    // It connects as any client would.
    Server::private(
        oldest(),
        &format!(
            "fsync = off\nshared_preload_libraries = 'pg_cron'\ncron.database_name = '{database}'\n\
             cron.use_background_workers = on\n"
        ),
    )
}

#[test]
fn pg_cron_runs_it_every_minute() {
    let server = with_cron("postgres");
    let mut postgres = server.connect("postgres", "postgres");
    server.role("member");
    postgres.run("create extension pg_cron; create schema chat");
    postgres.run("create extension pg_conversation schema chat");
    let say = "select chat.schedule_maintenance()";
    assert_eq!(postgres.value::<String>(say), "pg_cron");
    // Again changes nothing but the schedule.
    let other = "select chat.schedule_maintenance('*/5 * * * *')";
    assert_eq!(postgres.value::<String>(other), "pg_cron");
    let jobs: Vec<String> = postgres.values(
        "select concat_ws('|', jobname, schedule, command, database, username, active) from cron.job",
    );
    assert_eq!(
        jobs,
        [
            "pg_conversation maintenance in chat|*/5 * * * *|select from chat.run_maintenance()|postgres|postgres|t"
        ]
    );
    let (code, _) = postgres.error("select chat.schedule_maintenance('every now and then')");
    assert_ne!(&code[..2], "XX");
    assert_eq!(postgres.error("select chat.schedule_maintenance(null)").0, "22004");
    assert_eq!(postgres.value::<String>(say), "pg_cron");

    // And so it does; a minute begins within a minute.
    let start = std::time::Instant::now();
    while !postgres
        .value::<bool>("select exists (select from chat.maintenance_runs where runs > 0)")
    {
        assert!(
            start.elapsed().as_secs() < 90,
            "it never ran: {:?}",
            postgres.values::<String>(
                "select concat_ws(' ', status, return_message) from cron.job_run_details"
            )
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let failed: Vec<String> = postgres.values(
        "select job || ': ' || last_error from chat.maintenance_runs where last_error is not null",
    );
    assert_eq!(failed, Vec::<String>::new());
    wait_until(
        &mut postgres,
        "select exists (select from cron.job_run_details where status = 'succeeded')",
    );

    assert!(postgres.value::<bool>("select chat.unschedule_maintenance()"));
    assert!(!postgres.value::<bool>("select chat.unschedule_maintenance()"));
    assert_eq!(postgres.value::<i64>("select count(*) from cron.job"), 0);
}

#[test]
fn pg_cron_runs_it_as_somebody_who_may() {
    let server = with_cron("postgres");
    let mut postgres = server.connect("postgres", "postgres");
    server.role("cron_owner");
    server.role("cron_service");
    postgres.run("create extension pg_cron; create schema chat authorization cron_owner");
    postgres
        .run("grant create on database postgres to cron_owner; alter role cron_service bypassrls");
    let mut owner = server.connect("postgres", "cron_owner");
    owner.run("create extension pg_conversation schema chat");
    // Not as the superuser who asks for it: the owner could put another function in its place.
    let say = "select chat.schedule_maintenance()";
    assert_eq!(postgres.value::<String>(say), "pg_cron");
    let users = "select username from cron.job order by 1";
    assert_eq!(postgres.values::<String>(users), ["cron_owner"]);
    assert!(postgres.value::<bool>("select chat.unschedule_maintenance()"));
    // An owner who may not log in cannot be run as.
    postgres.run("alter role cron_owner nologin");
    let (code, message) = postgres.error(say);
    assert_eq!(code, "55000", "{message}");
    postgres.run("alter role cron_owner login");
    // Who may not use pg_cron hears what to ask for; who may, runs it himself.
    owner.run("select chat.grant_access('cron_service', 'service')");
    let mut service = server.connect("postgres", "cron_service");
    let (code, message) = service.error(say);
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("42501", "role \"cron_service\" may not use schema cron")
    );
    assert!(!service.value::<bool>("select chat.unschedule_maintenance()"));
    postgres.run("grant usage on schema cron to cron_service");
    assert_eq!(service.value::<String>(say), "pg_cron");
    assert_eq!(postgres.values::<String>(users), ["cron_service"]);
    // The tables' owner has no say in the jobs of others, the superuser has.
    postgres.run("grant usage on schema cron to cron_owner");
    assert!(!owner.value::<bool>("select chat.unschedule_maintenance()"));
    assert!(postgres.value::<bool>("select chat.unschedule_maintenance()"));
}

#[test]
fn where_pg_cron_is_elsewhere_the_command_is_said() {
    let server = with_cron("cron_home");
    let mut postgres = server.connect("postgres", "postgres");
    postgres.run("create database cron_home");
    let mut home = server.connect("cron_home", "postgres");
    home.run("create extension pg_cron");
    let house = House::on(&server);
    let output = house
        .database
        .psql()
        .args(["-A", "-t", "-c", "select schedule_maintenance()"])
        .output()
        .expect("psql runs");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    assert_eq!(said, "none: pg_cron is in database cron_home");
    // Who may not read the setting hears less.
    let said_to_service: String = house.service().value("select schedule_maintenance()");
    assert_eq!(said_to_service, "none: pg_cron is in database (see cron.database_name)");
    let hint = String::from_utf8_lossy(&output.stderr).to_string();
    let command = hint.split("superuser: ").nth(1).expect(&hint).trim();
    home.run(command);
    let job: String =
        home.value("select concat_ws('|', command, database, username) from cron.job");
    assert_eq!(
        job,
        format!("select from public.run_maintenance()|{}|postgres", house.database.name)
    );
    assert!(!house.database.superuser().value::<bool>("select unschedule_maintenance()"));
    home.run("select cron.unschedule(jobid) from cron.job");
    // Here, but not created.
    home.run("drop extension pg_cron; create extension pg_conversation");
    let said: String = home.value("select schedule_maintenance()");
    assert_eq!(said, "none: pg_cron is not installed in this database");
}

#[test]
fn without_pg_cron_a_line_for_any_cron_is_said_and_it_works() {
    let house = House::new();
    house.database.superuser().run("create schema \"My Chat\"");
    let output = house
        .database
        .psql()
        .args(["-A", "-t", "-c", "select schedule_maintenance()"])
        .output()
        .expect("psql runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "none: no pg_cron in this server");
    let hint = String::from_utf8_lossy(&output.stderr).to_string();
    let line = hint.split("crontab: * * * * * ").nth(1).expect(&hint).trim();
    assert!(line.starts_with("psql -X -q -d '"), "{line}");
    // As cron hands it to the shell.
    let psql = house.database.server.program("psql");
    let mut shell = command(Path::new("sh"));
    shell.envs(psql.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let path = std::env::var("PATH").unwrap_or_default();
    shell.env("PATH", format!("{}:{path}", bin(oldest()).display()));
    run(shell.args(["-c", line]));
    assert_eq!(house.count("maintenance_runs where runs = 1"), 9);
    assert!(!house.service().value::<bool>("select unschedule_maintenance()"));
}

#[test]
fn a_pg_cron_of_somebodys_own_is_not_called() {
    let house = House::new();
    house.database.superuser().run(
        "create schema cron; create table cron.job (jobid bigint, jobname text, database text); \
         create function cron.schedule(text, text, text) returns bigint language plpgsql as \
         $$ begin raise exception 'called'; end $$; \
         create function cron.unschedule(bigint) returns boolean language plpgsql as \
         $$ begin raise exception 'called'; end $$; \
         insert into cron.job values (1, 'pg_conversation maintenance in public', current_database())",
    );
    let mut superuser = house.database.superuser();
    let said: String = superuser.value("select schedule_maintenance()");
    assert_eq!(said, "none: no pg_cron in this server");
    assert!(!superuser.value::<bool>("select unschedule_maintenance()"));
    assert_eq!(superuser.keep().len(), 9);
}
