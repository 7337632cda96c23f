//! Cutting rows that are too long, so that no model learns an answer that was cut off.
use crate::types::Role;
use crate::weigh::sequence::{Span, TokenTurn};

/// What to do with a row longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// Leave the row out.
    Drop,
    /// Keep the first tokens.
    Right,
    /// Keep the last tokens.
    Left,
    /// Cut text rows into blocks; conversations are left out.
    Split,
    /// Refuse the row.
    Error,
}

/// Keep tokens `keep` of a row: clip its turns to them. With `mask_cut` an assistant turn that loses generated tokens is
/// set to `loss: false`; returns how many were.
pub fn clip_turns(turns: &mut Vec<TokenTurn>, keep: std::ops::Range<usize>, mask_cut: bool) -> usize {
    let (low, high) = (keep.start as i32, keep.end as i32);
    let mut masked = 0;
    turns.retain_mut(|turn| {
        if turn.end <= low || turn.start >= high {
            return false;
        }
        let generates = turn.role == Role::Assistant && turn.generated_end > turn.generated_start;
        if generates && mask_cut && (turn.generated_start < low || turn.generated_end > high) {
            masked += usize::from(turn.loss != Some(false));
            turn.loss = Some(false);
        }
        let clip = |at: i32| at.clamp(low, high) - low;
        turn.start = clip(turn.start);
        turn.end = clip(turn.end);
        turn.generated_start = clip(turn.generated_start);
        turn.generated_end = clip(turn.generated_end);
        turn.closing = clip(turn.closing);
        true
    });
    masked
}

/// Keep tokens `keep` of a row: clip its spans to them.
pub fn clip_spans(spans: &mut Vec<Span>, keep: std::ops::Range<usize>) {
    let (low, high) = (keep.start as i32, keep.end as i32);
    spans.retain_mut(|span| {
        span.start = span.start.clamp(low, high) - low;
        span.end = span.end.clamp(low, high) - low;
        span.start < span.end
    });
}
