//! The one error of the crate: what went wrong, where, and what to do about it, in one lower-case line.
use std::fmt;

/// Every way the data path can refuse its input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A row or file breaks a rule of its format. `place` is `file:line` or a JSON path.
    Data {
        /// Where.
        place: Box<str>,
        /// Value, rule, remedy.
        message: Box<str>,
    },
    /// A chat template cannot be used, or refuses a row. `place` is `template:line` or empty.
    Template {
        /// Where.
        place: Box<str>,
        /// Value, rule, remedy.
        message: Box<str>,
    },
    /// Options that do not make sense, alone or together.
    Config {
        /// Value, rule, remedy.
        message: Box<str>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { place, message } | Self::Template { place, message } if !place.is_empty() => {
                write!(f, "{place}: {message}")
            }
            Self::Data { message, .. } | Self::Template { message, .. } | Self::Config { message } => {
                f.write_str(message)
            }
        }
    }
}

impl std::error::Error for Error {}
