//! From statements to steps.
use super::super::ast::{BinaryOp, Branch, Expr, For, Scope, Stmt, StmtKind, Target};
use super::super::filters::Filter;
use super::expr::function_name;
use super::lower::{Around, Facts, Lowering, NOWHERE};
use super::{MAX_NESTING, Place, Register, Step};

impl Lowering<'_> {
    pub fn statements(&mut self, body: &[Stmt]) {
        for stmt in body {
            self.begin_statement();
            self.statement(&stmt.kind);
        }
    }

    fn statement(&mut self, kind: &StmtKind) {
        match kind {
            StmtKind::Text(text) => self.text(text),
            StmtKind::Output(value) => self.print(value),
            StmtKind::If(branches, otherwise) => self.choose(branches, otherwise),
            StmtKind::For(stmt) => self.for_loop(stmt),
            StmtKind::Set { target, value, indexes_loop } => self.assign(target, value, *indexes_loop),
            StmtKind::Macro(name, _) => {
                self.opaque.push(name.slots[0]);
                // fuel is counted by steps
                self.steps.push(Step::Clear(0, 0));
            }
            StmtKind::Generation(scope) => self.marked(Step::MarkGeneration, |lowering| lowering.block(scope)),
            StmtKind::Break | StmtKind::Continue => self.leave(matches!(kind, StmtKind::Break)),
            StmtKind::SetBlock(..) | StmtKind::CallBlock(..) | StmtKind::FilterBlock(..) | StmtKind::With(..) => {
                self.stop();
            }
        }
    }

    fn choose(&mut self, branches: &[Branch], otherwise: &[Stmt]) {
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
    fn clear(&mut self, (from, to): (u32, u32)) -> (Register, Register) {
        self.facts.is_set[from as usize..to as usize].fill(false);
        (from..to).for_each(|slot| self.forget(slot as Register));
        (from as Register, to as Register)
    }

    fn for_loop(&mut self, stmt: &For) {
        let Target::Name(item) = &stmt.target else { return self.stop() };
        let of = self.around.iter().filter(|around| around.number.is_some()).count();
        if stmt.recursive || stmt.filter.is_some() || item.slots[0] == stmt.loop_slot || of == MAX_NESTING {
            return self.stop();
        }
        let of = of as u8;
        let over = self.value(&stmt.iter, None);
        self.steps.push(Step::Enter { of, over, empty: NOWHERE });
        let enter = self.steps.len() - 1;
        let begin = self.steps.len() as Place;
        let start = (self.steps.len(), self.num_joined);
        self.land(vec![]);
        self.forget_what_may_change();
        let before = self.facts.clone();
        let clear = self.clear(stmt.scope.slots);
        self.steps.push(Step::Begin { of, item: item.slots[0] as Register, clear });
        self.facts.is_set[item.slots[0] as usize] = true;
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
    fn block(&mut self, scope: &Scope) {
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

    fn assign(&mut self, target: &Target, value: &Expr, indexes_loop: bool) {
        match target {
            Target::Name(name) => {
                let slot = name.slots[0];
                if self.namespaces.iter().any(|namespace| namespace.slot == slot) {
                    return self.make_namespace(slot, value);
                }
                if self.around.iter().any(|around| around.number.is_some() && around.loop_slot == slot) {
                    return self.stop();
                }
                let first = self.steps.len();
                let from = self.value(value, Some(slot as Register));
                if indexes_loop {
                    self.steps.push(Step::OpenTurn(from));
                }
                if from != slot as Register || first == self.steps.len() {
                    // a step even for `set x = x`: fuel is counted by steps
                    self.steps.push(Step::Copy(slot as Register, from));
                }
                self.facts.is_set[slot as usize] = true;
                self.forget(slot as Register);
            }
            Target::Member(name, member) => match self.member(name, member) {
                Some(Some(register)) => {
                    let from = self.value(value, Some(register));
                    self.copy(register, from);
                    self.forget(register);
                }
                _ => self.stop(),
            },
            Target::Tuple(_) => self.stop(),
        }
    }

    fn copy(&mut self, to: Register, from: Register) {
        if to != from {
            self.steps.push(Step::Copy(to, from));
        }
    }

    /// `set name = namespace(...)`, once and for every row.
    fn make_namespace(&mut self, slot: u32, value: &Expr) {
        let at = self.namespaces.iter().position(|namespace| namespace.slot == slot && !namespace.is_made);
        let is_top = self.conditions == 0 && self.around.is_empty();
        let (Some(at), Expr::Call(function, args), true) = (at, value, is_top) else { return self.stop() };
        let is_plain = args.positional.is_empty() && !args.keyword.iter().any(|(name, _)| name.starts_with(['_', '*']));
        if !is_plain || function_name(function) != Some("namespace") {
            return self.stop();
        }
        for (member, value) in &args.keyword {
            let register = self.namespaces[at].members.iter().find(|(name, _)| name == member);
            let Some(&(_, register)) = register else { return self.stop() };
            let from = self.value(value, Some(register));
            self.copy(register, from);
        }
        self.namespaces[at].is_made = true;
    }

    /// Print an expression, as the interpreter does: the terms of a sum or concatenation go out one by one.
    fn print(&mut self, expr: &Expr) {
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

    fn print_value(&mut self, expr: &Expr) {
        match expr {
            Expr::Str(text) => self.text(text),
            Expr::Filter(Some(value), Filter::ToJson, args) => {
                let indent = match (&args.positional[..], &args.keyword[..]) {
                    ([], []) => None,
                    ([], [(name, Expr::Int(width @ 0..=64))]) if **name == *"indent" => Some(*width as u8),
                    _ => return self.stop(),
                };
                let from = self.value(value, None);
                self.steps.push(Step::PrintJson(from, indent));
            }
            other => {
                let from = self.value(other, None);
                self.steps.push(Step::Print(from));
            }
        }
    }

    fn print_sum(&mut self, expr: &Expr) {
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
