//! The `tokenizers` crate behind a wall. It trusts its files: some make it panic, others make it take all memory. Here
//! such a file is refused before the crate sees it, where that can be told, and a panic becomes an error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use tokenizers::Tokenizer;

use crate::error::Error;
use crate::json;
use crate::types::Json;

/// Largest id for a vocabulary of `n` tokens: tables by id are made for all ids below.
const fn most_ids(n: usize) -> usize {
    4 * n + 1024
}

/// Longest added token, and all of them together, in bytes. The crate builds an automaton of a hundred bytes a byte.
pub(crate) const ADDED_BYTES: (usize, usize) = (1 << 16, 1 << 22);

/// How many times longer a normaliser may make a text.
const MOST_GROWTH: usize = 10_000;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// `work`, whose panics become their message. Nothing that `work` was changing may be used after one.
///
/// # Errors
/// What the panic said.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                before(info);
            }
        }));
    });
    let outer = IS_GUARDED.replace(true);
    let found = panic::catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outer);
    found.map_err(|payload| {
        let said = payload.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it gave up");
        said.lines().next().unwrap_or_default().chars().take(200).collect()
    })
}

/// The crate's tokenizer of a `tokenizer.json`.
///
/// # Errors
/// `Error::Data` when it is not one, or one that the crate cannot be trusted with.
pub fn tokenizer(tokenizer_json: &[u8]) -> Result<Tokenizer, Error> {
    let fault = |why: String| Error::Data { place: "tokenizer.json".into(), message: why.into() };
    let file = json::parse(tokenizer_json).map_err(|error| fault(error.to_string()))?;
    check(&file).map_err(fault)?;
    match catch(|| Tokenizer::from_bytes(tokenizer_json)) {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(error)) => Err(fault(one_line(&error.to_string()))),
        Err(panic) => Err(fault(format!("the tokenizers crate gave up on it: {panic}"))),
    }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

fn check(file: &Json) -> Result<(), String> {
    let model = file.member("model").unwrap_or(&Json::Null);
    check_ids(model, file.list("added_tokens"))?;
    // The crate cuts the prefix off whatever stands there, through a character too.
    let prefix = model.text("continuing_subword_prefix").unwrap_or_default();
    let right = |merge: &Json| match merge {
        Json::String(pair) => pair.split_once(' ').is_none_or(|(_, right)| right.starts_with(prefix)),
        Json::Array(pair) => pair.get(1).is_none_or(|right| matches!(right, Json::String(t) if t.starts_with(prefix))),
        _ => true,
    };
    if let Some(at) = model.list("merges").iter().position(|merge| !right(merge)) {
        return Err(format!("merge {at} joins a token without the prefix {prefix:?} of continued words"));
    }
    let growth = file.member("normalizer").map_or(1, growth);
    if growth > MOST_GROWTH {
        return Err(format!("its normalizer makes a text up to {growth} times longer; {MOST_GROWTH} is the most"));
    }
    Ok(())
}

fn check_ids(model: &Json, added: &[Json]) -> Result<(), String> {
    let vocab = match model.member("vocab") {
        Some(Json::Object(tokens)) => tokens.as_slice(),
        _ => &[],
    };
    let entries = vocab.len() + model.list("vocab").len() + added.len();
    let mut ids: Vec<(&str, &Json)> = vocab.iter().map(|(token, id)| (&**token, id)).collect();
    let mut all = 0;
    for token in added {
        let content = token.text("content").unwrap_or_default();
        all += content.len();
        if content.len() > ADDED_BYTES.0 || all > ADDED_BYTES.1 {
            let (one, most) = ADDED_BYTES;
            return Err(format!(
                "added tokens of {all} bytes or more; at most {one} in one and {most} in all are read"
            ));
        }
        ids.extend(token.member("id").map(|id| (content, id)));
    }
    for (token, id) in ids {
        let Json::Number(number) = id else { continue };
        if number.parse::<usize>().is_ok_and(|id| id >= most_ids(entries)) {
            let token: String = token.chars().take(40).collect();
            return Err(format!("token {token:?} has id {number}, far beyond the {entries} tokens there are"));
        }
    }
    Ok(())
}

/// How many times longer a normaliser can make a text, as far as its members say.
fn growth(normalizer: &Json) -> usize {
    let text = |name| normalizer.text(name).unwrap_or_default();
    if text("type") == "Sequence" {
        return normalizer.list("normalizers").iter().map(growth).fold(1, usize::saturating_mul);
    }
    let each = match text("type") {
        "Replace" => text("content").len(),
        "Prepend" => text("prepend").len(),
        _ => 0,
    };
    let pattern = normalizer.member("pattern").and_then(|pattern| pattern.text("String")).unwrap_or_default();
    match pattern.len() {
        0 => 1 + each,
        length => each.div_ceil(length).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(catch(|| 3), Ok(3));
        assert_eq!(catch(|| panic!("no {}", "way\nout")).map(|()| 0), Err("no way".to_owned()));
        assert!(!IS_GUARDED.get());
    }

    #[test]
    fn normalisers_multiply() {
        let growth_of = |text: &str| growth(&json::parse_text(text).unwrap_or_default());
        let replace = r#"{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}"#;
        assert_eq!(growth_of(r#"{"type": "NFC"}"#), 1);
        assert_eq!(growth_of(replace), 3);
        let many =
            format!(r#"{{"type": "Sequence", "normalizers": [{replace}, {{"type": "Prepend", "prepend": "▁"}}]}}"#);
        assert_eq!(growth_of(&many), 12);
    }
}
