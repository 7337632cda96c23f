//! JSON as training data needs it read: strict, quick on long strings, and exact about where a fault is.
//!
//! One pass over bytes that are known to be UTF-8. Strings are scanned eight bytes at a time and copied once. Numbers
//! keep their text, objects their order. What most readers let pass is an error here, because it would change what is
//! trained on without a word: duplicate keys, lone surrogates, `NaN`, bytes that are not UTF-8. Nesting stops at
//! [`MAX_DEPTH`], so no input can exhaust the stack.
//!
//! Speed: 0.7 GB/s and more on one core for chat rows (`cargo run --release --example json_speed`).

mod write;

use std::collections::HashSet;
use std::str::Utf8Error;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::RowError;
use crate::types::Json;
pub use write::{PythonStyle, append_canonical, python_dumps, python_float, to_canonical};

/// Deepest nesting of lists and objects.
pub const MAX_DEPTH: usize = 128;

/// Steps of a path that are written; of a deeper one the middle is left out.
const MAX_PATH: usize = 16;

/// Objects with more members than this look for duplicate keys by hash instead of one by one.
const LINEAR_KEYS: usize = 16;

/// Read one JSON value that fills `bytes`, with white space allowed around it.
///
/// # Errors
/// [`RowError`] with the byte column (from 1) and the JSON path of the first fault. Its reason is `truncated` when the
/// text ended before the value did.
pub fn parse(bytes: &[u8]) -> Result<Json, RowError> {
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        return parse_text(text);
    }
    // The slow one says where the fault is.
    match std::str::from_utf8(bytes) {
        Ok(text) => parse_text(text),
        Err(fault) => Err(utf8_error(bytes, fault)),
    }
}

/// [`parse`] for bytes known to be UTF-8.
///
/// # Errors
/// As [`parse`].
pub fn parse_text(text: &str) -> Result<Json, RowError> {
    parse_with(text, false)
}

/// [`parse_text`] where `NaN`, `Infinity` and `-Infinity`, as `json.dumps` writes them, are numbers of that text.
///
/// # Errors
/// As [`parse_text`].
pub fn parse_loose(text: &str) -> Result<Json, RowError> {
    parse_with(text, true)
}

fn parse_with(text: &str, loose: bool) -> Result<Json, RowError> {
    let mut parser = Parser { text, bytes: text.as_bytes(), at: 0, scratch: Vec::new(), loose };
    parser.document().map_err(Fault::into_error)
}

/// Numbers of `json.dumps` that are no JSON.
pub const NOT_NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// The reason of a [`RowError`] about one of [`NOT_NUMBERS`].
pub const NOT_A_NUMBER: &str = "not_a_number";

fn utf8_error(bytes: &[u8], fault: Utf8Error) -> RowError {
    let valid = fault.valid_up_to();
    // The readable part ends inside the value at fault, so reading it gives the path.
    let path = match std::str::from_utf8(&bytes[..valid]).map(parse_text) {
        Ok(Err(fault)) => fault.path,
        _ => String::from("$"),
    };
    let (reason, message) = if fault.error_len().is_none() {
        ("truncated", "the text ends inside a UTF-8 character".to_owned())
    } else if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        ("utf8", "the text is UTF-16; convert the file, for example with `iconv -f utf-16 -t utf-8`".to_owned())
    } else {
        let byte = bytes[valid];
        ("utf8", format!("byte 0x{byte:02x} is not UTF-8; convert the file, for example with `iconv -t utf-8`"))
    };
    RowError { reason, column: Some(valid + 1), path, message }
}

/// One step of a JSON path, gathered from the inside out while an error travels up.
enum Step {
    Key(Box<str>),
    Index(usize),
}

/// Boxed, so that the many good results stay small.
struct Fault(Box<FaultParts>);

struct FaultParts {
    reason: &'static str,
    at: usize,
    message: String,
    steps: Vec<Step>,
}

impl Fault {
    fn inside(mut self, step: Step) -> Self {
        self.0.steps.push(step);
        self
    }

    fn into_error(self) -> RowError {
        let mut path = String::from("$");
        let depth = self.0.steps.len();
        for (index, step) in self.0.steps.iter().rev().enumerate() {
            if depth > MAX_PATH && (MAX_PATH / 2..depth - MAX_PATH / 2).contains(&index) {
                if index == MAX_PATH / 2 {
                    path.push_str("...");
                }
                continue;
            }
            match step {
                Step::Key(key) => push_key(&mut path, key),
                Step::Index(index) => push_index(&mut path, *index),
            }
        }
        RowError { reason: self.0.reason, column: Some(self.0.at + 1), path, message: self.0.message }
    }
}

