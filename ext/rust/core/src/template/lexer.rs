//! Jinja source to tokens, as Jinja2's lexer cuts it with `trim_blocks` and `lstrip_blocks`.
//!
//! A port of the rules, not of the code: where a tag begins, what whitespace it swallows, how strings are unescaped.
use std::fmt;

use super::text::{is_space, rstrip};
use crate::error::Error;

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Box<str>),
    Str(String),
    /// Decimal digits of any length.
    Int(Box<str>),
    Float(f64),
    Op(&'static str),
    End,
}

/// As it stands in the source, so that an error shows what its reader wrote.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(_) => f.write_str("text outside of tags"),
            Self::VariableBegin => f.write_str("'{{'"),
            Self::VariableEnd => f.write_str("'}}'"),
            Self::BlockBegin => f.write_str("'{%'"),
            Self::BlockEnd => f.write_str("'%}'"),
            Self::Name(name) => write!(f, "'{name}'"),
            Self::Str(text) => write!(f, "the string {text:?}"),
            Self::Int(digits) => write!(f, "the number {digits}"),
            Self::Float(number) => write!(f, "the number {number:?}"),
            Self::Op(op) => write!(f, "'{op}'"),
            Self::End => f.write_str("the end of the template"),
        }
    }
}

/// A token and the line (from 1) on which it starts.
#[derive(Debug, Clone)]
pub(super) struct Spanned {
    pub token: Token,
    pub line: u32,
}

/// Longest first, so that `//` is not two divisions.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

pub(super) fn syntax(line: u32, message: impl Into<Box<str>>) -> Error {
    Error::Template { place: format!("line {line}").into(), message: message.into() }
}

/// `\r\n`, `\r` and `\n` are line breaks; one at the very end is dropped, as Jinja2 does.
fn normalize(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    /// The last tag swallowed the end of its line, so the next text starts one.
    line_starting: bool,
    out: Vec<Spanned>,
}

