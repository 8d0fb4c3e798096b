//! Two tenants in two time zones, with random conversations, and their figures counted by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use pg_conversation_tests::{Client, Database, Rng, Server, Session, Uuid, oldest};

pub const SERVICE: &str = "analytics_service";

/// A session of a role of the profile `service`, which no policy binds.
pub fn service(database: &Database) -> Client {
    // Roles belong to all databases, and two sessions may not alter one at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    database.server.role(SERVICE);
    database.superuser().run(&format!(
        "alter role {SERVICE} bypassrls; select grant_access('{SERVICE}', 'service')"
    ));
    drop(guard);
    database.connect(SERVICE)
}

const DAY: i64 = 86_400_000_000;
const HOUR: i64 = 3_600_000_000;

/// Clocks in New York were set back at this moment of 2025, in the middle of the data.
const NEW_YORK_FELL_BACK: i64 = 1_762_063_200_000_000;

/// Days since 1970 that have data: 25 October to 10 November 2025.
pub const DAYS: (i64, i64) = (20_386, 20_402);

pub struct Tenant {
    pub id: Uuid,
    pub zone: &'static str,
}

impl Tenant {
    fn offset(&self, at: i64) -> i64 {
        match self.zone {
            "Asia/Tokyo" => 9 * HOUR,
            _ if at < NEW_YORK_FELL_BACK => -4 * HOUR,
            _ => -5 * HOUR,
        }
    }

    pub fn day(&self, at: i64) -> i64 {
        (at + self.offset(at)).div_euclid(DAY)
    }

    fn midnight(&self, day: i64) -> i64 {
        // No clock is set back within five hours of one of these midnights.
        let about = day * DAY;
        about - self.offset(about - self.offset(about))
    }
}

pub struct Person {
    pub id: Uuid,
    pub tenant: usize,
    pub is_admin: bool,
}

pub struct Conversation {
    pub id: Uuid,
    pub tenant: usize,
    owner: Uuid,
    is_open_to_tenant: bool,
    is_deleted: bool,
    members: BTreeMap<Uuid, &'static str>,
}

impl Conversation {
    /// The rule of access, once more.
    pub fn is_readable_by(&self, person: &Person) -> bool {
        if self.tenant != person.tenant {
            return false;
        }
        let role = self.members.get(&person.id).copied();
        if self.owner == person.id || person.is_admin || role == Some("owner") {
            return true;
        }
        !self.is_deleted && (role.is_some() || self.is_open_to_tenant)
    }
}

pub struct Message {
    pub id: Uuid,
    /// Its place in the list.
    pub conversation: usize,
    role: &'static str,
    author: Option<Uuid>,
    at: i64,
    model: Option<&'static str>,
    latency: Option<i32>,
    first_token: Option<i32>,
    ratings: Vec<(Uuid, i32)>,
}

pub struct Event {
    tenant: usize,
    user: Option<Uuid>,
    model: &'static str,
    tokens: [i64; 2],
    at: i64,
}

impl Event {
    /// In thousandths: the one model that has a price takes 1 for a token of the prompt, 2 for others.
    fn cost(&self) -> i64 {
        if self.model == PRICED { self.tokens[0] + 2 * self.tokens[1] } else { 0 }
    }

    fn is_unpriced(&self) -> bool {
        self.model != PRICED && self.tokens != [0, 0]
    }
}

const PRICED: &str = "model-1";

const PRICES: &str = "insert into model_prices (id, pattern, usage_type, unit_price) values \
    (gen_random_uuid(), 'model-1', 'prompt_tokens', 0.001), \
    (gen_random_uuid(), 'model-1', 'completion_tokens', 0.002)";

/// What somebody asks for: whose figures, and of which days.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// Nobody is the service, which is bound by no policy.
    pub person: Option<&'a Person>,
    pub tenant: usize,
    pub days: (i64, i64),
}

pub struct World {
    pub database: Database<'static>,
    pub tenants: Vec<Tenant>,
    pub people: Vec<Person>,
    pub conversations: Vec<Conversation>,
    pub messages: Vec<Message>,
    events: Vec<Event>,
}

