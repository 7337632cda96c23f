//! Where a fault is in a JSON text: its column, and its path, which is put together only when there is one.
use super::{parse_text, write};
use crate::error::RowError;
use std::str::Utf8Error;

/// Steps of a path that are written; of a deeper one the middle is left out.
const MAX_PATH: usize = 16;

pub(super) fn utf8_error(bytes: &[u8], fault: Utf8Error) -> RowError {
    let valid = fault.valid_up_to();
    // The readable part ends inside the value at fault, so reading it gives the path.
    let path = match std::str::from_utf8(&bytes[..valid]).map(parse_text) {
        Ok(Err(fault)) => fault.path,
        _ => String::from("$"),
    };
    let (reason, message) = if fault.error_len().is_none() {
        ("truncated", "the text ends inside a UTF-8 character".to_owned())
    } else if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        ("utf8", "the text is UTF-16; convert the file, for example with `iconv -f utf-16 -t utf-8`".to_owned())
    } else {
        let byte = bytes[valid];
        ("utf8", format!("byte 0x{byte:02x} is not UTF-8; convert the file, for example with `iconv -t utf-8`"))
    };
    RowError { reason, column: Some(valid + 1), path, message }
}

/// One step of a JSON path, gathered from the inside out while an error travels up.
pub(super) enum Step {
    Key(Box<str>),
    Index(usize),
}

/// Boxed, so that the many good results stay small.
pub(super) struct Fault(pub(super) Box<FaultParts>);

pub(super) struct FaultParts {
    pub(crate) reason: &'static str,
    pub(crate) at: usize,
    pub(crate) message: String,
    pub(crate) steps: Vec<Step>,
}

impl Fault {
    pub(super) fn inside(mut self, step: Step) -> Self {
        self.0.steps.push(step);
        self
    }

    pub(super) fn into_error(self) -> RowError {
        let mut path = String::from("$");
        let depth = self.0.steps.len();
        for (index, step) in self.0.steps.iter().rev().enumerate() {
            if depth > MAX_PATH && (MAX_PATH / 2..depth - MAX_PATH / 2).contains(&index) {
                if index == MAX_PATH / 2 {
                    path.push_str("...");
                }
                continue;
            }
            match step {
                Step::Key(key) => push_key(&mut path, key),
                Step::Index(index) => push_index(&mut path, *index),
            }
        }
        RowError { reason: self.0.reason, column: Some(self.0.at + 1), path, message: self.0.message }
    }
}

/// Extend a JSON path by a member: `.name`, or `["odd name"]`.
pub(crate) fn push_key(path: &mut String, key: &str) {
    let plain = key.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    if plain {
        path.push('.');
        path.push_str(key);
    } else {
        path.push('[');
        write::append_string(path, &shortened(key), false);
        path.push(']');
    }
}

/// Extend a JSON path by a list index: `[3]`.
pub(crate) fn push_index(path: &mut String, index: usize) {
    path.push('[');
    path.push_str(&index.to_string());
    path.push(']');
}

/// At most 40 characters of `text`, for messages.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
