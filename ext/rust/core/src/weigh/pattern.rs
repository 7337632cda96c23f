//! One pattern of a rules file: literal text, or a regular expression with Python's meaning.
use super::shape::{self, Shape};
use crate::error::{Error, RowError};

type Result<T> = std::result::Result<T, Error>;
use memchr::memmem;
use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};

/// Backtracking steps one match attempt may take: some tens of milliseconds, far over what sane rules need.
pub(crate) const RETRY_LIMIT: u32 = 1_000_000;

/// What is looked for in a reply.
#[derive(Debug)]
pub(crate) enum RulePattern {
    /// This text.
    Literal(Box<memmem::Finder<'static>>),
    /// This expression.
    Regex(Regex, String),
}

impl RulePattern {
    pub(crate) fn literal(text: &str) -> Self {
        Self::Literal(Box::new(memmem::Finder::new(text).into_owned()))
    }

    /// Compile `source`, with `place` naming its rules file in errors.
    pub(crate) fn regex(source: &str, place: &str) -> Result<Self> {
        // SINGLELINE gives `^` and `$` Python's meaning without re.M; Oniguruma calls DOTALL "multiline".
        let options = RegexOptions::REGEX_OPTION_SINGLELINE | RegexOptions::REGEX_OPTION_MULTILINE;
        match Regex::with_options(source, options, Syntax::python()) {
            Ok(regex) => Ok(Self::Regex(regex, source.to_owned())),
            Err(error) => {
                let why = error.description().to_lowercase();
                Err(Error::Config { message: format!("{place}: pattern \"{source}\" does not compile: {why}").into() })
            }
        }
    }

    /// Capture groups the pattern itself has.
    pub(crate) fn num_groups(&self) -> usize {
        match self {
            Self::Literal(_) => 0,
            Self::Regex(regex, _) => regex.captures_len(),
        }
    }

    /// What it certainly needs.
    pub(super) fn shape(&self) -> Shape {
        match self {
            Self::Literal(finder) => Shape::Needle(finder.needle().to_vec()),
            Self::Regex(_, source) => shape::of(source),
        }
    }

    /// The leftmost match that starts at byte `from` or later: (start, end).
    pub(crate) fn find(&self, text: &str, from: usize) -> Result<Option<(usize, usize)>> {
        match self {
            Self::Literal(finder) => Ok(finder.find(&text.as_bytes()[from..]).map(|at| {
                let start = from + at;
                (start, start + finder.needle().len())
            })),
            Self::Regex(regex, source) => {
                let mut region = Region::new();
                let found = regex
                    .search_with_param(
                        text,
                        from,
                        text.len(),
                        SearchOptions::SEARCH_OPTION_NONE,
                        Some(&mut region),
                        limits(),
                    )
                    .map_err(|error| too_hard(source, &error))?;
                Ok(found.and_then(|_| region.pos(0)))
            }
        }
    }

    /// Whether the pattern matches at the very start of `text`, which it sees as a whole text.
    pub(crate) fn matches_prefix(&self, text: &str) -> Result<bool> {
        match self {
            Self::Literal(finder) => Ok(text.as_bytes().starts_with(finder.needle())),
            Self::Regex(regex, source) => regex
                .match_with_param(text, 0, SearchOptions::SEARCH_OPTION_NONE, None, limits())
                .map(|found| found.is_some())
                .map_err(|error| too_hard(source, &error)),
        }
    }
}

fn limits() -> MatchParam {
    let mut limits = MatchParam::default();
    limits.set_retry_limit_in_match(RETRY_LIMIT);
    limits
}

fn too_hard(source: &str, error: &onig::Error) -> Error {
    let why = error.description().to_lowercase();
    let message = format!("loss-scale pattern \"{source}\" gave up on this reply ({why}); simplify the pattern");
    Error::Row(RowError::new("regex_limit", message))
}
