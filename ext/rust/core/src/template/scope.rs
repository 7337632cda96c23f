//! Names to slots, by Jinja2's scoping: loops, macros, blocks and `with` have variables of their own, `if` has not.
//!
//! Every scope of the template owns a range of slots in one flat array. A name is looked for in the slots of the
//! scopes around it that assign to it, innermost first, and last among the row's own variables, which have an array
//! of their own.
use std::collections::{HashMap, HashSet};

use super::ast::{ArgExprs, Branch, Expr, For, Macro, Name, Scope, Stmt, StmtKind, Target};

/// Slots of a template and the names a row must fill in.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub num_slots: u32,
    /// Names that may come from outside, in the order of their slots.
    pub outside: Vec<Box<str>>,
    /// Slots that the template itself assigns at its top level.
    pub top: (u32, u32),
    pub has_generation: bool,
    pub names_strftime: bool,
}

struct Frame {
    names: HashMap<Box<str>, u32>,
    /// Variable of the loop whose body this is.
    loop_variable: Option<Box<str>>,
}

pub(super) struct Resolver {
    layout: Layout,
    frames: Vec<Frame>,
    outside: HashMap<Box<str>, u32>,
    /// Slots of `varargs` and `kwargs` that some name means.
    named: HashSet<u32>,
}

/// Give every name in `body` its slots.
pub(super) fn resolve(body: &mut [Stmt]) -> Layout {
    let mut resolver =
        Resolver { layout: Layout::default(), frames: Vec::new(), outside: HashMap::new(), named: HashSet::new() };
    let mut names = Vec::new();
    stored(body, &mut names);
    resolver.layout.top = resolver.enter(names, None);
    resolver.statements(body, true);
    let mut outside: Vec<(u32, Box<str>)> = resolver.outside.into_iter().map(|(name, slot)| (slot, name)).collect();
    outside.sort();
    resolver.layout.outside = outside.into_iter().map(|(_, name)| name).collect();
    resolver.layout
}

/// Names that these statements assign in their own scope.
fn stored(body: &[Stmt], names: &mut Vec<Box<str>>) {
    for stmt in body {
        match &stmt.kind {
            StmtKind::If(branches, otherwise) => {
                for branch in branches {
                    stored(&branch.body, names);
                }
                stored(otherwise, names);
            }
            StmtKind::Set { target, .. } | StmtKind::SetBlock(target, ..) => target_names(target, names),
            StmtKind::Macro(name, _) => names.push(name.name.clone()),
            _ => {}
        }
    }
}

fn target_names(target: &Target, names: &mut Vec<Box<str>>) {
    match target {
        Target::Name(name) => names.push(name.name.clone()),
        Target::Tuple(targets) => targets.iter().for_each(|target| target_names(target, names)),
        Target::Member(..) => {}
    }
}

impl Resolver {
    /// Open a scope that owns `names`; its slots.
    fn enter(&mut self, names: Vec<Box<str>>, loop_variable: Option<Box<str>>) -> (u32, u32) {
        let first = self.layout.num_slots;
        let mut frame = Frame { names: HashMap::new(), loop_variable };
        for name in names {
            let next = self.layout.num_slots;
            if *frame.names.entry(name).or_insert(next) == next {
                self.layout.num_slots += 1;
            }
        }
        self.frames.push(frame);
        (first, self.layout.num_slots)
    }

    fn name(&mut self, name: &mut Name) {
        if &*name.name == "strftime_now" {
            self.layout.names_strftime = true;
        }
        let mut slots: Vec<u32> =
            self.frames.iter().rev().filter_map(|frame| frame.names.get(&name.name).copied()).collect();
        if matches!(&*name.name, "varargs" | "kwargs") {
            self.named.extend(slots.first());
        }
        let outside = if let Some(slot) = self.outside.get(&name.name) {
            *slot
        } else {
            let slot = self.outside.len() as u32;
            self.outside.insert(name.name.clone(), slot);
            slot
        };
        slots.push(outside);
        name.slots = slots.into();
    }

