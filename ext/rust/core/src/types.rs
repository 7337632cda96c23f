//! The records that pass between the parts of the data path: bytes -> [`Json`] -> [`Row`] -> [`Rendered`] -> tokens.
//!
//! Each part lives in a module of its own and knows only these types.

use crate::error::choices;
use std::ops::Range;

/// A JSON value that keeps what Python would keep: the order of keys and the text of numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Json {
    /// `null`
    #[default]
    Null,
    /// `true`, `false`
    Bool(bool),
    /// The number as written (`1e-5`, `0.10`, any number of digits).
    Number(Box<str>),
    /// Unescaped text.
    String(Box<str>),
    /// A list.
    Array(Vec<Json>),
    /// Members in file order; no key twice.
    Object(Vec<(Box<str>, Json)>),
}

impl Json {
    /// The value of a member; none if there is no such member, or this is no object.
    #[must_use]
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        members.iter().find(|(key, _)| **key == *name).map(|(_, value)| value)
    }

    /// The items of a member that is a list; none of any other.
    #[must_use]
    pub fn list(&self, name: &str) -> &[Self] {
        match self.member(name) {
            Some(Self::Array(items)) => items,
            _ => &[],
        }
    }

    /// A member that is a text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.member(name) {
            Some(Self::String(text)) => Some(text),
            _ => None,
        }
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Role {
    /// Instructions before the conversation (`developer` too).
    System = 0,
    /// The person, or the query.
    User = 1,
    /// The model: the only role that is ever trained on by the `default` rule.
    Assistant = 2,
    /// What a tool answered.
    Tool = 3,
}

choices! { Role, "role", "system" => System, "user" => User, "assistant" => Assistant, "tool" => Tool }

/// One message as the chat template sees it, with the training marks that it must not see.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Whose turn it is.
    pub role: Role,
    /// The members handed to the template, in Hugging Face form: `role`, `content`, and where present `tool_calls`
    /// (`[{type, function: {name, arguments}}]`), `reasoning_content`, `name`, `tool_call_id`, and unknown members.
    pub fields: Vec<(Box<str>, Json)>,
    /// `loss` of the row: overrides the base strategy for this message. One value, or one a content piece.
    pub loss: Vec<bool>,
    /// `loss_scale` of the row: replaces the weight strategies for this message. One value, or one a content piece.
    pub loss_scale: Vec<f32>,
    /// Byte lengths of the content's pieces, when `content` was a list of several texts that were joined.
    pub pieces: Vec<usize>,
    /// It belongs to the prompt: nobody learns to say it, though under the base `all` its tokens count as all others do.
    pub given: bool,
}

impl Message {
    /// A message with these members and no marks.
    pub(crate) fn new(role: Role, fields: Vec<(Box<str>, Json)>) -> Self {
        Self { role, fields, loss: vec![], loss_scale: vec![], pieces: vec![], given: false }
    }

    /// Its content, where that is a text.
    pub(crate) fn content(&self) -> Option<&str> {
        self.fields.iter().find_map(|(name, value)| match value {
            Json::String(text) if &**name == "content" => Some(&**text),
            _ => None,
        })
    }
}

/// What a row asks of training.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A conversation.
    Chat(Vec<Message>),
    /// A conversation with a worse ending: chosen, then rejected; each is whole.
    Pair(Vec<Message>, Vec<Message>),
    /// Text to continue, with no chat framing.
    Text(Box<str>),
    /// Ids that somebody else made, and which of them are trained on; none: all.
    Tokens(Vec<i32>, Option<Vec<bool>>),
    /// Texts one after the other, with nothing between them, and whether each is trained on.
    Segments(Vec<(Box<str>, bool)>),
    /// A conversation that waits for an answer.
    Prompt(Vec<Message>),
    /// Texts to compare.
    Group(Vec<Text>),
}

/// One text of a group, as the tokenizer itself encodes a text or a pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Place in the group: 0 the query, 1 what does not fit it, 2 what does.
    pub side: i8,
    /// The text.
    pub first: Box<str>,
    /// What follows it behind a separator.
    pub second: Option<Box<str>>,
}

/// One row after every format and alias has been resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The conversation or text.
    pub body: Body,
    /// Tool schemas, as given (a JSON text is parsed).
    pub tools: Option<Json>,
    /// `chat_template_kwargs` of the row.
    pub template_kwargs: Vec<(Box<str>, Json)>,
    /// For loss by source.
    pub(crate) channel: Option<Box<str>>,
    /// KTO label, classification target or score.
    pub(crate) label: Option<f64>,
    /// Preference margin.
    pub(crate) margin: Option<f64>,
    /// Every other column as one canonical JSON object (keys sorted, no spaces), or empty when there is none.
    pub extra: Box<str>,
    /// Names of these columns.
    pub unused: Vec<Box<str>>,
}

/// A rendered conversation and where each turn came to lie in it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rendered {
    /// Exactly what `apply_chat_template(tokenize=False)` gives.
    pub text: String,
    /// Turns in the order of the text; they do not overlap; text between them is nobody's.
    pub turns: Vec<Turn>,
    /// What of the row is not in the text: changing it would not change the text.
    pub unwritten: Vec<Unwritten>,
}

/// A part of a message, or a tool (whose message is 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The message's text.
    Content,
    /// Its reasoning.
    Thinking,
    /// One of its calls: its name or its arguments.
    Call(usize),
    /// One of the row's tool definitions.
    Tool(usize),
}

/// A part of a row that left no trace in its rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwritten {
    /// Index of the message.
    pub message: usize,
    /// What of it.
    pub part: Part,
}

/// The text one message produced.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Whose.
    pub role: Role,
    /// Index of the message in the conversation.
    pub message: usize,
    /// All bytes the message produced, framing included.
    pub all: Range<usize>,
    /// For an assistant: the bytes the model itself must generate, from the first after the generation prompt to the end
    /// of the closing token, if there is one. Empty for other roles.
    pub generated: Range<usize>,
    /// Where in `generated` the closing suffix (`<|im_end|>`) starts; equals `generated.end` if there is none.
    pub closing: usize,
}
