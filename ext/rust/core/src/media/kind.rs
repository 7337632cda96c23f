//! What a part of a message can be beside text.
use crate::types::Json;

/// Pictures, sounds, videos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A picture.
    Image,
    /// A sound.
    Audio,
    /// Pictures one after another.
    Video,
}

impl Kind {
    /// Each of them.
    pub(crate) const ALL: [Self; 3] = [Self::Image, Self::Audio, Self::Video];

    /// Its name: the type of a part, and the member of the part that says where it is.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Video => "video",
        }
    }

    /// Its place in a text.
    #[must_use]
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::Image => "<image>",
            Self::Audio => "<audio>",
            Self::Video => "<video>",
        }
    }

    /// What messages call it.
    #[must_use]
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Image => "picture",
            Self::Audio => "sound",
            Self::Video => "video",
        }
    }

    /// The kind of a part, by the type that OpenAI, Anthropic and Hugging Face give it.
    #[must_use]
    pub(crate) fn of_part(part_type: &str) -> Option<Self> {
        match part_type {
            "image" | "image_url" | "input_image" => Some(Self::Image),
            "audio" | "audio_url" | "input_audio" => Some(Self::Audio),
            "video" | "video_url" => Some(Self::Video),
            _ => None,
        }
    }
}

/// Which kinds a model reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds([bool; 3]);

impl Kinds {
    /// Those of a list.
    #[must_use]
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        let mut found = [false; 3];
        kinds.into_iter().for_each(|kind| found[kind as usize] = true);
        Self(found)
    }

    /// Whether `kind` is among them.
    #[must_use]
    pub fn has(self, kind: Kind) -> bool {
        self.0[kind as usize]
    }
}

/// A part of a content that is of `kind`.
#[must_use]
pub(crate) fn part(kind: Kind, reference: Json) -> Json {
    let name = kind.name();
    Json::Object(vec![("type".into(), Json::String(name.into())), (name.into(), reference)])
}

/// What a part is, and what it says of where that is: none for other parts.
#[must_use]
pub(crate) fn reference_of(part: &Json) -> Option<(Kind, &Json)> {
    let Some(Json::String(name)) = part.member("type") else { return None };
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == &**name)?;
    Some((kind, part.member(kind.name()).unwrap_or(&Json::Null)))
}
