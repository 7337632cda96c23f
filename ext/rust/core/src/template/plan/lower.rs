//! From a template's statements to steps.
use super::super::ast::{BinaryOp, Branch, Expr, For, Name, Scope, Stmt, StmtKind, Target};
use super::super::filters::Filter;
use super::super::scope::Layout;
use super::{Constant, MAX_NESTING, NUM_REGISTERS, Place, Plan, Register, Step};

/// A jump whose target is not yet known goes where no step is: to the interpreter.
pub(super) const NOWHERE: Place = Place::MAX;

/// Registers that statements use in passing; one that needs more gets some of its own.
const NUM_PASSING: usize = 16;

/// A loop around the statement, or a block that `break` cannot leave.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub number: Option<u8>,
    pub loop_slot: u32,
    breaks: Vec<usize>,
    continues: Vec<usize>,
}

/// `set name = namespace(...)` at the top of a template: its members are registers.
#[derive(Debug)]
pub(super) struct Namespace {
    pub slot: u32,
    pub members: Vec<(Box<str>, Register)>,
    /// Its statement has run.
    pub is_made: bool,
}

/// What is known at a place of the plan, however it was reached.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Whether each slot is set.
    pub is_set: Vec<bool>,
    /// Registers that hold what was asked of a variable: the variable, the question, where the answer is.
    pub answers: Vec<(Register, Box<str>, Register)>,
}

impl Facts {
    /// What holds on another way to this place too.
    pub fn meet(&mut self, other: &Self) {
        self.is_set.iter_mut().zip(&other.is_set).for_each(|(set, other)| *set &= other);
        self.answers.retain(|answer| other.answers.contains(answer));
    }
}

pub(super) struct Lowering<'t> {
    pub layout: &'t Layout,
    pub steps: Vec<Step>,
    constants: Vec<(Register, Constant)>,
    /// No text may be joined to what stands before this step, for something jumps here.
    target: usize,
    pub namespaces: Vec<Namespace>,
    /// Slots whose values are not for plans: macros.
    pub opaque: Vec<u32>,
    pub facts: Facts,
    /// Registers for the answers of [`Facts`].
    asked: Vec<(Register, Box<str>, Register)>,
    pub around: Vec<Around>,
    /// The first of the registers that every statement may use in passing, and how many this one does.
    passing: (usize, usize),
    num_registers: usize,
    /// Stretches to be marked around the statement.
    num_places: u8,
    /// Conditions around the statement.
    pub conditions: u32,
    /// The interpreter is needed for every row.
    is_hopeless: bool,
}

/// The plan of a template, unless it would give up on every row.
pub(in super::super) fn plan(body: &[Stmt], layout: &Layout) -> Option<Plan> {
    let variables = layout.num_slots as usize + layout.outside.len();
    let mut lowering = Lowering {
        layout,
        steps: vec![],
        constants: vec![],
        target: 0,
        namespaces: vec![],
        opaque: vec![],
        facts: Facts { is_set: vec![false; layout.num_slots as usize], answers: vec![] },
        asked: vec![],
        around: vec![],
        passing: (variables, 0),
        num_registers: variables + NUM_PASSING,
        num_places: 0,
        conditions: 0,
        is_hopeless: false,
    };
    lowering.find_namespaces(body);
    lowering.statements(body);
    lowering.steps.push(Step::End);
    let fits = lowering.num_registers <= NUM_REGISTERS;
    (fits && !lowering.is_hopeless).then_some(Plan {
        steps: lowering.steps,
        constants: lowering.constants,
        outside: layout.num_slots as usize,
    })
}

/// Names that are assigned as members of a namespace.
fn members_set(body: &[Stmt], visit: &mut impl FnMut(u32, &str)) {
    for stmt in body {
        match &stmt.kind {
            StmtKind::Set { target: Target::Member(name, member), .. } => visit(name.slots[0], member),
            StmtKind::If(branches, otherwise) => {
                branches.iter().for_each(|branch| members_set(&branch.body, visit));
                members_set(otherwise, visit);
            }
            StmtKind::For(stmt) => {
                members_set(&stmt.scope.body, visit);
                members_set(&stmt.otherwise.body, visit);
            }
            StmtKind::Generation(scope) => members_set(&scope.body, visit),
            _ => {}
        }
    }
}

