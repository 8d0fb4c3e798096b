//! A backend may remember the message that it last added to. What others do meanwhile counts.

use pg_conversation_tests::{Client, Server, Session, Uuid, oldest};

use crate::desk::{Desk, Stream, broke, code};

fn fill(sql: &str, message: Uuid, conversation: Uuid) -> String {
    sql.replace("$m", &message.to_string()).replace("$c", &conversation.to_string())
}

/// What an append answers, in a word.
fn word(result: Result<crate::desk::Answer, postgres::Error>) -> String {
    match result {
        Ok(answer) if answer.stop => format!("{} stop", answer.next),
        Ok(answer) => answer.next.to_string(),
        Err(error) => {
            assert!(!broke(&error), "{error}");
            code(&error).to_string()
        }
    }
}

#[test]
fn what_others_did_since_the_last_append_counts() {
    let insert =
        "insert into message_chunks (message_id, chunk_content, chunk_index, is_final) values";
    let stop = "select stop_message('$m')";
    let interrupt = "select recover_stalled_messages('0 s')";
    let again = "delete from messages where id = '$m'; \
                 insert into messages (id, conversation_id, role, status) \
                 values ('$m', '$c', 'assistant', 'streaming')";
    // After "a" was sent at 0 by one session: what another one does, the index and content that the
    // first sends next, the answer, and state and text afterwards.
    let cases: Vec<(String, Option<i32>, &str, &str, &str)> = vec![
        (String::new(), None, "b", "2", "streaming ab"),
        ("select append_chunk('$m', 'x')".into(), None, "b", "3", "streaming axb"),
        ("select append_chunk('$m', 'x')".into(), Some(1), "b", "23505", "streaming ax"),
        ("select append_chunk('$m', 'x')".into(), Some(1), "x", "2", "streaming ax"),
        ("select append_chunk('$m', 'x')".into(), Some(2), "b", "3", "streaming axb"),
        ("select append_chunks('$m', array['x', 'y'])".into(), Some(1), "x", "3", "streaming axy"),
        (format!("{insert} ('$m', 'x', 1, false)"), None, "b", "3", "streaming axb"),
        // A final chunk ahead of its turn: what fills the gap completes the message.
        (format!("{insert} ('$m', 'c', 2, true)"), Some(1), "b", "2|3", "completed abc"),
        (format!("{insert} ('$m', 'd', 3, true)"), Some(1), "b", "2|4", "streaming ab"),
        (format!("{insert} ('$m', 'c', 2, true)"), Some(3), "d", "24000|55000", "streaming a"),
        (format!("{insert} ('$m', 'c', 2, false)"), Some(1), "b", "2|3", "streaming abc"),
        ("select finish_message('$m')".into(), None, "b", "24000", "completed a"),
        ("select finish_message('$m')".into(), Some(1), "b", "24000", "completed a"),
        ("select append_chunk('$m', 'x', 1, true)".into(), Some(2), "b", "24000", "completed ax"),
        ("select append_chunk('$m', 'x', 1, true)".into(), None, "b", "24000", "completed ax"),
        (stop.into(), None, "b", "1 stop", "stopped a"),
        (stop.into(), Some(1), "b", "1 stop", "stopped a"),
        ("select stop_message('$m', 0)".into(), None, "b", "0 stop", "stopped "),
        ("select fail_message('$m', 'e')".into(), None, "b", "24000", "failed a"),
        (interrupt.into(), Some(1), "b", "24000", "interrupted a"),
        (format!("{interrupt}; select resume_message('$m')"), Some(1), "b", "2", "streaming ab"),
        (
            format!("{interrupt}; select resume_message('$m'); select append_chunk('$m', 'x')"),
            None,
            "b",
            "3",
            "streaming axb",
        ),
        (format!("begin; {stop}; rollback"), None, "b", "2", "streaming ab"),
        ("begin; select append_chunk('$m', 'x'); rollback".into(), None, "b", "2", "streaming ab"),
        ("delete from messages where id = '$m'".into(), None, "b", "P0002", "gone"),
        ("delete from messages where id = '$m'".into(), Some(1), "b", "P0002", "gone"),
        ("delete from conversations where id = '$c'".into(), None, "b", "P0002", "gone"),
        // Another message of the same id.
        (again.into(), None, "b", "1", "streaming b"),
        (again.into(), Some(1), "b", "55000", "streaming "),
        // The row lies elsewhere, or looks otherwise.
        ("vacuum full messages".into(), None, "b", "2", "streaming ab"),
        ("cluster messages using messages_pkey".into(), None, "b", "2", "streaming ab"),
        ("vacuum full message_chunks".into(), None, "b", "2", "streaming ab"),
        ("reindex table message_chunks".into(), None, "b", "2", "streaming ab"),
        (
            "alter table messages add column if not exists extra int default 1".into(),
            None,
            "b",
            "2",
            "streaming ab",
        ),
        (
            "alter table message_chunks add column if not exists extra int default 7".into(),
            Some(1),
            "b",
            "2",
            "streaming ab",
        ),
        (
            "update messages set metadata = '{\"a\": 1}' where id = '$m'".into(),
            None,
            "b",
            "2",
            "streaming ab",
        ),
        (
            "update messages set status = 'failed' where id = '$m'".into(),
            None,
            "b",
            "24000",
            "failed a",
        ),
    ];
    let desk = Desk::new();
    let mut superuser = desk.database.superuser();
    // One is asked who he is each time, the other is not.
    let mut writers: [(&str, Client); 2] = [("member", desk.member()), ("service", desk.service())];
    let mut wrong = Vec::new();
    for (others, index, content, answer, after) in &cases {
        for (who, writer) in &mut writers {
            let conversation = desk.another_conversation();
            let message = writer.open(conversation);
            writer.append(message, "a", Some(0)).unwrap();
            for statement in others.split("; ").filter(|sql| !sql.is_empty()) {
                superuser.run(&fill(statement, message, conversation));
            }
            let found = word(writer.append(message, content, *index));
            let state = superuser
                .query_opt(
                    "select status || ' ' || coalesce(reconstruct_message(id), '') \
                     from messages where id = $1",
                    &[&message],
                )
                .unwrap()
                .map_or("gone".to_string(), |row| row.get(0));
            if !answer.split('|').any(|one| one == found) || state != *after {
                wrong.push(format!(
                    "{who}: {others}; then {content:?} at {index:?}: {found}, {state:?}; \
                     not {answer}, {after:?}"
                ));
            }
            superuser.run("delete from messages");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_attached_to_the_table_holds_for_appends_from_the_next_one_on() {
    // What somebody attaches, how it is taken away, the content that is sent, what becomes of it.
    let log = "create table log (content text); \
               create function note() returns trigger language plpgsql security definer as $$ begin \
               insert into public.log values (case tg_level when 'ROW' then new.chunk_content end); \
               return new; end $$";
    let cases = [
        (
            "create trigger note before insert on message_chunks for each row execute function note()",
            "drop trigger note on message_chunks",
            "logged",
        ),
        (
            "create trigger note after insert on message_chunks for each row execute function note()",
            "drop trigger note on message_chunks",
            "logged",
        ),
        (
            "create trigger note after insert on message_chunks for each statement execute function note()",
            "drop trigger note on message_chunks",
            "logged",
        ),
        (
            "create constraint trigger note after insert on message_chunks deferrable initially deferred \
             for each row execute function note()",
            "drop trigger note on message_chunks",
            "logged",
        ),
        (
            "create rule note as on insert to message_chunks do also insert into log values ('rule')",
            "drop rule note on message_chunks",
            "logged",
        ),
        (
            "alter table message_chunks add constraint no_b check (chunk_content <> 'b')",
            "alter table message_chunks drop constraint no_b",
            "23514",
        ),
        (
            "alter table message_chunks add constraint no_a foreign key (chunk_content) references words (word)",
            "alter table message_chunks drop constraint no_a",
            "23503",
        ),
        (
            "alter table message_chunks add constraint once unique (message_id, chunk_content)",
            "alter table message_chunks drop constraint once",
            "23505 for a",
        ),
        (
            "alter table message_chunks add constraint once unique (message_id, chunk_content) \
             deferrable initially deferred",
            "alter table message_chunks drop constraint once",
            "23505 for a",
        ),
        (
            "create unique index once on message_chunks (message_id, lower(chunk_content)) \
             where chunk_index > 0 or chunk_content = 'a'",
            "drop index once",
            "23505 for a",
        ),
        (
            "alter table message_chunks add constraint once \
             exclude using btree (message_id with =, chunk_content with =)",
            "alter table message_chunks drop constraint once",
            "23P01 for a",
        ),
        (
            "create policy no_b on message_chunks as restrictive for insert with check (chunk_content <> 'b')",
            "drop policy no_b on message_chunks",
            "42501",
        ),
        (
            "alter table message_chunks add column words int not null default 7",
            "alter table message_chunks drop column words",
            "ok",
        ),
    ];
    let mut wrong = Vec::new();
    let desk = Desk::new();
    let mut superuser = desk.database.superuser();
    superuser.run(&format!(
        "{log}; create table words (word text primary key); insert into words values ('a'); \
         grant select on words to member; grant insert on log to member"
    ));
    for (attach, detach, outcome) in cases {
        superuser.run("truncate log, message_chunks");
        let mut member = desk.member();
        let message = member.open(desk.conversation);
        member.append(message, "a", Some(0)).unwrap();
        superuser.run(attach);
        let content = if outcome.ends_with("for a") { "a" } else { "b" };
        let found = match member.append(message, content, Some(1)) {
            Err(error) => {
                let what = if content == "a" { " for a" } else { "" };
                format!("{}{what}", code(&error))
            }
            Ok(_) if superuser.value::<i64>("select count(*) from log") == 1 => "logged".into(),
            Ok(_) => "ok".to_string(),
        };
        if found != outcome {
            wrong.push(format!("{attach}: {found}, not {outcome}"));
        }
        superuser.run(detach);
        let next = if ["ok", "logged"].contains(&outcome) { 2 } else { 1 };
        let after = word(member.append(message, "c", Some(next)));
        if after != (next + 1).to_string() {
            wrong.push(format!("{detach}: {after}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn whoever_reads_the_log_of_the_server_gets_each_chunk_once() {
    let server = Server::private(oldest(), "fsync = off\nwal_level = logical\n");
    let desk = Desk::on(&server);
    let mut superuser = desk.database.superuser();
    superuser.run("create publication p for table message_chunks");
    superuser.run("select pg_create_logical_replication_slot('s', 'pgoutput')");
    let (mut one, mut two) = (desk.member(), desk.member());
    let message = one.open(desk.conversation);
    // Both go on where they believe the end to be; each is wrong every time.
    for i in 0..10 {
        one.append(message, &format!("{i} "), None).unwrap();
        two.append(message, &format!("{i} "), None).unwrap();
    }
    // A window that another session has sent half of.
    one.window(message, &["x", "y"], Some(20)).unwrap();
    two.window(message, &["x", "y", "z"], Some(20)).unwrap();
    assert_eq!(one.append(message, "z", Some(22)).unwrap().next, 23);
    // What is finished is on disk, and with it all that was written before.
    one.finish(message).unwrap();
    let kinds: Vec<String> = superuser.values(
        "select chr(get_byte(data, 0)) from pg_logical_slot_get_binary_changes('s', null, null, \
         'proto_version', '1', 'publication_names', 'p')",
    );
    let count = |kind: &str| kinds.iter().filter(|one| *one == kind).count();
    assert_eq!((count("I"), count("U"), count("D")), (23, 0, 0), "inserts, updates, deletes");
    superuser.run("select pg_drop_replication_slot('s')");
}

#[test]
fn a_session_that_a_pooler_resets_goes_on() {
    let desk = Desk::new();
    let mut service = desk.service();
    let message = service.open(desk.conversation);
    for (i, reset) in [
        "discard all",
        "deallocate all",
        "discard plans",
        "reset all",
        "select pg_advisory_unlock_all()",
    ]
    .iter()
    .enumerate()
    {
        let next = 2 * i as i32;
        assert_eq!(service.append(message, "a", Some(next)).unwrap().next, next + 1);
        service.run(reset);
        assert_eq!(service.append(message, "b", None).unwrap().next, next + 2, "{reset}");
    }
    assert_eq!(service.text(message).unwrap(), "ab".repeat(5));
}

#[test]
fn a_read_only_transaction_writes_nothing() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    member.append(message, "a", Some(0)).unwrap();
    let calls = [
        "append_chunk('$m', 'b')",
        "append_chunk('$m', 'b', 1)",
        "append_chunk('$m', 'b', 1, true)",
        "append_chunks('$m', array['b', 'c'], 1)",
        "begin_message('$c')",
        "finish_message('$m')",
        "stop_message('$m')",
        "stop_message('$m', 0)",
        "fail_message('$m', 'e')",
    ];
    for call in calls {
        let sql = format!("select {}", fill(call, message, desk.conversation));
        member.run("begin read only");
        assert_eq!(member.error(&sql).0, "25006", "{call}");
        member.run("rollback; set default_transaction_read_only = on");
        assert_eq!(member.error(&sql).0, "25006", "{call}");
        member.run("set default_transaction_read_only = off");
    }
    member.run("begin read only");
    assert_eq!(member.text(message).unwrap(), "a");
    assert_eq!(member.read(message, -1, 9).unwrap().len(), 1);
    assert_eq!(member.wait(message, -1, 1000, 9).unwrap().len(), 1);
    member.run("commit");
    assert_eq!((member.status(message).as_str(), member.chunks(message)), ("streaming", 1));
}
