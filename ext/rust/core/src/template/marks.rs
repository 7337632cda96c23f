//! What is noted about the output while it is written: which message wrote a stretch of it, which stretch the
//! template calls generated, and which is the generation prompt.
use std::rc::Rc;

use super::source::{FROM_ASSISTANT, MIXED, REASONING, joint_source, message_index};

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
    /// The message in whose turn it was written, where that is another one.
    pub inside: Option<usize>,
}

/// Output taken aside by a macro or a `set` block, with the marks it holds.
#[derive(Debug)]
pub(super) struct Captured {
    pub text: Rc<str>,
    pub marks: Vec<Mark>,
    /// Whose words it holds.
    pub sources: Vec<u32>,
}

impl Captured {
    /// Whose words the text holds, as one source.
    pub fn joint_source(&self) -> u32 {
        self.sources.iter().copied().fold(0, joint_source)
    }
}

/// Written words of a message: its content, its reasoning.
pub(super) const SAID: u8 = 1;
pub(super) const REASONED: u8 = 2;

/// One output buffer.
#[derive(Debug, Default)]
struct Output {
    text: String,
    marks: Vec<Mark>,
    /// End of the last byte that came from data.
    data_end: usize,
    /// Whose words were captured.
    sources: Vec<u32>,
}

/// A message whose turn is being written.
#[derive(Debug, Clone, Copy)]
struct OpenTurn {
    message: usize,
    /// Number of captures around it.
    buffer: usize,
    /// Start of the stretch not yet marked.
    start: usize,
}

/// A rendering and the notes about it.
#[derive(Debug, PartialEq)]
pub(super) struct Written {
    pub text: String,
    pub marks: Vec<Mark>,
    /// Messages of the model whose words were printed while another message had its turn, or none.
    pub strays: Vec<usize>,
    /// Captured blocks with marks were not printed, or printed twice.
    pub lost_marks: bool,
    /// What of each message's words was printed for certain: `SAID`, `REASONED`.
    pub words: Vec<u8>,
}

/// Writes, and notes who does.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: Output,
    max_output: usize,
    /// Outputs set aside while a block is captured.
    suspended: Vec<Output>,
    turns: Vec<OpenTurn>,
    strays: Vec<usize>,
    words: Vec<u8>,
    /// Captured blocks with marks: those made less those printed. Not zero: marks were lost or doubled.
    captured_marks: i64,
}

impl Writer {
    /// `bytes`: how much will probably be written.
    pub fn new(max_output: usize, bytes: usize, num_messages: usize) -> Self {
        let text = String::with_capacity(bytes.min(max_output));
        let out = Output { text, marks: Vec::with_capacity(2 * num_messages + 1), ..Output::default() };
        Self { out, max_output, words: vec![0; num_messages], ..Self::default() }
    }

    pub fn finish(self) -> Written {
        Written {
            text: self.out.text,
            marks: self.out.marks,
            strays: self.strays,
            lost_marks: self.captured_marks != 0,
            words: self.words,
        }
    }

    /// Where the next byte goes.
    #[inline]
    pub fn at(&self) -> usize {
        self.out.text.len()
    }

    pub fn max_output(&self) -> usize {
        self.max_output
    }

    /// Captured blocks that are open.
    pub fn num_captures(&self) -> usize {
        self.suspended.len()
    }

    /// How many turns are open.
    pub fn num_turns(&self) -> usize {
        self.turns.len()
    }

    pub fn open_turn(&mut self, message: usize) {
        let (start, data_end) = (self.out.text.len(), self.out.data_end);
        self.interrupt(start, data_end);
        self.turns.push(OpenTurn { message, buffer: self.suspended.len(), start });
    }

    /// The turn that is open is cut at `at`; data ended at `data_end` before.
    fn interrupt(&mut self, at: usize, data_end: usize) {
        let around = self.turns.len().checked_sub(2).map(|index| self.turns[index].message);
        let buffer = self.suspended.len();
        let Some(turn) = self.turns.last_mut().filter(|turn| turn.buffer == buffer && turn.start < at) else { return };
        let literal_from = data_end.clamp(turn.start, at);
        let kind = MarkKind::Message(turn.message);
        self.out.marks.push(Mark { kind, start: turn.start, end: at, literal_from, inside: around });
        turn.start = at;
    }

