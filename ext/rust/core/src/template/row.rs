//! A row as a template sees it: the variables that `apply_chat_template` passes.
use super::SpecialTexts;
use super::source::FROM_ASSISTANT;
use super::value::{Builtin, Value};
use crate::types::{Json, Message, Role};

type Members = Vec<(Box<str>, Json)>;

/// Names transformers gives to a message's reasoning; the first is the standard one.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What is rendered.
pub(super) struct Row<'a> {
    pub messages: &'a [Message],
    /// Messages whose members differ from those in the row.
    aliased: Vec<Option<Members>>,
    pub tools: Option<&'a Json>,
    pub kwargs: &'a [(Box<str>, Json)],
    /// Bytes and nodes of its values.
    pub input_bytes: u64,
}

impl<'a> Row<'a> {
    /// `form`: in which of its forms the template reads a row.
    pub fn new(
        messages: &'a [Message],
        tools: Option<&'a Json>,
        kwargs: &'a [(Box<str>, Json)],
        form: super::form::Form,
    ) -> Self {
        let (mut reasons, mut input_bytes) = (false, tools.map_or(0, weight));
        for (name, value) in messages.iter().flat_map(|message| &message.fields) {
            reasons |= name.len() >= "thinking".len() && REASONING.contains(&&**name);
            input_bytes += if let Json::String(text) = value { 1 + text.len() as u64 } else { weight(value) };
        }
        let mut aliased = if reasons { messages.iter().map(alias_reasoning).collect() } else { Vec::new() };
        if !form.is_usual() {
            aliased.resize(messages.len(), None);
            for (members, message) in aliased.iter_mut().zip(messages) {
                form.change(members.get_or_insert_with(|| message.fields.clone()), &message.pieces);
            }
        }
        Self { messages, aliased, tools, kwargs, input_bytes }
    }

    /// The number by which values remember a message.
    pub fn number(&self, message: usize) -> u32 {
        let mine = if self.messages[message].role == Role::Assistant { FROM_ASSISTANT } else { 0 };
        (message as u32 + 1) | mine
    }

    pub fn value(&self, message: usize) -> Value<'_> {
        Value::Object(self.members(message), self.number(message))
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

/// The function that every template has under this name.
pub(super) fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "range" => Builtin::Range,
        "dict" => Builtin::Dict,
        "namespace" => Builtin::Namespace,
        "raise_exception" => Builtin::RaiseException,
        "strftime_now" => Builtin::StrftimeNow,
        "lipsum" | "cycler" | "joiner" | "self" => Builtin::Unsupported,
        _ => return None,
    })
}

/// A variable that has a value in every row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Given {
    Messages,
    Tools,
    Documents,
    /// `add_generation_prompt`
    Prompt,
    /// One of the tokenizer's named texts.
    Special(usize),
}

/// Those of `names`, with their places in it. Functions are not among them: a plan does not ask for one.
pub(super) fn given(names: &[Box<str>], specials: &SpecialTexts) -> Vec<(usize, Given)> {
    let of = |name: &str| match name {
        "messages" => Some(Given::Messages),
        "tools" => Some(Given::Tools),
        "documents" => Some(Given::Documents),
        "add_generation_prompt" => Some(Given::Prompt),
        _ => specials.named.iter().position(|(known, _)| &**known == name).map(Given::Special),
    };
    names.iter().enumerate().filter_map(|(at, name)| Some((at, of(name)?))).collect()
}

/// Every template can call this.
pub(super) fn is_function(name: &str) -> bool {
    builtin(name).is_some()
}

/// Every template has this variable or function.
pub(super) fn is_builtin(name: &str) -> bool {
    builtin(name).is_some() || matches!(name, "messages" | "tools" | "documents" | "add_generation_prompt" | "loop")
}
