//! How fast are the parts before the template? `cargo run --release --example json_speed -- FILE.jsonl [repeats]`
#![allow(clippy::print_stdout, clippy::cast_precision_loss)]
use std::time::Instant;

use postmill_core::input::lines::{self, Lines, MAX_LINE_BYTES};
use postmill_core::json;
use postmill_core::rows::{self, RowOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: json_speed FILE.jsonl [repeats]")?;
    let repeats: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let data = std::fs::read(path)?;
    let megabytes = data.len() as f64 / 1e6;
    let options = RowOptions::default();
    let mut checksum = 0;
    for _ in 0..repeats {
        let start = Instant::now();
        checksum += lines::count(&data, true).records;
        let counted = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for record in Lines::new(&data, 1, MAX_LINE_BYTES) {
            let value = json::parse(&data[record?.range])?;
            checksum += u64::from(matches!(value, postmill_core::types::Json::Object(_)));
        }
        let parsed = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut refused = 0;
        for record in Lines::new(&data, 1, MAX_LINE_BYTES) {
            match rows::normalize_bytes(&data[record?.range], &options) {
                Ok(row) => checksum ^= rows::content_hash(&row) as u64,
                Err(_) => refused += 1,
            }
        }
        let read = start.elapsed().as_secs_f64();
        println!(
            "{megabytes:.0} MB: count {:.0} MB/s, parse {:.0} MB/s, read {:.0} MB/s, {refused} refused ({checksum})",
            megabytes / counted,
            megabytes / parsed,
            megabytes / read
        );
    }
    Ok(())
}
