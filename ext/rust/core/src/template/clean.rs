//! Which generation prompts depend on nothing but the template's own variables.
//!
//! If the statement that writes the generation prompt reads only constants and `chat_template_kwargs`, the prompt is
//! the same for every conversation with equal kwargs, and can be computed once. This is a conservative taint analysis
//! by name: a name is tainted if any assignment to it, in any scope, reads a tainted name or stands under a tainted
//! condition.
use std::collections::HashSet;

use super::ast::{ArgExprs, Expr, Stmt, StmtKind, Target};
use super::scope::Layout;

/// Where a template's generation prompt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PromptRule {
    /// The template never asks for `add_generation_prompt`.
    Absent,
    /// A function of the kwargs alone, by `clean`.
    Fixed,
    /// It may depend on the conversation before it.
    OfConversation,
}

/// How a template's generation prompt can be known.
pub(super) fn prompt_rule(body: &[Stmt], layout: &Layout) -> PromptRule {
    if !layout.outside.iter().any(|name| &**name == "add_generation_prompt") {
        return PromptRule::Absent;
    }
    let mut taint =
        Taint { tainted: ["messages", "tools", "documents", "loop", "caller", "namespace"].map(Box::from).into() };
    loop {
        let before = taint.tainted.len();
        taint.statements(body, false);
        if taint.tainted.len() == before {
            break;
        }
    }
    let mut prompts = 0;
    let mut fixed = true;
    for stmt in body {
        let StmtKind::If(branches, _) = &stmt.kind else { continue };
        let mut reads = false;
        for branch in branches {
            reads |= taint.expr(&branch.test);
            if branch.is_prompt {
                prompts += 1;
                fixed &= !reads && taint.is_clean(&branch.body);
            }
        }
    }
    if prompts == 1 && fixed { PromptRule::Fixed } else { PromptRule::OfConversation }
}

struct Taint {
    tainted: HashSet<Box<str>>,
}

impl Taint {
    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) | Target::Member(name, _) => {
                self.tainted.insert(name.name.clone());
            }
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
        }
    }

    fn statements(&mut self, body: &[Stmt], tainted: bool) {
        for stmt in body {
            match &stmt.kind {
                StmtKind::If(branches, otherwise) => {
                    let mut tainted = tainted;
                    for branch in branches {
                        tainted |= self.expr(&branch.test);
                        self.statements(&branch.body, tainted);
                    }
                    self.statements(otherwise, tainted);
                }
                StmtKind::For(stmt) => {
                    self.target(&stmt.target);
                    self.statements(&stmt.scope.body, true);
                    self.statements(&stmt.otherwise.body, true);
                }
                StmtKind::Set { target, value, .. } => {
                    if tainted || matches!(target, Target::Member(..) | Target::Tuple(_)) || self.expr(value) {
                        self.target(target);
                    }
                }
                StmtKind::SetBlock(target, _, scope) => {
                    self.target(target);
                    self.statements(&scope.body, true);
                }
                StmtKind::Macro(name, body) => {
                    self.tainted.insert(name.name.clone());
                    for (param, _) in &body.params {
                        self.tainted.insert(param.name.clone());
                    }
                    self.statements(&body.scope.body, true);
                }
                StmtKind::CallBlock(_, body) => {
                    for (param, _) in &body.params {
                        self.tainted.insert(param.name.clone());
                    }
                    self.statements(&body.scope.body, true);
                }
                StmtKind::With(values, scope) => {
                    for (target, _) in values {
                        self.target(target);
                    }
                    self.statements(&scope.body, true);
                }
                StmtKind::FilterBlock(_, scope) | StmtKind::Generation(scope) => self.statements(&scope.body, true),
                StmtKind::Text(_) | StmtKind::Output(_) | StmtKind::Break | StmtKind::Continue => {}
            }
        }
    }

    /// The statements print and decide from clean names only.
    fn is_clean(&self, body: &[Stmt]) -> bool {
        body.iter().all(|stmt| match &stmt.kind {
            StmtKind::Text(_) => true,
            StmtKind::Output(value) | StmtKind::Set { target: Target::Name(_), value, .. } => !self.expr(value),
            StmtKind::If(branches, otherwise) => {
                branches.iter().all(|branch| !self.expr(&branch.test) && self.is_clean(&branch.body))
                    && self.is_clean(otherwise)
            }
            _ => false,
        })
    }

    fn args(&self, args: &ArgExprs) -> bool {
        args.positional.iter().any(|arg| self.expr(arg)) || args.keyword.iter().any(|(_, arg)| self.expr(arg))
    }

    /// The expression reads a tainted name.
    fn expr(&self, expr: &Expr) -> bool {
        match expr {
            Expr::None | Expr::Bool(_) | Expr::Int(_) | Expr::Big(_) | Expr::Float(_) | Expr::Str(_) => false,
            Expr::Name(name) => self.tainted.contains(&name.name),
            Expr::List(items) | Expr::Tuple(items) | Expr::Concat(items) => items.iter().any(|item| self.expr(item)),
            Expr::Dict(items) => items.iter().any(|(key, value)| self.expr(key) || self.expr(value)),
            Expr::Attribute(value, _)
            | Expr::Not(value)
            | Expr::Negative(value)
            | Expr::Positive(value)
            | Expr::Spread(value) => self.expr(value),
            Expr::Item(a, b) | Expr::And(a, b) | Expr::Or(a, b) | Expr::Binary(_, a, b) => self.expr(a) || self.expr(b),
            Expr::Slice(value, bounds) => self.expr(value) || bounds.iter().flatten().any(|bound| self.expr(bound)),
            Expr::Call(callee, args) => self.expr(callee) || self.args(args),
            Expr::Filter(value, _, args) => value.as_ref().is_some_and(|value| self.expr(value)) || self.args(args),
            Expr::Test(value, _, args) => self.expr(value) || self.args(args),
            Expr::Compare(first, rest) => self.expr(first) || rest.iter().any(|(_, value)| self.expr(value)),
            Expr::Conditional(test, value, otherwise) => {
                self.expr(test) || self.expr(value) || otherwise.as_ref().is_some_and(|value| self.expr(value))
            }
        }
    }
}
