//! What the fuzz targets share: text out of raw bytes, and tokenizers in pairs, ours and the crate's.

#[path = "../../tests/oracle/train.rs"]
pub mod train;
#[path = "../../tests/oracle/words.rs"]
pub mod words;

use std::path::Path;

use postmill_core::tokenizer::bpe::Bpe;
use postmill_core::tokenizer::engine::{Engine, Tokens};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// What text is made of when bytes stand for pieces: every class, what folds to another, and neighbours that join.
const PIECES: [&str; 64] = [
    " ",
    "\n",
    "\r",
    "\t",
    "'",
    "'s",
    "'ll",
    "'RE",
    "a",
    "b",
    "e",
    "S",
    "T",
    "word",
    "Word",
    "WORD",
    "the",
    " the",
    "1",
    "12",
    "345",
    "²",
    "½",
    "٣",
    "!",
    "/",
    "//",
    ".",
    "...",
    "=",
    "<",
    "<|im_end|>",
    "<|im_",
    "<|endoftext|>",
    "中",
    "文",
    "的",
    "中国",
    "ひ",
    "カ",
    "한",
    "ᄀ",
    "ᅡ",
    "ᆨ",
    "\u{301}",
    "\u{327}",
    "\u{200B}",
    "\u{200D}",
    "\u{A0}",
    "\u{3000}",
    "\u{85}",
    "é",
    "ſ",
    "ǅ",
    "ʰ",
    "ß",
    "Ж",
    "ह",
    "ि",
    "👩",
    "🏽",
    "\u{1}",
    "\u{10FFFF}",
    "let mut x = 1;\n",
];

/// Text out of raw bytes: as they are, or each a piece, repeated now and then.
pub fn text_of(data: &[u8]) -> String {
    let Some((&mode, rest)) = data.split_first() else { return String::new() };
    if mode & 1 == 0 {
        return String::from_utf8_lossy(rest).into_owned();
    }
    let mut text = String::new();
    for &byte in rest {
        let count = [1, 2, 5, 70][usize::from(byte >> 6)];
        (0..count).for_each(|_| text.push_str(PIECES[usize::from(byte & 63)]));
    }
    text
}

/// The same tokenizer twice.
pub struct Pair {
    /// Its name, for messages.
    pub name: String,
    ours: Bpe,
    theirs: Tokenizer,
}

impl Pair {
    /// `None` if our engine does not know the file.
    ///
    /// # Panics
    /// If our engine accepts what the crate refuses.
    pub fn new(name: &str, file: &[u8]) -> Option<Self> {
        let ours = Bpe::compile(file).ok()?;
        let theirs = Tokenizer::from_bytes(file).unwrap_or_else(|e| panic!("{name}: only we accept it: {e}"));
        Some(Self { name: name.to_owned(), ours, theirs })
    }

    /// Compares the ids of `text`.
    ///
    /// # Panics
    /// If they differ, or ends do not tile the text, or a batch changes the ids.
    pub fn check(&self, text: &str) {
        let theirs = self.theirs.encode_fast(text, false).unwrap();
        // Memory that remembers the words of earlier inputs: what it remembers must not matter.
        let mut tokens = Tokens::default();
        self.ours.encode(text, &mut tokens).unwrap();
        let ids: Vec<u32> = tokens.ids.iter().map(|&id| id as u32).collect();
        let ends = tokens.ends;
        assert_eq!(ids, theirs.get_ids(), "{}: {text:?}", self.name);
        assert_eq!(ends.len(), ids.len());
        assert!(
            ends.is_sorted() && ends.last().is_none_or(|&end| end as usize <= text.len()),
            "{}: {text:?}",
            self.name
        );
        let batch = self.ours.encode_batch(&[text, "", text], 1);
        assert_eq!(batch.ids, [&ids[..], &ids[..]].concat(), "{}: {text:?} in a batch", self.name);
    }
}

/// A small tokenizer for each known pre-tokenizer, with added tokens of every rule, and the real ones that are there.
///
/// # Panics
/// If one is not ours.
pub fn pairs() -> Vec<Pair> {
    let mut found = Vec::new();
    for (i, (name, steps)) in words::FAMILIES.iter().enumerate() {
        let mut file = train::train(steps, 2000);
        file["normalizer"] = if i % 2 == 0 { json!({"type": "NFC"}) } else { Value::Null };
        file["model"]["ignore_merges"] = json!(i % 3 == 0);
        let vocab = file["model"]["vocab"].as_object().unwrap();
        let mut next = vocab.len();
        let rules =
            [("<|im_end|>", "s"), ("<|im_", "l"), ("<|endoftext|>", "r"), ("中国", "wn"), ("word", "wlr"), ("é", "n")];
        let added = rules.iter().map(|(content, flags)| {
            // The crate takes the id of the vocabulary, if the text is there as it is.
            let id = vocab.get(*content).cloned().unwrap_or_else(|| {
                next += 1;
                json!(next - 1)
            });
            json!({
                "id": id, "content": content, "single_word": flags.contains('w'), "lstrip": flags.contains('l'),
                "rstrip": flags.contains('r'), "normalized": flags.contains('n'), "special": flags.contains('s'),
            })
        });
        file["added_tokens"] = added.collect::<Vec<_>>().into();
        found.push(Pair::new(name, file.to_string().as_bytes()).expect("a known family"));
    }
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../.cache/assets");
    for name in ["qwen3", "tokenizer-o200k", "tokenizer-deepseek-v3", "smollm2", "llama31", "tokenizer-mistral-nemo"] {
        if let Ok(file) = std::fs::read(assets.join(name).join("tokenizer.json")) {
            found.push(Pair::new(name, &file).expect("a known family"));
        }
    }
    found
}
