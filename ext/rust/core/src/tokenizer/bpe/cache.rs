//! Word -> ids, remembered: one cache line read for nearly every word of ordinary text.

use super::growing::{Growing, Line};

/// Bytes and length of a word of at most [`MAX_WORD`] bytes.
pub(crate) type Key = [u64; 2];

/// Set in the second half of the key of a piece of a word: where whole words are looked up, a piece may have other ids
/// than the same bytes as a word.
pub(crate) const PIECE: u64 = 1 << 63;

/// Longest word that is remembered by its bytes alone; [`super::phrases`] has longer ones.
pub(crate) const MAX_WORD: usize = 15;

/// Bits of an id.
const ID_BITS: u32 = 28;

/// One to four ids; the top four bits of the first are their number.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Few([u32; 4]);

impl Few {
    /// These ids, if they are few; each is below 2^28.
    #[must_use]
    pub(crate) fn new(ids: &[u32]) -> Option<Self> {
        let mut four = [0; 4];
        four.get_mut(..ids.len())?.copy_from_slice(ids);
        four[0] |= (ids.len() as u32) << ID_BITS;
        (!ids.is_empty()).then_some(Self(four))
    }

    /// Appends them by writing all four.
    ///
    /// # Safety
    /// `out` has room for four more.
    #[inline]
    pub(crate) unsafe fn push_to(&self, out: &mut Vec<u32>) {
        let (len, count) = (out.len(), self.0[0] >> ID_BITS);
        debug_assert!(out.capacity() - len >= 4 && count <= 4);
        // SAFETY: the caller's promise; the first `count <= 4` were written when the length covers them.
        unsafe {
            let end = out.as_mut_ptr().add(len);
            end.cast::<[u32; 4]>().write_unaligned(self.0);
            *end &= (1 << ID_BITS) - 1;
            out.set_len(len + count as usize);
        }
    }
}

/// Two words and their ids. The one in front stays when a new one comes.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct Two {
    keys: [Key; 2],
    ids: [Few; 2],
}

impl Line for Two {
    type Entry = (Key, Few);
    const FIRST_BITS: u32 = 12;
    /// 32 MiB hold 1,048,576 words; twelve megabytes of manuals have 90,000, two hundred of chats 800,000.
    const MOST_BITS: u32 = 19;
    const FULL: usize = 1;

    #[inline]
    fn put(&mut self, (key, ids): Self::Entry) {
        let way = usize::from(self.keys[0] != Key::default());
        self.keys[way] = key;
        self.ids[way] = ids;
    }

    fn entries(&self) -> impl Iterator<Item = (u32, Self::Entry)> {
        let both = self.keys.into_iter().zip(self.ids);
        both.filter(|(key, _)| *key != Key::default()).map(|(key, ids)| (hash(key), (key, ids)))
    }
}

/// A two-way cache that grows; one a thread.
#[derive(Debug, Default)]
pub(crate) struct WordCache(Growing<Two>);

const LOW: [u64; 16] = masks(0);
const HIGH: [u64; 16] = masks(8);

/// For each length, the bits of its bytes that lie in the eight bytes from `first`.
const fn masks(first: usize) -> [u64; 16] {
    let mut out = [0; 16];
    let mut len = 0usize;
    while len < 16 {
        let bytes = len.saturating_sub(first);
        out[len] = if bytes >= 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
        len += 1;
    }
    out
}

/// The key of `bytes[start..start + len]`; `len <= MAX_WORD`.
#[inline]
#[must_use]
pub(crate) fn key(bytes: &[u8], start: usize, len: usize) -> Key {
    let sixteen = match bytes.get(start..start + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
        Some(sixteen) => u128::from_le_bytes(sixteen),
        None => near_end(bytes, start),
    };
    masked(sixteen, len)
}

