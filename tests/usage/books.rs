//! What the tests of usage share: tenants with users and prices, the calls by name, and the sums.

use std::sync::Mutex;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest};
use postgres::{Error, Row};

const SERVICE: &str = "usage_service";

/// A database with tenants of three users each, and a price list.
pub struct Books<'a> {
    pub database: Database<'a>,
    pub tenants: Vec<Tenant>,
}

pub struct Tenant {
    pub id: Uuid,
    pub users: Vec<Uuid>,
}

const PRICES: &str = "insert into model_prices (pattern, usage_type, unit_price) values \
    ('gpt-4%', 'prompt_tokens', 0.00001), ('gpt-4%', 'completion_tokens', 0.00003), \
    ('gpt-4o-mini%', 'prompt_tokens', 0.000001), ('gpt-4o-mini%', 'completion_tokens', 0.000002), \
    ('%', 'images', 0.04)";

impl Books<'static> {
    pub fn new() -> Self {
        Books::on(Server::shared(oldest()))
    }
}

impl<'a> Books<'a> {
    pub fn on(server: &'a Server) -> Self {
        let database = server.database();
        let mut owner = database.superuser();
        // Roles belong to all databases, and two sessions may not alter one at once.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        server.role(SERVICE);
        owner.run(&format!(
            "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
        ));
        drop(guard);
        owner.run(PRICES);
        let tenants = (0..3)
            .map(|n| {
                let id = Uuid::new_v4();
                owner.run(&format!(
                    "insert into tenants (id, name, slug) values ('{id}', 't{n}', 't{n}')"
                ));
                let users: Vec<Uuid> = (0..3).map(|_| Uuid::new_v4()).collect();
                for user in &users {
                    owner.run(&format!(
                        "insert into users (id, tenant_id) values ('{user}', '{id}')"
                    ));
                }
                Tenant { id, users }
            })
            .collect();
        Self { database, tenants }
    }

    pub fn tenant(&self) -> Uuid {
        self.tenants[0].id
    }

    pub fn user(&self) -> Uuid {
        self.tenants[0].users[0]
    }

    pub fn service(&self) -> Client {
        self.database.connect(SERVICE)
    }

    /// All that is said about usage says the same.
    pub fn agree(&self) {
        let mut owner = self.database.superuser();
        for tenant in &self.tenants {
            let drift: Vec<String> = owner.values(&format!(
                "select v::text from verify_usage('{}', '-infinity', 'infinity') v",
                tenant.id
            ));
            assert!(drift.is_empty(), "verify_usage: {drift:#?}");
        }
        owner.run("refresh materialized view monthly_usage_summary");
        let differences: Vec<String> = owner.values(SUMS);
        assert!(differences.is_empty(), "{differences:#?}");
    }
}

/// Each sum in its own words, compared with the ledger's.
const SUMS: &str = "\
    with months as ( \
        select tenant_id, date_trunc('month', date::timestamp)::date as month, \
            sum(prompt_tokens) p, sum(completion_tokens) c, sum(request_count) r, sum(cost) m \
        from usage_events group by 1, 2), \
    found as ( \
        select 'totals' as source, tenant_id, date_trunc('month', date::timestamp)::date as month, \
            sum(prompt_tokens) p, sum(completion_tokens) c, sum(request_count) r, sum(cost) m \
        from usage_totals group by 2, 3 union all \
        select 'days', tenant_id, date_trunc('month', date::timestamp)::date, \
            sum(prompt_tokens), sum(completion_tokens), sum(request_count), sum(cost) \
        from usage_days group by 2, 3 union all \
        select 'usage_metrics', tenant_id, date_trunc('month', date::timestamp)::date, \
            sum(prompt_tokens), sum(completion_tokens), sum(request_count), sum(estimated_cost) \
        from usage_metrics group by 2, 3 union all \
        select 'usage_by_month', tenant_id, month, prompt_tokens, completion_tokens, request_count, \
            estimated_cost from usage_by_month union all \
        select 'monthly_usage_summary', tenant_id, month, sum(total_prompt_tokens), \
            sum(total_completion_tokens), sum(total_requests), sum(total_cost) \
        from monthly_usage_summary group by 2, 3) \
    select format('%s: %s, not %s', s.source, to_jsonb(f), to_jsonb(e)) \
    from (values ('totals'), ('days'), ('usage_metrics'), ('usage_by_month'), ('monthly_usage_summary')) \
        as s (source) \
    cross join months e \
    left join found f on f.source = s.source and f.tenant_id = e.tenant_id and f.month = e.month \
    where (f.p, f.c, f.r, f.m) is distinct from (e.p, e.c, e.r, e.m) \
    union all \
    select format('usage_metrics: %s times %s, %s, %s', count(*), tenant_id, user_id, date) \
    from usage_metrics group by tenant_id, user_id, date having count(*) > 1";

/// What record_usage and void_usage answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub applied: bool,
    pub cost: String,
    pub unpriced: String,
    pub date: String,
}

impl From<Row> for Answer {
    fn from(row: Row) -> Self {
        Self { applied: row.get(0), cost: row.get(1), unpriced: row.get(2), date: row.get(3) }
    }
}

pub struct Event<'a> {
    pub tenant: Uuid,
    pub user: Option<Uuid>,
    pub model: Option<&'a str>,
    pub usage: &'a str,
    pub key: &'a str,
    pub at: Option<&'a str>,
}

impl<'a> Event<'a> {
    pub fn of(books: &Books, key: &'a str) -> Self {
        Self {
            tenant: books.tenant(),
            user: Some(books.user()),
            model: Some("gpt-4o"),
            usage: TOKENS,
            key,
            at: None,
        }
    }
}

pub const TOKENS: &str = r#"{"prompt_tokens": 100, "completion_tokens": 10}"#;
/// What they cost.
pub const COST: &str = "0.00130";

pub trait Usage {
    fn record(&mut self, event: &Event) -> Result<Answer, Error>;
    fn void(&mut self, tenant: Uuid, key: &str) -> Result<(bool, String), Error>;
}

impl Usage for Client {
    fn record(&mut self, event: &Event) -> Result<Answer, Error> {
        let sql = "select applied, cost::text, unpriced::text, date::text from record_usage( \
                   $1, $2, $3, $4::text::jsonb, $5, $6::text::timestamptz)";
        let Event { tenant, user, model, usage, key, at } = event;
        self.query_one(sql, &[tenant, user, model, usage, key, at]).map(Answer::from)
    }

    fn void(&mut self, tenant: Uuid, key: &str) -> Result<(bool, String), Error> {
        let sql = "select applied, cost::text from void_usage($1, $2, 'a test')";
        self.query_one(sql, &[&tenant, &key]).map(|row| (row.get(0), row.get(1)))
    }
}

/// SQLSTATE of an error of the server.
pub fn code(error: &Error) -> &str {
    match error.as_db_error() {
        Some(db) => db.code().code(),
        None => panic!("the connection ended: {error}"),
    }
}
