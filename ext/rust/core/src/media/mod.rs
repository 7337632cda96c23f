//! Pictures, sounds and videos in rows: what they are, how many tokens they become, and where these lie.
//!
//! Nothing is decoded here. The first bytes of a file say how large or long it is, the family's rule says what becomes of
//! that, and a digest says which file it was. Pixels and spectra are made where they are used.
pub(crate) mod boxes;
pub(crate) mod column;
pub(crate) mod expand;
pub(crate) mod header;
pub(crate) mod kind;
pub(crate) mod rule;
pub(crate) mod sound;
pub mod source;

use crate::error::{Error, RowError};
use crate::types::{Json, Message};
use boxes::BoxMarks;
use header::Header;
use kind::{Kind, Kinds, part, reference_of};
use rule::{FeaturePlan, Rule, Subject};
use serde::Deserialize;
use sound::Sound;
use source::{MediaFile, Roots};

/// How a family of models writes pictures, sounds and videos, from the model's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// What messages call it.
    pub name: Box<str>,
    /// Tokens beside placeholders and features that only media may write.
    #[serde(default)]
    pub marks: Vec<Box<str>>,
    /// What it reads of pictures; none for a model that reads none.
    #[serde(default)]
    pub(crate) image: Option<Writing>,
    /// Of sounds.
    #[serde(default)]
    pub(crate) audio: Option<Writing>,
    /// Of videos.
    #[serde(default)]
    pub(crate) video: Option<Writing>,
    /// How it writes objects of pictures.
    #[serde(default)]
    pub(crate) boxes: Option<BoxMarks>,
}

impl Family {
    /// How one kind is written; none for a kind that the family does not read.
    #[must_use]
    pub(crate) fn writing(&self, kind: Kind) -> Option<&Writing> {
        match kind {
            Kind::Image => self.image.as_ref(),
            Kind::Audio => self.audio.as_ref(),
            Kind::Video => self.video.as_ref(),
        }
    }

    /// The kinds that the family reads, and how each is written.
    pub(crate) fn writings(&self) -> impl Iterator<Item = (Kind, &Writing)> {
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, self.writing(kind)?)))
    }
}

/// How one kind is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Writing {
    /// What the chat template writes for one.
    pub(crate) placeholder: Box<str>,
    /// The token that stands for one feature.
    pub(crate) feature: Box<str>,
    /// What is put before and after the features of a picture.
    #[serde(default)]
    pub(crate) before: Box<str>,
    /// See `before`.
    #[serde(default)]
    pub(crate) after: Box<str>,
    /// Marks around the tiles of a picture, where each has its own.
    #[serde(default)]
    pub(crate) tiles: Option<TileMarks>,
    /// Marks after the rows of features of a picture, where each has its own.
    #[serde(default)]
    pub(crate) rows: Option<RowMarks>,
    /// From size to tokens.
    pub(crate) rule: Rule,
}

/// How the tiles of a picture are told apart.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TileMarks {
    /// Before each tile; `{row}` and `{column}` count from 1.
    pub(crate) tile: Box<str>,
    /// Between the tiles of a row.
    #[serde(default)]
    pub(crate) between: Box<str>,
    /// After each row of tiles.
    pub(crate) row_end: Box<str>,
    /// Before the whole picture, behind its tiles.
    pub(crate) whole: Box<str>,
    /// Before the whole picture, where it is alone.
    pub(crate) alone: Box<str>,
    /// After the whole picture.
    pub(crate) end: Box<str>,
}

/// How the rows of a picture's features are told apart.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RowMarks {
    /// After each row but the last.
    pub(crate) row_end: Box<str>,
    /// After the last.
    pub(crate) end: Box<str>,
}

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// Of a picture.
    Picture(Header),
    /// Of a sound.
    Sound(Sound),
    /// Of a video's first frame, and how many frames there are in 1,000 seconds.
    Frames(Header, u32),
}

/// A picture, sound or video of a row, looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What it is.
    pub(crate) kind: Kind,
    /// Where it lies, as the row says it, as a JSON list for frames; none where the row brings its bytes.
    pub(crate) reference: Option<Box<str>>,
    /// The folder from where a relative path counts.
    pub folder: Option<Box<str>>,
    /// Its bytes, where the row brings them.
    pub content: Option<Vec<u8>>,
    /// BLAKE3 of its bytes; of its frames' digests.
    pub digest: [u8; 32],
    /// What its first bytes say.
    pub(crate) about: About,
    /// What becomes of it.
    pub plan: FeaturePlan,
}

/// Where the tokens of a picture lie in its row.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaSpan {
    /// First token.
    pub start: i32,
    /// After the last.
    pub end: i32,
    /// How many of these tokens are features.
    pub(crate) features: i32,
    /// Which picture.
    pub item: Item,
}

/// Everything about pictures that a run needs.
#[derive(Debug, Clone)]
pub struct Media {
    /// The family.
    pub family: Family,
    /// Which files may be read.
    pub(crate) roots: Roots,
}

