//! The values a plan computes with: what lies in the row or the template, and numbers. All can be copied.
use super::super::fuel::Fuel;
use super::super::names::Test;
use super::super::number;
use super::super::print;
use super::super::source::source_of;
use super::super::text;
use super::super::value::{Chars, Members, Text, Value};
use super::{Attr, CompareOp, LoopFact};
use crate::types::Json;

/// A text, and what is known of its origin, as of a [`Text`].
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Piece<'a> {
    pub chars: &'a str,
    pub literal_tail: u32,
    pub source: u32,
}

impl<'a> Piece<'a> {
    pub fn literal(chars: &'a str) -> Self {
        Self { chars, literal_tail: chars.len() as u32, source: 0 }
    }

    /// `chars`, which are a part of it.
    pub fn part(self, chars: &'a str) -> Self {
        Self { chars, literal_tail: 0, source: self.source }
    }
}

/// Some of the row's messages, one after the other or backwards.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Span {
    pub first: u32,
    pub count: u32,
    pub backwards: bool,
}

impl Span {
    /// The message at a place.
    pub fn message(self, at: u32) -> usize {
        (if self.backwards { self.first + self.count - 1 - at } else { self.first + at }) as usize
    }
}

#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Known<'a> {
    /// Nothing was assigned.
    Unset,
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Text(Piece<'a>),
    /// A text marked `|safe`: it is printed and joined by `~` as any other, and little else.
    Safe(Piece<'a>),
    /// An object, and the number of the message it is.
    Object(Members<'a>, u32),
    List(&'a [Json]),
    Messages(Span),
    /// A number that is no small integer.
    Number(&'a Json),
}

impl<'a> Known<'a> {
    /// A value of the row; text in it is a message's words if `source` is not 0.
    pub fn of(json: &'a Json, source: u32) -> Self {
        match json {
            Json::String(chars) => Self::Text(Piece { chars, literal_tail: 0, source }),
            Json::Object(members) => Self::Object(members, 0),
            Json::Array(items) => Self::List(items),
            Json::Null => Self::None,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(text) => match number::from_json(text) {
                Value::Int(value) => Self::Int(value),
                _ => Self::Number(json),
            },
        }
    }

    pub fn literal(text: &'a str) -> Self {
        Self::Text(Piece::literal(text))
    }

    /// The first `count` messages.
    pub fn all(count: usize) -> Self {
        Self::Messages(Span { first: 0, count: count as u32, backwards: false })
    }

    /// As the interpreter has it.
    fn value(self) -> Option<Value<'a>> {
        Some(match self {
            Self::Unset | Self::Undefined => Value::Undefined(""),
            Self::None => Value::None,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Text(Piece { chars, literal_tail, source }) | Self::Safe(Piece { chars, literal_tail, source }) => {
                let markup = matches!(self, Self::Safe(_));
                Value::Str(Text { chars: Chars::Borrowed(chars), literal_tail, source, markup })
            }
            Self::Object(members, message) => Value::Object(members, message),
            Self::List(items) => Value::Json(items),
            Self::Messages(_) => return None,
            Self::Number(json) => Value::from_json(json, 0),
        })
    }

    /// `str(self)`
    pub fn printed(self, fuel: &Fuel) -> Option<String> {
        print::to_str(&self.value()?, fuel).ok()
    }

    /// `self | tojson(indent=indent)`
    pub fn to_json(self, indent: Option<u8>, fuel: &Fuel) -> Option<String> {
        let mut style = print::JsonStyle::default();
        if let Some(width) = indent {
            style.indent = Some(" ".repeat(width.into()));
            style.item = ",".into();
        }
        let mut writer = print::JsonWriter { style: &style, fuel, out: String::new(), level: 0 };
        writer.value(&self.value()?).ok()?;
        Some(writer.out)
    }

    #[inline]
    pub fn text(self) -> Option<Piece<'a>> {
        if let Self::Text(piece) = self { Some(piece) } else { None }
    }

    #[inline]
    pub fn int(self) -> Option<i64> {
        if let Self::Int(value) = self { Some(value) } else { None }
    }

    /// `self.name`
    #[inline]
    pub fn attribute(self, attr: &Attr) -> Option<Self> {
        match self {
            Self::Object(members, message) if attr.is_key => {
                Some(Self::in_members(members, message, attr).unwrap_or(Self::Undefined))
            }
            _ => None,
        }
    }

    /// `self['name']`
    #[inline]
    pub fn item(self, attr: &Attr) -> Option<Self> {
        let Self::Object(members, message) = self else { return None };
        Self::in_members(members, message, attr).or_else(|| attr.is_key.then_some(Self::Undefined))
    }

    /// `self.get('name')`
    pub fn get(self, attr: &Attr) -> Option<Self> {
        let Self::Object(members, message) = self else { return None };
        Some(Self::in_members(members, message, attr).unwrap_or(Self::None))
    }

    #[inline]
    fn in_members(members: Members<'a>, message: u32, attr: &Attr) -> Option<Self> {
        let (_, json) = members.iter().find(|(key, _)| **key == *attr.name)?;
        Some(Self::of(json, if attr.is_said { source_of(&attr.name, message) } else { 0 }))
    }

    /// `len(self)`
    pub fn length(self) -> Option<usize> {
        match self {
            Self::Unset | Self::Undefined => Some(0),
            Self::Text(piece) | Self::Safe(piece) => Some(text::length(piece.chars)),
            Self::Object(members, _) => Some(members.len()),
            Self::List(items) => Some(items.len()),
            Self::Messages(span) => Some(span.count as usize),
            _ => None,
        }
    }

    pub fn is_true(self) -> bool {
        match self {
            Self::Unset | Self::Undefined | Self::None => false,
            Self::Bool(value) => value,
            Self::Int(value) => value != 0,
            Self::Text(piece) | Self::Safe(piece) => !piece.chars.is_empty(),
            Self::Object(members, _) => !members.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Messages(span) => span.count > 0,
            Self::Number(json) => Value::from_json(json, 0).truthy(),
        }
    }

    /// A test without arguments.
    pub fn passes(self, test: Test) -> Option<bool> {
        Some(match test {
            Test::Defined => !matches!(self, Self::Unset | Self::Undefined),
            Test::Undefined => matches!(self, Self::Unset | Self::Undefined),
            Test::None => matches!(self, Self::None),
            Test::Boolean => matches!(self, Self::Bool(_)),
            Test::True => matches!(self, Self::Bool(true)),
            Test::False => matches!(self, Self::Bool(false)),
            Test::String => matches!(self, Self::Text(_) | Self::Safe(_)),
            Test::Mapping => matches!(self, Self::Object(..)),
            Test::Iterable | Test::Sequence => {
                !matches!(self, Self::None | Self::Bool(_) | Self::Int(_) | Self::Number(_))
            }
            _ => return None,
        })
    }

    /// `self op other`
    pub fn compare(self, op: CompareOp, other: Self) -> Option<bool> {
        if let (Self::Int(a), Self::Int(b)) = (self, other) {
            return match op {
                CompareOp::Eq => Some(a == b),
                CompareOp::Ne => Some(a != b),
                CompareOp::Lt => Some(a < b),
                CompareOp::Le => Some(a <= b),
                CompareOp::Gt => Some(a > b),
                CompareOp::Ge => Some(a >= b),
                CompareOp::In | CompareOp::NotIn => None,
            };
        }
        let equal = match (self, other) {
            (Self::Safe(_), _) | (_, Self::Safe(_)) => return None,
            (Self::Text(a), Self::Text(b)) => a.chars == b.chars,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Text(_), _) | (_, Self::Text(_)) => false,
            _ => return None,
        };
        match op {
            CompareOp::Eq => Some(equal),
            CompareOp::Ne => Some(!equal),
            _ => None,
        }
    }
}

impl LoopFact {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "index" => Self::Index,
            "index0" => Self::Index0,
            "first" => Self::First,
            "last" => Self::Last,
            "length" => Self::Length,
            "previtem" => Self::Previous,
            "nextitem" => Self::Next,
            _ => return None,
        })
    }
}
