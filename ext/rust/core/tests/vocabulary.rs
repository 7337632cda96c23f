//! The tables our own engine gives, against those the `tokenizers` crate gives: on a small tokenizer with every member
//! changed, and on every real one that the Python tests have fetched.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use postmill_core::tokenizer::vocabulary::{EngineChoice, TokenNames, Vocabulary, load};
use serde_json::{Value, json};

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Every byte, a few merges, an entry no text reaches, three added tokens.
fn small() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut shifted = 256u32;
    for byte in 0..256u32 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let c = if printable { byte } else { shifted };
        shifted += u32::from(!printable);
        vocab.insert(char::from_u32(c).unwrap().to_string(), json!(byte));
    }
    for (token, id) in [("Ġa", 256), ("ab", 257), ("<s>", 258), ("ä¸Ń", 259), ("ä¸", 260), ("\u{2581}x y", 261)] {
        vocab.insert(token.to_owned(), json!(id));
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(258, "<s>", true), added(262, "</s>", true), added(263, "<tool>\n", false)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["Ġ", "a"], ["a", "b"], ["ä", "¸"], ["ä¸", "Ń"]]},
    })
}

fn names(bos: &str, eos: &str, extra: &[&str]) -> TokenNames {
    TokenNames {
        bos: Some(bos.to_owned()),
        eos: Some(eos.to_owned()),
        extra: extra.iter().map(|&text| text.to_owned()).collect(),
    }
}

/// Both tables of a file; fails unless they are equal. Returns ours and the name of our engine.
fn check(text: &[u8], names: &TokenNames, what: &str) -> (Vocabulary, String) {
    let (engine, ours) = load(text, names, EngineChoice::Auto).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (_, theirs) = load(text, names, EngineChoice::Tokenizers).unwrap();
    assert!(ours == theirs, "{what}: the tables differ");
    (ours, engine.name())
}

#[test]
fn a_small_tokenizer_gives_the_tables_of_the_crate() {
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]},
                           "</s>": {"id": "</s>", "ids": [262], "tokens": ["</s>"]}}});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 262], "cls": ["<s>", 258],
        "trim_offsets": true, "add_prefix_space": false});
    let both = json!({"type": "Sequence", "processors": [byte_level, template]});
    let decoders = json!({"type": "Sequence", "decoders": [small()["decoder"], {"type": "Fuse"}]});
    for post_processor in [Value::Null, byte_level.clone(), template, both, roberta] {
        for decoder in [small()["decoder"].clone(), decoders.clone(), Value::Null] {
            for (bos, eos) in [("<s>", "</s>"), ("Ġa", "\u{2581}x y"), ("nobody", "<tool>\n")] {
                let mut file = small();
                file["post_processor"] = post_processor.clone();
                file["decoder"] = decoder.clone();
                let names = names(bos, eos, &["<s>", "ab"]);
                let what = format!("{post_processor} {decoder} {bos}");
                let (ours, engine) = check(file.to_string().as_bytes(), &names, &what);
                assert!(engine.starts_with("postmill"), "{engine}");
                assert_eq!(ours.is_readable(), decoder != Value::Null);
            }
        }
    }
    let (ours, _) = check(small().to_string().as_bytes(), &names("<s>", "</s>", &[]), "surfaces");
    let surfaces = [256, 258, 259, 261, 263, 264, -1].map(|id| ours.surface(id).to_vec());
    assert_eq!(
        surfaces.each_ref().map(|s| std::str::from_utf8(s).unwrap()),
        [" a", "<s>", "中", "\u{2581}x y", "<tool>\n", "", ""]
    );
}

#[test]
fn special_tokens_that_only_the_configuration_names_are_added_by_the_crate() {
    let (ours, engine) = check(small().to_string().as_bytes(), &names("<s>", "<end>", &["<end>"]), "added");
    assert!(engine.starts_with("tokenizers"), "{engine}");
    assert_eq!((ours.eos, ours.surface(264)), (Some(264), b"<end>".as_slice()));
}

fn find(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, out);
        } else if path.ends_with("tokenizer.json") {
            out.push(path);
        }
    }
}

/// Holds for any tokenizer; says nothing where none was fetched.
#[test]
fn real_tokenizers_give_the_tables_of_the_crate() {
    let mut found = vec![];
    find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.cache/assets"), &mut found);
    for path in found {
        let names = names("<|begin_of_text|>", "<|im_end|>", &[]);
        check(&std::fs::read(&path).unwrap(), &names, &path.display().to_string());
    }
}
