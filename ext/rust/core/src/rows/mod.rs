//! Any common shape of training row -> [`Row`], for which templates and tokenizers need no case for formats.
//!
//! What is accepted, by column (names and aliases without regard to case; `--columns old=new` goes first):
//!
//! | shape | columns |
//! |---|---|
//! | conversation | `messages`, `conversation`, `conversations`: role/content, ShareGPT from/value, or `{human, assistant}` pairs |
//! | Alpaca | `instruction` and `input` (joined by a newline), `output`, `history` |
//! | query/response | the aliases in [`columns`], `history` as a list of pairs |
//! | preference | `rejected_response`, `rejected_messages`; `chosen`/`rejected` as TRL and LLaMA-Factory write them |
//! | text | a response with no query, or a conversation of assistant messages only |
//!
//! Two present columns for one thing, none of them spelled canonically, are an error that lists them: nobody should train
//! on half of the data because two names were equally good. Columns that mean nothing here travel in `extra`.

mod calls;
mod columns;
mod content;
mod digest;
pub(crate) mod group;
mod marks;
mod messages;
mod place;
mod prompt;
mod record;
mod tokens;

use crate::error::{RowError, choices};
use crate::json;
use crate::media::kind::Kinds;
use crate::types::{Body, Json, Message, Role, Row};
pub use columns::is_column;
use columns::{Column, Columns};
pub(crate) use digest::messages_json;
pub use digest::{content_hash, to_json};
use messages::Reader;
use place::{Place, kind};
pub use record::parse_record;

/// What rows are read for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To learn from their answers.
    #[default]
    Train,
    /// To be answered: the conversation ends where an answer is due.
    Prompt,
    /// To be embedded: a query, a text that fits it, texts that do not.
    Embed,
    /// To be ranked: the query with each of its texts.
    Rank,
}

choices! { Purpose, "for", "train" => Train, "prompt" => Prompt, "embed" => Embed, "rank" => Rank }

/// What the command line says about reading rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowOptions {
    /// What rows are read for.
    pub purpose: Purpose,
    /// `old=new`: columns to rename before anything else.
    pub columns: Vec<(Box<str>, Box<str>)>,
    /// Columns to leave out. `system` leaves out system messages too.
    pub drop: Vec<Box<str>>,
    /// Which of pictures, sounds and videos the model reads.
    pub media: Kinds,
    /// `name=role`: what else roles are called.
    pub roles: Vec<(Box<str>, Box<str>)>,
    /// Of a prompt: go on with the assistant's words at the end, instead of taking them for the answer.
    pub continue_final: bool,
    /// A pair without a prompt is two texts: what they begin with is the prompt.
    pub plain: bool,
    /// Number the ids of calls anew, nine digits each, as Mistral's templates want them.
    pub number_calls: bool,
    /// What `{{NAME}}` and `{{name}}` become.
    pub model_name: Option<Box<str>>,
    /// What `{{AUTHOR}}` and `{{author}}` become.
    pub model_author: Option<Box<str>>,
}

/// Resolve formats, aliases and roles of one raw row.
///
/// # Errors
/// [`RowError`] with the JSON path of the value at fault, what it is, what was expected and how to go on.
pub fn normalize(value: Json, options: &RowOptions) -> Result<Row, RowError> {
    let Json::Object(members) = value else {
        let found = kind(&value);
        return Err(Place::Root.fault("row", format!("expected an object with columns, got {found}")));
    };
    let absent = options.columns.iter().find(|(old, _)| !members.iter().any(|(name, _)| name == old));
    let absent = absent.map(|(old, _)| old.clone());
    read_row(members, options).map_err(|mut fault| {
        if let Some(old) = absent {
            let note = format!(" (--columns names {}, which this row does not have)", place::quoted(&old));
            fault.message.push_str(&note);
        }
        fault
    })
}

