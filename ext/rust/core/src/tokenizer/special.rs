//! Special and other added tokens in a text: the one matcher for engines, templates, marks and look-alikes.
//!
//! What is found is the leftmost, and of those that start there the longest, as in the `tokenizers` crate. Engines also
//! follow the rules of the tokens themselves ([`SpecialMatcher::split`]).

use regex::Regex;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// A token that is found by its text.
#[derive(Debug, Clone)]
pub(crate) struct AddedToken {
    /// Its id.
    pub(crate) id: u32,
    /// The text it is found by.
    pub(crate) content: String,
    /// Matches only between characters that are not `\w`.
    pub(crate) single_word: bool,
    /// Swallows the white space before it.
    pub(crate) lstrip: bool,
    /// Swallows the white space after it.
    pub(crate) rstrip: bool,
}

/// A stretch of text: an added token (and the bytes it covers), or text to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stretch {
    /// An added token from byte to byte.
    Token(u32, usize, usize),
    /// Other text from byte to byte; not empty.
    Text(usize, usize),
}

/// Finds the leftmost, and of those the longest, token, again and again.
#[derive(Debug)]
pub(crate) struct SpecialMatcher {
    /// Sorted by content.
    tokens: Vec<AddedToken>,
    /// The trie of their contents. Edges of a node are sorted by byte.
    nodes: Vec<Node>,
    edges: Vec<(u8, u32)>,
    /// The node behind each first byte.
    roots: Box<[u32; 256]>,
    /// The distinct first bytes, if they are few enough to search for directly.
    needles: Vec<u8>,
    word: Option<Regex>,
}

/// A start of some contents.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Index of the token that it is all of, or [`NONE`]; without edges, of the only token that starts so.
    token: u32,
    /// Range of its edges.
    edges: (u32, u32),
}

const NONE: u32 = u32::MAX;
/// Nodes with more edges are searched by halves.
const FEW_EDGES: usize = 8;

impl SpecialMatcher {
    /// `tokens` have distinct, non-empty contents.
    #[must_use]
    pub(crate) fn new(mut tokens: Vec<AddedToken>) -> Self {
        tokens.sort_by(|a, b| a.content.cmp(&b.content));
        let mut needles: Vec<u8> = tokens.iter().map(|token| token.content.as_bytes()[0]).collect();
        needles.dedup();
        let (nodes, edges) = trie(&tokens);
        let mut roots = Box::new([NONE; 256]);
        for (byte, node) in &edges[..nodes[0].edges.1 as usize] {
            roots[usize::from(*byte)] = *node;
        }
        // The crate asks `\w` of the regex crate, so we do too; a tokenizer without such tokens need not compile it.
        let word = if tokens.iter().any(|token| token.single_word) { Regex::new(r"^\w").ok() } else { None };
        Self { tokens, nodes, edges, roots, needles, word }
    }

