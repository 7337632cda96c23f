//! Symbols -> tokens by the merge rules: always the lowest rank, and of equal ones the leftmost place.
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::tokenizer::bpe::pages::Pages;

/// Symbols up to which a scan for the lowest rank beats a heap.
const FEW: usize = 24;
const NO_RANK: u32 = u32::MAX;
const GONE: u32 = u32::MAX;
const EMPTY: u64 = u64::MAX;

/// What two tokens become, and how early: a table that is at most half full, each slot in one cache line.
#[derive(Debug)]
pub(super) struct Pairs(Pages<Slot>);

#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct Slot {
    key: u64,
    rank: u32,
    token: u32,
}

impl Pairs {
    pub(crate) fn with_capacity(pairs: usize) -> Self {
        let slots = (2 * pairs).next_power_of_two().max(2);
        Self(Pages::filled(Slot { key: EMPTY, rank: NO_RANK, token: 0 }, slots))
    }

    /// Add a pair; false if it is there already.
    pub(crate) fn add(&mut self, left: u32, right: u32, rank: u32, token: u32) -> bool {
        let at = self.slot(left, right);
        let is_new = self.0[at].key == EMPTY;
        if is_new {
            self.0[at] = Slot { key: u64::from(left) << 32 | u64::from(right), rank, token };
        }
        is_new
    }

    fn slot(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        let mask = self.0.len() - 1;
        let mut at = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) as usize & mask;
        while self.0[at].key != EMPTY && self.0[at].key != key {
            at = (at + 1) & mask;
        }
        at
    }

    /// Rank and token; a rank that is none for two that do not merge.
    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let Slot { rank, token, .. } = self.0[self.slot(left, right)];
        (rank, token)
    }
}

/// The symbols of a piece, which become its tokens.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    pub(crate) ids: Vec<u32>,
    /// How many bytes of the text each covers.
    pub(crate) lengths: Vec<u32>,
    ranked: Vec<(u32, u32)>,
    previous: Vec<u32>,
    next: Vec<u32>,
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Symbols {
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.lengths.clear();
    }

    pub(crate) fn push(&mut self, id: u32, length: u32) {
        self.ids.push(id);
        self.lengths.push(length);
    }

    pub(crate) fn merge(&mut self, pairs: &Pairs) {
        if self.ids.len() <= FEW { self.merge_few(pairs) } else { self.merge_many(pairs) }
    }

    fn merge_few(&mut self, pairs: &Pairs) {
        let Self { ids, lengths, ranked, .. } = self;
        ranked.clear();
        ranked.extend(ids.windows(2).map(|pair| pairs.get(pair[0], pair[1])));
        while let Some((at, &(rank, token))) = ranked.iter().enumerate().min_by_key(|(_, (rank, _))| *rank) {
            if rank == NO_RANK {
                break;
            }
            ids[at] = token;
            ids.remove(at + 1);
            lengths[at] += lengths.remove(at + 1);
            ranked.remove(at);
            if at > 0 {
                ranked[at - 1] = pairs.get(ids[at - 1], token);
            }
            if at + 1 < ids.len() {
                ranked[at] = pairs.get(token, ids[at + 1]);
            }
        }
    }

    /// Merges many symbols, with a queue of places and a linked list of those that are left.
    fn merge_many(&mut self, pairs: &Pairs) {
        let Self { ids, lengths, previous, next, queue, .. } = self;
        let num = ids.len() as u32;
        previous.clear();
        previous.extend((0..num).map(|at| at.wrapping_sub(1)));
        next.clear();
        next.extend(1..=num);
        queue.clear();
        let rank_at = |ids: &[u32], at: u32, after: u32| pairs.get(ids[at as usize], ids[after as usize]);
        for at in 0..num.saturating_sub(1) {
            let (rank, _) = rank_at(ids, at, at + 1);
            if rank != NO_RANK {
                queue.push(Reverse((rank, at)));
            }
        }
        while let Some(Reverse((rank, at))) = queue.pop() {
            let after = next[at as usize];
            // a place whose symbols were merged meanwhile has another pair, or none
            if ids[at as usize] == GONE || after == num {
                continue;
            }
            let (present, token) = rank_at(ids, at, after);
            if present != rank {
                continue;
            }
            ids[at as usize] = token;
            ids[after as usize] = GONE;
            lengths[at as usize] += lengths[after as usize];
            let behind = next[after as usize];
            next[at as usize] = behind;
            if behind < num {
                previous[behind as usize] = at;
                let (rank, _) = rank_at(ids, at, behind);
                if rank != NO_RANK {
                    queue.push(Reverse((rank, at)));
                }
            }
            let before = previous[at as usize];
            if before != GONE {
                let (rank, _) = rank_at(ids, before, at);
                if rank != NO_RANK {
                    queue.push(Reverse((rank, before)));
                }
            }
        }
        let mut kept = ids.iter().map(|id| *id != GONE);
        lengths.retain(|_| kept.next().unwrap_or(false));
        ids.retain(|id| *id != GONE);
    }
}
