//! Agent formats: tools, calls and results written into messages, for models whose template knows none of them.
//!
//! A format is data: a few Jinja sources in one file (`stages/shared/agent_formats/`), rendered by the engine that renders
//! chat templates. What a tool answered becomes a message of its own (`answers = "user"` or `"tool"`), or a part of the
//! assistant's turn, which then goes on behind it (`"turn"`), as `ReAct` has it. Such a part is the tool's: it has a turn of
//! its own among the tokens, so no base but `all` trains it, and `last_round` starts behind it.
use crate::error::{Error, RowError};
use crate::json;
use crate::template::{Options, SpecialTexts, Template};
use crate::types::{Json, Message, Role};

/// Who says what a tool answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// A message of the user.
    User,
    /// A message of the tool.
    Tool,
    /// The assistant's turn, which goes on behind it.
    Turn,
}

/// How one format writes. Each template sees the variables in brackets.
#[derive(Debug)]
pub struct AgentFormat {
    name: Box<str>,
    /// The system message of a row with tools \[`tools`, `system`\].
    system: Option<Template>,
    /// A message before it \[`tools`\], with members of its own.
    declare: Option<(Template, Members)>,
    /// The first question of a row with tools \[`tools`, `question`\].
    question: Option<Template>,
    /// What stands behind the assistant's text \[`content`, `calls`: name, arguments, id\].
    calls: Template,
    /// Whether the text before calls loses the whitespace at its ends.
    trim: bool,
    /// What the model writes before answers come \[`content`\].
    until: Option<Template>,
    /// The answers \[`results`: content, name, id, index; `calls`; `content`\].
    results: Template,
    answers: Answers,
    /// Whether each answer is a message.
    each: bool,
}

/// Members of an object.
type Members = Vec<(Box<str>, Json)>;

/// Index of a message in its row, if it has one there, and the message.
type Placed = (Option<usize>, Message);

/// A piece of the assistant's turn.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnPart {
    /// Index of the message it came from.
    pub message: usize,
    /// A tool said it.
    pub(crate) is_answer: bool,
    /// `loss` of that message, or of its piece.
    pub loss: Option<bool>,
    /// `loss_scale`.
    pub loss_scale: Option<f32>,
}

/// A conversation as the template is to see it.
#[derive(Debug, Default)]
pub struct Written {
    /// Its messages.
    pub messages: Vec<Message>,
    /// Index of the message that each came from; none for one that only declares tools.
    pub(crate) origins: Vec<Option<usize>>,
    /// The parts of a message, one for each of its `pieces`, where a tool said some of them.
    pub parts: Vec<Vec<TurnPart>>,
}

impl AgentFormat {
    /// Read a format: a JSON object with the members of its file.
    ///
    /// # Errors
    /// `Error::Config` for a format that cannot be read.
    pub fn new(name: &str, text: &str, specials: &SpecialTexts) -> Result<Self, Error> {
        let fault = |what: &str| Error::Config { message: format!("agent format {name}: {what}").into() };
        let value = json::parse_text(text).map_err(|_| fault("not JSON"))?;
        let member = |key: &str| match value.member(key) {
            Some(Json::String(text)) => Some(&**text),
            _ => None,
        };
        let compile = |key: &str| {
            let options = Options {
                name: format!("agent format {name}, {key}").into(),
                as_given: true,
                max_output: 16 << 20,
                ..Options::default()
            };
            member(key).map(|source| Template::new(source, specials, options)).transpose()
        };
        let answers = match member("answers") {
            Some("user") => Answers::User,
            Some("tool") => Answers::Tool,
            Some("turn") => Answers::Turn,
            _ => return Err(fault("answers must be user, tool or turn")),
        };
        let declare = match (compile("declare")?, value.member("declare_as")) {
            (Some(template), Some(Json::Object(members))) => Some((template, members.clone())),
            (Some(_), _) => return Err(fault("declare needs declare_as, the members of its message")),
            (None, _) => None,
        };
        Ok(Self {
            system: compile("system")?,
            declare,
            question: compile("question")?,
            calls: compile("calls")?.ok_or_else(|| fault("calls is missing"))?,
            trim: value.member("trim") == Some(&Json::Bool(true)),
            until: compile("until")?,
            results: compile("results")?.ok_or_else(|| fault("results is missing"))?,
            answers,
            each: value.member("each") == Some(&Json::Bool(true)),
            name: name.into(),
        })
    }

