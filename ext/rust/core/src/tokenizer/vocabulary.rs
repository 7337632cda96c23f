//! What is known about a vocabulary besides how to encode with it: the bytes of every id, and the special tokens.
use crate::error::{Error, choices};
use crate::json;
use crate::tokenizer::bpe::Bpe;
use crate::tokenizer::byte_alphabet;
use crate::tokenizer::char_bpe;
use crate::tokenizer::engine::{Engine, HfEngine};
use crate::tokenizer::guard;
use crate::types::Json;
use tokenizers::{AddedToken, Tokenizer};

mod own;

type Result<T> = std::result::Result<T, Error>;

/// Where the tokenizer puts a space that the text does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DummySpace {
    Never,
    AtStart,
    AfterEachAddedToken,
}

/// Tables by token id.
#[derive(Debug, PartialEq, Eq)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    starts: Vec<u32>,
    added: Vec<bool>,
    dummy: DummySpace,
    readable: bool,
    /// Texts of the tokens marked special.
    pub specials: Vec<Box<str>>,
    /// Texts of every added token.
    pub added_texts: Vec<Box<str>>,
    /// Ids that stand before a text to learn from: those of the tokenizer, but for an end of sequence.
    pub(crate) text_prefix: Vec<i32>,
    /// What the tokenizer itself puts around texts.
    pub(crate) frame: Frame,
    /// Beginning of sequence.
    pub bos: Option<i32>,
    /// End of sequence.
    pub eos: Option<i32>,
}

/// Ids that a tokenizer puts before a text, between two texts, and behind the last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Before the first.
    pub(crate) before: Vec<i32>,
    /// Between two.
    pub(crate) between: Vec<i32>,
    /// Behind the last.
    pub(crate) behind: Vec<i32>,
}

impl Frame {
    /// From what the tokenizer made of a text, of nothing, and of two texts.
    fn seen(text: &[u32], framed: &[u32], pair: &[u32]) -> Self {
        let ids = |ids: &[u32]| ids.iter().map(|id| *id as i32).collect::<Vec<_>>();
        let start = framed.windows(text.len().max(1)).position(|window| window == text).unwrap_or(framed.len());
        let end = (start + text.len()).min(framed.len());
        let (before, behind) = (ids(&framed[..start]), ids(&framed[end..]));
        let both = before.len() + behind.len() + 2 * text.len();
        let between = pair.len().checked_sub(both).map_or(vec![], |length| {
            let from = before.len() + text.len();
            pair.get(from..from + length).map_or(vec![], ids)
        });
        Self { before, between, behind }
    }
}

/// What is known of a vocabulary of characters without the crate's tokenizer.
pub(crate) struct CharTokens<'a> {
    /// Ids and names.
    pub(crate) vocab: Vec<(u32, &'a str)>,
    /// Ids and texts of added tokens, and whether they are special.
    pub(crate) added: Vec<(u32, &'a str, bool)>,
    /// As written.
    pub(crate) post_processor: Option<&'a serde_json::Value>,
    /// Ids of beginning and end of sequence.
    pub(crate) ends: (Option<u32>, Option<u32>),
    /// A space is put before the first text only.
    pub(crate) opens_with_space: bool,
    /// A space is put before every text.
    pub(crate) adds_spaces: bool,
}

/// Names from the tokenizer's configuration.
#[derive(Debug, Clone, Default)]
pub struct TokenNames {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// Special tokens of `tokenizer_config.json` that `tokenizer.json` may lack; they are added in this order.
    pub extra: Vec<String>,
}

/// Which engine encodes. Both give the same ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// Our own where it knows every part of the tokenizer for certain, else the crate.
    Auto,
    /// The `tokenizers` crate.
    Tokenizers,
}

choices! { EngineChoice, "engine", "auto" => Auto, "tokenizers" => Tokenizers }