    fn target(&mut self, target: &mut Target) {
        match target {
            Target::Name(name) | Target::Member(name, _) => self.name(name),
            Target::Tuple(targets) => targets.iter_mut().for_each(|target| self.target(target)),
        }
    }

    fn statements(&mut self, body: &mut [Stmt], top: bool) {
        for stmt in body {
            self.statement(&mut stmt.kind, top);
        }
    }

    fn statement(&mut self, kind: &mut StmtKind, top: bool) {
        match kind {
            StmtKind::Text(_) | StmtKind::Break | StmtKind::Continue => {}
            StmtKind::Output(value) => self.expr(value),
            StmtKind::If(branches, otherwise) => {
                for Branch { test, body, is_prompt } in branches {
                    self.expr(test);
                    *is_prompt = top && asks_for_prompt(test);
                    self.statements(body, top && !*is_prompt);
                }
                self.statements(otherwise, top);
            }
            StmtKind::For(stmt) => self.for_statement(stmt),
            StmtKind::Set { target, value, indexes_loop } => {
                self.expr(value);
                self.target(target);
                *indexes_loop = self.indexes_loop(value);
            }
            StmtKind::SetBlock(target, filters, scope) => {
                self.scope(scope, Vec::new());
                self.filters(filters);
                self.target(target);
            }
            StmtKind::Macro(name, body) => {
                self.name(name);
                self.macro_body(body);
            }
            StmtKind::CallBlock(call, body) => {
                self.macro_body(body);
                self.expr(call);
            }
            StmtKind::FilterBlock(filters, scope) => {
                self.scope(scope, Vec::new());
                self.filters(filters);
            }
            StmtKind::Generation(scope) => {
                self.layout.has_generation = true;
                self.scope(scope, Vec::new());
            }
            StmtKind::With(values, scope) => {
                for (_, value) in values.iter_mut() {
                    self.expr(value);
                }
                let mut names = Vec::new();
                for (target, _) in values.iter() {
                    target_names(target, &mut names);
                }
                stored(&scope.body, &mut names);
                scope.slots = self.enter(names, None);
                for (target, _) in values.iter_mut() {
                    self.target(target);
                }
                self.statements(&mut scope.body, false);
                self.frames.pop();
            }
        }
    }

    fn filters(&mut self, filters: &mut [(super::names::Filter, ArgExprs)]) {
        for (_, args) in filters {
            self.args(args);
        }
    }

    fn scope(&mut self, scope: &mut Scope, mut names: Vec<Box<str>>) {
        stored(&scope.body, &mut names);
        scope.slots = self.enter(names, None);
        self.statements(&mut scope.body, false);
        self.frames.pop();
    }

    fn for_statement(&mut self, stmt: &mut For) {
        self.expr(&mut stmt.iter);
        let mut names = vec!["loop".into()];
        target_names(&stmt.target, &mut names);
        stored(&stmt.scope.body, &mut names);
        let variable = if let Target::Name(name) = &stmt.target { Some(name.name.clone()) } else { None };
        stmt.scope.slots = self.enter(names, variable);
        stmt.loop_slot = stmt.scope.slots.0;
        self.target(&mut stmt.target);
        if let Some(filter) = &mut stmt.filter {
            self.expr(filter);
        }
        self.statements(&mut stmt.scope.body, false);
        self.frames.pop();
        self.scope(&mut stmt.otherwise, Vec::new());
        stmt.all_slots = (stmt.scope.slots.0, self.layout.num_slots);
    }

