//! Promise 5: sequence numbers of a conversation are gapless and unique under concurrency.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pg_conversation_tests::{
    Client, Database, Rng, Server, Session, Uuid, oldest, seed, wait_until,
};

use crate::crowd::{Account, Crowd, SERVICE, check_numbers, grant_service};

fn conversations(database: &Database, owner: Uuid, n: usize) -> Vec<Uuid> {
    let mut client = database.member(owner);
    (0..n).map(|_| client.value("select create_conversation('numbered')")).collect()
}

fn run_crowd(
    database: &Database,
    conversations: &[Uuid],
    owner: Uuid,
    (sessions, rounds, isolation): (usize, usize, &[&str]),
    disturb: impl FnOnce(&AtomicBool) + Send,
) -> Account {
    let crowd = Crowd {
        server: database.server,
        database: &database.name,
        owner,
        conversations: conversations.to_vec(),
        sessions,
        rounds,
        isolation,
    };
    crowd.run(disturb)
}

/// Ends sessions of the crowd, most of them in the midst of something.
fn terminate_some(database: &Database, done: &AtomicBool) {
    let mut rng = Rng::new(1000);
    let mut client = database.superuser();
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(rng.below(60) as u64));
        if done.load(Ordering::SeqCst) {
            break;
        }
        client.run(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and pid <> pg_backend_pid() \
             and xact_start is not null order by random() limit 1",
        );
    }
}

#[test]
fn numbers_of_one_conversation_have_no_gap_whatever_32_sessions_do() {
    seed();
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let owner = Uuid::new_v4();
    let all = conversations(&database, owner, 1);
    let shape = (32, 80, &["read committed"][..]);
    let account = run_crowd(&database, &all, owner, shape, |done| terminate_some(&database, done));
    println!("{}", account.check(&mut database.superuser(), &all));
    assert!(account.texts.len() > 2000);
    assert!(account.broken > 0);
}

#[test]
fn numbers_have_no_gap_in_any_isolation_level_over_several_conversations() {
    seed();
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let owner = Uuid::new_v4();
    let all = conversations(&database, owner, 4);
    let levels = &["read committed", "repeatable read", "serializable"][..];
    let account = run_crowd(&database, &all, owner, (12, 80, levels), |_| ());
    println!("{}", account.check(&mut database.superuser(), &all));
    assert!(account.retried > 0);
}

#[test]
fn numbers_have_no_gap_after_a_backend_was_killed_and_the_server_recovered() {
    seed();
    let server = Server::private(oldest(), "fsync = off\nmax_connections = 60\n");
    let database = server.database();
    grant_service(&database);
    let owner = Uuid::new_v4();
    let all = conversations(&database, owner, 2);
    let account = run_crowd(&database, &all, owner, (8, 200, &["read committed"]), |done| {
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(250));
            if done.load(Ordering::SeqCst) {
                break;
            }
            let mut client = database.superuser();
            let busy = client.query(
                "select pid from pg_stat_activity where usename = 'member' \
                 order by xact_start nulls last limit 1",
                &[],
            );
            if let Some(row) = busy.ok().and_then(|rows| rows.into_iter().next()) {
                let pid: i32 = row.get(0);
                server.kill_backend(pid);
            }
        }
    });
    let mut client = database.superuser();
    println!("{}", account.check(&mut client, &all));
    assert!(account.broken >= 8, "all sessions end when a backend is killed");
    for conversation in &all {
        let n: i32 = client
            .value(&format!("select last_sequence from conversations where id = '{conversation}'"));
        let sql =
            format!("select sequence_number from add_message('{conversation}', 'user', 'on')");
        assert_eq!(client.value::<i32>(&sql), n + 1);
    }
}

#[test]
fn conversations_do_not_wait_for_each_other() {
    let database = Server::shared(oldest()).database();
    let owner = Uuid::new_v4();
    let all = conversations(&database, owner, 2);
    let (mut first, mut second) = (database.member(owner), database.member(owner));
    first.run(&format!("begin; select add_message('{}', 'user', 'held')", all[0]));
    second.run("set lock_timeout = '200ms'");
    second.run(&format!("select add_message('{}', 'user', 'free')", all[1]));
    let (code, _) = second.error(&format!("select add_message('{}', 'user', 'waits')", all[0]));
    assert_eq!(code, "55P03");
    second.run("select * from messages; select * from list_conversations()");
    first.run("commit");
    second.run(&format!("select add_message('{}', 'user', 'goes on')", all[0]));
    for conversation in all {
        check_numbers(&mut second, conversation);
    }
}