/// Extend a JSON path by a member: `.name`, or `["odd name"]`.
pub fn push_key(path: &mut String, key: &str) {
    let plain = key.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    if plain {
        path.push('.');
        path.push_str(key);
    } else {
        path.push('[');
        write::append_string(path, &shortened(key), false);
        path.push(']');
    }
}

/// Extend a JSON path by a list index: `[3]`.
pub fn push_index(path: &mut String, index: usize) {
    path.push('[');
    path.push_str(&index.to_string());
    path.push(']');
}

/// At most 40 characters of `text`, for messages.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

type Parsed<T> = Result<T, Fault>;

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Where strings with escapes are put together before the one allocation of their final size. Always UTF-8.
    scratch: Vec<u8>,
    /// Whether [`NOT_NUMBERS`] are numbers.
    loose: bool,
}

impl Parser<'_> {
    fn document(&mut self) -> Parsed<Json> {
        let value = self.value(0)?;
        self.skip_space();
        if self.at < self.bytes.len() {
            let found = self.describe();
            return Err(self.fault("json", format!("{found} after the end of the value; one JSON value a line")));
        }
        Ok(value)
    }

    fn value(&mut self, depth: usize) -> Parsed<Json> {
        self.skip_space();
        if self.loose
            && let Some(word) = NOT_NUMBERS.iter().find(|word| self.text[self.at..].starts_with(**word))
        {
            self.at += word.len();
            return Ok(Json::Number((*word).into()));
        }
        match self.bytes.get(self.at) {
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            _ => Err(self.unexpected("a value")),
        }
    }

    fn object(&mut self, depth: usize) -> Parsed<Json> {
        self.enter(depth)?;
        let mut members: Vec<(Box<str>, Json)> = Vec::new();
        let mut hashes: HashSet<u64> = HashSet::new();
        self.skip_space();
        if self.take(b'}') {
            return Ok(Json::Object(members));
        }
        loop {
            self.skip_space();
            if self.bytes.get(self.at) != Some(&b'"') {
                return Err(self.unexpected("a key in double quotes"));
            }
            let key_at = self.at;
            let key = self.string()?;
            if is_duplicate(&members, &mut hashes, &key) {
                self.at = key_at;
                let fault = self.fault("duplicate_key", "this key occurs twice; remove one of the two".to_owned());
                return Err(fault.inside(Step::Key(key)));
            }
            self.skip_space();
            if !self.take(b':') {
                return Err(self.unexpected("':' after the key"));
            }
            match self.value(depth) {
                Ok(value) => members.push((key, value)),
                Err(fault) => return Err(fault.inside(Step::Key(key))),
            }
            self.skip_space();
            if self.take(b',') {
                continue;
            }
            if self.take(b'}') {
                return Ok(Json::Object(members));
            }
            return Err(self.unexpected("',' or '}'"));
        }
    }

    fn array(&mut self, depth: usize) -> Parsed<Json> {
        self.enter(depth)?;
        let mut items = Vec::new();
        self.skip_space();
        if self.take(b']') {
            return Ok(Json::Array(items));
        }
        loop {
            match self.value(depth) {
                Ok(value) => items.push(value),
                Err(fault) => return Err(fault.inside(Step::Index(items.len()))),
            }
            self.skip_space();
            if self.take(b',') {
                continue;
            }
            if self.take(b']') {
                return Ok(Json::Array(items));
            }
            return Err(self.unexpected("',' or ']'"));
        }
    }

    /// Step over the opening bracket, unless it would nest too deep.
    fn enter(&mut self, depth: usize) -> Parsed<()> {
        if depth > MAX_DEPTH {
            return Err(self.fault("depth", format!("nested deeper than {MAX_DEPTH}; store such values as JSON text")));
        }
        self.at += 1;
        Ok(())
    }

    /// The string that opens at the cursor.
    fn string(&mut self) -> Parsed<Box<str>> {
        self.at += 1;
        let start = self.at;
        self.at += plain_length(&self.bytes[start..]);
        if self.bytes.get(self.at) == Some(&b'"') {
            let text = &self.text[start..self.at];
            self.at += 1;
            return Ok(text.into());
        }
        self.string_with_escapes(start)
    }

    fn string_with_escapes(&mut self, start: usize) -> Parsed<Box<str>> {
        let bytes = self.bytes;
        self.scratch.clear();
        // no string is longer than what is left of the text, so this is the one allocation
        self.scratch.reserve(bytes.len() - start + BLOCK);
        self.scratch.extend_from_slice(&bytes[start..self.at]);
        loop {
            match bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    // SAFETY: put together from text that was cut at ASCII bytes, and from whole characters.
                    let text = unsafe { std::str::from_utf8_unchecked(&self.scratch) };
                    return Ok(text.into());
                }
                Some(b'\\') => self.escape()?,
                Some(&byte) => {
                    let message = format!("control character 0x{byte:02x} inside a string; write it as \\u{byte:04x}");
                    return Err(self.fault("json", message));
                }
                None => return Err(self.cut("inside a string")),
            }
            self.at += copy_plain(&bytes[self.at..], &mut self.scratch);
        }
    }

    /// The escape whose backslash is at the cursor, decoded onto `scratch`.
    fn escape(&mut self) -> Parsed<()> {
        let Some(&kind) = self.bytes.get(self.at + 1) else {
            self.at = self.bytes.len();
            return Err(self.cut("inside a string"));
        };
        let decoded = match kind {
            b'"' | b'\\' | b'/' => kind,
            b'b' => 8,
            b'f' => 0xc,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let decoded = self.unicode_escape()?;
                self.scratch.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => {
                let shown = self.text[self.at + 1..].chars().next().unwrap_or(' ');
                let message = format!("unknown escape \\{}; write a backslash as \\\\", shown.escape_debug());
                return Err(self.fault("json", message));
            }
        };
        self.at += 2;
        self.scratch.push(decoded);
        Ok(())
    }

    /// `\uXXXX` at the cursor, or two of them that make one character.
    fn unicode_escape(&mut self) -> Parsed<char> {
        let start = self.at;
        let first = self.hex_escape()?;
        if let Some(decoded) = char::from_u32(first) {
            return Ok(decoded);
        }
        if first < 0xDC00 && self.bytes[self.at..].starts_with(b"\\u") {
            let second = self.hex_escape()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return char::from_u32(code).ok_or_else(|| self.unexpected("a character"));
            }
        } else if b"\\u".starts_with(&self.bytes[self.at..]) {
            self.at = self.bytes.len();
            return Err(self.cut("inside a string"));
        }
        self.at = start;
        let message = format!("lone surrogate \\u{first:04x}; it is half a character and has no UTF-8 form, remove it");
        Err(self.fault("surrogate", message))
    }

    /// The number behind `\u` at the cursor.
    fn hex_escape(&mut self) -> Parsed<u32> {
        let digits = &self.bytes[self.at + 2..];
        if digits.len() < 4 && digits.iter().all(u8::is_ascii_hexdigit) {
            self.at = self.bytes.len();
            return Err(self.cut("inside a string"));
        }
        let mut code = 0;
        for &byte in &digits[..4.min(digits.len())] {
            let Some(digit) = char::from(byte).to_digit(16) else {
                return Err(self.fault("json", "\\u needs four hexadecimal digits".to_owned()));
            };
            code = code * 16 + digit;
        }
        self.at += 6;
        Ok(code)
    }

    fn number(&mut self) -> Parsed<Json> {
        let start = self.at;
        self.take(b'-');
        if self.bytes[self.at..].starts_with(b"Infinity") {
            self.at = start;
            return Err(self.unexpected("a value"));
        }
        let zero = self.bytes.get(self.at) == Some(&b'0');
        let whole = self.digits()?;
        if zero && whole > 1 {
            self.at = start;
            return Err(
                self.fault("json", "a number cannot start with 0; put quotes around it if it is text".to_owned())
            );
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Json::Number(self.text[start..self.at].into()))
    }

    fn digits(&mut self) -> Parsed<usize> {
        let count = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.unexpected("a digit"));
        }
        self.at += count;
        Ok(count)
    }

    fn word(&mut self, word: &str, value: Json) -> Parsed<Json> {
        let rest = &self.bytes[self.at..];
        if rest.starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(value);
        }
        if word.as_bytes().starts_with(rest) {
            self.at = self.bytes.len();
            return Err(self.cut("inside a word"));
        }
        Err(self.unexpected("a value"))
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn skip_space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn fault(&self, reason: &'static str, message: String) -> Fault {
        Fault(Box::new(FaultParts { reason, at: self.at, message, steps: Vec::new() }))
    }

    fn cut(&self, place: &str) -> Fault {
        self.fault("truncated", format!("the text ends {place}"))
    }

    /// A fault for what is at the cursor when `wanted` should be.
    fn unexpected(&self, wanted: &str) -> Fault {
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return self.cut(&format!("where {wanted} should follow"));
        }
        for word in ["NaN", "Infinity", "-Infinity", "nan", "inf"] {
            if rest.starts_with(word) {
                return self.fault(NOT_A_NUMBER, format!("{word} is not JSON; use null or leave the member out"));
            }
        }
        for (word, right) in [("None", "null"), ("True", "true"), ("False", "false")] {
            if rest.starts_with(word) {
                return self.fault("json", format!("{word} is Python, not JSON; write {right} (json.dumps does)"));
            }
        }
        if rest.starts_with('\'') {
            return self.fault("json", format!("single quote where {wanted} should be; JSON text needs double quotes"));
        }
        self.fault("json", format!("{} where {wanted} should be", self.describe()))
    }

    /// The character at the cursor, readable in a message.
    fn describe(&self) -> String {
        match self.text[self.at..].chars().next() {
            Some('\u{feff}') => "byte order mark U+FEFF".to_owned(),
            Some(found) => format!("'{}'", found.escape_debug()),
            None => "end of text".to_owned(),
        }
    }
}

