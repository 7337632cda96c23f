//! What is known while a template becomes steps: where values are, what is set, what jumps where.
use super::super::ast::{Expr, Macro, Stmt, StmtKind, Target};
use super::super::date::Date;
use super::super::scope::Layout;
use super::expr::function_name;
use super::{Constant, FUEL_PER_STEP, NUM_REGISTERS, Place, Plan, Register, Step};

/// A jump whose target is not yet known goes where no step is: to the interpreter.
pub(super) const NOWHERE: Place = Place::MAX;

/// A loop around the statement, or a block that `break` cannot leave.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub number: Option<u8>,
    pub loop_slot: u32,
    pub breaks: Vec<usize>,
    pub continues: Vec<usize>,
}

/// A variable that `namespace(...)` is assigned to: the members are registers.
#[derive(Debug)]
pub(super) struct Namespace {
    pub slot: u32,
    pub members: Vec<(Box<str>, Register)>,
}

/// What is known at a place of the plan, however it was reached.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Whether each slot is set.
    pub is_set: Vec<bool>,
    /// Slots of namespaces whose statement has run.
    pub made: Vec<u32>,
    /// Registers that hold what was asked of a variable: the variable, the question, where the answer is.
    pub answers: Vec<(Register, Box<str>, Register)>,
}

impl Facts {
    /// What holds on another way to this place too.
    pub fn meet(&mut self, other: &Self) {
        self.is_set.iter_mut().zip(&other.is_set).for_each(|(set, other)| *set &= other);
        self.made.retain(|slot| other.made.contains(slot));
        self.answers.retain(|answer| other.answers.contains(answer));
    }
}

pub(super) struct Lowering<'t> {
    pub layout: &'t Layout,
    pub date: Date,
    pub steps: Vec<Step>,
    constants: Vec<(Register, Constant)>,
    /// No text may be joined to what stands before this step, for something jumps here.
    target: usize,
    pub namespaces: Vec<Namespace>,
    /// Macros whose statement has run, by slot.
    pub macros: Vec<(u32, &'t Macro)>,
    /// Macros whose steps are being written, from the outermost call to the innermost.
    pub inlined: Vec<&'t Macro>,
    /// A call of a macro may assign to a member of a namespace, so members are read when an expression gets to them.
    pub copies_members: bool,
    pub facts: Facts,
    /// Registers for the answers of [`Facts`].
    asked: Vec<(Register, Box<str>, Register)>,
    pub around: Vec<Around>,
    /// Registers for what expressions need in passing, and how many of them are in use.
    passing: (Vec<Register>, usize),
    /// Of those in use, how many stay in use for the whole statement: by what is around the call of a macro.
    held: usize,
    num_registers: usize,
    /// Stretches to be marked around the statement.
    pub num_places: u8,
    /// Conditions around the statement.
    pub conditions: u32,
    /// Texts that were joined to the one before.
    pub num_joined: u64,
    /// The interpreter is needed for every row.
    is_hopeless: bool,
}

/// The plan of a template, unless it would give up on every row or need more registers than there are.
pub(in super::super) fn plan(body: &[Stmt], layout: &Layout, date: Date) -> Option<Plan> {
    let variables = layout.num_slots as usize + layout.outside.len();
    if variables > NUM_REGISTERS {
        return None;
    }
    let mut lowering = Lowering {
        layout,
        date,
        steps: vec![],
        constants: vec![],
        target: 0,
        namespaces: vec![],
        macros: vec![],
        inlined: vec![],
        copies_members: false,
        facts: Facts { is_set: vec![false; layout.num_slots as usize], ..Facts::default() },
        asked: vec![],
        around: vec![],
        passing: (vec![], 0),
        held: 0,
        num_registers: variables,
        num_places: 0,
        conditions: 0,
        num_joined: 0,
        is_hopeless: false,
    };
    lowering.find_namespaces(body);
    lowering.statements(body);
    let cost = lowering.cost((0, 0));
    lowering.steps.push(Step::End { cost });
    (!lowering.is_hopeless).then_some(Plan {
        steps: lowering.steps,
        constants: lowering.constants,
        outside: layout.num_slots as usize,
    })
}

/// Every statement, whatever it stands in.
fn walk<'t>(body: &'t [Stmt], visit: &mut impl FnMut(&'t StmtKind)) {
    for stmt in body {
        visit(&stmt.kind);
        match &stmt.kind {
            StmtKind::If(branches, otherwise) => {
                for branch in branches {
                    walk(&branch.body, visit);
                }
                walk(otherwise, visit);
            }
            StmtKind::For(stmt) => {
                walk(&stmt.scope.body, visit);
                walk(&stmt.otherwise.body, visit);
            }
            StmtKind::Macro(_, body) | StmtKind::CallBlock(_, body) => walk(&body.scope.body, visit),
            StmtKind::SetBlock(_, _, scope)
            | StmtKind::FilterBlock(_, scope)
            | StmtKind::Generation(scope)
            | StmtKind::With(_, scope) => walk(&scope.body, visit),
            StmtKind::Text(_) | StmtKind::Output(_) | StmtKind::Set { .. } | StmtKind::Break | StmtKind::Continue => {}
        }
    }
}

