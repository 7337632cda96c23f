//! How values become text: Python's `str`, `repr` and `json.dumps`.
use std::fmt::Write as _;

use super::fuel::Fuel;
use super::number;
use super::printable::is_printable;
use super::value::{Items, Shape, Value};
use super::{Fail, Outcome, fail};
use crate::types::Json;

/// `str(value)` appended to `out`.
pub(super) fn write_str(value: &Value<'_>, out: &mut String, fuel: &Fuel) -> Outcome<()> {
    match value {
        Value::Unset | Value::Undefined(_) => Ok(()),
        Value::Str(text) => {
            out.push_str(text.as_str());
            Ok(())
        }
        _ => write_repr(value, out, fuel),
    }
}

/// `str(value)`.
pub(super) fn to_str(value: &Value<'_>, fuel: &Fuel) -> Outcome<String> {
    let mut out = String::new();
    write_str(value, &mut out, fuel)?;
    Ok(out)
}

/// `repr(value)`.
pub(super) fn write_repr(value: &Value<'_>, out: &mut String, fuel: &Fuel) -> Outcome<()> {
    spend(fuel)?;
    match value {
        Value::Unset | Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => write!(out, "{value}").map_err(|error| Fail::new(error.to_string()))?,
        Value::Big(text) => out.push_str(check_big(text)?),
        Value::Float(value) => number::write_float(*value, out),
        Value::Str(text) if text.markup => return fail("the repr of a |safe string is not supported"),
        Value::Str(text) => repr_text(text.as_str(), out, fuel)?,
        Value::Json(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(i, out);
                write_repr(&Value::from_json(item, 0), out, fuel)?;
            }
            out.push(']');
        }
        Value::List(items) => {
            out.push('[');
            repr_items(items, out, fuel)?;
            out.push(']');
        }
        Value::Tuple(items) => {
            out.push('(');
            repr_items(items, out, fuel)?;
            out.push_str(if items.values.len() == 1 { ",)" } else { ")" });
        }
        Value::View(items) => {
            out.push_str(match items.shape {
                Shape::DictKeys => "dict_keys([",
                Shape::DictValues => "dict_values([",
                _ => "dict_items([",
            });
            repr_items(items, out, fuel)?;
            out.push_str("])");
        }
        Value::Object(..) | Value::Dict(_) => {
            out.push('{');
            for (i, (key, value)) in value.entries().unwrap_or_default().iter().enumerate() {
                separate(i, out);
                write_repr(key, out, fuel)?;
                out.push_str(": ");
                write_repr(value, out, fuel)?;
            }
            out.push('}');
        }
        Value::Range(start, step, length) => {
            let end = start.saturating_add(step.saturating_mul(*length as i64));
            return if *step == 1 && *length > 0 {
                write!(out, "range({start}, {end})").map_err(|error| Fail::new(error.to_string()))
            } else {
                fail("printing a range with a step, or an empty one, is not supported")
            };
        }
        other => return fail(format!("printing a {} is not supported", other.type_name())),
    }
    Ok(())
}

fn spend(fuel: &Fuel) -> Outcome<()> {
    if fuel.spend(1) { Ok(()) } else { fail("out of fuel") }
}

fn check_big(text: &str) -> Outcome<&str> {
    if number::is_too_long(text) {
        fail("an integer has more than 4300 digits, which Python refuses")
    } else {
        Ok(text)
    }
}

fn separate(index: usize, out: &mut String) {
    if index > 0 {
        out.push_str(", ");
    }
}

fn repr_items(items: &Items<'_>, out: &mut String, fuel: &Fuel) -> Outcome<()> {
    for (i, item) in items.values.iter().enumerate() {
        separate(i, out);
        write_repr(item, out, fuel)?;
    }
    Ok(())
}

fn repr_text(text: &str, out: &mut String, fuel: &Fuel) -> Outcome<()> {
    if !fuel.spend_bytes(text.len()) {
        return fail("out of fuel");
    }
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let code = c as u32;
        let written = match c {
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            c if c == quote => write!(out, "\\{c}"),
            c if is_printable(c) => out.write_char(c),
            _ if code <= 0xff => write!(out, "\\x{code:02x}"),
            _ if code <= 0xffff => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
        written.map_err(|error| Fail::new(error.to_string()))?;
    }
    out.push(quote);
    Ok(())
}

/// How `json.dumps` lays out its text.
#[derive(Debug, Clone)]
pub(super) struct JsonStyle {
    pub ascii: bool,
    pub indent: Option<String>,
    pub item: String,
    pub key: String,
    pub sort: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self { ascii: false, indent: None, item: ", ".into(), key: ": ".into(), sort: false }
    }
}

/// `json.dumps(value)`.
pub(super) struct JsonWriter<'w> {
    pub style: &'w JsonStyle,
    pub fuel: &'w Fuel,
    pub out: String,
    pub level: usize,
}

