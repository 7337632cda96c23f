//! A row as a template sees it: the variables that `apply_chat_template` passes.
use super::interp::Interp;
use super::marks::Mark;
use super::value::{Builtin, FROM_ASSISTANT, Text, Value};
use super::{Error, Template};
use crate::types::{Json, Message, Role};

type Members = Vec<(Box<str>, Json)>;

/// Names transformers gives to a message's reasoning; the first is the standard one.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What is rendered.
pub(super) struct Row<'a> {
    pub messages: &'a [Message],
    /// Messages whose members differ from those in the row.
    aliased: Vec<Option<Members>>,
    pub tools: Option<&'a Json>,
    pub kwargs: &'a [(Box<str>, Json)],
    input_bytes: u64,
}

/// A rendering and the notes about it.
#[derive(Debug)]
pub(super) struct Written {
    pub text: String,
    pub marks: Vec<Mark>,
    pub strays: Vec<usize>,
    pub lost_marks: bool,
}

impl<'a> Row<'a> {
    pub fn new(messages: &'a [Message], tools: Option<&'a Json>, kwargs: &'a [(Box<str>, Json)]) -> Self {
        let reasons = |message: &Message| message.fields.iter().any(|(name, _)| REASONING.contains(&&**name));
        let aliased =
            if messages.iter().any(reasons) { messages.iter().map(alias_reasoning).collect() } else { Vec::new() };
        let texts = messages.iter().flat_map(|message| message.fields.iter().map(|(_, value)| weight(value)));
        let input_bytes = texts.sum::<u64>() + tools.map_or(0, weight);
        Self { messages, aliased, tools, kwargs, input_bytes }
    }

    fn value(&self, message: usize) -> Value<'_> {
        let mine = if self.messages[message].role == Role::Assistant { FROM_ASSISTANT } else { 0 };
        Value::Object(self.members(message), (message as u32 + 1) | mine)
    }

    pub fn members(&self, message: usize) -> &[(Box<str>, Json)] {
        match self.aliased.get(message) {
            Some(Some(members)) => members,
            _ => &self.messages[message].fields,
        }
    }
}

/// Bytes and nodes of a value: what handling it may cost.
fn weight(json: &Json) -> u64 {
    match json {
        Json::String(text) | Json::Number(text) => 1 + text.len() as u64,
        Json::Array(items) => 1 + items.iter().map(weight).sum::<u64>(),
        Json::Object(members) => 1 + members.iter().map(|(key, value)| key.len() as u64 + weight(value)).sum::<u64>(),
        Json::Null | Json::Bool(_) => 1,
    }
}

/// Reasoning under every name transformers gives it: `{"thinking": r, **message, "reasoning_content": r}`.
fn alias_reasoning(message: &Message) -> Option<Members> {
    let member = |name: &str| message.fields.iter().find(|(key, _)| &**key == name).map(|(_, value)| value);
    let reasoning =
        REASONING.iter().filter_map(|name| member(name)).find(|value| !matches!(value, Json::Null))?.clone();
    let mut members: Members = vec![("thinking".into(), reasoning.clone())];
    for (key, value) in &message.fields {
        if &**key == "thinking" {
            members[0].1 = value.clone();
        } else if &**key != "reasoning_content" {
            members.push((key.clone(), value.clone()));
        } else {
            members.push((key.clone(), reasoning.clone()));
        }
    }
    if member("reasoning_content").is_none() {
        members.push(("reasoning_content".into(), reasoning));
    }
    Some(members)
}

fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "range" => Builtin::Range,
        "dict" => Builtin::Dict,
        "namespace" => Builtin::Namespace,
        "raise_exception" => Builtin::RaiseException,
        "strftime_now" => Builtin::StrftimeNow,
        "lipsum" | "cycler" | "joiner" => Builtin::Unsupported,
        _ => return None,
    })
}

/// Every template has this function.
pub(super) fn is_builtin(name: &str) -> bool {
    builtin(name).is_some() || matches!(name, "messages" | "tools" | "documents" | "add_generation_prompt" | "loop")
}

impl Template {
    /// Render the first `count` messages of a row.
    pub(super) fn write(&self, row: &Row<'_>, count: usize, prompt: bool) -> Result<Written, Error> {
        if let Some((name, _)) = row.kwargs.iter().find(|(name, _)| {
            matches!(&**name, "messages" | "tools" | "documents" | "add_generation_prompt" | "conversation")
        }) {
            return Err(self.error("", format!("chat_template_kwargs cannot set '{name}'; remove it")));
        }
        if let Some(Json::Array(tools)) = row.tools
            && tools.iter().any(|tool| !matches!(tool, Json::Object(_)))
        {
            return Err(self.error("", "every tool must be an object (a JSON schema)"));
        }
        let outside = self.layout.outside.iter().map(|name| self.variable(name, row, count, prompt)).collect();
        let fuel = self.options.fuel + 64 * row.input_bytes;
        let about = (row.input_bytes as usize + 64 * (count + 1), 2 * count + 1);
        let slots = self.layout.num_slots as usize;
        let mut interp = Interp::new(slots, outside, fuel, self.date, self.options.max_output, about);
        let result = interp.run(&self.body);
        if let Err(error) = result {
            let place = interp.locate(&error);
            return Err(self.error(&place, error.0.0));
        }
        if interp.fuel.is_spent() {
            return Err(self.error("", "out of fuel: the template runs too long; raise the fuel limit if it is right"));
        }
        Ok(Written {
            text: interp.out.text,
            marks: interp.out.marks,
            strays: interp.strays,
            lost_marks: interp.captured_marks != 0,
        })
    }

    fn variable<'a>(&'a self, name: &'a str, row: &'a Row<'_>, count: usize, prompt: bool) -> Value<'a> {
        match name {
            "messages" => Value::list((0..count.min(row.messages.len())).map(|i| row.value(i)).collect()),
            "tools" => row.tools.map_or(Value::None, |tools| Value::from_json(tools, 0)),
            "documents" => Value::None,
            "add_generation_prompt" => Value::Bool(prompt),
            _ => {
                if let Some((_, value)) = row.kwargs.iter().find(|(known, _)| &**known == name) {
                    return Value::from_json(value, 0);
                }
                if let Some((_, text)) = self.specials.named.iter().find(|(known, _)| &**known == name) {
                    return Value::Str(Text::literal(text));
                }
                builtin(name).map_or(Value::Unset, Value::Builtin)
            }
        }
    }
}
