//! Words of text, 64 bytes at a time: classes are bit masks, and the boundaries of a regex become shifts, ands and
//! carries on them. Not a guess about the text: whatever a block cannot decide is left to the plain scanner.
//!
//! A block always begins where a word begins, so no state crosses from block to block. In a block, a *start* is a bit
//! where a word begins. Bits at or beyond `limit` may depend on characters that the block does not show and are not
//! used; the next block begins at the last start before it.

// Called from two places, each rule would become a function of its own: a third more time on English.
#![allow(clippy::inline_always)]

use std::arch::x86_64::_pdep_u64;

use super::masks::{Block, Masks, below};
use super::pattern::Pattern;
use super::scan::Scanner;

/// Most blocks have fewer words: so many ends are written without asking, and those that are none do not count.
const MANY: usize = 16;

/// Starts, and the limit below which they are certain.
type Starts = (u64, u32);

/// First bits of the runs in `set`.
#[inline]
fn firsts(set: u64) -> u64 {
    set & !(set << 1)
}

/// Characters of the contraction after the apostrophe at byte `i`, or 0. Needs the three bytes from `i`.
#[inline]
fn contraction(block: &[u8; 64], i: u32, any_case: bool) -> u32 {
    let at = |k: u32| block[((i + k) & 63) as usize];
    let fold = |k: u32| at(k) | if any_case { 0x20 } else { 0 };
    match (fold(1), fold(2)) {
        (b's' | b't' | b'm' | b'd', _) => 1,
        (b'r' | b'v', b'e') | (b'l', b'l') => 2,
        // U+017F folds to `s`.
        _ => u32::from(any_case && (at(1), at(2)) == (0xC5, 0xBF)),
    }
}

/// Calls `found` with the apostrophe and the end of each contraction among the `candidates`. Returns the first of them
/// whose letters the block does not show.
#[inline(always)]
fn contractions(
    m: &Masks,
    block: &[u8; 64],
    mut candidates: u64,
    any_case: bool,
    mut found: impl FnMut(u32, u32),
) -> u32 {
    while candidates != 0 {
        let i = candidates.trailing_zeros();
        candidates &= candidates - 1;
        if i + 3 > m.shown {
            return i;
        }
        let len = contraction(block, m.byte(i), any_case);
        if len > 0 {
            found(i, i + 1 + len);
        }
    }
    64
}

/// ` ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` and contractions; `digits`: each number is cut out before.
#[inline(always)]
fn gpt2(m: &Masks, block: &[u8; 64], digits: bool) -> Starts {
    let limit = m.shown.min(m.open_spaces() + 1);
    let after_space = m.space << 1;
    let mut last_spaces = m.spaces & !(m.spaces >> 1);
    let mut starts = (firsts(m.letters) | firsts(m.signs)) & !after_space;
    if digits {
        last_spaces &= !(m.numbers >> 1);
        starts |= m.numbers;
    } else {
        starts |= firsts(m.numbers) & !after_space;
    }
    starts |= firsts(m.spaces) | last_spaces;
    let unseen = contractions(m, block, m.apostrophes & firsts(m.signs) & !after_space, false, |i, end| {
        starts &= !(3 << (i + 1));
        starts |= 1u64.checked_shl(end).unwrap_or(0);
    });
    (starts, limit.min(unseen))
}

/// Starts inside white space, for patterns with `\s*[\r\n]+|\s+(?!\S)|\s+`; `spaces` are those no earlier word took.
/// `cut_before`: before these the last of the white space stays with the rest.
#[inline]
fn line_spaces(m: &Masks, spaces: u64, cut_before: u64) -> u64 {
    let blanks = m.spaces & !m.newlines;
    let newlines = m.newlines & spaces;
    // After the last line break of a run, unless another follows the blanks.
    let mut after = newlines << 1 & blanks;
    let mut joined = blanks.wrapping_add(after) & !blanks & newlines;
    while joined != 0 {
        let before = after & ((joined & joined.wrapping_neg()) - 1);
        after &= !(before.checked_ilog2().map_or(0, |last| 1 << last));
        joined &= joined - 1;
    }
    firsts(spaces) | after | blanks & !(m.spaces >> 1) & !(cut_before >> 1)
}

