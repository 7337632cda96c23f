//! JSON and rows: what is read is what `serde_json` reads, and is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postmill_core::rows::{RowOptions, normalize_bytes};
use postmill_core::input::lines;
use postmill_core::json;

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = json::parse(data) {
        serde_json::from_slice::<serde_json::Value>(data)
            .map_or_else(|e| assert!(e.to_string().contains("number out of range"), "only we read it: {e}"), drop);
        let written = json::to_canonical(&value);
        let again = json::parse_text(&written).expect("what we write, we read");
        assert_eq!(json::to_canonical(&again), written);
    }
    if let Err(error) = normalize_bytes(data, &RowOptions::default()) {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let whole = lines::count(data, true);
    assert!(whole.lines as usize <= data.len() + 1);
    let mut at = 0;
    for chunk in lines::chunk_bounds(data, 0, 16, true) {
        assert_eq!(chunk.start, at);
        at = chunk.end;
    }
    assert_eq!(at, data.len());
});
