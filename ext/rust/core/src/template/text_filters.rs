//! Filters that make a text of a value: escaping, cutting, wrapping.
use std::fmt::Write;

use super::args::Args;
use super::interp::Interp;
use super::print;
use super::text::{self, is_space};
use super::value::{Text, Value};
use super::{Outcome, fail, undefined};

/// Width of a text that `pprint` leaves on one line, in columns.
const PRINT_COLUMNS: usize = 80;

/// Words and lines of a text are counted in columns below this.
const MAX_WIDTH: usize = 1 << 16;

impl<'a> Interp<'a> {
    /// `value | escape`: a |safe string as it is, anything else with the characters of HTML's syntax written as entities.
    pub(super) fn escape(&self, value: Value<'a>, force: bool) -> Outcome<Value<'a>> {
        let text = self.soft_text(value)?;
        if text.markup && !force {
            return Ok(Value::Str(text));
        }
        if !self.fuel.spend_bytes(text.as_str().len() * 5) {
            return fail("out of fuel");
        }
        let mut out = String::with_capacity(text.as_str().len());
        for c in text.as_str().chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '\'' => out.push_str("&#39;"),
                '"' => out.push_str("&#34;"),
                other => out.push(other),
            }
        }
        let mut escaped = Text::owned(out, text.source);
        escaped.markup = true;
        Ok(Value::Str(escaped))
    }

    pub(super) fn center(&self, value: Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [width] = args.bind("center", ["width"])?;
        let width = as_width(width.as_ref(), 80, "center")?;
        let text = self.soft_text(value)?;
        Ok(Value::Str(Text::owned(text::center(text.as_str(), width, ' '), 0)))
    }

    pub(super) fn word_count(&self, value: Value<'a>) -> Outcome<Value<'a>> {
        let text = self.soft_text(value)?;
        if !text.as_str().is_ascii() {
            return fail("wordcount of text that is not ASCII is not supported");
        }
        let words = text.as_str().split(|c: char| !is_word(c as u8));
        Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i64))
    }

    pub(super) fn truncate(&self, value: Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let [length, whole, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
        let length = as_width(length.as_ref(), 255, "truncate")?;
        let leeway = as_width(leeway.as_ref().filter(|value| !matches!(value, Value::None)), 5, "truncate")?;
        let end = end.map_or(Ok(Text::literal("...")), |end| self.soft_text(end))?;
        let num_end = text::length(end.as_str());
        if length < num_end {
            return fail(format!("expected length >= {num_end}, got {length}"));
        }
        let Some(given) = value.length() else {
            return fail(format!("object of type '{}' has no len()", value.type_name()));
        };
        let Value::Str(text) = &value else {
            let fits = given <= length + leeway;
            return if fits { Ok(value) } else { fail(format!("a {} cannot be truncated", value.type_name())) };
        };
        if given <= length + leeway {
            return Ok(value);
        }
        let chars = text.as_str();
        let cut = chars.char_indices().nth(length - num_end).map_or(chars.len(), |(at, _)| at);
        let kept = &chars[..cut];
        let kept = if whole.is_some_and(|whole| whole.truthy()) {
            kept
        } else {
            kept.rsplit_once(' ').map_or(kept, |(before, _)| before)
        };
        Ok(Value::Str(Text::owned([kept, end.as_str()].concat(), text.source)))
    }

    pub(super) fn url_encode(&self, value: &Value<'a>) -> Outcome<Value<'a>> {
        let pairs = match value {
            Value::Str(text) => return Ok(Value::string(quote(text.as_str(), false))),
            other => match (other.entries(), other.to_vec()) {
                (Some(entries), _) => entries,
                (None, Some(items)) => {
                    let pairs = items.iter().map(|item| match item.to_vec().as_deref() {
                        Some([key, value]) => Ok((key.clone(), value.clone())),
                        _ => fail("urlencode of a list needs pairs of a name and a value"),
                    });
                    pairs.collect::<Outcome<Vec<_>>>()?
                }
                (None, None) => return Ok(Value::string(quote(&print::to_str(other, &self.fuel)?, false))),
            },
        };
        let mut out = String::new();
        for (key, value) in pairs {
            if !out.is_empty() {
                out.push('&');
            }
            out.push_str(&quote(&print::to_str(&key, &self.fuel)?, true));
            out.push('=');
            out.push_str(&quote(&print::to_str(&value, &self.fuel)?, true));
        }
        Ok(Value::string(out))
    }

    pub(super) fn word_wrap(&self, value: &Value<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
        let [width, long, between, hyphens] = args.bind("wordwrap", names)?;
        let width = as_width(width.as_ref(), 79, "wordwrap")?;
        let Some(text) = value.as_text() else { return fail("wordwrap needs a text") };
        if !text.as_str().is_ascii() || width == 0 {
            return fail("wordwrap of text that is not ASCII, or to no columns, is not supported");
        }
        if !self.fuel.spend_bytes(text.as_str().len() * 16) {
            return fail("out of fuel");
        }
        let between = match between {
            None | Some(Value::None) => Text::literal("\n"),
            Some(between) => self.soft_text(between)?,
        };
        let (long, hyphens) = (long.is_none_or(|v| v.truthy()), hyphens.is_none_or(|v| v.truthy()));
        let lines = text::split_lines(text.as_str(), false);
        let lines: Vec<String> =
            lines.into_iter().map(|line| wrap(line, width, long, hyphens).join(between.as_str())).collect();
        Ok(Value::Str(Text::owned(lines.join(between.as_str()), text.source)))
    }

    /// `pprint.pformat`, of what fits on one line.
    pub(super) fn pretty(&self, value: &Value<'a>) -> Outcome<Value<'a>> {
        let mut out = String::new();
        print::write_repr(&sorted(value)?, &mut out, &self.fuel)?;
        if text::length(&out) > PRINT_COLUMNS {
            return fail(format!("pprint of what is wider than {PRINT_COLUMNS} columns is not supported"));
        }
        Ok(Value::string(out))
    }
}

/// A number of characters given as an argument.
pub(super) fn as_width(value: Option<&Value<'_>>, default: usize, of: &str) -> Outcome<usize> {
    let width = match value {
        None => return Ok(default),
        Some(Value::Undefined(name)) => return undefined(name),
        Some(value) => value.as_index().and_then(|width| usize::try_from(width.max(0)).ok()),
    };
    match width {
        Some(width) if width < MAX_WIDTH => Ok(width),
        _ => fail(format!("{of} needs a width below {MAX_WIDTH}")),
    }
}

/// Dicts with their keys in order, at every depth, as `pprint` has them.
fn sorted<'a>(value: &Value<'a>) -> Outcome<Value<'a>> {
    let all = |items: Vec<Value<'a>>| items.iter().map(sorted).collect::<Outcome<Vec<_>>>();
    Ok(match value {
        Value::Object(..) | Value::Dict(_) => {
            let mut entries = value.entries().unwrap_or_default();
            if entries.iter().any(|(key, _)| key.as_str().is_none()) {
                return fail("pprint of a dict whose keys are not texts is not supported");
            }
            entries.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
            let entries = entries.into_iter().map(|(key, value)| Ok((key, sorted(&value)?)));
            Value::dict(entries.collect::<Outcome<_>>()?)
        }
        Value::Json(_) | Value::List(_) => Value::list(all(value.to_vec().unwrap_or_default())?),
        Value::Tuple(items) => Value::Tuple(Value::items(all(items.values.clone())?)),
        other => other.clone(),
    })
}

