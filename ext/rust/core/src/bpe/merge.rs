//! Bytes of one word -> ids, by the merge rules alone.
//!
//! The law that lets long words be done in windows: a sequence of tokens is the encoding of its bytes exactly when each
//! pair of neighbours is the encoding of *its* bytes. (One way: no merge crossed the outer bounds of a pair, so the pair
//! alone goes through the same merges. Other way: the first merge to cross a bound between two tokens would be the first
//! to do so in that pair alone.) It holds for any list of merges, since the choice is always the lowest rank, then the
//! leftmost place.

use super::{tables::Tables, unicode::decode};

/// Symbols up to which a linear scan for the lowest rank beats a heap.
const SMALL: usize = 128;
/// Bytes of a window of a long word.
const WINDOW: usize = 112;
/// Slots of the caches below; powers of two.
const PAIRS: usize = 1 << 12;
const WINDOWS: usize = 1 << 9;

const NONE: u32 = u32::MAX;

/// Working memory of the merge routines; one a thread.
#[derive(Debug)]
pub struct MergeScratch {
    ids: Vec<u32>,
    ranks: Vec<u32>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    heap: HeapScratch,
    /// `(left, right, are neighbours)` of pairs asked about before.
    pairs: Box<[(u32, u32, bool)]>,
    windows: Box<[(Vec<u8>, Vec<u32>)]>,
}

impl Default for MergeScratch {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            ranks: Vec::new(),
            bytes: Vec::new(),
            ends: Vec::new(),
            heap: HeapScratch::default(),
            pairs: vec![(NONE, NONE, false); PAIRS].into(),
            windows: vec![(Vec::new(), Vec::new()); WINDOWS].into(),
        }
    }
}

#[derive(Debug, Default)]
struct HeapScratch {
    queue: std::collections::BinaryHeap<std::cmp::Reverse<(u32, u32, u32, u32)>>,
    previous: Vec<u32>,
    next: Vec<u32>,
}

/// Appends the ids of `word`, which starts and ends at character boundaries, to `out`.
pub fn encode_word(tables: &Tables, word: &[u8], scratch: &mut MergeScratch, out: &mut Vec<u32>) {
    match tables.whole_word(word) {
        Some(id) => out.push(id),
        None => encode_piece(tables, word, scratch, out),
    }
}

/// The same by the rules alone: no look-up of the whole.
pub fn encode_piece(tables: &Tables, word: &[u8], scratch: &mut MergeScratch, out: &mut Vec<u32>) {
    if tables.drops_from(word) {
        // What is left need not be UTF-8, so every symbol is a byte.
        scratch.ids.clear();
        scratch.ids.extend(word.iter().map(|&b| tables.byte_id(b)).filter(|&id| id != NONE));
        merge(tables, scratch);
        out.extend_from_slice(&scratch.ids);
    } else if word.len() <= WINDOW {
        encode_window(tables, word, scratch);
        out.extend_from_slice(&scratch.ids);
    } else {
        encode_long(tables, word, scratch, out);
    }
}

/// `scratch.ids` becomes the encoding of `word`, started from whole characters where that is proven safe.
fn encode_window(tables: &Tables, word: &[u8], scratch: &mut MergeScratch) {
    scratch.ids.clear();
    if word.is_ascii() {
        scratch.ids.extend(word.iter().map(|&b| tables.byte_id(b)));
        scratch.ranks.clear();
        scratch.ranks.extend(word.windows(2).map(|pair| tables.byte_rank(pair[0], pair[1])));
        return merge_ranked(tables, scratch);
    }
    let mut i = 0;
    while i < word.len() {
        // A window may start inside a character.
        if word[i] < 0xC0 {
            scratch.ids.push(tables.byte_id(word[i]));
            i += 1;
            continue;
        }
        let (c, len) = decode(word, i);
        let len = len.min(word.len() - i);
        match tables.character(c, word, i, i + len) {
            Some(id) => scratch.ids.push(id),
            None => scratch.ids.extend(word[i..i + len].iter().map(|&b| tables.byte_id(b))),
        }
        i += len;
    }
    merge(tables, scratch);
}

/// Merges `scratch.ids` in place.
fn merge(tables: &Tables, scratch: &mut MergeScratch) {
    if scratch.ids.len() <= SMALL { merge_small(tables, scratch) } else { merge_heap(tables, scratch) }
}

fn merge_small(tables: &Tables, scratch: &mut MergeScratch) {
    let MergeScratch { ids, ranks, .. } = scratch;
    ranks.clear();
    ranks.extend(ids.windows(2).map(|pair| tables.rank(pair[0], pair[1])));
    merge_ranked(tables, scratch);
}

/// `ranks` are those of each pair of `ids`.
fn merge_ranked(tables: &Tables, scratch: &mut MergeScratch) {
    let MergeScratch { ids, ranks, .. } = scratch;
    let mut len = ids.len();
    while len > 1 {
        let pairs = len - 1;
        let lowest = ranks[..pairs].iter().copied().min().unwrap_or(NONE);
        if lowest == NONE {
            break;
        }
        let Some(i) = ranks[..pairs].iter().position(|&rank| rank == lowest) else { break };
        ids[i] = tables.joined(lowest);
        ids.copy_within(i + 2..len, i + 1);
        ranks.copy_within(i + 1..pairs, i);
        len -= 1;
        if i > 0 {
            ranks[i - 1] = tables.rank(ids[i - 1], ids[i]);
        }
        if i + 1 < len {
            ranks[i] = tables.rank(ids[i], ids[i + 1]);
        }
    }
    ids.truncate(len);
}

