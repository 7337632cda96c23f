//! A row of texts to compare: a query, what fits it, and what does not.
use crate::error::RowError;
use crate::rows::columns::Columns;
use crate::rows::messages::Reader;
use crate::rows::place::{Place, kind};
use crate::rows::{Purpose, read_channel, read_margin};
use crate::types::{Body, Json, Role, Row, Text};

const QUERY: [&str; 6] = ["query", "anchor", "question", "sentence1", "text1", "sentence_a"];
const POSITIVE: [&str; 8] =
    ["positive", "positives", "pos", "document", "documents", "sentence2", "text2", "sentence_b"];
const NEGATIVE: [&str; 5] = ["negatives", "negative", "neg", "hard_negatives", "rejected_response"];

/// Places in a group, the numbers of the column `side`.
const ANCHOR: i8 = 0;
pub(crate) const WRONG: i8 = 1;
pub(crate) const RIGHT: i8 = 2;

pub(super) fn read(mut columns: Columns, reader: &Reader, purpose: Purpose) -> Result<Row, RowError> {
    let root = Place::Root;
    let mut query = texts(&mut columns, &QUERY, reader)?;
    if query.len() != 1 {
        let message = format!(
            "expected one query, a text in a column like {}, found {}; name it with --columns OLD=query",
            QUERY[..4].join(", "),
            query.len()
        );
        return Err(root.fault("no_query", message));
    }
    let query = query.remove(0);
    let right = texts(&mut columns, &POSITIVE, reader)?;
    let mut wrong = texts(&mut columns, &NEGATIVE, reader)?;
    for name in columns.numbered("negative_") {
        wrong.extend(texts(&mut columns, &[&name], reader)?);
    }
    if right.is_empty() || (purpose == Purpose::Embed && right.len() > 1) {
        let message = format!(
            "expected {} in a column like {}, found {}; name it with --columns OLD=positive",
            if purpose == Purpose::Embed { "one text that fits the query" } else { "texts that fit the query" },
            POSITIVE[..4].join(", "),
            right.len()
        );
        return Err(root.fault("no_positive", message));
    }
    let channel = read_channel(&mut columns)?;
    let label = columns.take_label();
    let margin = read_margin(&mut columns)?;
    let (extra, unused) = columns.into_extra()?;
    let sided = |side: i8, texts: Vec<Box<str>>| texts.into_iter().map(move |text| (side, text));
    let documents = sided(RIGHT, right).chain(sided(WRONG, wrong));
    let texts = if purpose == Purpose::Embed {
        let anchor = std::iter::once((ANCHOR, query));
        anchor.chain(documents).map(|(side, first)| Text { side, first, second: None }).collect()
    } else {
        documents.map(|(side, second)| Text { side, first: query.clone(), second: Some(second) }).collect()
    };
    Ok(Row {
        body: Body::Group(texts),
        tools: None,
        template_kwargs: Vec::new(),
        channel,
        label,
        margin,
        extra,
        unused,
    })
}

/// The texts of the one column of `names` that the row has: a text, or a list of them.
fn texts(columns: &mut Columns, names: &[&str], reader: &Reader) -> Result<Vec<Box<str>>, RowError> {
    let Some((name, value)) = columns.take_one_of(names)? else { return Ok(Vec::new()) };
    let root = Place::Root;
    let place = Place::Key(&root, &name);
    let text = |value: Json, place: &Place| {
        if !matches!(value, Json::String(_) | Json::Number(_)) {
            return Err(place.fault("content", format!("expected a text, got {}", kind(&value))));
        }
        let found = reader.text_message(Role::User, value, place)?.content().unwrap_or_default().to_owned();
        if found.is_empty() {
            return Err(place.fault("empty", "the text is empty; leave the row out".to_owned()));
        }
        Ok(found.into_boxed_str())
    };
    match value {
        Json::Array(items) => {
            items.into_iter().enumerate().map(|(index, item)| text(item, &Place::Index(&place, index))).collect()
        }
        value => Ok(vec![text(value, &place)?]),
    }
}
