//! Work that is the same on every machine, for counting its instructions: `fixed_work compile|text|ends|chats|pack`.
//!
//! Only what `measured` calls counts; `bench/instructions.py` runs this under callgrind. Everything is made here from a
//! fixed sequence of numbers: a tokenizer with thousands of merges, English, Chinese, code, chats with a template of
//! `ChatML`'s shape.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::fmt::Write;

use postmill_core::encode::encoder::Encoder;
use postmill_core::encode::options::{EncodeOptions, Templates};
use postmill_core::encode::pipeline::{Chunk, ReadOptions, encode_chunk};
use postmill_core::pack::best_fit;
use postmill_core::template::{self, SpecialTexts, Template};
use postmill_core::tokenizer::bpe::Bpe;
use postmill_core::tokenizer::vocabulary::{self, EngineChoice, TokenNames};
use postmill_core::weigh::{Semantics, Spec};
use serde_json::{Value, json};

const TEMPLATE: &str = "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{ '<|im_start|>assistant\n' }}\
    {%- if m.reasoning_content is defined -%}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{%- endif -%}\
    {{ m.content.lstrip('\n') + '<|im_end|>\n' }}{%- else -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
    {%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}";
const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const HAN: &str =
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里";

/// Splitmix64: the same numbers everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % limit as u64) as usize
    }

    /// A number below `limit`, small ones far more often.
    fn skewed(&mut self, limit: usize) -> usize {
        let most = self.below(limit) + 1;
        self.below(most)
    }
}

/// 4000 words of one to four syllables, and 800 of one or two Han characters.
fn words(numbers: &mut Numbers) -> (Vec<String>, Vec<String>) {
    let syllables: Vec<String> = "b c d f g h k l m n p r s t v w th st br"
        .split(' ')
        .flat_map(|c| "aeiou".chars().map(move |v| format!("{c}{v}")))
        .collect();
    let latin = (0..4000).map(|_| (0..=numbers.below(4)).map(|_| &*syllables[numbers.skewed(95)]).collect()).collect();
    let han: Vec<char> = HAN.chars().collect();
    let chinese = (0..800).map(|_| (0..=numbers.below(2)).map(|_| han[numbers.skewed(han.len())]).collect()).collect();
    (latin, chinese)
}

/// About `bytes` of prose, code and Chinese.
fn text(numbers: &mut Numbers, words: &(Vec<String>, Vec<String>), bytes: usize) -> String {
    let mut out = String::new();
    while out.len() < bytes {
        match numbers.below(12) {
            0 => write!(out, "\n    if ({} == {}) {{\n", words.0[numbers.skewed(4000)], numbers.below(10_000)).unwrap(),
            1 => out.push_str(". "),
            2..=4 => out.push_str(&words.1[numbers.skewed(800)]),
            _ => write!(out, " {}", words.0[numbers.skewed(4000)]).unwrap(),
        }
    }
    out
}

/// The printable character that stands for a byte in byte-level tokens.
fn shown(byte: u8) -> char {
    let shifted = (0..byte).filter(|b| !matches!(b, 33..=126 | 161..=172 | 174..=255)).count() as u32;
    let code = if matches!(byte, 33..=126 | 161..=172 | 174..=255) { u32::from(byte) } else { 256 + shifted };
    char::from_u32(code).unwrap()
}

/// A tokenizer whose merges build the commoner words from their start.
fn tokenizer(words: &(Vec<String>, Vec<String>)) -> Vec<u8> {
    let mut vocab = serde_json::Map::new();
    let mut merges: Vec<Value> = vec![];
    for byte in 0..=255 {
        vocab.insert(shown(byte).to_string(), json!(byte));
    }
    for word in words.0.iter().take(3000).map(|word| format!(" {word}")).chain(words.1.iter().take(600).cloned()) {
        let mut token = String::new();
        for c in word.bytes().map(shown) {
            let longer = format!("{token}{c}");
            if !vocab.contains_key(&longer) {
                vocab.insert(longer.clone(), json!(vocab.len()));
                merges.push(json!([token, c.to_string()]));
            }
            token = longer;
        }
    }
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(vocab.len(), "<|im_start|>"), special(vocab.len() + 1, "<|im_end|>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    });
    file.to_string().into_bytes()
}

fn chats(numbers: &mut Numbers, words: &(Vec<String>, Vec<String>), bytes: usize) -> Vec<u8> {
    let mut out = String::new();
    while out.len() < bytes {
        let messages: Vec<Value> = (0..2 + 2 * numbers.below(3))
            .map(|turn| {
                let size = 50 + numbers.below(800);
                let content = text(numbers, words, size);
                json!({"role": if turn % 2 == 0 { "user" } else { "assistant" }, "content": content})
            })
            .collect();
        writeln!(out, "{}", json!({"messages": messages})).unwrap();
    }
    out.into_bytes()
}

/// The frame that callgrind looks for.
#[inline(never)]
fn measured(work: impl FnOnce() -> usize) -> usize {
    std::hint::black_box(work())
}

fn main() {
    let part = std::env::args().nth(1).unwrap_or_default();
    let mut numbers = Numbers(0);
    let words = words(&mut numbers);
    let file = tokenizer(&words);
    let made = match part.as_str() {
        "compile" => measured(|| vocabulary::load(&file, &TokenNames::default(), EngineChoice::Auto).unwrap().1.len()),
        "text" | "ends" => {
            let bpe = Bpe::compile(&file).unwrap();
            let text = text(&mut numbers, &words, 1 << 20);
            let (mut ids, mut ends) = (Vec::with_capacity(1 << 20), Vec::with_capacity(1 << 20));
            measured(|| {
                if part == "text" {
                    bpe.encode_into(&text, &mut ids);
                } else {
                    bpe.encode_with_ends(&text, &mut ids, &mut ends);
                }
                ids.len()
            })
        }
        "chats" => {
            let names = TokenNames { eos: Some("<|im_end|>".into()), ..TokenNames::default() };
            let (engine, vocabulary) = vocabulary::load(&file, &names, EngineChoice::Auto).unwrap();
            assert!(engine.name().starts_with("postmill"));
            let specials = SpecialTexts { named: vec![], tokens: vocabulary.added_texts.clone() };
            let default = Template::new(TEMPLATE, &specials, template::Options::default()).unwrap();
            let templates = Templates { default: Some(default), ..Default::default() };
            let spec = Spec::parse("default+hermes+ignore_empty_think", Semantics::Spans, &[]).unwrap();
            let encoder = Encoder::new(engine, vocabulary, templates, spec, EncodeOptions::default()).unwrap();
            let data = chats(&mut numbers, &words, 1 << 20);
            let chunk = Chunk { data: &data, file: "chats", first_line: 1, ..Chunk::default() };
            measured(|| encode_chunk(&encoder, &ReadOptions::default(), &chunk).unwrap().rows.num_rows())
        }
        "pack" => {
            let lengths: Vec<u32> = (0..100_000).map(|_| 1 + numbers.skewed(2000) as u32).collect();
            measured(|| best_fit(&lengths, None, 4096).unwrap().starts.len())
        }
        _ => std::process::exit(2),
    };
    println!("{part}: {made}");
}