/// Rows in the forms of other services: `OpenAI`'s preferences are read, Gemini's `contents` named.
fn foreign(members: Vec<(Box<str>, Json)>) -> Result<Vec<(Box<str>, Json)>, RowError> {
    let has = |name: &str| members.iter().any(|(key, _)| **key == *name);
    if has("contents") && !has("messages") {
        let message = "these are Gemini's contents and parts, which are not read; write messages with role and content";
        return Err(Place::Key(&Place::Root, "contents").fault("column", message.to_owned()));
    }
    if !(has("preferred_output") && has("non_preferred_output") && has("input")) {
        return Ok(members);
    }
    let mut out = Vec::with_capacity(members.len() + 1);
    for (name, value) in members {
        match (&*name, value) {
            ("input", Json::Object(inner)) => {
                out.extend(inner.into_iter().filter(|(name, _)| **name != *"parallel_tool_calls"));
            }
            ("preferred_output", value) => out.push(("chosen".into(), value)),
            ("non_preferred_output", value) => out.push(("rejected".into(), value)),
            (_, value) => out.push((name, value)),
        }
    }
    Ok(out)
}

fn read_row(members: Vec<(Box<str>, Json)>, options: &RowOptions) -> Result<Row, RowError> {
    let mut columns = Columns::new(foreign(members)?, options)?;
    columns.refuse_media(options.media)?;
    let pictures = columns.take_pictures()?;
    let reader = Reader { options };
    if matches!(options.purpose, Purpose::Embed | Purpose::Rank) {
        return group::read(columns, &reader, options.purpose);
    }
    let system = read_system(&mut columns, &reader)?;
    if let Some(body) = tokens::read(&mut columns)? {
        if options.purpose == Purpose::Prompt {
            return Err(Place::Root
                .fault("prompt", "input_ids and segments are no prompt to be answered; give the text".to_owned()));
        }
        let (channel, label, margin) = (read_channel(&mut columns)?, columns.take_label(), read_margin(&mut columns)?);
        let (extra, unused) = columns.into_extra()?;
        let (tools, template_kwargs) = (None, vec![]);
        return Ok(Row { body, tools, template_kwargs, channel, label, margin, extra, unused });
    }
    if options.plain {
        columns.split_prompt_off();
    }
    let source = columns.conversation_source()?;
    let side = Side { system, reader: &reader };
    if options.purpose == Purpose::Prompt {
        return prompt::read(columns, &side, source, &pictures);
    }
    let mut body = match source {
        RowForm::Messages => read_conversation(&mut columns, &side)?,
        RowForm::Chosen => read_chosen(&mut columns, &side)?,
        RowForm::Query => read_query(&mut columns, &side)?,
    };
    if body.messages.is_empty() {
        return Err(Place::Root.fault("empty", "the row has no message and no text".to_owned()));
    }
    let mut rejected = read_rejected(&mut columns, &side, &body)?;
    pictures.attach(&mut body.messages)?;
    if let Some(rejected) = &mut rejected {
        pictures.attach(rejected)?;
        // what both sides begin with is the prompt
        let same = body.messages.iter().zip(rejected.iter()).take_while(|(one, other)| one == other).count();
        messages::not_trained(&mut body.messages[..same]);
        messages::not_trained(&mut rejected[..same]);
    }
    let tools = read_tools(&mut columns)?;
    let template_kwargs = read_template_kwargs(&mut columns)?;
    let channel = read_channel(&mut columns)?;
    let label = columns.take_label();
    let margin = read_margin(&mut columns)?;
    let (extra, unused) = columns.into_extra()?;
    Ok(Row {
        body: match rejected {
            Some(rejected) => Body::Pair(body.messages, rejected),
            None => as_text(&mut body, tools.is_some())?.map_or_else(|| Body::Chat(body.messages), Body::Text),
        },
        tools,
        template_kwargs,
        channel,
        label,
        margin,
        extra,
        unused,
    })
}

/// Which columns hold the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowForm {
    Messages,
    /// `chosen` is a whole conversation.
    Chosen,
    Query,
}

/// What both sides of a pair share.
struct Side<'a> {
    system: Option<Message>,
    reader: &'a Reader<'a>,
}

struct Conversation {
    messages: Vec<Message>,
    /// How many of them are the prompt, where the row says so; else 0.
    num_prompt: usize,
    path: String,
}

impl Side<'_> {
    /// `messages` with the system column before them.
    fn with_system(&self, mut messages: Vec<Message>, place: &Place) -> Result<Vec<Message>, RowError> {
        let Some(system) = &self.system else { return Ok(messages) };
        match messages.first() {
            Some(first) if first.role == Role::System => {
                if first.content() != system.content() {
                    let message = "the conversation has a system message and the row another one in its system column; \
                                   keep one of them";
                    return Err(place.fault("system", message.to_owned()));
                }
            }
            _ => messages.insert(0, system.clone()),
        }
        Ok(messages)
    }
}

