//! The parser: one pass over UTF-8, one call a level.
use super::fault::{Fault, FaultParts, Step};
use super::{MAX_DEPTH, NOT_A_NUMBER, NOT_NUMBERS};
use crate::types::Json;
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64;

/// Objects with more members than this look for duplicate keys by hash instead of one by one.
const LINEAR_KEYS: usize = 16;

/// The value of a whole text; `loose`: [`NOT_NUMBERS`] are numbers.
pub(super) fn document(text: &str, loose: bool) -> Parsed<Json> {
    Parser { text, bytes: text.as_bytes(), at: 0, scratch: Vec::new(), loose }.document()
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