/// Cut `source` into tokens.
pub(super) fn tokenize(source: &str) -> Result<Vec<Spanned>, Error> {
    let source = normalize(source);
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, out: Vec::new() };
    lexer.root()?;
    let line = lexer.line;
    lexer.out.push(Spanned { token: Token::End, line });
    Ok(lexer.out)
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.out.push(Spanned { token, line: self.line });
    }

    fn advance(&mut self, bytes: usize) {
        let taken = &self.source[self.at..self.at + bytes];
        self.line += taken.bytes().filter(|&b| b == b'\n').count() as u32;
        self.at += bytes;
    }

    fn root(&mut self) -> Result<(), Error> {
        while self.at < self.source.len() {
            let rest = self.rest();
            let Some(begin) = find_tag(rest) else {
                self.push(Token::Data(rest.to_owned()));
                self.advance(rest.len());
                return Ok(());
            };
            let (text, tag) = rest.split_at(begin);
            let raw = raw_begin(tag);
            let sign = tag[2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let text = self.before_tag(text, sign, tag.starts_with("{{"));
            if !text.is_empty() {
                self.push(Token::Data(text.to_owned()));
            }
            if let Some(length) = raw {
                self.advance(begin + length);
                self.line_starting = tag[..length].ends_with('\n');
                self.raw()?;
                continue;
            }
            self.advance(begin + 2 + usize::from(sign.is_some()));
            match &tag[..2] {
                "{#" => self.comment()?,
                "{{" => {
                    self.push(Token::VariableBegin);
                    self.tag(false)?;
                }
                _ => {
                    self.push(Token::BlockBegin);
                    self.tag(true)?;
                }
            }
        }
        Ok(())
    }

    /// The text before a tag, after the whitespace control of that tag.
    fn before_tag<'t>(&self, text: &'t str, sign: Option<char>, variable: bool) -> &'t str {
        if sign == Some('-') {
            return rstrip(text);
        }
        if sign == Some('+') || variable {
            return text;
        }
        let line_at = text.rfind('\n').map_or(0, |i| i + 1);
        let blank = line_at < text.len() && text[line_at..].chars().all(is_space);
        if blank && (line_at > 0 || self.line_starting) { &text[..line_at] } else { text }
    }

    fn comment(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let Some(close) = rest.find("#}") else {
            return Err(syntax(self.line, "a comment is not closed; end it with '#}'"));
        };
        let sign = rest[..close].chars().next_back().filter(|c| matches!(c, '-' | '+'));
        self.end_tag(close + 2, sign, true);
        Ok(())
    }

    /// Step over a closing tag that ends at `bytes`, and over the whitespace it swallows.
    fn end_tag(&mut self, bytes: usize, sign: Option<char>, block: bool) {
        let after = &self.rest()[bytes..];
        let swallowed = match sign {
            Some('-') => after.len() - after.trim_start_matches(is_space).len(),
            None if block && after.starts_with('\n') => 1,
            _ => 0,
        };
        self.line_starting = after[..swallowed].ends_with('\n');
        self.advance(bytes + swallowed);
    }

    fn raw(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let begin = from + found;
            if let Some((length, open_sign, close_sign)) = raw_end(&rest[begin..]) {
                let text = self.before_tag(&rest[..begin], open_sign, false).to_owned();
                if !text.is_empty() {
                    self.push(Token::Data(text));
                }
                self.end_tag(begin + length, close_sign, true);
                return Ok(());
            }
            from = begin + 2;
        }
        Err(syntax(self.line, "a raw block is not closed; end it with '{% endraw %}'"))
    }

    /// The inside of `{{ }}` or `{% %}`.
    fn tag(&mut self, block: bool) -> Result<(), Error> {
        let end = if block { "%}" } else { "}}" };
        let mut brackets: Vec<char> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return Err(syntax(self.line, format!("a tag is not closed; end it with '{end}'")));
            };
            if brackets.is_empty() {
                let sign = match first {
                    '-' => Some('-'),
                    '+' if block => Some('+'),
                    _ => None,
                };
                let skip = usize::from(sign.is_some());
                if rest[skip..].starts_with(end) {
                    self.push(if block { Token::BlockEnd } else { Token::VariableEnd });
                    self.end_tag(skip + end.len(), sign, block);
                    return Ok(());
                }
            }
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
            } else if first.is_ascii_digit() {
                self.number(rest)?;
            } else if first == '_' || first.is_alphanumeric() {
                let length = rest.find(|c: char| !(c == '_' || c.is_alphanumeric())).unwrap_or(rest.len());
                if !rest[..length].is_ascii() {
                    return Err(syntax(
                        self.line,
                        format!("the name {:?} is not plain ASCII; rename it", &rest[..length]),
                    ));
                }
                self.push(Token::Name(rest[..length].into()));
                self.advance(length);
            } else if first == '"' || first == '\'' {
                self.string(rest, first)?;
            } else {
                self.operator(rest, &mut brackets)?;
            }
        }
    }

    fn operator(&mut self, rest: &str, brackets: &mut Vec<char>) -> Result<(), Error> {
        let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) else {
            let found = rest.chars().next().unwrap_or(' ');
            return Err(syntax(self.line, format!("unexpected character {found:?} in a tag")));
        };
        match *op {
            "{" => brackets.push('}'),
            "(" => brackets.push(')'),
            "[" => brackets.push(']'),
            "}" | ")" | "]" if brackets.pop() != op.chars().next() => {
                return Err(syntax(self.line, format!("unexpected '{op}': brackets are not balanced")));
            }
            _ => {}
        }
        self.push(Token::Op(op));
        self.advance(op.len());
        Ok(())
    }

    /// A hexadecimal, octal or binary number, if one starts here.
    fn based_number(&mut self, rest: &str) -> Result<bool, Error> {
        let base = match rest.as_bytes() {
            [b'0', b'x' | b'X', ..] => 16,
            [b'0', b'o' | b'O', ..] => 8,
            [b'0', b'b' | b'B', ..] => 2,
            _ => return Ok(false),
        };
        let end = rest[2..].find(|c: char| !(c == '_' || c.is_digit(base))).map_or(rest.len(), |end| end + 2);
        let text = &rest[2..end];
        let number = u128::from_str_radix(&text.replace('_', ""), base);
        match number {
            Ok(number) if !text.ends_with('_') && !text.contains("__") => {
                self.push(Token::Int(number.to_string().into()));
                self.advance(end);
                Ok(true)
            }
            _ => Err(syntax(self.line, format!("{} is not a number Jinja2 accepts", &rest[..end]))),
        }
    }

    fn number(&mut self, rest: &str) -> Result<(), Error> {
        if self.based_number(rest)? {
            return Ok(());
        }
        let length = rest.find(|c: char| !(c == '_' || c.is_ascii_digit())).unwrap_or(rest.len());
        let mut end = length;
        let after_dot = self.at > 0 && self.source.as_bytes()[self.at - 1] == b'.';
        let mut is_float = false;
        if !after_dot {
            let digits_at = |i: usize| rest.as_bytes().get(i).is_some_and(u8::is_ascii_digit);
            if rest[end..].starts_with('.') && digits_at(end + 1) {
                is_float = true;
                end += 1;
                while digits_at(end) {
                    end += 1;
                }
            }
            if rest[end..].starts_with(['e', 'E']) {
                let signed = usize::from(rest[end + 1..].starts_with(['+', '-']));
                if digits_at(end + 1 + signed) {
                    is_float = true;
                    end += 1 + signed;
                    while digits_at(end) {
                        end += 1;
                    }
                }
            }
        }
        let text = &rest[..end];
        let digits = text.replace('_', "");
        if text.ends_with('_')
            || text.contains("__")
            || (!is_float && digits.len() > 1 && digits.starts_with('0') && digits.bytes().any(|b| b != b'0'))
        {
            return Err(syntax(self.line, format!("{text} is not a number Jinja2 accepts")));
        }
        if is_float {
            let value = digits.parse().map_err(|_| syntax(self.line, format!("{text} is not a number")))?;
            self.push(Token::Float(value));
        } else {
            self.push(Token::Int(digits.into()));
        }
        self.advance(end);
        Ok(())
    }

    fn string(&mut self, rest: &str, quote: char) -> Result<(), Error> {
        let mut escaped = false;
        for (i, c) in rest.char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == quote {
                let text = unescape(&rest[1..i]).map_err(|message| syntax(self.line, message))?;
                self.push(Token::Str(text));
                self.advance(i + 1);
                return Ok(());
            }
        }
        Err(syntax(self.line, "a string is not closed"))
    }
}

