//! Answers about who is calling and what he may see are kept, and never older than the statement.

use std::collections::HashMap;

use pg_conversation_tests::{Client, Database, Rng, Server, Session, describe, oldest, seed};
use postgres::Statement;

const ADA: &str = "00000000-0000-4000-8000-00000000000a";
const BOB: &str = "00000000-0000-4000-8000-00000000000b";
const EVE: &str = "00000000-0000-4000-8000-00000000000e";
/// Bob's and Eve's subjects in claims differ from their users.id.
const BOB_AUTH: &str = "00000000-0000-4000-8000-0000000000b2";
const MINE: &str = "00000000-0000-4000-8000-0000000000c1";
const OURS: &str = "00000000-0000-4000-8000-0000000000c2";
const THEIRS: &str = "00000000-0000-4000-8000-0000000000c3";
const TENANT: &str = "00000000-0000-4000-8000-0000000000f1";

/// The rule of access once more in plain SQL, read past all policies in the caller's snapshot.
const TRUTH: &str = "
create function truth(which text) returns text language sql stable security definer
set search_path = public as $$
    with me as (
        select u.* from users u join tenants t on t.id = u.tenant_id
        where u.is_active and t.is_active and case
            when coalesce(current_setting('request.jwt.claims', true), '') <> ''
            then u.auth_id = (current_setting('request.jwt.claims', true)::json->>'sub')::uuid
            else u.id = nullif(current_setting('pg_conversation.user_id', true), '')::uuid end
    ), seen as (
        select c.id, c.last_sequence from conversations c, me
        where c.tenant_id = me.tenant_id and (
            c.user_id = me.id or me.role = 'admin'
            or c.deleted_at is null and (
                c.visibility = 'tenant'
                or exists (select from conversation_members m
                    where m.conversation_id = c.id and m.user_id = me.id)))
    )
    select case which
        when 'me' then coalesce((select right(id::text, 1) from me), '-')
        when 'tenant' then coalesce((select right(tenant_id::text, 2) from me), '-')
        when 'admin' then coalesce((select (role = 'admin')::text from me), 'false')
        when 'conversations' then (select count(*)::text from seen)
        when 'messages' then (select count(*)::text from messages m where m.conversation_id in (select id from seen))
        when 'access' then (
            select string_agg(exists (select from seen where seen.id = c.id and exists (select from me where me.id = w.id))::text, ' ' order by c.id, w.id)
            from (values ('c1'), ('c2'), ('c3')) as x (c),
            lateral (select ('00000000-0000-4000-8000-0000000000' || x.c)::uuid as id) c,
            (values ('0a'), ('0b')) as y (w),
            lateral (select ('00000000-0000-4000-8000-0000000000' || y.w)::uuid as id) w)
    end
$$";

/// The same questions put to the product. Each is a statement of its own, since one answer could
/// refresh what another rests on.
const PROBES: [(&str, &str); 6] = [
    ("me", "select coalesce(right(current_user_id()::text, 1), '-')"),
    ("tenant", "select coalesce(right(current_tenant_id()::text, 2), '-')"),
    ("admin", "select is_tenant_admin()::text"),
    ("conversations", "select count(*)::text from conversations"),
    ("messages", "select count(*)::text from messages"),
    (
        "access",
        "select string_agg(has_conversation_access(c.id, w.id, 'read')::text, ' ' order by c.id, w.id) \
         from (values ('c1'), ('c2'), ('c3')) as x (c), \
         lateral (select ('00000000-0000-4000-8000-0000000000' || x.c)::uuid as id) c, \
         (values ('0a'), ('0b')) as y (w), \
         lateral (select ('00000000-0000-4000-8000-0000000000' || y.w)::uuid as id) w",
    ),
];

/// Two users of one tenant and one of another, with a conversation each; Ada's second one is shared
/// with Bob.
fn world() -> Database<'static> {
    let database = Server::shared(oldest()).database();
    database.superuser().run(&format!(
        "{TRUTH}; grant execute on function truth to public; \
         insert into tenants (id, name, slug) values ('{TENANT}', 'Other', 'other'); \
         insert into users (id, auth_id) values ('{ADA}', '{ADA}'), ('{BOB}', '{BOB_AUTH}'); \
         insert into users (id, auth_id, tenant_id) values ('{EVE}', '{EVE}', '{TENANT}'); \
         insert into conversations (id, user_id) values \
             ('{MINE}', '{ADA}'), ('{OURS}', '{ADA}'), ('{THEIRS}', '{EVE}'); \
         insert into conversation_members (conversation_id, user_id, role) \
             values ('{OURS}', '{BOB}', 'editor'); \
         insert into messages (conversation_id, role) values \
             ('{MINE}', 'user'), ('{OURS}', 'user'), ('{OURS}', 'user'), ('{THEIRS}', 'user')"
    ));
    database
}

