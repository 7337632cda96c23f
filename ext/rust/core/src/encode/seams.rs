//! From turns as bytes of the rendered text to turns as tokens, and where the text is cut before it is encoded.
use crate::agents::Written;
use crate::error::{Error, RowError, choices};
use crate::tokenizer::special::SpecialMatcher;
use crate::types::{Message, Rendered, Role, Turn};
use crate::weigh::sequence::TokenTurn;
use crate::weigh::{Base, Spec};
use std::ops::Range;

/// How the rendered text is cut before encoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Segments {
    /// Not at all: the ids are those of `apply_chat_template(tokenize=True)`.
    #[default]
    Whole,
    /// At the start of what the model generates, as when it generates it.
    Turn,
    /// Wherever the weight changes, as ms-swift does.
    MsSwift,
}

choices! { Segments, "segments", "whole" => Whole, "turn" => Turn, "ms-swift" => MsSwift }

/// The messages that were rendered, and where they come from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RenderedFrom<'a> {
    /// As the template saw them.
    pub(crate) messages: &'a [Message],
    /// How an agent format made them of the row's, if one did.
    pub(crate) written: Option<&'a Written>,
    /// Index of the row's own first message: -1 behind a system message that the options put in.
    pub(crate) first_message: i32,
    /// Whose turns are trained on.
    pub(crate) roles: &'a [Role],
    /// Special tokens.
    pub(crate) specials: &'a SpecialMatcher,
}

impl RenderedFrom<'_> {
    /// Index in the row of a rendered message; -1 for one that the row does not have.
    #[must_use]
    pub(crate) fn row_index(&self, message: usize) -> i32 {
        let Some(written) = self.written else { return message as i32 + self.first_message };
        let origin = written.origins.get(message).copied().flatten();
        origin.map_or(-1, |origin| origin as i32 + self.first_message)
    }

    fn parts(&self, message: usize) -> &[crate::agents::TurnPart] {
        self.written.and_then(|written| written.parts.get(message)).map_or(&[], |parts| parts)
    }
}

/// A stretch of a turn with marks of its own.
struct MarkedPiece {
    generated: Range<usize>,
    loss: Option<bool>,
    loss_scale: Option<f32>,
    /// A tool said it.
    is_answer: bool,
    /// Index of its message in the row.
    message: i32,
}

/// Where to cut `rendered` before encoding, ascending.
///
/// # Errors
/// As [`Spec::segments`].
pub(crate) fn cuts(
    segments: Segments,
    rendered: &Rendered,
    source: RenderedFrom,
    spec: &Spec,
) -> Result<Vec<usize>, Error> {
    let generating = rendered.turns.iter().filter(|turn| !turn.generated.is_empty());
    match segments {
        Segments::Whole => Ok(vec![]),
        Segments::Turn => Ok(generating.map(|turn| turn.generated.start).collect()),
        Segments::MsSwift => ms_swift_cuts(rendered, source, spec),
    }
}

/// Ends of the runs of equal weight: prompts, replies by the rules, the last closing suffix.
fn ms_swift_cuts(rendered: &Rendered, source: RenderedFrom, spec: &Spec) -> Result<Vec<usize>, Error> {
    let text = &rendered.text;
    let mut runs: Vec<(usize, f64)> = Vec::new();
    let mut push = |end: usize, weight: f64| match runs.last_mut() {
        Some(last) if last.1.to_bits() == weight.to_bits() => last.0 = end,
        Some(last) if last.0 == end => {}
        _ => runs.push((end, weight)),
    };
    let last_prompt = rendered.turns.iter().rposition(|turn| matches!(turn.role, Role::User | Role::Tool));
    let (mut done, mut query) = (0, "");
    for (index, turn) in rendered.turns.iter().enumerate() {
        if turn.role != Role::Assistant {
            query = if turn.role == Role::System { query } else { &text[turn.all.clone()] };
            continue;
        }
        if source.messages.get(turn.message).is_some_and(|message| message.given) {
            continue;
        }
        let base = spec.base != Base::LastRound || last_prompt.is_none_or(|last| index > last);
        other(spec, text, done..turn.generated.start, &mut push)?;
        let pieces = pieces(turn, source, text)?;
        let last_answer = pieces.iter().rposition(|piece| piece.is_answer).unwrap_or(0);
        for (at, piece) in pieces.into_iter().enumerate() {
            let start = piece.generated.start;
            let reply = start..piece.generated.end.min(turn.closing).max(start);
            if piece.is_answer {
                query = &text[reply.clone()];
                other(spec, text, reply, &mut push)?;
                continue;
            }
            let base = base && (spec.base != Base::LastRound || at >= last_answer);
            match (piece.loss.unwrap_or(base), piece.loss_scale) {
                (false, _) => push(reply.end, 0.0),
                (true, Some(weight)) => push(reply.end, f64::from(weight)),
                (true, None) => {
                    for segment in spec.segments(&text[reply], query)? {
                        push(start + segment.end, segment.weight);
                    }
                }
            }
        }
        let is_final = index + 1 == rendered.turns.len();
        push(turn.generated.end, if is_final && base || spec.base == Base::All { 1.0 } else { 0.0 });
        done = turn.generated.end;
    }
    other(spec, text, done..text.len(), &mut push)?;
    Ok(runs.into_iter().map(|(end, _)| end).collect())
}