/// `urllib.parse.quote`; in a query string a space is `+` and a slash is quoted.
fn quote(text: &str, in_query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' if in_query => out.push('+'),
            b'/' if !in_query => out.push('/'),
            b'_' | b'.' | b'-' | b'~' => out.push(byte as char),
            _ if byte.is_ascii_alphanumeric() => out.push(byte as char),
            // writing to a String cannot fail
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

fn is_letter(byte: Option<&u8>) -> bool {
    byte.is_some_and(|byte| *byte == b'_' || byte.is_ascii_alphabetic())
}

/// A character that may stand before a dash between words.
fn is_before_dash(byte: Option<&u8>) -> bool {
    byte.is_some_and(|byte| is_word(*byte) || b"!\"'&.,?".contains(byte))
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

/// Pieces between which Python's `textwrap` may break a line of ASCII: words, parts of hyphenated ones, dashes, blanks.
fn pieces(line: &str, hyphens: bool) -> Vec<&str> {
    let bytes = line.as_bytes();
    let dashes_at = |at: usize| bytes[at..].iter().take_while(|byte| **byte == b'-').count();
    let is_dash = |at: usize| {
        let num = dashes_at(at);
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        num >= 2 && is_before_dash(before) && bytes.get(at + num).is_some_and(|byte| is_word(*byte))
    };
    let is_hyphen = |at: usize| {
        let back = |by: usize| at.checked_sub(by).and_then(|before| bytes.get(before));
        let after_two = is_letter(back(1)) && is_letter(back(2));
        let after_one = is_before_dash(back(1)) && back(2) == Some(&b'-') && is_letter(back(3));
        let next = if bytes.get(at + 2) == Some(&b'-') { at + 3 } else { at + 2 };
        bytes[at] == b'-' && (after_two || after_one) && is_letter(bytes.get(at + 1)) && is_letter(bytes.get(next))
    };
    let mut pieces = Vec::new();
    let mut from = 0;
    while from < bytes.len() {
        let mut to = from + 1;
        if is_blank(bytes[from]) {
            while to < bytes.len() && is_blank(bytes[to]) {
                to += 1;
            }
        } else if hyphens && is_dash(from) {
            to = from + dashes_at(from);
        } else {
            while to < bytes.len() && !is_blank(bytes[to]) {
                if hyphens && is_hyphen(to) {
                    to += 1;
                    break;
                }
                if hyphens && is_dash(to) {
                    break;
                }
                to += 1;
            }
        }
        pieces.push(&line[from..to]);
        from = to;
    }
    pieces
}

/// `textwrap.wrap` of one line of ASCII.
fn wrap(line: &str, width: usize, break_long: bool, hyphens: bool) -> Vec<String> {
    let mut rest = pieces(line, hyphens);
    rest.reverse();
    let is_gap = |piece: &str| piece.chars().all(is_space);
    let mut lines: Vec<String> = Vec::new();
    while let Some(&next) = rest.last() {
        if is_gap(next) && !lines.is_empty() {
            rest.pop();
        }
        let (mut made, mut last) = (String::new(), "");
        while let Some(piece) = rest.pop_if(|piece| made.len() + piece.len() <= width) {
            made.push_str(piece);
            last = piece;
        }
        if let Some(piece) = rest.pop_if(|piece| piece.len() > width) {
            if break_long {
                let left = width - made.len();
                let hyphen = piece[..left].rfind('-').filter(|_| hyphens);
                let end = match hyphen {
                    Some(at) if at > 0 && piece[..at].bytes().any(|byte| byte != b'-') => at + 1,
                    _ => left,
                };
                made.push_str(&piece[..end]);
                last = &piece[..end];
                rest.push(&piece[end..]);
            } else if made.is_empty() {
                made.push_str(piece);
                last = piece;
            } else {
                rest.push(piece);
            }
        }
        if is_gap(last) {
            made.truncate(made.len() - last.len());
        }
        if !made.is_empty() {
            lines.push(made);
        }
    }
    lines
}