/// Is `key` among `members`? `hashes` holds the hashes of their keys once there are more than [`LINEAR_KEYS`].
fn is_duplicate(members: &[(Box<str>, Json)], hashes: &mut HashSet<u64>, key: &str) -> bool {
    if members.len() < LINEAR_KEYS {
        return members.iter().any(|(name, _)| **name == *key);
    }
    if hashes.is_empty() {
        hashes.extend(members.iter().map(|(name, _)| xxh3_64(name.as_bytes())));
    }
    !hashes.insert(xxh3_64(key.as_bytes())) && members.iter().any(|(name, _)| **name == *key)
}

/// Bytes that are looked at together.
const BLOCK: usize = 16;

/// A bit for each byte of a block that is `"`, `\` or a control character.
#[cfg(target_arch = "x86_64")]
#[inline]
fn stops(block: &[u8; BLOCK]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: SSE2 is part of x86-64, and 16 bytes are read from an array of 16.
    unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast());
        let is = |byte: u8| _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte.cast_signed()));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
        _mm_movemask_epi8(_mm_or_si128(control, _mm_or_si128(is(b'"'), is(b'\\')))) as u32
    }
}

/// A bit for each byte of a block that is `"`, `\` or a control character.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn stops(block: &[u8; BLOCK]) -> u32 {
    (0..).zip(block).map(|(bit, byte)| u32::from(is_stop(*byte)) << bit).sum()
}

