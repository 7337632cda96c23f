//! The bytes of a record as JSON, where a number that is none may stand in a column that nobody reads.
use crate::error::RowError;
use crate::input::lines::{self, Record};
use crate::json::{self, NOT_A_NUMBER, NOT_NUMBERS};
use crate::rows::RowOptions;
use crate::rows::columns::is_column;
use crate::rows::place::Place;
use crate::types::Json;

/// Read the record of `data`; true if `NaN` or `Infinity`, which `json.dumps` writes and JSON does not have, was read as
/// null in a column that nobody reads.
///
/// # Errors
/// As [`lines::parse_record`].
pub fn parse_record(data: &[u8], record: &Record, options: &RowOptions) -> Result<(Json, bool), RowError> {
    let fault = match lines::parse_record(data, record) {
        Err(fault) if fault.reason == NOT_A_NUMBER => fault,
        parsed => return parsed.map(|value| (value, false)),
    };
    let Ok(text) = std::str::from_utf8(&data[record.range.clone()]) else { return Err(fault) };
    let Json::Object(mut members) = json::parse_loose(text)? else { return Err(fault) };
    for (name, value) in &mut members {
        let renamed = options.columns.iter().find(|(old, _)| old == name).map_or(&*name, |(_, new)| new);
        if options.drop.contains(name) || !is_column(renamed) {
            without_odd_numbers(value);
        } else if let Some(word) = odd_number(value) {
            // the first one in the row may stand in a column that may have it
            let place = Place::Key(&Place::Root, name);
            let is_first = fault.path.starts_with(&place.to_string());
            let message = format!("{word} is not JSON; use null or leave the member out");
            return Err(if is_first { fault } else { place.fault(NOT_A_NUMBER, message) });
        }
    }
    Ok((Json::Object(members), true))
}

fn odd_number(value: &Json) -> Option<&str> {
    match value {
        Json::Number(text) => NOT_NUMBERS.iter().find(|word| ***word == **text).copied(),
        Json::Array(items) => items.iter().find_map(odd_number),
        Json::Object(members) => members.iter().find_map(|(_, value)| odd_number(value)),
        _ => None,
    }
}

fn without_odd_numbers(value: &mut Json) {
    match value {
        Json::Number(_) if odd_number(value).is_some() => *value = Json::Null,
        Json::Array(items) => items.iter_mut().for_each(without_odd_numbers),
        Json::Object(members) => members.iter_mut().for_each(|(_, value)| without_odd_numbers(value)),
        _ => {}
    }
}
