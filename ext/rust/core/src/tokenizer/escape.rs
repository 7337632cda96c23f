//! Text in a row that looks like a special token, encoded as the text it is.
//!
//! A template pastes messages into its own text, and a tokenizer cannot tell afterwards who wrote `<|im_end|>`. So a
//! character that the row does not have (a Unicode noncharacter) is put behind the first character of everything in the
//! row that is, or could become the beginning of, a special token. What the tokenizer still finds as special is then the
//! template's. The stretches between are encoded again without the marks, and without special tokens.
use crate::error::{Error, RowError};
use crate::tokenizer::engine::{Engine, HfEngine, Tokens};
use crate::tokenizer::special::SpecialMatcher;
use crate::tokenizer::vocabulary::{TokenNames, crate_tokenizer};
use crate::types::{Json, Message};
use std::collections::HashMap;

/// Characters that text may not hold by Unicode's rules; all are of [`MARK_BYTES`] bytes.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';
const MARK_BYTES: usize = 3;

/// Encodes look-alikes as text.
pub struct Escape {
    plain: Box<dyn Engine>,
    /// By id.
    specials: HashMap<i32, Box<str>>,
    matcher: SpecialMatcher,
}

fn refusal(message: String) -> Error {
    Error::Row(RowError::new("special_text", message))
}

