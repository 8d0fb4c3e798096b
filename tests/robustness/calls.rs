//! Every function, with every kind of value, by everybody.

use std::collections::BTreeMap;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, describe, oldest};

use crate::{SERVICE, attempt, fault, grant_service};

pub struct Function {
    pub name: String,
    pub types: Vec<String>,
    /// Names of the arguments.
    names: Vec<String>,
    pub returns: String,
    pub language: String,
}

/// Rows that exist, for arguments that name some.
#[derive(Clone, Copy)]
pub struct Ids {
    pub tenant: Uuid,
    pub conversation: Uuid,
    pub user: Uuid,
    /// A stream with one chunk, "user".
    pub message: Uuid,
}

impl Function {
    pub fn call(&self, args: &[String]) -> String {
        let from = if self.returns == "trigger" { "select" } else { "select * from" };
        format!("{from} {}({})", self.name, args.join(", "))
    }

    /// Values to try for each argument; the first is an ordinary one.
    pub fn choices(&self, ids: &Ids) -> Vec<Vec<String>> {
        let of = |(of, name): (&String, &String)| {
            let mut values = values(of, ids);
            match name.as_str() {
                "message_id" | "msg_id" => values.insert(0, format!("'{}'::uuid", ids.message)),
                "tenant_id" | "p_tenant_id" => values.insert(0, format!("'{}'::uuid", ids.tenant)),
                "user_id" | "p_user_id" if self.name.contains("usage") => {
                    values.insert(0, format!("'{}'::uuid", ids.user));
                }
                "usage" => values.insert(0, "'{\"prompt_tokens\": 1}'::jsonb".into()),
                "idempotency_key" | "key" => values.insert(0, "'a key'::text".into()),
                _ => (),
            }
            values
        };
        self.types.iter().zip(&self.names).map(of).collect()
    }
}

/// The members of the extension, as the catalog lists them.
pub fn functions(client: &mut Client) -> Vec<Function> {
    let rows = client
        .query(
            "select p.oid::regproc::text, \
                    array(select format_type(t, null) from unnest(p.proargtypes) with ordinality u (t, n) order by n), \
                    array(select coalesce(p.proargnames[n], '') from generate_series(1, p.pronargs) n), \
                    format_type(p.prorettype, null), l.lanname::text \
             from pg_proc p join pg_language l on l.oid = p.prolang join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid \
             join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_conversation' \
             where d.deptype = 'e' and d.refclassid = 'pg_extension'::regclass order by p.oid",
            &[],
        )
        .expect("the catalog is read");
    rows.iter()
        .map(|row| Function {
            name: row.get(0),
            types: row.get(1),
            names: row.get(2),
            returns: row.get(3),
            language: row.get(4),
        })
        .collect()
}

/// Values of a type; the first is an ordinary one.
fn values(of: &str, ids: &Ids) -> Vec<String> {
    let with_cast = |list: &[&str]| list.iter().map(|value| format!("{value}::{of}")).collect();
    match of {
        "uuid" => vec![
            format!("'{}'::uuid", ids.conversation),
            format!("'{}'::uuid", ids.user),
            "'00000000-0000-0000-0000-000000000000'::uuid".into(),
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid".into(),
        ],
        "text" => with_cast(&[
            "'user'",
            "''",
            "'read'",
            "'member'",
            "'conc_stranger'",
            "current_database()",
            "repeat('x', 1048576)",
            "(select string_agg(md5(n::text), '') from generate_series(1, 3000) n)",
            "'it''s \"a\" \\ $$ %s %I \u{fffd} \u{1f600}'",
            "E'\\x01\\n\\t'",
        ]),
        "integer" => with_cast(&["1", "0", "(-1)", "2147483647", "(-2147483648)"]),
        "bigint" => with_cast(&["1", "0", "(-1)", "9223372036854775807"]),
        "numeric" => with_cast(&["1", "0", "(-1)", "1e1000", "'NaN'", "'infinity'", "1e-300"]),
        "date" => with_cast(&["'2025-01-01'", "'infinity'", "'-infinity'", "'4713-01-01 BC'"]),
        "boolean" => with_cast(&["true", "false"]),
        "jsonb" => with_cast(&[
            "'{}'",
            "'[]'",
            "'null'",
            "'1e300'",
            "'\"text\"'",
            "(repeat('[', 4000) || repeat(']', 4000))",
            "('{\"a\": \"' || repeat('x', 1048576) || '\"}')",
        ]),
        "timestamp with time zone" => {
            with_cast(&["pg_catalog.now()", "'infinity'", "'-infinity'", "'4713-01-01 BC'"])
        }
        "text[]" => with_cast(&[
            "array['user', 'member']",
            "'{}'",
            "array[null]",
            "array['user', null]",
            "'[-5:-4]={user,member}'",
            "array[['user', 'member'], ['a', 'b']]",
            "array_fill(''::text, array[20000])",
            "array[repeat('x', 1048576), (select string_agg(md5(n::text), '') from generate_series(1, 3000) n)]",
            "string_to_array(repeat('x,', 3000), ',')",
        ]),
        "interval" => with_cast(&[
            "'1 day'",
            "'0'",
            "'-1 day'",
            "'1 mon -30 days'",
            "'178000000 years'",
            "'-178000000 years'",
        ]),
        // Nobody can make a value of it, but a null can be named.
        "internal" => vec!["null".into()],
        other => panic!("a function takes {other}: say here which values to try"),
    }
}

