//! The roles that a superuser's CREATE EXTENSION makes, and what the roles that are there are given.

use std::sync::Barrier;
use std::thread;

use pg_conversation_tests::{Client, NoTls, Private, Server, Session, describe, oldest};

const OWNER: &str = "conc_owner";

fn server() -> Private {
    let server = Server::private(oldest(), "fsync = off\n");
    server.role(OWNER);
    server
}

const ROLES: &str = "select coalesce(string_agg(concat_ws(' ', rolname, case when rolcanlogin then 'login' end, \
     case when rolbypassrls then 'bypassrls' end, case when rolsuper then 'super' end), ', ' \
     order by rolname), '') from pg_roles where rolname ~ '^conversation_'";

const PROFILES: &str = "select coalesce(string_agg(role_name || ' ' || profile, ', ' order by role_name), '') \
     from access_profiles";

const MADE: &str = "conversation_service bypassrls, conversation_syncer bypassrls";
const LISTED: &str = "conversation_service service, conversation_syncer syncer";

fn roles(client: &mut Client) -> String {
    client.value(ROLES)
}

#[test]
fn only_a_superusers_install_makes_roles_and_anybodys_uses_those_that_are_there() {
    let server = server();
    let owned = || {
        let database = server.empty_database();
        server
            .connect("postgres", "postgres")
            .run(&format!("alter database {} owner to {OWNER}", database.name));
        database
    };
    // The owner of a database is no superuser, though his script runs as one.
    let first = owned();
    let mut owner = first.connect(OWNER);
    owner.run("create extension pg_conversation");
    assert_eq!((roles(&mut owner).as_str(), owner.value::<String>(PROFILES).as_str()), ("", ""));
    owner.run("select migrate()");
    assert_eq!(roles(&mut owner), "");
    // Nor does a superuser who only looks after it: the tables are the owner's.
    first.superuser().run("select migrate()");
    assert_eq!(roles(&mut owner), "");

    // An installation that fails leaves none behind.
    let database = server.empty_database();
    let mut superuser = database.superuser();
    superuser.run("create table users (i int)");
    assert_eq!(superuser.error("create extension pg_conversation").0, "42710");
    assert_eq!(roles(&mut superuser), "");
    superuser.run("drop table users");
    superuser.run("begin; create extension pg_conversation");
    assert_eq!(roles(&mut superuser), MADE);
    superuser.run("rollback");
    assert_eq!(roles(&mut superuser), "");

    superuser.run("create extension pg_conversation");
    assert_eq!(roles(&mut superuser), MADE);
    assert_eq!(superuser.value::<String>(PROFILES), LISTED);
    assert_eq!(superuser.value::<i64>("select count(*) from doctor() where not ok"), 0);
    // They work, for whoever may become them.
    superuser.run("insert into users (id) values ('00000000-0000-4000-8000-00000000000a')");
    superuser.run(
        "set role conversation_service; \
         insert into conversations (user_id) values ('00000000-0000-4000-8000-00000000000a'); \
         select add_message(id, 'user', 'x') from conversations; \
         select edit_message(id, 'y') from messages; select * from message_revisions; \
         select add_member(id, '00000000-0000-4000-8000-00000000000a') from conversations; \
         set role conversation_syncer; update messages set metadata = '{\"synced\": true}'",
    );
    for sql in ["delete from messages", "update users set tenant_id = null", "truncate messages"] {
        assert_eq!(
            superuser.error(sql).0,
            if sql.starts_with("update") { "23000" } else { "42501" },
            "{sql}"
        );
    }
    superuser.run("reset role");
    // Removing everything leaves the roles: they are not the database's.
    superuser.run("select uninstall(current_database()); drop extension pg_conversation");
    assert_eq!(roles(&mut superuser), MADE);

    // They belong to the cluster: who owns a database alone need not want them in it, and may let them
    // in if he does.
    owner.run("select migrate()");
    assert_eq!(owner.value::<String>(PROFILES), "");
    let second = owned();
    let mut another = second.connect(OWNER);
    another.run("create extension pg_conversation");
    assert_eq!(another.value::<String>(PROFILES), "");
    second.superuser().run("select migrate()");
    assert_eq!(another.value::<String>(PROFILES), "");
    another.run(
        "select grant_access('conversation_service', 'service'), \
         grant_access('conversation_syncer', 'syncer')",
    );
    assert_eq!(another.value::<String>(PROFILES), LISTED);
    assert_eq!(another.value::<i64>("select count(*) from doctor() where not ok"), 0);
    // What was taken from them stays taken.
    another.run("select revoke_access('conversation_syncer'); select migrate()");
    let held: i64 = another.value(
        "select count(*) from pg_class c, aclexplode(c.relacl) a \
         where a.grantee = 'conversation_syncer'::regrole",
    );
    assert_eq!(held, 0);
    assert_eq!(
        another.value::<String>(PROFILES),
        "conversation_service service, conversation_syncer none"
    );
}

