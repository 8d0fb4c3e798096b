//! What access costs: the same statement of a member and of a role that bypasses row level
//! security, and of a member behind policies as they are written by hand.

use postgres::Client;
use postgres::types::ToSql;
use uuid::Uuid;

use crate::Result;
use crate::conversations::{LIST, LIST_PLAIN};
use crate::data::{As, Bench, Person, share};
use crate::measure::{Arm, Figures, Plan, expect_rows, join_backend, pairs, pairs_amid_commits};
use crate::messages::{ADD, ADD_PLPGSQL, INSERT, JOIN, READ, reader, reading, writers};
use crate::row::{Line, Row, Target, lines, ratio, row};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for others in [Others::Rest, Others::Write] {
        for messages in [20, 100, 1000] {
            let name = format!("access-page-{messages}{}", others.suffix());
            rows.push(row(name, move |bench| page(bench, messages, others)));
        }
    }
    rows.push(row("access-request", request));
    for others in [Others::Rest, Others::Write] {
        let name = format!("access-list{}", others.suffix());
        rows.push(row(name, move |bench| list(bench, others)));
    }
    for clients in [1, 8] {
        rows.push(row(format!("access-add-{clients}"), move |bench| add(bench, clients)));
    }
    for (name, question) in [("count", COUNT), ("latest", LATEST)] {
        rows.push(row(format!("access-{name}"), move |bench| {
            all(bench, &question, &bench.ordinary, Of::User, 40)
        }));
        rows.push(row(format!("access-{name}-owner"), move |bench| {
            all(bench, &question, &bench.owner, Of::User, 8)
        }));
        rows.push(row(format!("access-{name}-admin"), move |bench| {
            all(bench, &question, &bench.admin, Of::Tenant, 4)
        }));
    }
    rows
}

/// What other sessions do meanwhile.
#[derive(Clone, Copy)]
pub enum Others {
    Rest,
    /// Something has been committed since the last call, as on any server in use.
    Write,
}

impl Others {
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Rest => "",
            Self::Write => "-writer",
        }
    }

    pub fn pairs(
        self,
        bench: &Bench,
        plan: Plan,
        arms: impl FnMut(usize) -> Result<Vec<Arm>>,
    ) -> Result<Figures> {
        match self {
            Self::Rest => pairs(bench, &plan, arms, || Ok(())),
            Self::Write => pairs_amid_commits(bench, plan, arms),
        }
    }
}

pub const BYPASS: &str = "role that bypasses RLS";

pub const BY_HAND: &str = "policies by hand";

fn page(bench: &Bench, messages: i32, others: Others) -> Result<Vec<Line>> {
    let keys = bench.conversations_of(messages)?;
    let figures = others.pairs(bench, reading(messages), |pair| {
        let sides = [(As::Member, READ), (As::Bypass, READ), (As::Naive, JOIN)];
        let arm = |(arm, (who, statement))| {
            reader(bench, who, statement, share(&keys, arm + pair, 3), messages)
        };
        sides.into_iter().enumerate().map(arm).collect()
    })?;
    Ok(lines(&["member", BYPASS, BY_HAND], &figures, &[(0, 1, ratio(1.25)), (0, 2, None)]))
}

const BECOME: &str =
    "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)";

/// A page as PostgREST asks for it: a transaction that becomes a role and takes new claims.
fn request(bench: &Bench) -> Result<Vec<Line>> {
    let messages = 20;
    let keys = bench.conversations_of(messages)?;
    let figures = pairs_amid_commits(bench, reading(messages), |pair| {
        let sides = [
            ("bench_member", bench.owner.auth_id, READ),
            ("bench_bypass", bench.owner.auth_id, READ),
            ("bench_naive", bench.owner.id, JOIN),
        ];
        let arm = |(arm, (role, subject, statement))| {
            let keys = share(&keys, arm + pair, 3);
            requests(bench, role, subject, statement, keys, messages)
        };
        sides.into_iter().enumerate().map(arm).collect()
    })?;
    let arms = ["request of a member", BYPASS, BY_HAND];
    Ok(lines(&arms, &figures, &[(0, 1, ratio(1.25)), (0, 2, None)]))
}

