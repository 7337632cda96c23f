//! From expressions to steps.
use super::super::ast::{ArgExprs, Attr, BinaryOp, CompareOp, Expr, Name};
use super::super::date::strftime;
use super::super::filters::Filter;
use super::super::is_tests::Test;
use super::super::row::is_function;
use super::super::text::Side;
use super::lower::{Lowering, NOWHERE};
use super::{Condition, Constant, LoopFact, Register, Step};
use memchr::memmem::Finder;

impl Lowering<'_> {
    /// Where the value of an expression will be: in `to`, if it has to be put somewhere.
    pub fn value(&mut self, expr: &Expr, to: Option<Register>) -> Register {
        match expr {
            Expr::None => self.constant(Constant::None),
            Expr::Bool(value) => self.constant(Constant::Bool(*value)),
            Expr::Int(value) => self.constant(Constant::Int(*value)),
            Expr::Str(text) => self.constant(Constant::Text(text.clone())),
            Expr::Negative(_) => {
                let Some(value) = literal_int(expr) else { return self.unknown() };
                self.constant(Constant::Int(value))
            }
            Expr::Name(name) => self.read(name),
            Expr::Attribute(object, attr) => self.attribute(object, attr, to),
            Expr::Item(object, key) => self.item(object, key, to),
            Expr::Slice(object, bounds) => {
                let from = match bounds {
                    [Some(from), None, None] => literal_int(from).filter(|from| (0..1 << 30).contains(from)).map(Some),
                    [None, None, Some(step)] => literal_int(step).filter(|step| *step == -1).map(|_| None),
                    _ => None,
                };
                let Some(from) = from else { return self.unknown() };
                let object = self.value(object, None);
                self.result(to, |to| Step::Slice(to, object, from))
            }
            Expr::Filter(Some(value), Filter::Length, args) if args.is_empty() => {
                let value = self.value(value, None);
                self.find(value, "|length", to, |to| Step::Length(to, value))
            }
            Expr::Filter(Some(value), Filter::Trim, args) if args.is_empty() => {
                let value = self.value(value, None);
                self.result(to, |to| Step::Strip(to, value, Side::Both, None))
            }
            Expr::Binary(op @ (BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mod), left, right) => {
                let (left, right) = (self.value(left, None), self.value(right, None));
                let step = |to| Step::Compute(to, *op, left, right);
                if self.is_fixed(left) && self.is_fixed(right) {
                    return self.ask(left, &format!("{op:?} {right}"), step);
                }
                self.result(to, step)
            }
            Expr::Call(function, args) => self.call(function, args, expr, to),
            Expr::Conditional(test, value, otherwise) => {
                let skips = self.branch(test, false);
                self.either(value, skips, otherwise.as_deref())
            }
            Expr::And(left, right) | Expr::Or(left, right) => {
                let kept = self.keep();
                let from = self.value(left, Some(kept));
                self.steps.push(Step::Copy(kept, from));
                let skip = self.jump_if(Condition::True(kept), matches!(expr, Expr::Or(..)));
                let before = self.facts.clone();
                self.conditions += 1;
                let from = self.value(right, Some(kept));
                self.steps.push(Step::Copy(kept, from));
                self.conditions -= 1;
                self.facts.meet(&before);
                self.land(vec![skip]);
                kept
            }
            Expr::Not(_) | Expr::Test(..) | Expr::Compare(..) => self.truth(expr),
            _ => self.unknown(),
        }
    }

    /// A value that a plan cannot have.
    fn unknown(&mut self) -> Register {
        self.stop();
        self.keep()
    }

    fn result(&mut self, to: Option<Register>, step: impl FnOnce(Register) -> Step) -> Register {
        let to = to.unwrap_or_else(|| self.keep());
        self.steps.push(step(to));
        to
    }

    /// The answer to a question, remembered if it is about a variable and not to be put somewhere.
    fn find(
        &mut self,
        of: Register,
        question: &str,
        to: Option<Register>,
        step: impl FnOnce(Register) -> Step,
    ) -> Register {
        let is_variable = usize::from(of) < self.layout.num_slots as usize || self.is_fixed(of);
        if is_variable { self.ask(of, question, step) } else { self.result(to, step) }
    }

    /// One of two values; `skips` jump to the second. Without a second, nothing.
    fn either(&mut self, value: &Expr, skips: Vec<usize>, otherwise: Option<&Expr>) -> Register {
        let kept = self.keep();
        self.conditions += 1;
        let before = self.facts.clone();
        let from = self.value(value, None);
        self.steps.push(Step::Copy(kept, from));
        let end = self.jump();
        let after = std::mem::replace(&mut self.facts, before);
        self.land(skips);
        match otherwise {
            Some(otherwise) => {
                let from = self.value(otherwise, None);
                self.steps.push(Step::Copy(kept, from));
            }
            None => self.steps.push(Step::Pick(kept, Box::default())),
        }
        self.facts.meet(&after);
        self.conditions -= 1;
        self.land(vec![end]);
        kept
    }

    fn truth(&mut self, expr: &Expr) -> Register {
        let skips = self.branch(expr, false);
        self.either(&Expr::Bool(true), skips, Some(&Expr::Bool(false)))
    }

    fn read(&mut self, name: &Name) -> Register {
        let Some((outside, slots)) = name.slots.split_last() else { return self.unknown() };
        let is_other = |slot: &u32| {
            self.opaque.contains(slot)
                || self.namespaces.iter().any(|namespace| namespace.slot == *slot)
                || self.around.iter().any(|around| around.number.is_some() && around.loop_slot == *slot)
        };
        if is_function(&name.name) || slots.iter().any(is_other) {
            return self.unknown();
        }
        let mut from: Vec<Register> = vec![];
        for slot in slots {
            from.push(*slot as Register);
            if self.facts.is_set[*slot as usize] {
                break;
            }
        }
        if !slots.iter().any(|slot| self.facts.is_set[*slot as usize]) {
            from.push((self.layout.num_slots + outside) as Register);
        }
        match from[..] {
            [only] => only,
            _ => self.result(None, |to| Step::Pick(to, from.into())),
        }
    }

    /// The register of a namespace's member: none if the name is no namespace, or none yet; and none for a member that
    /// is never set.
    #[expect(clippy::option_option, reason = "two questions")]
    pub fn member(&self, name: &Name, member: &str) -> Option<Option<Register>> {
        let namespace = self.namespaces.iter().find(|namespace| namespace.slot == name.slots[0])?;
        let found = namespace.members.iter().find(|(known, _)| **known == *member).map(|(_, register)| *register);
        namespace.is_made.then_some(found)
    }

    fn attribute(&mut self, object: &Expr, attr: &Attr, to: Option<Register>) -> Register {
        if let Expr::Name(name) = object {
            match self.member(name, &attr.name) {
                Some(Some(register)) => return register,
                Some(None) => return self.result(None, |to| Step::Pick(to, Box::default())),
                None => {}
            }
            let around = self.around.iter().find(|around| around.loop_slot == name.slots[0] && around.number.is_some());
            if let Some(of) = around.and_then(|around| around.number) {
                return match LoopFact::named(&attr.name) {
                    Some(fact) => self.result(to, |to| Step::Loop(to, of, fact)),
                    None => self.unknown(),
                };
            }
        }
        let object = self.value(object, None);
        self.find(object, &attr.name, to, |to| Step::Attribute(to, object, Box::new(attr.clone())))
    }

    fn item(&mut self, object: &Expr, key: &Expr, to: Option<Register>) -> Register {
        match (key, literal_int(key), object) {
            (Expr::Str(name), ..) => {
                let object = self.value(object, None);
                // another question than `.name`, for a dict's own attributes are no items
                let question = format!("[{name}]");
                self.find(object, &question, to, |to| Step::Item(to, object, Box::new(name.clone().into())))
            }
            (_, Some(at @ (0 | -1)), Expr::Call(function, args)) => match text_method(function, args) {
                Some((text, "split", Some(separator))) if !separator.is_empty() => {
                    let text = self.value(text, None);
                    self.result(to, |to| Step::Part(to, text, separator.into(), at == -1))
                }
                _ => self.unknown(),
            },
            _ => {
                let (object, index) = (self.value(object, None), self.value(key, None));
                self.result(to, |to| Step::At(to, object, index))
            }
        }
    }

    fn call(&mut self, function: &Expr, args: &ArgExprs, expr: &Expr, to: Option<Register>) -> Register {
        if let (Some("strftime_now"), [Expr::Str(format)], []) =
            (function_name(function), &args.positional[..], &args.keyword[..])
            && let Ok(text) = strftime(format, self.date)
        {
            return self.constant(Constant::Data(text.into()));
        }
        let Some((text, method, arg)) = text_method(function, args) else { return self.unknown() };
        let side = match method {
            "strip" => Side::Both,
            "lstrip" => Side::Left,
            "rstrip" => Side::Right,
            "startswith" | "endswith" if arg.is_some() => return self.truth(expr),
            _ => return self.unknown(),
        };
        let text = self.value(text, None);
        self.result(to, |to| Step::Strip(to, text, side, arg.map(Box::from)))
    }

    fn jump_if(&mut self, condition: Condition, wanted: bool) -> usize {
        self.steps.push(Step::Branch(condition, wanted, NOWHERE));
        self.steps.len() - 1
    }

    /// Steps that jump if the expression is true (or false: `wanted`), and go on if it is not; the jumps.
    pub fn branch(&mut self, expr: &Expr, wanted: bool) -> Vec<usize> {
        let condition = match expr {
            Expr::Not(value) => return self.branch(value, !wanted),
            Expr::And(left, right) | Expr::Or(left, right) => {
                // whether the left side alone can settle it
                let settles = matches!(expr, Expr::Or(..));
                let mut jumps = self.branch(left, settles);
                let before = self.facts.clone();
                self.conditions += 1;
                let more = self.branch(right, wanted);
                self.conditions -= 1;
                self.facts.meet(&before);
                if settles == wanted {
                    jumps.extend(more);
                    return jumps;
                }
                self.land(jumps);
                return more;
            }
            Expr::Test(value, Test::Defined, _) if function_name(value).is_some() => {
                Condition::True(self.constant(Constant::Bool(true)))
            }
            Expr::Test(value, test, args) if args.is_empty() => Condition::Passes(self.value(value, None), *test),
            Expr::Test(..) => return self.no_branch(),
            Expr::Compare(first, rest) => match &rest[..] {
                [(op @ (CompareOp::Eq | CompareOp::Ne), Expr::Str(text))] => {
                    let condition = Condition::IsText(self.value(first, None), text.clone());
                    return vec![self.jump_if(condition, wanted == (*op == CompareOp::Eq))];
                }
                [(op @ (CompareOp::In | CompareOp::NotIn), Expr::List(items) | Expr::Tuple(items))]
                    if items.iter().all(|item| matches!(item, Expr::Str(_))) =>
                {
                    return self.branch_in(first, items, wanted == (*op == CompareOp::In));
                }
                [(op @ (CompareOp::In | CompareOp::NotIn), second)] => {
                    let Expr::Str(needle) = &**first else { return self.no_branch() };
                    let finder = Box::new(Finder::new(needle.as_bytes()).into_owned());
                    let condition = Condition::Holds(self.value(second, None), finder);
                    return vec![self.jump_if(condition, wanted == (*op == CompareOp::In))];
                }
                [(op, second)] => Condition::Compare(self.value(first, None), *op, self.value(second, None)),
                _ => return self.no_branch(),
            },
            Expr::Call(function, args) => match text_method(function, args) {
                Some((text, "startswith", Some(affix))) => Condition::StartsWith(self.value(text, None), affix.into()),
                Some((text, "endswith", Some(affix))) => Condition::EndsWith(self.value(text, None), affix.into()),
                _ => Condition::True(self.value(expr, None)),
            },
            _ => Condition::True(self.value(expr, None)),
        };
        vec![self.jump_if(condition, wanted)]
    }

    /// As `branch`, of `value in ['a', 'b']`.
    fn branch_in(&mut self, value: &Expr, items: &[Expr], wanted: bool) -> Vec<usize> {
        let value = self.value(value, None);
        let texts = items.iter().filter_map(|item| if let Expr::Str(text) = item { Some(text) } else { None });
        let found: Vec<usize> = texts.map(|text| self.jump_if(Condition::IsText(value, text.clone()), true)).collect();
        if wanted {
            return found;
        }
        let jump = self.jump();
        self.land(found);
        vec![jump]
    }

    fn no_branch(&mut self) -> Vec<usize> {
        self.stop();
        vec![]
    }
}

fn literal_int(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Int(value) => Some(*value),
        Expr::Negative(value) => literal_int(value)?.checked_neg(),
        _ => None,
    }
}

/// The function that an expression is, if it is one that every template can call and nothing is assigned to its name.
/// (Rows that assign to one are not planned.)
pub(super) fn function_name(expr: &Expr) -> Option<&str> {
    let Expr::Name(Name { name, slots }) = expr else { return None };
    (is_function(name) && slots.len() == 1).then_some(name)
}

/// A call of a text's method: on what, which, and its argument if it has one. Only arguments that are spelled out.
fn text_method<'e>(function: &'e Expr, args: &'e ArgExprs) -> Option<(&'e Expr, &'e str, Option<&'e str>)> {
    let Expr::Attribute(text, attr) = function else { return None };
    match (&args.positional[..], &args.keyword[..]) {
        ([], []) => Some((text, &attr.name, None)),
        ([Expr::Str(arg)], []) => Some((text, &attr.name, Some(arg))),
        _ => None,
    }
}
