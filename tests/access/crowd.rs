//! Statements over very many conversations: answers that are found all at once, through an index or in
//! parallel, are those of the rule.

use std::collections::BTreeMap;

use pg_conversation_tests::{Client, Server, Session, Uuid, describe, oldest, versions};

use crate::world::{World, impersonation, world};

/// Conversations of every kind, so many that nobody is asked about one by one.
const CROWD: &str = "
    insert into conversations (id, tenant_id, user_id, title, visibility)
    select md5(t.slug || n)::uuid, t.id,
        case when n % 11 > 0 then md5(t.slug || ' ' || o.who)::uuid end, 'many',
        case n % 5 when 0 then 'tenant' else 'private' end
    from tenants t, generate_series(1, 420) n
    join (values (0, 'owner'), (1, 'editor'), (2, 'colleague'), (3, 'admin'), (4, 'inactive'), (5, 'viewer'))
        o (k, who) on n % 6 = o.k
    where t.slug in ('a', 'b', 'off');
    insert into conversation_members (conversation_id, user_id, role)
    select c.id, u.id, (array['owner', 'editor', 'viewer'])[1 + abs(hashtext(c.id::text || u.name)) % 3]
    from conversations c join users u on u.tenant_id = c.tenant_id and u.id is distinct from c.user_id
    where title = 'many' and abs(hashtext(u.name || c.id::text)) % 4 = 0;
    insert into messages (conversation_id, role, content, author_id, status)
    select c.id, 'user', 'secret-' || t.slug, c.user_id,
        case abs(hashtext(c.id::text)) % 3 when 0 then 'streaming' else 'completed' end::message_status
    from conversations c join tenants t on t.id = c.tenant_id where title = 'many';
    insert into message_chunks (message_id, chunk_content)
    select id, 'secret' from messages where status = 'streaming' and role = 'user';
    insert into feedback (message_id, user_id, rating)
    select m.id, m.author_id, 1 from messages m join conversations c on c.id = m.conversation_id
    where c.title = 'many' and m.author_id is not null;
    update messages set content = content || ', edited' where status = 'completed' and role = 'user';
    update conversations set deleted_at = now() where title = 'many' and abs(hashtext(id::text)) % 7 = 0;
    analyze";

/// The rule once more, in plain words: everybody's level in every conversation, and in nothing else.
const RULE: &str = "
    select u.id, c.id, case
        when not (u.is_active and t.is_active) then 0
        when c.user_id = u.id or u.role = 'admin' or m.role = 'owner' then 3
        when c.deleted_at is not null then 0
        when m.role = 'editor' then 2
        when m.role = 'viewer' or c.visibility = 'tenant' then 1
        else 0 end
    from users u join tenants t on t.id = u.tenant_id join conversations c on c.tenant_id = u.tenant_id
    left join conversation_members m on m.conversation_id = c.id and m.user_id = u.id";

/// A query, the level that it takes, and the conversation of each row that there is for everybody.
const QUERIES: [(&str, i32, &str); 15] = [
    ("select id from conversations", 1, "select id from conversations"),
    (
        "select id from conversations order by updated_at desc, id",
        1,
        "select id from conversations",
    ),
    ("select conversation_id from messages", 1, "select conversation_id from messages"),
    (
        "select m.conversation_id from messages m order by created_at",
        1,
        "select conversation_id from messages",
    ),
    (
        "select conversation_id from conversation_members",
        1,
        "select conversation_id from conversation_members",
    ),
    (
        "select m.conversation_id from conversations c join messages m on c.id = m.conversation_id",
        1,
        "select conversation_id from messages",
    ),
    (
        "select id from conversations c where exists (select from messages where conversation_id = c.id)",
        1,
        "select distinct conversation_id from messages",
    ),
    (
        "select conversation_id from message_chunks k join messages m on m.id = k.message_id",
        1,
        "select conversation_id from message_chunks k join messages m on m.id = k.message_id",
    ),
    (
        "select conversation_id from message_revisions r join messages m on m.id = r.message_id",
        3,
        "select conversation_id from message_revisions r join messages m on m.id = r.message_id",
    ),
    ("select conversation_id from feedback", 1, "select conversation_id from feedback"),
    (
        "select c.conversation_id from messages m join feedback_counts c on c.message_id = m.id",
        1,
        "select conversation_id from feedback_counts",
    ),
    ("select id from conversations for update", 3, "select id from conversations"),
    ("update conversations set title = 'x' returning id", 3, "select id from conversations"),
    ("delete from conversations returning id", 3, "select id from conversations"),
    (
        "select m.conversation_id from messages m where m.content like 'secret%' and m.role = 'user'",
        1,
        "select conversation_id from messages where role = 'user' and content like 'secret%'",
    ),
];

