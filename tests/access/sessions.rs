//! Sessions that live longer than one identity: cursors, prepared statements, settings that linger.

use pg_conversation_tests::{Client, Server, Session, oldest};

use crate::answer::{Answer, ask};
use crate::world::{Person, World, claims, impersonation, world};

const CONTENTS: &str = "select content from messages";

/// Whose secrets are in the rows: letters of tenants.
fn told(answer: &Answer) -> String {
    let Answer::Rows(rows, _) = answer else { return answer.text() };
    let texts = rows.iter().flatten().flatten();
    let mut tenants: Vec<&str> =
        texts.flat_map(|text| text.split("secret-").skip(1)).map(|rest| &rest[..1]).collect();
    tenants.sort_unstable();
    tenants.dedup();
    tenants.join("")
}

#[test]
fn a_prepared_statement_reads_for_whoever_is_signed_in_now() {
    let world = world(Server::shared(oldest()));
    for mode in ["auto", "force_generic_plan", "force_custom_plan"] {
        let mut gate = world.gate();
        gate.run(&format!("set plan_cache_mode = {mode}"));
        let begin = |gate: &mut Client, person: &Person| {
            gate.run(&format!("begin; {}", impersonation(person)))
        };
        begin(&mut gate, world.person("a owner"));
        let all = gate.prepare(CONTENTS).expect("prepared");
        let some = gate
            .prepare("select content from messages where conversation_id = $1")
            .expect("prepared");
        let edit =
            gate.prepare("update messages set content = 'x' where id = $1").expect("prepared");
        gate.run(
            "create function pg_temp.texts() returns setof text language plpgsql as \
             'begin return query select content from public.messages; end'; \
             grant execute on function pg_temp.texts() to public; commit",
        );
        let place = world.place("a/private");
        let own = place.messages[&place.owner];
        let mut expected = Vec::new();
        for person in &world.people {
            let mut session = world.session(&person.name);
            expected.push(ask(&mut session, CONTENTS).text());
        }
        for round in 0..7 {
            for (person, expected) in world.people.iter().zip(&expected) {
                begin(&mut gate, person);
                match gate.query(&all, &[]) {
                    Ok(rows) => assert!(
                        expected.starts_with(&format!("{}: ", rows.len())),
                        "{mode}, {round}: {} reads {} rows, not {expected:.60}",
                        person.name,
                        rows.len()
                    ),
                    Err(error) => assert!(
                        expected.starts_with(error.code().expect("a code").code()),
                        "{mode}: {}: {error}",
                        person.name
                    ),
                }
                gate.run(&format!("rollback; begin; {}", impersonation(person)));
                let sees = |rows: Vec<_>| !rows.is_empty();
                let in_place = gate.query(&some, &[&place.id]).is_ok_and(sees);
                let relation = world.relation(person, place);
                let reads = [
                    "owner",
                    "co-owner",
                    "editor",
                    "viewer",
                    "admin",
                    "service",
                    "syncer",
                    "table owner",
                ];
                assert_eq!(in_place, reads.contains(&relation), "{mode}, {round}: {}", person.name);
                gate.run(&format!("rollback; begin; {}", impersonation(person)));
                let edited = gate.execute(&edit, &[&own]).is_ok_and(|n| n == 1);
                let edits = ["owner", "service", "syncer", "table owner"].contains(&relation);
                assert_eq!(edited, edits, "{mode}, {round}: {}", person.name);
                gate.run("rollback");
            }
        }
    }
}

/// What a cursor has fetched belongs to the session: one that is held outlives its reader, so poolers
/// must close it. One that is not held reads for whoever fetches first, and for nobody else after.
#[test]
fn a_cursor_gives_the_next_reader_nothing_but_what_was_fetched_for_the_last() {
    let world = world(Server::shared(oldest()));
    let mut gate = world.gate();
    let (ada, eve) = (world.person("a owner"), world.person("b owner"));
    gate.run(&format!(
        "begin; {}; declare held cursor with hold for {CONTENTS}; commit; begin; {}",
        impersonation(ada),
        impersonation(eve)
    ));
    assert_eq!(told(&ask(&mut gate, "fetch all from held")), "a");
    assert_eq!(told(&ask(&mut gate, CONTENTS)), "b");
    gate.run("commit");
    gate.run("discard all");
    assert!(ask(&mut gate, "fetch all from held").text().starts_with("34000"));

    for fetched in [0, 1, 5] {
        gate.run(&format!("begin; {}; declare open cursor for {CONTENTS}", impersonation(ada)));
        gate.run(&format!("fetch {fetched} from open; {}", impersonation(eve)));
        let rest = told(&ask(&mut gate, "fetch all from open"));
        let first = if fetched == 0 { "b" } else { "a" };
        assert!(rest.is_empty() && fetched > 0 || rest == first, "after {fetched}: {rest}");
        gate.run("rollback");
    }
}