/// Read a `tokenizer.json` into an engine and its tables.
///
/// # Errors
/// `Error::Config` when it is not a tokenizer.
pub fn load(tokenizer_json: &[u8], names: &TokenNames, choice: EngineChoice) -> Result<(Box<dyn Engine>, Vocabulary)> {
    let own = if choice == EngineChoice::Auto { Bpe::compile_all(tokenizer_json).ok() } else { None };
    let own = own.filter(|(bpe, rest)| names.extra.iter().all(|text| own::id_of(bpe, rest, text).is_some()));
    let vocabulary = own.as_ref().and_then(|(bpe, rest)| own::vocabulary(bpe, rest, names));
    let own = match (own, vocabulary) {
        (Some((bpe, _)), Some(vocabulary)) => return Ok((Box::new(bpe), vocabulary)),
        (own, _) => own.map(|(bpe, _)| bpe),
    };
    if choice == EngineChoice::Auto
        && own.is_none()
        && let Some((engine, vocabulary)) = char_bpe::load(tokenizer_json, names)
    {
        return Ok((Box::new(engine), vocabulary));
    }
    // our own engine takes no dropout; reading all of the file once more would double the time it takes to load
    let layout = json::parse(tokenizer_json).map_err(fault)?;
    if let Some(Json::Number(dropout)) = layout.member("model").and_then(|model| model.member("dropout"))
        && dropout.parse() != Ok(0.0)
    {
        return Err(fault("model.dropout cuts words at random, so the same rows would give other ids; set it to null"));
    }
    let mut tokenizer = crate_tokenizer(tokenizer_json, names)?;
    let vocabulary = guard::catch(|| Vocabulary::of_crate(&mut tokenizer, &layout, names))
        .map_err(|panic| fault(format!("the tokenizers crate gave up on it: {panic}")))?;
    let engine: Box<dyn Engine> = match own {
        Some(bpe) => Box::new(bpe),
        None => Box::new(HfEngine::new(tokenizer)),
    };
    Ok((engine, vocabulary))
}

fn fault(why: impl std::fmt::Display) -> Error {
    Error::Data { place: "tokenizer.json".into(), message: why.to_string().into() }
}

/// The tokenizer of the `tokenizers` crate, with the special tokens that only the configuration names.
///
/// # Errors
/// `Error::Data` when it is not a tokenizer.
pub(crate) fn crate_tokenizer(tokenizer_json: &[u8], names: &TokenNames) -> Result<Tokenizer> {
    let mut tokenizer = guard::tokenizer(tokenizer_json)?;
    let missing = names.extra.iter().filter(|text| tokenizer.token_to_id(text).is_none());
    let missing: Vec<AddedToken> = missing.map(|text| AddedToken::from(text.clone(), true)).collect();
    tokenizer.add_special_tokens(missing).map_err(fault)?;
    Ok(tokenizer)
}

/// The bytes of ids in ascending order, as they are appended.
#[derive(Debug)]
struct Surfaces {
    bytes: Vec<u8>,
    starts: Vec<u32>,
    added: Vec<bool>,
}

impl Surfaces {
    fn with_capacity(ids: usize) -> Self {
        let mut starts = Vec::with_capacity(ids + 1);
        starts.push(0);
        Self { bytes: Vec::with_capacity(8 * ids), starts, added: Vec::with_capacity(ids) }
    }

    /// The next id has the bytes appended since the last.
    fn end(&mut self, added: bool) {
        self.starts.push(self.bytes.len() as u32);
        self.added.push(added);
    }
}

impl Vocabulary {
    fn of_crate(tokenizer: &mut Tokenizer, layout: &Json, names: &TokenNames) -> Self {
        let mut kinds = Vec::new();
        collect_types(layout.member("decoder"), &mut kinds);
        let byte_level = kinds.contains(&"ByteLevel");
        let metaspace = kinds.contains(&"Metaspace") || kinds.contains(&"Replace");
        let byte_fallback = kinds.contains(&"ByteFallback");
        let added_tokens = tokenizer.get_added_tokens_decoder();
        let size = tokenizer.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let mut surfaces = Surfaces::with_capacity(size);
        for id in 0..size as u32 {
            let token = added_tokens.get(&id);
            let out = &mut surfaces.bytes;
            if let Some(token) = token {
                append_added(out, &token.content, metaspace);
            } else if let Some(token) = tokenizer.id_to_token(id) {
                append_surface(out, &token, byte_level, metaspace, byte_fallback);
            }
            surfaces.end(token.is_some());
        }
        let id_of = |name: &Option<String>| name.as_deref().and_then(|text| tokenizer.token_to_id(text));
        let mut added: Vec<_> = added_tokens.iter().map(|(id, t)| (*id, t.content.as_str(), t.special)).collect();
        added.sort_unstable();
        let ends = (id_of(&names.bos), id_of(&names.eos));
        // Lengths are the caller's business.
        tokenizer.with_padding(None);
        // with no parameters this cannot fail
        let _ = tokenizer.with_truncation(None);
        let encoded = |input: tokenizers::EncodeInput, special| {
            tokenizer.encode(input, special).map_or(vec![], |encoding| encoding.get_ids().to_vec())
        };
        let framed = [encoded("a".into(), false), encoded("a".into(), true), encoded(("a", "a").into(), true)];
        let frame = Frame::seen(&framed[0], &framed[1], &framed[2]);
        let readable = byte_level || metaspace || byte_fallback;
        Self::new(surfaces, &added, frame, ends, (dummy_space(layout, byte_level), readable))
    }

