//! link_supabase(): what it does, what it leaves out and says so, and what becomes of people who are
//! deleted where they sign in.

use std::sync::{Arc, Mutex};

use pg_conversation_tests::{Client, NoTls, Session, Uuid};

use crate::install::rights;
use crate::rest::{Rest, Returning, service, user};
use crate::stack::{ADMIN, Deployment, POSTGRES};

/// Part, whether it was done, and the words; beside it the notices.
type Told = (Vec<(String, bool, String)>, Vec<String>);

fn link_as(deployment: &Deployment, who: &str) -> Told {
    link_between("select", deployment, who, "select")
}

/// What it would do after other things; nothing of it stays.
fn would_link(deployment: &Deployment, before: &str) -> Told {
    link_between(&format!("begin; {before}"), deployment, ADMIN, "rollback")
}

fn link_between(before: &str, deployment: &Deployment, who: &str, after: &str) -> Told {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let mut client = deployment
        .server()
        .config(&deployment.name, who)
        .notice_callback(move |notice| heard.lock().unwrap().push(notice.message().to_string()))
        .connect(NoTls)
        .expect("a connection");
    client.run(before);
    let sql = format!("select part, done, detail from {}.link_supabase()", deployment.schema);
    let rows = client.query(&sql, &[]).unwrap_or_else(|error| {
        panic!("{before}: {}", pg_conversation_tests::describe(&error));
    });
    client.run(after);
    let parts = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let notices = notices.lock().unwrap().clone();
    (parts, notices)
}

const PARTS: [&str; 5] = ["auth users", "buckets", "storage policies", "realtime", "grants"];

/// The parts that were not done, each of which must have been told of in a notice.
fn skipped((parts, notices): &Told) -> Vec<String> {
    let names: Vec<&str> = parts.iter().map(|(part, ..)| part.as_str()).collect();
    assert_eq!(names, PARTS);
    for (part, done, detail) in parts {
        assert!(!detail.is_empty(), "{part}");
        let told = notices.contains(&format!("{part} skipped: {detail}"));
        assert_eq!(told, !done, "{part}: {detail}: {notices:?}");
    }
    parts.iter().filter(|(_, done, _)| !done).map(|(part, ..)| part.clone()).collect()
}

/// All that it may leave behind.
fn state(client: &mut Client, schema: &str) -> Vec<String> {
    client.values(&format!(
        "select format('key %s %s', pg_get_constraintdef(oid), convalidated) from pg_constraint
            where conname = 'users_auth_id_exists'
         union all select format('bucket %s', b) from storage.buckets b
         union all select format('policy %s', p) from pg_policies p where schemaname = 'storage'
         union all select format('published %s %s', pubname, tablename) from pg_publication_tables
         union all select format('right %s %s', c.relname, c.relacl) from pg_class c
            where c.relnamespace = '{schema}'::regnamespace and relkind = 'r'
         union all select format('profile %s %s', role_name, profile) from {schema}.access_profiles
         order by 1"
    ))
}

#[test]
fn it_does_every_part_and_the_second_time_changes_nothing() {
    for schema in ["public", "chat"] {
        let deployment = Deployment::with_schema(schema);
        let mut admin = deployment.admin();
        let before = state(&mut admin, schema);
        assert!(!before.iter().any(|item| item.starts_with("key") || item.starts_with("policy")));
        let told = link_as(&deployment, POSTGRES);
        assert_eq!(skipped(&told), [""; 0]);
        let linked = state(&mut admin, schema);
        let count = |kind: &str| linked.iter().filter(|item| item.starts_with(kind)).count();
        assert_eq!(
            [count("key"), count("bucket"), count("policy"), count("published")],
            [1, 3, 4, 3]
        );
        for who in [ADMIN, POSTGRES, ADMIN] {
            link_as(&deployment, who);
            assert_eq!(state(&mut admin, schema), linked, "{who}");
        }
        let complaints: Vec<String> =
            deployment.postgres().values("select check_name from doctor() where not ok");
        assert!(complaints.is_empty(), "{complaints:?}");
    }
}

