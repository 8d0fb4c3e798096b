//! Tries every cell of the matrix for real.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pg_conversation_tests::{Client, Session, Uuid};

use crate::answer::{Answer, ask};
use crate::filling::{fill, nowhere};
use crate::matrix::{Block, Matrix, WHO};
use crate::world::{Person, Place, World, impersonation};

/// How people come in.
pub enum Door {
    /// Each has a session of his own role.
    Own(HashMap<String, Client>),
    /// All share one session, which becomes each of them for a transaction.
    Gate(Box<Client>),
}

impl Door {
    fn ask(&mut self, world: &World, person: &Person, sql: &str) -> Answer {
        let (client, begin) = match self {
            Door::Own(sessions) => {
                let client = sessions
                    .entry(person.name.clone())
                    .or_insert_with(|| world.session(&person.name));
                (client, "begin".into())
            }
            Door::Gate(client) => (&mut **client, format!("begin; {}", impersonation(person))),
        };
        let answer = ask(client, &format!("{begin}; {sql}; rollback"));
        if matches!(answer, Answer::Refusal(..)) {
            client.run("rollback");
        }
        answer
    }
}

/// A row of a table, and whose it is.
struct Row {
    key: String,
    conversation: Option<Uuid>,
    tenant: Option<Uuid>,
    user: Option<Uuid>,
}

/// Tables that the matrix knows: the key of a row, and the row's conversation, tenant and user.
const TABLES: [(&str, &str, &str); 28] = [
    ("tenants", "id", "select id, null::uuid, id, null::uuid from tenants"),
    ("users", "id", "select id, null::uuid, tenant_id, id from users"),
    ("conversations", "id", "select id, id, tenant_id, user_id from conversations"),
    (
        "conversation_members",
        "conversation_id",
        "select conversation_id, conversation_id, tenant_id, user_id from conversation_members",
    ),
    ("messages", "id", "select id, conversation_id, tenant_id, author_id from messages"),
    (
        "message_chunks",
        "message_id",
        "select message_id, conversation_id, tenant_id, author_id \
         from message_chunks join messages on id = message_id",
    ),
    (
        "message_revisions",
        "message_id",
        "select message_id, conversation_id, m.tenant_id, author_id \
         from message_revisions join messages m on id = message_id",
    ),
    ("feedback", "id", "select id, conversation_id, tenant_id, user_id from feedback"),
    (
        "feedback_counts",
        "message_id",
        "select message_id, conversation_id, tenant_id, null::uuid from feedback_counts",
    ),
    (
        "message_feedback_summary",
        "message_id",
        "select message_id, null::uuid, null::uuid, null::uuid from message_feedback_summary",
    ),
    (
        "usage_events",
        "idempotency_key",
        "select idempotency_key, null::uuid, tenant_id, user_id from usage_events",
    ),
    (
        "usage_days",
        "concat(tenant_id, '/', user_id)",
        "select concat(tenant_id, '/', user_id), null::uuid, tenant_id, user_id from usage_days",
    ),
    (
        "usage_totals",
        "tenant_id",
        "select tenant_id, null::uuid, tenant_id, null::uuid from usage_totals",
    ),
    (
        "usage_months",
        "tenant_id",
        "select tenant_id, null::uuid, tenant_id, null::uuid from usage_months",
    ),
    ("model_prices", "id", "select id, null::uuid, null::uuid, null::uuid from model_prices"),
    (
        "usage_metrics",
        "concat(tenant_id, '/', user_id)",
        "select concat(tenant_id, '/', user_id), null::uuid, tenant_id, user_id from usage_metrics",
    ),
    (
        "usage_by_month",
        "tenant_id",
        "select tenant_id, null::uuid, tenant_id, null::uuid from usage_by_month",
    ),
    (
        "current_day_usage",
        "concat(tenant_id, '/', user_id)",
        "select concat(tenant_id, '/', user_id), null::uuid, tenant_id, user_id from current_day_usage",
    ),
    (
        "monthly_usage_summary",
        "concat(tenant_id, '/', user_id)",
        "select concat(tenant_id, '/', user_id), null::uuid, null::uuid, null::uuid \
         from monthly_usage_summary",
    ),
    (
        "rate_states",
        "tenant_id",
        "select tenant_id, null::uuid, tenant_id, null::uuid from rate_states",
    ),
    (
        "token_windows",
        "tenant_id",
        "select tenant_id, null::uuid, tenant_id, null::uuid from token_windows",
    ),
    (
        "token_reservations",
        "id",
        "select id, null::uuid, tenant_id, user_id from token_reservations",
    ),
    (
        "maintenance_runs",
        "job",
        "select job, null::uuid, null::uuid, null::uuid from maintenance_runs",
    ),
    (
        "stats",
        "max_connections",
        "select max_connections, null::uuid, null::uuid, null::uuid from stats",
    ),
    (
        "stats_tables",
        "table_name",
        "select table_name, null::uuid, null::uuid, null::uuid from stats_tables",
    ),
    (
        "stats_indexes",
        "index_name",
        "select index_name, null::uuid, null::uuid, null::uuid from stats_indexes",
    ),
    (
        "schema_version",
        "version",
        "select version, null::uuid, null::uuid, null::uuid from schema_version",
    ),
    (
        "access_profiles",
        "role_name",
        "select role_name, null::uuid, null::uuid, null::uuid from access_profiles",
    ),
];

