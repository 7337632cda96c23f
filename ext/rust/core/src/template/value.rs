//! The values a template computes with: Python's, borrowed from the row wherever the row already holds them.
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::ast::{For, Macro};
use super::fuel::Fuel;
use super::marks::Captured;
use super::names::Owners;
use super::number;
use super::source::source_of;
use crate::types::Json;

/// Members of a JSON object.
pub(super) type Members<'a> = &'a [(Box<str>, Json)];

/// Nesting of built lists and dicts beyond which a template is refused (dropping and printing recurse).
pub(super) const MAX_NESTING: u16 = 100;

#[derive(Debug, Clone)]
pub(super) enum Chars<'a> {
    Borrowed(&'a str),
    Owned(Rc<str>),
    /// Captured output that holds turns of messages; only printing it keeps them.
    Marked(Rc<Captured>),
}

/// A string, and what is known of its origin.
#[derive(Debug, Clone)]
pub(super) struct Text<'a> {
    pub chars: Chars<'a>,
    /// This many bytes at the end are the template's own words, or special tokens.
    pub literal_tail: u32,
    /// Number of the message whose words these are; 0 where they are nobody's.
    pub source: u32,
    /// Marked `safe`: Jinja2 would escape what is added to it.
    pub markup: bool,
}

impl<'a> Text<'a> {
    pub fn literal(text: &'a str) -> Self {
        Self { chars: Chars::Borrowed(text), literal_tail: text.len() as u32, source: 0, markup: false }
    }

    pub fn data(text: &'a str, source: u32) -> Self {
        Self { chars: Chars::Borrowed(text), literal_tail: 0, source, markup: false }
    }

    pub fn owned(text: impl Into<Rc<str>>, source: u32) -> Self {
        Self { chars: Chars::Owned(text.into()), literal_tail: 0, source, markup: false }
    }

    pub fn as_str(&self) -> &str {
        match &self.chars {
            Chars::Borrowed(text) => text,
            Chars::Owned(text) => text,
            Chars::Marked(captured) => &captured.text,
        }
    }

    /// A part of this text, chosen by `part`; borrowed where the text is.
    pub fn part(&self, part: impl for<'t> FnOnce(&'t str) -> &'t str) -> Self {
        match &self.chars {
            Chars::Borrowed(text) => Self::data(part(text), self.source),
            _ => Self::owned(part(self.as_str()), self.source),
        }
    }

    /// Several parts of this text.
    pub fn parts(&self, parts: impl for<'t> FnOnce(&'t str) -> Vec<&'t str>) -> Vec<Value<'a>> {
        if let Chars::Borrowed(text) = &self.chars {
            parts(text).into_iter().map(|part| Value::Str(Self::data(part, self.source))).collect()
        } else {
            let parts = parts(self.as_str());
            parts.into_iter().map(|part| Value::Str(Self::owned(part, self.source))).collect()
        }
    }
}

/// Items of a built list or tuple and how deep they nest.
#[derive(Debug)]
pub(super) struct Items<'a> {
    pub values: Vec<Value<'a>>,
    pub depth: u16,
    pub shape: Shape,
}

/// What Python calls a tuple or a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Plain,
    /// What `groupby` makes: its two items have names, `grouper` and `list`.
    Group,
    DictItems,
    DictKeys,
    DictValues,
}

/// Entries of a built dict, in order of insertion.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    pub entries: Vec<(Value<'a>, Value<'a>)>,
    pub depth: u16,
}

/// What `loop` knows.
#[derive(Debug)]
pub(super) struct LoopState<'a> {
    pub items: Sequence<'a>,
    pub index0: Cell<usize>,
    pub length: usize,
    pub changed: RefCell<Option<Vec<Value<'a>>>>,
    /// The statement, if `loop` may be called.
    pub recursive: Option<&'a For>,
    /// How many runs of it are around this one.
    pub depth0: u32,
}

/// Something a loop goes over, without copying it.
#[derive(Debug, Clone)]
pub(super) enum Sequence<'a> {
    Json(&'a [Json]),
    Items(Rc<Items<'a>>),
    Range(i64, i64, usize),
}

impl<'a> Sequence<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(items) => items.len(),
            Self::Items(items) => items.values.len(),
            Self::Range(_, _, length) => *length,
        }
    }

    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Json(items) => items.get(index).map(|item| Value::from_json(item, 0)),
            Self::Items(items) => items.values.get(index).cloned(),
            Self::Range(start, step, length) => (index < *length).then(|| Value::Int(start + step * index as i64)),
        }
    }
}

/// Functions that every template has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    Range,
    Dict,
    Namespace,
    RaiseException,
    StrftimeNow,
    /// `lipsum`, `cycler`, `joiner`: callable in Jinja2, an error here.
    Unsupported,
}

