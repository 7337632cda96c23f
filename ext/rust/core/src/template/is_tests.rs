//! Jinja2's tests: what follows `is`.
use super::args::Args;
use super::ast::BinaryOp;
use super::interp::Interp;
use super::names::Test;
use super::number::Number;
use super::ops;
use super::value::Value;
use super::{Outcome, fail, undefined};

impl<'a> Interp<'a> {
    pub(super) fn apply_test(&mut self, test: Test, value: &Value<'a>, args: Args<'a>) -> Outcome<bool> {
        match test {
            Test::Compare(op) => {
                let [Some(other)] = args.bind("the test", ["other"])? else {
                    return fail("the test needs an argument");
                };
                return ops::compare(op, value, &other, &self.fuel);
            }
            Test::DivisibleBy => {
                let [Some(by)] = args.bind("divisibleby", ["num"])? else { return fail("divisibleby needs a number") };
                return remainder(value, &by);
            }
            Test::SameAs => {
                let [Some(other)] = args.bind("sameas", ["other"])? else { return fail("sameas needs a value") };
                return match (value, &other) {
                    (Value::None, Value::None) => Ok(true),
                    (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
                    (Value::None | Value::Bool(_), _) | (_, Value::None | Value::Bool(_)) => Ok(false),
                    _ => fail("sameas is only supported with none, true and false"),
                };
            }
            _ => args.none("the test")?,
        }
        Ok(match test {
            Test::Defined => !value.is_undefined(),
            Test::Undefined => value.is_undefined(),
            Test::None => matches!(value, Value::None),
            Test::Boolean => matches!(value, Value::Bool(_)),
            Test::True => matches!(value, Value::Bool(true)),
            Test::False => matches!(value, Value::Bool(false)),
            Test::Integer => matches!(value, Value::Int(_) | Value::Big(_)),
            Test::Float => matches!(value, Value::Float(_)),
            Test::Number => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_)),
            Test::String => matches!(value, Value::Str(_)),
            Test::Mapping => value.is_mapping(),
            Test::Iterable => is_iterable(value),
            Test::Sequence => {
                let indexed = matches!(value, Value::Str(_) | Value::Json(_) | Value::List(_) | Value::Tuple(_));
                indexed || value.is_mapping() || value.is_undefined() || matches!(value, Value::Range(..))
            }
            Test::Callable => {
                let called = matches!(value, Value::Macro(_) | Value::Builtin(_) | Value::Bound | Value::Loop(_));
                called || value.is_undefined()
            }
            Test::Case(upper) => {
                let words = self.soft_text(value.clone())?;
                if !words.as_str().is_ascii() {
                    return fail("the case of text that is not ASCII is not supported");
                }
                let (has_upper, has_lower) = (
                    words.as_str().contains(|c: char| c.is_ascii_uppercase()),
                    words.as_str().contains(|c: char| c.is_ascii_lowercase()),
                );
                has_upper != has_lower && has_upper == upper
            }
            Test::Odd => is_odd(value)?,
            Test::Even => remainder(value, &Value::Int(2))?,
            Test::Compare(_) | Test::DivisibleBy | Test::SameAs => return fail("the test needs an argument"),
        })
    }
}

fn is_iterable(value: &Value<'_>) -> bool {
    match value {
        Value::Generator(..) | Value::Loop(_) => true,
        other => other.iterate().is_some(),
    }
}

/// `value % by == 0`.
fn remainder(value: &Value<'_>, by: &Value<'_>) -> Outcome<bool> {
    match (Number::of(value), Number::of(by)) {
        (Some(Number::Int(_)), Some(Number::Int(0))) => fail("division by zero"),
        (Some(Number::Int(number)), Some(Number::Int(by))) => Ok(number.checked_rem(by).unwrap_or(0) == 0),
        (Some(number), Some(by)) => ops::arithmetic(BinaryOp::Mod, &number, &by).map(|rest| !rest.truthy()),
        _ => match (value, by) {
            (Value::Undefined(name), _) | (_, Value::Undefined(name)) => undefined(name),
            _ => fail(format!("divisibility of a {} is not supported", value.type_name())),
        },
    }
}

/// `value % 2 == 1`.
fn is_odd(value: &Value<'_>) -> Outcome<bool> {
    match (Number::of(value), value) {
        (Some(number), _) => {
            // a remainder of 2 is exact
            #[allow(clippy::float_cmp)]
            let is_one = |rest: Number| rest.as_float() == 1.0;
            let rest = ops::arithmetic(BinaryOp::Mod, &number, &Number::Int(2))?;
            Ok(Number::of(&rest).is_some_and(is_one))
        }
        (None, Value::Undefined(name)) => undefined(name),
        _ => fail(format!("divisibility of a {} is not supported", value.type_name())),
    }
}