fn quoted(id: Option<Uuid>) -> String {
    id.map_or("null".into(), |id| format!("'{id}'"))
}

fn instant(at: i64) -> String {
    format!("timestamptz '1970-01-01 00:00+0' + {at} * interval '1 microsecond'")
}

fn or_null<T: ToString>(value: Option<T>) -> String {
    value.map_or("null".into(), |value| value.to_string())
}

/// A moment of the days that have data, half of the time about midnight of somewhere.
fn moment(tenants: &[Tenant], rng: &mut Rng) -> i64 {
    let day = DAYS.0 + rng.below((DAYS.1 - DAYS.0) as usize + 1) as i64;
    match rng.below(6) {
        n @ 0..3 => rng.pick(tenants).midnight(day) + n as i64 - 1,
        _ => day * DAY + rng.below(DAY as usize) as i64,
    }
}

pub fn world(stream: u64) -> World {
    let mut rng = Rng::new(stream);
    let tenants: Vec<Tenant> =
        ["Asia/Tokyo", "America/New_York"].map(|zone| Tenant { id: Uuid::new_v4(), zone }).into();
    let mut people = Vec::new();
    let mut conversations = Vec::new();
    for tenant in 0..tenants.len() {
        for n in 0..5 {
            people.push(Person { id: Uuid::new_v4(), tenant, is_admin: n == 4 });
        }
    }
    for tenant in 0..tenants.len() {
        let of_tenant: Vec<Uuid> =
            people.iter().filter(|p| p.tenant == tenant).map(|p| p.id).collect();
        for _ in 0..20 {
            let owner = *rng.pick(&of_tenant);
            let mut members = BTreeMap::new();
            for _ in 0..rng.below(3) {
                let member = *rng.pick(&of_tenant);
                if member != owner {
                    members.insert(member, *rng.pick(&["owner", "editor", "viewer"]));
                }
            }
            conversations.push(Conversation {
                id: Uuid::new_v4(),
                tenant,
                owner,
                is_open_to_tenant: rng.below(5) == 0,
                is_deleted: rng.below(5) == 0,
                members,
            });
        }
    }
    let mut messages = Vec::new();
    for (conversation, &Conversation { tenant, .. }) in conversations.iter().enumerate() {
        let of_tenant: Vec<Uuid> =
            people.iter().filter(|p| p.tenant == tenant).map(|p| p.id).collect();
        for _ in 0..rng.below(60) {
            let role = *rng.pick(&["user", "user", "assistant", "assistant", "system", "tool"]);
            let is_answer = role == "assistant" || rng.below(10) == 0;
            let some = |chance: usize, rng: &mut Rng| is_answer && rng.below(10) < chance;
            let at = moment(&tenants, &mut rng);
            let mut ratings: Vec<(Uuid, i32)> = Vec::new();
            for user in &of_tenant {
                if role == "assistant" && rng.below(6) == 0 {
                    ratings.push((*user, *rng.pick(&[1, 1, -1])));
                }
            }
            messages.push(Message {
                id: Uuid::new_v4(),
                conversation,
                role,
                author: (rng.below(8) > 0).then(|| *rng.pick(&of_tenant)),
                at,
                model: some(9, &mut rng).then(|| *rng.pick(&["model-1", "model-2", "Model-3"])),
                latency: some(7, &mut rng).then(|| rng.below(9000) as i32),
                first_token: some(6, &mut rng).then(|| rng.below(900) as i32),
                ratings,
            });
        }
    }
    let events = (0..300).map(|_| {
        let tenant = rng.below(tenants.len());
        let of_tenant: Vec<Uuid> =
            people.iter().filter(|p| p.tenant == tenant).map(|p| p.id).collect();
        Event {
            tenant,
            user: (rng.below(6) > 0).then(|| *rng.pick(&of_tenant)),
            model: rng.pick::<&str>(&[PRICED, PRICED, "model-2", "Model-3", ""]),
            tokens: [rng.below(3) as i64 * 500, rng.below(900) as i64],
            at: moment(&tenants, &mut rng),
        }
    });
    let events = events.collect();
    let database = Server::shared(oldest()).database();
    let world = World { database, tenants, people, conversations, messages, events };
    world.fill();
    world
}

