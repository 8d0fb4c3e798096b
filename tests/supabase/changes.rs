//! What leaves the server by its log: who gets which rows, and how much of them.

use std::io::Write;

use pg_conversation_tests::{Client, Session, Uuid, bin};

use crate::rest::{Rest, Returning, service, user};
use crate::stack::Deployment;

const ALL: [&str; 5] =
    ["conversations", "messages", "message_chunks", "conversation_members", "users"];

/// wal2json is a package of its own. A run without it says so.
fn has_wal2json(deployment: &Deployment) -> bool {
    let folder = bin(deployment.server().version).join("pg_config");
    let folder = std::process::Command::new(folder).arg("--pkglibdir").output().expect("pg_config");
    let folder = String::from_utf8(folder.stdout).expect("a path");
    let there = std::path::Path::new(folder.trim()).join("wal2json.so").exists();
    if !there {
        // Past the harness, which keeps what tests that pass have printed.
        let _ = writeln!(std::io::stderr(), "NOT TESTED: no wal2json in {}", folder.trim());
    }
    there
}

/// A slot of this database, dropped before it.
struct Slot {
    client: Client,
    name: String,
}

impl Slot {
    fn new(deployment: &Deployment, plugin: &str) -> Self {
        let name = format!("{}_{plugin}", deployment.name);
        let mut client = deployment.admin();
        client.run(&format!("select pg_create_logical_replication_slot('{name}', '{plugin}')"));
        Self { client, name }
    }

    /// Decoding sees what is on disk, and tokens commit without waiting for it.
    fn flush(&mut self) {
        self.client.run("select pg_logical_emit_message(true, 'flush', '')");
    }

    /// Changes as Realtime asks for them.
    fn as_json(&mut self, tables: &str) -> Vec<String> {
        self.flush();
        self.client.values(&format!(
            "select data from pg_logical_slot_get_changes('{}', null, null,
                'include-pk', 'true', 'include-transaction', 'false', 'include-timestamp', 'true',
                'include-type-oids', 'true', 'format-version', '2',
                'actions', 'insert,update,delete', 'add-tables', '{tables}')
             where data::jsonb ->> 'action' <> 'M'",
            self.name
        ))
    }

    /// The messages of the protocol of replication: kind, relation and the rest.
    fn as_protocol(&mut self, publication: &str) -> Vec<Vec<u8>> {
        self.flush();
        self.client.values(&format!(
            "select data from pg_logical_slot_get_binary_changes('{}', null, null,
                'proto_version', '1', 'publication_names', '{publication}')",
            self.name
        ))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let sql = format!("select pg_drop_replication_slot('{}')", self.name);
        if !std::thread::panicking() {
            self.client.run(&sql);
        }
    }
}

