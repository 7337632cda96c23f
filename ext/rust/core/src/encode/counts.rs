//! What is counted over a chunk, for the manifest. Every sum adds up over chunks.

use crate::rows::RowOptions;
use crate::types::Json;
use std::collections::BTreeSet;

/// Column names that are kept to be said: rows may have names of their own.
const MOST_UNUSED: usize = 100;

/// Sums, and what was seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Records.
    pub rows_in: i64,
    /// Records of which every token was kept.
    pub kept: i64,
    /// Rows written.
    pub rows: i64,
    /// Their tokens.
    pub tokens: i64,
    /// Those with a weight that is not 0.
    pub trained_tokens: i64,
    /// Bytes of rendered text.
    pub rendered_bytes: i64,
    /// Texts that the tokenizer was given.
    pub encode_calls: i64,
    /// Tokens that reach over the border of a span.
    pub straddles: i64,
    /// Records in which a number is NaN or infinite.
    pub rows_with_nan: i64,
    /// Texts of users that look like a special token.
    pub special_look_alikes: i64,
    /// Records that have one.
    pub rows_with_look_alikes: i64,
    /// Thoughts that the template left out.
    pub unwritten_thinking: i64,
    /// Parts that it left out.
    pub unwritten_parts: i64,
    /// Turns that were cut, and are not trained.
    pub masked_turns: i64,
    /// Pictures, sounds and videos.
    pub pictures: i64,
    /// Sources that begin with a byte order mark.
    pub byte_order_marks: i64,
    /// Lines that end in CRLF.
    pub crlf_lines: i64,
    /// Rows with at least 2^k and under 2^(k+1) tokens, at k.
    pub length_histogram: Vec<i64>,
    /// First closing token of every turn that has one.
    pub closing_ids: BTreeSet<i32>,
    /// Number of the first line that ends in CRLF.
    pub first_crlf: Option<u64>,
    /// Which of the columns to rename or leave out some row has.
    pub columns_seen: BTreeSet<Box<str>>,
    /// Columns that nobody read, of the first hundred.
    pub columns_unused: BTreeSet<Box<str>>,
}

impl Counts {
    /// The sums by their names in the manifest.
    #[must_use]
    pub fn sums(&self) -> [(&'static str, i64); 17] {
        [
            ("rows_in", self.rows_in),
            ("kept", self.kept),
            ("rows", self.rows),
            ("tokens", self.tokens),
            ("trained_tokens", self.trained_tokens),
            ("rendered_bytes", self.rendered_bytes),
            ("encode_calls", self.encode_calls),
            ("straddles", self.straddles),
            ("rows_with_nan", self.rows_with_nan),
            ("special_look_alikes", self.special_look_alikes),
            ("rows_with_look_alikes", self.rows_with_look_alikes),
            ("unwritten_thinking", self.unwritten_thinking),
            ("unwritten_parts", self.unwritten_parts),
            ("masked_turns", self.masked_turns),
            ("pictures", self.pictures),
            ("byte_order_marks", self.byte_order_marks),
            ("crlf_lines", self.crlf_lines),
        ]
    }

    /// Notes which of the named columns a record has, in itself or in a message.
    pub(crate) fn see_columns(&mut self, row: &Json, options: &RowOptions) {
        let Json::Object(members) = row else { return };
        for old in options.columns.iter().map(|(old, _)| old).chain(&options.drop) {
            let in_messages = |value: &Json| match value {
                Json::Array(items) => items.iter().any(|item| item.member(old).is_some()),
                _ => false,
            };
            if !self.columns_seen.contains(old) && members.iter().any(|(name, value)| name == old || in_messages(value))
            {
                self.columns_seen.insert(old.clone());
            }
        }
    }

    /// Notes columns that nobody read.
    pub(crate) fn see_unused(&mut self, names: Vec<Box<str>>) {
        for name in names {
            if self.columns_unused.len() < MOST_UNUSED && !self.columns_unused.contains(&name) {
                self.columns_unused.insert(name);
            }
        }
    }

    /// Counts a row of so many tokens.
    pub(crate) fn see_length(&mut self, tokens: usize) {
        let bucket = tokens.max(1).ilog2() as usize;
        if self.length_histogram.len() <= bucket {
            self.length_histogram.resize(bucket + 1, 0);
        }
        self.length_histogram[bucket] += 1;
    }
}
