//! Statements of the matrix, with the ids of a place in them.

use pg_conversation_tests::Uuid;

use crate::world::{Person, Place};

fn quoted(id: Uuid) -> String {
    format!("'{id}'")
}

/// Puts the ids of a place, and of the person, into a statement.
pub fn fill(sql: &str, person: &Person, place: &Place) -> String {
    // Who has written nothing here names somebody else's.
    let own = person.user.and_then(|user| place.messages.get(&user));
    let own = own.or_else(|| place.messages.values().next());
    let other = place.messages.iter().find(|(author, _)| Some(**author) != person.user);
    let known = |kind: &str| quoted(place.people[kind]);
    let values = [
        ("$ended", quoted(place.ended)),
        ("$stream", quoted(place.stream)),
        ("$own", own.copied().map(quoted).unwrap_or_default()),
        ("$other", other.map(|(_, id)| quoted(*id)).unwrap_or_default()),
        ("$owner", quoted(place.owner)),
        ("$viewer", known("viewer")),
        ("$colleague", known("colleague")),
        ("$me", person.user.map_or("null".into(), quoted)),
        ("$name", format!("'{}'", place.name)),
        ("$tenant", quoted(place.tenant)),
        ("$c", quoted(place.id)),
    ];
    let mut sql = sql.to_string();
    for (name, value) in values {
        sql = replace_word(&sql, name, &value);
    }
    sql
}

/// Replaces a placeholder where it is not the beginning of a longer one.
fn replace_word(sql: &str, name: &str, value: &str) -> String {
    let mut parts = sql.split(name);
    let mut result = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let is_longer = part.starts_with(|c: char| c.is_alphabetic());
        result.push_str(if is_longer { name } else { value });
        result.push_str(part);
    }
    result
}

/// A place that is not there.
pub fn nowhere(like: &Place) -> Place {
    let id = Uuid::new_v4;
    Place {
        name: format!("{}/{}", &like.name[..1], &id().to_string()[..6]),
        id: id(),
        tenant: id(),
        owner: id(),
        stream: id(),
        ended: id(),
        messages: like.messages.keys().map(|author| (*author, id())).collect(),
        people: like.people.keys().map(|kind| (kind.clone(), id())).collect(),
        ..like.clone()
    }
}
