//! The members of a `tokenizer.json`. The two large ones are read in one pass, without a string for each token; the rest
//! is handed to serde.

use serde_json::Value;

use super::Unsupported;
use crate::tokenizer::added::AddedEntry;
use crate::tokenizer::byte_alphabet::{self, decode};

/// The file without its large members. A key we do not know is a part we do not know.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// May be absent, but not null.
    #[serde(default = "current")]
    pub(crate) version: String,
    // Lengths are the caller's business, as with the crate behind `encode::HfEngine`.
    #[serde(default, rename = "truncation")]
    _truncation: serde::de::IgnoredAny,
    #[serde(default, rename = "padding")]
    _padding: serde::de::IgnoredAny,
    #[serde(default)]
    pub(crate) added_tokens: Vec<AddedEntry>,
    pub(crate) normalizer: Option<Value>,
    pub(crate) pre_tokenizer: Option<Value>,
    pub(crate) post_processor: Option<Value>,
    pub(crate) decoder: Option<Value>,
    pub(crate) model: Model,
}

fn current() -> String {
    "1.0".to_owned()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) dropout: Option<f32>,
    // Where every byte has a token, nothing is ever unknown, and these three change nothing.
    pub(crate) unk_token: Option<String>,
    #[serde(default, rename = "fuse_unk")]
    _fuse_unk: Option<bool>,
    pub(crate) byte_fallback: Option<bool>,
    pub(crate) continuing_subword_prefix: Option<String>,
    pub(crate) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(crate) ignore_merges: Option<bool>,
}

/// `model.vocab`: the bytes of byte-level tokens, and the names of the others.
#[derive(Default)]
pub(crate) struct VocabEntries {
    pub(crate) bytes: Vec<u8>,
    /// Id and end in `bytes` of each byte-level token, in file order.
    pub(crate) ends: Vec<(u32, u32)>,
    pub(crate) others: Vec<(String, u32)>,
}

impl VocabEntries {
    pub(crate) fn len(&self) -> usize {
        self.ends.len() + self.others.len()
    }

    /// Bytes and ids in file order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let mut start = 0;
        self.ends.iter().map(move |&(id, end)| {
            let token = &self.bytes[start..end as usize];
            start = end as usize;
            (token, id)
        })
    }
}

/// `model.merges`: the bytes of both tokens of each.
#[derive(Default)]
pub(crate) struct Merges {
    pub(crate) bytes: Vec<u8>,
    /// Where the left one starts, the right one starts, and it ends.
    pub(crate) places: Vec<[u32; 3]>,
}

/// A `tokenizer.json` of a byte-level BPE model, taken apart.
pub(crate) struct Members {
    pub(crate) file: File,
    pub(crate) tokens: VocabEntries,
    pub(crate) merges: Merges,
}

fn damaged(why: impl Into<String>) -> Unsupported {
    Unsupported::new("tokenizer.json", why)
}

/// Reads the file.
pub(crate) fn read(text: &[u8]) -> Result<Members, Unsupported> {
    if u32::try_from(text.len()).is_err() {
        return Err(damaged("is larger than 4 GiB"));
    }
    let mut cursor = Cursor { text, at: 0 };
    // The file again, with `model.vocab` and `model.merges` left out.
    let mut rest = vec![b'{'];
    let (mut tokens, mut merges) = (None, None);
    cursor.expect(b'{')?;
    cursor.items(b'}', |cursor| {
        let key = cursor.key(&mut rest)?;
        if key != "model" || cursor.text.get(cursor.at) != Some(&b'{') {
            rest.extend_from_slice(cursor.value()?);
            return Ok(());
        }
        cursor.at += 1;
        rest.push(b'{');
        cursor.items(b'}', |cursor| {
            let before = rest.len();
            let key = cursor.key(&mut rest)?;
            let twice = match key.as_str() {
                "vocab" => tokens.replace(cursor.tokens()?).is_some(),
                "merges" => merges.replace(cursor.merges()?).is_some(),
                _ => {
                    rest.extend_from_slice(cursor.value()?);
                    return Ok(());
                }
            };
            rest.truncate(before);
            if twice { Err(damaged(format!("model has {key} twice"))) } else { Ok(()) }
        })?;
        rest.push(b'}');
        Ok(())
    })?;
    cursor.space();
    if cursor.at < text.len() {
        return Err(cursor.fault("the end of the file"));
    }
    rest.push(b'}');
    let file = serde_json::from_slice(&rest).map_err(|error| damaged(error.to_string()))?;
    let tokens = tokens.ok_or_else(|| damaged("model has no vocab"))?;
    let merges = merges.ok_or_else(|| damaged("model has no merges"))?;
    Ok(Members { file, tokens, merges })
}