/// What he does is the owner's, who goes on without him.
#[test]
fn the_superuser_who_links_leaves_nothing_of_his_own() {
    let by_superuser = Deployment::new();
    assert_eq!(skipped(&link_as(&by_superuser, ADMIN)), [""; 0]);
    let mut admin = by_superuser.admin();
    let owned: i64 = admin.value(
        "select count(*) from pg_class c
         left join lateral aclexplode(c.relacl) a on true
         where c.relnamespace = 'public'::regnamespace
         and (c.relowner <> 'postgres'::regrole or a.grantor <> 'postgres'::regrole)",
    );
    assert_eq!(owned, 0);
    let by_owner = Deployment::new();
    assert_eq!(skipped(&link_as(&by_owner, POSTGRES)), [""; 0]);
    // Buckets have the time at which they were made.
    let same = "update storage.buckets set created_at = 'epoch', updated_at = 'epoch'";
    for deployment in [&by_superuser, &by_owner] {
        deployment.admin().run(same);
    }
    assert_eq!(state(&mut admin, "public"), state(&mut by_owner.admin(), "public"));
    by_superuser.postgres().run("select migrate()");
    assert_eq!(skipped(&link_as(&by_superuser, POSTGRES)), [""; 0]);
}

#[test]
fn each_part_that_cannot_be_done_is_left_out_with_a_notice() {
    let cases: [(&str, &[&str]); 12] = [
        ("select", &[]),
        ("drop schema auth cascade", &["auth users"]),
        ("drop schema storage cascade", &["buckets", "storage policies"]),
        ("drop table storage.objects", &["storage policies"]),
        ("alter table storage.objects owner to supabase_admin", &["storage policies"]),
        ("revoke references on auth.users from postgres", &["auth users"]),
        (
            "alter table public.users add constraint users_auth_id_exists check (true)",
            &["auth users"],
        ),
        (
            "revoke insert on storage.buckets
             from supabase_storage_admin, postgres, service_role, authenticated, anon cascade",
            &["buckets"],
        ),
        ("insert into storage.buckets (id, name) values ('d', 'documents')", &["buckets"]),
        (
            "create function public.refuse() returns trigger language plpgsql
             as 'begin raise exception ''no buckets here''; end';
             create trigger refuse before insert on storage.buckets
             for each row execute function public.refuse()",
            &["buckets"],
        ),
        ("drop publication supabase_realtime", &["realtime"]),
        ("alter publication supabase_realtime owner to supabase_admin", &["realtime"]),
    ];
    let deployment = Deployment::new();
    for (sql, expected) in cases {
        let told = would_link(&deployment, &format!("{sql}; set local role postgres"));
        assert_eq!(skipped(&told), expected, "{sql}: {:?}", told.0);
    }
}

/// As newer images have it.
const SHUT_OUT: &str = "revoke supabase_storage_admin from postgres";

/// Roles belong to the server, and are changed back before anybody else sees it: an administrator
/// who is a member of the owner of storage, and a service that policies bind.
#[test]
fn who_is_a_member_of_whom_decides() {
    let cases: [(&str, &[&str]); 5] = [
        ("select", &[]),
        // The superuser can do no more than the owner.
        (SHUT_OUT, &["storage policies"]),
        ("alter role postgres nobypassrls", &[]),
        // Nobody can see who has an account, but the key can be checked.
        (
            "alter role postgres nobypassrls; revoke supabase_storage_admin from postgres",
            &["buckets", "storage policies"],
        ),
        ("alter role service_role nobypassrls", &["grants"]),
    ];
    let deployment = Deployment::new();
    let ada = deployment.sign_up("ada");
    deployment.admin().run(&format!("insert into public.users (auth_id) values ('{ada}')"));
    for (change, expected) in cases {
        for who in [ADMIN, POSTGRES] {
            let told = would_link(&deployment, &format!("{change}; set local role {who}"));
            assert_eq!(skipped(&told), expected, "{who}: {change}");
            let [users, _, policies, ..] = &told.0[..] else { unreachable!() };
            assert_eq!(users.2, "linked", "{who}: {change}");
            if !policies.1 {
                assert_eq!(policies.2, "must be owner of table objects");
            }
        }
    }
}

/// What the deployment has decided for itself stays as it is, and is named.
#[test]
fn it_says_what_it_found_otherwise() {
    let deployment = Deployment::new();
    deployment.admin().run(
        "insert into storage.buckets (id, name, public) values ('documents', 'documents', true);
         select public.revoke_access('authenticated')",
    );
    let before = rights(&mut deployment.admin(), "public");
    let (parts, _) = link_as(&deployment, POSTGRES);
    let words: Vec<&str> = parts.iter().map(|(_, _, detail)| detail.as_str()).collect();
    assert_eq!(words[1], "2 made, 1 were there; public: documents");
    assert_eq!(words[4], "anon as anon, authenticated shut out, service_role as service");
    assert_eq!(rights(&mut deployment.admin(), "public"), before);
    assert!(!before.iter().any(|right| right.starts_with("authenticated")), "{before:?}");
}