/// A session that keeps its prepared statements.
pub struct Kept {
    pub client: Client,
    statements: HashMap<String, Statement>,
}

impl Kept {
    pub fn new(client: Client) -> Self {
        Self { client, statements: HashMap::new() }
    }

    pub fn ask(&mut self, sql: &str) -> Result<Vec<String>, String> {
        if !self.statements.contains_key(sql) {
            let statement = self.client.prepare(sql).map_err(|error| describe(&error))?;
            self.statements.insert(sql.to_string(), statement);
        }
        let rows =
            self.client.query(&self.statements[sql], &[]).map_err(|error| describe(&error))?;
        let row = rows.first();
        Ok(row.map_or_else(Vec::new, |row| {
            (0..row.len()).map(|i| row.get::<_, Option<String>>(i).unwrap_or_default()).collect()
        }))
    }
}

#[test]
fn what_another_session_commits_holds_from_the_very_next_statement() {
    let database = world();
    let see = "select concat_ws(' ', (select count(*) from conversations), (select count(*) from messages))";
    let me = "select coalesce(right(current_user_id()::text, 1), '-')";
    let access = format!("select has_conversation_access('{OURS}', '{BOB}', 'write')::text");
    let (ours, bob) = (format!("id = '{OURS}'"), format!("id = '{BOB}'"));
    let user = |active: bool| format!("update users set is_active = {active} where {bob}");
    let tenant =
        |active: bool| format!("update tenants set is_active = {active} where slug = 'default'");
    let share = format!(
        "insert into conversation_members (conversation_id, user_id, role) \
         values ('{OURS}', '{BOB}', 'editor')"
    );
    let unshare = format!("delete from conversation_members where user_id = '{BOB}'");
    let visible = |to: &str| format!("update conversations set visibility = '{to}' where {ours}");
    let add = format!("select (add_message('{OURS}', 'user', 'x')).created::text");
    let refused = "P0002";

    // Before each round the session is in one of these states; the steps are the same in all.
    let frames = [
        ("", ""),
        ("begin", "commit"),
        ("begin; savepoint a", "rollback"),
        ("begin; create temp table busy () on commit drop", "commit"),
        ("begin; savepoint a; create temp table busy (); savepoint b", "rollback"),
    ];
    // What the other session does, then what Bob's next statement says.
    let steps: Vec<(String, &str, &str)> = vec![
        (String::new(), me, "b"),
        (String::new(), see, "1 2"),
        (user(false), see, "0 0"),
        (String::new(), me, "-"),
        (String::new(), &add, refused),
        (user(true), see, "1 2"),
        (user(false), me, "-"),
        (user(true), me, "b"),
        (String::new(), &access, "true"),
        (user(false), &access, "false"),
        (user(true), &access, "true"),
        (tenant(false), see, "0 0"),
        (tenant(true), me, "b"),
        (tenant(false), &access, "false"),
        (tenant(true), see, "1 2"),
        (unshare.clone(), see, "0 0"),
        (String::new(), &access, "false"),
        (String::new(), &add, refused),
        (share.clone(), see, "1 2"),
        (unshare, &access, "false"),
        (visible("tenant"), see, "1 2"),
        (String::new(), &add, refused),
        (visible("private"), see, "0 0"),
        (share, &access, "true"),
        (
            format!("update conversation_members set role = 'viewer' where user_id = '{BOB}'"),
            &access,
            "false",
        ),
        (String::new(), see, "1 2"),
        (
            format!("update conversation_members set role = 'editor' where user_id = '{BOB}'"),
            &access,
            "true",
        ),
        (format!("update users set role = 'admin' where {bob}"), see, "2 3"),
        (format!("update users set role = 'member' where {bob}"), see, "1 2"),
        (format!("update conversations set deleted_at = now() where {ours}"), see, "0 0"),
        (format!("update conversations set deleted_at = null where {ours}"), see, "1 2"),
    ];
    let mut session = Kept::new(database.connect("member"));
    let mut other = database.superuser();
    let mut wrong = Vec::new();
    for generic in [false, true] {
        for claims in [false, true] {
            let mode = if generic { "force_generic_plan" } else { "auto" };
            session.client.run(&format!("set plan_cache_mode = {mode}"));
            session.client.run(&if claims {
                format!("set request.jwt.claims = '{{\"sub\": \"{BOB_AUTH}\"}}'")
            } else {
                format!("reset request.jwt.claims; set pg_conversation.user_id = '{BOB}'")
            });
            for (begin, end) in frames {
                session.client.run(begin);
                for (n, (change, question, expected)) in steps.iter().enumerate() {
                    if !change.is_empty() {
                        other.run(change);
                    }
                    // A refusal must not end the transaction that the frame has begun.
                    let guard = *expected == refused && !begin.is_empty();
                    if guard {
                        session.client.run("savepoint guard");
                    }
                    let answer = match session.ask(question) {
                        Ok(row) => row.concat(),
                        Err(error) => error,
                    };
                    if guard {
                        session.client.run("rollback to guard; release guard");
                    }
                    if !answer.starts_with(expected) {
                        wrong.push(format!(
                            "{begin:?} step {n}: {change}; {question}: {answer}, not {expected}"
                        ));
                    }
                }
                session.client.run(end);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_session_shows_the_rows_of_whom_it_speaks_for_now() {
    let database = world();
    let see = "select concat_ws(' ', coalesce(right(current_user_id()::text, 1), '-'), \
               (select count(*) from conversations), (select count(*) from messages))";
    let rows = "select concat_ws(' ', (select count(*) from conversations), (select count(*) from messages))";
    let asks_ada = format!("select has_conversation_access('{MINE}', '{ADA}', 'read')::text");
    let asks_bob = format!("select has_conversation_access('{OURS}', '{BOB}', 'read')::text");
    let claims = |id: &str| format!("request.jwt.claims = '{{\"sub\": \"{id}\"}}'");
    let own = format!("update users set is_active = not is_active where id = '{ADA}'");
    let steps: Vec<(String, &str, &str)> = vec![
        (format!("set {}", claims(ADA)), see, "a 2 3"),
        (format!("set {}", claims(BOB_AUTH)), rows, "1 2"),
        (String::new(), see, "b 1 2"),
        (String::new(), &asks_ada, "false"),
        (String::new(), &asks_bob, "true"),
        (format!("set {}", claims(EVE)), &asks_bob, "false"),
        (String::new(), see, "e 1 1"),
        (format!("set {}", claims(ADA)), &asks_ada, "true"),
        (format!("set {}", claims(EVE)), &asks_ada, "false"),
        (format!("set {}", claims(BOB)), rows, "0 0"),
        ("reset request.jwt.claims".into(), see, "- 0 0"),
        (format!("set pg_conversation.user_id = '{ADA}'"), rows, "2 3"),
        (String::new(), &asks_ada, "true"),
        (format!("set pg_conversation.user_id = '{BOB}'"), &asks_ada, "false"),
        ("reset pg_conversation.user_id".into(), &asks_bob, "false"),
        (format!("set pg_conversation.user_id = '{BOB}'"), rows, "1 2"),
        // Claims win; SET LOCAL ends with the transaction and leaves an empty setting.
        (format!("begin; set local {}", claims(ADA)), rows, "2 3"),
        ("commit".into(), rows, "1 2"),
        (format!("begin; set local {}", claims(ADA)), see, "a 2 3"),
        (format!("savepoint a; set local {}", claims(EVE)), rows, "1 1"),
        ("rollback to a".into(), rows, "2 3"),
        (format!("select set_config('request.jwt.claim.sub', '{BOB_AUTH}', true)"), rows, "1 2"),
        ("rollback".into(), see, "b 1 2"),
        // Roles take turns as a pooler makes them.
        ("reset role; set role conc_other".into(), rows, "1 2"),
        (format!("set role member; set {}", claims(EVE)), rows, "1 1"),
        ("reset role".into(), rows, "3 4"),
        (format!("set role conc_other; set {}", claims(ADA)), rows, "2 3"),
        ("set role member".into(), rows, "2 3"),
        // The session changes its own row, in and out of savepoints.
        ("begin".into(), rows, "2 3"),
        (format!("savepoint a; reset role; {own}; set role member"), rows, "0 0"),
        (String::new(), &asks_ada, "false"),
        ("rollback to a".into(), rows, "2 3"),
        (String::new(), &asks_ada, "true"),
        (format!("reset role; {own}; set role member"), &asks_ada, "false"),
        (format!("savepoint b; reset role; {own}; set role member"), see, "a 2 3"),
        ("release b".into(), rows, "2 3"),
        (format!("savepoint c; reset role; {own}; set role member; release c"), rows, "0 0"),
        ("rollback to a; release a".into(), rows, "2 3"),
        (format!("reset role; {own}; set role member"), rows, "0 0"),
        ("rollback; set role member".into(), rows, "2 3"),
        // A transaction prepared and finished later.
        (format!("begin; reset role; {own}; set role member"), rows, "0 0"),
        ("reset role; prepare transaction 'conc'; set role member".into(), rows, "2 3"),
        ("reset role; commit prepared 'conc'; set role member".into(), rows, "0 0"),
        (
            format!("reset role; begin; {own}; prepare transaction 'conc'; set role member"),
            rows,
            "0 0",
        ),
        ("reset role; rollback prepared 'conc'; set role member".into(), rows, "0 0"),
        (format!("reset role; {own}; set role member"), rows, "2 3"),
        // Settings as a whole.
        ("reset all; set role member".into(), rows, "0 0"),
        (format!("set {}", claims(ADA)), rows, "2 3"),
    ];
    database.server.role("conc_other");
    let mut client = database.superuser();
    client.run("select grant_access('conc_other'); set role member");
    let mut session = Kept::new(client);
    let mut wrong = Vec::new();
    for mode in ["auto", "force_generic_plan", "force_custom_plan"] {
        for (n, (change, question, expected)) in steps.iter().enumerate() {
            for one in change.split("; ").filter(|one| !one.is_empty()) {
                session.client.run(one);
            }
            session.client.run(&format!("set plan_cache_mode = {mode}"));
            let answer = session.ask(question).map_or_else(|error| error, |row| row.concat());
            if answer != *expected {
                wrong.push(format!(
                    "{mode} step {n}: {change}; {question}: {answer}, not {expected}"
                ));
            }
        }
        session.client.run("reset all; set role member");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_cursor_goes_on_with_the_rows_it_was_opened_for() {
    let database = world();
    let mut ada = database.superuser();
    ada.run(&format!("set role member; set pg_conversation.user_id = '{ADA}'"));
    let mut other = database.superuser();
    ada.run("begin; declare c cursor for select id from messages");
    other.run(&format!("update users set is_active = false where id = '{ADA}'"));
    assert_eq!(ada.value::<i64>("select count(*) from messages"), 0);
    // The snapshot of the cursor is older than the change.
    let rows = ada.query("fetch all from c", &[]).expect("the cursor is read");
    assert_eq!(rows.len(), 3);
    assert_eq!(ada.value::<i64>("select count(*) from messages"), 0);
    ada.run("commit");
    other.run("update users set is_active = true");

    // Opened in a subtransaction that saw a change which is gone.
    ada.run(&format!(
        "begin; declare before_change cursor for select id from messages; savepoint a; \
         reset role; update users set is_active = false where id = '{ADA}'; set role member; \
         declare after_change cursor for select id from messages"
    ));
    assert_eq!(ada.query("fetch all from after_change", &[]).expect("a result").len(), 0);
    assert_eq!(ada.query("fetch 1 from before_change", &[]).expect("a result").len(), 1);
    assert_eq!(ada.query("fetch all from after_change", &[]).expect("a result").len(), 0);
    ada.run("rollback to a");
    assert_eq!(ada.query("fetch all from before_change", &[]).expect("a result").len(), 2);
    assert_eq!(ada.value::<i64>("select count(*) from messages"), 3);
    ada.run("commit");
}

/// Sessions change everything the answers rest on, in transactions that overlap, while one session
/// with kept statements asks. The truth is computed in the same statement, so in the same snapshot.
#[test]
fn kept_answers_equal_the_truth_on_a_random_walk() {
    let database = world();
    database.server.role("conc_other");
    let mut asking = database.superuser();
    asking.run("select grant_access('conc_other'); set role member");
    let mut asking = Kept::new(asking);
    let mut others: Vec<(Client, bool)> = (0..4).map(|_| (database.superuser(), false)).collect();
    for (client, _) in &mut others {
        client.run("set lock_timeout = '5ms'");
    }
    asking.client.run("set lock_timeout = '5ms'");
    let changes = [
        format!("update users set is_active = not is_active where id = '{ADA}'"),
        format!("update users set is_active = not is_active where id = '{BOB}'"),
        format!(
            "update users set role = case role when 'admin' then 'member' else 'admin' end where id = '{BOB}'"
        ),
        "update tenants set is_active = not is_active where slug = 'default'".into(),
        format!(
            "update conversations set visibility = case visibility when 'tenant' then 'private' else 'tenant' end where id = '{OURS}'"
        ),
        format!(
            "update conversations set deleted_at = case when deleted_at is null then now() end where id = '{OURS}'"
        ),
        format!(
            "with gone as (delete from conversation_members where conversation_id = '{OURS}' returning 1) \
                 insert into conversation_members (conversation_id, user_id) select '{OURS}', '{BOB}' where not exists (select from gone)"
        ),
        "create temp table if not exists takes_an_xid ()".into(),
        format!("insert into messages (conversation_id, role) values ('{MINE}', 'user')"),
    ];
    let speaks = [
        format!("set pg_conversation.user_id = '{ADA}'"),
        format!("set pg_conversation.user_id = '{BOB}'"),
        format!("set request.jwt.claims = '{{\"sub\": \"{BOB_AUTH}\"}}'"),
        format!("set request.jwt.claims = '{{\"sub\": \"{EVE}\"}}'"),
        "reset request.jwt.claims".into(),
        "reset pg_conversation.user_id".into(),
        "set local request.jwt.claims = ''".into(),
    ];
    let mut rng = Rng::new(7);
    let (mut depth, mut open, mut asked, mut seen) = (0, false, 0, 0);
    let mut history: Vec<String> = Vec::new();
    for step in 0..6000 {
        let mut note = |who: &str, sql: &str| {
            history.push(format!("{who}: {sql}"));
            if history.len() > 40 {
                history.remove(0);
            }
        };
        match rng.below(12) {
            0..=2 => {
                let n = rng.below(others.len());
                let (client, begun) = &mut others[n];
                let sql = match (*begun, rng.below(4)) {
                    (false, 0) => "begin".to_string(),
                    (true, 0) => "commit".into(),
                    (true, 1) => "rollback".into(),
                    (true, 2) if rng.below(2) == 0 => "savepoint s".into(),
                    _ => rng.pick(&changes).clone(),
                };
                note(&format!("other {n}"), &sql);
                match client.batch_execute(&sql) {
                    Ok(()) => match sql.as_str() {
                        "begin" => *begun = true,
                        "commit" | "rollback" => *begun = false,
                        _ => (),
                    },
                    // Two of them wanted one row.
                    Err(_) => {
                        client.run("rollback");
                        *begun = false;
                    }
                }
            }
            3 => {
                let sql = rng.pick(&speaks);
                note("me", sql);
                asking.client.run(sql);
            }
            4 => {
                let sql = match (open, depth, rng.below(5)) {
                    (false, ..) => {
                        open = true;
                        *rng.pick(&[
                            "begin",
                            "begin isolation level repeatable read",
                            "begin isolation level serializable",
                        ])
                    }
                    (true, 0, 0) => {
                        open = false;
                        "commit; set role member"
                    }
                    (true, 0, 1) => {
                        open = false;
                        "rollback; set role member"
                    }
                    (true, d, 2) if d > 0 => {
                        depth -= 1;
                        "release s"
                    }
                    (true, d, 3 | 0) if d > 0 => "rollback to s",
                    (true, d, 4) if d > 1 => {
                        (open, depth) = (false, 0);
                        "commit; set role member"
                    }
                    _ => {
                        depth += 1;
                        "savepoint s"
                    }
                };
                note("me", sql);
                // COMMIT may meet a serialization failure, which ends the transaction as well.
                for one in sql.split("; ") {
                    if asking.client.batch_execute(one).is_err() {
                        asking.client.run("rollback");
                    }
                }
            }
            5 if open => {
                let sql = format!("reset role; {}; set role member", rng.pick(&changes));
                note("me", &sql);
                if asking.client.batch_execute(&sql).is_err() {
                    note("me", "failed, rollback");
                    asking.client.run("rollback; set role member");
                    (open, depth) = (false, 0);
                }
            }
            6 => {
                let sql = *rng.pick(&["set role conc_other", "set role member"]);
                note("me", sql);
                asking.client.run(sql);
            }
            _ => {
                let (which, question) = rng.pick(&PROBES);
                let sql = format!("select ({question}), truth('{which}')");
                note("me", which);
                match asking.ask(&sql) {
                    Ok(row) => {
                        asked += 1;
                        seen += usize::from(!matches!(row[0].as_str(), "-" | "0" | "false"));
                        assert_eq!(row[0], row[1], "step {step}: {which}\n{}", history.join("\n"));
                    }
                    Err(error) => {
                        assert!(
                            error.starts_with("40001") || error.starts_with("25P02"),
                            "{error}"
                        );
                        asking.client.run("rollback; set role member");
                        (open, depth) = (false, 0);
                    }
                }
            }
        }
    }
    seed();
    println!("{asked} answers, {seen} of them not empty, all true");
    assert!(seen > asked / 10);
}
