//! What functions do, against what they declare about it.

use pg_conversation_tests::{Client, Database, Rng, Server, Session, oldest, versions};

use super::attempt;
use super::calls::{World, functions};

/// Calls of each function by each session.
const CALLS: usize = 15;

fn sessions(database: &Database, world: &World) -> Vec<Client> {
    vec![database.superuser(), database.member(world.user)]
}

/// Functions that are not volatile, and yet made their transaction write.
fn writers(database: &Database) -> Vec<String> {
    let world = World::build(database);
    let mut found = Vec::new();
    let mut sessions = sessions(database, &world);
    for function in functions(&mut sessions[0]).iter().filter(|f| f.volatility != "v") {
        let mut rng = Rng::new(1);
        let calls = world.calls(function, CALLS, &mut rng);
        let (mut succeeded, mut wrote) = (0, false);
        for client in &mut sessions {
            client.run("begin");
            succeeded += calls.iter().filter(|call| attempt(client, call).is_ok()).count();
            wrote |= client.value::<bool>("select pg_current_xact_id_if_assigned() is not null");
            client.run("rollback");
        }
        assert!(succeeded > 0, "no call succeeded: {calls:#?}");
        if wrote {
            found.push(function.signature.clone());
        }
    }
    found
}

#[test]
fn functions_that_say_so_do_not_write() {
    for version in versions() {
        let found = writers(&Server::shared(version).database());
        assert!(found.is_empty(), "Postgres {version}: {found:?}");
    }
}

#[test]
fn a_stable_function_that_writes_is_named() {
    let database = Server::shared(oldest()).database();
    database.superuser().run("alter function begin_message stable");
    assert_eq!(writers(&database), ["begin_message(uuid,text,uuid,text,text,jsonb,bigint)"; 1]);
}

/// Parallel-safe functions of these names that did in a worker what workers may not do, or answered otherwise there.
fn unsafe_in_workers(database: &Database, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let setting =
        if database.server.version < 16 { "force_parallel_mode" } else { "debug_parallel_query" };
    let world = World::build(database);
    let mut found = Vec::new();
    for mut client in sessions(database, &world) {
        let mut rng = Rng::new(2);
        for function in
            functions(&mut client).iter().filter(|f| f.parallel == "s" && wanted(&f.name))
        {
            client.run("begin isolation level repeatable read");
            for call in world.calls(function, CALLS / 2, &mut rng) {
                let mut answer = |mode: &str| {
                    client.run(&format!("savepoint answer; set local {setting} = {mode}"));
                    let answer = client
                        .query_one(&format!("select jsonb_agg(f)::text from ({call}) f"), &[])
                        .map(|row| row.get::<_, Option<String>>(0))
                        .map_err(|error| error.as_db_error().map(|db| db.message().to_string()));
                    client.run("rollback to savepoint answer; release savepoint answer");
                    answer
                };
                // Volatile ones answer otherwise each time.
                let (alone, in_worker) = (answer("off"), answer("on"));
                let differs = if function.volatility == "v" {
                    alone.is_ok() != in_worker.is_ok()
                } else {
                    alone != in_worker
                };
                if differs {
                    found.push(format!("{}: {alone:?}, in a worker {in_worker:?}", function.name));
                    break;
                }
            }
            client.run("rollback");
        }
    }
    found
}

#[test]
fn functions_that_say_so_work_in_parallel_workers() {
    let found = unsafe_in_workers(&Server::shared(oldest()).database(), |_| true);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_function_that_fails_in_parallel_workers_is_named() {
    let database = Server::shared(oldest()).database();
    database.superuser().run("alter function create_conversation parallel safe");
    let planted = ["create_conversation", "current_user_id"];
    let found = unsafe_in_workers(&database, |name| planted.contains(&name));
    assert!(!found.is_empty());
    assert!(found.iter().all(|name| name.starts_with("create_conversation: ")), "{found:#?}");
}
