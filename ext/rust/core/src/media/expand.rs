//! A picture's place in a rendering becomes its tokens.
//!
//! First the text: what the family writes around and between features stands with its neighbours when it is encoded, and
//! a run of features is written once. Then the ids: each run is repeated. So a picture costs the same to encode whatever
//! its size, and the ids are those of the whole text.
use super::kind::Kind;
use super::{Family, Item, MediaSpan, Writing};
use crate::error::RowError;
use crate::tokenizer::engine::Tokens;
use crate::types::Rendered;
use crate::weigh::sequence::{Span, TokenTurn};
use std::fmt::Write;
use std::ops::Range;

/// A picture, sound or video in the expanded text.
#[derive(Debug)]
pub(crate) struct Placed {
    kind: Kind,
    bytes: Range<usize>,
    /// Features of each run.
    runs: Vec<usize>,
}

/// Write each picture's marks for its placeholder; turns stay where they were in the text.
///
/// # Errors
/// [`RowError`] where the template did not write a placeholder for each picture.
pub(crate) fn expand(family: &Family, rendered: &mut Rendered, items: &[Item]) -> Result<Vec<Placed>, RowError> {
    let mut spots: Vec<(usize, Kind, &Writing)> = vec![];
    for (kind, writing) in family.writings() {
        let found = rendered.text.match_indices(&*writing.placeholder).map(|(at, _)| (at, kind, writing));
        let before = spots.len();
        spots.extend(found);
        let (written, wanted) = (spots.len() - before, items.iter().filter(|item| item.kind == kind).count());
        if written != wanted {
            let message = format!(
                "the chat template writes {written} times {} for {wanted} {}s, so the model would not see them all; \
                 pass a --chat-template that writes one for each",
                writing.placeholder,
                kind.noun(),
            );
            return Err(RowError::new("unwritten", message));
        }
    }
    spots.sort_unstable_by_key(|(at, _, _)| *at);
    if spots.iter().zip(items).any(|((_, kind, _), item)| *kind != item.kind) {
        let message = "the chat template writes pictures, sounds and videos in another order than the row has them";
        return Err(RowError::new("unwritten", format!("{message}; pass a --chat-template that keeps it")));
    }
    let old = std::mem::take(&mut rendered.text);
    let mut placed = Vec::with_capacity(items.len());
    let mut moved = Vec::with_capacity(items.len());
    let mut copied = 0;
    for (&(at, kind, writing), item) in spots.iter().zip(items) {
        rendered.text.push_str(&old[copied..at]);
        copied = at + writing.placeholder.len();
        let start = rendered.text.len();
        let runs = write(writing, item, &mut rendered.text);
        placed.push(Placed { kind, bytes: start..rendered.text.len(), runs });
        moved.push((copied, rendered.text.len()));
    }
    rendered.text.push_str(&old[copied..]);
    let new_place = |at: usize| {
        let before = moved.partition_point(|(old, _)| *old <= at);
        before.checked_sub(1).map_or(at, |last| moved[last].1 + (at - moved[last].0))
    };
    for turn in &mut rendered.turns {
        turn.all = new_place(turn.all.start)..new_place(turn.all.end);
        turn.generated = new_place(turn.generated.start)..new_place(turn.generated.end);
        turn.closing = new_place(turn.closing);
    }
    Ok(placed)
}

