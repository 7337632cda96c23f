//! Byte-level BPE of our own: ids equal to the `tokenizers` crate's, without its regex engine and its strings.
//!
//! A text goes through the parts of its `tokenizer.json` in the crate's order: added tokens are cut out ([`SpecialMatcher`]), the
//! rest is normalised ([`normalize`]), cut into words ([`scan`] is the plain reading of each known regex), and words become
//! ids ([`words`]) by a cache ([`cache`]) or by the merge rules ([`merge`]), long ones piece by piece ([`cuts`]). A file with any part that is not known for certain is
//! refused, and the caller uses the crate: nothing is guessed.
//!
//! The compiled [`Bpe`] is shared by all threads; it lends each its own working memory ([`engine`]).

pub(crate) mod batch;
#[cfg(target_arch = "x86_64")]
mod blocks;
pub(crate) mod cache;
mod compile;
mod cuts;
mod early;
mod engine;
mod file;
mod growing;
#[cfg(target_arch = "x86_64")]
mod masks;
mod merge;
pub(crate) mod normalize;
pub(crate) mod pages;
pub mod pattern;
pub(crate) mod phrases;
pub mod scan;
mod tables;
pub mod unicode;
pub mod unicode_data;
mod words;

use std::fmt;

use cuts::Cuts;
use engine::Pool;
use normalize::{Change, Nfc};
use pattern::Pattern;
use scan::Scanner;
use tables::Tables;
use words::WordScratch;

use crate::tokenizer::added::AddedTokens;
use crate::tokenizer::special::{SpecialMatcher, Stretch};

/// Why a `tokenizer.json` is left to the `tokenizers` crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The member of the file.
    pub part: &'static str,
    /// What about it.
    pub(crate) why: Box<str>,
}

impl Unsupported {
    fn new(part: &'static str, why: impl Into<String>) -> Self {
        Self { part, why: why.into().into() }
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; the tokenizers crate is used instead", self.part, self.why)
    }
}

impl std::error::Error for Unsupported {}

/// What `compile` finds in the file.
struct Parts {
    tables: Tables,
    pattern: Pattern,
    nfc: bool,
    added: AddedTokens,
}

/// What a `tokenizer.json` says besides how text becomes ids.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Id and content of each added token, and whether it is marked special, in file order.
    pub(crate) added: Vec<(u32, Box<str>, bool)>,
    /// Vocabulary entries that stand for no bytes, so that no text reaches them.
    pub(crate) others: Vec<(Box<str>, u32)>,
    /// As written.
    pub(crate) decoder: Option<serde_json::Value>,
    /// As written.
    pub(crate) post_processor: Option<serde_json::Value>,
}

/// A compiled tokenizer.
#[derive(Debug)]
pub struct Bpe {
    tables: Tables,
    cuts: Cuts,
    scanner: Scanner,
    nfc: Option<Nfc>,
    raw: SpecialMatcher,
    normalized: SpecialMatcher,
    pool: Pool,
}

/// Where ids come from.
enum IdSource<'a> {
    /// An added token that ends at this byte of the text.
    Token { end: usize },
    /// These bytes, which start at `at` of the normalised form of the piece that starts at byte `piece` of the text.
    Text { text: &'a [u8], piece: usize, at: usize, changes: &'a [Change] },
}

impl Bpe {
    /// Compiles a `tokenizer.json`.
    ///
    /// # Errors
    /// The part that is not known for certain, or is wrong.
    pub fn compile(tokenizer_json: &[u8]) -> Result<Self, Unsupported> {
        Self::compile_all(tokenizer_json).map(|(bpe, _)| bpe)
    }

    /// Compiles a `tokenizer.json`, and keeps what else it says.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub(crate) fn compile_all(tokenizer_json: &[u8]) -> Result<(Self, Rest), Unsupported> {
        let (parts, rest) = compile::compile(tokenizer_json)?;
        let mut scratch = merge::MergeScratch::default();
        let cuts = Cuts::new(&parts.tables, |word, ids| merge::encode_piece(&parts.tables, word, &mut scratch, ids));
        let bpe = Self {
            tables: parts.tables,
            cuts,
            scanner: Scanner::new(parts.pattern),
            nfc: parts.nfc.then(Nfc::default),
            raw: SpecialMatcher::new(parts.added.raw),
            normalized: SpecialMatcher::new(parts.added.normalized),
            pool: Pool::default(),
        };
        Ok((bpe, rest))
    }

    /// `done` is told the ids of each stretch and where it stands.
    fn encode_with(
        &self,
        text: &str,
        scratch: &mut WordScratch,
        ids: &mut Vec<u32>,
        mut done: impl FnMut(&[u32], IdSource),
    ) {
        self.raw.split(text, |stretch| {
            let before = ids.len();
            match stretch {
                Stretch::Token(id, _, end) => {
                    ids.push(id);
                    done(&ids[before..], IdSource::Token { end });
                }
                Stretch::Text(start, end) => self.encode_stretch(text, start, end, scratch, ids, &mut done),
            }
        });
    }

    fn encode_stretch(
        &self,
        text: &str,
        start: usize,
        end: usize,
        scratch: &mut WordScratch,
        ids: &mut Vec<u32>,
        done: &mut impl FnMut(&[u32], IdSource),
    ) {
        let piece = &text[start..end];
        let normal = self.nfc.as_ref().and_then(|nfc| nfc.apply(piece));
        let (piece, changes) = normal.as_ref().map_or((piece, [].as_slice()), |(text, changes)| (text, changes));
        self.normalized.split(piece, |stretch| {
            let before = ids.len();
            match stretch {
                Stretch::Token(id, _, to) => {
                    ids.push(id);
                    done(&ids[before..], IdSource::Token { end: start + original(changes, to) });
                }
                Stretch::Text(from, to) => {
                    self.encode_words(&piece[from..to], scratch, ids);
                    let text = &piece.as_bytes()[from..to];
                    done(&ids[before..], IdSource::Text { text, piece: start, at: from, changes });
                }
            }
        });
    }

    /// Bytes of the token `id`; empty for an added token or an id that is none.
    #[must_use]
    pub fn token(&self, id: u32) -> &[u8] {
        if (id as usize) < self.tables.num_ids() { self.tables.token(id) } else { &[] }
    }

    /// Number of ids that stand for bytes, holes included.
    #[must_use]
    pub fn num_ids(&self) -> usize {
        self.tables.num_ids()
    }

    /// The id of a vocabulary entry by its name in the file, if it stands for bytes.
    #[must_use]
    pub(crate) fn id_of(&self, name: &str) -> Option<u32> {
        crate::tokenizer::byte_alphabet::bytes_of(name).and_then(|bytes| self.tables.find(&bytes))
    }

    /// Whether text may be cut at [`Scanner::is_seam`]s: no added token reaches over one.
    #[must_use]
    pub(crate) fn has_seams(&self) -> bool {
        self.raw.leaves_seams() && self.normalized.leaves_seams()
    }
}

/// Where in the old text the place `at` of the new text lies.
fn original(changes: &[Change], at: usize) -> usize {
    let before = changes.partition_point(|change| change.new.end <= at);
    let (mut old, mut new) = changes[..before].last().map_or((0, 0), |change| (change.old.end, change.new.end));
    if let Some(change) = changes.get(before).filter(|change| change.new.start < at) {
        (old, new) = (change.old.end, at);
    }
    old + (at - new)
}