    /// The tables of a vocabulary whose names are characters, `▁` for a space, and bytes; none where the post-processor
    /// is one that only the crate knows.
    #[must_use]
    pub(crate) fn of_chars(tokens: CharTokens) -> Option<Self> {
        let frame = tokens.post_processor.map_or(Some(Frame::default()), own::frame)?;
        let (mut vocab, mut added) = (tokens.vocab, tokens.added);
        vocab.sort_unstable();
        added.sort_unstable();
        let last = [vocab.last().map(|token| token.0), added.last().map(|token| token.0)];
        let size = last.into_iter().flatten().max().map_or(0, |id| id as usize + 1);
        let mut surfaces = Surfaces::with_capacity(size);
        let (mut next, mut next_added) = (vocab.iter().peekable(), added.iter().peekable());
        for id in 0..size as u32 {
            let name = next.next_if(|token| token.0 == id);
            let text = next_added.next_if(|token| token.0 == id);
            match (text, name) {
                (Some(text), _) => append_added(&mut surfaces.bytes, text.1, true),
                (None, Some(name)) => append_surface(&mut surfaces.bytes, name.1, false, true, true),
                (None, None) => {}
            }
            surfaces.end(text.is_some());
        }
        let dummy = match (tokens.opens_with_space, tokens.adds_spaces) {
            (true, _) => DummySpace::AtStart,
            (_, true) => DummySpace::AfterEachAddedToken,
            _ => DummySpace::Never,
        };
        Some(Self::new(surfaces, &added, frame, tokens.ends, (dummy, true)))
    }

    /// `added` by id; `frame`: what the tokenizer puts around texts; `ends`: ids of beginning and end of sequence.
    fn new(
        surfaces: Surfaces,
        added: &[(u32, &str, bool)],
        frame: Frame,
        ends: (Option<u32>, Option<u32>),
        (dummy, readable): (DummySpace, bool),
    ) -> Self {
        let (bos, eos) = (ends.0.map(|id| id as i32), ends.1.map(|id| id as i32));
        let mut text_prefix = frame.before.clone();
        if text_prefix.last().copied() == eos {
            text_prefix.pop();
        }
        let Surfaces { bytes, starts, added: flags } = surfaces;
        Self {
            bytes,
            starts,
            added: flags,
            dummy,
            readable,
            specials: added.iter().filter(|token| token.2).map(|token| token.1.into()).collect(),
            added_texts: added.iter().map(|token| token.1.into()).collect(),
            text_prefix,
            frame,
            bos,
            eos,
        }
    }

    /// Number of ids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.added.len()
    }

    /// Whether there are no ids.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty()
    }

    /// Whether the tokenizer puts a space before a text that it does not put before the text behind a special token.
    #[must_use]
    pub(crate) fn opens_with_space(&self) -> bool {
        self.dummy == DummySpace::AtStart
    }

    /// Whether ids can be turned back into the text they came from.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether text read back is the surfaces of its ids, one after the other, but for bytes that are not UTF-8.
    #[must_use]
    pub(crate) fn keeps_surfaces(&self) -> bool {
        self.dummy == DummySpace::Never
    }

    /// The bytes of one id; none for an id out of range.
    #[must_use]
    pub fn surface(&self, id: i32) -> &[u8] {
        let Ok(id) = usize::try_from(id) else { return &[] };
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// Append the text of `ids[range]` and, for each token, where it starts in what was appended.
    ///
    /// A space that the tokenizer itself put in is taken out again. Bytes that are not UTF-8 (a cut character) become
    /// U+001A, one a byte, so that positions hold.
    pub fn read(&self, ids: &[i32], range: std::ops::Range<usize>, text: &mut String, starts: &mut Vec<u32>) {
        let mut bytes = std::mem::take(text).into_bytes();
        bytes.clear();
        starts.clear();
        for index in range {
            starts.push(bytes.len() as u32);
            let mut surface = self.surface(ids[index]);
            if self.dummy != DummySpace::Never && surface.first() == Some(&b' ') && self.is_dummy(ids, index) {
                surface = &surface[1..];
            }
            bytes.extend_from_slice(surface);
        }
        *text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => replace_invalid(error.into_bytes()),
        };
    }

    fn is_dummy(&self, ids: &[i32], index: usize) -> bool {
        if self.is_added(ids[index]) {
            return false;
        }
        index == 0 || (self.dummy == DummySpace::AfterEachAddedToken && self.is_added(ids[index - 1]))
    }

    fn is_added(&self, id: i32) -> bool {
        usize::try_from(id).ok().and_then(|id| self.added.get(id)).copied().unwrap_or(false)
    }
}

