//! Methods of Python's `str`, `dict` and `list` that templates call.
use super::args::Args;
use super::interp::Interp;
use super::print;
use super::sequences::pairs;
use super::text::{self, Side};
use super::value::{Text, Value};
use super::{Outcome, fail, undefined};

/// Public attributes of `str`: those not implemented are an error, never Undefined.
const STR_METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
const LIST_METHODS: [&str; 11] =
    ["append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"];
const INT_ATTRIBUTES: [&str; 9] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "imag",
    "numerator",
    "real",
];
const FLOAT_ATTRIBUTES: [&str; 7] = ["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"];

/// The types that have an attribute of some name, before any key of the same name: a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owners(u16);

impl Owners {
    pub(super) fn of(name: &str) -> Self {
        let owners = [
            STR_METHODS.contains(&name),
            DICT_METHODS.contains(&name),
            LIST_METHODS.contains(&name),
            matches!(name, "count" | "index"),
            matches!(name, "count" | "index" | "start" | "step" | "stop"),
            INT_ATTRIBUTES.contains(&name),
            FLOAT_ATTRIBUTES.contains(&name),
            matches!(name, "isdisjoint" | "mapping"),
            matches!(name, "close" | "send" | "throw") || name.starts_with("gi_"),
        ];
        Self((0..).zip(owners).map(|(bit, owns)| u16::from(owns) << bit).sum())
    }

    /// Python finds the attribute on a dict itself.
    pub(super) fn include_mappings(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    /// Python finds the attribute on the object itself.
    #[inline]
    pub(super) fn include(self, value: &Value<'_>) -> bool {
        let bit = match value {
            Value::Str(_) => 0,
            Value::Object(..) | Value::Dict(_) => 1,
            Value::Json(_) | Value::List(_) => 2,
            Value::Tuple(_) => 3,
            Value::Range(..) => 4,
            Value::Bool(_) | Value::Int(_) | Value::Big(_) => 5,
            Value::Float(_) => 6,
            Value::View(_) => 7,
            Value::Generator(..) => 8,
            _ => return false,
        };
        self.0 >> bit & 1 == 1
    }
}

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
            "items" => Value::View(Value::items(pairs(entries))),
            "keys" => Value::View(Value::items(entries.into_iter().map(|(key, _)| key).collect())),
            "values" => Value::View(Value::items(entries.into_iter().map(|(_, value)| value).collect())),
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
                let [Some(affix)] = args.bind(name, ["prefix"])? else {
                    return fail(format!("{name} with positions is not supported"));
                };
                has_affix(text.as_str(), &affix, name == "startswith").map(Value::Bool)
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
                return fail("rsplit on whitespace with a limit is not supported");
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

    /// `format` with `{}`, `{0}` and `{name}`, without conversions or specifications.
    fn format_method(&mut self, format: &str, args: &Args<'a>) -> Outcome<Value<'a>> {
        let mut out = String::new();
        let mut rest = format;
        let mut next = 0;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let doubled = rest.as_bytes().get(at + 1) == rest.as_bytes().get(at);
            if doubled {
                out.push_str(&rest[at..=at]);
                rest = &rest[at + 2..];
                continue;
            }
            let Some(end) = rest[at..].find('}').filter(|_| rest[at..].starts_with('{')) else {
                return fail("single brace in format string");
            };
            let field = &rest[at + 1..at + end];
            rest = &rest[at + end + 1..];
            let value = if field.is_empty() {
                next += 1;
                args.positional.get(next - 1)
            } else if let Ok(index) = field.parse::<usize>() {
                args.positional.get(index)
            } else if field.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) {
                args.keyword.iter().find(|(name, _)| *name == field).map(|(_, value)| value)
            } else {
                return fail(format!("the format field {field:?} is not supported"));
            };
            let Some(value) = value else { return fail(format!("no argument for the format field {field:?}")) };
            print::write_str(value, &mut out, &self.fuel)?;
            if out.len() > 64 << 20 || !self.fuel.spend_bytes(out.len() / 16) {
                return fail("out of fuel: a text grows without bounds");
            }
        }
        out.push_str(rest);
        Ok(Value::string(out))
    }
}

fn has_affix(text: &str, affix: &Value<'_>, prefix: bool) -> Outcome<bool> {
    let has = |part: &str| if prefix { text.starts_with(part) } else { text.ends_with(part) };
    match affix {
        Value::Str(affix) => Ok(has(affix.as_str())),
        Value::Tuple(affixes) => {
            for affix in &affixes.items {
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
    let [Some(Value::Str(wanted))] = args.bind(name, ["sub"])? else {
        return fail(format!("{name} with positions, or of anything but a text, is not supported"));
    };
    let wanted = wanted.as_str();
    if name == "count" {
        let hits = if wanted.is_empty() { text::length(text) + 1 } else { text.matches(wanted).count() };
        return Ok(Value::Int(hits as i64));
    }
    let at = if name.starts_with('r') { text.rfind(wanted) } else { text.find(wanted) };
    match at {
        Some(at) => Ok(Value::Int(text::length(&text[..at]) as i64)),
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