#[test]
fn within_one_transaction_each_statement_is_for_whoever_is_signed_in_then() {
    let world = world(Server::shared(oldest()));
    let mut session = world.session("nobody");
    for isolation in ["read committed", "repeatable read", "serializable"] {
        session.run(&format!("begin isolation level {isolation}"));
        for _ in 0..7 {
            for name in [
                "a owner",
                "b owner",
                "nobody",
                "a viewer",
                "a inactive",
                "b admin",
                "off owner",
                "a colleague",
            ] {
                let person = world.person(name);
                let login = person.login.map_or(String::new(), |login| login.to_string());
                session.run(&format!("set local request.jwt.claim.sub = '{login}'"));
                let expected = match world.secrets_of(person) {
                    Some("none") | None => "",
                    Some(_) if name == "a inactive" => "",
                    Some(tenant) => tenant,
                };
                assert_eq!(told(&ask(&mut session, CONTENTS)), expected, "{isolation}: {name}");
                let id: Option<pg_conversation_tests::Uuid> =
                    session.value("select current_user_id()");
                let is_active = !expected.is_empty();
                assert_eq!(id, person.user.filter(|_| is_active), "{isolation}: {name}");
                let place = world.place("a/private");
                let call = format!("savepoint s; select reconstruct_message('{}')", place.stream);
                let text = told(&ask(&mut session, &call));
                let reads = ["owner", "viewer"].contains(&world.relation(person, place));
                assert_eq!(text, if reads { "a" } else { "" }, "{isolation}: {name}");
            }
        }
        session.run("rollback");
    }
}

/// The setting of one transaction stays behind in the session as an empty text.
#[test]
fn claims_of_a_transaction_are_gone_after_it() {
    let world = world(Server::shared(oldest()));
    let person = world.person("a owner");
    let login = person.login.expect("a login");
    for (setting, value) in [
        ("request.jwt.claims", format!("{{\"sub\": \"{login}\"}}")),
        ("request.jwt.claim.sub", login.to_string()),
        ("pg_conversation.user_id", person.user.expect("a user").to_string()),
    ] {
        for end in ["commit", "rollback"] {
            let mut session = world.session("nobody");
            session.run(&format!("begin; select set_config('{setting}', '{value}', true)"));
            assert_eq!(told(&ask(&mut session, CONTENTS)), "a", "{setting}");
            session.run(end);
            let left: Option<String> =
                session.value(&format!("select current_setting('{setting}', true)"));
            assert_eq!(left.unwrap_or_default(), "", "{setting}");
            assert_eq!(told(&ask(&mut session, CONTENTS)), "", "{setting} after {end}");
            // What is left of one source does not stand in the way of another.
            session
                .run(&format!("set pg_conversation.user_id = '{}'", person.user.expect("a user")));
            assert_eq!(told(&ask(&mut session, CONTENTS)), "a", "{setting} after {end}");
        }
    }
}

/// Settings, what they say, and whether they name the owner in tenant a.
fn cases(world: &World) -> Vec<(&'static str, String, bool)> {
    let person = world.person("a owner");
    let (login, user) = (person.login.expect("a login"), person.user.expect("a user"));
    let sub = |value: &str| format!("{{\"sub\": {value}}}");
    let deep =
        |n: usize, with: &str| format!("{{\"x\": {}{}{with}}}", "[".repeat(n), "]".repeat(n));
    let good = format!(", \"sub\": \"{login}\"");
    let claims = "request.jwt.claims";
    vec![
        (claims, String::new(), false),
        (claims, " ".into(), false),
        (claims, "not json".into(), false),
        (claims, "{".into(), false),
        (claims, "null".into(), false),
        (claims, "[]".into(), false),
        (claims, "7".into(), false),
        (claims, format!("\"{login}\""), false),
        (claims, login.to_string(), false),
        (claims, "{}".into(), false),
        (claims, "{\"role\": \"service_role\"}".into(), false),
        (claims, sub("null"), false),
        (claims, sub("7"), false),
        (claims, sub("true"), false),
        (claims, sub("\"\""), false),
        (claims, sub("\"nobody\""), false),
        (claims, sub("\"' or true --\""), false),
        (claims, sub(&format!("[\"{login}\"]")), false),
        (claims, sub(&format!("{{\"sub\": \"{login}\"}}")), false),
        (claims, sub("\"00000000-0000-0000-0000-000000000000\""), false),
        (claims, sub("\"12345678-1234-4123-8123-123456789abc\""), false),
        (claims, sub(&format!("\"{login}x\"")), false),
        // The id of a user is not his login.
        (claims, sub(&format!("\"{user}\"")), false),
        (claims, sub(&format!("\"{login}\"")), true),
        (claims, sub(&format!("\"{}\"", login.to_string().to_uppercase())), true),
        (claims, format!("{{\"big\": \"{}\"{good}}}", "x".repeat(1 << 20)), true),
        (claims, format!("{{\"big\": \"{}\"}}", "x".repeat(1 << 20)), false),
        (claims, "x".repeat(1 << 20), false),
        (claims, deep(100_000, ""), false),
        (claims, deep(100_000, &good), true),
        (claims, "[".repeat(100_000), false),
        (claims, "{\"sub\":".repeat(100_000), false),
        (claims, deep(50, &good), true),
        ("request.jwt.claim.sub", "x".into(), false),
        ("request.jwt.claim.sub", user.to_string(), false),
        ("request.jwt.claim.sub", login.to_string(), true),
        ("pg_conversation.user_id", "x".into(), false),
        ("pg_conversation.user_id", login.to_string(), false),
        ("pg_conversation.user_id", user.to_string(), true),
        ("pg_conversation.user_id", format!(" {user} "), true),
    ]
}

