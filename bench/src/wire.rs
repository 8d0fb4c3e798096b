//! A client of Postgres that costs next to nothing: one write and one read a call, values in
//! binary. Where many clients make small calls, they and the server share the cores, and what the
//! client takes blurs the difference between two ways to do the work.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use crate::Result;

const PROTOCOL: u32 = 3 << 16;
const TEXT: u32 = 25;
const UUID: u32 = 2950;

/// Bytes of a notification before its channel.
const PROCESS_ID: usize = 4;

/// Answers come in pieces of at most this size.
const PIECE: usize = 16 * 1024;

#[derive(Clone, Copy)]
pub enum Value<'a> {
    Id(Uuid),
    Int(i32),
    Text(&'a str),
    Ids(&'a [Uuid]),
    Texts(&'a [&'a str]),
}

#[derive(Clone)]
pub struct Statement(String);

pub struct Session {
    stream: UnixStream,
    /// The process that serves it.
    pub backend: u32,
    statements: usize,
    out: Vec<u8>,
    buffer: Vec<u8>,
    unread: Range<usize>,
    notices: VecDeque<String>,
}

impl Session {
    pub fn connect(socket: &Path, options: &[(&str, &str)]) -> Result<Self> {
        let mut session = Self {
            stream: UnixStream::connect(socket)?,
            backend: 0,
            statements: 0,
            out: Vec::new(),
            buffer: vec![0; PIECE],
            unread: 0..0,
            notices: VecDeque::new(),
        };
        let mut body = PROTOCOL.to_be_bytes().to_vec();
        for (name, value) in options {
            put_text(&mut body, name);
            put_text(&mut body, value);
        }
        body.push(0);
        session.out.extend((body.len() as u32 + 4).to_be_bytes());
        session.out.extend(body);
        session.send()?;
        session.answer(|_| ())?;
        Ok(session)
    }

    /// Statements without values.
    pub fn batch(&mut self, sql: &str) -> Result<()> {
        put(&mut self.out, b'Q', |out| put_text(out, sql));
        self.send()?;
        self.answer(|_| ())?;
        Ok(())
    }

    pub fn prepare(&mut self, sql: &str) -> Result<Statement> {
        self.statements += 1;
        let name = self.statements.to_string();
        put(&mut self.out, b'P', |out| {
            put_text(out, &name);
            put_text(out, sql);
            out.extend(0_u16.to_be_bytes());
        });
        put(&mut self.out, b'S', |_| ());
        self.send()?;
        self.answer(|_| ())?;
        Ok(Statement(name))
    }

    /// Hands each row of the answer over and returns how many there were.
    pub fn call(
        &mut self,
        statement: &Statement,
        values: &[Value],
        each: impl FnMut(Record),
    ) -> Result<usize> {
        self.ask(statement, values)?;
        self.answer(each)
    }

    /// A call of which nobody reads the answer.
    pub fn ask(&mut self, statement: &Statement, values: &[Value]) -> Result<()> {
        const BINARY: [u8; 4] = [0, 1, 0, 1];
        put(&mut self.out, b'B', |out| {
            put_text(out, "");
            put_text(out, &statement.0);
            out.extend(BINARY);
            out.extend((values.len() as u16).to_be_bytes());
            values.iter().for_each(|value| put_value(out, value));
            out.extend(BINARY);
        });
        put(&mut self.out, b'E', |out| {
            put_text(out, "");
            out.extend(0_u32.to_be_bytes());
        });
        put(&mut self.out, b'S', |_| ());
        Ok(self.send()?)
    }

    /// COPY FROM STDIN, in one round trip.
    pub fn copy(&mut self, sql: &str, data: &[u8]) -> Result<()> {
        put(&mut self.out, b'Q', |out| put_text(out, sql));
        put(&mut self.out, b'd', |out| out.extend(data));
        put(&mut self.out, b'c', |_| ());
        self.send()?;
        self.answer(|_| ())?;
        Ok(())
    }

