//! The content law: what a row brings is in its rendering, or is known not to be.
//!
//! While a template prints, the writer notes whose words it prints; that settles most texts for nothing. What is not
//! settled so (words that went through a function, calls, tool definitions) is changed in a copy of the row: a part
//! leaves a trace if the changed rendering is another one. One more rendering, in which each part has a word of its own,
//! finds most traces; only a part whose word is not in it is tried alone.
use super::marks::{REASONED, SAID, Written};
use super::row::{REASONING, Row};
use super::{Error, Template};
use crate::types::{Json, Message, Part, Unwritten};

/// A word that no template prints of itself.
const WORD: &str = "vqzwordzqv";

/// A part of a row that is looked for, and in how many ways it can be changed.
struct Wanted {
    unwritten: Unwritten,
    /// The arguments of a call, which are looked for apart from its name.
    is_arguments: bool,
    /// Which of several texts that a content was given in; none: all of them.
    piece: Option<usize>,
}

/// Where a text is changed.
#[derive(Debug, Clone, Copy)]
enum Spot {
    Middle,
    Start,
    End,
}

impl Template {
    /// The parts of a row that left no trace in its rendering, in the row's order.
    pub(super) fn unwritten(&self, row: &Row<'_>, written: &Written, prompt: bool) -> Result<Vec<Unwritten>, Error> {
        let wanted = wanted(row, written, self.form.reads_parts());
        if wanted.is_empty() {
            return Ok(vec![]);
        }
        let words: Vec<String> = (0..wanted.len()).map(|index| format!("vqz{index:04}zqv")).collect();
        let changes: Vec<(&Wanted, &str)> = wanted.iter().zip(words.iter().map(|word| &**word)).collect();
        let all = self.changed(row, prompt, &changes, Spot::Middle)?.unwrap_or_default();
        let mut missing: Vec<Unwritten> = vec![];
        for (part, word) in changes {
            if all.contains(word) && !written.text.contains(word) || missing.last() == Some(&part.unwritten) {
                continue;
            }
            let mut has_trace = false;
            for spot in [Spot::Middle, Spot::Start, Spot::End] {
                // a template that refuses the changed row has looked at it
                has_trace |= self.changed(row, prompt, &[(part, word)], spot)?.is_none_or(|text| text != written.text);
            }
            if !has_trace {
                missing.push(part.unwritten);
            }
        }
        Ok(missing)
    }

    /// Where the words of a message (its thinking, its content) begin in `text`, the rendering of its row: a word put
    /// before them appears there, behind the same bytes. None if that does not show.
    pub(super) fn words_start(&self, row: &Row<'_>, message: usize, text: &str) -> Result<Option<usize>, Error> {
        let parts = [Part::Thinking, Part::Content].map(|part| Wanted {
            unwritten: Unwritten { message, part },
            is_arguments: false,
            piece: (part == Part::Content && row.messages[message].pieces.len() > 1).then_some(0),
        });
        let changed = self.changed(row, false, &parts.each_ref().map(|part| (part, WORD)), Spot::Start)?;
        let found = changed.and_then(|changed| {
            let at = changed.find(WORD)?;
            (text.as_bytes().get(..at) == Some(&changed.as_bytes()[..at])).then_some(at)
        });
        Ok(found)
    }

