//! Messages: roles, pairs, marks, and what becomes of calls and results.
use crate::error::RowError;
use crate::rows::calls;
use crate::rows::content::Content;
use crate::rows::marks;
use crate::rows::place::{Place, did_you_mean, kind, listed, parsed, quoted};
use crate::rows::{Purpose, RowOptions};
use crate::types::{Json, Message, Role};

/// Who a role name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    System,
    User,
    Assistant,
    /// An assistant's tool call, its content the call as JSON.
    Call,
    Tool,
}

/// `developer` is OpenAI's newer word for system; templates that know both treat them alike.
const ROLES: [(&str, Speaker); 21] = [
    ("user", Speaker::User),
    ("human", Speaker::User),
    ("assistant", Speaker::Assistant),
    ("gpt", Speaker::Assistant),
    ("bot", Speaker::Assistant),
    ("ai", Speaker::Assistant),
    ("model", Speaker::Assistant),
    ("chatgpt", Speaker::Assistant),
    ("bard", Speaker::Assistant),
    ("bing", Speaker::Assistant),
    ("system", Speaker::System),
    ("developer", Speaker::System),
    ("tool_call", Speaker::Call),
    ("function_call", Speaker::Call),
    ("tool", Speaker::Tool),
    ("tool_response", Speaker::Tool),
    ("function_response", Speaker::Tool),
    ("observation", Speaker::Tool),
    ("observations", Speaker::Tool),
    ("function", Speaker::Tool),
    ("ipython", Speaker::Tool),
];

/// Whether `--columns` may give a member of messages this name.
fn is_member(name: &str) -> bool {
    matches!(name, "role" | "content" | "tool_calls" | "reasoning_content" | "tool_call_id") || marks::is_mark(name)
}

impl Speaker {
    pub(super) fn of(name: &str) -> Option<Self> {
        ROLES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|&(_, speaker)| speaker)
    }
}

/// Does this value open a conversation, instead of continuing one?
pub(super) fn is_whole_conversation(value: &Json) -> bool {
    let Json::Array(items) = value else { return false };
    let Some(Json::Object(members)) = items.first() else { return false };
    let role = members.iter().find(|(key, _)| matches!(&**key, "role" | "from"));
    let opens = |name: &str| matches!(Speaker::of(name), Some(Speaker::User | Speaker::System));
    matches!(role, Some((_, Json::String(name))) if opens(name))
}

/// Turns raw values into messages.
pub(super) struct Reader<'a> {
    pub(super) options: &'a RowOptions,
}

/// The members of a raw message, sorted out.
#[derive(Default)]
struct Raw {
    speaker: Option<(Box<str>, Json)>,
    content: Option<(Box<str>, Json)>,
    marks: Vec<(Box<str>, Json)>,
    tool_calls: Option<Json>,
    function_call: Option<Json>,
    /// Reasoning that is a list of parts.
    reasoning: Vec<(Box<str>, Json)>,
    rest: Vec<(Box<str>, Json)>,
}

impl Raw {
    /// Nulls are dropped: columnar files pad every message to the same members with them.
    fn new(members: Vec<(Box<str>, Json)>) -> Self {
        let has = |name: &str| members.iter().any(|(key, value)| **key == *name && *value != Json::Null);
        let (has_role, has_content) = (has("role"), has("content"));
        let mut raw = Self::default();
        for (key, value) in members {
            match &*key {
                "content" if value != Json::Null || raw.content.is_none() => raw.content = Some((key, value)),
                "value" if !has_content => raw.content = Some((key, value)),
                _ if value == Json::Null => {}
                "role" => raw.speaker = Some((key, value)),
                "from" if !has_role => raw.speaker = Some((key, value)),
                name if marks::is_mark(name) => raw.marks.push((key, value)),
                "tool_calls" => raw.tool_calls = Some(value),
                "function_call" => raw.function_call = Some(value),
                "reasoning_content" | "reasoning" | "thinking" if matches!(value, Json::Array(_)) => {
                    raw.reasoning.push((key, value));
                }
                _ => raw.rest.push((key, value)),
            }
        }
        raw
    }
}

