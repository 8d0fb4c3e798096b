//! Promise 7: whatever has become of a message, a reader gets exactly what it lacks, in order.

use std::collections::BTreeMap;

use pg_conversation_tests::{Client, Rng, Session, Uuid};

use crate::desk::{Desk, Piece, Reader, Stream, code};

/// What is known of a message by whoever wrote it.
#[derive(Clone, Debug)]
pub struct Life {
    pub rows: BTreeMap<i32, String>,
    pub status: &'static str,
    /// The text, once there are no chunks to read it from.
    pub whole: Option<String>,
}

impl Life {
    pub fn new() -> Self {
        Self { rows: BTreeMap::new(), status: "streaming", whole: None }
    }

    pub fn is_open(&self) -> bool {
        self.status == "streaming"
    }

    /// The chunks up to the first gap.
    pub fn prefix(&self) -> Vec<&str> {
        (0..).map_while(|i| self.rows.get(&i)).map(String::as_str).collect()
    }

    pub fn text(&self) -> String {
        self.whole.clone().unwrap_or_else(|| self.prefix().concat())
    }

    fn end(&self, index: i32) -> Piece {
        let status = self.status.to_string();
        Piece { index, content: String::new(), last: true, status, whole: false }
    }

    /// What a read must bring.
    pub fn read(&self, after: i32, max: i32) -> Vec<Piece> {
        let piece = |index, content: &str, last, whole| Piece {
            index,
            content: content.to_string(),
            last,
            status: self.status.to_string(),
            whole,
        };
        if let Some(text) = &self.whole {
            return vec![piece(WHOLE, text, true, true)];
        }
        if !self.is_open() && self.rows.is_empty() {
            return vec![piece(WHOLE, "", true, true)];
        }
        let prefix = self.prefix();
        if after >= 0 && self.rows.keys().next_back().is_none_or(|last| *last < after) {
            // He has seen what is not there any more.
            return vec![piece(WHOLE, &self.text(), !self.is_open(), true)];
        }
        let from = (after.max(-1) + 1) as usize;
        let mut pieces: Vec<Piece> = prefix
            .iter()
            .enumerate()
            .skip(from)
            .take(max as usize)
            .map(|(i, content)| piece(i as i32, content, false, false))
            .collect();
        let has_gap = prefix.len() < self.rows.len();
        if !self.is_open() && from + pieces.len() >= prefix.len() {
            let room = pieces.len() < max as usize;
            match pieces.last_mut() {
                Some(piece) if !has_gap => piece.last = true,
                Some(piece) if room => {
                    // What lies behind a gap will not come: said in a row of its own.
                    let index = piece.index;
                    pieces.push(self.end(index));
                }
                Some(_) => (),
                None => pieces.push(self.end(after)),
            }
        }
        pieces
    }
}

/// The index of a row that holds the whole text is nobody's business.
const WHOLE: i32 = -7;

fn plain(mut pieces: Vec<Piece>) -> Vec<Piece> {
    for piece in pieces.iter_mut().filter(|piece| piece.whole) {
        piece.index = WHOLE;
    }
    pieces
}

/// Holds every read there is against what is known.
pub fn check(client: &mut Client, message: Uuid, life: &Life, what: &str) {
    assert_eq!(client.text(message).unwrap(), life.text(), "{what}: {life:?}");
    // Everywhere a reader can have got to, and where only a crash can have left him.
    let beyond = life.rows.keys().next_back().map_or(0, |last| last + 1);
    for after in (-1..life.prefix().len() as i32).chain([beyond]) {
        for max in [1, 2, 1000] {
            let expected = life.read(after, max);
            let read = plain(client.read(message, after, max).unwrap());
            assert_eq!(read, expected, "{what}: read_stream after {after}, at most {max}");
            if max != 2 {
                let timeout = if expected.is_empty() { 0 } else { 20_000 };
                let waited = plain(client.wait(message, after, timeout, max).unwrap());
                assert_eq!(
                    waited, expected,
                    "{what}: wait_for_chunks after {after}, at most {max}"
                );
            }
        }
    }
}

