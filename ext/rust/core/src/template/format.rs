//! Values laid out by a format: Python's `%` operator and `str.format`, with signs, widths and precisions.
use super::fuel::Fuel;
use super::interp::Interp;
use super::names::Owners;
use super::number::{self, Number};
use super::ops::MAX_TEXT;
use super::value::Value;
use super::{Outcome, args::Args, fail, print, text};

/// Widest field, and most digits: far beyond what anybody prints.
const MAX_WIDTH: usize = 10_000;

/// How one value is laid out: `[[fill]align][sign][#][0][width][,][.precision][kind]`.
#[derive(Debug, Clone)]
struct Spec {
    fill: char,
    align: Option<char>,
    /// Zeros between the sign of a number and its digits, unless it is aligned otherwise.
    zeros: bool,
    /// None: `-` before negative numbers.
    sign: Option<char>,
    alternate: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn new() -> Self {
        let (align, group, precision, kind) = (None, None, None, None);
        Self { fill: ' ', align, zeros: false, sign: None, alternate: false, width: 0, group, precision, kind }
    }

    fn parse(spec: &str) -> Outcome<Self> {
        let mut made = Self::new();
        let mut rest = spec.chars().peekable();
        let is_align = |c: char| matches!(c, '<' | '>' | '=' | '^');
        let mut ahead = spec.chars();
        let mut has_fill = false;
        match (ahead.next(), ahead.next()) {
            (Some(fill), Some(align)) if is_align(align) => {
                (made.fill, made.align, has_fill) = (fill, Some(align), true);
                rest.nth(1);
            }
            (Some(align), _) if is_align(align) => {
                made.align = Some(align);
                rest.next();
            }
            _ => {}
        }
        made.sign = rest.next_if(|c| matches!(c, '+' | '-' | ' '));
        made.alternate = rest.next_if_eq(&'#').is_some();
        if !has_fill && rest.next_if_eq(&'0').is_some() {
            made.fill = '0';
            made.zeros = made.align.is_none();
        }
        made.width = digits(&mut rest)?.unwrap_or(0);
        made.group = rest.next_if(|c| matches!(c, ',' | '_'));
        if rest.next_if_eq(&'.').is_some() {
            made.precision = digits(&mut rest)?;
            if made.precision.is_none() {
                return fail("a format's precision is missing");
            }
        }
        made.kind = rest.next();
        if rest.next().is_some() {
            return fail(format!("the format {spec:?} is not supported"));
        }
        Ok(made)
    }

    /// The text in its field. `sign`: what stands before the digits of a number.
    fn lay(&self, sign: &str, body: &str, default: char) -> String {
        let gap = self.width.saturating_sub(text::length(sign) + text::length(body));
        let whole = || [sign, body].concat();
        let default = if self.zeros && default == '>' { '=' } else { default };
        match self.align.unwrap_or(default) {
            '<' => text::padded(&whole(), 0, gap, self.fill),
            '^' => text::padded(&whole(), gap / 2, gap - gap / 2, self.fill),
            '=' => [sign, &text::padded(body, gap, 0, self.fill)].concat(),
            _ => text::padded(&whole(), gap, 0, self.fill),
        }
    }

    fn text(&self, text: &str) -> Outcome<String> {
        if !matches!(self.kind, None | Some('s')) || self.sign.is_some() || self.alternate || self.group.is_some() {
            return fail("this format is for numbers, and the value is a text");
        }
        if self.align == Some('=') {
            return fail("'=' alignment not allowed in string format specifier");
        }
        let cut = self.precision.and_then(|precision| text.char_indices().nth(precision));
        Ok(self.lay("", cut.map_or(text, |(at, _)| &text[..at]), '<'))
    }