#[test]
fn claims_name_somebody_or_nobody_and_never_raise_an_error_in_a_policy() {
    let world = world(Server::shared(oldest()));
    let place = world.place("a/private");
    // One session for all, as behind a pooler, and what an anonymous and a service role see beside.
    let mut session = world.session("nobody");
    let reads = [
        CONTENTS.to_string(),
        "select title from conversations".into(),
        format!("select reconstruct_message('{}')", place.stream),
        format!("select content from get_conversation_with_messages('{}')", place.id),
        "select chunk_content from message_chunks".into(),
        "select title from list_conversations()".into(),
    ];
    for (setting, value, is_owner) in cases(&world) {
        let said: String = value.chars().take(60).collect();
        session.run(&format!("begin; set local {setting} = '{}'", value.replace('\'', "''")));
        for sql in &reads {
            let answer = ask(&mut session, sql);
            assert!(matches!(answer, Answer::Rows(..)), "{setting} = {said}: {}", answer.text());
            let told = told(&answer);
            assert_eq!(told, if is_owner { "a" } else { "" }, "{setting} = {said}");
        }
        // To write for nobody is refused in the words for what does not exist.
        let write =
            format!("insert into messages (conversation_id, role) values ('{}', 'user')", place.id);
        let answer = ask(&mut session, &write);
        let code = answer.text().split(' ').next().unwrap_or_default().to_string();
        assert_eq!(code, if is_owner { "1:" } else { "P0002" }, "{setting} = {said}");
        session.run("rollback");
    }
    // Whatever the claims say, they open no table to a role that has none.
    for name in ["anon", "monitor"] {
        let mut session = world.session(name);
        session.run(&claims(world.person("a owner")));
        assert!(ask(&mut session, CONTENTS).text().starts_with("42501"), "{name}");
    }
}

/// Whoever may call set_config() says who he is: a statement that does so half-way reads for one of the
/// two, and never for both.
#[test]
fn a_statement_that_signs_somebody_else_in_reads_for_one_of_them() {
    let world = world(Server::shared(oldest()));
    let (ada, eve) = (world.person("a owner"), world.person("b owner"));
    let login = eve.login.expect("a login");
    let swap = format!("set_config('request.jwt.claim.sub', '{login}', true) <> ''");
    for sql in [
        format!("select content from messages where {swap}"),
        format!("select content from messages where role = 'user' and {swap} order by id"),
        format!("select content, {swap} from messages"),
        format!("select content from (select {swap}) _, messages"),
        format!(
            "select m.content from conversations c join messages m on m.conversation_id = c.id where {swap}"
        ),
        format!("with _ as materialized (select {swap}) select content from messages, _"),
        format!("select chunk_content from message_chunks where {swap}"),
        format!("select title from conversations where {swap} limit 3"),
        format!("update conversations set title = title where {swap} returning title"),
    ] {
        for mode in ["on", "off"] {
            let mut gate = world.gate();
            gate.run(&format!("begin; {}; set local enable_seqscan = {mode}", impersonation(ada)));
            let answer = ask(&mut gate, &sql);
            assert!(matches!(answer, Answer::Rows(..)), "{sql}: {}", answer.text());
            let told = told(&answer);
            assert!(told.len() <= 1, "{sql}: {told}");
            gate.run("rollback");
        }
    }
}
