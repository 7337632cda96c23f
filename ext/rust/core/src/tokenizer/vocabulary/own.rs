//! The tables of a vocabulary from our own byte-level engine. The crate's tokenizer would give them too, and takes ten
//! times as long to build.
use super::{DummySpace, Frame, Surfaces, TokenNames, Vocabulary, append_surface};
use crate::tokenizer::bpe::{Bpe, Rest};
use serde_json::Value;

/// The id of an added token or a vocabulary entry, as the crate's `token_to_id`.
pub(crate) fn id_of(bpe: &Bpe, rest: &Rest, name: &str) -> Option<u32> {
    let added = rest.added.iter().find(|token| &*token.1 == name).map(|token| token.0);
    let other = || rest.others.iter().find(|other| &*other.0 == name).map(|other| other.1);
    added.or_else(|| bpe.id_of(name)).or_else(other)
}

/// None where the decoder or the post-processor is one that only the crate knows.
pub(crate) fn vocabulary(bpe: &Bpe, rest: &Rest, names: &TokenNames) -> Option<Vocabulary> {
    if !decodes_bytes(rest.decoder.as_ref()?) {
        return None;
    }
    let frame = rest.post_processor.as_ref().map_or(Some(Frame::default()), frame)?;
    let mut added: Vec<_> = rest.added.iter().map(|(id, content, special)| (*id, &**content, *special)).collect();
    added.sort_unstable();
    let mut others: Vec<_> = rest.others.iter().map(|(name, id)| (*id, &**name)).collect();
    others.sort_unstable();
    let last = [added.last().map(|token| token.0), others.last().map(|other| other.0)];
    let size = last.into_iter().flatten().map(|id| id as usize + 1).fold(bpe.num_ids(), usize::max);
    let mut surfaces = Surfaces::with_capacity(size);
    let (mut next_added, mut next_other) = (added.iter().peekable(), others.iter().peekable());
    for id in 0..size as u32 {
        let token = next_added.next_if(|token| token.0 == id);
        let other = next_other.next_if(|other| other.0 == id);
        match (token, other) {
            (Some(token), _) => surfaces.bytes.extend_from_slice(token.1.as_bytes()),
            (None, Some(other)) => append_surface(&mut surfaces.bytes, other.1, true, false, false),
            (None, None) => surfaces.bytes.extend_from_slice(bpe.token(id)),
        }
        surfaces.end(token.is_some());
    }
    let id_of = |name: &Option<String>| name.as_deref().and_then(|name| id_of(bpe, rest, name));
    let ends = (id_of(&names.bos), id_of(&names.eos));
    // A tokenizer whose normaliser or pre-tokenizer adds a space is none of ours.
    Some(Vocabulary::new(surfaces, &added, frame, ends, (DummySpace::Never, true)))
}

fn kind(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or("")
}

/// Whether the decoder is `ByteLevel`, alone or in a sequence.
fn decodes_bytes(decoder: &Value) -> bool {
    let parts = decoder.get("decoders").and_then(Value::as_array);
    kind(decoder) == "ByteLevel" || parts.is_some_and(|parts| parts.iter().any(decodes_bytes))
}

/// The ids that a post-processor puts around texts; none where it is not known for certain.
pub(super) fn frame(part: &Value) -> Option<Frame> {
    let list = |name: &str| part.get(name).and_then(Value::as_array);
    match kind(part) {
        "ByteLevel" => Some(Frame::default()),
        "Sequence" => {
            let parts: Option<Vec<_>> = list("processors")?.iter().map(frame).collect();
            let mut adding = parts?.into_iter().filter(|frame| *frame != Frame::default());
            let found = adding.next().unwrap_or_default();
            adding.next().is_none().then_some(found)
        }
        "TemplateProcessing" => {
            let specials = part.get("special_tokens")?;
            let ids_of = |pieces: &[Value]| {
                let mut ids = vec![];
                for special in pieces.iter().filter_map(|piece| piece.get("SpecialToken")) {
                    let known = specials.get(special.get("id")?.as_str()?)?.get("ids")?.as_array()?;
                    for id in known {
                        ids.push(i32::try_from(id.as_u64()?).ok()?);
                    }
                }
                Some(ids)
            };
            let is_text = |piece: &Value| piece.get("Sequence").is_some();
            let single = list("single")?;
            let at = single.iter().position(is_text)?;
            let pair = list("pair").map_or(&[][..], Vec::as_slice);
            let first = pair.iter().position(is_text);
            let second = pair.iter().rposition(is_text);
            let between = match (first, second) {
                (Some(first), Some(second)) if first < second => ids_of(&pair[first..second])?,
                _ => vec![],
            };
            Some(Frame { before: ids_of(&single[..at])?, between, behind: ids_of(&single[at..])? })
        }
        _ => None,
    }
}