#[test]
fn every_read_agrees_at_every_point_of_a_life() {
    let desk = Desk::new();
    let (mut member, mut reader, mut service) = (desk.member(), desk.member(), desk.service());
    // The ways a life may end, or nearly; what the message is then, and its text if it was cut.
    let endings: [(&str, &str, Option<&str>); 7] = [
        ("finish_message($m)", "completed", None),
        ("append_chunk($m, 'last', null, true)", "completed", None),
        ("stop_message($m)", "stopped", None),
        ("stop_message($m, 99)", "stopped", None),
        ("stop_message($m, 4)", "stopped", Some("ab c")),
        ("fail_message($m, 'boom')", "failed", None),
        ("recover_stalled_messages('0 s')", "interrupted", None),
    ];
    for (end, status, cut) in endings {
        let message = member.open(desk.conversation);
        let run = |client: &mut Client, call: &str| {
            client.run(&format!("select {}", call.replace("$m", &format!("'{message}'"))));
        };
        let mut life = Life::new();
        check(&mut reader, message, &life, "before the first chunk");
        member.append(message, "ab", None).unwrap();
        life.rows.insert(0, "ab".into());
        check(&mut reader, message, &life, "one chunk");
        member.window(message, &[" ", "", "cd"], Some(1)).unwrap();
        life.rows.extend([(1, " ".into()), (2, String::new()), (3, "cd".into())]);
        check(&mut reader, message, &life, "in mid-stream");
        member.insert(message, "gh", 6, false).unwrap();
        life.rows.insert(6, "gh".into());
        check(&mut reader, message, &life, "with a gap");
        member.insert(message, "é", 4, false).unwrap();
        life.rows.insert(4, "é".into());
        check(&mut reader, message, &life, "with a smaller gap");
        member.insert(message, "😀", 5, false).unwrap();
        life.rows.insert(5, "😀".into());
        check(&mut reader, message, &life, "with the gap filled");

        run(if end.contains("recover") { &mut service } else { &mut member }, end);
        if end.starts_with("append") {
            life.rows.insert(7, "last".into());
        }
        life.status = status;
        life.whole = cut.map(str::to_string);
        check(&mut reader, message, &life, end);
        if status == "interrupted" {
            run(&mut member, "resume_message($m)");
            life.status = "streaming";
            check(&mut reader, message, &life, "resumed");
            member.append(message, "!", Some(7)).unwrap();
            life.rows.insert(7, "!".into());
            check(&mut reader, message, &life, "resumed and gone on");
            run(&mut member, "finish_message($m)");
            life.status = "completed";
            check(&mut reader, message, &life, "resumed and finished");
        }
        let deleted: i32 =
            member.value(&format!("select cleanup_streaming_artifacts('{message}')"));
        assert_eq!(deleted, if cut.is_some() { 0 } else { life.rows.len() as i32 });
        life.whole = Some(life.text());
        check(&mut reader, message, &life, "cleaned");

        service.run(&format!("delete from messages where id = '{message}'"));
        assert_eq!(reader.text(message), None, "deleted");
        assert_eq!(code(&reader.read(message, -1, 1000).unwrap_err()), "P0002");
        assert_eq!(code(&reader.wait(message, -1, 0, 1000).unwrap_err()), "P0002");
        assert_eq!(code(&reader.wait(message, 7, 20_000, 1000).unwrap_err()), "P0002");
    }
}

#[test]
fn a_message_written_at_once_is_read_as_a_whole() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message: Uuid = member.value(&format!(
        "select message_id from add_message('{}', 'user', 'all of it')",
        desk.conversation
    ));
    let life = Life { rows: BTreeMap::new(), status: "completed", whole: Some("all of it".into()) };
    check(&mut member, message, &life, "add_message");
}

