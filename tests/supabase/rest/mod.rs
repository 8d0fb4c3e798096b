//! A client of PostgREST: the statements that version 12 sends for a request, on one pooled
//! connection, prepared once and used again for whoever comes next.

mod calls;
mod tables;

use std::collections::HashMap;
use std::error::Error as StdError;

use pg_conversation_tests::{Client, Session, Uuid, describe};
use postgres::Statement;
use postgres::types::{Format, FromSql, IsNull, ToSql, Type, private::BytesMut, to_sql_checked};

use crate::stack::Deployment;
pub use tables::Returning;

/// A value of a request: text that the server reads as whatever type it needs.
#[derive(Debug)]
pub struct Word(pub String);

impl ToSql for Word {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// Text of any type that is sent as it is written.
struct Text(String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(String::from_utf8(raw.to_vec())?))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Whose token came with the request.
#[derive(Clone)]
pub struct Caller {
    pub role: &'static str,
    pub claims: String,
}

pub fn user(id: Uuid) -> Caller {
    let claims = format!(
        r#"{{"aud":"authenticated","exp":4102444800,"sub":"{id}","email":"{id}@example","role":"authenticated","session_id":"{id}"}}"#
    );
    Caller { role: "authenticated", claims }
}

pub fn service() -> Caller {
    Caller { role: "service_role", claims: r#"{"iss":"supabase","role":"service_role"}"#.into() }
}

pub fn nobody() -> Caller {
    Caller { role: "anon", claims: r#"{"iss":"supabase","role":"anon"}"#.into() }
}

#[derive(Debug)]
pub struct Reply {
    /// Rows of the page.
    pub rows: i64,
    /// Rows of the whole, where the request asked for a count.
    pub total: Option<i64>,
    pub body: String,
}

/// SQLSTATE and message.
pub type Refusal = (String, String);

#[derive(Clone, Copy, PartialEq)]
pub enum Verb {
    Get,
    Post,
    Patch,
    Delete,
}

pub struct Rest {
    client: Client,
    /// What the server knows of the schema, apart from requests.
    cache: Client,
    statements: HashMap<String, Statement>,
    schema: &'static str,
    /// What each role brings along in `pg_db_role_setting`.
    timeouts: Vec<(String, String)>,
}

impl Rest {
    pub fn new(deployment: &Deployment) -> Self {
        let mut cache = deployment.admin();
        let timeouts = cache
            .query(
                "select r.rolname::text, split_part(s, '=', 2) from pg_db_role_setting d
                 join pg_roles r on r.oid = d.setrole, unnest(d.setconfig) s
                 where s like 'statement_timeout=%' order by d.setdatabase",
                &[],
            )
            .expect("settings of the roles")
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        Self {
            client: deployment.connect("authenticator"),
            cache,
            statements: HashMap::new(),
            schema: deployment.schema,
            timeouts,
        }
    }

    /// One request: a transaction that sets whose it is and runs one statement.
    pub fn send(
        &mut self,
        caller: &Caller,
        verb: Verb,
        sql: &str,
        words: &[Word],
    ) -> Result<Reply, Refusal> {
        let access = if verb == Verb::Get { "read only" } else { "read write" };
        self.client.run(&format!("begin isolation level read committed {access}"));
        let reply = self.impersonate(caller, verb).and_then(|()| self.main_query(sql, words));
        self.client.run(if reply.is_ok() { "commit" } else { "rollback" });
        reply
    }

    fn impersonate(&mut self, caller: &Caller, verb: Verb) -> Result<(), Refusal> {
        let timeout = self.timeouts.iter().rfind(|(role, _)| role == caller.role);
        let method = match verb {
            Verb::Get => "GET",
            Verb::Post => "POST",
            Verb::Patch => "PATCH",
            Verb::Delete => "DELETE",
        };
        let mut settings =
            vec![("search_path", format!(r#""{}", "public", "extensions""#, self.schema))];
        settings.extend(timeout.map(|(_, time)| ("statement_timeout", time.clone())));
        settings.extend([
            ("role", caller.role.to_string()),
            ("request.jwt.claims", caller.claims.clone()),
            ("request.method", method.into()),
            ("request.path", "/".into()),
            ("request.headers", r#"{"host":"localhost","accept":"*/*"}"#.into()),
            ("request.cookies", "{}".into()),
        ]);
        let calls: Vec<String> = settings
            .iter()
            .enumerate()
            .map(|(n, (name, _))| format!("set_config('{name}', ${}, true)", n + 1))
            .collect();
        let words: Vec<Word> = settings.into_iter().map(|(_, value)| Word(value)).collect();
        self.execute(&format!("select {}", calls.join(", ")), &words).map(drop)
    }

    fn main_query(&mut self, sql: &str, words: &[Word]) -> Result<Reply, Refusal> {
        let rows = self.execute(sql, words)?;
        let row = rows.first().expect("one row of a reply");
        Ok(Reply {
            total: row.try_get("total_result_set").unwrap_or_default(),
            rows: row.get("page_total"),
            body: row.get::<_, Text>("body").0,
        })
    }

    fn execute(&mut self, sql: &str, words: &[Word]) -> Result<Vec<postgres::Row>, Refusal> {
        let refusal = |error: postgres::Error| match error.as_db_error() {
            Some(db) => (db.code().code().to_string(), db.message().to_string()),
            None => panic!("{}\n{sql}", describe(&error)),
        };
        let statement = match self.statements.get(sql) {
            Some(statement) => statement.clone(),
            None => {
                // The body of a request is JSON, whatever becomes of it.
                let types: &[Type] =
                    if sql.contains("$1 AS json_data") { &[Type::JSON] } else { &[] };
                let statement = self.client.prepare_typed(sql, types).map_err(refusal)?;
                self.statements.insert(sql.into(), statement.clone());
                statement
            }
        };
        let words: Vec<&(dyn ToSql + Sync)> = words.iter().map(|word| word as _).collect();
        self.client.query(&statement, &words).map_err(refusal)
    }

    /// Reads: `select` as the resource was asked for, `count` what is counted beside the page.
    pub fn read(
        &mut self,
        caller: &Caller,
        select: &str,
        count: Option<&str>,
        values: &[&str],
    ) -> Result<Reply, Refusal> {
        let (also, total) = match count {
            Some(sql) => (
                format!(", pgrst_source_count AS ({sql})"),
                "(SELECT pg_catalog.count(*) FROM pgrst_source_count)",
            ),
            None => (String::new(), "null::bigint"),
        };
        let sql = format!(
            "WITH pgrst_source AS ( {select} ) {also} SELECT {total} AS total_result_set, \
             pg_catalog.count(_postgrest_t) AS page_total, \
             coalesce(json_agg(_postgrest_t), '[]') AS body, {TAIL} \
             FROM ( SELECT * FROM pgrst_source ) _postgrest_t"
        );
        self.send(caller, Verb::Get, &sql, &words(values))
    }

    /// Changes: the statement returns the rows that it has touched.
    pub fn write(
        &mut self,
        caller: &Caller,
        verb: Verb,
        change: &str,
        values: &[&str],
    ) -> Result<Reply, Refusal> {
        let sql = format!(
            "WITH pgrst_source AS ({change}) SELECT '' AS total_result_set, \
             pg_catalog.count(_postgrest_t) AS page_total, array[]::text[] AS header, \
             coalesce(json_agg(_postgrest_t), '[]') AS body, {TAIL} \
             FROM (SELECT \"it\".* FROM \"pgrst_source\" AS \"it\" ) _postgrest_t"
        );
        self.send(caller, verb, &sql, &words(values))
    }

    /// A value of a reply, by a path such as `0,id`; `null` where there is none.
    pub fn at(&mut self, reply: &Reply, path: &str) -> String {
        let sql = "select coalesce($1::text::json #>> string_to_array($2::text, ','), 'null')";
        self.cache.query_one(sql, &[&reply.body, &path]).expect("JSON").get(0)
    }

    /// A question of the pool itself, between two requests.
    pub fn idle(&mut self) -> &mut Client {
        &mut self.client
    }
}

const TAIL: &str = "nullif(current_setting('response.headers', true), '') AS response_headers, \
                    nullif(current_setting('response.status', true), '') AS response_status";

fn words(values: &[&str]) -> Vec<Word> {
    values.iter().map(|value| Word((*value).into())).collect()
}
