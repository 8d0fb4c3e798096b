//! Who may run it, and that nobody's code runs with more rights than he has.

use pg_conversation_tests::{Server, Session, oldest};

use crate::house::{House, Keeper};

#[test]
fn the_service_and_the_owner_run_it_and_nobody_else() {
    let house = House::new();
    let mut superuser = house.database.superuser();
    for (role, profile) in
        [("maint_monitor", "monitor"), ("maint_anon", "anon"), ("maint_none", "")]
    {
        house.database.server.role(role);
        if !profile.is_empty() {
            superuser.run(&format!("select grant_access('{role}', '{profile}')"));
        }
    }
    house.database.server.role("maint_syncer");
    superuser
        .run("alter role maint_syncer bypassrls; select grant_access('maint_syncer', 'syncer')");
    for role in ["member", "maint_monitor", "maint_anon", "maint_none", "maint_syncer"] {
        let mut client = house.database.connect(role);
        for call in ["run_maintenance()", "schedule_maintenance()", "unschedule_maintenance()"] {
            assert_eq!(client.error(&format!("select {call}")).0, "42501", "{role} {call}");
        }
        let may_read = client.batch_execute("select from maintenance_runs").is_ok();
        assert_eq!(may_read, role == "maint_monitor", "{role}");
        assert_eq!(
            client.error("update maintenance_runs set enabled = false").0,
            "42501",
            "{role}"
        );
    }
    // Whoever is granted the columns and bound by policies is no service.
    superuser.run("grant select, update (every, enabled) on maintenance_runs to maint_none");
    let mut client = house.database.connect("maint_none");
    assert_eq!(client.error("select run_maintenance()").0, "42501");
    let mut service = house.service();
    assert_eq!(service.keep().len(), 9);
    for forbidden in [
        "update maintenance_runs set runs = 0",
        "update maintenance_runs set last_error = null",
        "insert into maintenance_runs (job, every) values ('x', '1 s')",
        "delete from maintenance_runs",
    ] {
        assert_eq!(service.error(forbidden).0, "42501", "{forbidden}");
    }
    superuser.run("update maintenance_runs set last_started_at = null");
    assert_eq!(superuser.keep().len(), 9);
}

/// A database whose owner has put code of his own wherever it might run.
pub fn trapped(server: &Server) -> House<'_> {
    server.role("maint_owner");
    let database = server.empty_database();
    database.superuser().run(&format!(
        "alter database {0} owner to maint_owner; alter schema public owner to maint_owner",
        database.name
    ));
    let mut owner = database.connect("maint_owner");
    server.role("member");
    owner.run(
        "create extension pg_conversation; select grant_access('member'); \
         create table caught (who text, how text); \
         create function trap() returns trigger language plpgsql as $$ \
         declare tried text; begin \
             insert into public.caught values (current_user, tg_table_name || ' ' || tg_op); \
             foreach tried in array array['set session authorization default', 'reset role', \
                 'set role postgres', 'reset session authorization', \
                 'set session authorization postgres'] loop \
                 begin \
                     execute tried; \
                     insert into public.caught values (current_user, tried); \
                 exception when others then null; end; \
             end loop; \
             return coalesce(new, old); end $$; \
         create trigger trap before delete on conversations for each row execute function trap(); \
         create trigger trap before delete on messages for each row execute function trap(); \
         create trigger trap before update on maintenance_runs for each row execute function trap(); \
         create function equals(a uuid, b uuid) returns boolean language plpgsql as $$ begin \
             insert into public.caught values (current_user, 'operator'); return a::text = b::text; end $$; \
         create operator public.= (leftarg = uuid, rightarg = uuid, function = equals)",
    );
    owner.run(&format!("alter database {} set search_path = public, pg_catalog", database.name));
    House { database, user: pg_conversation_tests::Uuid::new_v4() }
}

#[test]
fn nothing_of_the_owners_runs_with_the_rights_of_a_superuser() {
    let house = trapped(Server::shared(oldest()));
    house.expired(3, 2, "1 min");
    let mut superuser = house.database.superuser();
    assert_eq!(superuser.keep().len(), 9);
    let mut owner = house.database.connect("maint_owner");
    let who: Vec<String> = owner.values("select distinct who from caught");
    assert_eq!(who, ["maint_owner"]);
    let how: Vec<String> = owner.values("select distinct how from caught order by 1");
    assert_eq!(how, ["conversations DELETE", "maintenance_runs UPDATE", "messages DELETE"]);
    assert_eq!(house.count("conversations"), 0);
    // What would run at commit, with the rights of whoever commits, runs at once.
    owner.run(
        "create function late() returns trigger language plpgsql as $$ \
         begin insert into public.caught values (current_user, 'late'); return null; end $$; \
         create constraint trigger late after delete on conversations deferrable initially deferred \
         for each row execute function late(); \
         create constraint trigger late after update on maintenance_runs deferrable initially deferred \
         for each row execute function late(); \
         create table notes (conversation_id uuid references conversations deferrable initially deferred); \
         update maintenance_runs set last_started_at = null; delete from caught",
    );
    house.expired(1, 0, "1 min");
    // The update is none of the superuser's own.
    owner.make_due("expired_conversations");
    owner.run("delete from caught");
    let ran: Vec<String> = superuser.keep();
    assert_eq!(ran.len(), 9, "{ran:?}");
    assert_eq!(house.count("conversations"), 0);
    let late: Vec<String> = owner.values("select distinct who from caught where how = 'late'");
    assert_eq!(late, ["maint_owner"]);
    // A superuser who has become somebody else can be set back.
    for change in ["set role maint_owner", "set session authorization maint_owner"] {
        house.expired(1, 0, "1 min");
        let mut guest = house.database.superuser();
        guest.run(&format!("{change}; set search_path = public"));
        guest.keep();
        assert_eq!(house.count("conversations"), 0, "{change}");
    }
    let who: Vec<String> = owner.values("select distinct who from caught");
    assert_eq!(who, ["maint_owner"]);
    // The owner himself does as he likes.
    house.expired(1, 0, "1 min");
    assert_eq!(owner.done("expired_conversations"), 1);
}
