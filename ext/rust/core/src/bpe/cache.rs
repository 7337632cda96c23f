//! Word -> ids, remembered: one cache line read for nearly every word of ordinary text.

/// Bytes and length of a word of at most [`MAX_WORD`] bytes.
pub type Key = [u64; 2];

/// Set in the second half of the key of a piece of a word: where whole words are looked up, a piece may have other ids
/// than the same bytes as a word.
pub const PIECE: u64 = 1 << 63;

/// Longest word that is remembered.
pub const MAX_WORD: usize = 15;

/// Cache lines; a power of two. 4 MiB holds the 130,000 commonest words of a text.
const LINES: usize = 1 << 16;

/// Two words and up to four ids each. The top four bits of the first id are the number of ids.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line {
    keys: [Key; 2],
    ids: [[u32; 4]; 2],
}

/// A two-way cache of fixed size; one a thread.
#[derive(Debug)]
pub struct WordCache {
    lines: Vec<Line>,
}

impl Default for WordCache {
    fn default() -> Self {
        Self { lines: vec![Line::default(); LINES] }
    }
}

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
pub fn key(bytes: &[u8], start: usize, len: usize) -> Key {
    let sixteen = match bytes.get(start..start + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
        Some(sixteen) => u128::from_le_bytes(sixteen),
        None => near_end(bytes, start),
    };
    masked(sixteen, len)
}

/// The same where 16 bytes can be read.
///
/// # Safety
/// `start + 16 <= bytes.len()`.
#[inline]
#[must_use]
pub unsafe fn key_inside(bytes: &[u8], start: usize, len: usize) -> Key {
    debug_assert!(start + 16 <= bytes.len());
    // SAFETY: the caller's promise; no alignment is needed.
    masked(u128::from_le_bytes(unsafe { bytes.as_ptr().add(start).cast::<[u8; 16]>().read_unaligned() }), len)
}

#[inline]
fn masked(sixteen: u128, len: usize) -> Key {
    [sixteen as u64 & LOW[len & 15], (sixteen >> 64) as u64 & HIGH[len & 15] | (len as u64) << 56]
}

/// Whether the bytes of a key are all ASCII.
#[inline]
#[must_use]
pub fn is_ascii(key: Key) -> bool {
    (key[0] | key[1]) & 0x8080_8080_8080_8080 == 0
}

#[cold]
fn near_end(bytes: &[u8], start: usize) -> u128 {
    let mut sixteen = [0; 16];
    let rest = &bytes[start..];
    sixteen[..rest.len()].copy_from_slice(rest);
    u128::from_le_bytes(sixteen)
}

impl WordCache {
    /// Which line a key belongs to.
    #[inline]
    #[must_use]
    pub fn line(key: Key) -> u32 {
        let mixed = key[0].wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ key[1].wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        (mixed.wrapping_mul(0x1656_67B1_9E37_79F9) >> (64 - LINES.trailing_zeros())) as u32
    }

    /// Asks the processor for a line that will be needed soon.
    #[inline]
    pub fn prefetch(&self, line: u32) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = std::ptr::from_ref(&self.lines[line as usize & (LINES - 1)]).cast::<i8>();
            // SAFETY: a prefetch reads nothing that the program sees, and the address is that of a live element.
            unsafe { _mm_prefetch(address, _MM_HINT_T0) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }

    /// The ids of a word (only the first `n` count, `1 <= n <= 4`) and `n`; `None` for a line beyond the last.
    #[inline]
    pub fn get(&mut self, line: u32, key: Key) -> Option<([u32; 4], u32)> {
        let line = self.lines.get_mut(line as usize)?;
        let mut ids = line.ids[0];
        if line.keys[0] != key {
            if line.keys[1] != key {
                return None;
            }
            // The word in front is the one that stays when a new one comes.
            line.keys.swap(0, 1);
            line.ids.swap(0, 1);
            ids = line.ids[0];
        }
        let count = ids[0] >> 28;
        ids[0] &= (1 << 28) - 1;
        Some((ids, count))
    }

    /// Remembers the ids of a word, if there are at most four.
    pub fn insert(&mut self, line: u32, key: Key, ids: &[u32]) {
        if ids.is_empty() || ids.len() > 4 {
            return;
        }
        let mut four = [0; 4];
        four[..ids.len()].copy_from_slice(ids);
        four[0] |= (ids.len() as u32) << 28;
        let line = &mut self.lines[line as usize & (LINES - 1)];
        let way = usize::from(line.keys[0] != Key::default());
        line.keys[way] = key;
        line.ids[way] = four;
    }
}
