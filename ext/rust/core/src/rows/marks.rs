//! What messages and their parts say of training, in the words of every tool: understood, or refused.
use crate::error::RowError;
use crate::rows::place::{Place, kind};
use crate::types::Json;

/// Members that select: ms-swift's and ours, Axolotl's two.
const SELECTS: [&str; 3] = ["loss", "train", "training"];
/// Members that weigh: ms-swift's and ours; LLaMA-Factory's; that of OpenAI, Mistral and Together.
const WEIGHS: [&str; 3] = ["loss_scale", "loss_weight", "weight"];
/// Marks of other tools that have no reading here.
const UNREAD: [&str; 6] = ["mask", "masked", "trainable", "train_on", "loss_mask", "no_loss"];
/// Axolotl's lists of stretches of the text.
const DETAILS: [&str; 2] = ["train_detail", "training_detail"];

/// Whether a member is a mark, or looks like one.
pub(super) fn is_mark(name: &str) -> bool {
    SELECTS.contains(&name) || WEIGHS.contains(&name) || UNREAD.contains(&name) || DETAILS.contains(&name)
}

/// Stretches of a text with a mark each: lengths in bytes, and whether to train. `train_detail` gives them by the places of
/// their first and last characters; what lies between them is not trained.
///
/// # Errors
/// [`RowError`] for a list that is none, stretches that overlap or leave the text, and marks beside it.
pub(super) fn of_offsets(
    marks: &mut Vec<(Box<str>, Json)>,
    text: &str,
    place: &Place,
) -> Result<Option<(Vec<usize>, Json)>, RowError> {
    let Some(at) = marks.iter().position(|(name, _)| DETAILS.contains(&&**name)) else { return Ok(None) };
    let (name, value) = marks.swap_remove(at);
    let place = Place::Key(place, &name);
    if let Some((other, _)) = marks.first() {
        return Err(place.fault("loss", format!("{name} says what {other} says; keep one of them")));
    }
    let Json::Array(items) = value else {
        let message = format!("expected a list of {{begin_offset, end_offset, train}}, got {}", kind(&value));
        return Err(place.fault("loss", message));
    };
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let (mut lengths, mut selects, mut done) = (vec![], vec![], 0);
    let mut add = |length: usize, trained: bool| {
        if length > 0 {
            lengths.push(length);
            selects.push(Json::Bool(trained));
        }
    };
    for (index, item) in items.iter().enumerate() {
        let place = Place::Index(&place, index);
        let offset = |name: &str| match item.member(name) {
            Some(Json::Number(text)) => text.parse::<usize>().ok(),
            _ => None,
        };
        let train = item.member("train").and_then(as_bool);
        let (Some(begin), Some(last), Some(train)) = (offset("begin_offset"), offset("end_offset"), train) else {
            let message = "expected begin_offset and end_offset (of the first and the last character) and train";
            return Err(place.fault("loss", message.to_owned()));
        };
        let (Some(from), Some(to)) = (starts.get(begin), starts.get(last + 1)) else {
            let message = format!("ends at character {last}, and the text has {}", starts.len() - 1);
            return Err(place.fault("loss", message));
        };
        if *from < done || to <= from {
            let message = "the stretches are not in order, or overlap; give each character one mark";
            return Err(place.fault("loss", message.to_owned()));
        }
        add(from - done, false);
        add(to - from, train);
        done = *to;
    }
    add(text.len() - done, false);
    Ok(Some((lengths, Json::Array(selects))))
}

/// `loss` and `loss_scale`, as the marks of a message or a part have them.
///
/// # Errors
/// [`RowError`] for marks that say one thing twice, and for those that are not read.
pub(super) fn read(marks: Vec<(Box<str>, Json)>, place: &Place) -> Result<(Option<Json>, Option<Json>), RowError> {
    let mut select: Option<(Box<str>, Json)> = None;
    let mut weigh: Option<(Box<str>, Json)> = None;
    for (name, value) in marks {
        if UNREAD.contains(&&*name) {
            let message = "this mark is not read; say with loss (true, false, or a list of them for a content that is a \
                           list of texts) what is trained on";
            return Err(Place::Key(place, &name).fault("loss", message.to_owned()));
        }
        let slot = if SELECTS.contains(&&*name) { &mut select } else { &mut weigh };
        if let Some((other, _)) = slot {
            let message = format!("{name} says what {other} says; keep one of them");
            return Err(Place::Key(place, &name).fault("loss", message));
        }
        *slot = Some((name, value));
    }
    match (select, weigh) {
        (Some((one, _)), Some((other, _))) if &*other != "loss_scale" => {
            let message = format!("{other} says what {one} says; keep one of them");
            Err(Place::Key(place, &other).fault("loss", message))
        }
        (None, Some((name, weight))) if &*name == "loss_weight" => {
            // LLaMA-Factory's weight stands alone: zero is not trained, anything else is.
            Ok((Some(Json::Bool(as_weight(&weight) != Some(0.0))), Some(weight)))
        }
        (None, Some((name, weight))) if &*name == "weight" => match as_weight(&weight) {
            // 0 and 1 are all that OpenAI knows: they select, and strategies weigh.
            Some(0.0) => Ok((Some(Json::Bool(false)), None)),
            Some(1.0) => Ok((Some(Json::Bool(true)), None)),
            Some(_) => Ok((Some(Json::Bool(true)), Some(weight))),
            None => {
                let message =
                    format!("expected a number, 0 for a message that is not trained on, got {}", kind(&weight));
                Err(Place::Key(place, "weight").fault("loss", message))
            }
        },
        (select, weigh) => Ok((select.map(|(_, value)| value), weigh.map(|(_, value)| value))),
    }
}

/// The marks of the text parts of one message, as lists for it.
///
/// # Errors
/// [`RowError`] where some parts have a mark and others none: nobody knows what those are meant to be.
pub(super) fn of_parts(
    parts: Vec<Option<(Option<Json>, Option<Json>)>>,
    place: &Place,
) -> Result<(Option<Json>, Option<Json>), RowError> {
    if parts.iter().all(Option::is_none) {
        return Ok((None, None));
    }
    let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
        let message = "some parts of the content have a mark and others none; mark all or none";
        return Err(place.fault("loss", message.to_owned()));
    };
    let list = |values: Vec<Option<Json>>, default: Json| {
        let any = values.iter().any(Option::is_some);
        any.then(|| Json::Array(values.into_iter().map(|value| value.unwrap_or_else(|| default.clone())).collect()))
    };
    let (selects, weighs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    Ok((list(selects, Json::Bool(true)), list(weighs, Json::Number("1".into()))))
}

pub(super) fn as_bool(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(value) => Some(*value),
        Json::Number(text) if &**text == "0" => Some(false),
        Json::Number(text) if &**text == "1" => Some(true),
        _ => None,
    }
}

pub(super) fn as_weight(value: &Json) -> Option<f32> {
    match value {
        Json::Number(text) => text.parse().ok().filter(|weight: &f32| weight.is_finite()),
        _ => None,
    }
}
