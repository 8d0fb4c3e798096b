//! Everything at once, at random: nobody waits for ever, and nobody hears more than he should.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use pg_conversation_tests::{Rng, Server, Session, Uuid, describe, oldest, seed};

use crate::crowd::{SERVICE, grant_service};

/// What a single statement may say when others have changed what it is about.
const SAID: [&str; 6] = ["P0002", "42501", "55000", "24000", "23505", "22023"];

const CALLS: [&str; 24] = [
    "select add_member('$c', '$u', 'owner')",
    "select add_member('$c', '$u', 'editor')",
    "select set_member_role('$c', '$u', 'owner')",
    "select set_member_role('$c', '$u', 'viewer')",
    "select remove_member('$c', '$u')",
    "select remove_member('$c')",
    "select transfer_conversation('$c', '$u')",
    "select transfer_conversation('$c', '$u')",
    "select * from list_members('$c')",
    "select edit_message('$m', 'edited')",
    "select edit_message('$m', gen_random_uuid()::text, '[1]')",
    "update messages set content = gen_random_uuid()::text where conversation_id = '$c' and status = 'completed'",
    "select add_message('$c', 'user', 'x')",
    "select add_message('$c', 'user', 'x', 'key')",
    "select append_chunk('$m', 'x')",
    "select finish_message('$m')",
    "select begin_message('$c', client_message_id => 'stream')",
    "select delete_conversation('$c')",
    "update conversations set deleted_at = null where id = '$c'",
    "select archive_conversation('$c', true)",
    "update conversations set visibility = 'tenant' where id = '$c'",
    "select * from message_revisions",
    "delete from messages where id = '$m'",
    "select purge_conversation('$c')",
];

#[test]
fn random_calls_by_eight_sessions_never_deadlock_and_say_only_what_they_may() {
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let mut superuser = database.superuser();
    superuser.run(&format!(
        "alter database {} set deadlock_timeout = '200ms'; \
         update tenants set features = '{{\"edit_messages\": true}}'",
        database.name
    ));
    let users = [(); 4].map(|()| Uuid::new_v4());
    let conversations = [(); 3].map(|()| Uuid::new_v4());
    let messages = [(); 6].map(|()| Uuid::new_v4());
    for user in users {
        superuser.run(&format!("insert into users (id) values ('{user}')"));
    }
    // The first has no owner of record.
    let make = |n: usize| {
        let c = conversations[n];
        let owner = if n == 0 { "null".to_string() } else { format!("'{}'", users[n]) };
        format!(
            "insert into conversations (id, user_id) values ('{c}', {owner}); \
             insert into conversation_members (conversation_id, user_id, role) \
             select '{c}', '{}', 'owner' where {n} = 0",
            users[0]
        )
    };
    let fill = |n: usize| {
        format!(
            "insert into messages (id, conversation_id, role, status, author_id) \
             select v.* from (values \
             ('{}'::uuid, '{c}'::uuid, 'user'::message_role, 'completed'::message_status, '{}'::uuid), \
             ('{}', '{c}', 'assistant', 'streaming', null)) v \
             where exists (select from conversations where id = '{c}' and deleted_at is null) \
             on conflict do nothing",
            messages[n * 2],
            users[0],
            messages[n * 2 + 1],
            c = conversations[n],
        )
    };
    (0..3).for_each(|n| superuser.run(&format!("{}; {}", make(n), fill(n))));

    let end = Instant::now() + Duration::from_secs(6);
    let said: Vec<BTreeMap<String, u32>> = thread::scope(|scope| {
        let sessions: Vec<_> = (0..8)
            .map(|n| {
                let (database, make, fill) = (&database, &make, &fill);
                scope.spawn(move || {
                    let mut rng = Rng::new(100 + n as u64);
                    let mut client = match n {
                        0..=5 => database.member(users[n % 4]),
                        6 => database.connect(SERVICE),
                        _ => database.superuser(),
                    };
                    client.run("set statement_timeout = '10s'");
                    let mut said = BTreeMap::<String, u32>::new();
                    while Instant::now() < end {
                        let level = *rng.pick(&["read committed", "repeatable read"]);
                        let mut sql = rng.pick(&CALLS).to_string();
                        let which = rng.below(3);
                        // Whoever purges puts it back, or there would soon be nothing to quarrel about.
                        if sql.contains("purge") && n < 7 {
                            sql = "select * from list_conversations()".into();
                        } else if sql.contains("purge") {
                            sql = format!("{sql}; {}", make(which));
                        }
                        let sql = sql
                            .replace("$c", &conversations[which].to_string())
                            .replace("$u", &rng.pick(&users).to_string())
                            .replace("$m", &rng.pick(&messages).to_string());
                        client.run(&format!("set default_transaction_isolation = '{level}'"));
                        let code = match client.batch_execute(&sql) {
                            Ok(()) => "ok".to_string(),
                            Err(error) => {
                                let code =
                                    error.code().map_or("lost", |code| code.code()).to_string();
                                let late = level == "repeatable read" && code == "40001";
                                // Only somebody can leave.
                                let nobody = n >= 6 && code == "28000";
                                assert!(
                                    late || nobody || SAID.contains(&code.as_str()),
                                    "{level}: {sql}: {}",
                                    describe(&error)
                                );
                                code
                            }
                        };
                        *said.entry(code).or_default() += 1;
                        if n == 7
                            && let Err(error) = client.batch_execute(&fill(rng.below(3)))
                        {
                            // It was deleted meanwhile.
                            let code = error.code().map_or("lost", |code| code.code());
                            assert!(["P0002", "40001"].contains(&code), "{}", describe(&error));
                        }
                    }
                    said
                })
            })
            .collect();
        sessions.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    seed();
    println!("{said:#?}");
    for (n, said) in said.iter().enumerate() {
        assert!(said.get("ok").is_some_and(|ok| *ok > 30), "session {n}: {said:?}");
    }
    // What must hold whoever came first.
    let broken: Option<String> = superuser.value(
        "select string_agg(what, ', ') from ( \
             select 'no owner' from conversations c where user_id is null and not exists \
                 (select from conversation_members m where m.conversation_id = c.id and m.role = 'owner') \
             union all select 'twice in it' from conversations c join conversation_members m \
                 on m.conversation_id = c.id and m.user_id = c.user_id \
             union all select 'a gap' from message_revisions group by message_id having max(revision) <> count(*) \
             union all select 'another tenant' from conversation_members m join conversations c \
                 on c.id = m.conversation_id where c.tenant_id <> m.tenant_id \
             union all select 'edited, and nothing kept' from messages m where edited_at is not null \
                 and not exists (select from message_revisions r where r.message_id = m.id) \
         ) s (what)",
    );
    assert_eq!(broken, None);
}
