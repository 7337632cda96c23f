//! The parts that turn rows into tokens, put together once for a run.
use crate::encode::options::{EncodeOptions, Templates};
use crate::encode::seams::Segments;
use crate::encode::truncate::Truncation;
use crate::error::Error;
use crate::media::{self, Media};
use crate::template::{Date, Template};
use crate::tokenizer::engine::Engine;
use crate::tokenizer::escape::Escape;
use crate::tokenizer::special::SpecialMatcher;
use crate::tokenizer::vocabulary::Vocabulary;
use crate::weigh::sequence::Weigher;
use crate::weigh::{Semantics, Spec};

/// Everything that turns a conversation into tokens; shared by threads.
pub struct Encoder {
    pub(super) engine: Box<dyn Engine>,
    pub(super) weigher: Weigher,
    pub(super) templates: Templates,
    pub(super) options: EncodeOptions,
    pub(super) specials: SpecialMatcher,
    pub(super) escape: Option<Escape>,
    pub(super) media: Option<Media>,
    /// The ids of the family's features, by kind; -1 for what it does not read.
    pub(super) features: [i32; 3],
}

impl Encoder {
    /// Put the parts together.
    ///
    /// # Errors
    /// `Error::Config` for options that contradict each other.
    pub fn new(
        engine: Box<dyn Engine>,
        vocabulary: Vocabulary,
        templates: Templates,
        spec: Spec,
        options: EncodeOptions,
    ) -> Result<Self, Error> {
        if options.segments == Segments::MsSwift && spec.semantics != Semantics::MsSwift {
            let message = "segments ms-swift cuts where ms-swift's weights change; set loss_rules to ms-swift too";
            return Err(Error::Config { message: message.into() });
        }
        if options.max_length == Some(0) {
            return Err(Error::Config { message: "max_length is 0, expected at least 1".into() });
        }
        let specials = SpecialMatcher::of_texts(vocabulary.specials.iter().map(|text| &**text));
        let weigher = Weigher::new(spec, vocabulary);
        Ok(Self { engine, weigher, templates, options, specials, escape: None, media: None, features: [-1; 3] })
    }

    /// Encode special tokens in messages as text.
    ///
    /// # Errors
    /// `Error::Config` for a tokenizer where a stretch of text cannot stand alone.
    pub fn with_escape(mut self, escape: Escape) -> Result<Self, Error> {
        if self.vocabulary().opens_with_space() {
            let message = "special_text: escape does not work with a tokenizer that puts a space before the first \
                           text only; use drop or error";
            return Err(Error::Config { message: message.into() });
        }
        self.escape = Some(escape);
        Ok(self)
    }

    /// Read pictures.
    ///
    /// # Errors
    /// `Error::Config` where the tokenizer does not know the family's token, as the engine.
    pub fn with_media(mut self, media: Media) -> Result<Self, Error> {
        for (kind, writing) in media.family.writings() {
            let mut ids = vec![];
            self.engine.encode_ids(&writing.feature, &mut ids)?;
            let [feature] = ids[..] else {
                let message = format!("{}: the tokenizer has no token {}", media.family.name, writing.feature);
                return Err(Error::Config { message: message.into() });
            };
            self.features[kind as usize] = feature;
        }
        self.media = Some(media);
        Ok(self)
    }

    /// Which of pictures, sounds and videos are read.
    #[must_use]
    pub fn kinds(&self) -> media::kind::Kinds {
        self.media.as_ref().map(Media::kinds).unwrap_or_default()
    }

    /// What happens to rows that are too long.
    pub(super) fn truncation(&self) -> Truncation {
        self.options.truncation
    }

    /// Whether pictures are read.
    #[must_use]
    pub fn reads_media(&self) -> bool {
        self.media.is_some()
    }

    /// Tables of the vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        self.weigher.vocabulary()
    }

    /// The date the templates print, if they print one.
    #[must_use]
    pub fn date(&self) -> Option<Date> {
        let templates = [&self.templates.default, &self.templates.with_tools];
        templates.into_iter().flatten().find_map(Template::date)
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// What weighs its rows.
    #[must_use]
    pub fn weigher(&self) -> &Weigher {
        &self.weigher
    }

    pub(super) fn spec(&self) -> &Spec {
        self.weigher.spec()
    }
}
