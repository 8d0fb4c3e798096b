//! Requests that change tables.

use pg_conversation_tests::describe;

use super::{Caller, Refusal, Reply, Rest, Verb};

impl Rest {
    /// Rows of a JSON object or array into a table. `conflict` is what `Prefer` and `on_conflict`
    /// become.
    pub fn post(
        &mut self,
        caller: &Caller,
        table: &str,
        body: &str,
        conflict: &str,
        returning: Returning,
    ) -> Result<Reply, Refusal> {
        let columns = self.columns(table, body);
        let target = format!("\"{}\".\"{table}\"", self.schema);
        let names: Vec<String> = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let values: Vec<String> =
            names.iter().map(|name| format!("\"pgrst_body\".{name}")).collect();
        let conflict = conflict.replace(
            "$merge",
            &names.iter().map(|n| format!("{n} = EXCLUDED.{n}")).collect::<Vec<_>>().join(", "),
        );
        let change = format!(
            "INSERT INTO {target}({}) SELECT {} {} {conflict} {}",
            names.join(", "),
            values.join(", "),
            body_of(&columns, body),
            returning.clause(&target)
        );
        self.write(caller, Verb::Post, &change, &[body])
    }

    /// Sets what the JSON object holds in the rows where a column has a value.
    pub fn patch(
        &mut self,
        caller: &Caller,
        table: &str,
        body: &str,
        (column, value): (&str, &str),
        returning: Returning,
    ) -> Result<Reply, Refusal> {
        let columns = self.columns(table, body);
        let target = format!("\"{}\".\"{table}\"", self.schema);
        let values: Vec<String> =
            columns.iter().map(|(n, _)| format!("\"{n}\" = \"pgrst_body\".\"{n}\"")).collect();
        let change = format!(
            "UPDATE {target} SET {} {} WHERE  {target}.\"{column}\" = $2 {}",
            values.join(", "),
            body_of(&columns, body),
            returning.clause(&target)
        );
        self.write(caller, Verb::Patch, &change, &[body, value])
    }

    pub fn delete(
        &mut self,
        caller: &Caller,
        table: &str,
        (column, value): (&str, &str),
    ) -> Result<Reply, Refusal> {
        let target = format!("\"{}\".\"{table}\"", self.schema);
        let change = format!("DELETE FROM {target} WHERE  {target}.\"{column}\" = $1 RETURNING 1");
        self.write(caller, Verb::Delete, &change, &[value])
    }

    /// The columns that a body names, with their types, as the cache of the schema knows them.
    fn columns(&mut self, table: &str, body: &str) -> Vec<(String, String)> {
        let sql = "select a.attname::text, format_type(a.atttypid, null)
             from (select case when b like '[%' then b::json -> 0 else b::json end from (values ($3::text)) v (b)) f (b)
             join pg_attribute a on a.attrelid = format('%I.%I', $1::text, $2::text)::regclass
             and a.attname in (select json_object_keys(f.b)) order by a.attname";
        let rows = self.cache.query(sql, &[&self.schema, &table, &body]);
        let rows = rows.unwrap_or_else(|error| panic!("{table}: {}", describe(&error)));
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

/// What a change gives back.
#[derive(Clone, Copy)]
pub enum Returning {
    Nothing,
    Rows,
}

impl Returning {
    fn clause(self, target: &str) -> String {
        match self {
            Returning::Nothing => "RETURNING 1".into(),
            Returning::Rows => format!("RETURNING {target}.*"),
        }
    }
}

fn body_of(columns: &[(String, String)], body: &str) -> String {
    let names: Vec<String> = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let typed: Vec<String> = columns.iter().map(|(name, of)| format!("\"{name}\" {of}")).collect();
    let reader = if body.starts_with('[') { "json_to_recordset" } else { "json_to_record" };
    format!(
        "FROM (SELECT $1 AS json_data) pgrst_payload, LATERAL (SELECT {} FROM \
         {reader}(pgrst_payload.json_data) AS _({}) ) pgrst_body ",
        names.join(", "),
        typed.join(", ")
    )
}
