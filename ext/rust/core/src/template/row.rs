//! A row as a template sees it: the variables that `apply_chat_template` passes.
use super::interp::Interp;
use super::marks::{Writer, Written};
use super::plan::{Known, Span};
use super::value::{Builtin, FROM_ASSISTANT, Value};
use super::{Error, SpecialTexts, Template};
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

impl<'a> Row<'a> {
    pub fn new(messages: &'a [Message], tools: Option<&'a Json>, kwargs: &'a [(Box<str>, Json)]) -> Self {
        let reasons = |message: &Message| message.fields.iter().any(|(name, _)| REASONING.contains(&&**name));
        let aliased =
            if messages.iter().any(reasons) { messages.iter().map(alias_reasoning).collect() } else { Vec::new() };
        let texts = messages.iter().flat_map(|message| message.fields.iter().map(|(_, value)| weight(value)));
        let input_bytes = texts.sum::<u64>() + tools.map_or(0, weight);
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

    fn kwarg(&self, name: &str) -> Option<&Json> {
        self.kwargs.iter().find(|(known, _)| &**known == name).map(|(_, value)| value)
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

/// Where the value of a variable that rows set is from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    Messages,
    Tools,
    Documents,
    /// `add_generation_prompt`
    Prompt,
    /// The row's `chat_template_kwargs`.
    Row {
        otherwise: Otherwise,
    },
}

/// What a variable is when the row does not set it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Otherwise {
    /// One of the tokenizer's named texts.
    Special(usize),
    Function(Builtin),
    Unset,
}

impl Origin {
    pub fn of(name: &str, specials: &SpecialTexts) -> Self {
        match name {
            "messages" => Self::Messages,
            "tools" => Self::Tools,
            "documents" => Self::Documents,
            "add_generation_prompt" => Self::Prompt,
            _ => {
                let special = specials.named.iter().position(|(known, _)| &**known == name).map(Otherwise::Special);
                let function = builtin(name).map(Otherwise::Function);
                Self::Row { otherwise: special.or(function).unwrap_or(Otherwise::Unset) }
            }
        }
    }
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
            let why = "the template's plan and its interpretation differ on this row, which is a fault of postmill; \
                       please report the template and the row";
            return Err(self.error("", why));
        }
        Ok(planned)
    }

    fn fuel(&self, row: &Row<'_>) -> u64 {
        self.options.fuel + 64 * row.input_bytes
    }

    fn writer(&self, row: &Row<'_>, count: usize) -> Writer {
        let about = (row.input_bytes as usize + 64 * (count + 1), 2 * count + 1);
        Writer::new(self.options.max_output, about)
    }

    /// The rendering by the template's plan, if it has one that can do it.
    fn planned(&self, row: &Row<'_>, count: usize, prompt: bool) -> Option<Written> {
        let plan = self.plan.as_ref()?;
        if row.kwargs.iter().any(|(name, _)| is_function(name)) {
            return None;
        }
        let outside = self.outside().map(|variable| self.known(variable, row, count, prompt));
        plan.render(row, outside, self.fuel(row), self.writer(row, count))
    }

    fn interpreted(&self, row: &Row<'_>, count: usize, prompt: bool) -> Result<Written, Error> {
        let outside = self.outside().map(|variable| self.variable(variable, row, count, prompt)).collect();
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

    /// A variable as the interpreter has it.
    fn variable<'a>(
        &'a self,
        (name, origin): (&str, Origin),
        row: &'a Row<'_>,
        count: usize,
        prompt: bool,
    ) -> Value<'a> {
        match origin {
            Origin::Messages => Value::list((0..count.min(row.messages.len())).map(|i| row.value(i)).collect()),
            Origin::Tools => row.tools.map_or(Value::None, |tools| Value::from_json(tools, 0)),
            Origin::Documents => Value::None,
            Origin::Prompt => Value::Bool(prompt),
            Origin::Row { otherwise } => match (row.kwarg(name), otherwise) {
                (Some(value), _) => Value::from_json(value, 0),
                (None, Otherwise::Special(at)) => Value::literal(&self.specials.named[at].1),
                (None, Otherwise::Function(function)) => Value::Builtin(function),
                (None, Otherwise::Unset) => Value::Unset,
            },
        }
    }

    /// A variable as a plan has it. A plan does not ask for functions.
    fn known<'a>(&'a self, (name, origin): (&str, Origin), row: &'a Row<'_>, count: usize, prompt: bool) -> Known<'a> {
        match origin {
            Origin::Messages => {
                Known::Messages(Span { first: 0, count: count.min(row.messages.len()) as u32, backwards: false })
            }
            Origin::Tools => row.tools.map_or(Known::None, |tools| Known::of(tools, 0)),
            Origin::Documents => Known::None,
            Origin::Prompt => Known::Bool(prompt),
            Origin::Row { otherwise } => match (row.kwarg(name), otherwise) {
                (Some(value), _) => Known::of(value, 0),
                (None, Otherwise::Special(at)) => Known::literal(&self.specials.named[at].1),
                (None, Otherwise::Function(_) | Otherwise::Unset) => Known::Unset,
            },
        }
    }

    /// The names that may come from outside, each with where its value is from.
    fn outside(&self) -> impl Iterator<Item = (&str, Origin)> {
        self.layout.outside.iter().map(|name| &**name).zip(self.origins.iter().copied())
    }
}