    fn sign(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (_, Some('+')) => "+",
            (_, Some(' ')) => " ",
            _ => "",
        }
    }

    fn number(&self, number: &Number) -> Outcome<String> {
        let kind = match (self.kind, number) {
            (None, Number::Float(_)) => return self.float(number.as_float(), None),
            (Some('n'), _) if self.group.is_some() => return fail("a separator of groups has no place with 'n'"),
            (Some('n'), Number::Float(_)) => 'g',
            (None | Some('n'), _) => 'd',
            (Some(kind), _) => kind,
        };
        if matches!(kind, 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') {
            return self.float(number.as_float(), Some(kind));
        }
        let digits = match number {
            Number::Int(value) => value.to_string(),
            Number::Big(digits) => digits.to_string(),
            Number::Float(_) => return fail(format!("Unknown format code '{kind}' for object of type 'float'")),
        };
        if self.precision.is_some() {
            return fail("Precision not allowed in integer format specifier");
        }
        self.integer(&digits, kind)
    }

    /// An integer given in decimal.
    fn integer(&self, digits: &str, kind: char) -> Outcome<String> {
        let unsigned = digits.trim_start_matches('-');
        let number = || {
            let number: Option<u128> = unsigned.parse().ok();
            number.map_or_else(|| fail("an integer beyond 128 bits in another base is not supported"), Ok)
        };
        let (prefix, body, group) = match kind {
            'd' => ("", unsigned.to_owned(), 3),
            'b' => ("0b", format!("{:b}", number()?), 4),
            'o' => ("0o", format!("{:o}", number()?), 4),
            'x' => ("0x", format!("{:x}", number()?), 4),
            'X' => ("0X", format!("{:X}", number()?), 4),
            _ => return fail(format!("Unknown format code '{kind}' for object of type 'int'")),
        };
        let sign = self.sign(digits.starts_with('-'));
        let prefix = if self.alternate { prefix } else { "" };
        let body = self.grouped(&body, group)?;
        Ok(self.lay(&[sign, prefix].concat(), &body, '>'))
    }

    fn float(&self, value: f64, kind: Option<char>) -> Outcome<String> {
        if self.alternate {
            return fail("'#' before a float's format is not supported");
        }
        let sign = self.sign(value.is_sign_negative() && !value.is_nan());
        let body = match kind {
            Some('%') => format!("{}%", float_digits(100.0 * value.abs(), 'f', self.precision.unwrap_or(6))),
            Some(kind) => float_digits(value.abs(), kind, self.precision.unwrap_or(6)),
            None => {
                if let Some(precision) = self.precision {
                    general(value.abs(), precision.max(1), true, 'e')
                } else {
                    let mut shortest = String::new();
                    number::write_float(value.abs(), &mut shortest);
                    shortest
                }
            }
        };
        let body = match body.find(|c: char| !c.is_ascii_digit()) {
            Some(end) => [&self.grouped(&body[..end], 3)?, &body[end..]].concat(),
            None => self.grouped(&body, 3)?,
        };
        Ok(self.lay(sign, &body, '>'))
    }

    /// Digits with a separator between groups.
    fn grouped(&self, digits: &str, group: usize) -> Outcome<String> {
        let Some(separator) = self.group else { return Ok(digits.to_owned()) };
        if (separator == ',' && group != 3) || (self.fill == '0' && self.width > 0) {
            return fail("groups of digits in this format are not supported");
        }
        let mut out = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(group) {
                out.push(separator);
            }
            out.push(digit);
        }
        Ok(out)
    }
}

/// A number at the start of a format; none if there is none.
fn digits(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Outcome<Option<usize>> {
    let mut number = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        rest.next();
        let so_far = number.unwrap_or(0) * 10 + digit as usize;
        if so_far > MAX_WIDTH {
            return fail(format!("widths and precisions beyond {MAX_WIDTH} are not supported"));
        }
        number = Some(so_far);
    }
    Ok(number)
}

/// C's `%e`, `%f` and `%g` of a number without its sign.
fn float_digits(value: f64, kind: char, precision: usize) -> String {
    let upper = kind.is_ascii_uppercase();
    let text = if value.is_finite() {
        match kind.to_ascii_lowercase() {
            'f' => format!("{value:.precision$}"),
            'e' => scientific(value, precision),
            _ => general(value, precision.max(1), false, 'g'),
        }
    } else if value.is_nan() {
        "nan".to_owned()
    } else {
        "inf".to_owned()
    };
    if upper { text.to_uppercase() } else { text }
}

