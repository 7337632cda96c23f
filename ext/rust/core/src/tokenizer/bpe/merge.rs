//! Bytes of one word -> ids, by the merge rules alone.
//!
//! The law that lets long words be done in windows: a sequence of tokens is the encoding of its bytes exactly when each
//! pair of neighbours is the encoding of *its* bytes. (One way: no merge crossed the outer bounds of a pair, so the pair
//! alone goes through the same merges. Other way: the first merge to cross a bound between two tokens would be the first
//! to do so in that pair alone.) It holds for any list of merges, since the choice is always the lowest rank, then the
//! leftmost place.

use super::early::{APART, EarlyScratch, Symbol};
use super::tables::{NONE, Tables};
use super::unicode::decode;

/// Symbols up to which a linear scan for the lowest rank beats a heap.
const SMALL: usize = 128;
/// Symbols up to which plain loops beat those that find the lowest of many.
const FEW: usize = 16;
/// Bytes of a window of a long word.
const WINDOW: usize = 1024;
/// Bytes from which a word is merged early where that is certain.
const EARLY: usize = 64;
/// Bytes of such words that are worth the tables for it, which take some milliseconds to make.
const MANY_LONG: usize = 1 << 14;
/// Slots of the caches below; powers of two.
const PAIRS: usize = 1 << 12;
const WINDOWS: usize = 1 << 7;

