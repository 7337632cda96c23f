//! Python's view of text: what counts as whitespace, how strings split and strip.

/// `str.isspace` of one character, which is also `\s` of Python's `re`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.rstrip()`.
pub(super) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Which ends to strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Both,
    Left,
    Right,
}

/// `str.strip`, `lstrip`, `rstrip`, of whitespace or of a set of characters.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, side: Side) -> &'t str {
    if let Some([only @ 0..0x80]) = chars.map(str::as_bytes) {
        return strip_byte(text, *only, side);
    }
    let drop = |c: char| chars.map_or_else(|| is_space(c), |set| set.contains(c));
    match side {
        Side::Both => text.trim_matches(drop),
        Side::Left => text.trim_start_matches(drop),
        Side::Right => text.trim_end_matches(drop),
    }
}

/// [`strip`] of one ASCII character.
fn strip_byte(text: &str, drop: u8, side: Side) -> &str {
    let mut bytes = text.as_bytes();
    while let ([first, rest @ ..], Side::Both | Side::Left) = (bytes, side)
        && *first == drop
    {
        bytes = rest;
    }
    let start = text.len() - bytes.len();
    while let ([rest @ .., last], Side::Both | Side::Right) = (bytes, side)
        && *last == drop
    {
        bytes = rest;
    }
    &text[start..start + bytes.len()]
}

/// `str.split(separator, limit)`; the separator is not empty.
pub(super) fn split<'t>(text: &'t str, separator: &str, limit: Option<usize>) -> Vec<&'t str> {
    match limit {
        Some(limit) => text.splitn(limit.saturating_add(1), separator).collect(),
        None => text.split(separator).collect(),
    }
}

/// `str.rsplit(separator, limit)`.
pub(super) fn rsplit<'t>(text: &'t str, separator: &str, limit: Option<usize>) -> Vec<&'t str> {
    let mut parts: Vec<&str> = match limit {
        Some(limit) => text.rsplitn(limit.saturating_add(1), separator).collect(),
        None => text.rsplit(separator).collect(),
    };
    parts.reverse();
    parts
}

/// `str.split()`: runs of whitespace part the words; the rest after `limit` cuts keeps its tail.
pub(super) fn split_words(text: &str, limit: Option<usize>) -> Vec<&str> {
    let Some(limit) = limit else { return text.split(is_space).filter(|word| !word.is_empty()).collect() };
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if words.len() == limit {
            // Python keeps the tail of the last piece as it is, trailing whitespace included.
            words.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        words.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    words
}

/// `str.rsplit(None, limit)`: as [`split_words`], from the right.
pub(super) fn rsplit_words(text: &str, limit: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if words.len() == limit {
            words.push(rest);
            break;
        }
        let from = rest.char_indices().rfind(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
        words.push(&rest[from..]);
        rest = rest[..from].trim_end_matches(is_space);
    }
    words.reverse();
    words
}

/// `str.splitlines(keepends)`.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_break =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_break) else {
            lines.push(rest);
            break;
        };
        let width =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(&rest[..if keep_ends { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    lines
}

/// Number of code points, which is Python's `len`.
pub(super) fn length(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// Upper case of one character in title position; none where Unicode has a title form that differs from upper case.
fn title_char(c: char) -> Option<String> {
    let upper: String = c.to_uppercase().collect();
    let special =
        matches!(c, '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}' | '\u{10d0}'..='\u{10ff}' | '\u{1f80}'..='\u{1fff}');
    (upper.chars().count() == 1 && !special).then_some(upper)
}

/// `str.capitalize`; none for first letters whose title form Rust does not know.
pub(super) fn capitalize(text: &str) -> Option<String> {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return Some(String::new()) };
    let mut out = title_char(first)?;
    // Lower-cased as a whole: the final sigma looks at the letter before it.
    let lower = text.to_lowercase();
    if text.contains('Σ') {
        return None;
    }
    let head: usize = first.to_lowercase().map(char::len_utf8).sum();
    out.push_str(&lower[head..]);
    Some(out)
}

/// `str.center`: of an odd gap, the larger half stands behind the text if the width is even.
pub(super) fn center(text: &str, width: usize, fill: char) -> String {
    let gap = width.saturating_sub(length(text));
    let before = gap / 2 + (gap & width & 1);
    padded(text, before, gap - before, fill)
}

/// A text with so many characters before and behind it.
pub(super) fn padded(text: &str, before: usize, behind: usize, fill: char) -> String {
    let mut out = String::with_capacity(text.len() + (before + behind) * fill.len_utf8());
    out.extend(std::iter::repeat_n(fill, before));
    out.push_str(text);
    out.extend(std::iter::repeat_n(fill, behind));
    out
}