/// What a picture is written as, each run of features as one; returns the runs' lengths.
fn write(writing: &Writing, item: &Item, text: &mut String) -> Vec<usize> {
    let plan = &item.plan;
    text.push_str(&writing.before);
    let mut runs = vec![];
    let mut run = |text: &mut String, features: usize| {
        text.push_str(&writing.feature);
        runs.push(features);
    };
    if let Some(marks) = &writing.tiles {
        let [_, rows, columns] = plan.grid;
        for row in 1..=rows {
            for column in 1..=columns {
                if column > 1 {
                    text.push_str(&marks.between);
                }
                let mark = marks.tile.replace("{row}", &row.to_string()).replace("{column}", &column.to_string());
                let _ = text.write_str(&mark);
                run(text, plan.tile_features);
            }
            text.push_str(&marks.row_end);
        }
        text.push_str(if rows == 0 { &marks.alone } else { &marks.whole });
        run(text, plan.tile_features);
        text.push_str(&marks.end);
    } else if let Some(marks) = &writing.rows {
        let [_, rows, columns] = plan.grid;
        for row in 1..=rows {
            run(text, columns);
            text.push_str(if row == rows { &marks.end } else { &marks.row_end });
        }
    } else {
        run(text, plan.features);
    }
    text.push_str(&writing.after);
    runs
}

/// Repeat each run of features in the ids, and move turns along. `features`: the id that is repeated, by kind.
///
/// # Errors
/// [`RowError`] where the tokenizer makes another number of features of the text than was written.
pub(crate) fn unroll(
    placed: &[Placed],
    items: Vec<Item>,
    features: [i32; 3],
    tokens: &mut Tokens,
    turns: &mut [TokenTurn],
) -> Result<Vec<MediaSpan>, RowError> {
    let id_of = |one: &Placed| features[one.kind as usize];
    let runs: Vec<(i32, usize)> = placed.iter().flat_map(|one| one.runs.iter().map(|run| (id_of(one), *run))).collect();
    let is_feature = |id: i32| id >= 0 && features.contains(&id);
    let found: Vec<i32> = tokens.ids.iter().copied().filter(|id| is_feature(*id)).collect();
    if !found.iter().eq(runs.iter().map(|(id, _)| id)) {
        let (wrote, found) = (runs.len(), found.len());
        let message = format!("{wrote} runs of features were written, {found} are in the ids; report this row");
        return Err(RowError::new("media_tokens", message));
    }
    let total = tokens.ids.len() + runs.iter().map(|(_, run)| run).sum::<usize>();
    let (mut ids, mut ends) = (Vec::with_capacity(total), Vec::with_capacity(total));
    let mut starts = Vec::with_capacity(tokens.ids.len() + 1);
    let mut runs = runs.into_iter();
    for (&id, &end) in tokens.ids.iter().zip(&tokens.ends) {
        starts.push(ids.len() as i32);
        let times = if is_feature(id) { runs.next().map_or(1, |(_, run)| run) } else { 1 };
        ids.resize(ids.len() + times, id);
        ends.resize(ends.len() + times, end);
    }
    starts.push(ids.len() as i32);
    let new = |index: usize| starts[index.min(starts.len() - 1)];
    let spans = placed.iter().zip(items).map(|(one, item)| {
        let (start, end) = (tokens.index_at(one.bytes.start).0, tokens.index_at(one.bytes.end).0);
        let features = one.runs.iter().sum::<usize>() as i32;
        MediaSpan { start: new(start), end: new(end), features, item }
    });
    let spans = spans.collect();
    (tokens.ids, tokens.ends) = (ids, ends);
    for turn in turns {
        for place in
            [&mut turn.start, &mut turn.end, &mut turn.generated_start, &mut turn.generated_end, &mut turn.closing]
        {
            *place = new(*place as usize);
        }
    }
    Ok(spans)
}

/// Nobody learns to write a picture: take its tokens out of the weights.
pub(crate) fn unweigh(weights: &mut Vec<Span>, pictures: &(impl Iterator<Item = (i32, i32)> + Clone)) {
    if pictures.clone().next().is_none() {
        return;
    }
    let mut out: Vec<Span> = Vec::with_capacity(weights.len());
    for weight in weights.drain(..) {
        let mut start = weight.start;
        for (low, high) in pictures.clone() {
            if low < weight.end && high > start {
                if low > start {
                    out.push(Span { start, end: low, ..weight });
                }
                start = high;
            }
        }
        if start < weight.end {
            out.push(Span { start, ..weight });
        }
    }
    *weights = out;
}
