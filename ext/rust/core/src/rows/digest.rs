//! A row as JSON to look at, and as a number to compare.
use xxhash_rust::xxh3::Xxh3;

use crate::types::{Body, Json, Message, Row};

/// XXH3-128 of everything training sees of a row. `extra` is left out, so that rows which differ only in an id are equal.
///
/// Two rows are given the same number if and only if they are equal there (but for accidents of 1 in 2^128): every part is
/// hashed with its kind and its length.
#[must_use]
pub fn content_hash(row: &Row) -> u128 {
    let mut hash = Hasher(Xxh3::new());
    match &row.body {
        Body::Chat(messages) => hash.messages(messages),
        Body::Pair(chosen, rejected) => {
            hash.mark(b'P');
            hash.messages(chosen);
            hash.messages(rejected);
        }
        Body::Text(text) => hash.bytes(b'T', text.as_bytes()),
        Body::Tokens(ids, mask) => {
            hash.count(b'I', ids.len());
            for id in ids {
                hash.0.update(&id.to_le_bytes());
            }
            for trained in mask.iter().flatten() {
                hash.mark(u8::from(*trained));
            }
        }
        Body::Segments(segments) => {
            hash.count(b'D', segments.len());
            for (text, trained) in segments {
                hash.bytes(b'd', text.as_bytes());
                hash.mark(u8::from(*trained));
            }
        }
        Body::Prompt(messages) => {
            hash.mark(b'Q');
            hash.messages(messages);
        }
        Body::Group(texts) => {
            hash.count(b'G', texts.len());
            for text in texts {
                hash.bytes(b's', &text.side.to_le_bytes());
                hash.bytes(b'1', text.first.as_bytes());
                hash.bytes(b'2', text.second.as_deref().unwrap_or_default().as_bytes());
            }
        }
    }
    match &row.tools {
        Some(tools) => hash.value(tools),
        None => hash.mark(b'-'),
    }
    hash.members(&row.template_kwargs);
    hash.bytes(b'c', row.channel.as_deref().unwrap_or_default().as_bytes());
    for number in [row.label, row.margin] {
        match number {
            Some(number) => hash.bytes(b'n', &number.to_bits().to_le_bytes()),
            None => hash.mark(b'-'),
        }
    }
    hash.0.digest128()
}

struct Hasher(Xxh3);

impl Hasher {
    fn mark(&mut self, mark: u8) {
        self.0.update(&[mark]);
    }

    fn count(&mut self, mark: u8, count: usize) {
        self.mark(mark);
        self.0.update(&(count as u64).to_le_bytes());
    }

    fn bytes(&mut self, mark: u8, bytes: &[u8]) {
        self.count(mark, bytes.len());
        self.0.update(bytes);
    }

    fn messages(&mut self, messages: &[Message]) {
        self.count(b'M', messages.len());
        for message in messages {
            self.members(&message.fields);
            self.count(b'l', message.loss.len());
            message.loss.iter().for_each(|&loss| self.mark(u8::from(loss)));
            self.count(b's', message.loss_scale.len());
            message.loss_scale.iter().for_each(|scale| self.0.update(&scale.to_bits().to_le_bytes()));
            self.mark(u8::from(message.given));
            self.count(b'p', message.pieces.len());
            message.pieces.iter().for_each(|&piece| self.count(b' ', piece));
        }
    }

    fn members(&mut self, members: &[(Box<str>, Json)]) {
        self.count(b'O', members.len());
        for (key, value) in members {
            self.bytes(b'k', key.as_bytes());
            self.value(value);
        }
    }

    fn value(&mut self, value: &Json) {
        match value {
            Json::Null => self.mark(b'0'),
            Json::Bool(value) => self.mark(if *value { b't' } else { b'f' }),
            Json::Number(text) => self.bytes(b'N', text.as_bytes()),
            Json::String(text) => self.bytes(b'S', text.as_bytes()),
            Json::Array(items) => {
                self.count(b'A', items.len());
                for item in items {
                    self.value(item);
                }
            }
            Json::Object(members) => self.members(members),
        }
    }
}

/// The row as `show` prints it: `messages` (and `rejected_messages`) or `text`, and the columns that are there.
#[must_use]
pub fn to_json(row: &Row) -> Json {
    let mut members: Vec<(Box<str>, Json)> = Vec::new();
    let mut add = |name: &str, value: Json| members.push((name.into(), value));
    match &row.body {
        Body::Chat(messages) | Body::Prompt(messages) => add("messages", messages_json(messages)),
        Body::Pair(chosen, rejected) => {
            add("messages", messages_json(chosen));
            add("rejected_messages", messages_json(rejected));
        }
        Body::Text(text) => add("text", Json::String(text.clone())),
        Body::Group(texts) => {
            let text = |value: &str| Json::String(value.into());
            let texts = texts.iter().map(|one| {
                let second = one.second.as_deref().map(text);
                Json::Array(
                    [Json::Number(one.side.to_string().into()), text(&one.first)].into_iter().chain(second).collect(),
                )
            });
            add("texts", Json::Array(texts.collect()));
        }
        Body::Segments(segments) => {
            let segment = |(text, trained): &(Box<str>, bool)| {
                let text = ("text".into(), Json::String(text.clone()));
                Json::Object(vec![text, ("label".into(), Json::Bool(*trained))])
            };
            add("segments", Json::Array(segments.iter().map(segment).collect()));
        }
        Body::Tokens(ids, mask) => {
            let number = |id: &i32| Json::Number(id.to_string().into());
            add("input_ids", Json::Array(ids.iter().map(number).collect()));
            if let Some(mask) = mask {
                add("loss_mask", Json::Array(mask.iter().map(|trained| Json::Bool(*trained)).collect()));
            }
        }
    }
    if let Some(tools) = &row.tools {
        add("tools", tools.clone());
    }
    if !row.template_kwargs.is_empty() {
        add("chat_template_kwargs", Json::Object(row.template_kwargs.clone()));
    }
    if let Some(channel) = &row.channel {
        add("channel", Json::String(channel.clone()));
    }
    for (name, number) in [("label", row.label), ("margin", row.margin)] {
        if let Some(number) = number {
            add(name, Json::Number(number.to_string().into()));
        }
    }
    if !row.extra.is_empty() {
        add("extra", Json::String(row.extra.clone()));
    }
    Json::Object(members)
}

/// Messages as a list of objects, marks among their members.
#[must_use]
pub(crate) fn messages_json(messages: &[Message]) -> Json {
    let number = |text: String| Json::Number(text.into());
    let message_json = |message: &Message| {
        let mut fields = message.fields.clone();
        let mut add = |name: &str, items: Vec<Json>| {
            if !items.is_empty() {
                fields.push((name.into(), Json::Array(items)));
            }
        };
        // what is given is not learned, whatever its marks
        let loss = if message.given { &[false][..] } else { &message.loss };
        add("loss", loss.iter().map(|&loss| Json::Bool(loss)).collect());
        add("loss_scale", message.loss_scale.iter().map(|scale| number(scale.to_string())).collect());
        add("pieces", message.pieces.iter().map(|piece| number(piece.to_string())).collect());
        Json::Object(fields)
    };
    Json::Array(messages.iter().map(message_json).collect())
}
