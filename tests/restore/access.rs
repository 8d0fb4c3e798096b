//! What edits have replaced, and who was let in: through a dump and back.

use pg_conversation_tests::{Client, Database, Server, Session, oldest};

use crate::fingerprint::Fingerprint;
use crate::source::{self, OWNER, Source, program};
use crate::{Dump, MODES};

/// Revisions are there for whoever manages the conversation, and the next one has the next number.
pub fn edits_go_on(target: &Database, schema: &str) {
    let message = "e0000000-0000-0000-0000-000000000003";
    let kept = format!("select count(*) from message_revisions where message_id = '{message}'");
    let visible = format!(
        "set local search_path = {schema}; select count(*) from messages where id = '{message}'"
    );
    for (user, revisions) in [(source::ADA, 4), (source::BOB, 0)] {
        let mut member = target.connect("restore_member");
        member.run(&format!("set pg_conversation.user_id = '{user}'; begin; {visible}"));
        assert_eq!(member.value::<i64>(&kept), revisions, "{user}");
        member.run("rollback");
    }
    let mut service = target.connect("restore_service");
    service.run(&format!("begin; set local search_path = {schema}"));
    service.run(&format!("select edit_message('{message}', 'once more')"));
    let mut numbers: Vec<i32> = service.values(&format!(
        "select revision from message_revisions where message_id = '{message}' order by revision"
    ));
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    service.run("rollback");
    // A row of a dump brings its number, its author and the time of its edit, whoever loads it.
    let mut owner = target.connect(OWNER);
    owner.run(&format!(
        "begin; set local search_path = {schema}; set local pg_conversation.user_id = '{}'",
        source::ADA
    ));
    numbers = owner.values(
        "insert into messages (conversation_id, sequence_number, role, author_id, edited_at) values \
         ('c0000000-0000-0000-0000-000000000001', 1001, 'user', null, null), \
         ('c0000000-0000-0000-0000-000000000001', 1002, 'user', \
          '99999999-0000-0000-0000-000000000009', '2021-01-01') \
         returning sequence_number + case when author_id is null then 0 else 10000 end \
         + case when edited_at = '2021-01-01' then 100000 else 0 end",
    );
    assert_eq!(numbers, [1001, 111_002]);
    owner.run("rollback");
}

/// Roles and profiles, without the moment they were noted.
const PROFILES: &str = "select coalesce(string_agg(role_name || ' ' || profile, ', ' order by role_name), '') \
     from chat.access_profiles";

/// What a role may do with the tables of the extension, table by table and column by column.
fn privileges(client: &mut Client, role: &str) -> Vec<String> {
    client.values(&format!(
        "select format('%s %s%s', c.relname, a.privilege_type, '') from pg_class c, aclexplode(c.relacl) a \
         where c.relnamespace = 'chat'::regnamespace and a.grantee = '{role}'::regrole \
         union all \
         select format('%s %s (%s)', c.relname, a.privilege_type, t.attname) \
         from pg_attribute t join pg_class c on c.oid = t.attrelid, aclexplode(t.attacl) a \
         where c.relnamespace = 'chat'::regnamespace and a.grantee = '{role}'::regrole \
         order by 1"
    ))
}

