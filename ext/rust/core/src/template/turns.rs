//! From notes about a rendering to turns: whose bytes they are, and which of them the model generates.
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::clean::PromptRule;
use super::marks::{Mark, MarkKind, Written};
use super::prompt::Prompts;
use super::row::Row;
use super::{Error, SpecialTexts, Template};
use crate::types::{Json, Role, Turn};

/// Texts of special tokens, found in literal text.
#[derive(Debug)]
pub(super) struct Closers {
    /// In order.
    tokens: Vec<Box<str>>,
    /// Whether a token starts with this byte.
    starts: [bool; 256],
    eos: Option<Box<str>>,
    /// The first literal end and opener that were asked about, and the answer.
    first: OnceLock<Closed>,
}

/// An answer of [`Closers::close`], and to what.
#[derive(Debug)]
struct Closed {
    literal: Box<str>,
    opener: Box<str>,
    found: (usize, usize),
}

impl Closers {
    pub fn new(specials: &SpecialTexts) -> Self {
        let named = specials.named.iter().map(|(_, text)| text);
        let texts = specials.tokens.iter().chain(named).filter(|text| !text.trim().is_empty());
        let tokens: BTreeSet<Box<str>> = texts.cloned().collect();
        let mut starts = [false; 256];
        tokens.iter().filter_map(|token| token.bytes().next()).for_each(|byte| starts[byte as usize] = true);
        let eos = specials.named.iter().find(|(name, _)| &**name == "eos_token").map(|(_, text)| text.clone());
        Self { tokens: tokens.into_iter().collect(), starts, eos, first: OnceLock::new() }
    }

    /// Length of the longest token that `text` starts with.
    fn longest_at(&self, text: &[u8]) -> Option<usize> {
        if !self.starts[usize::from(*text.first()?)] {
            return None;
        }
        let mut text = text;
        loop {
            // Tokens between one that the text starts with and the text itself start with that token too. So the last
            // token up to the text is the longest, or what it shares with the text holds the longest.
            let after = self.tokens.partition_point(|token| token.as_bytes() <= text);
            let last = self.tokens[..after].last()?.as_bytes();
            if text.starts_with(last) {
                return Some(last.len());
            }
            let shared = last.iter().zip(text).take_while(|(a, b)| a == b).count();
            text = &text[..shared];
        }
    }

    /// Start and end of every token in `text`, leftmost and longest first, without overlaps.
    pub fn tokens_in<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (usize, usize)> + 't {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < text.len() {
                let start = at;
                match self.longest_at(&text.as_bytes()[at..]) {
                    Some(length) => {
                        at += length;
                        return Some((start, at));
                    }
                    None => at += 1,
                }
            }
            None
        })
    }

    /// In the literal end of a turn: where generation ends, and where the closing token starts.
    ///
    /// The end-of-sequence token closes; without one, the last token that nothing but whitespace follows. What starts
    /// as the generation prompt (`opener`) and is not closed in turn belongs to the next turn. Without any token, the
    /// turn ends where its text does.
    fn close(&self, literal: &str, opener: &str) -> (usize, usize) {
        let tokens: Vec<(usize, usize)> = self.tokens_in(literal).collect();
        let text = |&(start, end): &(usize, usize)| &literal[start..end];
        if let Some(&(start, end)) = tokens.iter().find(|token| self.eos.as_deref() == Some(text(token))) {
            return (end, start);
        }
        let opens = |token: &(usize, usize)| opener.starts_with(text(token));
        let closes = |&(_, end): &(usize, usize), limit: usize| literal[end..limit].trim().is_empty();
        let last = tokens.iter().rfind(|token| !opens(token) || token.0 == 0);
        if let Some(&(start, end)) = last.filter(|token| closes(token, literal.len())) {
            return (end, start);
        }
        let next = tokens.iter().position(|token| token.0 > 0 && opens(token));
        let limit = next.map_or(literal.len(), |next| tokens[next].0);
        match tokens[..next.unwrap_or(tokens.len())].last() {
            Some(&(start, end)) if closes(&(start, end), limit) => (end, start),
            _ => {
                let end = literal[..limit].trim_end().len();
                (end, end)
            }
        }
    }
}

