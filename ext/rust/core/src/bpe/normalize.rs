//! NFC, equal to the normaliser of the `tokenizers` crate, which is only asked about text that could change.

use std::ops::Range;

use super::unicode::{PageTable, decode};
use super::unicode_data::NFC_UNSTABLE;
use unicode_normalization_alignments::UnicodeNormalization;

/// Knows which code points NFC leaves alone wherever they stand.
#[derive(Debug)]
pub struct Nfc {
    unstable: PageTable,
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
        Self { unstable: PageTable::ranges(&NFC_UNSTABLE) }
    }
}

impl Nfc {
    /// First unstable character at or after `from`. Everything below U+0300 is stable, and U+0300 is `CC 80`.
    fn unstable(&self, bytes: &[u8], mut from: usize) -> Option<usize> {
        loop {
            // Eight bytes at a time: a byte >= 0xCC is 11 and then 1x, x1 or 0011.
            while let Some(eight) = bytes.get(from..from + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()) {
                let word = u64::from_le_bytes(eight);
                let rest = word << 2 | word << 3 | (word << 4 & word << 5);
                if word & (word << 1) & rest & 0x8080_8080_8080_8080 != 0 {
                    break;
                }
                from += 8;
            }
            let byte = *bytes.get(from)?;
            if byte < 0xCC {
                from += 1;
                continue;
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
