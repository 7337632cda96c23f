//! Tokens to statements, with Jinja2's grammar. Expressions are in `parse_expr`.
use std::collections::HashSet;

use super::ast::{ArgExprs, Branch, Expr, For, Macro, Name, Scope, Stmt, StmtKind, Target};
use super::lexer::{Spanned, Token, syntax, tokenize};
use super::names::Filter;
use crate::error::Error;

/// Nesting of statements and expressions beyond which a template is refused: each level uses the stack.
const MAX_DEPTH: u32 = 100;

/// Height of the tree of statements and expressions beyond which a template is refused: whoever walks it recurses. Long
/// chains (`a + b + c`) are as high as they are long.
const MAX_HEIGHT: u32 = 300;

pub(super) struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    depth: u32,
    /// Deepest place of the tree since a chain or macro began.
    deepest: u32,
    /// Names of the blocks so far.
    blocks: HashSet<Box<str>>,
}

/// Parse a whole template. Names have no slots yet.
pub(super) fn parse(source: &str) -> Result<Vec<Stmt>, Error> {
    let mut parser = Parser { tokens: tokenize(source)?, at: 0, depth: 0, deepest: 0, blocks: HashSet::new() };
    let (body, _) = parser.body(&[])?;
    Ok(body)
}

impl Parser {
    pub(super) fn token(&self) -> &Token {
        &self.tokens[self.at].token
    }

