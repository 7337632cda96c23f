//! JSON as training data needs it read: strict, quick on long strings, and exact about where a fault is.
//!
//! One pass over bytes that are known to be UTF-8. Strings are scanned eight bytes at a time and copied once. Numbers
//! keep their text, objects their order. What most readers let pass is an error here, because it would change what is
//! trained on without a word: duplicate keys, lone surrogates, `NaN`, bytes that are not UTF-8. Nesting stops at
//! [`MAX_DEPTH`], so no input can exhaust the stack.
//!
//! Speed: 0.7 GB/s and more on one core for chat rows (`cargo run --release --example json_speed`).

mod fault;
mod parser;
mod write;

use crate::error::RowError;
use crate::types::Json;
pub(crate) use fault::{push_index, push_key, shortened};
pub use write::{PythonStyle, python_dumps, to_canonical};
pub(crate) use write::{append_canonical, python_float};

/// Deepest nesting of lists and objects.
pub(crate) const MAX_DEPTH: usize = 128;

/// Read one JSON value that fills `bytes`, with white space allowed around it.
///
/// # Errors
/// [`RowError`] with the byte column (from 1) and the JSON path of the first fault. Its reason is `truncated` when the
/// text ended before the value did.
pub fn parse(bytes: &[u8]) -> Result<Json, RowError> {
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        return parse_text(text);
    }
    // The slow one says where the fault is.
    match std::str::from_utf8(bytes) {
        Ok(text) => parse_text(text),
        Err(fault) => Err(fault::utf8_error(bytes, fault)),
    }
}

/// [`parse`] for bytes known to be UTF-8.
///
/// # Errors
/// As [`parse`].
pub fn parse_text(text: &str) -> Result<Json, RowError> {
    parse_with(text, false)
}

/// [`parse_text`] where `NaN`, `Infinity` and `-Infinity`, as `json.dumps` writes them, are numbers of that text.
///
/// # Errors
/// As [`parse_text`].
pub(crate) fn parse_loose(text: &str) -> Result<Json, RowError> {
    parse_with(text, true)
}

fn parse_with(text: &str, loose: bool) -> Result<Json, RowError> {
    parser::document(text, loose).map_err(fault::Fault::into_error)
}

/// Numbers of `json.dumps` that are no JSON.
pub(crate) const NOT_NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// The reason of a [`RowError`] about one of [`NOT_NUMBERS`].
pub(crate) const NOT_A_NUMBER: &str = "not_a_number";

#[cfg(test)]
mod tests;
