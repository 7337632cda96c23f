//! `added_tokens` of a `tokenizer.json`: those that are found in text, with the ids that the `tokenizers` crate gives them.
use std::collections::HashSet;

use super::guard::ADDED_BYTES;
use super::special::AddedToken;

/// One entry, as the file has it. A member that is not known here is one that the crate may act upon.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // the file's own form
pub(super) struct AddedEntry {
    pub(crate) id: u32,
    pub(crate) content: String,
    pub(crate) single_word: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) normalized: bool,
    pub(crate) special: bool,
}

/// Tokens by where they are looked for.
#[derive(Default)]
pub(super) struct AddedTokens {
    /// In raw text.
    pub(crate) raw: Vec<AddedToken>,
    /// In normalised text, behind the raw ones.
    pub(crate) normalized: Vec<AddedToken>,
}

impl AddedTokens {
    /// Read `entries`. `vocab_len`: entries of the vocabulary; `id_of`: the id of one; `normal`: the normal form of a
    /// text, where it differs.
    ///
    /// # Errors
    /// What the crate would do otherwise, or might.
    pub(crate) fn read(
        entries: &[AddedEntry],
        vocab_len: usize,
        id_of: impl Fn(&str) -> Option<u32>,
        normal: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let lengths = entries.iter().map(|entry| entry.content.len());
        if lengths.clone().any(|length| length > ADDED_BYTES.0) || lengths.sum::<usize>() > ADDED_BYTES.1 {
            return Err("are long".to_owned());
        }
        // After `rstrip` has swallowed its start, the crate gives an overlap, nothing, or a panic.
        let swallowed = entries.iter().find(|entry| entry.content.starts_with(char::is_whitespace));
        if let Some(entry) = swallowed.filter(|_| entries.iter().any(|entry| entry.rstrip)) {
            return Err(format!("{:?} may be swallowed by another's rstrip", entry.content));
        }
        let (mut found, mut next_id) = (Self::default(), vocab_len as u32);
        let (mut contents, mut forms) = (HashSet::new(), HashSet::new());
        for entry in entries {
            let AddedEntry { content, single_word, lstrip, rstrip, normalized, .. } = entry;
            let form = normal(content).filter(|_| *normalized).unwrap_or_else(|| content.clone());
            if !contents.insert(content) || *normalized && !forms.insert(form.clone()) {
                return Err(format!("{content:?} is there twice"));
            }
            // the crate takes no notice of it
            if content.is_empty() {
                continue;
            }
            let id = id_of(content).unwrap_or_else(|| {
                next_id += 1;
                next_id - 1
            });
            if id != entry.id {
                return Err(format!("{content:?} has id {}, the crate would give {id}", entry.id));
            }
            let list = if *normalized { &mut found.normalized } else { &mut found.raw };
            let (single_word, lstrip, rstrip) = (*single_word, *lstrip, *rstrip);
            list.push(AddedToken { id, content: form, single_word, lstrip, rstrip });
        }
        Ok(found)
    }
}
