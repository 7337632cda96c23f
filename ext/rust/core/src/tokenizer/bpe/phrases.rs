//! Words and pieces of [`MIN`] to [`MAX`] bytes -> ids, remembered: identifiers, indentation, a few Han characters in a row.

use std::array;

use super::growing::{Growing, Line};

/// Shortest phrase; shorter words are [`super::cache`]'s.
pub(crate) const MIN: usize = 16;
/// Longest phrase.
pub(crate) const MAX: usize = 2 * LONG - 1;
/// From here on a phrase takes two cache lines.
const LONG: usize = 2 * MIN;
/// Bits of an id. What is above them in the first is the number of ids, in the second and third the mark.
const ID_BITS: u32 = 28;
const ID: u32 = (1 << ID_BITS) - 1;

/// Bytes and kind of a phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key<const PARTS: usize> {
    /// As many from its start as from its end: together all of it.
    parts: [u128; PARTS],
    /// Length, and whether it is a piece, which may have other ids than the same bytes as a word; eight bits.
    mark: u32,
}

impl<const PARTS: usize> Key<PARTS> {
    /// `bytes` are at least half of the parts, and fewer than all of them.
    #[inline]
    fn new(bytes: &[u8], is_piece: bool) -> Self {
        let part = |i: usize| {
            let start = if i < PARTS / 2 { 16 * i } else { bytes.len() - 16 * (PARTS - i) };
            bytes[start..].first_chunk().map_or(0, |part| u128::from_le_bytes(*part))
        };
        Self { parts: array::from_fn(part), mark: (bytes.len() as u32) << 1 | u32::from(is_piece) }
    }

    /// The upper bits say which line it belongs to.
    #[inline]
    fn hash(&self) -> u32 {
        let fold = |part: u128, by: u64| {
            let product = u128::from(part as u64 ^ by) * u128::from((part >> 64) as u64 ^ 0x9E37_79B9_7F4A_7C15);
            product as u64 ^ (product >> 64) as u64
        };
        let folded = self.parts.iter().zip(1u64..).fold(u64::from(self.mark), |all, (&part, i)| {
            all ^ fold(part, i.wrapping_mul(0xC2B2_AE3D_27D4_EB4F) ^ u64::from(self.mark))
        });
        (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
    }
}

/// A phrase and its ids, without its mark.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct One<const PARTS: usize, const IDS: usize> {
    parts: [u128; PARTS],
    ids: [u32; IDS],
}

type Short = One<2, 8>;
type Long = One<4, 16>;

impl<const PARTS: usize, const IDS: usize> Default for One<PARTS, IDS> {
    fn default() -> Self {
        Self { parts: [0; PARTS], ids: [0; IDS] }
    }
}

impl<const PARTS: usize, const IDS: usize> One<PARTS, IDS> {
    /// Their number has four bits.
    const MOST_IDS: usize = if IDS < 16 { IDS } else { 15 };

    fn new(key: Key<PARTS>, ids: &[u32]) -> Option<Self> {
        if ids.len() > Self::MOST_IDS {
            return None;
        }
        let mut one = Self { parts: key.parts, ..Self::default() };
        one.ids[..ids.len()].copy_from_slice(ids);
        let above = [ids.len() as u32, key.mark & 15, key.mark >> 4];
        one.ids.iter_mut().zip(above).for_each(|(id, above)| *id |= above << ID_BITS);
        Some(one)
    }

    #[inline]
    fn key(&self) -> Key<PARTS> {
        Key { parts: self.parts, mark: self.ids[1] >> ID_BITS | self.ids[2] >> ID_BITS << 4 }
    }

    #[inline]
    fn ids(&self) -> impl ExactSizeIterator<Item = u32> {
        let count = self.ids[0] >> ID_BITS;
        self.ids[..IDS.min(count as usize)].iter().map(|id| id & ID)
    }
}

impl<const PARTS: usize, const IDS: usize> Line for One<PARTS, IDS> {
    type Entry = Self;
    const FIRST_BITS: u32 = 9;
    const MOST_BITS: u32 = 15;
    const FULL: usize = 2;

    #[inline]
    fn put(&mut self, entry: Self) {
        *self = entry;
    }

    fn entries(&self) -> impl Iterator<Item = (u32, Self)> {
        (self.ids[0] != 0).then(|| (self.key().hash(), *self)).into_iter()
    }
}

impl<const PARTS: usize, const IDS: usize> Growing<One<PARTS, IDS>> {
    #[inline]
    fn ask(&self, bytes: &[u8], is_piece: bool) -> u32 {
        let hash = Key::<PARTS>::new(bytes, is_piece).hash();
        self.prefetch(hash);
        hash
    }

