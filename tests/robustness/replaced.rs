//! Each of our tables replaced by the owner of the schema, as a table or a view that runs what he
//! likes, and a superuser who goes on as if nothing had happened.

use pg_conversation_tests::{Client, Server, Session, oldest};

use crate::fault;
use crate::rights::{PROMOTE, database, is_superuser};

/// A conversation of one user with a final message and a stream, and an edit.
const ROWS: &str = "
    create extension pg_conversation; select grant_access('schema_owner');
    update tenants set features = '{\"edit_messages\": true}';
    insert into users (id) values ('11111111-1111-4111-8111-111111111111'),
        ('22222222-2222-4222-8222-222222222222');
    insert into conversations (id, user_id) values
        ('cccccccc-0000-7000-8000-00000000000a', '11111111-1111-4111-8111-111111111111');
    insert into messages (id, conversation_id, role, content) values
        ('00000000-0000-4000-8000-00000000000a', 'cccccccc-0000-7000-8000-00000000000a', 'user', 'a');
    insert into messages (id, conversation_id, role, status) values
        ('00000000-0000-4000-8000-00000000000b', 'cccccccc-0000-7000-8000-00000000000a', 'assistant', 'streaming');
    update messages set content = 'b' where content = 'a'";

/// What a superuser may call in a database that is not his, each a transaction of its own.
const CALLS: &[&str] = &[
    "select grant_access('schema_owner')",
    "select grant_access('schema_owner', 'monitor')",
    "select revoke_access('schema_owner')",
    "select revoke_all('schema_owner')",
    "select note_access('schema_owner', 'member')",
    "select * from doctor()",
    "select migrate()",
    "select rollback_to(7)",
    "select rollback_to(5)",
    "select rollback_to(3)",
    "select * from link_supabase()",
    "select enable_realtime('replaced_pub', true)",
    "select disable_realtime('replaced_pub')",
    "select current_user_id(), current_tenant_id(), is_tenant_admin(), may_edit_messages()",
    "select storage_folder(), readable_conversations('11111111-1111-4111-8111-111111111111')",
    "select has_conversation_access('cccccccc-0000-7000-8000-00000000000a', \
         '11111111-1111-4111-8111-111111111111', 'read')",
    "select has_message_access('00000000-0000-4000-8000-00000000000a', \
         '11111111-1111-4111-8111-111111111111', 'manage')",
    "select list_members('cccccccc-0000-7000-8000-00000000000a')",
    "select add_member('cccccccc-0000-7000-8000-00000000000a', '22222222-2222-4222-8222-222222222222')",
    "select set_member_role('cccccccc-0000-7000-8000-00000000000a', \
         '22222222-2222-4222-8222-222222222222', 'owner')",
    "select transfer_conversation('cccccccc-0000-7000-8000-00000000000a', \
         '22222222-2222-4222-8222-222222222222')",
    "select remove_member('cccccccc-0000-7000-8000-00000000000a', '22222222-2222-4222-8222-222222222222')",
    "select add_message('cccccccc-0000-7000-8000-00000000000a', 'user', 'x', 'key')",
    "select append_chunk('00000000-0000-4000-8000-00000000000b', 'x')",
    "select finish_message('00000000-0000-4000-8000-00000000000b')",
    "select reconstruct_message('00000000-0000-4000-8000-00000000000b')",
    "set request.jwt.claims = '{\"sub\": \"33333333-3333-4333-8333-333333333333\"}'; select ensure_user()",
];