fn scientific(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%g`: so many significant digits, in the shorter form, without zeros at the end. `with_point`: as `format` without a
/// kind has it, one digit behind the point at least.
fn general(value: f64, precision: usize, with_point: bool, _kind: char) -> String {
    if !value.is_finite() {
        return float_digits(value, 'f', precision);
    }
    let text = scientific(value, precision - 1);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let at: i64 = exponent.parse().unwrap_or(0);
    let trimmed = |digits: &str| {
        if digits.contains('.') {
            digits.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            digits.to_owned()
        }
    };
    let limit = precision as i64 - i64::from(with_point);
    if at < -4 || at >= limit.max(i64::from(!with_point)) {
        return format!("{}e{exponent}", trimmed(mantissa));
    }
    let places = usize::try_from(precision as i64 - 1 - at).unwrap_or(0);
    let plain = trimmed(&format!("{value:.places$}"));
    if with_point && !plain.contains('.') { format!("{plain}.0") } else { plain }
}

/// `format(value, spec)`.
fn formatted(value: &Value<'_>, spec: &str, fuel: &Fuel) -> Outcome<String> {
    if spec.is_empty() {
        return print::to_str(value, fuel);
    }
    let spec = Spec::parse(spec)?;
    match (value, Number::of(value)) {
        (Value::Str(text), _) if !text.markup => spec.text(text.as_str()),
        (_, Some(number)) => spec.number(&number),
        _ => fail(format!("unsupported format string passed to {}.__format__", value.type_name())),
    }
}

/// Stop before a text grows without bounds.
fn check(out: &str, fuel: &Fuel) -> Outcome<()> {
    if out.len() > MAX_TEXT || !fuel.spend_bytes(out.len() / 16) {
        return fail("out of fuel: a text grows without bounds");
    }
    Ok(())
}

/// Arguments of `%`: several, or a mapping for conversions with names.
pub(super) struct PercentArgs<'v, 'a> {
    pub listed: &'v [Value<'a>],
    pub mapping: Option<&'v Value<'a>>,
}

/// `format % args`.
pub(super) fn percent(format: &str, args: &PercentArgs<'_, '_>, fuel: &Fuel) -> Outcome<String> {
    let mut out = String::new();
    let mut listed = args.listed.iter();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut named = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let Some(end) = inside.find(')') else { return fail("incomplete format key") };
            let Some(mapping) = args.mapping else { return fail("format requires a mapping") };
            let Some(value) = mapping.lookup_str(&inside[..end]) else {
                return fail(format!("no value for the key {:?} of a format string", &inside[..end]));
            };
            named = Some(value);
            rest = &inside[end + 1..];
        }
        let mut chars = rest.chars().peekable();
        let mut spec = Spec::new();
        let (mut left, mut zeros) = (false, false);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | ' ' | '#' | '0')) {
            match flag {
                '-' => left = true,
                '+' => spec.sign = Some('+'),
                ' ' if spec.sign.is_none() => spec.sign = Some(' '),
                '#' => spec.alternate = true,
                '0' => zeros = true,
                _ => {}
            }
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next_if_eq(&'*') {
            None => digits(chars),
            Some(_) => match listed.next().and_then(Value::as_index) {
                Some(width @ 0..=1000) => Ok(Some(width as usize)),
                _ => fail("'*' in a format string needs a small integer"),
            },
        };
        spec.width = number(&mut chars)?.unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        while chars.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
        let Some(kind) = chars.next() else { return fail("incomplete format") };
        rest = &rest[rest.len() - chars.map(char::len_utf8).sum::<usize>()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = named.as_ref().or_else(|| listed.next()) else {
            return fail("not enough arguments for format string");
        };
        spec.align = Some(if left { '<' } else { '>' });
        if zeros && !left && !matches!(kind, 's' | 'r' | 'c') {
            (spec.fill, spec.align) = ('0', Some('='));
        }
        out.push_str(&conversion(spec, kind, value, fuel)?);
        check(&out, fuel)?;
    }
    out.push_str(rest);
    if listed.next().is_some() && args.mapping.is_none() {
        return fail("not all arguments converted during string formatting");
    }
    Ok(out)
}

/// One conversion of `%`.
fn conversion(mut spec: Spec, kind: char, value: &Value<'_>, fuel: &Fuel) -> Outcome<String> {
    if matches!(kind, 's' | 'r') {
        let mut shown = String::new();
        if kind == 's' {
            print::write_str(value, &mut shown, fuel)
        } else {
            print::write_repr(value, &mut shown, fuel)
        }?;
        (spec.kind, spec.sign, spec.alternate) = (None, None, false);
        return spec.text(&shown);
    }
    if kind == 'c' {
        return match value.as_str() {
            Some(text) if text::length(text) == 1 => spec.text(text),
            _ => fail("'%c' of anything but one character is not supported"),
        };
    }
    let Some(number) = Number::of(value) else {
        return fail(format!("%{kind} format: a number is required, not {}", value.type_name()));
    };
    if matches!(kind, 'e' | 'E' | 'f' | 'F' | 'g' | 'G') {
        return spec.float(number.as_float(), Some(kind));
    }
    let digits = match (kind, &number) {
        (_, Number::Int(value)) => value.to_string(),
        (_, Number::Big(digits)) => digits.to_string(),
        ('d' | 'i' | 'u', Number::Float(value)) if value.abs() < 9e15 => (value.trunc() as i64).to_string(),
        _ => return fail(format!("%{kind} of this float is not supported")),
    };
    let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
    let Some(least) = spec.precision.take() else { return spec.integer(&digits, kind) };
    if kind != 'd' {
        return fail(format!("a precision of %{kind} is not supported"));
    }
    let unsigned = digits.trim_start_matches('-');
    let body = text::padded(unsigned, least.saturating_sub(unsigned.len()), 0, '0');
    Ok(spec.lay(spec.sign(digits.starts_with('-')), &body, '>'))
}

/// The value a field of `str.format` names by position or name, then by members: `0`, `name`, `0.role`, `name[key]`.
fn split_field(field: &str) -> (&str, &str) {
    field.split_at(field.find(['.', '[']).unwrap_or(field.len()))
}

impl<'a> Interp<'a> {
    /// `format.format(args)`.
    pub(super) fn format_method(&mut self, format: &str, args: &Args<'a>) -> Outcome<Value<'a>> {
        let mut out = String::new();
        let mut rest = format;
        let (mut next, mut is_numbered) = (0, false);
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
            let inside = &rest[at + 1..at + end];
            rest = &rest[at + end + 1..];
            let (field, spec) = inside.split_once(':').unwrap_or((inside, ""));
            if spec.contains('{') {
                return fail("fields within a field of a format string are not supported");
            }
            let (field, shown) = field.split_once('!').unwrap_or((field, ""));
            let (first, members) = split_field(field);
            let value = if first.is_empty() {
                next += 1;
                args.positional.get(next - 1)
            } else if let Ok(index) = first.parse::<usize>() {
                is_numbered = true;
                args.positional.get(index)
            } else {
                args.keyword.iter().find(|(name, _)| *name == first).map(|(_, value)| value)
            };
            if next > 0 && is_numbered {
                return fail("a format string numbers some of its fields, and others not");
            }
            let Some(value) = value else { return fail(format!("no argument for the format field {field:?}")) };
            let value = self.member_of(value.clone(), members)?;
            out.push_str(&match shown {
                "" => formatted(&value, spec, &self.fuel)?,
                "s" => formatted(&Value::string(print::to_str(&value, &self.fuel)?), spec, &self.fuel)?,
                "r" => {
                    let mut repr = String::new();
                    print::write_repr(&value, &mut repr, &self.fuel)?;
                    formatted(&Value::string(repr), spec, &self.fuel)?
                }
                other => return fail(format!("the conversion {other:?} of a format string is not supported")),
            });
            check(&out, &self.fuel)?;
        }
        out.push_str(rest);
        Ok(Value::string(out))
    }

    /// `value.a[b]`, where `.a[b]` is `path`.
    fn member_of(&mut self, mut value: Value<'a>, path: &str) -> Outcome<Value<'a>> {
        let mut rest = path;
        while !rest.is_empty() {
            let key = if let Some(name) = rest.strip_prefix('.') {
                let (name, after) = split_field(name);
                if name.is_empty() || Owners::of(name).include(&value) {
                    return fail(format!("the format field {path:?} is not supported"));
                }
                rest = after;
                Value::string(name)
            } else {
                let Some((key, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
                    return fail(format!("the format field {path:?} is not supported"));
                };
                rest = after;
                key.parse().map_or_else(|_| Value::string(key), Value::Int)
            };
            value = self.subscript(&value, &key)?;
        }
        Ok(value)
    }
}
