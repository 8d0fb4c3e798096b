//! Requests that call functions.

use pg_conversation_tests::describe;

use super::{Caller, Refusal, Reply, Rest, TAIL, Verb, words};

impl Rest {
    /// A call by name, the arguments a JSON object.
    pub fn rpc(&mut self, caller: &Caller, name: &str, arguments: &str) -> Result<Reply, Refusal> {
        let routine = self.routine(name, arguments);
        self.call(caller, routine.verb, &routine, arguments)
    }

    /// The same by GET, which never writes.
    pub fn rpc_get(
        &mut self,
        caller: &Caller,
        name: &str,
        arguments: &str,
    ) -> Result<Reply, Refusal> {
        let routine = self.routine(name, arguments);
        self.call(caller, Verb::Get, &routine, arguments)
    }

    fn call(
        &mut self,
        caller: &Caller,
        verb: Verb,
        routine: &Routine,
        arguments: &str,
    ) -> Result<Reply, Refusal> {
        let sql = format!(
            "WITH pgrst_source AS ({}) SELECT null::bigint AS total_result_set, \
             pg_catalog.count(_postgrest_t) AS page_total, {} AS body, {TAIL} \
             FROM (SELECT \"it\".* FROM \"pgrst_source\" AS \"it\") _postgrest_t",
            routine.call, routine.body
        );
        let values = if sql.contains("$1") { words(&[arguments]) } else { Vec::new() };
        self.send(caller, verb, &sql, &values)
    }

    /// What the cache of the schema knows of a function.
    fn routine(&mut self, name: &str, arguments: &str) -> Routine {
        let row = self
            .cache
            .query_one(
                "select p.provolatile = 'v', p.proretset, t.typtype = 'p' or p.proargmodes is not null,
                    coalesce(a.names, '{}'), coalesce(a.types, '{}')
                 from pg_proc p join pg_type t on t.oid = p.prorettype,
                 lateral (
                    select array_agg(quote_ident(n) order by i) as names,
                        array_agg(format_type(p.proargtypes[i - 1], null) order by i) as types
                    from unnest(p.proargnames) with ordinality u (n, i)
                    where i <= p.pronargs and $3::text::jsonb ? n
                 ) a
                 where p.pronamespace = $1::text::regnamespace and p.proname = $2::text",
                &[&self.schema, &name, &arguments],
            )
            .unwrap_or_else(|error| panic!("{name}: {}", describe(&error)));
        let (volatile, set, composite): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
        let (names, types): (Vec<String>, Vec<String>) = (row.get(3), row.get(4));
        let composite = composite && self.returns_columns(name);
        let passed: Vec<String> = names.iter().map(|n| format!("{n} := pgrst_body.{n}")).collect();
        let function = format!("\"{}\".\"{name}\"({})", self.schema, passed.join(", "));
        let from = if composite {
            format!("{function} pgrst_call")
        } else {
            format!("(SELECT {function} pgrst_scalar) pgrst_call")
        };
        let columns = if composite { "pgrst_call.*" } else { "pgrst_call.pgrst_scalar" };
        let call = if names.is_empty() {
            format!("SELECT {columns} FROM {from}")
        } else {
            let typed: Vec<String> =
                names.iter().zip(&types).map(|(n, t)| format!("{n} {t}")).collect();
            format!(
                "SELECT {columns} FROM (SELECT $1 AS json_data) pgrst_payload, \
                 LATERAL (SELECT {} FROM json_to_record(pgrst_payload.json_data) AS _({}) LIMIT 1) pgrst_body , \
                 LATERAL {from}",
                names.join(", "),
                typed.join(", ")
            )
        };
        let item = if composite { "_postgrest_t" } else { "_postgrest_t.pgrst_scalar" };
        let body = if set {
            format!("coalesce(json_agg({item}), '[]')")
        } else {
            format!("coalesce(json_agg({item})->0, 'null')")
        };
        Routine { call, body, verb: if volatile { Verb::Post } else { Verb::Get } }
    }

    fn returns_columns(&mut self, name: &str) -> bool {
        let sql = "select coalesce('t' = any (p.proargmodes) or 'o' = any (p.proargmodes), false) \
                   or p.prorettype = 'record'::regtype from pg_proc p \
                   where p.pronamespace = $1::text::regnamespace and p.proname = $2::text";
        self.cache.query_one(sql, &[&self.schema, &name]).expect("one function").get(0)
    }
}

struct Routine {
    call: String,
    body: String,
    verb: Verb,
}
