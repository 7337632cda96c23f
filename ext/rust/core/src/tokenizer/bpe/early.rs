//! Merges that are certain before all others are known, and borders that no merge will cross: both are told from the two
//! bytes that stand beside them, so a long word falls into short pieces in a few passes.
//!
//! **A certain merge.** Symbols `L A B R` stand in a row, and `(A, B)` has rank r. Until `A` and `B` are joined with each
//! other, the first to be taken by anything else is `A` from the left by a rule `(T, A)`, or `B` from the right by
//! `(B, U)`, where `T` ends with `L` and `U` starts with `R`, as symbols only grow. While the pair stands, a rule that
//! ranks above r is never the next one. So if all those rules rank above r, the two are joined with each other. Joining
//! them at once changes no other choice if each rule that takes the joined token ranks above r as well: until the pair's
//! turn those are never the next one, and everything else goes on as before. The argument holds for any list of merges, and
//! one merge after another, so it may be repeated on what it made.
//!
//! **A run.** Where symbols `A A A A ...` stand between `L` and `R`, the first to be taken by anything but the rule `(A, A)`
//! of rank r is the first one, from the left, or the last one, from the right. If the rules for either rank above r, as
//! above, and those that take `AA` do too, the run is joined two by two from its left end. (Both ends matter even if one
//! symbol is left over: when `R` takes the last, what they make may take the one before.)
//!
//! **A certain border.** A merge across the border of `L` and `R` is a rule `(P, Q)` where `P` ends with `L` and `Q` starts
//! with `R`. If there is none, what stands on one side never changes a choice on the other (see [`super::cuts`]).
//!
//! "Ends with `L`" is asked by the last two bytes of `L`, or one if it has no more; rules are entered under both. More
//! rules than those that matter may be found so, and tables share slots: that only makes fewer merges and borders certain.

use super::tables::{NONE, Tables};

/// No merge crosses the border behind this symbol.
pub(crate) const APART: u32 = NONE - 1;
const SLOT_BITS: u32 = 18;
const MEET_BITS: u32 = 21;
/// Ranks are kept in 16 bits, rounded down; [`FREE`] is above all.
const ROUNDED: u32 = 2;
const FREE: u16 = u16::MAX;
/// Symbols of a piece from which passes pay.
const LONG: usize = 12;
/// Marks the first or last bytes of a symbol as two.
const TWO: u32 = 1 << 16;

/// What all rules say about the bytes beside a pair.
#[derive(Debug)]
pub(crate) struct Early {
    /// By the end of the symbol before and the id of the left one: the lowest rank of a rule that takes it to the left.
    left: Box<[u16]>,
    /// By the id of the right symbol and the start of the one behind.
    right: Box<[u16]>,
    /// By the end of a symbol and the start of the next: whether a rule joins such.
    meet: Box<[u64]>,
    /// A bit for each rank: some rule of this rank or a lower one takes what it makes.
    taken: Box<[u64]>,
    /// What rules say about two single bytes, by both of them.
    bytes: Box<[BytePair]>,
}

/// What rules say about two single bytes.
#[derive(Debug, Clone, Copy)]
struct BytePair {
    /// The rank of the pair; [`FREE`] if there is none or what it makes is taken too early.
    rank: u16,
    /// Lowest rank of a rule that joins the right byte with a token that ends with the left one.
    left: u16,
    /// Lowest rank of a rule that joins the left byte with a token that starts with the right one.
    right: u16,
}

/// A token of the word so far.
#[derive(Debug, Clone, Copy)]
pub struct Symbol {
    /// Id.
    pub id: u32,
    /// Of this and the next symbol; [`APART`] or more if no rule joins them now.
    pub(crate) rank: u32,
    /// Its first two bytes and [`TWO`], or its only one.
    first: u32,
    /// Its last two.
    last: u32,
}

impl Symbol {
    /// A symbol of these bytes, which are not empty.
    #[inline]
    pub fn new(id: u32, bytes: &[u8]) -> Self {
        let (first, last) = edges(bytes);
        Self { id, rank: NONE, first, last }
    }

