//! One conversation or text: rendered, encoded, weighed and cut to length.
use crate::agents::{AgentFormat, Written};
use crate::encode::seams::{self, Segments, Source};
use crate::encode::thinking::{self, Thinking};
use crate::encode::truncate::{Kept, Truncation, answer_start};
use crate::error::{Error, RowError};
use crate::media::{self, Media};
use crate::template::{Date, Template};
use crate::tokenizer::engine::{Engine, Places, Tokens, encode_parts};
use crate::tokenizer::escape::{Escape, is_spelled_out};
use crate::tokenizer::special::SpecialMatcher;
use crate::tokenizer::vocabulary::Vocabulary;
use crate::types::{self, Json, Message, Part, Rendered, Role, Text};
use crate::weigh::sequence::{Scratch, Span, TokenTurn, totals, weigh};
use crate::weigh::{Base, Semantics, Spec};
use std::borrow::Cow;

/// What to do with text in a message that looks like a special token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialText {
    /// Encode it as transformers does: as the special token. It is counted.
    Keep,
    /// Leave the row out.
    Drop,
    /// Refuse the row.
    Error,
    /// Encode it as the text it is; see [`crate::tokenizer::escape`].
    Escape,
}

/// What to do with a row of which the template writes a part not at all: a text, a call, a tool definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwritten {
    /// Refuse the row.
    Error,
    /// Train on what is written. The parts are counted.
    Allow,
}

/// How conversations become tokens.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the text is cut before encoding.
    pub segments: Segments,
    /// Longest row in tokens.
    pub max_length: Option<usize>,
    /// What happens to longer ones.
    pub truncation: Truncation,
    /// Text that looks like a special token.
    pub special_text: SpecialText,
    /// Parts of a row that the template does not write.
    pub unwritten: Unwritten,
    /// Changes to thinking.
    pub thinking: Thinking,
    /// System message of conversations without one.
    pub system: Option<Box<str>>,
    /// Template arguments; those of the row win.
    pub template_kwargs: Vec<(Box<str>, Json)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segments: Segments::Whole,
            max_length: None,
            truncation: Truncation::Drop,
            special_text: SpecialText::Keep,
            unwritten: Unwritten::Error,
            thinking: Thinking::Template,
            system: None,
            template_kwargs: vec![],
        }
    }
}

/// Everything that turns a conversation into tokens; shared by threads.
pub struct Encoder {
    engine: Box<dyn Engine>,
    vocabulary: Vocabulary,
    templates: Templates,
    spec: Spec,
    options: Options,
    specials: SpecialMatcher,
    escape: Option<Escape>,
    media: Option<Media>,
    /// The ids of the family's features, by kind; -1 for what it does not read.
    features: [i32; 3],
}

/// The chat templates of a model.
#[derive(Debug, Default)]
pub struct Templates {
    /// For conversations; none: only text rows can be encoded.
    pub default: Option<Template>,
    /// For conversations with tools, when the model has another one for them.
    pub with_tools: Option<Template>,
    /// What writes tools and calls into the messages before a template sees them.
    pub agent: Option<AgentFormat>,
}

/// One row on its way. Kept between rows to save allocations.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Ids; ends in the rendered text only where `places` did not do.
    pub tokens: Tokens,
    places: Places,
    /// Turns as tokens.
    pub turns: Vec<TokenTurn>,
    /// Weights.
    pub spans: Vec<Span>,
    /// Pictures.
    pub media: Vec<media::Span>,
    /// Calls to the engine.
    pub encode_calls: usize,
    /// Length of the rendered text.
    pub rendered_bytes: usize,
    /// Tokens over a seam.
    pub straddles: usize,
    /// Special tokens written as text in messages.
    pub look_alikes: usize,
    /// Assistant messages whose thinking the template left out.
    pub unwritten_thinking: usize,
    /// Other parts of the row that the template left out.
    pub unwritten_parts: usize,
    form: Form,
}

