//! Added tokens: found in the text before anything else, by the rules of the `tokenizers` crate.

use regex::Regex;

/// One entry of `added_tokens`.
#[derive(Debug, Clone)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// The text it is found by.
    pub content: String,
    /// Matches only between characters that are not `\w`.
    pub single_word: bool,
    /// Swallows the white space before it.
    pub lstrip: bool,
    /// Swallows the white space after it.
    pub rstrip: bool,
}

/// A stretch of text: an added token (and the bytes it covers), or text to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// An added token from byte to byte.
    Token(u32, usize, usize),
    /// Other text from byte to byte; not empty.
    Text(usize, usize),
}

/// Finds the leftmost, and of those the longest, added token, again and again.
#[derive(Debug)]
pub struct Matcher {
    /// Sorted by content.
    tokens: Vec<AddedToken>,
    /// Range in `tokens` of those that start with each byte.
    by_byte: Vec<(u32, u32)>,
    /// A bit for each pair of bytes that some of them start with; a single byte starts with itself and any.
    by_two: Box<[u64; 1024]>,
    /// The distinct first bytes, if they are few enough to search for directly.
    needles: Vec<u8>,
    word: Option<Regex>,
}

/// A number for two bytes.
fn two(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}

impl Matcher {
    /// `tokens` have distinct, non-empty contents.
    #[must_use]
    pub fn new(mut tokens: Vec<AddedToken>) -> Self {
        let first = |token: &AddedToken| token.content.as_bytes()[0];
        tokens.sort_by(|a, b| a.content.cmp(&b.content));
        let mut by_byte = vec![(0, 0); 256];
        for (i, token) in (0u32..).zip(&tokens) {
            let range = &mut by_byte[usize::from(first(token))];
            *range = if range.1 == 0 { (i, i + 1) } else { (range.0, i + 1) };
        }
        let mut by_two = Box::new([0; 1024]);
        for token in &tokens {
            let bytes = token.content.as_bytes();
            let seconds = bytes.get(1).map_or(0..=u8::MAX, |second| *second..=*second);
            for second in seconds {
                let pair = two(bytes[0], second);
                by_two[pair / 64] |= 1 << (pair % 64);
            }
        }
        let mut needles: Vec<u8> = tokens.iter().map(first).collect();
        needles.dedup();
        // The crate asks `\w` of the regex crate, so we do too; a tokenizer without such tokens need not compile it.
        let word = if tokens.iter().any(|token| token.single_word) { Regex::new(r"^\w").ok() } else { None };
        Self { tokens, by_byte, by_two, needles, word }
    }

    /// Whether there is nothing to find.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether what is found before and after a line break followed by a letter is the same when text is cut there.
    #[must_use]
    pub fn leaves_seams(&self) -> bool {
        self.tokens.iter().all(|token| !token.lstrip && !token.content.contains('\n'))
    }

    /// Next place at or after `from` where a token could start.
    fn candidate(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let rest = bytes.get(from..)?;
        let found = match *self.needles.as_slice() {
            [] => None,
            [a] => memchr::memchr(a, rest),
            [a, b] => memchr::memchr2(a, b, rest),
            [a, b, c] => memchr::memchr3(a, b, c, rest),
            _ => rest.iter().position(|&b| self.by_byte[usize::from(b)].1 != 0),
        };
        found.map(|i| from + i)
    }

    /// Walks down the sorted contents as if they were a trie.
    fn longest_at(&self, bytes: &[u8], i: usize) -> Option<&AddedToken> {
        if let Some(second) = bytes.get(i + 1) {
            let pair = two(bytes[i], *second);
            if self.by_two[pair / 64] >> (pair % 64) & 1 == 0 {
                return None;
            }
        }
        let (first, last) = self.by_byte[usize::from(bytes[i])];
        let mut tokens = &self.tokens[first as usize..last as usize];
        let mut longest = None;
        for depth in 1.. {
            if let [token] = tokens {
                let rest = &token.content.as_bytes()[depth..];
                return if bytes[i + depth..].starts_with(rest) { Some(token) } else { longest };
            }
            if let Some((token, longer)) = tokens.split_first().filter(|(token, _)| token.content.len() == depth) {
                longest = Some(token);
                tokens = longer;
            }
            let Some(byte) = bytes.get(i + depth).filter(|_| !tokens.is_empty()) else { break };
            let at = |token: &AddedToken| token.content.as_bytes()[depth];
            let start = tokens.partition_point(|token| at(token) < *byte);
            let end = tokens.partition_point(|token| at(token) <= *byte);
            tokens = &tokens[start..end];
        }
        longest
    }

    fn is_word(&self, c: Option<char>) -> bool {
        let mut buffer = [0; 4];
        c.is_some_and(|c| self.word.as_ref().is_some_and(|word| word.is_match(c.encode_utf8(&mut buffer))))
    }

    /// Calls `visit` for each stretch of `text`, in order; together they cover it.
    pub fn split(&self, text: &str, mut visit: impl FnMut(Stretch)) {
        let bytes = text.as_bytes();
        let (mut done, mut from) = (0, 0);
        while let Some(i) = self.candidate(bytes, from) {
            let Some(token) = self.longest_at(bytes, i) else {
                from = i + 1;
                continue;
            };
            let (mut start, mut end) = (i, i + token.content.len());
            // A match that its own rules refuse is still passed over as a whole.
            from = end;
            if token.single_word
                && (self.is_word(text[..start].chars().next_back()) || self.is_word(text[end..].chars().next()))
            {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end += text[end..].len() - text[end..].trim_start().len();
            }
            if done < start {
                visit(Stretch::Text(done, start));
            }
            visit(Stretch::Token(token.id, start, end));
            done = end;
        }
        if done < bytes.len() {
            visit(Stretch::Text(done, bytes.len()));
        }
    }
}
