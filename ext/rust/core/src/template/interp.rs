//! Runs a template: statements in order, output into a buffer, notes about who wrote what.
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::args::Args;
use super::ast::{ArgExprs, For, Macro, Scope, Stmt, StmtKind, Target};
use super::fuel::Fuel;
use super::marks::Writer;
use super::names::Filter;
use super::print;
use super::source::message_index;
use super::value::{Chars, LoopState, Sequence, Text, Value};
use super::{Date, Fail, Outcome, fail, undefined};

/// Calls of macros within macros, and how deep their bodies may nest all together: both use the stack, of which a thread
/// has 2 MiB.
const MAX_CALLS: usize = 60;
const MAX_HEIGHT: u32 = 600;

/// What a statement asks of the loop around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// One rendering.
pub(super) struct Interp<'a> {
    pub slots: Vec<Value<'a>>,
    /// The row's own variables.
    pub outside: Vec<Value<'a>>,
    pub fuel: Fuel,
    /// Line of the statement that runs, for errors.
    pub line: u32,
    pub namespaces: Vec<Vec<(&'a str, Value<'a>)>>,
    pub date: Date,
    pub writer: Writer,
    calls: usize,
    /// Sum of the heights of the macros that run.
    height: u32,
}

impl<'a> Interp<'a> {
    pub fn new(num_slots: usize, outside: Vec<Value<'a>>, fuel: u64, date: Date, writer: Writer) -> Self {
        Self {
            slots: vec![Value::Unset; num_slots],
            outside,
            fuel: Fuel::new(fuel),
            line: 0,
            namespaces: Vec::new(),
            date,
            writer,
            calls: 0,
            height: 0,
        }
    }

