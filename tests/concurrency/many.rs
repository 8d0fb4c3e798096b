//! Questions over very many conversations, answered from a list: they show what is the caller's, all of
//! it, whatever way the planner takes and whatever others do meanwhile.

use pg_conversation_tests::{Client, Database, Rng, Server, Session, oldest, seed};

use crate::identity::Kept;

const ADA: &str = "00000000-0000-4000-8000-00000000000a";
const BOB: &str = "00000000-0000-4000-8000-00000000000b";
const EVE: &str = "00000000-0000-4000-8000-00000000000e";
const ADMIN: &str = "00000000-0000-4000-8000-0000000000ad";
const OTHER: &str = "00000000-0000-4000-8000-0000000000f1";

/// The rule of access in plain SQL, for all conversations at once and past all policies.
const TRUTH: &str = "
create function his() returns table (id uuid, manages boolean) language sql stable security definer
set search_path = public as $$
    select c.id, c.user_id = me.id or me.role = 'admin' or coalesce(m.role = 'owner', false)
    from users me join tenants t on t.id = me.tenant_id and t.is_active
    join conversations c on c.tenant_id = me.tenant_id
    left join conversation_members m on m.conversation_id = c.id and m.user_id = me.id
    where me.is_active and me.id = nullif(current_setting('pg_conversation.user_id', true), '')::uuid
    and (c.user_id = me.id or me.role = 'admin' or m.role = 'owner'
        or c.deleted_at is null and (m.role is not null or c.visibility = 'tenant'))
$$;
create function his_messages() returns bigint language sql stable security definer
set search_path = public as 'select count(*) from messages where conversation_id in (select id from his())';
create function his_revisions() returns bigint language sql stable security definer
set search_path = public as 'select count(*) from message_revisions r join messages m on m.id = r.message_id
    where m.conversation_id in (select id from his() where manages)';
create function his_members() returns bigint language sql stable security definer
set search_path = public as 'select count(*) from conversation_members where conversation_id in (select id from his())';
create function his_conversations() returns bigint language sql stable as 'select count(*) from his()'";

/// Ada has 600 conversations, Eve of another tenant as many; Bob is in some of Ada's, and reads some
/// that are visible to the tenant.
fn world() -> Database<'static> {
    let database = Server::shared(oldest()).database();
    database.superuser().run(&format!(
        "insert into tenants (id, name, slug) values ('{OTHER}', 'Other', 'other'); \
         insert into users (id, role) values ('{ADA}', 'member'), ('{BOB}', 'member'), ('{ADMIN}', 'admin'); \
         insert into users (id, tenant_id) values ('{EVE}', '{OTHER}'); \
         insert into conversations (user_id, title, visibility) \
         select case n % 2 when 0 then '{ADA}' else '{EVE}' end::uuid, n::text, \
             case when n % 20 in (2, 3) then 'tenant' else 'private' end from generate_series(0, 1199) n; \
         insert into conversation_members (conversation_id, user_id, role) \
         select id, '{BOB}', (array['viewer', 'editor', 'owner'])[1 + title::int % 3] \
         from conversations where user_id = '{ADA}' and title::int % 5 = 0; \
         insert into messages (conversation_id, role, content) \
         select id, 'user', 'x' from conversations, generate_series(1, 2); \
         update messages set content = 'y' where sequence_number = 1; \
         analyze; {TRUTH}"
    ));
    database
}

/// What is asked, each a statement of its own with the truth beside it.
const QUESTIONS: [(&str, &str); 12] = [
    ("select count(*) from messages", "his_messages()"),
    ("select count(*) from messages where role = 'user'", "his_messages()"),
    ("select count(*) from conversations", "his_conversations()"),
    ("select count(distinct conversation_id) from messages", "his_conversations()"),
    (
        "select count(*) from conversations c join messages m on m.conversation_id = c.id",
        "his_messages()",
    ),
    (
        "select count(*) from messages m where exists (select from conversations c where c.id = m.conversation_id)",
        "his_messages()",
    ),
    (
        "select count(*) from messages where conversation_id in (select id from conversations)",
        "his_messages()",
    ),
    ("select count(*) from message_revisions", "his_revisions()"),
    ("select count(*) from conversation_members", "his_members()"),
    (
        "select count(*) from (select conversation_id from messages order by conversation_id, sequence_number) s",
        "his_messages()",
    ),
    (
        "select count(*) from conversations where user_id = current_user_id() or user_id <> current_user_id()",
        "his_conversations()",
    ),
    (
        "select sum((select count(*) from messages m where m.conversation_id = c.id)) from conversations c",
        "his_messages()",
    ),
];

const CHANGES: [&str; 12] = [
    "update conversations set visibility = 'tenant' where title::int % 97 = $n",
    "update conversations set visibility = 'private' where title::int % 97 = $n",
    "update conversations set deleted_at = now() where title::int % 97 = $n",
    "update conversations set deleted_at = null",
    "update conversations set user_id = '$bob' where user_id = '$ada' and title::int % 97 = $n",
    "update conversations set user_id = '$ada' where user_id = '$bob'",
    "delete from conversation_members where conversation_id in (select id from conversations where title::int % 7 = $n % 7)",
    "insert into conversation_members (conversation_id, user_id, role) select id, '$bob', 'owner' \
     from conversations where user_id = '$ada' and title::int % 97 = $n on conflict do nothing",
    "update users set is_active = $n > 60 where id = '$bob'",
    "update users set is_active = true",
    "update users set role = case when $n < 60 then 'member' else 'admin' end where id = '$bob'",
    "update tenants set is_active = true",
];

