//! The content of a message: a text, or a list of parts in OpenAI's or Anthropic's manner.
use crate::error::RowError;
use crate::json::{PythonStyle, python_dumps};
use crate::media;
use crate::media::kind::{self as media_kind, Kind};
use crate::rows::calls;
use crate::rows::marks;
use crate::rows::messages::Reader;
use crate::rows::place::{Place, kind, quoted};
use crate::types::{Json, Role};

/// What a content held.
#[derive(Default)]
pub(super) struct Content {
    /// All texts, joined with nothing between them.
    pub(super) text: String,
    /// Byte lengths of the texts, if there were several.
    pub(super) pieces: Vec<usize>,
    /// What each text part says of training: `loss` and `loss_scale`.
    pub(super) marks: Vec<Option<(Option<Json>, Option<Json>)>>,
    /// Pictures: before which byte of the text each stands, as a part of the content.
    pub(super) media: Vec<(usize, Json)>,
    /// Anthropic's thinking blocks, joined.
    pub(super) reasoning: String,
    /// Tool calls in OpenAI's form.
    pub(super) calls: Vec<Json>,
    /// Anthropic's tool results: call id, text, whether the tool failed.
    pub(super) results: Vec<(Option<Box<str>>, Box<str>, bool)>,
    /// There was nothing but tool results, so no message is left besides them.
    pub(super) only_results: bool,
}

impl Content {
    /// Lengths of the texts of a content that is a text.
    pub(super) fn take_pieces(&mut self) -> Vec<usize> {
        if self.media.is_empty() { std::mem::take(&mut self.pieces) } else { vec![] }
    }

    /// The content as the template sees it: a text, or parts where pictures are among them.
    fn value(&mut self) -> Json {
        let text = std::mem::take(&mut self.text);
        if self.media.is_empty() {
            return Json::String(text.into());
        }
        let mut ends = std::mem::take(&mut self.pieces);
        let mut sum = 0;
        for length in &mut ends {
            sum += *length;
            *length = sum;
        }
        ends.extend(self.media.iter().map(|(at, _)| *at).chain([text.len()]));
        ends.sort_unstable();
        let (mut parts, mut start) = (vec![], 0);
        let mut pictures = std::mem::take(&mut self.media).into_iter().peekable();
        for end in ends {
            if end > start {
                parts.push(media::text_part(&text[start..end]));
                start = end;
            }
            while let Some((_, picture)) = pictures.next_if(|(at, _)| *at == start) {
                parts.push(picture);
            }
        }
        Json::Array(parts)
    }

    /// The members the template sees.
    pub(super) fn fields(mut self, role: Role, rest: Vec<(Box<str>, Json)>) -> Vec<(Box<str>, Json)> {
        let name = match role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let mut fields = Vec::with_capacity(2 + rest.len());
        fields.push(("role".into(), Json::String(name.into())));
        fields.push(("content".into(), self.value()));
        if !self.reasoning.is_empty() && !rest.iter().any(|(key, _)| **key == *"reasoning_content") {
            fields.push(("reasoning_content".into(), Json::String(self.reasoning.into())));
        }
        if !self.calls.is_empty() {
            fields.push(("tool_calls".into(), Json::Array(self.calls)));
        }
        fields.extend(rest);
        fields
    }
}

