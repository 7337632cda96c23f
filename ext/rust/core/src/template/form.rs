//! In which form a template reads a row: most take text where it is text, some only lists of parts, and some join the
//! arguments of a call to other text. Two probes when a template is compiled find out; nothing is known by name.
use super::Template;
use super::fuel::Fuel;
use super::print::{JsonStyle, JsonWriter};
use super::value::Value;
use crate::types::{Json, Message, Role};

/// How a row is handed to a template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Content as a list of parts (`[{"type": "text", "text": ...}]`): as text it would not be printed.
    parts: bool,
    /// Arguments of calls as JSON text: as an object they would be refused.
    text_arguments: bool,
}

/// A word that no template prints of itself.
const WORD: &str = "vqzprobezqv";

impl Form {
    pub fn is_usual(self) -> bool {
        self == Self::default()
    }

    /// Content is handed over as a list of parts.
    pub fn reads_parts(self) -> bool {
        self.parts
    }

    /// Bring the members of a message into this form. `pieces`: lengths of the texts its content was joined of.
    pub fn change(self, members: &mut [(Box<str>, Json)], pieces: &[usize]) {
        for (name, value) in members {
            match (&**name, &mut *value) {
                ("content", Json::String(text)) if self.parts => *value = Json::Array(parts(text, pieces)),
                ("tool_calls", Json::Array(calls)) if self.text_arguments => calls.iter_mut().for_each(spell_arguments),
                _ => {}
            }
        }
    }
}

fn object<const N: usize>(members: [(&str, Json); N]) -> Json {
    Json::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

fn text(text: &str) -> Json {
    Json::String(text.into())
}

fn parts(content: &str, pieces: &[usize]) -> Vec<Json> {
    let part = |content: &str| object([("type", text("text")), ("text", text(content))]);
    let is_split = pieces.iter().sum::<usize>() == content.len() && pieces.len() > 1;
    if !is_split {
        return vec![part(content)];
    }
    let mut rest = content;
    let mut cut = |length: &usize| {
        let (piece, after) = rest.split_at_checked(*length).unwrap_or((rest, ""));
        rest = after;
        part(piece)
    };
    pieces.iter().map(&mut cut).collect()
}

/// The arguments of a call as `json.dumps` writes them.
fn spell_arguments(call: &mut Json) {
    let Json::Object(members) = call else { return };
    for (name, value) in members {
        match (&**name, &mut *value) {
            ("function", inner @ Json::Object(_)) => spell_arguments(inner),
            ("arguments", Json::Object(_)) => {
                let (style, fuel) = (JsonStyle::default(), Fuel::new(u64::MAX));
                let mut writer = JsonWriter { style: &style, fuel: &fuel, out: String::new(), level: 0 };
                if writer.value(&Value::from_json(value, 0)).is_ok() {
                    *value = Json::String(writer.out.into());
                }
            }
            _ => {}
        }
    }
}

fn message(role: Role, fields: Vec<(Box<str>, Json)>) -> Message {
    Message { role, fields, loss: vec![], loss_scale: vec![], pieces: vec![], given: false }
}

impl Template {
    /// The form this template reads.
    pub(super) fn probe(&self, source: &str) -> Form {
        let mut form = Form::default();
        let question = message(Role::User, vec![("role".into(), text("user")), ("content".into(), text(WORD))]);
        let has_word = |messages: &[Message], form: Form| {
            let row = super::row::Row::new(messages, None, &[], form);
            match self.interpreted(&row, messages.len(), false) {
                Ok(written) => Some(written.text.contains(WORD)),
                Err(_) => None,
            }
        };
        let asked = std::slice::from_ref(&question);
        if has_word(asked, form) == Some(false) {
            form.parts = has_word(asked, Form { parts: true, ..form }) == Some(true);
        }
        if source.contains("arguments") {
            let id = || text("vqzprobe1");
            let function = object([("name", text("f")), ("arguments", object([("a", text(WORD))]))]);
            let call = object([("type", text("function")), ("id", id()), ("function", function)]);
            let call = [("role", text("assistant")), ("content", text("")), ("tool_calls", Json::Array(vec![call]))];
            let answer = [("role", text("tool")), ("name", text("f")), ("tool_call_id", id()), ("content", text("r"))];
            let named =
                |members: Vec<(&str, Json)>| members.into_iter().map(|(name, value)| (name.into(), value)).collect();
            let question = message(Role::User, named(vec![("role", text("user")), ("content", text("q"))]));
            let turns =
                [question, message(Role::Assistant, named(call.into())), message(Role::Tool, named(answer.into()))];
            if has_word(&turns, form).is_none() {
                form.text_arguments = has_word(&turns, Form { text_arguments: true, ..form }) == Some(true);
            }
        }
        form
    }
}
