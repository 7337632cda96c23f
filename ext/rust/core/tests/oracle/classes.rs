//! Derives the character classes from the regex engine and the normaliser that the `tokenizers` crate uses, and writes
//! them as the source of `src/tokenizer/bpe/unicode_data.rs`. Shared by the example that writes the file and the test that checks it.

use onig::Regex;
use std::fmt::Write;
use unicode_normalization_alignments::{IsNormalized, char::canonical_combining_class, is_nfc_quick};

/// Regex class of each value of `bpe::unicode::Category`, in order; a character in none of them is `Other` (0).
const CATEGORIES: [&str; 10] =
    [r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\s", r"\p{P}", r"\p{S}"];

/// One byte a code point; surrogates, which no text holds, are 0.
fn categories() -> Vec<u8> {
    let regexes: Vec<Regex> = CATEGORIES.iter().map(|class| Regex::new(&format!("^{class}$")).unwrap()).collect();
    let letter = Regex::new(r"^\p{L}$").unwrap();
    let not_space = Regex::new(r"^\S$").unwrap();
    let not_any = Regex::new(r"^[^\s\p{L}\p{N}]$").unwrap();
    let mut out = vec![0u8; 0x11_0000];
    let mut text = String::new();
    for c in (0..0x11_0000).filter_map(char::from_u32) {
        text.clear();
        text.push(c);
        let found: Vec<usize> = (0..regexes.len()).filter(|&i| regexes[i].is_match(&text)).collect();
        assert!(found.len() <= 1, "U+{:04X} is in more than one class: {found:?}", c as u32);
        let class = found.first().map_or(0, |i| i + 1);
        assert_eq!(letter.is_match(&text), (1..=5).contains(&class), "U+{:04X}", c as u32);
        // A lone newline also ends a line for `$`, so `^\S$` cannot be asked about it.
        if c != '\n' {
            assert_eq!(not_space.is_match(&text), class != 8, "U+{:04X}", c as u32);
            assert_eq!(not_any.is_match(&text), matches!(class, 0 | 6 | 9 | 10), "U+{:04X}", c as u32);
        }
        out[c as usize] = class as u8;
    }
    out
}

/// 1 where a character may change under NFC or change a neighbour: not a stable code point of its normaliser.
fn unstable() -> Vec<u8> {
    let mut out = vec![0u8; 0x11_0000];
    for c in (0..0x11_0000).filter_map(char::from_u32) {
        let stable = canonical_combining_class(c) == 0 && is_nfc_quick(std::iter::once(c)) == IsNormalized::Yes;
        out[c as usize] = u8::from(!stable);
    }
    out
}

fn write_ranges(out: &mut String, name: &str, doc: &str, values: &[u8]) {
    let mut ranges = vec![(0usize, values[0])];
    for (i, &value) in values.iter().enumerate() {
        if ranges.last().is_some_and(|last| last.1 != value) {
            ranges.push((i, value));
        }
    }
    writeln!(out, "\n/// {doc}\n#[rustfmt::skip]\npub static {name}: [u32; {}] = [", ranges.len()).unwrap();
    for line in ranges.chunks(11) {
        let cells: Vec<String> =
            line.iter().map(|(start, value)| format!("0x{:X}", (start << 8) | usize::from(*value))).collect();
        writeln!(out, "    {},", cells.join(", ")).unwrap();
    }
    out.push_str("];\n");
}

/// The whole source file.
pub fn source() -> String {
    let mut out = String::from(
        "//! Character classes as ranges, `first code point << 8 | class`. Written by `cargo run --example unicode_classes`\n\
         //! from the regex engine and the normaliser of the `tokenizers` crate; `tests/bpe_unicode.rs` proves them equal.\n\
         #![allow(clippy::unreadable_literal)] // short digits keep the file short\n",
    );
    write_ranges(&mut out, "CATEGORIES", "`Category` of each code point.", &categories());
    write_ranges(
        &mut out,
        "NFC_UNSTABLE",
        "1 for code points that NFC may change or join to a neighbour.",
        &unstable(),
    );
    out
}
