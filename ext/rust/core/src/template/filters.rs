//! Jinja2's filters, as transformers' environment has them.
use super::args::Args;
use super::format::{PercentArgs, percent};
use super::interp::Interp;
use super::names::Filter;
use super::number::{self, Number};
use super::print::{self, JsonStyle, JsonWriter};
use super::text::{self, Side};
use super::value::{Chars, Text, Value};
use super::{Outcome, fail, undefined};

impl<'a> Interp<'a> {
    /// `value | filter(args)`.
    pub(super) fn apply_filter(&mut self, filter: Filter, value: Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        if !self.fuel.spend(1) {
            return fail("out of fuel");
        }
        if value.as_text().is_some_and(|text| text.markup) && !filter.takes_markup() {
            return fail(format!("the filter {filter:?} on a |safe string is not supported"));
        }
        match filter {
            Filter::Default => {
                let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
                let replace = value.is_undefined() || (boolean.is_some_and(|b| b.truthy()) && !value.truthy());
                Ok(if replace { default.unwrap_or(Value::literal("")) } else { value })
            }
            Filter::ToJson => self.dumps(&value, args),
            Filter::Length => {
                args.none("length")?;
                match value.length() {
                    Some(length) => Ok(Value::Int(length as i64)),
                    None => fail(format!("object of type '{}' has no len()", value.type_name())),
                }
            }
            Filter::String | Filter::Safe => {
                args.none("the filter")?;
                let mut text = self.soft_text(value)?;
                text.markup |= filter == Filter::Safe;
                Ok(Value::Str(text))
            }
            Filter::Trim | Filter::Upper | Filter::Lower | Filter::Capitalize | Filter::Title => {
                self.reshape(filter, value, args)
            }
            Filter::Replace => self.replace(value, args),
            Filter::Center => self.center(value, args),
            Filter::WordCount => args.none("wordcount").and_then(|()| self.word_count(value)),
            Filter::Escape(force) => args.none("escape").and_then(|()| self.escape(value, force)),
            Filter::UrlEncode => args.none("urlencode").and_then(|()| self.url_encode(&value)),
            Filter::PrettyPrint => args.none("pprint").and_then(|()| self.pretty(&value)),
            Filter::Truncate => self.truncate(value, args),
            Filter::WordWrap => self.word_wrap(&value, args),
            Filter::Attr => {
                let [Some(name)] = args.bind("attr", ["name"])? else { return fail("attr needs a name") };
                self.attribute_only(&value, &name)
            }
            Filter::Format => self.format(value, &args),
            Filter::Indent => self.indent(&value, args),
            Filter::Abs | Filter::Round | Filter::Int | Filter::Float => numeric(filter, &value, args),
            _ => self.apply_sequence_filter(filter, value, args),
        }
    }

    /// Jinja2's `soft_str`: text stays what it is, the rest is printed.
    pub(super) fn soft_text(&self, value: Value<'a>) -> Outcome<Text<'a>> {
        match value {
            Value::Str(text) => Ok(text),
            other => Ok(Text::owned(print::to_str(&other, &self.fuel)?, 0)),
        }
    }

    fn reshape(&mut self, filter: Filter, value: Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let text = self.soft_text(value)?;
        if !self.fuel.spend_bytes(text.as_str().len()) {
            return fail("out of fuel");
        }
        if filter == Filter::Trim {
            let [chars] = args.bind("trim", ["chars"])?;
            return Self::strip(&text, chars.as_ref(), Side::Both);
        }
        args.none("the filter")?;
        let source = text.source;
        let reshaped = match filter {
            Filter::Upper => text.as_str().to_uppercase(),
            Filter::Lower => text.as_str().to_lowercase(),
            Filter::Title => title(text.as_str()),
            _ => match text::capitalize(text.as_str()) {
                Some(text) => text,
                None => return fail("capitalize of this first letter is not supported"),
            },
        };
        Ok(Value::Str(Text::owned(reshaped, source)))
    }

    /// `text.strip(chars)` and its one-sided kin.
    pub(super) fn strip(text: &Text<'a>, chars: Option<&Value<'a>>, side: Side) -> Outcome<Value<'a>> {
        if matches!(text.chars, Chars::Marked(_)) {
            return fail("a captured block that holds whole messages is stripped: turns cannot be located");
        }
        let set = match chars {
            None | Some(Value::None) => None,
            Some(Value::Str(set)) => Some(set.as_str()),
            Some(Value::Undefined(name)) => return undefined(name),
            Some(other) => return fail(format!("strip arg must be None or str, not {}", other.type_name())),
        };
        let mut stripped = text.part(|text| text::strip(text, set, side));
        stripped.markup = text.markup;
        if side == Side::Left {
            stripped.literal_tail = text.literal_tail.min(stripped.as_str().len() as u32);
        }
        Ok(Value::Str(stripped))
    }

