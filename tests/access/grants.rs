//! What the page says of profiles.

use pg_conversation_tests::{Client, Server, Session, oldest};

use crate::answer::ask;
use crate::world::{World, world};

const ROLE: &str = "access_guest";

/// What the role can read, of what profiles differ in.
fn reads(world: &World) -> Vec<&'static str> {
    let mut session = world.database.connect(ROLE);
    let tables =
        ["messages", "message_revisions", "message_chunks", "access_profiles", "schema_version"];
    let can = |table: &&str| {
        !ask(&mut session, &format!("select from {table} where false")).text().starts_with("42501")
    };
    tables.into_iter().filter(can).collect()
}

fn profile(owner: &mut Client) -> Option<String> {
    let sql = format!("select max(profile) from access_profiles where role_name = '{ROLE}'");
    owner.value(&sql)
}

/// One test, for a role belongs to the whole server.
#[test]
fn a_role_has_one_profile_and_keeps_it_through_migrate() {
    let server = Server::shared(oldest());
    server.role(ROLE);
    server.connect("postgres", "postgres").run(&format!("alter role {ROLE} nobypassrls"));
    let world = world(server);
    let mut owner = world.session("table owner");
    assert_eq!((reads(&world), profile(&mut owner)), (vec![], None));
    let people = vec!["messages", "message_revisions", "message_chunks"];
    let watch = vec!["access_profiles", "schema_version"];
    for (given, expected) in
        [("member", &people), ("monitor", &watch), ("anon", &vec![]), ("member", &people)]
    {
        owner.run(&format!("select grant_access('{ROLE}', '{given}')"));
        assert_eq!((&reads(&world), profile(&mut owner).as_deref()), (expected, Some(given)));
        // migrate() takes back what is more, and gives what is less.
        for change in [
            "grant select on schema_version, messages to",
            "revoke all on messages, schema_version from",
        ] {
            owner.run(&format!("{change} {ROLE}"));
            owner.run("select migrate()");
            assert_eq!((&reads(&world), profile(&mut owner).as_deref()), (expected, Some(given)));
        }
    }
    owner.run(&format!("select revoke_access('{ROLE}')"));
    owner.run("select migrate()");
    assert_eq!((reads(&world), profile(&mut owner).as_deref()), (vec![], Some("none")));
    // Programs that act for every tenant have to be ones that policies do not bind.
    for (given, code) in [("service", "55000"), ("syncer", "55000"), ("king", "22023")] {
        let (found, _) = owner.error(&format!("select grant_access('{ROLE}', '{given}')"));
        assert_eq!(found, code, "{given}");
    }
    assert_eq!(owner.error("select grant_access('nobody_of_this_name')").0, "42704");
    for who in ["a admin", "service", "syncer", "monitor"] {
        for call in ["grant_access", "revoke_access"] {
            assert_eq!(
                world.session(who).error(&format!("select {call}('{ROLE}')")).0,
                "42501",
                "{who}"
            );
        }
    }
}
