//! A row as a template sees it: the variables that `apply_chat_template` passes.
use super::interp::Interp;
use super::marks::{Writer, Written};
use super::plan::{Known, Texts};
use super::value::{Builtin, FROM_ASSISTANT, Text, Value};
use super::{Error, SpecialTexts, Template};
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
    input_bytes: u64,
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
    fn number(&self, message: usize) -> u32 {
        let mine = if self.messages[message].role == Role::Assistant { FROM_ASSISTANT } else { 0 };
        (message as u32 + 1) | mine
    }

    fn value(&self, message: usize) -> Value<'_> {
        Value::Object(self.members(message), self.number(message))
    }

    /// A message, for a plan.
    pub fn known(&self, message: usize) -> Known<'_> {
        Known::Object(self.members(message), self.number(message))
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

impl Template {
    pub(super) fn row<'a>(
        &self,
        messages: &'a [Message],
        tools: Option<&'a Json>,
        kwargs: &'a [(Box<str>, Json)],
    ) -> Row<'a> {
        Row::new(messages, tools, kwargs, self.form)
    }

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
        let Some(planned) = self.planned(row, count, prompt) else { return self.interpreted(row, count, prompt) };
        if self.checks.is_due(self.options.check_every)
            && self.interpreted(row, count, prompt).ok().as_ref() != Some(&planned)
        {
            let name = &self.options.name;
            let message = format!(
                "{name}: the template's plan and its interpretation differ on this row, which is a fault of postmill; \
                 please report the template and the row"
            );
            return Err(Error::Internal { message: message.into() });
        }
        Ok(planned)
    }

    fn fuel(&self, row: &Row<'_>) -> u64 {
        self.options.fuel + 64 * row.input_bytes
    }

    fn writer(&self, row: &Row<'_>, count: usize) -> Writer {
        let bytes = row.input_bytes as usize + 64 * (count + 1);
        Writer::new(self.options.max_output, bytes, count.min(row.messages.len()))
    }

    /// The rendering by the template's plan, if it has one that can do it.
    fn planned(&self, row: &Row<'_>, count: usize, prompt: bool) -> Option<Written> {
        let plan = self.plan.as_ref()?;
        if row.kwargs.iter().any(|(name, _)| is_function(name)) {
            return None;
        }
        let given = self.given.iter().map(|(at, given)| {
            let value = match *given {
                Given::Messages => Known::all(count.min(row.messages.len())),
                Given::Tools => row.tools.map_or(Known::None, |tools| Known::of(tools, 0)),
                Given::Documents => Known::None,
                Given::Prompt => Known::Bool(prompt),
                Given::Special(at) => Known::literal(&self.specials.named[at].1),
            };
            (*at, value)
        });
        let own = row.kwargs.iter().filter_map(|(name, value)| {
            let at = self.layout.outside.iter().position(|known| known == name)?;
            Some((at, Known::of(value, 0)))
        });
        plan.render(row, given.chain(own), self.fuel(row), self.writer(row, count), &Texts::default())
    }

    pub(super) fn interpreted(&self, row: &Row<'_>, count: usize, prompt: bool) -> Result<Written, Error> {
        let outside = self.layout.outside.iter().map(|name| self.variable(name, row, count, prompt)).collect();
        let slots = self.layout.num_slots as usize;
        let mut interp = Interp::new(slots, outside, self.fuel(row), self.date, self.writer(row, count));
        let result = interp.run(&self.body);
        if let Err(error) = result {
            let place = interp.locate(&error);
            return Err(self.error(&place, error.0.0));
        }
        if interp.fuel.is_spent() {
            return Err(self.error("", "out of fuel: the template runs too long; raise the fuel limit if it is right"));
        }
        Ok(interp.writer.finish())
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
