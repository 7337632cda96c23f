//! What people say of encoding: the options of a run, and the templates of its model.
use crate::agents::AgentFormat;
use crate::encode::seams::Segments;
use crate::encode::thinking::Thinking;
use crate::encode::truncate::Truncation;
use crate::error::choices;
use crate::template::Template;
use crate::tokenizer::vocabulary::Vocabulary;
use crate::types::Json;

/// What to do with text in a message that looks like a special token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpecialText {
    /// Encode it as transformers does: as the special token. It is counted.
    #[default]
    Keep,
    /// Leave the row out.
    Drop,
    /// Refuse the row.
    Error,
    /// Encode it as the text it is; see [`crate::tokenizer::escape`].
    Escape,
}

choices! { SpecialText, "special_text", "keep" => Keep, "escape" => Escape, "drop" => Drop, "error" => Error }

/// What to do with a row of which the template writes a part not at all: a text, a call, a tool definition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnUnwritten {
    /// Refuse the row.
    #[default]
    Error,
    /// Train on what is written. The parts are counted.
    Allow,
}

choices! { OnUnwritten, "unwritten", "error" => Error, "allow" => Allow }

/// How conversations become tokens.
#[derive(Debug, Clone, Default)]
pub struct EncodeOptions {
    /// Where the text is cut before encoding.
    pub segments: Segments,
    /// Longest row in tokens.
    pub max_length: Option<usize>,
    /// What happens to longer ones.
    pub truncation: Truncation,
    /// Text that looks like a special token.
    pub special_text: SpecialText,
    /// Parts of a row that the template does not write.
    pub unwritten: OnUnwritten,
    /// Changes to thinking.
    pub thinking: Thinking,
    /// System message of conversations without one.
    pub system: Option<Box<str>>,
    /// Template arguments; those of the row win.
    pub template_kwargs: Vec<(Box<str>, Json)>,
}

/// The chat templates of a model.
#[derive(Debug, Default)]
pub struct Templates {
    /// For conversations; none: only text rows can be encoded.
    pub default: Option<Template>,
    /// For conversations with tools, when the model has another one for them.
    pub with_tools: Option<Template>,
    /// What writes tools and calls into the messages before a template sees them.
    pub agent: Option<AgentFormat>,
}

impl Templates {
    /// The source of a template that writes texts one after the other, answers with the end of sequence: how a model
    /// without a chat template is prompted.
    #[must_use]
    pub fn plain(vocabulary: &Vocabulary) -> String {
        let has_bos = vocabulary.bos.is_some_and(|bos| vocabulary.text_prefix == [bos]);
        let bos = if has_bos { "{{ bos_token }}" } else { "" };
        let text = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\
                    {% endfor %}{% if add_generation_prompt %}{% endif %}";
        format!("{bos}{text}")
    }
}
