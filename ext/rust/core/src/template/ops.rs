//! Python's operators.
use std::cmp::Ordering;

use super::ast::{BinaryOp, CompareOp};
use super::format::{PercentArgs, percent};
use super::fuel::Fuel;
use super::number::Number;
use super::source::joint_source;
use super::value::{Chars, Text, Value};
use super::{Outcome, fail, undefined};

/// Longest text an operator may build.
pub(super) const MAX_TEXT: usize = 64 << 20;

fn mismatch<'a>(op: &str, left: &Value<'a>, right: &Value<'a>) -> Outcome<Value<'a>> {
    for side in [left, right] {
        if let Value::Undefined(name) = side {
            return undefined(name);
        }
    }
    fail(format!("unsupported operand types for {op}: '{}' and '{}'", left.type_name(), right.type_name()))
}

/// `left + right` of two strings. Where they came from is kept where it can be.
pub(super) fn concat<'a>(left: &Text<'a>, right: &Text<'a>, fuel: &Fuel) -> Outcome<Text<'a>> {
    if matches!(left.chars, Chars::Marked(_)) || matches!(right.chars, Chars::Marked(_)) {
        return fail("a captured block that holds whole messages is joined to other text: turns cannot be located");
    }
    let (a, b) = (left.as_str(), right.as_str());
    let length = a.len() + b.len();
    if length > MAX_TEXT || !fuel.spend_bytes(length) {
        return fail("out of fuel: a text grows without bounds");
    }
    let mut text = String::with_capacity(length);
    text.push_str(a);
    text.push_str(b);
    let all_literal = right.literal_tail as usize == b.len();
    let literal_tail = right.literal_tail + if all_literal { left.literal_tail } else { 0 };
    let source = joint_source(left.source, right.source);
    Ok(Text { chars: Chars::Owned(text.into()), literal_tail, source, markup: false })
}

/// `left op right`.
pub(super) fn binary<'a>(op: BinaryOp, left: &Value<'a>, right: &Value<'a>, fuel: &Fuel) -> Outcome<Value<'a>> {
    if !fuel.spend(1) {
        return fail("out of fuel");
    }
    if let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) {
        return arithmetic(op, &a, &b);
    }
    match (op, left, right) {
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => {
            if a.markup || b.markup {
                return fail("'+' on a |safe string (Jinja2 would escape the other side) is not supported; use '~'");
            }
            concat(a, b, fuel).map(Value::Str)
        }
        (BinaryOp::Add, Value::List(_) | Value::Json(_), Value::List(_) | Value::Json(_)) => {
            join_items(left, right, fuel).map(Value::List)
        }
        (BinaryOp::Add, Value::Tuple(_), Value::Tuple(_)) => join_items(left, right, fuel).map(Value::Tuple),
        (BinaryOp::Mul, Value::Str(text), other) | (BinaryOp::Mul, other, Value::Str(text)) => match other.as_index() {
            Some(times) if !text.markup => repeat(text, times, fuel),
            _ => mismatch("*", left, right),
        },
        (BinaryOp::Mod, Value::Str(text), _) if !text.markup => {
            let listed = if let Value::Tuple(items) = right { &items.values[..] } else { std::slice::from_ref(right) };
            let is_mapping = matches!(right, Value::Object(..) | Value::Dict(_) | Value::List(_) | Value::Json(_));
            let args = PercentArgs { listed, mapping: is_mapping.then_some(right) };
            percent(text.as_str(), &args, fuel).map(Value::string)
        }
        (BinaryOp::Mul, list @ (Value::List(_) | Value::Json(_) | Value::Tuple(_)), other)
        | (BinaryOp::Mul, other, list @ (Value::List(_) | Value::Json(_) | Value::Tuple(_))) => {
            match other.as_index() {
                Some(times) => repeat_items(list, times, fuel),
                None => mismatch("*", left, right),
            }
        }
        _ => mismatch(symbol(op), left, right),
    }
}

fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "**",
    }
}

fn join_items<'a>(left: &Value<'a>, right: &Value<'a>, fuel: &Fuel) -> Outcome<std::rc::Rc<super::value::Items<'a>>> {
    let mut items = left.to_vec().unwrap_or_default();
    items.extend(right.to_vec().unwrap_or_default());
    if !fuel.spend(items.len() as u64) {
        return fail("out of fuel");
    }
    let list = Value::items(items);
    if list.depth > super::value::MAX_NESTING {
        return fail("lists are nested too deeply");
    }
    Ok(list)
}

fn repeat<'a>(text: &Text<'a>, times: i64, fuel: &Fuel) -> Outcome<Value<'a>> {
    let times = usize::try_from(times).unwrap_or(0);
    let length = text.as_str().len().saturating_mul(times);
    if length > MAX_TEXT || !fuel.spend_bytes(length) {
        return fail("out of fuel: a text grows without bounds");
    }
    Ok(Value::Str(Text::owned(text.as_str().repeat(times), text.source)))
}

fn repeat_items<'a>(list: &Value<'a>, times: i64, fuel: &Fuel) -> Outcome<Value<'a>> {
    let items = list.to_vec().unwrap_or_default();
    let times = usize::try_from(times).unwrap_or(0);
    let length = items.len().saturating_mul(times);
    if length > 1 << 20 || !fuel.spend(length as u64) {
        return fail("out of fuel: a list grows without bounds");
    }
    let items = Value::items(items.iter().cycle().take(length).cloned().collect());
    Ok(if matches!(list, Value::Tuple(_)) { Value::Tuple(items) } else { Value::List(items) })
}

pub(super) fn arithmetic<'a>(op: BinaryOp, left: &Number, right: &Number) -> Outcome<Value<'a>> {
    match (left, right) {
        (Number::Int(a), Number::Int(b)) => integers(op, *a, *b),
        (Number::Big(_) | Number::Int(_), Number::Big(_) | Number::Int(_)) => match (left.as_wide(), right.as_wide()) {
            (Some(a), Some(b)) => wide_integers(op, a, b),
            _ => fail("arithmetic on integers beyond 128 bits is not supported"),
        },
        _ => floats(op, left.as_float(), right.as_float()),
    }
}

pub(super) fn integers<'a>(op: BinaryOp, a: i64, b: i64) -> Outcome<Value<'a>> {
    let result = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        _ => None,
    };
    result.map_or_else(|| wide_integers(op, a.into(), b.into()), |value| Ok(Value::Int(value)))
}

fn wide_integers<'a>(op: BinaryOp, a: i128, b: i128) -> Outcome<Value<'a>> {
    let result = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::Div => {
            // Python divides the integers exactly and rounds once; floats hold integers up to 2^53.
            if a.unsigned_abs() > 1 << 53 || b.unsigned_abs() > 1 << 53 {
                return fail("division of integers beyond 2^53 is not supported");
            }
            #[expect(clippy::cast_precision_loss, reason = "checked above")]
            return floats(op, a as f64, b as f64);
        }
        BinaryOp::FloorDiv | BinaryOp::Mod if b == 0 => return fail("division by zero"),
        BinaryOp::FloorDiv => {
            a.checked_div(b).map(|quotient| if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
        }
        BinaryOp::Mod => a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
        BinaryOp::Pow if b < 0 && a.unsigned_abs() <= 1 << 53 => {
            #[expect(clippy::cast_precision_loss, reason = "checked above, and a power beyond i32 is 0 or 1")]
            return floats(op, a as f64, b as f64);
        }
        BinaryOp::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    let Some(result) = result else { return fail("an integer beyond 128 bits is not supported") };
    Ok(i64::try_from(result).map_or_else(|_| Value::Big(result.to_string().into()), Value::Int))
}

fn floats<'a>(op: BinaryOp, a: f64, b: f64) -> Outcome<Value<'a>> {
    Ok(Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod if b == 0.0 => return fail("division by zero"),
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv => divide(a, b).0,
        BinaryOp::Mod => divide(a, b).1,
        BinaryOp::Pow if a == 0.0 && b < 0.0 => return fail("0.0 cannot be raised to a negative power"),
        BinaryOp::Pow if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 => {
            return fail("a power that is a complex number is not supported");
        }
        BinaryOp::Pow => match a.powf(b) {
            power if power.is_infinite() && a.is_finite() && b.is_finite() => {
                return fail("numerical result out of range");
            }
            power => power,
        },
    }))
}