    fn replace(&mut self, value: Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
        let (Some(old), Some(new)) = (old, new) else { return fail("replace needs what to replace and with what") };
        let (text, old, new) = (self.soft_text(value)?, self.soft_text(old)?, self.soft_text(new)?);
        self.replace_text(&text, old.as_str(), new.as_str(), count.as_ref())
    }

    /// `text.replace(old, new, count)`.
    pub(super) fn replace_text(
        &self,
        text: &Text<'a>,
        old: &str,
        new: &str,
        count: Option<&Value<'a>>,
    ) -> Outcome<Value<'a>> {
        let source = text.source;
        let chars = text.as_str();
        let hits = if old.is_empty() { chars.len() + 1 } else { chars.len() / old.len() };
        if hits.saturating_mul(new.len()) > 64 << 20 || !self.fuel.spend_bytes(chars.len() + hits * new.len() / 8) {
            return fail("out of fuel: a text grows without bounds");
        }
        let replaced = match count {
            None | Some(Value::None) => chars.replace(old, new),
            Some(count) => match count.as_index() {
                Some(count) if count < 0 => chars.replace(old, new),
                Some(count) => chars.replacen(old, new, count as usize),
                None => return fail("the count of replace must be an integer"),
            },
        };
        Ok(Value::Str(Text::owned(replaced, source)))
    }

    fn format(&mut self, value: Value<'a>, args: &Args<'a>) -> Outcome<Value<'a>> {
        let text = self.soft_text(value)?;
        if args.keyword.is_empty() {
            let given = PercentArgs { listed: &args.positional, mapping: None };
            return percent(text.as_str(), &given, &self.fuel).map(Value::string);
        }
        if !args.positional.is_empty() {
            return fail("can't handle positional and keyword arguments at the same time");
        }
        let entries = args.keyword.iter().map(|(name, value)| (Value::literal(name), value.clone()));
        let named = Value::dict(entries.collect());
        let given = PercentArgs { listed: std::slice::from_ref(&named), mapping: Some(&named) };
        percent(text.as_str(), &given, &self.fuel).map(Value::string)
    }

    fn indent(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let Some(text) = value.as_text() else { return fail("indent needs a text") };
        let indent = match &width {
            None => "    ".to_owned(),
            Some(Value::Str(text)) => text.as_str().to_owned(),
            Some(other) => match other.as_index() {
                Some(width) if width < 1000 => " ".repeat(usize::try_from(width).unwrap_or(0)),
                _ => return fail("the width of indent must be a text or a small integer"),
            },
        };
        let (first, blank) = (first.is_some_and(|v| v.truthy()), blank.is_some_and(|v| v.truthy()));
        let mut whole = text.as_str().to_owned();
        whole.push('\n');
        let lines = text::split_lines(&whole, false);
        if !self.fuel.spend_bytes(whole.len() + lines.len() * indent.len()) {
            return fail("out of fuel");
        }
        let mut out = String::with_capacity(whole.len() + lines.len() * indent.len());
        for (i, line) in lines.iter().enumerate() {
            if i > 0 {
                out.push('\n');
            }
            if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
                out.push_str(&indent);
            }
            out.push_str(line);
        }
        Ok(Value::Str(Text::owned(out, text.source)))
    }

    fn dumps(&mut self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [ascii, indent, separators, sort] =
            args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let indent = match &indent {
            None | Some(Value::None) => None,
            Some(Value::Str(text)) => Some(text.as_str().to_owned()),
            Some(other) => match other.as_index() {
                Some(width) if width < 1000 => Some(" ".repeat(usize::try_from(width).unwrap_or(0))),
                _ => return fail("the indent of tojson must be a text or a small integer"),
            },
        };
        let mut style = JsonStyle { ascii: ascii.is_some_and(|v| v.truthy()), indent, ..JsonStyle::default() };
        style.sort = sort.is_some_and(|v| v.truthy());
        if style.indent.is_some() {
            style.item = ",".into();
        }
        match separators {
            None | Some(Value::None) => {}
            Some(pair) => match pair.to_vec().as_deref() {
                Some([Value::Str(item), Value::Str(key)]) => {
                    item.as_str().clone_into(&mut style.item);
                    key.as_str().clone_into(&mut style.key);
                }
                _ => return fail("the separators of tojson must be two texts"),
            },
        }
        let mut writer = JsonWriter { style: &style, fuel: &self.fuel, out: String::new(), level: 0 };
        writer.value(value)?;
        let out = writer.out;
        Ok(Value::string(out))
    }
}