    fn macro_body(&mut self, body: &mut Macro) {
        let mut names: Vec<Box<str>> = body.params.iter().map(|(name, _)| name.name.clone()).collect();
        let has_caller = names.iter().any(|name| &**name == "caller");
        let implied = ["varargs", "kwargs"].map(|name| (name, !names.iter().any(|param| &**param == name)));
        names.push("caller".into());
        names.extend(["varargs".into(), "kwargs".into()]);
        stored(&body.scope.body, &mut names);
        let slots = self.enter(names, None);
        body.scope.slots = slots;
        for (name, default) in &mut body.params {
            self.name(name);
            if let Some(default) = default {
                self.expr(default);
            }
        }
        self.statements(&mut body.scope.body, false);
        if !has_caller {
            body.caller = self.frames.last().and_then(|frame| frame.names.get("caller").copied());
        }
        let [varargs, kwargs] = implied.map(|(name, is_implied)| {
            let slot = self.frames.last().and_then(|frame| frame.names.get(name).copied())?;
            (is_implied && self.named.contains(&slot)).then_some(slot)
        });
        (body.varargs, body.kwargs) = (varargs, kwargs);
        self.frames.pop();
        body.all_slots = (slots.0, self.layout.num_slots);
    }

    /// `messages[i]`, where `i` is the variable of the innermost loop.
    fn indexes_loop(&self, value: &Expr) -> bool {
        let Expr::Item(_, index) = value else { return false };
        let Expr::Name(index) = &**index else { return false };
        let variable = self.frames.iter().rev().find_map(|frame| frame.loop_variable.as_ref());
        variable == Some(&index.name)
    }

    fn args(&mut self, args: &mut ArgExprs) {
        args.positional.iter_mut().for_each(|arg| self.expr(arg));
        args.keyword.iter_mut().for_each(|(_, arg)| self.expr(arg));
    }

    fn expr(&mut self, expr: &mut Expr) {
        match expr {
            Expr::Name(name) => self.name(name),
            Expr::Call(callee, args) => {
                self.expr(callee);
                self.args(args);
            }
            Expr::Filter(value, _, args) => {
                if let Some(value) = value {
                    self.expr(value);
                }
                self.args(args);
            }
            Expr::Test(value, _, args) => {
                self.expr(value);
                self.args(args);
            }
            other => children(other, &mut |child| self.expr(child)),
        }
    }
}

/// The expressions directly inside this one, arguments of calls excepted.
pub(super) fn children(expr: &mut Expr, visit: &mut impl FnMut(&mut Expr)) {
    match expr {
        Expr::List(items) | Expr::Tuple(items) | Expr::Concat(items) => items.iter_mut().for_each(visit),
        Expr::Dict(items) => items.iter_mut().for_each(|(key, value)| {
            visit(key);
            visit(value);
        }),
        Expr::Attribute(value, _)
        | Expr::Not(value)
        | Expr::Negative(value)
        | Expr::Positive(value)
        | Expr::Spread(value) => visit(value),
        Expr::Item(a, b) | Expr::And(a, b) | Expr::Or(a, b) | Expr::Binary(_, a, b) => {
            visit(a);
            visit(b);
        }
        Expr::Slice(value, bounds) => {
            visit(value);
            for bound in bounds.iter_mut().flatten() {
                visit(bound);
            }
        }
        Expr::Compare(first, rest) => {
            visit(first);
            for (_, value) in rest.iter_mut() {
                visit(value);
            }
        }
        Expr::Conditional(test, value, otherwise) => {
            visit(test);
            visit(value);
            if let Some(value) = otherwise {
                visit(value);
            }
        }
        _ => {}
    }
}

/// The test is `add_generation_prompt`, alone or together with other conditions.
fn asks_for_prompt(test: &Expr) -> bool {
    match test {
        Expr::Name(name) => &*name.name == "add_generation_prompt",
        Expr::And(a, b) => asks_for_prompt(a) || asks_for_prompt(b),
        Expr::Test(value, test, _) => {
            matches!(test, super::names::Test::Defined | super::names::Test::True) && asks_for_prompt(value)
        }
        Expr::Compare(value, rest) => {
            asks_for_prompt(value) && matches!(&rest[..], [(super::ast::CompareOp::Eq, Expr::Bool(true))])
        }
        _ => false,
    }
}
