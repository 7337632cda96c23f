//! Replies that rules have nothing to say about, told by their ids, so that their text need not be read back.
//!
//! A pattern that needs a certain text (`<tool_call>`) cannot match where no token could hold one chosen byte of it; one bit
//! an id says which could. A pattern that is tied to the start of a reply, and is simple, is matched on the first tokens.
//! In all other cases the sieve is not sure, and the rules read the whole text: the weights are the same with it and
//! without.
use super::shape::{self, Shape, Verdict};
use super::{Segment, Strategy, multiply};
use crate::tokenizer::vocabulary::Vocabulary;

/// Tokens that are read to match what is tied to the start; more, if these do not tell.
const HEADS: [usize; 2] = [8, 64];
/// Bytes at the end of a cut text that may be part of a character, and so may read otherwise in the whole text.
const CUT: usize = 4;
/// Places of a needle that are compared; each costs a pass over the vocabulary (2 ms of 150,000 tokens).
const PLACES: usize = 3;

/// What a set of strategies cannot miss, for one vocabulary.
#[derive(Debug)]
pub(super) struct Sieve {
    /// One bit an id: its token could hold the chosen byte of a needle.
    suspects: Box<[u64]>,
    /// Of each strategy, what is tied to the start and its weight, in order.
    starts: Vec<Vec<(Box<[shape::Item]>, f64)>>,
}

impl Sieve {
    /// None if some pattern can match unseen.
    pub(super) fn new(strategies: &[Strategy], vocabulary: &Vocabulary) -> Option<Self> {
        if !vocabulary.keeps_surfaces() || strategies.iter().any(|strategy| !strategy.rules.query.is_empty()) {
            return None;
        }
        let mut sieve = Self { suspects: vec![0; vocabulary.len().div_ceil(64)].into(), starts: vec![] };
        for strategy in strategies {
            let mut starts = vec![];
            for (shape, weight) in strategy.shapes() {
                match shape {
                    Shape::Start(items) => starts.push((items, weight)),
                    // U+001A stands for bytes that are no text
                    Shape::Needle(needle) if !needle.contains(&0x1a) => sieve.suspect(&needle, vocabulary),
                    _ => return None,
                }
            }
            sieve.starts.push(starts);
        }
        Some(sieve)
    }

    /// Every occurrence of `needle` has a byte at each of its places: of three with rare bytes, the one that the fewest tokens
    /// can hold is asked.
    fn suspect(&mut self, needle: &[u8], vocabulary: &Vocabulary) {
        let ids = 0..vocabulary.len() as i32;
        let mut counts = [0_u32; 256];
        ids.clone().flat_map(|id| vocabulary.surface(id)).for_each(|byte| counts[usize::from(*byte)] += 1);
        let mut places: Vec<usize> = (0..needle.len()).collect();
        places.sort_by_key(|place| counts[usize::from(needle[*place])]);
        let holders =
            |place: &usize| ids.clone().filter(|id| could_hold(vocabulary.surface(*id), needle, *place)).collect();
        let fewest = places.iter().take(PLACES).map(holders).min_by_key(Vec::<i32>::len).unwrap_or_default();
        for id in fewest {
            self.suspects[id as usize / 64] |= 1 << (id % 64);
        }
    }

    fn is_suspect(&self, id: i32) -> bool {
        // below zero is out of range
        let id = id.cast_unsigned();
        self.suspects.get(id as usize / 64).is_none_or(|bits| bits >> (id % 64) & 1 == 1)
    }

    /// What the strategies give the text of `ids[range]`; none if it must be read. `text` and `starts` are filled as by
    /// [`Vocabulary::read`], with the first tokens only: the last segment goes on to the end of the range.
    pub(super) fn segments(
        &self,
        vocabulary: &Vocabulary,
        ids: &[i32],
        range: std::ops::Range<usize>,
        text: &mut String,
        starts: &mut Vec<u32>,
    ) -> Option<Vec<Segment>> {
        if ids[range.clone()].iter().any(|id| self.is_suspect(*id)) {
            return None;
        }
        HEADS.iter().find_map(|tokens| {
            let head = range.start..range.end.min(range.start + tokens);
            vocabulary.read(ids, head.clone(), text, starts);
            let cut = if head.end == range.end { 0 } else { CUT };
            let sure = text.len().checked_sub(cut).filter(|sure| cut == 0 || *sure > 0)?;
            self.of_head(text, sure)
        })
    }

    /// The segments of a text that begins with `head`, of which the first `sure` bytes are certain.
    fn of_head(&self, head: &str, sure: usize) -> Option<Vec<Segment>> {
        let end = head.len();
        let mut segments = if end == 0 { vec![] } else { vec![Segment { end, weight: 1.0 }] };
        for patterns in &self.starts {
            for (items, weight) in patterns {
                match shape::at_start(items, head, sure) {
                    Verdict::No => continue,
                    Verdict::Unsure => return None,
                    Verdict::Match(0) => {}
                    Verdict::Match(to) if to == end => segments.iter_mut().for_each(|s| s.weight *= weight),
                    Verdict::Match(to) => {
                        let tiles = [Segment { end: to, weight: *weight }, Segment { end, weight: 1.0 }];
                        segments = multiply(&segments, &tiles);
                    }
                }
                break;
            }
        }
        super::merge(&mut segments);
        Some(segments)
    }
}

/// Whether a token with these bytes can lie in a text so that it covers byte `place` of an occurrence of `needle`.
fn could_hold(surface: &[u8], needle: &[u8], place: usize) -> bool {
    memchr::memchr_iter(needle[place], surface).any(|at| {
        // surface[at] over needle[place]; both agree wherever they overlap
        let before = at.min(place);
        let (from, other) = (at - before, place - before);
        let both = (surface.len() - from).min(needle.len() - other);
        surface[from..from + both] == needle[other..other + both]
    })
}
