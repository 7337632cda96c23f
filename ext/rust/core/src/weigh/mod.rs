//! Loss-scale strategies: which text of a conversation is trained on, and with what weight.
//!
//! A [`Spec`] is `BASE+STRATEGY+...`: the base (`default`, `last_round`, `all`) selects turns, the strategies weigh the
//! text of each selected assistant turn, and their weights multiply. The same strategies are read in two ways:
//!
//! * [`Semantics::Spans`] (ours): each strategy sees the whole reply, a regex weighs exactly what it matched, anchors mean
//!   the reply's start and end.
//! * [`Semantics::MsSwift`]: strategy n+1 runs inside each segment that strategy n produced, a piece between two matches
//!   takes the weight of the first pattern that matches its *prefix*, a capture group is refused, weights below zero
//!   count as zero. Bit for bit what ms-swift computes, surprises included.
//!
//! Patterns have Python's `re` semantics with DOTALL (Oniguruma's Python syntax): lookaround works, `$` also matches
//! before a final newline. Differences from Python: inline flags apply to the rest of their group, and a match that
//! takes more than [`pattern::RETRY_LIMIT`] steps is an error.

mod builtin;
mod pattern;
mod rules;
pub(crate) mod sequence;
mod shape;
mod sieve;

use rules::Strategy;

use crate::error::{Error, choices};
use crate::types::Role;

type Result<T> = std::result::Result<T, Error>;

/// Which turns are trained on before any message override.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Every assistant turn.
    Default,
    /// Assistant turns after the last user or tool message.
    LastRound,
    /// Every token, prompts included.
    All,
}

/// How strategies are read; see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Semantics {
    /// Explicit spans.
    Spans,
    /// ms-swift's splitting, quirks included.
    MsSwift,
}

choices! { Semantics, "loss_rules", "spans" => Spans, "ms-swift" => MsSwift }

/// Which closing tokens of turns are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Closing {
    /// Of every turn that is trained on.
    #[default]
    Turn,
    /// Of the last one alone.
    Last,
    /// Of every turn, whoever speaks.
    All,
    /// None.
    None,
}

choices! { Closing, "train_closing", "turn" => Turn, "last" => Last, "all" => All, "none" => None }

/// A stretch of a reply that ends at byte `end` (it starts where the one before ended) and its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// Byte after the last.
    pub end: usize,
    /// Factor of the loss of each token that starts in it.
    pub weight: f64,
}

/// A parsed loss-scale specification.
#[derive(Debug)]
pub struct Spec {
    /// What is selected.
    pub base: Base,
    /// How strategies are read.
    pub semantics: Semantics,
    /// Whose turns are trained on.
    pub roles: Vec<Role>,
    /// Which closing tokens are.
    pub closing: Closing,
    strategies: Vec<Strategy>,
}

impl Spec {
    /// Parse `spec` (`last_round+hermes+rules.json`). `files` holds the text of every rules file it names.
    ///
    /// # Errors
    /// `Config` for an unknown name, a file that is not a rules file, or a pattern that does not compile.
    pub fn parse(spec: &str, semantics: Semantics, files: &[(String, String)]) -> Result<Self> {
        let mut parts = spec.split('+').map(str::trim).peekable();
        let base = match parts.peek().copied() {
            Some("default") => Some(Base::Default),
            Some("last_round") => Some(Base::LastRound),
            Some("all") => Some(Base::All),
            _ => None,
        };
        if base.is_some() {
            parts.next();
        }
        let mut strategies = Vec::new();
        for name in parts {
            if let Some((_, text)) = files.iter().find(|(file, _)| file == name) {
                strategies.push(Strategy::from_json(name, text, semantics)?);
            } else if let Some(rules) = builtin::rules(name) {
                strategies.push(Strategy::from_rules(name, rules, semantics)?);
            } else if name != "base" {
                let names = builtin::NAMES.join(", ");
                let message = format!("loss_scale: \"{name}\" is neither a strategy ({names}) nor a rules file");
                return Err(Error::Config { message: message.into() });
            }
        }
        Ok(Self {
            base: base.unwrap_or(Base::Default),
            semantics,
            roles: vec![Role::Assistant],
            closing: Closing::Turn,
            strategies,
        })
    }

    /// The parts of `spec` that must be files: neither a base nor a named strategy.
    #[must_use]
    pub fn files_of(spec: &str) -> Vec<String> {
        let mut names = spec.split('+').map(str::trim).peekable();
        if names.peek().is_some_and(|name| ["default", "last_round", "all"].contains(name)) {
            names.next();
        }
        names.filter(|name| !builtin::NAMES.contains(name)).map(str::to_owned).collect()
    }

    /// Whether weights depend on the text of a turn, or only on whose turn it is.
    #[must_use]
    pub(crate) fn reads_text(&self) -> bool {
        !self.strategies.is_empty()
    }

    /// Whether a query (the user's text before a reply) is looked at.
    #[must_use]
    pub(crate) fn reads_query(&self) -> bool {
        self.strategies.iter().any(|strategy| !strategy.rules.query.is_empty())
    }

    /// Whether every weight the strategies can give is 0 or 1.
    #[must_use]
    pub fn is_binary(&self) -> bool {
        self.strategies.iter().all(|strategy| strategy.rules.is_binary())
    }

    /// The weights of `text`, a reply to `query`, without its closing token. The segments tile the text.
    ///
    /// # Errors
    /// `Data` when a pattern exceeds its step limit.
    pub fn segments(&self, text: &str, query: &str) -> Result<Vec<Segment>> {
        let mut segments = if text.is_empty() { vec![] } else { vec![Segment { end: text.len(), weight: 1.0 }] };
        for strategy in &self.strategies {
            segments = match self.semantics {
                Semantics::Spans => multiply(&segments, &strategy.spans(text, query)?),
                Semantics::MsSwift => {
                    let mut next = Vec::with_capacity(segments.len());
                    let mut start = 0;
                    for segment in segments {
                        for inner in strategy.split(&text[start..segment.end], query)? {
                            next.push(Segment { end: start + inner.end, weight: segment.weight * inner.weight });
                        }
                        start = segment.end;
                    }
                    next
                }
            };
        }
        merge(&mut segments);
        Ok(segments)
    }
}

/// The pointwise product of two tilings of the same text.
fn multiply(left: &[Segment], right: &[Segment]) -> Vec<Segment> {
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut i, mut j) = (0, 0);
    while i < left.len() && j < right.len() {
        let end = left[i].end.min(right[j].end);
        out.push(Segment { end, weight: left[i].weight * right[j].weight });
        i += usize::from(left[i].end == end);
        j += usize::from(right[j].end == end);
    }
    out
}

/// Join neighbours of equal weight.
fn merge(segments: &mut Vec<Segment>) {
    segments.dedup_by(|next, kept| {
        let same = next.weight.to_bits() == kept.weight.to_bits();
        if same {
            kept.end = next.end;
        }
        same
    });
}

#[cfg(test)]
mod tests;
