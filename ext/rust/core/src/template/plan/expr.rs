//! From expressions to steps.
use super::super::ast::{ArgExprs, Attr, BinaryOp, CompareOp, Expr, Macro, Name};
use super::super::date::strftime;
use super::super::names::Filter;
use super::super::names::Test;
use super::super::row::is_function;
use super::super::text::Side;
use super::lower::{Around, Lowering, NOWHERE};
use super::{Condition, Constant, LoopFact, Register, Step};
use memchr::memmem::Finder;

/// Calls of macros within one another whose steps are written out, and how high their bodies may be together: less than
/// the interpreter allows.
const MAX_INLINED: usize = 8;
const MAX_INLINED_HEIGHT: u32 = 300;

/// Steps of a template with the macros it calls written out; what would be more is for the interpreter.
const MAX_STEPS: usize = 20_000;

impl<'t> Lowering<'t> {
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
            Expr::List(items) if items.is_empty() => self.constant(Constant::EmptyList),
            Expr::Filter(Some(value), filter @ (Filter::First | Filter::Last), args) if args.is_empty() => {
                self.part(value, *filter == Filter::Last, to)
            }
            Expr::Filter(Some(value), filter, args) => {
                let value = self.value(value, None);
                self.filter(value, *filter, args, to)
            }
            Expr::Concat(parts) => {
                let from = parts.iter().map(|part| self.value(part, None)).collect();
                self.result(to, |to| Step::Join(to, from, true))
            }
            Expr::Binary(BinaryOp::Add, ..) if terms(expr).iter().any(|term| matches!(term, Expr::Str(_))) => {
                let from = terms(expr).into_iter().map(|term| self.value(term, None)).collect();
                self.result(to, |to| Step::Join(to, from, false))
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
                self.or_else(kept, skip, right)
            }
            Expr::Not(_) | Expr::Test(..) | Expr::Compare(..) => self.truth(expr),
            _ => self.unknown(),
        }
    }

    /// What is in `kept`, and without the jump `skip` another value.
    fn or_else(&mut self, kept: Register, skip: usize, other: &Expr) -> Register {
        let before = self.facts.clone();
        self.conditions += 1;
        let from = self.value(other, Some(kept));
        self.steps.push(Step::Copy(kept, from));
        self.conditions -= 1;
        self.facts.meet(&before);
        self.land(vec![skip]);
        kept
    }

    /// What a filter makes of a value.
    pub fn filter(&mut self, value: Register, filter: Filter, args: &ArgExprs, to: Option<Register>) -> Register {
        match filter {
            Filter::ToJson => match json_indent(args) {
                Some(indent) => self.result(to, |to| Step::Json(to, value, indent)),
                None => self.unknown(),
            },
            Filter::Default => self.or_default(value, args),
            _ if !args.is_empty() => self.unknown(),
            Filter::Length => self.find(value, "|length", to, |to| Step::Length(to, value)),
            Filter::Trim => self.result(to, |to| Step::Strip(to, value, Side::Both, None)),
            Filter::String | Filter::Safe => self.result(to, |to| Step::Spell(to, value, filter == Filter::Safe)),
            Filter::Upper | Filter::Lower | Filter::Capitalize => {
                self.result(to, |to| Step::Reshape(to, value, filter))
            }
            _ => self.unknown(),
        }
    }

    /// `value | default(other)`. The interpreter computes the other value in any case, so it must be one that cannot fail.
    fn or_default(&mut self, value: Register, args: &ArgExprs) -> Register {
        let (other, if_false) = match (&args.positional[..], &args.keyword[..]) {
            ([other], []) => (other, false),
            ([other, Expr::Bool(if_false)], []) => (other, *if_false),
            ([other], [(name, Expr::Bool(if_false))]) if **name == *"boolean" => (other, *if_false),
            _ => return self.unknown(),
        };
        let is_plain = match other {
            Expr::None | Expr::Bool(_) | Expr::Int(_) | Expr::Str(_) | Expr::Name(_) => true,
            Expr::List(items) => items.is_empty(),
            _ => false,
        };
        if !is_plain {
            return self.unknown();
        }
        let kept = self.keep();
        self.steps.push(Step::Copy(kept, value));
        let keeps = if if_false { Condition::True(kept) } else { Condition::Passes(kept, Test::Defined) };
        let skip = self.jump_if(keeps, true);
        self.or_else(kept, skip, other)
    }

    /// The first or last part of `text.split(separator)`, or item of a list.
    fn part(&mut self, value: &Expr, last: bool, to: Option<Register>) -> Register {
        if let Expr::Call(function, args) = value
            && let Some((text, "split", Some(separator))) = text_method(function, args)
            && !separator.is_empty()
        {
            let text = self.value(text, None);
            return self.result(to, |to| Step::Part(to, text, separator.into(), last));
        }
        let items = self.value(value, None);
        let index = self.constant(Constant::Int(if last { -1 } else { 0 }));
        self.result(to, |to| Step::At(to, items, index))
    }

    /// The steps of a macro, and what they write.
    fn inline(&mut self, body: &'t Macro, args: &ArgExprs, to: Option<Register>) -> Register {
        let Some(given) = arguments(body, args) else { return self.unknown() };
        let height: u32 = body.height + self.inlined.iter().map(|body| body.height).sum::<u32>();
        let is_around = self.inlined.iter().any(|around| std::ptr::eq(*around, body));
        let is_much = self.inlined.len() == MAX_INLINED || self.steps.len() > MAX_STEPS;
        if is_around || is_much || height > MAX_INLINED_HEIGHT {
            return self.unknown();
        }
        let given: Vec<_> = given.into_iter().map(|value| value.map(|value| self.value(value, None))).collect();
        self.inlined.push(body);
        self.around.push(Around::default());
        self.within_expression(|lowering| {
            let (from, until) = lowering.clear(body.all_slots);
            lowering.steps.push(Step::Clear(from, until));
            for ((name, default), given) in body.params.iter().zip(given) {
                let slot = name.slots[0];
                let from = match (given, default) {
                    (Some(given), _) => Step::Copy(slot as Register, given),
                    (None, Some(default)) => {
                        let from = lowering.value(default, Some(slot as Register));
                        Step::Copy(slot as Register, from)
                    }
                    (None, None) => Step::Pick(slot as Register, [].into()),
                };
                lowering.steps.push(from);
                lowering.facts.is_set[slot as usize] = true;
                lowering.forget(slot as Register);
            }
            if let Some(slot) = body.caller {
                lowering.steps.push(Step::Pick(slot as Register, [].into()));
                lowering.facts.is_set[slot as usize] = true;
            }
            lowering.steps.push(Step::Capture);
            lowering.statements(&body.scope.body);
        });
        self.around.pop();
        self.inlined.pop();
        self.result(to, Step::Captured)
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
        if is_function(&name.name) || slots.iter().any(|slot| self.is_special(*slot)) {
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
        let namespace = self.namespaces.iter().find(|namespace| Some(namespace.slot) == name.own_slot())?;
        let found = namespace.members.iter().find(|(known, _)| **known == *member).map(|(_, register)| *register);
        self.facts.made.contains(&namespace.slot).then_some(found)
    }

    fn attribute(&mut self, object: &Expr, attr: &Attr, to: Option<Register>) -> Register {
        if let Expr::Name(name) = object {
            match self.member(name, &attr.name) {
                Some(Some(register)) if self.copies_members => return self.result(None, |to| Step::Copy(to, register)),
                Some(Some(register)) => return register,
                Some(None) => return self.result(None, |to| Step::Pick(to, Box::default())),
                None => {}
            }
            let is_its = |around: &&Around| around.number.is_some() && Some(around.loop_slot) == name.own_slot();
            let around = self.around.iter().find(is_its);
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
            (_, Some(at @ (0 | -1)), Expr::Call(..)) => self.part(object, at == -1, to),
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
        if let Expr::Name(name) = function
            && let Some(&(_, body)) = self.macros.iter().rfind(|(slot, _)| Some(*slot) == name.own_slot())
        {
            return self.inline(body, args, to);
        }
        let Some((text, method, arg)) = text_method(function, args) else { return self.unknown() };
        if let ("get", Some(key)) = (method, arg) {
            let object = self.value(text, None);
            return self.result(to, |to| Step::Get(to, object, Box::new(Box::<str>::from(key).into())));
        }
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

/// The value of each parameter of a macro that the call gives one; none if the call is for the interpreter.
fn arguments<'e>(body: &Macro, args: &'e ArgExprs) -> Option<Vec<Option<&'e Expr>>> {
    let is_plain = body.varargs.is_none() && body.kwargs.is_none();
    let spreads = args.positional.iter().any(|arg| matches!(arg, Expr::Spread(_)));
    if !is_plain || spreads || args.positional.len() > body.params.len() {
        return None;
    }
    let mut given: Vec<Option<&Expr>> = args.positional.iter().map(Some).collect();
    given.resize(body.params.len(), None);
    for (name, value) in &args.keyword {
        let at = body.params.iter().position(|(param, _)| param.name == *name)?;
        if given[at].replace(value).is_some() {
            return None;
        }
    }
    Some(given)
}

/// The terms of a sum, from the left.
fn terms(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Binary(BinaryOp::Add, left, right) => {
            let mut all = terms(left);
            all.push(right);
            all
        }
        term => vec![term],
    }
}

/// By how much `tojson(...)` indents; none if it asks for anything else.
#[expect(clippy::option_option, reason = "two questions")]
pub(super) fn json_indent(args: &ArgExprs) -> Option<Option<u8>> {
    let mut indent = None;
    for (name, value) in &args.keyword {
        match (&**name, value) {
            ("indent", Expr::Int(width @ 0..=64)) => indent = Some(*width as u8),
            ("indent", Expr::None) | ("ensure_ascii", Expr::Bool(false)) => {}
            _ => return None,
        }
    }
    args.positional.is_empty().then_some(indent)
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