impl Escape {
    /// Read the tokenizer once more, as one that knows no special tokens.
    ///
    /// # Errors
    /// As [`crate::tokenizer::vocabulary::load`]; `Error::Config` for a tokenizer where a stretch of text cannot stand alone.
    pub fn new(tokenizer_json: &[u8], names: &TokenNames) -> Result<Self, Error> {
        let mut tokenizer = crate_tokenizer(tokenizer_json, names)?;
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special);
        let specials: HashMap<i32, Box<str>> =
            special.map(|(id, token)| (*id as i32, token.content.as_str().into())).collect();
        if let Some(text) = specials.values().find(|text| text.chars().count() < 2) {
            let message = format!("special_text: the special token {text:?} cannot be escaped; use drop or error");
            return Err(Error::Config { message: message.into() });
        }
        tokenizer.set_encode_special_tokens(true);
        let matcher = SpecialMatcher::of_texts(specials.values().map(|text| &**text));
        Ok(Self { plain: Box::new(HfEngine::new(tokenizer)), specials, matcher })
    }

    /// Mark the look-alikes in everything a row brings to its template. Returns the mark, if any was needed.
    ///
    /// # Errors
    /// `Error::Row` for a row that has every noncharacter itself.
    pub(crate) fn mark_chat(
        &self,
        messages: &mut [Message],
        tools: Option<&mut Json>,
        kwargs: &mut [(Box<str>, Json)],
    ) -> Result<Option<char>, Error> {
        let held = |mark: char| {
            let in_messages = messages.iter().flat_map(|message| &message.fields).any(|(_, value)| holds(value, mark));
            in_messages
                || tools.as_deref().is_some_and(|tools| holds(tools, mark))
                || kwargs.iter().any(|(_, value)| holds(value, mark))
        };
        let mark = MARKS.into_iter().find(|mark| !held(*mark));
        let mark = mark.ok_or_else(|| refusal("the row has every noncharacter of Unicode; remove them".to_owned()))?;
        let mut any = false;
        for message in messages {
            for (name, value) in &mut message.fields {
                any |= match (&**name, value) {
                    ("role", _) => false,
                    ("content", Json::String(text)) => self.mark_pieces(text, &mut message.pieces, mark),
                    (_, value) => self.mark_json(value, mark),
                };
            }
        }
        for value in kwargs.iter_mut().map(|(_, value)| value).chain(tools) {
            any |= self.mark_json(value, mark);
        }
        Ok(any.then_some(mark))
    }

    /// Mark the look-alikes in a text, if there are any.
    ///
    /// # Errors
    /// As [`Escape::mark_chat`].
    pub(crate) fn mark_text(&self, text: &str) -> Result<Option<(String, char)>, Error> {
        let mark = MARKS.into_iter().find(|mark| !text.contains(*mark));
        let mark = mark.ok_or_else(|| refusal("the text has every noncharacter of Unicode; remove them".to_owned()))?;
        Ok(self.marked(text, mark).map(|text| (text, mark)))
    }

    /// A content that was joined of pieces keeps them, each as much longer as it became.
    fn mark_pieces(&self, text: &mut Box<str>, lengths: &mut [usize], mark: char) -> bool {
        if lengths.len() < 2 || lengths.iter().sum::<usize>() != text.len() {
            return self.marked(text, mark).map(|marked| *text = marked.into()).is_some();
        }
        // Marked as a whole, since a look-alike may lie over a seam of pieces; then each mark is given to its piece.
        let Some(marked) = self.marked(text, mark) else { return false };
        let (mut index, mut left) = (0, lengths[0]);
        for c in marked.chars() {
            if c == mark {
                lengths[index] += MARK_BYTES;
                continue;
            }
            while left == 0 && index + 1 < lengths.len() {
                index += 1;
                left = lengths[index];
            }
            left = left.saturating_sub(c.len_utf8());
        }
        *text = marked.into();
        true
    }

    fn mark_json(&self, value: &mut Json, mark: char) -> bool {
        match value {
            Json::String(text) => self.marked(text, mark).map(|marked| *text = marked.into()).is_some(),
            Json::Array(items) => items.iter_mut().fold(false, |any, item| self.mark_json(item, mark) | any),
            Json::Object(members) => members.iter_mut().fold(false, |any, (key, value)| {
                let is_marked = self.marked(key, mark).map(|marked| *key = marked.into()).is_some();
                self.mark_json(value, mark) | is_marked | any
            }),
            _ => false,
        }
    }

    /// `text` with a mark behind the first character of every special token in it, and of every end of it that a special
    /// token could begin with; none if there is nothing to mark.
    fn marked(&self, text: &str, mark: char) -> Option<String> {
        let mut out = String::new();
        let mut done = 0;
        for (at, c) in text.char_indices() {
            if !c.is_whitespace() && self.matcher.may_start(&text[at..]) {
                out.push_str(&text[done..at + c.len_utf8()]);
                out.push(mark);
                done = at + c.len_utf8();
            }
        }
        if done == 0 {
            return None;
        }
        out.push_str(&text[done..]);
        Some(out)
    }

    /// Encode `text`, whose look-alikes have been marked, into `out`; `first` is where it starts in the whole rendering,
    /// where ends count from. Returns the calls to an engine.
    ///
    /// # Errors
    /// As the engine; `Error::Row` where a look-alike would become a special token all the same.
    pub fn encode(
        &self,
        engine: &dyn Engine,
        text: &str,
        mark: char,
        first: usize,
        out: &mut Tokens,
    ) -> Result<usize, Error> {
        let mut found = Tokens::default();
        engine.encode(text, &mut found)?;
        let mut calls = 1;
        let (mut token, mut start, mut at) = (0, 0, 0);
        for index in 0..=found.ids.len() {
            let end = found.ends.get(index).map_or(text.len(), |end| *end as usize);
            let is_special = found
                .ids
                .get(index)
                .and_then(|id| self.specials.get(id))
                .is_some_and(|special| text[at..end].trim() == &**special);
            if !is_special && index < found.ids.len() {
                at = end;
                continue;
            }
            if text[start..at].contains(mark) {
                self.encode_plain(&text[start..at], mark, first + start, out)?;
                calls += 1;
            } else {
                out.ids.extend(&found.ids[token..index]);
                out.ends.extend(found.ends[token..index].iter().map(|end| end + first as u32));
            }
            if is_special {
                out.ids.push(found.ids[index]);
                out.ends.push((first + end) as u32);
            }
            (token, start, at) = (index + 1, end, end);
        }
        Ok(calls)
    }

    fn encode_plain(&self, text: &str, mark: char, first: usize, out: &mut Tokens) -> Result<(), Error> {
        let marks: Vec<usize> = text.match_indices(mark).enumerate().map(|(n, (at, _))| at - n * MARK_BYTES).collect();
        let mut found = Tokens::default();
        self.plain.encode(&text.replace(mark, ""), &mut found)?;
        if let Some(special) = found.ids.iter().find_map(|id| self.specials.get(id)) {
            let why = format!("the tokenizer reads {special} as a special token even as text; use --special-text drop");
            return Err(refusal(why));
        }
        out.ids.extend(&found.ids);
        out.ends.extend(found.ends.iter().map(|end| {
            let before = marks.partition_point(|at| *at <= *end as usize); // a mark ends the token before it
            (first + *end as usize + before * MARK_BYTES) as u32
        }));
        Ok(())
    }
}

/// Whether a template has written the mark in another form (`\ufdd0`), so that it can no longer be taken out.
#[must_use]
pub(crate) fn is_spelled_out(text: &str, mark: char) -> bool {
    let code = format!("\\u{:04x}", mark as u32);
    text.contains(&code) || text.contains(&code.to_uppercase().replace("\\U", "\\u"))
}

fn holds(value: &Json, mark: char) -> bool {
    match value {
        Json::String(text) => text.contains(mark),
        Json::Array(items) => items.iter().any(|item| holds(item, mark)),
        Json::Object(members) => members.iter().any(|(key, value)| key.contains(mark) || holds(value, mark)),
        _ => false,
    }
}
