//! The length limit: rows that are too long are cut so that no model learns an answer that was cut off, and what is left
//! is weighed.
use crate::encode::conversation::{EncodedRow, Form};
use crate::encode::encoder::Encoder;
use crate::encode::options::SpecialText;
use crate::encode::seams::Segments;
use crate::error::{Error, RowError, choices};
use crate::media;
use crate::types::Role;
use crate::weigh::Semantics;
use crate::weigh::sequence::{Span, TokenTurn, WeighScratch, push_span, totals};
use std::ops::Range;

/// What to do with a row longer than the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Truncation {
    /// Leave the row out.
    #[default]
    Drop,
    /// Keep the first tokens.
    Right,
    /// Keep the last tokens.
    Left,
    /// Cut text rows into blocks; conversations are left out.
    Split,
    /// Shorten prompt and answer by the same share, and keep the start of each.
    Proportional,
    /// Refuse the row.
    Error,
}

choices! {
    Truncation, "truncation",
    "drop" => Drop, "right" => Right, "left" => Left, "split" => Split, "proportional" => Proportional, "error" => Error
}

/// What became of a row at the length limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Whole,
    /// It was cut, and this many turns are no longer trained on.
    Cut {
        /// Turns that lost generated tokens.
        masked: usize,
    },
    /// It is to be cut into blocks of this many tokens.
    Blocks(usize),
    /// It is left out, for this reason.
    Dropped(&'static str),
}

impl Encoder {
    /// The longest answer of a pair's sides, where prompts and answers are shortened by the same share.
    pub(crate) fn longest_answer(&self, sides: &[EncodedRow]) -> Option<usize> {
        let lengths = sides.iter().map(|side| side.ids.len() - answer_start(side.ids.len(), &side.turns));
        lengths.max().filter(|_| self.options.truncation == Truncation::Proportional && sides.len() > 1)
    }

    /// Cut a row to the length limit and weigh what is left. `longest`: see [`Self::longest_answer`].
    ///
    /// # Errors
    /// As [`Weigher::weigh`]; `Error::Row` for a row that is too long when that is an error.
    pub fn fit(
        &self,
        row: &mut EncodedRow,
        longest: Option<usize>,
        scratch: &mut WeighScratch,
    ) -> Result<Outcome, Error> {
        if row.look_alikes > 0 && self.options.special_text == SpecialText::Drop {
            return Ok(Outcome::Dropped("special_text"));
        }
        let length = row.ids.len();
        let mut outcome = Outcome::Whole;
        let with_longest = longest.map_or(length, |longest| longest + answer_start(length, &row.turns));
        let mut keep = Kept::from(0..length);
        if let Some(limit) = self.options.max_length.filter(|limit| length.max(with_longest) > *limit) {
            keep = match self.options.truncation {
                Truncation::Split if row.form == Form::Text => {
                    self.weigh(row, scratch)?;
                    return Ok(Outcome::Blocks(limit));
                }
                Truncation::Drop | Truncation::Split => return Ok(Outcome::Dropped("too_long")),
                Truncation::Error => {
                    let why = format!("the row has {length} tokens, --max-length is {limit}; shorten it or truncate");
                    return Err(RowError::new("too_long", why).into());
                }
                Truncation::Right => Kept::from(0..limit),
                Truncation::Left => Kept::from(length - limit..length),
                Truncation::Proportional => Kept::proportional(length, &row.turns, limit, longest),
            };
        }
        let is_cut = keep.len() < length;
        if is_cut && !keep.clip_media(&mut row.media) {
            return Ok(Outcome::Dropped("media_cut"));
        }
        // ms-swift's cut strings are weighed before they are cut; ours are weighed as they will be stored.
        let weigh_first = self.options.segments == Segments::MsSwift;
        if weigh_first {
            self.weigh(row, scratch)?;
        }
        if is_cut {
            // whoever asks for proportional cuts wants the starts of long answers learned
            let mask_cut =
                self.spec().semantics == Semantics::Spans && self.options.truncation != Truncation::Proportional;
            let masked = keep.clip_turns(&mut row.turns, mask_cut);
            keep.clip_spans(&mut row.spans);
            keep.clip_ids(&mut row.ids);
            outcome = Outcome::Cut { masked };
            if row.turns.is_empty() && row.form == Form::Chat {
                // only framing is left; a stored row without turns would read as text
                return Ok(Outcome::Dropped("nothing_to_train"));
            }
        }
        if !weigh_first {
            self.weigh(row, scratch)?;
        }
        if row.form != Form::Prompt && totals(&row.spans).0 == 0 {
            return Ok(Outcome::Dropped("nothing_to_train"));
        }
        Ok(outcome)
    }

    fn weigh(&self, row: &mut EncodedRow, scratch: &mut WeighScratch) -> Result<(), Error> {
        if row.form != Form::Chat {
            row.spans.clear();
        }
        if row.form == Form::Prompt {
            return Ok(());
        }
        if row.form == Form::Text {
            push_span(&mut row.spans, 0, row.ids.len(), 1.0);
            return Ok(());
        }
        self.weigher.weigh(&row.ids, &row.turns, scratch, &mut row.spans)?;
        media::expand::unweigh(&mut row.spans, &row.media.iter().map(|span| (span.start, span.end)));
        Ok(())
    }
}

/// The tokens of a row that stay: ascending runs that do not touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept(Vec<Range<usize>>);

impl From<Range<usize>> for Kept {
    fn from(run: Range<usize>) -> Self {
        Self(vec![run])
    }
}