    #[inline]
    fn append(&self, hash: u32, bytes: &[u8], is_piece: bool, ids: &mut Vec<u32>) -> bool {
        let one = self.line(hash);
        let is_known = one.key() == Key::new(bytes, is_piece);
        if is_known {
            ids.extend(one.ids());
        }
        is_known
    }

    fn remember(&mut self, hash: u32, bytes: &[u8], is_piece: bool, ids: &[u32]) {
        if let Some(one) = One::new(Key::new(bytes, is_piece), ids) {
            self.insert(hash, one);
        }
    }
}

/// Two caches that grow; one pair a thread.
#[derive(Debug, Default)]
pub(crate) struct Phrases {
    short: Growing<Short>,
    long: Growing<Long>,
}

impl Phrases {
    /// The hash of a phrase, and asks for what will be looked up by it soon. `is_piece` where a piece of a word may have
    /// other ids than the same bytes as a word.
    #[inline]
    pub(crate) fn ask(&self, bytes: &[u8], is_piece: bool) -> u32 {
        match bytes.len() {
            MIN..LONG => self.short.ask(bytes, is_piece),
            LONG..=MAX => self.long.ask(bytes, is_piece),
            _ => 0,
        }
    }

    /// Appends the ids of a phrase, if it is known.
    #[inline]
    pub(crate) fn append(&self, hash: u32, bytes: &[u8], is_piece: bool, ids: &mut Vec<u32>) -> bool {
        match bytes.len() {
            MIN..LONG => self.short.append(hash, bytes, is_piece, ids),
            LONG..=MAX => self.long.append(hash, bytes, is_piece, ids),
            _ => false,
        }
    }

    /// Remembers the ids of a phrase, if they are few.
    pub(crate) fn remember(&mut self, hash: u32, bytes: &[u8], is_piece: bool, ids: &[u32]) {
        match bytes.len() {
            MIN..LONG => self.short.remember(hash, bytes, is_piece, ids),
            LONG..=MAX => self.long.remember(hash, bytes, is_piece, ids),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_right_while_the_cache_grows() {
        let mut cache = Phrases::default();
        // Some differ in their middle, some only in their length.
        let words: Vec<String> = (0..400_000usize)
            .map(|n| format!("{}{n:08}{}", "b".repeat(n % 2 * 20), "a".repeat(MIN - 8 + n / 2 % 28)))
            .collect();
        let ids = |n: usize| vec![n as u32; 1 + n % Short::MOST_IDS];
        let mut known = 0;
        for n in 0..words.len() {
            for (n, is_new) in [(n, true), (n / 2, false), (n - n % 1000, false)] {
                let phrase = words[n].as_bytes();
                let hash = cache.ask(phrase, false);
                if is_new {
                    cache.remember(hash, phrase, false, &ids(n));
                }
                let mut out = vec![];
                if cache.append(hash, phrase, false, &mut out) {
                    assert_eq!(out, ids(n));
                    known += 1;
                }
                assert!(!cache.append(hash, phrase, true, &mut out), "a word is no piece");
            }
        }
        assert_eq!((cache.short.len(), cache.long.len()), (1 << Short::MOST_BITS, 1 << Long::MOST_BITS));
        assert!(known > 500_000, "{known}");
    }

    #[test]
    fn phrases_of_one_letter_differ_by_their_length() {
        let mut cache = Phrases::default();
        let text = [b'a'; MAX + 1];
        let mut out = vec![];
        for len in [MIN - 1, MAX + 1] {
            cache.remember(0, &text[..len], false, &[1]);
            assert!(!cache.append(0, &text[..len], false, &mut out), "{len}");
        }
        for len in MIN..=MAX {
            // Even if they shared a line.
            assert!(!cache.append(0, &text[..len], false, &mut out) && out.is_empty());
            cache.remember(0, &text[..len], false, &[len as u32]);
            assert!(cache.append(0, &text[..len], false, &mut out) && out == [len as u32]);
            out.clear();
        }
        for (len, most) in [(MIN, Short::MOST_IDS), (LONG, Long::MOST_IDS)] {
            cache.remember(0, &text[..len], false, &vec![1; most + 1]);
            assert!(!cache.append(0, &text[..len], false, &mut out) && out.is_empty(), "too many ids");
            cache.remember(0, &text[..len], false, &vec![2; most]);
            assert!(cache.append(0, &text[..len], false, &mut out) && out == vec![2; most]);
            out.clear();
        }
    }
}