impl World {
    fn fill(&self) {
        let mut root = self.database.superuser();
        let insert = |what: &str, rows: Vec<String>| {
            if rows.is_empty() {
                String::new()
            } else {
                format!("insert into {what} values {}", rows.join(", "))
            }
        };
        for tenant in &self.tenants {
            root.run(&format!(
                "insert into tenants (id, name, slug, time_zone) \
                 values ('{0}', '{0}', '{0}', '{1}')",
                tenant.id, tenant.zone
            ));
        }
        let rows = self.people.iter().map(|person| {
            let role = if person.is_admin { "admin" } else { "member" };
            format!("('{}', '{}', '{role}')", person.id, self.tenants[person.tenant].id)
        });
        root.run(&insert("users (id, tenant_id, role)", rows.collect()));
        let rows = self.conversations.iter().map(|c| {
            let visibility = if c.is_open_to_tenant { "tenant" } else { "private" };
            format!("('{}', '{}', '{}', '{visibility}')", c.id, self.tenants[c.tenant].id, c.owner)
        });
        let columns = "conversations (id, tenant_id, user_id, visibility)";
        root.run(&insert(columns, rows.collect()));
        let rows = self.conversations.iter().flat_map(|c| {
            c.members.iter().map(move |(user, role)| format!("('{}', '{user}', '{role}')", c.id))
        });
        root.run(&insert("conversation_members (conversation_id, user_id, role)", rows.collect()));
        let rows = self.messages.iter().map(|m| {
            format!(
                "('{}', '{}', '{}', {}, {}, {}, {}::integer, {}::integer)",
                m.id,
                self.conversations[m.conversation].id,
                m.role,
                quoted(m.author),
                instant(m.at),
                m.model.map_or("null".into(), |model| format!("'{model}'")),
                or_null(m.latency),
                or_null(m.first_token)
            )
        });
        let columns = "messages (id, conversation_id, role, author_id, created_at, model_used, \
                       latency_ms, first_token_ms)";
        // The author of a message that nobody signed is not made up: nobody is signed in.
        root.run(&insert(columns, rows.collect()));
        for conversation in self.conversations.iter().filter(|c| c.is_deleted) {
            let sql = format!(
                "update conversations set deleted_at = now() where id = '{}'",
                conversation.id
            );
            root.run(&sql);
        }
        let rows = self.messages.iter().flat_map(|m| {
            m.ratings.iter().map(move |(user, rating)| format!("('{}', '{user}', {rating})", m.id))
        });
        root.run(&insert("feedback (message_id, user_id, rating)", rows.collect()));
        root.run(PRICES);
        let rows = self.events.iter().enumerate().map(|(n, event)| {
            let [prompt, completion] = event.tokens;
            format!(
                "('{}'::uuid, {}::uuid, '{}', \
                 '{{\"prompt_tokens\": {prompt}, \"completion_tokens\": {completion}}}'::jsonb, 'event {n}', {})",
                self.tenants[event.tenant].id,
                quoted(event.user),
                event.model,
                instant(event.at)
            )
        });
        service(&self.database).run(&format!(
            "select record_usage(a, b, c, d, e, f) from (values {}) as v (a, b, c, d, e, f)",
            rows.collect::<Vec<_>>().join(", ")
        ));
        root.run("analyze");
    }

    pub fn session(&self, question: &Question) -> Client {
        match question.person {
            Some(person) => self.database.member(person.id),
            None => service(&self.database),
        }
    }

    /// The messages that count.
    fn counted<'a>(&'a self, question: &'a Question) -> impl Iterator<Item = &'a Message> {
        let tenant = &self.tenants[question.tenant];
        self.messages.iter().filter(move |m| {
            let conversation = &self.conversations[m.conversation];
            let (first, last) = question.days;
            conversation.tenant == question.tenant
                && question.person.is_none_or(|person| conversation.is_readable_by(person))
                && (first..=last).contains(&tenant.day(m.at))
        })
    }

    /// Whether the tenant has days for whoever asks.
    fn is_seen(&self, question: &Question) -> bool {
        question.person.is_none_or(|person| person.tenant == question.tenant)
    }

