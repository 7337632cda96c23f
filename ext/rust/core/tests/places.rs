//! Places among tokens, found while encoding, against the ends of all tokens.
#![allow(missing_docs, clippy::unwrap_used)]

use postmill_core::tokenizer::engine::{Places, Tokens};
use postmill_core::tokenizer::vocabulary::{EngineChoice, TokenNames, load};
use serde_json::{Map, Value, json};

/// A byte-level tokenizer with NFC, some merges and two added tokens, one of which takes the space before it; it has no
/// token for the bytes in `without`.
fn tokenizer(without: &[u8]) -> Vec<u8> {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let shown = |byte: u8| {
        let shifted = 256 + (0..byte).filter(|b| !printable(*b)).count() as u32;
        char::from_u32(if printable(byte) { u32::from(byte) } else { shifted }).unwrap().to_string()
    };
    let mut vocab = Map::new();
    for byte in (0..=255).filter(|byte| !without.contains(byte)) {
        vocab.insert(shown(byte), json!(vocab.len()));
    }
    let e_acute: Vec<String> = "é".bytes().map(shown).collect();
    let merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ċ", "Ċ"), (&*e_acute[0], &*e_acute[1])];
    for (left, right) in merges {
        vocab.insert(format!("{left}{right}"), json!(vocab.len()));
    }
    let merges: Vec<Value> = merges.iter().map(|(left, right)| json!([left, right])).collect();
    let added = |number: usize, content: &str, lstrip: bool, normalized: bool| {
        json!({"id": vocab.len() + number, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": false,
               "normalized": normalized, "special": true})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<|a|>", false, false), added(1, "<b>", true, false), added(2, "é<", false, true)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    });
    file.to_string().into_bytes()
}

#[test]
fn places_are_where_the_ends_say() {
    let parts = [
        "<|a|>",
        "<b>",
        " ",
        "the",
        " the",
        "\n",
        "e\u{301}",
        "é",
        "\u{1112}\u{1161}\u{11ab}",
        "x",
        "語",
        "<",
        "q\u{300}\u{301}",
        "a\u{30a}",
    ];
    let mut seed = 7_u64;
    let mut next = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % limit
    };
    for (without, ours) in [(&[][..], true), (b"xq", true), (&[], false)] {
        let choice = if ours { EngineChoice::Auto } else { EngineChoice::Tokenizers };
        let (engine, _) = load(&tokenizer(without), &TokenNames::default(), choice).unwrap();
        assert_eq!(engine.name().starts_with("postmill"), ours);
        let mut places = Places::default();
        for _ in 0..if ours { 4000 } else { 300 } {
            let text: String = (0..next(14)).map(|_| parts[next(parts.len())]).collect();
            let (mut all, mut some) = (Tokens::default(), vec![]);
            engine.encode(&text, &mut all).unwrap();
            let step = 1 + next(3);
            let asked: Vec<usize> = (0..=text.len()).step_by(step).collect();
            places.encode(&*engine, &text, asked.iter().rev().copied(), &mut some).unwrap();
            assert_eq!(some, all.ids, "{text:?}");
            for at in asked {
                assert_eq!(places.index_at(at), all.index_at(at), "{text:?} at {at}: {all:?}");
            }
        }
    }
}
