//! Methods of Python's `str`, `dict` and `list` that templates call.
use super::args::Args;
use super::interp::Interp;
use super::printable::is_printable;
use super::sequences::pairs;
use super::text::{self, Side};
use super::text_filters::as_width;
use super::value::{Shape, Text, Value};
use super::{Outcome, fail, undefined};

impl<'a> Interp<'a> {
    /// `object.name(args)`, where the object's type has it.
    pub(super) fn call_method(&mut self, object: &Value<'a>, name: &str, args: Args<'a>) -> Outcome<Value<'a>> {
        if !self.fuel.spend(1) {
            return fail("out of fuel");
        }
        match object {
            Value::Str(text) => {
                if text.markup {
                    return fail("methods of a |safe string are not supported");
                }
                if !self.fuel.spend_bytes(text.as_str().len()) {
                    return fail("out of fuel");
                }
                self.text_method(text, name, args)
            }
            Value::Object(..) | Value::Dict(_) => self.dict_method(object, name, args),
            Value::Json(_) | Value::List(_) | Value::Tuple(_) => self.list_method(object, name, args),
            other => fail(format!("the method '{name}' of a {} is not supported", other.type_name())),
        }
    }

    fn dict_method(&mut self, object: &Value<'a>, name: &str, args: Args<'a>) -> Outcome<Value<'a>> {
        if name == "get" {
            if !args.keyword.is_empty() {
                return fail("dict.get() takes no keyword arguments");
            }
            let [Some(key), default] = args.bind("get", ["key", "default"])? else { return fail("get needs a key") };
            if key.is_mapping() || matches!(key, Value::List(_) | Value::Json(_)) {
                return fail(format!("unhashable type: '{}'", key.type_name()));
            }
            return Ok(object.lookup(&key, &self.fuel).unwrap_or(default.unwrap_or(Value::None)));
        }
        args.none(name)?;
        let entries = object.entries().unwrap_or_default();
        if !self.fuel.spend(entries.len() as u64) {
            return fail("out of fuel");
        }
        Ok(match name {
            "items" => Value::View(Value::shaped(pairs(entries), Shape::DictItems)),
            "keys" => Value::View(Value::shaped(entries.into_iter().map(|(key, _)| key).collect(), Shape::DictKeys)),
            "values" => {
                Value::View(Value::shaped(entries.into_iter().map(|(_, value)| value).collect(), Shape::DictValues))
            }
            "copy" => object.clone(),
            _ => return fail(format!("the method '{name}' of a dict is not allowed in a template")),
        })
    }

    fn list_method(&mut self, object: &Value<'a>, name: &str, args: Args<'a>) -> Outcome<Value<'a>> {
        let items = object.to_vec().unwrap_or_default();
        if !self.fuel.spend(items.len() as u64) {
            return fail("out of fuel");
        }
        match name {
            "copy" => args.none(name).map(|()| object.clone()),
            "count" | "index" => {
                let [Some(wanted)] = args.bind(name, ["value"])? else { return fail(format!("{name} needs a value")) };
                if name == "count" {
                    let hits = items.iter().filter(|item| item.equals(&wanted, &self.fuel)).count();
                    return Ok(Value::Int(hits as i64));
                }
                match items.iter().position(|item| item.equals(&wanted, &self.fuel)) {
                    Some(at) => Ok(Value::Int(at as i64)),
                    None => fail("the value is not in the list"),
                }
            }
            _ => fail(format!("the method '{name}' of a list is not allowed in a template")),
        }
    }

    fn text_method(&mut self, text: &Text<'a>, name: &str, args: Args<'a>) -> Outcome<Value<'a>> {
        match name {
            "strip" | "lstrip" | "rstrip" => {
                let side = match name {
                    "strip" => Side::Both,
                    "lstrip" => Side::Left,
                    _ => Side::Right,
                };
                let [chars] = args.bind(name, ["chars"])?;
                Self::strip(text, chars.as_ref(), side)
            }
            "split" | "rsplit" => Self::split(text, args, name == "rsplit"),
            "startswith" | "endswith" => {
                let [Some(affix), start, end] = args.bind(name, ["prefix", "start", "end"])? else {
                    return fail(format!("{name} needs a text"));
                };
                let within = window(text.as_str(), start.as_ref(), end.as_ref())?;
                within.map_or(Ok(Value::Bool(false)), |(within, _)| {
                    has_affix(within, &affix, name == "startswith").map(Value::Bool)
                })
            }
            "removeprefix" | "removesuffix" => {
                let [Some(Value::Str(affix))] = args.bind(name, ["affix"])? else {
                    return fail(format!("{name} needs a text"));
                };
                let affix = affix.as_str();
                Ok(Value::Str(text.part(|text| {
                    let cut = if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
                    cut.unwrap_or(text)
                })))
            }
            "replace" => {
                let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
                let (Some(Value::Str(old)), Some(Value::Str(new))) = (old, new) else {
                    return fail("replace() arguments must be texts");
                };
                self.replace_text(text, old.as_str(), new.as_str(), count.as_ref())
            }
            "join" => self.join_method(text, args),
            "center" | "ljust" | "rjust" | "zfill" => justify(text, name, args),
            "splitlines" => {
                let [keep] = args.bind(name, ["keepends"])?;
                let keep = keep.is_some_and(|keep| keep.truthy());
                Ok(Value::list(text.parts(|text| text::split_lines(text, keep))))
            }
            "partition" | "rpartition" => partition(text, args, name == "rpartition"),
            "count" | "find" | "rfind" | "index" | "rindex" => search(text.as_str(), name, args),
            "format" => self.format_method(text.as_str(), &args),
            _ => reshape(text, name, args),
        }
    }

    fn split(text: &Text<'a>, args: Args<'a>, from_right: bool) -> Outcome<Value<'a>> {
        let [separator, limit] = args.bind("split", ["sep", "maxsplit"])?;
        let limit = match limit.map(|limit| limit.as_index()) {
            None => None,
            Some(Some(limit)) => usize::try_from(limit).ok(),
            Some(None) => return fail("maxsplit must be an integer"),
        };
        let parts = match separator {
            None | Some(Value::None) if from_right && limit.is_some() => {
                text.parts(|text| text::rsplit_words(text, limit.unwrap_or(0)))
            }
            None | Some(Value::None) => text.parts(|text| text::split_words(text, limit)),
            Some(Value::Str(separator)) => match separator.as_str() {
                "" => return fail("empty separator"),
                separator if from_right => text.parts(|text| text::rsplit(text, separator, limit)),
                separator => text.parts(|text| text::split(text, separator, limit)),
            },
            Some(Value::Undefined(name)) => return undefined(name),
            Some(other) => return fail(format!("must be str or None, not {}", other.type_name())),
        };
        Ok(Value::list(parts))
    }

    fn join_method(&mut self, text: &Text<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [Some(items)] = args.bind("join", ["iterable"])? else { return fail("join needs a list") };
        let Some(items) = items.to_vec() else { return fail("can only join an iterable") };
        let mut out = String::new();
        for (i, item) in items.iter().enumerate() {
            let Value::Str(item) = item else {
                return fail(format!("sequence item {i}: expected str instance, {} found", item.type_name()));
            };
            if i > 0 {
                out.push_str(text.as_str());
            }
            out.push_str(item.as_str());
            if out.len() > 64 << 20 || !self.fuel.spend_bytes(item.as_str().len()) {
                return fail("out of fuel: a text grows without bounds");
            }
        }
        Ok(Value::string(out))
    }
}

