//! `tokenizer.json` -> engine and tables: every part is recognised for certain, or the whole is refused.
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::merge::Pairs;
use super::neighbours::Neighbours;
use super::{CharBpe, Chars, Dummy, NONE, SPACE};
use crate::tokenizer::added::{AddedEntry, AddedTokens};
use crate::tokenizer::special::SpecialMatcher;
use crate::tokenizer::vocabulary::{CharTokens, TokenNames, Vocabulary};

/// Ids beyond this are not for tables.
const MAX_ID: u32 = 1 << 22;

#[derive(Deserialize)]
struct File<'a> {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedEntry>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    // Where every byte has a token, nothing is ever unknown, and these two change nothing.
    #[serde(default, rename = "unk_token")]
    _unk_token: serde::de::IgnoredAny,
    #[serde(default, rename = "fuse_unk")]
    _fuse_unk: serde::de::IgnoredAny,
    byte_fallback: Option<bool>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    ignore_merges: Option<bool>,
    #[serde(borrow)]
    vocab: Vocab<'a>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

/// A string that lies in the file, unless it is escaped there.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Vocab<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vec<(Cow<'de, str>, u32)>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tokens with ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(token), id)) = map.next_entry::<Text<'de>, u32>()? {
                    entries.push((token, id));
                }
                Ok(entries)
            }
        }
        from.deserialize_map(Entries).map(Self)
    }
}

/// Two tokens that merge: a list, or joined by a space as in older files.
struct Merge<'a>(Cow<'a, str>, Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two tokens")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => Ok(Merge(left.into(), right.into())),
                    _ => Err(E::custom("a merge is not two tokens with a space between them")),
                }
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Merge(left.to_owned().into(), right.to_owned().into()))
                    }
                    _ => Err(E::custom("a merge is not two tokens with a space between them")),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let missing = || A::Error::custom("a merge is not two tokens");
                let Text(left) = list.next_element()?.ok_or_else(missing)?;
                let Text(right) = list.next_element()?.ok_or_else(missing)?;
                if list.next_element::<Text<'de>>()?.is_some() { Err(missing()) } else { Ok(Merge(left, right)) }
            }
        }
        from.deserialize_any(Sides)
    }
}

/// The engine of a `tokenizer.json` and the tables of its vocabulary; none for a file with a part that is not known here.
#[must_use]
pub fn load(tokenizer_json: &[u8], names: &TokenNames) -> Option<(CharBpe, Vocabulary)> {
    let file: File = serde_json::from_slice(tokenizer_json).ok()?;
    let model = &file.model;
    let plain = |text: &Option<String>| text.as_deref().unwrap_or("").is_empty();
    let is_known = file.version.as_deref().unwrap_or("1.0") == "1.0"
        && model.kind.as_deref() == Some("BPE")
        && model.dropout.unwrap_or(0.0) == 0.0
        && model.byte_fallback == Some(true)
        && model.ignore_merges != Some(true)
        && plain(&model.continuing_subword_prefix)
        && plain(&model.end_of_word_suffix)
        && writes_spaces(file.decoder.as_ref()?);
    if !is_known {
        return None;
    }
    let dummy = dummy(file.normalizer.as_ref(), file.pre_tokenizer.as_ref())?;
    let vocab = &model.vocab.0;
    let ids: HashMap<&str, u32> = vocab.iter().map(|(token, id)| (&**token, *id)).collect();
    if ids.len() != vocab.len() || vocab.iter().any(|(token, id)| *id >= MAX_ID || token.is_empty()) {
        return None;
    }
    let chars = chars(&ids)?;
    let (pairs, neighbours) = merges(&model.merges, &ids, &chars)?;
    let added = AddedTokens::read(&file.added_tokens, ids.len(), |name| ids.get(name).copied(), |_| None).ok()?;
    // The crate looks for normalized ones in the text with its spaces written otherwise, and gives ids of its own.
    if !added.normalized.is_empty() || added.raw.iter().any(|token| token.id >= MAX_ID) {
        return None;
    }
    let lengths = lengths(vocab, &chars)?;
    let id_of = |name: &str| {
        let added = file.added_tokens.iter().find(|token| token.content == name).map(|token| token.id);
        added.or_else(|| ids.get(name).copied())
    };
    if names.extra.iter().any(|name| id_of(name).is_none()) {
        return None;
    }
    let find = |name: &Option<String>| name.as_deref().and_then(id_of);
    let tokens = CharTokens {
        vocab: vocab.iter().map(|(token, id)| (*id, &**token)).collect(),
        added: file.added_tokens.iter().map(|token| (token.id, &*token.content, token.special)).collect(),
        post_processor: file.post_processor.as_ref(),
        ends: (find(&names.bos), find(&names.eos)),
        opens_with_space: dummy == Dummy::First,
        adds_spaces: matches!(dummy, Dummy::Always | Dummy::Unconditional),
    };
    let vocabulary = Vocabulary::of_chars(tokens)?;
    let added = SpecialMatcher::new(added.raw);
    Some((CharBpe { added, chars, pairs, neighbours, lengths, dummy, pool: Mutex::default() }, vocabulary))
}

fn kind(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or("")
}

