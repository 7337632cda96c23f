//! Words as the `tokenizers` crate cuts them, from the same regex engine.

#![allow(dead_code)] // each test uses its part

use onig::Regex;

/// A pre-tokenizer written as the steps of a sequence.
pub struct Oracle {
    steps: Vec<Step>,
}

enum Step {
    Split(Regex),
    Digits,
}

pub const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Name, `pre_tokenizer` steps: a regex, or `digits`.
pub const FAMILIES: [(&str, &[&str]); 8] = [
    ("gpt2", &[GPT2]),
    ("smollm2", &["digits", GPT2]),
    (
        "cl100k",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "qwen2",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "qwen3.5",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "o200k",
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "tekken",
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "deepseek v3",
        &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ],
    ),
];

impl Oracle {
    pub fn new(steps: &[&str]) -> Self {
        let step = |text: &&str| match *text {
            "digits" => Step::Digits,
            regex => Step::Split(Regex::new(regex).unwrap()),
        };
        Self { steps: steps.iter().map(step).collect() }
    }

    /// Where each word of `text` ends.
    pub fn ends(&self, text: &str) -> Vec<usize> {
        let mut ends = vec![text.len()];
        for step in &self.steps {
            let mut start = 0;
            let mut finer = Vec::new();
            for &end in &ends {
                step.split(&text[start..end], start, &mut finer);
                start = end;
            }
            ends = finer;
        }
        ends
    }
}

impl Step {
    fn split(&self, piece: &str, base: usize, out: &mut Vec<usize>) {
        let mut push = |end: usize| {
            if end > 0 && out.last() != Some(&(base + end)) {
                out.push(base + end);
            }
        };
        match self {
            Self::Split(regex) => regex.find_iter(piece).for_each(|(start, end)| {
                push(start);
                push(end);
            }),
            Self::Digits => {
                let mut before = false;
                for (i, c) in piece.char_indices() {
                    if c.is_numeric() || before {
                        push(i);
                    }
                    before = c.is_numeric();
                }
            }
        }
        push(piece.len());
    }
}

/// The `pre_tokenizer` member of a `tokenizer.json` with these steps.
pub fn pre_tokenizer(steps: &[&str]) -> serde_json::Value {
    use serde_json::json;
    let byte_level =
        |regex| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let built_in = steps.last() == Some(&GPT2);
    let mut list: Vec<_> = steps[..steps.len() - usize::from(built_in)]
        .iter()
        .map(|step| match *step {
            "digits" => json!({"type": "Digits", "individual_digits": true}),
            regex => json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
        })
        .collect();
    list.push(byte_level(built_in));
    json!({"type": "Sequence", "pretokenizers": list})
}
