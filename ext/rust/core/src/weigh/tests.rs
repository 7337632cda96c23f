//! The worked examples of the loss-scale documentation, in both readings.
use super::*;
use crate::tokenizer::vocabulary::{EngineChoice, TokenNames, Vocabulary, load};

fn weigh(spec: &str, semantics: Semantics, text: &str, query: &str) -> Vec<(String, f64)> {
    let spec = Spec::parse(spec, semantics, &[]).unwrap();
    named(text, &spec.segments(text, query).unwrap())
}

fn named(text: &str, segments: &[Segment]) -> Vec<(String, f64)> {
    let mut start = 0;
    let mut out = vec![];
    for segment in segments {
        out.push((text[start..segment.end].to_owned(), segment.weight));
        start = segment.end;
    }
    assert_eq!(start, text.len());
    out
}

fn both(spec: &str, text: &str, expected: &[(&str, f64)]) {
    for semantics in [Semantics::Spans, Semantics::MsSwift] {
        let expected: Vec<_> = expected.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
        assert_eq!(weigh(spec, semantics, text, ""), expected, "{semantics:?}");
    }
}

#[test]
fn literal_marks_weigh_themselves_and_what_follows() {
    both(
        "react",
        "I look. Action: search Action Input: {\"q\":1} Observation: 7",
        &[("I look. ", 1.0), ("Action: search Action Input: {\"q\":1} Observation:", 2.0), (" 7", 0.0)],
    );
    both("alpha_umi", "a Next: b", &[("a ", 1.0), ("Next: b", 2.0)]);
    both(
        "qwen",
        "✿FUNCTION✿: f ✿RESULT✿: 3 ✿RETURN✿: x",
        &[("✿FUNCTION✿: f ✿RESULT✿:", 2.0), (" 3 ", 0.0), ("✿RETURN✿: x", 1.0)],
    );
}

#[test]
fn a_regex_weighs_what_it_matched() {
    both(
        "hermes",
        "ok <tool_call>{\n}</tool_call> done",
        &[("ok ", 1.0), ("<tool_call>{\n}</tool_call>", 2.0), (" done", 1.0)],
    );
    both("hermes", "<tool_call></tool_call> a </tool_call>", &[("<tool_call></tool_call> a </tool_call>", 2.0)]);
    both("ignore_empty_think", "<think>\n\n</think>\n\nhi", &[("<think>\n\n</think>\n\n", 0.0), ("hi", 1.0)]);
    both("ignore_think_prefix", "<think>\nhi", &[("<think>\n", 0.0), ("hi", 1.0)]);
    both("hermes", "", &[]);
}

#[test]
fn two_empty_think_blocks_silence_the_answer_in_ms_swift_only() {
    let text = "<think></think><think></think>hi";
    let ms_swift = weigh("ignore_empty_think", Semantics::MsSwift, text, "");
    assert_eq!(ms_swift, [(text.to_owned(), 0.0)]);
    let spans = weigh("ignore_empty_think", Semantics::Spans, text, "");
    assert_eq!(spans, [("<think></think>".to_owned(), 0.0), ("<think></think>hi".to_owned(), 1.0)]);
}

#[test]
fn a_chain_multiplies_and_anchors_again_in_ms_swift_only() {
    let text = "<tool_call>a</tool_call></think>b";
    let spec = "last_round+hermes+ignore_empty_think";
    let call = ("<tool_call>a</tool_call>".to_owned(), 2.0);
    assert_eq!(
        weigh(spec, Semantics::MsSwift, text, ""),
        [call.clone(), ("</think>".to_owned(), 0.0), ("b".to_owned(), 1.0)]
    );
    assert_eq!(weigh(spec, Semantics::Spans, text, ""), [call, ("</think>b".to_owned(), 1.0)]);
}

