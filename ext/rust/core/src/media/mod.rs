//! Pictures in rows: what they are, how many tokens they become, and where these lie.
//!
//! Nothing is decoded here. The first bytes of a file say how large the picture is, the family's rule says what becomes of
//! that size, and a digest says which picture it was. Pixels are made where they are used.
pub mod column;
pub mod expand;
pub mod header;
pub mod rule;
pub mod source;

use crate::error::{Error, RowError};
use crate::types::{Json, Message};
use header::Header;
use rule::{Plan, Rule};
use serde::Deserialize;
use source::{Roots, Source};

/// How a family of models writes pictures, from the model's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// What messages call it.
    pub name: Box<str>,
    /// What the chat template writes for a picture.
    pub placeholder: Box<str>,
    /// The token that stands for one feature.
    pub feature: Box<str>,
    /// Other tokens that only pictures may write.
    #[serde(default)]
    pub marks: Vec<Box<str>>,
    /// What is put before and after the features of a picture.
    #[serde(default)]
    pub before: Box<str>,
    /// See `before`.
    #[serde(default)]
    pub after: Box<str>,
    /// Marks around the tiles of a picture, where each has its own.
    #[serde(default)]
    pub tiles: Option<TileMarks>,
    /// From size to tokens.
    pub rule: Rule,
}

/// How the tiles of a picture are told apart.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TileMarks {
    /// Before each tile; `{row}` and `{column}` count from 1.
    pub tile: Box<str>,
    /// After each row of tiles.
    pub row_end: Box<str>,
    /// Before the whole picture, behind its tiles.
    pub whole: Box<str>,
    /// Before the whole picture, where it is alone.
    pub alone: Box<str>,
    /// After the whole picture.
    pub end: Box<str>,
}

/// A picture of a row, looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Where it lies, as the row says it; none where the row brings its bytes.
    pub reference: Option<Box<str>>,
    /// The folder from where a relative path counts.
    pub folder: Option<Box<str>>,
    /// Its bytes, where the row brings them.
    pub content: Option<Vec<u8>>,
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
    /// What its first bytes say.
    pub header: Header,
    /// What becomes of it.
    pub plan: Plan,
}

/// Where the tokens of a picture lie in its row.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// First token.
    pub start: i32,
    /// After the last.
    pub end: i32,
    /// How many of these tokens are features.
    pub features: i32,
    /// Which picture.
    pub item: Item,
}

/// Everything about pictures that a run needs.
#[derive(Debug, Clone)]
pub struct Media {
    /// The family.
    pub family: Family,
    /// Which files may be read.
    pub roots: Roots,
}

/// The name a picture has as a part of a message's content.
const IMAGE: &str = "image";

/// A part of a content that is a picture.
#[must_use]
pub fn part(reference: Json) -> Json {
    Json::Object(vec![("type".into(), Json::String(IMAGE.into())), (IMAGE.into(), reference)])
}

/// What a part says of where its picture is: none for other parts.
fn reference_of(part: &Json) -> Option<&Json> {
    match part.member("type") {
        Some(Json::String(name)) if **name == *IMAGE => Some(part.member(IMAGE).unwrap_or(&Json::Null)),
        _ => None,
    }
}

fn parts_of(message: &Message) -> &[Json] {
    match message.fields.get(1) {
        Some((name, Json::Array(parts))) if &**name == "content" => parts,
        _ => &[],
    }
}

/// Whether a message has a picture.
#[must_use]
pub fn has_any(message: &Message) -> bool {
    parts_of(message).iter().any(|part| reference_of(part).is_some())
}

