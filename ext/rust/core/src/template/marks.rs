//! What is noted about the output while it is written: which message wrote a stretch of it, which stretch the
//! template calls generated, and which is the generation prompt.
use std::rc::Rc;

/// What a stretch of output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MarkKind {
    /// Written while this message was the innermost loop's subject.
    Message(usize),
    /// Inside `{% generation %}`.
    Generation,
    /// Written by `{% if add_generation_prompt %}`.
    Prompt,
}

/// A stretch of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub kind: MarkKind,
    pub start: usize,
    pub end: usize,
    /// From here to `end` every byte is the template's own words or a special token.
    pub literal_from: usize,
}

/// Output taken aside by a macro or a `set` block, with the marks it holds.
#[derive(Debug)]
pub(super) struct Captured {
    pub text: Rc<str>,
    pub marks: Vec<Mark>,
}

/// One output buffer.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub text: String,
    pub marks: Vec<Mark>,
    /// End of the last byte that came from data.
    pub data_end: usize,
}

/// A message whose turn is being written.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenTurn {
    pub message: usize,
    /// Number of captures around it.
    pub buffer: usize,
    /// Start of the stretch not yet marked.
    pub start: usize,
    /// `data_end` of the buffer when the turn was opened.
    pub data_end: usize,
}
