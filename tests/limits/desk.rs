//! What these tests share: a tenant with one user and one conversation, and the calls by name.

use std::sync::Mutex;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest};
use postgres::{Error, Row};

pub const SERVICE: &str = "limits_service";

pub struct Desk<'a> {
    pub database: Database<'a>,
    pub user: Uuid,
    pub tenant: Uuid,
    pub conversation: Uuid,
}

impl Desk<'static> {
    pub fn new() -> Self {
        Desk::on(Server::shared(oldest()))
    }
}

impl<'a> Desk<'a> {
    pub fn on(server: &'a Server) -> Self {
        let database = server.database();
        let user = Uuid::new_v4();
        let mut member = database.member(user);
        let conversation = member.value("select create_conversation('talk')");
        let tenant = member.value("select current_tenant_id()");
        Self { database, user, tenant, conversation }
    }

    pub fn member(&self) -> Client {
        self.database.member(self.user)
    }

    /// A session of a role of the profile `service`, which speaks for nobody.
    pub fn service(&self) -> Client {
        // Roles belong to all databases, and two sessions may not alter one at once.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.database.server.role(SERVICE);
        self.database.superuser().run(&format!(
            "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
        ));
        drop(guard);
        self.database.connect(SERVICE)
    }

    pub fn limit(&self, what: &str, value: &str) {
        self.database.superuser().run(&format!("update tenants set {what} = {value}"));
    }

    pub fn requests(&self, a_minute: &str) {
        self.limit("rate_limit_per_minute", a_minute);
    }

    pub fn tokens(&self, a_day: &str) {
        self.limit("daily_token_limit", a_day);
    }

    /// Another tenant with a user.
    pub fn stranger(&self) -> (Uuid, Uuid) {
        let (tenant, user) = (Uuid::new_v4(), Uuid::new_v4());
        self.database.superuser().run(&format!(
            "insert into tenants (id, name, slug) values ('{tenant}', 'Other', '{tenant}'); \
             insert into users (id, tenant_id) values ('{user}', '{tenant}')"
        ));
        (tenant, user)
    }
}

/// What check_rate_limit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    pub allowed: bool,
    pub remaining: Option<i32>,
    pub retry_after: Option<i32>,
}

pub const NOBODY: Drawn = Drawn { allowed: false, remaining: Some(0), retry_after: None };
pub const UNLIMITED: Drawn = Drawn { allowed: true, remaining: None, retry_after: None };

/// What reserve_tokens answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    pub allowed: bool,
    pub remaining: Option<i64>,
    pub retry_after: Option<i32>,
    pub id: Option<Uuid>,
}

pub trait Limits {
    fn draw(&mut self, cost: i32) -> Result<Drawn, Error>;
    fn draw_of(&mut self, tenant: Uuid, cost: i32) -> Result<Drawn, Error>;
    fn reserve(&mut self, tenant: Uuid, tokens: i64) -> Result<Reserved, Error>;
    fn reserve_for(&mut self, tenant: Uuid, tokens: i64, ttl: &str) -> Result<Reserved, Error>;
    fn settle(&mut self, id: Uuid, tokens: i64) -> Result<(bool, Option<i64>), Error>;
    fn release(&mut self, id: Uuid) -> Result<bool, Error>;
    fn begin(&mut self, conversation: Uuid, tokens: i64) -> Result<Uuid, Error>;
    fn begin_once(&mut self, conversation: Uuid, key: &str, tokens: i64) -> Result<Uuid, Error>;
}

impl Limits for Client {
    fn draw(&mut self, cost: i32) -> Result<Drawn, Error> {
        self.query_one("select * from check_rate_limit($1)", &[&cost]).map(drawn)
    }

    fn draw_of(&mut self, tenant: Uuid, cost: i32) -> Result<Drawn, Error> {
        self.query_one("select * from check_rate_limit($1, $2)", &[&cost, &tenant]).map(drawn)
    }

    fn reserve(&mut self, tenant: Uuid, tokens: i64) -> Result<Reserved, Error> {
        self.reserve_for(tenant, tokens, "10 min")
    }

    fn reserve_for(&mut self, tenant: Uuid, tokens: i64, ttl: &str) -> Result<Reserved, Error> {
        let sql = "select * from reserve_tokens($1, $2::text::interval, $3)";
        self.query_one(sql, &[&tokens, &ttl, &tenant]).map(|row| Reserved {
            allowed: row.get(0),
            remaining: row.get(1),
            retry_after: row.get(2),
            id: row.get(3),
        })
    }

    fn settle(&mut self, id: Uuid, tokens: i64) -> Result<(bool, Option<i64>), Error> {
        self.query_one("select * from settle_tokens($1, $2)", &[&id, &tokens])
            .map(|row| (row.get(0), row.get(1)))
    }

    fn release(&mut self, id: Uuid) -> Result<bool, Error> {
        self.query_one("select release_tokens($1)", &[&id]).map(|row| row.get(0))
    }

    fn begin(&mut self, conversation: Uuid, tokens: i64) -> Result<Uuid, Error> {
        self.query_one("select begin_message($1, reserve_tokens => $2)", &[&conversation, &tokens])
            .map(|row| row.get(0))
    }

    fn begin_once(&mut self, conversation: Uuid, key: &str, tokens: i64) -> Result<Uuid, Error> {
        let sql = "select begin_message($1, client_message_id => $2, reserve_tokens => $3)";
        self.query_one(sql, &[&conversation, &key, &tokens]).map(|row| row.get(0))
    }
}

fn drawn(row: Row) -> Drawn {
    Drawn { allowed: row.get(0), remaining: row.get(1), retry_after: row.get(2) }
}

pub fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.expect_err("it is refused");
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_string())
}

/// What of a tenant's day is used, and how much is reserved beside it.
pub const TAKEN: &str = "select (select coalesce(sum(used), 0) from token_windows)::bigint, \
    (select coalesce(sum(tokens), 0) from token_reservations where closed_at is null)::bigint";

pub fn taken(client: &mut Client) -> (i64, i64) {
    let row = client.query_one(TAKEN, &[]).expect("the sums are read");
    (row.get(0), row.get(1))
}