fn read_system(columns: &mut Columns, reader: &Reader) -> Result<Option<Message>, RowError> {
    let Some((name, value)) = columns.take(Column::System)? else { return Ok(None) };
    let root = Place::Root;
    let place = Place::Key(&root, &name);
    let message = reader.text_message(Role::System, value, &place)?;
    Ok(Some(message).filter(|message| message.content().is_some_and(|text| !text.is_empty())))
}

fn read_conversation(columns: &mut Columns, side: &Side) -> Result<Conversation, RowError> {
    let root = Place::Root;
    let (name, value) = columns.take(Column::Messages)?.unwrap_or_default();
    let place = Place::Key(&root, &name);
    let mut messages = side.with_system(side.reader.conversation(value, &place)?, &place)?;
    let mut num_prompt = 0;
    if let Some((name, value)) = columns.take_chosen()? {
        num_prompt = messages.len();
        side.reader.append_answer(&mut messages, value, &Place::Key(&root, &name))?;
    }
    Ok(Conversation { messages, num_prompt, path: place.to_string() })
}

fn read_chosen(columns: &mut Columns, side: &Side) -> Result<Conversation, RowError> {
    let root = Place::Root;
    let (name, value) = columns.take_chosen()?.unwrap_or_default();
    let place = Place::Key(&root, &name);
    columns.forget_repeated(&value);
    let messages = side.reader.conversation(value, &place)?;
    Ok(Conversation { messages: side.with_system(messages, &place)?, num_prompt: 0, path: place.to_string() })
}

/// Alpaca and query/response rows, with `history` before them.
fn read_query(columns: &mut Columns, side: &Side) -> Result<Conversation, RowError> {
    let root = Place::Root;
    let mut messages = Vec::new();
    if let Some((name, value)) = columns.take(Column::History)? {
        side.reader.history(&mut messages, value, &Place::Key(&root, &name))?;
    }
    let query = columns.take_query()?;
    let has_tools = columns.has("tools");
    if let Some((name, value)) = query {
        side.reader.append_question(&mut messages, value, &Place::Key(&root, &name))?;
    } else if !messages.is_empty() {
        return Err(columns.missing(Column::Query));
    }
    let answer = match columns.take_chosen()? {
        Some(chosen) => Some(chosen),
        None => columns.take(Column::Response)?,
    };
    let mut path = String::from("$");
    let mut messages = side.with_system(messages, &root)?;
    let num_prompt = messages.len();
    if let Some((name, value)) = answer {
        let place = Place::Key(&root, &name);
        let value = if has_tools { calls::of_answer(value) } else { value };
        side.reader.append_answer(&mut messages, value, &place)?;
        path = place.to_string();
    } else if messages.is_empty() {
        return Err(columns.missing(Column::Messages));
    } else {
        columns.refuse_typo(Column::Response)?;
        if !messages.iter().any(|message| message.role == Role::Assistant) {
            columns.refuse_no_answer()?;
        }
    }
    Ok(Conversation { messages, num_prompt, path })
}

/// The worse side of a pair, if the row has one.
fn read_rejected(columns: &mut Columns, side: &Side, body: &Conversation) -> Result<Option<Vec<Message>>, RowError> {
    let chosen = &body.messages;
    let root = Place::Root;
    let whole = columns.take(Column::RejectedMessages)?;
    let answer = columns.take(Column::RejectedResponse)?;
    let (name, rejected) = match (whole, answer) {
        (None, None) => return Ok(None),
        (Some((name, _)), Some((other, _))) => {
            let message = format!("the row has both {name} and {other}; keep one of them");
            return Err(root.fault("ambiguous_column", message));
        }
        (Some((name, value)), None) => {
            let place = Place::Key(&root, &name);
            let messages = side.with_system(side.reader.conversation(value, &place)?, &place)?;
            (name, messages)
        }
        (None, Some((name, value))) => {
            let place = Place::Key(&root, &name);
            let messages = if messages::is_whole_conversation(&value) {
                side.with_system(side.reader.conversation(value, &place)?, &place)?
            } else {
                let last_user = chosen.iter().rposition(|message| message.role == Role::User).map(|last| last + 1);
                let Some(length) = Some(body.num_prompt).filter(|length| *length > 0).or(last_user) else {
                    let message = "replaces what follows the last user message, but the row has no user message; if both \
                                   texts begin with the prompt, split it off or pass --plain";
                    return Err(place.fault("pair", message.to_owned()));
                };
                let mut messages = chosen[..length].to_vec();
                side.reader.append_answer(&mut messages, value, &place)?;
                messages
            };
            (name, messages)
        }
    };
    if rejected == *chosen {
        let message = "the rejected side equals the chosen one, so the pair teaches nothing; remove the row";
        return Err(Place::Key(&root, &name).fault("pair", message.to_owned()));
    }
    Ok(Some(rejected))
}