fn null(of: &str) -> String {
    if of == "internal" { "null".into() } else { format!("null::{of}") }
}

/// Somebody who calls: the role and what it says of itself.
pub struct Caller {
    pub name: &'static str,
    pub role: &'static str,
    pub settings: String,
}

pub fn callers(user: Uuid) -> Vec<Caller> {
    let caller = |name, role, settings| Caller { name, role, settings };
    vec![
        caller("owner", "postgres", String::new()),
        caller(
            "owner who speaks for a user",
            "postgres",
            format!("set pg_conversation.user_id = '{user}'"),
        ),
        caller("member", "member", format!("set pg_conversation.user_id = '{user}'")),
        caller("stranger", "member", format!("set pg_conversation.user_id = '{}'", Uuid::new_v4())),
        caller("member without identity", "member", String::new()),
        caller("role without grants", "conc_stranger", String::new()),
        caller("service", SERVICE, String::new()),
    ]
}

pub fn set_up(database: &Database) -> Ids {
    database.server.role("conc_stranger");
    grant_service(database);
    make_rows(&mut database.member(Uuid::new_v4()))
}

/// A session that speaks for a user makes rows of his.
pub fn make_rows(client: &mut Client) -> Ids {
    let user = client.value("select ensure_user()");
    let tenant = client.value("select tenant_id from users where id = current_user_id()");
    let conversation = client.value("select create_conversation('talk')");
    client.run(&format!("select add_message('{conversation}', 'user', 'hello', 'user')"));
    let message = client.value(&format!("select begin_message('{conversation}')"));
    client.run(&format!("select append_chunk('{message}', 'user')"));
    Ids { tenant, conversation, user, message }
}

