//! BPE over characters, as `SentencePiece` families have it (Llama 2, Mistral v1, Gemma): ids equal to the `tokenizers`
//! crate's.
//!
//! A space is written `▁`, and a character without a token becomes the tokens of its bytes. The crate merges all text
//! between two added tokens as one word, in time that grows with its length. Here it is cut first, wherever no merge can
//! reach over: between two characters that stand side by side in no token that a merge makes. What is cut so has the same
//! ids, since a merge over the border would make a token with both characters in it. That is nearly always so before a
//! space, so the pieces are words, and words are remembered.
//!
//! A file with any part that is not known for certain is refused, and the caller uses the crate.
mod file;
mod merge;
mod neighbours;

use std::sync::Mutex;

use super::bpe::cache::{self, MAX_WORD, WordCache};
use super::bpe::phrases::Phrases;
use super::engine::{Engine, Tokens};
use super::special::{SpecialMatcher, Stretch};
use crate::error::Error;
pub use file::load;
use merge::{Pairs, Symbols};
use neighbours::Neighbours;

/// No token.
const NONE: u32 = u32::MAX;
/// What a space is written as.
const SPACE: char = '\u{2581}';

/// Where a space is put that the text does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dummy {
    Never,
    /// At the start of the text, unless a space is there.
    First,
    /// At the start and behind each added token, unless a space is there.
    Always,
    /// At the start and behind each added token, even where a space is there.
    Unconditional,
}

/// Tokens of single characters.
#[derive(Debug)]
struct Chars {
    /// The first 65,536 code points.
    low: Box<[u32]>,
    high: std::collections::HashMap<char, u32>,
    /// The tokens of bytes, for characters without one.
    bytes: [u32; 256],
}

impl Chars {
    fn get(&self, c: char) -> u32 {
        match self.low.get(c as usize) {
            Some(id) => *id,
            None => self.high.get(&c).copied().unwrap_or(NONE),
        }
    }
}

/// A compiled tokenizer.
#[derive(Debug)]
pub struct CharBpe {
    added: SpecialMatcher,
    chars: Chars,
    pairs: Pairs,
    neighbours: Neighbours,
    /// For each id, the bytes of text that its token covers, where every `▁` in it is a space.
    lengths: Box<[u16]>,
    dummy: Dummy,
    pool: Mutex<Vec<CharScratch>>,
}

/// Working memory of a thread.
#[derive(Debug, Default)]
struct CharScratch {
    words: WordCache,
    phrases: Phrases,
    symbols: Symbols,
}

fn written(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

impl CharBpe {
    /// Text between added tokens, which starts at byte `start` of the whole.
    fn stretch(&self, text: &str, start: usize, scratch: &mut CharScratch, ids: &mut Vec<u32>, ends: &mut Vec<u32>) {
        let has_space = text.starts_with([' ', SPACE]);
        let dummy = match self.dummy {
            Dummy::Never => false,
            Dummy::First => start == 0 && !has_space,
            Dummy::Always => !has_space,
            Dummy::Unconditional => true,
        };
        // in such a text the same token may cover one byte or three
        let spells_spaces = memchr::memmem::find(text.as_bytes(), SPACE.encode_utf8(&mut [0; 4]).as_bytes()).is_some();
        let before = ids.len();
        let mut end = start as u32;
        self.neighbours.cut(text, |from, to| {
            let dummy = dummy && from == 0;
            if !spells_spaces {
                return self.piece(text, (from, to), dummy, scratch, ids);
            }
            self.merge(&text[from..to], dummy, &mut scratch.symbols);
            ids.extend_from_slice(&scratch.symbols.ids);
            ends.extend(scratch.symbols.lengths.iter().map(|length| {
                end += length;
                end
            }));
        });
        if spells_spaces {
            return;
        }
        let mut first = u32::from(dummy);
        ends.extend(ids[before..].iter().map(|id| {
            end += u32::from(self.lengths[*id as usize]) - std::mem::take(&mut first);
            end
        }));
    }

    /// Append the ids of a piece of `text`, remembered ones if there are some.
    #[inline]
    fn piece(
        &self,
        text: &str,
        (from, to): (usize, usize),
        dummy: bool,
        scratch: &mut CharScratch,
        ids: &mut Vec<u32>,
    ) {
        let CharScratch { words, phrases, symbols } = scratch;
        let bytes = text.as_bytes();
        if to - from <= MAX_WORD {
            let mut key = cache::key(bytes, from, to - from);
            // with a space in front it has other ids
            key[1] |= if dummy { cache::PIECE } else { 0 };
            let hash = cache::hash(key);
            if let Some(few) = words.get(hash, key) {
                ids.reserve(4);
                // SAFETY: the room above.
                return unsafe { few.push_to(ids) };
            }
            self.merge(&text[from..to], dummy, symbols);
            words.insert(hash, key, &symbols.ids);
        } else {
            let hash = phrases.ask(&bytes[from..to], dummy);
            if phrases.append(hash, &bytes[from..to], dummy, ids) {
                return;
            }
            self.merge(&text[from..to], dummy, symbols);
            phrases.remember(hash, &bytes[from..to], dummy, &symbols.ids);
        }
        ids.extend_from_slice(&symbols.ids);
    }

    fn merge(&self, piece: &str, dummy: bool, symbols: &mut Symbols) {
        symbols.clear();
        if dummy {
            symbols.push(self.chars.get(SPACE), 0);
        }
        for c in piece.chars() {
            match self.chars.get(written(c)) {
                NONE => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        symbols.push(self.chars.bytes[usize::from(byte)], 1);
                    }
                }
                id => symbols.push(id, c.len_utf8() as u32),
            }
        }
        symbols.merge(&self.pairs);
    }
}

impl Engine for CharBpe {
    fn name(&self) -> String {
        concat!("postmill char bpe ", env!("CARGO_PKG_VERSION")).to_owned()
    }

    fn encode(&self, text: &str, out: &mut Tokens) -> Result<(), Error> {
        // A poisoned pool only means that a worker was lost; those in it are whole.
        let pool = || self.pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut scratch = pool().pop().unwrap_or_default();
        let mut ids: Vec<u32> = std::mem::take(&mut out.ids).into_iter().map(i32::cast_unsigned).collect();
        self.added.split(text, |stretch| match stretch {
            Stretch::Token(id, _, end) => {
                ids.push(id);
                out.ends.push(end as u32);
            }
            Stretch::Text(start, end) => {
                self.stretch(&text[start..end], start, &mut scratch, &mut ids, &mut out.ends);
            }
        });
        out.ids = ids.into_iter().map(u32::cast_signed).collect();
        pool().push(scratch);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
