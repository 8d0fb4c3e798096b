//! Answers that rest on rows remembered by their place hold while the rows do, whatever is done to the
//! rows, their pages, their files and the tables.

use std::collections::BTreeMap;

use pg_conversation_tests::{Client, Database, Rng, Server, Session, oldest, seed};

use crate::crowd::grant_service;
use crate::identity::Kept;
use crate::upheavals::{C, U, changes, upheavals};

/// The rule of access once more, in plain SQL, read past all policies in the snapshot of the caller.
const TRUTH: &str = "
create function level(c uuid) returns text language sql stable security definer
set search_path = public as $$
    with me as (
        select u.* from users u join tenants t on t.id = u.tenant_id
        where u.is_active and t.is_active
        and u.id = nullif(current_setting('pg_conversation.user_id', true), '')::uuid
    )
    select coalesce((
        select case
            when o.tenant_id <> me.tenant_id then 'none'
            when o.user_id = me.id or me.role = 'admin' or m.role = 'owner' then 'manage'
            when o.deleted_at is not null then 'none'
            when m.role = 'editor' then 'write'
            when m.role = 'viewer' or o.visibility = 'tenant' then 'read'
            else 'none' end
        from me join conversations o on o.id = c
        left join conversation_members m on m.conversation_id = o.id and m.user_id = me.id
    ), 'none')
$$;
create function own_level(c uuid) returns text language sql stable set search_path = public as $$
    select case
        when has_conversation_access(c, current_user_id(), 'manage') then 'manage'
        when has_conversation_access(c, current_user_id(), 'write') then 'write'
        when has_conversation_access(c, current_user_id(), 'read') then 'read'
        else 'none' end
$$;
create function person() returns text language sql stable security definer set search_path = public as $$
    select coalesce((select u.id || ' ' || u.tenant_id || ' ' || (u.role = 'admin')
        from users u join tenants t on t.id = u.tenant_id
        where u.is_active and t.is_active
        and u.id = nullif(current_setting('pg_conversation.user_id', true), '')::uuid), '  false')
$$;
create function own_person() returns text language sql stable set search_path = public as $$
    select coalesce(current_user_id()::text, '') || ' ' || coalesce(current_tenant_id()::text, '') || ' '
        || is_tenant_admin()
$$;
grant execute on function level, own_level, person, own_person to public;
create table noise (i int);
create table shadow as select * from conversation_members;";

fn world() -> Database<'static> {
    let database = Server::shared(oldest()).database();
    grant_service(&database);
    let mut superuser = database.superuser();
    superuser.run(&format!(
        "insert into tenants (id, name, slug) values ('00000000-0000-4000-8000-0000000000f1', 'Other', 'other'); \
         insert into users (id) values ('{}'), ('{}'); \
         insert into users (id, tenant_id) values ('{}', '00000000-0000-4000-8000-0000000000f1'); \
         insert into conversations (id, user_id) values ('{}', '{}'), ('{}', '{}'), ('{}', '{}'); \
         insert into conversation_members (conversation_id, user_id, role) values ('{}', '{}', 'editor')",
        U[0], U[1], U[2], C[0], U[0], C[1], U[0], C[2], U[2], C[1], U[1]
    ));
    superuser.run(TRUTH);
    database
}

/// A session that asks; the transaction that it is in, if any.
struct Asker {
    kept: Kept,
    level: &'static str,
    open: bool,
}

impl Asker {
    fn new(database: &Database, level: &'static str) -> Self {
        let mut client = database.superuser();
        client.run("set lock_timeout = '4ms'; set role member");
        Self { kept: Kept::new(client), level, open: false }
    }

    fn run(&mut self, sql: &str) {
        self.kept.client.run(sql);
    }

    fn end(&mut self) {
        let _ = self.kept.client.batch_execute("rollback");
        self.open = false;
        self.run("set role member");
    }
}

/// Changes made by sessions of their own, two of them in transactions that stay open for a while.
fn disturb(rng: &mut Rng, others: &mut [(Client, bool)], changes: &[String]) -> String {
    let n = rng.below(others.len());
    let (client, open) = &mut others[n];
    let sql = match (*open, rng.below(8)) {
        (false, 0 | 1) => "begin".to_string(),
        (true, 0 | 1) => "commit".into(),
        (true, 2) => "rollback".into(),
        (true, 3) => "savepoint s".into(),
        (true, 4) => "rollback to s".into(),
        (true, 5) => format!("prepare transaction 'places_{n}'"),
        (false, 2) => format!("commit prepared 'places_{n}'"),
        (false, 3) => format!("rollback prepared 'places_{n}'"),
        (false, 4) => "insert into noise values (1)".into(),
        _ => rng.pick(changes).clone(),
    };
    match (client.batch_execute(&sql), sql.as_str()) {
        (Ok(()), "begin") => *open = true,
        (Ok(()), "commit" | "rollback") => *open = false,
        (Ok(()), _) if sql.starts_with("prepare") => *open = false,
        (Ok(()), _) => (),
        (Err(_), _) => {
            client.run("rollback");
            *open = false;
            return format!("{n}: {sql}: failed");
        }
    }
    format!("{n}: {sql}")
}

