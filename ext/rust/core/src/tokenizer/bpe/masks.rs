//! Classes of characters in 64 bytes of text, as bit masks: a bit a character, of however many bytes.

use std::arch::x86_64::{
    __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_slli_epi16, _mm256_sub_epi8, _pext_u64,
};

use super::pattern::Pattern;
use super::pattern::class::{
    BLANK, CASELESS, CUT, HAN, HAN_OTHER, HAN_SIGN, LOWER, MARK, NUMBER, OTHER, PUNCTUATION, UPPER,
};
use super::scan::Scanner;

/// Where each class stands; bits from the end of what the block shows are clear.
pub(crate) struct Masks {
    pub(crate) letters: u64,
    pub(crate) upper: u64,
    /// Letters that are neither upper nor lower case.
    pub(crate) caseless: u64,
    pub(crate) numbers: u64,
    pub(crate) space: u64,
    pub(crate) newlines: u64,
    /// All white space.
    pub(crate) spaces: u64,
    pub(crate) apostrophes: u64,
    pub(crate) slashes: u64,
    /// Everything else.
    pub(crate) signs: u64,
    /// ASCII controls that are not white space; part of `signs`.
    pub(crate) controls: u64,
    /// What `DeepSeek` calls Han.
    pub(crate) han: u64,
    /// What is not ASCII.
    pub(crate) wide: u64,
    /// How many characters the block shows.
    pub(crate) shown: u32,
    /// Which bytes characters start with; all bits are set where bytes are characters.
    pub(crate) heads: u64,
}

/// So many characters that are not ASCII are worth asking which of them are surely letters.
const MANY: u32 = 4;

/// The bits below `n`.
#[inline]
pub(crate) fn below(n: u32) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// 64 bytes of text; the rest of a shorter one is zero.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    low: __m256i,
    high: __m256i,
}

impl Block {
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn new(bytes: &[u8; 64]) -> Self {
        // SAFETY: both loads lie inside the 64 bytes, and need no alignment.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            let low = bytes.as_ptr().cast::<__m256i>();
            Self { low: _mm256_loadu_si256(low), high: _mm256_loadu_si256(low.add(1)) }
        }
    }

    /// The highest bit of each byte.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn bits(self) -> u64 {
        u64::from(_mm256_movemask_epi8(self.low) as u32) | u64::from(_mm256_movemask_epi8(self.high) as u32) << 32
    }

    /// Which bytes are not ASCII.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn wide(self) -> u64 {
        self.bits()
    }

    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn is(self, byte: u8) -> u64 {
        let byte = _mm256_set1_epi8(byte as i8);
        Self { low: _mm256_cmpeq_epi8(self.low, byte), high: _mm256_cmpeq_epi8(self.high, byte) }.bits()
    }

    /// Which bytes are from `first` to `last`.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn between(self, first: u8, last: u8) -> u64 {
        // Those below wrap round to above the distance.
        let (first, most) = (_mm256_set1_epi8(first as i8), _mm256_set1_epi8((last - first) as i8));
        let (low, high) = (_mm256_sub_epi8(self.low, first), _mm256_sub_epi8(self.high, first));
        let low = _mm256_cmpeq_epi8(_mm256_min_epu8(low, most), low);
        Self { low, high: _mm256_cmpeq_epi8(_mm256_min_epu8(high, most), high) }.bits()
    }

    /// ASCII letters, and which bytes have bit 5 clear, as upper case has.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn letters(self) -> (u64, u64) {
        let case = _mm256_set1_epi8(0x20);
        let folded = Self { low: _mm256_or_si256(self.low, case), high: _mm256_or_si256(self.high, case) };
        // The bit goes to where masks are taken from.
        let bit = Self { low: _mm256_slli_epi16::<2>(self.low), high: _mm256_slli_epi16::<2>(self.high) };
        (folded.between(b'a', b'z'), !bit.bits())
    }

    /// The first bytes of most Han, kana and Hangul: letters without case. `DeepSeek`'s Han and kana are the first of the
    /// two. `leads` are the first bytes of all characters.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn east_asian(self, leads: u64) -> (u64, u64) {
        let second = |first: u8, last: u8| self.between(first, last) >> 1;
        let third = |first: u8, last: u8| self.between(first, last) >> 2;
        let han = self.between(0xE5, 0xE8) | self.is(0xE4) & second(0xB8, 0xBF) | self.is(0xE9) & second(0x80, 0xBD);
        let kana = self.is(0xE3)
            & (second(0x81, 0x81) & third(0x81, 0xBF)
                | second(0x82, 0x82) & (third(0x80, 0x96) | third(0xA1, 0xBF))
                | second(0x83, 0x83) & !third(0xBB, 0xBB));
        let hangul = self.between(0xEB, 0xEC) | self.is(0xEA) & second(0xB0, 0xBF) | self.is(0xED) & second(0x80, 0x9D);
        (leads & (han | kana), leads & hangul)
    }

    /// The first bytes of Cyrillic letters, U+0400 to U+047F, of either case.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn cyrillic(self) -> u64 {
        self.is(0xD0) | self.is(0xD1) & self.between(0x80, 0xBF) >> 1
    }
}

