//! Views and materialized views, whichever there are: made, mended, closed and taken back.

use pg_conversation_tests::{Client, Session, describe};

use crate::owner::{OWNER, owned, remains};

fn named(client: &mut Client, kind: char) -> Vec<String> {
    client.values(&format!(
        "select relname::text from pg_class where relkind = '{kind}' \
         and relnamespace = 'public'::regnamespace order by 1"
    ))
}

/// Names of views and materialized views of a fresh installation.
fn ours() -> (Vec<String>, Vec<String>) {
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation");
    let (views, filled) = (named(&mut owner, 'v'), named(&mut owner, 'm'));
    assert!(filled.contains(&"message_feedback_summary".to_string()));
    (views, filled)
}

/// The error must name what is taken, and say where else to go.
fn is_refused(owner: &mut Client, sql: &str, name: &str) {
    let error = owner.batch_execute(sql).expect_err(sql);
    let db = error.as_db_error().expect("from the server");
    assert_eq!(db.code().code(), "42710", "{}", describe(&error));
    assert!(db.message().contains(name), "{name}: {}", describe(&error));
    assert!(db.hint().is_some_and(|hint| hint.contains("WITH SCHEMA")), "{}", describe(&error));
}

#[test]
fn a_taken_name_of_a_view_gives_one_error_and_leaves_nothing() {
    let (views, filled) = ours();
    for name in views.iter().chain(&filled) {
        for what in [
            "create view {} as select 1 as id",
            "create view {} with (security_invoker = true) as select 1 as id",
            "create table {} (id int)",
            "create materialized view {} as select 1 as id",
            "create sequence {}",
            "create type {} as (a int)",
        ] {
            let database = owned();
            let mut owner = database.connect(OWNER);
            owner.run(&what.replace("{}", name));
            let before = remains(&mut owner);
            is_refused(&mut owner, "create extension pg_conversation", name);
            assert_eq!(remains(&mut owner), before, "{what} {name}");
        }
    }
}

#[test]
fn a_view_of_a_later_version_takes_nobody_elses_place() {
    let (views, filled) = ours();
    let database = owned();
    let mut owner = database.connect(OWNER);
    owner.run("create extension pg_conversation; select rollback_to(9)");
    assert_eq!(named(&mut owner, 'v'), [""; 0]);
    assert_eq!(named(&mut owner, 'm'), [""; 0]);
    for name in views.iter().chain(&filled) {
        for what in ["create view {} as select 1 as id", "create table {} (id int)"] {
            owner.run(&format!("begin; {}", what.replace("{}", name)));
            is_refused(&mut owner, "select migrate()", name);
            owner.run("rollback");
        }
    }
    for name in views.iter().filter(|name| !filled.contains(name)) {
        // Whose columns these are Postgres tells without the name.
        owner.run(&format!("begin; create view {name} with (security_invoker = true) as select 1"));
        is_refused(&mut owner, "select migrate()", "");
        owner.run("rollback");
    }
    owner.run("select migrate()");
    assert_eq!((named(&mut owner, 'v'), named(&mut owner, 'm')), (views, filled));
}

const HELD: &str = "select coalesce(string_agg(format('%s %s %s', c.relname, a.grantee, a.privilege_type), ', ' \
    order by c.relname, a.grantee, a.privilege_type), '') \
    from pg_class c, aclexplode(c.relacl) a where a.grantee <> c.relowner \
    and c.relnamespace = 'public'::regnamespace and c.relkind in ('v', 'm')";

#[test]
fn migrate_mends_views_and_gives_nobody_more_than_his_profile() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    database.server.role("conc_stranger");
    owner.run(
        "create extension pg_conversation; select grant_access('member'); \
         alter default privileges grant all on tables to public, conc_stranger",
    );
    let (views, filled) = (named(&mut owner, 'v'), named(&mut owner, 'm'));
    let expected: String = owner.value(HELD);
    let ill = "select string_agg(check_name || ': ' || detail, '; ') from doctor() where not ok";
    let mended = |owner: &mut Client, change: &str, is_ill: bool| {
        owner.run(change);
        assert_eq!(owner.value::<Option<String>>(ill).is_some(), is_ill, "{change}");
        owner.run("select migrate()");
        assert_eq!(owner.value::<Option<String>>(ill), None, "{change}");
        assert_eq!(owner.value::<String>(HELD), expected, "{change}");
    };
    for name in &filled {
        mended(&mut owner, &format!("grant all on {name} to public, member, conc_stranger"), true);
        mended(&mut owner, &format!("grant select (tenant_id) on {name} to member, public"), true);
        mended(&mut owner, &format!("refresh materialized view {name} with no data"), true);
    }
    for name in &views {
        mended(&mut owner, &format!("drop view {name} cascade"), true);
        mended(&mut owner, &format!("alter view {name} reset (security_invoker)"), true);
        mended(&mut owner, &format!("alter view {name} set (security_invoker = false)"), true);
        mended(&mut owner, &format!("grant all on {name} to public, member"), true);
        mended(&mut owner, &format!("revoke all on {name} from member"), false);
        // Whom the owner lets read stays let in.
        owner.run(&format!("begin; grant all on {name} to conc_stranger; select migrate()"));
        let kept = owner.value::<String>(&format!(
            "select '{name} ' || 'conc_stranger'::regrole::oid || ' SELECT'"
        ));
        let held: String = owner.value(HELD);
        assert_eq!(held.matches(" SELECT").count(), expected.matches(" SELECT").count() + 1);
        assert!(held.contains(&kept), "{held}");
        owner.run("rollback");
    }
    // A migration that is run again makes them as closed as the first time.
    owner.run("select rollback_to(9); select migrate()");
    assert_eq!(owner.value::<String>(HELD), expected);
    database.superuser().run("drop owned by conc_stranger");
}

#[test]
fn a_view_of_somebody_elses_is_not_worked_on() {
    let database = owned();
    let mut owner = database.connect(OWNER);
    database.server.role("conc_stranger");
    owner.run("create extension pg_conversation");
    let all = [named(&mut owner, 'v'), named(&mut owner, 'm')].concat();
    for name in all {
        let mut superuser = database.superuser();
        superuser.run(&format!("alter table {name} owner to conc_stranger"));
        let (code, words) = owner.error("select migrate()");
        assert_eq!(code, "55000", "{words}");
        assert!(words.contains(&name), "{words}");
        let check = "select detail from doctor() where check_name = 'tables belong to one owner'";
        assert!(owner.value::<String>(check).contains(&name));
        superuser.run(&format!("alter table {name} owner to {OWNER}"));
    }
    assert_eq!(owner.value::<i64>("select count(*) from doctor() where not ok"), 0);
}