impl Reader<'_> {
    /// A list of messages, or its JSON text.
    pub(super) fn conversation(&self, value: Json, place: &Place) -> Result<Vec<Message>, RowError> {
        let items = match parsed(value, place)? {
            Json::Array(items) => items,
            other => {
                let message = format!("expected a list of messages, got {}", kind(&other));
                return Err(place.fault("messages", message));
            }
        };
        if items.is_empty() {
            return Err(place.fault("empty", "the list of messages is empty".to_owned()));
        }
        let mut messages = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            self.append_message(&mut messages, item, &Place::Index(place, index))?;
        }
        if self.options.drop.iter().any(|name| **name == *"system") {
            messages.retain(|message| message.role != Role::System);
            if messages.is_empty() {
                return Err(place.fault("empty", "only system messages, and --drop system leaves them out".to_owned()));
            }
        }
        if self.options.number_calls {
            calls::number(&mut messages);
        }
        Ok(messages)
    }

    fn append_message(&self, out: &mut Vec<Message>, value: Json, place: &Place) -> Result<(), RowError> {
        let Json::Object(mut members) = value else {
            let message = format!("expected a message (an object with role and content), got {}", kind(&value));
            return Err(place.fault("messages", message));
        };
        for (name, _) in &mut members {
            let renamed = self.options.columns.iter().find(|(old, new)| old == name && is_member(new));
            if let Some((_, new)) = renamed {
                name.clone_from(new);
            }
        }
        if let Some(role) = self.plain_role(&members) {
            out.push(Message::new(role, members));
            return Ok(());
        }
        if let Some((asked, answered)) = pair_row(&members) {
            for (index, role) in [(asked, Role::User), (answered, Role::Assistant)] {
                let (key, value) = std::mem::take(&mut members[index]);
                out.push(self.text_message(role, value, &Place::Key(place, &key))?);
            }
            return Ok(());
        }
        let is_role = |(key, value): &(Box<str>, Json)| matches!(&**key, "role" | "from") && *value != Json::Null;
        if !members.iter().any(is_role) {
            return Err(no_role(&members, place));
        }
        let mut raw = Raw::new(members);
        let (key, role) = raw.speaker.take().unwrap_or_default();
        let speaker = self.read_role(&role, &Place::Key(place, &key))?;
        self.append_turn(out, speaker, raw, place)
    }

    fn read_role(&self, role: &Json, place: &Place) -> Result<Speaker, RowError> {
        let Json::String(name) = role else {
            return Err(place.fault("role", format!("expected the name of a role, got {}", kind(role))));
        };
        let renamed = self.options.roles.iter().find(|(other, _)| **other == **name).map(|(_, role)| role);
        Speaker::of(renamed.unwrap_or(name)).ok_or_else(|| {
            let known = || ROLES.iter().map(|&(known, _)| known);
            let message = match did_you_mean(name, known()) {
                Some(meant) => format!("unknown role {}; did you mean {meant}?", quoted(name)),
                None => format!(
                    "unknown role {}; expected system, user, assistant, tool_call, tool or an alias; --roles NAME=ROLE names it, \
                     --on-bad-row skip leaves such rows out",
                    quoted(name)
                ),
            };
            place.fault("role", message)
        })
    }

    /// The role of a message that is as templates want it and holds nothing else: most are.
    fn plain_role(&self, members: &[(Box<str>, Json)]) -> Option<Role> {
        let [(role_key, Json::String(role)), (content_key, Json::String(_))] = members else { return None };
        if &**role_key != "role" || &**content_key != "content" || self.fills() || !self.options.roles.is_empty() {
            return None;
        }
        match &**role {
            "system" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" => Some(Role::Tool),
            _ => None,
        }
    }

    fn append_turn(
        &self,
        out: &mut Vec<Message>,
        speaker: Speaker,
        mut raw: Raw,
        place: &Place,
    ) -> Result<(), RowError> {
        for (key, value) in std::mem::take(&mut raw.reasoning) {
            let Content { text, media, .. } = self.content(value, &Place::Key(place, &key))?;
            if !media.is_empty() {
                let message = "reasoning is text; a picture in it is not read";
                return Err(place.fault("media", message.to_owned()));
            }
            raw.rest.push((key, Json::String(text.into())));
        }
        let refusal = raw.rest.iter().find(|(key, value)| **key == *"refusal" && matches!(value, Json::String(_)));
        if let (Some((key, _)), None | Some((_, Json::Null))) = (refusal, &raw.content) {
            let message =
                "the model refused to answer; put its words into content to train on them, or leave the row out";
            return Err(Place::Key(place, key).fault("content", message.to_owned()));
        }
        let (key, value) = raw.content.unwrap_or_else(|| ("content".into(), Json::Null));
        let content_place = Place::Key(place, &key);
        let has_calls = raw.tool_calls.is_some() || raw.function_call.is_some();
        let mut content = match speaker {
            Speaker::Call => Content { calls: calls::from_content(value, &content_place)?, ..Content::default() },
            Speaker::Tool => self.tool_content(value, &content_place)?,
            _ if value == Json::Null && has_calls => Content::default(),
            _ => self.content(value, &content_place)?,
        };
        if let Some(value) = raw.tool_calls {
            content.calls.extend(calls::from_openai(value, &Place::Key(place, "tool_calls"))?);
        }
        if let Some(value) = raw.function_call {
            content.calls.push(calls::one(value, &Place::Key(place, "function_call"))?);
        }
        let role = match speaker {
            Speaker::System => Role::System,
            Speaker::User => Role::User,
            Speaker::Assistant | Speaker::Call => Role::Assistant,
            Speaker::Tool => Role::Tool,
        };
        if !content.calls.is_empty() && role != Role::Assistant {
            let message = "only an assistant message can call tools";
            return Err(place.fault("tool_call", message.to_owned()));
        }
        if !content.results.is_empty() && role != Role::User && role != Role::Tool {
            let message = "only a user message can hold tool_result blocks";
            return Err(place.fault("content", message.to_owned()));
        }
        let mut of_parts = marks::of_parts(std::mem::take(&mut content.marks), &content_place)?;
        if let Some((lengths, selects)) = marks::of_offsets(&mut raw.marks, &content.text, place)? {
            if of_parts != (None, None) || content.pieces.len() > 1 || !content.media.is_empty() {
                let message = "offsets mark a content that is one text; mark its parts with loss instead";
                return Err(place.fault("loss", message.to_owned()));
            }
            content.pieces = if lengths.len() > 1 { lengths } else { vec![] };
            of_parts = (Some(selects), None);
        }
        let (loss, loss_scale) = marks::read(raw.marks, place)?;
        let (loss, loss_scale) = match ((loss, loss_scale), of_parts) {
            (of_message, (None, None)) => of_message,
            ((None, None), of_parts) => of_parts,
            _ => {
                let message = "the message has a mark and so have parts of its content; keep one of them";
                return Err(place.fault("loss", message.to_owned()));
            }
        };
        let loss = read_marks(loss, &content, &Place::Key(place, "loss"), marks::as_bool, "true or false")?;
        let loss_scale =
            read_marks(loss_scale, &content, &Place::Key(place, "loss_scale"), marks::as_weight, "a number")?;
        let trains = loss.contains(&true) || loss.is_empty() && loss_scale.iter().any(|weight| *weight != 0.0);
        if role != Role::Assistant && trains {
            let message = "marks train what the assistant says and nobody else; drop the mark, or use --loss-scale all";
            return Err(place.fault("loss", message.to_owned()));
        }
        append_results(out, &mut content, &loss, &loss_scale);
        if content.only_results {
            return Ok(());
        }
        let pieces = content.take_pieces();
        let message = Message { role, fields: content.fields(role, raw.rest), loss, loss_scale, pieces, given: false };
        if speaker == Speaker::Call {
            return join_call(out, message, place);
        }
        out.push(message);
        Ok(())
    }

    /// A message whose content stands in a column of its own.
    pub(super) fn text_message(&self, role: Role, value: Json, place: &Place) -> Result<Message, RowError> {
        // An answer that is a number is written as the row writes it.
        let value = if let Json::Number(text) = value { Json::String(text) } else { value };
        let mut content = self.content(value, place)?;
        if !content.calls.is_empty() || !content.results.is_empty() {
            let message = "tool blocks need a conversation; put them into messages";
            return Err(place.fault("content", message.to_owned()));
        }
        let pieces = content.take_pieces();
        let fields = content.fields(role, Vec::new());
        Ok(Message { pieces, ..Message::new(role, fields) })
    }

    /// The query: a text, or the messages before the answer (TRL's conversational prompt).
    pub(super) fn append_question(&self, out: &mut Vec<Message>, value: Json, place: &Place) -> Result<(), RowError> {
        if is_message_list(&value) {
            let mut prompt = self.conversation(value, place)?;
            if self.options.purpose == Purpose::Train {
                not_trained(&mut prompt);
            }
            out.extend(prompt);
        } else {
            out.push(self.text_message(Role::User, value, place)?);
        }
        Ok(())
    }

    /// The answer: a text, the first of a list of texts, one message, or several of assistant and tools.
    pub(super) fn append_answer(&self, out: &mut Vec<Message>, value: Json, place: &Place) -> Result<(), RowError> {
        let value = match value {
            Json::Array(items) if items.first().is_some_and(|first| matches!(first, Json::String(_))) => {
                items.into_iter().next().unwrap_or(Json::Null)
            }
            Json::Object(members) => Json::Array(vec![Json::Object(members)]),
            other => other,
        };
        if !is_message_list(&value) {
            out.push(self.text_message(Role::Assistant, value, place)?);
            return Ok(());
        }
        let answer = self.conversation(value, place)?;
        if let Some(message) = answer.iter().find(|message| matches!(message.role, Role::User | Role::System)) {
            let role = if message.role == Role::User { "user" } else { "system" };
            let expected = format!(
                "expected messages of assistant and tool, got one of {role}; use rejected_messages for a whole conversation"
            );
            return Err(place.fault("role", expected));
        }
        out.extend(answer);
        Ok(())
    }

    /// Alpaca's `history`: a list of [query, response].
    pub(super) fn history(&self, out: &mut Vec<Message>, value: Json, place: &Place) -> Result<(), RowError> {
        let turns = match parsed(value, place)? {
            Json::Array(turns) => turns,
            Json::String(text) if text.trim().is_empty() => return Ok(()),
            other => {
                let message = format!("expected a list of [query, response] pairs, got {}", kind(&other));
                return Err(place.fault("history", message));
            }
        };
        for (index, turn) in turns.into_iter().enumerate() {
            let place = Place::Index(place, index);
            let pair: Result<[Json; 2], Json> = match turn {
                Json::Array(pair) => pair.try_into().map_err(Json::Array),
                other => Err(other),
            };
            let pair = pair.map_err(|other| {
                place.fault("history", format!("expected a [query, response] pair, got {}", kind(&other)))
            })?;
            for (side, (value, role)) in pair.into_iter().zip([Role::User, Role::Assistant]).enumerate() {
                if value != Json::Null {
                    out.push(self.text_message(role, value, &Place::Index(&place, side))?);
                }
            }
        }
        Ok(())
    }
}