pub struct Trial<'a> {
    matrix: &'a Matrix,
    world: &'a World,
    door: Door,
    /// Cells that were tried, and what is wrong with some.
    tried: BTreeSet<(String, String, String)>,
    wrong: BTreeMap<String, String>,
}

impl<'a> Trial<'a> {
    pub fn new(matrix: &'a Matrix, world: &'a World, door: Door) -> Self {
        Self { matrix, world, door, tried: BTreeSet::new(), wrong: BTreeMap::new() }
    }

    fn compare(&mut self, block: &Block, who: &str, column: &str, found: &str, about: &str) {
        self.tried.insert((block.title.clone(), who.into(), column.into()));
        let expected = block.cell(who, column);
        let is_code = found != "yes" && found != "-";
        if found != expected && expected != "." && !(expected == "error" && is_code) {
            let cell = format!("{} | {who} | {column}: {expected}", block.title);
            self.wrong.entry(cell).or_insert_with(|| format!("found {found}: {about}"));
        }
    }

    fn ask(&mut self, person: &Person, sql: &str) -> Answer {
        let answer = self.door.ask(self.world, person, sql);
        // Whatever else it says, it says nothing of another tenant.
        if let Some(own) = self.world.secrets_of(person) {
            let text = answer.text();
            for (at, _) in text.match_indices("secret-") {
                if !text[at + 7..].starts_with(own) {
                    let words = format!("{}: {sql}", person.name);
                    self.wrong.insert(words, format!("tells a secret: {text:.300}"));
                    break;
                }
            }
        }
        answer
    }

    /// A statement that names something in a place, tried by everybody in every place.
    fn in_places(&mut self, block: &Block, column: &str, sql: &str, writes: bool) {
        let world = self.world;
        for person in &world.people {
            for place in world.places.iter().filter(|place| place.is_tried) {
                let who = world.relation(person, place);
                let real = fill(sql, person, place);
                let answer = self.ask(person, &real);
                let about = format!("{} in {}: {real}: {}", person.name, place.name, answer.text());
                let cell = answer.cell(writes);
                self.compare(block, who, column, &cell, &about);
                let is_stranger = match who {
                    "outsider" | "foreign admin" | "inactive" | "suspended" | "nobody" | "anon" => {
                        true
                    }
                    // Names are taken for the whole tenant, and everybody knows his own.
                    "colleague" => cell != "23505" && !sql.contains("$tenant"),
                    _ => false,
                };
                if is_stranger {
                    let nowhere = nowhere(place);
                    let none = self.ask(person, &fill(sql, person, &nowhere));
                    let words = |answer: &Answer, place: &Place| {
                        answer.blanked().replace(&place.name, "NAME")
                    };
                    if words(&none, &nowhere) != words(&answer, place) {
                        let words = format!("{about}, and {} where there is none", none.text());
                        let cell = format!("{} | {who} | {column}", block.title);
                        self.wrong.entry(cell).or_insert(words);
                    }
                }
            }
        }
    }

    /// A statement about all rows of a table: each row is a cell of one of the blocks.
    fn on_rows(&mut self, blocks: &[&Block], column: &str, sql: &str, key: &str, rows: &[Row]) {
        let world = self.world;
        let reads = column == "select" || column == "for update";
        let returning = if reads { sql.to_string() } else { format!("{sql} returning {key}") };
        for person in &world.people {
            let answer = self.ask(person, &returning);
            let about = format!("{}: {returning}: {:.300}", person.name, answer.text());
            if !reads && self.ask(person, sql).cell(true) != answer.cell(true) {
                let words = "does something else without RETURNING".to_string();
                self.wrong.entry(format!("{}: {sql}", person.name)).or_insert(words);
            }
            let reached: Vec<&str> = match &answer {
                Answer::Rows(rows, _) => {
                    rows.iter().filter_map(|row| row.first()?.as_deref()).collect()
                }
                Answer::Refusal(..) => Vec::new(),
            };
            for row in rows {
                let found = match &answer {
                    Answer::Refusal(code, _) => code,
                    Answer::Rows(..) if reached.contains(&row.key.as_str()) => "yes",
                    Answer::Rows(..) => "-",
                };
                let place = world.places.iter().find(|place| Some(place.id) == row.conversation);
                let is_deleted = place.is_some_and(|place| place.is_deleted);
                let is_own = row.user.is_some() && row.user == person.user;
                let block = blocks.iter().find(|block| match block.title.split_once(": ") {
                    Some((_, "own, deleted")) => is_own && is_deleted,
                    Some((_, "deleted")) => is_deleted,
                    Some((_, "own")) => is_own && !is_deleted,
                    _ => !is_deleted,
                });
                let block = block.unwrap_or_else(|| panic!("no block for a row of {}", row.key));
                let who = match (place, row.tenant) {
                    (Some(place), _) => BTreeSet::from([world.relation(person, place)]),
                    (None, Some(tenant)) => world.kinds_in(person, tenant),
                    (None, None) => world.kinds(person),
                };
                for who in who {
                    self.compare(block, who, column, found, &about);
                }
            }
        }
    }