fn counted(ids: Vec<Uuid>) -> BTreeMap<Uuid, usize> {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

/// What is wrong with what each query gives each person, with the settings of a planner.
fn wrong_under(world: &World, settings: &[&str]) -> Vec<String> {
    let mut root = world.root();
    let rows = root.query(RULE, &[]).expect("the rule");
    let levels: BTreeMap<(Uuid, Uuid), i32> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let all: Vec<Vec<Uuid>> = QUERIES.iter().map(|(_, _, all)| root.values(all)).collect();
    let mut wrong = Vec::new();
    let mut gate = world.gate();
    for person in world.people.iter().filter(|person| person.user.is_some()) {
        let user = person.user.expect("a user");
        for setting in settings {
            for ((sql, wanted, _), all) in QUERIES.iter().zip(&all) {
                gate.run(&format!("begin; {}; {setting}", impersonation(person)));
                let found = match gate.query(*sql, &[]) {
                    Ok(rows) => counted(rows.iter().map(|row| row.get(0)).collect()),
                    Err(error) => panic!("{}: {setting}: {sql}: {}", person.name, describe(&error)),
                };
                gate.run("rollback");
                let may =
                    |id: &&Uuid| levels.get(&(user, **id)).is_some_and(|level| level >= wanted);
                let expected = counted(all.iter().filter(may).copied().collect());
                if found != expected {
                    wrong.push(format!(
                        "{}: {setting}: {sql}: {} conversations, not {}",
                        person.name,
                        found.len(),
                        expected.len()
                    ));
                }
            }
        }
    }
    wrong
}

fn crowded(server: &'static Server) -> World {
    let world = world(server);
    world.root().run(CROWD);
    world
}

#[test]
fn very_many_conversations_are_judged_as_each_alone() {
    let world = crowded(Server::shared(oldest()));
    let settings = [
        "set local enable_seqscan = on",
        "set local enable_seqscan = off",
        "set local enable_seqscan = off; set local enable_indexscan = off; \
         set local enable_indexonlyscan = off",
        "set local enable_indexscan = off; set local enable_bitmapscan = off; \
         set local enable_nestloop = off",
    ];
    assert_eq!(wrong_under(&world, &settings), [""; 0]);
}

#[test]
fn workers_of_a_parallel_plan_judge_as_their_leader() {
    let server = Server::shared(*versions().last().expect("a version"));
    let world = crowded(server);
    let force = if server.version < 16 { "force_parallel_mode" } else { "debug_parallel_query" };
    let cheap = format!(
        "set local {force} = on; set local parallel_setup_cost = 0; set local parallel_tuple_cost = 0; \
         set local min_parallel_table_scan_size = 0; set local min_parallel_index_scan_size = 0; \
         set local enable_indexscan = off; set local enable_indexonlyscan = off; \
         set local enable_bitmapscan = off"
    );
    assert_eq!(wrong_under(&world, &[&cheap]), [""; 0]);
    let mut gate = world.gate();
    gate.run(&format!("begin; {}; {cheap}", impersonation(world.person("a viewer"))));
    let plan = gate.values::<String>("explain select count(*) from messages").concat();
    assert!(plan.contains("Gather"), "{plan}");
}

/// What a transaction has learnt of many does not outlive its own changes.
#[test]
fn leaving_some_of_very_many_shows_in_the_next_statement() {
    let world = crowded(Server::shared(oldest()));
    for isolation in ["read committed", "repeatable read"] {
        let mut session = world.session("a editor");
        session.run(&format!("begin isolation level {isolation}"));
        let ids =
            |session: &mut Client| counted(session.values("select conversation_id from messages"));
        let mut expected = ids(&mut session);
        let left: Vec<Uuid> = session.values(
            "select c.id from conversation_members m join conversations c on c.id = conversation_id \
             where m.user_id = current_user_id() and c.visibility = 'private' and c.user_id is not null \
             and c.user_id <> current_user_id() limit 5",
        );
        assert_eq!(left.len(), 5);
        for id in left {
            assert!(session.value::<bool>(&format!("select remove_member('{id}')")));
            expected.remove(&id);
            assert_eq!(ids(&mut session), expected, "{isolation}");
        }
        session.run("rollback");
    }
}

/// Nor does a function that the planner would call before the policy hear of a conversation that is not
/// his who brings it.
#[test]
fn among_very_many_a_function_hears_of_what_its_caller_reads_only() {
    let world = crowded(Server::shared(oldest()));
    world.session("a owner").run(
        "create function playground.note(uuid) returns boolean language plpgsql cost 0.0000001 \
         as 'begin raise notice ''%'', $1; return true; end'",
    );
    for who in ["a viewer", "a colleague", "b owner", "a inactive"] {
        let (mut session, heard) = world.overheard(who);
        let own: Vec<Uuid> = session.values("select id from conversations");
        for setting in ["on", "off"] {
            session
                .run(&format!("set enable_seqscan = {setting}; set enable_bitmapscan = {setting}"));
            for sql in [
                "select from conversations where playground.note(id)",
                "select count(*) from messages where playground.note(conversation_id)",
                "select from messages where playground.note(conversation_id) order by created_at limit 50",
                "select from conversation_members where playground.note(conversation_id)",
                "select from conversations c join messages m on m.conversation_id = c.id \
                 where playground.note(c.id) and playground.note(m.conversation_id)",
                "select from messages m join message_chunks k on k.message_id = m.id \
                 where playground.note(m.conversation_id)",
                "select from messages m join message_revisions r on r.message_id = m.id \
                 where playground.note(m.conversation_id)",
                "update conversations set title = title where playground.note(id)",
                "select from conversations where playground.note(id) for update",
            ] {
                session.run(sql);
            }
        }
        let heard = heard.lock().expect("nobody panics");
        let own: Vec<String> = own.iter().map(Uuid::to_string).collect();
        let foreign: Vec<&String> = heard.iter().filter(|id| !own.contains(id)).collect();
        assert!(foreign.is_empty(), "{who}: {} of {}", foreign.len(), heard.len());
        assert_eq!(heard.is_empty(), own.is_empty(), "{who}");
    }
}