#[test]
fn of_two_sessions_that_cross_one_is_a_deadlock_victim_and_no_number_is_lost() {
    let database = Server::shared(oldest()).database();
    let owner = Uuid::new_v4();
    let all = conversations(&database, owner, 2);
    let mut sessions = [database.member(owner), database.member(owner)];
    for (i, session) in sessions.iter_mut().enumerate() {
        session.run("begin");
        session.run(&format!("select add_message('{}', 'user', 'first')", all[i]));
    }
    let (a, b) = sessions.split_at_mut(1);
    let results = thread::scope(|scope| {
        let one = scope.spawn(|| {
            a[0].batch_execute(&format!(
                "select add_message('{}', 'user', 'second'); commit",
                all[1]
            ))
        });
        let two = scope.spawn(|| {
            b[0].batch_execute(&format!(
                "select add_message('{}', 'user', 'second'); commit",
                all[0]
            ))
        });
        [one.join().expect("no panic"), two.join().expect("no panic")]
    });
    let errors: Vec<_> = results
        .iter()
        .filter_map(|result| result.as_ref().err())
        .filter_map(|error| error.code().map(|code| code.code().to_string()))
        .collect();
    assert_eq!(errors, ["40P01"]);
    for conversation in all {
        check_numbers(&mut database.superuser(), conversation);
        let n: i64 = database.superuser().value(&format!(
            "select count(*) from messages where conversation_id = '{conversation}'"
        ));
        assert_eq!(n, 1);
    }
}

/// `second` starts while the transaction of `first` is open and `first` commits when `second` waits
/// or is done. Returns what became of `second`, and the session of the service for more.
fn overlap(database: &Database, first: &str, second: &str) -> (Result<(), String>, Client) {
    let mut one = database.connect(SERVICE);
    let mut two = database.connect(SERVICE);
    let pid: i32 = two.value("select pg_backend_pid()");
    one.run("begin");
    one.run(first);
    let result = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            two.batch_execute(second).map_err(|error| {
                error.code().map_or_else(|| error.to_string(), |code| code.code().to_string())
            })
        });
        wait_until(
            &mut database.superuser(),
            &format!(
                "select coalesce(wait_event_type, '') = 'Lock' or state like 'idle%' and query like 'insert%' \
                 from pg_stat_activity where pid = {pid}"
            ),
        );
        one.run("commit");
        waiting.join().expect("no panic")
    });
    (result, one)
}

#[test]
fn an_id_that_clashes_with_one_in_flight_costs_no_number() {
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let owner = Uuid::new_v4();
    // Where the first and the second message go; what the second insert says of conflicts.
    let cases = [
        (0, 0, "on conflict (id) do nothing"),
        (0, 1, "on conflict (id) do nothing"),
        (0, 1, "on conflict do nothing"),
        (0, 1, "on conflict (id) do update set metadata = '{}'"),
        (0, 0, "on conflict (id) do update set metadata = '{}'"),
        (0, 1, ""),
        (0, 0, ""),
    ];
    let mut wrong = Vec::new();
    for (to, then_to, clause) in cases {
        let all = conversations(&database, owner, 2);
        let id = Uuid::new_v4();
        let insert = |n: usize| {
            format!(
                "insert into messages (id, conversation_id, role) values ('{id}', '{}', 'user')",
                all[n]
            )
        };
        let second = format!("{} {clause}", insert(then_to));
        let (result, mut client) = overlap(&database, &insert(to), &second);
        // To bring the id of a message of another conversation is an error, whatever was asked for.
        let refused = clause.is_empty() || to != then_to;
        let expected = if refused { Err("23505".to_string()) } else { Ok(()) };
        assert_eq!(result, expected, "{clause}");
        if gap(&mut client, &all) {
            wrong.push(format!("conversation {then_to}, {clause:?}"));
        }
    }
    assert!(wrong.is_empty(), "a number was lost: {wrong:?}");
}

fn gap(client: &mut Client, conversations: &[Uuid]) -> bool {
    conversations.iter().any(|conversation| {
        client.value::<bool>(&format!(
            "select c.last_sequence <> (select count(*) from messages m where m.conversation_id = c.id) \
             from conversations c where c.id = '{conversation}'"
        ))
    })
}

