//! Text to token ids with the byte at which each token ends, behind one trait, so that engines can be exchanged.
//!
//! The contract of every engine: the ids are those of transformers' `tokenizer(text, add_special_tokens=False)`, and
//! tokens tile the text (token i starts where token i-1 ends; the first starts at 0).
use crate::error::Error;
use crate::tokenizer::guard;
use tokenizers::Tokenizer;

/// Token ids and, for each, the byte of the text after its last. Kept between rows to save allocations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Vocabulary ids.
    pub ids: Vec<i32>,
    /// Where each token ends; never descending.
    pub ends: Vec<u32>,
}

impl Tokens {
    /// Forget all tokens, keep the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.ends.clear();
    }

    /// Index of the first token that starts at byte `at` or later, and whether the token before it reaches over `at`.
    #[must_use]
    pub fn index_at(&self, at: usize) -> (usize, bool) {
        if at == 0 {
            return (0, false);
        }
        let before = self.ends.partition_point(|end| (*end as usize) < at);
        let index = (before + 1).min(self.ids.len());
        (index, self.ends.get(before).is_some_and(|end| *end as usize > at))
    }

    /// Append what [`Tokens::index_at`] says of each of `places` to `found`.
    pub(crate) fn find_places(&self, places: &[u32], found: &mut Vec<(u32, bool)>) {
        found.extend(places.iter().map(|place| {
            let (index, straddles) = self.index_at(*place as usize);
            (index as u32, straddles)
        }));
    }
}

/// Ids of many texts in a row, and where those of each text end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Ids.
    pub ids: Vec<u32>,
    /// `offsets[i]..offsets[i + 1]` are those of text `i`; one more than there are texts.
    pub offsets: Vec<i64>,
}

/// Something that encodes text.
pub trait Engine: Send + Sync {
    /// Name and version, for the manifest.
    fn name(&self) -> String;

    /// Append the tokens of `text`; ends count from the start of `text`. Special tokens in the text are recognised,
    /// none are added.
    ///
    /// # Errors
    /// `Error::Config` when the tokenizer itself is at fault.
    fn encode(&self, text: &str, out: &mut Tokens) -> Result<(), Error>;

    /// The ids of `text` into `ids`, which is empty, and what [`Tokens::index_at`] says of each of `places` (ascending, in
    /// the text) appended to `found`. No ends are kept, which saves their time.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    fn encode_at(
        &self,
        text: &str,
        places: &[u32],
        ids: &mut Vec<i32>,
        found: &mut Vec<(u32, bool)>,
    ) -> Result<(), Error> {
        let mut tokens = Tokens { ids: std::mem::take(ids), ends: vec![] };
        self.encode(text, &mut tokens)?;
        tokens.find_places(places, found);
        *ids = tokens.ids;
        Ok(())
    }

    /// The ids of `text` into `ids`, which is empty.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    fn encode_ids(&self, text: &str, ids: &mut Vec<i32>) -> Result<(), Error> {
        self.encode_at(text, &[], ids, &mut vec![])
    }
}

/// Bytes of a text that are asked about, and where they lie among its tokens. Kept between rows to save allocations.
#[derive(Debug, Clone, Default)]
pub struct Places {
    bytes: Vec<u32>,
    found: Vec<(u32, bool)>,
}

impl Places {
    /// Encode `text` and find `places` of it, in any order, among the tokens.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    pub fn encode(
        &mut self,
        engine: &dyn Engine,
        text: &str,
        places: impl Iterator<Item = usize>,
        ids: &mut Vec<i32>,
    ) -> Result<(), Error> {
        self.bytes.clear();
        self.found.clear();
        self.bytes.extend(places.map(|place| place as u32));
        self.bytes.sort_unstable();
        self.bytes.dedup();
        engine.encode_at(text, &self.bytes, ids, &mut self.found)
    }

    /// As [`Tokens::index_at`], of a place that was asked about.
    #[must_use]
    pub fn index_at(&self, at: usize) -> (usize, bool) {
        let place = self.bytes.binary_search(&(at as u32)).ok();
        debug_assert!(place.is_some(), "byte {at} was not asked about");
        let (index, straddles) = place.and_then(|place| self.found.get(place)).copied().unwrap_or_default();
        (index as usize, straddles)
    }
}

