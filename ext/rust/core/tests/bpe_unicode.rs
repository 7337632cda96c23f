//! The committed class tables are those of the regex engine and the normaliser that the `tokenizers` crate uses.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "oracle/classes.rs"]
mod classes;

use postmill_core::tokenizer::bpe::unicode::PageTable;
use postmill_core::tokenizer::bpe::unicode_data::{CATEGORIES, NFC_UNSTABLE};

#[test]
fn the_committed_tables_equal_those_derived_from_the_crates() {
    let committed = include_str!("../src/tokenizer/bpe/unicode_data.rs");
    assert!(committed == classes::source(), "run `cargo run --example unicode_classes`");
}

#[test]
fn the_page_table_holds_every_range() {
    for data in [CATEGORIES.as_slice(), NFC_UNSTABLE.as_slice()] {
        let table = PageTable::ranges(data);
        for (i, &entry) in data.iter().enumerate() {
            let end = data.get(i + 1).map_or(0x11_0000, |next| next >> 8);
            for c in [entry >> 8, u32::midpoint(entry >> 8, end - 1), end - 1] {
                assert_eq!(u32::from(table.get(c)), entry & 0xFF, "U+{c:04X}");
            }
        }
        assert_eq!(table.get(0x11_0000), 0);
    }
}