    pub(super) fn look(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].token
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.tokens[self.at].token.clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    pub(super) fn fail<T>(&self, message: impl Into<Box<str>>) -> Result<T, Error> {
        Err(syntax(self.line(), message))
    }

    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(self.token(), Token::Op(found) if *found == op)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Token::Name(found) if &**found == name)
    }

    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_op(&mut self, op: &str) -> Result<(), Error> {
        if self.skip_op(op) { Ok(()) } else { self.fail(format!("expected '{op}', got {}", self.token())) }
    }

    pub(super) fn expect_name(&mut self) -> Result<Box<str>, Error> {
        match self.token() {
            Token::Name(_) => match self.next() {
                Token::Name(name) => Ok(name),
                _ => self.fail("expected a name"),
            },
            other => self.fail(format!("expected a name, got {other}")),
        }
    }

    /// Run `inner` one level deeper.
    pub(super) fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
        if self.depth > MAX_DEPTH {
            return self.fail(format!("nesting is deeper than {MAX_DEPTH}"));
        }
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Run `inner`; how much higher the tree is there than here.
    pub(super) fn height_of<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<(T, u32), Error> {
        let outer = std::mem::replace(&mut self.deepest, self.depth);
        let result = inner(self)?;
        let height = self.deepest - self.depth;
        self.deepest = self.deepest.max(outer);
        Ok((result, height))
    }

    /// Another link of a chain: what stands before it lies one level deeper.
    pub(super) fn link(&mut self) -> Result<(), Error> {
        self.deepest += 1;
        if self.deepest > MAX_HEIGHT {
            return self.fail(format!("expressions are nested or chained more than {MAX_HEIGHT} deep"));
        }
        Ok(())
    }

    /// Statements up to one of the `ends`, whose name is consumed and returned (its block end is not).
    fn body(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, Box<str>), Error> {
        self.nested(|parser| parser.body_inner(ends))
    }

    fn body_inner(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, Box<str>), Error> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => body.push(Stmt { kind: StmtKind::Text(text.into()), line }),
                Token::VariableBegin => {
                    let value = self.tuple(true, false)?;
                    if !matches!(self.token(), Token::VariableEnd) {
                        return self.fail(format!("expected '}}}}', got {}", self.token()));
                    }
                    self.next();
                    body.push(Stmt { kind: StmtKind::Output(value), line });
                }
                Token::BlockBegin => {
                    if let Token::Name(name) = self.token()
                        && let Some(end) = ends.iter().find(|end| **end == &**name)
                    {
                        let end: Box<str> = (*end).into();
                        self.next();
                        return Ok((body, end));
                    }
                    let kind = self.statement()?;
                    self.block_end()?;
                    body.push(Stmt { kind, line });
                }
                Token::End if ends.is_empty() => return Ok((body, "".into())),
                Token::End => return self.fail(format!("the template ends before '{}'", ends.join("' or '"))),
                other => return self.fail(format!("unexpected {other}")),
            }
        }
    }

    fn block_end(&mut self) -> Result<(), Error> {
        if matches!(self.token(), Token::BlockEnd) {
            self.next();
            return Ok(());
        }
        self.fail(format!("expected '%}}', got {}", self.token()))
    }

    /// A body that runs to `end`.
    fn block(&mut self, end: &str) -> Result<Scope, Error> {
        self.block_end()?;
        let (body, _) = self.body(&[end])?;
        Ok(Scope { body, slots: (0, 0) })
    }

    fn statement(&mut self) -> Result<StmtKind, Error> {
        let tag = self.expect_name()?;
        match &*tag {
            "if" => self.if_statement(),
            "for" => self.for_statement(),
            "set" => self.set_statement(),
            "macro" => self.macro_statement(),
            "call" => self.call_statement(),
            "filter" => {
                let filters = self.filter_chain(true)?;
                Ok(StmtKind::FilterBlock(filters, self.block("endfilter")?))
            }
            "generation" => Ok(StmtKind::Generation(self.block("endgeneration")?)),
            "with" => self.with_statement(),
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            "block" => self.named_block(),
            "extends" | "include" | "import" | "from" | "autoescape" | "print" => {
                self.fail(format!("the tag '{tag}' is not supported in chat templates"))
            }
            _ => self.fail(format!("unknown tag '{tag}'")),
        }
    }

    fn if_statement(&mut self) -> Result<StmtKind, Error> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, false)?;
            self.block_end()?;
            let (body, end) = self.body(&["elif", "else", "endif"])?;
            branches.push(Branch { test, body, is_prompt: false });
            match &*end {
                "elif" => {}
                "else" => {
                    self.block_end()?;
                    let (otherwise, _) = self.body(&["endif"])?;
                    return Ok(StmtKind::If(branches, otherwise));
                }
                _ => return Ok(StmtKind::If(branches, Vec::new())),
            }
        }
    }

    fn for_statement(&mut self) -> Result<StmtKind, Error> {
        let target = self.target(false)?;
        if !self.skip_name("in") {
            return self.fail("expected 'in'");
        }
        let iter = self.tuple(false, true)?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.block_end()?;
        let ((scope, otherwise), height) = self.height_of(|parser| {
            let (body, end) = parser.body(&["endfor", "else"])?;
            let otherwise = if &*end == "else" { parser.block("endfor")? } else { Scope::default() };
            Ok((Scope { body, slots: (0, 0) }, otherwise))
        })?;
        let (loop_slot, all_slots) = (0, (0, 0));
        let made = For { target, iter, filter, scope, otherwise, loop_slot, recursive, all_slots, height };
        Ok(StmtKind::For(Box::new(made)))
    }

    fn set_statement(&mut self) -> Result<StmtKind, Error> {
        let target = self.target(true)?;
        if self.skip_op("=") {
            let value = self.tuple(true, false)?;
            return Ok(StmtKind::Set { target, value, indexes_loop: false });
        }
        let filters = self.filter_chain(false)?;
        Ok(StmtKind::SetBlock(target, filters, self.block("endset")?))
    }

    fn macro_statement(&mut self) -> Result<StmtKind, Error> {
        let name = self.name_target()?;
        let ((params, scope), height) =
            self.height_of(|parser| Ok((parser.signature()?, parser.block("endmacro")?)))?;
        let body = Macro::new(name.name.clone(), params, scope, height);
        Ok(StmtKind::Macro(name, Box::new(body)))
    }

    fn call_statement(&mut self) -> Result<StmtKind, Error> {
        let params = if self.is_op("(") { self.signature()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.fail("a call block needs a call");
        }
        let (scope, height) = self.height_of(|parser| parser.block("endcall"))?;
        let body = Macro::new("caller".into(), params, scope, height);
        Ok(StmtKind::CallBlock(Box::new(call), Box::new(body)))
    }

    /// `{% block name %}`: a chat template is never extended, so a block is a scope that is printed where it stands.
    fn named_block(&mut self) -> Result<StmtKind, Error> {
        if self.depth > 1 {
            // inside a loop or macro a block does not see their variables
            return self.fail("a block inside another statement is not supported in chat templates");
        }
        let name = self.expect_name()?;
        let is_new = self.blocks.insert(name.clone());
        if !is_new {
            return self.fail(format!("block '{name}' defined twice"));
        }
        while self.skip_name("scoped") || self.skip_name("required") {}
        let scope = self.block("endblock")?;
        self.skip_name(&name);
        Ok(StmtKind::With(vec![], scope))
    }

    fn with_statement(&mut self) -> Result<StmtKind, Error> {
        let mut values = Vec::new();
        while !matches!(self.token(), Token::BlockEnd) {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false)?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        Ok(StmtKind::With(values, self.block("endwith")?))
    }

    fn signature(&mut self) -> Result<Vec<(Name, Option<Expr>)>, Error> {
        self.expect_op("(")?;
        let mut params: Vec<(Name, Option<Expr>)> = Vec::new();
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name_target()?;
            let default = if self.skip_op("=") { Some(self.expression()?) } else { None };
            if default.is_none() && params.last().is_some_and(|(_, default)| default.is_some()) {
                return self.fail("a parameter without a default follows one with a default");
            }
            params.push((name, default));
        }
        self.expect_op(")")?;
        Ok(params)
    }

    fn filter_chain(&mut self, starts_inline: bool) -> Result<Vec<(Filter, ArgExprs)>, Error> {
        let mut filters = Vec::new();
        while (starts_inline && filters.is_empty()) || self.skip_op("|") {
            filters.push(self.filter_call()?);
        }
        Ok(filters)
    }

    fn name_target(&mut self) -> Result<Name, Error> {
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.fail(format!("cannot assign to '{name}'"));
        }
        Ok(Name { name, slots: Box::default() })
    }

    /// `a`, `a, b`, `(a, b)`, and `ns.a` where `members` allows it.
    fn target(&mut self, members: bool) -> Result<Target, Error> {
        let mut parts = vec![self.single_target(members)?];
        let mut is_tuple = false;
        while self.skip_op(",") {
            is_tuple = true;
            if self.is_name("in") || self.is_op("=") || self.is_op(")") || matches!(self.token(), Token::BlockEnd) {
                break;
            }
            parts.push(self.single_target(members)?);
        }
        match parts.pop() {
            Some(only) if !is_tuple && parts.is_empty() => Ok(only),
            Some(last) => {
                parts.push(last);
                Ok(Target::Tuple(parts))
            }
            None => self.fail("expected a name to assign to"),
        }
    }

    fn single_target(&mut self, members: bool) -> Result<Target, Error> {
        if self.skip_op("(") {
            let target = self.nested(|parser| parser.target(members))?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.name_target()?;
        if members && self.skip_op(".") {
            return Ok(Target::Member(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }
}