/// The turns of a rendering.
pub(super) fn locate(template: &Template, row: &Row<'_>, written: &Written) -> Result<Vec<Turn>, Error> {
    let locator = Locator { template, row, written, prompts: OnceCell::new() };
    locator.check()?;
    let stretches = locator.stretches()?;
    if template.layout.has_generation { locator.marked(&stretches) } else { locator.prompted(&stretches) }
}

/// Bytes one message wrote.
#[derive(Debug, Clone)]
struct Stretch {
    message: usize,
    bytes: Range<usize>,
    literal_from: usize,
}

struct Locator<'l> {
    template: &'l Template,
    row: &'l Row<'l>,
    written: &'l Written,
    prompts: OnceCell<Option<Arc<Prompts>>>,
}

impl Locator<'_> {
    fn fail<T>(&self, message: usize, why: &str) -> Result<T, Error> {
        let place = format!("messages[{message}]");
        let remedy = "mark what the model writes with {% generation %} in --chat-template, or leave the row out";
        Err(self.template.error(&place, format!("{why}; {remedy}")))
    }

    fn role(&self, message: usize) -> Role {
        self.row.messages[message].role
    }

    fn check(&self) -> Result<(), Error> {
        if self.written.lost_marks {
            return self.fail(0, "the template stores whole turns before it prints them, so they cannot be located");
        }
        match self.written.strays.first() {
            Some(&message) => self.fail(message, "the template prints this message outside a loop over messages"),
            None => Ok(()),
        }
    }

    /// What each message wrote, in the order of the text.
    fn stretches(&self) -> Result<Vec<Stretch>, Error> {
        let mut stretches: Vec<Stretch> = Vec::with_capacity(self.written.marks.len());
        for Mark { kind, start, end, literal_from, inside } in &self.written.marks {
            let MarkKind::Message(message) = *kind else { continue };
            let message = inside.filter(|_| self.is_quoted(message, *inside)).unwrap_or(message);
            match stretches.last_mut() {
                Some(last) if last.bytes.end > *start => {
                    return self.fail(message, "turns overlap in the rendered text");
                }
                Some(last) if last.message == message && last.bytes.end == *start => {
                    last.bytes.end = *end;
                    if *literal_from > *start {
                        last.literal_from = *literal_from;
                    }
                }
                _ => stretches.push(Stretch { message, bytes: *start..*end, literal_from: *literal_from }),
            }
        }
        Ok(stretches)
    }

    /// The template looked a message of the model up in the turn of another, and the message has a turn of its own: what
    /// is printed of it there is the other's.
    fn is_quoted(&self, message: usize, inside: Option<usize>) -> bool {
        let has_own_turn = |mark: &Mark| mark.kind == MarkKind::Message(message) && mark.inside.is_none();
        inside.is_some_and(|outer| outer != message)
            && self.role(message) == Role::Assistant
            && self.written.marks.iter().any(has_own_turn)
    }

    fn plain(&self, stretch: &Stretch) -> Turn {
        let end = stretch.bytes.end;
        let role = self.role(stretch.message);
        Turn { role, message: stretch.message, all: stretch.bytes.clone(), generated: end..end, closing: end }
    }

    /// `{% generation %}` says what is generated.
    fn marked(&self, stretches: &[Stretch]) -> Result<Vec<Turn>, Error> {
        let mut marks = self
            .written
            .marks
            .iter()
            .filter(|mark| mark.kind == MarkKind::Generation && mark.end > mark.start)
            .peekable();
        let mut turns = Vec::with_capacity(stretches.len());
        for stretch in stretches {
            let mut rest = stretch.bytes.clone();
            while let Some(mark) = marks.peek().filter(|mark| mark.start < stretch.bytes.end) {
                if mark.start < rest.start || mark.end > rest.end || self.role(stretch.message) != Role::Assistant {
                    return self.fail(stretch.message, "a {% generation %} block is not inside one assistant turn");
                }
                let (_, closing) = self.close(mark.literal_from..mark.end);
                let more = self.written.marks.iter().any(|other| {
                    other.kind == MarkKind::Generation
                        && other.start >= mark.end
                        && other.start < rest.end
                        && other.end > other.start
                });
                let end = if more { mark.end } else { rest.end };
                turns.push(Turn {
                    role: Role::Assistant,
                    message: stretch.message,
                    all: rest.start..end,
                    generated: mark.start..mark.end,
                    closing: (mark.literal_from + closing).min(mark.end),
                });
                rest.start = end;
                marks.next();
            }
            if rest.start < rest.end {
                turns.push(self.plain(&Stretch { bytes: rest, ..stretch.clone() }));
            }
        }
        // What is printed after the loop, such as a last end-of-sequence token, goes on with the last message.
        if let (Some(mark), Some(last)) = (marks.peek(), stretches.last())
            && mark.start == last.bytes.end
            && self.role(last.message) == Role::Assistant
        {
            let bytes = mark.start..mark.end;
            turns.push(Turn {
                role: Role::Assistant,
                message: last.message,
                all: bytes.clone(),
                generated: bytes,
                closing: mark.literal_from,
            });
            marks.next();
        }
        match marks.next() {
            Some(_) => self.fail(0, "a {% generation %} block is not inside a loop over messages"),
            None => Ok(turns),
        }
    }

    /// What follows the generation prompt is generated.
    fn prompted(&self, stretches: &[Stretch]) -> Result<Vec<Turn>, Error> {
        let mut turns = Vec::with_capacity(stretches.len());
        for (i, stretch) in stretches.iter().enumerate() {
            let mut turn = self.plain(stretch);
            if turn.role == Role::Assistant {
                let earlier = stretches[..i].iter().rposition(|other| other.message == stretch.message);
                let start = match earlier {
                    Some(earlier) => self.resumed(&stretches[earlier..=i])?,
                    None if self.goes_on(&stretches[..i], stretch)? => stretch.bytes.start,
                    None => self.start(stretch)?,
                };
                let literal_from = stretch.literal_from.max(start).min(stretch.bytes.end);
                let (end, closing) = self.close(literal_from..stretch.bytes.end);
                turn.generated = start..literal_from + end;
                turn.closing = literal_from + closing;
            }
            turns.push(turn);
        }
        if let Some(last) = turns.last_mut() {
            self.close_behind(last);
        }
        Ok(turns)
    }

    /// A turn goes on after what other messages (tool results) wrote inside it: all of it is the model's.
    fn resumed(&self, stretches: &[Stretch]) -> Result<usize, Error> {
        let touching = stretches.windows(2).all(|pair| pair[0].bytes.end == pair[1].bytes.start);
        let inside = &stretches[1..stretches.len().saturating_sub(1)];
        let tools = inside.iter().all(|other| self.role(other.message) == Role::Tool);
        match stretches.last() {
            Some(last) if touching && tools => Ok(last.bytes.start),
            _ => self.fail(stretches[0].message, "the template prints this message in two places"),
        }
    }

    /// The template merges messages of one model turn: this one has no header and starts with its own words, right
    /// where another of the model's messages or a tool's result ends.
    fn goes_on(&self, before: &[Stretch], stretch: &Stretch) -> Result<bool, Error> {
        let Some(before) = before.last().filter(|_| self.template.prompt == PromptRule::OfConversation) else {
            return Ok(false);
        };
        let follows = matches!(self.role(before.message), Role::Assistant | Role::Tool);
        let content = self.row.members(stretch.message).iter().find(|(name, _)| &**name == "content");
        let Some((_, Json::String(content))) = content else { return Ok(false) };
        let Some(words) = Some(content.trim()).filter(|words| !words.is_empty()) else { return Ok(false) };
        let turn = &self.written.text[stretch.bytes.clone()];
        if !follows || before.bytes.end != stretch.bytes.start || !turn.starts_with(words) {
            return Ok(false);
        }
        // short words may be the start of a header, as "A" is of "Assistant:"
        let is_certain = turn.rfind(words) == Some(0);
        let start = || self.template.words_start(self.row, stretch.message, &self.written.text);
        Ok(is_certain || start()? == Some(stretch.bytes.start))
    }

    /// As [`Closers::close`], of the literal end of a turn. Mostly it is the same again, so the first is remembered.
    fn close(&self, literal: Range<usize>) -> (usize, usize) {
        let is_marked = self.template.layout.has_generation;
        let opener = if is_marked { None } else { self.fixed_prompts() }.map_or("", |prompts| &prompts.own.text);
        let (closers, literal) = (&self.template.closers, &self.written.text[literal]);
        let find = || closers.close(literal, opener);
        let first = || Closed { literal: literal.into(), opener: opener.into(), found: find() };
        let known = closers.first.get_or_init(first);
        if *known.literal == *literal && *known.opener == *opener { known.found } else { find() }
    }

    /// The prompts of a template where they depend on the kwargs alone.
    fn fixed_prompts(&self) -> Option<&Prompts> {
        let fixed = self.template.prompt == PromptRule::Fixed;
        let prompts = || if fixed { self.template.fixed_prompts(self.row.kwargs) } else { None };
        self.prompts.get_or_init(prompts).as_deref()
    }

    /// Where the model's own bytes start.
    fn start(&self, stretch: &Stretch) -> Result<usize, Error> {
        let turn = &stretch.bytes;
        let text = &self.written.text;
        if self.template.prompt == PromptRule::Absent {
            return Ok(turn.start + self.constant_header(&text[turn.clone()]));
        }
        if let Some(start) = self.fixed_prompts().and_then(|prompts| prompts.start_in(&text[turn.clone()])) {
            return Ok(turn.start + start);
        }
        let found = self.template.start_after_conversation(self.row, stretch.message, text, turn);
        if !matches!(found, Ok(Some(_)) | Err(Error::Internal { .. }))
            && let Some(usual) = self.template.fixed_prompts(self.row.kwargs)
            && let Some(start) = usual.header_of(&text[turn.clone()])
        {
            // a conversation that the template takes no prompt after, such as none at all
            return Ok(turn.start + start);
        }
        if !matches!(found, Ok(Some(_)) | Err(Error::Internal { .. }))
            && let Some(start) = self.template.start_of_words(self.row, stretch.message, text, turn)?
        {
            return Ok(start);
        }
        match found {
            Ok(Some(start)) => Ok(start),
            Ok(None) => self.fail(stretch.message, "this turn does not start with the generation prompt"),
            Err(error @ Error::Internal { .. }) => Err(error),
            Err(error) => {
                self.fail(stretch.message, &format!("the generation prompt of this turn is unknown ({error})"))
            }
        }
    }

    /// Length of the header of a turn in a template that prints its generation prompt without being asked: the end of
    /// every rendering, and the start of every turn.
    fn constant_header(&self, turn: &str) -> usize {
        let last = self.written.marks.iter().rfind(|mark| matches!(mark.kind, MarkKind::Message(_)));
        let tail = last.map_or("", |mark| &self.written.text[mark.end..]);
        if !tail.trim().is_empty() && turn.starts_with(tail) { tail.len() } else { 0 }
    }

    /// The end-of-sequence token that the template prints behind its loop closes a last turn that nothing else closes.
    fn close_behind(&self, turn: &mut Turn) {
        let Some(eos) = self.template.closers.eos.as_deref().filter(|eos| !eos.is_empty()) else { return };
        let end = turn.all.end;
        let is_open = turn.role == Role::Assistant && turn.closing == turn.generated.end && turn.generated.end == end;
        if is_open && self.written.text[end..].starts_with(eos) {
            turn.all.end += eos.len();
            turn.generated.end += eos.len();
        }
    }
}