/// What a row is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Chat,
    Text,
    /// Nothing of it is trained on.
    Prompt,
}

/// A conversation as the template is to see it.
struct Ready<'a> {
    template: &'a Template,
    messages: Vec<Message>,
    tools: Option<Cow<'a, Json>>,
    kwargs: Vec<(Box<str>, Json)>,
    /// The character that marks escaped special tokens, if there are any.
    mark: Option<char>,
    /// Index of the row's own first message: -1 behind a system message that the options put in.
    first_message: i32,
    /// What an agent format made of the messages; they are then in `messages`.
    written: Option<Written>,
    /// The row's pictures.
    items: Vec<media::Item>,
}

impl Ready<'_> {
    fn source<'a>(&'a self, encoder: &'a Encoder) -> Source<'a> {
        Source {
            messages: &self.messages,
            written: self.written.as_ref(),
            first_message: self.first_message,
            roles: &encoder.spec.roles,
            specials: &encoder.specials,
        }
    }
}

/// What a conversation shares with the other side of its pair.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Tool schemas.
    pub tools: Option<&'a Json>,
    /// The row's template arguments.
    pub kwargs: &'a [(Box<str>, Json)],
    /// The folder of the data file, from where paths of pictures count.
    pub folder: Option<&'a str>,
}

/// What became of a row at the length limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Whole,
    /// It was cut, and this many turns are no longer trained on.
    Cut {
        /// Turns that lost generated tokens.
        masked: usize,
    },
    /// It is to be cut into blocks of this many tokens.
    Blocks(usize),
    /// It is left out, for this reason.
    Dropped(&'static str),
}

fn row_error(reason: &'static str, message: String) -> Error {
    Error::Row(RowError { reason, column: None, path: String::new(), message })
}

impl Encoder {
    /// Put the parts together.
    ///
    /// # Errors
    /// `Error::Config` for options that contradict each other.
    pub fn new(
        engine: Box<dyn Engine>,
        vocabulary: Vocabulary,
        templates: Templates,
        mut spec: Spec,
        options: Options,
    ) -> Result<Self, Error> {
        spec.prepare(&vocabulary);
        if options.segments == Segments::MsSwift && spec.semantics != Semantics::MsSwift {
            let message = "segments ms-swift cuts where ms-swift's weights change; set loss_rules to ms-swift too";
            return Err(Error::Config { message: message.into() });
        }
        if options.max_length == Some(0) {
            return Err(Error::Config { message: "max_length is 0, expected at least 1".into() });
        }
        let specials = SpecialMatcher::of_texts(vocabulary.specials.iter().map(|text| &**text));
        Ok(Self {
            engine,
            vocabulary,
            templates,
            spec,
            options,
            specials,
            escape: None,
            media: None,
            features: [-1; 3],
        })
    }

    /// Encode special tokens in messages as text.
    ///
    /// # Errors
    /// `Error::Config` for a tokenizer where a stretch of text cannot stand alone.
    pub fn with_escape(mut self, escape: Escape) -> Result<Self, Error> {
        if self.vocabulary.opens_with_space() {
            let message = "special_text: escape does not work with a tokenizer that puts a space before the first \
                           text only; use drop or error";
            return Err(Error::Config { message: message.into() });
        }
        self.escape = Some(escape);
        Ok(self)
    }

    /// Read pictures.
    ///
    /// # Errors
    /// `Error::Config` where the tokenizer does not know the family's token, as the engine.
    pub fn with_media(mut self, media: Media) -> Result<Self, Error> {
        for (kind, writing) in media.family.writings() {
            let mut tokens = Tokens::default();
            self.engine.encode(&writing.feature, &mut tokens)?;
            let [feature] = tokens.ids[..] else {
                let message = format!("{}: the tokenizer has no token {}", media.family.name, writing.feature);
                return Err(Error::Config { message: message.into() });
            };
            self.features[kind as usize] = feature;
        }
        self.media = Some(media);
        Ok(self)
    }

