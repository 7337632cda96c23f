//! `tokenizer.json` -> engine: every part is recognised for certain, or the whole is refused.

use std::collections::HashMap;

use serde_json::Value;

use super::file::{self, File, Members, Merges, Model, VocabEntries};
use super::pattern::Pattern;
use super::tables::{MAX_ID, Tables, Vocab};
use super::{Parts, Rest, Unsupported};
use crate::tokenizer::added::AddedTokens;
use crate::tokenizer::byte_alphabet::bytes_of;

fn refuse<T>(part: &'static str, why: impl Into<String>) -> Result<T, Unsupported> {
    Err(Unsupported::new(part, why))
}

/// Reads the file into the parts of the engine, and what else it says.
pub(crate) fn compile(tokenizer_json: &[u8]) -> Result<(Parts, Rest), Unsupported> {
    let Members { file, tokens, merges } = file::read(tokenizer_json)?;
    if file.version != "1.0" {
        return refuse("version", "is not 1.0");
    }
    let nfc = match file.normalizer.as_ref() {
        None => false,
        Some(normalizer) => is_nfc(normalizer)?,
    };
    let pattern = pre_tokenizer(file.pre_tokenizer.as_ref())?;
    let tables = model(&file.model, &tokens, &merges)?;
    let found = added_tokens(&file, &tables, &tokens, nfc)?;
    let added = file.added_tokens.into_iter().filter(|token| !token.content.is_empty());
    let added = added.map(|token| (token.id, token.content.into(), token.special)).collect();
    let others = tokens.others.into_iter().map(|(name, id)| (name.into(), id)).collect();
    let rest = Rest { added, others, decoder: file.decoder, post_processor: file.post_processor };
    Ok((Parts { tables, pattern, nfc, added: found }, rest))
}

fn kind(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or("")
}

/// Whether exactly these members stand in the part.
fn has_only(part: &Value, names: &[&str]) -> bool {
    part.as_object().is_some_and(|members| members.keys().all(|key| names.contains(&key.as_str())))
}

fn is_nfc(normalizer: &Value) -> Result<bool, Unsupported> {
    match kind(normalizer) {
        "NFC" if has_only(normalizer, &["type"]) => Ok(true),
        "Sequence" if has_only(normalizer, &["type", "normalizers"]) => {
            let Some(parts) = normalizer.get("normalizers").and_then(Value::as_array) else {
                return refuse("normalizer", "is a sequence of nothing");
            };
            parts.iter().try_fold(false, |found, part| Ok(is_nfc(part)? || found))
        }
        other => refuse("normalizer", format!("{other:?} is not one this engine knows")),
    }
}

/// One step of a flattened pre-tokenizer sequence.
enum Step<'a> {
    /// A `Split` that keeps its gaps (`true`) or is `Removed` and inverted, which drops them.
    Split(&'a str, bool),
    EachDigit,
    ByteLevel {
        regex: bool,
    },
}

fn steps<'a>(part: &'a Value, out: &mut Vec<Step<'a>>) -> Result<(), Unsupported> {
    let flag = |name: &str| part.get(name).and_then(Value::as_bool);
    match kind(part) {
        "Sequence" if has_only(part, &["type", "pretokenizers"]) => {
            let parts = part.get("pretokenizers").and_then(Value::as_array);
            return parts.into_iter().flatten().try_for_each(|part| steps(part, out));
        }
        "ByteLevel" if has_only(part, &["type", "add_prefix_space", "trim_offsets", "use_regex"]) => {
            if flag("add_prefix_space") != Some(false) {
                return refuse("pre_tokenizer", "ByteLevel adds a prefix space");
            }
            out.push(Step::ByteLevel { regex: part.get("use_regex").is_none_or(|value| value == true) });
        }
        "Digits" if has_only(part, &["type", "individual_digits"]) => match flag("individual_digits") {
            Some(true) => out.push(Step::EachDigit),
            // A run of numbers goes through the next regex, whose older Unicode may cut it again.
            _ => return refuse("pre_tokenizer", "Digits does not cut each digit"),
        },
        "Split" if has_only(part, &["type", "pattern", "behavior", "invert"]) => {
            let regex = part.get("pattern").filter(|p| has_only(p, &["Regex"])).and_then(|p| p.get("Regex")?.as_str());
            let keeps_gaps = match (part.get("behavior").and_then(Value::as_str), flag("invert")) {
                (Some("Isolated"), Some(false)) => true,
                (Some("Removed"), Some(true)) => false,
                _ => return refuse("pre_tokenizer", "Split with another behavior than isolated words"),
            };
            match regex {
                Some(regex) => out.push(Step::Split(regex, keeps_gaps)),
                None => return refuse("pre_tokenizer", "Split by something else than a regex"),
            }
        }
        other => return refuse("pre_tokenizer", format!("{other:?} is not one this engine knows")),
    }
    Ok(())
}

