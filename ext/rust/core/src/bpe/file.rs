//! The members of a `tokenizer.json`, the two large ones borrowed from its text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The file. A key we do not know is a part we do not know.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File<'a> {
    pub version: Option<String>,
    // Lengths are the caller's business, as with the crate behind `encode::HfEngine`.
    #[serde(default, rename = "truncation")]
    _truncation: serde::de::IgnoredAny,
    #[serde(default, rename = "padding")]
    _padding: serde::de::IgnoredAny,
    #[serde(default)]
    pub added_tokens: Vec<Added>,
    pub normalizer: Option<Value>,
    pub pre_tokenizer: Option<Value>,
    pub post_processor: Option<Value>,
    pub decoder: Option<Value>,
    #[serde(borrow)]
    pub model: Model<'a>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // the file's own form
pub struct Added {
    pub id: u32,
    pub content: String,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    pub special: bool,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model<'a> {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub dropout: Option<f32>,
    // Where every byte has a token, nothing is ever unknown, and these three change nothing.
    pub unk_token: Option<String>,
    #[serde(default, rename = "fuse_unk")]
    _fuse_unk: Option<bool>,
    pub byte_fallback: Option<bool>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub ignore_merges: Option<bool>,
    #[serde(borrow, deserialize_with = "pairs")]
    pub vocab: Vec<(Cow<'a, str>, u32)>,
    #[serde(borrow)]
    pub merges: Vec<Merge<'a>>,
}

/// A string, borrowed from the file where it holds no escapes.
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Read)
    }
}

/// `["a", "b"]`, or `"a b"` of older files.
pub struct Merge<'a>(pub Cow<'a, str>, pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of tokens")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                let (left, right) = text.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Merge(Cow::Borrowed(left), Cow::Borrowed(right)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                let (left, right) = text.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Merge(Cow::Owned(left.to_owned()), Cow::Owned(right.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut next = || seq.next_element::<Text<'de>>()?.ok_or_else(|| Error::custom("a merge of one token"));
                let (left, right) = (next()?, next()?);
                match seq.next_element::<serde::de::IgnoredAny>()? {
                    None => Ok(Merge(left.0, right.0)),
                    Some(_) => Err(Error::custom("a merge of more than two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// An object of numbers, in file order.
pub fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(Cow<'de, str>, u32)>, D::Error> {
    struct Read;
    impl<'de> Visitor<'de> for Read {
        type Value = Vec<(Cow<'de, str>, u32)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of token ids")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::with_capacity(1 << 16);
            while let Some((token, id)) = map.next_entry::<Text<'de>, u32>()? {
                out.push((token.0, id));
            }
            Ok(out)
        }
    }
    deserializer.deserialize_map(Read)
}