/// The same with a heap of `(rank, place, left id, right id)`; an entry whose pair has gone is passed over.
fn merge_heap(tables: &Tables, scratch: &mut MergeScratch) {
    let MergeScratch { ids, heap: HeapScratch { queue, previous, next }, .. } = scratch;
    let len = ids.len();
    queue.clear();
    previous.clear();
    next.clear();
    previous.extend((0..len as u32).map(|i| i.wrapping_sub(1)));
    next.extend(1..=len as u32);
    let entry = |place: u32, left: u32, right: u32| {
        let rank = tables.rank(left, right);
        (rank != NONE).then_some(std::cmp::Reverse((rank, place, left, right)))
    };
    queue.extend((0u32..).zip(ids.windows(2)).filter_map(|(i, pair)| entry(i, pair[0], pair[1])));
    while let Some(std::cmp::Reverse((rank, place, left, right))) = queue.pop() {
        let i = place as usize;
        let j = next[i] as usize;
        // A symbol that was merged into its left neighbour is marked with an id that no token has.
        if ids[i] != left || j >= len || ids[j] != right {
            continue;
        }
        ids[i] = tables.joined(rank);
        ids[j] = NONE;
        next[i] = next[j];
        if let Some(after) = previous.get_mut(next[j] as usize) {
            *after = place;
        }
        if let Some(&before) = ids.get(previous[i] as usize) {
            queue.extend(entry(previous[i], before, ids[i]));
        }
        if let Some(&after) = ids.get(next[i] as usize) {
            queue.extend(entry(place, ids[i], after));
        }
    }
    ids.retain(|&id| id != NONE);
}

/// Whether `left` and `right` stand side by side in the encoding of their joined bytes.
fn are_neighbours(tables: &Tables, left: u32, right: u32, scratch: &mut MergeScratch) -> bool {
    let slot = (left.wrapping_mul(0x9E37_79B1) ^ right.wrapping_mul(0x85EB_CA77)) as usize >> 7 & (PAIRS - 1);
    let known = scratch.pairs[slot];
    if (known.0, known.1) == (left, right) {
        return known.2;
    }
    scratch.bytes.clear();
    scratch.bytes.extend_from_slice(tables.token(left));
    scratch.bytes.extend_from_slice(tables.token(right));
    scratch.ids.clear();
    scratch.ids.extend(scratch.bytes.iter().map(|&b| tables.byte_id(b)));
    merge(tables, scratch);
    let answer = scratch.ids == [left, right];
    scratch.pairs[slot] = (left, right, answer);
    answer
}

/// `encode_window`, remembering what it found: repetitive text asks for the same windows again and again.
fn encode_window_cached(tables: &Tables, window: &[u8], scratch: &mut MergeScratch) {
    if window.len() > 8 * WINDOW {
        return encode_window(tables, window, scratch);
    }
    let slot = xxhash_rust::xxh3::xxh3_64(window) as usize & (WINDOWS - 1);
    if scratch.windows[slot].0 == window {
        let MergeScratch { ids, windows, .. } = scratch;
        ids.clone_from(&windows[slot].1);
        return;
    }
    encode_window(tables, window, scratch);
    let MergeScratch { ids, windows, .. } = scratch;
    windows[slot].0.clear();
    windows[slot].0.extend_from_slice(window);
    windows[slot].1.clone_from(ids);
}

/// A long word in overlapping windows, so that no input costs more than a constant a byte: each window's first tokens
/// are kept, the next window starts after them, and where the two do not fit (see the law above) a wider one is taken.
fn encode_long(tables: &Tables, word: &[u8], scratch: &mut MergeScratch, out: &mut Vec<u32>) {
    let base = out.len();
    let (mut start, mut width) = (0, WINDOW);
    scratch.ends.clear();
    while start < word.len() {
        let mut end = (start + width).min(word.len());
        while end < word.len() && word[end] & 0xC0 == 0x80 {
            end -= 1;
        }
        encode_window_cached(tables, &word[start..end], scratch);
        let first = scratch.ids[0];
        if out.len() > base && !are_neighbours(tables, out[out.len() - 1], first, scratch) {
            let floor = start.saturating_sub(width / 2);
            while start > floor {
                out.pop();
                scratch.ends.pop();
                start = scratch.ends.last().copied().unwrap_or(0);
            }
            width *= 2;
            continue;
        }
        encode_window_cached(tables, &word[start..end], scratch);
        let kept_to = if end == word.len() { end } else { start + (end - start) * 3 / 4 };
        let mut at = start;
        for &id in &scratch.ids {
            let token_end = at + tables.token_len(id);
            if token_end > kept_to {
                break;
            }
            at = token_end;
            out.push(id);
            scratch.ends.push(at);
        }
        width = if at == start { width * 2 } else { WINDOW };
        start = at;
    }
}
