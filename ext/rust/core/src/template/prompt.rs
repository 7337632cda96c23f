//! Generation prompts: what stands between the conversation and the model's first own byte.
use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, OnceLock, RwLock};

use super::marks::MarkKind;
use super::row::Row;
use super::{Error, Template};
use crate::types::{Json, Message, Role};

/// Names under which templates switch thinking on and off.
const THINKING: [&str; 2] = ["enable_thinking", "thinking"];

/// Kwargs whose prompts are kept; more are computed anew, so that a file with other kwargs in every row stays small.
const MAX_CACHED: usize = 1024;

/// A generation prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    pub text: String,
    /// Where the part that opens (or skips) the thinking starts: templates leave it out of turns of the past.
    pub thinking: Option<usize>,
}

impl Prompt {
    fn new(text: String) -> Self {
        let thinking = thinking_tail(&text);
        Self { text, thinking }
    }
}

/// Start of the first tag that speaks of thinking: `<think>`, `[THINK]`, `<|channel>thought`. Nothing stands before a
/// header, so a tag at the very start is none.
fn thinking_tail(prompt: &str) -> Option<usize> {
    prompt.match_indices(['<', '[']).map(|(at, _)| at).filter(|&at| at > 0).find(|&at| {
        let close = prompt[at..].find(['>', ']']).map_or(prompt.len(), |length| at + length + 1);
        let end = prompt[close..].find(['<', '[', '\n']).map_or(prompt.len(), |length| close + length);
        let tag = prompt[at..end].to_ascii_lowercase();
        ["think", "thought", "reason"].iter().any(|word| tag.contains(word))
    })
}

/// The prompt for a row's kwargs, and those for other settings of thinking, longest first.
#[derive(Debug, Default)]
pub(super) struct Prompts {
    pub own: Prompt,
    pub others: Vec<Prompt>,
}

/// Prompts by kwargs.
#[derive(Debug, Default)]
pub(super) struct PromptCache {
    plain: OnceLock<Option<Arc<Prompts>>>,
    by_kwargs: RwLock<HashMap<String, Option<Arc<Prompts>>>>,
}

impl Prompts {
    /// Length of the prompt that a turn starts with.
    pub fn header_of(&self, turn: &str) -> Option<usize> {
        let mut prompts = std::iter::once(&self.own).chain(&self.others);
        prompts.find(|prompt| !prompt.text.is_empty() && turn.starts_with(&prompt.text)).map(|prompt| prompt.text.len())
    }

    /// Where the model's own bytes start in the text of a turn; none if no prompt fits for certain.
    pub fn start_in(&self, turn: &str) -> Option<usize> {
        if self.own.text.is_empty() {
            return None;
        }
        if let Some(length) = self.header_of(turn) {
            return Some(length);
        }
        let prompts = std::iter::once(&self.own).chain(&self.others);
        let mut headers = prompts.filter_map(|prompt| prompt.thinking.map(|at| &prompt.text[..at]));
        if let Some(header) = headers.find(|header| turn.starts_with(header)) {
            return Some(header.len());
        }
        // A default system prompt printed in the first iteration stands before it.
        let mut found = turn.match_indices(&self.own.text);
        match (found.next(), found.next()) {
            (Some((at, _)), None) => Some(at + self.own.text.len()),
            _ => spaced_header(&self.own.text, turn),
        }
    }
}

/// Length of a header that is the prompt with other white space around it: templates that were indented without care
/// print another indentation before each.
fn spaced_header(prompt: &str, turn: &str) -> Option<usize> {
    let words = prompt.trim();
    let rest = turn.trim_start().strip_prefix(words).filter(|_| !words.is_empty())?;
    let tail = &prompt[prompt.trim_end().len()..];
    let same = tail.bytes().zip(rest.bytes()).take_while(|(one, other)| one == other).count();
    Some(turn.len() - rest.len() + same)
}

impl Template {
    /// Prompts of a `Fixed` template for these kwargs; none if they cannot be had without a conversation.
    pub(super) fn fixed_prompts(&self, kwargs: &[(Box<str>, Json)]) -> Option<Arc<Prompts>> {
        if kwargs.is_empty() {
            return self.prompts.plain.get_or_init(|| self.compute_prompts(kwargs)).clone();
        }
        let mut key = String::new();
        let _ = write!(key, "{kwargs:?}");
        if let Ok(cache) = self.prompts.by_kwargs.read()
            && let Some(known) = cache.get(&key)
        {
            return known.clone();
        }
        let prompts = self.compute_prompts(kwargs);
        if let Ok(mut cache) = self.prompts.by_kwargs.write()
            && cache.len() < MAX_CACHED
        {
            cache.insert(key, prompts.clone());
        }
        prompts
    }