fn is_stop(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes at the start of `bytes` are neither `"`, `\` nor control characters.
fn plain_length(bytes: &[u8]) -> usize {
    let mut done = 0;
    while let Some(block) = bytes.get(done..).and_then(|rest| rest.first_chunk()) {
        let stops = stops(block);
        if stops != 0 {
            return done + stops.trailing_zeros() as usize;
        }
        done += BLOCK;
    }
    let tail = &bytes[done..];
    done + tail.iter().position(|byte| is_stop(*byte)).unwrap_or(tail.len())
}

/// Append them to `out`; their number. Whole blocks are written where there is room: short stretches between escapes are
/// the rule in code, and a call for each would cost more than the copy.
#[inline]
fn copy_plain(bytes: &[u8], out: &mut Vec<u8>) -> usize {
    let mut done = 0;
    while let Some(block) = bytes.get(done..).and_then(|rest| rest.first_chunk()) {
        let stops = stops(block);
        let plain = if stops == 0 { BLOCK } else { stops.trailing_zeros() as usize };
        let length = out.len();
        out.extend_from_slice(block);
        out.truncate(length + plain);
        done += plain;
        if stops != 0 {
            return done;
        }
    }
    let tail = &bytes[done..];
    let plain = tail.iter().position(|byte| is_stop(*byte)).unwrap_or(tail.len());
    out.extend_from_slice(&tail[..plain]);
    done + plain
}

#[cfg(test)]
mod tests;