    fn of_day<'a>(&'a self, question: &'a Question, day: i64) -> Vec<&'a Message> {
        let tenant = &self.tenants[question.tenant];
        self.counted(question).filter(|m| tenant.day(m.at) == day).collect()
    }

    fn days<'a>(&self, question: &'a Question) -> impl Iterator<Item = i64> + use<'a> {
        let is_seen = self.is_seen(question);
        (question.days.0..=question.days.1).filter(move |_| is_seen)
    }

    pub fn daily_activity(&self, question: &Question) -> Vec<String> {
        let row = |day| {
            let messages = self.of_day(question, day);
            let conversations: BTreeSet<_> = messages.iter().map(|m| m.conversation).collect();
            let users: BTreeSet<_> =
                messages.iter().filter(|m| m.role == "user").filter_map(|m| m.author).collect();
            format!("{day} {} {} {}", conversations.len(), messages.len(), users.len())
        };
        self.days(question).map(row).collect()
    }

    pub fn feedback_rate(&self, question: &Question) -> Vec<String> {
        let row = |day| {
            let messages = self.of_day(question, day);
            let answers: Vec<_> = messages.iter().filter(|m| m.role == "assistant").collect();
            let rated = answers.iter().filter(|m| !m.ratings.is_empty()).count();
            let all: Vec<i32> =
                answers.iter().flat_map(|m| &m.ratings).map(|(_, rating)| *rating).collect();
            let up = all.iter().filter(|rating| **rating == 1).count();
            let rate = match all.len() {
                0 => "-".into(),
                n => {
                    // As numeric rounds: halves go up.
                    let rate = (2 * 10_000 * up + n) / (2 * n);
                    format!("{}.{:04}", rate / 10_000, rate % 10_000)
                }
            };
            format!("{day} {} {rated} {up} {} {rate}", answers.len(), all.len() - up)
        };
        self.days(question).map(row).collect()
    }

    pub fn latency(&self, question: &Question) -> Vec<String> {
        let mut models: BTreeMap<(bool, Option<&str>), Vec<&Message>> = BTreeMap::new();
        for m in self.counted(question) {
            if m.role == "assistant" && (m.latency.is_some() || m.first_token.is_some()) {
                models.entry((m.model.is_none(), m.model)).or_default().push(m);
            }
        }
        let row = |((_, model), answers): (&(bool, Option<&str>), &Vec<&Message>)| {
            let of = |figure: fn(&Message) -> Option<i32>| {
                let mut sorted: Vec<i32> = answers.iter().filter_map(|m| figure(m)).collect();
                sorted.sort_unstable();
                [0.5, 0.9, 0.99].map(|part| percentile(&sorted, part)).join(" ")
            };
            let (total, first) = (of(|m| m.latency), of(|m| m.first_token));
            format!("{} {} {total} {first}", model.unwrap_or("-"), answers.len())
        };
        models.iter().map(row).collect()
    }

    pub fn longest(&self, question: &Question, most: usize) -> Vec<String> {
        let mut counts: BTreeMap<usize, (usize, i64)> = BTreeMap::new();
        for m in self.counted(question) {
            let (count, last) = counts.entry(m.conversation).or_insert((0, i64::MIN));
            (*count, *last) = (*count + 1, m.at.max(*last));
        }
        let mut rows: Vec<_> = counts
            .into_iter()
            .map(|(conversation, (count, last))| (&self.conversations[conversation], count, last))
            .filter(|(conversation, ..)| !conversation.is_deleted)
            .collect();
        rows.sort_by_key(|(conversation, count, last)| (-(*count as i64), -last, conversation.id));
        rows.truncate(most);
        rows.into_iter().map(|(c, count, last)| format!("{} {count} {last}", c.id)).collect()
    }
}

