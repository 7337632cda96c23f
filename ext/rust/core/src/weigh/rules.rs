//! Rules files: what a strategy holds, and the two ways of applying it to a reply.
use super::pattern::RulePattern;
use super::shape::Shape;
use super::{Segment, Semantics};
use crate::error::Error;
use crate::json;
use crate::types::Json;

type Result<T> = std::result::Result<T, Error>;

/// The content of a rules file, as written.
///
/// JSON forms: `{"PATTERN": [w], ...}` regular expressions; `{"TEXT": [w, after], ...}` literal marks, where `after`
/// weighs the text up to the next mark; either inside `{"response": {...}, "query": {...}}`, where a query key found in
/// the user's text gives the whole reply its weight; or a list of `{"regex": .., "weight": ..}` and
/// `{"literal": .., "weight": .., "after": ..}`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rules {
    /// Key and one weight (a regular expression) or two (a literal mark and the text after it), in file order.
    pub(crate) response: Vec<(String, Vec<f64>)>,
    /// Text of the query and the weight it gives the whole reply.
    pub(crate) query: Vec<(String, f64)>,
}

impl Rules {
    pub(super) fn is_binary(&self) -> bool {
        let weights = self.response.iter().flat_map(|(_, weights)| weights.iter());
        weights
            .chain(self.query.iter().map(|(_, weight)| weight))
            .all(|weight| [0.0_f64.to_bits(), 1.0_f64.to_bits()].contains(&weight.abs().to_bits()) && *weight >= 0.0)
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let fault = |why: String| Error::Config { message: format!("{name}: {why}").into() };
        let value = json::parse_text(text).map_err(|error| fault(format!("not JSON: {error}")))?;
        let mut rules = Self::default();
        match &value {
            Json::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    rules.response.push(list_rule(item).map_err(|why| fault(format!("rule {index}: {why}")))?);
                }
            }
            Json::Object(members) => {
                let nested = members.iter().all(|(key, _)| matches!(&**key, "response" | "query"))
                    && members.iter().any(|(_, value)| matches!(value, Json::Object(_)));
                if nested {
                    for (key, value) in members {
                        let Json::Object(inner) = value else {
                            return Err(fault(format!("\"{key}\" is not an object")));
                        };
                        for (pattern, weights) in inner {
                            let weights = weights_of(weights).map_err(|why| fault(format!("\"{pattern}\": {why}")))?;
                            if &**key == "query" {
                                rules.query.push((pattern.to_string(), weights[0]));
                            } else {
                                rules.response.push((pattern.to_string(), weights));
                            }
                        }
                    }
                } else {
                    for (pattern, weights) in members {
                        let weights = weights_of(weights).map_err(|why| fault(format!("\"{pattern}\": {why}")))?;
                        rules.response.push((pattern.to_string(), weights));
                    }
                }
            }
            _ => return Err(fault("a rules file is an object or a list".into())),
        }
        if let Some((key, _)) = rules.response.iter().find(|(key, _)| key.is_empty()) {
            return Err(fault(format!("\"{key}\": an empty pattern marks nothing; remove it")));
        }
        Ok(rules)
    }
}

fn number(value: &Json) -> std::result::Result<f64, String> {
    let Json::Number(text) = value else {
        return Err("a weight is a number".into());
    };
    match text.parse::<f64>() {
        Ok(weight) if (weight as f32).is_finite() => Ok(weight),
        _ => Err(format!("weight {text} is not a finite 32-bit number")),
    }
}

fn weights_of(value: &Json) -> std::result::Result<Vec<f64>, String> {
    match value {
        Json::Array(items) if matches!(items.len(), 1 | 2) => items.iter().map(number).collect(),
        Json::Array(items) => Err(format!("{} weights, expected 1 (regular expression) or 2 (literal)", items.len())),
        other => Ok(vec![number(other)?]),
    }
}

fn list_rule(item: &Json) -> std::result::Result<(String, Vec<f64>), String> {
    let Json::Object(members) = item else {
        return Err("expected an object".into());
    };
    let (mut pattern, mut literal, mut weight, mut after) = (None, false, None, None);
    for (key, value) in members {
        match (&**key, value) {
            ("regex" | "literal", Json::String(text)) if pattern.is_none() => {
                pattern = Some(text.to_string());
                literal = &**key == "literal";
            }
            ("weight", value) => weight = Some(number(value)?),
            ("after", value) => after = Some(number(value)?),
            _ => return Err(format!("\"{key}\" is unknown or twice; a rule has regex or literal, weight, after")),
        }
    }
    match (pattern, weight, literal, after) {
        (Some(pattern), Some(weight), true, after) => Ok((pattern, vec![weight, after.unwrap_or(1.0)])),
        (Some(pattern), Some(weight), false, None) => Ok((pattern, vec![weight])),
        (Some(_), Some(_), false, Some(_)) => Err("only a literal has \"after\"".into()),
        _ => Err("a rule needs regex or literal, and weight".into()),
    }
}