fn other(spec: &Spec, text: &str, range: Range<usize>, push: &mut impl FnMut(usize, f64)) -> Result<(), Error> {
    if range.is_empty() {
        return Ok(());
    }
    if spec.base != Base::All {
        push(range.end, 0.0);
        return Ok(());
    }
    for segment in spec.segments(&text[range.clone()], "")? {
        push(range.start + segment.end, segment.weight);
    }
    Ok(())
}

/// The bytes of a rendering that [`token_turns`] asks about; none if that takes a closer look.
#[must_use]
pub(crate) fn places<'a>(
    rendered: &'a Rendered,
    source: RenderedFrom,
) -> Option<impl Iterator<Item = usize> + use<'a>> {
    let plain = source.roles == [Role::Assistant]
        && source.messages.iter().all(|m| m.loss.len() <= 1 && m.loss_scale.len() <= 1 && !m.given)
        && source.written.is_none_or(|written| written.parts.iter().all(Vec::is_empty));
    let of_turn = |turn: &Turn| [turn.all.start, turn.all.end, turn.generated.start, turn.closing, turn.generated.end];
    plain.then(|| rendered.turns.iter().flat_map(of_turn))
}

/// Turns as tokens, into `out`; `index_at`: as [`crate::tokenizer::engine::Tokens::index_at`] of the encoded rendering. Returns how many tokens straddle a seam of a generated range. A token belongs to the
/// side of its first byte. A message whose marks are lists gives a turn for each piece.
///
/// # Errors
/// `Error::Row` when the pieces of a message with lists of marks cannot be found in the rendered text.
pub(crate) fn token_turns(
    rendered: &Rendered,
    source: RenderedFrom,
    index_at: impl Fn(usize) -> (usize, bool),
    out: &mut Vec<TokenTurn>,
) -> Result<usize, Error> {
    out.clear();
    let mut straddles = 0;
    for turn in &rendered.turns {
        let (start, end) = (index_at(turn.all.start).0, index_at(turn.all.end).0);
        let plain = |out: &mut Vec<TokenTurn>, at: usize, loss, loss_scale| {
            out.push(TokenTurn {
                start: start as i32,
                end: end as i32,
                generated_start: at as i32,
                generated_end: at as i32,
                closing: at as i32,
                role: turn.role,
                message: source.row_index(turn.message),
                loss,
                loss_scale,
            });
        };
        let message = source.messages.get(turn.message);
        if turn.role != Role::Assistant && source.roles.contains(&turn.role) {
            let (words, closing) = words(turn, source, &rendered.text)?;
            let [from, closing, to] = [words.start, closing, words.end].map(|at| index_at(at).0 as i32);
            plain(out, start, message.and_then(|message| message.loss.first().copied()), None);
            if let Some(turn) = out.last_mut() {
                (turn.generated_start, turn.closing, turn.generated_end) = (from, closing, to);
            }
            continue;
        }
        if turn.generated.is_empty() || message.is_some_and(|message| message.given) {
            // what a question's mark says is kept, for whoever weighs the row again
            plain(out, start, message.filter(|m| !m.given).and_then(|m| m.loss.first().copied()), None);
            continue;
        }
        let mut from = start;
        let parts = pieces(turn, source, &rendered.text)?;
        for (index, piece) in parts.iter().enumerate() {
            let mut counted = |at: usize| {
                let (token, straddle) = index_at(at);
                straddles += usize::from(straddle);
                token
            };
            let is_last = index + 1 == parts.len();
            let generated_start = counted(piece.generated.start);
            let generated_end = counted(piece.generated.end);
            let closing = if is_last { counted(turn.closing) } else { generated_end };
            plain(out, from, piece.loss, piece.loss_scale);
            if let Some(turn) = out.last_mut() {
                turn.message = piece.message;
                if piece.is_answer {
                    turn.role = Role::Tool;
                    turn.start = generated_start as i32;
                    turn.end = if is_last { end as i32 } else { generated_end as i32 };
                    from = generated_end;
                    continue;
                }
                turn.start = if index == 0 { start } else { generated_start } as i32;
                turn.generated_start = generated_start as i32;
                turn.generated_end = generated_end as i32;
                turn.closing = closing as i32;
                if !is_last {
                    turn.end = generated_end as i32;
                }
            }
            from = generated_end;
        }
        if let Some(closing) = closing_of_pieces(&parts)
            && let Some(last) = out.last_mut().filter(|last| last.closing < last.generated_end)
        {
            let (start, end) = (last.closing, last.end);
            let turn = TokenTurn { start, generated_start: start, loss: closing, loss_scale: None, ..last.clone() };
            (last.generated_end, last.end) = (start, start);
            out.push(TokenTurn { end, ..turn });
        }
    }
    Ok(straddles)
}