/// `conversation_service` is granted tables, and nobody has made it in this cluster.
#[test]
fn a_superusers_restore_makes_the_roles_that_it_grants_to() {
    let from = Server::private(oldest(), "fsync = off\n");
    let to = Server::private(oldest(), "fsync = off\n");
    for server in [&*from, &*to] {
        server.role(OWNER);
    }
    let made = "select coalesce(string_agg(format('%s %s %s', rolname, rolbypassrls, rolcanlogin), ', ' \
                order by rolname), '') from pg_roles where rolname like 'conversation%'";
    let both = "conversation_service t f, conversation_syncer t f";
    let source = Source { database: from.empty_database(), schema: "chat" };
    let mut superuser = source.database.superuser();
    superuser.run(
        "create schema chat; create extension pg_conversation with schema chat; \
         select chat.add_message(c, 'user', 'x') from (select chat.create_conversation('x') \
         from (select set_config('pg_conversation.user_id', chat.new_id()::text, false)) s) s (c); \
         update chat.messages set content = 'y'",
    );
    assert_eq!(superuser.value::<String>(made), both);
    assert_eq!(
        superuser.value::<String>(PROFILES),
        "conversation_service service, conversation_syncer syncer"
    );
    let held = privileges(&mut superuser, "conversation_service");
    assert!(held.len() > 60, "{held:?}");
    let expected = Fingerprint::of(&mut superuser);

    let mut admin = to.connect("postgres", "postgres");
    for mode in MODES.iter().filter(|mode| mode.user == "postgres") {
        println!("{}", mode.name);
        assert_eq!(admin.value::<String>(made), "", "{}", mode.name);
        let dump = Dump::of(&source, oldest(), mode.user, mode.dump);
        let target = to.empty_database();
        dump.restore(&target, mode.user, mode.restore);
        assert_eq!(admin.value::<String>(made), both, "{}", mode.name);
        expected.assert_same(&Fingerprint::of(&mut target.superuser()), mode.name);
        target.superuser().run("select chat.migrate()");
        expected.assert_same(&Fingerprint::of(&mut target.superuser()), mode.name);
        drop(target);
        admin.run("drop role conversation_service, conversation_syncer");
    }

    // The owner of a database makes no role, and hears from the dump which one is missing.
    let target = to.empty_database();
    admin.run(&format!("alter database {} owner to {OWNER}", target.name));
    let dump = Dump::of(&source, oldest(), "postgres", &["-Fc"]);
    let output = program(oldest(), &to, "pg_restore", OWNER)
        .args(["-e", "--no-owner", "-d", &target.name])
        .arg(&dump.0)
        .output()
        .expect("pg_restore starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("role \"conversation_service\" does not exist"), "{said}");
    assert_eq!(admin.value::<String>(made), "");
}