    pub fn run(&mut self, body: &'a [Stmt]) -> Outcome<Flow> {
        for stmt in body {
            let flow = self.statement(stmt)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Run a body whose variables are its own.
    fn run_scope(&mut self, scope: &'a Scope) -> Outcome<Flow> {
        self.clear(scope.slots);
        self.run(&scope.body)
    }

    fn clear(&mut self, (from, to): (u32, u32)) {
        for slot in &mut self.slots[from as usize..to as usize] {
            *slot = Value::Unset;
        }
    }

    fn statement(&mut self, stmt: &'a Stmt) -> Outcome<Flow> {
        self.line = stmt.line;
        if !self.fuel.spend(1) {
            return fail("out of fuel: the template runs too long; raise the fuel limit if it is right");
        }
        match &stmt.kind {
            StmtKind::Text(text) => self.emit(text, text.len())?,
            StmtKind::Output(value) => self.emit_expr(value)?,
            StmtKind::If(branches, otherwise) => {
                for branch in branches {
                    if self.test(&branch.test)? {
                        return if branch.is_prompt { self.prompt(&branch.body) } else { self.run(&branch.body) };
                    }
                }
                return self.run(otherwise);
            }
            StmtKind::For(stmt) => self.for_loop(stmt)?,
            StmtKind::Set { target, value, indexes_loop } => {
                let value = self.eval(value)?;
                if *indexes_loop && let Value::Object(_, number) = value {
                    self.writer.open_indexed_turn(number);
                }
                self.assign(target, value)?;
            }
            StmtKind::SetBlock(target, filters, scope) => {
                let value = self.capture_scope(scope)?;
                let value = self.filtered(Value::Str(value), filters)?;
                self.assign(target, value)?;
            }
            StmtKind::Macro(name, body) => self.store(name, Value::Macro(body)),
            StmtKind::CallBlock(call, body) => {
                let value = self.call_with_caller(call, body)?;
                self.emit_value(&value)?;
            }
            StmtKind::FilterBlock(filters, scope) => {
                let value = self.capture_scope(scope)?;
                let value = self.filtered(Value::Str(value), filters)?;
                self.emit_value(&value)?;
            }
            StmtKind::Generation(scope) => return self.generation(scope),
            StmtKind::With(values, scope) => {
                let values = values
                    .iter()
                    .map(|(target, value)| Ok((target, self.eval(value)?)))
                    .collect::<Outcome<Vec<_>>>()?;
                self.clear(scope.slots);
                for (target, value) in values {
                    self.assign(target, value)?;
                }
                return self.run(&scope.body);
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    /// The statement that writes the generation prompt.
    fn prompt(&mut self, body: &'a [Stmt]) -> Outcome<Flow> {
        let start = self.writer.at();
        let flow = self.run(body)?;
        self.writer.mark_prompt(start);
        Ok(flow)
    }

    fn generation(&mut self, scope: &'a Scope) -> Outcome<Flow> {
        let start = self.writer.at();
        if self.run_scope(scope)? != Flow::Next {
            return fail("'break' or 'continue' inside {% generation %} has no loop to act on");
        }
        self.writer.mark_generation(start);
        Ok(Flow::Next)
    }

    fn filtered(&mut self, mut value: Value<'a>, filters: &'a [(Filter, ArgExprs)]) -> Outcome<Value<'a>> {
        for (filter, args) in filters {
            let args = self.args(args)?;
            value = self.apply_filter(*filter, value, args)?;
        }
        Ok(value)
    }

    // Variables.

    pub fn store(&mut self, name: &'a super::ast::Name, value: Value<'a>) {
        if let Some(slot) = name.slots.first() {
            self.slots[*slot as usize] = value;
        }
    }

    fn assign(&mut self, target: &'a Target, value: Value<'a>) -> Outcome<()> {
        match target {
            Target::Name(name) => self.store(name, value),
            Target::Tuple(targets) => {
                let Some(items) = value.to_vec() else {
                    return match value {
                        Value::Undefined(name) => undefined(name),
                        other => fail(format!("cannot unpack a {}", other.type_name())),
                    };
                };
                if items.len() != targets.len() {
                    return fail(format!("cannot unpack {} values into {} names", items.len(), targets.len()));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item)?;
                }
            }
            Target::Member(name, member) => {
                let Value::Namespace(at) = self.load(name) else {
                    return fail("cannot assign attribute on non-namespace object");
                };
                if member.starts_with('_') {
                    return fail("names in a namespace cannot start with an underscore");
                }
                self.set_member(at, member, value);
            }
        }
        Ok(())
    }

    pub fn set_member(&mut self, namespace: usize, member: &'a str, value: Value<'a>) {
        let members = &mut self.namespaces[namespace];
        match members.iter_mut().find(|(name, _)| *name == member) {
            Some((_, old)) => *old = value,
            None => members.push((member, value)),
        }
    }

    // Loops.

    fn for_loop(&mut self, stmt: &'a For) -> Outcome<()> {
        let over = self.eval(&stmt.iter)?;
        self.run_loop(stmt, &over, 0)
    }

    /// `loop(list)` inside a recursive loop: what its body prints over that list.
    pub fn call_recursive(&mut self, state: &LoopState<'a>, args: Args<'a>) -> Outcome<Value<'a>> {
        let Some(stmt) = state.recursive else {
            return fail("the loop is not recursive, so it cannot be called; write 'for ... recursive'");
        };
        let [Some(over)] = args.bind("loop", ["iterable"])? else { return fail("loop() needs a list") };
        self.within(stmt.height, stmt.all_slots, |interp| {
            interp.begin_capture()?;
            interp.run_loop(stmt, &over, state.depth0 + 1)?;
            Ok(Value::Str(interp.end_capture()))
        })
    }

    fn run_loop(&mut self, stmt: &'a For, over: &Value<'a>, depth0: u32) -> Outcome<()> {
        let Some(mut items) = over.iterate() else {
            return fail(format!("'{}' object is not iterable", over.type_name()));
        };
        if let Some(filter) = &stmt.filter {
            let mut kept = Vec::new();
            for i in 0..items.len() {
                self.clear(stmt.scope.slots);
                let Some(item) = items.get(i) else { break };
                self.assign(&stmt.target, item.clone())?;
                if self.test(filter)? {
                    kept.push(item);
                }
            }
            items = Sequence::Items(Value::items(kept));
        }
        let length = items.len();
        if length == 0 {
            if self.run_scope(&stmt.otherwise)? != Flow::Next {
                return fail("'break' or 'continue' in the else of a loop is not supported");
            }
            return Ok(());
        }
        let index0 = Cell::new(0);
        let (recursive, changed) = (stmt.recursive.then_some(stmt), RefCell::new(None));
        let state = Rc::new(LoopState { items, index0, length, changed, recursive, depth0 });
        for i in 0..length {
            state.index0.set(i);
            self.clear(stmt.scope.slots);
            let Some(item) = state.items.get(i) else { break };
            let open = self.writer.num_turns();
            if let Value::Object(_, number) = item
                && let Some(message) = message_index(number)
            {
                self.writer.open_turn(message);
            }
            self.slots[stmt.loop_slot as usize] = Value::Loop(state.clone());
            self.assign(&stmt.target, item)?;
            let flow = self.run(&stmt.scope.body)?;
            self.writer.close_turns(open);
            if flow == Flow::Break {
                break;
            }
            if !self.fuel.spend(1) {
                return fail("out of fuel: the template runs too long; raise the fuel limit if it is right");
            }
        }
        self.slots[stmt.loop_slot as usize] = Value::Unset;
        Ok(())
    }

    // Output.

    /// Write text whose last `literal` bytes are the template's own.
    pub fn emit(&mut self, text: &str, literal: usize) -> Outcome<()> {
        if !self.writer.write(text, literal) || !self.fuel.spend_bytes(text.len()) {
            let limit = self.writer.max_output();
            return fail(format!("the output is larger than {limit} bytes, or takes too long to write"));
        }
        Ok(())
    }

    pub fn emit_text(&mut self, text: &Text<'a>) -> Outcome<()> {
        self.writer.note_words(text.as_str(), text.source);
        let (at, data_end) = (self.writer.at(), self.writer.data_end());
        self.emit(text.as_str(), text.literal_tail as usize)?;
        if let Chars::Marked(captured) = &text.chars {
            self.writer.repeat_marks(captured, at, data_end);
        }
        Ok(())
    }

    pub fn emit_value(&mut self, value: &Value<'a>) -> Outcome<()> {
        match value {
            Value::Str(text) => self.emit_text(text),
            Value::Undefined(_) => Ok(()),
            other => {
                let text = print::to_str(other, &self.fuel)?;
                self.emit(&text, 0)
            }
        }
    }

    /// Start to set output aside.
    fn begin_capture(&mut self) -> Outcome<()> {
        if self.writer.num_captures() > 2 * MAX_CALLS {
            return fail("captured blocks are nested too deeply");
        }
        self.writer.begin_capture();
        Ok(())
    }

    /// What was written since `begin_capture`.
    fn end_capture(&mut self) -> Text<'a> {
        let (captured, literal_tail) = self.writer.end_capture();
        let source = if captured.marks.is_empty() { captured.joint_source() } else { 0 };
        let chars =
            if captured.marks.is_empty() { Chars::Owned(captured.text) } else { Chars::Marked(Rc::new(captured)) };
        Text { chars, literal_tail, source, markup: false }
    }

    fn capture_scope(&mut self, scope: &'a Scope) -> Outcome<Text<'a>> {
        self.begin_capture()?;
        if self.run_scope(scope)? != Flow::Next {
            return fail("'break' or 'continue' inside a captured block has no loop to act on");
        }
        Ok(self.end_capture())
    }

    // Macros.

    /// Call a macro; what it printed.
    pub fn call_macro(&mut self, body: &'a Macro, args: Args<'a>, caller: Option<Value<'a>>) -> Outcome<Value<'a>> {
        if args.positional.len() > body.params.len() && body.varargs.is_none() {
            return fail(format!("macro '{}' takes not more than {} arguments", body.name, body.params.len()));
        }
        self.within(body.height, body.all_slots, |interp| {
            interp.bind(body, args)?;
            if let Some(slot) = body.caller {
                interp.slots[slot as usize] = caller.unwrap_or(Value::Undefined("caller"));
            }
            interp.begin_capture()?;
            if interp.run(&body.scope.body)? != Flow::Next {
                return fail("'break' or 'continue' inside a macro has no loop to act on");
            }
            Ok(Value::Str(interp.end_capture()))
        })
    }

    /// Run statements of this height that may be running already, with variables of their own.
    fn within(
        &mut self,
        height: u32,
        (from, to): (u32, u32),
        body: impl FnOnce(&mut Self) -> Outcome<Value<'a>>,
    ) -> Outcome<Value<'a>> {
        if self.calls >= MAX_CALLS {
            return fail(format!("macros or recursive loops call each other more than {MAX_CALLS} deep"));
        }
        if self.height + height > MAX_HEIGHT {
            return fail(format!("macros or loops that call each other nest more than {MAX_HEIGHT} deep in all"));
        }
        self.calls += 1;
        self.height += height;
        let slots = from as usize..to as usize;
        let saved: Vec<Value<'a>> =
            self.slots[slots.clone()].iter_mut().map(|slot| std::mem::replace(slot, Value::Unset)).collect();
        let made = body(self)?;
        for (slot, value) in self.slots[slots].iter_mut().zip(saved) {
            *slot = value;
        }
        self.calls -= 1;
        self.height -= height;
        Ok(made)
    }

    fn bind(&mut self, body: &'a Macro, mut args: Args<'a>) -> Outcome<()> {
        let given = args.positional.len().min(body.params.len());
        let rest = args.positional.split_off(given);
        if let Some(slot) = body.varargs {
            self.slots[slot as usize] = Value::Tuple(Value::items(rest));
        }
        for ((name, _), value) in body.params.iter().zip(args.positional) {
            self.store(name, value);
        }
        let mut others = vec![];
        let mut named: Vec<Option<Value<'a>>> = vec![None; body.params.len()];
        for (name, value) in args.keyword {
            match body.params.iter().position(|(param, _)| *param.name == *name) {
                Some(at) if at >= given => named[at] = Some(value),
                _ if body.kwargs.is_some() => others.push((Value::literal(name), value)),
                Some(_) => return fail(format!("macro '{}' got two values for '{name}'", body.name)),
                None => return fail(format!("macro '{}' takes no keyword argument '{name}'", body.name)),
            }
        }
        if let Some(slot) = body.kwargs {
            self.slots[slot as usize] = Value::dict(others);
        }
        for ((name, default), value) in body.params.iter().zip(named).skip(given) {
            let value = match (value, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default)?,
                (None, None) => Value::Undefined(&name.name),
            };
            self.store(name, value);
        }
        Ok(())
    }

    /// The error that ended the rendering, with its line.
    pub fn locate(&self, error: &Fail) -> String {
        format!("line {}", self.line.max(error.line()))
    }
}
