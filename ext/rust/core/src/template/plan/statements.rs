//! From statements to steps.
use super::super::ast::{ArgExprs, BinaryOp, Branch, Expr, For, Scope, Stmt, StmtKind, Target};
use super::super::names::Filter;
use super::expr::{function_name, json_indent};
use super::lower::{Around, Facts, Lowering, NOWHERE};
use super::{MAX_NESTING, Place, Register, Step};

impl<'t> Lowering<'t> {
    pub fn statements(&mut self, body: &'t [Stmt]) {
        for stmt in body {
            self.begin_statement();
            self.statement(&stmt.kind);
        }
    }

    fn statement(&mut self, kind: &'t StmtKind) {
        match kind {
            StmtKind::Text(text) => self.text(text),
            StmtKind::Output(value) => self.print(value),
            StmtKind::If(branches, otherwise) => self.choose(branches, otherwise),
            StmtKind::For(stmt) => self.for_loop(stmt),
            StmtKind::Set { target, value, indexes_loop } => self.assign(target, value, *indexes_loop),
            StmtKind::Macro(name, body) => {
                if self.conditions > 0 || !self.around.is_empty() || self.is_special(name.slots[0]) {
                    return self.stop();
                }
                self.macros.push((name.slots[0], body));
                // fuel is counted by steps
                self.steps.push(Step::Clear(0, 0));
            }
            StmtKind::Generation(scope) => self.marked(Step::MarkGeneration, |lowering| lowering.block(scope)),
            StmtKind::Break | StmtKind::Continue => self.leave(matches!(kind, StmtKind::Break)),
            StmtKind::SetBlock(target, filters, scope) => {
                let text = self.filtered(filters, scope);
                self.put(target, text);
            }
            StmtKind::FilterBlock(filters, scope) => {
                let text = self.filtered(filters, scope);
                self.steps.push(Step::Print(text));
            }
            StmtKind::CallBlock(..) | StmtKind::With(..) => self.stop(),
        }
    }

    /// What a block writes, filtered.
    fn filtered(&mut self, filters: &'t [(Filter, ArgExprs)], scope: &'t Scope) -> Register {
        self.steps.push(Step::Capture);
        self.block(scope);
        self.begin_statement();
        let mut text = self.keep();
        self.steps.push(Step::Captured(text));
        for (filter, args) in filters {
            text = self.filter(text, *filter, args, None);
        }
        text
    }

    fn choose(&mut self, branches: &'t [Branch], otherwise: &'t [Stmt]) {
        let mut after: Option<Facts> = None;
        let mut meet = |facts: Facts| match &mut after {
            Some(after) => after.meet(&facts),
            None => after = Some(facts),
        };
        let mut ends = vec![];
        for (number, branch) in branches.iter().enumerate() {
            self.begin_statement();
            self.conditions += u32::from(number > 0);
            let skips = self.branch(&branch.test, false);
            self.conditions += u32::from(number == 0);
            let before = self.facts.clone();
            if branch.is_prompt {
                self.marked(Step::MarkPrompt, |lowering| lowering.statements(&branch.body));
            } else {
                self.statements(&branch.body);
            }
            meet(std::mem::replace(&mut self.facts, before));
            if number + 1 < branches.len() || !otherwise.is_empty() {
                ends.push(self.jump());
            }
            self.land(skips);
        }
        self.statements(otherwise);
        meet(std::mem::take(&mut self.facts));
        self.facts = after.unwrap_or_default();
        self.conditions -= branches.len() as u32;
        self.land(ends);
    }

    /// Statements whose output is marked.
    fn marked(&mut self, mark: fn(u8) -> Step, body: impl FnOnce(&mut Self)) {
        let place = self.num_places;
        if usize::from(place) == MAX_NESTING {
            return self.stop();
        }
        self.num_places += 1;
        self.steps.push(Step::From(place));
        body(self);
        self.steps.push(mark(place));
        self.num_places -= 1;
    }

    /// The registers of a scope's variables, of which none is set.
    pub fn clear(&mut self, (from, to): (u32, u32)) -> (Register, Register) {
        self.facts.is_set[from as usize..to as usize].fill(false);
        self.facts.made.retain(|slot| !(from..to).contains(slot));
        (from..to).for_each(|slot| self.forget(slot as Register));
        (from as Register, to as Register)
    }

