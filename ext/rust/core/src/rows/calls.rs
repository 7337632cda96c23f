//! Tool calls, from every form they are written in to the one that chat templates expect.
//!
//! Templates on the Hub expect `arguments` to be an object and print it with `tojson`: given OpenAI's JSON text instead,
//! Llama's and Mistral's would print it quoted a second time. So a text is read, as vLLM does before it renders; what is
//! not an object then is an error. No arguments (a missing member, an empty text) are an empty object.
use crate::error::RowError;
use crate::json;
use crate::rows::place::{Place, inner_fault, kind, parsed};
use crate::types::{Json, Message};

const FORM: &str = "{\"name\": ..., \"arguments\": {...}}";

/// The content of a `tool_call` message: a call or a list of calls, as JSON or its text.
pub(super) fn from_content(value: Json, place: &Place) -> Result<Vec<Json>, RowError> {
    match parsed(value, place)? {
        Json::Array(calls) if !calls.is_empty() => each(calls, place),
        call => Ok(vec![one(call, place)?]),
    }
}

/// An answer that is the JSON text of a list of calls, as xLAM's are: a message with these calls.
pub(super) fn of_answer(value: Json) -> Json {
    let Json::String(text) = &value else { return value };
    let is_call = |call: &Json| match call {
        Json::Object(members) => {
            members.len() == 2
                && call.member("name").is_some()
                && matches!(call.member("arguments"), Some(Json::Object(_)))
        }
        _ => false,
    };
    match json::parse_text(text) {
        Ok(Json::Array(calls)) if !calls.is_empty() && calls.iter().all(is_call) => Json::Object(vec![
            ("role".into(), Json::String("assistant".into())),
            ("content".into(), Json::String("".into())),
            ("tool_calls".into(), Json::Array(calls)),
        ]),
        _ => value,
    }
}

/// OpenAI's `tool_calls`.
pub(super) fn from_openai(value: Json, place: &Place) -> Result<Vec<Json>, RowError> {
    match parsed(value, place)? {
        Json::Array(calls) => each(calls, place),
        other => Err(place.fault("tool_call", format!("expected a list of tool calls, got {}", kind(&other)))),
    }
}

fn each(calls: Vec<Json>, place: &Place) -> Result<Vec<Json>, RowError> {
    calls.into_iter().enumerate().map(|(index, call)| one(call, &Place::Index(place, index))).collect()
}

/// Number the ids of calls anew from 1, in nine digits, and those of the answers to them.
pub(super) fn number(messages: &mut [Message]) {
    let mut names: Vec<Json> = vec![];
    for message in messages {
        for (name, value) in &mut message.fields {
            let ids: Vec<&mut Json> = match (&**name, value) {
                ("tool_call_id", id @ Json::String(_)) => vec![id],
                ("tool_calls", Json::Array(calls)) => calls.iter_mut().filter_map(id_of).collect(),
                _ => continue,
            };
            for id in ids {
                let at = names.iter().position(|known| known == id).unwrap_or_else(|| {
                    names.push(id.clone());
                    names.len() - 1
                });
                *id = Json::String(format!("{:09}", at + 1).into());
            }
        }
    }
}

fn id_of(call: &mut Json) -> Option<&mut Json> {
    let Json::Object(members) = call else { return None };
    members.iter_mut().find(|(name, _)| **name == *"id").map(|(_, id)| id)
}

/// `{type, id, function: {name, arguments}}` with all its members, or a bare `{name, arguments}`.
pub(super) fn one(value: Json, place: &Place) -> Result<Json, RowError> {
    let Json::Object(mut members) = value else {
        return Err(place.fault("tool_call", format!("expected a tool call {FORM}, got {}", kind(&value))));
    };
    members.retain(|(_, value)| *value != Json::Null);
    let Some(index) = members.iter().position(|(key, _)| **key == *"function") else {
        return Ok(wrapped(None, function(members, place)?));
    };
    match std::mem::replace(&mut members[index].1, Json::Null) {
        Json::Object(inner) => members[index].1 = function(inner, &Place::Key(place, "function"))?,
        other => {
            let message = format!("expected {FORM}, got {}", kind(&other));
            return Err(Place::Key(place, "function").fault("tool_call", message));
        }
    }
    if !members.iter().any(|(key, _)| **key == *"type") {
        members.insert(0, ("type".into(), Json::String("function".into())));
    }
    Ok(Json::Object(members))
}

