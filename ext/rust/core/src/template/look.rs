//! Conditions without copies: most of what a template asks (`message.role == "user"`, `content is string`) can be seen in
//! place. What cannot is evaluated, with the same answer.
use super::Outcome;
use super::ast::{CompareOp, Expr};
use super::interp::Interp;
use super::is_tests::Test;
use super::number;
use super::value::Value;
use crate::types::Json;

/// A value where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen<'s, 'a> {
    Value(&'s Value<'a>),
    Member(&'a Json),
    Undefined,
}

impl<'a> Interp<'a> {
    /// The value of an expression that need not be computed.
    pub(super) fn look(&self, expr: &'a Expr) -> Option<Seen<'_, 'a>> {
        match expr {
            Expr::Name(name) => Some(self.find(name).map_or(Seen::Undefined, Seen::Value)),
            Expr::Attribute(object, attr) if !attr.name.starts_with("__") => match self.look(object)? {
                Seen::Value(object @ Value::Object(members, _)) if !attr.owners.include(object) => {
                    let found = members.iter().find(|(key, _)| *key == attr.name);
                    Some(found.map_or(Seen::Undefined, |(_, value)| Seen::Member(value)))
                }
                Seen::Value(Value::Namespace(at)) => {
                    Some(self.member(*at, &attr.name).map_or(Seen::Undefined, Seen::Value))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether an expression is true.
    pub(super) fn test(&mut self, expr: &'a Expr) -> Outcome<bool> {
        let known = match expr {
            Expr::Bool(value) => Some(*value),
            Expr::Not(value) => Some(!self.test(value)?),
            Expr::And(left, right) => Some(self.test(left)? && self.test(right)?),
            Expr::Or(left, right) => Some(self.test(left)? || self.test(right)?),
            Expr::Name(_) | Expr::Attribute(..) => self.look(expr).map(Seen::truthy),
            Expr::Test(value, test, args) if args.positional.is_empty() && args.keyword.is_empty() => {
                self.look(value).and_then(|seen| seen.passes(*test))
            }
            Expr::Compare(first, rest) => match &rest[..] {
                [(op @ (CompareOp::Eq | CompareOp::Ne), Expr::Str(text))] => self.look(first).map(|seen| {
                    // as any comparison: one step, and unequal without it
                    let equal = self.fuel.spend(1) && seen.is_text(text);
                    equal == (*op == CompareOp::Eq)
                }),
                _ => None,
            },
            _ => None,
        };
        match known {
            Some(known) => Ok(known),
            None => Ok(self.eval(expr)?.truthy()),
        }
    }
}

impl Seen<'_, '_> {
    fn truthy(self) -> bool {
        match self {
            Self::Undefined | Self::Member(Json::Null) => false,
            Self::Value(value) => value.truthy(),
            Self::Member(Json::Bool(value)) => *value,
            Self::Member(Json::Number(text)) => number::from_json(text).truthy(),
            Self::Member(Json::String(text)) => !text.is_empty(),
            Self::Member(Json::Array(items)) => !items.is_empty(),
            Self::Member(Json::Object(members)) => !members.is_empty(),
        }
    }

    fn is_text(self, text: &str) -> bool {
        match self {
            Self::Value(value) => value.as_str() == Some(text),
            Self::Member(Json::String(found)) => **found == *text,
            _ => false,
        }
    }

    /// A test without arguments; none for one that looks closer.
    fn passes(self, test: Test) -> Option<bool> {
        let undefined = match self {
            Self::Undefined => true,
            Self::Value(value) => value.is_undefined(),
            Self::Member(_) => false,
        };
        Some(match test {
            Test::Defined => !undefined,
            Test::Undefined => undefined,
            Test::None => matches!(self, Self::Value(Value::None) | Self::Member(Json::Null)),
            Test::True => matches!(self, Self::Value(Value::Bool(true)) | Self::Member(Json::Bool(true))),
            Test::False => matches!(self, Self::Value(Value::Bool(false)) | Self::Member(Json::Bool(false))),
            Test::String => matches!(self, Self::Value(Value::Str(_)) | Self::Member(Json::String(_))),
            Test::Mapping => match self {
                Self::Value(value) => value.is_mapping(),
                Self::Member(value) => matches!(value, Json::Object(_)),
                Self::Undefined => false,
            },
            _ => return None,
        })
    }
}