/// The columns of a table as SQL: their definitions, and values of a row that fits the others.
fn columns(client: &mut Client, table: &str) -> (String, String) {
    let rows = client
        .query(
            "select attname::text, format_type(atttypid, atttypmod) from pg_attribute \
             where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum",
            &[&table],
        )
        .expect("columns");
    let columns: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let value = |(name, of): &(String, String)| match (name.as_str(), of.as_str()) {
        ("user_id" | "author_id" | "edited_by", _) => {
            "'11111111-1111-4111-8111-111111111111'::uuid".into()
        }
        ("tenant_id", _) => "'00000000-0000-7000-8000-000000000001'::uuid".into(),
        ("conversation_id", _) => "'cccccccc-0000-7000-8000-00000000000a'::uuid".into(),
        ("message_id", _) => "'00000000-0000-4000-8000-00000000000b'::uuid".into(),
        ("id", _) => match table {
            "users" => "'11111111-1111-4111-8111-111111111111'::uuid".into(),
            "tenants" => "'00000000-0000-7000-8000-000000000001'::uuid".into(),
            "conversations" => "'cccccccc-0000-7000-8000-00000000000a'::uuid".into(),
            _ => "'00000000-0000-4000-8000-00000000000b'::uuid".into(),
        },
        ("role", "message_role") => "'assistant'::message_role".into(),
        ("status", "message_status") => "'streaming'::message_status".into(),
        ("role", _) => {
            if table == "users" {
                "'member'::text".into()
            } else {
                "'owner'::text".into()
            }
        }
        ("role_name", _) => "'schema_owner'::text".into(),
        ("profile", _) => "'member'::text".into(),
        ("visibility" | "default_visibility", _) => "'private'::text".into(),
        ("slug", _) => "'default'::text".into(),
        ("features" | "metadata" | "preferences" | "branding" | "parts", _) => "'{}'::jsonb".into(),
        ("version", _) => "8".into(),
        (_, "boolean") => "true".into(),
        (_, "integer" | "bigint") => "0".into(),
        ("created_at" | "updated_at" | "granted_at" | "applied_at" | "replaced_at", _) => {
            "now()".into()
        }
        (_, "text") => "'x'::text".into(),
        (_, of) => format!("null::{of}"),
    };
    let definitions: Vec<_> = columns.iter().map(|(name, of)| format!("{name} {of}")).collect();
    let values: Vec<_> =
        columns.iter().map(|column| format!("{} as {}", value(column), column.0)).collect();
    (definitions.join(", "), values.join(", "))
}

#[test]
fn a_superuser_runs_nothing_of_whoever_replaced_a_table() {
    let server = Server::private(oldest(), "fsync = off");
    let tables = [
        "access_profiles",
        "message_revisions",
        "schema_version",
        "tenants",
        "users",
        "conversations",
        "conversation_members",
        "messages",
        "message_chunks",
    ];
    let (mut wrong, mut faults) = (Vec::new(), Vec::new());
    for table in tables {
        for kind in ["table", "view"] {
            let database = database(&server);
            let mut superuser = database.superuser();
            superuser.run(ROWS);
            let (definitions, values) = columns(&mut superuser, table);
            let mut owner = database.connect("schema_owner");
            owner.run(PROMOTE);
            owner.run(&format!("set client_min_messages = error; drop table {table} cascade"));
            owner.run(&match kind {
                "table" => format!(
                    "create table {table} ({definitions}, trap text default sly('x')); \
                     insert into {table} select {values}; \
                     create trigger promote before insert or update or delete on {table} \
                         for each row execute function promote(); \
                     create trigger promote_all after insert or update or delete on {table} execute function promote(); \
                     alter table {table} enable row level security; \
                     create policy p on {table} using (sly('x') is not null); \
                     create index on {table} (sly(trap)); \
                     grant all on {table} to postgres"
                ),
                _ => format!(
                    "create view {table} as select {values}, sly('x') as trap where sly('x') is not null; \
                     create trigger promote instead of insert or update or delete on {table} \
                         for each row execute function promote(); \
                     grant all on {table} to postgres"
                ),
            });
            for call in CALLS {
                let mut client = database.superuser();
                client.run("set pg_conversation.user_id = '11111111-1111-4111-8111-111111111111'");
                let result = client.batch_execute(call);
                if is_superuser(&database) {
                    wrong.push(format!("{table} as {kind}: {call}: {result:?}"));
                }
                if let Err(error) = result
                    && let Some(fault) = fault(&error)
                {
                    faults.push(format!("{table} as {kind}: {call}: {fault}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} times superuser:\n{}", wrong.len(), wrong.join("\n"));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