impl JsonWriter<'_> {
    pub fn value(&mut self, value: &Value<'_>) -> Outcome<()> {
        spend(self.fuel)?;
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Int(value) => write!(self.out, "{value}").map_err(|error| Fail::new(error.to_string()))?,
            Value::Big(text) => self.out.push_str(check_big(text)?),
            Value::Float(value) => number::write_json_float(*value, &mut self.out),
            Value::Str(text) => self.string(text.as_str())?,
            Value::Json(items) => self.list(items, JsonWriter::json)?,
            Value::List(items) | Value::Tuple(items) => self.list(&items.values, Self::value)?,
            Value::Object(members, _) => self.object(members)?,
            Value::Dict(entries) => self.dict(&entries.entries)?,
            other => return fail(format!("object of type {} is not JSON serializable", other.type_name())),
        }
        Ok(())
    }

    fn json(&mut self, json: &Json) -> Outcome<()> {
        spend(self.fuel)?;
        match json {
            Json::Null => self.out.push_str("null"),
            Json::Bool(true) => self.out.push_str("true"),
            Json::Bool(false) => self.out.push_str("false"),
            Json::Number(text) => number::write_json_number(check_big(text)?, &mut self.out),
            Json::String(text) => self.string(text)?,
            Json::Array(items) => self.list(items, JsonWriter::json)?,
            Json::Object(members) => self.object(members)?,
        }
        Ok(())
    }

    fn line(&mut self) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..self.level {
                self.out.push_str(indent);
            }
        }
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T) -> Outcome<()>) -> Outcome<()> {
        if items.is_empty() {
            self.out.push_str("[]");
            return Ok(());
        }
        self.out.push('[');
        self.level += 1;
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.style.item);
            }
            self.line();
            write(self, item)?;
        }
        self.level -= 1;
        self.line();
        self.out.push(']');
        Ok(())
    }

    fn members<K, V>(
        &mut self,
        members: &[(K, V)],
        mut write: impl FnMut(&mut Self, &(K, V)) -> Outcome<()>,
    ) -> Outcome<()> {
        if members.is_empty() {
            self.out.push_str("{}");
            return Ok(());
        }
        self.out.push('{');
        self.level += 1;
        for (i, member) in members.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.style.item);
            }
            self.line();
            write(self, member)?;
        }
        self.level -= 1;
        self.line();
        self.out.push('}');
        Ok(())
    }

    fn object(&mut self, members: &[(Box<str>, Json)]) -> Outcome<()> {
        let write = |writer: &mut Self, key: &str, value: &Json| {
            writer.string(key)?;
            writer.out.push_str(&writer.style.key);
            writer.json(value)
        };
        if !self.style.sort {
            return self.members(members, |writer, (key, value)| write(writer, key, value));
        }
        let mut sorted: Vec<(&str, &Json)> = members.iter().map(|(key, value)| (&**key, value)).collect();
        sorted.sort_by(|a, b| a.0.cmp(b.0));
        self.members(&sorted, |writer, (key, value)| write(writer, key, value))
    }

    fn dict(&mut self, entries: &[(Value<'_>, Value<'_>)]) -> Outcome<()> {
        let mut entries = entries.to_vec();
        if self.style.sort {
            if entries.iter().any(|(key, _)| key.as_str().is_none()) {
                return fail("tojson with sort_keys needs text keys");
            }
            entries.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
        }
        self.members(&entries, |writer, (key, value)| {
            match key {
                Value::Str(text) => writer.string(text.as_str())?,
                Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Big(_) => {
                    writer.out.push('"');
                    writer.value(key)?;
                    writer.out.push('"');
                }
                other => return fail(format!("keys of JSON objects cannot be {}", other.type_name())),
            }
            writer.out.push_str(&writer.style.key);
            writer.value(value)
        })
    }

    fn string(&mut self, text: &str) -> Outcome<()> {
        if !self.fuel.spend_bytes(text.len()) {
            return fail("out of fuel");
        }
        self.out.push('"');
        let mut from = 0;
        for (at, byte) in text.bytes().enumerate() {
            let escape = match byte {
                b'"' => "\\\"",
                b'\\' => "\\\\",
                b'\n' => "\\n",
                b'\r' => "\\r",
                b'\t' => "\\t",
                0x08 => "\\b",
                0x0c => "\\f",
                0..=0x1f => "",
                _ => continue,
            };
            self.plain(&text[from..at])?;
            from = at + 1;
            if escape.is_empty() {
                write!(self.out, "\\u{byte:04x}").map_err(|error| Fail::new(error.to_string()))?;
            } else {
                self.out.push_str(escape);
            }
        }
        self.plain(&text[from..])?;
        self.out.push('"');
        Ok(())
    }

    /// Text without characters that JSON itself must escape.
    fn plain(&mut self, text: &str) -> Outcome<()> {
        if !self.style.ascii || text.is_ascii() && !text.contains('\x7f') {
            self.out.push_str(text);
            return Ok(());
        }
        for c in text.chars() {
            if c.is_ascii() && c != '\x7f' {
                self.out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(self.out, "\\u{unit:04x}").map_err(|error| Fail::new(error.to_string()))?;
            }
        }
        Ok(())
    }
}