#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    /// A slot nothing was assigned to.
    Unset,
    /// Jinja2's Undefined, with the name that was looked for.
    Undefined(&'a str),
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, in canonical decimal.
    Big(Rc<str>),
    Float(f64),
    Str(Text<'a>),
    Json(&'a [Json]),
    /// A JSON object, and the number of the message it is (0: none).
    Object(Members<'a>, u32),
    List(Rc<Items<'a>>),
    Tuple(Rc<Items<'a>>),
    /// `dict.items()` and its kin: has a length, cannot be indexed.
    View(Rc<Items<'a>>),
    /// A generator: can be gone through once.
    Generator(Rc<Items<'a>>, Rc<Cell<bool>>),
    Dict(Rc<Entries<'a>>),
    /// start, step, length.
    Range(i64, i64, usize),
    /// Index into the rendering's namespaces.
    Namespace(usize),
    Loop(Rc<LoopState<'a>>),
    Macro(&'a Macro),
    Builtin(Builtin),
    /// A method of an object, not called.
    Bound,
}

impl<'a> Value<'a> {
    pub fn from_json(json: &'a Json, source: u32) -> Self {
        match json {
            Json::Null => Self::None,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(text) => number::from_json(text),
            Json::String(text) => Self::Str(Text::data(text, source)),
            Json::Array(items) => Self::Json(items),
            Json::Object(members) => Self::Object(members, 0),
        }
    }

    pub fn literal(text: &'a str) -> Self {
        Self::Str(Text::literal(text))
    }

    pub fn string(text: impl Into<Rc<str>>) -> Self {
        Self::Str(Text::owned(text, 0))
    }

    fn depth(&self) -> u16 {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::View(items) | Self::Generator(items, _) => items.depth,
            Self::Dict(entries) => entries.depth,
            Self::Loop(state) => match &state.items {
                Sequence::Items(items) => items.depth + 1,
                _ => 1,
            },
            _ => 0,
        }
    }

    pub fn items(items: Vec<Self>) -> Rc<Items<'a>> {
        Self::shaped(items, Shape::Plain)
    }

    pub fn shaped(items: Vec<Self>, shape: Shape) -> Rc<Items<'a>> {
        let depth = 1 + items.iter().map(Self::depth).max().unwrap_or(0);
        Rc::new(Items { values: items, depth, shape })
    }

    pub fn list(items: Vec<Self>) -> Self {
        Self::List(Self::items(items))
    }

    pub fn generator(items: Vec<Self>) -> Self {
        Self::Generator(Self::items(items), Rc::new(Cell::new(false)))
    }

    pub fn dict(entries: Vec<(Self, Self)>) -> Self {
        let depth = 1 + entries.iter().map(|(key, value)| key.depth().max(value.depth())).max().unwrap_or(0);
        Self::Dict(Rc::new(Entries { entries, depth }))
    }

    /// Built deeper than printing and dropping may recurse.
    pub fn too_deep(&self) -> bool {
        self.depth() > MAX_NESTING
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_) | Self::Unset)
    }

    pub fn truthy(&self) -> bool {
        match self {
            Self::Unset | Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) => !text.as_str().is_empty(),
            Self::Json(items) => !items.is_empty(),
            Self::Object(members, _) => !members.is_empty(),
            Self::List(items) | Self::Tuple(items) | Self::View(items) => !items.values.is_empty(),
            Self::Dict(entries) => !entries.entries.is_empty(),
            Self::Range(_, _, length) => *length != 0,
            Self::Loop(_)
            | Self::Big(_)
            | Self::Generator(..)
            | Self::Namespace(_)
            | Self::Macro(_)
            | Self::Builtin(_)
            | Self::Bound => true,
        }
    }

    /// Python's name of the type, for errors.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Unset | Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Json(_) | Self::List(_) => "list",
            Self::Object(..) | Self::Dict(_) => "dict",
            Self::Tuple(_) => "tuple",
            Self::View(_) => "dict view",
            Self::Generator(..) => "generator",
            Self::Range(..) => "range",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) | Self::Builtin(_) | Self::Bound => "function",
        }
    }

    pub fn as_text(&self) -> Option<&Text<'a>> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    pub fn as_str(&self) -> Option<&str> {
        self.as_text().map(Text::as_str)
    }

    /// An integer as Python's `__index__` sees it: booleans count.
    pub fn as_index(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    pub fn is_mapping(&self) -> bool {
        matches!(self, Self::Object(..) | Self::Dict(_))
    }

    /// `len(self)`; none where Python raises.
    pub fn length(&self) -> Option<usize> {
        Some(match self {
            Self::Unset | Self::Undefined(_) => 0,
            Self::Str(text) => super::text::length(text.as_str()),
            Self::Json(items) => items.len(),
            Self::Object(members, _) => members.len(),
            Self::List(items) | Self::Tuple(items) | Self::View(items) => items.values.len(),
            Self::Dict(entries) => entries.entries.len(),
            Self::Range(_, _, length) => *length,
            Self::Loop(state) => state.length,
            _ => return None,
        })
    }

    /// What `for` goes over; none where Python raises `TypeError`. A generator is used up.
    pub fn iterate(&self) -> Option<Sequence<'a>> {
        Some(match self {
            Self::Unset | Self::Undefined(_) => Sequence::Json(&[]),
            Self::Str(text) => {
                let mut ends = text.as_str().char_indices().map(|(at, c)| (at, at + c.len_utf8())).collect::<Vec<_>>();
                let chars = ends.drain(..).map(|(from, to)| Value::Str(text.part(|text| &text[from..to])));
                Sequence::Items(Self::items(chars.collect()))
            }
            Self::Json(items) => Sequence::Json(items),
            Self::Object(members, _) => {
                Sequence::Items(Self::items(members.iter().map(|(key, _)| Value::Str(Text::data(key, 0))).collect()))
            }
            Self::Dict(entries) => {
                Sequence::Items(Self::items(entries.entries.iter().map(|(key, _)| key.clone()).collect()))
            }
            Self::List(items) | Self::Tuple(items) | Self::View(items) => Sequence::Items(items.clone()),
            Self::Generator(items, used) => {
                if used.replace(true) {
                    Sequence::Json(&[])
                } else {
                    Sequence::Items(items.clone())
                }
            }
            Self::Range(start, step, length) => Sequence::Range(*start, *step, *length),
            _ => return None,
        })
    }

    pub fn to_vec(&self) -> Option<Vec<Self>> {
        let sequence = self.iterate()?;
        Some((0..sequence.len()).filter_map(|i| sequence.get(i)).collect())
    }

    /// Keys and values of a mapping.
    pub fn entries(&self) -> Option<Vec<(Self, Self)>> {
        match self {
            Self::Object(members, message) => Some(
                members
                    .iter()
                    .map(|(key, value)| (Value::Str(Text::data(key, 0)), Self::member(key, value, *message)))
                    .collect(),
            ),
            Self::Dict(entries) => Some(entries.entries.clone()),
            _ => None,
        }
    }

    /// A member's value; text of a message that stands for what it says remembers the message.
    pub fn member(key: &str, value: &'a Json, message: u32) -> Self {
        Self::from_json(value, source_of(key, message))
    }

    /// Look `key` up in a mapping; none if it is absent or this is no mapping.
    pub fn lookup(&self, key: &Self, fuel: &Fuel) -> Option<Self> {
        match self {
            Self::Object(members, message) => {
                let key = key.as_str()?;
                let (key, value) = members.iter().find(|(name, _)| &**name == key)?;
                Some(Self::member(key, value, *message))
            }
            Self::Dict(entries) => {
                entries.entries.iter().find(|(name, _)| name.equals(key, fuel)).map(|(_, value)| value.clone())
            }
            _ => None,
        }
    }

    pub fn lookup_str(&self, key: &str) -> Option<Self> {
        match self {
            Self::Object(members, message) => {
                let (key, value) = members.iter().find(|(name, _)| &**name == key)?;
                Some(Self::member(key, value, *message))
            }
            Self::Dict(entries) => {
                entries.entries.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value.clone())
            }
            _ => None,
        }
    }

    /// Python's `==`.
    pub fn equals(&self, other: &Self, fuel: &Fuel) -> bool {
        if !fuel.spend(1) {
            return false;
        }
        if let (Some(left), Some(right)) = (number::Number::of(self), number::Number::of(other)) {
            return left.compare(&right) == Some(std::cmp::Ordering::Equal);
        }
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => a.as_str() == b.as_str(),
            (Self::None, Self::None) => true,
            (a, b) if a.is_undefined() && b.is_undefined() => true,
            (Self::Json(_) | Self::List(_), Self::Json(_) | Self::List(_)) | (Self::Tuple(_), Self::Tuple(_)) => {
                let (Some(a), Some(b)) = (self.iterate(), other.iterate()) else { return false };
                a.len() == b.len()
                    && (0..a.len()).all(|i| match (a.get(i), b.get(i)) {
                        (Some(a), Some(b)) => a.equals(&b, fuel),
                        _ => false,
                    })
            }
            (Self::Object(..) | Self::Dict(_), Self::Object(..) | Self::Dict(_)) => {
                let (Some(a), Some(b)) = (self.entries(), other.entries()) else { return false };
                a.len() == b.len()
                    && a.iter()
                        .all(|(key, value)| other.lookup(key, fuel).is_some_and(|found| value.equals(&found, fuel)))
            }
            (Self::Range(a, step, length), Self::Range(b, other_step, other_length)) => {
                let same_step = *length == 1 || step == other_step;
                length == other_length && (*length == 0 || (a == b && same_step))
            }
            (Self::Namespace(a), Self::Namespace(b)) => a == b,
            (Self::Builtin(a), Self::Builtin(b)) => a == b,
            (Self::Macro(a), Self::Macro(b)) => std::ptr::eq(*a, *b),
            _ => false,
        }
    }
}

impl Owners {
    /// Python finds the attribute on the object itself.
    #[inline]
    pub(super) fn include(self, value: &Value<'_>) -> bool {
        let bit = match value {
            Value::Str(_) => 0,
            Value::Object(..) | Value::Dict(_) => 1,
            Value::Json(_) | Value::List(_) => 2,
            Value::Tuple(_) => 3,
            Value::Range(..) => 4,
            Value::Bool(_) | Value::Int(_) | Value::Big(_) => 5,
            Value::Float(_) => 6,
            Value::View(_) => 7,
            Value::Generator(..) => 8,
            _ => return false,
        };
        self.has(bit)
    }
}