    fn for_loop(&mut self, stmt: &'t For) {
        let (item, value, iter) = match (&stmt.target, &stmt.iter) {
            (Target::Name(item), iter) => (item, None, iter),
            (Target::Tuple(names), Expr::Filter(Some(object), Filter::Items, args)) if args.is_empty() => {
                let [Target::Name(key), Target::Name(value)] = &names[..] else { return self.stop() };
                (key, Some(value), &**object)
            }
            (Target::Tuple(names), Expr::Call(method, args)) if args.is_empty() => {
                let [Target::Name(key), Target::Name(value)] = &names[..] else { return self.stop() };
                let Expr::Attribute(object, attr) = &**method else { return self.stop() };
                if *attr.name != *"items" {
                    return self.stop();
                }
                (key, Some(value), &**object)
            }
            _ => return self.stop(),
        };
        let value = value.map(|value| value.slots[0]);
        let of = self.around.iter().filter(|around| around.number.is_some()).count();
        let shadows = [Some(item.slots[0]), value].contains(&Some(stmt.loop_slot)) || value == Some(item.slots[0]);
        if stmt.recursive || stmt.filter.is_some() || shadows || of == MAX_NESTING {
            return self.stop();
        }
        let of = of as u8;
        let over = self.value(iter, None);
        self.steps.push(Step::Enter { of, over, items: value.is_some(), empty: NOWHERE });
        let enter = self.steps.len() - 1;
        let begin = self.steps.len() as Place;
        let start = (self.steps.len(), self.num_joined);
        self.land(vec![]);
        self.forget_what_may_change();
        let before = self.facts.clone();
        let clear = self.clear(stmt.scope.slots);
        let register = value.map(|slot| slot as Register);
        self.steps.push(Step::Begin { of, item: item.slots[0] as Register, value: register, clear });
        for slot in [Some(item.slots[0]), value].into_iter().flatten() {
            self.facts.is_set[slot as usize] = true;
        }
        self.around.push(Around { number: Some(of), loop_slot: stmt.loop_slot, ..Around::default() });
        self.statements(&stmt.scope.body);
        let Around { breaks, continues, .. } = self.around.pop().unwrap_or_default();
        self.land(continues);
        let cost = self.cost(start);
        self.steps.push(Step::Next { of, begin, cost });
        self.facts = before;
        if stmt.otherwise.body.is_empty() {
            self.land(vec![enter]);
        } else {
            let end = self.jump();
            self.land(vec![enter]);
            self.conditions += 1;
            let before = self.facts.clone();
            self.block(&stmt.otherwise);
            self.facts.meet(&before);
            self.conditions -= 1;
            self.land(vec![end]);
        }
        self.land(breaks);
    }

    /// Statements that `break` cannot leave.
    fn block(&mut self, scope: &'t Scope) {
        let (from, to) = self.clear(scope.slots);
        if from < to {
            self.steps.push(Step::Clear(from, to));
        }
        self.around.push(Around::default());
        self.statements(&scope.body);
        self.around.pop();
    }

    fn leave(&mut self, breaks: bool) {
        let Some(of) = self.around.last().and_then(|around| around.number) else { return self.stop() };
        if breaks {
            self.steps.push(Step::Leave { of });
        }
        let jump = self.jump();
        if let Some(around) = self.around.last_mut() {
            if breaks { &mut around.breaks } else { &mut around.continues }.push(jump);
        }
    }

    /// What a slot holds is no value that a register can have.
    pub fn is_special(&self, slot: u32) -> bool {
        self.namespaces.iter().any(|namespace| namespace.slot == slot)
            || self.macros.iter().any(|(of, _)| *of == slot)
            || self.around.iter().any(|around| around.number.is_some() && around.loop_slot == slot)
    }

