//! One row as tokens: ids, the turns in them, and the weights of the loss as spans.
//!
//! Weights are a function of the tokens alone: the text that rules look at is read back from the ids. So weighing a
//! stored row again, with any specification, gives what fresh tokenisation would have given.
use crate::error::{Error, RowError};
use crate::tokenizer::vocabulary::Vocabulary;
use crate::types::Role;
use crate::weigh::sieve::Sieve;
use crate::weigh::{Base, Closing, Segment, Semantics, Spec};

/// A turn, in token indices. `start..end` holds the framing too.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTurn {
    /// First token of everything the message produced.
    pub start: i32,
    /// Behind its last.
    pub end: i32,
    /// First token the model must generate.
    pub(crate) generated_start: i32,
    /// Behind the last.
    pub(crate) generated_end: i32,
    /// First token of the closing suffix; `generated_end` when there is none.
    pub closing: i32,
    /// Whose turn.
    pub role: Role,
    /// Index of the message.
    pub message: i32,
    /// The message's `loss`.
    pub loss: Option<bool>,
    /// The message's `loss_scale`.
    pub loss_scale: Option<f32>,
}

/// A run of tokens of one weight, not zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// First token.
    pub start: i32,
    /// Behind the last.
    pub end: i32,
    /// Factor of the loss of predicting each token of the run.
    pub weight: f32,
}

/// Memory that weighing rows shares.
#[derive(Debug, Default)]
pub struct WeighScratch {
    text: String,
    starts: Vec<u32>,
    query: String,
    query_starts: Vec<u32>,
}

/// Append a run to spans that are ascending and merged.
pub(crate) fn push_span(spans: &mut Vec<Span>, start: usize, end: usize, weight: f32) {
    if start >= end || weight == 0.0 {
        return;
    }
    let (start, end) = (start as i32, end as i32);
    match spans.last_mut() {
        Some(last) if last.end == start && last.weight.to_bits() == weight.to_bits() => last.end = end,
        _ => spans.push(Span { start, end, weight }),
    }
}

/// Number of trained tokens and sum of their weights. Token 0 predicts nothing and is never a target.
#[must_use]
pub(crate) fn totals(spans: &[Span]) -> (i32, f64) {
    let mut trained = 0;
    let mut sum = 0.0;
    for span in spans {
        let tokens = span.end - span.start.max(1);
        if tokens > 0 {
            trained += tokens;
            sum += f64::from(tokens) * f64::from(span.weight);
        }
    }
    (trained, sum)
}

/// A specification with the one vocabulary whose ids it weighs.
#[derive(Debug)]
pub struct Weigher {
    spec: Spec,
    vocabulary: Vocabulary,
    pub(super) sieve: Option<Sieve>,
}

impl Weigher {
    /// Put both together, and find out which replies need not be read.
    #[must_use]
    pub fn new(spec: Spec, vocabulary: Vocabulary) -> Self {
        // ms-swift's weights also depend on how a strategy cut what another one weighs
        let known = spec.semantics == Semantics::Spans && spec.reads_text();
        let sieve = known.then(|| Sieve::new(&spec.strategies, &vocabulary)).flatten();
        Self { spec, vocabulary, sieve }
    }

    /// The specification.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The weights of a row, into `spans`. A row without turns is text, and all of it is trained on.
    ///
    /// # Errors
    /// `Error::Config` when rules read text and the vocabulary cannot be turned back into text; `Error::Row` when a
    /// pattern exceeds its limit.
    pub fn weigh(
        &self,
        ids: &[i32],
        turns: &[TokenTurn],
        scratch: &mut WeighScratch,
        spans: &mut Vec<Span>,
    ) -> Result<(), Error> {
        let spec = &self.spec;
        spans.clear();
        if turns.is_empty() {
            push_span(spans, 0, ids.len(), 1.0);
            return Ok(());
        }
        if spec.reads_text() && !self.vocabulary.is_readable() {
            return Err(Error::Config {
                message: "loss_scale: this tokenizer's tokens cannot be turned back into text for rules to read; \
                          use default, last_round or all alone"
                    .into(),
            });
        }
        let mut weigher = RowWeigher { weigher: self, spec, ids, scratch, spans, query: 0..0 };
        let last_prompt = turns.iter().rposition(|turn| matches!(turn.role, Role::User | Role::Tool));
        let learned = |turn: &TokenTurn| {
            (spec.roles.contains(&turn.role) || turn.loss == Some(true)) && turn.generated_end > turn.generated_start
        };
        let last_learned = turns.iter().rposition(learned);
        let mut done = 0;
        for (index, turn) in turns.iter().enumerate() {
            if turn.role != Role::Assistant && spec.base == Base::All && turn.loss == Some(false) {
                return Err(Error::Row(RowError::at(
                    format!("$.messages[{}]", turn.message),
                    "loss",
                    "its mark says that it is not trained on, and --loss-scale all says that it is; drop one",
                )));
            }
            if matches!(turn.role, Role::User | Role::Tool) {
                weigher.query = turn.start as usize..turn.end as usize;
            }
            if !learned(turn) {
                if spec.closing == Closing::All && spec.base != Base::All {
                    weigher.close_of_others(turn, turns);
                }
                continue;
            }
            let generated = turn.generated_start as usize..turn.generated_end as usize;
            weigher.other(done..generated.start)?;
            let base = match spec.base {
                Base::Default | Base::All => true,
                Base::LastRound => last_prompt.is_none_or(|last| index > last),
            };
            weigher.turn(turn, base, index + 1 == turns.len(), Some(index) == last_learned)?;
            done = generated.end;
        }
        weigher.other(done..ids.len())
    }
}

