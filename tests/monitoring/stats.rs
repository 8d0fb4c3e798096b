//! What the views say, to whom, and at what cost.

use std::time::Duration;

use pg_conversation_tests::{
    Client, Database, Server, Session, Uuid, oldest, versions, wait_until,
};

use super::watched;

const VIEWS: [&str; 3] = ["stats", "stats_tables", "stats_indexes"];

/// Names and values of the one row of stats, each as text.
fn stats(client: &mut Client) -> Vec<(String, Option<String>)> {
    let rows = client
        .query("select key, value from stats s, jsonb_each_text(to_jsonb(s))", &[])
        .expect("the view answers");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn stat(client: &mut Client, name: &str) -> f64 {
    client
        .query_one(&format!("select {name}::float8 from stats"), &[])
        .expect("the view answers")
        .get::<_, Option<f64>>(0)
        .unwrap_or_else(|| panic!("{name} is null"))
}

/// Runs as somebody who can write the past: no trigger has a say.
fn in_the_past(database: &Database, sql: &str) {
    database.superuser().run(&format!("set session_replication_role = replica; {sql}"));
}

/// A person with a conversation.
fn conversation(database: &Database) -> (Client, Uuid) {
    let mut member = database.member(Uuid::new_v4());
    let id = member.value("select create_conversation()");
    (member, id)
}

#[test]
fn monitors_and_services_read_the_views_and_members_do_not() {
    for version in versions() {
        let server = Server::shared(version);
        let database = server.database();
        server.role("watcher");
        server.role("backend");
        server.role("nobody");
        database.superuser().run(
            "alter role backend bypassrls; select grant_access('watcher', 'monitor'); \
             select grant_access('backend', 'service'); select grant_access('nobody', 'anon')",
        );
        for view in VIEWS {
            let count = format!("select count(*) from {view}");
            for role in ["postgres", "watcher", "backend"] {
                assert!(database.connect(role).value::<i64>(&count) > 0, "{role}: {view}");
            }
            for role in ["member", "nobody"] {
                let (code, _) = database.connect(role).error(&count);
                assert_eq!(code, "42501", "{role}: {view}");
            }
        }
        // Nor by way of the function, nor by a privilege on the view alone.
        let mut member = database.connect("member");
        assert_eq!(member.error("select backlog()").0, "42501");
        database.superuser().run("grant select on stats to member");
        assert_eq!(member.error("select * from stats").0, "42501");
    }
}

#[test]
fn what_needs_pg_monitor_is_null_without_it_and_nothing_else_is() {
    let database = watched();
    let hidden = [
        "waiting_for_locks",
        "slow_statements",
        "longest_statement_seconds",
        "longest_idle_in_transaction_seconds",
        "oldest_snapshot_seconds",
        "oldest_snapshot_age",
        "replicas",
    ];
    let null = |role: &str| -> Vec<String> {
        let mut client = database.connect(role);
        // What there is none of is null for everybody.
        let none = ["oldest_to_clean_seconds", "last_job_seconds", "replication_lag_bytes"];
        let mut names: Vec<String> = stats(&mut client)
            .into_iter()
            .filter(|(name, value)| value.is_none() && !none.contains(&name.as_str()))
            .filter(|(name, _)| name != "replication_lag_seconds")
            .map(|(name, _)| name)
            .collect();
        names.sort();
        names
    };
    let mut expected = hidden.map(String::from);
    expected.sort();
    assert_eq!(null("guest"), expected);
    assert!(null("watcher").is_empty());
}

#[test]
fn streams_are_counted_while_they_go_on_and_told_when_they_stall() {
    let database = watched();
    let mut watcher = database.connect("watcher");
    let (mut member, conversation) = conversation(&database);
    let mut begin = || -> Uuid { member.value(&format!("select begin_message('{conversation}')")) };
    let (silent, young, revived, never) = (begin(), begin(), begin(), begin());
    for message in [silent, revived] {
        member.run(&format!("select append_chunk('{message}', 'x')"));
    }
    in_the_past(
        &database,
        &format!(
            "update messages set created_at = now() - interval '1 h' where id <> '{young}'; \
             update message_chunks set created_at = now() - interval '91 s'; \
             update message_chunks set created_at = now() - interval '80 s' where message_id = '{revived}'"
        ),
    );
    assert_eq!(stat(&mut watcher, "streams_in_progress"), 4.0);
    // The one that never had a chunk is as old as itself.
    assert_eq!(stat(&mut watcher, "streams_stalled"), 2.0);
    in_the_past(
        &database,
        &format!("update messages set stream_started_at = now() where id = '{never}'"),
    );
    assert_eq!(stat(&mut watcher, "streams_stalled"), 1.0);

    // It is what is then recovered.
    assert_eq!(database.superuser().value::<i32>("select recover_stalled_messages()"), 1);
    assert_eq!(stat(&mut watcher, "streams_stalled"), 0.0);
    assert_eq!(stat(&mut watcher, "streams_in_progress"), 3.0);
}

#[test]
fn chunks_wait_from_an_hour_after_the_end_until_they_are_cleaned_up() {
    let database = watched();
    let mut watcher = database.connect("watcher");
    let mut superuser = database.superuser();
    let (mut member, conversation) = conversation(&database);
    let mut end = |sql: &str| -> Uuid {
        let id: Uuid = member.value(&format!("select begin_message('{conversation}')"));
        member.run(&format!(
            "select append_chunk('{id}', 'x'); {}",
            sql.replace("$m", &id.to_string())
        ));
        id
    };
    let finished = end("select finish_message('$m')");
    let just_now = end("select finish_message('$m')");
    let interrupted = end("");
    end("");
    in_the_past(
        &database,
        &format!(
            "update messages set completed_at = now() - interval '2 h' where id = '{finished}'; \
             update messages set status = 'interrupted', created_at = now() - interval '20 h' \
             where id = '{interrupted}'; \
             update message_chunks set created_at = now() - interval '20 h' where message_id <> '{just_now}'; \
             insert into message_chunks values (new_id(), now() - interval '3 h', 0, true, 'nobody''s')"
        ),
    );
    // One finished, and one whose message is gone; the interrupted one has four hours left.
    assert_eq!(stat(&mut watcher, "messages_to_clean"), 2.0);
    let oldest = stat(&mut watcher, "oldest_to_clean_seconds");
    assert!((10_800.0..10_860.0).contains(&oldest), "{oldest}");
    in_the_past(
        &database,
        &format!(
            "update message_chunks set created_at = now() - interval '25 h' where message_id = '{interrupted}'"
        ),
    );
    assert_eq!(stat(&mut watcher, "messages_to_clean"), 3.0);

    assert_eq!(superuser.value::<i32>("select cleanup_finished_streams()"), 3);
    assert_eq!(stat(&mut watcher, "messages_to_clean"), 0.0);
    superuser.run("analyze message_chunks");
    wait_until(&mut watcher, "select chunk_rows = 2 and chunk_bytes > 0 from stats");
}

#[test]
fn what_maintenance_will_find_is_counted_until_it_has_been_there() {
    let database = watched();
    let mut superuser = database.superuser();
    let mut watcher = database.connect("watcher");
    let work = ["conversations_expired", "conversations_to_purge", "usage_slots_to_fold"];
    let nobody_has_run = stat(&mut watcher, "jobs_late");
    assert_eq!(
        nobody_has_run,
        superuser.value::<i64>("select count(*) from maintenance_runs") as f64
    );
    for name in work {
        assert_eq!(stat(&mut watcher, name), 0.0, "{name}");
    }
    let (mut member, _) = conversation(&database);
    member.run(
        "select create_conversation() from generate_series(1, 8); \
         update conversations set expires_at = now() + interval '1 h'",
    );
    let user: Uuid = member.value("select current_user_id()");
    in_the_past(
        &database,
        "with c as (select id, row_number() over (order by id) as n from conversations) \
         update conversations set \
             expires_at = case when n <= 4 then now() - interval '1 s' else expires_at end, \
             deleted_at = case n when 5 then now() - interval '31 days' when 6 then now() - interval '29 days' end \
         from c where c.id = conversations.id",
    );
    superuser.run(&format!(
        "select record_usage('00000000-0000-7000-8000-000000000001', '{user}', 'm', '{{\"prompt_tokens\": 5}}', \
             'k' || i, now() - i * interval '1 day') from generate_series(0, 9) i"
    ));
    assert_eq!(stat(&mut watcher, "conversations_expired"), 4.0);
    assert_eq!(stat(&mut watcher, "conversations_to_purge"), 1.0);
    watcher.run("set pg_conversation.keep_deleted = '1 day'");
    assert_eq!(stat(&mut watcher, "conversations_to_purge"), 2.0);
    watcher.run("set pg_conversation.keep_deleted = ''");
    assert_eq!(stat(&mut watcher, "conversations_to_purge"), 0.0);
    watcher.run("reset pg_conversation.keep_deleted");
    // Today, and yesterday somewhere, are not over.
    assert_eq!(stat(&mut watcher, "usage_slots_to_fold"), 16.0);

    superuser.run("select run_maintenance()");
    for name in work {
        assert_eq!(stat(&mut watcher, name), 0.0, "{name}");
    }
    assert_eq!(stat(&mut watcher, "jobs_late"), 0.0);
    assert_eq!(stat(&mut watcher, "jobs_failed"), 0.0);
    assert!(stat(&mut watcher, "last_job_seconds") < 60.0);
    superuser.run("update maintenance_runs set last_error = 'XX000' where job = 'analytics'");
    assert_eq!(stat(&mut watcher, "jobs_failed"), 1.0);
    superuser.run(
        "update maintenance_runs set last_finished_at = now() - 2 * every - interval '14 min'; \
         update maintenance_runs set last_finished_at = last_finished_at - interval '2 min' \
         where job in ('analytics', 'reservations')",
    );
    assert_eq!(stat(&mut watcher, "jobs_late"), 2.0);
    // However long somebody wants it.
    superuser.run(
        "do $$ begin update maintenance_runs set every = '178000000 years' where job = 'reservations'; \
         exception when check_violation then update maintenance_runs set every = '1 year' \
         where job = 'reservations'; end $$",
    );
    assert_eq!(stat(&mut watcher, "jobs_late"), 1.0);
    superuser.run(
        "update maintenance_runs set every = '1 hour' where job = 'reservations'; \
         update maintenance_runs set enabled = false where job = 'analytics'",
    );
    assert_eq!(stat(&mut watcher, "jobs_late"), 1.0);
    assert_eq!(stat(&mut watcher, "jobs_failed"), 0.0);
}

#[test]
fn reservations_and_limits_of_today_are_counted() {
    let database = watched();
    let mut superuser = database.superuser();
    let mut watcher = database.connect("watcher");
    let tenant = "'00000000-0000-7000-8000-000000000001'";
    superuser.run(&format!(
        "insert into tenants (id, name, slug, daily_token_limit, time_zone) \
         values (new_id(), 'a', 'a', null, 'UTC'), (new_id(), 'b', 'b', 0, 'UTC'), (new_id(), 'c', 'c', 0, 'UTC'); \
         update tenants set is_active = false where slug = 'c'; \
         update tenants set daily_token_limit = 100, time_zone = 'Pacific/Kiritimati' where id = {tenant}"
    ));
    assert_eq!(stat(&mut watcher, "tenants_out_of_tokens"), 1.0, "nothing is allowed b");
    let reserve = "select reservation_id from reserve_tokens(50, tenant_id => {})";
    let reserve = reserve.replace("{}", tenant);
    let (first, second): (Uuid, Uuid) = (superuser.value(&reserve), superuser.value(&reserve));
    assert_eq!(stat(&mut watcher, "reservations_open"), 2.0);
    superuser.run(&format!("select settle_tokens('{first}', 99)"));
    assert_eq!(stat(&mut watcher, "reservations_open"), 1.0);
    assert_eq!(stat(&mut watcher, "tenants_out_of_tokens"), 1.0);
    superuser.run(&format!("select settle_tokens('{second}', 1)"));
    assert_eq!(stat(&mut watcher, "reservations_open"), 0.0);
    assert_eq!(stat(&mut watcher, "tenants_out_of_tokens"), 2.0);
    // What was used without a reservation counts as well.
    superuser.run(&format!(
        "update tenants set daily_token_limit = 200 where id = {tenant}; \
         select record_usage({tenant}, null, 'm', '{{\"prompt_tokens\": 150, \"completion_tokens\": 49}}', 'k')"
    ));
    assert_eq!(stat(&mut watcher, "tenants_out_of_tokens"), 1.0);
    superuser
        .run(&format!("select record_usage({tenant}, null, 'm', '{{\"prompt_tokens\": 1}}', 'l')"));
    assert_eq!(stat(&mut watcher, "tenants_out_of_tokens"), 2.0);
    let expired = "update token_reservations set closed_at = null, settled = null, expires_at = now() - interval '1 s'";
    superuser.run(expired);
    assert_eq!(stat(&mut watcher, "reservations_open"), 0.0);
}

#[test]
fn counts_stop_at_their_limits() {
    let database = watched();
    let (_, conversation) = conversation(&database);
    in_the_past(
        &database,
        &format!(
            "insert into messages (id, conversation_id, tenant_id, sequence_number, role, status, created_at) \
             select new_id(), '{conversation}', tenant_id, i, 'assistant', 'streaming', now() - interval '1 h' \
             from conversations, generate_series(1, 10050) i; \
             insert into message_chunks (message_id, created_at, chunk_index, chunk_content) \
             select new_id(), now() - interval '1 day', 0, 'x' from generate_series(1, 600) i"
        ),
    );
    let mut watcher = database.connect("watcher");
    assert_eq!(stat(&mut watcher, "streams_in_progress"), 10_000.0);
    assert_eq!(stat(&mut watcher, "streams_stalled"), 500.0);
    assert_eq!(stat(&mut watcher, "messages_to_clean"), 300.0);
}

/// An old snapshot keeps every dead entry in the way of the walk.
#[test]
fn where_the_way_to_the_first_chunk_is_long_nobody_walks_it() {
    let server = Server::private(oldest(), "fsync = off\nautovacuum = off\n");
    let database = server.database();
    let mut superuser = database.superuser();
    superuser.run(
        "insert into message_chunks (message_id, chunk_index, chunk_content) select new_id(), 0, 'x' from messages",
    );
    superuser.run("set session_replication_role = replica");
    superuser.run(
        "insert into message_chunks (message_id, chunk_index, chunk_content) \
         select '00000000-0000-7000-8000-000000000001', i, '' from generate_series(1, 260000) i; \
         delete from message_chunks",
    );
    wait_until(&mut superuser, "select chunk_dead_rows > 250000 from stats");
    assert_eq!(
        superuser.value::<Option<i64>>("select messages_to_clean from stats"),
        None,
        "the walk was taken"
    );
    superuser.run("vacuum message_chunks");
    wait_until(&mut superuser, "select messages_to_clean = 0 from stats");
}

#[test]
fn a_statement_is_slow_and_a_reader_that_waits_is_not() {
    let database = watched();
    let mut watcher = database.connect("watcher");
    let (mut reader, conversation) = conversation(&database);
    let message: Uuid = reader.value(&format!("select begin_message('{conversation}')"));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            reader.run(&format!("select wait_for_chunks('{message}', -1, 13000)"));
        });
        let mut slow = database.superuser();
        scope.spawn(move || slow.run("/* the slow one */ select pg_sleep(13)"));
        wait_until(
            &mut watcher,
            "select count(*) = 2 from pg_stat_activity where datname = current_database() and state = 'active' \
             and now() - query_start > interval '10.5 s'",
        );
        // Other tests share the server, but none runs a statement for that long.
        assert_eq!(stat(&mut watcher, "slow_statements"), 1.0);
        assert!(stat(&mut watcher, "longest_statement_seconds") > 10.0);
    });
}