impl<'t> Lowering<'t> {
    fn find_namespaces(&mut self, body: &'t [Stmt]) {
        let mut found: Vec<(u32, Vec<&'t str>)> = vec![];
        walk(body, &mut |kind| {
            if let StmtKind::Set { target: Target::Name(name), value: Expr::Call(function, args), .. } = kind
                && function_name(function) == Some("namespace")
            {
                let at = found.iter().position(|(slot, _)| *slot == name.slots[0]).unwrap_or_else(|| {
                    found.push((name.slots[0], vec![]));
                    found.len() - 1
                });
                found[at].1.extend(args.keyword.iter().map(|(name, _)| &**name));
            }
        });
        walk(body, &mut |kind| match kind {
            StmtKind::Set { target: Target::Member(name, member), .. } => {
                let namespace = found.iter_mut().find(|(slot, _)| Some(*slot) == name.own_slot());
                if let Some((_, members)) = namespace {
                    members.push(member);
                }
            }
            StmtKind::Macro(_, body) => walk(&body.scope.body, &mut |kind| {
                self.copies_members |= matches!(kind, StmtKind::Set { target: Target::Member(..), .. });
            }),
            _ => {}
        });
        for (slot, mut members) in found {
            members.sort_unstable();
            members.dedup();
            let members = members.into_iter().map(|member| (member.into(), self.keep_for_good())).collect();
            self.namespaces.push(Namespace { slot, members });
        }
    }

    /// A statement begins: what others kept in passing is not needed any more.
    pub fn begin_statement(&mut self) {
        self.passing.1 = self.held;
    }

    /// Statements inside an expression: what it has kept in passing stays.
    pub fn within_expression(&mut self, body: impl FnOnce(&mut Self)) {
        let (held, used) = (self.held, self.passing.1);
        self.held = used;
        body(self);
        (self.held, self.passing.1) = (held, used);
    }

    /// A register for what an expression needs in passing.
    pub fn keep(&mut self) -> Register {
        if self.passing.1 == self.passing.0.len() {
            let more = self.keep_for_good();
            self.passing.0.push(more);
        }
        self.passing.1 += 1;
        self.passing.0[self.passing.1 - 1]
    }

    /// A register for the whole of the rendering.
    fn keep_for_good(&mut self) -> Register {
        if self.num_registers == NUM_REGISTERS {
            self.is_hopeless = true;
            return Register::MAX;
        }
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
        let asked = if let Some(asked) = self.asked.iter().find(is_same) {
            asked.clone()
        } else {
            let asked = (of, question.into(), self.keep_for_good());
            self.asked.push(asked.clone());
            asked
        };
        let answer = asked.2;
        self.steps.push(step(answer));
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

    pub fn text(&mut self, text: &str) {
        let joins = self.target < self.steps.len();
        match self.steps.last_mut() {
            Some(Step::Text(before)) if joins => {
                before.push_str(text);
                self.num_joined += 1;
            }
            _ => self.steps.push(Step::Text(text.to_owned())),
        }
    }

    /// The most that the steps since `first` cost, each taken once, of which `num_joined` texts were joined to others.
    pub fn cost(&self, (first, num_joined): (usize, u64)) -> u64 {
        FUEL_PER_STEP * ((self.steps.len() - first) as u64 + self.num_joined - num_joined + 1)
    }

    /// What is in a register is the same throughout the rendering: a constant, a variable of the row, or what was
    /// asked of one.
    pub fn is_fixed(&self, register: Register) -> bool {
        let outside = self.layout.num_slots as usize..self.layout.num_slots as usize + self.layout.outside.len();
        // with too few registers one may stand for several, and answers for themselves
        !self.is_hopeless
            && (outside.contains(&usize::from(register))
                || self.constants.iter().any(|(constant, _)| *constant == register)
                || self.asked.iter().any(|(of, _, answer)| *answer == register && self.is_fixed(*of)))
    }

    /// A loop may come back to here after it has assigned to any variable but those of the row.
    pub fn forget_what_may_change(&mut self) {
        let mut answers = std::mem::take(&mut self.facts.answers);
        answers.retain(|(of, ..)| self.is_fixed(*of));
        self.facts.answers = answers;
    }
}
