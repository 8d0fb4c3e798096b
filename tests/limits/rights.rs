//! Who may reserve, and what others hear.

use pg_conversation_tests::{Client, Session, Uuid};

use crate::desk::{Desk, Limits, NOBODY, code};

const TABLES: [&str; 3] = ["rate_states", "token_windows", "token_reservations"];

#[test]
fn members_neither_reserve_nor_settle() {
    let desk = Desk::new();
    desk.tokens("100");
    let id = desk.service().reserve(desk.tenant, 10).unwrap().id.unwrap();
    desk.database.superuser().run("update users set role = 'admin'");
    desk.database.server.role("limits_anon");
    desk.database.superuser().run("select grant_access('limits_anon', 'anon')");
    let mut anon = desk.database.connect("limits_anon");
    let mut nobody = desk.database.connect("member");
    let mut member = desk.member();
    for client in [&mut member, &mut nobody, &mut anon] {
        for tenant in [desk.tenant, Uuid::new_v4()] {
            assert_eq!(code(client.reserve(tenant, 1)), "42501");
        }
        for id in [id, Uuid::new_v4()] {
            assert_eq!(code(client.settle(id, 1)), "42501");
            assert_eq!(code(client.release(id)), "42501");
        }
        assert_eq!(client.error("select reserve_tokens(1)").0, "42501");
        assert_eq!(client.error("select cleanup_reservations()").0, "42501");
        for table in TABLES {
            assert_eq!(client.error(&format!("select * from {table}")).0, "42501", "{table}");
            assert_eq!(client.error(&format!("delete from {table}")).0, "42501", "{table}");
        }
        client.run("begin; set local row_security = off");
        assert_eq!(client.error("select reserve_tokens(1)").0, "42501");
        client.run("rollback");
    }
    // Somebody to whom it was granted is bound by policies all the same.
    desk.database.superuser().run("grant select, insert, update on token_reservations to member");
    assert_eq!(code(member.reserve(desk.tenant, 1)), "42501");
    assert_eq!(code(member.settle(id, 1)), "42501");
}

#[test]
fn nobody_hears_of_a_tenant_that_is_not_his() {
    let desk = Desk::new();
    let (other, user) = desk.stranger();
    desk.requests("10");
    desk.tokens("10");
    let mut service = desk.service();
    service.reserve(other, 10).unwrap();
    service.draw_of(other, 10).unwrap();
    let mut member = desk.member();
    assert_eq!(member.draw_of(other, 1).unwrap(), member.draw_of(Uuid::new_v4(), 1).unwrap());
    assert_eq!(member.draw_of(other, 0).unwrap(), NOBODY);
    // Of a conversation of theirs, neither that it is there nor that their day is full.
    let mut stranger = desk.database.member(user);
    let theirs: Uuid = stranger.value("select create_conversation('theirs')");
    assert_eq!(code(stranger.begin(theirs, 1)), "PT429");
    let words = |client: &mut Client, conversation: Uuid| {
        let sql = format!("select begin_message('{conversation}', reserve_tokens => 1)");
        let (code, message) = client.error(&sql);
        (code, message.replace(&conversation.to_string(), "x"))
    };
    let unknown = words(&mut member, Uuid::new_v4());
    assert_eq!(words(&mut member, theirs), unknown);
    assert_eq!(unknown.0, "P0002");
    // Nor do they stand in the way, or wait.
    stranger.run("begin");
    desk.tokens("1000");
    stranger.begin(theirs, 1).unwrap();
    member.run("set lock_timeout = 1");
    assert_eq!(words(&mut member, theirs), unknown);
    stranger.run("rollback");
    // A reader of a conversation is not one who may write in it.
    member.run(&format!(
        "update conversations set visibility = 'tenant' where id = '{}'",
        desk.conversation
    ));
    let reader = Uuid::new_v4();
    desk.database
        .superuser()
        .run(&format!("insert into users (id, tenant_id) values ('{reader}', '{}')", desk.tenant));
    let mut reader = desk.database.member(reader);
    assert_eq!(reader.value::<i64>("select count(*) from conversations"), 1);
    assert_eq!(code(reader.begin(desk.conversation, 1)), "P0002");
}