/// A role of that name is somebody else's, perhaps; it is left as it is, and let in only if it could
/// do its work.
#[test]
fn a_role_that_was_there_before_is_left_as_it_is() {
    let server = server();
    let database = server.empty_database();
    let mut superuser = database.superuser();
    superuser.run(
        "create role conversation_service login; create role authenticated; create role service_role; \
         create role anon login; create extension pg_conversation",
    );
    assert_eq!(roles(&mut superuser), "conversation_service login, conversation_syncer bypassrls");
    let profiles = "anon anon, authenticated member, conversation_syncer syncer";
    assert_eq!(superuser.value::<String>(PROFILES), profiles);
    assert_eq!(superuser.value::<i64>("select count(*) from doctor() where not ok"), 0);
    let held: Vec<String> = superuser.values(
        "select distinct a.grantee::regrole::text from pg_class c, aclexplode(c.relacl) a \
         where c.relnamespace = 'public'::regnamespace and a.grantee <> c.relowner order by 1",
    );
    assert_eq!(held, ["authenticated", "conversation_syncer"]);
    superuser.run(
        "alter role conversation_service bypassrls; alter role service_role bypassrls; select migrate()",
    );
    assert_eq!(
        superuser.value::<String>(PROFILES),
        "anon anon, authenticated member, conversation_service service, \
         conversation_syncer syncer, service_role service"
    );
    // One who lost what his profile needs is pointed out, and gets nothing more.
    superuser.run("alter role service_role nobypassrls; select migrate()");
    assert_eq!(
        superuser.values::<String>(
            "select check_name from doctor() where not ok and check_name = 'profiles'"
        ),
        ["profiles"]
    );
}

#[test]
fn databases_that_install_at_once_make_the_roles_together() {
    let server = server();
    let mut admin = server.connect("postgres", "postgres");
    for _ in 0..4 {
        let databases: Vec<_> = (0..6).map(|_| server.empty_database()).collect();
        let start = Barrier::new(databases.len());
        let failures: Vec<String> = thread::scope(|scope| {
            let installing: Vec<_> = databases
                .iter()
                .map(|database| {
                    let (server, start) = (&server, &start);
                    scope.spawn(move || {
                        let config = server.config(&database.name, "postgres");
                        let mut client = config.connect(NoTls).expect("a connection");
                        start.wait();
                        client
                            .batch_execute("create extension pg_conversation")
                            .err()
                            .map(|error| describe(&error))
                    })
                })
                .collect();
            installing.into_iter().filter_map(|one| one.join().expect("no panic")).collect()
        });
        assert_eq!(failures, Vec::<String>::new());
        assert_eq!(roles(&mut admin), MADE);
        for database in &databases {
            let listed: String = database.superuser().value(PROFILES);
            assert_eq!(listed, LISTED);
        }
        drop(databases);
        admin.run("drop role conversation_service, conversation_syncer");
    }
}

/// What an older release had granted, and a hand has taken away or added: migrate() puts it right.
#[test]
fn migrate_gives_listed_roles_the_tables_of_later_versions() {
    let server = server();
    let database = server.empty_database();
    for role in ["app", "backend"] {
        server.role(role);
    }
    let mut owner = database.superuser();
    owner.run(
        "alter role backend bypassrls; create extension pg_conversation; \
         select grant_access('app'), grant_access('backend', 'service')",
    );
    let held = "select string_agg(x, ', ' order by x) from ( \
        select format('%s %s %s', c.relname, a.grantee::regrole, a.privilege_type) as x \
        from pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a where c.relnamespace = 'public'::regnamespace \
        union all select format('%s.%s %s %s', c.relname, t.attname, a.grantee::regrole, a.privilege_type) \
        from pg_class c join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a \
        where c.relnamespace = 'public'::regnamespace) s";
    let expected: String = owner.value(held);
    for change in [
        "revoke all on message_revisions, message_chunks from app, backend; \
         revoke update (content, parts) on messages from app; \
         revoke insert (author_id) on messages from backend",
        "grant all on messages, access_profiles to app; grant select (content) on message_revisions to app",
        "grant all on all tables in schema public to backend",
        "revoke all on all tables in schema public from app, backend",
    ] {
        owner.run(change);
        assert!(owner.value::<String>(held) != expected, "{change}");
        owner.run("select migrate()");
        assert_eq!(owner.value::<String>(held), expected, "{change}");
    }
}
