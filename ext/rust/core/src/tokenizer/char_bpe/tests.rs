//! The engine against the `tokenizers` crate.
use super::*;
use crate::tokenizer::vocabulary::{TokenNames, crate_tokenizer};
use serde_json::{Value, json};

/// Pieces of texts that try to break it.
const PIECES: [&str; 24] = [
    "the",
    " mill",
    "mill",
    "  ",
    " ",
    "\n",
    "<s>",
    "</s>",
    "▁",
    "é",
    "中",
    "文字",
    "😀",
    "a",
    "b",
    "ab",
    "ba",
    " ▁ ",
    ">",
    "</",
    "\u{1}",
    ".",
    "wheel wheel",
    "<h1>",
];

/// A tokenizer of a few merges, all bytes, and some characters without a token.
fn tokenizer(normalizer: &Value, pre_tokenizer: &Value) -> Vec<u8> {
    let mut names: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
    names.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    names.extend("▁themilwab.>中\n</".chars().map(String::from));
    let merges = [
        ("t", "h"),
        ("th", "e"),
        ("▁", "▁"),
        ("▁▁", "▁"),
        ("l", "l"),
        ("m", "i"),
        ("mi", "ll"),
        ("▁", "mill"),
        ("a", "b"),
        ("b", "a"),
        (">", "▁"),
        (">▁", "<"),
        ("▁", "th"),
        ("▁th", "e"),
        ("\n", "\n"),
        ("w", "h"),
        ("e", "e"),
        ("ee", "l"),
        ("wh", "eel"),
        ("▁", "wheel"),
    ];
    names.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: serde_json::Map<String, Value> =
        names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    let added = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": id < 3})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(names.len(), "<h1>")],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges.map(|(left, right)| json!([left, right]))},
    });
    serde_json::to_vec(&file).expect("json")
}

fn kinds() -> Vec<Vec<u8>> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
    let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let metaspace =
        |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    vec![
        tokenizer(&prepend, &Value::Null),
        tokenizer(&replace, &split),
        tokenizer(&Value::Null, &metaspace("always")),
        tokenizer(&Value::Null, &metaspace("first")),
        tokenizer(&Value::Null, &metaspace("never")),
    ]
}

#[test]
fn ids_are_those_of_the_crate() {
    for file in kinds() {
        let (engine, _) = load(&file, &TokenNames::default()).expect("a file this engine knows");
        let tokenizer = crate_tokenizer(&file, &TokenNames::default()).expect("a tokenizer");
        let mut seed = 7_u64;
        for round in 0..600 {
            let mut text = String::new();
            for _ in 0..(if round % 50 == 0 { 200 } else { seed % 9 }) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(PIECES[(seed >> 40) as usize % PIECES.len()]);
            }
            let mut out = Tokens::default();
            engine.encode(&text, &mut out).expect("tokens");
            let expected = tokenizer.encode(text.as_str(), false).expect("tokens");
            let found: Vec<u32> = out.ids.iter().map(|id| id.cast_unsigned()).collect();
            assert_eq!(found, expected.get_ids(), "{text:?}");
            assert!(out.ends.is_sorted());
            assert_eq!(out.ends.last().map_or(0, |end| *end as usize), text.len(), "{text:?}");
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        }
    }
}

#[test]
fn tables_are_those_of_the_crate() {
    for file in kinds() {
        let names = TokenNames { bos: Some("<s>".into()), eos: Some("</s>".into()), extra: vec!["</s>".into()] };
        let (_, ours) = load(&file, &names).expect("a file this engine knows");
        let (_, theirs) =
            crate::tokenizer::vocabulary::load(&file, &names, crate::tokenizer::vocabulary::EngineChoice::Tokenizers)
                .expect("a tokenizer");
        assert_eq!(ours, theirs);
    }
}

#[test]
fn what_is_not_known_is_left_to_the_crate() {
    let file = kinds().swap_remove(0);
    let known: Value = serde_json::from_slice(&file).expect("json");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut file = known.clone();
        change(&mut file);
        load(&serde_json::to_vec(&file).expect("json"), &TokenNames::default()).is_none()
    };
    assert!(!changed(&|_| {}));
    assert!(changed(&|file| file["model"]["byte_fallback"] = json!(false)));
    assert!(changed(&|file| file["model"]["ignore_merges"] = json!(true)));
    assert!(changed(&|file| file["model"]["dropout"] = json!(0.1)));
    assert!(changed(&|file| file["added_tokens"][0]["normalized"] = json!(true)));
    assert!(changed(&|file| file["added_tokens"][3]["id"] = json!(9999)));
    assert!(changed(&|file| file["normalizer"] = json!({"type": "NFKC"})));
    assert!(changed(&|file| file["model"]["merges"] = json!([["<0x41>", "a"]])));
    assert!(changed(&|file| file["pre_tokenizer"] = json!({"type": "Whitespace"})));
}