/// Starts of numbers in runs of at most `most`.
#[inline]
fn number_starts(numbers: u64, most: u8) -> u64 {
    if most == 1 {
        return numbers;
    }
    let mut starts = firsts(numbers);
    let mut next = starts << 3 & numbers << 1 & numbers << 2 & numbers;
    while next != 0 {
        starts |= next;
        next = next << 3 & numbers << 1 & numbers << 2 & numbers;
    }
    starts
}

/// cl100k and its children; in ASCII they differ in `digits` only.
#[inline(always)]
fn cl100k(m: &Masks, block: &[u8; 64], digits: u8) -> Starts {
    let limit = m.shown.min(m.open_spaces() + 1);
    // Line breaks right after signs belong to them.
    let taken = m.newlines & !m.newlines.wrapping_add(m.signs << 1 & m.newlines);
    let sign_starts = firsts(m.signs) & !(m.space << 1);
    let prefixes = sign_starts & m.letters >> 1;
    let blanks = m.spaces & !m.newlines;
    let mut starts = line_spaces(m, m.spaces & !taken, 0);
    starts |= sign_starts | number_starts(m.numbers, digits);
    starts |= firsts(m.letters) & !(blanks << 1) & !(prefixes << 1);
    let unseen = contractions(m, block, m.apostrophes & prefixes, true, |_, end| {
        starts |= 1u64.checked_shl(end).unwrap_or(0);
    });
    (starts, limit.min(unseen))
}

/// o200k and Tekken.
#[inline(always)]
fn o200k(m: &Masks, block: &[u8; 64], digits: u8, keeps_contractions: bool) -> Starts {
    let mut limit = m.shown.min(m.open_spaces() + 1);
    // Line breaks and slashes after signs belong to them. A slash is a sign too, so only one that follows a taken line
    // break is special; if another line break follows that, the sum below would count it twice.
    let tail = m.newlines | m.slashes;
    let after_newline = m.newlines << 1 & m.slashes;
    let again = m.slashes.wrapping_add(after_newline) & !m.slashes & m.newlines;
    if again != 0 {
        limit = limit.min(after_newline.trailing_zeros());
    }
    let taken = tail & !tail.wrapping_add(m.signs << 1 & m.newlines);
    let signs = m.signs & !taken;
    let sign_starts = firsts(signs) & !(m.space << 1);
    let prefixes = sign_starts & m.letters >> 1;
    let blanks = m.spaces & !m.newlines;
    let mut starts = line_spaces(m, m.spaces & !taken, 0);
    starts |= sign_starts | number_starts(m.numbers, digits);
    starts |= firsts(m.letters) & !(blanks << 1) & !(prefixes << 1);
    starts |= m.upper & (m.letters & !m.upper) << 1;
    // What a word of upper case next to letters without case does depends on what follows.
    limit = limit.min((m.upper & m.caseless << 1 | m.caseless & m.upper << 1).trailing_zeros());
    let candidates = if keeps_contractions { m.apostrophes & m.letters << 1 } else { 0 };
    let mut last = 0;
    let unseen = contractions(m, block, candidates, true, |i, end| {
        // Behind another contraction the apostrophe begins a word.
        if i != last {
            last = end;
            starts &= !(below(end) & !below(i));
            starts |= 1u64.checked_shl(end).unwrap_or(0);
        }
    });
    (starts, limit.min(unseen))
}

