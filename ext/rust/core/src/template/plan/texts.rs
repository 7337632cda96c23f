//! Texts that a rendering makes, kept until its end: a plan's registers borrow them.
use std::cell::OnceCell;
use std::rc::Rc;

/// Most bytes that a rendering may keep; one that makes more is interpreted, which drops what it no longer needs.
const MAX_BYTES: usize = 16 << 20;

/// A list that only grows, so that what is in it can be borrowed while more is added.
#[derive(Debug, Default)]
pub(in super::super) struct Texts(OnceCell<Box<Node>>);

#[derive(Debug)]
struct Node {
    text: Rc<str>,
    next: Texts,
}

impl Drop for Texts {
    /// One after the other: a long list would drop itself by recursion.
    fn drop(&mut self) {
        let mut rest = self.0.take();
        while let Some(mut node) = rest {
            rest = node.next.0.take();
        }
    }
}

/// The end of a list of texts.
#[derive(Debug)]
pub(super) struct End<'a> {
    last: &'a Texts,
    bytes: usize,
}

impl<'a> End<'a> {
    pub fn of(texts: &'a Texts) -> Self {
        Self { last: texts, bytes: 0 }
    }

    /// Keep a text; none if there are too many.
    pub fn add(&mut self, text: impl Into<Rc<str>>) -> Option<&'a str> {
        let text = text.into();
        self.bytes += text.len();
        if self.bytes > MAX_BYTES {
            return None;
        }
        let node = self.last.0.get_or_init(|| Box::new(Node { text, next: Texts::default() }));
        self.last = &node.next;
        Some(&node.text)
    }
}