fn parts_of(message: &Message) -> &[Json] {
    match message.fields.get(1) {
        Some((name, Json::Array(parts))) if &**name == "content" => parts,
        _ => &[],
    }
}

/// What a row's column brings of one kind.
#[derive(Debug)]
pub(crate) struct Given {
    /// Which kind.
    pub(crate) kind: Kind,
    /// The column, as messages call it.
    pub(crate) place: String,
    /// Each.
    pub(crate) items: Vec<Json>,
}

/// Give what a row's columns bring its places: parts without an own reference, and tags in texts.
///
/// # Errors
/// [`RowError`] where there are more places than items, or fewer.
pub(crate) fn attach(messages: &mut [Message], given: &[Given]) -> Result<(), RowError> {
    let mut places = [0; 3];
    let mut next = |kind: Kind| {
        let number = places[kind as usize];
        places[kind as usize] += 1;
        let items = given.iter().find(|given| given.kind == kind).map_or(&[][..], |given| &given.items);
        items.get(number).cloned().unwrap_or_default()
    };
    for message in messages.iter_mut() {
        let Some((name, content)) = message.fields.get_mut(1) else { continue };
        if &**name != "content" {
            continue;
        }
        match content {
            Json::String(text) => {
                if let Some(parts) = tagged(text, given, &mut next) {
                    message.pieces.clear();
                    *content = Json::Array(parts);
                }
            }
            Json::Array(parts) => {
                for one in parts.iter_mut() {
                    if let Some((kind, Json::Null)) = reference_of(one) {
                        *one = part(kind, next(kind));
                    }
                }
            }
            _ => {}
        }
    }
    for kind in Kind::ALL {
        let (noun, count) = (kind.noun(), places[kind as usize]);
        let column = given.iter().find(|given| given.kind == kind);
        let number = column.map_or(0, |column| column.items.len());
        if count == number {
            continue;
        }
        let message = if number == 0 {
            format!("{count} {noun} parts name no {noun}; give each one, or the row a column {}s", kind.name())
        } else {
            let tag = kind.tag();
            format!(
                "the row has {number} {noun}s and {count} places for them; write {tag} once for each where it belongs"
            )
        };
        let path = column.map_or_else(|| "$".to_owned(), |column| column.place.clone());
        return Err(RowError::at(path, "media_tags", message));
    }
    Ok(())
}

/// A text with tags as parts; none for a text without. A tag of a kind that the row does not bring is text.
fn tagged(text: &str, given: &[Given], next: &mut impl FnMut(Kind) -> Json) -> Option<Vec<Json>> {
    let first = |from: usize| {
        let kinds = given.iter().filter(|given| !given.items.is_empty()).map(|given| given.kind);
        kinds.filter_map(|kind| Some((from + text[from..].find(kind.tag())?, kind))).min_by_key(|(at, _)| *at)
    };
    first(0)?;
    let (mut parts, mut at) = (vec![], 0);
    while let Some((place, kind)) = first(at) {
        if place > at {
            parts.push(text_part(&text[at..place]));
        }
        parts.push(part(kind, next(kind)));
        at = place + kind.tag().len();
    }
    if at < text.len() {
        parts.push(text_part(&text[at..]));
    }
    Some(parts)
}

