//! Places inside a word that no merge can reach across: there the word falls into pieces that are encoded one by one.
//!
//! Why this is exact. Whatever a merge makes is the product of a rule, and every product is a token of the vocabulary. If
//! no token holds the border between two characters in its inside, no merge ever joins across that border, so what
//! happens on one side never changes a pair on the other. The next merge on a side is then the lowest rank of that side,
//! leftmost first, as if it stood alone; the encoding of the word is that of its pieces in a row.
//!
//! Whether a border is inside a token is asked by the two characters that meet there. A pair that stands in some token
//! but not in a reachable one, or that shares a bit with one that does, only means a cut that is not taken. A word that is itself a token is never cut, so the
//! look-up of whole words (`ignore_merges`) sees the words it would have seen.
//!
//! This is what makes text without spaces fast: most words of Chinese meet at such a border, and pieces of one to four
//! characters recur, where sentences do not.

use super::pages::Pages;
use super::tables::{Tables, only_char};
use super::unicode::{decode, decode_wide_inside};

const EMPTY: u64 = u64::MAX;
/// What a pair is encoded as: an id, or one of these.
const UNKNOWN: u32 = u32::MAX - 1;
const APART: u32 = u32::MAX - 2;
/// A character that is not known to be one token.
const NO_ID: u32 = u32::MAX;
const NEAR_BITS: u32 = 20;
/// No character.
const NOTHING: u32 = u32::MAX;

/// Some characters of a word: all borders between them are asked about before the first piece is given away, without a
/// branch that depends on the text. Working memory; `chars[0]` is the one before `starts[0]`.
#[derive(Debug)]
pub(crate) struct Borders {
    chars: [u32; 65],
    starts: [usize; 64],
}

impl Default for Borders {
    fn default() -> Self {
        Self { chars: [NOTHING; 65], starts: [0; 64] }
    }
}

/// Pairs of characters that stand side by side in some token, and what they and single characters are encoded as.
#[derive(Debug)]
pub(crate) struct Cuts {
    /// Open addressing, at most half full: `left << 48 | right << 32 | value`. Only pairs of the basic plane that are not
    /// both ASCII; beside others nothing is cut.
    slots: Pages<u64>,
    shift: u32,
    /// A bit for the hash of each of those pairs: most borders are told from this part of memory alone, which stays near.
    near: Box<[u64; 1 << (NEAR_BITS - 6)]>,
    /// Bit `last byte << 8 | first byte`: some token holds a border between two characters with these bytes beside it,
    /// and not the whole of both characters.
    broken: Box<[u64; 1 << 10]>,
    /// Id of each character of the basic plane whose bytes alone merge to one token, or [`NO_ID`].
    single: Box<[u32; 0x1_0000]>,
}

