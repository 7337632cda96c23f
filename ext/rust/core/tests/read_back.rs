//! Text read back from the ids of tokenizers that are not byte-level: dummy spaces, byte fallback, added tokens between.
//!
//! The law: what [`Vocabulary::read`] gives for the ids of a text is the text, and each token starts in it where the one
//! before ends by the engine's own word. Re-weighing tokens without their text rests on it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use postmill_core::tokenizer::engine::Tokens;
use postmill_core::tokenizer::vocabulary::{EngineChoice, TokenNames, load};
use serde_json::{Value, json};

const TEXTS: [&str; 16] = [
    "",
    "a",
    " a",
    "  a  b ",
    "the cat\n\n  sat\ton it",
    "\n",
    " ",
    "   ",
    "<s>a</s>",
    "<s> a</s> b",
    "a</s>  </s>\n</s>",
    "</s></s>the</s>",
    "naïve café 中文 👩\u{200d}👧 \u{1}\u{10FFFF}",
    "中 文 a中",
    "at the\u{2581}cat",
    "é",
];

/// The start of the character that holds the byte `at`.
fn character(text: &str, at: u32) -> usize {
    (0..=at as usize).rev().find(|&i| text.is_char_boundary(i)).unwrap()
}

/// Reads each text back; a tokenizer that writes U+2581 for a space cannot tell one that the text holds from a space.
fn check(name: &str, file: &[u8], texts: &[&str]) -> usize {
    let (engine, vocabulary) = load(file, &TokenNames::default(), EngineChoice::Auto).unwrap();
    assert!(vocabulary.is_readable(), "{name}");
    let (mut tokens, mut read, mut starts, mut count) = (Tokens::default(), String::new(), Vec::new(), 0);
    for text in texts {
        tokens.clear();
        engine.encode(text, &mut tokens).unwrap();
        vocabulary.read(&tokens.ids, 0..tokens.ids.len(), &mut read, &mut starts);
        assert_eq!(read, text.replace('\u{2581}', " "), "{name}: {:?}", tokens.ids);
        if !text.contains('\u{2581}') {
            // Tokens inside a character, and a space that is not there, may end anywhere in the character.
            let ends = tokens.ends.iter().map(|&end| character(text, end));
            let expected: Vec<usize> = std::iter::once(0).chain(ends).take(tokens.ids.len()).collect();
            let found: Vec<usize> = starts.iter().map(|&start| character(text, start)).collect();
            assert_eq!(found, expected, "{name}: {text:?} as {:?}", tokens.ids);
        }
        count += tokens.ids.len();
    }
    count
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
           "special": true})
}

/// Pieces that a small model has: every byte, a few characters, a few words.
fn pieces() -> Vec<String> {
    let mut out = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    out.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let words =
        ["\u{2581}", "a", "t", "h", "e", "c", "s", "o", "n", "中", "th", "the", "\u{2581}the", "\u{2581}a", "at"];
    out.extend(words.map(str::to_owned));
    out.extend(["\u{2581}\u{2581}", "ca", "\u{2581}c", "on"].map(str::to_owned));
    out
}

fn decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]})
}

fn file(normalizer: &Value, pre_tokenizer: &Value, model: &Value) -> Vec<u8> {
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(1, "<s>"), added(2, "</s>")],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder(), "model": model});
    file.to_string().into_bytes()
}

fn bpe() -> Value {
    let vocab: serde_json::Map<String, Value> = pieces().into_iter().enumerate().map(|(i, t)| (t, json!(i))).collect();
    json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
        "merges": [["\u{2581}", "\u{2581}"], ["t", "h"], ["th", "e"], ["\u{2581}", "the"], ["\u{2581}", "a"], ["a", "t"],
                   ["c", "a"], ["\u{2581}", "c"], ["o", "n"]]})
}

fn unigram() -> Value {
    let vocab: Vec<Value> = pieces().iter().enumerate().map(|(i, t)| json!([t, -(i as f64) / 100.0 - 1.0])).collect();
    json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true})
}

#[test]
fn a_prepended_space_is_taken_out_again() {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    for model in [bpe(), unigram()] {
        check("llama", &file(&both, &Value::Null, &model), &TEXTS);
        check("gemma", &file(&replace, &Value::Null, &model), &TEXTS);
    }
}

/// Gemma's file names its runs of spaces as added tokens, and the model's merges give the same ids.
#[test]
fn an_added_run_of_spaces_is_spaces() {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let id = pieces().iter().position(|piece| piece == "\u{2581}\u{2581}").unwrap();
    for model in [bpe(), unigram()] {
        let mut layout: Value = serde_json::from_slice(&file(&replace, &Value::Null, &model)).unwrap();
        let mut run = added(id, "\u{2581}\u{2581}");
        run["special"] = json!(false);
        layout["added_tokens"].as_array_mut().unwrap().push(run);
        let file = layout.to_string().into_bytes();
        let (engine, vocabulary) = load(&file, &TokenNames::default(), EngineChoice::Auto).unwrap();
        let mut tokens = Tokens::default();
        engine.encode("a  ", &mut tokens).unwrap();
        assert!(tokens.ids.contains(&(id as i32)), "{:?}", tokens.ids);
        assert_eq!(vocabulary.surface(id as i32), b"  ");
        check("gemma", &file, &TEXTS);
    }
}

#[test]
fn a_space_of_metaspace_is_taken_out_again() {
    for scheme in ["always", "first", "never"] {
        // Where a piece begins with a space, `Metaspace` adds none: `a` and ` a` have the same ids.
        let is_told = |text: &&&str| scheme == "never" || !(text.starts_with(' ') || text.contains("> "));
        let texts: Vec<&str> = TEXTS.iter().filter(is_told).copied().collect();
        for split in [true, false] {
            let metaspace =
                json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split});
            for model in [bpe(), unigram()] {
                check(&format!("{scheme} {split}"), &file(&Value::Null, &metaspace, &model), &texts);
            }
        }
    }
}

/// Says nothing where they were not fetched.
#[test]
fn real_tokenizers_read_back_what_they_encode() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.cache/assets");
    let prose = include_str!("../src/tokenizer/vocabulary.rs").to_owned() + &TEXTS.join("\n");
    for name in ["tokenizer-llama-2", "tokenizer-gemma-3", "qwen3", "llama31"] {
        let Ok(file) = std::fs::read(assets.join(name).join("tokenizer.json")) else { continue };
        let lines: Vec<&str> = prose.split_inclusive('\n').chain(TEXTS).chain([prose.as_str()]).collect();
        let lines: Vec<&str> = lines.into_iter().filter(|line| !line.contains('\u{2581}')).collect();
        assert!(check(name, &file, &lines) > 1000);
    }
}