#[test]
fn an_id_drawn_in_one_session_and_used_in_another_costs_no_number() {
    let database = Server::shared(oldest()).database();
    let owner = Uuid::new_v4();
    let all = conversations(&database, owner, 1);
    let (mut one, mut two) = (database.member(owner), database.member(owner));
    let id: Uuid = one.value("select new_id()");
    let insert = format!(
        "insert into messages (id, conversation_id, role) values ('{id}', '{}', 'user') \
         on conflict (id) do nothing",
        all[0]
    );
    two.run(&insert);
    one.run(&insert);
    check_numbers(&mut one, all[0]);
}

#[test]
fn a_message_deleted_while_it_is_sent_again_does_not_stop_the_conversation() {
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let owner = Uuid::new_v4();
    let columns = "insert into messages (id, conversation_id, role, client_message_id) values";
    let mut stuck = Vec::new();
    for clause in ["on conflict do nothing", "on conflict (id) do nothing", ""] {
        for same_id in [true, false] {
            let conversation = conversations(&database, owner, 1)[0];
            let id = Uuid::new_v4();
            let again = if same_id { id } else { Uuid::new_v4() };
            let mut client = database.member(owner);
            client.run(&format!("{columns} ('{id}', '{conversation}', 'user', 'key')"));
            let (result, mut client) = overlap(
                &database,
                &format!("delete from messages where id = '{id}'"),
                &format!("{columns} ('{again}', '{conversation}', 'user', 'key') {clause}"),
            );
            println!("{clause:?} same id {same_id}: {result:?}");
            for _ in 0..2 {
                let add = format!("select add_message('{conversation}', 'user', 'next')");
                if let Err(error) = client.batch_execute(&add) {
                    stuck.push(format!(
                        "{clause:?} same id {same_id}: {}",
                        pg_conversation_tests::describe(&error)
                    ));
                }
            }
        }
    }
    assert!(stuck.is_empty(), "{stuck:#?}");
}

/// The moment between the look for a conflict and the insert itself, held open by a trigger.
#[test]
fn a_conflict_that_goes_away_at_the_last_moment_does_not_stop_the_conversation() {
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    database.superuser().run(
        "create function hold() returns trigger language plpgsql as $$ begin \
             perform pg_advisory_xact_lock_shared(5); return new; end $$; \
         create trigger zz_hold before insert on messages for each row execute function hold()",
    );
    let owner = Uuid::new_v4();
    let mut stuck = Vec::new();
    for clause in ["on conflict do nothing", "on conflict (id) do nothing", ""] {
        // One in another conversation is refused before the moment comes.
        for (from, to, filled) in [(0, 0, true), (0, 0, false)] {
            let all = conversations(&database, owner, 2);
            let mut client = database.connect(SERVICE);
            let id = Uuid::new_v4();
            let columns = "insert into messages (id, conversation_id, role) values";
            client.run(&format!("{columns} ('{id}', '{}', 'user')", all[from]));
            if filled {
                client.run(&format!("select add_message('{}', 'user', 'there')", all[to]));
            }
            let mut holder = database.superuser();
            holder.run("select pg_advisory_lock(5)");
            let pid: i32 = client.value("select pg_backend_pid()");
            let insert = format!("{columns} ('{id}', '{}', 'user') {clause}", all[to]);
            let result = thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let result = client.batch_execute(&insert);
                    result.map_err(|error| pg_conversation_tests::describe(&error))
                });
                wait_until(
                    &mut holder,
                    &format!(
                        "select exists (select from pg_locks where pid = {pid} \
                         and locktype = 'advisory' and not granted)"
                    ),
                );
                // What went wrong must not leave the other session waiting.
                let _ = holder.batch_execute(&format!(
                    "set lock_timeout = '300ms'; delete from messages where id = '{id}'"
                ));
                holder.run("select pg_advisory_unlock(5)");
                waiting.join().expect("no panic")
            });
            for _ in 0..2 {
                let add = format!("select add_message('{}', 'user', 'next')", all[to]);
                if let Err(error) = database.connect(SERVICE).batch_execute(&add) {
                    stuck.push(format!(
                        "{clause:?} from {from} to {to}, filled {filled}, {result:?}: {}",
                        pg_conversation_tests::describe(&error)
                    ));
                }
            }
        }
    }
    assert!(stuck.is_empty(), "{stuck:#?}");
}