/// What the assistant said in a prompt is not trained on, unless the row says so.
pub(super) fn not_trained(prompt: &mut [Message]) {
    let unmarked = |message: &&mut Message| message.loss.is_empty() && message.loss_scale.is_empty();
    for message in prompt.iter_mut().filter(|message| message.role == Role::Assistant).filter(unmarked) {
        message.given = true;
    }
}

fn is_message_list(value: &Json) -> bool {
    let Json::Array(items) = value else { return false };
    let has_role = |members: &[(Box<str>, Json)]| members.iter().any(|(key, _)| matches!(&**key, "role" | "from"));
    matches!(items.first(), Some(Json::Object(members)) if has_role(members))
}

/// `{"human": ..., "assistant": ...}`: two turns in one object. Gives the members' indices.
fn pair_row(members: &[(Box<str>, Json)]) -> Option<(usize, usize)> {
    let [(first, _), (second, _)] = members else { return None };
    match (Speaker::of(first)?, Speaker::of(second)?) {
        (Speaker::User, Speaker::Assistant) => Some((0, 1)),
        (Speaker::Assistant, Speaker::User) => Some((1, 0)),
        _ => None,
    }
}

fn no_role(members: &[(Box<str>, Json)], place: &Place) -> RowError {
    let known = ["role", "from", "content", "value"];
    let hint = members.iter().find_map(|(name, _)| did_you_mean(name, known).map(|meant| (name, meant)));
    let message = match hint {
        Some((name, meant)) => format!("the message has no role; did you mean {meant} by {}?", quoted(name)),
        None => format!(
            "the message has no role (members: {}); expected role or from",
            listed(members.iter().map(|(name, _)| &**name))
        ),
    };
    place.fault("role", message)
}

