//! Which column of a row is what.
use crate::error::RowError;
use crate::json;
use crate::media;
use crate::media::boxes::Objects;
use crate::media::kind::{Kind, Kinds};
use crate::rows::messages::is_whole_conversation;
use crate::rows::place::{Place, did_you_mean, listed, quoted};
use crate::rows::{RowForm, RowOptions};
use crate::types::{Json, Message};

/// What a column can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Messages,
    System,
    Query,
    Response,
    History,
    Chosen,
    RejectedResponse,
    RejectedMessages,
    Label,
    Margin,
    Channel,
    Tools,
    TemplateKwargs,
    Images,
    Audios,
    Videos,
    Objects,
}

impl Column {
    const ALL: [Self; 17] = [
        Self::Messages,
        Self::System,
        Self::Query,
        Self::Response,
        Self::History,
        Self::Chosen,
        Self::RejectedResponse,
        Self::RejectedMessages,
        Self::Label,
        Self::Margin,
        Self::Channel,
        Self::Tools,
        Self::TemplateKwargs,
        Self::Images,
        Self::Audios,
        Self::Videos,
        Self::Objects,
    ];

    /// The canonical name, then its aliases. Those of query and response are ms-swift's.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages", "conversation", "conversations"],
            Self::System => &["system", "system_prompt"],
            Self::Query => &["query", "prompt", "input", "instruction", "question", "problem"],
            Self::Response => &[
                "response",
                "answer",
                "output",
                "targets",
                "target",
                "answer_key",
                "answers",
                "solution",
                "text",
                "completion",
                "content",
            ],
            Self::History => &["history"],
            Self::Chosen => &["chosen", "chosen_messages"],
            Self::RejectedResponse => &["rejected_response", "rejected"],
            Self::RejectedMessages => &["rejected_messages"],
            Self::Label => &["label", "kto_tag"],
            Self::Margin => &["margin"],
            Self::Channel => &["channel"],
            Self::Tools => &["tools"],
            Self::TemplateKwargs => &["chat_template_kwargs"],
            Self::Images => &["images", "image"],
            Self::Audios => &["audios", "audio"],
            Self::Videos => &["videos", "video"],
            Self::Objects => &["objects"],
        }
    }

    /// Whether it brings something else than text, so that it is spent when it is empty.
    fn is_media(self) -> bool {
        matches!(self, Self::Objects | Self::Images | Self::Audios | Self::Videos)
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|column| column.names().iter().any(|alias| alias.eq_ignore_ascii_case(name)))
    }
}

/// Whether a column of this name means something here.
#[must_use]
pub fn is_column(name: &str) -> bool {
    Column::of(name).is_some()
}

/// Columns whose media or tools the data path cannot use yet, and would drop without a word if it let them pass.
const PREFIXED: [&str; 5] = ["tools", "images", "videos", "audios", "objects"];

/// Columns a row can do without, so that only their misspelt names give them away. Short names have too many neighbours.
const GUARDED: [&str; 5] =
    ["system_prompt", "rejected_response", "rejected", "rejected_messages", "chat_template_kwargs"];

/// Pictures, sounds and videos of a row's columns, and objects in pictures.
#[derive(Debug)]
pub(super) struct Pictures(Vec<media::Given>, Option<Objects>);

impl Pictures {
    /// Give them their places in a conversation.
    pub(super) fn attach(&self, messages: &mut [Message]) -> Result<(), RowError> {
        media::attach(messages, &self.0)?;
        self.1.as_ref().map_or(Ok(()), |objects| objects.attach(messages))
    }
}

/// The columns of a row that nobody has taken yet.
pub(super) struct Columns {
    members: Vec<(Box<str>, Json, Option<Column>)>,
}

