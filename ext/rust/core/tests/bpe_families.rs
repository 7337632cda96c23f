//! The whole engine against the `tokenizers` crate, on tokenizers trained here for every known pre-tokenizer.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "oracle/train.rs"]
mod train;
#[path = "oracle/words.rs"]
mod words;

use std::str::FromStr;

use postmill_core::tokenizer::bpe::Bpe;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use train::{CORPUS, train};
use words::FAMILIES;

struct Both {
    ours: Bpe,
    theirs: Tokenizer,
}

impl Both {
    fn new(json: &Value) -> Self {
        let text = json.to_string();
        let ours = Bpe::compile(text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        Self { ours, theirs: Tokenizer::from_str(&text).unwrap() }
    }

    /// Ids of both; returns how many.
    fn check(&mut self, text: &str) -> usize {
        let (mut ids, mut again, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        self.ours.encode_into(text, &mut ids);
        self.ours.encode_with_ends(text, &mut again, &mut ends);
        let theirs = self.theirs.encode_fast(text, false).unwrap();
        assert_eq!(ids, theirs.get_ids(), "{text:?}");
        assert_eq!(again, ids);
        assert_eq!(ends.len(), ids.len());
        assert!(ends.is_sorted() && ends.last().is_none_or(|&end| end as usize <= text.len()), "{text:?}");
        ids.len()
    }

    fn corpus(&mut self) -> usize {
        let all: String = CORPUS.concat();
        CORPUS.iter().map(|line| self.check(line)).sum::<usize>() + self.check(&all)
    }
}

#[test]
fn every_family_gives_the_ids_of_the_crate() {
    for (name, steps) in FAMILIES {
        for ignore_merges in [false, true] {
            let mut json = train(steps, 3000);
            json["model"]["ignore_merges"] = json!(ignore_merges);
            let tokens = Both::new(&json).corpus();
            assert!(tokens > 10_000, "{name}: {tokens}");
        }
    }
}

#[test]
fn merges_in_the_older_form_give_the_same_ids() {
    let mut json = train(FAMILIES[0].1, 1000);
    let pairs: Vec<Value> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())))
        .collect();
    json["model"]["merges"] = json!(pairs);
    Both::new(&json).corpus();
}

/// Merges that no training gives: ranks that fall as tokens grow, rules that cross characters first.
#[test]
fn shuffled_ranks_give_the_ids_of_the_crate() {
    for seed in 1..6u64 {
        let mut json = train(FAMILIES[2].1, 3000);
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        let mut state = seed;
        for i in (1..merges.len()).rev() {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            merges.swap(i, (state >> 33) as usize % (i + 1));
        }
        Both::new(&json).corpus();
    }
}

#[test]
fn words_of_a_hundred_thousand_bytes_give_the_ids_of_the_crate() {
    let mut both = Both::new(&train(FAMILIES[3].1, 3000));
    let han = "中文分词是自然语言处理的基础中国人民的了在是我有和就不人都一";
    for unit in
        ["a", " ", "ab", "letstext", "\n", "!", "=-", "e\u{301}", "é", han, "日本語の文章", "한국어", "a\n", "\u{200B}"]
    {
        for len in [100, 113, 128, 1000, 100_000] {
            both.check(&unit.repeat(len / unit.len() + 1));
        }
    }
    // No period shorter than the windows.
    let mut state = 7u64;
    let mut letters = |alphabet: &[char], len| -> String {
        let mut next = || {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            alphabet[(state >> 33) as usize % alphabet.len()]
        };
        (0..len).map(|_| next()).collect()
    };
    let han: Vec<char> = han.chars().collect();
    let latin: Vec<char> = "etaoinshrdlu".chars().collect();
    for len in [50, 150, 400, 20_000] {
        both.check(&letters(&latin, len));
        both.check(&letters(&han, len));
        both.check(&letters(&[latin.as_slice(), &han].concat(), len));
    }
}

fn added(id: usize, content: &str, flags: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": flags.contains('w'), "lstrip": flags.contains('l'),
        "rstrip": flags.contains('r'), "normalized": flags.contains('n'), "special": flags.contains('s'),
    })
}

#[test]
fn added_tokens_are_cut_out_by_the_rules_of_the_crate() {
    let mut json = train(FAMILIES[3].1, 600);
    let first = json["model"]["vocab"].as_object().unwrap().len();
    let rules = [
        ("<|end|>", "s"),
        ("<|end|>>", "s"),
        ("<|", ""),
        ("<tool>", "n"),
        ("[L]", "l"),
        ("[R]", "r"),
        ("[LR]", "lrs"),
        ("[W]", "w"),
        ("word", "w"),
        ("中文", "wn"),
        ("cafe\u{301}", "n"),
        ("ｆ", "s"),
        ("aaa", "nr"),
    ];
    json["added_tokens"] =
        rules.iter().enumerate().map(|(i, (content, flags))| added(first + i, content, flags)).collect();
    for nfc in [false, true] {
        json["normalizer"] = if nfc { json!({"type": "NFC"}) } else { Value::Null };
        let mut both = Both::new(&json);
        let pieces = [
            "<|end|>",
            "<|end|>>",
            "<|",
            "<|en",
            "<tool>",
            "<",
            "[L]",
            "[R]",
            "[LR]",
            "[W]",
            "word",
            "words",
            "中文",
            "中",
            " x",
            " ",
            "\n",
            "\n\n",
            "\t",
            "a",
            "aaa",
            "cafe\u{301}",
            "café",
            "cafe",
            "\u{301}",
            "ｆ",
            "-",
            "é",
            "1",
        ];
        for a in pieces {
            for b in pieces {
                for c in pieces {
                    both.check(&format!("{a}{b}{c}"));
                    both.check(&format!("{a}{b} {c}"));
                }
            }
        }
    }
}

