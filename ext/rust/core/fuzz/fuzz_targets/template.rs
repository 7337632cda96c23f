//! Chat templates: any source and any row end in a text or an error, within the limits of the template.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use postmill_core::json;
use postmill_core::rows::{RowOptions, normalize_bytes};
use postmill_core::template::{Date, Options, SpecialTexts, Template};
use postmill_core::types::{Body, Row};

const ROW: &str = r#"{"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4"}], "tools": [{"type": "function", "function":
    {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]}"#;

static ROWS: LazyLock<Row> =
    LazyLock::new(|| normalize_bytes(ROW.as_bytes(), &RowOptions::default()).expect("a good row"));

fuzz_target!(|source: &str| {
    let tokens = vec!["<|im_end|>".into(), "<|im_start|>".into()];
    let specials = SpecialTexts { named: vec![("eos_token".into(), "<|im_end|>".into())], tokens };
    let date = Some(Date { year: 2026, month: 11, day: 22 });
    let options = Options { date, max_output: 1 << 20, fuel: 100_000, ..Options::default() };
    let Ok(template) = Template::new(source, &specials, options) else { return };
    let Body::Chat(messages) = &ROWS.body else { return };
    let kwargs = [("enable_thinking".into(), json::parse(b"false").expect("json"))];
    let plain = template.render_text(messages, ROWS.tools.as_ref(), &kwargs, false);
    let marked = template.render(messages, ROWS.tools.as_ref(), &kwargs, false);
    if let Ok(marked) = marked {
        assert_eq!(plain.expect("text without its turns"), marked.text);
        assert!(marked.turns.iter().all(|turn| marked.text.get(turn.all.clone()).is_some()));
    }
    let _ = template.render_text(messages, None, &[], true);
});