fn requests(
    bench: &Bench,
    role: &'static str,
    subject: Uuid,
    statement: &str,
    keys: Vec<Uuid>,
    messages: i32,
) -> Result<Arm> {
    let mut client = bench.connect(As::Gateway)?;
    join_backend(&mut client)?;
    let (become_role, statement) = (client.prepare(BECOME)?, client.prepare(statement)?);
    let mut keys = keys.into_iter().cycle();
    let mut issued = 1_700_000_000;
    let work = move || {
        let key = keys.next().ok_or("no conversations")?;
        issued += 1;
        let claims = format!(r#"{{"sub": "{subject}", "role": "{role}", "iat": {issued}}}"#);
        client.batch_execute("begin")?;
        expect_rows(&mut client, &become_role, &[&role, &claims], 1)?;
        expect_rows(&mut client, &statement, &[&key], messages as usize)?;
        client.batch_execute("commit")?;
        Ok(())
    };
    Ok(vec![Box::new(work)])
}

fn list(bench: &Bench, others: Others) -> Result<Vec<Line>> {
    let Person { id, tenant, .. } = bench.owner;
    let plan = Plan { turns: 100, calls: 5, warm_up: 20, per_call: 1, alone: true };
    let figures = others.pairs(bench, plan, |_| {
        let sides = [
            (As::Member, LIST, vec![param(50_i32)]),
            (As::Bypass, LIST, vec![param(50_i32)]),
            (As::Naive, LIST_PLAIN, vec![param(50_i64), param(tenant), param(id)]),
        ];
        let arm = |(who, statement, params)| {
            let mut client = bench.connect(who)?;
            if who == As::Bypass {
                // The list is that of the caller, whoever he is.
                client.batch_execute(&format!("set pg_conversation.user_id = '{id}'"))?;
            }
            asker(client, statement, params, |found| found.len() == 50)
        };
        sides.into_iter().map(arm).collect()
    })?;
    Ok(lines(
        &["list of a member", BYPASS, BY_HAND],
        &figures,
        &[(0, 1, ratio(1.25)), (0, 2, None)],
    ))
}

fn add(bench: &Bench, clients: usize) -> Result<Vec<Line>> {
    let keys = bench.small_conversations()?;
    let (turns, calls) = if clients == 1 { (100, 5) } else { (25, 20) };
    let figures = pairs(
        bench,
        &Plan { turns, calls, warm_up: 10, per_call: 1, alone: clients == 1 },
        |pair| {
            let sides = [
                (As::Member, ADD),
                (As::Bypass, ADD),
                (As::Member, INSERT),
                (As::Bypass, INSERT),
                (As::Naive, ADD_PLPGSQL),
            ];
            let arm = |(arm, (who, statement))| {
                writers(bench, who, statement, &share(&keys, arm + pair, 5), clients, "off")
            };
            sides.into_iter().enumerate().map(arm).collect()
        },
        || Ok(()),
    )?;
    let insert_bypass = format!("insert, {BYPASS}");
    let arms = ["add_message of a member", BYPASS, "insert of a member", &insert_bypass, BY_HAND];
    let target = ratio(1.15);
    Ok(lines(&arms, &figures, &[(0, 1, target), (2, 3, target), (0, 4, None), (2, 4, None)]))
}

/// Something asked about all messages that somebody may read.
#[derive(Clone, Copy)]
struct Question {
    columns: &'static str,
    order: &'static str,
    /// Whether this is the answer where there are so many messages.
    is_answer: fn(&[postgres::Row], i64) -> bool,
}

const COUNT: Question = Question {
    columns: "count(*)",
    order: "",
    is_answer: |rows, count| rows.iter().all(|row| row.get::<_, i64>(0) == count),
};

const LATEST: Question = Question {
    columns: "id, conversation_id, role::text, content, sequence_number, created_at",
    order: "order by created_at desc limit 50",
    is_answer: |rows, count| rows.len() as i64 == count.min(50),
};

/// Whose conversations they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    User,
    Tenant,
}

