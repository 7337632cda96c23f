//! Which form of a row a template reads: two probes when it is compiled find out; nothing is known by name.
use super::Template;
use super::form::{Form, object, text};
use super::row::Row;
use crate::types::{Json, Message, Role};

/// A word that no template prints of itself.
const WORD: &str = "vqzprobezqv";

fn message(role: Role, fields: Vec<(Box<str>, Json)>) -> Message {
    Message { role, fields, loss: vec![], loss_scale: vec![], pieces: vec![], given: false }
}

impl Template {
    /// The form this template reads.
    pub(super) fn probe(&self, source: &str) -> Form {
        let mut form = Form::default();
        let question = message(Role::User, vec![("role".into(), text("user")), ("content".into(), text(WORD))]);
        let has_word = |messages: &[Message], form: Form| {
            let row = Row::new(messages, None, &[], form);
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
