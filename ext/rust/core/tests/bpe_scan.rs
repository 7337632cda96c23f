//! Words of the hand-written scanners against the regex engine: every short string over an alphabet of classes, and
//! random long ones. `--ignored` runs the enumeration to the lengths that the release notes quote.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "oracle/words.rs"]
mod words;

use postmill_core::tokenizer::bpe::pattern::Pattern;
use postmill_core::tokenizer::bpe::scan::Scanner;
use postmill_core::tokenizer::bpe::unicode_data::CATEGORIES;
use words::{FAMILIES, Oracle};

/// One or two of each class, and every character a regex names or folds to one it names.
const ALPHABET: [char; 26] = [
    'a', 'B', 's', 'l', '\'', ' ', '\n', '\r', '\t', '1', '!', '/', '中', 'ǅ', 'ʰ', '\u{301}', '\u{200B}', 'ſ', '²',
    '\u{A0}', '「', 'é', 'ひ', '한', 'Ж', '😀',
];

/// Fewer characters for longer strings: one for each class, and the pieces of a contraction.
const CORE: [char; 12] = ['a', 'B', 's', '\'', ' ', '\n', '\t', '1', '!', '中', '\u{301}', '\u{200B}'];

fn pattern_of(steps: &[&str]) -> Pattern {
    match steps {
        ["digits", _] => Pattern::Gpt2 { digits: true },
        [one] => Pattern::from_regex(one).unwrap(),
        several => Pattern::from_regexes(several).unwrap(),
    }
}

fn scan(scanner: &Scanner, text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    scanner.ends(text, &mut ends);
    ends
}

fn plain(scanner: &Scanner, text: &str) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while at < text.len() {
        at = scanner.word_end(text, at);
        ends.push(at);
    }
    ends
}

fn check(name: &str, scanner: &Scanner, oracle: &Oracle, text: &str) {
    let expected = oracle.ends(text);
    for (which, found) in [("plain", plain(scanner, text)), ("fast", scan(scanner, text))] {
        if found != expected {
            let i = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let start = i.checked_sub(1).map_or(0, |i| expected[i]);
            let around: String = text[start..].chars().take(20).collect();
            let (found, expected) = (found.get(i).map(|e| e - start), expected.get(i).map(|e| e - start));
            panic!("{name}, {which}: from byte {start}, {around:?} gives a word of {found:?} bytes, not {expected:?}");
        }
    }
    for i in 1..text.len() {
        if Scanner::is_seam(text.as_bytes(), i) {
            assert!(expected.contains(&i), "{name}: {text:?} is joined at the seam {i}");
        }
    }
}

/// Calls `visit` with every string of `1..=longest` characters of `alphabet`.
fn every_string(alphabet: &[char], longest: usize, mut visit: impl FnMut(&str)) {
    for len in 1..=longest {
        let mut digits = vec![0; len];
        let mut text = String::new();
        'strings: loop {
            text.clear();
            text.extend(digits.iter().map(|&d: &usize| alphabet[d]));
            visit(&text);
            for digit in &mut digits {
                *digit += 1;
                if *digit < alphabet.len() {
                    continue 'strings;
                }
                *digit = 0;
            }
            break;
        }
    }
}

fn enumerate(alphabet: &[char], longest: usize) {
    for (name, steps) in FAMILIES {
        let (scanner, oracle) = (Scanner::new(pattern_of(steps)), Oracle::new(steps));
        every_string(alphabet, longest, |text| check(name, &scanner, &oracle, text));
    }
}

const PLAIN: &str = "the rest of this line is as plain as it can be, and longer than one block of it\n";
const WIDE: &str =
    "és élèves ont 中文 и 한국어, «мир» 日本語のひらがな — 2²; l’été ſ'ſ Ǆ'S longer than one block of it\n";

/// The same with text behind, so that the fast scanner sees whole blocks and decides by itself.
fn enumerate_before_text(alphabet: &[char], longest: usize, tail: &str) {
    for (name, steps) in FAMILIES {
        let (scanner, oracle) = (Scanner::new(pattern_of(steps)), Oracle::new(steps));
        let mut text = String::new();
        every_string(alphabet, longest, |head| {
            for between in ["", " ", "\n", "7", "."] {
                text.clear();
                text.extend([head, between, tail]);
                check(name, &scanner, &oracle, &text);
            }
        });
    }
}

/// What ASCII text is cut by.
const ASCII: [char; 14] = ['a', 'B', 's', 'l', 'E', '\'', ' ', '\n', '\r', '\t', '1', '!', '/', '\u{1}'];