/// Jinja2's `title`: not `str.title`.
fn title(text: &str) -> String {
    let is_break = |c: char| text::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.find(|c| is_break(c) != is_break(first)).unwrap_or(rest.len());
        let head = first.len_utf8();
        out.extend(first.to_uppercase());
        out.push_str(&rest[head..run].to_lowercase());
        rest = &rest[run..];
    }
    out
}

fn numeric<'a>(filter: Filter, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
    match filter {
        Filter::Abs => {
            args.none("abs")?;
            match Number::of(value) {
                Some(Number::Int(number)) if number != i64::MIN => Ok(Value::Int(number.abs())),
                Some(Number::Float(number)) => Ok(Value::Float(number.abs())),
                _ => fail(format!("abs of this {} is not supported", value.type_name())),
            }
        }
        Filter::Round => {
            let [precision, method] = args.bind("round", ["precision", "method"])?;
            let precision = precision.map_or(Some(0), |p| p.as_index());
            let turn: fn(f64) -> f64 = match method.as_ref().map(|method| method.as_str()) {
                None | Some(Some("common")) => |number| number,
                Some(Some("ceil")) => f64::ceil,
                Some(Some("floor")) => f64::floor,
                _ => return fail("method must be common, ceil or floor"),
            };
            if method.is_some_and(|method| method.as_str() != Some("common")) {
                let (Some(number), Some(places @ 0..=15)) = (Number::of(value), precision) else {
                    return fail(format!("this rounding of a {} is not supported", value.type_name()));
                };
                let factor = 10_f64.powi(places as i32);
                let turned = turn(number.as_float() * factor);
                return if turned.abs() < 9e15 {
                    Ok(Value::Float(turned / factor))
                } else {
                    fail("too large to round")
                };
            }
            match (Number::of(value), precision) {
                (Some(Number::Int(number)), Some(0..)) => Ok(Value::Int(number)),
                (Some(Number::Float(number)), Some(places @ 0..=100)) if number.is_finite() => {
                    let rounded = format!("{number:.*}", places as usize);
                    Ok(Value::Float(rounded.parse().unwrap_or(number)))
                }
                _ => fail(format!("this rounding of a {} is not supported", value.type_name())),
            }
        }
        Filter::Int => {
            let [default] = args.bind("int", ["default"])?;
            to_int(value, default.unwrap_or(Value::Int(0)))
        }
        _ => {
            let [default] = args.bind("float", ["default"])?;
            let default = default.unwrap_or(Value::Float(0.0));
            match value {
                Value::Str(text) => Ok(parse_float(text.as_str())?.map_or(default, Value::Float)),
                Value::Undefined(name) => undefined(name),
                other => Ok(Number::of(other).map_or(default, |number| Value::Float(number.as_float()))),
            }
        }
    }
}

fn to_int<'a>(value: &Value<'a>, default: Value<'a>) -> Outcome<Value<'a>> {
    let float = match value {
        Value::Bool(_) | Value::Int(_) => return Ok(Value::Int(value.as_index().unwrap_or(0))),
        Value::Big(_) => return Ok(value.clone()),
        Value::Float(float) => Some(*float),
        Value::Str(text) => {
            let digits = text::strip(text.as_str(), None, Side::Both);
            let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
                if number::is_too_long(digits) {
                    return Ok(default);
                }
                return match digits.parse() {
                    Ok(number) => Ok(Value::Int(number)),
                    Err(_) => fail("int of a text beyond 64 bits is not supported"),
                };
            }
            parse_float(digits)?
        }
        Value::Undefined(name) => return undefined(name),
        _ => None,
    };
    match float {
        Some(float) if float.is_finite() && float.abs() < 9.2e18 => Ok(Value::Int(float.trunc() as i64)),
        Some(float) if float.is_finite() => fail("int of a float beyond 64 bits is not supported"),
        _ => Ok(default),
    }
}

/// `float(text)`; none where Python raises `ValueError`.
fn parse_float(text: &str) -> Outcome<Option<f64>> {
    let text = text::strip(text, None, Side::Both);
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if plain {
        return Ok(text.parse().ok());
    }
    let lower = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let odd = matches!(&*lower, "inf" | "infinity" | "nan")
        || text.contains('_')
        || text.chars().any(|c| !c.is_ascii() && c.is_numeric());
    if odd { fail(format!("{text:?} as a number is not supported")) } else { Ok(None) }
}
