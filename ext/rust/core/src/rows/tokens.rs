//! Rows without a conversation: `input_ids` that somebody else made, and what of them is trained on, as labels or as a
//! mask; and Axolotl's `segments`, texts one after the other with a mark each.
use crate::error::RowError;
use crate::rows::columns::{Column, Columns};
use crate::rows::marks::as_bool;
use crate::rows::place::{Place, kind};
use crate::types::{Body, Json};

/// Masks of other tools: 1 where a token is trained on.
const MASKS: [&str; 4] = ["loss_mask", "completion_mask", "assistant_masks", "assistant_mask"];
/// What labels call a token that is not.
const IGNORED: i64 = -100;

/// The ids of a row that has them and no conversation. Padding, where `attention_mask` is 0, is taken off.
pub(super) fn read(columns: &mut Columns) -> Result<Option<Body>, RowError> {
    let spoken = [Column::Messages, Column::Query, Column::Response, Column::Chosen];
    if spoken.into_iter().any(|column| columns.is_present(column)) {
        return Ok(None);
    }
    if columns.has("segments") && !columns.has("input_ids") {
        return segments(columns);
    }
    if !columns.has("input_ids") {
        return Ok(None);
    }
    let Some(ids) = numbers(columns, "input_ids", None)? else { return Ok(None) };
    let length = ids.len();
    let labels = numbers(columns, "labels", Some(length))?;
    let mut mask: Option<Vec<bool>> = None;
    if let Some(labels) = labels {
        let odd = labels.iter().zip(&ids).position(|(label, id)| label != id && *label != IGNORED);
        if let Some(at) = odd {
            let message = format!(
                "is {}, expected the id ({}) or {IGNORED}; labels stand where their ids stand",
                labels[at], ids[at]
            );
            return Err(Place::Index(&Place::Key(&Place::Root, "labels"), at).fault("labels", message));
        }
        mask = Some(labels.iter().map(|label| *label != IGNORED).collect());
    }
    for name in MASKS {
        if let Some(found) = numbers(columns, name, Some(length))? {
            let found: Vec<bool> = found.into_iter().map(|number| number != 0).collect();
            mask = Some(match mask {
                None => found,
                Some(mask) => mask.into_iter().zip(found).map(|(one, other)| one && other).collect(),
            });
        }
    }
    let mut kept = 0..length;
    if let Some(attended) = numbers(columns, "attention_mask", Some(length))? {
        let first = attended.iter().position(|number| *number != 0).unwrap_or(0);
        let last = attended.iter().rposition(|number| *number != 0).map_or(0, |last| last + 1);
        if attended[first..last].contains(&0) {
            let message = "has a 0 between ones, and padding stands at an end; give the row without it";
            return Err(Place::Key(&Place::Root, "attention_mask").fault("labels", message.to_owned()));
        }
        kept = first..last;
    }
    if kept.is_empty() {
        return Err(Place::Key(&Place::Root, "input_ids").fault("empty", "no token is left".to_owned()));
    }
    let ids = ids[kept.clone()].iter().map(|id| i32::try_from(*id).unwrap_or(-1)).collect();
    Ok(Some(Body::Tokens(ids, mask.map(|mask| mask[kept].to_vec()))))
}

/// `[{"text": ..., "label": true}, ...]`.
fn segments(columns: &mut Columns) -> Result<Option<Body>, RowError> {
    let Some(value) = columns.take_named("segments") else { return Ok(None) };
    let place = Place::Key(&Place::Root, "segments");
    let Json::Array(items) = value else {
        return Err(place.fault("segments", format!("expected a list of {{text, label}}, got {}", kind(&value))));
    };
    let read = |(index, item): (usize, &Json)| {
        if let (Some(Json::String(text)), Some(label)) = (item.member("text"), item.member("label").and_then(as_bool)) {
            Ok((text.clone(), label))
        } else {
            let message = "expected a text and a label (true: trained on)";
            Err(Place::Index(&place, index).fault("segments", message.to_owned()))
        }
    };
    let found = items.iter().enumerate().map(read).collect::<Result<Vec<_>, RowError>>()?;
    if found.iter().all(|(text, _)| text.is_empty()) {
        return Err(place.fault("empty", "the segments have no text".to_owned()));
    }
    Ok(Some(Body::Segments(found)))
}

/// A column that is a list of integers or bools, `length` of them.
fn numbers(columns: &mut Columns, name: &str, length: Option<usize>) -> Result<Option<Vec<i64>>, RowError> {
    let Some(value) = columns.take_named(name) else { return Ok(None) };
    let place = Place::Key(&Place::Root, name);
    let Json::Array(items) = value else {
        return Err(place.fault("input_ids", format!("expected a list of integers, got {}", kind(&value))));
    };
    if let Some(length) = length.filter(|length| *length != items.len()) {
        let message = format!("has {} entries and input_ids {length}; give each token one", items.len());
        return Err(place.fault("labels", message));
    }
    let read = |(index, item): (usize, &Json)| match item {
        Json::Bool(value) => Ok(i64::from(*value)),
        Json::Number(text) if text.parse::<i64>().is_ok() => Ok(text.parse().unwrap_or(0)),
        other => {
            Err(Place::Index(&place, index).fault("input_ids", format!("expected an integer, got {}", kind(other))))
        }
    };
    items.iter().enumerate().map(read).collect::<Result<Vec<i64>, RowError>>().map(Some)
}
