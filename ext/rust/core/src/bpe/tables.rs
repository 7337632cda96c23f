//! What the merge routines look up: token bytes, merge rules, and the characters that may be taken whole.

use super::Unsupported;

const NONE: u32 = u32::MAX;

/// Ids stay below this, so that a count fits above them in the word cache.
pub const MAX_ID: u32 = 1 << 28;

/// A merge rule, keyed by `left << 32 | right`.
#[derive(Debug, Clone, Copy)]
struct Rule {
    pair: u64,
    rank: u32,
    id: u32,
}

const EMPTY: Rule = Rule { pair: u64::MAX, rank: NONE, id: NONE };

/// Merge rules in an open-addressed table at most half full.
#[derive(Debug)]
struct Rules {
    slots: Vec<Rule>,
    shift: u32,
}

impl Rules {
    fn with_capacity(len: usize) -> Self {
        let size = (len.max(8) * 2).next_power_of_two();
        Self { slots: vec![EMPTY; size], shift: 64 - size.trailing_zeros() }
    }

    #[inline]
    fn slot(&self, pair: u64) -> usize {
        // Ids of neighbours in rank are neighbours too; the multiplication spreads them over the high bits.
        let mut i = ((pair ^ (pair >> 29)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while self.slots[i].pair != pair && self.slots[i].pair != u64::MAX {
            i = (i + 1) & (self.slots.len() - 1);
        }
        i
    }

    /// A later rule for the same pair replaces an earlier one, as in the crate.
    fn insert(&mut self, left: u32, right: u32, rank: u32, id: u32) {
        let pair = u64::from(left) << 32 | u64::from(right);
        let slot = self.slot(pair);
        self.slots[slot] = Rule { pair, rank, id };
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let rule = self.slots[self.slot(u64::from(left) << 32 | u64::from(right))];
        (rule.rank, rule.id)
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u32, u32, u32)> {
        let rules = self.slots.iter().filter(|rule| rule.pair != u64::MAX);
        rules.map(|rule| ((rule.pair >> 32) as u32, rule.pair as u32, rule.rank, rule.id))
    }
}

/// Token bytes -> id, open-addressed, keyed by the bytes in [`Vocab`].
#[derive(Debug)]
pub struct Vocab {
    /// All token bytes in a row.
    arena: Vec<u8>,
    /// Start and length in `arena` of each id's bytes; ids that are no byte-level token have length 0.
    spans: Vec<(u32, u32)>,
    slots: Vec<u32>,
}

impl Vocab {
    /// Room for `len` tokens of `bytes` bytes.
    pub fn with_capacity(len: usize, bytes: usize) -> Self {
        let size = (len.max(8) * 2).next_power_of_two();
        Self { arena: Vec::with_capacity(bytes), spans: Vec::with_capacity(len), slots: vec![NONE; size] }
    }

    #[inline]
    fn find(&self, token: &[u8]) -> usize {
        let mut i = xxhash_rust::xxh3::xxh3_64(token) as usize & (self.slots.len() - 1);
        while self.slots[i] != NONE && self.bytes(self.slots[i]) != token {
            i = (i + 1) & (self.slots.len() - 1);
        }
        i
    }

    /// Adds a token; `false` if its bytes or its id are taken.
    pub fn insert(&mut self, token: &[u8], id: u32) -> bool {
        let index = id as usize;
        if self.spans.len() <= index {
            self.spans.resize(index + 1, (0, 0));
        }
        let slot = self.find(token);
        if self.slots[slot] != NONE || self.spans[index].1 != 0 {
            return false;
        }
        self.spans[index] = (self.arena.len() as u32, token.len() as u32);
        self.arena.extend_from_slice(token);
        self.slots[slot] = id;
        true
    }

    /// The id of these bytes.
    #[inline]
    pub fn get(&self, token: &[u8]) -> Option<u32> {
        Some(self.slots[self.find(token)]).filter(|&id| id != NONE)
    }

    /// The bytes of a token; empty for an id that is none.
    #[inline]
    pub fn bytes(&self, id: u32) -> &[u8] {
        let (start, len) = self.spans[id as usize];
        &self.arena[start as usize..(start + len) as usize]
    }
}

/// The compiled model.
#[derive(Debug)]
pub struct Tables {
    vocab: Vocab,
    rules: Rules,
    byte_ids: [u32; 256],
    /// Some byte that text may hold has no token. The crate drops it without a trace, so we do.
    drops_bytes: bool,
    ignore_merges: bool,
    /// Id of each character of the basic plane that may be taken whole, or [`NONE`].
    characters: Vec<u32>,
}

impl Tables {
    /// `merges` are `(left, right, joined)` in rank order, all ids of `vocab`.
    /// `keeps_unknown`: bytes without a token would become something else than nothing.
    pub fn new(
        vocab: Vocab,
        merges: &[(u32, u32, u32)],
        ignore_merges: bool,
        keeps_unknown: bool,
    ) -> Result<Self, Unsupported> {
        let mut byte_ids = [NONE; 256];
        let mut drops_bytes = false;
        for (byte, id) in (0u8..=255).zip(&mut byte_ids) {
            // Bytes that occur in no UTF-8 text do not matter.
            match vocab.get(&[byte]) {
                Some(known) => *id = known,
                None if matches!(byte, 0xC0 | 0xC1 | 0xF5..) => {}
                None if keeps_unknown => {
                    return Err(Unsupported::new("vocab", format!("has no token for byte {byte:#04X}")));
                }
                None => drops_bytes = true,
            }
        }
        let mut rules = Rules::with_capacity(merges.len());
        for (rank, &(left, right, id)) in (0u32..).zip(merges) {
            rules.insert(left, right, rank, id);
        }
        let mut tables = Self { vocab, rules, byte_ids, drops_bytes, ignore_merges, characters: Vec::new() };
        tables.characters = tables.whole_characters();
        Ok(tables)
    }

    /// The id of a word that the model looks up before merging, if it does so.
    #[inline]
    pub fn whole_word(&self, word: &[u8]) -> Option<u32> {
        if self.ignore_merges { self.vocab.get(word) } else { None }
    }

    /// Whether a byte of `text` has no token and is dropped.
    #[inline]
    pub fn drops_from(&self, text: &[u8]) -> bool {
        self.drops_bytes && text.iter().any(|&b| self.byte_id(b) == NONE)
    }

    /// How many bytes of `text` the token covers, those dropped before or inside it included.
    pub fn cover(&self, id: u32, text: &[u8]) -> usize {
        let mut left = self.token_len(id);
        let kept = |b: u8| {
            left -= usize::from(self.byte_id(b) != NONE && left > 0);
            left == 0
        };
        text.iter().copied().position(kept).map_or(text.len(), |last| last + 1)
    }

    /// Id of the token of one byte; `u32::MAX` if there is none.
    #[inline]
    pub fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// Id of a character whose bytes are known to merge before anything else touches them.
    #[inline]
    pub fn character(&self, c: u32) -> Option<u32> {
        self.characters.get(c as usize).copied().filter(|&id| id != NONE)
    }

    /// Rank and joined id of a pair; rank `u32::MAX` if there is no such rule.
    #[inline]
    pub fn pair(&self, left: u32, right: u32) -> (u32, u32) {
        self.rules.get(left, right)
    }

    /// The id of these bytes, whether or not merges lead to it.
    pub fn find(&self, token: &[u8]) -> Option<u32> {
        self.vocab.get(token)
    }

    /// The bytes of a token.
    pub fn token(&self, id: u32) -> &[u8] {
        self.vocab.bytes(id)
    }

    /// How many bytes a token stands for.
    #[inline]
    pub fn token_len(&self, id: u32) -> usize {
        self.vocab.spans[id as usize].1 as usize
    }

    /// Number of ids, holes included.
    pub fn num_ids(&self) -> usize {
        self.vocab.spans.len()
    }

    /// The characters that may be taken whole.
    ///
    /// Alone, such a character merges to one token, the last of those merges having rank R. If every rule by which a
    /// neighbour could take a part of it (a rule whose right side is one of its proper prefixes; a rule whose left side
    /// is one of its proper suffixes and whose right side starts a character) has a rank above R, the character is
    /// complete before any such rule can be the lowest. If every rule that takes the whole token also ranks above R,
    /// having it early changes no choice either.
    fn whole_characters(&self) -> Vec<u32> {
        let len = self.num_ids();
        let (mut as_right, mut as_left, mut before_start) = (vec![NONE; len], vec![NONE; len], vec![NONE; len]);
        for (left, right, rank, _) in self.rules.iter() {
            let (l, r) = (left as usize, right as usize);
            as_right[r] = as_right[r].min(rank);
            as_left[l] = as_left[l].min(rank);
            if self.token(right).first().is_some_and(|&b| b & 0xC0 != 0x80) {
                before_start[l] = before_start[l].min(rank);
            }
        }
        let mut characters = vec![NONE; 0x1_0000];
        for id in 0..len as u32 {
            let bytes = self.token(id);
            let Some(c) = std::str::from_utf8(bytes).ok().filter(|_| bytes.len() > 1).and_then(single_char) else {
                continue;
            };
            let Some(place) = characters.get_mut(c as usize) else { continue };
            let Some((highest, prefixes, suffixes)) = self.alone(bytes, id) else { continue };
            let outside = prefixes.iter().map(|&p| as_right[p as usize]);
            let outside = outside.chain(suffixes.iter().map(|&s| before_start[s as usize]));
            let whole = [as_right[id as usize], as_left[id as usize]];
            if outside.chain(whole).all(|rank| rank > highest) {
                *place = id;
            }
        }
        characters
    }

    /// How the bytes of one character merge to `id`: highest rank used, and every symbol that stood first or last on
    /// the way. `None` if they merge to anything else.
    fn alone(&self, bytes: &[u8], id: u32) -> Option<(u32, Vec<u32>, Vec<u32>)> {
        let mut symbols: Vec<u32> = bytes.iter().map(|&b| self.byte_id(b)).collect();
        let (mut highest, mut first, mut last) = (0, vec![], vec![]);
        while symbols.len() > 1 {
            first.push(symbols[0]);
            last.push(symbols[symbols.len() - 1]);
            let ranked = symbols.windows(2).enumerate().map(|(i, pair)| (self.pair(pair[0], pair[1]), i));
            let ((rank, joined), i) = ranked.min_by_key(|&((rank, _), i)| (rank, i))?;
            if rank == NONE {
                return None;
            }
            highest = highest.max(rank);
            symbols.splice(i..i + 2, [joined]);
        }
        (symbols == [id]).then_some((highest, first, last))
    }
}

fn single_char(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|_| chars.next().is_none())
}
