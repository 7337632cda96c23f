//! NFC, equal to the normaliser of the `tokenizers` crate, which is only asked about text that could change.

use std::ops::Range;

use super::unicode::{PageTable, decode};
use super::unicode_data::NFC_UNSTABLE;
use unicode_normalization_alignments::UnicodeNormalization;

/// Knows which code points NFC leaves alone wherever they stand.
#[derive(Debug)]
pub(crate) struct Nfc {
    unstable: PageTable,
}

/// A stretch of a text that NFC changed, and where its replacement lies in the new text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// In the old text.
    pub(crate) old: Range<usize>,
    /// In the new text.
    pub(crate) new: Range<usize>,
}

impl Default for Nfc {
    fn default() -> Self {
        Self { unstable: PageTable::ranges(&NFC_UNSTABLE) }
    }
}

/// The first byte of U+0300, below which all characters are stable.
const ODD: u8 = 0xCC;

/// Whether an unstable character may start with these three bytes, of which the last two need not belong to it: not below
/// U+0300; nor from U+0400 to U+047F, which is Cyrillic (`D0`, `D1`); nor where nearly all of Han and all syllables of
/// Hangul are, U+4000 to U+9FFF (`E4` to `E9`) and U+AC00 to U+D7FF (`EA B0` to `ED`); nor among kana and the signs around
/// them, quotation marks and full-width forms, but for a few. A test asks the table about every character.
#[allow(clippy::needless_bitwise_bool)] // without branches the processor asks about many at a time
#[inline]
fn suspect(first: u8, second: u8, third: u8) -> bool {
    let among = |byte: u8, low: u8, high: u8| byte.wrapping_sub(low) <= high - low;
    let asian = among(first, 0xE4, 0xED) & !((first == 0xEA) & (second < 0xB0));
    let odd = (first >= ODD) & (first & 0xFE != 0xD0) & !asian;
    let kana = (first == 0xE3)
        & !((second == 0x80) & among(third, 0xAA, 0xAF))
        & !((second == 0x82) & among(third, 0x99, 0x9A));
    let marks = (first == 0xE2) & (second == 0x80) & (third >= 0x82);
    let forms = (first == 0xEF) & (second >= 0xBC);
    odd & !(kana | marks | forms)
}

impl Nfc {
    /// First unstable character at or after `from`.
    fn unstable(&self, bytes: &[u8], mut from: usize) -> Option<usize> {
        const BLOCK: usize = 32;
        while from < bytes.len() {
            // Two bytes more than are asked about, where they are there.
            let block = bytes.get(from..from + BLOCK + 2).unwrap_or(&bytes[from..]);
            if block.len() == BLOCK + 2 {
                let of = |k: usize| &block[k..k + BLOCK];
                let all = of(0).iter().zip(of(1)).zip(of(2));
                let is_plain = of(0).iter().fold(0, |most: u8, &byte| most.max(byte)) < ODD;
                if is_plain || !all.fold(false, |any, ((&first, &second), &third)| any | suspect(first, second, third))
                {
                    from += BLOCK;
                    continue;
                }
            }
            let byte = |k: usize| bytes.get(k).copied().unwrap_or_default();
            let end = (from + BLOCK).min(bytes.len());
            let Some(found) = (from..end).find(|&k| suspect(byte(k), byte(k + 1), byte(k + 2))) else {
                from = end;
                continue;
            };
            let (c, len) = decode(bytes, found);
            if self.unstable.get(c) != 0 {
                return Some(found);
            }
            from = found + len;
        }
        None
    }

    /// The normal form of `text` and what changed, or `None` if `text` is in normal form already.
    ///
    /// A stable character has no combining class, composes with nothing before it and is its own normal form, so text
    /// may be cut before it: only the stretch from the stable character before an unstable one to the next stable one
    /// is handed to the normaliser.
    #[must_use]
    pub(crate) fn apply(&self, text: &str) -> Option<(String, Vec<Change>)> {
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
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes);
            assert!(suspect(bytes[0], bytes[1], bytes[2]) || nfc.unstable.get(c as u32) == 0, "U+{:04X}", c as u32);
        }
    }
}
