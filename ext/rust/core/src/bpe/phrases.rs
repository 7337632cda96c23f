//! Words and pieces of [`MIN`] to [`MAX`] bytes -> ids, remembered: identifiers, indentation, a few Han characters in a row.

use super::growing::{Growing, Line};

/// Shortest phrase; shorter words are [`super::cache`]'s.
pub const MIN: usize = 16;
/// Longest phrase: its first and last 16 bytes are all of it, and its length fits beside an id.
pub const MAX: usize = 31;
/// Most ids that are remembered.
const MOST_IDS: usize = 8;
/// Bits of an id; what is above them in the first is their number, in the second the length, in the third the kind.
const ID_BITS: u32 = 28;
const ID: u32 = (1 << ID_BITS) - 1;

/// First and last 16 bytes.
type Key = [u128; 2];

/// A phrase and its ids: one cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct One {
    key: Key,
    ids: [u32; MOST_IDS],
}

/// What is looked up.
#[derive(Debug, Clone, Copy)]
pub struct Phrase {
    key: Key,
    len: u32,
    is_piece: bool,
}

impl Phrase {
    /// The phrase `bytes`; `is_piece` where a piece of a word may have other ids than the same bytes as a word.
    #[inline]
    pub fn new(bytes: &[u8], is_piece: bool) -> Option<Self> {
        let (first, last) = (bytes.first_chunk()?, bytes.last_chunk()?);
        let len = bytes.len() as u32;
        let key = [u128::from_le_bytes(*first), u128::from_le_bytes(*last)];
        (bytes.len() <= MAX).then_some(Self { key, len, is_piece })
    }

    /// The upper bits say which line it belongs to.
    #[inline]
    pub fn hash(self) -> u32 {
        let fold = |half: u128, by: u64| {
            let product = u128::from(half as u64 ^ by) * u128::from((half >> 64) as u64 ^ 0x9E37_79B9_7F4A_7C15);
            product as u64 ^ (product >> 64) as u64
        };
        let both =
            fold(self.key[0], 0xC2B2_AE3D_27D4_EB4F ^ u64::from(self.len)) ^ fold(self.key[1], 0x1656_67B1_9E37_79F9);
        (both.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
    }

    fn marks(self) -> (u32, u32) {
        (self.len - MIN as u32, u32::from(self.is_piece))
    }
}

impl Line for One {
    type Entry = Self;
    const FIRST_BITS: u32 = 9;
    const MOST_BITS: u32 = 15;
    const FULL: usize = 2;

    #[inline]
    fn put(&mut self, entry: Self) {
        *self = entry;
    }

    fn entries(&self) -> impl Iterator<Item = (u32, Self)> {
        let phrase =
            Phrase { key: self.key, len: (self.ids[1] >> ID_BITS) + MIN as u32, is_piece: self.ids[2] >> ID_BITS != 0 };
        (self.ids[0] != 0).then(|| (phrase.hash(), *self)).into_iter()
    }
}

/// A cache that grows; one a thread.
#[derive(Debug, Default)]
pub struct Phrases(Growing<One>);

impl Phrases {
    /// Asks for the line of a phrase that will be looked up soon.
    #[inline]
    pub fn prefetch(&self, hash: u32) {
        self.0.prefetch(hash);
    }

    /// Appends the ids of a phrase, if it is known.
    #[inline]
    pub fn get(&self, hash: u32, phrase: Phrase, ids: &mut Vec<u32>) -> bool {
        let line = self.0.line(hash);
        if line.key != phrase.key || (line.ids[1] >> ID_BITS, line.ids[2] >> ID_BITS) != phrase.marks() {
            return false;
        }
        let count = line.ids[0] >> ID_BITS;
        ids.extend(line.ids[..MOST_IDS.min(count as usize)].iter().map(|id| id & ID));
        count > 0
    }

    /// Remembers the ids of a phrase, if they are few.
    pub fn insert(&mut self, hash: u32, phrase: Phrase, ids: &[u32]) {
        if ids.len() > MOST_IDS {
            return;
        }
        let mut line = One { key: phrase.key, ..One::default() };
        line.ids[..ids.len()].copy_from_slice(ids);
        let (len, kind) = phrase.marks();
        line.ids[0] |= (ids.len() as u32) << ID_BITS;
        line.ids[1] |= len << ID_BITS;
        line.ids[2] |= kind << ID_BITS;
        self.0.insert(hash, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_right_while_the_cache_grows() {
        let mut cache = Phrases::default();
        // Some differ in their middle, some only in their length.
        let words: Vec<String> =
            (0..200_000usize).map(|n| format!("{n:08}{}", "a".repeat(MIN - 8 + n % (MAX - MIN + 1)))).collect();
        let ids = |n: usize| vec![n as u32; 1 + n % MOST_IDS];
        let mut known = 0;
        for n in 0..words.len() {
            for (n, is_new) in [(n, true), (n / 2, false), (n - n % 1000, false)] {
                let phrase = Phrase::new(words[n].as_bytes(), false).unwrap();
                if is_new {
                    cache.insert(phrase.hash(), phrase, &ids(n));
                }
                let mut out = vec![];
                if cache.get(phrase.hash(), phrase, &mut out) {
                    assert_eq!(out, ids(n));
                    known += 1;
                }
                let piece = Phrase { is_piece: true, ..phrase };
                assert!(!cache.get(phrase.hash(), piece, &mut out), "a word is no piece");
            }
        }
        assert_eq!(cache.0.len(), 1 << One::MOST_BITS);
        assert!(known > 250_000, "{known}");
    }

    #[test]
    fn phrases_of_one_letter_differ_by_their_length() {
        let mut cache = Phrases::default();
        let text = [b'a'; MAX + 1];
        assert!(Phrase::new(&text[..MIN - 1], false).is_none() && Phrase::new(&text, false).is_none());
        for len in MIN..=MAX {
            let phrase = Phrase::new(&text[..len], false).unwrap();
            let mut out = vec![];
            // Even if they shared a line.
            assert!(!cache.get(0, phrase, &mut out) && out.is_empty());
            cache.insert(0, phrase, &[len as u32]);
            assert!(cache.get(0, phrase, &mut out) && out == [len as u32]);
        }
        cache.insert(0, Phrase::new(&text[..MIN], false).unwrap(), &[1; MOST_IDS + 1]);
        assert!(!cache.get(0, Phrase::new(&text[..MIN], false).unwrap(), &mut vec![]), "too many ids");
    }
}