#[test]
fn policies_show_admins_their_tenant_and_members_themselves() {
    let desk = Desk::new();
    let (_, user) = desk.stranger();
    desk.requests("10");
    let mut stranger = desk.database.member(user);
    let theirs: Uuid = stranger.value("select create_conversation('theirs')");
    let colleague = Uuid::new_v4();
    desk.database.superuser().run(&format!(
        "insert into users (id, tenant_id) values ('{colleague}', '{}'); \
         grant select on rate_states, token_windows, token_reservations to member",
        desk.tenant
    ));
    for (client, conversation) in [(&mut desk.member(), desk.conversation), (&mut stranger, theirs)]
    {
        client.draw(1).unwrap();
        let message = client.begin(conversation, 5).unwrap();
        client.run(&format!("select finish_message('{message}', 1)"));
    }
    let mut colleague = desk.database.member(colleague);
    let mut member = desk.member();
    let count = |client: &mut Client| -> Vec<i64> {
        TABLES.iter().map(|table| client.value(&format!("select count(*) from {table}"))).collect()
    };
    assert_eq!(count(&mut member), [0, 0, 1]);
    assert_eq!(count(&mut colleague), [0, 0, 0]);
    desk.database.superuser().run("update users set role = 'admin'");
    for client in [&mut member, &mut colleague, &mut stranger] {
        assert_eq!(count(client), [1, 1, 1]);
        let foreign: i64 = client.value(
            "select count(*) from token_reservations where tenant_id <> current_tenant_id()",
        );
        assert_eq!(foreign, 0);
    }
    assert_eq!(count(&mut desk.database.connect("member")), [0, 0, 0]);
}

#[test]
fn the_service_cannot_go_past_the_functions() {
    let desk = Desk::new();
    desk.requests("10");
    desk.tokens("10");
    let mut service = desk.service();
    let id = service.reserve(desk.tenant, 10).unwrap().id.unwrap();
    service.draw_of(desk.tenant, 10).unwrap();
    let insert = "insert into token_reservations";
    for (statement, code) in [
        (format!("{insert} (id) values (new_id())"), "23502"),
        (format!("{insert} (id, tenant_id) values (new_id(), new_id())"), "42501"),
        (format!("{insert} select * from token_reservations"), "42501"),
        (
            format!("{insert} (id) values ('{id}') on conflict (id) do update set tokens = 0"),
            "42501",
        ),
        ("update token_reservations set tokens = 0".into(), "42501"),
        ("delete from token_reservations".into(), "42501"),
        (
            "insert into token_windows select tenant_id, date, 1, -9 from token_reservations"
                .into(),
            "42501",
        ),
        ("update token_windows set used = 0".into(), "42501"),
        ("update rate_states set next_at = now()".into(), "42501"),
        ("delete from rate_states".into(), "42501"),
    ] {
        assert_eq!(service.error(&statement).0, code, "{statement}");
    }
    service.run("begin read only");
    assert_eq!(code(service.reserve(desk.tenant, 1)), "25006");
    service.run("rollback");
}

#[test]
fn an_unsigned_request_is_refused_without_an_error() {
    let desk = Desk::new();
    desk.requests("10");
    desk.database.server.role("limits_anon");
    desk.database.superuser().run("select grant_access('limits_anon', 'anon')");
    let mut anon = desk.database.connect("limits_anon");
    assert_eq!(anon.draw(1).unwrap(), NOBODY);
    // Whoever claims to be somebody needs a role that may be.
    anon.run(&format!("set pg_conversation.user_id = '{}'", desk.user));
    assert_eq!(code(anon.draw(1)), "42501");
    assert_eq!(desk.member().draw(0).unwrap().remaining, Some(10));
}
