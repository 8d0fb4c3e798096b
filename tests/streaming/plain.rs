//! Plain SQL on message_chunks, as clients write it that know no functions.

use std::io::Write;

use pg_conversation_tests::{Client, Rng, Session, Uuid};
use postgres::Error;

use crate::desk::{Desk, Stream, code};

const INTO: &str =
    "insert into message_chunks (message_id, chunk_content, chunk_index, is_final) values";

/// Rows as (content, index or -1 for null, final).
type Rows = &'static [(&'static str, i32, bool)];

fn values(message: Uuid, rows: Rows) -> String {
    let row = |(content, index, last): &(&str, i32, bool)| {
        let index = if *index < 0 { "null".into() } else { index.to_string() };
        format!("('{message}', '{content}', {index}, {last})")
    };
    rows.iter().map(row).collect::<Vec<_>>().join(", ")
}

fn copy(client: &mut Client, message: Uuid, rows: Rows) -> Result<u64, Error> {
    let lines: String = rows
        .iter()
        .map(|(content, index, last)| {
            let index = if *index < 0 { "\\N".into() } else { index.to_string() };
            format!("{message}\t{content}\t{index}\t{last}\n")
        })
        .collect();
    let mut copy = client.copy_in(
        "copy message_chunks (message_id, chunk_content, chunk_index, is_final) from stdin",
    )?;
    // The error itself comes with finish().
    let _ = copy.write_all(lines.as_bytes());
    copy.finish()
}

#[test]
fn rows_may_come_in_any_order_and_the_final_one_completes() {
    // Statements of rows; status and text after each of them.
    let cases: &[&[(Rows, &str)]] = &[
        &[(&[("a", 0, false)], "streaming a"), (&[("b", 1, false)], "streaming ab")],
        &[(&[("a", 0, false), ("b", 1, false), ("c", 2, true)], "completed abc")],
        &[(&[("c", 2, true), ("b", 1, false), ("a", 0, false)], "completed abc")],
        &[(&[("b", 1, false), ("c", 2, true), ("a", 0, false)], "completed abc")],
        &[(&[("a", 0, true)], "completed a")],
        &[(&[("", 0, true)], "completed ")],
        &[(&[("a", 0, false), ("", 1, true)], "completed a")],
        &[
            (&[("c", 2, true)], "streaming "),
            (&[("a", 0, false)], "streaming a"),
            (&[("b", 1, false)], "completed abc"),
        ],
        &[
            (&[("a", 0, false), ("d", 3, true)], "streaming a"),
            (&[("c", 2, false)], "streaming a"),
            (&[("b", 1, false)], "completed abcd"),
        ],
        &[
            (&[("e", 4, true), ("c", 2, false)], "streaming "),
            (&[("d", 3, false), ("b", 1, false)], "streaming "),
            (&[("a", 0, false)], "completed abcde"),
        ],
        &[
            (&[("a", -1, false)], "streaming a"),
            (&[("b", -1, false)], "streaming ab"),
            (&[("c", -1, true)], "completed abc"),
        ],
        &[(&[("a", -1, false), ("b", -1, false), ("c", -1, true)], "completed abc")],
        &[
            (&[("a", 0, false), ("b", -1, false)], "streaming ab"),
            (&[("c", 2, false), ("d", -1, true)], "completed abcd"),
        ],
    ];
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    for steps in cases {
        let (by_insert, by_copy) = (member.open(desk.conversation), member.open(desk.conversation));
        for (rows, expected) in *steps {
            member.run(&format!("{INTO} {}", values(by_insert, rows)));
            assert_eq!(copy(&mut service, by_copy, rows).unwrap(), rows.len() as u64);
            for message in [by_insert, by_copy] {
                let found = format!(
                    "{} {}",
                    member.status(message),
                    member.text(message).unwrap_or_default()
                );
                assert_eq!(&found, expected, "{steps:?} at {rows:?}");
            }
        }
    }
}

