//! Members come and go, and conversations change hands, at the same moment: somebody always manages.

use std::sync::Barrier;
use std::thread;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest, wait_until};
use postgres::Error;

use crate::crowd::grant_service;

/// What a call answers: true, false, or the SQLSTATE of its error.
pub fn answer(result: Result<Option<bool>, Error>) -> String {
    match result {
        Ok(value) => value.map_or("null".into(), |value| value.to_string()),
        Err(error) => error.code().map_or("lost", |code| code.code()).to_string(),
    }
}

pub fn call(client: &mut Client, sql: &str) -> String {
    answer(client.query_one(sql, &[]).and_then(|row| row.try_get(0)))
}

/// Both at the same moment.
fn at_once<const N: usize>(calls: [(&mut Client, String); N]) -> [String; N] {
    let start = Barrier::new(N);
    let mut answers = [const { String::new() }; N];
    thread::scope(|scope| {
        for ((client, sql), answer) in calls.into_iter().zip(&mut answers) {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                *answer = call(client, &sql);
            });
        }
    });
    answers
}

pub struct World {
    pub database: Database<'static>,
    pub conversation: Uuid,
    pub users: [Uuid; 4],
    pub superuser: Client,
}

impl World {
    pub fn new() -> Self {
        let database = Server::shared(oldest()).database();
        grant_service(&database);
        let users = [(); 4].map(|()| Uuid::new_v4());
        let mut superuser = database.superuser();
        for user in users {
            superuser.run(&format!("insert into users (id) values ('{user}')"));
        }
        Self { database, conversation: Uuid::new_v4(), users, superuser }
    }

    /// A new conversation, of user 0 or of nobody, and who is in it with which role.
    pub fn set(&mut self, whose: &str, members: &[(usize, &str)]) {
        let c = Uuid::new_v4();
        let user = match whose {
            "owned" | "joined" => format!("'{}'", self.users[0]),
            _ => "null".into(),
        };
        self.superuser
            .run(&format!("insert into conversations (id, user_id) values ('{c}', {user})"));
        for (user, role) in members {
            self.superuser.run(&format!(
                "insert into conversation_members (conversation_id, user_id, role) \
                 values ('{c}', '{}', '{role}')",
                self.users[*user]
            ));
        }
        self.conversation = c;
    }

    pub fn session(&self, user: usize, level: &str) -> Client {
        let mut client = self.database.member(self.users[user]);
        client.run(&format!("set default_transaction_isolation = '{level}'"));
        client
    }

    /// Users by number, each with the first letter of his role, the owner of record first.
    pub fn people(&mut self) -> String {
        let mut people: String = self.superuser.value(&format!(
            "select coalesce(string_agg(user_id || left(role, 1), ' ' order by n), '') \
             from list_members('{}') with ordinality m (user_id, name, role, since, n)",
            self.conversation
        ));
        for (n, user) in self.users.iter().enumerate() {
            people = people.replace(&user.to_string(), &n.to_string());
        }
        people
    }

    pub fn has_a_manager(&mut self) -> bool {
        self.superuser.value(&format!(
            "select user_id is not null or exists (select from conversation_members \
             where conversation_id = c.id and role = 'owner') from conversations c where id = '{}'",
            self.conversation
        ))
    }

    /// The SQL of a call in short words: a function and what it is given.
    pub fn words(&self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        self.spell(&match words[..] {
            ["add", user] => format!("select add_member('$c', '${user}')"),
            ["add", user, role] => format!("select add_member('$c', '${user}', '{role}')"),
            ["role", user, role] => format!("select set_member_role('$c', '${user}', '{role}')"),
            ["remove", user] => format!("select remove_member('$c', '${user}')"),
            ["leave"] => "select remove_member('$c')".into(),
            ["transfer", user] => format!("select transfer_conversation('$c', '${user}')"),
            ["delete"] => "select delete_conversation('$c')".into(),
            ["purge"] => "select purge_conversation('$c')".into(),
            _ => panic!("{words:?}"),
        })
    }

    /// `$c` and `$0` to `$3` in the text of a call.
    pub fn spell(&self, sql: &str) -> String {
        let mut sql = sql.replace("$c", &self.conversation.to_string());
        for (n, user) in self.users.iter().enumerate() {
            sql = sql.replace(&format!("${n}"), &user.to_string());
        }
        sql
    }
}

/// Without anybody who arranges who comes first.
#[test]
fn at_the_same_moment_one_stays_who_manages_and_one_is_added() {
    let mut world = World::new();
    // Who is in it, the two calls by users 1 and 2, and the pairs of answers that are right.
    type Race<'a> = (&'a str, &'a str, &'a str, &'a [&'a str]);
    let races: &[Race] = &[
        ("owned", "remove 2", "remove 1", &["true P0002", "P0002 true"]),
        ("nobody's", "remove 2", "remove 1", &["true P0002", "P0002 true"]),
        ("nobody's", "leave", "leave", &["true 55000", "55000 true"]),
        ("nobody's", "role 1 viewer", "leave", &["true 55000", "55000 true"]),
        (
            "owned",
            "transfer 1",
            "transfer 2",
            // The one who comes second makes an editor of the other.
            &["true true"],
        ),
        ("owned", "transfer 1", "remove 1", &["true 55000", "P0002 true"]),
        ("owned", "add 3 viewer", "add 3 editor", &["true false", "false true"]),
    ];
    let mut wrong = Vec::new();
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for level in ["read committed", "repeatable read"] {
        let (mut one, mut two) = (world.session(1, level), world.session(2, level));
        for (whose, first, second, right) in races {
            for _ in 0..40 {
                world.set(whose, &[(1, "owner"), (2, "owner")]);
                let calls = [(&mut one, world.words(first)), (&mut two, world.words(second))];
                let found = at_once(calls).join(" ");
                let is_right = right.contains(&found.as_str())
                    || level == "repeatable read"
                        && ["true 40001", "40001 true"].contains(&found.as_str());
                *seen.entry(format!("{first}, {second}: {found}")).or_default() += 1;
                if !is_right || !world.has_a_manager() {
                    wrong.push(format!("{level}: {first}, {second}: {found}; {}", world.people()));
                }
            }
        }
    }
    println!("{seen:#?}");
    wrong.truncate(20);
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}