/// Python's `a // b` and `a % b`: the rest has the sign of `b`.
fn divide(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0.0_f64.copysign(b);
    } else if (b < 0.0) != (rest < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    let floor = if quotient == 0.0 {
        0.0_f64.copysign(a / b)
    } else {
        let floor = quotient.floor();
        if quotient - floor > 0.5 { floor + 1.0 } else { floor }
    };
    (floor, rest)
}

/// `-value` or `+value`.
pub(super) fn sign<'a>(value: &Value<'a>, negative: bool) -> Outcome<Value<'a>> {
    match Number::of(value) {
        Some(Number::Int(number)) => {
            let result = if negative { number.checked_neg() } else { Some(number) };
            result.map_or_else(|| wide_integers(BinaryOp::Sub, 0, number.into()), |value| Ok(Value::Int(value)))
        }
        Some(Number::Float(number)) => Ok(Value::Float(if negative { -number } else { number })),
        Some(Number::Big(_)) if !negative => Ok(value.clone()),
        Some(big @ Number::Big(_)) => match big.as_wide() {
            Some(number) => wide_integers(BinaryOp::Sub, 0, number),
            None => fail("arithmetic on integers beyond 128 bits is not supported"),
        },
        None => mismatch("unary sign", value, value),
    }
}

/// Python's `<` and kin between two values.
pub(super) fn order<'a>(left: &Value<'a>, right: &Value<'a>, fuel: &Fuel) -> Outcome<Option<Ordering>> {
    if !fuel.spend(1) {
        return fail("out of fuel");
    }
    if let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) {
        return Ok(a.compare(&b));
    }
    match (left, right) {
        (Value::Str(a), Value::Str(b)) => Ok(Some(a.as_str().cmp(b.as_str()))),
        (Value::Json(_) | Value::List(_), Value::Json(_) | Value::List(_)) | (Value::Tuple(_), Value::Tuple(_)) => {
            let (a, b) = (left.to_vec().unwrap_or_default(), right.to_vec().unwrap_or_default());
            for (x, y) in a.iter().zip(&b) {
                if !x.equals(y, fuel) {
                    return order(x, y, fuel);
                }
            }
            Ok(Some(a.len().cmp(&b.len())))
        }
        _ => mismatch("comparison", left, right).map(|_| None),
    }
}

/// One link of a comparison.
pub(super) fn compare<'a>(op: CompareOp, left: &Value<'a>, right: &Value<'a>, fuel: &Fuel) -> Outcome<bool> {
    Ok(match op {
        CompareOp::Eq => left.equals(right, fuel),
        CompareOp::Ne => !left.equals(right, fuel),
        CompareOp::In => contains(right, left, fuel)?,
        CompareOp::NotIn => !contains(right, left, fuel)?,
        CompareOp::Lt => order(left, right, fuel)? == Some(Ordering::Less),
        CompareOp::Gt => order(left, right, fuel)? == Some(Ordering::Greater),
        CompareOp::Le => order(left, right, fuel)?.is_some_and(Ordering::is_le),
        CompareOp::Ge => order(left, right, fuel)?.is_some_and(Ordering::is_ge),
    })
}

