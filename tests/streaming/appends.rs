//! What append_chunk and append_chunks store, answer and refuse.

use std::error::Error as StdError;

use pg_conversation_tests::{Session, Uuid, describe};
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::desk::{Answer, Desk, Reader, Stream, code, expected_index};

/// Text as bytes, whether or not they are text.
#[derive(Debug)]
struct Bytes(&'static [u8]);

impl ToSql for Bytes {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut postgres::types::private::BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT
    }

    to_sql_checked!();
}

#[test]
fn an_append_answers_where_to_go_on_or_says_what_is_wrong() {
    let abc = "append_chunks($m, array['a', 'b', 'c'], 0)";
    // Calls before, the call, what it answers, and the text afterwards.
    let cases: &[(&[&str], &str, &str, &str)] = &[
        // Without an index: to the end.
        (&[], "append_chunk($m, 'a')", "1", "a"),
        (&["append_chunk($m, 'a')"], "append_chunk($m, 'a')", "2", "aa"),
        (&["append_chunk($m, 'a', 0)"], "append_chunk($m, 'b')", "2", "ab"),
        (&[abc], "append_chunks($m, array['d', 'e'])", "5", "abcde"),
        (
            &[],
            "append_chunk(message_id => $m, content => 'n', chunk_index => 0, is_final => false)",
            "1",
            "n",
        ),
        (
            &[],
            "append_chunks(message_id => $m, contents => '{n,m}', first_index => 0, is_final => true)",
            "2",
            "nm",
        ),
        // With an index: in its place, once.
        (&[], "append_chunk($m, 'a', 0)", "1", "a"),
        (&["append_chunk($m, 'a', 0)"], "append_chunk($m, 'b', 1)", "2", "ab"),
        (&["append_chunk($m, 'a')"], "append_chunk($m, 'b', 1)", "2", "ab"),
        (&[abc], "append_chunk($m, 'c', 2)", "3", "abc"),
        (&[abc], "append_chunk($m, 'a', 0)", "3", "abc"),
        (&[abc], "append_chunk($m, 'X', 2)", "23505", "abc"),
        (&[abc], "append_chunk($m, 'X', 0)", "23505", "abc"),
        (&[abc], "append_chunk($m, 'cc', 2)", "23505", "abc"),
        (&[abc], "append_chunk($m, '', 2)", "23505", "abc"),
        (&[], "append_chunk($m, 'b', 1)", "55000 expected_index: 0", ""),
        (&[abc], "append_chunk($m, 'e', 4)", "55000 expected_index: 3", "abc"),
        (&[abc], "append_chunk($m, 'e', 2147483647)", "55000 expected_index: 3|22023", "abc"),
        (&[abc], "append_chunk($m, 'e', 4, true)", "55000 expected_index: 3", "abc"),
        // Windows: what is there already is compared, the rest is written.
        (&[], "append_chunks($m, array['a', 'b', 'c'], 0)", "3", "abc"),
        (&[abc], abc, "3", "abc"),
        (&[abc], "append_chunks($m, array['b'], 1)", "3", "abc"),
        (&[abc], "append_chunks($m, array['c', 'd', 'e'], 2)", "5", "abcde"),
        (&[abc], "append_chunks($m, array['a', 'b', 'c', 'd'], 0)", "4", "abcd"),
        (&[abc], "append_chunks($m, array['d', 'e'], 3)", "5", "abcde"),
        (&[abc], "append_chunks($m, array['X', 'c', 'd'], 1)", "23505", "abc"),
        (&[abc], "append_chunks($m, array['b', 'X', 'd'], 1)", "23505", "abc"),
        (&[abc], "append_chunks($m, array['e', 'f'], 4)", "55000 expected_index: 3", "abc"),
        (&[abc], "append_chunks($m, '[7:8]={d,e}'::text[], 3)", "5", "abcde"),
        // Nothing is nothing.
        (&[], "append_chunk($m, '')", "1", ""),
        (&["append_chunk($m, '', 0)"], "append_chunk($m, '', 0)", "1", ""),
        (&["append_chunk($m, '', 0)"], "append_chunk($m, 'b', 1)", "2", "b"),
        (&["append_chunk($m, '', 0)"], "append_chunk($m, 'a', 0)", "23505", ""),
        (&[abc], "append_chunks($m, array[]::text[])", "3", "abc"),
        (&[], "append_chunks($m, '{}')", "0", ""),
        (&[abc], "append_chunks($m, '{}', 3)", "3", "abc"),
        (&[abc], "append_chunks($m, array['', '', 'd'], 3)", "6", "abcd"),
        (&[abc], "append_chunk($m, null)", "22004", "abc"),
        (&[abc], "append_chunk($m, null, 3)", "22004", "abc"),
        (&[abc], "append_chunks($m, null)", "22004", "abc"),
        (&[abc], "append_chunks($m, array['d', null])", "22004", "abc"),
        (&[abc], "append_chunks($m, array[null, 'd'], 3)", "22004", "abc"),
        (&[abc], "append_chunks($m, '{}', null, true)", "3", "abc"),
        (&[abc], "append_chunk($m, 'c', 2, true)", "3", "abc"),
        (&[abc], "append_chunk($m, 'a', 0, true)", "24000", "abc"),
        // A final chunk completes; what was sent already may be sent again.
        (&[abc], "append_chunk($m, 'd', 3, true)", "4", "abcd"),
        (&[abc], "append_chunk($m, 'd', null, true)", "4", "abcd"),
        (&[abc], "append_chunks($m, array['d', 'e'], 3, true)", "5", "abcde"),
        (&["append_chunk($m, 'a', 0, true)"], "append_chunk($m, 'a', 0, true)", "1", "a"),
        (
            &[abc, "append_chunks($m, array['d', 'e'], 3, true)"],
            "append_chunks($m, array['d', 'e'], 3, true)",
            "5",
            "abcde",
        ),
        (
            &[abc, "append_chunks($m, array['d', 'e'], 3, true)"],
            "append_chunks($m, array['c', 'd', 'e'], 2, true)",
            "5",
            "abcde",
        ),
        (&[abc, "append_chunk($m, '', 3, true)"], "append_chunk($m, '', 3, true)", "4", "abc"),
        (&["append_chunk($m, 'a', 0, true)"], "append_chunk($m, 'b')", "24000", "a"),
        (&["append_chunk($m, 'a', 0, true)"], "append_chunk($m, 'b', 1)", "24000", "a"),
        (&["append_chunk($m, 'a', 0, true)"], "append_chunk($m, 'b', 1, true)", "24000", "a"),
        (&["append_chunk($m, 'a', 0, true)"], "append_chunk($m, 'X', 0, true)", "23505|24000", "a"),
        (
            &["append_chunk($m, 'a', 0, true)"],
            "append_chunks($m, array['a', 'b'], 0, true)",
            "24000",
            "a",
        ),
        (&[abc, "finish_message($m)"], "append_chunk($m, 'd', 3)", "24000", "abc"),
        (&[abc, "finish_message($m)"], "append_chunk($m, 'd')", "24000", "abc"),
        (&[abc, "finish_message($m)"], "append_chunks($m, array['c', 'd'], 2)", "24000", "abc"),
        // Somebody asked to stop.
        (&[abc, "stop_message($m)"], "append_chunk($m, 'd', 3)", "3 stop", "abc"),
        (&[abc, "stop_message($m)"], "append_chunk($m, 'd')", "3 stop", "abc"),
        (&[abc, "stop_message($m)"], "append_chunk($m, 'd', 3, true)", "3 stop", "abc"),
        (&[abc, "stop_message($m)"], "append_chunks($m, array['c', 'd'], 2)", "3 stop", "abc"),
        (&[abc, "stop_message($m)"], "append_chunks($m, '{}')", "3 stop", "abc"),
        // Words that are no numbers of the contract, but must not store anything.
        (&[abc], "append_chunk($m, 'd', -1)", "22023|22003|55000 expected_index: 3", "abc"),
        (
            &[abc],
            "append_chunks($m, array['x', 'a'], -1)",
            "22023|22003|55000 expected_index: 3",
            "abc",
        ),
        (
            &[abc],
            "append_chunks($m, array['d', 'e'], 2147483647)",
            "55000 expected_index: 3|22003|22023",
            "abc",
        ),
    ];
    let desk = Desk::new();
    let mut member = desk.member();
    let mut wrong = Vec::new();
    for (before, call, expected, text) in cases {
        let message = member.open(desk.conversation);
        let fill = |call: &str| {
            let call = call.replace("$m", &format!("'{message}'"));
            let columns =
                if call.starts_with("append") { "next_index, stop_requested" } else { "*" };
            format!("select {columns} from {call}")
        };
        for call in *before {
            member.run(&fill(call));
        }
        let answer = match member.query_one(&fill(call), &[]).map(Answer::from) {
            Ok(Answer { next, stop: false }) => next.to_string(),
            Ok(Answer { next, stop: true }) => format!("{next} stop"),
            Err(error) => {
                let detail = error.as_db_error().and_then(|db| db.detail()).unwrap_or_default();
                if detail.starts_with("expected_index") {
                    format!("{} {detail}", code(&error))
                } else {
                    code(&error).to_string()
                }
            }
        };
        if !expected.split('|').any(|one| one == answer) {
            wrong.push(format!("{before:?} {call}: {answer}, not {expected}"));
        }
        let after = member.text(message).unwrap_or_default();
        if after != *text {
            wrong.push(format!("{before:?} {call}: text {after:?}, not {text:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_gap_names_the_expected_index_and_the_way_out() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    member.append(message, "a", None).unwrap();
    let window = member.window(message, &["x", "y"], Some(7)).unwrap_err();
    let chunk = member.append(message, "x", Some(2)).unwrap_err();
    for (error, got) in [(chunk, 2), (window, 7)] {
        assert_eq!((code(&error), expected_index(&error)), ("55000", 1));
        let words = describe(&error);
        assert!(words.contains("out of order, expected 1"), "{words}");
        assert!(words.contains(&got.to_string()), "{words}");
        let hint = error.as_db_error().and_then(|db| db.hint()).unwrap_or_default();
        assert!(hint.to_lowercase().contains("again from"), "{words}");
    }
    // The producer that does as it is told is let on.
    assert_eq!(member.append(message, "b", Some(1)).unwrap(), Answer { next: 2, stop: false });
}

#[test]
fn an_unknown_message_is_an_error_in_the_same_words_everywhere() {
    let desk = Desk::new();
    let mut member = desk.member();
    let unknown = Uuid::new_v4();
    let calls = [
        "append_chunk($m, 'a')",
        "append_chunk($m, 'a', 0, true)",
        "append_chunks($m, array['a'])",
        "append_chunks($m, '{}')",
    ];
    for call in calls {
        let sql = format!("select * from {}", call.replace("$m", &format!("'{unknown}'")));
        let (code, words) = member.error(&sql);
        assert_eq!((code.as_str(), words), ("P0002", format!("message {unknown} does not exist")));
    }
}

#[test]
fn text_is_kept_as_it_was_sent() {
    let desk = Desk::new();
    let mut member = desk.member();
    let odd = [
        "plain",
        "",
        "tab\tnewline\ncarriage\r\n",
        "quote ' \" \\ \\x41 \\' $$ $1 %s {}",
        "NULL",
        "\\N",
        "\\.",
        "é",
        "e\u{301}",
        "漢字かな",
        "שלום",
        "😀👩‍👩‍👧‍👦🏳️‍🌈",
        "\u{feff}\u{200b}\u{202e}",
        "\u{ffff}\u{10ffff}\u{1}\u{7f}",
        "   ",
        "<script>&amp;",
    ];
    let (by_one, by_window, by_sql) = (
        member.open(desk.conversation),
        member.open(desk.conversation),
        member.open(desk.conversation),
    );
    for (i, content) in odd.iter().enumerate() {
        member.append(by_one, content, None).unwrap();
        // Sent again, it is the same content.
        member.append(by_one, content, Some(i as i32)).unwrap();
        member.insert(by_sql, content, i as i32, false).unwrap();
    }
    member.window(by_window, &odd, Some(0)).unwrap();
    member.window(by_window, &odd, Some(0)).unwrap();
    let whole = odd.concat();
    for message in [by_one, by_window, by_sql] {
        let mut reader = Reader::new();
        reader.take(&member.read(message, -1, 1000).unwrap());
        assert_eq!(reader.text, whole);
        assert_eq!(member.text(message).unwrap(), whole);
        member.finish(message).unwrap();
        let stored: String =
            member.value(&format!("select content from messages where id = '{message}'"));
        assert_eq!(stored, whole);
    }
}

#[test]
fn what_is_no_text_is_refused_and_nothing_of_it_stays() {
    let desk = Desk::new();
    let (mut member, mut service) = (desk.member(), desk.service());
    let message = member.open(desk.conversation);
    member.append(message, "good", Some(0)).unwrap();
    for bytes in [b"\x00".as_slice(), b"a\x00b", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80"]
    {
        let bytes = Bytes(bytes);
        for sql in [
            "select append_chunk($1, $2)",
            "select append_chunk($1, $2, 1, true)",
            "select append_chunks($1, array['fine', $2], 1)",
            "insert into message_chunks (message_id, chunk_content) values ($1, $2)",
        ] {
            let error = member.execute(sql, &[&message, &bytes]).unwrap_err();
            assert_eq!(code(&error), "22021", "{sql} {bytes:?}");
        }
        let mut copy =
            service.copy_in("copy message_chunks (message_id, chunk_content) from stdin").unwrap();
        let line = [message.to_string().as_bytes(), b"\t", bytes.0, b"\n"].concat();
        // The error itself comes with finish().
        let _ = std::io::Write::write_all(&mut copy, &line);
        assert_eq!(code(&copy.finish().unwrap_err()), "22021", "{bytes:?}");
    }
    assert_eq!(member.append(message, " end", Some(1)).unwrap().next, 2);
    assert_eq!(member.text(message).unwrap(), "good end");
}

#[test]
fn a_chunk_may_have_a_megabyte() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    // Four bytes a character, so that no page ends at one; incompressible would change nothing.
    let big: String = (0..262_144).map(|i| if i % 3 == 0 { '😀' } else { '𝔸' }).collect();
    assert_eq!(big.len(), 1 << 20);
    member.append(message, &big, Some(0)).unwrap();
    member.append(message, &big, Some(0)).unwrap();
    let mut other = big.clone();
    other.pop();
    other.push('x');
    assert_eq!(code(&member.append(message, &other, Some(0)).unwrap_err()), "23505");
    member.window(message, &["a", &big, "z"], None).unwrap();
    member.append_last(message, "!", Some(4)).unwrap();
    let whole = format!("{big}a{big}z!");
    assert!(member.text(message).unwrap() == whole, "text differs");
    let pieces = member.read(message, -1, 1000).unwrap();
    assert!(pieces.iter().map(|piece| piece.content.as_str()).collect::<String>() == whole);
    assert!(
        member.value::<String>(&format!("select content from messages where id = '{message}'"))
            == whole
    );
}

#[test]
fn a_final_chunk_completes_in_its_own_transaction_or_not_at_all() {
    let desk = Desk::new();
    let mut member = desk.member();
    let mut other = desk.member();
    let endings = [
        "select append_chunk('$m', 'b', 1, true)",
        "select append_chunk('$m', 'b', null, true)",
        "select append_chunks('$m', array['b'], 1, true)",
        "insert into message_chunks (message_id, chunk_content, is_final) values ('$m', 'b', true)",
        "insert into message_chunks (message_id, chunk_content, chunk_index, is_final) \
         values ('$m', 'b', 1, true)",
        "select append_chunk('$m', 'b', 1); select finish_message('$m')",
    ];
    for ending in endings {
        let message = member.open(desk.conversation);
        let state = format!(
            "select status || ' ' || content || ' ' || (completed_at is not null) \
             from messages where id = '{message}'"
        );
        member.append(message, "a", Some(0)).unwrap();
        let ending = ending.replace("$m", &message.to_string());
        for end in ["rollback", "commit"] {
            member.run(&format!("begin; {ending}"));
            assert_eq!(member.value::<String>(&state), "completed ab true", "{ending}");
            assert_eq!(other.value::<String>(&state), "streaming  false", "{ending}");
            member.run(end);
            let (expected, text) = if end == "commit" {
                ("completed ab true", "ab")
            } else {
                ("streaming  false", "a")
            };
            assert_eq!(other.value::<String>(&state), expected, "{ending}; {end}");
            assert_eq!(other.text(message).unwrap(), text, "{ending}; {end}");
        }
    }
}