    /// The turn that is open goes on at `at`.
    fn resume(&mut self, at: usize) {
        let buffer = self.suspended.len();
        if let Some(turn) = self.turns.last_mut().filter(|turn| turn.buffer == buffer) {
            turn.start = at;
        }
    }

    /// `set message = messages[i]` inside a loop over `i`: from here on the iteration writes for that message.
    pub fn open_indexed_turn(&mut self, number: u32) {
        if let Some(message) = message_index(number)
            && self.turns.last().is_none_or(|open| open.message != message)
        {
            self.open_turn(message);
        }
    }

    /// Close turns until `keep` are left.
    #[inline]
    pub fn close_turns(&mut self, keep: usize) {
        while self.turns.len() > keep {
            let (end, data_end) = (self.out.text.len(), self.out.data_end);
            self.interrupt(end, data_end);
            self.turns.pop();
            self.resume(end);
        }
    }

    /// Note a stretch of a captured block; the turn around it is cut in two.
    fn record(&mut self, mut mark: Mark, data_end: usize) {
        self.interrupt(mark.start, data_end);
        mark.inside = mark.inside.or(self.turns.last().map(|turn| turn.message));
        self.out.marks.push(mark);
        self.resume(mark.end);
    }

    /// What was written since `start` is the generation prompt.
    pub fn mark_prompt(&mut self, start: usize) {
        let end = self.out.text.len();
        self.out.marks.push(Mark { kind: MarkKind::Prompt, start, end, literal_from: start, inside: None });
    }

    /// What was written since `start` is what the template calls generated.
    pub fn mark_generation(&mut self, start: usize) {
        let end = self.out.text.len();
        let literal_from = self.out.data_end.clamp(start, end);
        self.out.marks.push(Mark { kind: MarkKind::Generation, start, end, literal_from, inside: None });
    }

    /// Write text whose last `literal` bytes are the template's own; false if there would be too much.
    #[inline]
    #[must_use]
    pub fn write(&mut self, text: &str, literal: usize) -> bool {
        if self.out.text.len() + text.len() > self.max_output {
            return false;
        }
        self.out.text.push_str(text);
        if literal < text.len() {
            self.out.data_end = self.out.text.len() - literal;
        }
        true
    }

    /// `words` of the message numbered `source` are about to be written.
    #[inline]
    pub fn note_words(&mut self, words: &str, source: u32) {
        let Some(message) = message_index(source).filter(|_| !words.is_empty()) else { return };
        if source & FROM_ASSISTANT != 0 && self.turns.last().is_none_or(|turn| turn.message != message) {
            self.strays.push(message);
        }
        self.note_source(message, source);
    }

    /// Words of `source` are printed, or captured to be printed.
    #[inline]
    fn note_source(&mut self, message: usize, source: u32) {
        if !self.suspended.is_empty() {
            self.out.sources.push(source);
        } else if let Some(words) = self.words.get_mut(message).filter(|_| source & MIXED == 0) {
            *words |= if source & REASONING == 0 { SAID } else { REASONED };
        }
    }

    /// The marks of a captured block that was written from `at` on; data ended at `data_end` before.
    pub fn repeat_marks(&mut self, captured: &Captured, at: usize, data_end: usize) {
        self.captured_marks -= 1;
        for &source in &captured.sources {
            if let Some(message) = message_index(source) {
                self.note_source(message, source);
            }
        }
        for mark in &captured.marks {
            let (start, end) = (mark.start + at, mark.end + at);
            let moved = Mark { start, end, literal_from: mark.literal_from + at, ..*mark };
            match mark.kind {
                MarkKind::Message(_) => self.record(moved, data_end),
                _ => self.out.marks.push(moved),
            }
        }
    }

    /// End of the last byte that came from data.
    pub fn data_end(&self) -> usize {
        self.out.data_end
    }

    /// Start to set output aside.
    pub fn begin_capture(&mut self) {
        let outer = std::mem::take(&mut self.out);
        self.suspended.push(outer);
    }

    /// What was written since `begin_capture`, and how many bytes at its end are the template's own.
    pub fn end_capture(&mut self) -> (Captured, u32) {
        let outer = self.suspended.pop().unwrap_or_default();
        let inner = std::mem::replace(&mut self.out, outer);
        let literal_tail = (inner.text.len() - inner.data_end.min(inner.text.len())) as u32;
        self.captured_marks += i64::from(!inner.marks.is_empty());
        (Captured { text: inner.text.into(), marks: inner.marks, sources: inner.sources }, literal_tail)
    }
}