/// A conversation with a secret in every column that a user fills, changed and then removed.
fn live(deployment: &Deployment) -> Vec<Uuid> {
    let mut rest = Rest::new(deployment);
    let (ada, bob) = (deployment.sign_up("ada"), deployment.sign_up("bob"));
    rest.rpc(&user(bob), "ensure_user", "{}").unwrap();
    let body = r#"{"title": "secret title", "session_id": "secret session"}"#;
    let made = rest.rpc(&user(ada), "create_conversation", body).unwrap();
    let c = rest.at(&made, "");
    let member = format!(r#"{{"conversation_id": "{c}", "user_id": "{bob}", "role": "viewer"}}"#);
    rest.post(&service(), "conversation_members", &member, "", Returning::Nothing).unwrap();
    let role = r#"{"role": "editor"}"#;
    let by = ("conversation_id", c.as_str());
    rest.patch(&service(), "conversation_members", role, by, Returning::Nothing).unwrap();
    let body = format!(
        r#"{{"conversation_id": "{c}", "role": "user", "content": "secret words", "client_message_id": "secret key"}}"#
    );
    rest.post(&user(ada), "messages", &body, "", Returning::Nothing).unwrap();
    let body =
        format!(r#"{{"conversation_id": "{c}", "role": "assistant", "status": "streaming"}}"#);
    let begun = rest.post(&service(), "messages", &body, "", Returning::Rows).unwrap();
    let m = rest.at(&begun, "0,id");
    let body = format!(
        r#"[{{"message_id": "{m}", "chunk_content": "secret token", "chunk_index": 0, "is_final": false}}, {{"message_id": "{m}", "chunk_content": "secret end", "chunk_index": 1, "is_final": true}}]"#
    );
    rest.post(&service(), "message_chunks", &body, "", Returning::Nothing).unwrap();
    let body = r#"{"title": "another secret"}"#;
    rest.patch(&user(ada), "conversations", body, ("id", &c), Returning::Nothing).unwrap();
    let body = r#"{"name": "secret name"}"#;
    let id = ada.to_string();
    rest.patch(&user(ada), "users", body, ("id", &id), Returning::Nothing).unwrap();
    rest.delete(&user(ada), "conversations", ("id", &c)).unwrap();
    let keys = [c, m].map(|id| id.parse().expect("an id"));
    vec![keys[0], keys[1], ada, bob]
}

/// The replica identity is the key: of a row that is gone, nothing else is told.
#[test]
fn a_deletion_carries_the_key_and_nothing_else() {
    let deployment = Deployment::new();
    let mut admin = deployment.admin();
    admin.run("create publication everything for tables in schema public");
    let mut slot = Slot::new(&deployment, "pgoutput");
    let [c, m, ada, bob] = live(&deployment)[..] else { panic!("four ids") };
    let names: Vec<(i32, String)> = admin
        .query("select oid::int, relname::text from pg_class where relnamespace = 'public'::regnamespace", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut seen = std::collections::BTreeMap::new();
    for message in slot.as_protocol("everything") {
        let kind = message[0];
        if !b"IUD".contains(&kind) {
            continue;
        }
        let relation = i32::from_be_bytes(message[1..5].try_into().unwrap());
        let table = &names.iter().find(|(oid, _)| *oid == relation).expect("a table").1;
        let text = String::from_utf8_lossy(&message).into_owned();
        *seen.entry((table.clone(), kind as char)).or_insert(0) += 1;
        if kind == b'D' {
            // K: only the key follows, other columns are sent as null.
            assert_eq!(message[5], b'K', "{table}");
            assert!(!text.contains("secret"), "{table}: {text}");
            let mut ids = vec![c, m];
            if table == "conversation_members" {
                ids.push(bob); // His own id is half of the key.
            }
            for id in [c, m, ada, bob].iter().filter(|id| !ids.contains(id)) {
                assert!(!text.contains(&id.to_string()), "{table} {id}: {text}");
            }
        }
        if kind == b'U' {
            // N: the new row, with nothing of the old one before it.
            assert_eq!(message[5], b'N', "{table}");
        }
    }
    for change in [
        ("conversations", 'I'),
        ("conversations", 'U'),
        ("conversations", 'D'),
        ("messages", 'I'),
        ("messages", 'U'),
        ("messages", 'D'),
        ("message_chunks", 'I'),
        ("message_chunks", 'D'),
        ("conversation_members", 'I'),
        ("conversation_members", 'U'),
        ("conversation_members", 'D'),
        ("users", 'I'),
        ("users", 'U'),
    ] {
        let (table, kind) = change;
        assert!(seen.contains_key(&(table.to_string(), kind)), "no {kind} of {table}: {seen:?}");
    }
    // Nobody has made it more: every table of ours tells its key.
    let told: Vec<String> = admin.values(
        "select format('%s %s', relname, relreplident) from pg_class
         where relnamespace = 'public'::regnamespace and relkind = 'r' and relreplident <> 'd'",
    );
    assert!(told.is_empty(), "{told:?}");
    let keyless: Vec<String> = admin.values(
        "select c.relname::text from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
         and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)",
    );
    assert!(keyless.is_empty(), "{keyless:?}");
}

#[test]
fn wal2json_tells_of_a_deletion_the_key_and_nothing_else() {
    let deployment = Deployment::new();
    if !has_wal2json(&deployment) {
        return;
    }
    let mut slot = Slot::new(&deployment, "wal2json");
    let [c, _, ada, bob] = live(&deployment)[..] else { panic!("four ids") };
    let tables: Vec<String> = ALL.iter().map(|table| format!("public.{table}")).collect();
    let changes = slot.as_json(&tables.join(","));
    let mut admin = deployment.admin();
    let mut deletions = 0;
    for change in &changes {
        let at = |admin: &mut Client, path: &str| -> String {
            let sql = "select coalesce($1::text::jsonb #>> string_to_array($2, ','), '')";
            admin.query_one(sql, &[change, &path]).expect("JSON").get(0)
        };
        let (action, table) = (at(&mut admin, "action"), at(&mut admin, "table"));
        if action == "I" {
            continue;
        }
        // Of a row that was there before, its key is told.
        let names: String = admin
            .query_one(
                "select string_agg(i ->> 'name', ',') from jsonb_array_elements($1::text::jsonb -> 'identity') i",
                &[change],
            )
            .unwrap()
            .get(0);
        let key = match table.as_str() {
            "message_chunks" => "message_id,chunk_index",
            "conversation_members" => "conversation_id,user_id",
            _ => "id",
        };
        assert_eq!(names, key, "{change}");
        if action == "D" {
            deletions += 1;
            assert_eq!(at(&mut admin, "columns"), "", "{change}");
            assert!(!change.contains("secret"), "{change}");
            assert!(!change.contains(&ada.to_string()), "{change}");
            assert_eq!(
                change.contains(&bob.to_string()),
                table == "conversation_members",
                "{change}"
            );
        }
    }
    // Two messages, two chunks, a member and the conversation.
    assert_eq!(deletions, 6, "{changes:?}");
    assert!(changes.iter().any(|change| change.contains(&c.to_string())));
}

/// Realtime looks each change up again, as each subscriber in turn, within one statement.
#[test]
fn a_change_reaches_those_who_may_read_the_row() {
    let deployment = Deployment::new();
    if !has_wal2json(&deployment) {
        return;
    }
    let mut admin = deployment.admin();
    deployment.postgres().run("select enable_realtime('supabase_realtime', true)");
    let mut rest = Rest::new(&deployment);
    let people = ["ada", "bob", "eve", "late", "off"].map(|name| deployment.sign_up(name));
    let [ada, bob, eve, late, off] = people;
    for id in [bob, eve, off] {
        rest.rpc(&user(id), "ensure_user", "{}").unwrap();
    }
    // Enough of them that they do not come in one batch, members and strangers in turns.
    let mut subscribe = |id: Option<Uuid>, role: &str| -> Vec<Uuid> {
        let claims = id.map_or(format!(r#"{{"role": "{role}"}}"#), |id| {
            format!(r#"{{"sub": "{id}", "role": "{role}"}}"#)
        });
        admin.values(&format!(
            "insert into realtime.subscription (entity, claims)
             select t::regclass, '{claims}' from unnest('{{public.conversations,public.messages,public.message_chunks}}'::text[]) t
             returning id"
        ))
    };
    let mut owners = Vec::new();
    let mut members = Vec::new();
    let mut colleagues = Vec::new();
    let mut everybody = Vec::new();
    for _ in 0..7 {
        for (id, group) in [
            (ada, Some(&mut owners)),
            (eve, Some(&mut colleagues)),
            (bob, Some(&mut members)),
            (late, None),
        ] {
            let made = subscribe(Some(id), "authenticated");
            everybody.extend(made.clone());
            group.into_iter().for_each(|group| group.extend(made.clone()));
        }
    }
    let keyless = subscribe(None, "authenticated");
    let services = subscribe(None, "service_role");
    let gone = subscribe(Some(off), "authenticated");
    everybody.extend([keyless, services.clone(), gone].concat());

    let made = rest.rpc(&user(ada), "create_conversation", r#"{"title": "first"}"#).unwrap();
    let c = rest.at(&made, "");
    for id in [bob, off] {
        let member = format!(r#"{{"conversation_id": "{c}", "user_id": "{id}"}}"#);
        rest.post(&service(), "conversation_members", &member, "", Returning::Nothing).unwrap();
    }
    let off = off.to_string();
    let inactive = r#"{"is_active": false}"#;
    rest.patch(&service(), "users", inactive, ("id", &off), Returning::Nothing).unwrap();

    let mut slot = Slot::new(&deployment, "wal2json");
    let title = r#"{"title": "second"}"#;
    rest.patch(&user(ada), "conversations", title, ("id", &c), Returning::Nothing).unwrap();
    let message = format!(r#"{{"conversation_id": "{c}", "role": "user", "content": "x"}}"#);
    rest.post(&user(ada), "messages", &message, "", Returning::Nothing).unwrap();
    let begun = rest.rpc(&service(), "begin_message", &format!(r#"{{"conversation_id": "{c}"}}"#));
    let m = rest.at(&begun.unwrap(), "");
    let window = format!(r#"{{"message_id": "{m}", "contents": ["one", "two"]}}"#);
    rest.rpc(&service(), "append_chunks", &window).unwrap();
    let changes = slot.as_json("public.conversations,public.messages,public.message_chunks");

    let readers = [owners.clone(), members, services.clone()].concat();
    let mut tables = Vec::new();
    for change in &changes {
        let (found, table) = told(&mut admin, change);
        let expected = of_table(&mut admin, &readers, &table);
        assert_eq!(found, expected, "{change}");
        tables.push(table);
    }
    for table in ["conversations", "messages", "message_chunks"] {
        assert!(tables.iter().any(|found| found == table), "{table} not in {tables:?}");
    }

    // All at once, as Realtime has it: every change in one statement.
    let sql =
        "select array_agg(r order by n, r) from unnest($1::text[]) with ordinality c (change, n),
               realtime.readers(c.change::jsonb) r";
    let together: Vec<Uuid> = admin.query_one(sql, &[&changes]).unwrap().get(0);
    let one_by_one: Vec<Uuid> =
        changes.iter().flat_map(|change| told(&mut admin, change).0).collect();
    assert_eq!(together, one_by_one);

    // Shown to the tenant, it is news to whoever belongs to it; then it is not any more.
    for (visibility, also) in [("tenant", colleagues), ("private", Vec::new())] {
        let body = format!(r#"{{"visibility": "{visibility}"}}"#);
        rest.patch(&user(ada), "conversations", &body, ("id", &c), Returning::Nothing).unwrap();
        let changes = slot.as_json("public.conversations,public.messages,public.message_chunks");
        assert_eq!(changes.len(), 1);
        let expected = of_table(&mut admin, &[readers.clone(), also].concat(), "conversations");
        assert_eq!(told(&mut admin, &changes[0]).0, expected, "{visibility}");
    }

    // Whoever is shut out hears nothing more, of that neither.
    let shut = format!(r#"{{"conversation_id": "{c}"}}"#);
    rest.rpc(&user(ada), "delete_conversation", &shut).unwrap();
    let changes = slot.as_json("public.conversations,public.messages,public.message_chunks");
    assert_eq!(changes.len(), 1);
    let left = of_table(&mut admin, &[owners, services].concat(), "conversations");
    assert_eq!(told(&mut admin, &changes[0]).0, left);

    // A deletion goes to every subscriber; it carries the key only, see above.
    rest.delete(&user(ada), "conversations", ("id", &c)).unwrap();
    for change in slot.as_json("public.conversations,public.messages,public.message_chunks") {
        let (found, table) = told(&mut admin, &change);
        assert_eq!(found, of_table(&mut admin, &everybody, &table), "{change}");
    }
}

/// Who hears of a change, and of which table it is.
fn told(admin: &mut Client, change: &str) -> (Vec<Uuid>, String) {
    let sql = "select coalesce(array_agg(r order by r), '{}'), $1::text::jsonb ->> 'table'
               from realtime.readers($1::text::jsonb) r";
    let row = admin.query_one(sql, &[&change]).unwrap_or_else(|error| {
        panic!("{}\n{change}", pg_conversation_tests::describe(&error));
    });
    (row.get(0), row.get(1))
}

fn of_table(admin: &mut Client, ids: &[Uuid], table: &str) -> Vec<Uuid> {
    let sql = "select coalesce(array_agg(id order by id), '{}') from realtime.subscription
               where id = any ($1) and entity = $2::text::regclass";
    admin.query_one(sql, &[&ids, &format!("public.{table}")]).unwrap().get(0)
}