fn pre_tokenizer(part: Option<&Value>) -> Result<Pattern, Unsupported> {
    let mut list = Vec::new();
    if let Some(part) = part {
        steps(part, &mut list)?;
    }
    let found = match list.as_slice() {
        [Step::ByteLevel { regex: true }] => Some(Pattern::Gpt2 { digits: false }),
        [Step::EachDigit, Step::ByteLevel { regex: true }] => Some(Pattern::Gpt2 { digits: true }),
        [Step::Split(regex, _), Step::ByteLevel { regex: false }] => Pattern::from_regex(regex),
        [splits @ .., Step::ByteLevel { regex: false }] => {
            let regexes: Option<Vec<&str>> = splits.iter().map(isolated).collect();
            regexes.and_then(|regexes| Pattern::from_regexes(&regexes))
        }
        _ => None,
    };
    found.ok_or_else(|| Unsupported::new("pre_tokenizer", "is a regex or a sequence this engine does not know"))
}

fn isolated<'a>(step: &Step<'a>) -> Option<&'a str> {
    if let Step::Split(regex, true) = step { Some(regex) } else { None }
}

fn model(model: &Model, tokens: &VocabEntries, merges: &Merges) -> Result<Tables, Unsupported> {
    let empty = |affix: &Option<String>| affix.as_ref().is_none_or(String::is_empty);
    if model.kind.as_deref() != Some("BPE") {
        return refuse("model", format!("type is {:?}, not \"BPE\"", model.kind));
    }
    if model.dropout.is_some_and(|p| p != 0.0) {
        return refuse("model", "has dropout");
    }
    if !empty(&model.continuing_subword_prefix) || !empty(&model.end_of_word_suffix) {
        return refuse("model", "has a subword prefix or a word suffix");
    }
    let vocab = vocabulary(tokens)?;
    let merges = ids_of(merges, &vocab)?;
    let has_unknown = model.unk_token.is_some() || model.byte_fallback == Some(true);
    Tables::new(vocab, &merges, model.ignore_merges == Some(true), has_unknown)
}

fn vocabulary(tokens: &VocabEntries) -> Result<Vocab, Unsupported> {
    let known = |id: u32| id < MAX_ID && id as usize <= 4 * tokens.len() + 1024;
    let mut ids = tokens.ends.iter().map(|token| token.0).chain(tokens.others.iter().map(|token| token.1));
    if let Some(id) = ids.find(|&id| !known(id)) {
        return refuse("vocab", format!("id {id} is far beyond the number of tokens"));
    }
    let mut vocab = Vocab::with_capacity(tokens.len(), tokens.bytes.len());
    for (token, id) in tokens.iter() {
        if !vocab.insert(token, id) {
            return refuse("vocab", format!("{:?} or its id {id} is there twice", String::from_utf8_lossy(token)));
        }
    }
    let mut names = std::collections::HashSet::new();
    match tokens.others.iter().find(|(name, _)| !names.insert(name)) {
        Some((name, _)) => refuse("vocab", format!("{name:?} is there twice")),
        None => Ok(vocab),
    }
}

/// `(left, right, joined)` of each merge. Half of a large list is looked up on another thread, since nearly all of the time
/// is waiting for memory; and most lists make their tokens in the order of their ids.
fn ids_of(merges: &Merges, vocab: &Vocab) -> Result<Vec<(u32, u32, u32)>, Unsupported> {
    let find = |places: &[[u32; 3]]| -> Result<Vec<_>, usize> {
        let mut next = 0;
        let entries = places.iter().enumerate().map(|(i, &[start, middle, end])| {
            let bytes = |from: u32, to: u32| &merges.bytes[from as usize..to as usize];
            let joined = vocab.get_near(next, bytes(start, end)).ok_or(i)?;
            next = joined + 1;
            Ok((vocab.get(bytes(start, middle)).ok_or(i)?, vocab.get(bytes(middle, end)).ok_or(i)?, joined))
        });
        entries.collect()
    };
    let (first, second) = merges.places.split_at(merges.places.len() / 2);
    let (found, rest) = std::thread::scope(|scope| {
        let rest = scope.spawn(|| find(second));
        (find(first), rest.join().unwrap_or(Err(0)))
    });
    let at = |i| Unsupported::new("merges", format!("entry {i} is not of byte-level tokens"));
    let mut found = found.map_err(at)?;
    found.extend(rest.map_err(|i| at(first.len() + i))?);
    Ok(found)
}

fn added_tokens(file: &File, tables: &Tables, tokens: &VocabEntries, nfc: bool) -> Result<AddedTokens, Unsupported> {
    let nfc = nfc.then(super::normalize::Nfc::default);
    let others: HashMap<&str, u32> = tokens.others.iter().map(|(name, id)| (name.as_str(), *id)).collect();
    let known = |name: &str| bytes_of(name).and_then(|bytes| tables.find(&bytes));
    let id_of = |name: &str| known(name).or_else(|| others.get(name).copied());
    let normal = |text: &str| nfc.as_ref().and_then(|nfc| nfc.apply(text)).map(|(text, _)| text);
    AddedTokens::read(&file.added_tokens, tokens.len(), id_of, normal)
        .map_err(|why| Unsupported::new("added_tokens", why))
}
