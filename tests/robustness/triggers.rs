//! Our trigger functions on tables that are not ours.

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest, wait_until};

use crate::calls::{functions, make_rows};
use crate::{attempt, fault};

const MALLORY: &str = "conc_mallory";

/// Names of columns that the triggers look for.
const COLUMNS: [&str; 24] = [
    "id",
    "message_id",
    "chunk_index",
    "chunk_content",
    "is_final",
    "content",
    "status",
    "conversation_id",
    "tenant_id",
    "user_id",
    "parent_id",
    "client_message_id",
    "session_id",
    "continuation_id",
    "title",
    "visibility",
    "sequence_number",
    "updated_at",
    "parts",
    "author_id",
    "edited_at",
    "auth_id",
    "is_active",
    "role_name",
];

/// A role without any rights but to its own schema.
fn mallory(database: &Database) -> Client {
    database.server.role(MALLORY);
    database.superuser().run(&format!(
        "create schema his authorization {MALLORY}; grant usage on schema public to {MALLORY}; \
             grant create on database {} to {MALLORY}",
        database.name
    ));
    connect(database)
}

/// Waits for a server that may be recovering from the last try.
fn connect(database: &Database) -> Client {
    for _ in 0..600 {
        if let Ok(client) = database.server.config(&database.name, MALLORY).connect(postgres::NoTls)
        {
            return client;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the server does not come back");
}

#[test]
fn triggers_on_foreign_tables_raise_errors_and_never_harm_the_server() {
    let server = Server::private(oldest(), "fsync = off\nrestart_after_crash = on\n");
    let database = server.database();
    let mut client = mallory(&database);
    let triggers: Vec<String> = functions(&mut database.superuser())
        .into_iter()
        .filter(|function| function.returns == "trigger")
        .map(|function| function.name)
        .collect();
    assert!(triggers.len() >= 8);

    let (mut faults, mut accepted, mut refused) = (Vec::new(), 0, 0);
    let types = [
        "int",
        "bigint",
        "smallint",
        "bool",
        "text",
        "name",
        "bytea",
        "jsonb",
        "numeric",
        "uuid",
        "timestamptz",
        "uuid[]",
        "varchar(10)",
        "char(3)",
        "\"char\"",
        "oid",
        "interval",
        "float8",
    ];
    for trigger in &triggers {
        for of in types {
            let value = match of {
                "uuid" => "'00000000-0000-4000-8000-00000000000a'",
                "timestamptz" => "'2000-01-01'",
                "uuid[]" => "'{00000000-0000-4000-8000-00000000000a}'",
                "interval" => "'5 s'",
                "jsonb" => "'\"5\"'",
                "bool" => "true",
                _ => "'5'",
            };
            let names = COLUMNS.map(|name| format!("{name} {of}"));
            let columns = names.join(", ");
            let values = vec![value; COLUMNS.len()].join(", ");
            let sql = [
                format!(
                    "drop schema if exists his cascade; create schema his; create table his.t ({columns}); \
                         insert into his.t values ({values}); \
                         create trigger x before insert or update on his.t for each row execute function public.{trigger}()"
                ),
                format!("insert into his.t values ({values})"),
                "insert into his.t default values".into(),
                "update his.t set visibility = visibility".into(),
            ];
            faults.extend(go(
                &database,
                &mut client,
                trigger,
                of,
                &sql,
                &mut accepted,
                &mut refused,
            ));
        }
        // Tables without those columns, and every other time and event.
        let mut sql = vec![
            "drop schema if exists his cascade; create schema his; create table his.t (a int, dropped text); \
             alter table his.t drop column dropped; create table his.none (); create view his.v as select 1 as a"
                .to_string(),
        ];
        for (n, when) in [
            "before insert or update or delete on his.t for each row",
            "after insert or update or delete on his.t for each row",
            "before insert or update or delete or truncate on his.t",
            "after insert or update or delete on his.t",
            "before insert on his.none for each row",
            "instead of insert or update or delete on his.v for each row",
        ]
        .iter()
        .enumerate()
        {
            sql.push(format!(
                "create trigger x{n} {when} execute function public.{trigger}('argument', '%s')"
            ));
            sql.extend(
                [
                    "insert into his.t values (1)",
                    "update his.t set a = 2",
                    "delete from his.t",
                    "truncate his.t",
                    "insert into his.none default values",
                    "insert into his.v values (1)",
                    "update his.v set a = 2",
                ]
                .map(str::to_string),
            );
            sql.push(format!(
                "drop trigger x{n} on his.{}; truncate his.t; insert into his.t values (1)",
                if when.contains("his.v") {
                    "v"
                } else if when.contains("none") {
                    "none"
                } else {
                    "t"
                }
            ));
        }
        sql.push(format!(
            "create constraint trigger y after insert on his.t deferrable initially deferred for each row \
             execute function public.{trigger}()"
        ));
        sql.push("insert into his.t values (3)".into());
        faults.extend(go(
            &database,
            &mut client,
            trigger,
            "other events",
            &sql,
            &mut accepted,
            &mut refused,
        ));
    }
    println!(
        "{} trigger functions, {accepted} statements accepted, {refused} refused",
        triggers.len()
    );
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn go(
    database: &Database,
    client: &mut Client,
    trigger: &str,
    of: &str,
    statements: &[String],
    accepted: &mut u32,
    refused: &mut u32,
) -> Vec<String> {
    let mut faults = Vec::new();
    for sql in statements {
        match client.batch_execute(sql) {
            Ok(()) => *accepted += 1,
            Err(error) => {
                *refused += 1;
                if let Some(fault) = fault(&error) {
                    faults.push(format!("{trigger} on {of}: {sql:.120}\n    {fault:.300}"));
                }
                if client.is_closed() || error.as_db_error().is_none() {
                    *client = connect(database);
                    break;
                }
            }
        }
    }
    faults
}

#[test]
fn triggers_on_another_table_of_ours_or_at_another_time_never_harm_the_server() {
    let server = Server::private(oldest(), "fsync = off\n");
    let database = server.database();
    let mut owner = database_again(&database);
    let ids = make_rows(&mut database.member(Uuid::new_v4()));
    let (c, m) = (ids.conversation, ids.message);
    let other = Uuid::new_v4();
    let statements = [
        format!("insert into message_chunks (message_id, chunk_content) values ('{m}', 'x'), ('{m}', 'y')"),
        format!(
            "insert into message_chunks (message_id, chunk_content, chunk_index) values ('{m}', 'user', 0) \
             on conflict (message_id, chunk_index) do nothing"
        ),
        format!("select append_chunk('{m}', 'x'), append_chunks('{m}', array['user', 'x', 'y'], 0, true)"),
        format!("select begin_message('{c}'), stop_message('{m}', 2)"),
        format!("select fail_message('{m}', 'x'), cleanup_streaming_artifacts('{m}')"),
        format!("insert into messages (id, conversation_id, role) values ('{other}', '{c}', 'user')"),
        "update messages set content = 'x'; delete from messages".into(),
        "delete from message_chunks; insert into message_chunks values (null)".into(),
        "truncate message_chunks, messages, conversations, conversation_members".into(),
        format!("insert into conversations (id) values ('{other}'); delete from conversations"),
        "set local row_security = off; insert into message_chunks (message_id, chunk_content, chunk_index) \
         select new_id(), 'x', 0"
            .into(),
    ];
    let (mut faults, mut accepted, mut refused) = (Vec::new(), 0, 0);
    for function in functions(&mut database.superuser()) {
        if function.returns != "trigger" {
            continue;
        }
        for table in ["message_chunks", "messages", "conversations"] {
            for when in [
                "trigger z before insert or update or delete on @ for each row",
                "trigger a before insert or update or delete on @ for each row",
                "trigger z after insert or update or delete on @ for each row",
                "trigger z before insert or update or delete or truncate on @",
                "trigger z after insert or update or delete or truncate on @",
                "constraint trigger z after insert or update or delete on @ deferrable initially deferred for each row",
            ] {
                let trigger = when.replace('@', table);
                owner.run("begin");
                for sql in &statements {
                    let sql = format!(
                        "create {trigger} execute function {}(); {sql}; set constraints all immediate",
                        function.name
                    );
                    let Err(error) = attempt(&mut owner, &sql) else {
                        accepted += 1;
                        continue;
                    };
                    refused += 1;
                    if let Some(fault) = fault(&error) {
                        faults.push(format!("{sql:.300}\n    {fault:.300}"));
                    }
                    if error.as_db_error().is_none() {
                        owner = database_again(&database);
                        owner.run("begin");
                    }
                }
                owner.run("rollback");
            }
        }
    }
    println!("{accepted} statements accepted, {refused} refused");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    owner.run(&format!("select append_chunks('{m}', array['user', ' says'], 0, true)"));
    assert_eq!(owner.value::<String>(&format!("select reconstruct_message('{m}')")), "user says");
}

#[test]
fn an_owner_who_changes_the_type_of_a_column_loses_no_server() {
    let server = Server::private(oldest(), "fsync = off\n");
    let database = server.database();
    let mut faults = Vec::new();
    let cases = [
        ("messages", "client_message_id", "uuid", "gen_random_uuid()::text"),
        ("messages", "client_message_id", "bigint", "'5'"),
        ("messages", "client_message_id", "varchar(300)", "'5'"),
        ("messages", "sequence_number", "bigint", "'5'"),
        ("conversations", "session_id", "varchar(300)", "'5'"),
        ("conversations", "session_id", "uuid", "gen_random_uuid()::text"),
        ("conversations", "title", "bytea", "'5'"),
        ("conversations", "updated_at", "timestamp", "'5'"),
        ("messages", "author_id", "bigint", "'5'"),
        ("messages", "author_id", "text", "'5'"),
        ("messages", "edited_at", "bigint", "'5'"),
        ("messages", "edited_at", "text", "'5'"),
        ("messages", "parts", "bytea", "'5'"),
        ("messages", "parts", "int", "'5'"),
        ("messages", "content", "bytea", "'5'"),
        ("messages", "tenant_id", "int", "'5'"),
        ("message_revisions", "content", "bytea", "'5'"),
        ("message_revisions", "edited_by", "int", "'5'"),
        ("conversation_members", "created_at", "int", "'5'"),
        ("tenants", "features", "text", "'5'"),
        ("users", "name", "bytea", "'5'"),
    ];
    for (table, column, of, value) in cases {
        wait_until(&mut database_again(&database), "select true");
        let mut client = database_again(&database);
        client.run("set client_min_messages = warning; select uninstall(current_database()); select migrate()");
        // Whatever else holds the type goes first.
        client.run(
            "do $$ declare x record; begin \
             for x in select conrelid::regclass as t, conname from pg_constraint where contype = 'c' \
                 and connamespace = 'public'::regnamespace and conrelid <> 0 \
             loop execute format('alter table %s drop constraint %I', x.t, x.conname); end loop; \
             for x in select polrelid::regclass as t, polname from pg_policy \
             loop execute format('drop policy %I on %s', x.polname, x.t); end loop; end $$; \
             drop trigger keep_revision on messages; drop trigger touch on conversations; \
             drop trigger refuse_move on messages; \
             drop trigger refuse_move on conversations; alter table conversations alter updated_at drop default",
        );
        client.run(&format!(
            "alter table {table} alter column {column} drop not null; \
             alter table {table} alter column {column} drop default, \
             alter column {column} type {of} using null::{of}; \
             create trigger keep_revision before update of content, parts on messages for each row \
                 when (new.status = old.status) execute function keep_revision()"
        ));
        for sql in [
            "set pg_conversation.user_id = '00000000-0000-4000-8000-00000000000a'; select ensure_user()".to_string(),
            "insert into conversations (id) values ('00000000-0000-4000-8000-0000000000c1')".into(),
            format!("insert into conversations (title, session_id) values ({value}, {value})"),
            "update conversations set title = title".into(),
            format!("select add_message('00000000-0000-4000-8000-0000000000c1', 'user', 'x', {value})"),
            "insert into messages (conversation_id, role, client_message_id) \
             values ('00000000-0000-4000-8000-0000000000c1', 'user', null)".into(),
            "update messages set content = 'edited'".into(),
            "update messages set content = null, parts = null".into(),
            "update messages set parts = '[1]'".into(),
            "select edit_message(id, 'again', '[2]') from messages".into(),
            "select add_member('00000000-0000-4000-8000-0000000000c1', id) from users".into(),
            "select list_members('00000000-0000-4000-8000-0000000000c1')".into(),
            "select may_edit_messages(), storage_folder()".into(),
        ] {
            if let Err(error) = client.batch_execute(&sql)
                && let Some(fault) = fault(&error)
            {
                faults.push(format!("{table}.{column} {of}: {sql}\n    {fault}"));
                if client.is_closed() {
                    break;
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn database_again(database: &Database) -> Client {
    for _ in 0..600 {
        if let Ok(client) =
            database.server.config(&database.name, "postgres").connect(postgres::NoTls)
        {
            return client;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the server does not come back");
}