#[test]
fn the_way_of_older_clients_works() {
    let desk = Desk::new();
    let mut member = desk.member();
    let columns = "(conversation_id, role, content";
    let c = desk.conversation;
    let begins = [
        format!("insert into messages {columns}) values ('{c}', 'assistant', '') returning id"),
        format!(
            "insert into messages (conversation_id, role) values ('{c}', 'assistant') returning id"
        ),
        format!(
            "insert into messages {columns}, status) values ('{c}', 'assistant', '', 'pending') returning id"
        ),
        format!(
            "insert into messages {columns}, status) values ('{c}', 'assistant', '', 'streaming') returning id"
        ),
    ];
    for begin in begins {
        let message: Uuid = member.value(&begin);
        assert_eq!(member.text(message).unwrap_or_default(), "", "{begin}");
        for (i, content) in ["Hel", "lo ", "world"].iter().enumerate() {
            let row: (i32, bool) = {
                let row = member
                    .query_one(
                        &format!("{INTO} ($1, $2, $3, $4) returning chunk_index, is_final"),
                        &[&message, content, &(i as i32), &(i == 2)],
                    )
                    .unwrap();
                (row.get(0), row.get(1))
            };
            assert_eq!(row, (i as i32, i == 2));
            let status = if i == 2 { "completed" } else { "streaming" };
            assert_eq!(member.status(message), status, "{begin}");
        }
        assert_eq!(member.text(message).unwrap(), "Hello world");
        let stored: (String, bool) = {
            let row = member
                .query_one(
                    "select content, completed_at is not null from messages where id = $1",
                    &[&message],
                )
                .unwrap();
            (row.get(0), row.get(1))
        };
        assert_eq!(stored, ("Hello world".to_string(), true), "{begin}");
        // Sent again after its end, nothing is stored twice.
        assert!(matches!(
            code(&member.insert(message, "world", 2, true).unwrap_err()),
            "23505" | "24000"
        ));
        assert_eq!(member.chunks(message), 3);
    }
}

#[test]
fn a_row_that_does_not_fit_is_refused_and_leaves_nothing() {
    // Rows before; the call that ends the message, if any; the rows; SQLSTATEs.
    let cases: &[(Rows, &str, Rows, &str)] = &[
        (&[("a", 0, false)], "", &[("a", 0, false)], "23505"),
        (&[("a", 0, false)], "", &[("X", 0, false)], "23505"),
        (&[("a", 0, false)], "", &[("b", 1, false), ("c", 1, false)], "23505"),
        (&[("a", 0, false)], "", &[("b", 1, false), ("a", 0, false)], "23505"),
        (&[("a", 0, true)], "", &[("b", 1, false)], "24000"),
        (&[("a", 0, true)], "", &[("b", -1, false)], "24000"),
        (&[("a", 0, true)], "", &[("b", 1, true)], "24000"),
        (&[("a", 0, true)], "", &[("b", 7, false)], "24000"),
        (&[("a", 0, false)], "finish_message", &[("b", 1, false)], "24000"),
        (&[("a", 0, false)], "finish_message", &[("b", -1, true)], "24000"),
    ];
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    for (before, end, rows, expected) in cases {
        let message = member.open(desk.conversation);
        member.run(&format!("{INTO} {}", values(message, before)));
        if !end.is_empty() {
            member.run(&format!("select {end}('{message}')"));
        }
        let found = member.error(&format!("{INTO} {}", values(message, rows))).0;
        assert_eq!(&found, expected, "{before:?} {end} {rows:?}");
        let error = copy(&mut service, message, rows).unwrap_err();
        assert_eq!(&code(&error), expected, "copy: {before:?} {end} {rows:?}");
        assert_eq!(member.text(message).unwrap(), "a");
        assert_eq!(member.chunks(message), 1);
    }
    let message = member.open(desk.conversation);
    let cases = [
        (format!("('{message}', null, 0, false)"), "23502 22004"),
        (format!("('{message}', 'a', -1, false)"), "23514 22023 22003"),
        (format!("('{message}', 'a', -2147483648, false)"), "23514 22023 22003"),
        ("(null, 'a', 0, false)".into(), "23502 22004"),
        (format!("('{}', 'a', 0, false)", Uuid::new_v4()), "P0002"),
        (format!("('{message}', 'a', 0, false), ('{}', 'a', 0, false)", Uuid::new_v4()), "P0002"),
    ];
    for (row, expected) in cases {
        for client in [&mut member, &mut service] {
            let (code, words) = client.error(&format!("{INTO} {row}"));
            assert!(expected.contains(&code), "{row}: {code} {words}");
        }
        assert_eq!(member.chunks(message), 0, "{row}");
    }
}

