//! The complete backend of an AI chat product inside Postgres.
//!
//! Members of the extension are functions only. Tables, types, indexes, triggers and policies are
//! made by `migrate()` and belong to whoever installed it, so that dumps carry them and
//! `DROP EXTENSION` leaves every row in place. `docs/decisions.md` has the evidence.

use pgrx::prelude::*;

use crate::error::OrRaise;

mod access;
mod analytics;
mod conversations;
mod doctor;
mod error;
mod feedback;
mod function;
mod heap;
mod identity;
mod install;
mod limits;
mod lock;
mod lookup;
mod maintenance;
mod messages;
mod monitoring;
mod owner;
mod plan;
mod seed;
mod settings;
mod streaming;
mod supabase;
mod trigger;
mod usage;
mod view;

pgrx::pg_module_magic!(name, version);

/// Runs once in each backend that loads the library.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::require_utf8().or_raise();
    settings::define();
    plan::watch_catalog();
    streaming::watch_transactions();
    maintenance::register();
}

// The extension script: Rust functions first, then the SQL functions of each domain, then the
// tables. A restore brings its own tables, so the last step looks before it acts.
extension_sql!(
    "\\echo Use \"CREATE EXTENSION pg_conversation\" to load this file. \\quit",
    name = "guard",
    bootstrap
);
extension_sql_file!(
    "../sql/frame/api.sql",
    name = "frame_api",
    requires = [
        access::privileges::note_access,
        access::privileges::require_owner,
        conversations::members::list_members,
        doctor::doctor,
        identity::current_tenant_id,
        identity::current_user_id,
        identity::ensure_user,
        identity::is_tenant_admin,
        identity::may_edit_messages,
        identity::new_id,
        identity::storage_folder,
        install::migrate,
        install::rollback_to,
        install::uninstall,
        seed::remove_test_data,
        seed::seed_test_data,
        maintenance::launcher::has_maintenance_worker,
        maintenance::run::require_maintainer,
        maintenance::run::run_maintenance,
        supabase::link_supabase,
        usage::reprice::recalculate_costs,
        usage::upkeep::verify_usage,
    ]
);
extension_sql_file!("../sql/identity/api.sql", name = "identity_api", requires = ["frame_api"]);
extension_sql_file!("../sql/access/api.sql", name = "access_api", requires = ["identity_api"]);
extension_sql_file!(
    "../sql/conversations/api.sql",
    name = "conversations_api",
    requires = ["access_api"]
);
extension_sql_file!(
    "../sql/messages/api.sql",
    name = "messages_api",
    requires = ["conversations_api"]
);
extension_sql_file!(
    "../sql/streaming/api.sql",
    name = "streaming_api",
    requires = ["messages_api"]
);
extension_sql_file!("../sql/feedback/api.sql", name = "feedback_api", requires = ["streaming_api"]);
extension_sql_file!("../sql/usage/api.sql", name = "usage_api", requires = ["feedback_api"]);
extension_sql_file!("../sql/limits/api.sql", name = "limits_api", requires = ["usage_api"]);
extension_sql_file!("../sql/analytics/api.sql", name = "analytics_api", requires = ["limits_api"]);
extension_sql_file!(
    "../sql/maintenance/api.sql",
    name = "maintenance_api",
    requires = ["analytics_api"]
);
extension_sql_file!(
    "../sql/monitoring/api.sql",
    name = "monitoring_api",
    requires = ["maintenance_api"]
);
extension_sql_file!("../sql/seed/api.sql", name = "seed_api", requires = ["monitoring_api"]);
extension_sql_file!("../sql/supabase/api.sql", name = "supabase_api", requires = ["seed_api"]);
extension_sql_file!("../sql/frame/install.sql", name = "install", finalize);
