//! NFC, equal to the normaliser of the `tokenizers` crate, which is only asked about text that could change.

use std::ops::Range;

use super::unicode::{PageTable, decode, decode_wide_inside};
use super::unicode_data::NFC_UNSTABLE;
use unicode_normalization_alignments::UnicodeNormalization;

/// Knows which code points NFC leaves alone wherever they stand.
#[derive(Debug)]
pub struct Nfc {
    unstable: PageTable,
    /// The same for the basic plane, a bit each.
    plane: Box<[u64; 1 << 10]>,
}

/// A stretch of a text that NFC changed, and where its replacement lies in the new text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// In the old text.
    pub old: Range<usize>,
    /// In the new text.
    pub new: Range<usize>,
}

impl Default for Nfc {
    fn default() -> Self {
        let unstable = PageTable::ranges(&NFC_UNSTABLE);
        let mut plane = Box::new([0u64; 1 << 10]);
        for c in 0..0x1_0000 {
            plane[c / 64] |= u64::from(unstable.get(c as u32) != 0) << (c % 64);
        }
        Self { unstable, plane }
    }
}

/// Whether an unstable character may start with this byte: not below U+0300, nor where nearly all of Han and Hangul are,
/// U+4000 to U+9FFF (`E4` to `E9`) and U+B000 to U+CFFF (`EB`, `EC`). A test asks the table about every character.
#[inline]
fn suspect(byte: u8) -> bool {
    byte >= 0xCC && (byte.wrapping_sub(0xE4) > 8 || byte == 0xEA)
}

impl Nfc {
    /// First unstable character at or after `from`. Everything below U+0300 is stable, and U+0300 is `CC 80`.
    fn unstable(&self, bytes: &[u8], mut from: usize) -> Option<usize> {
        let limit = bytes.len().saturating_sub(3);
        loop {
            while let Some(block) = bytes.get(from..from + 32) {
                if block.iter().fold(false, |any, &byte| any | suspect(byte)) {
                    break;
                }
                from += 32;
            }
            let rest = &bytes[from..];
            let found = rest.iter().take(32).position(|&byte| suspect(byte));
            let Some(found) = found else {
                if rest.len() <= 32 {
                    return None;
                }
                from += 32;
                continue;
            };
            from += found;
            // Kana and full-width forms are all suspect: where one stands, its neighbours are asked one by one.
            // SAFETY: `from < limit` says that four bytes are there.
            while let Some(c) = (from < limit).then(|| unsafe { decode_wide_inside(bytes, from) }).flatten() {
                if self.plane[usize::from(c) / 64] >> (c % 64) & 1 != 0 {
                    return Some(from);
                }
                from += 3;
            }
            if from >= bytes.len() {
                return None;
            }
            let (c, len) = decode(bytes, from);
            if self.unstable.get(c) != 0 {
                return Some(from);
            }
            from += len;
        }
    }

    /// The normal form of `text` and what changed, or `None` if `text` is in normal form already.
    ///
    /// A stable character has no combining class, composes with nothing before it and is its own normal form, so text
    /// may be cut before it: only the stretch from the stable character before an unstable one to the next stable one
    /// is handed to the normaliser.
    #[must_use]
    pub fn apply(&self, text: &str) -> Option<(String, Vec<Change>)> {
        let bytes = text.as_bytes();
        let (mut out, mut changes) = (String::new(), Vec::new());
        let (mut done, mut from) = (0, 0);
        while let Some(found) = self.unstable(bytes, from) {
            let start = text[..found].char_indices().next_back().map_or(0, |(i, _)| i).max(done);
            let mut end = found;
            while let Some(c) = text[end..].chars().next().filter(|&c| self.unstable.get(c as u32) != 0) {
                end += c.len_utf8();
            }
            from = end;
            let normal: String = text[start..end].nfc().map(|(c, _)| c).collect();
            if normal != text[start..end] {
                out.push_str(&text[done..start]);
                let at = out.len();
                out.push_str(&normal);
                changes.push(Change { old: start..end, new: at..out.len() });
                done = end;
            }
        }
        if changes.is_empty() {
            return None;
        }
        out.push_str(&text[done..]);
        Some((out, changes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_that_is_passed_over_is_unstable() {
        let nfc = Nfc::default();
        for c in (0..0x11_0000).filter_map(char::from_u32) {
            let lead = c.encode_utf8(&mut [0; 4]).as_bytes()[0];
            assert!(suspect(lead) || nfc.unstable.get(c as u32) == 0, "U+{:04X}", c as u32);
        }
    }
}
