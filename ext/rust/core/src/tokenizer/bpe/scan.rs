//! Words of a text, one character at a time: the plain reading of each regex, and the judge of the fast scanner.
//!
//! A scanner answers one question: given that a match starts at byte `i`, where does it end? Every regex here matches at
//! every position where its predecessor ended (`DeepSeek`'s gaps count as matches), so a text is scanned by asking again.

use super::pattern::{
    Pattern,
    class::{
        CASELESS, CUT, HAN, HAN_OTHER, HAN_SIGN, HANS, LETTERS, LOWER, MARK, NEWLINE, NUMBER, OTHER, PUNCTUATION,
        SIGNS, SPACE, SPACES, UPPER,
    },
};
use super::unicode::{PageTable, decode, decode_wide, decode_wide_inside};

/// A pattern with its table of classes.
#[derive(Debug)]
pub struct Scanner {
    pattern: Pattern,
    table: PageTable,
    ascii: [u16; 128],
    /// The table once more for the basic plane, flat.
    plane: Box<[u8; 0x1_0000]>,
    /// Whether the processor can run `blocks`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    has_masks: bool,
}

/// A text, up to the end of the piece that is scanned.
#[derive(Clone, Copy)]
struct Text<'a> {
    scanner: &'a Scanner,
    bytes: &'a [u8],
}