impl Kept {
    /// What `Proportional` keeps of a row. Prompt and answer are shortened as LLaMA-Factory does (`infer_seqlen`); in a
    /// conversation one question and its answer after the other, each within what is left of `limit`. `longest` is the
    /// longest answer of a pair, so that both sides keep the same prompt. Without an answer the row is one text.
    #[must_use]
    pub(crate) fn proportional(length: usize, turns: &[TokenTurn], limit: usize, longest: Option<usize>) -> Self {
        let mut kept = Self(vec![]);
        let (mut from, mut left) = (0, limit);
        let mut answers: Vec<Range<usize>> =
            trained(turns).map(|turn| turn.generated_start as usize..turn.generated_end as usize).collect();
        if longest.is_some() {
            answers.truncate(1); // all that a side of a pair learns is one answer
        }
        let last = answers.len().saturating_sub(1);
        for (index, answer) in answers.iter().enumerate() {
            if left == 0 {
                break;
            }
            let end = if index == last { length } else { answer.end };
            let own = end - answer.start;
            let (prompt, most) = shares(answer.start - from, longest.unwrap_or(own), left);
            let own = own.min(most);
            kept.add(from..from + prompt);
            kept.add(answer.start..answer.start + own);
            left -= prompt + own;
            from = end;
        }
        if answers.is_empty() {
            kept.add(0..limit.min(length));
        }
        kept
    }

    fn add(&mut self, run: Range<usize>) {
        match self.0.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ if run.is_empty() => {}
            _ => self.0.push(run),
        }
    }

    /// How many tokens stay.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(Range::len).sum()
    }

    /// How many of the tokens before `at` stay, which is where `at` is in what is left.
    fn index_of(&self, at: i32) -> i32 {
        self.0.iter().map(|run| at.clamp(run.start as i32, run.end as i32) - run.start as i32).sum()
    }

    fn touches(&self, start: i32, end: i32) -> bool {
        self.0.iter().any(|run| end > run.start as i32 && start < run.end as i32)
    }

    /// Leave out the other ids of a row.
    pub(crate) fn clip_ids(&self, ids: &mut Vec<i32>) {
        *ids = self.0.iter().flat_map(|run| &ids[run.clone()]).copied().collect();
    }

    /// Clip turns. With `mask_cut` an assistant turn that loses generated tokens is set to `loss: false`; returns how
    /// many were.
    pub(crate) fn clip_turns(&self, turns: &mut Vec<TokenTurn>, mask_cut: bool) -> usize {
        let mut masked = 0;
        turns.retain_mut(|turn| {
            if !self.touches(turn.start, turn.end) {
                return false;
            }
            let generated = turn.generated_end - turn.generated_start;
            turn.start = self.index_of(turn.start);
            turn.end = self.index_of(turn.end);
            turn.generated_start = self.index_of(turn.generated_start);
            turn.generated_end = self.index_of(turn.generated_end);
            turn.closing = self.index_of(turn.closing);
            if turn.role == Role::Assistant && mask_cut && turn.generated_end - turn.generated_start < generated {
                masked += usize::from(turn.loss != Some(false));
                turn.loss = Some(false);
            }
            true
        });
        masked
    }

    /// Clip spans.
    pub(crate) fn clip_spans(&self, spans: &mut Vec<Span>) {
        for span in std::mem::take(spans) {
            let (start, end) = (self.index_of(span.start), self.index_of(span.end));
            push_span(spans, start as usize, end as usize, span.weight);
        }
    }

    /// Move pictures to where they are in what is left; false if one of them is not there whole.
    pub(crate) fn clip_media(&self, spans: &mut [media::MediaSpan]) -> bool {
        let mut is_whole = true;
        for span in spans {
            let run = |run: &Range<usize>| run.start as i32 <= span.start && span.end <= run.end as i32;
            is_whole &= self.0.iter().any(run);
            (span.start, span.end) = (self.index_of(span.start), self.index_of(span.end));
        }
        is_whole
    }
}

/// Turns of the model that are not given as part of the prompt.
fn trained(turns: &[TokenTurn]) -> impl Iterator<Item = &TokenTurn> {
    turns.iter().filter(|turn| {
        turn.role == Role::Assistant && turn.loss != Some(false) && turn.generated_end > turn.generated_start
    })
}

/// Where the prompt of a pair's side ends and what is trained on begins.
#[must_use]
pub(crate) fn answer_start(length: usize, turns: &[TokenTurn]) -> usize {
    trained(turns).next().map_or(length, |turn| turn.generated_start as usize)
}

/// How many tokens a prompt and an answer keep of `limit`. What is shorter than half of it stays whole.
fn shares(prompt: usize, answer: usize, limit: usize) -> (usize, usize) {
    let most = if prompt + answer <= limit || answer * 2 < limit {
        limit
    } else if prompt * 2 < limit {
        limit - prompt
    } else {
        (limit as f64 * (answer as f64 / (prompt + answer) as f64)) as usize
    };
    let answer = answer.min(most);
    (prompt.min(limit - answer), answer)
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn shares_are_those_of_llama_factory() {
        // (prompt, answer, limit) -> (prompt, answer), worked out by hand from infer_seqlen
        for ((prompt, answer, limit), expected) in [
            ((100, 10, 50), (40, 10)),
            ((10, 100, 50), (10, 40)),
            ((100, 100, 50), (25, 25)),
            ((300, 100, 100), (75, 25)),
            ((30, 20, 50), (30, 20)),
            ((26, 25, 50), (26, 24)),
            ((0, 9, 5), (0, 5)),
            ((9, 0, 5), (5, 0)),
        ] {
            assert_eq!(shares(prompt, answer, limit), expected, "{prompt} {answer} {limit}");
        }
    }
}
