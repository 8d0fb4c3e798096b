//! New chunks as logical decoding tells of them.

use std::time::Duration;

use crate::Result;
use crate::wire::Session;

pub struct Changes {
    receiver: Session,
    columns: Vec<String>,
}

impl Changes {
    pub fn begin(mut receiver: Session, publication: &str, patience: Duration) -> Result<Self> {
        receiver.batch(&format!(
            "CREATE_REPLICATION_SLOT bench_{publication} TEMPORARY \
             LOGICAL pgoutput NOEXPORT_SNAPSHOT"
        ))?;
        let command = format!(
            "START_REPLICATION SLOT bench_{publication} LOGICAL 0/0 \
             (proto_version '1', publication_names '{publication}')"
        );
        receiver.replicate(&command, patience)?;
        Ok(Self { receiver, columns: Vec::new() })
    }

    /// Message and index of the next chunk.
    pub fn next(&mut self) -> Result<(String, i32)> {
        const POSITIONS_AND_TIME: usize = 24;
        const TABLE: usize = 4;
        loop {
            let mut change = Bytes(self.receiver.change()?);
            if change.take(1) != b"w" {
                continue;
            }
            change.take(POSITIONS_AND_TIME);
            match change.take(1) {
                b"R" => {
                    change.take(TABLE);
                    self.columns = columns(change);
                }
                b"I" => {
                    change.take(TABLE + 1);
                    return chunk(&self.columns, change);
                }
                _ => {}
            }
        }
    }
}

fn chunk(columns: &[String], mut row: Bytes) -> Result<(String, i32)> {
    let (mut message, mut index) = (None, None);
    for column in columns.iter().take(row.number(2)) {
        if row.take(1) != b"t" {
            continue; // Absent: no bytes follow.
        }
        let length = row.number(4);
        let value = str::from_utf8(row.take(length))?;
        match column.as_str() {
            "message_id" => message = Some(value.to_owned()),
            "chunk_index" => index = Some(value.parse()?),
            _ => {}
        }
    }
    message.zip(index).ok_or_else(|| "a change of something else than chunks".into())
}

fn columns(mut relation: Bytes) -> Vec<String> {
    const TYPE_AND_MODIFIER: usize = 8;
    relation.text(); // Its schema
    relation.text(); // and name.
    relation.take(1);
    let count = relation.number(2);
    let column = |_| {
        relation.take(1);
        let name = relation.text();
        relation.take(TYPE_AND_MODIFIER);
        name
    };
    (0..count).map(column).collect()
}

/// What is left to read of a change.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> usize {
        self.take(bytes).iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
    }

    fn text(&mut self) -> String {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len() - 1);
        let text = String::from_utf8_lossy(self.take(end)).into();
        self.take(1);
        text
    }
}