/// Add a call to the assistant turn before it, or make it a turn of its own.
///
/// Calls that follow one another are one turn (parallel calls), and so are a text and the calls right behind it: that is
/// one message for OpenAI, and ms-swift joins them too.
fn join_call(out: &mut Vec<Message>, message: Message, place: &Place) -> Result<(), RowError> {
    let Some(last) = out.last_mut().filter(|last| last.role == Role::Assistant) else {
        out.push(message);
        return Ok(());
    };
    if last.loss != message.loss || last.loss_scale != message.loss_scale {
        let text = "this call joins the assistant turn before it, but their loss or loss_scale differ; make them equal";
        return Err(place.fault("loss", text.to_owned()));
    }
    for (key, value) in message.fields.into_iter().skip(2) {
        match (last.fields.iter_mut().find(|(other, _)| *other == key), value) {
            (Some((_, Json::Array(calls))), Json::Array(more)) => calls.extend(more),
            (Some(_), _) => {}
            (None, value) => last.fields.push((key, value)),
        }
    }
    Ok(())
}

/// Anthropic's results come inside a user message; each becomes a tool message, named after the call it answers.
fn append_results(out: &mut Vec<Message>, content: &mut Content, loss: &[bool], loss_scale: &[f32]) {
    for (id, text, is_error) in content.results.drain(..) {
        let mut fields: Vec<(Box<str>, Json)> =
            vec![("role".into(), Json::String("tool".into())), ("content".into(), Json::String(text))];
        if let Some(id) = id {
            if let Some(name) = calls::name_of(out, &id) {
                fields.push(("name".into(), Json::String(name)));
            }
            fields.push(("tool_call_id".into(), Json::String(id)));
        }
        if is_error {
            fields.push(("is_error".into(), Json::Bool(true)));
        }
        let marks = |length: usize| content.only_results && length == 1;
        out.push(Message {
            role: Role::Tool,
            fields,
            loss: if marks(loss.len()) { loss.to_vec() } else { Vec::new() },
            loss_scale: if marks(loss_scale.len()) { loss_scale.to_vec() } else { Vec::new() },
            pieces: Vec::new(),
            given: false,
        });
    }
}

/// `loss` or `loss_scale`: one value, or one for each text of a content list.
fn read_marks<T>(
    value: Option<Json>,
    content: &Content,
    place: &Place,
    read: fn(&Json) -> Option<T>,
    expected: &str,
) -> Result<Vec<T>, RowError> {
    let fault = |value: &Json, place: &Place| place.fault("loss", format!("expected {expected}, got {}", kind(value)));
    match value {
        None => Ok(Vec::new()),
        Some(Json::Array(items)) => {
            let pieces = content.pieces.len().max(1);
            if items.len() != pieces {
                let message =
                    format!("a list of {} marks for {pieces} content piece(s); give one mark each", items.len());
                return Err(place.fault("loss", message));
            }
            let read =
                |(index, item): (usize, &Json)| read(item).ok_or_else(|| fault(item, &Place::Index(place, index)));
            items.iter().enumerate().map(read).collect()
        }
        Some(value) => Ok(vec![read(&value).ok_or_else(|| fault(&value, place))?]),
    }
}
