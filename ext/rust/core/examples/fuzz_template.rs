//! Random chat templates for a time: `fuzz_template SECONDS [SEED] [FOLDER]`. None may panic, run away or end the process.
//!
//! Half of the sources are written from values, filters, tests and methods with arguments, as the fuzz target `template`
//! writes them; the others are pieces of each other and of the templates in FOLDER, with bytes changed. What a panic
//! leaves is printed with its source; the same seed gives the same sources.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../fuzz/src/template_source.rs"]
mod template_source;

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use template_source::{source_of, try_source};

/// Longest piece of one source in another, in bytes.
const MAX_PIECE: usize = 400;
/// Sources that pieces are taken from.
const POOL: usize = 512;
/// Bytes that mean something in a template.
const MARKS: &[u8] = b"{}%|()[]'\"-+.,:=~";
/// A rendering has a budget of steps and bytes that takes far less, even on a busy machine.
const MOST: Duration = Duration::from_secs(30);

/// Splitmix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A source that is written.
    fn written(&mut self) -> String {
        let length = 2 + self.below(120);
        let bytes: Vec<u8> = std::iter::once(1).chain((0..length).map(|_| self.next() as u8)).collect();
        source_of(&bytes)
    }

    /// One to three pieces of the pool, with some bytes changed.
    fn spliced(&mut self, pool: &[Vec<u8>]) -> String {
        let mut out: Vec<u8> = vec![];
        for _ in 0..=self.below(3) {
            let from = &pool[self.below(pool.len())];
            let start = self.below(from.len());
            let end = (start + 1 + self.below(MAX_PIECE)).min(from.len());
            out.extend(&from[start..end]);
        }
        for _ in 0..self.below(4) {
            let at = self.below(out.len());
            match self.below(3) {
                0 => out[at] = self.next() as u8,
                1 => drop(out.remove(at)),
                _ => out.insert(at, MARKS[self.below(MARKS.len())]),
            }
            if out.is_empty() {
                break;
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let time = Duration::from_secs(args.next().expect("seconds").parse().unwrap());
    let seed: u64 = args.next().map_or(0, |text| text.parse().unwrap());
    let mut pool: Vec<Vec<u8>> = args.next().map_or(vec![], |folder| {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "jinja")).collect();
        files.sort();
        files.iter().map(|path| std::fs::read(path).unwrap()).filter(|text| !text.is_empty()).collect()
    });
    let own = pool.len();
    let mut numbers = Numbers(seed);
    let (start, mut count, mut faults, mut slowest) = (Instant::now(), 0u64, 0u64, Duration::ZERO);
    while start.elapsed() < time {
        let source =
            if pool.len() <= own || numbers.below(2) == 0 { numbers.written() } else { numbers.spliced(&pool) };
        let timed = || {
            let began = Instant::now();
            (catch_unwind(|| try_source(&source)).is_err(), began.elapsed())
        };
        let (mut has_panicked, mut took) = timed();
        if took > MOST && !has_panicked {
            (has_panicked, took) = timed(); // a busy machine may have held it up
        }
        slowest = slowest.max(took);
        if has_panicked || took > MOST {
            faults += 1;
            println!("fault after {took:?}: {source:?}");
        }
        count += 1;
        if !source.is_empty() && pool.len() < own + POOL {
            pool.push(source.into_bytes());
        } else if !source.is_empty() && numbers.below(64) == 0 {
            let at = own + numbers.below(POOL);
            pool[at] = source.into_bytes();
        }
    }
    println!("{count} sources from seed {seed} in {:?}, the slowest {slowest:?}: {faults} faults", start.elapsed());
    assert_eq!(faults, 0);
}
