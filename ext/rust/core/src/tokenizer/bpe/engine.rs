//! The engine as its callers see it: a compiled tokenizer with the working memory of every thread that uses it. The memory
//! remembers words by their ids, so it belongs to one tokenizer and never leaves this folder.

use std::sync::Mutex;

use super::words::WordScratch;
use super::{Bpe, IdSource, original};
use crate::error::Error;
use crate::tokenizer::engine::{Engine, Tokens};

/// Working memory that no thread holds.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<WordScratch>>);

impl Bpe {
    /// Calls `work` with working memory that no other thread has.
    pub(super) fn with_scratch<T>(&self, work: impl FnOnce(&mut WordScratch) -> T) -> T {
        // A poisoned pool only means that a worker was lost; those in it are whole.
        let pool = || self.pool.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut scratch = pool().pop().unwrap_or_default();
        let out = work(&mut scratch);
        pool().push(scratch);
        out
    }

    /// Appends the ids of `text`, without those a post-processor adds: the crate's
    /// `encode(text, add_special_tokens = false)`.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        self.with_scratch(|scratch| self.encode_with(text, scratch, ids, |_, _| {}));
    }

    /// As [`Self::encode_into`], and for each id the byte of `text` where its token ends. Where NFC changed the text,
    /// tokens of the changed stretch end where the stretch ends.
    pub fn encode_with_ends(&self, text: &str, ids: &mut Vec<u32>, ends: &mut Vec<u32>) {
        let ends_of = |ids: &[u32], source: IdSource| match source {
            IdSource::Token { end } => ends.push(end as u32),
            IdSource::Text { text, piece, mut at, changes } if self.tables.drops_from(text) => {
                let from = at;
                ends.extend(ids.iter().map(|&id| {
                    at += self.tables.cover(id, &text[at - from..]);
                    (piece + original(changes, at)) as u32
                }));
            }
            IdSource::Text { piece, at, changes: [], .. } => self.tables.push_ends(ids, piece + at, ends),
            IdSource::Text { piece, mut at, changes, .. } => ends.extend(ids.iter().map(|&id| {
                at += self.tables.token_len(id);
                (piece + original(changes, at)) as u32
            })),
        };
        self.with_scratch(|scratch| self.encode_with(text, scratch, ids, ends_of));
    }

    /// Appends the ids of `text`, and to `found` for each of `places`, ascending bytes of the text: the number of tokens up
    /// to and with the first that ends there or later, and whether it ends later; for byte 0 no tokens. False, with nothing
    /// done, for a tokenizer that drops bytes.
    fn encode_around(&self, text: &str, places: &[u32], ids: &mut Vec<u32>, found: &mut Vec<(u32, bool)>) -> bool {
        if self.tables.drops_bytes() {
            return false;
        }
        let (mut places, mut before) = (places.iter().copied().peekable(), ids.len());
        while places.next_if_eq(&0).is_some() {
            found.push((0, false));
        }
        let look = |ids: &[u32], source: IdSource| {
            let (from, end, changes) = match source {
                IdSource::Token { end } => (0, end, [].as_slice()),
                IdSource::Text { text, piece, at, changes } => {
                    (piece, piece + original(changes, at + text.len()), changes)
                }
            };
            let (mut read, mut last) = (0, 0);
            let mut at = match source {
                IdSource::Text { at, .. } => at,
                IdSource::Token { .. } => 0,
            };
            while let Some(place) = places.next_if(|place| *place as usize <= end && !ids.is_empty()) {
                let place = place as usize;
                if changes.is_empty() && place == end || matches!(source, IdSource::Token { .. }) {
                    (read, last) = (ids.len(), end);
                }
                while last < place && read < ids.len() {
                    at += self.tables.token_len(ids[read]);
                    last = from + original(changes, at);
                    read += 1;
                }
                found.push(((before + read) as u32, last > place));
            }
            before += ids.len();
        };
        self.with_scratch(|scratch| self.encode_with(text, scratch, ids, look));
        found.extend(places.map(|_| (before as u32, false)));
        true
    }
}

impl Engine for Bpe {
    fn name(&self) -> String {
        concat!("postmill bpe ", env!("CARGO_PKG_VERSION")).to_owned()
    }

    fn encode(&self, text: &str, out: &mut Tokens) -> Result<(), Error> {
        let mut ids = unsigned(&mut out.ids);
        self.encode_with_ends(text, &mut ids, &mut out.ends);
        out.ids = signed(ids);
        Ok(())
    }

    fn encode_at(
        &self,
        text: &str,
        places: &[u32],
        out: &mut Vec<i32>,
        found: &mut Vec<(u32, bool)>,
    ) -> Result<(), Error> {
        let mut ids = unsigned(out);
        let done = self.encode_around(text, places, &mut ids, found);
        *out = signed(ids);
        if !done {
            let mut tokens = Tokens { ids: std::mem::take(out), ends: vec![] };
            self.encode(text, &mut tokens)?;
            tokens.find_places(places, found);
            *out = tokens.ids;
        }
        Ok(())
    }
}

/// Signed ids as unsigned ones, in the same memory: collecting a vector's own items of one size moves nothing.
fn unsigned(ids: &mut Vec<i32>) -> Vec<u32> {
    std::mem::take(ids).into_iter().map(i32::cast_unsigned).collect()
}

fn signed(ids: Vec<u32>) -> Vec<i32> {
    ids.into_iter().map(u32::cast_signed).collect()
}