#[test]
fn on_conflict_do_nothing_stores_a_chunk_once() {
    let desk = Desk::new();
    let mut member = desk.member();
    for target in ["", "(message_id, chunk_index)", "on constraint message_chunks_pkey"] {
        let message = member.open(desk.conversation);
        let mut send = |rows: Rows| {
            member
                .execute(
                    &format!("{INTO} {} on conflict {target} do nothing", values(message, rows)),
                    &[],
                )
                .unwrap()
        };
        assert_eq!(send(&[("a", 0, false), ("b", 1, false)]), 2);
        assert_eq!(send(&[("a", 0, false), ("b", 1, false)]), 0);
        assert_eq!(send(&[("b", 1, false), ("c", 2, false), ("c", 2, false)]), 1);
        assert_eq!(send(&[("X", 0, false)]), 0);
        assert_eq!(send(&[("c", 2, false), ("d", 3, true)]), 1);
        assert_eq!(member.text(message).unwrap(), "abcd");
        assert_eq!(member.status(message), "completed");
        assert_eq!(member.chunks(message), 4);
    }
}

#[test]
fn a_stopped_message_takes_no_rows_of_plain_sql() {
    let desk = Desk::new();
    let mut member = desk.member();
    for seen in [None, Some(1), Some(0)] {
        let message = member.open(desk.conversation);
        member.window(message, &["a", "b"], Some(0)).unwrap();
        member.stop(message, seen).unwrap();
        let (text, chunks) = (member.text(message), member.chunks(message));
        // Refused or left out: the text stays what the reader was left with.
        let _ = member.insert(message, "c", 2, false);
        let _ = member.insert(message, "d", 3, true);
        assert_eq!((member.text(message), member.chunks(message)), (text, chunks));
        assert_eq!(member.status(message), "stopped");
    }
}

#[test]
fn a_member_may_not_change_or_take_back_chunks() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let message = member.open(desk.conversation);
    member.window(message, &["a", "b"], Some(0)).unwrap();
    for sql in [
        "update message_chunks set chunk_content = 'X'",
        "update message_chunks set chunk_index = 7",
        "truncate message_chunks",
    ] {
        assert_eq!(member.error(sql).0, "42501", "{sql}");
        assert_eq!(service.error(sql).0, "42501", "{sql}");
    }
    assert_eq!(member.error("delete from message_chunks").0, "42501");
    assert_eq!(
        code(&copy(&mut desk.member(), message, &[("c", 2, false)]).unwrap_err()),
        "0A000",
        "Postgres takes no COPY into a table whose policies bind the caller"
    );
    assert_eq!(member.text(message).unwrap(), "ab");
}

#[test]
fn one_statement_may_bring_rows_of_many_messages() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let other = desk.another_conversation();
    let messages: Vec<Uuid> =
        (0..50).map(|i| member.open(if i % 2 == 0 { desk.conversation } else { other })).collect();
    // All chunks of all messages, shuffled; each message has as many as its place in the list.
    let mut rows: Vec<(usize, usize)> =
        (0..50).flat_map(|m| (0..=m).map(move |i| (m, i))).collect();
    let mut rng = Rng::new(1);
    rng.shuffle(&mut rows);
    let half = rows.len() / 2;
    let insert: Vec<String> = rows[..half]
        .iter()
        .map(|(m, i)| format!("('{}', '{m}.{i} ', {i}, {})", messages[*m], i == m))
        .collect();
    member.run(&format!("{INTO} {}", insert.join(", ")));
    let mut copy = service
        .copy_in(
            "copy message_chunks (message_id, chunk_content, chunk_index, is_final) from stdin",
        )
        .unwrap();
    for (m, i) in &rows[half..] {
        writeln!(copy, "{}\t{m}.{i} \t{i}\t{}", messages[*m], i == m).unwrap();
    }
    copy.finish().unwrap();
    for (m, message) in messages.iter().enumerate() {
        let whole: String = (0..=m).map(|i| format!("{m}.{i} ")).collect();
        assert_eq!(member.text(*message).unwrap(), whole);
        assert_eq!(member.status(*message), "completed");
    }
}