/// `DeepSeek`-V3. A control ends what the block shows: it may be a prefix, or a gap.
#[inline(always)]
fn deepseek(m: &Masks) -> Starts {
    let limit = m.shown.min(m.open_spaces() + 1).min(m.controls.trailing_zeros());
    let taken = m.newlines & !m.newlines.wrapping_add(m.signs << 1 & m.newlines);
    let sign_starts = firsts(m.signs) & !(m.space << 1);
    // A sign and letters that stay together are ASCII, and a letter that is not begins a word behind them.
    let ascii_letters = m.letters & !m.wide;
    let prefixes = sign_starts & !m.wide & ascii_letters >> 1;
    let behind = ascii_letters.wrapping_add(prefixes << 1) & !ascii_letters & m.letters;
    let blanks = m.spaces & !m.newlines;
    let mut starts = line_spaces(m, m.spaces & !taken, m.numbers | m.han);
    starts |= sign_starts | number_starts(m.numbers, 3) | behind | firsts(m.han);
    starts |= firsts(m.letters) & !(blanks << 1) & !(prefixes << 1);
    (starts, limit)
}

/// Bytes of a block at which words start, as far as is certain; the first word starts at byte 0, which does not count.
#[inline(always)]
fn starts(pattern: Pattern, masks: &Masks, bytes: &[u8; 64]) -> u64 {
    let (starts, limit) = match pattern {
        Pattern::Gpt2 { digits } => gpt2(masks, bytes, digits),
        Pattern::Cl100k { digits, .. } => cl100k(masks, bytes, digits),
        Pattern::O200k { digits, contractions } => o200k(masks, bytes, digits, contractions),
        Pattern::DeepSeek3 => deepseek(masks),
    };
    starts & below(limit) & !1
}

/// Where words start in a block that is not all ASCII. `len` is how many bytes of it are text.
#[inline(never)]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn starts_among_wide(scanner: &Scanner, bytes: &[u8; 64], block: Block, len: u32) -> u64 {
    let masks = Masks::wide(bytes, block, len, scanner);
    _pdep_u64(starts(scanner.pattern(), &masks, bytes), masks.heads)
}

/// Appends the places of `starts`, counted from `base`.
///
/// # Safety
/// There is room for 64 more.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn push(ends: &mut Vec<usize>, base: usize, mut starts: u64) {
    let (len, count) = (ends.len(), starts.count_ones() as usize);
    // SAFETY: the caller's promise; the `count` ends are all written.
    unsafe {
        let out = ends.as_mut_ptr().add(len);
        for k in 0..MANY {
            out.add(k).write(base + starts.trailing_zeros() as usize);
            starts &= starts.wrapping_sub(1);
        }
        for k in MANY..count {
            out.add(k).write(base + starts.trailing_zeros() as usize);
            starts &= starts.wrapping_sub(1);
        }
        ends.set_len(len + count);
    }
}

/// Appends ends of words of `text`, the first of which starts at `at`, until there are `enough` or the text is done.
/// Returns where the last word ends.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(crate) fn fill(scanner: &Scanner, text: &str, mut at: usize, ends: &mut Vec<usize>, enough: usize) -> usize {
    let bytes = text.as_bytes();
    ends.reserve(enough + 64);
    // Marks end what a block shows here, and these bytes begin characters of scripts that are full of them.
    let stops_at_marks = matches!(scanner.pattern(), Pattern::O200k { .. });
    let begins_marks = |i: usize| stops_at_marks && bytes.get(i).is_some_and(|byte| byte & 0xFE == 0xE0);
    while at < bytes.len() && ends.len() < enough {
        let (mut tail, rest) = ([0; 64], &bytes[at..]);
        let block = rest.first_chunk().unwrap_or_else(|| {
            tail[..rest.len()].copy_from_slice(rest);
            &tail
        });
        let (len, masks) = (rest.len().min(64) as u32, Block::new(block));
        let starts = if begins_marks(at) || begins_marks(at + 1) {
            0
        } else if masks.wide() == 0 {
            starts(scanner.pattern(), &Masks::ascii(masks, len), block)
        } else {
            starts_among_wide(scanner, block, masks, len)
        };
        if starts == 0 {
            at = scanner.word_end(text, at);
            ends.push(at);
            continue;
        }
        // SAFETY: room for 64 behind `enough` was reserved, and there are less than `enough`.
        unsafe { push(ends, at, starts) };
        at += 63 - starts.leading_zeros() as usize;
    }
    at
}
