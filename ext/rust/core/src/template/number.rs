//! Numbers as Python has them: integers that know their size, floats that print their shortest form.
use std::cmp::Ordering;

use super::value::Value;
use crate::json::python_float;

/// Python refuses to convert longer texts to `int`.
const MAX_INT_DIGITS: usize = 4300;

/// What `json.loads` makes of a number's text. An integer of more digits than Python reads is a big integer, which printing
/// refuses.
pub(super) fn from_json<'a>(text: &str) -> Value<'a> {
    match classify(text) {
        Kind::Int(value) => Value::Int(value),
        Kind::Big => Value::Big(text.into()),
        Kind::Float(value) => Value::Float(value),
    }
}

enum Kind {
    Int(i64),
    Big,
    Float(f64),
}

fn classify(text: &str) -> Kind {
    match text {
        "NaN" => return Kind::Float(f64::NAN),
        "Infinity" => return Kind::Float(f64::INFINITY),
        "-Infinity" => return Kind::Float(f64::NEG_INFINITY),
        _ => {}
    }
    if text.bytes().any(|b| matches!(b, b'.' | b'e' | b'E')) {
        return Kind::Float(text.parse().unwrap_or(f64::NAN));
    }
    text.parse().map_or(Kind::Big, Kind::Int)
}

/// True if Python's `json.loads` would refuse the integer for its length.
pub(super) fn is_too_long(text: &str) -> bool {
    text.len() > MAX_INT_DIGITS && text.trim_start_matches('-').len() > MAX_INT_DIGITS
}

/// Write a number's JSON text as `json.dumps(json.loads(text))` would.
pub(super) fn write_json_number(text: &str, out: &mut String) {
    match classify(text) {
        Kind::Int(0) => out.push('0'),
        Kind::Int(_) | Kind::Big => out.push_str(text),
        Kind::Float(value) => write_json_float(value, out),
    }
}

/// `json.dumps(float)`.
pub(super) fn write_json_float(value: f64, out: &mut String) {
    out.push_str(&python_float(value));
}

/// `repr(float)`.
pub(super) fn write_float(value: f64, out: &mut String) {
    match value {
        _ if value.is_nan() => out.push_str("nan"),
        f64::INFINITY => out.push_str("inf"),
        f64::NEG_INFINITY => out.push_str("-inf"),
        _ => write_json_float(value, out),
    }
}

/// A number for arithmetic.
#[derive(Debug, Clone)]
pub(super) enum Number {
    Int(i64),
    Big(std::rc::Rc<str>),
    Float(f64),
}

impl Number {
    /// Python's numeric tower: booleans are integers.
    pub fn of(value: &Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Self::Int(i64::from(*value)),
            Value::Int(value) => Self::Int(*value),
            Value::Big(text) => Self::Big(text.clone()),
            Value::Float(value) => Self::Float(*value),
            _ => return None,
        })
    }

    pub fn as_float(&self) -> f64 {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "Python rounds the same way")]
            Self::Int(value) => *value as f64,
            Self::Big(text) => text.parse().unwrap_or(f64::NAN),
            Self::Float(value) => *value,
        }
    }

    /// An integer, if 128 bits hold it.
    pub fn as_wide(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(i128::from(*value)),
            Self::Big(text) => text.parse().ok(),
            Self::Float(_) => None,
        }
    }

    /// Exact, also between integers and floats; none with NaN.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Big(a), Self::Big(b)) => Some(compare_big(a, b)),
            (Self::Big(a), Self::Int(_)) => Some(if a.starts_with('-') { Ordering::Less } else { Ordering::Greater }),
            (Self::Int(_), Self::Big(_)) | (Self::Float(_), Self::Int(_) | Self::Big(_)) => {
                other.compare(self).map(Ordering::reverse)
            }
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            (Self::Int(a), Self::Float(b)) => compare_int_float(*a, *b),
            (Self::Big(_), Self::Float(b)) => {
                // Beyond 64 bits only the neighbourhood of the float could be unequal; that is not decided here.
                self.as_float().partial_cmp(b)
            }
        }
    }
}

fn compare_big(a: &str, b: &str) -> Ordering {
    match (a.strip_prefix('-'), b.strip_prefix('-')) {
        (None, None) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
        (Some(a), Some(b)) => b.len().cmp(&a.len()).then_with(|| b.cmp(a)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
    }
}

fn compare_int_float(a: i64, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    if b >= 9_223_372_036_854_775_808.0 {
        return Some(Ordering::Less);
    }
    if b < -9_223_372_036_854_775_808.0 {
        return Some(Ordering::Greater);
    }
    let whole = b.trunc();
    Some(a.cmp(&(whole as i64)).then_with(|| 0.0_f64.partial_cmp(&(b - whole)).unwrap_or(Ordering::Equal)))
}