impl Reader<'_> {
    /// A text or a list of parts.
    pub(super) fn content(&self, value: Json, place: &Place) -> Result<Content, RowError> {
        match value {
            Json::String(text) => Ok(Content { text: self.filled(text, place)?, ..Content::default() }),
            Json::Array(parts) => self.parts(parts, place),
            other => {
                let message = format!("expected a text or a list of content parts, got {}", kind(&other));
                Err(place.fault("content", message))
            }
        }
    }

    /// What a tool answered: a text, parts of text, or any JSON value, which is then written as `json.dumps` does.
    pub(super) fn tool_content(&self, value: Json, place: &Place) -> Result<Content, RowError> {
        let is_part = |part: &Json| match part {
            Json::String(_) => true,
            Json::Object(members) => members.iter().any(|(key, _)| **key == *"type"),
            _ => false,
        };
        match value {
            Json::Array(parts) if !parts.is_empty() && parts.iter().all(is_part) => self.parts(parts, place),
            Json::String(_) | Json::Null => self.content(value, place),
            other => Ok(Content { text: python_dumps(&other, &PythonStyle::one_line()), ..Content::default() }),
        }
    }

    fn parts(&self, parts: Vec<Json>, place: &Place) -> Result<Content, RowError> {
        let mut content = Content::default();
        let mut lengths = Vec::new();
        for (index, part) in parts.into_iter().enumerate() {
            let place = Place::Index(place, index);
            let before = content.text.len();
            let had_calls = !content.calls.is_empty();
            if self.part(&mut content, part, &place)? {
                if had_calls {
                    let message = "text after a tool call has no place in a message with tool_calls; make it a message of its own";
                    return Err(place.fault("content", message.to_owned()));
                }
                lengths.push(content.text.len() - before);
            } else if !content.results.is_empty() && !lengths.is_empty() {
                let message = "a tool_result block must come before the user's text; move it to the front";
                return Err(place.fault("content", message.to_owned()));
            }
        }
        content.only_results = !content.results.is_empty() && lengths.is_empty() && content.media.is_empty();
        if lengths.len() > 1 {
            content.pieces = lengths;
        }
        Ok(content)
    }

    /// Add one part; true if it was text.
    fn part(&self, content: &mut Content, part: Json, place: &Place) -> Result<bool, RowError> {
        let mut members = match part {
            Json::String(text) => {
                content.text.push_str(&self.filled(text, place)?);
                content.marks.push(None);
                return Ok(true);
            }
            Json::Object(members) => members,
            other => {
                let message = format!("expected a content part (an object with type), got {}", kind(&other));
                return Err(place.fault("content", message));
            }
        };
        let (marks, rest): (Vec<_>, Vec<_>) = members.into_iter().partition(|(key, _)| marks::is_mark(key));
        let marks: Vec<_> = marks.into_iter().filter(|(_, value)| *value != Json::Null).collect();
        members = rest;
        let mut take = |name: &str| {
            let found = members.iter().position(|(key, _)| **key == *name);
            found.map_or(Json::Null, |index| members.swap_remove(index).1)
        };
        let Json::String(part_type) = take("type") else {
            return Err(place.fault(
                "content",
                "the content part has no type; expected {\"type\": \"text\", \"text\": ...}".to_owned(),
            ));
        };
        // LLaMA-Factory calls the member `value` in every part.
        let mut named = |name: &'static str| match take(name) {
            Json::Null => ("value", take("value")),
            value => (name, value),
        };
        match &*part_type {
            "text" | "input_text" | "output_text" => {
                let (name, value) = named("text");
                content.text.push_str(&self.part_text(value, &Place::Key(place, name))?);
                content.marks.push(if marks.is_empty() { None } else { Some(marks::read(marks, place)?) });
                return Ok(true);
            }
            _ if !marks.is_empty() => {
                let message = format!("a mark on a part of type {part_type} is not read; mark texts, or the message");
                return Err(place.fault("loss", message));
            }
            "thinking" | "reasoning" => {
                let (name, value) = named(if *part_type == *"thinking" { "thinking" } else { "reasoning" });
                content.reasoning.push_str(&self.part_text(value, &Place::Key(place, name))?);
            }
            "tool_call" => {
                let (name, value) = named("tool_call");
                content.calls.extend(calls::from_content(value, &Place::Key(place, name))?);
            }
            "tool_use" => content.calls.push(calls::from_anthropic(take("id"), take("name"), take("input"), place)?),
            "tool_result" => {
                let answer = match take("content") {
                    Json::Null => Content::default(),
                    value => self.tool_content(value, &Place::Key(place, "content"))?,
                };
                if !answer.media.is_empty() {
                    let message = "a picture in a tool_result block is not read; put it into a message of the user";
                    return Err(place.fault("media", message.to_owned()));
                }
                let id = match take("tool_use_id") {
                    Json::String(id) => Some(id),
                    _ => None,
                };
                content.results.push((id, answer.text.into(), take("is_error") == Json::Bool(true)));
            }
            other => {
                if let Some(kind) = Kind::of_part(other) {
                    if !self.options.media.has(kind) {
                        let noun = kind.noun();
                        let message = format!(
                            "{other} parts need a model that reads {noun}s; give one with -m, or remove these rows"
                        );
                        return Err(place.fault("media", message));
                    }
                    // OpenAI's, Hugging Face's and Anthropic's names of where it is; none: in the column of the row
                    let keys: &[&str] = match kind {
                        Kind::Image => &["image_url", "image", "url", "path", "source", "value"],
                        Kind::Audio => &["audio_url", "input_audio", "audio", "url", "path", "source", "value"],
                        Kind::Video => &["video_url", "video", "url", "path", "source", "value"],
                    };
                    let reference = keys.iter().map(|key| take(key)).find(|value| *value != Json::Null);
                    content.media.push((content.text.len(), media_kind::part(kind, reference.unwrap_or_default())));
                    return Ok(false);
                }
                let message = format!(
                    "unknown content part {}; known are text, thinking, reasoning, tool_call, tool_use, tool_result",
                    quoted(&part_type)
                );
                return Err(place.fault("content", message));
            }
        }
        Ok(false)
    }

    fn part_text(&self, value: Json, place: &Place) -> Result<String, RowError> {
        match value {
            Json::String(text) => self.filled(text, place),
            other => Err(place.fault("content", format!("expected a text, got {}", kind(&other)))),
        }
    }

    /// Whether texts may have to be filled in.
    pub(super) fn fills(&self) -> bool {
        self.options.model_name.is_some() || self.options.model_author.is_some()
    }

    /// Self-cognition data: `{{NAME}}` and `{{AUTHOR}}`, in capitals or not, become what the options say.
    fn filled(&self, text: Box<str>, place: &Place) -> Result<String, RowError> {
        let (name, author) = (&self.options.model_name, &self.options.model_author);
        if !self.fills() || !text.contains("{{") {
            return Ok(text.into());
        }
        let mut text = String::from(text);
        for (marks, value, option) in
            [(["{{NAME}}", "{{name}}"], name, "--model-name"), (["{{AUTHOR}}", "{{author}}"], author, "--model-author")]
        {
            for mark in marks {
                match value {
                    Some(value) if text.contains(mark) => text = text.replace(mark, value),
                    None if text.contains(mark) => {
                        return Err(place.fault("placeholder", format!("{mark} has no value; give {option} too")));
                    }
                    _ => {}
                }
            }
        }
        Ok(text)
    }
}
