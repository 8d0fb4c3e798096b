//! Texts put together from chunks.

use pgrx::Uuid;
use pgrx::pg_sys::{self, Datum};
use pgrx::varlena::{varatt_is_1b, varatt_is_1b_e, varatt_is_4b_u};

use super::chunks::{Chunks, Prefix, View};
use crate::error::Error;

/// A text as the bytes it stands for.
pub struct Text {
    plain: *mut pg_sys::varlena,
    is_copy: bool,
}

impl Text {
    pub fn of(stored: Datum) -> Self {
        // SAFETY: a text; what is compressed or stored elsewhere is fetched into memory of ours.
        unsafe {
            let stored = stored.cast_mut_ptr::<pg_sys::varlena>();
            if varatt_is_4b_u(stored) || varatt_is_1b(stored) && !varatt_is_1b_e(stored) {
                return Self { plain: stored, is_copy: false };
            }
            Self { plain: pg_sys::pg_detoast_datum_packed(stored), is_copy: true }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: in memory, neither compressed nor stored elsewhere.
        unsafe {
            let start = pgrx::varlena::vardata_any(self.plain).cast::<u8>();
            std::slice::from_raw_parts(start, pgrx::varlena::varsize_any_exhdr(self.plain))
        }
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        if self.is_copy && !std::thread::panicking() {
            // SAFETY: the copy is ours.
            unsafe { pg_sys::pfree(self.plain.cast()) }
        }
    }
}

/// A text that grows in one piece of Postgres' memory. A large piece is moved by the system without
/// copying, so a long text is never there twice.
pub struct Builder {
    start: *mut u8,
    length: usize,
    room: usize,
}

const HEADER: usize = pg_sys::VARHDRSZ;

impl Builder {
    pub fn new() -> Self {
        let room = 8192;
        // SAFETY: memory of the current context.
        let start = unsafe { pg_sys::palloc(room) }.cast();
        Self { start, length: HEADER, room }
    }

    pub fn push(&mut self, stored: Datum) -> Result<(), Error> {
        let text = Text::of(stored);
        let bytes = text.bytes();
        if self.length + bytes.len() > self.room {
            let limit = 0x3fff_ffff; // MaxAllocSize, a macro of C.
            let room = (self.length + bytes.len()).max((self.room * 3 / 2).min(limit));
            if room > limit {
                return Err(Error::TextTooLarge);
            }
            // SAFETY: the piece allocated before.
            self.start = unsafe { pg_sys::repalloc(self.start.cast(), room) }.cast();
            self.room = room;
        }
        // SAFETY: there is room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(self.length), bytes.len());
        }
        self.length += bytes.len();
        Ok(())
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: what was written.
        unsafe { std::slice::from_raw_parts(self.start.add(HEADER), self.length - HEADER) }
    }

    pub fn truncate(&mut self, bytes: usize) {
        self.length = self.length.min(HEADER + bytes);
    }

    pub fn into_text(self) -> Datum {
        // SAFETY: a text of this length.
        unsafe { pgrx::varlena::set_varsize_4b(self.start.cast(), self.length as i32) };
        Datum::from(self.start)
    }
}

/// The text of a message as far as its chunks go without a gap.
pub fn assemble(chunks: &Chunks, message: Uuid, view: View) -> Result<(Builder, Prefix), Error> {
    let mut text = Builder::new();
    let mut outcome = Ok(());
    let prefix = chunks.prefix(message, view, |chunk| {
        if outcome.is_ok() {
            outcome = text.push(chunk.content);
        }
    })?;
    outcome.map(|()| (text, prefix))
}

/// Whether a stored text is the given one.
pub fn same(stored: Datum, given: Datum) -> bool {
    Text::of(stored).bytes() == Text::of(given).bytes()
}