/// As [`key`], where 16 bytes can be read from `start` on.
///
/// # Safety
/// `start + 16 <= bytes.len()`.
#[inline]
#[must_use]
pub(crate) unsafe fn key_inside(bytes: &[u8], start: usize, len: usize) -> Key {
    debug_assert!(start + 16 <= bytes.len());
    // SAFETY: the caller's promise; no alignment is needed.
    masked(u128::from_le_bytes(unsafe { bytes.as_ptr().add(start).cast::<[u8; 16]>().read_unaligned() }), len)
}

#[inline]
fn masked(sixteen: u128, len: usize) -> Key {
    [sixteen as u64 & LOW[len & 15], (sixteen >> 64) as u64 & HIGH[len & 15] | (len as u64) << 56]
}

/// The bytes a key stands for are the first ones, as many as is said.
#[inline]
#[must_use]
pub(crate) fn word(key: Key) -> ([u8; 16], usize) {
    let sixteen = u128::from(key[0]) | u128::from(key[1]) << 64;
    (sixteen.to_le_bytes(), (key[1] >> 56) as usize & MAX_WORD)
}

#[cold]
fn near_end(bytes: &[u8], start: usize) -> u128 {
    let mut sixteen = [0; 16];
    let rest = &bytes[start..];
    sixteen[..rest.len()].copy_from_slice(rest);
    u128::from_le_bytes(sixteen)
}

/// The upper bits say which line a key belongs to.
#[inline]
#[must_use]
pub(crate) fn hash(key: Key) -> u32 {
    let product = u128::from(key[0] ^ 0x9E37_79B9_7F4A_7C15) * u128::from(key[1] ^ 0xC2B2_AE3D_27D4_EB4F);
    product as u32 ^ (product >> 64) as u32
}

impl WordCache {
    /// Asks for the line of a word that will be looked up soon.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        self.0.prefetch(hash);
    }

    /// The ids of a word.
    #[inline]
    pub(crate) fn get(&mut self, hash: u32, key: Key) -> Option<&Few> {
        let line = self.0.line_mut(hash);
        if line.keys[0] != key {
            if line.keys[1] != key {
                return None;
            }
            line.keys.swap(0, 1);
            line.ids.swap(0, 1);
        }
        Some(&line.ids[0])
    }

    /// Remembers the ids of a word, if there are at most four.
    pub(crate) fn insert(&mut self, hash: u32, key: Key, ids: &[u32]) {
        if let Some(ids) = Few::new(ids) {
            self.0.insert(hash, (key, ids));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of the `n`-th word: one to four, not two words alike.
    fn ids(n: u32) -> Vec<u32> {
        (0..=n % 4).map(|i| n + (i << 20)).collect()
    }

    #[test]
    fn what_is_known_is_right_while_the_cache_grows() {
        let mut cache = WordCache::default();
        let words: Vec<String> = (0..800_000u32).map(|n| format!("{n:x}{}", "\0é".repeat(n as usize % 3))).collect();
        let mut known = 0;
        for (n, word) in (0..).zip(&words) {
            let key = key(word.as_bytes(), 0, word.len());
            let (bytes, len) = super::word(key);
            assert_eq!(&bytes[..len], word.as_bytes());
            assert!(cache.get(hash(key), key).is_none(), "{word:?} was never inserted");
            cache.insert(hash(key), key, &ids(n));
            // Some that came before, and one as a piece, which has other ids.
            for n in [n, n / 2, n - n % 1000] {
                let word = &words[n as usize];
                let mut key = super::key(word.as_bytes(), 0, word.len());
                let mut out = Vec::with_capacity(4);
                if let Some(few) = cache.get(hash(key), key) {
                    // SAFETY: there is room for four.
                    unsafe { few.push_to(&mut out) };
                    assert_eq!(out, ids(n));
                    known += 1;
                }
                key[1] |= PIECE;
                assert!(cache.get(hash(key), key).is_none());
            }
        }
        assert_eq!(cache.0.len(), 1 << Two::MOST_BITS);
        assert!(known > 1_600_000, "{known}");
    }

    #[test]
    fn five_ids_or_none_are_not_few() {
        assert!(Few::new(&[]).is_none() && Few::new(&[1; 5]).is_none());
    }
}