    /// The prompt is the same after every conversation, so any one will do.
    fn compute_prompts(&self, kwargs: &[(Box<str>, Json)]) -> Option<Arc<Prompts>> {
        let probe = [Message {
            role: Role::User,
            fields: vec![("role".into(), Json::String("user".into())), ("content".into(), Json::String("x".into()))],
            loss: Vec::new(),
            loss_scale: Vec::new(),
            pieces: Vec::new(),
            given: false,
        }];
        let own = self.prompt_after(&self.row(&probe, None, kwargs), 1).ok()??;
        let others = self.other_prompts(&probe, None, kwargs, 1, &own);
        Some(Arc::new(Prompts { own, others }))
    }

    /// The prompts that other settings of thinking would give after the first `count` messages.
    pub(super) fn other_prompts(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        kwargs: &[(Box<str>, Json)],
        count: usize,
        own: &Prompt,
    ) -> Vec<Prompt> {
        let mut others: Vec<Prompt> = Vec::new();
        for switch in THINKING {
            if !self.layout.outside.iter().any(|name| &**name == switch) {
                continue;
            }
            for setting in [None, Some(true), Some(false)] {
                let mut changed: Vec<_> = kwargs.iter().filter(|(name, _)| &**name != switch).cloned().collect();
                changed.extend(setting.map(|on| (switch.into(), Json::Bool(on))));
                if let Ok(Some(prompt)) = self.prompt_after(&self.row(messages, tools, &changed), count)
                    && prompt != *own
                    && !others.contains(&prompt)
                {
                    others.push(prompt);
                }
            }
        }
        others.sort_by_key(|prompt| std::cmp::Reverse(prompt.text.len()));
        others
    }

    /// What `add_generation_prompt` adds after the first `count` messages; none if that is not at the very end.
    fn prompt_after(&self, row: &Row<'_>, count: usize) -> Result<Option<Prompt>, Error> {
        let written = self.write(row, count, true)?;
        let mut marks = written.marks.iter().filter(|mark| mark.kind == MarkKind::Prompt);
        let (Some(mark), None) = (marks.next(), marks.next()) else { return Ok(None) };
        if mark.end != written.text.len() {
            return Ok(None);
        }
        Ok(Some(Prompt::new(written.text[mark.start..].to_owned())))
    }

    /// Where the model's own bytes start in a row's text, for the message at `index`: right after what the model is
    /// shown when it is asked for that message.
    pub(super) fn start_after_conversation(
        &self,
        row: &Row<'_>,
        index: usize,
        text: &str,
        turn: &Range<usize>,
    ) -> Result<Option<usize>, Error> {
        let shown = self.write(row, index, true)?.text;
        if text.starts_with(&shown) && turn.contains(&shown.len()) {
            // A template that promises to go on without a header, and then prints one all the same.
            let usual = self.fixed_prompts(row.kwargs).filter(|_| shown.len() == turn.start);
            let header = usual.filter(|usual| text[turn.clone()].starts_with(&usual.own.text));
            return Ok(Some(shown.len() + header.map_or(0, |usual| usual.own.text.len())));
        }
        let without = self.write(row, index, false)?.text;
        let own = match self.prompt_after(row, index)? {
            Some(own) => Some(own),
            None => shown.strip_prefix(&without).map(|added| Prompt::new(added.to_owned())),
        };
        let start = own.and_then(|own| {
            let others = self.other_prompts(row.messages, row.tools, row.kwargs, index, &own);
            Prompts { own, others }.start_in(&text[turn.clone()])
        });
        Ok(start.map(|start| turn.start + start))
    }

    /// Where the model's own bytes start in a turn that no prompt stands before: its words stand at its very start, or
    /// behind what the model is shown but for white space, as lines of a source that were indented without care give.
    pub(super) fn start_of_words(
        &self,
        row: &Row<'_>,
        index: usize,
        text: &str,
        turn: &Range<usize>,
    ) -> Result<Option<usize>, Error> {
        let shown = match self.write(row, index, true) {
            Ok(written) => Some(written.text),
            Err(error @ Error::Internal { .. }) => return Err(error),
            Err(_) => None,
        };
        let behind = shown.and_then(|shown| same_but_spaces(text, &shown));
        if let Some(at) = self.words_start(row, index, text)?.filter(|at| turn.contains(at)) {
            let is_blank = |from| text.get(from..at).is_some_and(|between| between.trim().is_empty());
            return Ok((is_blank(turn.start) || behind.is_some_and(is_blank)).then_some(at));
        }
        // it says nothing itself, as one with calls alone, or its words go through a function
        let Some(from) = behind.map(|behind| behind.max(turn.start)).filter(|from| turn.contains(from)) else {
            return Ok(None);
        };
        let rest = text[from..turn.end].trim_start();
        let content = match row.members(index).iter().find(|(name, _)| &**name == "content") {
            Some((_, Json::String(content))) => content.trim(),
            _ => "",
        };
        Ok(rest.starts_with(content).then_some(turn.end - rest.len()))
    }
}

/// The end of the beginning of `text` that is `shown` but for white space.
fn same_but_spaces(text: &str, shown: &str) -> Option<usize> {
    let mut rest = text;
    for word in shown.split_whitespace() {
        for c in word.chars() {
            rest = rest.trim_start().strip_prefix(c)?;
        }
    }
    Some(text.len() - rest.len())
}
