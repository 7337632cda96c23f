//! What the merge routines look up: token bytes, merge rules, and the characters that may be taken whole.

use std::sync::OnceLock;

use super::Unsupported;
use super::early::Early;
use super::pages::Pages;

/// No id, no rank.
pub(crate) const NONE: u32 = u32::MAX;

/// Ids stay below this, so that a count fits above them in the word cache.
pub(crate) const MAX_ID: u32 = 1 << 28;

/// Ids in merge rules, and ranks of rules, fit in these many bits.
const ID_BITS: u32 = 18;
const RANK_BITS: u32 = 28;

const EMPTY: u64 = u64::MAX;
/// Of so many bytes or more.
const LONG: u8 = u8::MAX;

/// Merge rules in an open-addressed table at most half full: `left | right | rank` in one word, since the time of a lookup
/// is that of the memory it touches.
#[derive(Debug)]
struct MergeRules {
    slots: Pages<u64>,
    shift: u32,
    /// One bit for the hash of each rule, eight bits a slot of the table: most pairs of a text have no rule, and this
    /// says so from a part of memory that stays in the second-level cache.
    known: Vec<u64>,
    /// What the rule of each rank makes.
    joined: Vec<u32>,
}

impl MergeRules {
    /// A later rule for the same pair replaces an earlier one, as in the crate.
    fn new(merges: &[(u32, u32, u32)]) -> Result<Self, Unsupported> {
        let size = (merges.len().max(32) * 2).next_power_of_two();
        let joined = merges.iter().map(|merge| merge.2).collect();
        let mut rules = Self {
            slots: Pages::filled(EMPTY, size),
            shift: 64 - size.trailing_zeros(),
            known: vec![0; size / 8],
            joined,
        };
        for (rank, &(left, right, _)) in (0u64..).zip(merges) {
            if rank >> RANK_BITS != 0 || (left | right) >> ID_BITS != 0 {
                return Err(Unsupported::new("merges", format!("more than {} ids or ranks", 1 << ID_BITS)));
            }
            let key = Self::key(left, right);
            let slot = rules.slot(key);
            rules.slots[slot] = key << RANK_BITS | rank;
            let bit = Self::hash(key) >> (rules.shift - 3);
            rules.known[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        Ok(rules)
    }

    #[inline]
    fn key(left: u32, right: u32) -> u64 {
        u64::from(left) << ID_BITS | u64::from(right)
    }

    #[inline]
    fn hash(key: u64) -> u64 {
        key.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mut i = (Self::hash(key) >> self.shift) as usize;
        while self.slots[i] >> RANK_BITS != key && self.slots[i] != EMPTY {
            i = (i + 1) & (self.slots.len() - 1);
        }
        i
    }

    /// `false` for most pairs that have no rule.
    #[inline]
    fn may_join(&self, left: u32, right: u32) -> bool {
        let bit = Self::hash(Self::key(left, right)) >> (self.shift - 3);
        self.known[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }

    /// The rank of a pair, or [`NONE`]. An id of [`NONE`] is in no rule.
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        let key = Self::key(left, right);
        if !self.may_join(left, right) || (left | right) >> ID_BITS != 0 {
            return NONE;
        }
        let slot = self.slots[self.slot(key)];
        if slot == EMPTY { NONE } else { slot as u32 & ((1 << RANK_BITS) - 1) }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        let rules = self.slots.iter().filter(|&&slot| slot != EMPTY);
        let field = |slot: u64, shift: u32, bits: u32| (slot >> shift) as u32 & ((1 << bits) - 1);
        rules.map(move |&slot| {
            let left = field(slot, RANK_BITS + ID_BITS, ID_BITS);
            (left, field(slot, RANK_BITS, ID_BITS), field(slot, 0, RANK_BITS))
        })
    }
}

/// Token bytes -> id, open-addressed, keyed by the bytes in [`Vocab`].
#[derive(Debug)]
pub(crate) struct Vocab {
    /// All token bytes in a row.
    arena: Vec<u8>,
    /// Start and length in `arena` of each id's bytes; ids that are no byte-level token have length 0.
    spans: Vec<(u32, u32)>,
    /// Upper half of the hash of the bytes, and the id: most slots of other tokens are passed over unread.
    slots: Vec<(u32, u32)>,
}

impl Vocab {
    /// Room for `len` tokens of `bytes` bytes.
    pub(crate) fn with_capacity(len: usize, bytes: usize) -> Self {
        let size = (len.max(8) * 2).next_power_of_two();
        Self { arena: Vec::with_capacity(bytes), spans: Vec::with_capacity(len), slots: vec![(0, NONE); size] }
    }

    /// The slot these bytes are in or belong to, and the upper half of their hash.
    #[inline]
    fn find(&self, token: &[u8]) -> (usize, u32) {
        let hash = xxhash_rust::xxh3::xxh3_64(token);
        let tag = (hash >> 32) as u32;
        let mut i = hash as usize & (self.slots.len() - 1);
        while self.slots[i].1 != NONE && (self.slots[i].0 != tag || self.bytes(self.slots[i].1) != token) {
            i = (i + 1) & (self.slots.len() - 1);
        }
        (i, tag)
    }

    /// Adds a token; `false` if its bytes or its id are taken.
    pub(crate) fn insert(&mut self, token: &[u8], id: u32) -> bool {
        let index = id as usize;
        if self.spans.len() <= index {
            self.spans.resize(index + 1, (0, 0));
        }
        let (slot, tag) = self.find(token);
        if self.slots[slot].1 != NONE || self.spans[index].1 != 0 {
            return false;
        }
        self.spans[index] = (self.arena.len() as u32, token.len() as u32);
        self.arena.extend_from_slice(token);
        self.slots[slot] = (tag, id);
        true
    }

    /// The id of these bytes.
    #[inline]
    pub(crate) fn get(&self, token: &[u8]) -> Option<u32> {
        Some(self.slots[self.find(token).0].1).filter(|&id| id != NONE)
    }

    /// The id of these bytes, which may well be `guess`.
    #[inline]
    pub(crate) fn get_near(&self, guess: u32, token: &[u8]) -> Option<u32> {
        let guessed = (guess as usize) < self.spans.len() && !token.is_empty() && self.bytes(guess) == token;
        if guessed { Some(guess) } else { self.get(token) }
    }

    /// The bytes of a token; empty for an id that is none.
    #[inline]
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let (start, len) = self.spans[id as usize];
        &self.arena[start as usize..(start + len) as usize]
    }
}

/// The compiled model.
#[derive(Debug)]
pub(crate) struct Tables {
    vocab: Vocab,
    rules: MergeRules,
    /// Bytes of each token, or [`LONG`]: offsets are sums of these, and they fit in the second-level cache.
    lens: Vec<u8>,
    byte_ids: [u32; 256],
    /// Some byte that text may hold has no token. The crate drops it without a trace, so we do.
    drops_bytes: bool,
    ignore_merges: bool,
    /// For each character of the basic plane that is one token, its id and the highest rank on the way to it; or
    /// [`NONE`] and 0.
    characters: Vec<(u32, u32)>,
    /// For the last byte of one character and the first of the next: the lowest rank of a rule that joins across their
    /// border what is not a whole character on both sides of it.
    across: Vec<u32>,
    /// Rank of each two bytes.
    byte_pairs: Vec<u32>,
    /// Made when the first long word comes.
    early: OnceLock<Early>,
}

impl Tables {
    /// `merges` are `(left, right, joined)` in rank order, all ids of `vocab`.
    /// `keeps_unknown`: bytes without a token would become something else than nothing.
    pub(crate) fn new(
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
        let rules = MergeRules::new(merges)?;
        let lens = vocab.spans.iter().map(|span| span.1.min(LONG.into()) as u8).collect();
        let mut tables = Self {
            vocab,
            rules,
            lens,
            byte_ids,
            drops_bytes,
            ignore_merges,
            characters: Vec::new(),
            across: Vec::new(),
            byte_pairs: Vec::new(),
            early: OnceLock::new(),
        };
        tables.across = tables.ranks_across();
        let ids = tables.byte_ids;
        tables.byte_pairs =
            ids.iter().flat_map(|&a| ids.iter().map(move |&b| (a, b))).map(|(a, b)| tables.rank(a, b)).collect();
        tables.characters = tables.whole_characters();
        Ok(tables)
    }

