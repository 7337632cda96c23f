//! One conversation, text or list of ids: rendered, encoded, and its turns found among the tokens.
use crate::encode::encoder::Encoder;
use crate::encode::prepare::Prepared;
use crate::encode::seams;
use crate::encode::truncate::Truncation;
use crate::error::{Error, RowError};
use crate::media;
use crate::tokenizer::engine::{Places, Tokens, encode_parts};
use crate::tokenizer::escape::{Escape, is_spelled_out};
use crate::types::{Json, Message, Rendered, Role, Text};
use crate::weigh::sequence::{Span, TokenTurn};

/// One row on its way. Kept between rows to save allocations.
#[derive(Debug, Default)]
pub struct EncodedRow {
    /// Ids.
    pub ids: Vec<i32>,
    /// Working memory: ids with ends, and bytes of the text among them, until turns have been found.
    tokens: Tokens,
    places: Places,
    /// Turns as tokens.
    pub turns: Vec<TokenTurn>,
    /// Weights.
    pub spans: Vec<Span>,
    /// Pictures.
    pub media: Vec<media::MediaSpan>,
    /// Calls to the engine.
    pub(crate) encode_calls: usize,
    /// Length of the rendered text.
    pub(crate) rendered_bytes: usize,
    /// Tokens over a seam.
    pub(crate) straddles: usize,
    /// Special tokens written as text in messages.
    pub(crate) look_alikes: usize,
    /// Assistant messages whose thinking the template left out.
    pub(crate) unwritten_thinking: usize,
    /// Other parts of the row that the template left out.
    pub(crate) unwritten_parts: usize,
    pub(super) form: Form,
}

/// What a row is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Form {
    #[default]
    Chat,
    Text,
    /// Nothing of it is trained on.
    Prompt,
}

/// What a conversation shares with the other side of its pair.
#[derive(Debug, Clone, Copy)]
pub struct RowContext<'a> {
    /// Tool schemas.
    pub tools: Option<&'a Json>,
    /// The row's template arguments.
    pub kwargs: &'a [(Box<str>, Json)],
    /// The folder of the data file, from where paths of pictures count.
    pub folder: Option<&'a str>,
}

impl Encoder {
    /// Encode pre-training text: what the tokenizer puts before a text, the text, the end of sequence.
    ///
    /// # Errors
    /// As the engine.
    pub fn text(&self, text: &str, out: &mut EncodedRow) -> Result<(), Error> {
        out.reset(Form::Text);
        self.encode_text(text, out)?;
        let end = self.vocabulary().eos.map_or_else(|| self.vocabulary().frame.behind.clone(), |eos| vec![eos]);
        if !out.ids.ends_with(&end) {
            out.ids.extend(end);
        }
        Ok(())
    }

    /// Encode a text, or two, as the tokenizer itself does, with its special tokens around them and nothing else. A
    /// tokenizer that puts nothing between two texts gets a newline there. Too long a text is cut before the frame is put
    /// around it, where rows are cut at all.
    ///
    /// # Errors
    /// As the engine.
    pub(crate) fn framed(&self, text: &Text, out: &mut EncodedRow) -> Result<(), Error> {
        let frame = &self.vocabulary().frame;
        let room = self
            .options
            .max_length
            .filter(|_| self.options.truncation == Truncation::Right)
            .map(|limit| limit.saturating_sub(frame.before.len() + frame.behind.len()));
        let mut ids = vec![];
        let (mut calls, mut look_alikes) = (0, 0);
        let mut encode = |text: &str, out: &mut EncodedRow| {
            out.reset(Form::Text);
            self.look_alikes(text, out)?;
            look_alikes += out.look_alikes;
            self.engine.encode_ids(text, &mut out.ids)?;
            calls += 1;
            Ok::<_, Error>(std::mem::take(&mut out.ids))
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
        out.ids.extend(frame.before.iter().copied().chain(ids).chain(frame.behind.iter().copied()));
        (out.encode_calls, out.look_alikes) = (calls, look_alikes);
        out.rendered_bytes = text.first.len() + text.second.as_deref().map_or(0, str::len);
        Ok(())
    }

    /// Take ids that somebody else made. Each run of those that are trained on is a turn; without a mask they are text.
    ///
    /// # Errors
    /// `Error::Row` for an id that the tokenizer does not have.
    pub fn tokens(&self, ids: Vec<i32>, mask: Option<&[bool]>, out: &mut EncodedRow) -> Result<(), Error> {
        out.reset(if mask.is_some() { Form::Chat } else { Form::Text });
        let known = self.vocabulary().len();
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= known)) {
            return Err(RowError::new(
                "input_ids",
                format!("input_ids has {id}, and the tokenizer {known} ids; pass its own -m"),
            )
            .into());
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
        out.ids = ids;
        Ok(())
    }