#[test]
fn a_query_key_weighs_the_whole_reply() {
    for semantics in [Semantics::Spans, Semantics::MsSwift] {
        let got = weigh("agentflan", semantics, "Action: x", "So: What is the value of y?");
        assert_eq!(got, [("Action: x".to_owned(), 3.0)]);
    }
}

#[test]
fn bases_and_files_are_told_apart() {
    let spec = Spec::parse("all", Semantics::Spans, &[]).unwrap();
    assert_eq!((spec.base, spec.reads_text()), (Base::All, false));
    assert_eq!(Spec::parse("hermes", Semantics::Spans, &[]).unwrap().base, Base::Default);
    assert_eq!(Spec::files_of("last_round+hermes+my.json"), ["my.json"]);
    assert!(Spec::parse("hermse", Semantics::Spans, &[]).unwrap_err().to_string().contains("hermse"));
    assert!(Spec::parse("ignore_empty_think", Semantics::Spans, &[]).unwrap().is_binary());
    assert!(!Spec::parse("hermes", Semantics::Spans, &[]).unwrap().is_binary());
}

#[test]
fn rules_files_have_two_forms() {
    let files = [
        ("a.json".to_owned(), r#"{"\\d+": [0.5]}"#.to_owned()),
        ("b.json".to_owned(), r#"[{"regex": "(?<=x)\\d", "weight": -1}, {"regex": "z$", "weight": 4}]"#.to_owned()),
        ("c.json".to_owned(), r#"{"A": [1, 2], "B+": [3]}"#.to_owned()),
        ("d.json".to_owned(), r#"{"(a)b": [2]}"#.to_owned()),
        ("e.json".to_owned(), r#"{"(a+)+$": [2]}"#.to_owned()),
        ("f.json".to_owned(), r#"[{"literal": "L:", "weight": 3}]"#.to_owned()),
    ];
    let spec = |name: &str, semantics| Spec::parse(name, semantics, &files);
    let run =
        |name: &str, semantics, text: &str| named(text, &spec(name, semantics).unwrap().segments(text, "").unwrap());
    assert_eq!(
        run("a.json", Semantics::Spans, "a12b"),
        [("a".to_owned(), 1.0), ("12".to_owned(), 0.5), ("b".to_owned(), 1.0)]
    );
    // lookbehind, and `$` before a final newline
    assert_eq!(
        run("b.json", Semantics::Spans, "1x2z\n"),
        [("1x".to_owned(), 1.0), ("2".to_owned(), -1.0), ("z".to_owned(), 4.0), ("\n".to_owned(), 1.0)]
    );
    assert_eq!(
        run("f.json", Semantics::Spans, "xL:y"),
        [("x".to_owned(), 1.0), ("L:".to_owned(), 3.0), ("y".to_owned(), 1.0)]
    );
    // ms-swift forgets the regular expressions of a file with literals; we refuse the file
    assert_eq!(run("c.json", Semantics::MsSwift, "BAx"), [("BA".to_owned(), 1.0), ("x".to_owned(), 2.0)]);
    assert!(spec("c.json", Semantics::Spans).is_err());
    // a capture group breaks its split; ours does not mind
    assert!(spec("d.json", Semantics::MsSwift).unwrap_err().to_string().contains("capture group"));
    assert_eq!(run("d.json", Semantics::Spans, "ab"), [("ab".to_owned(), 2.0)]);
    // runaway backtracking is an error, not a hang
    let text = format!("{}b", "a".repeat(60));
    let error = spec("e.json", Semantics::Spans).unwrap().segments(&text, "").unwrap_err();
    assert!(error.to_string().contains("(a+)+$"), "{error}");
}

/// A byte-level tokenizer with these merges, left and right.
fn tokenizer(merges: &[(&str, &str)]) -> (Box<dyn crate::tokenizer::engine::Engine>, Vocabulary) {
    use serde_json::json;
    let mut vocab = serde_json::Map::new();
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    for byte in 0..=255 {
        let shifted = 256 + (0..byte).filter(|b| !printable(*b)).count() as u32;
        let shown = char::from_u32(if printable(byte) { u32::from(byte) } else { shifted }).unwrap();
        vocab.insert(shown.to_string(), json!(byte));
    }
    for (left, right) in merges {
        vocab.insert(format!("{left}{right}"), json!(vocab.len()));
    }
    let merges: Vec<_> = merges.iter().map(|(left, right)| json!([left, right])).collect();
    let think = json!({"id": vocab.len(), "content": "<think>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [think], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges}});
    load(file.to_string().as_bytes(), &TokenNames::default(), EngineChoice::Auto).unwrap()
}

/// The sieve decides for most replies, and never otherwise than the rules on the whole text.
#[test]
fn a_sieve_changes_no_weight() {
    use crate::weigh::sequence::{TokenTurn, WeighScratch, Weigher};
    let merges = [("_", "c"), ("o", "l"), ("ol", "_c"), ("l", ">"), (">", "<"), ("<", "/"), ("t", "h"), ("Ċ", "Ċ")];
    let (engine, _) = tokenizer(&merges);
    let parts = [
        "<tool_call>",
        "</tool_call>",
        "tool_call",
        "<think>",
        "</think>",
        "\n",
        "\n\n",
        " ",
        "\u{a0}",
        "\u{1c}",
        "a",
        "x_call",
        "é",
        "Action:",
        "Action Input:",
        "Observation:",
        "</seed",
        "</think>><",
        "_c",
        "語",
        "<",
        ">",
        "\u{1a}",
    ];
    let files = [("own.json".to_owned(), r#"{"^a.x\\s*": [0.5], "call>\\s+x": [3]}"#.to_owned())];
    let specs =
        ["hermes", "hermes+ignore_empty_think", "ignore_think_prefix", "react", "react+hermes", "own.json+hermes"];
    let weigher =
        |spec: &&str| Weigher::new(Spec::parse(spec, Semantics::Spans, &files).unwrap(), tokenizer(&merges).1);
    let sieved: Vec<_> = specs.iter().map(weigher).collect();
    let mut plain: Vec<_> = specs.iter().map(weigher).collect();
    for plain in &mut plain {
        plain.sieve = None;
    }
    let (mut seed, mut decided, mut scratch) = (1_u64, 0, WeighScratch::default());
    for round in 0..30_000 {
        let mut next = |limit: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % limit
        };
        let mut text = ["", "<think>\n\n</think>\n\n", "<think>", "a"][next(4)].to_owned();
        let most = [4, 12, 60][next(3)];
        (0..next(most)).for_each(|_| text.push_str(parts[next(parts.len()) % (1 + round % parts.len())]));
        let mut tokens = crate::tokenizer::engine::Tokens::default();
        engine.encode(&text, &mut tokens).unwrap();
        let length = tokens.ids.len() as i32;
        let from = next(3).min(tokens.ids.len()) as i32;
        let turn = TokenTurn {
            start: 0,
            end: length,
            generated_start: from,
            generated_end: length,
            closing: length,
            role: crate::types::Role::Assistant,
            message: 0,
            loss: None,
            loss_scale: None,
        };
        let (sieved, plain) = (&sieved[round % specs.len()], &plain[round % specs.len()]);
        let mut run = |weigher: &Weigher| {
            let mut spans = vec![];
            weigher.weigh(&tokens.ids, std::slice::from_ref(&turn), &mut scratch, &mut spans).unwrap();
            spans
        };
        assert_eq!(run(sieved), run(plain), "{text:?} from token {from} with {:?}", specs[round % specs.len()]);
        let range = from as usize..tokens.ids.len();
        let known = sieved
            .sieve
            .as_ref()
            .and_then(|sieve| sieve.segments(sieved.vocabulary(), &tokens.ids, range, &mut String::new(), &mut vec![]));
        decided += usize::from(known.is_some());
    }
    assert!(decided > 6_000, "{decided}");
}