impl Columns {
    /// Leave out, rename, recognise.
    pub(super) fn new(members: Vec<(Box<str>, Json)>, options: &RowOptions) -> Result<Self, RowError> {
        let renames = &options.columns;
        let mut sorted = Vec::with_capacity(members.len());
        for (name, value) in members {
            if options.drop.contains(&name) {
                continue;
            }
            let name = renames.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new.clone());
            let column = Column::of(&name);
            if !renames.is_empty() && sorted.iter().any(|(other, _, _)| *other == name) {
                let message = format!("--columns makes a second column {}; rename the other one too", quoted(&name));
                return Err(Place::Root.fault("ambiguous_column", message));
            }
            sorted.push((name, value, column));
        }
        Ok(Self { members: sorted })
    }

    fn position(&self, column: Column) -> Result<Option<usize>, RowError> {
        let mut found = self.members.iter().enumerate().filter(|(_, member)| is_present(member, column));
        let Some((first, _)) = found.next() else { return Ok(None) };
        if found.next().is_none() {
            return Ok(Some(first));
        }
        let canonical = column.names()[0];
        let spelled = |index: &usize| *self.members[*index].0 == *canonical;
        if let Some(index) = (0..self.members.len()).find(spelled) {
            return Ok(Some(index));
        }
        Err(self.ambiguous(column))
    }

    fn ambiguous(&self, column: Column) -> RowError {
        let candidates: Vec<&str> = self.present(column).collect();
        let canonical = column.names()[0];
        let message = format!(
            "{} could each be the {canonical}; choose with --columns {}={canonical}",
            candidates.join(", "),
            candidates[0]
        );
        Place::Root.fault("ambiguous_column", message)
    }

    fn present(&self, column: Column) -> impl Iterator<Item = &str> {
        self.members.iter().filter(move |member| is_present(member, column)).map(|(name, _, _)| &**name)
    }

    /// The column and the name it has in this row. Null is as good as absent.
    pub(super) fn take(&mut self, column: Column) -> Result<Option<(Box<str>, Json)>, RowError> {
        Ok(self.position(column)?.map(|index| self.take_at(index)))
    }

    fn take_at(&mut self, index: usize) -> (Box<str>, Json) {
        let (name, value, _) = self.members.remove(index);
        (name, value)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|(other, value, _)| other.eq_ignore_ascii_case(name) && *value != Json::Null)
    }

    /// The one column that has one of these names. Null is as good as absent.
    pub(super) fn take_one_of(&mut self, names: &[&str]) -> Result<Option<(Box<str>, Json)>, RowError> {
        let is_one = |name: &str| names.iter().any(|other| other.eq_ignore_ascii_case(name));
        let found: Vec<usize> = (0..self.members.len())
            .filter(|index| is_one(&self.members[*index].0) && self.members[*index].1 != Json::Null)
            .collect();
        match found[..] {
            [] => Ok(None),
            [index] => Ok(Some(self.take_at(index))),
            _ => {
                let all: Vec<&str> = found.iter().map(|index| &*self.members[*index].0).collect();
                let message = format!(
                    "{} could each be the {}; leave out all but one with --drop COLUMN",
                    all.join(", "),
                    names[0]
                );
                Err(Place::Root.fault("ambiguous_column", message))
            }
        }
    }

    /// Columns called `prefix` and a number, as they stand.
    pub(super) fn numbered(&self, prefix: &str) -> Vec<Box<str>> {
        let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        let names = self.members.iter().map(|(name, _, _)| name);
        names.filter(|name| name.strip_prefix(prefix).is_some_and(is_number)).cloned().collect()
    }

    /// Whether the row has a column of this kind that is not null.
    pub(super) fn is_present(&self, column: Column) -> bool {
        self.present(column).next().is_some()
    }

    /// The value of a column by its own name, if it is not null.
    pub(super) fn take_named(&mut self, name: &str) -> Option<Json> {
        let at = self.members.iter().position(|(other, value, _)| **other == *name && *value != Json::Null)?;
        Some(self.members.remove(at).1)
    }

    /// Whether the row has a column of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(other, _, _)| **other == *name)
    }

    /// Add a column that nobody takes: it travels in `extra`.
    pub(super) fn put_back(&mut self, name: &str, value: Json) {
        self.members.push((name.into(), value, None));
    }

    /// The query: its column, or `instruction` and `input` joined by a newline as Alpaca has them.
    pub(super) fn take_query(&mut self) -> Result<Option<(Box<str>, Json)>, RowError> {
        let (Some(instruction), Some(input)) = (self.find("instruction"), self.find("input")) else {
            return self.take(Column::Query);
        };
        if self.find("query").is_some() {
            return self.take(Column::Query);
        }
        if self.present(Column::Query).count() > 2 {
            return Err(self.ambiguous(Column::Query));
        }
        let text = |index: usize| match &self.members[index].1 {
            Json::String(text) => Ok(&**text),
            other => {
                let message = format!("expected a text, got {}", super::kind(other));
                Err(Place::Key(&Place::Root, &self.members[index].0).fault("content", message))
            }
        };
        let (first, second) = (text(instruction)?, text(input)?);
        let between = if first.is_empty() || second.is_empty() { "" } else { "\n" };
        let joined = Json::String([first, between, second].concat().into());
        let name = self.members[instruction].0.clone();
        self.members[instruction.max(input)].2 = None;
        self.take_at(instruction.max(input));
        self.take_at(instruction.min(input));
        Ok(Some((name, joined)))
    }

    /// `chosen`, if a rejected side gives it its meaning.
    pub(super) fn take_chosen(&mut self) -> Result<Option<(Box<str>, Json)>, RowError> {
        if !self.has_pair_columns() {
            return Ok(None);
        }
        if self.find("response").is_some() && self.find("messages").is_none() {
            let message = "the row has both chosen and response; rename one of them with --columns";
            return Err(Place::Root.fault("ambiguous_column", message.to_owned()));
        }
        self.take(Column::Chosen)
    }

    fn has_pair_columns(&self) -> bool {
        let has = |column| self.present(column).next().is_some();
        has(Column::Chosen) && (has(Column::RejectedResponse) || has(Column::RejectedMessages))
    }

    /// Which columns hold the conversation.
    pub(super) fn conversation_source(&self) -> Result<RowForm, RowError> {
        let chosen = self.members.iter().find(|member| is_present(member, Column::Chosen));
        if self.has_pair_columns() && chosen.is_some_and(|(_, value, _)| is_whole_conversation(value)) {
            return Ok(RowForm::Chosen);
        }
        if self.position(Column::Messages)?.is_some() {
            return Ok(RowForm::Messages);
        }
        Ok(RowForm::Query)
    }

    /// A pair of texts without a question, as HH-RLHF has them: what both begin with becomes the question. A space at its
    /// end belongs to the answers, whose first tokens hold it. As TRL has it.
    pub(super) fn split_prompt_off(&mut self) {
        let spoken = [Column::Messages, Column::Query, Column::History];
        if spoken.into_iter().any(|column| self.is_present(column)) {
            return;
        }
        let at = |column| self.members.iter().position(|member| is_present(member, column));
        let (Some(chosen), Some(rejected)) = (at(Column::Chosen), at(Column::RejectedResponse)) else { return };
        let (Json::String(one), Json::String(other)) = (&self.members[chosen].1, &self.members[rejected].1) else {
            return;
        };
        let differs = one.char_indices().zip(other.chars()).find(|((_, a), b)| a != b).map(|((at, _), _)| at);
        let same = &one[..differs.unwrap_or_else(|| one.len().min(other.len()))];
        let end = same.strip_suffix(' ').unwrap_or(same).len();
        let (prompt, one, other) = (one[..end].into(), one[end..].into(), other[end..].into());
        self.members[chosen].1 = Json::String(one);
        self.members[rejected].1 = Json::String(other);
        self.members.push(("query".into(), Json::String(prompt), Some(Column::Query)));
    }

    /// Leave out a conversation that says again what `value` says, as `UltraFeedback` has it beside its pairs.
    pub(super) fn forget_repeated(&mut self, value: &Json) {
        self.members.retain(|(_, other, column)| *column != Some(Column::Messages) || other != value);
    }

    /// An error for a question whose row has no column for an answer, not even an empty one.
    pub(super) fn refuse_no_answer(&self) -> Result<(), RowError> {
        if self.members.iter().any(|(_, _, column)| *column == Some(Column::Response)) {
            return Ok(());
        }
        let found = listed(self.members.iter().map(|(name, _, _)| &**name));
        let found = if found.is_empty() { "none beside the question".to_owned() } else { found };
        let message = format!(
            "no column holds an answer (columns: {found}); name it with --columns OLD=response, or make prompts with --for prompt"
        );
        Err(Place::Root.fault("no_answer", message))
    }

    /// Pictures, sounds and videos of the row's columns.
    pub(super) fn take_pictures(&mut self) -> Result<Pictures, RowError> {
        let mut given = vec![];
        for (column, kind) in
            [(Column::Images, Kind::Image), (Column::Audios, Kind::Audio), (Column::Videos, Kind::Video)]
        {
            if let Some((name, value)) = self.take(column)? {
                let place = Place::Key(&Place::Root, &name).to_string();
                given.push(media::Given { kind, place, items: Self::listed(value) });
            }
        }
        let place = |name: &str| Place::Key(&Place::Root, name).to_string();
        let is_empty = |value: &Json| {
            matches!(value, Json::Object(members) if members.is_empty())
                || matches!(value, Json::Array(items) if items.is_empty())
                || matches!(value, Json::String(text) if text.is_empty())
        };
        let objects = self.take(Column::Objects)?.filter(|(_, value)| !is_empty(value));
        let objects = objects.map(|(name, value)| Objects::read(&value, place(&name)));
        Ok(Pictures(given, objects.transpose()?))
    }

    /// What a column brings, one by one.
    fn listed(value: Json) -> Vec<Json> {
        let items = match value {
            Json::Array(items) => items,
            Json::String(text) if text.is_empty() => vec![],
            Json::String(text) if text.starts_with('[') => match json::parse_text(&text) {
                Ok(Json::Array(items)) => items,
                _ => vec![Json::String(text)],
            },
            other => vec![other],
        };
        items.into_iter().filter(|item| *item != Json::Null).collect()
    }

    /// A row with something that the model does not read cannot be trained on as it was meant.
    pub(super) fn refuse_media(&self, reads: Kinds) -> Result<(), RowError> {
        for (name, value, column) in &self.members {
            let empty = match value {
                Json::Null => true,
                Json::String(text) => text.is_empty(),
                Json::Array(items) => items.is_empty(),
                Json::Object(members) => members.is_empty(),
                _ => false,
            };
            if empty {
                continue;
            }
            let place = Place::Key(&Place::Root, name);
            let kind = match column {
                Some(Column::Images) => Some(Kind::Image),
                Some(Column::Audios) => Some(Kind::Audio),
                Some(Column::Videos) => Some(Kind::Video),
                _ => None,
            };
            if let Some(kind) = kind.filter(|kind| !reads.has(*kind)) {
                let message = format!(
                    "the row has {}s and the model reads none; give one that does with -m, or leave the column out \
                     with --drop",
                    kind.noun()
                );
                return Err(place.fault("media", message));
            }
            if *column == Some(Column::Objects) && !reads.has(Kind::Image) {
                let message = "the row has boxes and the model reads no pictures; leave the column out with --drop";
                return Err(place.fault("media", message.to_owned()));
            }
            let rest = ["rejected_", "positive_", "negative_"].iter().find_map(|prefix| name.strip_prefix(prefix));
            if rest.is_some_and(|rest| PREFIXED.contains(&rest)) {
                let message =
                    "tools and media of one side alone are not supported yet; remove the column or these rows";
                return Err(place.fault("media", message.to_owned()));
            }
        }
        Ok(())
    }

    /// The label as a number: `true` is 1. A list or a word is left to travel in `extra`.
    pub(super) fn take_label(&mut self) -> Option<f64> {
        let index = self.members.iter().position(|member| is_present(member, Column::Label))?;
        let number = as_number(&self.members[index].1)?;
        self.members.remove(index);
        Some(number)
    }

    /// No column for `column`: what there is, and which of it may be misspelt.
    pub(super) fn missing(&self, column: Column) -> RowError {
        let names = || self.members.iter().map(|(name, _, _)| &**name);
        let wanted = match column {
            Column::Query => "history needs a query column",
            _ => "no column holds a conversation or a text",
        };
        let all = || {
            [Column::Messages, Column::Query, Column::Response].iter().flat_map(|column| column.names().iter().copied())
        };
        let hint = names().find_map(|name| did_you_mean(name, all()).map(|meant| (name, meant)));
        let found = if self.members.is_empty() { "none".to_owned() } else { listed(names()) };
        let message = match hint {
            Some((name, meant)) => {
                format!("{wanted}; did you mean {meant} by {}? --columns {name}={meant}", quoted(name))
            }
            None => {
                format!("{wanted} (columns: {found}); name one with --columns OLD=messages, OLD=query or OLD=response")
            }
        };
        Place::Root.fault("no_conversation", message)
    }

    /// An error if a column left over looks like a misspelt name of `column`.
    pub(super) fn refuse_typo(&self, column: Column) -> Result<(), RowError> {
        for (name, _, known) in &self.members {
            let meant = did_you_mean(name, column.names().iter().copied()).filter(|_| known.is_none());
            if let Some(meant) = meant {
                return Err(typo(name, meant));
            }
        }
        Ok(())
    }

    /// Every column that was not used, as one canonical JSON object, and their names.
    ///
    /// A name close to one that would have changed the row's meaning is an error: `rejected_respons` must not travel along
    /// as a mere passenger.
    pub(super) fn into_extra(self) -> Result<(Box<str>, Vec<Box<str>>), RowError> {
        let mut left = Vec::with_capacity(self.members.len());
        for (name, value, column) in self.members {
            if column.is_none()
                && let Some(meant) = did_you_mean(&name, GUARDED)
            {
                return Err(typo(&name, meant));
            }
            // An empty column of ours is spent, as are media columns, which are all empty here; anybody else's null is data.
            if column.is_none() || (value != Json::Null && !column.is_some_and(Column::is_media)) {
                left.push((name, value));
            }
        }
        if left.is_empty() {
            return Ok(Default::default());
        }
        let names = left.iter().map(|(name, _)| name.clone()).collect();
        Ok((json::to_canonical(&Json::Object(left)).into(), names))
    }
}

fn typo(name: &str, meant: &str) -> RowError {
    let message = format!(
        "unknown column; did you mean {meant}? rename it with --columns {name}={meant}, or to something else to keep it"
    );
    Place::Key(&Place::Root, name).fault("unknown_column", message)
}

fn is_present(member: &(Box<str>, Json, Option<Column>), column: Column) -> bool {
    member.2 == Some(column) && member.1 != Json::Null
}

/// A number, a bool, or one of both written as text (as CSV has them).
pub(super) fn as_number(value: &Json) -> Option<f64> {
    let number = match value {
        Json::Bool(value) => Some(f64::from(u8::from(*value))),
        Json::Number(text) => text.parse().ok(),
        Json::String(text) => match text.trim() {
            "true" | "True" => Some(1.0),
            "false" | "False" => Some(0.0),
            text if text.starts_with(|first: char| first.is_ascii_digit() || first == '-') => text.parse().ok(),
            _ => None,
        },
        _ => None,
    };
    number.filter(|number: &f64| number.is_finite())
}