    /// The id of a word that the model looks up before merging, if it does so.
    #[inline]
    pub(crate) fn whole_word(&self, word: &[u8]) -> Option<u32> {
        if self.ignore_merges { self.vocab.get(word) } else { None }
    }

    /// Whether words are looked up before merging.
    #[inline]
    pub(crate) fn looks_up_words(&self) -> bool {
        self.ignore_merges
    }

    /// The id of a character of the basic plane that is known to be one token when it stands alone.
    pub(crate) fn single(&self, c: char) -> Option<u32> {
        let id = if c.is_ascii() { self.byte_id(c as u8) } else { self.characters.get(c as usize)?.0 };
        Some(id).filter(|&id| id != NONE)
    }

    /// Whether a byte of `text` has no token and is dropped.
    #[inline]
    pub(crate) fn drops_from(&self, text: &[u8]) -> bool {
        self.drops_bytes && text.iter().any(|&b| self.byte_id(b) == NONE)
    }

    /// Whether some byte has no token.
    pub(crate) fn drops_bytes(&self) -> bool {
        self.drops_bytes
    }

    /// How many bytes of `text` the token covers, those dropped before or inside it included.
    pub(crate) fn cover(&self, id: u32, text: &[u8]) -> usize {
        let mut left = self.token_len(id);
        let kept = |b: u8| {
            left -= usize::from(self.byte_id(b) != NONE && left > 0);
            left == 0
        };
        text.iter().copied().position(kept).map_or(text.len(), |last| last + 1)
    }

