//! Ids of our engine and of the `tokenizers` crate.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use postmill_fuzz::{Pair, pairs, text_of};

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(pairs);

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    PAIRS[usize::from(which) % PAIRS.len()].check(&text_of(rest));
});
