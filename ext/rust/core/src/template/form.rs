//! In which form a template reads a row: most take text where it is text, some only lists of parts, and some join the
//! arguments of a call to other text.
use crate::json::{PythonStyle, python_dumps};
use crate::types::Json;

/// How a row is handed to a template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Content as a list of parts (`[{"type": "text", "text": ...}]`): as text it would not be printed.
    pub parts: bool,
    /// Arguments of calls as JSON text: as an object they would be refused.
    pub text_arguments: bool,
}

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

pub(super) fn object<const N: usize>(members: [(&str, Json); N]) -> Json {
    Json::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

pub(super) fn text(text: &str) -> Json {
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
                *value = Json::String(python_dumps(value, &PythonStyle::one_line()).into());
            }
            _ => {}
        }
    }
}
