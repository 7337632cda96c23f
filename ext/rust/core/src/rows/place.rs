//! Where in a row we are, at no cost until something is wrong there.
use std::fmt;

use crate::error::RowError;
use crate::json;
use crate::types::Json;

/// A JSON path that is only written out for an error.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl Place<'_> {
    pub(super) fn fault(&self, reason: &'static str, message: String) -> RowError {
        RowError::at(self.to_string(), reason, message)
    }

    fn append(&self, path: &mut String) {
        match self {
            Self::Root => path.push('$'),
            Self::Key(parent, key) => {
                parent.append(path);
                json::push_key(path, key);
            }
            Self::Index(parent, index) => {
                parent.append(path);
                json::push_index(path, *index);
            }
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut path = String::new();
        self.append(&mut path);
        f.write_str(&path)
    }
}

/// A value in a few words: its type and how it begins.
pub(super) fn kind(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(text) => format!("the number {}", json::shortened(text)),
        Json::String(text) if text.is_empty() => "an empty text".to_owned(),
        Json::String(text) => format!("the text {}", quoted(text)),
        Json::Array(items) => format!("a list of {}", items.len()),
        Json::Object(members) if members.is_empty() => "an empty object".to_owned(),
        Json::Object(members) => {
            format!("an object with {}", listed(members.iter().map(|(key, _)| &**key)))
        }
    }
}

/// `"text"`, shortened and on one line.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::new();
    json::append_canonical(&mut out, &Json::String(json::shortened(text).into()));
    out
}

/// The first few names, for a message.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let mut shown: Vec<String> = names.iter().take(8).map(|name| json::shortened(name)).collect();
    if names.len() > 8 {
        shown.push(format!("{} more", names.len() - 8));
    }
    shown.join(", ")
}

/// A text that holds a JSON list or object is read; everything else stays as it is.
pub(super) fn parsed(value: Json, place: &Place) -> Result<Json, RowError> {
    let Json::String(text) = &value else { return Ok(value) };
    if !text.trim_start().starts_with(['[', '{']) {
        return Ok(value);
    }
    json::parse_text(text).map_err(|fault| inner_fault(&fault, place))
}

/// A fault in JSON text inside a string, told as a fault of that string.
pub(super) fn inner_fault(fault: &RowError, place: &Place) -> RowError {
    let column = fault.column.map_or_else(String::new, |column| format!(" at byte {column}"));
    let message = format!("the text is not valid JSON{column}: {}", fault.message);
    place.fault("inner_json", message)
}

/// The one of `known` that `name` is probably a misspelling of.
pub(super) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let limit = match name.chars().count() {
        0..=2 => return None,
        3..=7 => 1,
        _ => 2,
    };
    let distances = known.into_iter().map(|candidate| (edit_distance(&name, candidate), candidate));
    distances
        .filter(|&(distance, _)| distance > 0 && distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours between two short names (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut cost = (above[j] + 1).min(row[j - 1] + 1).min(above[j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                cost = cost.min(before[j - 2] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}