    /// This and the next in one.
    #[inline]
    fn joined(self, id: u32, next: Self) -> Self {
        let first_of_next = if next.first >= TWO { next.first >> 8 & 0xFF } else { next.first };
        let first = if self.first >= TWO { self.first } else { TWO | self.first << 8 | first_of_next };
        let last = if next.last >= TWO { next.last } else { TWO | (self.last & 0xFF) << 8 | next.last };
        Self { id, rank: next.rank, first, last }
    }
}

/// First and last of a symbol of these bytes.
#[inline]
fn edges(bytes: &[u8]) -> (u32, u32) {
    let two = |a: u8, b: u8| TWO | u32::from(a) << 8 | u32::from(b);
    match *bytes {
        [a, b] => (two(a, b), two(a, b)),
        [a, b, .., y, z] => (two(a, b), two(y, z)),
        [a, b, c] => (two(a, b), two(b, c)),
        [a] => (a.into(), a.into()),
        [] => (0, 0),
    }
}

#[inline]
fn hash(bytes: u32, other: u32, bits: u32) -> usize {
    ((u64::from(bytes) << 32 | u64::from(other)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize
}

#[inline]
fn rounded(rank: u32) -> u16 {
    (rank >> ROUNDED).min(FREE.into()) as u16
}

impl Early {
    /// Reads all rules.
    pub(crate) fn new(tables: &Tables) -> Self {
        let nothing = BytePair { rank: FREE, left: FREE, right: FREE };
        let mut early = Self {
            left: vec![FREE; 1 << SLOT_BITS].into(),
            right: vec![FREE; 1 << SLOT_BITS].into(),
            meet: vec![0; 1 << (MEET_BITS - 6)].into(),
            taken: vec![0; tables.num_ranks() / 64 + 1].into(),
            bytes: vec![nothing; 1 << 16].into(),
        };
        // In order of rank, so that what is read and written lies close together: tokens that rules make come in that order,
        // and the lowest rank of anything is the first.
        let mut rules = vec![(NONE, NONE); tables.num_ranks()];
        for (left, right, rank) in tables.rules() {
            rules[rank as usize] = (left, right);
        }
        let edges: Vec<(u32, u32)> = (0..tables.num_ids() as u32).map(|id| edges(tables.token(id))).collect();
        let mut is_used = vec![0u64; tables.num_ids() / 64 + 1];
        for (rank, &(left, right)) in (0u32..).zip(&rules).filter(|(_, rule)| rule.0 != NONE) {
            for id in [left, right] {
                is_used[id as usize / 64] |= 1 << (id % 64);
            }
            let made = tables.joined(rank);
            early.taken[rank as usize / 64] |= (is_used[made as usize / 64] >> (made % 64) & 1) << (rank % 64);
            early.enter((left, edges[left as usize].1), (right, edges[right as usize].0), rank);
        }
        early
    }

    /// Enters a rule: its ids, the last bytes of the left and the first of the right.
    fn enter(&mut self, (left, last): (u32, u32), (right, first): (u32, u32), rank: u32) {
        let lower = |slot: &mut u16| *slot = rounded(rank).min(*slot);
        let ends = [last & 0xFF, last];
        let starts = [if first >= TWO { first >> 8 & 0xFF } else { first }, first];
        // Of a single byte both are the same.
        let (left_is_one, right_is_one) = (last < TWO, first < TWO);
        for &end in &ends[usize::from(left_is_one)..] {
            lower(&mut self.left[hash(end, right, SLOT_BITS)]);
            for &start in &starts[usize::from(right_is_one)..] {
                let bit = hash(end, start, MEET_BITS);
                self.meet[bit / 64] |= 1 << (bit % 64);
            }
        }
        for &start in &starts[usize::from(right_is_one)..] {
            lower(&mut self.right[hash(start, left, SLOT_BITS)]);
        }
        let is_taken = self.is_taken(rank);
        let pair = &mut self.bytes[(ends[0] << 8 | starts[0]) as usize];
        if right_is_one {
            lower(&mut pair.left);
        }
        if left_is_one {
            lower(&mut pair.right);
        }
        if left_is_one && right_is_one && !is_taken {
            pair.rank = rounded(rank);
        }
    }

    #[inline]
    fn is_taken(&self, rank: u32) -> bool {
        self.taken[rank as usize / 64] >> (rank % 64) & 1 != 0
    }

    /// Appends the symbols of ASCII text after one pass.
    pub(crate) fn ascii(&self, tables: &Tables, word: &[u8], symbols: &mut Vec<Symbol>) {
        let pair = |i: usize| match word.get(i).zip(word.get(i + 1)) {
            Some((&a, &b)) => self.bytes[usize::from(a) << 8 | usize::from(b)],
            None => BytePair { rank: FREE, left: FREE, right: FREE },
        };
        symbols.reserve(word.len());
        let (mut i, mut before, mut this) = (0, FREE, pair(0));
        while i < word.len() {
            let next = pair(i + 1);
            if this.rank < before.min(next.right) {
                let id = tables.joined(tables.byte_rank(word[i], word[i + 1]));
                symbols.push(Symbol::new(id, &word[i..i + 2]));
                i += 2;
                (before, this) = (next.left, pair(i));
            } else {
                symbols.push(Symbol::new(tables.byte_id(word[i]), &word[i..=i]));
                i += 1;
                (before, this) = (this.left, next);
            }
        }
    }

    /// Calls `piece` with the symbols of a word between certain borders and the rank of each, and merges those of long
    /// pieces as far as is certain. `places` is working memory.
    pub(crate) fn pieces(
        &self,
        tables: &Tables,
        symbols: &mut [Symbol],
        places: &mut EarlyScratch,
        mut piece: impl FnMut(&[Symbol]),
    ) {
        places.asked.clear();
        places.asked.extend(1..symbols.len() as u32);
        self.rank(tables, symbols, &mut places.asked);
        for part in symbols.split_inclusive_mut(|symbol| symbol.rank == APART) {
            self.settle(tables, part, places, &mut piece);
        }
    }

    /// Merges the symbols between two certain borders as far as is certain, and calls `piece` with what is left.
    fn settle(
        &self,
        tables: &Tables,
        part: &mut [Symbol],
        places: &mut EarlyScratch,
        piece: &mut impl FnMut(&[Symbol]),
    ) {
        if part.len() < LONG {
            return piece(part);
        }
        let kept = self.merge_certain(tables, part, places);
        // Another pass costs as much as merging a few pairs in their pieces.
        let again = part.len() - kept > part.len() / 16;
        for part in part[..kept].split_inclusive_mut(|symbol| symbol.rank == APART) {
            if again {
                self.settle(tables, part, places, piece);
            } else {
                piece(part);
            }
        }
    }

    /// Sets the ranks of the symbols before `asked`, which it changes. What is known of most is found without a branch,
    /// so that the processor waits for many answers at a time.
    fn rank(&self, tables: &Tables, symbols: &mut [Symbol], asked: &mut Vec<u32>) {
        keep_where(asked, |i| {
            let bit = hash(symbols[i - 1].last, symbols[i].first, MEET_BITS);
            let meets = self.meet[bit / 64] >> (bit % 64) & 1 != 0;
            symbols[i - 1].rank = if meets { NONE } else { APART };
            meets
        });
        keep_where(asked, |i| tables.may_join(symbols[i - 1].id, symbols[i].id));
        for &i in &*asked {
            let i = i as usize;
            symbols[i - 1].rank = tables.rank(symbols[i - 1].id, symbols[i].id);
        }
    }

    #[allow(clippy::needless_bitwise_bool)] // see `merge_certain`
    /// Whether no rule up to `rank` joins symbol `i` with what is before it.
    #[inline]
    fn is_free_left(&self, symbols: &[Symbol], i: usize, rank: u32) -> bool {
        let before = symbols[i.saturating_sub(1)];
        let is_free = rounded(rank) < self.left[hash(before.last, symbols[i].id, SLOT_BITS)];
        is_free | (i == 0) | (before.rank == APART)
    }

    #[allow(clippy::needless_bitwise_bool)] // see `merge_certain`
    /// Whether no rule up to `rank` joins symbol `i` with what is behind it.
    #[inline]
    fn is_free_right(&self, symbols: &[Symbol], i: usize, rank: u32) -> bool {
        let last = symbols.len() - 1;
        let behind = symbols[(i + 1).min(last)];
        let is_free = rounded(rank) < self.right[hash(behind.first, symbols[i].id, SLOT_BITS)];
        is_free | (i == last) | (symbols[i].rank == APART)
    }

    /// The run of equal symbols that starts at `start`.
    fn run(&self, symbols: &[Symbol], start: usize) -> Run {
        let Symbol { id, rank, .. } = symbols[start];
        let end = start + symbols[start..].iter().take_while(|symbol| symbol.id == id).count();
        let pairs_up = !self.is_taken(rank)
            && self.is_free_left(symbols, start, rank)
            && self.is_free_right(symbols, end - 1, rank);
        // The pair that starts with the last symbol is none of the run's.
        Run { start, end: end - 1, pairs_up }
    }

    #[allow(clippy::needless_bitwise_bool)] // branches here would be guessed wrong half of the time
    /// Merges all that is certain now. Returns how many symbols are left.
    fn merge_certain(
        &self,
        tables: &Tables,
        symbols: &mut [Symbol],
        EarlyScratch { asked, certain }: &mut EarlyScratch,
    ) -> usize {
        let len = symbols.len();
        certain.clear();
        certain.extend(0..len as u32 - 1);
        keep_where(certain, |i| symbols[i].rank < APART);
        let mut run = Run::default();
        keep_where(certain, |i| {
            let (left, right) = (symbols[i], symbols[i + 1]);
            if left.id == right.id {
                if i >= run.end {
                    run = self.run(symbols, i);
                }
                if run.pairs_up {
                    return (i - run.start) % 2 == 0;
                }
            }
            self.is_free_left(symbols, i, left.rank)
                & self.is_free_right(symbols, i + 1, left.rank)
                & !self.is_taken(left.rank)
        });
        asked.clear();
        let (mut kept, mut from) = (0, 0);
        for &i in &*certain {
            let i = i as usize;
            // Certain pairs share no symbol: each would have to rank below the other, or they stand in a run.
            symbols.copy_within(from..i, kept);
            kept += i - from;
            from = i + 2;
            symbols[kept] = symbols[i].joined(tables.joined(symbols[i].rank), symbols[i + 1]);
            let place = kept as u32;
            if kept > 0 && symbols[kept - 1].rank != APART && asked.last() != Some(&place) {
                asked.push(place);
            }
            kept += 1;
            if from < len && symbols[kept - 1].rank != APART {
                asked.push(place + 1);
            }
        }
        symbols.copy_within(from..len, kept);
        kept += len - from;
        self.rank(tables, &mut symbols[..kept], asked);
        kept
    }
}

/// Equal symbols in a row, up to the last but one.
#[derive(Default)]
struct Run {
    start: usize,
    end: usize,
    pairs_up: bool,
}

/// Working memory of [`Early::pieces`].
#[derive(Debug, Default)]
pub(crate) struct EarlyScratch {
    asked: Vec<u32>,
    certain: Vec<u32>,
}

/// `places.retain(is_kept)`, without a branch that depends on the answer.
#[inline]
fn keep_where(places: &mut Vec<u32>, mut is_kept: impl FnMut(usize) -> bool) {
    let mut kept = 0;
    for k in 0..places.len() {
        let place = places[k];
        places[kept] = place;
        kept += usize::from(is_kept(place as usize));
    }
    places.truncate(kept);
}