/// `text[start:end]` and how many characters stand before it; none if it starts behind its end.
fn window<'t>(text: &'t str, start: Option<&Value<'_>>, end: Option<&Value<'_>>) -> Outcome<Option<(&'t str, usize)>> {
    let at = |bound: Option<&Value<'_>>| match bound {
        None | Some(Value::None) => Ok(None),
        Some(value) => match value.as_index() {
            Some(at) => Ok(Some(at)),
            None => fail("slice indices must be integers or None"),
        },
    };
    let (start, end) = (at(start)?, at(end)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((text, 0)));
    }
    let length = text::length(text) as i64;
    let clamp = |at: i64| if at < 0 { at.saturating_add(length).max(0) } else { at };
    let (start, end) = (start.map_or(0, clamp), end.map_or(length, clamp).min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |chars: i64| text.char_indices().nth(chars as usize).map_or(text.len(), |(at, _)| at);
    Ok(Some((&text[byte(start)..byte(end)], start as usize)))
}

fn justify<'a>(text: &Text<'a>, name: &str, args: Args<'a>) -> Outcome<Value<'a>> {
    let [width, fill] = args.bind(name, ["width", "fillchar"])?;
    if width.is_none() || (name == "zfill" && fill.is_some()) {
        return fail(format!("{name} needs a width"));
    }
    let fill = match fill.as_ref().map(Value::as_str) {
        None => ' ',
        Some(Some(fill)) if text::length(fill) == 1 => fill.chars().next().unwrap_or(' '),
        _ => return fail("the fill character must be exactly one character long"),
    };
    let (chars, width) = (text.as_str(), as_width(width.as_ref(), 0, name)?);
    let gap = width.saturating_sub(text::length(chars));
    let made = match name {
        "center" => text::center(chars, width, fill),
        "ljust" => text::padded(chars, 0, gap, fill),
        "rjust" => text::padded(chars, gap, 0, fill),
        _ => {
            let (sign, digits) = chars.split_at(usize::from(chars.starts_with(['+', '-'])));
            [sign, &text::padded(digits, gap, 0, '0')].concat()
        }
    };
    Ok(Value::Str(Text::owned(made, text.source)))
}