/// Give the pictures of a row's column their places: parts without a picture of their own, and `<image>` in texts.
///
/// # Errors
/// [`RowError`] where there are more places than pictures, or fewer.
pub fn attach(messages: &mut [Message], pictures: &[Json], path: &str) -> Result<(), RowError> {
    const TAG: &str = "<image>";
    let mut waiting = pictures.iter();
    let mut places = 0;
    let mut next = || {
        places += 1;
        waiting.next().cloned().unwrap_or_default()
    };
    for message in messages.iter_mut() {
        let Some((name, content)) = message.fields.get_mut(1) else { continue };
        if &**name != "content" {
            continue;
        }
        match content {
            Json::String(text) if !pictures.is_empty() && text.contains(TAG) => {
                let mut parts = vec![];
                for (index, piece) in text.split(TAG).enumerate() {
                    if index > 0 {
                        parts.push(part(next()));
                    }
                    if !piece.is_empty() {
                        parts.push(text_part(piece));
                    }
                }
                message.pieces.clear();
                *content = Json::Array(parts);
            }
            Json::Array(parts) => {
                for one in parts.iter_mut() {
                    if reference_of(one) == Some(&Json::Null) {
                        *one = part(next());
                    }
                }
            }
            _ => {}
        }
    }
    if places == pictures.len() {
        return Ok(());
    }
    let message = if pictures.is_empty() {
        format!("{places} picture parts name no picture; give each one, or the row a column images")
    } else {
        format!(
            "the row has {} pictures and {places} places for them; write <image> once for each where it belongs",
            pictures.len()
        )
    };
    Err(RowError { reason: "media_tags", column: None, path: path.to_owned(), message })
}

/// A part of a content that is a text.
#[must_use]
pub fn text_part(text: &str) -> Json {
    Json::Object(vec![("type".into(), Json::String("text".into())), ("text".into(), Json::String(text.into()))])
}

impl Media {
    /// A family from its JSON, and the folders whose files may be read.
    ///
    /// # Errors
    /// `Error::Config` for JSON that is no family.
    pub fn new(family: &str, roots: Roots) -> Result<Self, Error> {
        let family =
            serde_json::from_str(family).map_err(|why| Error::Config { message: format!("media: {why}").into() })?;
        Ok(Self { family, roots })
    }

    /// Take the pictures out of a row's messages, which keep their places, and look at each.
    ///
    /// # Errors
    /// [`RowError`] for a picture that cannot be used, and for text that only a picture may write.
    pub fn take(&self, messages: &mut [Message], folder: Option<&str>) -> Result<Vec<Item>, RowError> {
        let mut items = vec![];
        let number = messages.iter().flat_map(parts_of).filter(|part| reference_of(part).is_some()).count();
        if number == 0 {
            return Ok(items);
        }
        for (index, message) in messages.iter_mut().enumerate() {
            for (name, value) in &message.fields {
                if &**name != "role" {
                    self.refuse_marks(value, index)?;
                }
            }
            let Some((_, Json::Array(parts))) = message.fields.get_mut(1) else { continue };
            for (at, part) in parts.iter_mut().enumerate() {
                let Some(reference) = reference_of(part) else { continue };
                let fault = |mut fault: RowError| {
                    fault.path = format!("$.messages[{index}].content[{at}]");
                    fault
                };
                items.push(self.look(reference, folder, number).map_err(fault)?);
                *part = Json::Object(vec![("type".into(), Json::String(IMAGE.into()))]);
            }
        }
        Ok(items)
    }

    fn look(&self, reference: &Json, folder: Option<&str>, number: usize) -> Result<Item, RowError> {
        let Source { reference, folder, bytes } = self.roots.open(reference, folder)?;
        let header = header::read(&bytes)?;
        let (height, width) = header.upright();
        let plan = self.family.rule.plan(height as usize, width as usize, number)?;
        let digest = *blake3::hash(&bytes).as_bytes();
        let content = reference.is_none().then_some(bytes);
        Ok(Item { reference, folder, content, digest, header, plan })
    }

    /// A text that says what only a picture may would take its place.
    fn refuse_marks(&self, value: &Json, message: usize) -> Result<(), RowError> {
        match value {
            Json::String(text) => {
                let family = &self.family;
                let own = [&family.placeholder, &family.feature];
                match own.into_iter().chain(&family.marks).find(|mark| text.contains(&***mark)) {
                    None => Ok(()),
                    Some(mark) => Err(RowError {
                        reason: "media_token_in_text",
                        column: None,
                        path: format!("$.messages[{message}]"),
                        message: format!("the text says {mark}, which stands for a picture; remove it"),
                    }),
                }
            }
            Json::Array(parts) => {
                let texts = parts.iter().filter(|part| reference_of(part).is_none());
                texts.filter_map(|part| part.member("text")).try_for_each(|text| self.refuse_marks(text, message))
            }
            _ => Ok(()),
        }
    }
}