    /// Of tokens of which only the texts matter; empty ones and repeats are left out.
    pub(crate) fn of_texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        let texts: BTreeSet<&str> = texts.into_iter().filter(|text| !text.is_empty()).collect();
        let token = |text: &str| AddedToken {
            id: 0,
            content: text.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
        };
        Self::new(texts.into_iter().map(token).collect())
    }

    /// Whether what is found before and after a line break followed by a letter is the same when text is cut there.
    #[must_use]
    pub(crate) fn leaves_seams(&self) -> bool {
        self.tokens.iter().all(|token| !token.lstrip && !token.content.contains('\n'))
    }

    /// Each token in `text`, from byte to byte; they do not overlap.
    pub(crate) fn find_iter<'t>(&'t self, text: &'t str) -> impl Iterator<Item = Range<usize>> + 't {
        let mut from = 0;
        std::iter::from_fn(move || {
            let (start, token) = self.find(text.as_bytes(), from)?;
            from = start + token.content.len();
            Some(start..from)
        })
    }

    /// How long the longest token is that `text` starts with.
    #[must_use]
    pub(crate) fn length_at(&self, text: &str) -> Option<usize> {
        if text.is_empty() { None } else { self.longest_at(text.as_bytes(), 0).map(|token| token.content.len()) }
    }

    /// Whether a token starts where `text` does, or would if more text followed, or other white space than it ends with.
    #[must_use]
    pub(crate) fn may_start(&self, text: &str) -> bool {
        let begins = |start: &str| {
            let at = self.tokens.partition_point(|token| token.content.as_str() < start);
            self.tokens.get(at).is_some_and(|token| token.content.starts_with(start))
        };
        text.bytes().next().is_some_and(|byte| self.roots[usize::from(byte)] != NONE)
            && (self.length_at(text).is_some() || begins(text) || begins(text.trim_end()))
    }

    /// The next token that starts at byte `from` or later, and where.
    #[inline]
    fn find(&self, bytes: &[u8], mut from: usize) -> Option<(usize, &AddedToken)> {
        while let Some(at) = self.candidate(bytes, from) {
            if let Some(token) = self.longest_at(bytes, at) {
                return Some((at, token));
            }
            from = at + 1;
        }
        None
    }

    /// Next place at or after `from` where a token could start.
    fn candidate(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let rest = bytes.get(from..)?;
        let found = match *self.needles.as_slice() {
            [] => None,
            [a] => memchr::memchr(a, rest),
            [a, b] => memchr::memchr2(a, b, rest),
            [a, b, c] => memchr::memchr3(a, b, c, rest),
            _ => rest.iter().position(|&b| self.roots[usize::from(b)] != NONE),
        };
        found.map(|i| from + i)
    }

    /// The longest token at byte `i`.
    fn longest_at(&self, bytes: &[u8], i: usize) -> Option<&AddedToken> {
        let (mut node, mut longest) = (self.roots[usize::from(bytes[i])], NONE);
        let mut rest = &bytes[i + 1..];
        while let Some(Node { token, edges: (first, last) }) = self.nodes.get(node as usize).copied() {
            if first == last {
                let only = &self.tokens[token as usize];
                let depth = bytes.len() - i - rest.len();
                return if rest.starts_with(&only.content.as_bytes()[depth..]) {
                    Some(only)
                } else {
                    self.tokens.get(longest as usize)
                };
            }
            if token != NONE {
                longest = token;
            }
            let Some((byte, behind)) = rest.split_first() else { break };
            rest = behind;
            let edges = &self.edges[first as usize..last as usize];
            let edge = if edges.len() <= FEW_EDGES {
                edges.iter().find(|edge| edge.0 == *byte)
            } else {
                edges.binary_search_by_key(byte, |edge| edge.0).ok().map(|at| &edges[at])
            };
            node = edge.map_or(NONE, |edge| edge.1);
        }
        self.tokens.get(longest as usize)
    }

    fn is_word(&self, c: Option<char>) -> bool {
        let mut buffer = [0; 4];
        c.is_some_and(|c| self.word.as_ref().is_some_and(|word| word.is_match(c.encode_utf8(&mut buffer))))
    }

    /// Calls `visit` for each stretch of `text`, in order; together they cover it.
    pub(crate) fn split(&self, text: &str, mut visit: impl FnMut(Stretch)) {
        let bytes = text.as_bytes();
        let (mut done, mut from) = (0, 0);
        while let Some((mut start, token)) = self.find(bytes, from) {
            let mut end = start + token.content.len();
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

/// Nodes, the root first, and edges of the trie of `tokens`, which are sorted. Where one token is left there are no more
/// nodes, so that long contents cost no more than short ones.
fn trie(tokens: &[AddedToken]) -> (Vec<Node>, Vec<(u8, u32)>) {
    let empty = Node { token: NONE, edges: (0, 0) };
    let (mut nodes, mut edges) = (vec![empty], vec![]);
    // tokens from first to last are alike in their first bytes, as many as `depth`
    let mut open = VecDeque::from([(0, 0..tokens.len(), 0)]);
    while let Some((node, mut alike, depth)) = open.pop_front() {
        if depth > 0 && alike.len() == 1 {
            nodes[node] = Node { token: alike.start as u32, ..empty };
            continue;
        }
        let from = edges.len() as u32;
        let mut token = NONE;
        if !alike.is_empty() && tokens[alike.start].content.len() == depth {
            token = alike.start as u32;
            alike.start += 1;
        }
        let byte = |token: &AddedToken| token.content.as_bytes()[depth];
        for group in tokens[alike.clone()].chunk_by(|a, b| byte(a) == byte(b)) {
            edges.push((byte(&group[0]), nodes.len() as u32));
            open.push_back((nodes.len(), alike.start..alike.start + group.len(), depth + 1));
            nodes.push(empty);
            alike.start += group.len();
        }
        nodes[node] = Node { token, edges: (from, edges.len() as u32) };
    }
    (nodes, edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leftmost, then longest, by trying every token at every place.
    fn plain(contents: &[&str], text: &str) -> Vec<(u32, usize)> {
        let (mut out, mut at) = (vec![], 0);
        while at < text.len() {
            let found =
                (0..).zip(contents).filter(|(_, content)| text.as_bytes()[at..].starts_with(content.as_bytes()));
            if let Some((id, content)) = found.max_by_key(|(_, content)| content.len()) {
                out.push((id, at));
                at += content.len();
            } else {
                at += 1;
            }
        }
        out
    }

    #[test]
    fn the_trie_finds_what_trying_finds() {
        let long = "<".repeat(60_000);
        let longer = format!("{long}x");
        let sets: [&[&str]; 5] = [
            &["<|a|>", "<|ab|>", "<|a", "<b>", "</b>"],
            &["a"],
            &["a", "ab", "abcd", "b", "bc", "c", "é", "ê"],
            &["aa", "ab", "ac", "ad", "ae", "af", "ag", "ah", "ai", "aj", "ajk"],
            &[&long, &longer],
        ];
        for contents in sets {
            let tokens = (0..).zip(contents).map(|(id, content)| AddedToken {
                id,
                content: (*content).to_owned(),
                single_word: false,
                lstrip: false,
                rstrip: false,
            });
            let matcher = SpecialMatcher::new(tokens.collect());
            let mut seed = 3_u64;
            for _ in 0..2000 {
                let text: String = (0..seed % 12)
                    .map(|_| {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        ["<", "|", "a", "b", "c", "d", ">", "/", "é", "ê", "aj", "k", "<|a"][(seed >> 40) as usize % 13]
                    })
                    .collect();
                let mut found = vec![];
                matcher.split(&text, |stretch| {
                    if let Stretch::Token(id, start, _) = stretch {
                        found.push((id, start));
                    }
                });
                assert_eq!(found, plain(contents, &text), "{text:?}");
                assert!(matcher.find_iter(&text).map(|range| range.start).eq(found.iter().map(|token| token.1)));
                for (at, _) in text.char_indices() {
                    let rest = &text[at..];
                    let may = |content: &&str| rest.starts_with(*content) || content.starts_with(rest);
                    assert_eq!(matcher.may_start(rest), contents.iter().any(may), "{rest:?}");
                    let longest = contents.iter().filter(|content| rest.starts_with(**content)).map(|c| c.len()).max();
                    assert_eq!(matcher.length_at(rest), longest, "{rest:?}");
                }
                seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            }
        }
    }
}
