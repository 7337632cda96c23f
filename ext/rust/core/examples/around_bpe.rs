//! How fast is everything around the encoder: lines, JSON, rows, template, turns, weights, Arrow?
//!
//! `around_bpe TOKENIZER_JSON TEMPLATE ROWS_JSONL [THREADS] [LOSS_SCALE] [ENGINE]` encodes the rows five times with an
//! engine that gives one id for every four bytes, or with the tokenizer's own if ENGINE is `own`, and prints MB of input a
//! second, the median, and a digest of all that was made: the same before and after a change that is only to be faster.
//! Results are in `bench/LOG.md`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]
use arrow_array::{Array, make_array};
use postmill_core::encode::encoder::Encoder;
use postmill_core::encode::options::{EncodeOptions, Templates};
use postmill_core::encode::pipeline::{Chunk, ReadOptions, encode_chunk};
use postmill_core::error::Error;
use postmill_core::input::lines;
use postmill_core::template::{self, SpecialTexts, Template};
use postmill_core::tokenizer::engine::{Engine, Tokens};
use postmill_core::tokenizer::vocabulary::{self, EngineChoice, TokenNames};
use postmill_core::weigh::{Semantics, Spec};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

struct FourBytes;

impl Engine for FourBytes {
    fn name(&self) -> String {
        "one id for four bytes".to_owned()
    }

    fn encode(&self, text: &str, out: &mut Tokens) -> Result<(), Error> {
        let length = text.len() as u32;
        out.ids.extend((0..length.div_ceil(4)).map(|token| token as i32 % 1000));
        out.ends.extend((0..length.div_ceil(4)).map(|token| length.min(4 * token + 4)));
        Ok(())
    }
}

/// The same for equal columns.
fn digest_of(column: &dyn Array) -> u64 {
    let data = column.to_data();
    let buffers = data.buffers().iter().map(|buffer| xxh3_64(buffer));
    let children = data.child_data().iter().map(|child| digest_of(&make_array(child.clone())));
    xxh3_64(&buffers.chain(children).flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [tokenizer, template, rows] = [&args[1], &args[2], &args[3]].map(|path| std::fs::read(path).unwrap());
    let threads: usize = args.get(4).map_or(2, |text| text.parse().unwrap());
    let spec = args.get(5).map_or("default", String::as_str);
    let own = args.get(6).is_some_and(|engine| engine == "own");
    let (engine, vocabulary) = vocabulary::load(&tokenizer, &TokenNames::default(), EngineChoice::Auto).unwrap();
    let engine = if own { engine } else { Box::new(FourBytes) };
    let specials = SpecialTexts { named: vec![], tokens: vocabulary.added_texts.clone() };
    let template =
        Template::new(&String::from_utf8(template).unwrap(), &specials, template::Options::default()).unwrap();
    let templates = Templates { default: Some(template), ..Default::default() };
    let spec = Spec::parse(spec, Semantics::Spans, &[]).unwrap();
    let encoder = Encoder::new(engine, vocabulary, templates, spec, EncodeOptions::default()).unwrap();
    let chunks = lines::chunk_bounds(&rows, 0, lines::CHUNK_BYTES, true);
    let encode = |index: usize| {
        let range = chunks.get(index)?;
        let data = &rows[range.clone()];
        let chunk = Chunk { data, file: "rows", first_line: 1, ..Chunk::default() };
        Some(encode_chunk(&encoder, &ReadOptions::default(), &chunk).unwrap().rows)
    };
    let mut digest = 0;
    for batch in chunks.iter().enumerate().step_by(8).filter_map(|(index, _)| encode(index)) {
        for column in batch.columns() {
            digest = xxh3_64(&[digest, digest_of(column)].map(u64::to_le_bytes).concat());
        }
    }
    let mut speeds: Vec<f64> = (0..5)
        .map(|_| {
            let (next, made) = (AtomicUsize::new(0), AtomicU64::new(0));
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while let Some(batch) = encode(next.fetch_add(1, Ordering::Relaxed)) {
                            made.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert!(made.load(Ordering::Relaxed) > 0);
            rows.len() as f64 / 1e6 / start.elapsed().as_secs_f64()
        })
        .collect();
    speeds.sort_by(f64::total_cmp);
    println!(
        "{:.1} MB/s of JSON Lines on {threads} threads ({:.1} to {:.1}), digest {digest:016x}",
        speeds[2], speeds[0], speeds[4]
    );
}
