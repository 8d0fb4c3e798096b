//! A conversation that a whole tenant reads, and the account of its feedback.

use std::sync::Mutex;

use pg_conversation_tests::{Client, Database, Server, Session, Uuid};

pub const SERVICE: &str = "feedback_service";

pub struct World<'a> {
    pub database: Database<'a>,
    pub users: Vec<Uuid>,
    pub conversation: Uuid,
    pub messages: Vec<Uuid>,
}

impl<'a> World<'a> {
    /// The first of the users owns the conversation.
    pub fn new(server: &'a Server, users: usize, messages: usize) -> Self {
        let database = server.database();
        let_service_in(&database);
        let mut root = database.superuser();
        root.run(&format!(
            "insert into users (id) select gen_random_uuid() from generate_series(1, {users})"
        ));
        let users: Vec<Uuid> = root.values("select id from users");
        let conversation: Uuid =
            database.member(users[0]).value("select create_conversation(visibility => 'tenant')");
        let messages: Vec<Uuid> = root.values(&format!(
            "select (add_message('{conversation}', 'assistant', 'x')).message_id \
             from generate_series(1, {messages})"
        ));
        Self { database, users, conversation, messages }
    }

    pub fn member(&self, user: usize) -> Client {
        self.database.member(self.users[user])
    }

    pub fn service(&self) -> Client {
        self.database.connect(SERVICE)
    }

    /// thumbs_up and thumbs_down of a message, as they are kept.
    pub fn counts(&self, message: usize) -> Option<(i32, i32)> {
        let sql = format!(
            "select thumbs_up, thumbs_down from feedback_counts where message_id = '{}'",
            self.messages[message]
        );
        let row = self.database.superuser().query_opt(&sql, &[]).expect("at most a row");
        row.map(|row| (row.get(0), row.get(1)))
    }
}

fn let_service_in(database: &Database) {
    // Roles belong to all databases, and two sessions may not alter one at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    database.server.role(SERVICE);
    database.superuser().run(&format!(
        "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
    ));
}

// The rows, counted by hand; what is kept; what the materialized view says.
const ROWS: &str = "select format('%s %s %s up %s down %s', f.message_id, f.conversation_id, f.tenant_id, \
    count(*) filter (where f.rating = 1), count(*) filter (where f.rating = -1)) \
    from feedback f join messages m on m.id = f.message_id and m.conversation_id = f.conversation_id \
    and m.tenant_id = f.tenant_id group by f.message_id, f.conversation_id, f.tenant_id order by 1";
const KEPT: &str = "select format('%s %s %s up %s down %s', message_id, conversation_id, tenant_id, thumbs_up, \
    thumbs_down) from feedback_counts order by 1";
const SUMMARY: &str = "select format('%s %s %s up %s down %s', message_id, conversation_id, tenant_id, thumbs_up, \
    thumbs_down) from message_feedback_summary order by 1";
const MEANS: &str = "select count(*) from message_feedback_summary s, get_message_feedback(s.message_id) g \
    where (g.total_feedback, g.thumbs_up, g.thumbs_down, g.avg_rating) \
    is distinct from (s.total_feedback, s.thumbs_up, s.thumbs_down, s.avg_rating)";

/// Rows, counts and, once it is refreshed, the summary say the same. Returns how many messages have any.
pub fn agree(root: &mut Client) -> usize {
    root.run("begin isolation level repeatable read");
    let (rows, kept): (Vec<String>, Vec<String>) = (root.values(ROWS), root.values(KEPT));
    root.run("commit");
    assert_eq!(rows, kept, "- rows, + counts");
    root.run("begin isolation level repeatable read; select refresh_analytics()");
    let (rows, summary): (Vec<String>, Vec<String>) = (root.values(ROWS), root.values(SUMMARY));
    assert_eq!(rows, summary, "- rows, + summary");
    assert_eq!(root.value::<i64>(MEANS), 0, "what get_message_feedback says");
    root.run("commit");
    assert_eq!(
        root.value::<Option<String>>(
            "select detail from doctor() where check_name = 'counts of feedback'"
        ),
        None
    );
    rows.len()
}
