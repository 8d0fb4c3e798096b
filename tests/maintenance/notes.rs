//! maintenance_runs: what is noted, and rows that somebody has broken.

use pg_conversation_tests::Session;

use crate::house::{House, Keeper};

#[test]
fn an_error_in_one_job_leaves_a_note_and_the_others_run() {
    let house = House::new();
    let (mut service, mut superuser) = (house.service(), house.database.superuser());
    house.expired(2, 1, "1 min");
    // What was done before the error goes with it.
    superuser.run(
        "create function fail() returns trigger language plpgsql as \
         'begin raise exception ''no % today'', tg_table_name using errcode = ''ZZ001''; end'; \
         create trigger fail before delete on messages for each row execute function fail()",
    );
    let ran = service.keep();
    assert_eq!(ran.len(), 9, "{ran:?}");
    assert_eq!(house.count("conversations"), 2);
    let note = "select format('%s %s %s %s %s', last_rows, runs, failures, last_error_at = last_finished_at, \
                last_error) from maintenance_runs where job = 'expired_conversations'";
    let said: String = superuser.value(note);
    assert!(said.starts_with("0 1 1 t ZZ001: conversation "), "{said}");
    assert!(said.ends_with(": no messages today"), "{said}");
    let others =
        "maintenance_runs where job not in ('expired_conversations') and last_error is not null";
    assert_eq!(house.count(others), 0);
}

#[test]
fn a_broken_table_stops_the_jobs_that_need_it_and_no_other() {
    let house = House::new();
    let (mut service, mut superuser) = (house.service(), house.database.superuser());
    superuser.run("alter table conversations rename column expires_at to ends_at");
    let failed: Vec<String> = service.values(
        "select job || ' ' || left(error, 5) from run_maintenance() where error is not null",
    );
    assert_eq!(failed, ["expired_conversations 55000"]);
    superuser.run("alter table conversations rename column ends_at to expires_at");
    house.expired(1, 0, "1 min");
    assert_eq!(service.done("expired_conversations"), 1);
    let note: String = superuser.value(
        "select format('%s %s %s', last_error is null, last_error_at is not null, failures) \
         from maintenance_runs where job = 'expired_conversations'",
    );
    assert_eq!(note, "t t 1", "the error is over, its time is kept");
}

#[test]
fn rows_that_somebody_has_broken_stop_nothing_else() {
    // What is done to the row of a job, and whether the job runs then, and how.
    let cases = [
        ("update maintenance_runs set every = null", None),
        ("update maintenance_runs set enabled = null", None),
        ("update maintenance_runs set every = '-1 day', last_started_at = now()", Some("")),
        ("update maintenance_runs set every = '0'", Some("")),
        (
            "update maintenance_runs set every = '178000000 years', last_started_at = now(), last_finished_at = now()",
            Some("22008"),
        ),
        ("update maintenance_runs set last_started_at = 'infinity'", Some("")),
        ("update maintenance_runs set last_started_at = '-infinity'", Some("")),
        ("update maintenance_runs set last_started_at = now() + interval '1000 years'", Some("")),
        ("update maintenance_runs set runs = 9223372036854775807 - 1, failures = -5", Some("")),
        ("delete from maintenance_runs", None),
        ("update maintenance_runs set job = 'of my own'", None),
    ];
    for (damage, expected) in cases {
        let house = House::new();
        let (mut service, mut superuser) = (house.service(), house.database.superuser());
        superuser.run(&format!(
            "alter table maintenance_runs alter every drop not null, alter enabled drop not null, \
             drop constraint maintenance_runs_every_is_at_most_1000_years; \
             {damage} {} job = 'finished_chunks'",
            if damage.starts_with("update") || damage.starts_with("delete") { "where" } else { "" }
        ));
        let said: Vec<Option<String>> = service.values(
            "select coalesce(error, '') from run_maintenance() where job = 'finished_chunks'",
        );
        match expected {
            None => assert_eq!(said.len(), 0, "{damage}"),
            Some(code) => {
                let said = said
                    .first()
                    .cloned()
                    .flatten()
                    .unwrap_or_else(|| panic!("{damage}: did not run"));
                assert!(
                    said.starts_with(code) && (code.is_empty() == said.is_empty()),
                    "{damage}: {said}"
                );
            }
        }
        assert_eq!(
            house.count(
                "maintenance_runs where job not in ('finished_chunks', 'of my own') and runs <> 1"
            ),
            0,
            "{damage}"
        );
    }
}

#[test]
fn a_row_that_somebody_is_changing_is_left_alone() {
    let house = House::new();
    let (mut service, mut dba) = (house.service(), house.service());
    dba.run("begin; update maintenance_runs set every = '1 hour' where job = 'finished_chunks'");
    let ran = service.keep();
    assert!(ran.len() == 8 && !ran.contains(&"finished_chunks".into()), "{ran:?}");
    dba.run("commit");
    assert_eq!(service.keep(), ["finished_chunks"]);
}

#[test]
fn columns_of_other_types_are_an_error_and_no_more() {
    let house = House::new();
    let (mut service, mut superuser) = (house.service(), house.database.superuser());
    superuser.run(
        "alter table maintenance_runs drop constraint maintenance_runs_every_is_at_most_1000_years; \
         alter table maintenance_runs alter every type text using every::text",
    );
    let wrong: i64 =
        service.value("select count(*) from run_maintenance() where error like '42883: %'");
    assert_eq!(wrong, 9);
    // Who has lost the column has lost the right to it.
    superuser.run("alter table maintenance_runs drop column every");
    assert_eq!(service.error("select run_maintenance()").0, "42501");
    let wrong: i64 =
        superuser.value("select count(*) from run_maintenance() where error like '55000: %'");
    assert_eq!(wrong, 9);
}
