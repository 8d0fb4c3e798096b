//! Plans of a tenant that has grown, as everybody: figures of a period are a stretch of an index.

use pg_conversation_tests::{Client, Database, Server, Session, Uuid, oldest};

use crate::world::service;

/// Ten tenants of 20 users and 500 conversations with 12 messages each, over 300 days.
const GROWN: &str = "
    set session_replication_role = replica;
    insert into tenants (id, name, slug)
        select md5('t' || n)::uuid, n, 'grown-' || n from generate_series(1, 10) n;
    insert into users (id, tenant_id, role)
        select md5('u' || t || n)::uuid, md5('t' || t)::uuid, case n when 1 then 'admin' else 'member' end
        from generate_series(1, 10) t, generate_series(1, 20) n;
    insert into conversations (id, tenant_id, user_id, session_id, continuation_id, title, visibility,
            last_sequence)
        select md5('c' || t || ' ' || n)::uuid, md5('t' || t)::uuid, md5('u' || t || 1 + n % 20)::uuid,
            t || ' ' || n, t || ' ' || n, 'x', 'private', 12
        from generate_series(1, 10) t, generate_series(1, 500) n;
    insert into messages (id, conversation_id, tenant_id, sequence_number, role, content, latency_ms, created_at)
        select new_id(), md5('c' || t || ' ' || n)::uuid, md5('t' || t)::uuid, s,
            case s % 2 when 1 then 'user' else 'assistant' end::message_role, repeat('word ', 60), s * 100,
            timestamptz '2025-01-01' + (n * 300.0 / 500 + s / 1000.0) * interval '1 day'
        from generate_series(1, 500) n, generate_series(1, 10) t, generate_series(1, 12) s;
    insert into feedback_counts (message_id, conversation_id, tenant_id, thumbs_up, thumbs_down)
        select id, conversation_id, tenant_id, 1, 0 from messages
        where role = 'assistant' and sequence_number % 6 = 0;
    vacuum analyze";

fn user(tenant: u32, number: u32) -> Uuid {
    // As the statement above makes them.
    let mut client = Server::shared(oldest()).connect("postgres", "postgres");
    client.value(&format!("select md5('u{tenant}{number}')::uuid"))
}

fn grown() -> Database<'static> {
    let database = Server::shared(oldest()).database();
    for statement in GROWN.split(';') {
        // Not as one, which would be a transaction that vacuum refuses.
        let mut client = database.superuser();
        client.run("set session_replication_role = replica");
        client.run(statement);
    }
    database
}

fn plan(client: &mut Client, call: &str) -> String {
    client
        .values::<String>(&format!("explain (analyze, costs off, timing off, summary off) {call}"))
        .join("\n")
}

#[test]
fn a_month_is_a_stretch_of_an_index_for_everybody() {
    let database = grown();
    let tenant: Uuid = database.superuser().value("select md5('t3')::uuid");
    let everybody = [
        ("a member", database.member(user(3, 2))),
        ("an admin", database.member(user(3, 1))),
        ("the service", service(&database)),
    ];
    for (who, mut client) in everybody {
        for (function, index) in [
            ("daily_activity", "Index Only Scan using idx_messages_tenant_created"),
            ("longest_conversations", "Index Only Scan using idx_messages_tenant_created"),
            ("feedback_rate", "Index Only Scan using idx_messages_tenant_answers"),
            ("latency_percentiles", "idx_messages_tenant_answers"),
        ] {
            let more = if function == "longest_conversations" { ", 2" } else { "" };
            let arguments = format!("'2025-06-01', '2025-06-30', '{tenant}'{more}");
            let sql = format!("select * from {function}({arguments})");
            let plan = plan(&mut client, &sql);
            // A member's few conversations may be the shorter way.
            let is_own = who == "a member" && plan.contains("readable_conversations");
            assert!(plan.contains(index) || is_own, "{who}, {function}: {plan}");
            assert!(!plan.contains("Seq Scan"), "{who}, {function}: {plan}");
            // Of the conversations only those that are shown.
            let looked_up =
                plan.contains("conversations_pkey on conversations c (actual rows=1 loops=2)");
            assert_eq!(looked_up, function == "longest_conversations", "{who}, {function}: {plan}");
            let rows: i64 = client.value(&format!("select count(*) from ({sql}) f"));
            assert!(rows > 0, "{who}, {function}");
        }
    }
}

/// An index that begins with the tenant is a way in, but not one of the caller's own.
#[test]
fn a_query_that_names_the_tenant_is_still_led_to_the_callers_conversations() {
    let database = grown();
    let tenant: Uuid = database.superuser().value("select md5('t3')::uuid");
    let mut member = database.member(user(3, 2));
    for sql in [
        format!("select count(*) from messages where tenant_id = '{tenant}'"),
        format!("select id from messages where tenant_id = '{tenant}' and role = 'assistant'"),
        format!(
            "select id from messages where tenant_id = '{tenant}' order by created_at desc limit 50"
        ),
    ] {
        let plan = plan(&mut member, &sql);
        assert!(plan.contains("readable_conversations"), "{plan}");
    }
    let all: i64 = member.value("select count(*) from messages");
    assert_eq!(all, 25 * 12);
}
