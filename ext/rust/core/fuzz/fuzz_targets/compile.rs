//! A `tokenizer.json`, damaged: raw bytes, or edits of a good one. What our compiler accepts must give the crate's ids.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use postmill_fuzz::train::train;
use postmill_fuzz::words::FAMILIES;
use postmill_fuzz::{Pair, text_of};
use serde_json::{Value, json};

static FILES: LazyLock<Vec<Value>> = LazyLock::new(|| FAMILIES.iter().map(|(_, steps)| train(steps, 330)).collect());

/// Reads edits out of raw bytes; zeros when they are spent.
struct Edits<'a>(&'a [u8]);

impl Edits<'_> {
    fn byte(&mut self) -> usize {
        self.0.split_off_first().map_or(0, |&byte| usize::from(byte))
    }

    fn of(&mut self, n: usize) -> usize {
        (self.byte() << 8 | self.byte()) % n.max(1)
    }

    fn value(&mut self, file: &Value) -> Value {
        match self.byte() % 16 {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(false),
            3 => json!(self.byte()),
            4 => json!(-1),
            5 => json!(u32::MAX),
            6 => json!(1u64 << 31),
            7 => json!(1e300),
            8 => json!([]),
            9 => json!({}),
            10 => json!({"type": "NFC"}),
            11 => json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
            12 => json!(["a", "b"]),
            13 => self.token(file),
            _ => json!(text_of(&[1, self.byte() as u8])),
        }
    }

    /// A token of the vocabulary.
    fn token(&mut self, file: &Value) -> Value {
        let vocab = file["model"]["vocab"].as_object();
        let at = self.of(vocab.map_or(1, serde_json::Map::len));
        vocab.and_then(|vocab| vocab.keys().nth(at)).map_or(Value::Null, |token| json!(token))
    }

    fn edit(&mut self, file: &mut Value) {
        match self.byte() % 8 {
            0 => {
                let (token, value) = (self.token(file), self.value(file));
                if let (Some(token), Some(vocab)) = (token.as_str(), file["model"]["vocab"].as_object_mut()) {
                    vocab.insert(token.to_owned(), value);
                }
            }
            1 => {
                let token = self.token(file);
                if let (Some(token), Some(vocab)) = (token.as_str(), file["model"]["vocab"].as_object_mut()) {
                    vocab.remove(token);
                }
            }
            2 => {
                let pair = json!([self.token(file), self.token(file)]);
                let merges = file["model"]["merges"].as_array_mut();
                if let Some(merges) = merges {
                    let at = self.of(merges.len() + 1);
                    merges.insert(at, pair);
                }
            }
            3 => {
                if let Some(merges) = file["model"]["merges"].as_array_mut().filter(|m| !m.is_empty()) {
                    let (a, b) = (self.of(merges.len()), self.of(merges.len()));
                    merges.swap(a, b);
                }
            }
            4 => {
                let (a, b) = (self.token(file), self.token(file));
                let joined = format!("{}{}", a.as_str().unwrap_or("x"), b.as_str().unwrap_or("y"));
                if let Some(vocab) = file["model"]["vocab"].as_object_mut() {
                    let id = vocab.len();
                    vocab.entry(joined).or_insert(json!(id));
                }
                if let Some(merges) = file["model"]["merges"].as_array_mut() {
                    let at = self.of(merges.len() + 1);
                    merges.insert(at, json!([a, b]));
                }
            }
            5 => {
                let flags = self.byte();
                let content = if flags & 32 == 0 { self.token(file) } else { self.value(file) };
                let id = file["model"]["vocab"].as_object().map_or(0, serde_json::Map::len) + flags / 64;
                let added = json!({
                    "id": id, "content": content, "single_word": flags & 1 > 0, "lstrip": flags & 2 > 0,
                    "rstrip": flags & 4 > 0, "normalized": flags & 8 > 0, "special": flags & 16 > 0,
                });
                if let Some(list) = file["added_tokens"].as_array_mut() {
                    list.push(added);
                }
            }
            6 => {
                let names = [
                    "unk_token",
                    "fuse_unk",
                    "byte_fallback",
                    "dropout",
                    "ignore_merges",
                    "end_of_word_suffix",
                    "type",
                ];
                let name = names[self.of(names.len())];
                file["model"][name] = self.value(file);
            }
            _ => {
                let names = [
                    "normalizer",
                    "pre_tokenizer",
                    "added_tokens",
                    "version",
                    "truncation",
                    "decoder",
                    "post_processor",
                ];
                let name = names[self.of(names.len())];
                file[name] = self.value(file);
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    if which == 255 {
        let _ = postmill_core::tokenizer::bpe::Bpe::compile(rest);
        return;
    }
    let mut file = FILES[usize::from(which) % FILES.len()].clone();
    let (edits, text) = rest.split_at(rest.len() * 3 / 4);
    let mut edits = Edits(edits);
    while !edits.0.is_empty() {
        edits.edit(&mut file);
    }
    let file = file.to_string();
    let Some(pair) = Pair::new("edited", file.as_bytes()) else { return };
    pair.check("We're here, it's 12345 o'clock; naïve fi\u{301} 中文分词 let mut\u{1} 한국어\n\n  x<|im_end|>");
    pair.check(&text_of(text));
});