    fn assign(&mut self, target: &'t Target, value: &'t Expr, indexes_loop: bool) {
        let to = match target {
            Target::Name(name) => {
                let slot = name.slots[0];
                if self.namespaces.iter().any(|namespace| namespace.slot == slot) {
                    return self.make_namespace(slot, value);
                }
                Some(slot as Register)
            }
            Target::Member(name, member) => self.member(name, member).flatten(),
            Target::Tuple(_) => None,
        };
        let first = self.steps.len();
        let from = self.value(value, to);
        if indexes_loop {
            self.steps.push(Step::OpenTurn(from));
        }
        if first == self.steps.len() {
            // a step even for `set x = x`: fuel is counted by steps
            self.steps.push(Step::Clear(0, 0));
        }
        self.put(target, from);
    }

    /// Assign what is in a register.
    fn put(&mut self, target: &Target, from: Register) {
        let to = match target {
            Target::Name(name) if !self.is_special(name.slots[0]) => {
                self.facts.is_set[name.slots[0] as usize] = true;
                name.slots[0] as Register
            }
            Target::Member(name, member) => match self.member(name, member) {
                Some(Some(register)) => register,
                _ => return self.stop(),
            },
            Target::Name(_) | Target::Tuple(_) => return self.stop(),
        };
        if to != from {
            self.steps.push(Step::Copy(to, from));
        }
        self.forget(to);
    }

    /// `set name = namespace(...)`: the members that are not given are not set.
    fn make_namespace(&mut self, slot: u32, value: &'t Expr) {
        let at = self.namespaces.iter().position(|namespace| namespace.slot == slot);
        let (Some(at), Expr::Call(function, args)) = (at, value) else { return self.stop() };
        let is_plain = args.positional.is_empty() && !args.keyword.iter().any(|(name, _)| name.starts_with(['_', '*']));
        if !is_plain || function_name(function) != Some("namespace") {
            return self.stop();
        }
        let mut given = vec![];
        for (member, value) in &args.keyword {
            // kept, for it may be a member that gets another value here
            let (from, kept) = (self.value(value, None), self.keep());
            self.steps.push(Step::Copy(kept, from));
            given.push((member, kept));
        }
        for (member, register) in self.namespaces[at].members.clone() {
            let value = given.iter().rfind(|(name, _)| **name == member);
            self.steps.push(value.map_or(Step::Pick(register, [].into()), |(_, from)| Step::Copy(register, *from)));
            self.forget(register);
        }
        if !self.facts.made.contains(&slot) {
            self.facts.made.push(slot);
        }
    }

    /// Print an expression, as the interpreter does: the terms of a sum or concatenation go out one by one.
    fn print(&mut self, expr: &'t Expr) {
        match expr {
            Expr::Str(text) => self.text(text),
            Expr::Concat(parts) => parts.iter().for_each(|part| self.print_value(part)),
            Expr::Binary(BinaryOp::Add, ..) => self.print_sum(expr),
            Expr::Conditional(test, value, otherwise) => {
                let skips = self.branch(test, false);
                self.conditions += 1;
                let before = self.facts.clone();
                self.print(value);
                let end = self.jump();
                let after = std::mem::replace(&mut self.facts, before);
                self.land(skips);
                if let Some(otherwise) = otherwise {
                    self.print(otherwise);
                }
                self.facts.meet(&after);
                self.conditions -= 1;
                self.land(vec![end]);
            }
            other => self.print_value(other),
        }
    }

    fn print_value(&mut self, expr: &'t Expr) {
        match expr {
            Expr::Str(text) => self.text(text),
            // printed, a text is what it was before it was marked
            Expr::Filter(Some(value), Filter::Safe, args) if args.is_empty() => self.print_value(value),
            Expr::Filter(Some(value), Filter::ToJson, args) => {
                let Some(indent) = json_indent(args) else { return self.stop() };
                let from = self.value(value, None);
                self.steps.push(Step::PrintJson(from, indent));
            }
            other => {
                let from = self.value(other, None);
                self.steps.push(Step::Print(from));
            }
        }
    }

    fn print_sum(&mut self, expr: &'t Expr) {
        match expr {
            Expr::Binary(BinaryOp::Add, left, right) => {
                self.print_sum(left);
                self.print_sum(right);
            }
            Expr::Str(_) | Expr::Filter(_, Filter::ToJson, _) => self.print_value(expr),
            term => {
                let from = self.value(term, None);
                self.steps.push(Step::PrintText(from));
            }
        }
    }
}
