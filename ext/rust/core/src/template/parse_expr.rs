//! Expressions, with Jinja2's precedence: conditional, or, and, not, compare, `+ -`, `~`, `* / // %`, `**`, unary,
//! postfix, filters and tests.
use super::ast::{ArgExprs, BinaryOp, CompareOp, Expr, Name};
use super::lexer::Token;
use super::names::Filter;
use super::names::Test;
use super::parse::Parser;
use crate::error::Error;

impl Parser {
    pub(super) fn expression(&mut self) -> Result<Expr, Error> {
        self.chain(|parser| parser.nested(Self::conditional))
    }

    /// An expression that may be a chain: how deep it is counts once, however many stand beside it.
    fn chain(&mut self, inner: impl FnOnce(&mut Self) -> Result<Expr, Error>) -> Result<Expr, Error> {
        Ok(self.height_of(inner)?.0)
    }

    /// An expression, or several with commas between them.
    pub(super) fn tuple(&mut self, conditional: bool, in_for: bool) -> Result<Expr, Error> {
        self.tuple_in(conditional, in_for, false)
    }

    fn tuple_in(&mut self, conditional: bool, in_for: bool, parentheses: bool) -> Result<Expr, Error> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            let ends = matches!(self.token(), Token::VariableEnd | Token::BlockEnd) || self.is_op(")");
            if ends || (in_for && self.is_name("recursive")) {
                break;
            }
            items.push(if conditional { self.expression()? } else { self.chain(|parser| parser.nested(Self::or))? });
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(only) = items.pop() {
                return Ok(only);
            }
            if !parentheses {
                return self.fail(format!("expected an expression, got {}", self.token()));
            }
        }
        Ok(Expr::Tuple(items))
    }

    fn conditional(&mut self) -> Result<Expr, Error> {
        let mut value = self.or()?;
        while self.skip_name("if") {
            self.link()?;
            let test = self.or()?;
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            value = Expr::Conditional(Box::new(test), Box::new(value), otherwise);
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr, Error> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.link()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, Error> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.link()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr, Error> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr, Error> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.token() {
                Token::Op("==") => CompareOp::Eq,
                Token::Op("!=") => CompareOp::Ne,
                Token::Op("<") => CompareOp::Lt,
                Token::Op("<=") => CompareOp::Le,
                Token::Op(">") => CompareOp::Gt,
                Token::Op(">=") => CompareOp::Ge,
                Token::Name(name) if &**name == "in" => CompareOp::In,
                Token::Name(name) if &**name == "not" && matches!(self.look(), Token::Name(n) if &**n == "in") => {
                    self.next();
                    CompareOp::NotIn
                }
                _ => break,
            };
            self.next();
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expr, Error> {
        let mut left = self.concat()?;
        loop {
            let op = match self.token() {
                Token::Op("+") => BinaryOp::Add,
                Token::Op("-") => BinaryOp::Sub,
                _ => return Ok(left),
            };
            self.link()?;
            self.next();
            left = Expr::Binary(op, Box::new(left), Box::new(self.concat()?));
        }
    }

    fn concat(&mut self) -> Result<Expr, Error> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr, Error> {
        let mut left = self.power()?;
        loop {
            let op = match self.token() {
                Token::Op("*") => BinaryOp::Mul,
                Token::Op("/") => BinaryOp::Div,
                Token::Op("//") => BinaryOp::FloorDiv,
                Token::Op("%") => BinaryOp::Mod,
                _ => return Ok(left),
            };
            self.link()?;
            self.next();
            left = Expr::Binary(op, Box::new(left), Box::new(self.power()?));
        }
    }

    fn power(&mut self) -> Result<Expr, Error> {
        let mut left = self.chain(|parser| parser.unary(true))?;
        while self.skip_op("**") {
            self.link()?;
            left = Expr::Binary(BinaryOp::Pow, Box::new(left), Box::new(self.chain(|parser| parser.unary(true))?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Result<Expr, Error> {
        let node = if self.skip_op("-") {
            Expr::Negative(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_op("+") {
            Expr::Positive(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let node = self.postfix(node)?;
        if with_filter { self.filters_and_tests(node) } else { Ok(node) }
    }

    fn primary(&mut self) -> Result<Expr, Error> {
        match self.next() {
            Token::Name(name) => Ok(match &*name {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => Expr::Name(Name { name, slots: Box::default() }),
            }),
            Token::Str(mut text) => {
                while let Token::Str(more) = self.token() {
                    text.push_str(more);
                    self.next();
                }
                Ok(Expr::Str(text.into()))
            }
            Token::Int(digits) => Ok(digits.parse().map_or_else(|_| Expr::Big(digits.clone()), Expr::Int)),
            Token::Float(value) => Ok(Expr::Float(value)),
            Token::Op("(") => {
                let inner = self.nested(|parser| parser.tuple_in(true, false, true))?;
                self.expect_op(")")?;
                Ok(inner)
            }
            Token::Op("[") => self.nested(Self::list),
            Token::Op("{") => self.nested(Self::dict),
            other => self.fail(format!("unexpected {other}")),
        }
    }

    fn list(&mut self) -> Result<Expr, Error> {
        let mut items = Vec::new();
        while !self.is_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("]") {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.expect_op("]")?;
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Result<Expr, Error> {
        let mut items = Vec::new();
        while !self.is_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_op(":")?;
            items.push((key, self.expression()?));
        }
        self.expect_op("}")?;
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr, Error> {
        loop {
            if matches!(self.token(), Token::Op("." | "[" | "(")) {
                self.link()?;
            }
            if self.skip_op(".") {
                node = match self.next() {
                    Token::Name(name) => Expr::Attribute(Box::new(node), name.into()),
                    Token::Int(digits) => {
                        let index = digits.parse().or_else(|_| self.fail("index out of range"))?;
                        Expr::Item(Box::new(node), Box::new(Expr::Int(index)))
                    }
                    other => return self.fail(format!("expected a name or number after '.', got {other}")),
                };
            } else if self.skip_op("[") {
                node = self.nested(|parser| parser.subscript(node))?;
            } else if self.is_op("(") {
                let args = self.args()?;
                node = Expr::Call(Box::new(node), Box::new(args));
            } else {
                return Ok(node);
            }
        }
    }

    fn subscript(&mut self, node: Expr) -> Result<Expr, Error> {
        let start = if self.is_op(":") { None } else { Some(Box::new(self.expression()?)) };
        if !self.skip_op(":") {
            if self.is_op(",") {
                return self.fail("subscripts with commas are not supported");
            }
            self.expect_op("]")?;
            return match start {
                Some(index) => Ok(Expr::Item(Box::new(node), index)),
                None => self.fail("expected a subscript"),
            };
        }
        let mut bounds = [start, None, None];
        if !self.is_op(":") && !self.is_op("]") {
            bounds[1] = Some(Box::new(self.expression()?));
        }
        if self.skip_op(":") && !self.is_op("]") {
            bounds[2] = Some(Box::new(self.expression()?));
        }
        self.expect_op("]")?;
        Ok(Expr::Slice(Box::new(node), bounds))
    }

    pub(super) fn args(&mut self) -> Result<ArgExprs, Error> {
        self.expect_op("(")?;
        let mut args = ArgExprs::default();
        let mut comma = false;
        while !self.is_op(")") {
            if comma {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            let has_mapping = args.keyword.last().is_some_and(|(name, _)| &**name == "**");
            let has_list = args.positional.last().is_some_and(|last| matches!(last, Expr::Spread(_)));
            if self.is_op("**") && !has_mapping {
                self.next();
                args.keyword.push(("**".into(), self.expression()?));
            } else if self.is_op("*") && !has_mapping && !has_list {
                self.next();
                args.positional.push(Expr::Spread(Box::new(self.expression()?)));
            } else if has_mapping {
                return self.fail("an argument follows '**'");
            } else if matches!(self.token(), Token::Name(_)) && matches!(self.look(), Token::Op("=")) {
                let name = self.expect_name()?;
                self.next();
                args.keyword.push((name, self.expression()?));
            } else if args.keyword.is_empty() && !has_list {
                args.positional.push(self.expression()?);
            } else {
                return self.fail("a positional argument follows a keyword argument or '*'");
            }
            comma = true;
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn filters_and_tests(&mut self, mut node: Expr) -> Result<Expr, Error> {
        loop {
            if self.is_op("|") || self.is_op("(") || self.is_name("is") {
                self.link()?;
            }
            if self.skip_op("|") {
                let (filter, args) = self.filter_call()?;
                node = Expr::Filter(Some(Box::new(node)), filter, Box::new(args));
            } else if self.is_name("is") {
                node = self.test(node)?;
            } else if self.is_op("(") {
                let args = self.args()?;
                node = Expr::Call(Box::new(node), Box::new(args));
            } else {
                return Ok(node);
            }
        }
    }

    /// A filter's name and arguments.
    pub(super) fn filter_call(&mut self) -> Result<(Filter, ArgExprs), Error> {
        let name = self.expect_name()?;
        let Some(filter) = Filter::named(&name) else {
            return self.fail(format!("the filter '{name}' is not supported"));
        };
        let args = if self.is_op("(") { self.args()? } else { ArgExprs::default() };
        Ok((filter, args))
    }

    fn test(&mut self, node: Expr) -> Result<Expr, Error> {
        self.next();
        let negated = self.skip_name("not");
        let name = self.expect_name()?;
        let Some(test) = Test::named(&name) else {
            return self.fail(format!("the test '{name}' is not supported"));
        };
        let mut args = ArgExprs::default();
        let takes_primary = match self.token() {
            Token::Name(word) => !matches!(&**word, "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Op(op) => matches!(*op, "[" | "{"),
            _ => false,
        };
        if self.is_op("(") {
            args = self.args()?;
        } else if takes_primary {
            if self.is_name("is") {
                return self.fail("tests cannot be chained with 'is'");
            }
            let arg = self.primary()?;
            args.positional.push(self.postfix(arg)?);
        }
        let node = match (test, &mut args.positional[..]) {
            // `x is in y` is `x in y`
            (Test::Compare(op), [other]) if args.keyword.is_empty() => {
                Expr::Compare(Box::new(node), vec![(op, std::mem::replace(other, Expr::None))])
            }
            _ => Expr::Test(Box::new(node), test, Box::new(args)),
        };
        Ok(if negated { Expr::Not(Box::new(node)) } else { node })
    }
}
