//! Code point -> class lookups: ranges at rest, a two-stage table in use.

use super::unicode_data::CATEGORIES;

/// What the regex engine says of a code point; each has exactly one. The numbers are those of `unicode_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// In none of the classes below: controls, formats, unassigned, private use.
    Other,
    /// `\p{Lu}`
    Upper,
    /// `\p{Ll}`
    Lower,
    /// `\p{Lt}`
    Title,
    /// `\p{Lm}`
    Modifier,
    /// `\p{Lo}`
    Letter,
    /// `\p{M}`
    Mark,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// `\p{P}`
    Punctuation,
    /// `\p{S}`
    Symbol,
}

impl Category {
    fn from_data(value: u32) -> Self {
        match value & 0xFF {
            1 => Self::Upper,
            2 => Self::Lower,
            3 => Self::Title,
            4 => Self::Modifier,
            5 => Self::Letter,
            6 => Self::Mark,
            7 => Self::Number,
            8 => Self::Space,
            9 => Self::Punctuation,
            10 => Self::Symbol,
            _ => Self::Other,
        }
    }
}

/// Code points a page holds.
const PAGE: usize = 128;

/// One byte for each code point, in pages of which equal ones are kept once.
#[derive(Debug)]
pub struct PageTable {
    pages: Vec<u16>,
    values: Vec<u8>,
}

impl PageTable {
    /// From runs of `(first, last, value)` that cover every code point in order.
    fn from_runs(runs: impl Iterator<Item = (u32, u32, u8)>) -> Self {
        let mut table = Self { pages: vec![0; 0x11_0000 / PAGE], values: Vec::new() };
        let mut uniform = [None; 256];
        let mut page = [0u8; PAGE];
        for (first, last, value) in runs {
            let mut c = first as usize;
            let end = last as usize + 1;
            while c < end {
                if c.is_multiple_of(PAGE) && end - c >= PAGE {
                    // A whole page of one value: most of the planes, and all of Han and Hangul.
                    let known = *uniform[usize::from(value)].get_or_insert_with(|| table.push(&[value; PAGE]));
                    table.pages[c / PAGE] = known;
                    c += PAGE;
                    continue;
                }
                page[c % PAGE] = value;
                c += 1;
                if c.is_multiple_of(PAGE) {
                    let id = table.push(&page);
                    table.pages[c / PAGE - 1] = id;
                }
            }
        }
        table
    }

    fn push(&mut self, page: &[u8; PAGE]) -> u16 {
        self.values.extend_from_slice(page);
        (self.values.len() / PAGE - 1) as u16
    }

    /// The value of code point `c`; 0 beyond U+10FFFF.
    #[inline]
    #[must_use]
    pub fn get(&self, c: u32) -> u8 {
        let c = c as usize;
        match self.pages.get(c / PAGE) {
            Some(&page) => self.values[usize::from(page) * PAGE + c % PAGE],
            None => 0,
        }
    }

    /// A table of classes: `class` sees each maximal run of one category, cut at the points in `cuts` and wherever
    /// `char::is_numeric` and the regex engine's `\p{N}` part.
    pub fn classes(cuts: &[u32], class: impl Fn(u32, Category) -> u8) -> Self {
        let mut cuts = cuts.to_vec();
        cuts.sort_unstable();
        let runs = CATEGORIES.iter().enumerate().flat_map(|(i, &entry)| {
            let (first, end) = (entry >> 8, CATEGORIES.get(i + 1).map_or(0x11_0000, |next| next >> 8));
            let mut starts = vec![first];
            starts.extend(cuts.iter().copied().filter(|&cut| cut > first && cut < end));
            starts.push(end);
            let category = Category::from_data(entry);
            starts.windows(2).map(|pair| (pair[0], pair[1] - 1, category)).collect::<Vec<_>>()
        });
        Self::from_runs(runs.map(|(first, last, category)| (first, last, class(first, category))))
    }

    /// A table of a range list of `unicode_data`.
    #[must_use]
    pub fn ranges(data: &[u32]) -> Self {
        Self::from_runs(data.iter().enumerate().map(|(i, &entry)| {
            let end = data.get(i + 1).map_or(0x11_0000, |next| next >> 8);
            (entry >> 8, end - 1, entry as u8)
        }))
    }
}

/// The code point that starts at `bytes[i]` and its length in bytes. `bytes` is UTF-8 and `i` a boundary in it.
#[inline]
#[must_use]
pub(crate) fn decode(bytes: &[u8], i: usize) -> (u32, usize) {
    if let Some(&four) = bytes[i..].first_chunk() {
        return decode_four(u32::from_le_bytes(four));
    }
    let mut four = [0; 4];
    let rest = &bytes[i..];
    four[..rest.len()].copy_from_slice(rest);
    decode_four(u32::from_le_bytes(four))
}

/// The first code point in four bytes of UTF-8, of which the first is the lowest, and its length in bytes.
#[inline]
fn decode_four(four: u32) -> (u32, usize) {
    let at = |k: u32| four >> (8 * k) & 0x3F;
    if four & 0x80 == 0 {
        (four & 0x7F, 1)
    } else if four & 0xF0 == 0xE0 {
        ((four & 0x0F) << 12 | at(1) << 6 | at(2), 3)
    } else if four & 0xF0 == 0xF0 {
        ((four & 0x07) << 18 | at(1) << 12 | at(2) << 6 | at(3), 4)
    } else {
        ((four & 0x1F) << 6 | at(1), 2)
    }
}

/// The code point at `bytes[i]` if it has three bytes, and a byte follows them: nearly every character of East Asia.
#[inline]
#[must_use]
pub(crate) fn decode_wide(bytes: &[u8], i: usize) -> Option<u16> {
    wide(u32::from_le_bytes(*bytes.get(i..)?.first_chunk()?))
}

/// As [`decode_wide`], where the bytes are known to be there.
///
/// # Safety
/// `i + 4 <= bytes.len()`.
#[inline]
#[must_use]
pub(crate) unsafe fn decode_wide_inside(bytes: &[u8], i: usize) -> Option<u16> {
    debug_assert!(i + 4 <= bytes.len());
    // SAFETY: the caller's promise; no alignment is needed.
    wide(u32::from_le_bytes(unsafe { bytes.as_ptr().add(i).cast::<[u8; 4]>().read_unaligned() }))
}

/// The code point of a character of three bytes, the first of which is the lowest of `four`.
#[inline]
fn wide(four: u32) -> Option<u16> {
    (four & 0xF0 == 0xE0).then_some(((four << 12) | (four >> 2 & 0xFC0) | (four >> 16 & 0x3F)) as u16)
}