    /// All blocks of one table.
    pub fn table(&mut self, name: &str) {
        let blocks: Vec<&'a Block> =
            self.matrix.tables.iter().filter(|block| block.table() == name).collect();
        let (_, key, owners) =
            TABLES.iter().find(|(table, ..)| *table == name).expect("a table that is known");
        let mut root = self.world.root();
        let sql = format!("select key::text, c, t, u from ({owners}) _ (key, c, t, u)");
        let rows: Vec<Row> = root
            .query(&sql, &[])
            .expect("all rows")
            .iter()
            .map(|row| Row {
                key: row.get(0),
                conversation: row.get(1),
                tenant: row.get(2),
                user: row.get(3),
            })
            .collect();
        let all_keys: String = root.value(&format!(
            "select coalesce(string_agg(quote_ident(attname), ', ' order by array_position(conkey, attnum)), '') \
             from pg_constraint join pg_attribute on attrelid = conrelid and attnum = any (conkey) \
             where contype = 'p' and conrelid = '{name}'::regclass"
        ));
        let typed: String = root.value(&format!(
            "select coalesce(string_agg(quote_ident(attname) || ' ' || atttypid::regtype, ', '), '') \
             from pg_constraint join pg_attribute on attrelid = conrelid and attnum = any (conkey) \
             where contype = 'p' and conrelid = '{name}'::regclass"
        ));
        let mut columns: Vec<String> = Vec::new();
        for column in blocks.iter().flat_map(|block| &block.columns) {
            if !columns.contains(column) {
                columns.push(column.clone());
            }
        }
        for column in columns {
            let block = blocks.iter().find(|block| block.columns.contains(&column));
            let block = block.expect("the block of the column");
            let sql = self
                .matrix
                .verb(block, &column)
                .replace("$columns", &typed)
                .replace("$keys", &all_keys)
                .replace("$key", key);
            match column.as_str() {
                "select" | "for update" | "update" | "delete" => {
                    self.on_rows(&blocks, &column, &sql, key, &rows);
                }
                _ if sql.contains('$') => self.in_places(block, &column, &sql, true),
                _ => self.as_a_whole(&blocks, &column, &sql),
            }
        }
    }

    /// A statement about the table itself, or about nothing at all: the same whatever somebody is.
    fn as_a_whole(&mut self, blocks: &[&Block], column: &str, sql: &str) {
        let world = self.world;
        for person in &world.people {
            let kinds = world.kinds(person);
            let answer = self.ask(person, sql);
            let cell = match &answer {
                Answer::Rows(..) if !sql.starts_with("select") => "yes".into(),
                answer => answer.cell(false),
            };
            let about = format!("{}: {sql}: {:.300}", person.name, answer.text());
            for block in blocks.iter().filter(|block| block.columns.contains(&column.to_string())) {
                for who in &kinds {
                    self.compare(block, who, column, &cell, &about);
                }
            }
        }
    }

    /// All functions of a block.
    pub fn functions(&mut self, block: &Block) {
        for (column, sql) in &block.statements {
            if sql.contains('$') {
                self.in_places(block, column, sql, !sql.starts_with("select"));
            } else {
                self.as_a_whole(&[block], column, sql);
            }
        }
    }

    /// Every cell that is wrong, or that nobody tried.
    pub fn verdict(self, blocks: &[&Block]) -> String {
        let absent = WHO.into_iter().filter(|who| {
            let stands = |person: &Person| self.world.kinds(person).contains(who);
            !self.world.people.iter().any(stands)
        });
        let absent: Vec<&str> = absent.collect();

        let mut wrong: Vec<String> =
            self.wrong.iter().map(|(cell, words)| format!("{cell}\n    {words}")).collect();
        for block in blocks {
            for (who, _) in block.lines.iter().filter(|(who, _)| !absent.contains(&who.as_str())) {
                for column in &block.columns {
                    let cell = (block.title.clone(), who.clone(), column.clone());
                    if !self.tried.contains(&cell) && block.cell(who, column) != "." {
                        wrong.push(format!("{} | {who} | {column}: never tried", block.title));
                    }
                }
            }
        }
        wrong.iter().map(|words| format!("\n{words}")).collect()
    }
}