    /// Write `tools`, calls and answers into the messages.
    ///
    /// # Errors
    /// `Error::Row` for a row that the format has no place for; `Error::Template` as [`Template::render_text`].
    pub fn write(&self, messages: Vec<Message>, tools: Option<&Json>) -> Result<Written, Error> {
        let mut out = Written::default();
        let mut messages: Vec<Placed> =
            messages.into_iter().enumerate().map(|(index, message)| (Some(index), message)).collect();
        if let Some(tools) = tools {
            self.write_tools(&mut messages, tools)?;
        }
        // Calls that no answer was asked for yet: name, arguments, id.
        let mut open: Vec<Json> = vec![];
        let mut messages = messages.into_iter().peekable();
        while let Some((origin, message)) = messages.next() {
            if message.role != Role::Tool {
                let message = self.write_calls(message, &mut open)?;
                self.push(&mut out, origin, message)?;
                continue;
            }
            let mut run = vec![(origin, message)];
            while let Some(next) = messages.next_if(|(_, message)| message.role == Role::Tool) {
                run.push(next);
            }
            self.write_answers(&mut out, run, &open)?;
        }
        Ok(out)
    }

    fn write_tools(&self, messages: &mut Vec<Placed>, tools: &Json) -> Result<(), Error> {
        let has_system = messages.first().is_some_and(|(_, message)| message.role == Role::System);
        if let Some(template) = &self.system {
            let old = messages.first().filter(|_| has_system).map(|(_, message)| text_of(message).to_owned());
            let old = old.map_or(Json::Null, |text| Json::String(text.into()));
            let text = template.render_text(&[], Some(tools), &[("system".into(), old)], false)?;
            if has_system {
                set_text(&mut messages[0].1, text);
            } else {
                messages.insert(0, (None, message(Role::System, "system", text)));
            }
        }
        if let Some((template, members)) = &self.declare {
            let text = template.render_text(&[], Some(tools), &[], false)?;
            let mut declared = message(Role::System, "system", text);
            for (name, value) in members {
                match declared.fields.iter_mut().find(|(other, _)| other == name) {
                    Some((_, slot)) => *slot = value.clone(),
                    None => declared.fields.push((name.clone(), value.clone())),
                }
            }
            messages.insert(0, (None, declared));
        }
        if let Some(template) = &self.question {
            let asked = messages.iter_mut().map(|(_, message)| message).find(|message| message.role == Role::User);
            let Some(asked) = asked else {
                return Err(self.no_place(0, "writes tools into the first question, and the row has none"));
            };
            let question = ("question".into(), Json::String(text_of(asked).into()));
            let text = template.render_text(&[], Some(tools), &[question], false)?;
            set_text(asked, text);
        }
        Ok(())
    }

    /// Move the calls of a message into its text. `open`: the calls, for answers to come.
    fn write_calls(&self, mut message: Message, open: &mut Vec<Json>) -> Result<Message, Error> {
        open.clear();
        let Some(at) = message.fields.iter().position(|(name, _)| &**name == "tool_calls") else { return Ok(message) };
        let (_, calls) = message.fields.remove(at);
        let Json::Array(calls) = calls else { return Ok(message) };
        open.extend(calls.into_iter().map(flat_call));
        let content = text_of(&message);
        let kept = if self.trim { content.trim() } else { content };
        let skipped = if self.trim { content.len() - content.trim_start().len() } else { 0 };
        let given = [("content".into(), Json::String(kept.into())), ("calls".into(), Json::Array(open.clone()))];
        let text = [kept, &self.calls.render_text(&[], None, &given, false)?].concat();
        if let Some(first) = message.pieces.first_mut() {
            *first = first.saturating_sub(skipped);
        }
        set_text(&mut message, text);
        Ok(message)
    }