/// A strategy ready to be applied.
#[derive(Debug)]
pub(crate) struct Strategy {
    /// Its rules, as written.
    pub(crate) rules: Rules,
    patterns: Vec<(RulePattern, f64, Option<f64>)>,
}

impl Strategy {
    /// From the text of a rules file called `name`.
    pub(super) fn from_json(name: &str, text: &str, semantics: Semantics) -> Result<Self> {
        Self::from_rules(name, Rules::parse(name, text)?, semantics)
    }

    pub(super) fn from_rules(name: &str, rules: Rules, semantics: Semantics) -> Result<Self> {
        let literal = rules.response.iter().any(|(_, weights)| weights.len() == 2);
        let mixed = literal && rules.response.iter().any(|(_, weights)| weights.len() == 1);
        if mixed && semantics == Semantics::Spans {
            let why = "a key with one weight is a regular expression, with two literal text; split the file by kind";
            return Err(Error::Config { message: format!("{name}: {why}").into() });
        }
        let mut patterns = Vec::with_capacity(rules.response.len());
        for (key, weights) in &rules.response {
            match weights[..] {
                [weight, after] => patterns.push((RulePattern::literal(key), weight, Some(after))),
                // ms-swift ignores the regular expressions of a file that has any literal
                [_] if literal => {}
                [weight] => {
                    let pattern = RulePattern::regex(key, name)?;
                    if semantics == Semantics::MsSwift && pattern.num_groups() > 0 {
                        let why = "has a capture group, which breaks ms-swift's split; write (?:...)";
                        return Err(Error::Config { message: format!("{name}: pattern \"{key}\" {why}").into() });
                    }
                    patterns.push((pattern, weight, None));
                }
                _ => {}
            }
        }
        Ok(Self { rules, patterns })
    }

    /// What is known of each pattern, and its weight.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (Shape, f64)> {
        self.patterns.iter().map(|(pattern, weight, _)| (pattern.shape(), *weight))
    }

    fn query_weight(&self, query: &str) -> Option<f64> {
        self.rules.query.iter().find(|(key, _)| query.contains(key.as_str())).map(|(_, weight)| *weight)
    }

    /// Our reading: what a pattern matches gets its weight, everything else 1.
    pub(super) fn spans(&self, text: &str, query: &str) -> Result<Vec<Segment>> {
        if let Some(weight) = self.query_weight(query) {
            return Ok(vec![Segment { end: text.len(), weight }]);
        }
        let mut out = Vec::new();
        let mut gap = 1.0;
        for (start, end, index) in self.matches(text)? {
            let (_, weight, after) = &self.patterns[index];
            out.push(Segment { end: start, weight: gap });
            out.push(Segment { end, weight: *weight });
            gap = after.unwrap_or(1.0);
        }
        out.push(Segment { end: text.len(), weight: gap });
        drop_empty(&mut out);
        Ok(out)
    }

    /// ms-swift's reading of one segment.
    pub(super) fn split(&self, text: &str, query: &str) -> Result<Vec<Segment>> {
        if self.query_weight(query).is_some() || self.patterns.iter().any(|(_, _, after)| after.is_some()) {
            return self.spans(text, query);
        }
        let mut cuts = Vec::new();
        for (start, end, _) in self.matches(text)? {
            cuts.extend([start, end]);
        }
        cuts.push(text.len());
        let mut out = Vec::with_capacity(cuts.len());
        let mut start = 0;
        for end in cuts {
            if end > start {
                out.push(Segment { end, weight: self.prefix_weight(&text[start..end])? });
                start = end;
            }
        }
        Ok(out)
    }

    fn prefix_weight(&self, part: &str) -> Result<f64> {
        for (pattern, weight, _) in &self.patterns {
            if pattern.matches_prefix(part)? {
                return Ok(*weight);
            }
        }
        Ok(1.0)
    }

    /// Matches of the alternation of all patterns, left to right: the leftmost wins, then the first listed.
    fn matches(&self, text: &str) -> Result<Vec<(usize, usize, usize)>> {
        let mut found: Vec<Option<(usize, usize)>> = Vec::with_capacity(self.patterns.len());
        for (pattern, _, _) in &self.patterns {
            found.push(pattern.find(text, 0)?);
        }
        let mut out = Vec::new();
        while let Some((index, (start, end))) =
            found.iter().enumerate().filter_map(|(i, hit)| hit.map(|hit| (i, hit))).min_by_key(|(i, hit)| (hit.0, *i))
        {
            out.push((start, end, index));
            // an empty match must not be found again: go on one character later
            let next = if end > start { end } else { end + text[end..].chars().next().map_or(1, char::len_utf8) };
            for (hit, (pattern, _, _)) in found.iter_mut().zip(&self.patterns) {
                if hit.is_some_and(|(start, _)| start < next) {
                    *hit = if next <= text.len() { pattern.find(text, next)? } else { None };
                }
            }
        }
        Ok(out)
    }
}

/// Remove stretches of no length; `end` is ascending.
fn drop_empty(segments: &mut Vec<Segment>) {
    let mut start = 0;
    segments.retain(|segment| {
        let keep = segment.end > start;
        start = segment.end;
        keep
    });
}