fn replace_invalid(mut bytes: Vec<u8>) -> String {
    let mut at = 0;
    while let Err(error) = std::str::from_utf8(&bytes[at..]) {
        let bad = at + error.valid_up_to();
        let length = error.error_len().unwrap_or(bytes.len() - bad);
        bytes[bad..bad + length].fill(0x1a);
        at = bad + length;
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// An added token is read back as it is written, but for the decoder's spaces: Gemma's runs of them are added tokens.
fn append_added(out: &mut Vec<u8>, token: &str, metaspace: bool) {
    append_surface(out, token, false, metaspace, false);
}

fn append_surface(out: &mut Vec<u8>, token: &str, byte_level: bool, metaspace: bool, fallback: bool) {
    if byte_level {
        for character in token.chars() {
            match byte_alphabet::byte_of(character) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    } else if let Some(byte) = fallback.then(|| hex_byte(token)).flatten() {
        out.push(byte);
    } else if metaspace {
        out.extend_from_slice(token.replace('\u{2581}', " ").as_bytes());
    } else {
        out.extend_from_slice(token.as_bytes());
    }
}

/// The byte of a byte-fallback token, `<0x0A>`.
fn hex_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The `type` of a part of a tokenizer and of everything inside it.
fn collect_types<'a>(value: Option<&'a Json>, out: &mut Vec<&'a str>) {
    match value {
        Some(Json::Object(members)) => {
            for (key, value) in members {
                match value {
                    Json::String(text) if &**key == "type" => out.push(text),
                    value => collect_types(Some(value), out),
                }
            }
        }
        Some(Json::Array(items)) => {
            for item in items {
                collect_types(Some(item), out);
            }
        }
        _ => {}
    }
}

fn dummy_space(layout: &Json, byte_level: bool) -> DummySpace {
    let mut normalizers = Vec::new();
    collect_types(layout.member("normalizer"), &mut normalizers);
    if normalizers.contains(&"Prepend") {
        return DummySpace::AfterEachAddedToken;
    }
    let Some(scheme) = find_member(layout.member("pre_tokenizer"), "prepend_scheme") else {
        let add_prefix_space = find_member(layout.member("pre_tokenizer"), "add_prefix_space");
        let adds = byte_level && matches!(add_prefix_space, Some(Json::Bool(true)));
        return if adds { DummySpace::AfterEachAddedToken } else { DummySpace::Never };
    };
    match scheme {
        Json::String(text) if &**text == "always" => DummySpace::AfterEachAddedToken,
        Json::String(text) if &**text == "first" => DummySpace::AtStart,
        _ => DummySpace::Never,
    }
}

fn find_member<'a>(value: Option<&'a Json>, key: &str) -> Option<&'a Json> {
    match value? {
        Json::Object(members) => members
            .iter()
            .find_map(|(name, inner)| if &**name == key { Some(inner) } else { find_member(Some(inner), key) }),
        Json::Array(items) => items.iter().find_map(|item| find_member(Some(item), key)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_character_keeps_positions() {
        assert_eq!(replace_invalid(b"ab\xe4\xbd".to_vec()), "ab\u{1a}\u{1a}");
        assert_eq!(replace_invalid(b"\xffx\xe4".to_vec()), "\u{1a}x\u{1a}");
    }
}
