//! Every string over the classes of each pre-tokenizer's regex, cut by our scanners and by the regex engine itself.
//!
//! A regex sees a character only through the sets it names, so two characters that are in the same of them are
//! interchangeable: swapping one for the other in a text moves no boundary. The classes below are those sets' common
//! refinement, and so every string of a length is covered by the strings over one character of each class. Of letters
//! that only contractions name, those that stand for each other are one class (`s`, `t`, `m`, `d`; `r`, `v`).
//!
//! The scanners tell more characters apart (ASCII or not), so each class has several characters here: once its first
//! stands for it everywhere, once each place of each string takes one of them by a fixed rule. Each string is cut alone,
//! by the plain scanner and by the one that this processor runs, and in a long text of its neighbours, where the fast
//! scanner sees whole blocks.
//!
//! `cargo test --release --test bpe_enumerate -- --ignored --nocapture` goes to the full lengths and prints how many
//! strings each pattern was tried on.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "oracle/words.rs"]
mod words;

use std::sync::atomic::{AtomicUsize, Ordering};

use postmill_core::tokenizer::bpe::pattern::Pattern;
use postmill_core::tokenizer::bpe::scan::Scanner;
use words::{FAMILIES, Oracle};

const LETTER: &str = "aéжǅ中ʰ";
const UPPER: &str = "AÉЖǅ";
const LOWER: &str = "aéж";
const CASELESS: &str = "中ʰªא";
const MARK: &str = "\u{301}\u{93F}";
const NUMBER: &str = "1²½٣";
const NEWLINE: &str = "\n\r";
const BLANK: &str = "\t\u{A0}\u{3000}\u{85}";
const SIGN: &str = "!=.「\u{1}\u{200B}€";
/// Also a mark, where the regex does not name marks.
const OTHER_SIGN: &str = "!=\u{301}「\u{1}\u{10FFFF}";

/// Classes of a pattern by its name in [`FAMILIES`]: the characters of each, and how many of the classes, from the first,
/// go to the greatest length; all of them go to one or two less.
fn classes(name: &str) -> (Vec<&'static str>, usize) {
    match name {
        // Upper case is no contraction here.
        "gpt2" => (vec![LETTER, "stmd", "rv", "e", "l", NUMBER, " ", "\n\r\t\u{A0}\u{85}", "'", OTHER_SIGN], 10),
        // `Digits` asks the standard library what is numeric, whose Unicode is newer: the regex has not heard of the last two.
        "smollm2" => {
            (vec![LETTER, "stmd", "rv", "e", "l", "1²½٣\u{11F50}\u{1E4F0}", " ", "\n\r\t\u{A0}", "'", OTHER_SIGN], 10)
        }
        "cl100k" | "qwen2" => {
            (vec![LETTER, "sTſd", "rV", "eE", "lL", NUMBER, " ", NEWLINE, BLANK, "'", OTHER_SIGN], 11)
        }
        "qwen3.5" => (vec![LETTER, "sTſd", " ", NUMBER, NEWLINE, BLANK, "'", SIGN, MARK, "lL", "rV", "eE"], 11),
        "o200k" => (
            vec![
                LOWER, UPPER, CASELESS, MARK, "sſd", " ", NEWLINE, "/", "'", SIGN, NUMBER, BLANK, "SM", "l", "L", "rv",
                "e", "RV", "E",
            ],
            11,
        ),
        "tekken" => (vec![LOWER, UPPER, CASELESS, MARK, NUMBER, " ", NEWLINE, BLANK, "/", SIGN], 10),
        // ASCII letters and signs are named apart; so are letters, signs and gaps of the kana range, which end at its ends.
        "deepseek v3" => (
            vec![
                "aZ",
                "éЖªא",
                MARK,
                NUMBER,
                "中ひ\u{3099}ー",
                "・゛",
                " ",
                NEWLINE,
                BLANK,
                "!'/",
                "「€¿",
                "\u{1}\u{200B}\u{10FFFF}",
                "\u{3040}\u{3097}",
            ],
            12,
        ),
        other => panic!("{other} has no classes"),
    }
}

fn pattern_of(steps: &[&str]) -> Pattern {
    match steps {
        ["digits", _] => Pattern::Gpt2 { digits: true },
        [one] => Pattern::from_regex(one).unwrap(),
        several => Pattern::from_regexes(several).unwrap(),
    }
}

/// One pattern, and both of its scanners.
struct Judge {
    name: &'static str,
    scanner: Scanner,
    oracle: Oracle,
    ends: Vec<usize>,
}

impl Judge {
    fn new(name: &'static str, steps: &[&str]) -> Self {
        Self { name, scanner: Scanner::new(pattern_of(steps)), oracle: Oracle::new(steps), ends: Vec::new() }
    }

    fn check(&mut self, text: &str) {
        let expected = self.oracle.ends(text);
        let mut at = 0;
        for &end in &expected {
            let found = self.scanner.word_end(text, at);
            assert_eq!(found, end, "{}, plain, from byte {at} of {text:?}", self.name);
            at = end;
        }
        assert_eq!(at, text.len());
        self.ends.clear();
        self.scanner.ends(text, &mut self.ends);
        if self.ends != expected {
            let same = self.ends.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let at = same.checked_sub(1).map_or(0, |i| expected[i]);
            let around: String = text[at..].chars().take(20).collect();
            panic!("{}, fast, from byte {at}, {around:?}: {:?}", self.name, self.ends.get(same));
        }
    }
}