/// One question to the product and to the truth, in one statement and so in one snapshot.
fn question(rng: &mut Rng) -> String {
    if rng.below(3) == 0 {
        return "select own_person(), person()".into();
    }
    // The same conversation again and again, for only the last answer has a place.
    let c = if rng.below(3) == 0 { *rng.pick(&C) } else { C[1] };
    match rng.below(4) {
        0 => format!(
            "select coalesce((select 'there' from conversations where id = '{c}'), 'not there'), \
             case level('{c}') when 'none' then 'not there' else 'there' end"
        ),
        1 => format!(
            "select (select count(*) from messages where conversation_id = '{c}')::text, \
             case level('{c}') when 'none' then 0 else (select last_sequence from all_of('{c}')) end::text"
        ),
        _ => format!("select own_level('{c}'), level('{c}')"),
    }
}

#[test]
fn remembered_places_tell_the_truth_through_random_histories() {
    let database = world();
    let mut superuser = database.superuser();
    superuser.run(
        "create function all_of(c uuid) returns setof conversations language sql stable \
         security definer set search_path = public as 'select * from conversations where id = c'; \
         set lock_timeout = '4ms'",
    );
    let mut others: Vec<(Client, bool)> = (0..3).map(|_| (database.superuser(), false)).collect();
    for (client, _) in &mut others {
        client.run("set lock_timeout = '4ms'");
    }
    let mut askers = [
        Asker::new(&database, "read committed"),
        Asker::new(&database, "read committed"),
        Asker::new(&database, "repeatable read"),
        Asker::new(&database, "serializable"),
    ];
    for asker in &mut askers {
        asker.run(&format!("set pg_conversation.user_id = '{}'", U[1]));
    }
    let (changes, upheavals) = (changes(), upheavals());
    let mut rng = Rng::new(11);
    let mut history: Vec<String> = Vec::new();
    let mut seen = BTreeMap::<String, u32>::new();
    let dropping = upheavals.iter().find(|sql| sql.starts_with("drop")).expect("one of them");
    let mut quiets = 0;
    for step in 0..6000 {
        let n = rng.below(askers.len());
        let quiet = rng.below(40) == 0;
        if quiet {
            quiets += 1;
            // Now and then nobody is in the way of what wants a table for itself.
            askers.iter_mut().filter(|asker| asker.open).for_each(Asker::end);
            for (n, (client, open)) in others.iter_mut().enumerate() {
                client.run("commit");
                *open = false;
                let _ = client.batch_execute(&format!("commit prepared 'places_{n}'"));
            }
            if rng.below(2) == 0 {
                superuser.run(&format!(
                    "update tenants set is_active = true; \
                     update users set is_active = true, role = 'member'; \
                     update conversations set deleted_at = null, user_id = '{}' where id <> '{}'; \
                     insert into conversation_members (conversation_id, user_id, role) \
                     values ('{}', '{}', 'editor') on conflict do nothing",
                    U[0], C[2], C[1], U[1]
                ));
            }
        }
        let asker = &mut askers[n];
        let note = match if quiet { 5 } else { rng.below(20) } {
            0..=4 => disturb(&mut rng, &mut others, &changes),
            5 => {
                // What comes rarely comes often enough.
                let is_drop = quiet && quiets % 20 == 0;
                let sql = if is_drop { dropping } else { rng.pick(&upheavals) }.clone();
                let done = sql.split("; ").try_for_each(|one| superuser.batch_execute(one)).is_ok();
                if !done && sql.starts_with("drop") {
                    // Nothing was dropped, or it is put back.
                    let _ = superuser.batch_execute("create extension pg_conversation");
                }
                let kind = sql.split(' ').take(2).collect::<Vec<_>>().join(" ");
                *seen.entry(kind).or_default() += u32::from(done);
                format!("{sql}{}", if done { "" } else { ": failed" })
            }
            6 => {
                let sql = match (asker.open, rng.below(4)) {
                    (false, _) => format!("begin isolation level {}", asker.level),
                    (true, 0) => "savepoint s".into(),
                    (true, 1) => "rollback to s".into(),
                    _ => "commit".into(),
                };
                if asker.kept.client.batch_execute(&sql).is_err() || sql == "commit" {
                    asker.end();
                } else if sql.starts_with("begin") {
                    asker.open = true;
                }
                format!("asker {n}: {sql}")
            }
            7 if asker.open => {
                let sql = format!("reset role; {}; set role member", rng.pick(&changes));
                if asker.kept.client.batch_execute(&sql).is_err() {
                    asker.end();
                }
                format!("asker {n}: {sql}")
            }
            8 => {
                let user = if rng.below(3) == 0 { rng.pick(&U) } else { U[1] };
                let sql = format!("set pg_conversation.user_id = '{user}'");
                asker.run(&sql);
                format!("asker {n}: {sql}")
            }
            _ => {
                let sql = question(&mut rng);
                match asker.kept.ask(&sql) {
                    Ok(row) => {
                        let what = if row[1].len() > 20 { "a person" } else { row[1].as_str() };
                        *seen.entry(what.to_string()).or_default() += 1;
                        // To an older snapshot a truncated table is empty: the rule says so then, and
                        // what was known before is true in that snapshot.
                        let is_truncated = asker.level != "read committed"
                            && history.iter().any(|note| note.contains("truncate"));
                        assert!(
                            row[0] == row[1] || is_truncated,
                            "{row:?}, step {step}, asker {n}: {sql}\n{}",
                            history.join("\n")
                        );
                    }
                    Err(error) => {
                        // Locked out by what goes on, or a snapshot that is older than the table.
                        let known = ["40001", "55P03", "25P02", "42883", "55000", "42P01", "0A000"];
                        assert!(known.iter().any(|code| error.starts_with(code)), "{sql}: {error}");
                        asker.end();
                    }
                }
                format!("asker {n}: {sql}")
            }
        };
        history.push(note);
        if history.len() > 60 {
            history.remove(0);
        }
    }
    for (client, _) in &mut others {
        client.run("rollback");
    }
    for name in superuser
        .values::<String>("select gid from pg_prepared_xacts where database = current_database()")
    {
        superuser.run(&format!("rollback prepared '{name}'"));
    }
    seed();
    println!("{seen:?}");
    let levels = ["none", "read", "write", "manage", "a person", "there"];
    for answer in levels.iter().chain(&["vacuum full", "alter table", "drop extension"]) {
        assert!(seen.get(*answer).is_some_and(|n| *n > 2), "{answer}: {seen:?}");
    }
}

