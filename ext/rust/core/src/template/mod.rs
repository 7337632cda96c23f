//! Chat templates: a model's own Jinja source, rendered as transformers' `apply_chat_template(tokenize=False)` does,
//! with the bytes that each message produced.
//!
//! The engine is our own. What it supports it does as Jinja2 on Python does (scopes, printing, operators, methods);
//! what it does not support is an error, never another text. It borrows strings from the row instead of converting
//! it, and notes while it writes who writes: which message a loop is at, which bytes are the template's own words,
//! which come from `{% generation %}` or from the generation prompt. `turns` makes masks of these notes.
//! `docs/masks.md` gives the rules.
mod args;
mod ast;
mod clean;
mod content;
mod date;
mod eval;
mod filters;
mod form;
mod format;
mod fuel;
mod interp;
mod is_tests;
mod lexer;
mod marks;
mod methods;
mod names;
mod number;
mod ops;
mod parse;
mod parse_expr;
mod plan;
mod print;
mod printable;
mod probe;
mod prompt;
mod render;
mod row;
mod scope;
mod sequences;
mod source;
mod text;
mod text_filters;
mod turns;
mod value;

#[cfg(test)]
mod tests;

use std::collections::HashSet;

pub use date::Date;

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
    /// Of this many renderings by the template's plan one is made again by the interpreter, and compared.
    pub check_every: u64,
    /// Hand messages over as they are, as transformers does, also to a template that does not read this form: content as
    /// text where it goes through parts, arguments as an object where it joins them to text.
    pub as_given: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "chat template".into(),
            date: None,
            max_output: 64 << 20,
            fuel: 5_000_000,
            check_every: 1024,
            as_given: false,
        }
    }
}

/// Why a rendering stopped. Boxed: the happy path should not carry it.
#[derive(Debug)]
struct Fail(Box<(String, u32)>);

impl Fail {
    fn new(message: impl Into<String>) -> Self {
        Self(Box::new((message.into(), 0)))
    }

    fn line(&self) -> u32 {
        self.0.1
    }
}

type Outcome<T> = Result<T, Fail>;

fn fail<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Fail::new(message))
}

fn undefined<T>(name: &str) -> Outcome<T> {
    fail(format!("'{name}' is undefined"))
}

/// A compiled chat template. Compile once, render from any thread.
#[derive(Debug)]
pub struct Template {
    body: Vec<ast::Stmt>,
    layout: scope::Layout,
    given: Vec<(usize, row::Given)>,
    specials: SpecialTexts,
    closers: turns::Closers,
    options: Options,
    date: Date,
    prompt: clean::PromptRule,
    prompts: prompt::PromptCache,
    plan: Option<plan::Plan>,
    checks: plan::Checks,
    form: form::Form,
}

impl Template {
    /// Compile `source`. Anything that cannot be rendered exactly as Jinja2 would is an error here or in `render`.
    ///
    /// # Errors
    /// `Error::Template` with the line of a syntax error or of an unsupported construct, `Error::Config` for a date
    /// that does not exist.
    pub fn new(source: &str, specials: &SpecialTexts, options: Options) -> Result<Self, Error> {
        let date = options.date.unwrap_or_else(Date::today);
        if !date.is_valid() {
            let message = format!("the date {}-{}-{} does not exist", date.year, date.month, date.day);
            return Err(Error::Config { message: message.into() });
        }
        let mut body = parse::parse(source).map_err(|error| match error {
            Error::Template { place, message } => {
                Error::Template { place: format!("{}, {place}", options.name).into(), message }
            }
            other => other,
        })?;
        let layout = scope::resolve(&mut body);
        let prompt = clean::prompt_rule(&body, &layout);
        let closers = turns::Closers::new(specials);
        let given = row::given(&layout.outside, specials);
        let prompts = prompt::PromptCache::default();
        let plan = plan::plan(&body, &layout, date);
        let (specials, checks) = (specials.clone(), plan::Checks::default());
        let form = form::Form::default();
        let mut made =
            Self { body, layout, given, specials, closers, options, date, prompt, prompts, plan, checks, form };
        if !made.options.as_given {
            made.form = made.probe(source);
        }
        Ok(made)
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
        let row = self.row(messages, tools, kwargs);
        let written = self.write(&row, messages.len(), add_generation_prompt)?;
        let turns = turns::locate(self, &row, &written)?;
        let unwritten = self.unwritten(&row, &written, add_generation_prompt)?;
        Ok(Rendered { text: written.text, turns, unwritten })
    }

    /// Render a conversation up to the answer that is due. Nobody asks for its turns.
    ///
    /// # Errors
    /// As [`Template::render_text`].
    pub fn render_prompt(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        kwargs: &[(Box<str>, Json)],
    ) -> Result<Rendered, Error> {
        let row = self.row(messages, tools, kwargs);
        let written = self.write(&row, messages.len(), true)?;
        let unwritten = self.unwritten(&row, &written, true)?;
        Ok(Rendered { text: written.text, turns: vec![], unwritten })
    }

    /// Render a conversation where nobody asks for its turns.
    ///
    /// # Errors
    /// `Error::Template` where transformers would raise, and where a limit is exceeded.
    pub fn render_text(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        kwargs: &[(Box<str>, Json)],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let row = self.row(messages, tools, kwargs);
        Ok(self.write(&row, messages.len(), add_generation_prompt)?.text)
    }

    /// What errors call the template.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// How many renderings were made by the template's plan.
    #[must_use]
    pub fn num_planned(&self) -> u64 {
        self.checks.count()
    }

    /// The date the template prints, if it prints one: part of what makes a rendering reproducible.
    #[must_use]
    pub fn date(&self) -> Option<Date> {
        self.layout.names_strftime.then_some(self.date)
    }

    /// The variables a row may set: what `chat_template_kwargs` can change.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        let given: HashSet<&str> = self.specials.named.iter().map(|(name, _)| &**name).collect();
        self.layout
            .outside
            .iter()
            .map(|name| &**name)
            .filter(move |name| !given.contains(name) && !row::is_builtin(name))
    }

    fn error(&self, place: &str, message: impl Into<Box<str>>) -> Error {
        let place =
            if place.is_empty() { self.options.name.clone() } else { format!("{}, {place}", self.options.name).into() };
        Error::Template { place, message: message.into() }
    }
}