/// The first bytes of characters that are not ASCII, by class.
#[derive(Default)]
struct Sets([u64; 16]);

impl Sets {
    #[inline]
    fn index(class: u16) -> usize {
        class.trailing_zeros() as usize & 15
    }

    #[inline]
    fn of(&self, class: u16) -> u64 {
        self.0[Self::index(class)]
    }

    /// Reads the characters that start at `left`, and returns where the first is that has a class in `stops`.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn read(&mut self, bytes: &[u8; 64], block: Block, mut left: u64, scanner: &Scanner, stops: u16) -> Option<u32> {
        if left.count_ones() > MANY {
            let (han, hangul) = block.east_asian(left);
            let han_class = if scanner.pattern() == Pattern::DeepSeek3 { HAN } else { CASELESS };
            self.0[Self::index(han_class)] = han;
            self.0[Self::index(CASELESS)] |= hangul;
            left &= !(han | hangul);
            if !matches!(scanner.pattern(), Pattern::O200k { .. }) {
                let cyrillic = left & block.cyrillic();
                self.0[Self::index(LOWER)] = cyrillic;
                left &= !cyrillic;
            }
        }
        while left != 0 {
            let i = left.trailing_zeros();
            let class = scanner.class(bytes, i as usize);
            if class & stops != 0 {
                return Some(i);
            }
            self.0[Self::index(class)] |= 1 << i;
            left &= left - 1;
        }
        None
    }
}

