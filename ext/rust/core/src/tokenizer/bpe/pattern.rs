//! The pre-tokenizers we know, their character classes, and how a part of `tokenizer.json` becomes one of them.

use super::unicode::{Category, PageTable};

/// Class of a character, as a bit, so that a set of classes is a `u16`.
pub(crate) mod class {
    /// Not part of the piece being scanned: an earlier pre-tokenizer of the sequence cut it out.
    pub(crate) const CUT: u16 = 1 << 0;
    /// `\p{Lu}`, `\p{Lt}`
    pub(crate) const UPPER: u16 = 1 << 1;
    /// `\p{Ll}`
    pub(crate) const LOWER: u16 = 1 << 2;
    /// `\p{Lm}`, `\p{Lo}`: a letter that o200k takes for upper or lower.
    pub(crate) const CASELESS: u16 = 1 << 3;
    /// `\p{M}`
    pub(crate) const MARK: u16 = 1 << 4;
    /// `\p{N}`
    pub(crate) const NUMBER: u16 = 1 << 5;
    /// Carriage return and line feed.
    pub(crate) const NEWLINE: u16 = 1 << 6;
    /// U+0020
    pub(crate) const SPACE: u16 = 1 << 7;
    /// Every other `\s`.
    pub(crate) const BLANK: u16 = 1 << 8;
    /// `\p{P}`, `\p{S}`
    pub(crate) const PUNCTUATION: u16 = 1 << 9;
    /// None of the others: controls, formats, unassigned.
    pub(crate) const OTHER: u16 = 1 << 10;
    /// Letters and marks of the kana and Han ranges that `DeepSeek` cuts out.
    pub(crate) const HAN: u16 = 1 << 11;
    /// `\p{P}` and `\p{S}` of those ranges, `・` among them: its third split parts them from the letters.
    pub(crate) const HAN_SIGN: u16 = 1 << 12;
    /// Code points of those ranges that are not assigned.
    pub(crate) const HAN_OTHER: u16 = 1 << 13;
    /// All of those ranges.
    pub(crate) const HANS: u16 = HAN | HAN_SIGN | HAN_OTHER;

    /// `\p{L}`
    pub(crate) const LETTERS: u16 = UPPER | LOWER | CASELESS;
    /// `\s`
    pub(crate) const SPACES: u16 = NEWLINE | SPACE | BLANK;
    /// `[^\s\p{L}\p{N}]`
    pub(crate) const SIGNS: u16 = MARK | PUNCTUATION | OTHER;
}

/// How text is cut into words. Each variant is one pre-tokenizer, or one sequence of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// The regex of GPT-2, which `ByteLevel` has built in.
    Gpt2 {
        /// `Digits` has cut out each number before.
        digits: bool,
    },
    /// cl100k and its children: Llama 3 (3 digits), Qwen2 (1 digit), Qwen3.5 (marks are letters).
    Cl100k {
        /// Longest run of numbers that stays together.
        digits: u8,
        /// Marks belong to letters rather than to signs.
        marks: bool,
    },
    /// o200k (3 digits, contractions) and Tekken (1 digit, none).
    O200k {
        /// Longest run of numbers that stays together.
        digits: u8,
        /// Words keep a contraction at their end.
        contractions: bool,
    },
    /// Three splits in a row: numbers, Han and kana, the rest.
    DeepSeek3,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// `DeepSeek` writes its line breaks raw, and its second split as characters.
const DEEPSEEK3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

impl Pattern {
    /// The pattern of one `Split` whose regex matches every character, or `None`.
    #[must_use]
    pub fn from_regex(regex: &str) -> Option<Self> {
        Some(match regex {
            GPT2 => Self::Gpt2 { digits: false },
            CL100K => Self::Cl100k { digits: 3, marks: false },
            QWEN2 => Self::Cl100k { digits: 1, marks: false },
            QWEN35 => Self::Cl100k { digits: 1, marks: true },
            O200K => Self::O200k { digits: 3, contractions: true },
            TEKKEN => Self::O200k { digits: 1, contractions: false },
            _ => return None,
        })
    }

    /// The pattern of several isolating `Split`s in a row, or `None`.
    #[must_use]
    pub fn from_regexes(regexes: &[&str]) -> Option<Self> {
        (regexes == DEEPSEEK3).then_some(Self::DeepSeek3)
    }

    /// The bit number (see [`class`]) of every code point.
    #[must_use]
    pub fn table(self) -> PageTable {
        // The first code points after the ends of `DeepSeek`'s ranges, and the controls and spaces that classes tell apart.
        let mut cuts = vec![0x0A, 0x0B, 0x0D, 0x0E, 0x20, 0x21, 0x3040, 0x3100, 0x4E00, 0x9FA6];
        if matches!(self, Self::Gpt2 { digits: true }) {
            // `Digits` asks the standard library, whose Unicode is newer than the regex engine's.
            let numeric = |c: u32| char::from_u32(c).is_some_and(char::is_numeric);
            cuts.extend((1..0x11_0000).filter(|&c| numeric(c) != numeric(c - 1)));
        }
        PageTable::classes(&cuts, |c, category| self.class(c, category).trailing_zeros() as u8)
    }

    fn class(self, c: u32, category: Category) -> u16 {
        match self {
            Self::Gpt2 { digits: true } if char::from_u32(c).is_some_and(char::is_numeric) => {
                return class::CUT;
            }
            Self::DeepSeek3 if category != Category::Number => {
                if matches!(c, 0x3040..=0x30FF | 0x4E00..=0x9FA5) {
                    return match category {
                        Category::Punctuation | Category::Symbol => class::HAN_SIGN,
                        Category::Other => class::HAN_OTHER,
                        _ => class::HAN,
                    };
                }
            }
            _ => {}
        }
        match category {
            Category::Upper | Category::Title => class::UPPER,
            Category::Lower => class::LOWER,
            Category::Modifier | Category::Letter => class::CASELESS,
            Category::Mark => class::MARK,
            Category::Number => class::NUMBER,
            Category::Space if c == 0x0A || c == 0x0D => class::NEWLINE,
            Category::Space if c == 0x20 => class::SPACE,
            Category::Space => class::BLANK,
            Category::Punctuation | Category::Symbol => class::PUNCTUATION,
            Category::Other => class::OTHER,
        }
    }
}