/// Working memory of the merge routines; one a thread.
#[derive(Debug)]
pub(crate) struct MergeScratch {
    ids: Vec<u32>,
    ranks: Vec<u32>,
    symbols: Vec<Symbol>,
    places: EarlyScratch,
    long_bytes: usize,
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
            symbols: Vec::new(),
            places: EarlyScratch::default(),
            long_bytes: 0,
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
pub(crate) fn encode_word(tables: &Tables, word: &[u8], scratch: &mut MergeScratch, out: &mut Vec<u32>) {
    match tables.whole_word(word) {
        Some(id) => out.push(id),
        None => encode_piece(tables, word, scratch, out),
    }
}

/// As [`encode_word`], by the merge rules alone: the word is not looked up as a whole.
pub(crate) fn encode_piece(tables: &Tables, word: &[u8], scratch: &mut MergeScratch, out: &mut Vec<u32>) {
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
    if word.len() >= EARLY {
        scratch.long_bytes = scratch.long_bytes.saturating_add(word.len());
        if scratch.long_bytes >= MANY_LONG {
            return encode_early(tables, word, scratch);
        }
    }
    let MergeScratch { ids, ranks, .. } = scratch;
    ids.clear();
    if word.is_ascii() && word.len() <= SMALL {
        ids.extend(word.iter().map(|&b| tables.byte_id(b)));
        ranks.clear();
        ranks.extend(word.windows(2).map(|pair| tables.byte_rank(pair[0], pair[1])));
        let len = merge_ranked(tables, ids, ranks);
        return ids.truncate(len);
    }
    symbols(tables, word, |id, _| ids.push(id));
    merge(tables, scratch);
}

/// Encodes `word` into `scratch.ids`: certain merges first, then each piece between certain borders.
fn encode_early(tables: &Tables, word: &[u8], scratch: &mut MergeScratch) {
    let MergeScratch { ids, ranks, symbols: found, places, heap, .. } = scratch;
    found.clear();
    if word.is_ascii() {
        tables.early().ascii(tables, word, found);
    } else {
        symbols(tables, word, |id, bytes| found.push(Symbol::new(id, bytes)));
    }
    ids.clear();
    tables.early().pieces(tables, found, places, |piece| {
        match *piece {
            [one] => return ids.push(one.id),
            [one, other] if one.rank >= APART => return ids.extend([one.id, other.id]),
            [one, _] => return ids.push(tables.joined(one.rank)),
            _ => {}
        }
        let from = ids.len();
        ids.extend(piece.iter().map(|symbol| symbol.id));
        if piece.iter().all(|symbol| symbol.rank >= APART) {
            return;
        }
        let len = if piece.len() <= SMALL {
            ranks.clear();
            ranks.extend(piece.iter().map(|symbol| symbol.rank));
            merge_ranked(tables, &mut ids[from..], ranks)
        } else {
            merge_heap(tables, &mut ids[from..], heap)
        };
        ids.truncate(from + len);
    });
}

/// Calls `found` with id and bytes of each symbol that `word` is merged from.
#[inline]
fn symbols(tables: &Tables, word: &[u8], mut found: impl FnMut(u32, &[u8])) {
    let mut i = 0;
    while i < word.len() {
        // A window may start inside a character.
        let mut len = 1;
        if word[i] >= 0xC0 {
            let (c, bytes) = decode(word, i);
            len = bytes.min(word.len() - i);
            if let Some(id) = tables.character(c, word, i, i + len) {
                found(id, &word[i..i + len]);
                i += len;
                continue;
            }
        }
        for byte in word[i..i + len].chunks(1) {
            found(tables.byte_id(byte[0]), byte);
        }
        i += len;
    }
}

/// Merges `scratch.ids` in place.
fn merge(tables: &Tables, scratch: &mut MergeScratch) {
    let MergeScratch { ids, ranks, heap, .. } = scratch;
    let len = if ids.len() <= SMALL {
        ranks.clear();
        ranks.extend(ids.windows(2).map(|pair| tables.rank(pair[0], pair[1])));
        merge_ranked(tables, ids, ranks)
    } else {
        merge_heap(tables, ids, heap)
    };
    ids.truncate(len);
}

/// Merges `ids`, where `ranks` are those of each pair and may be followed by others. Returns how many are left.
fn merge_ranked(tables: &Tables, ids: &mut [u32], ranks: &mut [u32]) -> usize {
    let mut len = ids.len();
    while len > 1 {
        let pairs = len - 1;
        let (lowest, i) = if len <= FEW { lowest_of_few(&ranks[..pairs]) } else { lowest_of_many(&ranks[..pairs]) };
        if lowest >= APART {
            break;
        }
        ids[i] = tables.joined(lowest);
        if len <= FEW {
            // Less than a call.
            for k in i + 1..pairs {
                ids[k] = ids[k + 1];
                ranks[k - 1] = ranks[k];
            }
        } else {
            ids.copy_within(i + 2..len, i + 1);
            ranks.copy_within(i + 1..pairs, i);
        }
        len -= 1;
        if i > 0 {
            ranks[i - 1] = tables.rank(ids[i - 1], ids[i]);
        }
        if i + 1 < len {
            ranks[i] = tables.rank(ids[i], ids[i + 1]);
        }
    }
    len
}

/// The lowest rank and its first place.
#[inline]
fn lowest_of_many(ranks: &[u32]) -> (u32, usize) {
    let lowest = ranks.iter().copied().min().unwrap_or(NONE);
    (lowest, ranks.iter().position(|&rank| rank == lowest).unwrap_or(0))
}

/// As [`lowest_of_many`], without a branch that depends on the ranks.
#[inline]
fn lowest_of_few(ranks: &[u32]) -> (u32, usize) {
    // The place in the low bits makes the first of equal ranks the lowest.
    let both = ranks.iter().zip(0u64..).map(|(&rank, i)| u64::from(rank) << 32 | i).min().unwrap_or(u64::MAX);
    ((both >> 32) as u32, both as u32 as usize)
}

/// Merges `ids` with a heap of `(rank, place, left id, right id)` instead of a list of ranks; an entry whose pair has gone
/// is passed over.
fn merge_heap(tables: &Tables, ids: &mut [u32], HeapScratch { queue, previous, next }: &mut HeapScratch) -> usize {
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
    let mut kept = 0;
    for i in 0..len {
        ids[kept] = ids[i];
        kept += usize::from(ids[i] != NONE);
    }
    kept
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
        let kept_to = if end == word.len() { end } else { end - (end - start) / 16 };
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

#[cfg(test)]
mod tests {
    use super::super::cuts::tests::random_tables;
    use super::*;

    /// The definition: the lowest rank, then the leftmost place, again and again.
    fn by_definition(tables: &Tables, word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = word.iter().map(|&b| tables.byte_id(b)).collect();
        loop {
            let ranked = ids.windows(2).enumerate().map(|(i, pair)| (tables.rank(pair[0], pair[1]), i));
            match ranked.min() {
                Some((rank, i)) if rank != NONE => drop(ids.splice(i..i + 2, [tables.joined(rank)])),
                _ => return ids,
            }
        }
    }

    #[test]
    fn certain_steps_give_what_the_rules_give_for_any_rules() {
        let texts = [
            "aaabaabbbabaaaabbababbbbaabaaaaabbbbbaababaabbabbaaaaaabab",
            "aabaacaabcaaabbaaccaaaabbbbccccaaaaabcaaaaaacabaab  \n\n \t\n\n   \t\t\n\n \n  ",
            "abracadabra banana bandana abba baobab caaaab cabbcab aabbaabb acacbabc bbbbbbbbb abcabcabcabd",
            "съешь ещё этих мягких французских булок да выпей чаю же the quick brown fox jumps over это не то",
            "中文分词是自然语言处理的基础日本語の文章を分けます한국어 문장도 naïve café «мир» 𠮷野家 plain ASCII",
        ];
        let (mut pieces, mut early, mut scratch) = (0, 0, MergeScratch::default());
        for seed in 0..250u64 {
            let mut state = seed;
            let mut draw = |below: usize| {
                state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                (state >> 33) as usize % below
            };
            let text = texts[seed as usize % texts.len()];
            let chars: Vec<char> = text.chars().collect();
            let tables = random_tables(text, seed / texts.len() as u64, &mut draw);
            for _ in 0..60 {
                let few = 3 + draw(chars.len() - 3);
                let mut word = String::new();
                for _ in 0..=draw(200) {
                    let run = if draw(12) == 0 { draw(20) } else { 1 };
                    word.extend(std::iter::repeat_n(chars[draw(few)], run));
                }
                let expected = by_definition(&tables, word.as_bytes());
                encode_early(&tables, word.as_bytes(), &mut scratch);
                assert_eq!(scratch.ids, expected, "seed {seed}: {word:?}");
                let (mut found, mut count) = (Vec::new(), 0);
                symbols(&tables, word.as_bytes(), |id, bytes| found.push(Symbol::new(id, bytes)));
                let mut left = 0;
                let before = found.len();
                tables.early().pieces(&tables, &mut found, &mut EarlyScratch::default(), |piece| {
                    count += 1;
                    left += piece.len();
                });
                early += before - left;
                pieces += count - 1;
            }
        }
        assert!(pieces > 50_000 && early > 3000, "{pieces} borders and {early} merges were certain");
    }
}
