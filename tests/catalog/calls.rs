//! Calls of every function that a statement may call, with arguments made up from their names and types.

use pg_conversation_tests::{Client, Database, Rng, Session, Uuid};

use super::FUNCTIONS;

/// The default tenant.
const TENANT: &str = "00000000-0000-7000-8000-000000000001";

pub struct Function {
    pub signature: String,
    pub name: String,
    pub volatility: String,
    pub parallel: String,
    args: Vec<Arg>,
}

struct Arg {
    name: String,
    type_name: String,
    may_be_left_out: bool,
}

/// What there is to speak of: a user with a conversation, and messages in each state.
pub struct World {
    pub user: Uuid,
    tenant: Uuid,
    conversation: Uuid,
    members: Vec<Uuid>,
    messages: Vec<Uuid>,
    /// Of tokens.
    reservation: Uuid,
    database: String,
}

impl World {
    pub fn build(database: &Database) -> Self {
        let (user, other) = (Uuid::new_v4(), Uuid::new_v4());
        database.member(other).run("select ensure_user()");
        let mut member = database.member(user);
        let conversation: Uuid = member
            .value("select get_or_create_conversation('the-name', session_id => 'the-session')");
        let mut message =
            |sql: &str| -> Uuid { member.value(&sql.replace("$c", &conversation.to_string())) };
        let said = message(
            "select message_id from add_message('$c', 'user', 'x', 'the-key', null, '{}', '{}')",
        );
        let streamed = message("select begin_message('$c', 'assistant', null, 'the-stream')");
        let finished = message("select begin_message('$c', 'assistant')");
        member.run(&format!(
            "select append_chunks('{streamed}', array['a', 'b']); \
             select append_chunk('{finished}', 'c', 0, true); \
             select give_feedback('{said}', 1)"
        ));
        let mut superuser = database.superuser();
        superuser.run(include_str!("neighbours.sql"));
        superuser
            .run(&format!("select record_usage('{TENANT}', '{user}', 'm', '{{}}', 'the-event')"));
        superuser.run(&format!(
            "create publication the_publication; \
             insert into conversation_members (conversation_id, user_id) values ('{conversation}', '{other}'); \
             update tenants set features = '{{\"edit_messages\": true}}', \
                 rate_limit_per_minute = 100000, daily_token_limit = 1000000"
        ));
        let tenant: Uuid = superuser.value("select tenant_id from conversations");
        superuser.run(&format!(
            "select record_usage('{tenant}', '{user}', 'x', '{{\"prompt_tokens\": 1}}', 'the-usage'); \
             select check_rate_limit(tenant_id => '{tenant}')"
        ));
        let reservation = superuser.value(&format!(
            "select reservation_id from reserve_tokens(5, tenant_id => '{tenant}')"
        ));
        Self {
            user,
            tenant,
            conversation,
            members: vec![other, user],
            messages: vec![streamed, finished, said],
            reservation,
            database: database.name.clone(),
        }
    }