impl Text<'_> {
    /// Class of the character at `i` and where the next one starts; the end of the text is a [`CUT`] of no width.
    #[inline]
    fn class(self, i: usize) -> (u16, usize) {
        match self.bytes.get(i) {
            None => (CUT, i),
            Some(&byte) if byte < 0x80 => (self.scanner.ascii[usize::from(byte)], i + 1),
            Some(_) => {
                if let Some(c) = decode_wide(self.bytes, i) {
                    return (1 << self.scanner.plane[usize::from(c)], i + 3);
                }
                let (c, len) = decode(self.bytes, i);
                (1 << self.scanner.table.get(c), i + len)
            }
        }
    }

    fn is(self, i: usize, set: u16) -> bool {
        self.class(i).0 & set != 0
    }

    /// End of the run of characters of `set` that starts at `i`; `i` itself if there is none.
    #[inline]
    fn run(self, mut i: usize, set: u16) -> usize {
        let limit = self.bytes.len().saturating_sub(3);
        loop {
            while let Some(&byte) = self.bytes.get(i).filter(|&&byte| byte < 0x80) {
                if self.scanner.ascii[usize::from(byte)] & set == 0 {
                    return i;
                }
                i += 1;
            }
            // SAFETY: `i < limit` says that four bytes are there.
            while let Some(c) = (i < limit).then(|| unsafe { decode_wide_inside(self.bytes, i) }).flatten() {
                if 1 << self.scanner.plane[usize::from(c)] & set == 0 {
                    return i;
                }
                i += 3;
            }
            let (class, next) = self.class(i);
            if class & set == 0 || next == i {
                return i;
            }
            i = next;
        }
    }

    /// The end of a run of at most `limit` characters of the classes in `set`, from byte `i`.
    fn run_at_most(self, mut i: usize, set: u16, limit: u8) -> usize {
        for _ in 0..limit {
            let (class, next) = self.class(i);
            if class & set == 0 {
                break;
            }
            i = next;
        }
        i
    }

    /// End of `'s|'t|'re|'ve|'m|'ll|'d` at `i`, or `None`. Without case, U+017F folds to `s`.
    fn contraction(self, i: usize, any_case: bool) -> Option<usize> {
        let rest = self.bytes.get(i..)?;
        if rest.first() != Some(&b'\'') {
            return None;
        }
        let fold = |k: usize| rest.get(k).map(|b| if any_case { b.to_ascii_lowercase() } else { *b });
        match (fold(1)?, fold(2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(i + 2),
            (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(i + 3),
            (0xC5, Some(0xBF)) if any_case => Some(i + 3),
            _ => None,
        }
    }

    /// `\s+(?!\S)|\s+` at `i`, and before them `\s*[\r\n]+` where the pattern has it.
    fn spaces(self, i: usize, newlines: bool) -> usize {
        let (mut end, mut last, mut after_newline) = (i, i, i);
        loop {
            let (class, next) = self.class(end);
            if class & SPACES == 0 {
                // `(?!\S)` holds at the end of the piece; elsewhere the run gives back its last character, if it can.
                let whole = next == end || class & (CUT | HANS) != 0 || self.cut_number(class) || last == i;
                return match (newlines && after_newline > i, whole) {
                    (true, _) => after_newline,
                    (false, true) => end,
                    (false, false) => last,
                };
            }
            last = end;
            end = next;
            if class & NEWLINE != 0 {
                after_newline = end;
            }
        }
    }

    /// Whether numbers were cut out before this scanner sees the text.
    fn cut_number(self, class: u16) -> bool {
        self.scanner.pattern == Pattern::DeepSeek3 && class & NUMBER != 0
    }

    fn gpt2(self, i: usize) -> usize {
        let (first, next) = self.class(i);
        if first & CUT != 0 {
            return next;
        }
        if let Some(end) = self.contraction(i, false) {
            return end;
        }
        let start = if first & SPACE != 0 { next } else { i };
        for set in [LETTERS, NUMBER, SIGNS] {
            if self.is(start, set) {
                return self.run(start, set);
            }
        }
        self.spaces(i, false)
    }

    fn cl100k(self, i: usize, digits: u8, marks: bool) -> usize {
        let (letters, signs) = if marks { (LETTERS | MARK, SIGNS & !MARK) } else { (LETTERS, SIGNS) };
        if let Some(end) = self.contraction(i, true) {
            return end;
        }
        let (first, next) = self.class(i);
        if first & letters != 0 {
            return self.run(next, letters);
        }
        if first & NUMBER != 0 {
            return self.run_at_most(i, NUMBER, digits);
        }
        if first & NEWLINE == 0 && self.is(next, letters) {
            return self.run(next, letters);
        }
        let start = if first & SPACE != 0 { next } else { i };
        if self.is(start, signs) {
            return self.run(self.run(start, signs), NEWLINE);
        }
        self.spaces(i, true)
    }

    /// `[UPPER CASELESS MARK]*[LOWER CASELESS MARK]+` at `i`, or `None`.
    fn mixed_word(self, i: usize) -> Option<usize> {
        let (mut end, mut backed_off) = (i, None);
        loop {
            let (class, next) = self.class(end);
            if class & (UPPER | CASELESS | MARK) == 0 {
                break;
            }
            end = next;
            if class & (CASELESS | MARK) != 0 {
                backed_off = Some(end);
            }
        }
        let lower = self.run(end, LOWER | CASELESS | MARK);
        // With nothing lower after the first run, it gives back up to its last character that the second run takes.
        if lower > end { Some(lower) } else { backed_off }
    }

    fn o200k(self, i: usize, digits: u8, contractions: bool) -> usize {
        let (first, next) = self.class(i);
        let prefix = (first & (LETTERS | NUMBER | NEWLINE) == 0).then_some(next);
        let mixed = prefix.and_then(|start| self.mixed_word(start)).or_else(|| self.mixed_word(i));
        let upper = |start: usize| Some(self.run(start, UPPER | CASELESS | MARK)).filter(|&end| end > start);
        if let Some(end) = mixed.or_else(|| prefix.and_then(upper)).or_else(|| upper(i)) {
            return if contractions { self.contraction(end, true).unwrap_or(end) } else { end };
        }
        if first & NUMBER != 0 {
            return self.run_at_most(i, NUMBER, digits);
        }
        let start = if first & SPACE != 0 { next } else { i };
        if self.is(start, SIGNS) {
            let mut end = self.run(start, SIGNS);
            while matches!(self.bytes.get(end), Some(b'\r' | b'\n' | b'/')) {
                end += 1;
            }
            return end;
        }
        self.spaces(i, true)
    }

    /// A match of `DeepSeek`'s third split at `i`, or `None`.
    fn deepseek_match(self, i: usize) -> Option<usize> {
        let (first, next) = self.class(i);
        let letters = LETTERS | MARK;
        if self.bytes[i].is_ascii_punctuation() {
            let word = self.bytes[next..].iter().take_while(|b| b.is_ascii_alphabetic()).count();
            if word > 0 {
                return Some(next + word);
            }
        }
        if first & letters != 0 {
            return Some(self.run(next, letters));
        }
        if first & (NEWLINE | PUNCTUATION) == 0 && self.is(next, letters) {
            return Some(self.run(next, letters));
        }
        let start = if first & SPACE != 0 { next } else { i };
        if self.is(start, PUNCTUATION) {
            return Some(self.run(self.run(start, PUNCTUATION), NEWLINE));
        }
        (first & SPACES != 0).then(|| self.spaces(i, true))
    }

    /// A match of the third split at `i` inside what the second cut out, or a gap between two.
    fn deepseek_han(self, i: usize, first: u16, next: usize) -> usize {
        if first & HAN_OTHER == 0 {
            return self.run(i, if first & HAN != 0 { HAN } else { HAN_SIGN });
        }
        if self.is(next, HAN) {
            return self.run(next, HAN);
        }
        let mut end = next;
        while self.is(end, HAN_OTHER) && !self.is(self.class(end).1, HAN) {
            end = self.class(end).1;
        }
        end
    }

    fn deepseek(self, i: usize) -> usize {
        let (first, next) = self.class(i);
        if first & NUMBER != 0 {
            return self.run_at_most(i, NUMBER, 3);
        }
        if first & HANS != 0 {
            return self.deepseek_han(i, first, next);
        }
        if let Some(end) = self.deepseek_match(i) {
            return end;
        }
        // What no alternative matches stays together up to the next match.
        let mut end = next;
        while self.is(end, OTHER) && self.deepseek_match(end).is_none() {
            end = self.class(end).1;
        }
        end
    }
}

impl Scanner {
    /// The scanner of a pattern.
    #[must_use]
    pub fn new(pattern: Pattern) -> Self {
        let table = pattern.table();
        let mut ascii = [0; 128];
        for (c, class) in (0u32..).zip(&mut ascii) {
            *class = 1 << table.get(c);
        }
        #[allow(clippy::large_stack_arrays)] // boxed at once
        let mut plane = Box::new([0; 0x1_0000]);
        for (c, class) in (0u32..).zip(plane.iter_mut()) {
            *class = table.get(c);
        }
        #[cfg(target_arch = "x86_64")]
        let has_masks = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        #[cfg(not(target_arch = "x86_64"))]
        let has_masks = false;
        Self { pattern, table, ascii, plane, has_masks }
    }

    /// Whether the processor can run `blocks`.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) fn has_masks(&self) -> bool {
        self.has_masks
    }

    /// Class of the character at `i`.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn class(&self, bytes: &[u8], i: usize) -> u16 {
        Text { scanner: self, bytes }.class(i).0
    }

    /// Which pattern this is.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Where the word that starts at byte `i` ends. `text` ends where the piece ends; `i < text.len()`, and `i` is the
    /// start of the text or the end of an earlier word.
    #[inline]
    #[must_use]
    pub fn word_end(&self, text: &str, i: usize) -> usize {
        let text = Text { scanner: self, bytes: text.as_bytes() };
        match self.pattern {
            Pattern::Gpt2 { .. } => text.gpt2(i),
            Pattern::Cl100k { digits, marks } => text.cl100k(i, digits, marks),
            Pattern::O200k { digits, contractions } => text.o200k(i, digits, contractions),
            Pattern::DeepSeek3 => text.deepseek(i),
        }
    }

    /// Appends where words of `text` end, the first of which starts at `at`, until `ends` holds `enough` or more, or the
    /// text is done. Returns the last of them.
    #[inline]
    pub fn fill(&self, text: &str, mut at: usize, ends: &mut Vec<usize>, enough: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_masks {
            // SAFETY: the processor has these features; `has_masks` asked it.
            return unsafe { super::blocks::fill(self, text, at, ends, enough) };
        }
        while at < text.len() && ends.len() < enough {
            at = self.word_end(text, at);
            ends.push(at);
        }
        at
    }

    /// Appends where each word of `text` ends.
    pub fn ends(&self, text: &str, ends: &mut Vec<usize>) {
        let mut at = 0;
        while at < text.len() {
            at = self.fill(text, at, ends, ends.len() + 1024);
        }
    }

    /// Whether text may be cut at byte `i` without changing its words: a line break before, an ASCII letter after. No
    /// alternative of any pattern joins the two, whatever stands around them.
    pub fn is_seam(bytes: &[u8], i: usize) -> bool {
        i > 0 && matches!(bytes[i - 1], b'\n') && bytes.get(i).is_some_and(u8::is_ascii_alphabetic)
    }
}
