//! A template as a list of small steps, which most rows can be rendered by.
//!
//! The interpreter walks a tree and computes with values that may be anything; on chats of several turns that was 200
//! instructions for each node of the tree. A plan is derived from the same tree: it knows where every variable lives,
//! what of a namespace, of `loop` and of a message is asked for. It computes with numbers and with values that lie in the
//! row, in the template, or among the texts that this rendering has made ([`texts::Texts`]), so that no value is counted
//! or dropped. A call of a macro is the macro's steps at the place of the call. A step that meets anything else gives up
//! (`Stop`), and the row is interpreted from its start: a plan has no errors of its own, and what it cannot do costs
//! only time. It writes through the same `Writer` as the interpreter, so what is noted about the output is the same.
//!
//! Whether a plan's rendering is the interpreter's is not believed but compared: for every row in tests, for the first
//! and one in a thousand elsewhere (`Options::check_every`).
mod expr;
mod known;
mod lower;
mod machine;
mod statements;
#[cfg(test)]
mod tests;
mod texts;

pub(super) use known::Known;
pub(super) use lower::plan;
pub(super) use texts::Texts;

use super::ast::{Attr, BinaryOp, CompareOp};
use super::names::Filter;
use super::names::Test;
use super::text::Side;
use memchr::memmem::Finder;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a value is kept: variables first, as the template's layout numbers them, then those that rows set, then
/// members of namespaces and what expressions need in passing.
type Register = u8;

const NUM_REGISTERS: usize = 256;

/// Fuel for a step, or a text that was joined to another: more than the interpreter spends on what it stands for, so that a
/// plan never finishes what the interpreter would refuse.
const FUEL_PER_STEP: u64 = 4;

/// Loops, and stretches of output that will be marked, within one another.
const MAX_NESTING: usize = 8;

/// Index of a step.
type Place = u32;

/// A value that the template spells out.
#[derive(Debug, PartialEq)]
enum Constant {
    None,
    Bool(bool),
    Int(i64),
    /// The template's own words.
    Text(Box<str>),
    /// Text that the template computes from nothing but its own.
    Data(Box<str>),
    EmptyList,
}

/// What is asked of `loop`.
#[derive(Debug, Clone, Copy)]
enum LoopFact {
    Index,
    Index0,
    First,
    Last,
    Length,
    Previous,
    Next,
}

#[derive(Debug)]
enum Condition {
    True(Register),
    Passes(Register, Test),
    IsText(Register, Box<str>),
    Compare(Register, CompareOp, Register),
    StartsWith(Register, Box<str>),
    EndsWith(Register, Box<str>),
    /// A text holds this text, or an object this key.
    Holds(Register, Box<Finder<'static>>),
}

/// The first register is where the result goes.
#[derive(Debug)]
enum Step {
    Copy(Register, Register),
    /// The first of these that is set.
    Pick(Register, Box<[Register]>),
    Attribute(Register, Register, Box<Attr>),
    Item(Register, Register, Box<Attr>),
    At(Register, Register, Register),
    /// `value[from:]` or, with none, `value[::-1]`.
    Slice(Register, Register, Option<i64>),
    Length(Register, Register),
    /// Of integers, or the sum of two texts.
    Compute(Register, BinaryOp, Register, Register),
    /// Texts one after the other. `true`: as `~` joins them, which spells other values.
    Join(Register, Box<[Register]>, bool),
    /// As text (`|string`). `true`: marked `|safe`.
    Spell(Register, Register, bool),
    /// In other letters: `|upper`, `|lower`, `|capitalize`.
    Reshape(Register, Register, Filter),
    /// As JSON text, indented by so much.
    Json(Register, Register, Option<u8>),
    /// `value.get('name')`
    Get(Register, Register, Box<Attr>),
    Strip(Register, Register, Side, Option<Box<str>>),
    /// The first or last part of a text split by another.
    Part(Register, Register, Box<str>, bool),
    Loop(Register, u8, LoopFact),
    Jump(Place),
    /// Jump if the condition is this.
    Branch(Condition, bool, Place),
    /// Literal text.
    Text(String),
    /// Whatever it is.
    Print(Register),
    /// A term of a sum, which must be text.
    PrintText(Register),
    /// As JSON, indented by so much.
    PrintJson(Register, Option<u8>),
    /// Start a loop over a value, or over the `items()` of an object; go elsewhere if it is empty.
    Enter {
        of: u8,
        over: Register,
        items: bool,
        empty: Place,
    },
    /// An iteration begins: nothing in `clear` is set but the item, and the value of a member behind its name.
    Begin {
        of: u8,
        item: Register,
        value: Option<Register>,
        clear: (Register, Register),
    },
    /// It ends, and with all it did costs this; on to the next if there is one.
    Next {
        of: u8,
        begin: Place,
        cost: u64,
    },
    /// The loop is left.
    Leave {
        of: u8,
    },
    Clear(Register, Register),
    /// The iteration writes for the message in this register from here on.
    OpenTurn(Register),
    /// Remember where the output is, for a mark.
    From(u8),
    MarkPrompt(u8),
    MarkGeneration(u8),
    /// Set aside what is written from here on.
    Capture,
    /// What was written since `Capture`, as a text.
    Captured(Register),
    /// What follows is for the interpreter.
    Stop,
    /// The end, and what all steps outside of loops cost.
    End {
        cost: u64,
    },
}

/// A template's steps and the room they need.
#[derive(Debug)]
pub(super) struct Plan {
    steps: Vec<Step>,
    constants: Vec<(Register, Constant)>,
    /// The first register of those that rows set.
    outside: usize,
}

/// Counts a plan's renderings, so that some are compared.
#[derive(Debug, Default)]
pub(super) struct Checks(AtomicU64);

impl Checks {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// This rendering is to be compared: the first is, and one of `every`; all where code is tested.
    pub fn is_due(&self, every: u64) -> bool {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        cfg!(any(test, debug_assertions)) || number.is_multiple_of(every)
    }
}
