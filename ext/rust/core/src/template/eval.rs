//! Expressions.
use super::args::Args;
use super::ast::{ArgExprs, Attr, BinaryOp, Expr, Macro, Name};
use super::date::strftime;
use super::interp::Interp;
use super::names::Owners;
use super::print;
use super::value::{Builtin, Chars, LoopState, Shape, Text, Value};
use super::{Outcome, fail, ops, undefined};

/// Jinja2's sandbox refuses longer ranges.
const MAX_RANGE: u64 = 100_000;

/// Arguments that one `*` may stand for.
const MAX_SPREAD: usize = 1000;

impl<'a> Interp<'a> {
    /// The value of a name, if it has one.
    pub(super) fn find(&self, name: &'a Name) -> Option<&Value<'a>> {
        let (outside, slots) = name.slots.split_last()?;
        let set = |value: &&Value<'a>| !matches!(value, Value::Unset);
        let mut inside = slots.iter().map(|slot| &self.slots[*slot as usize]);
        inside.find(set).or_else(|| Some(&self.outside[*outside as usize]).filter(set))
    }

    pub(super) fn load(&self, name: &'a Name) -> Value<'a> {
        self.find(name).cloned().unwrap_or(Value::Undefined(&name.name))
    }

    pub(super) fn eval(&mut self, expr: &'a Expr) -> Outcome<Value<'a>> {
        Ok(match expr {
            Expr::None => Value::None,
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Int(value) => Value::Int(*value),
            Expr::Big(digits) => Value::Big((&**digits).into()),
            Expr::Float(value) => Value::Float(*value),
            Expr::Str(text) => Value::literal(text),
            Expr::Name(name) => self.load(name),
            Expr::List(items) => {
                let items = self.eval_all(items)?;
                self.checked(Value::list(items))?
            }
            Expr::Tuple(items) => {
                let items = self.eval_all(items)?;
                self.checked(Value::Tuple(Value::items(items)))?
            }
            Expr::Dict(items) => self.eval_dict(items)?,
            Expr::Attribute(object, name) => {
                if let Expr::Name(object) = &**object
                    && let Some(object) = self.find(object)
                {
                    return self.attribute(object, name);
                }
                let object = self.eval(object)?;
                self.attribute(&object, name)?
            }
            Expr::Item(object, key) => {
                let (object, key) = (self.eval(object)?, self.eval(key)?);
                self.subscript(&object, &key)?
            }
            Expr::Slice(object, bounds) => self.eval_slice(object, bounds)?,
            Expr::Call(callee, args) => self.eval_call(callee, args, None)?,
            Expr::Filter(Some(value), filter, args) => {
                let value = self.eval(value)?;
                let args = self.args(args)?;
                self.apply_filter(*filter, value, args)?
            }
            Expr::Filter(None, ..) => return fail("a filter has no input"),
            Expr::Spread(_) => return fail("'*' stands only before an argument of a call"),
            Expr::Test(value, test, args) => {
                let value = self.eval(value)?;
                let args = self.args(args)?;
                Value::Bool(self.apply_test(*test, &value, args)?)
            }
            Expr::Not(value) => Value::Bool(!self.test(value)?),
            Expr::Negative(value) => ops::sign(&self.eval(value)?, true)?,
            Expr::Positive(value) => ops::sign(&self.eval(value)?, false)?,
            Expr::And(left, right) => {
                let left = self.eval(left)?;
                if left.truthy() { self.eval(right)? } else { left }
            }
            Expr::Or(left, right) => {
                let left = self.eval(left)?;
                if left.truthy() { left } else { self.eval(right)? }
            }
            Expr::Binary(op, left, right) => {
                let (left, right) = (self.eval(left)?, self.eval(right)?);
                ops::binary(*op, &left, &right, &self.fuel)?
            }
            Expr::Concat(parts) => self.eval_concat(parts)?,
            Expr::Compare(first, rest) => {
                let mut left = self.eval(first)?;
                for (op, right) in rest {
                    let right = self.eval(right)?;
                    if !ops::compare(*op, &left, &right, &self.fuel)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expr::Conditional(test, value, otherwise) => {
                if self.test(test)? {
                    self.eval(value)?
                } else if let Some(otherwise) = otherwise {
                    self.eval(otherwise)?
                } else {
                    Value::Undefined("an inline if without else")
                }
            }
        })
    }

    /// Whether an expression is true.
    pub(super) fn test(&mut self, expr: &'a Expr) -> Outcome<bool> {
        Ok(self.eval(expr)?.truthy())
    }

    fn eval_all(&mut self, items: &'a [Expr]) -> Outcome<Vec<Value<'a>>> {
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            values.push(self.eval(item)?);
        }
        Ok(values)
    }

    fn checked(&self, value: Value<'a>) -> Outcome<Value<'a>> {
        if value.too_deep() || !self.fuel.spend(value.length().unwrap_or(0) as u64) {
            return fail("lists are nested too deeply, or out of fuel");
        }
        Ok(value)
    }

    fn eval_dict(&mut self, items: &'a [(Expr, Expr)]) -> Outcome<Value<'a>> {
        let mut entries = Vec::with_capacity(items.len());
        for (key, value) in items {
            entries.push((self.eval(key)?, self.eval(value)?));
        }
        self.dict(entries)
    }

    /// A dict of these entries; of equal keys the last one counts.
    fn dict(&self, given: Vec<(Value<'a>, Value<'a>)>) -> Outcome<Value<'a>> {
        let mut entries: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(given.len());
        for (key, value) in given {
            if key.is_mapping() || matches!(key, Value::List(_) | Value::Json(_)) {
                return fail(format!("unhashable type: '{}'", key.type_name()));
            }
            match entries.iter_mut().find(|(known, _)| known.equals(&key, &self.fuel)) {
                Some((_, old)) => *old = value,
                None => entries.push((key, value)),
            }
        }
        self.checked(Value::dict(entries))
    }

    fn eval_slice(&mut self, object: &'a Expr, bounds: &'a [Option<Box<Expr>>; 3]) -> Outcome<Value<'a>> {
        let object = self.eval(object)?;
        let mut numbers = [None; 3];
        for (number, bound) in numbers.iter_mut().zip(bounds) {
            let Some(bound) = bound else { continue };
            let value = self.eval(bound)?;
            *number = match (&value, value.as_index()) {
                (Value::None, _) => None,
                (_, Some(index)) => Some(index),
                (Value::Undefined(name), _) => return undefined(name),
                _ => return fail("slice indices must be integers or None"),
            };
        }
        ops::slice(&object, &numbers, &self.fuel)
    }

    /// `a ~ b`: everything becomes text.
    fn eval_concat(&mut self, parts: &'a [Expr]) -> Outcome<Value<'a>> {
        let mut joined = Text::literal("");
        for part in parts {
            let part = self.eval(part)?;
            let text = self.soft_text(part)?;
            joined = if joined.as_str().is_empty() { text } else { ops::concat(&joined, &text, &self.fuel)? };
            joined.markup = false;
        }
        Ok(Value::Str(joined))
    }

    // Output without building the text first.

    /// Print an expression: the terms of a sum or concatenation go out one by one.
    pub(super) fn emit_expr(&mut self, expr: &'a Expr) -> Outcome<()> {
        match expr {
            Expr::Str(text) => self.emit(text, text.len()),
            Expr::Concat(parts) => {
                for part in parts {
                    let value = self.eval(part)?;
                    self.emit_value(&value)?;
                }
                Ok(())
            }
            Expr::Binary(BinaryOp::Add, ..) => match self.emit_sum(expr)? {
                Some(value) => self.emit_value(&value),
                None => Ok(()),
            },
            Expr::Conditional(test, value, otherwise) => {
                if self.test(test)? {
                    self.emit_expr(value)
                } else {
                    otherwise.as_ref().map_or(Ok(()), |otherwise| self.emit_expr(otherwise))
                }
            }
            _ => {
                let value = self.eval(expr)?;
                self.emit_value(&value)
            }
        }
    }

    /// A sum that starts with text is printed term by term; any other is returned.
    fn emit_sum(&mut self, expr: &'a Expr) -> Outcome<Option<Value<'a>>> {
        let left = if let Expr::Binary(BinaryOp::Add, left, right) = expr {
            match self.emit_sum(left)? {
                None => {
                    return match self.emit_sum(right)? {
                        None => Ok(None),
                        Some(right) => {
                            ops::binary(BinaryOp::Add, &Value::literal(""), &right, &self.fuel).map(|_| None)
                        }
                    };
                }
                Some(left) => {
                    let right = self.eval(right)?;
                    ops::binary(BinaryOp::Add, &left, &right, &self.fuel)?
                }
            }
        } else if let Expr::Str(text) = expr {
            return self.emit(text, text.len()).map(|()| None);
        } else {
            self.eval(expr)?
        };
        match left {
            Value::Str(text) if !text.markup => {
                self.emit_text(&text)?;
                Ok(None)
            }
            other => Ok(Some(other)),
        }
    }

    // Attributes and items.

    /// `object.name`: an attribute of the object, else a key.
    fn attribute(&self, object: &Value<'a>, attr: &'a Attr) -> Outcome<Value<'a>> {
        let name = &*attr.name;
        match object {
            Value::Undefined(of) => undefined(of),
            Value::Namespace(at) => Ok(self.member(*at, name).cloned().unwrap_or(Value::Undefined(name))),
            Value::Loop(state) => loop_attribute(state, name),
            _ if name.starts_with("__") => fail(format!("access to attribute '{name}' is unsafe")),
            Value::Macro(_) | Value::Builtin(_) => {
                fail(format!("the attribute '{name}' of a function is not supported"))
            }
            Value::Tuple(items) if items.shape == Shape::Group && matches!(name, "grouper" | "list") => {
                Ok(items.values.get(usize::from(name == "list")).cloned().unwrap_or(Value::Undefined(name)))
            }
            _ if attr.owners.include(object) => Ok(Value::Bound),
            _ => Ok(object.lookup_str(name).unwrap_or(Value::Undefined(name))),
        }
    }

    /// `object | attr(name)`: an attribute, never a key.
    pub(super) fn attribute_only(&self, object: &Value<'a>, name: &Value<'a>) -> Outcome<Value<'a>> {
        let Value::Str(name) = name else { return fail("attr needs a name") };
        let name = name.as_str();
        match object {
            Value::Undefined(of) => undefined(of),
            _ if name.starts_with('_') => fail(format!("access to attribute '{name}' is unsafe")),
            Value::Namespace(at) => Ok(self.member(*at, name).cloned().unwrap_or(Value::Undefined("an attribute"))),
            Value::Loop(state) => loop_attribute(state, name),
            Value::Tuple(items) if items.shape == Shape::Group && matches!(name, "grouper" | "list") => {
                Ok(items.values.get(usize::from(name == "list")).cloned().unwrap_or(Value::Undefined("an attribute")))
            }
            _ if Owners::of(name).include(object) => Ok(Value::Bound),
            _ => Ok(Value::Undefined("an attribute")),
        }
    }

    pub(super) fn member(&self, namespace: usize, name: &str) -> Option<&Value<'a>> {
        self.namespaces[namespace].iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// `object[key]`: a key or index, else an attribute.
    pub(super) fn subscript(&mut self, object: &Value<'a>, key: &Value<'a>) -> Outcome<Value<'a>> {
        let found = match object {
            Value::Undefined(of) => return undefined(of),
            Value::Object(..) | Value::Dict(_) => object.lookup(key, &self.fuel),
            Value::Json(_) | Value::List(_) | Value::Tuple(_) | Value::Range(..) => key.as_index().and_then(|index| {
                let items = object.iterate()?;
                let at = if index < 0 { index + items.len() as i64 } else { index };
                items.get(usize::try_from(at).ok()?)
            }),
            Value::Str(text) => key.as_index().and_then(|index| char_at(text, index)),
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        let Value::Str(name) = key else { return Ok(Value::Undefined("an item")) };
        if name.as_str().starts_with("__") {
            return fail(format!("access to attribute '{}' is unsafe", name.as_str()));
        }
        match object {
            Value::Namespace(at) => Ok(self.member(*at, name.as_str()).cloned().unwrap_or(Value::Undefined("an item"))),
            Value::Loop(_) | Value::Macro(_) | Value::Builtin(_) => {
                fail(format!("subscription of a {} is not supported", object.type_name()))
            }
            _ if Owners::of(name.as_str()).include(object) => Ok(Value::Bound),
            _ => Ok(Value::Undefined("an item")),
        }
    }

    // Calls.

    pub(super) fn args(&mut self, args: &'a ArgExprs) -> Outcome<Args<'a>> {
        let mut positional = Vec::with_capacity(args.positional.len());
        for value in &args.positional {
            if let Expr::Spread(list) = value {
                let list = self.eval(list)?;
                let Some(items) = list.to_vec() else {
                    return fail(format!("an argument after '*' must be iterable, not {}", list.type_name()));
                };
                if items.len() > MAX_SPREAD {
                    return fail(format!("'*' before more than {MAX_SPREAD} arguments is not supported"));
                }
                positional.extend(items);
            } else {
                positional.push(self.eval(value)?);
            }
        }
        let mut keyword = Vec::with_capacity(args.keyword.len());
        for (name, value) in &args.keyword {
            let value = self.eval(value)?;
            if &**name == "**" {
                spread_mapping(&value, &mut keyword)?;
            } else {
                keyword.push((&**name, value));
            }
        }
        Ok(Args { positional, keyword })
    }

    pub(super) fn call_with_caller(&mut self, call: &'a Expr, caller: &'a Macro) -> Outcome<Value<'a>> {
        match call {
            Expr::Call(function, args) => self.eval_call(function, args, Some(Value::Macro(caller))),
            _ => fail("a call block needs a call"),
        }
    }

    fn eval_call(&mut self, function: &'a Expr, args: &'a ArgExprs, caller: Option<Value<'a>>) -> Outcome<Value<'a>> {
        if let Expr::Attribute(object, name) = function {
            let object = self.eval(object)?;
            if name.owners.include(&object) {
                if caller.is_some() {
                    return fail("a call block needs a macro");
                }
                let args = self.args(args)?;
                return self.call_method(&object, &name.name, args);
            }
            if let Value::Loop(state) = &object {
                let args = self.args(args)?;
                return call_loop(state, &name.name, args, &self.fuel);
            }
            let function = self.attribute(&object, name)?;
            let args = self.args(args)?;
            return self.call_value(&function, args, caller);
        }
        let function = self.eval(function)?;
        let args = self.args(args)?;
        self.call_value(&function, args, caller)
    }

    fn call_value(&mut self, function: &Value<'a>, args: Args<'a>, caller: Option<Value<'a>>) -> Outcome<Value<'a>> {
        match function {
            Value::Macro(body) => {
                if caller.is_some() && body.caller.is_none() {
                    return fail(format!("macro '{}' was invoked with a caller but does not use it", body.name));
                }
                self.call_macro(body, args, caller)
            }
            Value::Loop(state) if caller.is_none() => self.call_recursive(&state.clone(), args),
            Value::Builtin(builtin) if caller.is_none() => self.call_builtin(*builtin, args),
            Value::Undefined(name) => undefined(name),
            other => fail(format!("a {} cannot be called here", other.type_name())),
        }
    }

    fn call_builtin(&mut self, builtin: Builtin, args: Args<'a>) -> Outcome<Value<'a>> {
        match builtin {
            Builtin::Range => range(&args),
            Builtin::Dict => {
                let mut entries = match &args.positional[..] {
                    [] => vec![],
                    [of] => match (of.entries(), of.to_vec()) {
                        (Some(entries), _) => entries,
                        (None, Some(items)) => items.iter().map(pair).collect::<Outcome<_>>()?,
                        (None, None) => return fail(format!("'{}' object is not iterable", of.type_name())),
                    },
                    _ => return fail("dict takes at most one positional argument"),
                };
                entries.extend(args.keyword.into_iter().map(|(key, value)| (Value::literal(key), value)));
                self.dict(entries)
            }
            Builtin::Namespace => self.namespace(args),
            Builtin::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = message.map_or(Ok(String::new()), |message| print::to_str(&message, &self.fuel))?;
                fail(format!("the template refuses the row: {}", message.replace('\n', " ")))
            }
            Builtin::StrftimeNow => {
                let [Some(Value::Str(format))] = args.bind("strftime_now", ["format"])? else {
                    return fail("strftime_now needs a format");
                };
                strftime(format.as_str(), self.date).map(Value::string)
            }
            Builtin::Unsupported => fail("lipsum, cycler and joiner are not supported in chat templates"),
        }
    }

    fn namespace(&mut self, args: Args<'a>) -> Outcome<Value<'a>> {
        if !args.positional.is_empty() {
            return fail("namespace() of positional arguments is not supported");
        }
        if args.keyword.iter().any(|(name, _)| name.starts_with('_')) {
            return fail("names in a namespace cannot start with an underscore");
        }
        if self.namespaces.len() > 100_000 {
            return fail("out of fuel: too many namespaces");
        }
        self.namespaces.push(args.keyword);
        Ok(Value::Namespace(self.namespaces.len() - 1))
    }
}

fn char_at<'a>(text: &Text<'a>, index: i64) -> Option<Value<'a>> {
    let chars = text.as_str();
    let at = if index < 0 { index + super::text::length(chars) as i64 } else { index };
    let (from, c) = chars.char_indices().nth(usize::try_from(at).ok()?)?;
    Some(Value::Str(text.part(|text| &text[from..from + c.len_utf8()])))
}

/// A key and its value, as `dict()` takes them.
fn pair<'a>(item: &Value<'a>) -> Outcome<(Value<'a>, Value<'a>)> {
    match item.to_vec().as_deref() {
        Some([key, value]) => Ok((key.clone(), value.clone())),
        _ => fail("dict() needs pairs of a key and a value"),
    }
}

fn range<'a>(args: &Args<'_>) -> Outcome<Value<'a>> {
    if !args.keyword.is_empty() {
        return fail("range() takes no keyword arguments");
    }
    let mut numbers = Vec::with_capacity(3);
    for value in &args.positional {
        match (value, value.as_index()) {
            (_, Some(number)) => numbers.push(number),
            (Value::Undefined(name), _) => return undefined(name),
            _ => return fail(format!("'{}' object cannot be interpreted as an integer", value.type_name())),
        }
    }
    let (start, end, step) = match numbers[..] {
        [end] => (0, end, 1),
        [start, end] => (start, end, 1),
        [start, end, step] => (start, end, step),
        _ => return fail("range expects 1 to 3 arguments"),
    };
    if step == 0 {
        return fail("range() arg 3 must not be zero");
    }
    let span = if step > 0 { end.saturating_sub(start) } else { start.saturating_sub(end) };
    let length = u64::try_from(span).unwrap_or(0).div_ceil(step.unsigned_abs());
    if length > MAX_RANGE {
        return fail(format!("range too big: the sandbox blocks ranges larger than {MAX_RANGE}"));
    }
    Ok(Value::Range(start, step, length as usize))
}

fn loop_attribute<'a>(state: &LoopState<'a>, name: &str) -> Outcome<Value<'a>> {
    let index = state.index0.get();
    Ok(match name {
        "index" => Value::Int(index as i64 + 1),
        "index0" => Value::Int(index as i64),
        "revindex" => Value::Int((state.length - index) as i64),
        "revindex0" => Value::Int((state.length - index) as i64 - 1),
        "first" => Value::Bool(index == 0),
        "last" => Value::Bool(index + 1 == state.length),
        "length" => Value::Int(state.length as i64),
        "depth" => Value::Int(i64::from(state.depth0) + 1),
        "depth0" => Value::Int(i64::from(state.depth0)),
        "previtem" if index == 0 => Value::Undefined("loop.previtem"),
        "previtem" => state.items.get(index - 1).unwrap_or(Value::Undefined("loop.previtem")),
        "nextitem" => state.items.get(index + 1).unwrap_or(Value::Undefined("loop.nextitem")),
        _ => return fail(format!("loop.{name} is not supported")),
    })
}

fn call_loop<'a>(state: &LoopState<'a>, name: &str, args: Args<'a>, fuel: &super::fuel::Fuel) -> Outcome<Value<'a>> {
    match name {
        "cycle" if !args.positional.is_empty() && args.keyword.is_empty() => {
            Ok(args.positional[state.index0.get() % args.positional.len()].clone())
        }
        "changed" if args.keyword.is_empty() => {
            let mut last = state.changed.borrow_mut();
            let same = last.as_ref().is_some_and(|last| {
                last.len() == args.positional.len() && last.iter().zip(&args.positional).all(|(a, b)| a.equals(b, fuel))
            });
            *last = Some(args.positional);
            Ok(Value::Bool(!same))
        }
        _ => fail(format!("loop.{name}() is not supported")),
    }
}

/// `**value` among the arguments of a call.
fn spread_mapping<'a>(value: &Value<'a>, keyword: &mut Vec<(&'a str, Value<'a>)>) -> Outcome<()> {
    let Some(entries) = value.entries() else {
        return fail(format!("an argument after '**' must be a mapping, not {}", value.type_name()));
    };
    for (key, value) in entries {
        // names live as long as the template or the row: those that a template builds do not
        let Value::Str(Text { chars: Chars::Borrowed(name), .. }) = key else {
            return fail("'**' before a dict whose keys the template puts together is not supported");
        };
        if keyword.iter().any(|(known, _)| *known == name) {
            return fail(format!("got two values for the argument '{name}'"));
        }
        keyword.push((name, value));
    }
    Ok(())
}