    /// The rendering of a row with words added to some of its parts; none if the template refuses it.
    fn changed(
        &self,
        row: &Row<'_>,
        prompt: bool,
        changes: &[(&Wanted, &str)],
        spot: Spot,
    ) -> Result<Option<String>, Error> {
        let mut messages: Vec<Message> = row.messages.to_vec();
        let mut tools = row.tools.cloned();
        for (part, word) in changes {
            let Unwritten { message, part: kind } = part.unwritten;
            match kind {
                Part::Content | Part::Thinking => {
                    let Message { fields, pieces, .. } = &mut messages[message];
                    for (name, value) in fields {
                        let is_reasoning = REASONING.contains(&&**name);
                        if !(is_reasoning || &**name == "content") || is_reasoning != (kind == Part::Thinking) {
                            continue;
                        }
                        match (value, part.piece) {
                            (Json::String(text), Some(piece)) => {
                                *text = with_word_in(text, pieces, piece, word, spot);
                            }
                            (Json::String(text), None) => *text = with_word(text, word, spot),
                            (Json::Array(parts), Some(piece)) => {
                                texts_of(parts)
                                    .nth(piece)
                                    .into_iter()
                                    .for_each(|text| *text = with_word(text, word, spot));
                            }
                            (Json::Array(parts), None) => {
                                texts_of(parts).for_each(|text| *text = with_word(text, word, spot));
                            }
                            _ => {}
                        }
                    }
                }
                Part::Call(index) => {
                    let calls = messages[message].fields.iter_mut().find(|(name, _)| &**name == "tool_calls");
                    if let Some((_, Json::Array(calls))) = calls
                        && let Some(call) = calls.get_mut(index)
                    {
                        change_definition(call, word, spot, part.is_arguments);
                    }
                }
                Part::Tool(index) => {
                    if let Some(Json::Array(tools)) = &mut tools
                        && let Some(tool) = tools.get_mut(index)
                    {
                        change_definition(tool, word, spot, false);
                    }
                }
            }
        }
        let row = self.row(&messages, tools.as_ref(), row.kwargs);
        match self.write(&row, messages.len(), prompt) {
            Ok(written) => Ok(Some(written.text)),
            Err(error @ Error::Internal { .. }) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

/// Everything in the row that was not seen to be printed. Of a content that the template sees as several texts it may
/// have printed one alone.
fn wanted(row: &Row<'_>, written: &Written, reads_parts: bool) -> Vec<Wanted> {
    let mut wanted = vec![];
    let mut want = |message: usize, part: Part, is_arguments: bool, piece: Option<usize>| {
        wanted.push(Wanted { unwritten: Unwritten { message, part }, is_arguments, piece });
    };
    for (index, message) in row.messages.iter().enumerate() {
        let words = written.words.get(index).copied().unwrap_or_default();
        let mut has_reasoning = false;
        for (name, value) in &message.fields {
            match value {
                Json::String(text) if text.trim().is_empty() => {}
                Json::String(text) if &**name == "content" && reads_parts && message.pieces.len() > 1 => {
                    let mut start = 0;
                    for (piece, length) in message.pieces.iter().enumerate() {
                        if text.get(start..start + length).is_some_and(|text| !text.trim().is_empty()) {
                            want(index, Part::Content, false, Some(piece));
                        }
                        start += length;
                    }
                }
                Json::Array(parts) if &**name == "content" && num_texts(parts) > 1 => {
                    (0..num_texts(parts)).for_each(|piece| want(index, Part::Content, false, Some(piece)));
                }
                Json::String(_) if &**name == "content" && words & SAID == 0 => want(index, Part::Content, false, None),
                Json::Array(parts) if &**name == "content" && words & SAID == 0 && num_texts(parts) == 1 => {
                    want(index, Part::Content, false, None);
                }
                Json::String(_) if REASONING.contains(&&**name) && words & REASONED == 0 => has_reasoning = true,
                Json::Array(calls) if &**name == "tool_calls" => {
                    for (at, call) in calls.iter().enumerate() {
                        want(index, Part::Call(at), false, None);
                        let arguments = function(call).and_then(|function| function.member("arguments"));
                        if !matches!(arguments, None | Some(Json::Null)) && arguments != Some(&Json::Object(vec![])) {
                            want(index, Part::Call(at), true, None);
                        }
                    }
                }
                _ => {}
            }
        }
        if has_reasoning {
            want(index, Part::Thinking, false, None);
        }
    }
    if let Some(Json::Array(tools)) = row.tools {
        (0..tools.len()).for_each(|at| want(0, Part::Tool(at), false, None));
    }
    wanted
}

/// The texts among the parts of a content, but for empty ones.
fn texts_of(parts: &mut [Json]) -> impl Iterator<Item = &mut Box<str>> {
    parts.iter_mut().filter_map(|part| match part {
        Json::Object(members) => members.iter_mut().find_map(|(name, value)| match value {
            Json::String(text) if &**name == "text" && !text.trim().is_empty() => Some(text),
            _ => None,
        }),
        _ => None,
    })
}

fn num_texts(parts: &[Json]) -> usize {
    let has_text = |part: &&Json| matches!(part.member("text"), Some(Json::String(text)) if !text.trim().is_empty());
    parts.iter().filter(has_text).count()
}

/// Where the name of a call or tool is.
fn function(definition: &Json) -> Option<&Json> {
    definition.member("function").or(Some(definition)).filter(|value| matches!(value, Json::Object(_)))
}

fn with_word(text: &str, word: &str, spot: Spot) -> Box<str> {
    let at = match spot {
        Spot::Middle => (text.len() / 2..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0),
        Spot::Start => 0,
        Spot::End => text.len(),
    };
    format!("{}{word}{}", &text[..at], &text[at..]).into()
}

/// As above, in one of the pieces that a text was joined of.
fn with_word_in(text: &str, pieces: &mut [usize], piece: usize, word: &str, spot: Spot) -> Box<str> {
    let start: usize = pieces[..piece].iter().sum();
    let Some(length) = pieces.get_mut(piece) else { return text.into() };
    let (before, rest) = text.split_at_checked(start).unwrap_or((text, ""));
    let (inside, behind) = rest.split_at_checked(*length).unwrap_or((rest, ""));
    *length += word.len();
    [before, &with_word(inside, word, spot), behind].concat().into()
}

/// Add a word to the name of a call or tool, or to the arguments of a call.
fn change_definition(definition: &mut Json, word: &str, spot: Spot, in_arguments: bool) {
    let Json::Object(members) = definition else { return };
    let inner = members.iter().position(|(name, value)| &**name == "function" && matches!(value, Json::Object(_)));
    if let Some(Json::Object(inner)) = inner.map(|at| &mut members[at].1) {
        return change_members(inner, word, spot, in_arguments);
    }
    change_members(members, word, spot, in_arguments);
}

fn change_members(members: &mut Vec<(Box<str>, Json)>, word: &str, spot: Spot, in_arguments: bool) {
    let wanted = if in_arguments { "arguments" } else { "name" };
    match members.iter_mut().find(|(name, _)| &**name == wanted).map(|(_, value)| value) {
        Some(Json::String(text)) => *text = with_word(text, word, spot),
        Some(Json::Object(arguments)) => arguments.push((word.into(), Json::String(word.into()))),
        Some(_) => {}
        None => members.push((word.into(), Json::String(word.into()))),
    }
}