#[test]
fn of_many_who_add_one_user_one_has_added_him() {
    let mut world = World::new();
    for level in ["read committed", "repeatable read"] {
        let mut sessions: Vec<_> = (0..12).map(|n| world.session(n % 3, level)).collect();
        sessions.extend((0..4).map(|_| world.database.connect(crate::crowd::SERVICE)));
        for _ in 0..25 {
            world.set("owned", &[(1, "owner"), (2, "owner")]);
            let roles = ["viewer", "editor", "owner"];
            let start = Barrier::new(sessions.len());
            let mut answers: Vec<(String, &str)> = thread::scope(|scope| {
                let adding: Vec<_> = sessions
                    .iter_mut()
                    .zip(roles.iter().cycle())
                    .map(|(session, role)| {
                        let (world, start) = (&world, &start);
                        let sql = world.words(&format!("add 3 {role}"));
                        scope.spawn(move || {
                            start.wait();
                            (call(session, &sql), *role)
                        })
                    })
                    .collect();
                adding.into_iter().map(|one| one.join().expect("no panic")).collect()
            });
            let added = answers.extract_if(.., |(answer, _)| answer == "true").collect::<Vec<_>>();
            let [(_, role)] = &added[..] else { panic!("{level}: {added:?}, {answers:?}") };
            assert!(
                answers.iter().all(|(answer, _)| answer == "false"
                    || answer == "40001" && level == "repeatable read"),
                "{level}: {answers:?}"
            );
            assert_eq!(world.people(), format!("0o 1o 2o 3{}", &role[..1]));
        }
    }
}

/// While he waits for the conversation he loses, in other ways, what let him ask for it.
#[test]
fn a_manager_who_lost_his_right_while_he_waited_is_refused() {
    let mut world = World::new();
    let calls = ["add 3", "role 2 viewer", "remove 2", "transfer 3"];
    // What is done to him, what he hears, and how it is undone.
    let losses = [
        (
            "update users set is_active = false where id = '$1'",
            "P0002",
            "update users set is_active = true",
        ),
        ("update tenants set is_active = false", "P0002", "update tenants set is_active = true"),
        ("delete from conversation_members where user_id = '$1'", "P0002", ""),
        (
            "delete from conversation_members where user_id = '$1'; \
             update conversations set visibility = 'tenant' where id = '$c'",
            "42501",
            "",
        ),
        ("update conversation_members set role = 'viewer' where user_id = '$1'", "42501", ""),
        ("update conversation_members set role = 'editor' where user_id = '$1'", "42501", ""),
        ("update conversations set deleted_at = now() where id = '$c'", "P0002", ""),
        ("delete from conversations where id = '$c'", "P0002", ""),
        (
            "update users set is_active = false where id in ('$2', '$3')",
            "P0002 unless removed",
            "update users set is_active = true",
        ),
    ];
    let mut other = world.database.superuser();
    let mut wrong = Vec::new();
    for admin in [false, true] {
        let mut manager = world.session(1, "read committed");
        for (loss, expected, back) in losses {
            for sql in calls {
                world.set("owned", &[(1, if admin { "viewer" } else { "owner" }), (2, "owner")]);
                if admin {
                    other.run(&world.spell("update users set role = 'admin' where id = '$1'"));
                }
                let hold = world.spell("select true from conversations where id = '$c' for update");
                let loss = if admin && loss.contains("conversation_members") {
                    "update users set role = 'member' where id = '$1'"
                } else {
                    loss
                };
                let taken = format!("{loss}; {hold}");
                let expected = match expected {
                    // Nobody lets in, or hands over to, somebody who is locked out.
                    "P0002 unless removed" if sql.ends_with(" 3") => "P0002",
                    "P0002 unless removed" => "true",
                    _ if admin && loss.contains("role = 'member'") => "42501",
                    other => other,
                };
                other.run("begin");
                other.run(&hold);
                let pid: i32 = manager.value("select pg_backend_pid()");
                let text = world.words(sql);
                let found = thread::scope(|scope| {
                    let waiting = scope.spawn(|| call(&mut manager, &text));
                    wait_until(
                        &mut world.superuser,
                        &format!(
                            "select exists (select from pg_locks where pid = {pid} and not granted)"
                        ),
                    );
                    let done = world.spell(&taken.replace(&format!("; {hold}"), ""));
                    other.run(&done);
                    other.run("commit");
                    waiting.join().expect("no panic")
                });
                if found != expected {
                    wrong.push(format!("admin {admin}: {sql}, {loss}: {found}, not {expected}"));
                }
                if !back.is_empty() {
                    other.run(back);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
