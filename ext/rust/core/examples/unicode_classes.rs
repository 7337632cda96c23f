//! Writes `src/tokenizer/bpe/unicode_data.rs` again: `cargo run -p postmill-core --example unicode_classes -- PATH`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/oracle/classes.rs"]
mod classes;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "ext/rust/core/src/tokenizer/bpe/unicode_data.rs".into());
    std::fs::write(path, classes::source())
}