/// Every string of `length` classes, as numbers, that starts with `first`.
fn every_string(classes: usize, length: usize, first: &[usize], mut visit: impl FnMut(&[usize])) {
    let mut digits = vec![0; length];
    digits[..first.len()].copy_from_slice(first);
    loop {
        visit(&digits);
        let Some(place) = (first.len()..length).rev().find(|&i| digits[i] + 1 < classes) else { return };
        digits[place] += 1;
        digits[place + 1..].fill(0);
    }
}

/// Which of a class's characters stands at a place of the `n`-th string.
fn choice(n: usize, place: usize) -> usize {
    (n.wrapping_mul(0x9E37_79B9) ^ (place << 20).wrapping_mul(0x85EB_CA6B)) >> 13
}

/// Tries every string of `length` over `classes` that starts with `first`, in two spellings; returns how many there are.
fn enumerate(judge: &mut Judge, classes: &[Vec<char>], length: usize, first: &[usize]) -> usize {
    let (mut n, mut text, mut crowd) = (0, String::new(), String::new());
    every_string(classes.len(), length, first, |digits| {
        n += 1;
        for varied in [false, true] {
            text.clear();
            text.extend(digits.iter().enumerate().map(|(place, &class)| {
                let characters = &classes[class];
                characters[if varied { choice(n, place) % characters.len() } else { 0 }]
            }));
            judge.check(&text);
            // With what stands between, neighbours make every kind of context.
            crowd.push_str(&text);
            crowd.push_str(["\n", "x", " x", "7", ", "][n % 5]);
        }
        if crowd.len() > 2000 {
            judge.check(&crowd);
            crowd.clear();
        }
    });
    judge.check(&crowd);
    n
}

/// All strings of up to `longest` over the first `most` classes, and of up to `rest` over all; on all cores.
fn enumerate_family(name: &'static str, steps: &[&str], longest: usize, rest: usize) -> usize {
    let (alphabet, most) = classes(name);
    let alphabet: Vec<Vec<char>> = alphabet.iter().map(|class| class.chars().collect()).collect();
    let mut jobs = Vec::new();
    for length in 1..=longest {
        let classes = if length <= rest { alphabet.len() } else { most };
        match length {
            1 | 2 => jobs.push((classes, length, vec![])),
            _ => jobs.extend((0..classes * classes).map(|i| (classes, length, vec![i / classes, i % classes]))),
        }
    }
    let (next, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut judge = Judge::new(name, steps);
                while let Some((classes, length, first)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = enumerate(&mut judge, &alphabet[..*classes], *length, first);
                    total.fetch_add(found, Ordering::Relaxed);
                }
            });
        }
    });
    total.into_inner()
}

#[test]
fn classes_hold_characters_that_the_regex_cannot_tell_apart() {
    for (name, steps) in FAMILIES {
        let oracle = Oracle::new(steps);
        let (alphabet, _) = classes(name);
        for class in &alphabet {
            let mut characters = class.chars();
            let one = characters.next().unwrap();
            for other in characters {
                for (a, b) in alphabet.iter().flat_map(|a| alphabet.iter().map(move |b| (a, b))) {
                    let (a, b) = (a.chars().next().unwrap(), b.chars().next().unwrap());
                    let cut = |c: char| {
                        let text: String = [a, c, b].iter().collect();
                        let places: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
                        oracle.ends(&text).iter().map(|end| places.binary_search(end).unwrap()).collect::<Vec<_>>()
                    };
                    assert_eq!(cut(one), cut(other), "{name}: {one:?} and {other:?} between {a:?} and {b:?}");
                }
            }
        }
    }
}

#[test]
fn every_string_of_four_is_cut_as_the_regex_cuts_it() {
    for (name, steps) in FAMILIES {
        enumerate_family(name, steps, 4, 3);
    }
}

/// One test a family, so that one can be asked for: `-- --ignored o200k`.
mod every_string_of_seven_is_cut_as_the_regex_cuts_it {
    use super::{FAMILIES, enumerate_family};

    fn family(name: &str) {
        let (name, steps) = *FAMILIES.iter().find(|family| family.0 == name).unwrap();
        let start = std::time::Instant::now();
        let found = enumerate_family(name, steps, 7, if name == "o200k" { 5 } else { 6 });
        println!("{name}: {found} strings of up to 7 classes, each in two spellings, {:.0?}", start.elapsed());
    }

    macro_rules! families {
        ($($test:ident $name:literal)*) => {
            $(
                #[test]
                #[ignore = "minutes of a core; run in release mode"]
                fn $test() {
                    family($name);
                }
            )*
        };
    }

    families!(gpt2 "gpt2" smollm2 "smollm2" cl100k "cl100k" qwen2 "qwen2" qwen35 "qwen3.5" o200k "o200k" tekken "tekken"
        deepseek "deepseek v3");
}
