//! JSON text out of [`Json`]: canonical for hashing and storage, Python's for templates.
use std::fmt::Write;

use crate::types::Json;

/// Keys sorted, no spaces, numbers as they were written, only what must be escaped escaped.
#[must_use]
pub fn to_canonical(value: &Json) -> String {
    let mut out = String::new();
    append_canonical(&mut out, value);
    out
}

/// [`to_canonical`], onto the end of `out`.
pub(crate) fn append_canonical(out: &mut String, value: &Json) {
    match value {
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                append_canonical(out, item);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (index, (key, item)) in ordered(members, true).into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                append_string(out, key, false);
                out.push(':');
                append_canonical(out, item);
            }
            out.push('}');
        }
        Json::Number(text) => out.push_str(text),
        _ => append_plain(out, value, false),
    }
}

/// How Python's `json.dumps` is asked to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonStyle {
    /// Between items, and between key and value. Python's default is `", "` and `": "`; with an indent `","` and `": "`.
    pub(crate) separators: (String, String),
    /// What one level of nesting is indented by; `None` writes one line.
    pub(crate) indent: Option<String>,
    /// Members by key instead of in their own order.
    pub(crate) sort_keys: bool,
    /// Everything outside ASCII as `\uXXXX`.
    pub(crate) ensure_ascii: bool,
}

impl PythonStyle {
    /// `json.dumps(value, ensure_ascii=False)`: what Hugging Face's `tojson` filter does.
    #[must_use]
    pub fn one_line() -> Self {
        let separators = (", ".to_owned(), ": ".to_owned());
        Self { separators, indent: None, sort_keys: false, ensure_ascii: false }
    }

    /// `json.dumps(value, ensure_ascii=False, indent=spaces)`.
    #[cfg(test)]
    pub(crate) fn indented(spaces: usize) -> Self {
        let separators = (",".to_owned(), ": ".to_owned());
        Self { separators, indent: Some(" ".repeat(spaces)), ..Self::one_line() }
    }
}

/// What Python prints for `json.dumps(json.loads(text), ...)`: integers of any size unchanged, floats by their `repr`.
#[must_use]
pub fn python_dumps(value: &Json, style: &PythonStyle) -> String {
    let mut out = String::new();
    append_python(&mut out, value, style, 1);
    out
}

fn append_python(out: &mut String, value: &Json, style: &PythonStyle, level: usize) {
    let break_line = |out: &mut String, level: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            for _ in 0..level {
                out.push_str(indent);
            }
        }
    };
    match value {
        Json::Array(items) if !items.is_empty() => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(&style.separators.0);
                }
                break_line(out, level);
                append_python(out, item, style, level + 1);
            }
            break_line(out, level - 1);
            out.push(']');
        }
        Json::Object(members) if !members.is_empty() => {
            out.push('{');
            for (index, (key, item)) in ordered(members, style.sort_keys).into_iter().enumerate() {
                if index > 0 {
                    out.push_str(&style.separators.0);
                }
                break_line(out, level);
                append_string(out, key, style.ensure_ascii);
                out.push_str(&style.separators.1);
                append_python(out, item, style, level + 1);
            }
            break_line(out, level - 1);
            out.push('}');
        }
        _ => append_plain(out, value, style.ensure_ascii),
    }
}

/// Values with nothing inside them, as Python writes them.
fn append_plain(out: &mut String, value: &Json, ensure_ascii: bool) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Number(text) if &**text == "-0" => out.push('0'),
        Json::Number(text) if text.contains(['.', 'e', 'E']) => match text.parse() {
            Ok(number) => out.push_str(&python_float(number)),
            Err(_) => out.push_str(text),
        },
        Json::Number(text) => out.push_str(text),
        Json::String(text) => append_string(out, text, ensure_ascii),
        Json::Array(_) => out.push_str("[]"),
        Json::Object(_) => out.push_str("{}"),
    }
}

fn ordered(members: &[(Box<str>, Json)], sort: bool) -> Vec<(&str, &Json)> {
    let mut order: Vec<(&str, &Json)> = members.iter().map(|(key, value)| (&**key, value)).collect();
    if sort {
        order.sort_unstable_by_key(|&(key, _)| key);
    }
    order
}

/// Python's `repr` of a float: the fewest digits that read back equal, an exponent below 1e-4 and from 1e16 on.
///
/// Infinite and undefined values are spelled as `json.dumps` does (`Infinity`, `NaN`).
#[must_use]
pub(crate) fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        // Rust writes 1e-5 where Python writes 1e-05.
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// A JSON string literal: `"`, `\` and control characters escaped as Python does, and on request all that is not
/// printable ASCII (so DEL as well).
pub(super) fn append_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    let mut done = 0;
    let bytes = text.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        let plain = byte >= 0x20 && byte != b'"' && byte != b'\\';
        if plain && (byte < 0x7f || !ensure_ascii) {
            continue;
        }
        if byte & 0xC0 == 0x80 {
            continue; // inside a character that was escaped at its first byte
        }
        out.push_str(text.get(done..at).unwrap_or_default());
        let character = text[at..].chars().next().unwrap_or_default();
        append_escape(out, character);
        done = at + character.len_utf8();
    }
    out.push_str(&text[done..]);
    out.push('"');
}

fn append_escape(out: &mut String, character: char) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        _ => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}