#[test]
fn a_question_over_many_conversations_shows_all_that_is_his_and_nothing_else() {
    let database = world();
    let mut owner = database.superuser();
    let mut rng = Rng::new(12);
    let people = [ADA, BOB, EVE, ADMIN, "00000000-0000-4000-8000-000000000099"];
    let settings = [
        "reset enable_seqscan; reset enable_indexscan",
        "set enable_seqscan = off",
        "set enable_seqscan = off; set enable_indexscan = off",
        "set enable_bitmapscan = off; set enable_seqscan = off",
        "set enable_hashjoin = off; set enable_mergejoin = off",
    ];
    let mut sessions: Vec<Kept> = (0..4).map(|_| Kept::new(database.connect("member"))).collect();
    for (session, mode) in sessions.iter_mut().zip(["auto", "force_generic_plan"].iter().cycle()) {
        session.client.run(&format!(
            "set plan_cache_mode = {mode}; set pg_conversation.user_id = '{}'",
            rng.pick(&people)
        ));
    }
    let (mut asked, mut something) = (0, 0);
    for step in 0..160 {
        if rng.below(3) == 0 {
            let change = rng.pick(&CHANGES).replace("$n", &rng.below(97).to_string());
            owner.run(&change.replace("$ada", ADA).replace("$bob", BOB));
        }
        let session = rng.below(sessions.len());
        let session = &mut sessions[session];
        if rng.below(4) == 0 {
            session.client.run(settings[rng.below(settings.len())]);
        }
        if rng.below(2) == 0 {
            let user = if rng.below(2) == 0 { BOB } else { rng.pick(&people) };
            session.client.run(&format!("set pg_conversation.user_id = '{user}'"));
        }
        let (question, truth) = rng.pick(&QUESTIONS);
        let sql = format!("select coalesce(({question}), 0)::text, {truth}::text");
        let row = session.ask(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(row[0], row[1], "step {step}: {sql}");
        asked += 1;
        something += usize::from(row[0] != "0");
    }
    seed();
    println!("{asked} asked, {something} of them with an answer");
    assert!(something > asked / 10);
}

fn plan(client: &mut Client, sql: &str) -> String {
    client.values::<String>(&format!("explain (costs off) {sql}")).join("\n")
}

/// The list is read through indexes of ours. One that was changed may make it slower, and never shorter.
#[test]
fn no_index_that_somebody_changed_hides_a_row() {
    let database = world();
    let mut owner = database.superuser();
    let changes = [
        "select 1",
        "drop index idx_conversations_user",
        "drop index idx_conversations_tenant_visible",
        "drop index idx_conversation_members_user",
        "drop index idx_conversations_user_updated",
        "drop index idx_conversations_user; create index idx_conversations_user on conversations (user_id) where is_archived",
        "drop index idx_conversations_user; create index idx_conversations_user on conversations (title, user_id)",
        "drop index idx_conversations_user; create index idx_conversations_user on conversations using hash (user_id)",
        "drop index idx_conversations_user; create index idx_conversations_user on conversations (user_id) include (title)",
        "drop index idx_conversations_tenant_visible; create index idx_conversations_tenant_visible \
         on conversations (tenant_id) where visibility = 'tenant' and is_archived",
        "drop index idx_conversations_tenant_visible; create index idx_conversations_tenant_visible \
         on conversations (tenant_id) where visibility = 'private'",
        "drop index idx_conversations_tenant_visible; create index idx_conversations_tenant_visible on conversations (tenant_id)",
        "drop index idx_conversation_members_user; create index idx_conversation_members_user \
         on conversation_members (user_id) where role <> 'viewer'",
        "drop index idx_conversation_members_user; create index idx_conversation_members_user on conversation_members (tenant_id)",
        "drop index idx_conversations_user_updated; create index idx_conversations_user_updated \
         on conversations (tenant_id) where deleted_at is not null",
        "drop index idx_conversations_user_updated; create index idx_conversations_user_updated on conversations (user_id)",
        "update pg_index set indisvalid = false where indexrelid = any (array['idx_conversations_user', \
         'idx_conversations_tenant_visible', 'idx_conversation_members_user', 'idx_conversations_user_updated']::regclass[])",
        "drop index idx_messages_conversation_seq; create index idx_messages_conversation_seq \
         on messages (conversation_id, sequence_number) where sequence_number > 1",
        "drop index idx_conversations_user; create table elsewhere (user_id uuid, tenant_id uuid); \
         create index idx_conversations_user on elsewhere (user_id)",
    ];
    let mut wrong = Vec::new();
    for change in changes {
        // Indexes are the table's for every session at once; what is changed here is put back.
        owner.run("begin");
        owner.run(change);
        for user in [ADA, BOB, ADMIN] {
            owner.run(&format!("set local pg_conversation.user_id = '{user}'"));
            for (question, truth) in QUESTIONS {
                for scan in ["on", "off"] {
                    owner.run(&format!("set local enable_seqscan = {scan}; set local role member"));
                    let found: String = owner.value(&format!(
                        "select coalesce(({question}), 0)::text || ' ' || {truth}::text"
                    ));
                    owner.run("reset role");
                    let (found, expected) = found.split_once(' ').expect("two numbers");
                    if found != expected {
                        wrong
                            .push(format!("{change}: {user}: {question}: {found}, not {expected}"));
                    }
                }
            }
        }
        owner.run("rollback");
    }
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    // The way through the index is taken where it is worth it, or all of this says little.
    let mut member = database.connect("member");
    member.run(&format!(
        "set pg_conversation.user_id = '{BOB}'; set enable_seqscan = off; set enable_indexonlyscan = off"
    ));
    let plan = plan(&mut member, "select count(*) from messages");
    assert!(plan.contains("readable_conversations"), "{plan}");
}