/// `needle in haystack`.
pub(super) fn contains<'a>(haystack: &Value<'a>, needle: &Value<'a>, fuel: &Fuel) -> Outcome<bool> {
    match haystack {
        Value::Str(text) => match needle {
            Value::Str(part) => {
                if !fuel.spend_bytes(text.as_str().len()) {
                    return fail("out of fuel");
                }
                Ok(memchr::memmem::find(text.as_str().as_bytes(), part.as_str().as_bytes()).is_some())
            }
            Value::Undefined(name) => undefined(name),
            other => fail(format!("'in <string>' requires a string on its left, not {}", other.type_name())),
        },
        Value::Object(..) | Value::Dict(_) => {
            if needle.is_mapping() || matches!(needle, Value::List(_) | Value::Json(_)) {
                return fail(format!("unhashable type: '{}'", needle.type_name()));
            }
            Ok(haystack.lookup(needle, fuel).is_some())
        }
        _ => {
            let Some(items) = haystack.iterate() else {
                return fail(format!("argument of type '{}' is not iterable", haystack.type_name()));
            };
            if !fuel.spend(items.len() as u64) {
                return fail("out of fuel");
            }
            Ok((0..items.len()).any(|i| items.get(i).is_some_and(|item| item.equals(needle, fuel))))
        }
    }
}

/// Positions that `[start:stop:step]` picks from a sequence of `length`.
fn slice_indices(length: usize, bounds: &[Option<i64>; 3]) -> Outcome<Vec<usize>> {
    let length = length as i64;
    let step = bounds[2].unwrap_or(1);
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp = |bound: Option<i64>, default: i64| match bound {
        None => default,
        Some(at) => (if at < 0 { at.saturating_add(length) } else { at }).clamp(low, high),
    };
    let (mut at, end) = if step > 0 {
        (clamp(bounds[0], low), clamp(bounds[1], high))
    } else {
        (clamp(bounds[0], high), clamp(bounds[1], low))
    };
    let mut picked = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        picked.push(at as usize);
        at = at.saturating_add(step);
    }
    Ok(picked)
}

/// `value[start:stop:step]`.
pub(super) fn slice<'a>(value: &Value<'a>, bounds: &[Option<i64>; 3], fuel: &Fuel) -> Outcome<Value<'a>> {
    match value {
        Value::Json(items) if bounds[2].unwrap_or(1) == 1 => {
            let picked = slice_indices(items.len(), bounds)?;
            let start = picked.first().copied().unwrap_or(0);
            Ok(Value::Json(&items[start..start + picked.len()]))
        }
        Value::Str(text) => {
            let chars = text.as_str();
            if !fuel.spend_bytes(chars.len() * 8) {
                return fail("out of fuel");
            }
            let starts: Vec<usize> = chars.char_indices().map(|(at, _)| at).collect();
            let picked = slice_indices(starts.len(), bounds)?;
            if bounds[2].unwrap_or(1) == 1 {
                let from = picked.first().map_or(0, |&i| starts[i]);
                let to = picked.last().map_or(from, |&i| starts.get(i + 1).copied().unwrap_or(chars.len()));
                return Ok(Value::Str(text.part(|text| &text[from..to])));
            }
            let reversed: String = picked.iter().filter_map(|&i| chars[starts[i]..].chars().next()).collect();
            Ok(Value::Str(Text::owned(reversed, text.source)))
        }
        Value::Json(_) | Value::List(_) | Value::Tuple(_) => {
            let Some(items) = value.iterate() else { return fail("not a sequence") };
            if !fuel.spend(items.len() as u64) {
                return fail("out of fuel");
            }
            let picked = slice_indices(items.len(), bounds)?;
            let picked = picked.into_iter().filter_map(|i| items.get(i)).collect();
            let items = Value::items(picked);
            Ok(if matches!(value, Value::Tuple(_)) { Value::Tuple(items) } else { Value::List(items) })
        }
        Value::Undefined(name) => undefined(name),
        other => fail(format!("a {} cannot be sliced here", other.type_name())),
    }
}
