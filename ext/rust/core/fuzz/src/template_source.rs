//! Sources of templates out of bytes, and the trial of one: shared by the fuzz target `template` and by
//! `examples/fuzz_template.rs`, which needs no libFuzzer.

use std::sync::LazyLock;

use postmill_core::json;
use postmill_core::rows::{RowOptions, normalize_bytes};
use postmill_core::template::{Date, Options, SpecialTexts, Template};
use postmill_core::types::{Body, Row};

const ROW: &str = r#"{"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4"}], "tools": [{"type": "function", "function":
    {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]}"#;

static ROWS: LazyLock<Row> =
    LazyLock::new(|| normalize_bytes(ROW.as_bytes(), &RowOptions::default()).expect("a good row"));

const VALUES: &str = "messages;tools;x;messages[0];messages[-1].content;tools[0].function;nope;none;true;0;1;-1;3;\
    9223372036854775807;(-9223372036854775807 - 1);1.5;1e308;'';'a b c';'中é\u{301}';'%s %d %05.2f';\
    '<think>\\n';[];[1, 'a', none];[[1, 2], [3]];[2, 1];{};{'a': 1, 'b': [2]};range(5);(1, 2);namespace(a=1);\
    cycler(1, 2)";
const FILTERS: &str = "abs;attr;batch;capitalize;center;default;dictsort;escape;forceescape;first;float;format;groupby;indent;\
    int;items;join;last;length;list;lower;map;max;min;pprint;reject;rejectattr;replace;reverse;round;safe;\
    select;selectattr;slice;sort;string;sum;title;tojson;trim;truncate;unique;upper;urlencode;wordcount;\
    wordwrap;xmlattr;striptags;filesizeformat";
const TESTS: &str = "defined;undefined;none;boolean;true;integer;float;number;string;mapping;iterable;sequence;callable;odd;\
    even;divisibleby;sameas;upper;lower;in;eq;lt;filter;escaped";
const METHODS: &str = "items;keys;values;get;copy;count;index;strip;lstrip;split;rsplit;startswith;endswith;removeprefix;replace;\
    join;center;ljust;zfill;splitlines;partition;rpartition;find;rfind;format;upper;title;isdigit;isspace;\
    append;pop;update";
const OPERATORS: &str = "+;-;*;/;//;%;**;~;==;!=;<;>=;in;not in;and;or";
const NAMES: &str = ";;;width=;attribute=;default=;reverse=;indent=";

/// Writes a source whose choices are bytes; the first of each list when they are spent.
struct Writer<'a> {
    bytes: &'a [u8],
    out: String,
}

impl Writer<'_> {
    fn byte(&mut self) -> usize {
        self.bytes.split_off_first().map_or(0, |&byte| usize::from(byte))
    }

    /// One of the choices, which semicolons part.
    fn one(&mut self, of: &str) {
        let at = self.byte() % of.split(';').count();
        self.out.push_str(of.split(';').nth(at).unwrap_or(""));
    }

    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn arguments(&mut self, depth: usize) {
        self.put("(");
        for at in 0..self.byte() % 4 {
            self.put(if at > 0 { ", " } else { "" });
            self.one(NAMES);
            self.expression(depth + 1);
        }
        self.put(")");
    }

    fn expression(&mut self, depth: usize) {
        let kind = if depth > 3 { 0 } else { self.byte() % 8 };
        if kind < 2 {
            return self.one(VALUES);
        }
        self.put("(");
        self.expression(depth + 1);
        match kind {
            2 | 3 => {
                self.put(" | ");
                self.one(FILTERS);
                self.arguments(depth);
            }
            4 => {
                self.put(" is ");
                self.one(TESTS);
                self.arguments(depth);
            }
            5 => {
                self.put(".");
                self.one(METHODS);
                self.arguments(depth);
            }
            6 => {
                self.put(" ");
                self.one(OPERATORS);
                self.put(" ");
                self.expression(depth + 1);
            }
            _ => {
                self.put("[");
                self.expression(depth + 1);
                for _ in 0..self.byte() % 3 {
                    self.put(":");
                    self.expression(depth + 1);
                }
                self.put("]");
            }
        }
        self.put(")");
    }

    fn statement(&mut self) {
        let (before, after) = match self.byte() % 6 {
            0 | 1 => ("{{ ", " }}"),
            2 => ("{% if ", " %}{{ x }}{% else %}-{% endif %}"),
            3 => ("{% for x in ", " %}{{ loop.index }}{{ x }}{% endfor %}"),
            4 => ("{% set x = ", " %}"),
            _ => ("{% macro f(x=1) %}{{ x }}{% endmacro %}{{ f(", ") }}"),
        };
        self.put(before);
        self.expression(0);
        self.put(after);
    }
}

/// The source that `data` stands for.
pub fn source_of(data: &[u8]) -> String {
    let Some((&kind, bytes)) = data.split_first() else { return String::new() };
    if kind & 1 == 0 {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut writer = Writer { bytes, out: String::new() };
    while !writer.bytes.is_empty() && writer.out.len() < 4096 {
        writer.statement();
    }
    writer.out
}

/// Compiles a source and renders a row by it: a text or an error, within the limits; what is located lies in the text.
///
/// # Panics
/// If that does not hold.
pub fn try_source(source: &str) {
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
}