/// Who was let into both: the dump is the last word, and migrate() grants what it says.
#[test]
fn profiles_of_a_dump_of_data_alone_replace_those_of_the_target() {
    let server = Server::shared(oldest());
    let database = || {
        let database = source::empty(server);
        let mut owner = database.connect(OWNER);
        owner.run("create schema chat; create extension pg_conversation with schema chat");
        (database, owner)
    };
    let (from, mut owner) = database();
    owner.run(
        "select chat.grant_access('restore_member'), chat.grant_access('restore_service', 'syncer'), \
         chat.grant_access('restore_auditor', 'monitor'), chat.grant_access('restore_former', 'service'), \
         chat.revoke_access('restore_former')",
    );
    let theirs = "restore_auditor monitor, restore_former none, restore_member member";
    let expected = format!("{theirs}, restore_monitor member, restore_service syncer");
    let roles = ["restore_auditor", "restore_former", "restore_member", "restore_service"];
    let held = roles.map(|role| privileges(&mut owner, role));
    let times = "select string_agg(format('%s %s', role_name, granted_at), ', ' order by role_name) \
                 from chat.access_profiles where role_name <> 'restore_monitor'";
    let noted: String = owner.value(times);
    let source = Source { database: from, schema: "chat" };
    let cases: &[(&[&str], &[&str], &str)] = &[
        (&["-Fp", "--data-only"], &["psql", "-f"], OWNER),
        (&["-Fp", "--data-only"], &["psql", "-1", "-f"], "postgres"),
        (&["-Fp", "--data-only", "--column-inserts"], &["psql", "-f"], OWNER),
        (&["-Fc", "--data-only"], &["pg_restore", "-e"], OWNER),
        (&["-Fc", "--data-only"], &["pg_restore", "-1"], "postgres"),
    ];
    let mut wrong = Vec::new();
    for (options, restore, user) in cases {
        println!("{options:?}, {restore:?}, by {user}");
        let (target, mut owner) = database();
        owner.run(
            "select chat.grant_access('restore_member', 'monitor'), chat.grant_access('restore_monitor'), \
             chat.grant_access('restore_auditor', 'monitor'), chat.grant_access('restore_former', 'service')",
        );
        Dump::of(&source, oldest(), user, options).restore(&target, user, restore);
        assert_eq!(owner.value::<String>(PROFILES), expected);
        assert_eq!(owner.value::<String>(times), noted);
        owner.run("select chat.migrate()");
        assert_eq!(owner.value::<String>(PROFILES), expected);
        for (role, held) in roles.iter().zip(&held) {
            let found = privileges(&mut owner, role);
            if found != *held {
                let more: Vec<_> = found.iter().filter(|one| !held.contains(one)).collect();
                let less: Vec<_> = held.iter().filter(|one| !found.contains(one)).collect();
                wrong.push(format!("{options:?}: {role} has {more:?} and lacks {less:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A hosted database opens new tables to its roles. After migrate() each has what its profile says.
#[test]
fn default_privileges_of_the_target_add_nothing_to_a_profile() {
    let server = Server::shared(oldest());
    let source = Source { database: source::empty(server), schema: "chat" };
    let mut owner = source.database.connect(OWNER);
    owner.run(
        "create schema chat; create extension pg_conversation with schema chat; \
         select chat.grant_access('restore_member'), chat.grant_access('restore_service', 'service'), \
         chat.grant_access('restore_monitor', 'monitor'), chat.revoke_access('restore_former')",
    );
    let roles = ["restore_member", "restore_service", "restore_monitor", "restore_former"];
    let expected = roles.map(|role| privileges(&mut owner, role));
    assert!(expected[0].len() > 40 && expected[3].is_empty());
    let target = source::empty(server);
    let mut owner = target.connect(OWNER);
    for role in roles.iter().chain(&["restore_auditor", "public"]) {
        owner.run(&format!("alter default privileges grant all on tables to {role}"));
    }
    Dump::of(&source, oldest(), OWNER, &["-Fc"]).restore(&target, OWNER, &["pg_restore", "-e"]);
    let open = privileges(&mut owner, "restore_former").len();
    assert!(open > 50, "default privileges open the tables: {open}");
    owner.run("select chat.migrate()");
    let mut wrong = Vec::new();
    for (role, expected) in roles.iter().zip(&expected) {
        let found = privileges(&mut owner, role);
        let more: Vec<_> = found.iter().filter(|one| !expected.contains(one)).collect();
        let less: Vec<_> = expected.iter().filter(|one| !found.contains(one)).collect();
        if !more.is_empty() || !less.is_empty() {
            wrong.push(format!("{role} has {more:?} and lacks {less:?}"));
        }
    }
    // Whoever was never let in keeps what reads, behind policies; nobody else is named anywhere.
    let found = privileges(&mut owner, "restore_auditor");
    if found.iter().any(|one| !one.ends_with("SELECT") && one != "conversations DELETE") {
        wrong.push(format!("restore_auditor has {found:?}"));
    }
    let public: i64 = owner.value(
        "select count(*) from pg_class c, aclexplode(c.relacl) a \
         where c.relnamespace = 'chat'::regnamespace and a.grantee = 0",
    );
    if public > 0 {
        wrong.push(format!("public has {public} privileges"));
    }
    let complaints: Vec<String> =
        owner.values("select check_name || ': ' || detail from chat.doctor() where not ok");
    assert!(complaints.is_empty(), "{complaints:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A role of the dump that the target does not have yet stays listed, and is let in when it is made.
#[test]
fn a_role_that_is_missing_in_the_target_is_let_in_when_it_comes() {
    let server = Server::shared(oldest());
    let role = "restore_absent";
    let mut admin = server.connect("postgres", "postgres");
    admin.run(&format!("drop role if exists {role}; create role {role}"));
    let source = Source { database: source::empty(server), schema: "chat" };
    let mut owner = source.database.connect(OWNER);
    owner.run(&format!(
        "create schema chat; create extension pg_conversation with schema chat; \
         select chat.grant_access('{role}')"
    ));
    let held = privileges(&mut owner, role);
    let listed: String = owner.value(PROFILES);
    let dump = Dump::of(&source, oldest(), OWNER, &["-Fc"]);
    drop(owner);
    drop(source);
    admin.run(&format!("drop role {role}"));

    let target = source::empty(server);
    dump.restore(&target, OWNER, &["pg_restore", "-e", "--no-acl"]);
    let mut owner = target.connect(OWNER);
    owner.run("select chat.migrate()");
    assert_eq!(owner.value::<String>(PROFILES), listed);
    let complaint =
        "select string_agg(check_name || ': ' || detail, ', ') from chat.doctor() where not ok";
    let said: Option<String> = owner.value(complaint);
    assert_eq!(said, Some(format!("profiles: {role} (member)")));
    admin.run(&format!("create role {role}"));
    owner.run("select chat.migrate()");
    assert_eq!(owner.value::<Option<String>>(complaint), None);
    assert_eq!(privileges(&mut owner, role), held);
    drop(owner);
    drop(target);
    admin.run(&format!("drop role {role}"));
}
