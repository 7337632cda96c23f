use super::encoder::Encoder;
use super::options::{EncodeOptions, Templates};
use super::pipeline::{Chunk, ReadOptions, encode_chunk};
use crate::error::Error;
use crate::template::{SpecialTexts, Template};
use crate::tokenizer::engine::{Engine, Tokens};
use crate::tokenizer::vocabulary::{EngineChoice, TokenNames, load};
use crate::weigh::{Semantics, Spec};

const TOKENIZER: &[u8] = br#"{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"#;
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

/// Fails as a renderer or encoder does that finds itself at fault.
struct Faulty;

impl Engine for Faulty {
    fn name(&self) -> String {
        "faulty".into()
    }

    fn encode(&self, _: &str, _: &mut Tokens) -> Result<(), Error> {
        Err(Error::Internal { message: "two ways differ".into() })
    }
}

#[test]
fn a_fault_of_ours_is_never_dropped_as_data() {
    let (_, vocabulary) = load(TOKENIZER, &TokenNames::default(), EngineChoice::Auto).unwrap();
    let template = Template::new(TEMPLATE, &SpecialTexts::default(), crate::template::Options::default()).unwrap();
    let templates = Templates { default: Some(template), ..Default::default() };
    let spec = Spec::parse("default", Semantics::Spans, &[]).unwrap();
    let encoder = Encoder::new(Box::new(Faulty), vocabulary, templates, spec, EncodeOptions::default()).unwrap();
    let data = br#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let chunk = Chunk { data, file: "x.jsonl", first_line: 1, ..Chunk::default() };
    for skip_bad_rows in [false, true] {
        let read = ReadOptions { skip_bad_rows, ..ReadOptions::default() };
        match encode_chunk(&encoder, &read, &chunk) {
            Err(Error::Internal { message }) => assert_eq!(&*message, "x.jsonl:1: two ways differ"),
            other => panic!("{:?}", other.map(|made| made.counts)),
        }
    }
}