impl Masks {
    /// Of the ASCII characters before byte `shown`.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn ascii(block: Block, shown: u32) -> Self {
        let all = below(shown);
        let (letters, no_bit) = block.letters();
        let (numbers, space) = (block.between(b'0', b'9'), block.is(b' '));
        let spaces = block.between(9, 13) | space;
        let controls = (block.between(0, 0x1F) | block.is(0x7F)) & !spaces;
        Self {
            letters: letters & all,
            upper: letters & no_bit & all,
            caseless: 0,
            numbers: numbers & all,
            space: space & all,
            newlines: (block.is(b'\n') | block.is(b'\r')) & all,
            spaces: spaces & all,
            apostrophes: block.is(b'\'') & all,
            slashes: block.is(b'/') & all,
            signs: !(letters | numbers | spaces) & all,
            controls: controls & all,
            han: 0,
            wide: 0,
            shown,
            heads: u64::MAX,
        }
    }

    /// Of all characters up to the first of a class that [`super::blocks`] cannot place for the pattern; one is not ASCII.
    /// `len` is how many bytes of the block are text.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn wide(bytes: &[u8; 64], block: Block, len: u32, scanner: &Scanner) -> Self {
        let (marks_are_letters, stops) = match scanner.pattern() {
            Pattern::Gpt2 { digits: false } => (false, 0),
            Pattern::Gpt2 { digits: true } => (false, CUT | NUMBER),
            Pattern::Cl100k { marks, .. } => (marks, 0),
            Pattern::O200k { .. } => (false, MARK),
            Pattern::DeepSeek3 => (true, OTHER | HAN_SIGN | HAN_OTHER),
        };
        let leads = block.between(0xC0, 0xFF);
        let heads = !block.wide() | leads;
        // The last character may reach over the end of the block, but not over that of the text.
        let last = leads.ilog2();
        let is_cut = last + bytes[last as usize].leading_ones() > 64;
        let whole = if is_cut { last } else { len };
        let mut sets = Sets::default();
        let end = sets.read(bytes, block, leads & below(whole), scanner, stops).unwrap_or(whole);
        let (ascii, of) = (Self::ascii(block, 64), |class: u16| sets.of(class));
        let (marks_of_letters, marks_of_signs) = if marks_are_letters { (of(MARK), 0) } else { (0, of(MARK)) };
        let packed = |set: u64| _pext_u64(set & below(end), heads);
        Self {
            letters: packed(ascii.letters | of(UPPER) | of(LOWER) | of(CASELESS) | marks_of_letters),
            upper: packed(ascii.upper | of(UPPER)),
            caseless: packed(of(CASELESS)),
            numbers: packed(ascii.numbers | of(NUMBER)),
            space: packed(ascii.space),
            newlines: packed(ascii.newlines),
            spaces: packed(ascii.spaces | of(BLANK)),
            apostrophes: packed(ascii.apostrophes),
            slashes: packed(ascii.slashes),
            signs: packed(ascii.signs & !block.wide() | of(PUNCTUATION) | of(OTHER) | marks_of_signs),
            controls: packed(ascii.controls),
            han: packed(of(HAN)),
            wide: packed(leads),
            shown: (heads & below(end)).count_ones(),
            heads,
        }
    }

    /// The byte that character `i` starts with.
    pub(crate) fn byte(&self, i: u32) -> u32 {
        if self.heads == u64::MAX {
            return i;
        }
        (0..i).fold(self.heads, |heads, _| heads & (heads - 1)).trailing_zeros()
    }

    /// The first of the white space that the block ends with: what follows it decides how it is cut.
    #[inline]
    pub(crate) fn open_spaces(&self) -> u32 {
        let others = !self.spaces & below(self.shown);
        64 - others.leading_zeros()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::class::LETTERS;
    use super::*;

    #[test]
    fn what_is_taken_for_a_letter_by_its_bytes_is_one_of_that_class() {
        let scanners = [Pattern::Cl100k { digits: 1, marks: false }, Pattern::DeepSeek3].map(Scanner::new);
        if !scanners[0].has_masks() {
            return;
        }
        let (mut of_han, mut of_hangul, mut of_cyrillic) = (0, 0, 0);
        for c in (0..0x11_0000).filter_map(char::from_u32) {
            let mut bytes = [0; 64];
            c.encode_utf8(&mut bytes);
            // SAFETY: the processor has these features; the scanner asked it.
            let ((han, hangul), cyrillic) = unsafe {
                let block = Block::new(&bytes);
                (block.east_asian(1), 1 & block.cyrillic())
            };
            let class = |scanner: &Scanner| scanner.class(&bytes, 0);
            assert!(han == 0 || class(&scanners[0]) == CASELESS && class(&scanners[1]) == HAN, "{c:?}");
            assert!(hangul == 0 || scanners.iter().all(|scanner| class(scanner) == CASELESS), "{c:?}");
            assert!(cyrillic == 0 || scanners.iter().all(|scanner| class(scanner) & LETTERS != 0), "{c:?}");
            of_han += han;
            of_hangul += hangul;
            of_cyrillic += cyrillic;
        }
        assert_eq!((of_han, of_hangul, of_cyrillic), (0x5180 + 63 + 54 + 63, 0x2400 + 0x780, 0x80));
    }
}
