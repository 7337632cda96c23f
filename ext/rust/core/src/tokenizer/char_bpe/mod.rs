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
mod memo;
mod merge;

use std::sync::Mutex;

use super::engine::{Engine, Tokens};
use super::special::{AddedToken, SpecialMatcher, Stretch};
use crate::error::Error;
pub(crate) use file::load;
use memo::Memo;
use merge::{Pairs, Symbols};

/// No token.
const NONE: u32 = u32::MAX;
/// What a space is written as.
const SPACE: char = '\u{2581}';
/// Longer pieces are cut further before they are merged, and not remembered.
const LONG: usize = 48;
/// Bits of the table of neighbours, a power of two. Gemma's half a million pairs fill a tenth of it.
const NEIGHBOUR_BITS: usize = 1 << 22;

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

/// Which two characters stand side by side in some token that a merge makes: a bit each, some set for others.
#[derive(Debug)]
struct Neighbours(Box<[u64]>);

impl Neighbours {
    fn new() -> Self {
        Self(vec![0; NEIGHBOUR_BITS / 64].into())
    }

    fn bit(left: char, right: char) -> usize {
        let both = (left as u64) << 21 | right as u64;
        (both.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 42) as usize
    }

    fn add(&mut self, token: &str) {
        for (left, right) in token.chars().zip(token.chars().skip(1)) {
            let bit = Self::bit(left, right);
            self.0[bit / 64] |= 1 << (bit % 64);
        }
    }

    fn may_meet(&self, left: char, right: char) -> bool {
        let bit = Self::bit(left, right);
        self.0[bit / 64] >> (bit % 64) & 1 == 1
    }
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
pub(crate) struct CharBpe {
    added: SpecialMatcher,
    chars: Chars,
    pairs: Pairs,
    neighbours: Neighbours,
    dummy: Dummy,
    pool: Mutex<Vec<CharScratch>>,
}

/// Working memory of a thread.
#[derive(Debug, Default)]
struct CharScratch {
    memo: Memo,
    symbols: Symbols,
    key: Vec<u8>,
}

fn written(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

impl CharBpe {
    fn new(added: Vec<AddedToken>, chars: Chars, pairs: Pairs, neighbours: Neighbours, dummy: Dummy) -> Self {
        Self { added: SpecialMatcher::new(added), chars, pairs, neighbours, dummy, pool: Mutex::default() }
    }

    /// Text between added tokens, which starts at byte `start` of the whole.
    fn stretch(&self, text: &str, start: usize, scratch: &mut CharScratch, out: &mut Tokens) {
        let has_space = text.starts_with([' ', SPACE]);
        let mut dummy = match self.dummy {
            Dummy::Never => false,
            Dummy::First => start == 0 && !has_space,
            Dummy::Always => !has_space,
            Dummy::Unconditional => true,
        };
        let mut at = 0;
        while at < text.len() {
            let end = self.word_end(text, at);
            self.word(&text[at..end], dummy, start + at, scratch, out);
            (at, dummy) = (end, false);
        }
    }

    /// Where the word that starts at byte `at` ends: before a space that no merge joins to the character before it.
    fn word_end(&self, text: &str, at: usize) -> usize {
        let bytes = text.as_bytes();
        let mut from = at + 1;
        while let Some(found) = memchr::memchr(b' ', &bytes[from.min(bytes.len())..]) {
            let space = from + found;
            if bytes[space - 1] != b' '
                && let Some(before) = text[..space].chars().next_back()
                && !self.neighbours.may_meet(before, SPACE)
            {
                return space;
            }
            from = space + 1;
        }
        bytes.len()
    }

    fn word(&self, word: &str, dummy: bool, start: usize, scratch: &mut CharScratch, out: &mut Tokens) {
        if word.len() <= LONG {
            return self.piece(word, dummy, start, scratch, out);
        }
        let (mut from, mut dummy) = (0, dummy);
        let mut before: Option<char> = None;
        for (at, c) in word.char_indices() {
            let c = written(c);
            if before.is_some_and(|before| !self.neighbours.may_meet(before, c)) {
                self.piece(&word[from..at], dummy, start + from, scratch, out);
                (from, dummy) = (at, false);
            }
            before = Some(c);
        }
        self.piece(&word[from..], dummy, start + from, scratch, out);
    }

    fn piece(&self, piece: &str, dummy: bool, start: usize, scratch: &mut CharScratch, out: &mut Tokens) {
        let CharScratch { memo, symbols, key } = scratch;
        let mut push = |ids: &[u32], lengths: &mut dyn Iterator<Item = usize>| {
            let mut end = start;
            out.ids.extend(ids.iter().map(|id| id.cast_signed()));
            out.ends.extend(lengths.map(|length| {
                end += length;
                end as u32
            }));
        };
        if piece.len() > LONG {
            self.merge(piece, dummy, symbols);
            return push(&symbols.ids, &mut symbols.lengths.iter().map(|length| *length as usize));
        }
        key.clear();
        if dummy {
            // no byte of UTF-8
            key.push(0xFF);
        }
        key.extend_from_slice(piece.as_bytes());
        let hash = Memo::hash(key);
        if let Some((ids, lengths)) = memo.get(hash, key) {
            return push(ids, &mut lengths.iter().map(|length| usize::from(*length)));
        }
        self.merge(piece, dummy, symbols);
        memo.put(hash, key, &symbols.ids, &symbols.lengths);
        push(&symbols.ids, &mut symbols.lengths.iter().map(|length| *length as usize));
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
        self.added.split(text, |stretch| match stretch {
            Stretch::Token(id, _, end) => {
                out.ids.push(id.cast_signed());
                out.ends.push(end as u32);
            }
            Stretch::Text(start, end) => self.stretch(&text[start..end], start, &mut scratch, out),
        });
        pool().push(scratch);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