fn find_tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(b'{', bytes).find(|&i| matches!(bytes.get(i + 1), Some(b'%' | b'{' | b'#')))
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// Length of `{% raw %}` at the start of `tag`, with what it swallows after a `-`.
fn raw_begin(tag: &str) -> Option<usize> {
    let inner = tag.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = skip_space(skip_space(inner).strip_prefix("raw")?);
    let rest = match inner.strip_prefix("-%}") {
        Some(rest) => skip_space(rest),
        None => inner.strip_prefix("%}")?,
    };
    Some(tag.len() - rest.len())
}

/// Length of `{% endraw %}` at the start of `tag`, and the signs of its two ends.
fn raw_end(tag: &str) -> Option<(usize, Option<char>, Option<char>)> {
    let inner = tag.strip_prefix("{%")?;
    let open = inner.chars().next().filter(|c| matches!(c, '-' | '+'));
    let inner = &inner[usize::from(open.is_some())..];
    let inner = skip_space(skip_space(inner).strip_prefix("endraw")?);
    let close = inner.chars().next().filter(|c| matches!(c, '-' | '+'));
    let rest = inner[usize::from(close.is_some())..].strip_prefix("%}")?;
    Some((tag.len() - rest.len(), open, close))
}

/// Python's `unicode-escape` on the text between the quotes.
fn unescape(text: &str) -> Result<String, String> {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let Some(c) = rest[at + 1..].chars().next() else {
            return Err("a string ends in a lone backslash".into());
        };
        rest = &rest[at + 1 + c.len_utf8()..];
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let digits = format!("{c}{}", &rest[..more]);
                out.push(code_point(&digits, 8)?);
                rest = &rest[more..];
            }
            'x' | 'u' | 'U' => {
                let width = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits = rest.get(..width).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                let digits = digits.ok_or_else(|| format!("a \\{c} escape needs {width} hexadecimal digits"))?;
                out.push(code_point(digits, 16)?);
                rest = &rest[width..];
            }
            'N' => return Err("\\N{...} escapes are not supported in templates".into()),
            // Python spells the character as an escape first, and the backslash then escapes that escape's own.
            c if !c.is_ascii() => {
                let code = c as u32;
                let spelled = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
                spelled.map_err(|error| error.to_string())?;
            }
            c => {
                out.push('\\');
                out.push(c);
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn code_point(digits: &str, radix: u32) -> Result<char, String> {
    u32::from_str_radix(digits, radix)
        .ok()
        .and_then(char::from_u32)
        .ok_or_else(|| format!("the escape {digits} names no character (surrogates cannot be written)"))
}
