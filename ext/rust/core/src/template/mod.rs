//! Chat templates: a model's own Jinja source, rendered as transformers' `apply_chat_template(tokenize=False)` does,
//! with the bytes that each message produced.
use crate::error::Error;
use crate::types::{Json, Message, Rendered};

/// What the tokenizer tells a template.
#[derive(Debug, Clone, Default)]
pub struct SpecialTexts {
    /// `special_tokens_map`: names and texts given to the template (`bos_token`, `eos_token`, ...).
    pub named: Vec<(Box<str>, Box<str>)>,
    /// Texts of all special and added tokens, for finding the token that closes a turn.
    pub tokens: Vec<Box<str>>,
}

/// A point in time for templates that print the date (`strftime_now`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    /// Calendar year.
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

/// How a template may run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What errors call the template (a path or model name).
    pub name: Box<str>,
    /// What `strftime_now` prints (at midnight); none: the day on which the template was compiled.
    pub date: Option<Date>,
    /// Most bytes a rendering may have.
    pub max_output: usize,
    /// Most steps a rendering may take, on top of some for each byte of input.
    pub fuel: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: "chat template".into(), date: None, max_output: 64 << 20, fuel: 5_000_000 }
    }
}

/// A compiled chat template. Compile once, render from any thread.
#[derive(Debug)]
pub struct Template {}

impl Template {
    /// Compile `source`. Anything that cannot be rendered exactly as Jinja2 would is an error here or in `render`.
    ///
    /// # Errors
    /// `Error::Template` with the line of a syntax error or of an unsupported construct.
    pub fn new(source: &str, specials: &SpecialTexts, options: Options) -> Result<Self, Error> {
        let _ = (source, specials, options);
        Err(Error::Template { place: "".into(), message: "templates are not built yet".into() })
    }

    /// Render a conversation and say which bytes each message produced.
    ///
    /// # Errors
    /// `Error::Template` where transformers would raise, where the row's turns cannot be located for certain, and
    /// where a limit is exceeded.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        kwargs: &[(Box<str>, Json)],
        add_generation_prompt: bool,
    ) -> Result<Rendered, Error> {
        let _ = (messages, tools, kwargs, add_generation_prompt);
        Err(Error::Template { place: "".into(), message: "templates are not built yet".into() })
    }

    /// The date the template prints, if it prints one: part of what makes a rendering reproducible.
    #[must_use]
    pub fn date(&self) -> Option<Date> {
        None
    }
}