fn has_affix(text: &str, affix: &Value<'_>, prefix: bool) -> Outcome<bool> {
    let has = |part: &str| if prefix { text.starts_with(part) } else { text.ends_with(part) };
    match affix {
        Value::Str(affix) => Ok(has(affix.as_str())),
        Value::Tuple(affixes) => {
            for affix in &affixes.values {
                let Some(affix) = affix.as_str() else { return fail("a tuple of affixes must hold texts") };
                if has(affix) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Undefined(name) => undefined(name),
        other => fail(format!("first arg must be str or a tuple of str, not {}", other.type_name())),
    }
}

fn partition<'a>(text: &Text<'a>, args: Args<'a>, last: bool) -> Outcome<Value<'a>> {
    let [Some(Value::Str(separator))] = args.bind("partition", ["sep"])? else {
        return fail("partition needs a text");
    };
    let separator = separator.as_str();
    if separator.is_empty() {
        return fail("empty separator");
    }
    let parts = text.parts(|text| {
        let at = if last { text.rfind(separator) } else { text.find(separator) };
        match at {
            Some(at) => {
                vec![&text[..at], &text[at..at + separator.len()], &text[at + separator.len()..]]
            }
            None if last => vec!["", "", text],
            None => vec![text, "", ""],
        }
    });
    Ok(Value::Tuple(Value::items(parts)))
}

fn search<'a>(text: &str, name: &str, args: Args<'a>) -> Outcome<Value<'a>> {
    let [Some(Value::Str(wanted)), start, end] = args.bind(name, ["sub", "start", "end"])? else {
        return fail(format!("{name} of anything but a text is not supported"));
    };
    let wanted = wanted.as_str();
    let within = window(text, start.as_ref(), end.as_ref())?;
    if let (None, "count") = (within, name) {
        return Ok(Value::Int(0));
    }
    let (text, before) = within.unwrap_or_default();
    if name == "count" {
        let hits = if wanted.is_empty() { text::length(text) + 1 } else { text.matches(wanted).count() };
        return Ok(Value::Int(hits as i64));
    }
    let at = if name.starts_with('r') { text.rfind(wanted) } else { text.find(wanted) };
    match at.filter(|_| within.is_some()) {
        Some(at) => Ok(Value::Int((before + text::length(&text[..at])) as i64)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => fail("substring not found"),
    }
}

/// Methods without arguments.
fn reshape<'a>(text: &Text<'a>, name: &str, args: Args<'a>) -> Outcome<Value<'a>> {
    args.none(name)?;
    let chars = text.as_str();
    let reshaped = match name {
        "upper" => chars.to_uppercase(),
        "lower" => chars.to_lowercase(),
        "capitalize" => match text::capitalize(chars) {
            Some(text) => text,
            None => return fail("capitalize of this first letter is not supported"),
        },
        "title" if chars.is_ascii() => ascii_title(chars),
        "casefold" if chars.is_ascii() => chars.to_ascii_lowercase(),
        "swapcase" if chars.is_ascii() => {
            let swap = |c: char| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
            chars.chars().map(swap).collect()
        }
        "isprintable" => return Ok(Value::Bool(chars.chars().all(is_printable))),
        "isidentifier" if chars.is_ascii() => {
            let is_name = chars.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
            return Ok(Value::Bool(is_name && chars.starts_with(|c: char| !c.is_ascii_digit())));
        }
        "isspace" => return Ok(Value::Bool(!chars.is_empty() && chars.chars().all(text::is_space))),
        "isascii" => return Ok(Value::Bool(chars.is_ascii())),
        "isdigit" | "isdecimal" | "isnumeric" if chars.is_ascii() => {
            return Ok(Value::Bool(!chars.is_empty() && chars.bytes().all(|b| b.is_ascii_digit())));
        }
        "isalpha" if chars.is_ascii() => {
            return Ok(Value::Bool(!chars.is_empty() && chars.bytes().all(|b| b.is_ascii_alphabetic())));
        }
        "isalnum" if chars.is_ascii() => {
            return Ok(Value::Bool(!chars.is_empty() && chars.bytes().all(|b| b.is_ascii_alphanumeric())));
        }
        "isupper" | "islower" if chars.is_ascii() => {
            let upper = chars.bytes().any(|b| b.is_ascii_uppercase());
            let lower = chars.bytes().any(|b| b.is_ascii_lowercase());
            return Ok(Value::Bool(if name == "isupper" { upper && !lower } else { lower && !upper }));
        }
        _ => return fail(format!("the method '{name}' of this text is not supported")),
    };
    Ok(Value::Str(Text::owned(reshaped, text.source)))
}

/// `str.title` of ASCII: every run of letters starts in upper case.
fn ascii_title(text: &str) -> String {
    let mut in_word = false;
    let titled = text.chars().map(|c| {
        let shaped = if in_word { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
        in_word = c.is_ascii_alphabetic();
        shaped
    });
    titled.collect()
}
