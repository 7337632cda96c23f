//! MB/s of our engine on one thread: `bpe_speed tokenizer.json ROUNDS FILE...`. Times are the best round, warm and cold,
//! in seconds of the processor (Linux), which neighbours on the machine disturb less than seconds of the clock.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use postmill_core::tokenizer::bpe::Bpe;

/// Nanoseconds this thread has run; the system adds them up when it is asked for another turn.
fn ran() -> f64 {
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let start = ran();
    let file = std::fs::read(&args[0]).unwrap();
    drop(Bpe::compile(&file).unwrap());
    println!("compiled in {:.0} ms", (ran() - start) / 1e6);
    let rounds: usize = args[1].parse().unwrap();
    for path in &args[2..] {
        let text = std::fs::read_to_string(path).unwrap();
        // it remembers words, so each file has one of its own
        let (bpe, mut ids) = (Bpe::compile(&file).unwrap(), Vec::new());
        let mut seconds = Vec::new();
        for _ in 0..rounds {
            ids.clear();
            let start = ran();
            bpe.encode_into(&text, &mut ids);
            seconds.push((ran() - start) / 1e9);
        }
        let mb = text.len() as f64 / 1e6;
        let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "{path}: cold {:.0} MB/s, warm {:.0} MB/s, {} ids",
            mb / seconds.first().copied().unwrap_or(0.0),
            mb / best,
            ids.len()
        );
    }
}