/// Anthropic's `tool_use` block.
pub(super) fn from_anthropic(id: Json, name: Json, input: Json, place: &Place) -> Result<Json, RowError> {
    let members = vec![("name".into(), name), ("arguments".into(), input)];
    let id = matches!(id, Json::String(_)).then_some(id);
    Ok(wrapped(id, function(members, place)?))
}

fn wrapped(id: Option<Json>, function: Json) -> Json {
    let id = id.map(|id| ("id".into(), id));
    let kind = ("type".into(), Json::String("function".into()));
    Json::Object(id.into_iter().chain([kind, ("function".into(), function)]).collect())
}

/// Check the name, read the arguments, keep everything else.
fn function(mut members: Vec<(Box<str>, Json)>, place: &Place) -> Result<Json, RowError> {
    let name = members.iter().find(|(key, _)| **key == *"name").map(|(_, value)| value);
    if !matches!(name, Some(Json::String(name)) if !name.is_empty()) {
        let found =
            name.map_or_else(|| kind(&Json::Object(members.clone())), |name| format!("the name {}", kind(name)));
        return Err(place.fault("tool_call", format!("expected a tool call {FORM}, got {found}")));
    }
    let find = |name: &str| members.iter().position(|(key, _)| **key == *name);
    let Some(index) = find("arguments").or_else(|| find("parameters")) else {
        members.push(("arguments".into(), Json::Object(Vec::new())));
        return Ok(Json::Object(members));
    };
    let (key, value) = &mut members[index];
    let value_place = Place::Key(place, key);
    let read = arguments(std::mem::replace(value, Json::Null), &value_place)?;
    members[index] = ("arguments".into(), read);
    Ok(Json::Object(members))
}

fn arguments(value: Json, place: &Place) -> Result<Json, RowError> {
    let value = match value {
        Json::String(text) if text.trim().is_empty() => Json::Object(Vec::new()),
        Json::String(text) => json::parse_text(&text).map_err(|fault| inner_fault(&fault, place))?,
        Json::Null => Json::Object(Vec::new()),
        other => other,
    };
    match value {
        Json::Object(_) => Ok(value),
        other => {
            Err(place
                .fault("tool_call", format!("expected an object of arguments or its JSON text, got {}", kind(&other))))
        }
    }
}

/// A tool's definition in the one form that templates read, `{type: "function", function: {...}}`: bare definitions, those
/// of OpenAI's Responses and Anthropic's `input_schema` are brought into it; others stay as they are.
pub(super) fn definition(tool: Json) -> Json {
    let Json::Object(mut members) = tool else { return tool };
    let has = |members: &[(Box<str>, Json)], name: &str| members.iter().any(|(key, _)| **key == *name);
    let is_function = match members.iter().find(|(key, _)| **key == *"type") {
        None => true,
        Some((_, Json::String(kind))) => &**kind == "function" || &**kind == "custom" && has(&members, "input_schema"),
        Some(_) => false,
    };
    if !is_function || has(&members, "function") || !has(&members, "name") {
        return Json::Object(members);
    }
    members.retain(|(key, _)| **key != *"type");
    for (key, _) in &mut members {
        if **key == *"input_schema" {
            *key = "parameters".into();
        }
    }
    wrapped(None, Json::Object(members))
}

/// The name of the latest call with this id.
pub(super) fn name_of(messages: &[Message], id: &str) -> Option<Box<str>> {
    messages.iter().rev().find_map(|message| {
        let (_, calls) = message.fields.iter().find(|(key, _)| **key == *"tool_calls")?;
        let Json::Array(calls) = calls else { return None };
        calls.iter().find_map(|call| {
            let same = call.text("id") == Some(id);
            call.member("function")?.text("name").filter(|_| same).map(Box::from)
        })
    })
}