/// The text of a conversation that only the assistant takes part in: pre-training text.
fn as_text(body: &mut Conversation, has_tools: bool) -> Result<Option<Box<str>>, RowError> {
    let only_text = |message: &Message| {
        let is_text = matches!(message.fields.get(1), Some((_, Json::String(_))));
        message.role == Role::Assistant && message.fields.len() == 2 && is_text
    };
    if !body.messages.iter().all(only_text) || has_tools {
        return Ok(None);
    }
    if body.messages.iter().any(|message| !message.loss.is_empty() || !message.loss_scale.is_empty()) {
        let message = "loss and loss_scale need a conversation; this row is text alone (no user message)";
        return Err(RowError::at(std::mem::take(&mut body.path), "loss", message));
    }
    let text: String = body.messages.iter().filter_map(Message::content).collect();
    if text.is_empty() {
        let path = std::mem::take(&mut body.path);
        return Err(RowError::at(path, "empty", "the text is empty"));
    }
    Ok(Some(text.into()))
}

fn read_tools(columns: &mut Columns) -> Result<Option<Json>, RowError> {
    let Some((name, value)) = columns.take(Column::Tools)? else { return Ok(None) };
    let root = Place::Root;
    let place = Place::Key(&root, &name);
    match place::parsed(value, &place)? {
        Json::Array(tools) if tools.is_empty() => Ok(None),
        Json::String(text) if text.trim().is_empty() => Ok(None),
        Json::Array(tools) => {
            for (index, tool) in tools.iter().enumerate() {
                if !matches!(tool, Json::Object(_)) {
                    let expected = format!("expected a tool schema (an object), got {}", kind(tool));
                    return Err(Place::Index(&place, index).fault("tools", expected));
                }
            }
            Ok(Some(Json::Array(tools.into_iter().map(calls::definition).collect())))
        }
        other => {
            let message = format!("expected a list of tool schemas or its JSON text, got {}", kind(&other));
            Err(place.fault("tools", message))
        }
    }
}

fn read_template_kwargs(columns: &mut Columns) -> Result<Vec<(Box<str>, Json)>, RowError> {
    let Some((name, value)) = columns.take(Column::TemplateKwargs)? else { return Ok(Vec::new()) };
    let root = Place::Root;
    let place = Place::Key(&root, &name);
    match place::parsed(value, &place)? {
        Json::Object(members) => Ok(members),
        Json::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        other => {
            let message = format!("expected an object of template options, got {}", kind(&other));
            Err(place.fault("column", message))
        }
    }
}

fn read_channel(columns: &mut Columns) -> Result<Option<Box<str>>, RowError> {
    match columns.take(Column::Channel)? {
        None => Ok(None),
        Some((_, Json::String(text))) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some((name, other)) => {
            let message = format!("expected a text, the name of a channel, got {}", kind(&other));
            Err(Place::Key(&Place::Root, &name).fault("column", message))
        }
    }
}

fn read_margin(columns: &mut Columns) -> Result<Option<f64>, RowError> {
    let Some((name, value)) = columns.take(Column::Margin)? else { return Ok(None) };
    let number = columns::as_number(&value).ok_or_else(|| {
        let message = format!("expected a number, how much better the chosen side is, got {}", kind(&value));
        Place::Key(&Place::Root, &name).fault("column", message)
    })?;
    Ok(Some(number))
}

/// [`normalize`] for the bytes of one record.
///
/// # Errors
/// As [`json::parse`] and [`normalize`].
pub fn normalize_bytes(bytes: &[u8], options: &RowOptions) -> Result<Row, RowError> {
    normalize(json::parse(bytes)?, options)
}

#[cfg(test)]
mod tests;