impl World {
    /// Sums of what was used, by what they are told apart by; an admin and the service see all.
    fn used<K: Ord>(&self, question: &Question, by: impl Fn(&Event) -> K) -> BTreeMap<K, [i64; 5]> {
        let mut sums: BTreeMap<K, [i64; 5]> = BTreeMap::new();
        let (first, last) = question.days;
        let tenant = &self.tenants[question.tenant];
        for event in self.events.iter().filter(|event| {
            event.tenant == question.tenant
                && self.is_seen(question)
                && question.person.is_none_or(|p| p.is_admin || event.user == Some(p.id))
                && (first..=last).contains(&tenant.day(event.at))
        }) {
            let [prompt, completion] = event.tokens;
            let figures = [prompt, completion, 1, event.is_unpriced().into(), event.cost()];
            let sum = sums.entry(by(event)).or_default();
            for (sum, figure) in sum.iter_mut().zip(figures) {
                *sum += figure;
            }
        }
        sums
    }

    pub fn usage_by_model(&self, question: &Question) -> Vec<String> {
        let sums = self.used(question, |event| event.model);
        sums.iter().map(|(model, sum)| format!("[{model}] {}", words(sum))).collect()
    }

    pub fn usage_by_user(&self, question: &Question) -> Vec<String> {
        let sums = self.used(question, |event| event.user);
        let mut rows: Vec<_> = sums.into_iter().collect();
        rows.sort_by_key(|(user, sum)| (-sum[4], *user));
        let name = |user: Option<Uuid>| user.map_or("-".into(), |user| user.to_string());
        rows.iter().map(|(user, sum)| format!("{} {}", name(*user), words(sum))).collect()
    }
}

fn words(figures: &[i64]) -> String {
    figures.iter().map(i64::to_string).collect::<Vec<_>>().join(" ")
}

/// Between the two nearest, in proportion.
fn percentile(sorted: &[i32], part: f64) -> String {
    if sorted.is_empty() {
        return "-".into();
    }
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    let value = f64::from(below) + (place - place.floor()) * f64::from(above - below);
    format!("{value:.3}")
}

/// The functions, asked so that their rows read like those counted by hand.
pub const DAILY_ACTIVITY: &str = "select concat_ws(' ', date - date '1970-01-01', conversations, messages, active_users) \
     from daily_activity($)";
pub const FEEDBACK_RATE: &str = "select concat_ws(' ', date - date '1970-01-01', answers, rated, thumbs_up, thumbs_down, \
     coalesce(positive_rate::text, '-')) from feedback_rate($)";
pub const LATENCY: &str = "select concat_ws(' ', coalesce(model, '-'), answers, \
     coalesce(round(p50_ms::numeric, 3)::text, '-'), coalesce(round(p90_ms::numeric, 3)::text, '-'), \
     coalesce(round(p99_ms::numeric, 3)::text, '-'), \
     coalesce(round(first_token_p50_ms::numeric, 3)::text, '-'), \
     coalesce(round(first_token_p90_ms::numeric, 3)::text, '-'), \
     coalesce(round(first_token_p99_ms::numeric, 3)::text, '-')) from latency_percentiles($)";
pub const LONGEST: &str = "select concat_ws(' ', conversation_id, messages, \
     (extract(epoch from last_message_at) * 1000000)::bigint) from longest_conversations($)";

pub const USAGE_BY_MODEL: &str = "select concat_ws(' ', '[' || model || ']', prompt_tokens, \
     completion_tokens, requests, unpriced, (cost * 1000)::bigint) from usage_by_model($)";
pub const USAGE_BY_USER: &str = "select concat_ws(' ', coalesce(user_id::text, '-'), prompt_tokens, \
     completion_tokens, requests, unpriced, (cost * 1000)::bigint) from usage_by_user($)";

impl World {
    /// The arguments of a question.
    pub fn arguments(&self, question: &Question) -> String {
        let (first, last) = question.days;
        let period = format!("date '1970-01-01' + {first}, date '1970-01-01' + {last}");
        // Whoever asks about his own tenant need not name it.
        match question.person {
            Some(person) if person.tenant == question.tenant && first % 2 == 0 => period,
            _ => format!("{period}, '{}'", self.tenants[question.tenant].id),
        }
    }

    pub fn ask(&self, client: &mut Client, sql: &str, question: &Question) -> Vec<String> {
        client.values(&sql.replace('$', &self.arguments(question)))
    }
}