    /// Id of the token of one byte; `u32::MAX` if there is none.
    #[inline]
    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// Id of the character `c`, `word[start..end]`, if its bytes are known to merge before anything else touches them.
    #[inline]
    pub(crate) fn character(&self, c: u32, word: &[u8], start: usize, end: usize) -> Option<u32> {
        let &(id, highest) = self.characters.get(c as usize)?;
        let across = |left: usize| {
            let pair = word.get(left).zip(word.get(left + 1));
            pair.is_none_or(|(&a, &b)| self.across[usize::from(a) << 8 | usize::from(b)] > highest)
        };
        (id != NONE && (start == 0 || across(start - 1)) && across(end - 1)).then_some(id)
    }

    /// [`Self::rank`] of the tokens of two bytes.
    #[inline]
    pub(crate) fn byte_rank(&self, left: u8, right: u8) -> u32 {
        self.byte_pairs[usize::from(left) << 8 | usize::from(right)]
    }

    /// Rank of a pair; `u32::MAX` if there is no such rule.
    #[inline]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        self.rules.rank(left, right)
    }

    /// `false` for most pairs that have no rule.
    #[inline]
    pub(crate) fn may_join(&self, left: u32, right: u32) -> bool {
        self.rules.may_join(left, right)
    }

    /// What the rule of this rank makes.
    #[inline]
    pub(crate) fn joined(&self, rank: u32) -> u32 {
        self.rules.joined[rank as usize]
    }