#[test]
fn no_value_of_any_argument_brings_more_than_an_error_with_code_and_hint() {
    let database = Server::shared(oldest()).database();
    let ids = set_up(&database);
    let functions = functions(&mut database.superuser());
    assert!(functions.len() > 35);
    let mut faults = Vec::new();
    let (mut calls, mut codes) = (0, BTreeMap::<String, u32>::new());
    for caller in callers(ids.user) {
        let connect = || {
            let mut client = database.connect(caller.role);
            client.run(&caller.settings);
            // No value makes a call wait for what will not come.
            client.run("set statement_timeout = '20 s'; begin");
            client
        };
        let mut client = connect();
        for function in &functions {
            let choices = function.choices(&ids);
            let ordinary: Vec<_> = choices.iter().map(|values| values[0].clone()).collect();
            let nulls: Vec<_> = function.types.iter().map(|of| null(of)).collect();
            let mut tries = vec![function.call(&ordinary), function.call(&nulls)];
            for (n, values) in choices.iter().enumerate() {
                // Beside ordinary values, and beside nulls, for an odd one may end the call early.
                for base in [&ordinary, &nulls] {
                    for value in values.iter().chain([&nulls[n]]) {
                        let mut args = base.clone();
                        args[n] = value.clone();
                        tries.push(function.call(&args));
                    }
                }
            }
            for sql in tries {
                calls += 1;
                if let Err(error) = attempt(&mut client, &sql) {
                    let code = error.code().map_or("none", |code| code.code());
                    *codes.entry(format!("{} {code}", caller.name)).or_default() += 1;
                    let late = (code == "57014").then(|| "took too long".to_string());
                    if let Some(fault) = fault(&error).or(late) {
                        faults.push(format!("{}: {sql:.300}\n    {fault:.600}", caller.name));
                    }
                    if error.as_db_error().is_none() || client.is_closed() {
                        client = connect();
                    }
                }
            }
        }
        client.run("rollback; select 1");
    }
    println!("{} functions, {calls} calls, errors {codes:?}", functions.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn trigger_functions_refuse_to_be_called() {
    let database = Server::shared(oldest()).database();
    for role in ["postgres", "member"] {
        let mut client = database.connect(role);
        for function in functions(&mut database.superuser()) {
            if function.returns == "trigger" {
                let (code, message) = client.error(&function.call(&[]));
                assert!(["39P01", "0A000"].contains(&code.as_str()), "{code} {message}");
            }
        }
    }
}

#[test]
fn functions_say_what_to_do_without_their_tables_and_on_those_of_an_older_version() {
    let database = Server::shared(oldest()).empty_database();
    let mut owner = database.superuser();
    owner.run("create extension pg_conversation; set client_min_messages = warning");
    let latest: i32 = owner.value("select max(version) from schema_version");
    let user = Uuid::new_v4();
    owner.run(&format!("set pg_conversation.user_id = '{user}'"));
    let ids = make_rows(&mut owner);
    let functions = functions(&mut database.superuser());
    let (mut wrong, mut told) = (Vec::new(), BTreeMap::<i32, Vec<&str>>::new());
    for version in (0..latest).rev() {
        // What was not there yet is not there; what was, with its rows.
        owner.run(&format!("select rollback_to({version}, force => true)"));
        let mut owner = database.superuser();
        owner.run(&format!(
            "set client_min_messages = warning; set pg_conversation.user_id = '{user}'; begin"
        ));
        for function in &functions {
            let args: Vec<_> = function
                .choices(&ids)
                .into_iter()
                .map(|mut values| values.swap_remove(0))
                .collect();
            let Err(error) = attempt(&mut owner, &function.call(&args)) else { continue };
            let code = error.code().map_or("", |code| code.code());
            // Triggers, arguments, and what some functions need beside our tables.
            let other = ["39P01", "0A000", "22023", "23514", "3F000", "42501", "42883", "42704"];
            let has_hint = error
                .as_db_error()
                .and_then(|db| db.hint())
                .is_some_and(|hint| hint.contains("migrate()"));
            // Of rows that are there, what holds in every version.
            let of_rows = version > 2 && ["23505", "24000", "P0002"].contains(&code);
            let missing = code == "55000" && has_hint;
            // Functions in SQL cannot say more than that their table or column is not there, nor can what
            // calls nothing else.
            let is_test_data = function.name.ends_with("test_data");
            let plain =
                ["42P01", "42703"].contains(&code) && (function.language != "c" || is_test_data);
            // In this database there is other data.
            let plain = plain || code == "55000" && is_test_data;
            if missing {
                told.entry(version).or_default().push(&function.name);
            }
            if fault(&error).is_some() || !(missing || plain || of_rows || other.contains(&code)) {
                wrong.push(format!("{version}: {}: {}", function.name, describe(&error)));
            }
        }
    }
    println!("{told:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (version, function) in [
        (0, "ensure_user"),
        (2, "list_members"),
        (4, "append_chunk"),
        (5, "add_message"),
        (6, "note_access"),
    ] {
        assert!(told[&version].contains(&function), "{version}: {function}");
    }
    assert!(!told[&6].contains(&"add_message"));
}

#[test]
fn a_database_of_another_encoding_works_or_is_refused_in_clear_words() {
    let server = Server::shared(oldest());
    server.role("member");
    let mut admin = server.connect("postgres", "postgres");
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("enc_{}_{}", encoding.to_lowercase(), std::process::id());
        admin.run(&format!(
            "create database {name} encoding '{encoding}' \
             lc_collate 'C' lc_ctype 'C' template template0"
        ));
        let mut client = server.connect(&name, "postgres");
        let user = Uuid::new_v4();
        match client.batch_execute("create extension pg_conversation") {
            Err(error) => assert_eq!(fault(&error), None),
            Ok(()) => {
                client.run(&format!("set pg_conversation.user_id = '{user}'"));
                let conversation: Uuid = client.value("select create_conversation('plain')");
                let mut faults = Vec::new();
                for sql in [
                    "select create_conversation('é')".to_string(),
                    "select create_conversation('x', session_id => 'é')".into(),
                    "select create_conversation('x', visibility => 'é')".into(),
                    "select get_or_create_conversation('é')".into(),
                    format!("select add_message('{conversation}', 'user', 'é')"),
                    format!("select add_message('{conversation}', 'user', 'é', 'é')"),
                    format!("select add_message('{conversation}', 'user', 'ü', 'é')"),
                    format!("select add_message('{conversation}', 'é', 'é')"),
                    format!("select has_conversation_access('{conversation}', '{user}', 'é')"),
                    "select uninstall('é')".into(),
                    "select grant_access('é', 'é')".into(),
                    "set request.jwt.claims = '{\"sub\": \"é\"}'; select * from messages".into(),
                ] {
                    if let Err(error) = client.batch_execute(&sql)
                        && let Some(fault) = fault(&error)
                    {
                        faults.push(format!("{encoding}: {sql}: {fault}"));
                    }
                }
                assert!(faults.is_empty(), "{faults:#?}");
            }
        }
        drop(client);
        admin.run(&format!("drop database {name} with (force)"));
    }
}