/// The words of a turn that is not the assistant's and the token that closes it, and where that starts: the content as
/// the template writes it, and a special token right behind it.
fn words(turn: &Turn, source: RenderedFrom, text: &str) -> Result<(Range<usize>, usize), Error> {
    let content = source.messages.get(turn.message).and_then(Message::content);
    let all = &text[turn.all.clone()];
    // the last place: only what closes the turn stands behind its words
    let found = content.and_then(|content| {
        let found = [content, content.trim()].into_iter().find_map(|words| Some((all.rfind(words)?, words.len())));
        let (at, length) = found.filter(|(_, length)| *length > 0)?;
        let rest = all[at + length..].trim_start();
        (rest.is_empty() || source.specials.length_at(rest).is_some()).then_some((at, length))
    });
    let Some((at, length)) = found else {
        return Err(Error::Row(RowError::at(
            format!("$.messages[{}]", source.row_index(turn.message)),
            "roles",
            "the template does not write the content as it is, so --train-roles cannot find its words",
        )));
    };
    let end = at + length;
    let rest = &all[end..];
    let gap = rest.len() - rest.trim_start().len();
    let closes = source.specials.length_at(&rest[gap..]);
    let (closing, end) = closes.map_or((end, end), |length| (end + gap, end + gap + length));
    let offset = turn.all.start;
    Ok((offset + at..offset + end, offset + closing))
}

/// Whoever learns any of a turn learns to end it: where the last piece is not trained and another is, the closing token
/// is a piece of its own, with this `loss`.
#[expect(clippy::option_option, reason = "a loss may be unset")]
fn closing_of_pieces(pieces: &[MarkedPiece]) -> Option<Option<bool>> {
    let is_silent = |piece: &MarkedPiece| piece.loss == Some(false) || piece.loss_scale == Some(0.0);
    let (last, before) = pieces.split_last()?;
    if pieces.iter().any(|piece| piece.is_answer) {
        return None;
    }
    let trained = before.iter().rfind(|piece| !is_silent(piece))?;
    is_silent(last).then_some(trained.loss)
}

/// The stretches of a generated range that have marks of their own; one, if the message's marks are single.
fn pieces(turn: &Turn, source: RenderedFrom, text: &str) -> Result<Vec<MarkedPiece>, Error> {
    let message = source.messages.get(turn.message);
    let parts = source.parts(turn.message);
    let row_index = source.row_index(turn.message);
    let (losses, scales) = message.map_or((&[][..], &[][..]), |message| (&message.loss[..], &message.loss_scale[..]));
    let mark = |index: usize| {
        let loss = losses.get(index).or(if losses.len() == 1 { losses.first() } else { None });
        let scale = scales.get(index).or(if scales.len() == 1 { scales.first() } else { None });
        (loss.copied(), scale.copied())
    };
    let Some(message) = message.filter(|_| losses.len() > 1 || scales.len() > 1 || !parts.is_empty()) else {
        let (loss, loss_scale) = mark(0);
        let generated = turn.generated.clone();
        return Ok(vec![MarkedPiece { generated, loss, loss_scale, is_answer: false, message: row_index }]);
    };
    let fault = |why: &str| {
        Error::Row(RowError::at(
            format!("$.messages[{row_index}]"),
            "pieces",
            format!("{why}; give the message one loss and loss_scale, or split it"),
        ))
    };
    let content = message.content().filter(|content| message.pieces.iter().sum::<usize>() == content.len());
    let content = content.ok_or_else(|| fault("lists of loss or loss_scale need a content that is a list of texts"))?;
    let reply = &text[turn.generated.start..turn.closing];
    let (at, skipped) = locate(reply, content)
        .ok_or_else(|| fault("the template does not write the content as it is, so its pieces cannot be found"))?;
    let (mut out, mut piece_end) = (Vec::new(), 0);
    let mut start = turn.generated.start;
    for (index, length) in message.pieces.iter().enumerate() {
        piece_end += length;
        let end = if index + 1 == message.pieces.len() {
            turn.generated.end
        } else {
            (turn.generated.start + at + piece_end.saturating_sub(skipped)).clamp(start, turn.closing)
        };
        let generated = start..end;
        out.push(if let Some(part) = parts.get(index) {
            let (loss, loss_scale, is_answer) = (part.loss, part.loss_scale, part.is_answer);
            MarkedPiece { generated, loss, loss_scale, is_answer, message: part.message as i32 + source.first_message }
        } else {
            let (loss, loss_scale) = mark(index);
            MarkedPiece { generated, loss, loss_scale, is_answer: false, message: row_index }
        });
        start = end;
    }
    Ok(out)
}

/// The only place of `content`, as it is or trimmed, in `reply`, and how many of its first bytes were trimmed off.
fn locate(reply: &str, content: &str) -> Option<(usize, usize)> {
    let trimmed = content.trim();
    let skipped = content.len() - content.trim_start().len();
    [(content, 0), (trimmed, skipped)].into_iter().find_map(|(needle, skipped)| {
        let at = reply.find(needle)?;
        (!needle.is_empty() && reply.rfind(needle) == Some(at)).then_some((at, skipped))
    })
}