#[test]
fn a_database_that_knows_nothing_of_it_is_left_alone() {
    let mut plain = Deployment::plain();
    plain.schema = "public";
    plain.install();
    let told = link_as(&plain, POSTGRES);
    assert_eq!(skipped(&told), ["auth users", "buckets", "storage policies", "realtime"]);
    let words: Vec<String> =
        plain.postgres().values("select check_name from doctor() where not ok");
    assert!(words.is_empty(), "{words:?}");
}

#[test]
fn only_the_owner_of_the_tables_links() {
    let deployment = Deployment::new();
    let mut pool = deployment.connect("authenticator");
    for role in ["anon", "authenticated", "service_role"] {
        pool.run(&format!("set role {role}"));
        for name in [
            "link_supabase",
            "link_auth_users",
            "link_storage_policies",
            "link_realtime",
            "link_roles",
        ] {
            assert_eq!(pool.error(&format!("select public.{name}()")).0, "42501", "{role} {name}");
        }
    }
    // A part works with the rights of whoever calls it: the service may make buckets anyway.
    for (role, may) in [("anon", false), ("authenticated", false), ("service_role", true)] {
        pool.run(&format!("set role {role}"));
        let made = pool.batch_execute("select public.link_buckets()");
        assert_eq!(made.is_ok(), may, "{role}");
    }
}

#[test]
fn people_from_before_keep_the_key_unchecked_until_they_are_known() {
    let deployment = Deployment::new();
    let stranger = Uuid::new_v4();
    let ada = deployment.sign_up("ada");
    let mut rest = Rest::new(&deployment);
    rest.rpc(&user(ada), "ensure_user", "{}").unwrap();
    rest.rpc(&user(stranger), "ensure_user", "{}").unwrap();
    let mut admin = deployment.admin();
    let checked = "select convalidated from pg_constraint where conname = 'users_auth_id_exists'";
    for _ in 0..2 {
        let (parts, _) = link_as(&deployment, POSTGRES);
        assert_eq!(parts[0].2, "linked; 1 users are not in auth.users");
        assert!(parts[0].1);
        assert!(!admin.value::<bool>(checked));
    }
    // The stranger goes on; another one is not let in any more.
    rest.rpc(&user(stranger), "create_conversation", "{}").unwrap();
    let other = rest.rpc(&user(Uuid::new_v4()), "create_conversation", "{}");
    assert_eq!(other.unwrap_err().0, "28000");
    admin.run(&format!("insert into auth.users (id) values ('{stranger}')"));
    assert_eq!(link_as(&deployment, POSTGRES).0[0].2, "linked");
    assert!(admin.value::<bool>(checked));
}