impl Of {
    fn column(self) -> &'static str {
        match self {
            Self::User => "user_id",
            Self::Tenant => "tenant_id",
        }
    }

    fn id(self, person: &Person) -> Uuid {
        match self {
            Self::User => person.id,
            Self::Tenant => person.tenant,
        }
    }
}

impl Question {
    /// About conversations that the client names by whose they are.
    fn named(&self, schema: &str, of: Of) -> String {
        let (Self { columns, order, .. }, column) = (self, of.column());
        format!(
            "select {columns} from {schema}.messages where conversation_id in \
             (select id from {schema}.conversations where {column} = $1) {order}"
        )
    }

    /// About whatever the policies let through.
    fn bare(&self, schema: &str) -> String {
        let Self { columns, order, .. } = self;
        format!("select {columns} from {schema}.messages {order}")
    }
}

/// Policies by hand know of owners only, so an admin is not compared with them.
fn all(
    bench: &Bench,
    question: &Question,
    person: &Person,
    of: Of,
    turns: usize,
) -> Result<Vec<Line>> {
    let count = |schema: &str| -> Result<i64> {
        let mut client = bench.connect(As::Superuser)?;
        Ok(client.query_one(&COUNT.named(schema, of), &[&of.id(person)])?.get(0))
    };
    let ask = |who, is_named| {
        let schema = if who == As::Naive { "plain" } else { "public" };
        let (count, is_answer) = (count(schema)?, question.is_answer);
        let (statement, params) = if is_named {
            (question.named(schema, of), vec![param(of.id(person))])
        } else {
            (question.bare(schema), Vec::new())
        };
        let client = bench.connect_for(who, person)?;
        asker(client, &statement, params, move |rows| is_answer(rows, count))
    };
    let figures = pairs(
        bench,
        &Plan { turns, calls: 1, warm_up: 6, per_call: 1, alone: true },
        |_| Ok(vec![ask(As::Member, true)?, ask(As::Member, false)?, ask(As::Bypass, true)?]),
        || Ok(()),
    )?;
    let target = (of == Of::User).then_some(Target::Ratio(2.0));
    let arms = ["named, as a member", "bare, as a member", "named, bypasses RLS"];
    let mut found = lines(&arms, &figures, &[(0, 2, target), (1, 2, target)]);
    if of == Of::Tenant {
        return Ok(found);
    }
    // Fewer: by hand these take seconds.
    let figures = pairs(
        bench,
        &Plan { turns: 3, calls: 1, warm_up: 1, per_call: 1, alone: true },
        |_| {
            [(As::Member, true), (As::Member, false), (As::Naive, true), (As::Naive, false)]
                .into_iter()
                .map(|(who, is_named)| ask(who, is_named))
                .collect()
        },
        || Ok(()),
    )?;
    let arms = [arms[0], arms[1], "named, policies by hand", "bare, policies by hand"];
    found.extend(lines(&arms, &figures, &[(0, 2, None), (1, 3, None)]));
    Ok(found)
}

pub type Param = Box<dyn ToSql + Sync + Send>;

pub fn param(value: impl ToSql + Sync + Send + 'static) -> Param {
    Box::new(value)
}

/// Asks the same again and again.
pub fn asker(
    mut client: Client,
    statement: &str,
    params: Vec<Param>,
    is_answer: impl Fn(&[postgres::Row]) -> bool + Send + 'static,
) -> Result<Arm> {
    join_backend(&mut client)?;
    let statement = client.prepare(statement)?;
    let work = move || {
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| &**param as _).collect();
        if is_answer(&client.query(&statement, &params)?) {
            Ok(())
        } else {
            Err("another answer than expected".into())
        }
    };
    Ok(vec![Box::new(work)])
}
