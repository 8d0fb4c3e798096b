//! The people, the places and the sessions that every test of access starts from.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use pg_conversation_tests::{Client, Database, NoTls, Server, Session, Uuid};

pub const OWNER: &str = "access_owner";
pub const MEMBER: &str = "access_member";
pub const SERVICE: &str = "access_service";

/// Login roles and the profile of each. The gate is what PostgREST connects as: it has no rights but
/// to become one of the others.
const ROLES: [(&str, &str); 5] = [
    ("access_member", "member"),
    ("access_anon", "anon"),
    ("access_service", "service"),
    ("access_syncer", "syncer"),
    ("access_monitor", "monitor"),
];
const GATE: &str = "access_gate";

/// Somebody who connects: a database role, and the user it speaks for.
#[derive(Clone, Debug)]
pub struct Person {
    /// "a editor" is the editor in tenant a; those without a user have the name of their profile.
    pub name: String,
    /// What he is to what is nobody's: a line of the matrix.
    pub kind: String,
    pub tenant: Option<Uuid>,
    pub user: Option<Uuid>,
    pub login: Option<Uuid>,
    pub role: String,
}

impl Person {
    pub fn is_foreign_to(&self, tenant: Uuid) -> bool {
        self.tenant.is_some_and(|own| own != tenant)
    }
}

/// A conversation and what hangs on it.
#[derive(Clone, Debug)]
pub struct Place {
    /// "a/private"; also its continuation_id.
    pub name: String,
    pub id: Uuid,
    pub tenant: Uuid,
    pub owner: Uuid,
    pub is_shared: bool,
    pub members: HashMap<Uuid, String>,
    /// The message of each author.
    pub messages: HashMap<Uuid, Uuid>,
    /// Users of the tenant by what they are.
    pub people: HashMap<String, Uuid>,
    pub is_deleted: bool,
    /// Whether calls are tried on it; others are there to be seen or not.
    pub is_tried: bool,
    pub stream: Uuid,
    pub ended: Uuid,
}

pub struct World {
    pub database: Database<'static>,
    pub people: Vec<Person>,
    pub places: Vec<Place>,
}

/// A copy of the world in a database of its own.
pub fn world(server: &'static Server) -> World {
    let name = template(server);
    let database = server.empty_database();
    let mut client = server.connect("postgres", "postgres");
    client.run(&format!("drop database {}", database.name));
    client.run(&format!("create database {0} template {name} owner {OWNER}", database.name));
    let mut client = database.superuser();
    World { people: people(&mut client), places: places(&mut client), database }
}

