//! What a template says, after parsing: statements and expressions, with every name resolved to slots.
use super::names::Filter;
use super::names::Owners;
use super::names::Test;
use super::source::is_said;

/// A variable: the slots to look in, innermost scope first; the last is an index into the row's own variables.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Name {
    pub name: Box<str>,
    pub slots: Box<[u32]>,
}

impl Name {
    /// The innermost slot that the template itself assigns to; none for a name that only the row gives a value.
    pub fn own_slot(&self) -> Option<u32> {
        if let [slot, _, ..] = self.slots[..] { Some(slot) } else { None }
    }
}

/// A place to assign to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    Name(Name),
    Tuple(Vec<Target>),
    /// `namespace.attribute`.
    Member(Name, Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Arguments as written.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ArgExprs {
    pub positional: Vec<Expr>,
    pub keyword: Vec<(Box<str>, Expr)>,
}

impl ArgExprs {
    pub fn is_empty(&self) -> bool {
        self.positional.is_empty() && self.keyword.is_empty()
    }
}

/// The name of an attribute, and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attr {
    pub name: Box<str>,
    /// Which types have it of themselves.
    pub owners: Owners,
    /// On a dict it can only be a key.
    pub is_key: bool,
    /// In a message it holds the message's own words.
    pub is_said: bool,
}

impl From<Box<str>> for Attr {
    fn from(name: Box<str>) -> Self {
        let owners = Owners::of(&name);
        let is_key = !owners.include_mappings() && !name.starts_with("__");
        Self { is_key, is_said: is_said(&name), owners, name }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i64),
    Big(Box<str>),
    Float(f64),
    Str(Box<str>),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Attr),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Box<ArgExprs>),
    /// `*list` among the arguments of a call. `**dict` stands among the keyword ones, under the name `**`.
    Spread(Box<Expr>),
    /// The input is absent in the head of a filter block.
    Filter(Option<Box<Expr>>, Filter, Box<ArgExprs>),
    Test(Box<Expr>, Test, Box<ArgExprs>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// test, value, otherwise.
    Conditional(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// Statements with variables of their own: the slots they own, unset on every entry.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Scope {
    pub body: Vec<Stmt>,
    pub slots: (u32, u32),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct For {
    pub target: Target,
    pub iter: Expr,
    /// `for x in y if filter`.
    pub filter: Option<Expr>,
    pub scope: Scope,
    pub otherwise: Scope,
    /// Where `loop` lives.
    pub loop_slot: u32,
    /// `loop(list)` runs the body again, within itself.
    pub recursive: bool,
    /// All slots of the body, nested scopes included: saved around such a run.
    pub all_slots: (u32, u32),
    /// How deep its statements and expressions nest.
    pub height: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Macro {
    pub name: Box<str>,
    pub params: Vec<(Name, Option<Expr>)>,
    /// The body names `caller`, and where it finds it.
    pub caller: Option<u32>,
    /// Where the body finds the arguments that no parameter takes; none if it does not name them.
    pub varargs: Option<u32>,
    pub kwargs: Option<u32>,
    pub scope: Scope,
    /// All slots of the body, nested scopes included: saved around a recursive call.
    pub all_slots: (u32, u32),
    /// How deep its statements and expressions nest.
    pub height: u32,
}

impl Macro {
    /// A macro whose names have no slots yet.
    pub fn new(name: Box<str>, params: Vec<(Name, Option<Expr>)>, scope: Scope, height: u32) -> Self {
        let all_slots = (0, 0);
        Self { name, params, caller: None, varargs: None, kwargs: None, scope, all_slots, height }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Branch {
    pub test: Expr,
    pub body: Vec<Stmt>,
    /// This branch writes the generation prompt.
    pub is_prompt: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum StmtKind {
    Text(Box<str>),
    Output(Expr),
    If(Vec<Branch>, Vec<Stmt>),
    For(Box<For>),
    Set {
        target: Target,
        value: Expr,
        /// `set x = list[i]`, where `i` is the variable of the loop around it.
        indexes_loop: bool,
    },
    SetBlock(Target, Vec<(Filter, ArgExprs)>, Scope),
    Macro(Name, Box<Macro>),
    CallBlock(Box<Expr>, Box<Macro>),
    FilterBlock(Vec<(Filter, ArgExprs)>, Scope),
    Generation(Scope),
    With(Vec<(Target, Expr)>, Scope),
    Break,
    Continue,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stmt {
    pub kind: StmtKind,
    pub line: u32,
}
