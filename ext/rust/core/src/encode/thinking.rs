//! What becomes of the thinking in a conversation before its template sees it.
//!
//! The template itself decides how thinking is written and whether old turns lose theirs (its own rules, and arguments
//! such as `enable_thinking` or `preserve_thinking`). These rules only change the messages:
//!
//! * `template`: nothing is changed.
//! * `strip`: no assistant message keeps any thinking.
//! * `empty`: assistant messages without thinking get an empty block, as ms-swift's `add_non_thinking_prefix`; with the
//!   base `last_round` only those after the last user message do.
//! * `no-think`: as `empty`, and the user message before such an answer ends in ` /no_think`, Qwen3's soft switch.
use crate::error::choices;
use crate::types::{Json, Message, Role};

/// See the module's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Thinking {
    /// As the template has it.
    #[default]
    Template,
    /// Without thinking.
    Strip,
    /// With an empty block where there is none.
    Empty,
    /// As [`Self::Empty`], and the user's message before it says so too.
    NoThink,
}

choices! { Thinking, "thinking", "template" => Template, "strip" => Strip, "empty" => Empty, "no-think" => NoThink }

const CLOSE: &str = "</think>";
const EMPTY_BLOCK: &str = "<think>\n\n</think>\n\n";
const SWITCHES: [&str; 2] = ["/no_think", "/think"];

/// Change `messages` as `rule` says. `last_round`: only turns after the last user message are trained on.
pub(crate) fn apply(rule: Thinking, messages: &mut [Message], last_round: bool) {
    match rule {
        Thinking::Template => {}
        Thinking::Strip => messages.iter_mut().filter(|message| message.role == Role::Assistant).for_each(strip),
        Thinking::Empty | Thinking::NoThink => {
            let last_user = messages.iter().rposition(|message| message.role == Role::User).unwrap_or(0);
            let first = if last_round { last_user } else { 0 };
            for index in first..messages.len() {
                if messages[index].role != Role::Assistant || has_thinking(&messages[index]) {
                    continue;
                }
                prepend_empty_block(&mut messages[index]);
                if rule == Thinking::NoThink && index > 0 && messages[index - 1].role == Role::User {
                    append_switch(&mut messages[index - 1]);
                }
            }
        }
    }
}

fn content(message: &mut Message) -> Option<&mut Box<str>> {
    message.fields.iter_mut().find_map(|(name, value)| match value {
        Json::String(text) if &**name == "content" => Some(text),
        _ => None,
    })
}

fn has_thinking(message: &Message) -> bool {
    message.fields.iter().any(|(name, value)| match value {
        Json::String(text) => {
            (&**name == "content" && text.contains(CLOSE)) || (&**name == "reasoning_content" && !text.is_empty())
        }
        _ => false,
    })
}

fn strip(message: &mut Message) {
    message.fields.retain(|(name, _)| &**name != "reasoning_content");
    let Some(text) = content(message) else { return };
    let Some(at) = text.rfind(CLOSE) else { return };
    let removed = text.len() - text[at + CLOSE.len()..].trim_start_matches('\n').len();
    *text = text[removed..].into();
    shift_first_piece(&mut message.pieces, |length| length.saturating_sub(removed));
}

fn prepend_empty_block(message: &mut Message) {
    let Some(text) = content(message) else { return };
    *text = format!("{EMPTY_BLOCK}{text}").into();
    shift_first_piece(&mut message.pieces, |length| length + EMPTY_BLOCK.len());
}

fn shift_first_piece(pieces: &mut [usize], change: impl Fn(usize) -> usize) {
    if let Some(first) = pieces.first_mut() {
        *first = change(*first);
    }
}

fn append_switch(message: &mut Message) {
    if let Some(text) = content(message)
        && !SWITCHES.iter().any(|switch| text.trim_end().ends_with(switch))
    {
        *text = format!("{text} /no_think").into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, text: &str) -> Message {
        Message::new(role, vec![("content".into(), Json::String(text.into()))])
    }

    fn texts(messages: &mut [Message]) -> Vec<String> {
        messages.iter_mut().filter_map(|message| content(message).map(|text| text.to_string())).collect()
    }

    #[test]
    fn answers_without_thinking_get_an_empty_block() {
        let chat = [
            message(Role::User, "a"),
            message(Role::Assistant, "b"),
            message(Role::User, "c /think"),
            message(Role::Assistant, "d"),
            message(Role::User, "e"),
            message(Role::Assistant, "<think>\nf\n</think>\n\ng"),
        ];
        let mut all = chat.clone();
        apply(Thinking::NoThink, &mut all, false);
        let expected = ["a /no_think", "<think>\n\n</think>\n\nb", "c /think", "<think>\n\n</think>\n\nd", "e"];
        assert_eq!(texts(&mut all)[..5], expected);
        let mut last = chat[..4].to_vec();
        apply(Thinking::Empty, &mut last, true);
        assert_eq!(texts(&mut last), ["a", "b", "c /think", "<think>\n\n</think>\n\nd"]);
        let mut stripped = chat.to_vec();
        apply(Thinking::Strip, &mut stripped, false);
        assert_eq!(texts(&mut stripped)[5], "g");
    }
}