/// The decoder turns `▁` into a space and byte tokens into bytes, as [`Vocabulary::of_chars`] does.
fn writes_spaces(decoder: &Value) -> bool {
    let mut kinds = vec![];
    let mut open = vec![decoder];
    while let Some(part) = open.pop() {
        kinds.push(kind(part));
        open.extend(part.get("decoders").and_then(Value::as_array).into_iter().flatten());
    }
    let spaces = kinds.iter().any(|kind| matches!(*kind, "Replace" | "Metaspace"));
    spaces && kinds.contains(&"ByteFallback") && !kinds.contains(&"ByteLevel")
}

/// Exactly these members stand in the part.
fn is(part: &Value, members: &[(&str, Value)]) -> bool {
    part.as_object().is_some_and(|object| {
        object.len() == members.len() && members.iter().all(|(name, value)| object.get(*name) == Some(value))
    })
}

/// What normalizer and pre-tokenizer come to: spaces written as `▁`, and perhaps one more; none for any others.
fn dummy(normalizer: Option<&Value>, pre_tokenizer: Option<&Value>) -> Option<Dummy> {
    let text = |text: &str| Value::String(text.to_owned());
    let space = serde_json::json!({"String": " "});
    let replaces = |part: &Value| {
        is(part, &[("type", text("Replace")), ("pattern", space.clone()), ("content", text("\u{2581}"))])
    };
    let prepends = |part: &Value| is(part, &[("type", text("Prepend")), ("prepend", text("\u{2581}"))]);
    // it looks for spaces, of which none is left
    let cuts_nothing = |part: &Value| kind(part) == "Split" && part.get("pattern") == Some(&space);
    match (normalizer, pre_tokenizer) {
        (Some(one), None) if replaces(one) => Some(Dummy::Never),
        (Some(one), Some(split)) if replaces(one) && cuts_nothing(split) => Some(Dummy::Never),
        (Some(sequence), None) if kind(sequence) == "Sequence" => {
            match sequence.get("normalizers")?.as_array()?.as_slice() {
                [first, second] if prepends(first) && replaces(second) => Some(Dummy::Unconditional),
                [one] if replaces(one) => Some(Dummy::Never),
                _ => None,
            }
        }
        (None, Some(metaspace)) if kind(metaspace) == "Metaspace" => {
            let is_whole = metaspace.get("split") == Some(&Value::Bool(false));
            let known = metaspace.as_object()?.keys();
            let is_known = known
                .into_iter()
                .all(|key| matches!(key.as_str(), "type" | "replacement" | "prepend_scheme" | "split"));
            if !is_whole || !is_known || metaspace.get("replacement") != Some(&text("\u{2581}")) {
                return None;
            }
            match metaspace.get("prepend_scheme")?.as_str()? {
                "always" => Some(Dummy::Always),
                "first" => Some(Dummy::First),
                "never" => Some(Dummy::Never),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The name of a byte's token.
fn byte_name(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

fn chars(ids: &HashMap<&str, u32>) -> Option<Chars> {
    let mut bytes = [0; 256];
    for byte in 0..=u8::MAX {
        bytes[usize::from(byte)] = *ids.get(byte_name(byte).as_str())?;
    }
    let mut found = Chars { low: vec![NONE; 0x1_0000].into(), high: HashMap::new(), bytes };
    for (token, id) in ids {
        let mut all = token.chars();
        if let (Some(c), None) = (all.next(), all.next()) {
            match found.low.get_mut(c as usize) {
                Some(slot) => *slot = *id,
                None => {
                    found.high.insert(c, *id);
                }
            }
        }
    }
    // a space that fell to its bytes could not be told from others
    (found.get(SPACE) != NONE).then_some(found)
}

/// The bytes of text that each token covers, where every `▁` in it is a space.
fn lengths(vocab: &[(Cow<str>, u32)], chars: &Chars) -> Option<Box<[u16]>> {
    let mut lengths = vec![0; vocab.iter().map(|(_, id)| *id as usize + 1).max()?];
    for (token, id) in vocab {
        let spaces = token.matches(SPACE).count();
        lengths[*id as usize] = u16::try_from(token.len() - spaces * (SPACE.len_utf8() - 1)).ok()?;
    }
    for id in chars.bytes {
        lengths[id as usize] = 1;
    }
    Some(lengths.into())
}

fn merges(merges: &[Merge], ids: &HashMap<&str, u32>, chars: &Chars) -> Option<(Pairs, Neighbours)> {
    let mut pairs = Pairs::with_capacity(merges.len());
    let mut neighbours = Neighbours::new();
    let bytes: HashSet<u32> = chars.bytes.iter().copied().collect();
    for (rank, Merge(left, right)) in merges.iter().enumerate() {
        let joined = [&**left, &**right].concat();
        let (left, right, token) = (*ids.get(&**left)?, *ids.get(&**right)?, *ids.get(joined.as_str())?);
        // a byte's token stands for another text than its name
        if [left, right, token].iter().any(|id| bytes.contains(id)) || !pairs.add(left, right, rank as u32, token) {
            return None;
        }
        neighbours.add(&joined);
    }
    Some((pairs, neighbours))
}