    /// Left id, right id and rank of each rule.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.rules.iter()
    }

    /// Number of ranks.
    pub(crate) fn num_ranks(&self) -> usize {
        self.rules.joined.len()
    }

    /// What is certain about merges in a long word.
    pub(crate) fn early(&self) -> &Early {
        self.early.get_or_init(|| Early::new(self))
    }

    /// The id of these bytes, whether or not merges lead to it.
    pub(crate) fn find(&self, token: &[u8]) -> Option<u32> {
        self.vocab.get(token)
    }

    /// The bytes of a token.
    pub(crate) fn token(&self, id: u32) -> &[u8] {
        self.vocab.bytes(id)
    }

    /// How many bytes a token stands for.
    #[inline]
    pub(crate) fn token_len(&self, id: u32) -> usize {
        self.len_among(&self.lens, id) as usize
    }

    /// As [`Self::token_len`], from a slice of `lens` that a loop keeps in registers.
    #[inline]
    fn len_among(&self, lens: &[u8], id: u32) -> u32 {
        match lens[id as usize] {
            LONG => self.vocab.spans[id as usize].1,
            len => len.into(),
        }
    }

    /// Appends where each of these tokens ends, the first of which starts at byte `start`.
    pub(crate) fn push_ends(&self, ids: &[u32], start: usize, ends: &mut Vec<u32>) {
        let (lens, mut end) = (self.lens.as_slice(), start as u32);
        // `move`: else the sum goes through memory at each token, which takes longer than all the rest.
        ends.extend(ids.iter().map(move |&id| {
            end += self.len_among(lens, id);
            end
        }));
    }

    /// Number of ids, holes included.
    pub(crate) fn num_ids(&self) -> usize {
        self.vocab.spans.len()
    }

    /// See `across`.
    fn ranks_across(&self) -> Vec<u32> {
        let mut across = vec![NONE; 1 << 16];
        for (left, right, rank) in self.rules.iter() {
            let (left, right) = (self.token(left), self.token(right));
            let (Some(&last), Some(&first)) = (left.last(), right.first()) else { continue };
            if first & 0xC0 != 0x80 && !(ends_whole(left) && starts_whole(right)) {
                let lowest = &mut across[usize::from(last) << 8 | usize::from(first)];
                *lowest = rank.min(*lowest);
            }
        }
        across
    }

    /// The characters that may be taken whole, where `across` allows it.
    ///
    /// Alone, such a character merges to one token; R is the highest rank of those merges. Where no rule of rank R or
    /// less joins a part of it to a neighbour, or any of it to a part of a neighbour, the character is complete before
    /// such a rule can be the lowest. Where every rule that takes the whole token also ranks above R, having it early
    /// changes no choice either.
    fn whole_characters(&self) -> Vec<(u32, u32)> {
        let len = self.num_ids();
        let mut whole = vec![NONE; len];
        for (left, right, rank) in self.rules.iter() {
            for side in [left, right] {
                whole[side as usize] = whole[side as usize].min(rank);
            }
        }
        let mut characters = vec![(NONE, 0); 0x1_0000];
        for id in 0..len as u32 {
            let bytes = self.token(id);
            let Some(c) = std::str::from_utf8(bytes).ok().filter(|_| bytes.len() > 1).and_then(only_char) else {
                continue;
            };
            let Some(place) = characters.get_mut(c as usize) else { continue };
            match self.alone(bytes, id) {
                Some(highest) if whole[id as usize] > highest => *place = (id, highest),
                _ => {}
            }
        }
        characters
    }

    /// The highest rank used when `bytes` alone merge to `id`; `None` if they merge to anything else.
    fn alone(&self, bytes: &[u8], id: u32) -> Option<u32> {
        let mut symbols: Vec<u32> = bytes.iter().map(|&b| self.byte_id(b)).collect();
        let mut highest = 0;
        while symbols.len() > 1 {
            let ranked = symbols.windows(2).enumerate().map(|(i, pair)| (self.rank(pair[0], pair[1]), i));
            let (rank, i) = ranked.min()?;
            if rank == NONE {
                return None;
            }
            highest = highest.max(rank);
            symbols.splice(i..i + 2, [self.joined(rank)]);
        }
        (symbols == [id]).then_some(highest)
    }
}

/// Length of the character that starts with this byte; 0 for a byte that starts none.
fn char_len(lead: u8) -> usize {
    match lead {
        0..0x80 => 1,
        0x80..0xC0 => 0,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0.. => 4,
    }
}

fn starts_whole(token: &[u8]) -> bool {
    let len = token.first().map_or(0, |&lead| char_len(lead));
    (1..=token.len()).contains(&len)
}

fn ends_whole(token: &[u8]) -> bool {
    (1..=token.len().min(4)).any(|len| char_len(token[token.len() - len]) == len)
}

/// The character that `text` is alone.
pub(super) fn only_char(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|_| chars.next().is_none())
}