#[test]
fn added_tokens_of_white_space_are_cut_out_by_the_rules_of_the_crate() {
    let mut json = train(FAMILIES[3].1, 600);
    let first = json["model"]["vocab"].as_object().unwrap().len();
    let rules = [(" x", "n"), ("\n\n", "l"), ("  ", ""), ("\t", "wn"), ("[L]", "l"), (" [L]", "s")];
    json["added_tokens"] =
        rules.iter().enumerate().map(|(i, (content, flags))| added(first + i, content, flags)).collect();
    let mut both = Both::new(&json);
    let pieces = ["[L]", " ", "  ", " x", "x", "\n", "\n\n", "\t", "a", "[", "\u{3000}"];
    for a in pieces {
        for b in pieces {
            for c in pieces {
                for d in pieces {
                    both.check(&format!("{a}{b}{c}{d}"));
                }
            }
        }
    }
}

#[test]
fn nfc_gives_the_ids_of_the_crate_for_every_code_point_and_its_neighbours() {
    let mut json = train(FAMILIES[3].1, 600);
    json["normalizer"] = json!({"type": "NFC"});
    let mut both = Both::new(&json);
    let marks = ['\u{301}', '\u{327}', '\u{345}', '\u{1161}', '\u{11A8}', '\u{3099}', '\u{9BE}', '\u{F71}', '\u{338}'];
    let mut text = String::new();
    for c in (0x20..0x2_FA20).filter_map(char::from_u32) {
        // A decade of code points at a time would hide nothing, but tells less.
        text.extend([
            "a",
            &c.to_string(),
            "\u{301}b",
            &c.to_string(),
            &marks[c as usize % 9].to_string(),
            &c.to_string(),
        ]);
        text.extend(["o\u{323}", &c.to_string(), "\u{328}\u{302}x "]);
        if text.len() > 2000 {
            both.check(&text);
            text.clear();
        }
    }
    both.check(&text);
}

#[test]
fn bytes_without_a_token_are_dropped_as_the_crate_drops_them() {
    let mut json = train(FAMILIES[1].1, 600);
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    // 0x04, 0x06 and 0xF1, as in SmolLM2.
    for byte in ["\u{104}", "\u{106}", "ñ"] {
        let last = vocab.len() - 1;
        let id = vocab.remove(byte).unwrap();
        if let Some(moved) = vocab.values_mut().find(|value| **value == json!(last)) {
            *moved = id;
        }
    }
    let mut both = Both::new(&json);
    both.check("a\u{4}b \u{6}\u{4} \u{4} fn\u{4} le\u{6}t中\u{50000}文\u{50000}\u{4}");
    both.check(&"let\u{4} mut\u{6}".repeat(500));
    both.check(&"le\u{4}t".repeat(500));
    both.corpus();
}

#[test]
fn what_is_not_known_for_certain_is_refused() {
    let good = train(FAMILIES[3].1, 300);
    let refused = |change: &dyn Fn(&mut Value), part: &str| {
        let mut json = good.clone();
        change(&mut json);
        let error = Bpe::compile(json.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with(part), "{error}");
    };
    refused(&|json| json["normalizer"] = json!({"type": "NFKC"}), "normalizer");
    refused(
        &|json| json["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}),
        "normalizer",
    );
    refused(&|json| json["pre_tokenizer"] = Value::Null, "pre_tokenizer");
    refused(&|json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\s+"), "pre_tokenizer");
    refused(&|json| json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("MergedWithNext"), "pre_tokenizer");
    refused(&|json| json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true), "pre_tokenizer");
    refused(&|json| json["pre_tokenizer"]["pretokenizers"][1]["surprise"] = json!(1), "pre_tokenizer");
    refused(&|json| json["model"]["type"] = json!("Unigram"), "model");
    refused(&|json| json["model"]["dropout"] = json!(0.1), "model");
    refused(&|json| json["model"]["end_of_word_suffix"] = json!("</w>"), "model");
    refused(&|json| json["model"]["surprise"] = json!(1), "tokenizer.json");
    refused(&|json| json["model"]["vocab"]["!"] = json!(1), "vocab");
    refused(&|json| json["model"]["vocab"]["!"] = json!(4_000_000_000u32), "vocab");
    refused(&|json| json["model"]["merges"][0] = json!(["nobody", "knows"]), "merges");
    refused(&|json| json["model"]["merges"][0] = json!(["a"]), "tokenizer.json");
    refused(&|json| json["added_tokens"] = json!([added(7, "<x>", "")]), "added_tokens");
    refused(&|json| json["added_tokens"] = json!([added(300, "<x>", ""), added(300, "<x>", "n")]), "added_tokens");
    refused(&|json| json["added_tokens"] = json!([added(300, "<x>", "r"), added(301, " x", "n")]), "added_tokens");
    refused(&|json| *json = json!([]), "tokenizer.json");
    assert!(Bpe::compile(b"{\"model\": ").is_err());
}
