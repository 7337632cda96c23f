//! Words of ASCII text, 64 bytes at a time: classes become bit masks, and the boundaries of a regex become shifts, ands
//! and carries on them. Not a guess about the text: whatever a block cannot decide is left to the plain scanner.
//!
//! A block always begins where a word begins, so no state crosses from block to block. In a block, a *start* is a bit
//! where a word begins. Bits at or beyond `limit` may depend on bytes that the block does not show (they lie behind its
//! end, or are not ASCII) and are not used; the next block begins at the last start before it.

use std::arch::x86_64::{
    __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_slli_epi16, _mm256_sub_epi8,
};

use super::pattern::Pattern;
use super::scan::Scanner;

/// Where each class of ASCII characters stands in a block; bits from the end of what it shows are clear.
struct Masks {
    letters: u64,
    upper: u64,
    numbers: u64,
    space: u64,
    newlines: u64,
    /// All white space.
    spaces: u64,
    apostrophes: u64,
    slashes: u64,
    /// Everything else that is ASCII.
    signs: u64,
    /// Controls that are not white space; part of `signs`.
    controls: u64,
    /// How many bytes the block shows: those before the first that is not ASCII.
    shown: u32,
}

/// Most blocks have fewer words: so many ends are written without asking, and those that are none do not count.
const MANY: usize = 16;

/// The bits below `n`.
#[inline]
fn below(n: u32) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

impl Masks {
    /// `len` is how many bytes of the block are text.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn new(block: &[u8; 64], len: u32) -> Self {
        // SAFETY: both loads lie inside the 64 bytes of `block`, and need no alignment.
        #[allow(clippy::cast_ptr_alignment)]
        let (low, high) = unsafe {
            let low = block.as_ptr().cast::<__m256i>();
            (_mm256_loadu_si256(low), _mm256_loadu_si256(low.add(1)))
        };
        let bits = |low, high| {
            u64::from(_mm256_movemask_epi8(low) as u32) | u64::from(_mm256_movemask_epi8(high) as u32) << 32
        };
        let is = |c: u8| {
            let c = _mm256_set1_epi8(c as i8);
            bits(_mm256_cmpeq_epi8(low, c), _mm256_cmpeq_epi8(high, c))
        };
        // Bytes from `first` to `last`, which wrap round to below the distance.
        let between = |low, high, first: u8, last: u8| {
            let (first, most) = (_mm256_set1_epi8(first as i8), _mm256_set1_epi8((last - first) as i8));
            let (low, high) = (_mm256_sub_epi8(low, first), _mm256_sub_epi8(high, first));
            let low = _mm256_cmpeq_epi8(_mm256_min_epu8(low, most), low);
            bits(low, _mm256_cmpeq_epi8(_mm256_min_epu8(high, most), high))
        };
        let case = _mm256_set1_epi8(0x20);
        let letters = between(_mm256_or_si256(low, case), _mm256_or_si256(high, case), b'a', b'z');
        // Bit 5, which is clear in upper case, shifted to where the mask is taken from.
        let lower = bits(_mm256_slli_epi16::<2>(low), _mm256_slli_epi16::<2>(high));
        let shown = len.min(bits(low, high).trailing_zeros());
        let ascii = below(shown);
        let (numbers, space, newlines) = (between(low, high, b'0', b'9'), is(b' '), is(b'\n') | is(b'\r'));
        let spaces = between(low, high, 9, 13) | space;
        let controls = (between(low, high, 0, 0x1F) | is(0x7F)) & !spaces;
        Self {
            letters: letters & ascii,
            upper: letters & !lower & ascii,
            numbers: numbers & ascii,
            space: space & ascii,
            newlines: newlines & ascii,
            spaces: spaces & ascii,
            apostrophes: is(b'\'') & ascii,
            slashes: is(b'/') & ascii,
            signs: !(letters | numbers | spaces) & ascii,
            controls: controls & ascii,
            shown,
        }
    }

    /// The first of the white space that the block ends with: what follows it decides how it is cut.
    #[inline]
    fn open_spaces(&self) -> u32 {
        let others = !self.spaces & below(self.shown);
        64 - others.leading_zeros()
    }
}

/// Starts, and the limit below which they are certain.
type Starts = (u64, u32);

/// First bits of the runs in `set`.
#[inline]
fn firsts(set: u64) -> u64 {
    set & !(set << 1)
}

/// Bytes of the contraction after the apostrophe at `i`, or 0. Needs the three bytes from `i`.
#[inline]
fn contraction(block: &[u8; 64], i: u32, any_case: bool) -> u32 {
    let at = |k: u32| block[((i + k) & 63) as usize] | if any_case { 0x20 } else { 0 };
    match (at(1), at(2)) {
        (b's' | b't' | b'm' | b'd', _) => 1,
        (b'r' | b'v', b'e') | (b'l', b'l') => 2,
        _ => 0,
    }
}

/// ` ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` and contractions; `digits`: each number is cut out before.
#[inline]
fn gpt2(m: &Masks, block: &[u8; 64], digits: bool) -> Starts {
    let mut limit = m.shown.min(m.open_spaces() + 1);
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
    let mut candidates = m.apostrophes & firsts(m.signs) & !after_space;
    while candidates != 0 {
        let i = candidates.trailing_zeros();
        candidates &= candidates - 1;
        if i + 3 > m.shown {
            limit = limit.min(i);
            break;
        }
        let len = contraction(block, i, false);
        if len > 0 {
            starts &= !(3 << (i + 1));
            starts |= 1u64.checked_shl(i + 1 + len).unwrap_or(0);
        }
    }
    (starts, limit)
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
#[inline]
fn cl100k(m: &Masks, block: &[u8; 64], digits: u8) -> Starts {
    let mut limit = m.shown.min(m.open_spaces() + 1);
    // Line breaks right after signs belong to them.
    let taken = m.newlines & !m.newlines.wrapping_add(m.signs << 1 & m.newlines);
    let sign_starts = firsts(m.signs) & !(m.space << 1);
    let prefixes = sign_starts & m.letters >> 1;
    let blanks = m.spaces & !m.newlines;
    let mut starts = line_spaces(m, m.spaces & !taken, 0);
    starts |= sign_starts | number_starts(m.numbers, digits);
    starts |= firsts(m.letters) & !(blanks << 1) & !(prefixes << 1);
    let mut candidates = m.apostrophes & prefixes;
    while candidates != 0 {
        let i = candidates.trailing_zeros();
        candidates &= candidates - 1;
        if i + 3 > m.shown {
            limit = limit.min(i);
            break;
        }
        let len = contraction(block, i, true);
        if len > 0 {
            starts |= 1u64.checked_shl(i + 1 + len).unwrap_or(0);
        }
    }
    (starts, limit)
}

/// o200k and Tekken.
#[inline]
fn o200k(m: &Masks, block: &[u8; 64], digits: u8, contractions: bool) -> Starts {
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
    let mut candidates = if contractions { m.apostrophes & m.letters << 1 } else { 0 };
    let mut end = 0;
    while candidates != 0 {
        let i = candidates.trailing_zeros();
        candidates &= candidates - 1;
        if i + 3 > m.shown {
            limit = limit.min(i);
            break;
        }
        let len = contraction(block, i, true);
        // Behind another contraction the apostrophe begins a word.
        if len > 0 && i != end {
            end = i + 1 + len;
            starts &= !(below(end) & !below(i));
            starts |= 1u64.checked_shl(end).unwrap_or(0);
        }
    }
    (starts, limit)
}

/// `DeepSeek`-V3. A control ends what the block shows: it may be a prefix, or a gap.
#[inline]
fn deepseek(m: &Masks) -> Starts {
    let limit = m.shown.min(m.open_spaces() + 1).min(m.controls.trailing_zeros());
    let taken = m.newlines & !m.newlines.wrapping_add(m.signs << 1 & m.newlines);
    let sign_starts = firsts(m.signs) & !(m.space << 1);
    let prefixes = sign_starts & m.letters >> 1;
    let blanks = m.spaces & !m.newlines;
    let mut starts = line_spaces(m, m.spaces & !taken, m.numbers);
    starts |= sign_starts | number_starts(m.numbers, 3);
    starts |= firsts(m.letters) & !(blanks << 1) & !(prefixes << 1);
    (starts, limit)
}

/// Appends ends of words of `text`, the first of which starts at `at`, until there are `enough` or the text is done.
/// Returns where the last word ends.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub fn fill(scanner: &Scanner, text: &str, mut at: usize, ends: &mut Vec<usize>, enough: usize) -> usize {
    let bytes = text.as_bytes();
    ends.reserve(enough + 64);
    while at < bytes.len() && ends.len() < enough {
        // A block would show nothing, or one space in front of a word.
        if bytes[at] >= 0x80 || bytes.get(at + 1).is_some_and(|&next| next >= 0x80) {
            at = scanner.word_end(text, at);
            ends.push(at);
            continue;
        }
        let mut tail = [0; 64];
        let rest = &bytes[at..];
        let (block, len) = if let Some(block) = rest.first_chunk::<64>() {
            (block, 64)
        } else {
            tail[..rest.len()].copy_from_slice(rest);
            (&tail, rest.len() as u32)
        };
        let masks = Masks::new(block, len);
        let (starts, limit) = match scanner.pattern() {
            Pattern::Gpt2 { digits } => gpt2(&masks, block, digits),
            Pattern::Cl100k { digits, .. } => cl100k(&masks, block, digits),
            Pattern::O200k { digits, contractions } => o200k(&masks, block, digits, contractions),
            Pattern::DeepSeek3 => deepseek(&masks),
        };
        let mut starts = starts & below(limit) & !1;
        if starts == 0 {
            at = scanner.word_end(text, at);
            ends.push(at);
            continue;
        }
        let base = at;
        at = base + 63 - starts.leading_zeros() as usize;
        let (len, count) = (ends.len(), starts.count_ones() as usize);
        // SAFETY: room for 64 behind `enough` was reserved and `len < enough`; the `count` ends are all written.
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
    at
}