    /// Append a message, or its text to the turn that an answer left open.
    fn push(&self, out: &mut Written, origin: Option<usize>, message: Message) -> Result<(), Error> {
        let goes_on = message.role == Role::Assistant
            && out.parts.last().and_then(|parts| parts.last()).is_some_and(|part| part.is_answer);
        if !goes_on {
            out.messages.push(message);
            out.origins.push(origin);
            out.parts.push(vec![]);
            return Ok(());
        }
        let index = origin.unwrap_or(0);
        if message.fields.iter().any(|(name, _)| matches!(&**name, "reasoning_content" | "reasoning" | "thinking")) {
            let what = "goes on in the same turn behind what a tool answered, where reasoning has no place; put it into \
                        the content";
            return Err(self.no_place(index, what));
        }
        let (Some(open), Some(parts)) = (out.messages.last_mut(), out.parts.last_mut()) else { return Ok(()) };
        add_parts(parts, index, &message);
        open.pieces.extend(lengths(&message));
        append_text(open, text_of(&message));
        Ok(())
    }

    fn write_answers(&self, out: &mut Written, run: Vec<Placed>, open: &[Json]) -> Result<(), Error> {
        let results: Vec<Json> = run.iter().enumerate().map(|(at, (_, message))| result(message, at, open)).collect();
        let content =
            out.messages.last().filter(|message| message.role == Role::Assistant).map_or("", text_of).to_owned();
        let render = |results: Vec<Json>, content: &str| {
            let given = [
                ("results".into(), Json::Array(results)),
                ("calls".into(), Json::Array(open.to_vec())),
                ("content".into(), Json::String(content.into())),
            ];
            self.results.render_text(&[], None, &given, false)
        };
        let index = run[0].0.unwrap_or(0);
        let (role, role_name) = match self.answers {
            Answers::User => (Role::User, "user"),
            Answers::Tool => (Role::Tool, "tool"),
            Answers::Turn => return self.answer_in_turn(out, index, |content| render(results, content)),
        };
        if self.each {
            for ((origin, mut told), result) in run.into_iter().zip(results) {
                let text = render(vec![result], &content)?;
                told.role = role;
                set_text(&mut told, text);
                out.messages.push(told);
                out.origins.push(origin);
                out.parts.push(vec![]);
            }
            return Ok(());
        }
        let mut told = message(role, role_name, render(results, &content)?);
        told.loss.clone_from(&run[0].1.loss);
        out.messages.push(told);
        out.origins.push(Some(index));
        out.parts.push(vec![]);
        Ok(())
    }

    /// Put the answers behind the assistant's words, into its turn.
    fn answer_in_turn(
        &self,
        out: &mut Written,
        index: usize,
        render: impl FnOnce(&str) -> Result<String, Error>,
    ) -> Result<(), Error> {
        let last = out.messages.last_mut().filter(|message| message.role == Role::Assistant);
        let (Some(turn), Some(parts)) = (last, out.parts.last_mut()) else {
            let what = "writes what a tool answered into the assistant's turn, and none stands before this answer";
            return Err(self.no_place(index, what));
        };
        let before = lengths(turn);
        if parts.is_empty() {
            // its marks become those of its parts
            add_parts(parts, out.origins.last().copied().flatten().unwrap_or(0), turn);
            turn.pieces = before;
            turn.loss = vec![];
            turn.loss_scale = vec![];
        }
        if let Some(until) = &self.until {
            let content = ("content".into(), Json::String(text_of(turn).into()));
            let text = until.render_text(&[], None, &[content], false)?;
            append_text(turn, &text);
            if let Some(length) = turn.pieces.last_mut() {
                *length += text.len();
            }
        }
        let text = render(text_of(turn))?;
        parts.push(TurnPart { message: index, is_answer: true, loss: None, loss_scale: None });
        turn.pieces.push(text.len());
        append_text(turn, &text);
        Ok(())
    }