/// Makes the world once a server: by an owner who is no superuser.
fn template(server: &'static Server) -> &'static str {
    const NAME: &str = "access_world";
    static MADE: OnceLock<Mutex<Vec<u32>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().expect("the world could be made");
    if made.contains(&server.version) {
        return NAME;
    }
    for (role, _) in ROLES {
        server.role(role);
    }
    server.role(OWNER);
    server.role(GATE);
    let mut root = server.connect("postgres", "postgres");
    root.run(&format!(
        "alter role access_service bypassrls; alter role access_syncer bypassrls; \
         alter role {GATE} noinherit; \
         grant access_member, access_anon, access_service, access_syncer, access_monitor, {OWNER} \
         to {GATE}"
    ));
    root.run(&format!("drop database if exists {NAME} with (force)"));
    root.run(&format!("create database {NAME} owner {OWNER}"));
    server.connect(NAME, "postgres").run(&format!("alter schema public owner to {OWNER}"));
    let mut owner = server.connect(NAME, OWNER);
    owner.run("create extension pg_conversation");
    for (role, profile) in ROLES {
        owner.run(&format!("select grant_access('{role}', '{profile}')"));
    }
    owner.run(include_str!("world.sql"));
    owner.run("analyze");
    drop(owner);
    made.push(server.version);
    NAME
}

fn people(client: &mut Client) -> Vec<Person> {
    // Of other tenants, some speak for all.
    let sql = "select name, id, auth_id, tenant_id from users where name like 'a %' \
               or name in ('b owner', 'b editor', 'b admin', 'off owner', 'off admin') order by name";
    let rows = client.query(sql, &[]).expect("the users are there");
    let mut people: Vec<Person> = rows
        .iter()
        .map(|row| {
            let name: String = row.get(0);
            let kind = match name.split_once(' ') {
                Some(("off", _)) | None => "suspended",
                Some((_, kind)) => kind,
            };
            Person {
                kind: kind.to_string(),
                name,
                user: Some(row.get(1)),
                login: Some(row.get(2)),
                tenant: Some(row.get(3)),
                role: MEMBER.into(),
            }
        })
        .collect();
    let others = [
        ("nobody", MEMBER),
        ("anon", "access_anon"),
        ("service", SERVICE),
        ("syncer", "access_syncer"),
        ("monitor", "access_monitor"),
        ("table owner", OWNER),
    ];
    people.extend(others.map(|(name, role)| Person {
        name: name.into(),
        kind: name.into(),
        tenant: None,
        user: None,
        login: None,
        role: role.into(),
    }));
    people
}

fn places(client: &mut Client) -> Vec<Place> {
    let sql = "select id, tenant_id, user_id, visibility, continuation_id, \
               md5('stream ' || id)::uuid, md5('ended ' || id)::uuid, deleted_at is not null \
               from conversations order by continuation_id";
    let rows = client.query(sql, &[]).expect("the conversations are there");
    rows.iter()
        .map(|row| {
            let id: Uuid = row.get(0);
            let mut pairs = |sql: &str| -> Vec<(Uuid, String)> {
                let rows = client.query(sql, &[&id]).expect("its rows are there");
                rows.iter().map(|row| (row.get(0), row.get(1))).collect()
            };
            let members =
                pairs("select user_id, role from conversation_members where conversation_id = $1");
            let people = pairs(
                "select u.id, split_part(u.name, ' ', 2) from users u \
                 join conversations c using (tenant_id) where c.id = $1",
            );
            let messages = pairs(
                "select author_id, id::text from messages \
                 where conversation_id = $1 and author_id is not null",
            );
            Place {
                is_tried: [
                    "a/private",
                    "a/shared",
                    "a/left",
                    "b/private",
                    "b/shared",
                    "off/private",
                ]
                .contains(&row.get(4)),
                name: row.get(4),
                id,
                tenant: row.get(1),
                owner: row.get(2),
                is_shared: row.get::<_, String>(3) == "tenant",
                members: members.into_iter().collect(),
                messages: messages
                    .into_iter()
                    .map(|(author, id)| (author, Uuid::parse_str(&id).expect("an id")))
                    .collect(),
                people: people.into_iter().map(|(id, kind)| (kind, id)).collect(),
                is_deleted: row.get(7),
                stream: row.get(5),
                ended: row.get(6),
            }
        })
        .collect()
}

impl World {
    pub fn person(&self, name: &str) -> &Person {
        self.people.iter().find(|person| person.name == name).expect("a person of that name")
    }

    pub fn place(&self, name: &str) -> &Place {
        self.places.iter().find(|place| place.name == name).expect("a place of that name")
    }

    /// Whose secrets a person may hear: those of a tenant, none, or all.
    pub fn secrets_of(&self, person: &Person) -> Option<&'static str> {
        match (person.role.as_str(), person.name.as_str()) {
            (MEMBER, name) if name.starts_with("a ") => Some("a"),
            (MEMBER, name) if name.starts_with("b ") => Some("b"),
            (SERVICE | OWNER | "access_syncer", _) => None,
            _ => Some("none"),
        }
    }

    /// A session of the person's role with his settings.
    pub fn session(&self, name: &str) -> Client {
        let person = self.person(name);
        let mut client = self.database.connect(&person.role);
        client.run(&claims(person));
        client
    }

    /// The same, and what the server says beside its answers.
    pub fn overheard(&self, name: &str) -> (Client, Arc<Mutex<Vec<String>>>) {
        let person = self.person(name);
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let ear = heard.clone();
        let mut config = self.database.server.config(&self.database.name, &person.role);
        config.notice_callback(move |notice| {
            ear.lock().expect("nobody panics").push(notice.message().into());
        });
        let mut client = config.connect(NoTls).expect("the server takes the connection");
        client.run(&claims(person));
        (client, heard)
    }

    pub fn gate(&self) -> Client {
        self.database.connect(GATE)
    }

    /// A session that reads and writes everything, to set things up and to look at them.
    pub fn root(&self) -> Client {
        self.database.superuser()
    }

    /// What a person is to a conversation: a line of the matrix.
    pub fn relation<'a>(&self, person: &'a Person, place: &Place) -> &'a str {
        let Some(user) = person.user else { return &person.kind };
        match person.kind.as_str() {
            "inactive" | "suspended" => &person.kind,
            kind if person.is_foreign_to(place.tenant) => {
                if kind == "admin" {
                    "foreign admin"
                } else {
                    "outsider"
                }
            }
            _ if place.owner == user => "owner",
            "admin" => "admin",
            _ => match place.members.get(&user).map(String::as_str) {
                Some("owner") => "co-owner",
                Some("editor") => "editor",
                Some(_) => "viewer",
                None if place.is_shared => "audience",
                None => "colleague",
            },
        }
    }

    /// All that a person is to one conversation or another: where no conversation is meant.
    pub fn kinds<'a>(&self, person: &'a Person) -> BTreeSet<&'a str> {
        let places = self.places.iter().filter(|place| place.is_tried);
        let mut kinds: BTreeSet<&str> = places.map(|place| self.relation(person, place)).collect();
        kinds.insert(&person.kind);
        kinds
    }

    /// The same in a tenant.
    pub fn kinds_in<'a>(&self, person: &'a Person, tenant: Uuid) -> BTreeSet<&'a str> {
        let is_foreign = |kind: &&str| ["outsider", "foreign admin"].contains(kind);
        let mut kinds = self.kinds(person);
        if !["inactive", "suspended"].contains(&person.kind.as_str()) {
            kinds.retain(|kind| is_foreign(kind) == person.is_foreign_to(tenant));
        }
        kinds
    }
}

/// Lets the session speak for the person, in the way of an authentication service.
pub fn claims(person: &Person) -> String {
    match person.login {
        Some(login) => format!("set request.jwt.claims = '{{\"sub\": \"{login}\", \"aud\": [1]}}'"),
        None => "reset request.jwt.claims".into(),
    }
}

/// Becomes the person for one transaction, as PostgREST does.
pub fn impersonation(person: &Person) -> String {
    let login = person.login.map_or(String::new(), |login| login.to_string());
    format!("set local role {}; set local request.jwt.claim.sub = '{login}'", person.role)
}