impl Lowering<'_> {
    fn find_namespaces(&mut self, body: &[Stmt]) {
        for stmt in body {
            let StmtKind::Set { target: Target::Name(name), value: Expr::Call(function, args), .. } = &stmt.kind else {
                continue;
            };
            let is_namespace = |name: &Name| &*name.name == "namespace" && name.slots.len() == 1;
            if !matches!(&**function, Expr::Name(function) if is_namespace(function)) {
                continue;
            }
            let mut members: Vec<Box<str>> = args.keyword.iter().map(|(name, _)| name.clone()).collect();
            members_set(body, &mut |slot, member| {
                if slot == name.slots[0] {
                    members.push(member.into());
                }
            });
            members.sort();
            members.dedup();
            let members = members.into_iter().map(|member| (member, self.keep_for_good())).collect();
            self.namespaces.push(Namespace { slot: name.slots[0], members, is_made: false });
        }
    }

    /// A register for what an expression needs in passing.
    pub fn keep(&mut self) -> Register {
        let (first, used) = self.passing;
        if used == NUM_PASSING {
            return self.keep_for_good();
        }
        self.passing.1 += 1;
        (first + used) as Register
    }

    /// A register for the whole of the rendering.
    fn keep_for_good(&mut self) -> Register {
        self.num_registers += 1;
        (self.num_registers - 1) as Register
    }

    /// Where a constant is.
    pub fn constant(&mut self, constant: Constant) -> Register {
        if let Some((register, _)) = self.constants.iter().find(|(_, known)| *known == constant) {
            return *register;
        }
        let register = self.keep_for_good();
        self.constants.push((register, constant));
        register
    }

    /// Where the answer to a question about a variable is. Where it is not known yet, `step` finds it.
    pub fn ask(&mut self, of: Register, question: &str, step: impl FnOnce(Register) -> Step) -> Register {
        let is_same = |(variable, known, _): &&(Register, Box<str>, Register)| *variable == of && **known == *question;
        if let Some((_, _, answer)) = self.facts.answers.iter().find(is_same) {
            return *answer;
        }
        let asked = self.asked.iter().find(is_same).cloned();
        let asked = asked.unwrap_or_else(|| (of, question.into(), self.keep_for_good()));
        self.steps.push(step(asked.2));
        self.asked.push(asked.clone());
        let answer = asked.2;
        self.facts.answers.push(asked);
        answer
    }

    /// A register gets another value: what was known of the old one is void.
    pub fn forget(&mut self, register: Register) {
        self.facts.answers.retain(|(of, ..)| *of != register);
    }

    /// Leave the rest to the interpreter.
    pub fn stop(&mut self) {
        self.is_hopeless |= self.conditions == 0;
        self.steps.push(Step::Stop);
    }

    /// The next step is where these jump to.
    pub fn land(&mut self, jumps: Vec<usize>) {
        let here = self.steps.len();
        for jump in jumps {
            match &mut self.steps[jump] {
                Step::Jump(place) | Step::Branch(_, _, place) | Step::Enter { empty: place, .. } => {
                    *place = here as Place;
                }
                _ => {}
            }
        }
        self.target = here;
    }

    pub fn jump(&mut self) -> usize {
        self.steps.push(Step::Jump(NOWHERE));
        self.steps.len() - 1
    }

    fn text(&mut self, text: &str) {
        let joins = self.target < self.steps.len();
        match self.steps.last_mut() {
            Some(Step::Text(before, pieces)) if joins => {
                before.push_str(text);
                *pieces += 1;
            }
            _ => self.steps.push(Step::Text(text.to_owned(), 1)),
        }
    }

    fn statements(&mut self, body: &[Stmt]) {
        for stmt in body {
            self.passing.1 = 0;
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
            self.passing.1 = 0;
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
        if stmt.filter.is_some() || item.slots[0] == stmt.loop_slot || of == MAX_NESTING {
            return self.stop();
        }
        let of = of as u8;
        let over = self.value(&stmt.iter, None);
        self.steps.push(Step::Enter { of, over, empty: NOWHERE });
        let enter = self.steps.len() - 1;
        let begin = self.steps.len() as Place;
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
        self.steps.push(Step::Next { of, begin });
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

    /// What is in a register is the same throughout the rendering: a constant, a variable of the row, or what was
    /// asked of one.
    pub fn is_fixed(&self, register: Register) -> bool {
        let outside = self.layout.num_slots as usize..self.layout.num_slots as usize + self.layout.outside.len();
        outside.contains(&usize::from(register))
            || self.constants.iter().any(|(constant, _)| *constant == register)
            || self.asked.iter().any(|(of, _, answer)| *answer == register && self.is_fixed(*of))
    }

    /// A loop may come back to here after it has assigned to any variable but those of the row.
    fn forget_what_may_change(&mut self) {
        let mut answers = std::mem::take(&mut self.facts.answers);
        answers.retain(|(of, ..)| self.is_fixed(*of));
        self.facts.answers = answers;
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

    fn make_namespace(&mut self, slot: u32, value: &Expr) {
        let is_top = self.conditions == 0 && self.around.is_empty();
        let (Expr::Call(_, args), true) = (value, is_top) else { return self.stop() };
        let made = self.namespaces.iter().filter(|namespace| namespace.is_made && namespace.slot == slot).count();
        if made > 0 || !args.positional.is_empty() || args.keyword.iter().any(|(name, _)| name.starts_with('_')) {
            return self.stop();
        }
        for (member, value) in &args.keyword {
            let known = self.namespaces.iter().find(|namespace| namespace.slot == slot);
            let register = known.and_then(|known| known.members.iter().find(|(name, _)| name == member));
            let Some(&(_, register)) = register else { return self.stop() };
            let from = self.value(value, Some(register));
            self.copy(register, from);
        }
        self.namespaces.iter_mut().filter(|namespace| namespace.slot == slot).for_each(|made| made.is_made = true);
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
                otherwise.iter().for_each(|otherwise| self.print(otherwise));
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
            Expr::Filter(Some(value), Filter::ToJson, args) if args.is_empty() => {
                let from = self.value(value, None);
                self.steps.push(Step::PrintJson(from));
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
