//! What a regular expression certainly needs, read from its source.
//!
//! Only the plainest syntax is understood: text, `.`, `\s`, escaped signs, `* + ?`, and `^` in front. Everything else, and
//! everything that could need backtracking, is [`Shape::Other`].

/// What is known of a pattern.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// It matches nowhere but where these bytes are.
    Needle(Vec<u8>),
    /// It matches at the start of the text or nowhere, as these say one after the other.
    Start(Box<[Item]>),
    /// Nothing.
    Other,
}

/// A step of a match at the start.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    /// These bytes.
    Text(Vec<u8>),
    /// As much white space as there is. What follows is none.
    Spaces,
    /// One character.
    Any,
    /// This byte if it is there. Always last.
    Maybe(u8),
}

/// Of a match at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It ends before this byte.
    Match(usize),
    No,
    Unsure,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Atom {
    Char(char),
    Space,
    Any,
}

/// An atom and its quantifier.
type Quantified = (Atom, Option<char>);

/// Atoms with their quantifier, and whether they are tied to the start; none for syntax that is not understood.
fn atoms(source: &str) -> Option<(bool, Vec<Quantified>)> {
    let tied = source.starts_with('^');
    let mut chars = source[usize::from(tied)..].chars().peekable();
    let mut atoms = vec![];
    while let Some(c) = chars.next() {
        let atom = match c {
            '\\' => match chars.next()? {
                's' => Atom::Space,
                'n' => Atom::Char('\n'),
                sign if sign.is_ascii_punctuation() => Atom::Char(sign),
                _ => return None,
            },
            '.' => Atom::Any,
            '^' | '$' | '|' | '(' | ')' | '[' | ']' | '{' | '}' | '*' | '+' | '?' => return None,
            c => Atom::Char(c),
        };
        let quantifier = chars.next_if(|c| matches!(c, '*' | '+' | '?' | '{'));
        if quantifier == Some('{') {
            return None;
        }
        // lazy or possessive: the same text is needed, but a match at the start may end elsewhere
        let other = quantifier.and_then(|_| chars.next_if(|c| matches!(c, '?' | '+')));
        if tied && other.is_some() {
            return None;
        }
        atoms.push((atom, quantifier));
    }
    Some((tied, atoms))
}

/// The shape of a regular expression that has no flags but "dot matches all".
pub(super) fn of(source: &str) -> Shape {
    match atoms(source) {
        Some((true, atoms)) => start(&atoms).unwrap_or(Shape::Other),
        Some((false, atoms)) => needle(&atoms),
        None => Shape::Other,
    }
}

fn needle(atoms: &[Quantified]) -> Shape {
    let (mut longest, mut run) = (String::new(), String::new());
    for atom in atoms {
        if let (Atom::Char(c), None) = *atom {
            run.push(c);
        } else {
            run.clear();
        }
        if run.len() > longest.len() {
            longest.clone_from(&run);
        }
    }
    if longest.is_empty() { Shape::Other } else { Shape::Needle(longest.into_bytes()) }
}

fn start(atoms: &[Quantified]) -> Option<Shape> {
    let mut items: Vec<Item> = vec![];
    for (index, atom) in atoms.iter().enumerate() {
        let is_last = index + 1 == atoms.len();
        match *atom {
            (Atom::Char(c), None) => {
                if let Some(Item::Text(text)) = items.last_mut() {
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                } else {
                    items.push(Item::Text(c.to_string().into_bytes()));
                }
            }
            (Atom::Char(c), Some('?')) if is_last && c.is_ascii() => items.push(Item::Maybe(c as u8)),
            (Atom::Any, None) => items.push(Item::Any),
            (Atom::Space, Some('*')) if is_last => items.push(Item::Spaces),
            (Atom::Space, Some('*')) => match atoms.get(index + 1) {
                Some((Atom::Char(next), None)) if next.is_ascii_graphic() => items.push(Item::Spaces),
                _ => return None,
            },
            _ => return None,
        }
    }
    Some(Shape::Start(items.into()))
}

/// Match at the start of `text`, of which the first `sure` bytes are certain and no more are looked at.
pub(super) fn at_start(items: &[Item], text: &str, sure: usize) -> Verdict {
    let whole = sure == text.len();
    let end = if whole { Verdict::No } else { Verdict::Unsure };
    let mut at = 0;
    for item in items {
        match item {
            Item::Text(wanted) => {
                let there = &text.as_bytes()[at..sure.min(at + wanted.len())];
                if there != &wanted[..there.len()] {
                    return Verdict::No;
                }
                if there.len() < wanted.len() {
                    return end;
                }
                at += wanted.len();
            }
            Item::Spaces => {
                at += text.as_bytes()[at..sure].iter().take_while(|byte| matches!(byte, b' ' | 9..=13)).count();
                match next_char(text, at, sure) {
                    // U+001C to U+001F are white space to some, and what is white space beyond ASCII is left to the rules
                    Some('\u{1c}'..='\u{1f}') => return Verdict::Unsure,
                    Some(c) if c.is_whitespace() => return Verdict::Unsure,
                    None if !whole => return Verdict::Unsure,
                    _ => {}
                }
            }
            Item::Any => match next_char(text, at, sure) {
                Some(c) => at += c.len_utf8(),
                None => return end,
            },
            Item::Maybe(byte) => match next_char(text, at, sure) {
                Some(c) => at += usize::from(c == char::from(*byte)),
                None if whole => {}
                None => return Verdict::Unsure,
            },
        }
    }
    Verdict::Match(at)
}

/// The character at byte `at`, where one begins, if all of it is before byte `sure`.
fn next_char(text: &str, at: usize, sure: usize) -> Option<char> {
    text.get(at..)?.chars().next().filter(|c| at + c.len_utf8() <= sure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_text_that_must_be_there() {
        let needle = |text: &str| Shape::Needle(text.as_bytes().to_vec());
        assert_eq!(of("<tool_call>.+?</tool_call>"), needle("</tool_call>"));
        assert_eq!(of(r"ab?cd\s+\."), needle("cd"));
        for other in ["a|b", "(?i)abc", "[abc]", "a{0}bc", r"\bword", r"\d", ".*", "a*"] {
            assert_eq!(of(other), Shape::Other, "{other}");
        }
        assert_eq!(of("x+y"), needle("y"));
    }

    #[test]
    fn what_is_tied_to_the_start_needs_no_second_try() {
        let text = |text: &str| Item::Text(text.as_bytes().to_vec());
        assert_eq!(
            of(r"^a\s*b.c\s*"),
            Shape::Start([text("a"), Item::Spaces, text("b"), Item::Any, text("c"), Item::Spaces].into())
        );
        assert_eq!(of(r"^x\n?"), Shape::Start([text("x"), Item::Maybe(b'\n')].into()));
        for other in ["^a|b", r"^\s*\n", r"^\s*\s", r"^\s+a", r"^a\s*?", "^a?b", "^.*"] {
            assert_eq!(of(other), Shape::Other, "{other}");
        }
    }
}