    /// Which of pictures, sounds and videos are read.
    #[must_use]
    pub fn kinds(&self) -> media::kind::Kinds {
        self.media.as_ref().map(Media::kinds).unwrap_or_default()
    }

    /// What happens to rows that are too long.
    #[must_use]
    pub fn truncation(&self) -> Truncation {
        self.options.truncation
    }

    /// Whether pictures are read.
    #[must_use]
    pub fn reads_media(&self) -> bool {
        self.media.is_some()
    }

    /// Tables of the vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The date the templates print, if they print one.
    #[must_use]
    pub fn date(&self) -> Option<Date> {
        let templates = [&self.templates.default, &self.templates.with_tools];
        templates.into_iter().flatten().find_map(Template::date)
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// The loss-scale specification.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Encode pre-training text: what the tokenizer puts before a text, the text, the end of sequence.
    ///
    /// # Errors
    /// As the engine.
    pub fn text(&self, text: &str, out: &mut Conversation) -> Result<(), Error> {
        out.reset(Form::Text);
        self.encode_text(text, out)?;
        let end = self.vocabulary.eos.map_or_else(|| self.vocabulary.frame.behind.clone(), |eos| vec![eos]);
        if !out.tokens.ids.ends_with(&end) {
            out.tokens.ends.extend(end.iter().map(|_| text.len() as u32));
            out.tokens.ids.extend(end);
        }
        Ok(())
    }

    /// Encode a text, or two, as the tokenizer itself does, with its special tokens around them and nothing else. A
    /// tokenizer that puts nothing between two texts gets a newline there. Too long a text is cut before the frame is put
    /// around it, where rows are cut at all.
    ///
    /// # Errors
    /// As the engine.
    pub fn framed(&self, text: &Text, out: &mut Conversation) -> Result<(), Error> {
        let frame = &self.vocabulary.frame;
        let room = self
            .options
            .max_length
            .filter(|_| self.options.truncation == Truncation::Right)
            .map(|limit| limit.saturating_sub(frame.before.len() + frame.behind.len()));
        let mut ids = vec![];
        let (mut calls, mut look_alikes) = (0, 0);
        let mut encode = |text: &str, out: &mut Conversation| {
            out.reset(Form::Text);
            self.look_alikes(text, out)?;
            look_alikes += out.look_alikes;
            self.engine.encode(text, &mut out.tokens)?;
            calls += 1;
            Ok::<_, Error>(std::mem::take(&mut out.tokens.ids))
        };
        match &text.second {
            None => ids.extend(encode(&text.first, out)?),
            Some(second) if frame.between.is_empty() => {
                ids.extend(encode(&format!("{}\n{second}", text.first), out)?);
            }
            Some(second) => {
                ids.extend(encode(&text.first, out)?);
                ids.extend(&frame.between);
                ids.extend(encode(second, out)?);
            }
        }
        ids.truncate(room.unwrap_or(usize::MAX));
        out.reset(Form::Text);
        out.tokens.ids.extend(frame.before.iter().copied().chain(ids).chain(frame.behind.iter().copied()));
        out.tokens.ends.resize(out.tokens.ids.len(), 0);
        (out.encode_calls, out.look_alikes) = (calls, look_alikes);
        out.rendered_bytes = text.first.len() + text.second.as_deref().map_or(0, str::len);
        Ok(())
    }

    /// Take ids that somebody else made. Each run of those that are trained on is a turn; without a mask they are text.
    ///
    /// # Errors
    /// `Error::Row` for an id that the tokenizer does not have.
    pub fn tokens(&self, ids: Vec<i32>, mask: Option<&[bool]>, out: &mut Conversation) -> Result<(), Error> {
        out.reset(if mask.is_some() { Form::Chat } else { Form::Text });
        let known = self.vocabulary.len();
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= known)) {
            return Err(row_error(
                "input_ids",
                format!("input_ids has {id}, and the tokenizer {known} ids; pass its own -m"),
            ));
        }
        let mask = mask.unwrap_or(&[]);
        let (mut at, mut done) = (0, 0);
        while let Some(start) = mask[at..].iter().position(|trained| *trained).map(|found| at + found) {
            let end = mask[start..].iter().position(|trained| !trained).map_or(mask.len(), |found| start + found);
            out.turns.push(TokenTurn {
                start: done as i32,
                end: end as i32,
                generated_start: start as i32,
                generated_end: end as i32,
                closing: end as i32,
                role: Role::Assistant,
                message: out.turns.len() as i32,
                loss: Some(true),
                loss_scale: None,
            });
            (at, done) = (end, end);
        }
        out.tokens.ids = ids;
        Ok(())
    }

    /// Encode texts one after the other, each by itself, with nothing between and around them.
    ///
    /// # Errors
    /// As the engine.
    pub fn segments(&self, segments: &[(Box<str>, bool)], out: &mut Conversation) -> Result<(), Error> {
        let (mut ids, mut mask) = (vec![], vec![]);
        let (mut calls, mut look_alikes, mut bytes) = (0, 0, 0);
        for (text, trained) in segments {
            out.reset(Form::Text);
            self.encode_bare(text, out)?;
            ids.append(&mut out.tokens.ids);
            mask.resize(ids.len(), *trained);
            (calls, look_alikes, bytes) = (calls + out.encode_calls, look_alikes + out.look_alikes, bytes + text.len());
        }
        self.tokens(ids, Some(&mask), out)?;
        (out.encode_calls, out.look_alikes, out.rendered_bytes) = (calls, look_alikes, bytes);
        Ok(())
    }

    /// Encode text to go on with: as [`Self::text`], without the end of sequence.
    ///
    /// # Errors
    /// As the engine.
    pub fn text_prompt(&self, text: &str, out: &mut Conversation) -> Result<(), Error> {
        out.reset(Form::Prompt);
        self.encode_text(text, out)
    }

    /// Encode a text with what the tokenizer puts before one.
    fn encode_text(&self, text: &str, out: &mut Conversation) -> Result<(), Error> {
        self.encode_bare(text, out)?;
        if !self.vocabulary.text_prefix.is_empty() && !out.tokens.ids.starts_with(&self.vocabulary.text_prefix) {
            let prefix = &self.vocabulary.text_prefix;
            out.tokens.ids.splice(0..0, prefix.iter().copied());
            out.tokens.ends.splice(0..0, prefix.iter().map(|_| 0));
        }
        Ok(())
    }

    fn encode_bare(&self, text: &str, out: &mut Conversation) -> Result<(), Error> {
        self.look_alikes(text, out)?;
        let marked = self.escape.as_ref().map(|escape| escape.mark_text(text)).transpose()?.flatten();
        if let (Some(escape), Some((marked, mark))) = (&self.escape, marked) {
            out.encode_calls = escape.encode(&*self.engine, &marked, mark, 0, &mut out.tokens)?;
        } else {
            self.engine.encode(text, &mut out.tokens)?;
            out.encode_calls = 1;
        }
        out.rendered_bytes = text.len();
        Ok(())
    }

    /// Render and encode a conversation that waits for an answer: with the generation prompt, or, where the assistant
    /// has begun to answer, up to the end of its words.
    ///
    /// # Errors
    /// As [`Self::chat`].
    pub fn prompt(&self, messages: Vec<Message>, side: Side, out: &mut Conversation) -> Result<(), Error> {
        out.reset(Form::Prompt);
        let ready = self.ready(messages, side, out)?;
        let Ready { template, messages, tools, kwargs, mark, .. } = &ready;
        let mut rendered = if messages.last().is_some_and(|message| message.role == Role::Assistant) {
            let mut rendered = template.render(messages, tools.as_deref(), kwargs, false)?;
            if let Some(turn) = rendered.turns.iter().find(|turn| turn.message + 1 == messages.len()) {
                rendered.text.truncate(turn.closing);
            }
            rendered
        } else {
            template.render_prompt(messages, tools.as_deref(), kwargs)?
        };
        self.check_written(template, &rendered.unwritten, ready.source(self), out)?;
        let pictures = self.expand(&mut rendered, &ready.items)?;
        let text = &rendered.text;
        out.encode_calls = match (&self.escape, mark) {
            (Some(escape), Some(mark)) => self.encode_escaped(escape, *mark, text, &[], &mut out.tokens)?,
            _ => encode_parts(&*self.engine, text, &[], &mut out.tokens)?,
        };
        out.rendered_bytes = text.len();
        self.refuse_doubled_bos(out)?;
        self.unroll(&pictures, ready.items, out)
    }

    fn refuse_doubled_bos(&self, out: &Conversation) -> Result<(), Error> {
        if let (Some(bos), [first, second, ..]) = (self.vocabulary.bos, &out.tokens.ids[..])
            && *first == bos
            && *second == bos
        {
            let why = "the template writes the beginning-of-sequence token and so does the first message; remove one";
            return Err(row_error("doubled_bos", why.to_owned()));
        }
        Ok(())
    }

    /// Render and encode a conversation and find its turns among the tokens.
    ///
    /// # Errors
    /// `Error::Template` as the template; `Error::Row` for a row against a rule here; `Error::Config` without a template.
    pub fn chat(&self, messages: Vec<Message>, side: Side, out: &mut Conversation) -> Result<(), Error> {
        out.reset(Form::Chat);
        let ready = self.ready(messages, side, out)?;
        let (mark, source) = (ready.mark, ready.source(self));
        let mut rendered = ready.template.render(&ready.messages, ready.tools.as_deref(), &ready.kwargs, false)?;
        if rendered.text.len() > i32::MAX as usize {
            return Err(row_error("too_large", format!("the conversation renders to {} bytes", rendered.text.len())));
        }
        self.check_written(ready.template, &rendered.unwritten, source, out)?;
        let pictures = self.expand(&mut rendered, &ready.items)?;
        let cuts = seams::cuts(self.options.segments, &rendered, source, &self.spec)?;
        let places = if mark.is_none() && cuts.is_empty() && pictures.is_empty() {
            seams::places(&rendered, source)
        } else {
            None
        };
        let is_placed = places.is_some();
        out.encode_calls = match (&self.escape, mark, places) {
            (Some(escape), Some(mark), _) => {
                self.encode_escaped(escape, mark, &rendered.text, &cuts, &mut out.tokens)?
            }
            (_, _, Some(places)) => {
                out.places.encode(&*self.engine, &rendered.text, places, &mut out.tokens)?;
                usize::from(!rendered.text.is_empty())
            }
            _ => encode_parts(&*self.engine, &rendered.text, &cuts, &mut out.tokens)?,
        };
        out.rendered_bytes = rendered.text.len();
        self.refuse_doubled_bos(out)?;
        let Conversation { tokens, places, turns, .. } = out;
        let index_at = |at| if is_placed { places.index_at(at) } else { tokens.index_at(at) };
        out.straddles = seams::token_turns(&rendered, source, index_at, turns)?;
        self.unroll(&pictures, ready.items, out)
    }

    fn expand(&self, rendered: &mut Rendered, items: &[media::Item]) -> Result<Vec<media::expand::Placed>, Error> {
        match &self.media {
            Some(media) if !items.is_empty() => Ok(media::expand::expand(&media.family, rendered, items)?),
            _ => Ok(vec![]),
        }
    }

    fn unroll(
        &self,
        placed: &[media::expand::Placed],
        items: Vec<media::Item>,
        out: &mut Conversation,
    ) -> Result<(), Error> {
        if !placed.is_empty() {
            let Conversation { tokens, turns, .. } = out;
            out.media = media::expand::unroll(placed, items, self.features, tokens, turns)?;
        }
        Ok(())
    }

    /// Put the options' system message before a conversation that has none; true if it was.
    pub fn add_system(&self, messages: &mut Vec<Message>) -> bool {
        let Some(system) = &self.options.system else { return false };
        let has_none = messages.first().is_none_or(|message| message.role != Role::System);
        if has_none {
            messages.insert(0, system_message(system));
        }
        has_none
    }

    fn ready<'a>(
        &'a self,
        mut messages: Vec<Message>,
        side: Side<'a>,
        out: &mut Conversation,
    ) -> Result<Ready<'a>, Error> {
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
            return Err(row_error("media", "an agent format writes no pictures; leave --agent-format out".to_owned()));
        }
        thinking::apply(self.options.thinking, &mut messages, self.spec.base == Base::LastRound);
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
        Ok(Ready { template, messages, tools, kwargs, mark, first_message, written, items })
    }

    /// Count what the template left out of the row. Thinking is left out by the rule of many templates; anything else is
    /// against ours, unless it was allowed.
    fn check_written(
        &self,
        template: &Template,
        unwritten: &[types::Unwritten],
        source: Source,
        out: &mut Conversation,
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
            if self.options.unwritten == Unwritten::Error {
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
                return Err(Error::Row(RowError { reason: "unwritten", column: None, path, message }));
            }
        }
        Ok(())
    }

    fn encode_escaped(
        &self,
        escape: &Escape,
        mark: char,
        text: &str,
        cuts: &[usize],
        out: &mut Tokens,
    ) -> Result<usize, Error> {
        if is_spelled_out(text, mark) {
            let why = "the template spells out characters of the text, so special tokens in it cannot be escaped; \
                       use --special-text drop";
            return Err(row_error("special_text", why.to_owned()));
        }
        let (mut start, mut calls) = (0, 0);
        for cut in cuts.iter().copied().chain([text.len()]).filter(|cut| *cut > 0) {
            if cut > start {
                calls += escape.encode(&*self.engine, &text[start..cut], mark, start, out)?;
                start = cut;
            }
        }
        Ok(calls)
    }

    /// The longest answer of a pair's sides, where prompts and answers are shortened by the same share.
    #[must_use]
    pub fn longest_answer(&self, sides: &[Conversation]) -> Option<usize> {
        let lengths = sides.iter().map(|side| side.tokens.ids.len() - answer_start(side.tokens.ids.len(), &side.turns));
        lengths.max().filter(|_| self.options.truncation == Truncation::Proportional && sides.len() > 1)
    }

    /// Cut a row to the length limit and weigh what is left. `longest`: see [`Self::longest_answer`].
    ///
    /// # Errors
    /// As [`weigh`]; `Error::Row` for a row that is too long when that is an error.
    pub fn fit(&self, row: &mut Conversation, longest: Option<usize>, scratch: &mut Scratch) -> Result<Outcome, Error> {
        if row.look_alikes > 0 && self.options.special_text == SpecialText::Drop {
            return Ok(Outcome::Dropped("special_text"));
        }
        let length = row.tokens.ids.len();
        let with_longest = longest.map_or(length, |longest| longest + answer_start(length, &row.turns));
        let mut outcome = Outcome::Whole;
        let mut keep = Kept::from(0..length);
        if let Some(limit) = self.options.max_length.filter(|limit| length.max(with_longest) > *limit) {
            keep = match self.options.truncation {
                Truncation::Split if row.form == Form::Text => {
                    self.weigh(row, scratch)?;
                    return Ok(Outcome::Blocks(limit));
                }
                Truncation::Drop | Truncation::Split => return Ok(Outcome::Dropped("too_long")),
                Truncation::Error => {
                    let why = format!("the row has {length} tokens, --max-length is {limit}; shorten it or truncate");
                    return Err(row_error("too_long", why));
                }
                Truncation::Right => Kept::from(0..limit),
                Truncation::Left => Kept::from(length - limit..length),
                Truncation::Proportional => Kept::proportional(length, &row.turns, limit, longest),
            };
        }
        let is_cut = keep.len() < length;
        if is_cut && !keep.clip_media(&mut row.media) {
            return Ok(Outcome::Dropped("media_cut"));
        }
        // ms-swift's cut strings are weighed before they are cut; ours are weighed as they will be stored.
        let weigh_first = self.options.segments == Segments::MsSwift;
        if weigh_first {
            self.weigh(row, scratch)?;
        }
        if is_cut {
            // whoever asks for proportional cuts wants the starts of long answers learned
            let mask_cut = self.spec.semantics == Semantics::Spans && self.truncation() != Truncation::Proportional;
            let masked = keep.clip_turns(&mut row.turns, mask_cut);
            keep.clip_spans(&mut row.spans);
            keep.clip_ids(&mut row.tokens.ids);
            outcome = Outcome::Cut { masked };
            if row.turns.is_empty() && row.form == Form::Chat {
                // only framing is left; a stored row without turns would read as text
                return Ok(Outcome::Dropped("nothing_left_to_train"));
            }
        }
        if !weigh_first {
            self.weigh(row, scratch)?;
        }
        if row.form != Form::Prompt && totals(&row.spans).0 == 0 {
            return Ok(Outcome::Dropped(if is_cut { "nothing_left_to_train" } else { "nothing_to_train" }));
        }
        Ok(outcome)
    }

    fn weigh(&self, row: &mut Conversation, scratch: &mut Scratch) -> Result<(), Error> {
        if row.form != Form::Chat {
            row.spans.clear();
        }
        if row.form == Form::Prompt {
            return Ok(());
        }
        if row.form == Form::Text {
            crate::weigh::sequence::push_span(&mut row.spans, 0, row.tokens.ids.len(), 1.0);
            return Ok(());
        }
        weigh(&self.spec, &row.tokens.ids, &row.turns, &self.vocabulary, scratch, &mut row.spans)?;
        media::expand::unweigh(&mut row.spans, &row.media.iter().map(|span| (span.start, span.end)));
        Ok(())
    }

    fn look_alikes_in(&self, value: &Json, out: &mut Conversation) -> Result<(), Error> {
        match value {
            Json::String(text) => self.look_alikes(text, out),
            Json::Array(items) => items.iter().try_for_each(|item| self.look_alikes_in(item, out)),
            Json::Object(members) => members.iter().try_for_each(|(_, value)| self.look_alikes_in(value, out)),
            _ => Ok(()),
        }
    }

    fn look_alikes(&self, text: &str, out: &mut Conversation) -> Result<(), Error> {
        for found in self.specials.find_iter(text) {
            out.look_alikes += 1;
            if self.options.special_text == SpecialText::Error {
                let found = &text[found];
                let why = format!(
                    "a message contains the special token {found} as text; remove it, or --special-text escape"
                );
                return Err(row_error("special_text", why));
            }
        }
        Ok(())
    }
}

impl Conversation {
    fn reset(&mut self, form: Form) {
        self.tokens.clear();
        self.turns.clear();
        self.spans.clear();
        self.media.clear();
        self.encode_calls = 0;
        self.rendered_bytes = 0;
        self.straddles = 0;
        self.look_alikes = 0;
        self.unwritten_thinking = 0;
        self.unwritten_parts = 0;
        self.form = form;
    }
}

fn system_message(text: &str) -> Message {
    Message {
        role: Role::System,
        fields: vec![("role".into(), Json::String("system".into())), ("content".into(), Json::String(text.into()))],
        loss: vec![],
        loss_scale: vec![],
        pieces: vec![],
        given: false,
    }
}

fn merged(default: &[(Box<str>, Json)], row: &[(Box<str>, Json)]) -> Vec<(Box<str>, Json)> {
    let mut out: Vec<(Box<str>, Json)> =
        default.iter().filter(|(name, _)| !row.iter().any(|(other, _)| other == name)).cloned().collect();
    out.extend_from_slice(row);
    out
}