/// What the quick reading of a string came to.
enum Quick {
    /// All of it is byte-level; its bytes were appended.
    Whole,
    /// So is what stands before a space, which was passed.
    ToSpace,
    /// It holds something else; nothing was appended or passed.
    No,
}

/// A place in JSON text.
struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fault(&self, expected: &str) -> Unsupported {
        damaged(format!("expected {expected} at byte {}", self.at + 1))
    }

    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    /// Passes `byte`, if it comes after white space.
    fn eat(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Unsupported> {
        if self.eat(byte) { Ok(()) } else { Err(self.fault(&format!("{:?}", char::from(byte)))) }
    }

    /// Calls `item` at each item of an object or a list whose opening bracket has been passed.
    fn items(
        &mut self,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), Unsupported>,
    ) -> Result<(), Unsupported> {
        if self.eat(close) {
            return Ok(());
        }
        loop {
            self.space();
            item(self)?;
            if !self.eat(b',') {
                return self.expect(close);
            }
        }
    }

    /// A string with its quotes.
    fn string(&mut self) -> Result<&'a [u8], Unsupported> {
        let start = self.at;
        self.expect(b'"')?;
        while let Some(found) = memchr::memchr2(b'"', b'\\', &self.text[self.at..]) {
            self.at += found + 1;
            if self.text[self.at - 1] == b'"' {
                return Ok(&self.text[start..self.at]);
            }
            self.at += 1;
            if self.at > self.text.len() {
                break;
            }
        }
        self.at = start;
        Err(self.fault("a string that ends"))
    }

    fn text(&mut self) -> Result<String, Unsupported> {
        let place = self.at;
        serde_json::from_slice(self.string()?).map_err(|error| damaged(format!("byte {}: {error}", place + 1)))
    }

    /// A key and its colon, which are appended to `rest` behind a comma where one is needed.
    fn key(&mut self, rest: &mut Vec<u8>) -> Result<String, Unsupported> {
        let start = self.at;
        let key = self.text()?;
        if rest.last() != Some(&b'{') {
            rest.push(b',');
        }
        rest.extend_from_slice(&self.text[start..self.at]);
        rest.push(b':');
        self.expect(b':')?;
        self.space();
        Ok(key)
    }

    /// The text of any value. Whether it is right is for serde to say.
    fn value(&mut self) -> Result<&'a [u8], Unsupported> {
        let (start, mut depth) = (self.at, 0usize);
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']' | b',') | None if depth == 0 => break,
                Some(b'}' | b']') => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(_) => self.at += 1,
                None => return Err(self.fault("the end of a value")),
            }
            if depth == 0 && matches!(self.text[self.at - 1], b'"' | b'}' | b']') {
                break;
            }
        }
        Ok(&self.text[start..self.at])
    }

    /// A byte-level token without escapes, nearly every one, that starts at `from` in a string.
    fn quick(&mut self, from: usize, out: &mut Vec<u8>) -> Quick {
        let (before, mut at) = (out.len(), from);
        loop {
            let lead = self.text.get(at).copied().unwrap_or(0);
            let (code, len) = match lead {
                b'"' | b' ' if out.len() > before => {
                    self.at = at + 1;
                    return if lead == b'"' { Quick::Whole } else { Quick::ToSpace };
                }
                0x21..0x80 if lead != b'\\' && lead != b'"' => (usize::from(lead), 1),
                0xC2..=0xC5 => match self.text.get(at + 1) {
                    Some(&next @ 0x80..0xC0) => (usize::from(lead & 0x1F) << 6 | usize::from(next & 0x3F), 2),
                    _ => (usize::MAX, 0),
                },
                _ => (usize::MAX, 0),
            };
            let Some(byte) = byte_alphabet::byte_at(code) else {
                out.truncate(before);
                return Quick::No;
            };
            out.push(byte);
            at += len;
        }
    }

    /// The bytes of a string are appended; the string itself is returned if it is no byte-level token.
    fn token(&mut self, out: &mut Vec<u8>) -> Result<Option<String>, Unsupported> {
        let (start, before) = (self.at, out.len());
        if self.text.get(start) == Some(&b'"') && matches!(self.quick(start + 1, out), Quick::Whole) {
            return Ok(None);
        }
        self.at = start;
        out.truncate(before);
        let text = self.text()?;
        Ok((!decode(&text, out)).then_some(text))
    }

    fn id(&mut self) -> Result<u32, Unsupported> {
        self.space();
        let start = self.at;
        let mut id = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.text.get(self.at) {
            id = (id * 10 + u64::from(digit - b'0')).min(1 << 32);
            self.at += 1;
        }
        let is_number = self.at == start + 1 || (self.at > start && self.text[start] != b'0');
        let id = u32::try_from(id).ok().filter(|_| is_number);
        id.ok_or_else(|| damaged(format!("expected an id at byte {}", start + 1)))
    }

    fn tokens(&mut self) -> Result<VocabEntries, Unsupported> {
        let mut out = VocabEntries::default();
        self.expect(b'{')?;
        self.items(b'}', |cursor| {
            let other = cursor.token(&mut out.bytes)?;
            cursor.expect(b':')?;
            let id = cursor.id()?;
            match other {
                None => out.ends.push((id, out.bytes.len() as u32)),
                Some(name) => out.others.push((name, id)),
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn merges(&mut self) -> Result<Merges, Unsupported> {
        let mut out = Merges::default();
        self.expect(b'[')?;
        self.items(b']', |cursor| {
            let (start, number) = (out.bytes.len() as u32, out.places.len());
            let middle = if cursor.eat(b'[') {
                cursor.space();
                let left = cursor.token(&mut out.bytes)?;
                let middle = out.bytes.len() as u32;
                cursor.expect(b',')?;
                cursor.space();
                let right = cursor.token(&mut out.bytes)?;
                cursor.expect(b']')?;
                (left.is_none() && right.is_none()).then_some(middle)
            } else {
                cursor.joined(&mut out.bytes)?
            };
            let Some(middle) = middle else {
                return Err(Unsupported::new("merges", format!("entry {number} is not of byte-level tokens")));
            };
            out.places.push([start, middle, out.bytes.len() as u32]);
            Ok(())
        })?;
        Ok(out)
    }

    /// `"a b"` of older files: where the bytes of the second start, or `None` if one is no byte-level token.
    fn joined(&mut self, out: &mut Vec<u8>) -> Result<Option<u32>, Unsupported> {
        let (start, before) = (self.at, out.len());
        if self.text.get(start) == Some(&b'"') && matches!(self.quick(start + 1, out), Quick::ToSpace) {
            let middle = out.len() as u32;
            if matches!(self.quick(self.at, out), Quick::Whole) {
                return Ok(Some(middle));
            }
        }
        self.at = start;
        out.truncate(before);
        let text = self.text()?;
        let (left, right) = text.split_once(' ').ok_or_else(|| damaged("a merge without a space"))?;
        let known = decode(left, out);
        let middle = out.len() as u32;
        Ok((known && decode(right, out)).then_some(middle))
    }
}