    /// The channel of the next notification, or nothing after that time.
    pub fn notice(&mut self, patience: Duration) -> Result<Option<String>> {
        if self.notices.is_empty() {
            self.stream.set_read_timeout(Some(patience))?;
            let message = self.message();
            self.stream.set_read_timeout(None)?;
            match message {
                Ok((tag, body)) => self.keep_notice(tag, body),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.notices.pop_front())
    }

    /// Begins a stream of changes, which `change` reads: at most that long for each.
    pub fn replicate(&mut self, command: &str, patience: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        put(&mut self.out, b'Q', |out| put_text(out, command));
        self.send()?;
        loop {
            match self.message()? {
                (b'W', _) => return Ok(()),
                (b'E', body) => return Err(error_text(&self.buffer[body]).into()),
                _ => {}
            }
        }
    }

    pub fn change(&mut self) -> Result<&[u8]> {
        loop {
            match self.message()? {
                (b'd', body) => return Ok(&self.buffer[body]),
                (b'E', body) => return Err(error_text(&self.buffer[body]).into()),
                _ => {}
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Reads until the server is ready for more.
    fn answer(&mut self, mut each: impl FnMut(Record)) -> Result<usize> {
        let mut rows = 0;
        let mut error = None;
        loop {
            let (tag, body) = self.message()?;
            match tag {
                b'D' => {
                    each(Record(&self.buffer[body]));
                    rows += 1;
                }
                b'E' => error = Some(error_text(&self.buffer[body])),
                b'R' if self.buffer[body.clone()] != [0; 4] => {
                    return Err("the server wants a password".into());
                }
                b'K' => self.backend = number(&self.buffer[body], 0),
                b'Z' => return error.map_or(Ok(rows), |error| Err(error.into())),
                _ => self.keep_notice(tag, body),
            }
        }
    }

    fn keep_notice(&mut self, tag: u8, body: Range<usize>) {
        if tag == b'A' {
            let channel = &self.buffer[body][PROCESS_ID..];
            self.notices.push_back(text(channel).into());
        }
    }

    fn message(&mut self) -> io::Result<(u8, Range<usize>)> {
        const HEAD: usize = 5;
        self.fill(HEAD)?;
        let begin = self.unread.start;
        let length = number(&self.buffer[begin..], 1) as usize;
        self.fill(length + 1)?;
        let (tag, begin) = (self.buffer[self.unread.start], self.unread.start);
        self.unread.start += length + 1;
        Ok((tag, begin + HEAD..self.unread.start))
    }

    /// Has at least so many bytes to read. What was handed out before is gone.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while self.unread.len() < wanted {
            if self.unread.start > 0 {
                self.buffer.copy_within(self.unread.clone(), 0);
                self.unread = 0..self.unread.len();
            }
            if self.buffer.len() < wanted.max(PIECE) {
                self.buffer.resize(wanted.max(PIECE), 0);
            }
            let found = self.stream.read(&mut self.buffer[self.unread.end..])?;
            if found == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.unread.end += found;
        }
        Ok(())
    }
}

/// One row of an answer, its values in binary.
#[derive(Clone, Copy)]
pub struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    pub fn value(self, column: usize) -> &'a [u8] {
        let mut rest = &self.0[2..];
        for _ in 0..column {
            let (_, after) = split_value(rest);
            rest = after;
        }
        split_value(rest).0
    }

    pub fn int(self, column: usize) -> i32 {
        number(self.value(column), 0) as i32
    }

    pub fn id(self, column: usize) -> Uuid {
        Uuid::from_slice(self.value(column)).unwrap_or_default()
    }
}

/// A value and what follows it. An absent one is empty.
fn split_value(bytes: &[u8]) -> (&[u8], &[u8]) {
    let length = (number(bytes, 0) as i32).max(0) as usize;
    bytes[4..].split_at(length)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

/// Up to the zero that ends it.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
}

fn error_text(fields: &[u8]) -> String {
    let message = fields.split(|&byte| byte == 0).find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(message.unwrap_or_default()).into()
}

fn put(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    put_sized(out, 4, body);
}

/// What `body` writes, after its length, to which `head` is added.
fn put_sized(out: &mut Vec<u8>, head: usize, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0; 4]);
    body(out);
    let length = (out.len() - at - 4 + head) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    put_sized(out, 0, |out| match value {
        Value::Id(id) => out.extend(id.as_bytes()),
        Value::Int(int) => out.extend(int.to_be_bytes()),
        Value::Text(text) => out.extend(text.as_bytes()),
        Value::Texts(texts) => {
            put_array_head(out, TEXT, texts.len());
            for text in *texts {
                put_sized(out, 0, |out| out.extend(text.as_bytes()));
            }
        }
        Value::Ids(ids) => {
            put_array_head(out, UUID, ids.len());
            for id in *ids {
                put_sized(out, 0, |out| out.extend(id.as_bytes()));
            }
        }
    });
}

/// One dimension, nothing absent, numbered from 1.
fn put_array_head(out: &mut Vec<u8>, element: u32, length: usize) {
    for number in [1, 0, element, length as u32, 1] {
        out.extend(number.to_be_bytes());
    }
}