impl Cuts {
    /// Reads all tokens of the vocabulary. `merge` appends the encoding of a word by the rules alone.
    pub(crate) fn new(tables: &Tables, mut merge: impl FnMut(&[u8], &mut Vec<u32>)) -> Self {
        let mut broken = Box::new([0u64; 1 << 10]);
        let mut pairs = Vec::new();
        for id in 0..tables.num_ids() as u32 {
            borders(tables.token(id), |found| match found {
                Border::Whole(left, right) => pairs.extend(pair(left.into(), right.into())),
                Border::Broken(last, first) => {
                    let bit = usize::from(last) << 8 | usize::from(first);
                    broken[bit / 64] |= 1 << (bit % 64);
                }
            });
        }
        pairs.sort_unstable();
        pairs.dedup();
        let size = (pairs.len().max(32) * 2).next_power_of_two();
        #[allow(clippy::large_stack_arrays)] // boxed at once
        let mut single = Box::new([NO_ID; 0x1_0000]);
        for (c, id) in (0u32..).zip(single.iter_mut()) {
            *id = char::from_u32(c).and_then(|c| tables.single(c)).unwrap_or(NO_ID);
        }
        #[allow(clippy::large_stack_arrays)] // boxed at once
        let near = Box::new([0; 1 << (NEAR_BITS - 6)]);
        let mut cuts =
            Self { slots: Pages::filled(EMPTY, size), shift: 64 - size.trailing_zeros(), near, broken, single };
        let (mut text, mut ids) = (String::new(), Vec::new());
        for key in pairs {
            let (left, right) = (key >> 16, key & 0xFFFF);
            text.clear();
            text.extend([left, right].iter().filter_map(|&c| char::from_u32(c)));
            ids.clear();
            merge(text.as_bytes(), &mut ids);
            let value = match *ids.as_slice() {
                [id] => id,
                [a, b] if [a, b] == [cuts.single[left as usize], cuts.single[right as usize]] => APART,
                _ => UNKNOWN,
            };
            let mut slot = cuts.slot(key);
            while cuts.slots[slot] != EMPTY {
                slot = (slot + 1) & (size - 1);
            }
            cuts.slots[slot] = u64::from(key) << 32 | u64::from(value);
            let bit = hash(key) >> (64 - NEAR_BITS);
            cuts.near[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        cuts
    }

    #[inline]
    fn slot(&self, key: u32) -> usize {
        (hash(key) >> self.shift) as usize
    }

    /// Whether no merge joins two neighbours; `last` and `first` are the bytes that meet.
    #[inline]
    fn are_apart(&self, left: u32, right: u32, last: u8, first: u8) -> bool {
        let both = left | right;
        let bit = hash(left << 16 | right & 0xFFFF) >> (64 - NEAR_BITS);
        let near = self.near[(bit / 64) as usize] >> (bit % 64);
        let bit = usize::from(last) << 8 | usize::from(first);
        let broken = self.broken[bit / 64] >> (bit % 64);
        // Not `&&`: a branch here would be guessed wrong half of the time.
        ((near | broken) & 1 == 0) & may_cut(both)
    }

    /// The value of a pair that stands in the table.
    #[inline]
    fn known(&self, key: u32) -> Option<u32> {
        let mut i = self.slot(key);
        loop {
            // SAFETY: `slot` gives an index, as its shift leaves the bits of one, and the mask keeps it one.
            let slot = unsafe { *self.slots.get_unchecked(i) };
            if (slot >> 32) as u32 == key {
                return Some(slot as u32);
            }
            if slot == EMPTY {
                return None;
            }
            i = (i + 1) & (self.slots.len() - 1);
        }
    }

    /// Calls `found` with start and end of each piece of `bytes[start..end]`, in order, and with the ids of a piece of one
    /// or two characters and their number, if they are known.
    #[inline]
    pub(crate) fn pieces(
        &self,
        bytes: &[u8],
        start: usize,
        end: usize,
        Borders { chars, starts }: &mut Borders,
        mut found: impl FnMut(usize, usize, Option<([u32; 2], u32)>),
    ) {
        let limit = bytes.len().saturating_sub(3);
        // Where the piece starts that is not yet given away, its first character, and how many it has.
        let (mut from, mut first, mut count) = (start, NOTHING, 0);
        let mut at = start;
        chars[0] = NOTHING;
        while at < end {
            let mut len = 0;
            while len < starts.len() && at < end {
                starts[len] = at;
                // SAFETY: `at < limit` says that four bytes are there.
                let wide = (at < limit).then(|| unsafe { decode_wide_inside(bytes, at) }).flatten();
                let (c, bytes) = wide.map_or_else(|| decode(bytes, at), |c| (c.into(), 3));
                at += bytes;
                len += 1;
                chars[len] = c;
            }
            let mut apart = 0;
            for (i, &start) in starts[..len].iter().enumerate() {
                let (last, next) = (bytes[start.max(1) - 1], bytes[start]);
                apart |= u64::from(self.are_apart(chars[i], chars[i + 1], last, next)) << i;
            }
            let mut done = 0;
            if first == NOTHING {
                first = chars[1];
            }
            while apart != 0 {
                let i = apart.trailing_zeros() as usize;
                apart &= apart - 1;
                found(from, starts[i], self.direct(count + i - done, first, chars[i]));
                (from, first, count, done) = (starts[i], chars[i + 1], 0, i);
            }
            count += len - done;
            chars[0] = chars[len];
        }
        found(from, end, self.direct(count, first, chars[0]));
    }

    /// The ids of a piece of `count` characters, if they are known.
    #[inline]
    fn direct(&self, count: usize, first: u32, last: u32) -> Option<([u32; 2], u32)> {
        let single = |c: u32| self.single.get(c as usize).copied().unwrap_or(NO_ID);
        let (ids, count) = match count {
            1 => ([single(first), 0], 1),
            2 => match pair(first, last).and_then(|key| self.known(key))? {
                UNKNOWN => return None,
                APART => ([single(first), single(last)], 2),
                id => ([id, 0], 1),
            },
            _ => return None,
        };
        (ids[0] != NO_ID).then_some((ids, count))
    }
}

#[inline]
fn hash(key: u32) -> u64 {
    u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Whether anything is known of two characters, by all their bits: both in the basic plane, and not both ASCII.
#[inline]
fn may_cut(both: u32) -> bool {
    (0x80..0x1_0000).contains(&both)
}

/// `left << 16 | right` of a pair that may be cut.
#[inline]
fn pair(left: u32, right: u32) -> Option<u32> {
    may_cut(left | right).then_some(left << 16 | right)
}

/// The inside of a token between two characters, by the characters or by the bytes that meet.
enum Border {
    Whole(char, char),
    Broken(u8, u8),
}

/// Calls `found` with every border between characters inside a token.
fn borders(token: &[u8], mut found: impl FnMut(Border)) {
    if token.is_ascii() {
        return;
    }
    for at in 1..token.len() {
        let first = token[at];
        if first & 0xC0 == 0x80 || (first | token[at - 1]) < 0x80 {
            continue;
        }
        let lead = (at.saturating_sub(4)..at).rev().find(|&i| token[i] & 0xC0 != 0x80);
        let left = lead.and_then(|lead| std::str::from_utf8(&token[lead..at]).ok()).and_then(only_char);
        let len = 1 + token[at + 1..].iter().take(3).take_while(|&&b| b & 0xC0 == 0x80).count();
        let right = std::str::from_utf8(&token[at..at + len]).ok().and_then(only_char);
        found(match (left, right) {
            (Some(left), Some(right)) => Border::Whole(left, right),
            _ => Border::Broken(token[at - 1], first),
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::merge::{MergeScratch, encode_piece};
    use super::super::tables::Vocab;
    use super::*;

    /// All bytes, and rules picked at random among the neighbours in a text; `seed` picks the order of their ranks.
    pub(crate) fn random_tables(text: &str, seed: u64, mut draw: impl FnMut(usize) -> usize) -> Tables {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
        let mut vocab = Vocab::with_capacity(2000, 8000);
        for (id, token) in (0..).zip(&tokens) {
            assert!(vocab.insert(token, id));
        }
        let mut merges = Vec::new();
        for _ in 0..20_000 {
            if tokens.len() == 900 {
                break;
            }
            let at = draw(text.len() - 8);
            let (len, split) = (2 + draw(6), 1 + draw(5));
            let bytes = &text.as_bytes()[at..at + len];
            let halves = (split < len).then(|| bytes.split_at(split));
            let ids = halves.and_then(|(left, right)| Some((vocab.get(left)?, vocab.get(right)?)));
            let Some((left, right)) = ids else { continue };
            let id = vocab.get(bytes).unwrap_or(tokens.len() as u32);
            if vocab.insert(bytes, id) {
                tokens.push(bytes.to_vec());
            }
            merges.push((left, right, id));
        }
        for i in (1..merges.len()).rev().filter(|_| seed % 2 == 1) {
            merges.swap(i, draw(i + 1));
        }
        Tables::new(vocab, &merges, false, false).unwrap()
    }

    #[test]
    fn pieces_give_the_ids_of_the_whole_for_any_rules() {
        let text = "中文分词是自然语言处理的基础。日本語の文章を分けます。한국어 문장도 naïve café — «мир» 𠮷野家 👩‍👧 plain ASCII ";
        let chars: Vec<char> = text.chars().collect();
        let (mut cuts_made, mut direct) = (0, 0);
        for seed in 0..60u64 {
            let mut state = seed;
            let mut draw = |below: usize| {
                state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                (state >> 33) as usize % below
            };
            let tables = random_tables(text, seed, &mut draw);
            let mut scratch = MergeScratch::default();
            let cuts = Cuts::new(&tables, |word, ids| encode_piece(&tables, word, &mut scratch, ids));
            for round in 0..200 {
                // Now and then longer than a block.
                let most = if round % 20 == 0 { 200 } else { 12 };
                let word: String = (0..=draw(most)).map(|_| chars[draw(chars.len())]).collect();
                let (mut whole, mut parts, mut at) = (Vec::new(), Vec::new(), 0);
                encode_piece(&tables, word.as_bytes(), &mut scratch, &mut whole);
                cuts.pieces(word.as_bytes(), 0, word.len(), &mut Borders::default(), |from, to, ids| {
                    assert_eq!(from, at);
                    at = to;
                    if let Some((ids, count)) = ids {
                        direct += 1;
                        parts.extend_from_slice(&ids[..count as usize]);
                    } else {
                        encode_piece(&tables, &word.as_bytes()[from..to], &mut scratch, &mut parts);
                    }
                    cuts_made += usize::from(to < word.len());
                });
                assert_eq!((at, &parts), (word.len(), &whole), "seed {seed}: {word:?}");
            }
        }
        assert!(cuts_made > 10_000 && direct > 5000, "{cuts_made} cuts, {direct} direct");
    }
}