struct RowWeigher<'a> {
    weigher: &'a Weigher,
    spec: &'a Spec,
    ids: &'a [i32],
    scratch: &'a mut WeighScratch,
    spans: &'a mut Vec<Span>,
    query: std::ops::Range<usize>,
}

impl RowWeigher<'_> {
    /// Tokens no model turn generated: trained only by the base `all`.
    fn other(&mut self, range: std::ops::Range<usize>) -> Result<(), Error> {
        if self.spec.base != Base::All {
            return Ok(());
        }
        if self.spec.semantics == Semantics::MsSwift && self.spec.reads_text() {
            return self.by_rules(range).map(|_| ());
        }
        push_span(self.spans, range.start, range.end, 1.0);
        Ok(())
    }

    /// The closing token of a turn that nobody learns: the last token in it that closes one that somebody does.
    fn close_of_others(&mut self, turn: &TokenTurn, turns: &[TokenTurn]) {
        let closes = |id: i32| {
            turns.iter().any(|other| other.closing < other.generated_end && self.ids[other.closing as usize] == id)
        };
        let range = turn.start as usize..turn.end as usize;
        if let Some(at) = range.rev().find(|at| closes(self.ids[*at])) {
            push_span(self.spans, at, at + 1, 1.0);
        }
    }

    fn turn(&mut self, turn: &TokenTurn, base: bool, is_final: bool, is_last: bool) -> Result<(), Error> {
        let ms_swift = self.spec.semantics == Semantics::MsSwift;
        let (start, closing, end) = (turn.generated_start as usize, turn.closing as usize, turn.generated_end as usize);
        let selected = turn.loss.unwrap_or(base);
        let (any, last) = match (selected, turn.loss_scale) {
            (false, _) => (false, false),
            (true, Some(weight)) => {
                let weight = if ms_swift { weight.max(0.0) } else { weight };
                push_span(self.spans, start, closing, weight);
                (weight != 0.0, weight != 0.0 && closing > start)
            }
            (true, None) if self.spec.reads_text() => self.by_rules(start..closing)?,
            (true, None) => {
                push_span(self.spans, start, closing, 1.0);
                (true, closing > start)
            }
        };
        // Ours: whoever learns a turn learns to end it. ms-swift: the last suffix follows the base, the others are
        // switched on where the token before them is trained.
        let close = match (ms_swift, is_final) {
            (true, true) => base,
            (true, false) => last,
            (false, _) => selected && (any || closing == start),
        };
        let close = match self.spec.closing {
            Closing::Turn => close,
            Closing::Last => close && is_last,
            Closing::All => true,
            Closing::None => false,
        };
        if close {
            push_span(self.spans, closing, end, 1.0);
        }
        Ok(())
    }

    /// Weigh tokens by the strategies: a token takes the weight at its first byte. Returns whether any token, and
    /// whether the last token, has a weight.
    fn by_rules(&mut self, range: std::ops::Range<usize>) -> Result<(bool, bool), Error> {
        let WeighScratch { text, starts, query, query_starts } = &mut *self.scratch;
        let Weigher { vocabulary, sieve, .. } = self.weigher;
        let known = sieve.as_ref().and_then(|sieve| sieve.segments(vocabulary, self.ids, range.clone(), text, starts));
        let segments = if let Some(segments) = known {
            segments
        } else {
            if self.spec.reads_query() {
                vocabulary.read(self.ids, self.query.clone(), query, query_starts);
            }
            vocabulary.read(self.ids, range.clone(), text, starts);
            self.spec.segments(text, query)?
        };
        let weights = TokenWeights { starts, segments: &segments, num_tokens: range.len() };
        let (mut any, mut last) = (false, false);
        let mut at = 0;
        while at < range.len() {
            let (next, mut weight) = weights.run_from(at);
            if self.spec.semantics == Semantics::MsSwift {
                weight = weight.max(0.0);
            }
            push_span(self.spans, range.start + at, range.start + next, weight);
            last = weight != 0.0;
            any |= last;
            at = next;
        }
        Ok((any, last))
    }
}

struct TokenWeights<'a> {
    /// Where tokens start in the text; those behind the last of these start in the last segment.
    starts: &'a [u32],
    segments: &'a [Segment],
    num_tokens: usize,
}

impl TokenWeights<'_> {
    /// The weight of token `at`, and the first token behind it that starts in another segment.
    fn run_from(&self, at: usize) -> (usize, f32) {
        let start = self.starts.get(at).map_or(usize::MAX, |start| *start as usize);
        let index = self.segments.partition_point(|segment| segment.end <= start);
        let Some(segment) = self.segments.get(index).or(self.segments.last()) else {
            return (self.num_tokens, 1.0);
        };
        let next = if index + 1 < self.segments.len() {
            self.starts.partition_point(|other| (*other as usize) < segment.end)
        } else {
            self.num_tokens
        };
        (next.max(at + 1), segment.weight as f32)
    }
}