#[test]
fn whoever_is_deleted_where_he_signs_in_is_locked_out_and_loses_no_conversation() {
    for schema in ["public", "chat"] {
        let deployment = Deployment::with_schema(schema);
        link_as(&deployment, POSTGRES);
        let mut rest = Rest::new(&deployment);
        let (ada, bob) = (deployment.sign_up("ada"), deployment.sign_up("bob"));
        // Bob's row was made by the service, under an id of its own.
        let row = format!(r#"{{"auth_id": "{bob}", "email": "bob@example"}}"#);
        let made = rest
            .post(
                &service(),
                "users",
                &row.replace('}', r#", "tenant_id": "00000000-0000-7000-8000-000000000001"}"#),
                "",
                Returning::Rows,
            )
            .unwrap();
        let bobs_id = rest.at(&made, "0,id");
        assert_ne!(bobs_id, bob.to_string());
        for id in [ada, bob] {
            let made = rest.rpc(&user(id), "create_conversation", r#"{"title": "kept"}"#).unwrap();
            let c = rest.at(&made, "");
            let body =
                format!(r#"{{"conversation_id": "{c}", "role": "user", "content": "kept"}}"#);
            rest.post(&user(id), "messages", &body, "", Returning::Nothing).unwrap();
        }
        // As the authentication service does it.
        deployment
            .connect("supabase_auth_admin")
            .run(&format!("delete from users where id in ('{ada}', '{bob}')"));

        let state = format!(
            "select format('%s %s %s', id, auth_id, is_active) from {schema}.users where id in ('{ada}', '{bobs_id}') order by id = '{ada}'"
        );
        let rows: Vec<String> = deployment.admin().values(&state);
        assert_eq!(rows, [format!("{bobs_id}  f"), format!("{ada}  f")]);
        let kept = format!(
            r#"SELECT "{schema}"."messages"."content" FROM "{schema}"."messages" WHERE  "{schema}"."messages"."content" = $1"#
        );
        assert_eq!(rest.read(&service(), &kept, None, &["kept"]).unwrap().rows, 2);
        // His token is good for a while yet.
        for id in [ada, bob] {
            assert_eq!(rest.read(&user(id), &kept, None, &["kept"]).unwrap().rows, 0);
            let me = rest.rpc(&user(id), "current_user_id", "{}").unwrap();
            assert_eq!(rest.at(&me, ""), "null");
            for call in ["create_conversation", "ensure_user"] {
                assert_eq!(rest.rpc(&user(id), call, "{}").unwrap_err().0, "28000", "{id} {call}");
            }
        }
        // He signs up again: his row and all that hangs on it are his once the service says so.
        let again = deployment.sign_up("ada");
        assert_eq!(rest.read(&user(again), &kept, None, &["kept"]).unwrap().rows, 0);
        let body = format!(r#"{{"auth_id": "{again}", "is_active": true}}"#);
        let by = ("id", ada.to_string());
        rest.patch(&service(), "users", &body, (by.0, &by.1), Returning::Nothing).unwrap();
        assert_eq!(rest.read(&user(again), &kept, None, &["kept"]).unwrap().rows, 1);
    }
}

/// The trigger looks at the login alone.
#[test]
fn only_the_loss_of_a_login_deactivates() {
    let deployment = Deployment::new();
    let mut postgres = deployment.postgres();
    let (a, b, one) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let cases = [
        (None, "null", true),
        (None, "'$b'", true),
        (Some(a), "'$a'", true),
        (Some(a), "'$b'", true),
        (Some(a), "null", false),
    ];
    for (before, after, active) in cases {
        let before = before.map_or("null".to_string(), |id| format!("'{id}'"));
        let after = after.replace("$a", &a.to_string()).replace("$b", &b.to_string());
        postgres.run(&format!(
            "insert into users (id, auth_id) values ('{one}', {before});
             update users set auth_id = {after} where id = '{one}'"
        ));
        let sql = format!("select is_active from users where id = '{one}'");
        assert_eq!(postgres.value::<bool>(&sql), active, "{before} to {after}");
        postgres.run(&format!("update users set name = 'x' where id = '{one}'"));
        assert_eq!(postgres.value::<bool>(&sql), active, "{before} to {after}, then a name");
        postgres.run(&format!("delete from users where id = '{one}'"));
    }
}

/// Without the extension nobody gets at files by our policies; with it again, after one call.
#[test]
fn dropping_the_extension_closes_the_folders_and_linking_opens_them_again() {
    let deployment = Deployment::new();
    link_as(&deployment, POSTGRES);
    let mut admin = deployment.admin();
    let mut postgres = deployment.postgres();
    let policies = "select count(*) from pg_policies where schemaname = 'storage'";
    assert_eq!(admin.value::<i64>(policies), 4);
    postgres.run("drop extension pg_conversation cascade");
    assert_eq!(admin.value::<i64>(policies), 0);
    postgres.run("create extension pg_conversation");
    assert_eq!(admin.value::<i64>(policies), 0);
    assert_eq!(skipped(&link_as(&deployment, POSTGRES)), [""; 0]);
    assert_eq!(admin.value::<i64>(policies), 4);
}

/// The policies go with the extension, even if the administrator may not touch them any more.
#[test]
fn what_was_linked_can_be_removed() {
    let deployment = Deployment::new();
    link_as(&deployment, POSTGRES);
    let mut admin = deployment.admin();
    let policies = "select count(*) from pg_policies where schemaname = 'storage'";
    assert_eq!(admin.value::<i64>(policies), 4);
    admin.run(&format!("begin; {SHUT_OUT}; set local role postgres; savepoint here"));
    let drop_policy = "drop policy pg_conversation_read on storage.objects";
    assert_eq!(admin.error(drop_policy).0, "42501");
    admin.run("rollback to here");
    admin.run(&format!("select public.uninstall('{}'); savepoint here", deployment.name));
    assert_eq!(admin.error("drop extension pg_conversation").0, "2BP01");
    admin.run("rollback to here; drop extension pg_conversation cascade; reset role");
    assert_eq!(admin.value::<i64>(policies), 0);
    // Files and accounts are the deployment's.
    assert_eq!(admin.value::<i64>("select count(*) from storage.buckets"), 3);
    admin.run("rollback");
}

/// A hostile owner's schema `evil`.
const TRAP: &str = include_str!("trap.sql");

/// Where he can put a trap; what is left out then; whether it springs, and whether it would catch a
/// superuser who called the part alone, with rights of his own.
const HOSTILE: [(&str, &[&str], bool, bool); 7] = [
    (
        "create trigger trap before insert on storage.buckets
         for each row execute function evil.trap()",
        &[],
        true,
        true,
    ),
    (
        "create trigger trap after insert on storage.buckets
         for each statement execute function evil.trap()",
        &[],
        true,
        true,
    ),
    // What would spring later, when he is himself again, is refused at once.
    (
        "create constraint trigger trap after insert on storage.buckets
         deferrable initially deferred for each row execute function evil.trap()",
        &["buckets"],
        false,
        true,
    ),
    ("alter table storage.buckets add constraint trap check (evil.is_sprung())", &[], true, true),
    // Only a foreign key of that name is ours to check.
    (
        "alter table public.users add constraint users_auth_id_exists
         check (evil.is_sprung()) not valid",
        &["auth users"],
        false,
        false,
    ),
    (
        "alter table public.users add constraint trap check (evil.is_sprung()) not valid",
        &[],
        false,
        false,
    ),
    // This table is always written to as its owner.
    (
        "delete from public.access_profiles;
         create trigger trap before insert or update on public.access_profiles
         for each row execute function evil.trap()",
        &[],
        true,
        false,
    ),
];

/// He calls it as himself, or as somebody else whom he can stop being at any time.
#[test]
fn a_superuser_who_links_lends_his_rights_to_nobody() {
    let deployment = Deployment::new();
    let ada = deployment.sign_up("ada");
    let mut postgres = deployment.postgres();
    postgres.run(&format!("insert into users (auth_id) values ('{ada}')"));
    postgres.run(TRAP);
    let left_behind = "select format('%s = %s', name, setting) from pg_settings
            where source = 'session' and name <> 'application_name'
        union all select name from pg_prepared_statements where name = 'evil'
        union all select pg_listening_channels()
        union all select current_setting('request.jwt.claims', true)
            where current_setting('request.jwt.claims', true) <> ''
        order by 1";
    for (sql, left_out, springs, would_catch) in HOSTILE {
        let set_up = |role| format!("begin; set role postgres; {sql}; set role {role}");
        for role in ["none", POSTGRES] {
            let told = format!("{role}: {sql}");
            let mut admin = deployment.admin();
            admin.run(&set_up(role));
            let before: Vec<String> = admin.values(left_behind);
            let skipped: Vec<String> =
                admin.values("select part from public.link_supabase() where not done");
            assert_eq!(skipped, left_out, "{told}");
            assert_eq!(admin.values::<String>(left_behind), before, "{told}");
            let mut loot = loot(&mut admin);
            assert_eq!(!loot.is_empty(), springs, "{told}");
            loot.retain(|seen| seen != "postgres: ");
            assert_eq!(loot, [""; 0], "{told}");
        }
        if would_catch {
            let mut admin = deployment.admin();
            admin.run(&set_up("none"));
            admin.run("select public.link_buckets()");
            let loot = loot(&mut admin).concat();
            for won in ["supabase_admin: superuser; ", "set role supabase_admin; ", "prepare evil"]
            {
                assert!(loot.contains(won), "{sql}: {loot}");
            }
        }
    }
}

/// What a trap has noted by the end of the transaction, which is undone.
fn loot(admin: &mut Client) -> Vec<String> {
    admin.run("set constraints all immediate; reset role");
    let loot = admin.values("select distinct seen from evil.loot");
    admin.run("rollback");
    loot
}

/// The owner's rights are no limit then, and others may put triggers on tables of the deployment.
#[test]
fn a_superuser_who_owns_the_tables_links_nothing_that_is_not_his() {
    let deployment = Deployment::bare();
    deployment.admin().run("create extension pg_conversation");
    deployment.postgres().run(&format!("{TRAP}; {}", HOSTILE[0].0));
    let mut admin = deployment.admin();
    let told = link_as(&deployment, ADMIN);
    assert_eq!(skipped(&told), ["auth users", "buckets", "storage policies"]);
    assert_eq!(told.0[1].2, "the tables belong to a superuser");
    assert_eq!(admin.value::<i64>("select count(*) from evil.loot"), 0);
    admin.run("begin; select public.link_buckets()");
    assert_eq!(loot(&mut admin).len(), 1);
}
