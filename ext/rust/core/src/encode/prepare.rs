//! A conversation before it is rendered, and what is asked of its rendering: nothing of a row is lost unseen.
use crate::agents::Written;
use crate::encode::conversation::{EncodedRow, RowContext};
use crate::encode::encoder::Encoder;
use crate::encode::options::{OnUnwritten, SpecialText};
use crate::encode::seams::RenderedFrom;
use crate::encode::thinking;
use crate::error::{Error, RowError};
use crate::media;
use crate::template::Template;
use crate::types::{self, Json, Message, Part, Role};
use crate::weigh::Base;
use std::borrow::Cow;

/// A conversation as the template is to see it.
pub(super) struct Prepared<'a> {
    pub(super) template: &'a Template,
    pub(super) messages: Vec<Message>,
    pub(super) tools: Option<Cow<'a, Json>>,
    pub(super) kwargs: Vec<(Box<str>, Json)>,
    /// The character that marks escaped special tokens, if there are any.
    pub(super) mark: Option<char>,
    /// Index of the row's own first message: -1 behind a system message that the options put in.
    pub(super) first_message: i32,
    /// What an agent format made of the messages; they are then in `messages`.
    pub(super) written: Option<Written>,
    /// The row's pictures.
    pub(super) items: Vec<media::Item>,
}

impl Prepared<'_> {
    pub(super) fn source<'a>(&'a self, encoder: &'a Encoder) -> RenderedFrom<'a> {
        RenderedFrom {
            messages: &self.messages,
            written: self.written.as_ref(),
            first_message: self.first_message,
            roles: &encoder.spec().roles,
            specials: &encoder.specials,
        }
    }
}

impl Encoder {
    /// Put the options' system message before a conversation that has none; true if it was.
    pub(crate) fn add_system(&self, messages: &mut Vec<Message>) -> bool {
        let Some(system) = &self.options.system else { return false };
        let has_none = messages.first().is_none_or(|message| message.role != Role::System);
        if has_none {
            messages.insert(0, system_message(system));
        }
        has_none
    }

    pub(super) fn prepare<'a>(
        &'a self,
        mut messages: Vec<Message>,
        side: RowContext<'a>,
        out: &mut EncodedRow,
    ) -> Result<Prepared<'a>, Error> {
        let agent = self.templates.agent.as_ref();
        let with_tools = side.tools.and(self.templates.with_tools.as_ref()).filter(|_| agent.is_none());
        let template = with_tools.or(self.templates.default.as_ref()).ok_or_else(|| Error::Config {
            message: "the model has no chat template; give one with --chat-template".into(),
        })?;
        let first_message = -i32::from(self.add_system(&mut messages));
        let items = match &self.media {
            Some(media) => media.take(&mut messages, side.folder)?,
            None => vec![],
        };
        if !items.is_empty() && agent.is_some() {
            return Err(RowError::new(
                "media",
                "an agent format writes no pictures; leave --agent-format out".to_owned(),
            )
            .into());
        }
        thinking::apply(self.options.thinking, &mut messages, self.spec().base == Base::LastRound);
        for message in &messages {
            for (name, value) in &message.fields {
                if &**name != "role" {
                    self.look_alikes_in(value, out)?;
                }
            }
        }
        let mut row_kwargs = side.kwargs.to_vec();
        let mut tools = side.tools.map(Cow::Borrowed);
        let mut mark = None;
        if let Some(escape) = &self.escape {
            let tools = tools.as_mut().map(Cow::to_mut);
            mark = escape.mark_chat(&mut messages, tools, &mut row_kwargs)?;
        }
        let mut written = None;
        if let Some(agent) = agent {
            let mut made = agent.write(messages, tools.take().as_deref())?;
            messages = std::mem::take(&mut made.messages);
            written = Some(made);
        }
        let kwargs = merged(&self.options.template_kwargs, &row_kwargs);
        Ok(Prepared { template, messages, tools, kwargs, mark, first_message, written, items })
    }

    /// Count what the template left out of the row. Thinking is left out by the rule of many templates; anything else is
    /// against ours, unless it was allowed.
    pub(super) fn check_written(
        &self,
        template: &Template,
        unwritten: &[types::Unwritten],
        source: RenderedFrom,
        out: &mut EncodedRow,
    ) -> Result<(), Error> {
        for part in unwritten {
            let message = source.row_index(part.message);
            let (path, what) = match part.part {
                Part::Thinking => {
                    out.unwritten_thinking += 1;
                    continue;
                }
                Part::Content if message < 0 && source.written.is_some() => ("$.tools".to_owned(), "system message"),
                Part::Content if message < 0 => ("--system".to_owned(), "system message"),
                Part::Content => (format!("$.messages[{message}].content"), "text"),
                Part::Call(call) => (format!("$.messages[{message}].tool_calls[{call}]"), "tool call"),
                Part::Tool(tool) => (format!("$.tools[{tool}]"), "tool definition"),
            };
            out.unwritten_parts += 1;
            if self.options.unwritten == OnUnwritten::Error {
                let message = format!(
                    "{} does not write this {what}, so the model would never see it; {}pass a --chat-template that does, \
                     or --unwritten allow to train without it",
                    template.name(),
                    if matches!(part.part, Part::Call(_) | Part::Tool(_)) {
                        "write it into the text with --agent-format (hermes, react_en, ...), "
                    } else {
                        ""
                    }
                );
                return Err(Error::Row(RowError::at(path, "unwritten", message)));
            }
        }
        Ok(())
    }

    fn look_alikes_in(&self, value: &Json, out: &mut EncodedRow) -> Result<(), Error> {
        match value {
            Json::String(text) => self.look_alikes(text, out),
            Json::Array(items) => items.iter().try_for_each(|item| self.look_alikes_in(item, out)),
            Json::Object(members) => members.iter().try_for_each(|(_, value)| self.look_alikes_in(value, out)),
            _ => Ok(()),
        }
    }

    pub(super) fn look_alikes(&self, text: &str, out: &mut EncodedRow) -> Result<(), Error> {
        for found in self.specials.find_iter(text) {
            out.look_alikes += 1;
            if self.options.special_text == SpecialText::Error {
                let found = &text[found];
                let why = format!(
                    "a message contains the special token {found} as text; remove it, or --special-text escape"
                );
                return Err(RowError::new("special_text", why).into());
            }
        }
        Ok(())
    }
}

fn system_message(text: &str) -> Message {
    let content = ("content".into(), Json::String(text.into()));
    Message::new(Role::System, vec![("role".into(), Json::String("system".into())), content])
}

fn merged(default: &[(Box<str>, Json)], row: &[(Box<str>, Json)]) -> Vec<(Box<str>, Json)> {
    let mut out: Vec<(Box<str>, Json)> =
        default.iter().filter(|(name, _)| !row.iter().any(|(other, _)| other == name)).cloned().collect();
    out.extend_from_slice(row);
    out
}