    /// Encode texts one after the other, each by itself, with nothing between and around them.
    ///
    /// # Errors
    /// As the engine.
    pub fn segments(&self, segments: &[(Box<str>, bool)], out: &mut EncodedRow) -> Result<(), Error> {
        let (mut ids, mut mask) = (vec![], vec![]);
        let (mut calls, mut look_alikes, mut bytes) = (0, 0, 0);
        for (text, trained) in segments {
            out.reset(Form::Text);
            self.encode_bare(text, out)?;
            ids.append(&mut out.ids);
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
    pub(crate) fn text_prompt(&self, text: &str, out: &mut EncodedRow) -> Result<(), Error> {
        out.reset(Form::Prompt);
        self.encode_text(text, out)
    }

    /// Encode a text with what the tokenizer puts before one.
    fn encode_text(&self, text: &str, out: &mut EncodedRow) -> Result<(), Error> {
        self.encode_bare(text, out)?;
        if !self.vocabulary().text_prefix.is_empty() && !out.ids.starts_with(&self.vocabulary().text_prefix) {
            out.ids.splice(0..0, self.vocabulary().text_prefix.iter().copied());
        }
        Ok(())
    }

    fn encode_bare(&self, text: &str, out: &mut EncodedRow) -> Result<(), Error> {
        self.look_alikes(text, out)?;
        let marked = self.escape.as_ref().map(|escape| escape.mark_text(text)).transpose()?.flatten();
        if let (Some(escape), Some((marked, mark))) = (&self.escape, marked) {
            out.encode_calls = escape.encode(&*self.engine, &marked, mark, 0, &mut out.tokens)?;
            out.keep_ids();
        } else {
            self.engine.encode_ids(text, &mut out.ids)?;
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
    pub(crate) fn prompt(&self, messages: Vec<Message>, side: RowContext, out: &mut EncodedRow) -> Result<(), Error> {
        out.reset(Form::Prompt);
        let ready = self.prepare(messages, side, out)?;
        let Prepared { template, messages, tools, kwargs, mark, .. } = &ready;
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
        self.refuse_doubled_bos(&out.tokens.ids)?;
        self.unroll(&pictures, ready.items, out)
    }

    fn refuse_doubled_bos(&self, ids: &[i32]) -> Result<(), Error> {
        if let (Some(bos), [first, second, ..]) = (self.vocabulary().bos, ids)
            && *first == bos
            && *second == bos
        {
            let why = "the template writes the beginning-of-sequence token and so does the first message; remove one";
            return Err(RowError::new("doubled_bos", why.to_owned()).into());
        }
        Ok(())
    }

    /// Render and encode a conversation and find its turns among the tokens.
    ///
    /// # Errors
    /// `Error::Template` as the template; `Error::Row` for a row against a rule here; `Error::Config` without a template.
    pub fn chat(&self, messages: Vec<Message>, side: RowContext, out: &mut EncodedRow) -> Result<(), Error> {
        out.reset(Form::Chat);
        let ready = self.prepare(messages, side, out)?;
        let (mark, source) = (ready.mark, ready.source(self));
        let mut rendered = ready.template.render(&ready.messages, ready.tools.as_deref(), &ready.kwargs, false)?;
        if rendered.text.len() > i32::MAX as usize {
            return Err(RowError::new(
                "too_large",
                format!("the conversation renders to {} bytes", rendered.text.len()),
            )
            .into());
        }
        self.check_written(ready.template, &rendered.unwritten, source, out)?;
        let pictures = self.expand(&mut rendered, &ready.items)?;
        let cuts = seams::cuts(self.options.segments, &rendered, source, self.spec())?;
        out.rendered_bytes = rendered.text.len();
        let is_plain = mark.is_none() && cuts.is_empty() && pictures.is_empty();
        if let Some(asked) = is_plain.then(|| seams::places(&rendered, source)).flatten() {
            out.encode_calls = usize::from(!rendered.text.is_empty());
            out.places.encode(&*self.engine, &rendered.text, asked, &mut out.ids)?;
            self.refuse_doubled_bos(&out.ids)?;
            let EncodedRow { places, turns, .. } = out;
            out.straddles = seams::token_turns(&rendered, source, |at| places.index_at(at), turns)?;
            return Ok(());
        }
        out.encode_calls = match (&self.escape, mark) {
            (Some(escape), Some(mark)) => self.encode_escaped(escape, mark, &rendered.text, &cuts, &mut out.tokens)?,
            _ => encode_parts(&*self.engine, &rendered.text, &cuts, &mut out.tokens)?,
        };
        self.refuse_doubled_bos(&out.tokens.ids)?;
        let EncodedRow { tokens, turns, .. } = out;
        out.straddles = seams::token_turns(&rendered, source, |at| tokens.index_at(at), turns)?;
        self.unroll(&pictures, ready.items, out)
    }

    fn expand(&self, rendered: &mut Rendered, items: &[media::Item]) -> Result<Vec<media::expand::Placed>, Error> {
        match &self.media {
            Some(media) if !items.is_empty() => Ok(media::expand::expand(&media.family, rendered, items)?),
            _ => Ok(vec![]),
        }
    }

    /// Give pictures their tokens, and the row its ids.
    fn unroll(
        &self,
        placed: &[media::expand::Placed],
        items: Vec<media::Item>,
        out: &mut EncodedRow,
    ) -> Result<(), Error> {
        if !placed.is_empty() {
            let EncodedRow { tokens, turns, .. } = out;
            out.media = media::expand::unroll(placed, items, self.features, tokens, turns)?;
        }
        out.keep_ids();
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
            return Err(RowError::new("special_text", why.to_owned()).into());
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
}

impl EncodedRow {
    fn reset(&mut self, form: Form) {
        self.ids.clear();
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

    /// Take the ids out of the working memory; their ends are of no more use.
    fn keep_ids(&mut self) {
        std::mem::swap(&mut self.ids, &mut self.tokens.ids);
    }
}
