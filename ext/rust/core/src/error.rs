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
    /// A fault inside one row of raw data, which the caller knows the file and line of.
    Row(RowError),
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
    /// Two of our own computations disagree: a fault of postmill, which no option may skip.
    Internal {
        /// What disagrees, and what to report.
        message: Box<str>,
    },
}

/// What is wrong inside a row. Whoever reads the file puts `file:line:column` before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// A stable word for the ledger: `utf8`, `json`, `truncated`, `depth`, `duplicate_key`, `column`, `role`, ...
    pub reason: &'static str,
    /// Byte column in the line, from 1, where it is known.
    pub column: Option<usize>,
    /// JSON path of the value at fault (`$.messages[2].content`), or empty.
    pub path: String,
    /// Value, rule, remedy.
    pub message: String,
}

impl RowError {
    /// A fault of the row as a whole.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self::at(String::new(), reason, message)
    }

    /// A fault of the value at the JSON path `path`.
    pub fn at(path: impl Into<String>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, column: None, path: path.into(), message: message.into() }
    }
}

/// `path: message`; the column is left to the caller, since it belongs to the file's place.
impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for RowError {}

impl From<RowError> for Error {
    fn from(fault: RowError) -> Self {
        Self::Row(fault)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(fault) => fault.fmt(f),
            Self::Data { place, message } | Self::Template { place, message } if !place.is_empty() => {
                write!(f, "{place}: {message}")
            }
            Self::Data { message, .. }
            | Self::Template { message, .. }
            | Self::Config { message }
            | Self::Internal { message } => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

/// `FromStr` of an enum whose values are the choices of an option; its error lists their names.
macro_rules! choices {
    ($type:ident, $option:literal, $($name:literal => $value:ident),+) => {
        impl std::str::FromStr for $type {
            type Err = $crate::error::Error;

            fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
                match name {
                    $($name => Ok(Self::$value),)+
                    _ => {
                        let known = [$($name),+].join(", ");
                        let message = format!("{}: {name:?} is none of {known}", $option).into();
                        Err($crate::error::Error::Config { message })
                    }
                }
            }
        }
    };
}
pub(crate) use choices;