/// A part of a content that is a text.
#[must_use]
pub(crate) fn text_part(text: &str) -> Json {
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

    /// Take pictures, sounds and videos out of a row's messages, which keep their places, and look at each.
    ///
    /// # Errors
    /// [`RowError`] for a picture that cannot be used, and for text that only a picture may write.
    pub fn take(&self, messages: &mut [Message], folder: Option<&str>) -> Result<Vec<Item>, RowError> {
        let mut items = vec![];
        let all = || messages.iter().flat_map(parts_of).filter_map(reference_of);
        if all().next().is_none() {
            boxes::write(&self.family, messages, &items)?;
            return Ok(items);
        }
        let numbers = Kind::ALL.map(|kind| all().filter(|(other, _)| *other == kind).count());
        for (index, message) in messages.iter_mut().enumerate() {
            for (name, value) in &message.fields {
                if &**name != "role" {
                    self.refuse_marks(value, index)?;
                }
            }
            let Some((_, Json::Array(parts))) = message.fields.get_mut(1) else { continue };
            for (at, part) in parts.iter_mut().enumerate() {
                let Some((kind, reference)) = reference_of(part) else { continue };
                let fault = |mut fault: RowError| {
                    fault.path = format!("$.messages[{index}].content[{at}]");
                    fault
                };
                items.push(self.look(kind, reference, folder, numbers[kind as usize]).map_err(fault)?);
                *part = Json::Object(vec![("type".into(), Json::String(kind.name().into()))]);
            }
        }
        boxes::write(&self.family, messages, &items)?;
        Ok(items)
    }

    /// The kinds that are read.
    #[must_use]
    pub fn kinds(&self) -> Kinds {
        Kinds::new(self.family.writings().map(|(kind, _)| kind))
    }

    fn look(&self, kind: Kind, reference: &Json, folder: Option<&str>, number: usize) -> Result<Item, RowError> {
        let Some(writing) = self.family.writing(kind) else {
            let message = format!("{} reads no {}; leave the part out", self.family.name, kind.noun());
            return Err(RowError::new("media", message));
        };
        if kind == Kind::Video {
            return self.look_at_frames(&writing.rule, reference, folder);
        }
        let MediaFile { reference, folder, bytes } = self.roots.open(reference, folder)?;
        let (about, subject) = if kind == Kind::Audio {
            let sound = sound::read(&bytes)?;
            (About::Sound(sound), Subject::Sound(sound.samples, sound.rate))
        } else {
            let header = header::read(&bytes)?;
            let (height, width) = header.upright();
            (About::Picture(header), Subject::Picture(height as usize, width as usize))
        };
        let plan = writing.rule.plan_of(subject, number)?;
        let digest = *blake3::hash(&bytes).as_bytes();
        let content = reference.is_none().then_some(bytes);
        Ok(Item { kind, reference, folder, content, digest, about, plan })
    }

    /// A video as the list of its frames, which are files of one size.
    fn look_at_frames(&self, rule: &Rule, reference: &Json, folder: Option<&str>) -> Result<Item, RowError> {
        let (frames, milli_fps) = frames_of(reference)?;
        let (mut digests, mut first, mut base) = (blake3::Hasher::new(), None, None);
        let mut names = vec![];
        for (index, frame) in frames.iter().enumerate() {
            let fault = |mut fault: RowError| {
                fault.message = format!("frame {}: {}", index + 1, fault.message);
                fault
            };
            let MediaFile { reference, folder, bytes } = self.roots.open(frame, folder).map_err(fault)?;
            let header = header::read(&bytes).map_err(fault)?;
            let Some(reference) = reference else {
                return Err(RowError::new("media", "the frames of a video are files; write them and give their paths"));
            };
            if *first.get_or_insert(header) != header || *base.get_or_insert(folder.clone()) != folder {
                let message = format!("frame {} has another size, form or folder than the first one", index + 1);
                return Err(RowError::new("media_size", format!("{message}; save all alike")));
            }
            digests.update(blake3::hash(&bytes).as_bytes());
            names.push(Json::String(reference));
        }
        let Some(header) = first else {
            return Err(RowError::new("media_empty", "the video has no frames; leave it out"));
        };
        let (height, width) = header.upright();
        let plan = rule.plan_of(Subject::Frames(names.len(), height as usize, width as usize), 1)?;
        let reference = Some(crate::json::to_canonical(&Json::Array(names)).into());
        let (digest, about) = (*digests.finalize().as_bytes(), About::Frames(header, milli_fps));
        Ok(Item { kind: Kind::Video, reference, folder: base.flatten(), content: None, digest, about, plan })
    }

    /// A text that says what only media may write would take their place.
    fn refuse_marks(&self, value: &Json, message: usize) -> Result<(), RowError> {
        match value {
            Json::String(text) => {
                let family = &self.family;
                let own = family.writings().flat_map(|(_, writing)| [&writing.placeholder, &writing.feature]);
                match own.chain(&family.marks).find(|mark| text.contains(&***mark)) {
                    None => Ok(()),
                    Some(mark) => Err(RowError::at(
                        format!("$.messages[{message}]"),
                        "media_token_in_text",
                        format!("the text says {mark}, which stands for a picture; remove it"),
                    )),
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

/// Frames a second of a list that does not say: what Qwen's own tools take.
const MILLI_FPS: u32 = 2000;

/// The frames of a video, and how many of them 1,000 seconds have.
fn frames_of(reference: &Json) -> Result<(&[Json], u32), RowError> {
    match reference {
        Json::Array(frames) => Ok((frames, MILLI_FPS)),
        Json::Object(_) => {
            let Some(Json::Array(frames)) = reference.member("frames") else {
                return Err(RowError::new("media", "a video is a list of frames, or an object with frames and fps"));
            };
            let fps = match reference.member("fps") {
                None | Some(Json::Null) => return Ok((frames, MILLI_FPS)),
                Some(Json::Number(number)) => number.to_string().parse::<f64>().unwrap_or(0.0),
                Some(_) => 0.0,
            };
            let milli = (fps * 1000.0).round();
            if !(1.0..=1e6).contains(&milli) {
                return Err(RowError::new("media", "fps: expected a number from 0.001 to 1000"));
            }
            Ok((frames, milli as u32))
        }
        _ => Err(RowError::new(
            "media_format",
            "a video file is not decoded; write its frames and give their list: ffmpeg -i FILE -r 2 frames/%05d.png",
        )),
    }
}