/// The same ids in two schemas, and the extension now in one and now in the other.
#[test]
fn a_place_in_one_schema_says_nothing_about_the_other() {
    let database = Server::shared(oldest()).empty_database();
    database.server.role("member");
    let mut owner = database.superuser();
    let ask = format!(
        "select concat_ws(' ', right(current_user_id()::text, 1), \
         has_conversation_access('{}', '{}', 'read'), is_tenant_admin())",
        C[0], U[1]
    );
    let mut sessions = [database.connect("member"), database.superuser()];
    for session in &mut sessions {
        session.run(&format!("set pg_conversation.user_id = '{}'", U[1]));
    }
    // What he is in each schema, and what is said of him there.
    let lives = [("one", "editor", "member", "b t f"), ("two", "", "admin", "b t t")];
    for round in 0..3 {
        for (schema, member, role, expected) in lives {
            owner.run(&format!(
                "create schema if not exists {schema}; \
                 create extension pg_conversation with schema {schema}; set search_path = {schema}; \
                 select grant_access('member')"
            ));
            if round == 0 {
                owner.run(&format!(
                    "insert into users (id, role) values ('{ada}', 'member'), ('{bob}', '{role}'); \
                     insert into conversations (id, user_id) values ('{c}', '{ada}'); \
                     insert into conversation_members (conversation_id, user_id, role) \
                     select '{c}', '{bob}', '{member}' where '{member}' <> ''",
                    ada = U[0],
                    bob = U[1],
                    c = C[0],
                ));
            }
            let outside = format!("update {schema}.users set is_active = ");
            for session in &mut sessions {
                session.run(&format!("set search_path = {schema}"));
                for _ in 0..2 {
                    assert_eq!(session.value::<String>(&ask), expected, "{schema}, round {round}");
                }
                owner.run(&format!("{outside} false where id = '{}'", U[1]));
                assert_eq!(session.value::<String>(&ask), "f f", "{schema}, round {round}");
                owner.run(&format!("{outside} true"));
                assert_eq!(session.value::<String>(&ask), expected, "{schema}, round {round}");
            }
            owner.run("drop extension pg_conversation cascade");
        }
    }
}