#[test]
fn every_short_string_before_text_is_cut_as_the_regex_cuts_it() {
    enumerate_before_text(&ASCII, 3, PLAIN);
    enumerate_before_text(&ASCII, 2, WIDE);
    enumerate_before_text(&ALPHABET, 2, PLAIN);
    enumerate_before_text(&ALPHABET, 2, WIDE);
}

#[test]
#[ignore = "minutes; run in release mode"]
fn every_longer_string_before_text_is_cut_as_the_regex_cuts_it() {
    enumerate_before_text(&ASCII, 4, PLAIN);
    enumerate_before_text(&['a', 'B', 's', '\'', ' ', '\n', '1', '!', '/'], 5, PLAIN);
    enumerate_before_text(&ALPHABET, 3, WIDE);
    enumerate_before_text(&CORE, 4, WIDE);
}

#[test]
fn every_short_string_is_cut_as_the_regex_cuts_it() {
    enumerate(&ALPHABET, 3);
    enumerate(&CORE, 4);
}

#[test]
#[ignore = "minutes; run in release mode"]
fn every_string_of_seven_classes_is_cut_as_the_regex_cuts_it() {
    enumerate(&ALPHABET, 4);
    enumerate(&CORE, 6);
    enumerate(&CORE[..10], 7);
}

/// `・` is in the range that `DeepSeek`'s second split cuts out, and the third parts it from the kana around it.
#[test]
fn signs_among_kana_are_words_of_their_own() {
    let (name, steps) = FAMILIES[7];
    let (scanner, oracle) = (Scanner::new(pattern_of(steps)), Oracle::new(steps));
    every_string(&['ひ', '中', '・', '\u{3099}', '゛', '\u{3040}', '「', 'a', ' ', '1'], 5, |text| {
        check(name, &scanner, &oracle, text);
    });
}

/// Some code points: `bpe_unicode` asks about each, here the first and last of each run of a class are certain to be there.
fn code_points(every: u32) {
    for (name, steps) in FAMILIES {
        let (scanner, oracle) = (Scanner::new(pattern_of(steps)), Oracle::new(steps));
        let mut all = String::new();
        let starts = CATEGORIES.iter().flat_map(|entry| [(entry >> 8).saturating_sub(1), entry >> 8]);
        let sample = (0..0x11_0000).filter(|c| c % every == 0 || *c < 0x800);
        for c in starts.chain(sample).filter_map(char::from_u32) {
            // Between these neighbours each class is cut differently; `'` and `'l` ask what folds to a contraction.
            all.extend(["a", &c.to_string(), "A", &c.to_string(), "! ", &c.to_string(), "\n", &c.to_string(), "1"]);
            all.extend([
                "'",
                &c.to_string(),
                "x 'l",
                &c.to_string(),
                "\nひ",
                &c.to_string(),
                "中",
                &c.to_string(),
                "\n",
            ]);
            if all.len() > 4096 {
                check(name, &scanner, &oracle, &all);
                all.clear();
            }
        }
        check(name, &scanner, &oracle, &all);
    }
}

#[test]
fn code_points_are_in_the_class_the_regex_gives_them() {
    code_points(61);
}

#[test]
#[ignore = "minutes; run in release mode"]
fn every_code_point_is_in_the_class_the_regex_gives_it() {
    code_points(1);
}

/// A multiplicative generator: tests need variety, not quality.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (self.0 >> 33) as usize % n
    }

    /// Runs of characters of a class, as text has them, with now and then any character at all.
    fn text(&mut self, runs: usize) -> String {
        let mut text = String::new();
        for _ in 0..runs {
            let c = match self.below(40) {
                0 => char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\u{FFFD}'),
                1..=8 => char::from(self.below(128) as u8),
                9..=14 => ' ',
                15..=24 => char::from(b'a' + self.below(26) as u8),
                _ => ALPHABET[self.below(ALPHABET.len())],
            };
            let most = [1, 1, 2, 3, 9, 70][self.below(6)];
            let len = 1 + self.below(most);
            text.extend(std::iter::repeat_n(c, len));
        }
        text
    }
}

fn random(rounds: usize, seed: u64) {
    let mut random = Random(seed);
    let families: Vec<_> =
        FAMILIES.iter().map(|(name, steps)| (name, Scanner::new(pattern_of(steps)), Oracle::new(steps))).collect();
    for _ in 0..rounds {
        let runs = [3, 10, 60, 300][random.below(4)];
        let text = random.text(runs);
        for (name, scanner, oracle) in &families {
            check(name, scanner, oracle, &text);
        }
    }
}

#[test]
fn random_text_is_cut_as_the_regex_cuts_it() {
    random(400, 1);
}

#[test]
#[ignore = "minutes; run in release mode"]
fn much_random_text_is_cut_as_the_regex_cuts_it() {
    random(40_000, 2);
}