    /// Values that fit the name, or else the type.
    fn fitting(&self, function: &str, arg: &Arg) -> Vec<String> {
        let ids = |ids: &[Uuid]| ids.iter().map(|id| format!("'{id}'")).collect();
        let words = |words: &[&str]| words.iter().map(|word| format!("'{word}'")).collect();
        match (arg.type_name.as_str(), arg.name.as_str()) {
            (_, "timeout_ms") => words(&["1"]),
            ("uuid", "conversation_id" | "conv_id") => ids(&[self.conversation]),
            ("uuid", "message_id" | "msg_id" | "parent_id") => ids(&self.messages),
            ("uuid", "user_id" | "p_user_id") => ids(&self.members),
            ("uuid", "tenant_id" | "p_tenant_id") if function != "has_conversation_access" => {
                ids(&[self.tenant])
            }
            ("uuid", "reservation_id") => ids(&[self.reservation]),
            ("uuid", _) => ids(&[self.conversation, self.messages[0], self.user, Uuid::new_v4()]),
            ("text", "role") if function.contains("member") => {
                words(&["viewer", "editor", "owner"])
            }
            ("text", "role") if function.contains("message") => words(&["user", "assistant"]),
            ("text", "role") => words(&["member"]),
            ("text", "profile") => words(&["member", "anon", "monitor"]),
            ("text", "level") => words(&["read", "write", "manage"]),
            ("text", "visibility") => words(&["private", "tenant"]),
            ("text", "continuation_id") => words(&["the-name", "another"]),
            ("text", "client_message_id") => words(&["the-key", "the-stream", "new"]),
            ("text", "confirm") => words(&[&self.database]),
            ("text", "publication") => words(&["the_publication", "new"]),
            ("text", "key") => words(&["the-usage", "new"]),
            // The hexadecimal part of an id.
            ("text", "kind") => words(&["0004"]),
            ("text", _) => words(&["x", "", "user", "the-name"]),
            ("int4" | "int8", "chunk_index" | "first_index") => words(&["2", "0", "1"]),
            ("int4" | "int8", _) => words(&["1", "0", "2", "-1", "1000"]),
            ("bool", _) => words(&["true", "false"]),
            ("jsonb", "usage") => {
                words(&["{\"prompt_tokens\": 2, \"images\": 1}", "{}", "{\"a\": [1]}"])
            }
            ("jsonb", _) => words(&["{}", "{\"a\": [1]}"]),
            ("_text", _) => words(&["{a,b}", "{}", "{c}"]),
            ("numeric", _) => words(&["1.5", "0", "-1", "NaN"]),
            ("date", "to_date") => words(&["2020-03-01", "2020-01-01", "infinity"]),
            ("date", _) => words(&["2020-02-01", "2020-01-01", "-infinity"]),
            ("timestamptz", "occurred_at") => words(&["2020-01-01", "infinity"]),
            ("timestamptz", _) => words(&["infinity", "2020-01-01", "-infinity"]),
            ("interval", "ttl") => words(&["1 min", "0"]),
            ("interval", _) => words(&["0", "1 day"]),
            (other, _) => panic!("{function}: what is a value of {other}?"),
        }
    }

    /// Calls of a function, which need no search_path to be understood: first such as will succeed, with
    /// each of the messages, then any.
    pub fn calls(&self, function: &Function, count: usize, rng: &mut Rng) -> Vec<String> {
        let orderly = self.messages.len();
        let call = |n: usize| {
            let mut args = Vec::new();
            for arg in &function.args {
                let fitting = self.fitting(&function.name, arg);
                let left_out = if n < 2 * orderly { n >= orderly } else { rng.below(3) == 0 };
                if left_out && arg.may_be_left_out && arg.name != "timeout_ms" {
                    continue;
                }
                let value = if n < 2 * orderly {
                    let n = if fitting.len() == orderly && arg.type_name == "uuid" {
                        n % orderly
                    } else {
                        0
                    };
                    fitting[n].clone()
                } else {
                    match rng.below(12) {
                        0 => "null".into(),
                        1 if arg.type_name == "uuid" => format!("'{}'", rng.pick(&self.members)),
                        _ => rng.pick(&fitting).clone(),
                    }
                };
                args.push(format!("\"{}\" => {value}::pg_catalog.{}", arg.name, arg.type_name));
            }
            format!("select * from public.{}({})", function.name, args.join(", "))
        };
        (0..count).map(call).collect()
    }
}

/// The extension's functions that can be called, without those of triggers and of the planner.
pub fn functions(client: &mut Client) -> Vec<Function> {
    let rows = client
        .query(
            &format!(
                "select p.oid::regprocedure::text, p.proname::text, p.provolatile::text, p.proparallel::text, \
                     (select coalesce(array_agg(t.typname::text order by n), '{{}}') \
                      from unnest(p.proargtypes) with ordinality a (of, n) join pg_type t on t.oid = a.of), \
                     coalesce(p.proargnames, '{{}}'), p.pronargs::int4 - p.pronargdefaults \
                 from {FUNCTIONS} p \
                 where p.prorettype not in ('trigger'::regtype, 'internal'::regtype) order by 1"
            ),
            &[],
        )
        .expect("a list of functions");
    let mut functions = Vec::new();
    for row in rows {
        let (types, names): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
        let needed: i32 = row.get(6);
        let args = types.into_iter().zip(names).enumerate().map(|(n, (type_name, name))| Arg {
            name,
            type_name,
            may_be_left_out: n as i32 >= needed,
        });
        functions.push(Function {
            signature: row.get(0),
            name: row.get(1),
            volatility: row.get(2),
            parallel: row.get(3),
            args: args.collect(),
        });
    }
    assert!(functions.len() > 20, "the extension has functions");
    functions
}
