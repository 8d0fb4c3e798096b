//! Edits of one message at once: what each of them replaced is kept, once, in order.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, describe, oldest};

use crate::crowd::{SERVICE, grant_service};
use crate::members::call;

struct World {
    database: Database<'static>,
    author: Uuid,
    conversation: Uuid,
    message: Uuid,
}

impl World {
    fn new() -> Self {
        let database = Server::shared(oldest()).database();
        grant_service(&database);
        let author = Uuid::new_v4();
        let mut member = database.member(author);
        let conversation = member.value("select create_conversation('talk')");
        let message = member.value(&format!(
            "select message_id from add_message('{conversation}', 'user', 'first')"
        ));
        database.superuser().run("update tenants set features = '{\"edit_messages\": true}'");
        Self { database, author, conversation, message }
    }

    fn revisions(&self) -> Vec<(i32, String)> {
        let rows = self.database.superuser().query(
            "select revision, content from message_revisions where message_id = $1 order by 1",
            &[&self.message],
        );
        rows.expect("rows").iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

/// Edits until all are in; the number of those that had to be sent again.
fn edit_all(client: &mut Client, message: Uuid, who: usize, n: usize) -> u32 {
    let mut again = 0;
    for i in 0..n {
        // By the function, by plain SQL, of text and of parts.
        let (sql, parts) = match i % 3 {
            0 => ("select edit_message($1, $2)", false),
            1 => ("update messages set content = $2 where id = $1", false),
            _ => ("select edit_message($1, $2, jsonb_build_object('of', $2::text))", true),
        };
        let text = format!("{who}.{i}{}", if parts { " with parts" } else { "" });
        loop {
            match client.execute(sql, &[&message, &text]) {
                Ok(1) => break,
                Ok(n) => panic!("{n} rows by {sql}"),
                Err(error) if error.code().is_some_and(|code| code.code() == "40001") => again += 1,
                Err(error) => panic!("{sql}: {}", describe(&error)),
            }
        }
    }
    again
}

#[test]
fn edits_by_many_sessions_are_counted_without_a_gap_and_each_text_is_kept_once() {
    const SESSIONS: usize = 32;
    const EACH: usize = 9;
    for level in ["read committed", "repeatable read", "mixed"] {
        let world = World::new();
        let start = Barrier::new(SESSIONS);
        let again: u32 = thread::scope(|scope| {
            let editing: Vec<_> = (0..SESSIONS)
                .map(|n| {
                    let (world, start) = (&world, &start);
                    scope.spawn(move || {
                        let mut client = match n % 4 {
                            0 | 1 => world.database.member(world.author),
                            2 => world.database.connect(SERVICE),
                            _ => world.database.superuser(),
                        };
                        let levels = ["read committed", "repeatable read", "serializable"];
                        let level = if level == "mixed" { levels[n % 3] } else { level };
                        client.run(&format!("set default_transaction_isolation = '{level}'"));
                        start.wait();
                        edit_all(&mut client, world.message, n, EACH)
                    })
                })
                .collect();
            editing.into_iter().map(|one| one.join().expect("no panic")).sum()
        });
        println!("{level}: {again} sent again");
        assert!(level != "read committed" || again == 0);
        let kept = world.revisions();
        let numbers: Vec<i32> = kept.iter().map(|(n, _)| *n).collect();
        let edits = SESSIONS * EACH;
        assert_eq!(numbers, (1..=edits as i32).collect::<Vec<_>>(), "{level}");
        let mut owner = world.database.superuser();
        let last: String = owner.value("select content from messages");
        let mut count = BTreeMap::<&str, u32>::new();
        for (_, text) in &kept {
            *count.entry(text).or_default() += 1;
        }
        *count.entry(&last).or_default() += 1;
        assert_eq!(count.len(), edits + 1, "{level}: every text is somewhere");
        assert_eq!(kept[0].1, "first");
        // Parts are those of the text that they came with, or of one before it.
        let torn: i64 = owner.value(
            "select count(*) from message_revisions where content like '% with parts' \
             and parts->>'of' <> content",
        );
        assert_eq!(torn, 0, "{level}: text and parts of different edits");
        let editors: i64 = owner.value(&format!(
            "select count(*) from message_revisions where edited_by = '{}'",
            world.author
        ));
        assert_eq!(editors, (edits / 2) as i64);
    }
}

/// Each call with what waits behind it for the message, and what that one is told.
#[test]
fn an_edit_that_waited_is_judged_by_what_it_finds() {
    let world = World::new();
    let mut superuser = world.database.superuser();
    let mut writer = world.database.connect(SERVICE);
    let c = world.conversation;
    // What makes the message, what is done to it first, the edit behind it, and in READ COMMITTED the
    // answer, the text in the end and how many revisions there are.
    let add = "select message_id from add_message('$c', 'user', 'a')";
    let begin = "select begin_message('$c')";
    let cases = [
        (add, "select edit_message('$m', 'b')", "select edit_message('$m', 'c')", "ok", "c", 2),
        (add, "select edit_message('$m', 'b')", "select edit_message('$m', 'b')", "ok", "b", 1),
        (
            add,
            "delete from messages where id = '$m'",
            "select edit_message('$m', 'c')",
            "P0002",
            "",
            0,
        ),
        (add, "select purge_conversation('$c')", "select edit_message('$m', 'c')", "P0002", "", 0),
        // Whoever has taken up an interrupted stream writes it; it cannot be edited under his hands.
        (
            "select interrupted('$c')",
            "select resume_message('$m')",
            "select edit_message('$m', 'c')",
            "24000",
            "ab",
            0,
        ),
        // Nor before that: it would be lost when the stream goes on from its chunks.
        (
            "select interrupted('$c')",
            "select fail_message('$m', 'e')",
            "select edit_message('$m', 'c')",
            "24000",
            "ab",
            0,
        ),
        (begin, "select finish_message('$m')", "select edit_message('$m', 'c')", "24000", "", 0),
    ];
    superuser.run(
        "create function interrupted(c uuid) returns uuid language plpgsql as $$ declare m uuid; begin \
             m := begin_message(c); perform append_chunks(m, array['a', 'b']); \
             update messages set status = 'interrupted', content = 'ab' where id = m; return m; end $$",
    );
    let mut wrong = Vec::new();
    for who in ["member", "service"] {
        for (make, first, second, expected, text, revisions) in cases {
            let c = if first.contains("purge") {
                world.database.member(world.author).value("select create_conversation('once')")
            } else {
                c
            };
            let mut editor = match who {
                "member" => world.database.member(world.author),
                _ => world.database.connect(SERVICE),
            };
            superuser.run(&format!("set pg_conversation.user_id = '{}'", world.author));
            let m: Uuid = superuser.value(&make.replace("$c", &c.to_string()));
            // Streams are an assistant's; that this one is a user's is for the policy's sake.
            superuser.run(&format!("update messages set role = 'user' where id = '{m}'"));
            let spell = |sql: &str| sql.replace("$m", &m.to_string()).replace("$c", &c.to_string());
            let pid: i32 = editor.value("select pg_backend_pid()");
            writer.run("begin");
            writer.run(&spell(first));
            let found = thread::scope(|scope| {
                let behind = scope.spawn(|| {
                    let sql = spell(second);
                    // A call that returns nothing has an answer like any other.
                    let answer = editor.query(&sql, &[]);
                    match answer {
                        Ok(_) => "ok".to_string(),
                        Err(error) => error.code().map_or("lost", |code| code.code()).to_string(),
                    }
                });
                while !behind.is_finished()
                    && !superuser.value::<bool>(&format!(
                        "select exists (select from pg_locks where pid = {pid} and not granted)"
                    ))
                {
                    thread::sleep(std::time::Duration::from_millis(2));
                }
                writer.run("commit");
                behind.join().expect("no panic")
            });
            let now: Option<String> =
                superuser.value(&format!("select reconstruct_message('{m}')"));
            let now = now.unwrap_or_default();
            let kept: i64 = superuser
                .value(&format!("select count(*) from message_revisions where message_id = '{m}'"));
            if (found.as_str(), now.as_str(), kept) != (expected, text, revisions) {
                wrong.push(format!(
                    "{who}: {first}, {second}: {found} {now:?} {kept}, not {expected} {text:?} {revisions}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Neither holds up the other for longer than a statement, and the text is one or the other.
#[test]
fn an_edit_and_the_end_of_a_stream_meet() {
    let world = World::new();
    let (mut producer, mut editor) =
        (world.database.member(world.author), world.database.connect(SERVICE));
    let mut answers = BTreeMap::<String, u32>::new();
    for round in 0..120 {
        let m: Uuid = producer.value(&format!("select begin_message('{}')", world.conversation));
        producer.run(&format!("select append_chunks('{m}', array['a', 'b'])"));
        let start = Barrier::new(2);
        let edited = thread::scope(|scope| {
            let editing = scope.spawn(|| {
                start.wait();
                if round % 2 == 0 {
                    thread::sleep(std::time::Duration::from_micros(round * 10));
                }
                call(&mut editor, &format!("select edit_message('{m}', 'edited') is null"))
            });
            start.wait();
            producer.run(&format!("select finish_message('{m}', 1, 2)"));
            editing.join().expect("no panic")
        });
        let (text, kept): (String, Vec<String>) = (
            producer.value(&format!("select reconstruct_message('{m}')")),
            world
                .database
                .superuser()
                .values(&format!("select content from message_revisions where message_id = '{m}'")),
        );
        match edited.as_str() {
            "24000" => assert_eq!((text.as_str(), kept.len()), ("ab", 0)),
            // A function that returns void is not null to SQL.
            "false" | "true" => assert_eq!((text.as_str(), kept), ("edited", vec!["ab".into()])),
            other => panic!("{other}"),
        }
        *answers.entry(edited).or_default() += 1;
    }
    println!("{answers:?}");
}
