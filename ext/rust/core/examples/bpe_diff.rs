//! Compares our engine with the `tokenizers` crate, id by id: `bpe_diff tokenizer.json FILE...` prints what it compared.
//! Each file goes in as pieces of many sizes, as documents would; a difference is printed with its place, and fails.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::panic)]

use std::str::FromStr;

use postmill_core::tokenizer::bpe::Bpe;
use tokenizers::Tokenizer;

fn main() {
    let mut args = std::env::args().skip(1);
    let json = std::fs::read_to_string(args.next().unwrap()).unwrap();
    let start = std::time::Instant::now();
    let ours = Bpe::compile(json.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    let compiled = start.elapsed();
    let theirs = Tokenizer::from_str(&json).unwrap();
    let (mut tokens, mut bytes, mut failed) = (0usize, 0usize, 0usize);
    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    for path in args {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let mut rest = text.as_str();
        let mut round = 0;
        while !rest.is_empty() {
            let mut size = [64, 1000, 17, 4000, 250, 20_000][round % 6].min(rest.len());
            while !rest.is_char_boundary(size) {
                size += 1;
            }
            let (piece, after) = rest.split_at(size);
            (rest, round) = (after, round + 1);
            ids.clear();
            ends.clear();
            ours.encode_with_ends(piece, &mut ids, &mut ends);
            let expected = theirs.encode_fast(piece, false).unwrap();
            tokens += ids.len();
            bytes += piece.len();
            if ids != expected.get_ids()
                || ends.len() != ids.len()
                || ends.last().is_some_and(|&e| e as usize > piece.len())
            {
                failed += 1;
                let i = ids.iter().zip(expected.get_ids()).take_while(|(a, b)| a == b).count();
                let at = if i == 0 { 0 } else { ends[i - 1] as usize };
                let around = String::from_utf8_lossy(&piece.as_bytes()[at..(at + 40).min(piece.len())]);
                println!("{path}: {around:?} gives {:?}, not {:?}", ids.get(i..), expected.get_ids().get(i..));
                assert!(failed < 10, "too many differences");
            }
        }
    }
    println!("{tokens} tokens, {bytes} bytes, {failed} differences, compiled in {compiled:?}");
    assert_eq!(failed, 0);
}
