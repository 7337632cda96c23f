//! A row as a prompt: the conversation up to the answer that is due. What the row says of answers travels in `extra`.
use crate::error::RowError;
use crate::rows::columns::{Column, Columns, Pictures};
use crate::rows::digest::messages_json;
use crate::rows::place::Place;
use crate::rows::{RowForm, Side, read_channel, read_margin, read_template_kwargs, read_tools};
use crate::types::{Body, Json, Message, Role, Row};

/// The column of `extra` that holds the answer of a conversation that came with one.
const ANSWER: &str = "completion";

pub(super) fn read(mut columns: Columns, side: &Side, source: RowForm, pictures: &Pictures) -> Result<Row, RowError> {
    let mut body = match source {
        RowForm::Messages => conversation(&mut columns, side)?,
        RowForm::Chosen => of_pair(&mut columns, side)?,
        RowForm::Query => query(&mut columns, side)?,
    };
    if let Body::Prompt(messages) = &mut body {
        pictures.attach(messages)?;
    }
    let tools = read_tools(&mut columns)?;
    let template_kwargs = read_template_kwargs(&mut columns)?;
    if !template_kwargs.is_empty() {
        // whoever asks again, with what a tool answered, needs them too
        columns.put_back("chat_template_kwargs", Json::Object(template_kwargs.clone()));
    }
    let channel = read_channel(&mut columns)?;
    let label = columns.take_label();
    let margin = read_margin(&mut columns)?;
    let (extra, unused) = columns.into_extra()?;
    Ok(Row { body, tools, template_kwargs, channel, label, margin, extra, unused })
}

/// A conversation; the answer at its end, if it has one, is taken off.
fn conversation(columns: &mut Columns, side: &Side) -> Result<Body, RowError> {
    let root = Place::Root;
    let (name, value) = columns.take(Column::Messages)?.unwrap_or_default();
    let place = Place::Key(&root, &name);
    let mut messages = side.with_system(side.reader.conversation(value, &place)?, &place)?;
    let length = last_question(&messages, &place)?;
    if side.reader.options.continue_final {
        return Ok(Body::Prompt(messages));
    }
    let answer = messages.split_off(length);
    if !answer.is_empty() && !columns.has(ANSWER) {
        columns.put_back(ANSWER, messages_json(&answer));
    }
    Ok(Body::Prompt(messages))
}

/// What both sides of a pair of whole conversations begin with. The pair itself travels along.
fn of_pair(columns: &mut Columns, side: &Side) -> Result<Body, RowError> {
    let root = Place::Root;
    let (name, value) = columns.take_chosen()?.unwrap_or_default();
    let place = Place::Key(&root, &name);
    let mut messages = side.with_system(side.reader.conversation(value.clone(), &place)?, &place)?;
    messages.truncate(last_question(&messages, &place)?);
    columns.put_back(&name, value);
    Ok(Body::Prompt(messages))
}

/// The number of messages up to the last one that is not the assistant's.
fn last_question(messages: &[Message], place: &Place) -> Result<usize, RowError> {
    let last = messages.iter().rposition(|message| matches!(message.role, Role::User | Role::Tool));
    last.map(|last| last + 1).ok_or_else(|| {
        let message = "the conversation asks nothing: it has no message of a user or a tool";
        place.fault("prompt", message.to_owned())
    })
}

/// A question with its history; or a text to go on with, where there is no question.
fn query(columns: &mut Columns, side: &Side) -> Result<Body, RowError> {
    let root = Place::Root;
    let mut found = Vec::new();
    if let Some((name, value)) = columns.take(Column::History)? {
        side.reader.history(&mut found, value, &Place::Key(&root, &name))?;
    }
    if let Some((name, value)) = columns.take_query()? {
        side.reader.append_question(&mut found, value, &Place::Key(&root, &name))?;
        return Ok(Body::Prompt(side.with_system(found, &root)?));
    }
    if !found.is_empty() {
        return Err(columns.missing(Column::Query));
    }
    let Some((name, value)) = columns.take(Column::Response)? else { return Err(columns.missing(Column::Messages)) };
    let message = side.reader.text_message(Role::Assistant, value, &Place::Key(&root, &name))?;
    Ok(Body::Text(message.content().unwrap_or_default().into()))
}