#[test]
fn a_message_that_ended_without_a_word_has_an_end() {
    let desk = Desk::new();
    let mut member = desk.member();
    for end in ["finish_message", "stop_message", "fail_message"] {
        let message = member.open(desk.conversation);
        let error = if end == "fail_message" { ", 'e'" } else { "" };
        member.run(&format!("select {end}('{message}'{error})"));
        for cleaned in [false, true] {
            for after in [-1, 5] {
                let pieces = member.read(message, after, 10).unwrap();
                assert_eq!(pieces, member.wait(message, after, 20_000, 10).unwrap());
                assert_eq!(pieces.len(), 1, "{end} {cleaned} {after}: {pieces:?}");
                assert!(pieces[0].last && pieces[0].content.is_empty(), "{end}: {pieces:?}");
            }
            assert_eq!(member.text(message).unwrap(), "");
            if !cleaned {
                member.run(&format!("select cleanup_streaming_artifacts('{message}')"));
            }
        }
    }
}

#[test]
fn a_reader_that_reconnects_anywhere_gets_exactly_what_it_lacks() {
    let desk = Desk::new();
    let mut member = desk.member();
    let mut rng = Rng::new(20);
    let chunks: Vec<String> = (0..60).map(|i| format!("{i}{}", "é😀 x".repeat(i % 3))).collect();
    for end in
        ["finish_message($m)", "stop_message($m)", "fail_message($m, 'e')", "stop_message($m, 70)"]
    {
        let message = member.open(desk.conversation);
        // Readers that have been left behind at any index, and read on in steps of any size.
        let mut readers = vec![Reader::new()];
        let mut sent = 0;
        while sent < chunks.len() {
            let n = (1 + rng.below(7)).min(chunks.len() - sent);
            member.window(message, &chunks[sent..sent + n], Some(sent as i32)).unwrap();
            sent += n;
            let mut reader = readers[rng.below(readers.len())].clone();
            let max = 1 + rng.below(9) as i32;
            reader.take(&desk.member().read(message, reader.after, max).unwrap());
            assert!(!reader.done, "nobody has ended it");
            readers.push(reader);
        }
        member.run(&format!("select {}", end.replace("$m", &format!("'{message}'"))));
        let text = member.text(message).unwrap();
        for cleaned in [false, true] {
            if cleaned {
                member.run(&format!("select cleanup_streaming_artifacts('{message}')"));
            }
            for reader in &readers {
                let mut reader = reader.clone();
                let max = 1 + rng.below(20) as i32;
                for _ in 0..100 {
                    if !reader.done {
                        reader.take(&member.read(message, reader.after, max).unwrap());
                    }
                }
                assert!(reader.done, "{end}, cleaned {cleaned}: no end after {}", reader.after);
                assert_eq!(reader.text, text, "{end}, cleaned {cleaned}");
            }
        }
    }
}

#[test]
fn a_read_of_odd_numbers_is_an_answer_or_an_error_and_never_a_wrong_text() {
    let desk = Desk::new();
    let mut member = desk.member();
    let message = member.open(desk.conversation);
    member.window(message, &["a", "b"], Some(0)).unwrap();
    for function in ["read_stream($1, $2, $3)", "wait_for_chunks($1, $2, 0, $3)"] {
        let sql = format!("select chunk_index, content, is_final, status, whole from {function}");
        for (after, max) in [
            (Some(-2), Some(9)),
            (Some(i32::MIN), Some(9)),
            (Some(i32::MAX), Some(9)),
            (Some(-1), Some(0)),
            (Some(-1), Some(-1)),
            (Some(-1), Some(i32::MIN)),
            (Some(-1), Some(i32::MAX)),
            (None, Some(9)),
            (Some(-1), None),
        ] {
            match member.query(&sql, &[&message, &after, &max]) {
                Ok(rows) => {
                    let pieces: Vec<Piece> = rows.iter().map(Piece::from).collect();
                    let text: String = pieces.iter().map(|piece| piece.content.as_str()).collect();
                    assert!("ab".starts_with(&text), "{function} {after:?} {max:?}: {pieces:?}");
                }
                Err(error) => {
                    let code = code(&error);
                    assert!(code.starts_with("22"), "{function} {after:?} {max:?}: {code}");
                }
            }
        }
        let error = member.query(&sql, &[&None::<Uuid>, &-1, &9]);
        assert!(error.map_or_else(|error| code(&error) == "22004", |rows| rows.is_empty()));
    }
}