    fn no_place(&self, message: usize, what: &str) -> Error {
        Error::Row(RowError::at(
            format!("$.messages[{message}]"),
            "agent_format",
            format!("--agent-format {} {what}", self.name),
        ))
    }
}

fn message(role: Role, name: &str, text: String) -> Message {
    let fields =
        vec![("role".into(), Json::String(name.into())), ("content".into(), Json::String(text.into_boxed_str()))];
    Message::new(role, fields)
}

fn text_of(message: &Message) -> &str {
    let content = message.fields.iter().find(|(name, _)| &**name == "content");
    content.and_then(|(_, value)| if let Json::String(text) = value { Some(&**text) } else { None }).unwrap_or("")
}

/// Replace the text of a message; its last piece takes what was added or lost.
fn set_text(message: &mut Message, text: String) {
    let others: usize = message.pieces.split_last().map_or(0, |(_, others)| others.iter().sum());
    if let Some(last) = message.pieces.last_mut() {
        *last = text.len().saturating_sub(others);
    }
    if let Some((_, value)) = message.fields.iter_mut().find(|(name, _)| &**name == "content") {
        *value = Json::String(text.into());
    }
}

fn append_text(message: &mut Message, text: &str) {
    if let Some((_, Json::String(old))) = message.fields.iter_mut().find(|(name, _)| &**name == "content") {
        *old = [&**old, text].concat().into();
    }
}

/// Lengths of the pieces of a message; of its text, if it has none.
fn lengths(message: &Message) -> Vec<usize> {
    if message.pieces.is_empty() { vec![text_of(message).len()] } else { message.pieces.clone() }
}

fn add_parts(parts: &mut Vec<TurnPart>, index: usize, message: &Message) {
    fn mark<T: Copy>(marks: &[T], at: usize) -> Option<T> {
        marks.get(at).or(if marks.len() == 1 { marks.first() } else { None }).copied()
    }
    for at in 0..message.pieces.len().max(1) {
        let (loss, loss_scale) = (mark(&message.loss, at), mark(&message.loss_scale, at));
        parts.push(TurnPart { message: index, is_answer: false, loss, loss_scale });
    }
}

/// `{name, arguments, id}` of a call in Hugging Face form.
fn flat_call(call: Json) -> Json {
    let id = call.member("id").cloned();
    let Json::Object(members) = call else { return call };
    let function = members.into_iter().find(|(name, _)| &**name == "function").map(|(_, value)| value);
    let Some(Json::Object(function)) = function else { return Json::Object(vec![]) };
    let mut flat: Vec<(Box<str>, Json)> =
        function.into_iter().filter(|(name, _)| matches!(&**name, "name" | "arguments")).collect();
    // as the row spells a call, so that a template can print it whole: the name first
    flat.sort_by_key(|(name, _)| &**name != "name");
    flat.extend(id.map(|id| ("id".into(), id)));
    Json::Object(flat)
}

/// `{content, name, id, index}` of an answer; the name is that of the call with its id, or of the call at its place.
fn result(message: &Message, at: usize, open: &[Json]) -> Json {
    let field = |name: &str| message.fields.iter().find(|(other, _)| &**other == name).map(|(_, value)| value.clone());
    let id = field("tool_call_id");
    let by_id = open.iter().find(|call| id.is_some() && call.member("id") == id.as_ref());
    let call = by_id.or_else(|| open.get(at));
    let name = field("name").or_else(|| call.and_then(|call| call.member("name")).cloned());
    Json::Object(vec![
        ("content".into(), Json::String(text_of(message).into())),
        ("name".into(), name.unwrap_or(Json::Null)),
        ("id".into(), id.unwrap_or(Json::Null)),
        ("index".into(), Json::Number(at.to_string().into())),
    ])
}