/// Encode each stretch of `text` that ends at one of `cuts` (ascending, the last may be the text's end) on its own.
///
/// # Errors
/// As [`Engine::encode`].
pub(crate) fn encode_parts(engine: &dyn Engine, text: &str, cuts: &[usize], out: &mut Tokens) -> Result<usize, Error> {
    let (mut start, mut calls) = (0, 0);
    for cut in cuts.iter().copied().chain([text.len()]) {
        if cut > start {
            let first = out.ends.len();
            engine.encode(&text[start..cut], out)?;
            for end in &mut out.ends[first..] {
                *end += start as u32;
            }
            start = cut;
            calls += 1;
        }
    }
    Ok(calls)
}

/// Encodes each text, on at most `threads` threads.
///
/// # Errors
/// As [`Engine::encode`], of the first text at fault.
pub fn encode_batch(engine: &dyn Engine, texts: &[&str], threads: usize) -> Result<Batch, Error> {
    let lost = || Err(Error::Config { message: "a thread of the tokenizer was lost".into() });
    let share = texts.iter().map(|text| text.len()).sum::<usize>() / threads.max(1) + 1;
    let (mut parts, mut first, mut bytes) = (vec![], 0, 0);
    for (i, text) in texts.iter().enumerate() {
        bytes += text.len();
        if bytes >= share || i + 1 == texts.len() {
            parts.push(&texts[first..=i]);
            (first, bytes) = (i + 1, 0);
        }
    }
    let found = std::thread::scope(|scope| {
        let parts: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| encode_all(engine, part))).collect();
        parts.into_iter().map(|part| part.join().unwrap_or_else(|_| lost())).collect::<Vec<_>>()
    });
    let mut all = Batch { ids: vec![], offsets: vec![0] };
    for part in found {
        let (ids, ends) = part?;
        let before = all.ids.len() as i64;
        all.ids.extend(ids);
        all.offsets.extend(ends.iter().map(|end| before + end));
    }
    Ok(all)
}

/// Ids of all texts in a row, and for each text where its ids end.
fn encode_all(engine: &dyn Engine, texts: &[&str]) -> Result<(Vec<u32>, Vec<i64>), Error> {
    let (mut tokens, mut ends) = (Tokens::default(), vec![]);
    for text in texts {
        engine.encode(text, &mut tokens)?;
        ends.push(tokens.ids.len() as i64);
    }
    Ok((tokens.ids.into_iter().map(i32::cast_unsigned).collect(), ends))
}

/// The `tokenizers` crate.
#[derive(Debug)]
pub struct HfEngine {
    tokenizer: Tokenizer,
    version: String,
}

impl HfEngine {
    /// Wrap `tokenizer`. Its post-processor is dropped: it adds what a chat template already wrote, and trims offsets.
    #[must_use]
    pub fn new(mut tokenizer: Tokenizer) -> Self {
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        tokenizer.with_padding(None);
        // with no parameters this cannot fail
        let _ = tokenizer.with_truncation(None);
        Self { tokenizer, version: "tokenizers 0.23".to_owned() }
    }
}

impl Engine for HfEngine {
    fn name(&self) -> String {
        self.version.clone()
    }

    fn encode(&self, text: &str, out: &mut Tokens) -> Result<(), Error> {
        let encoding = guard::catch(|| self.tokenizer.encode(text, false))
            .map_err(|panic| Error::Data {
                place: "".into(),
                message: format!("the tokenizer gave up: {panic}").into(),
            })?
            .map_err(|error| Error::Config { message: format!("tokenizer: {error}").into() })?;
        out.ids.extend(encoding.get_ids().iter().map(|id| *id as i32));
        let offsets = encoding.get_offsets();
        let mut last = 0;
        for (index, &(start, end)) in offsets.iter().enumerate() {
            // Tokens that share a character all report the whole of it: end all but the last inside it.
            let end = match offsets.get(index + 1) {
                Some(&(next, _)) if next < end => (next.max(last).max(start) + 1).min(end.saturating_sub(1)),
                _ => end,
            };
            last = end.max(last);
            out.ends.push(last as u32);
        }
        Ok(())
    }
}
