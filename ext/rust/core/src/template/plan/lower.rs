//! What is known while a template becomes steps: where values are, what is set, what jumps where.
use super::super::ast::{Expr, Stmt, StmtKind, Target};
use super::super::date::Date;
use super::super::scope::Layout;
use super::expr::function_name;
use super::{Constant, FUEL_PER_STEP, NUM_REGISTERS, Place, Plan, Register, Step};

/// A jump whose target is not yet known goes where no step is: to the interpreter.
pub(super) const NOWHERE: Place = Place::MAX;

/// Registers that statements use in passing; one that needs more gets some of its own.
const NUM_PASSING: usize = 16;

/// A loop around the statement, or a block that `break` cannot leave.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub number: Option<u8>,
    pub loop_slot: u32,
    pub breaks: Vec<usize>,
    pub continues: Vec<usize>,
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
    pub date: Date,
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
    if variables + NUM_PASSING > NUM_REGISTERS {
        return None;
    }
    let mut lowering = Lowering {
        layout,
        date,
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

/// Names that are assigned as members of a namespace.
fn members_set(body: &[Stmt], visit: &mut impl FnMut(u32, &str)) {
    for stmt in body {
        match &stmt.kind {
            StmtKind::Set { target: Target::Member(name, member), .. } => visit(name.slots[0], member),
            StmtKind::If(branches, otherwise) => {
                for branch in branches {
                    members_set(&branch.body, visit);
                }
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
            let is_known = self.namespaces.iter().any(|namespace| namespace.slot == name.slots[0]);
            if is_known || function_name(function) != Some("namespace") {
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

    /// A statement begins: what others kept in passing is not needed any more.
    pub fn begin_statement(&mut self) {
        self.passing.1 = 0;
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