#[test]
fn who_keeps_dead_rows_from_vacuum_is_seen() {
    let server = Server::private(oldest(), "fsync = off\nmax_prepared_transactions = 2\n");
    let database = server.database();
    let (mut superuser, mut other) = (database.superuser(), database.superuser());
    assert_eq!(stat(&mut superuser, "oldest_snapshot_age"), 0.0);
    // Who looks is not seen, for however long.
    superuser.run("begin isolation level repeatable read; select pg_sleep(0.05)");
    assert_eq!(stat(&mut superuser, "oldest_snapshot_seconds"), 0.0);
    assert_eq!(stat(&mut superuser, "longest_statement_seconds"), 0.0);
    superuser.run("commit");
    let some_time = |client: &mut Client| {
        for _ in 0..20 {
            client.run("select pg_current_xact_id()");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    other.run("begin isolation level repeatable read; select 1");
    some_time(&mut superuser);
    assert!(stat(&mut superuser, "oldest_snapshot_seconds") >= 0.05);
    assert!(stat(&mut superuser, "longest_idle_in_transaction_seconds") >= 0.05);
    assert!(stat(&mut superuser, "oldest_snapshot_age") >= 20.0);
    other.run("rollback; begin; create table t (); prepare transaction 'p'");
    some_time(&mut superuser);
    assert_eq!(stat(&mut superuser, "oldest_snapshot_seconds"), 0.0);
    assert!(stat(&mut superuser, "oldest_snapshot_age") >= 20.0);
    superuser.run("rollback prepared 'p'");
    assert_eq!(stat(&mut superuser, "oldest_snapshot_age"), 0.0);

    other.run("begin; lock table users");
    std::thread::scope(|scope| {
        let mut waiter = database.superuser();
        scope.spawn(move || waiter.run("select count(*) from users"));
        wait_until(&mut superuser, "select waiting_for_locks = 1 from stats");
        other.run("rollback");
    });
    assert_eq!(stat(&mut superuser, "max_connections"), 100.0);
    let before = stat(&mut superuser, "connections");
    let _more = [database.superuser(), database.connect("member")];
    assert_eq!(stat(&mut superuser, "connections"), before + 2.0);
}

#[test]
fn a_standby_tells_how_far_it_is_behind_and_its_primary_does_too() {
    for version in versions() {
        let primary = Server::private(version, "fsync = off\nwal_level = logical\n");
        let database = primary.database();
        let mut superuser = database.superuser();
        let (_, conversation) = conversation(&database);
        superuser.run(&format!("select begin_message('{conversation}')"));
        assert_eq!(stat(&mut superuser, "replicas"), 0.0);
        let standby = primary.standby();
        wait_until(
            &mut superuser,
            "select (replicas = 1 and replication_lag_bytes = 0) is true from stats",
        );

        let mut reader = standby.connect(&database.name, "postgres");
        for view in VIEWS {
            assert!(reader.value::<i64>(&format!("select count(*) from {view}")) > 0, "{view}");
        }
        assert_eq!(stat(&mut reader, "streams_in_progress"), 1.0);
        assert_eq!(stat(&mut reader, "replication_lag_bytes"), 0.0);
        assert_eq!(stat(&mut reader, "replication_lag_seconds"), 0.0);
        // To clean up is the primary's work.
        assert_eq!(reader.value::<Option<i64>>("select messages_to_clean from stats"), None);

        // Whoever replays nothing falls behind, and both see it; since when, if it has replayed anything.
        superuser.run("create table s ()");
        wait_until(&mut reader, "select pg_last_xact_replay_timestamp() is not null");
        reader.run("select pg_wal_replay_pause()");
        wait_until(&mut reader, "select pg_get_wal_replay_pause_state() = 'paused'");
        superuser.run("create table t as select i from generate_series(1, 10000) i");
        wait_until(&mut superuser, "select (replication_lag_bytes > 100000) is true from stats");
        wait_until(&mut reader, "select (replication_lag_bytes > 100000) is true from stats");
        assert!(stat(&mut reader, "replication_lag_seconds") > 0.0);
        reader.run("select pg_wal_replay_resume()");
        wait_until(&mut superuser, "select (replication_lag_bytes = 0) is true from stats");
        drop(reader);
        drop(standby);

        // A slot whose reader is gone, as that of a realtime server.
        assert_eq!(stat(&mut superuser, "slots_inactive"), 0.0);
        superuser.run(
            "select pg_create_logical_replication_slot('realtime', 'pgoutput'); \
             create table u as select i from generate_series(1, 10000) i",
        );
        assert_eq!(stat(&mut superuser, "slots_inactive"), 1.0);
        assert_eq!(stat(&mut superuser, "slots_lost"), 0.0);
        assert!(stat(&mut superuser, "slot_retained_bytes") > 100_000.0);
        assert!(stat(&mut superuser, "oldest_snapshot_age") > 0.0);
        superuser.run("select pg_drop_replication_slot('realtime')");
        assert_eq!(stat(&mut superuser, "subscriptions_down"), 0.0);
        superuser.run(
            "create subscription s connection 'dbname=nowhere' publication p \
             with (connect = false, enabled = false, create_slot = false, slot_name = 's')",
        );
        assert_eq!(stat(&mut superuser, "subscriptions_down"), 0.0, "it is not enabled");
        superuser.run("alter subscription s enable");
        // Its worker is there for a moment each time it tries.
        wait_until(&mut superuser, "select subscriptions_down = 1 from stats");
        superuser.run("alter subscription s disable; alter subscription s set (slot_name = none)");
        superuser.run("drop subscription s");
    }
}

#[test]
fn the_views_go_and_come_back_with_the_tables() {
    let database = watched();
    let mut superuser = database.superuser();
    superuser.run("select rollback_to(13)");
    assert_eq!(superuser.error("select * from stats").0, "42P01");
    superuser.run("select migrate()");
    for view in VIEWS {
        assert!(
            database.connect("watcher").value::<i64>(&format!("select count(*) from {view}")) > 0
        );
    }
    superuser.run("select uninstall(current_database())");
    for view in VIEWS {
        assert!(
            superuser.value::<bool>(&format!("select to_regclass('{view}') is null")),
            "{view}"
        );
    }
}

#[test]
fn to_look_writes_nothing() {
    let database = watched();
    let mut watcher = database.connect("watcher");
    watcher.run("begin transaction read only");
    for view in VIEWS {
        watcher.run(&format!("select * from {view}"));
    }
    assert!(watcher.value::<bool>("select pg_current_xact_id_if_assigned() is null"));
    watcher.run("commit; begin isolation level serializable; select * from stats; commit");
}

#[test]
fn every_table_and_index_of_ours_is_listed_and_no_other() {
    for version in versions() {
        let database = Server::shared(version).database();
        let mut superuser = database.superuser();
        superuser.run("create table theirs (id int primary key)");
        let wrong: Vec<String> = superuser.values(
            "with ours as ( \
                 select c.oid, c.relname from pg_class c where c.relnamespace = 'public'::regnamespace \
                 and c.relkind in ('r', 'm', 'p') and c.relname <> 'theirs') \
             select coalesce(o.relname, t.table_name) from ours o \
             full join stats_tables t on t.table_name = o.relname \
             where o.relname is null or t.table_name is null \
             union all \
             select coalesce(c.relname, x.index_name) from ours o join pg_index i on i.indrelid = o.oid \
             join pg_class c on c.oid = i.indexrelid \
             full join stats_indexes x on x.index_name = c.relname and x.table_name = o.relname \
             where c.relname is null or x.index_name is null",
        );
        assert!(wrong.is_empty(), "Postgres {version}: {wrong:?}");
    }
}

#[test]
fn tables_and_indexes_tell_their_use() {
    let database = watched();
    let (mut member, conversation) = conversation(&database);
    member.run(&format!(
        "select add_message('{conversation}', 'user', 'x') from generate_series(1, 20)"
    ));
    member.run(&format!("select * from get_conversation_with_messages('{conversation}')"));
    drop(member);
    let mut superuser = database.superuser();
    superuser.run("vacuum analyze messages");
    let mut watcher = database.connect("watcher");
    wait_until(
        &mut watcher,
        "select rows_estimate = 20 and rows_inserted = 20 and dead_rows = 0 and table_bytes >= 8192 \
             and index_bytes >= 8192 and total_bytes >= table_bytes + index_bytes + toast_bytes \
             and last_vacuum > now() - interval '1 min' and last_analyze > now() - interval '1 min' \
             and last_autovacuum is null \
         from stats_tables where table_name = 'messages'",
    );
    wait_until(
        &mut watcher,
        "select rows_updated = 20 and rows_updated_in_place <= 20 from stats_tables \
         where table_name = 'conversations'",
    );
    wait_until(
        &mut watcher,
        "select scans > 0 and not is_unused from stats_indexes where index_name = 'idx_messages_conversation_seq'",
    );
    assert!(watcher.value::<bool>(
        "select is_unused and scans = 0 from stats_indexes where index_name = 'idx_messages_parent'"
    ));
    // A key is of use though nobody looks anything up by it.
    assert!(watcher.value::<bool>(
        "select not is_unused and is_unique from stats_indexes where index_name = 'idx_users_tenant_email'"
    ));
}

#[test]
fn no_content_and_no_name_of_anybody_shows() {
    let database = watched();
    let secret = "sphinx-of-black-quartz";
    let (mut member, conversation) = conversation(&database);
    member.run(&format!(
        "update conversations set title = '{secret}'; update users set name = '{secret}'; \
         select add_message('{conversation}', 'user', '{secret}')"
    ));
    let id: Uuid = member.value(&format!(
        "select begin_message('{conversation}', metadata => '{{\"a\": \"{secret}\"}}')"
    ));
    member.run(&format!("select append_chunk('{id}', '{secret}')"));
    database
        .superuser()
        .run(&format!("update tenants set name = '{secret}', slug = '{secret}'; analyze"));
    let mut watcher = database.connect("watcher");
    let tenant: Uuid = member.value("select current_tenant_id()");
    for view in VIEWS {
        let all: String = watcher.value(&format!("select string_agg(v::text, '|') from {view} v"));
        for told in
            [secret.to_string(), conversation.to_string(), id.to_string(), tenant.to_string()]
        {
            assert!(!all.contains(&told), "{view} tells {told}");
        }
    }
    // Nor does he read the tables.
    for table in ["tenants", "users", "conversations", "messages", "message_chunks"] {
        assert_eq!(watcher.error(&format!("select * from {table}")).0, "42501", "{table}");
    }
}
