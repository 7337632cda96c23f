//! Follows a plan's steps.
use super::super::ast::BinaryOp;
use super::super::fuel::Fuel;
use super::super::marks::{Writer, Written};
use super::super::names::Filter;
use super::super::ops;
use super::super::row::Row;
use super::super::source::{joint_source, source_of};
use super::super::text;
use super::super::value::Value;
use super::known::{Known, Piece, Span};
use super::texts::{End, Texts};
use super::{Condition, Constant, LoopFact, MAX_NESTING, NUM_REGISTERS, Place, Plan, Register, Step};
use std::rc::Rc;

/// A loop that runs.
#[derive(Debug, Clone, Copy)]
struct Frame<'a> {
    over: Known<'a>,
    index: u32,
    length: u32,
    /// Turns that were open before the iteration.
    turns: usize,
}

struct Machine<'m, 'a> {
    /// As many as a register's number can name: no place is ever out of bounds. Lent, for it is too much to move.
    registers: &'m mut [Known<'a>; NUM_REGISTERS],
    loops: [Frame<'a>; MAX_NESTING],
    places: [usize; MAX_NESTING],
    writer: Writer,
    fuel: Fuel,
    row: &'a Row<'a>,
    texts: End<'a>,
    /// Bytes of text that were looked at, made, or set aside.
    scanned: u64,
    /// Bytes looked at or written that are paid for.
    paid: u64,
}

impl Plan {
    /// The rendering of a row, or none if it is for the interpreter. `outside`: what the row sets, by place in the
    /// layout.
    pub fn render<'a>(
        &'a self,
        row: &'a Row<'a>,
        outside: impl Iterator<Item = (usize, Known<'a>)>,
        fuel: u64,
        writer: Writer,
        texts: &'a Texts,
    ) -> Option<Written> {
        let idle = Frame { over: Known::Unset, index: 0, length: 0, turns: 0 };
        let mut registers = [Known::Unset; NUM_REGISTERS];
        for (at, value) in outside {
            registers[self.outside + at] = value;
        }
        for (register, constant) in &self.constants {
            registers[*register as usize] = constant.into();
        }
        let mut machine = Machine {
            registers: &mut registers,
            loops: [idle; MAX_NESTING],
            places: [0; MAX_NESTING],
            writer,
            fuel: Fuel::new(fuel),
            row,
            texts: End::of(texts),
            scanned: 0,
            paid: 0,
        };
        machine.run(&self.steps)?;
        Some(machine.writer.finish())
    }
}

impl<'a> Machine<'_, 'a> {
    fn run(&mut self, steps: &'a [Step]) -> Option<()> {
        let mut rest = steps.iter();
        let from = |place: Place| steps.get(place as usize..).map(<[Step]>::iter);
        loop {
            let step = rest.next()?;
            match step {
                Step::Copy(to, from) => {
                    let value = self.get(*from);
                    self.set(*to, if let Known::Unset = value { Known::Undefined } else { value });
                }
                Step::Pick(to, from) => {
                    let mut values = from.iter().map(|from| self.get(*from));
                    let value = values.find(|value| !matches!(value, Known::Unset)).unwrap_or(Known::Undefined);
                    self.set(*to, value);
                }
                Step::Attribute(to, from, attr) => self.set(*to, self.get(*from).attribute(attr)?),
                Step::Item(to, from, attr) => self.set(*to, self.get(*from).item(attr)?),
                Step::Branch(condition, wanted, place) => {
                    if self.holds(condition)? == *wanted {
                        rest = from(*place)?;
                    }
                }
                Step::Jump(place) => rest = from(*place)?,
                Step::Text(text) => {
                    if !self.writer.write(text, text.len()) {
                        return None;
                    }
                }
                Step::PrintText(from) => self.print(self.get(*from).text()?)?,
                Step::Enter { of, over, items, empty } => {
                    if !self.enter(*of, *over, *items)? {
                        rest = from(*empty)?;
                    }
                }
                Step::Begin { of, item, value, clear } => self.begin(*of, *item, *value, *clear)?,
                Step::Next { of, begin, cost } => {
                    self.afford(*cost)?;
                    if self.next(*of) {
                        rest = from(*begin)?;
                    }
                }
                Step::From(place) => self.places[*place as usize] = self.writer.at(),
                Step::MarkGeneration(place) => self.writer.mark_generation(self.places[*place as usize]),
                Step::Compute(to, op, left, right) => match (op, self.get(*left), self.get(*right)) {
                    (_, Known::Int(left), Known::Int(right)) => self.set(*to, Known::Int(compute(*op, left, right)?)),
                    (BinaryOp::Add, Known::Text(_), Known::Text(_)) => self.join(*to, &[*left, *right], false)?,
                    _ => return None,
                },
                Step::Join(to, from, spells) => self.join(*to, from, *spells)?,
                Step::Capture => {
                    self.scanned += self.writer.at() as u64;
                    self.writer.begin_capture();
                }
                Step::Captured(to) => self.captured(*to)?,
                Step::Loop(to, of, fact) => self.set(*to, self.loop_fact(*of, *fact)?),
                Step::Strip(..) | Step::Part(..) => self.cut(step)?,
                Step::Clear(from, to) => self.clear(*from, *to),
                Step::Stop => return None,
                Step::End { cost } => return self.afford(*cost),
                other => self.do_rarely(other)?,
            }
        }
    }

    fn do_rarely(&mut self, step: &'a Step) -> Option<()> {
        match step {
            Step::At(to, from, index) => {
                let index = self.get(*index).int()?;
                self.set(*to, self.at(self.get(*from), index)?);
            }
            Step::Slice(to, from, start) => {
                let value = self.get(*from);
                // the interpreter pays for each item, as for 64 bytes
                self.scanned += 64 * value.length()? as u64;
                self.set(*to, slice(value, *start)?);
            }
            Step::Length(to, from) => {
                let length = self.get(*from).length()?;
                self.set(*to, Known::Int(length as i64));
            }
            Step::Print(from) => match self.get(*from) {
                Known::Text(piece) | Known::Safe(piece) => self.print(piece)?,
                Known::Unset | Known::Undefined => {}
                other => self.print_made(&other.printed(&self.fuel)?)?,
            },
            Step::PrintJson(from, indent) => {
                let text = self.get(*from).to_json(*indent, &self.fuel)?;
                self.print_made(&text)?;
            }
            Step::Spell(to, from, safe) => {
                let piece = match self.get(*from) {
                    Known::Text(piece) => piece,
                    Known::Safe(piece) => {
                        self.set(*to, Known::Safe(piece));
                        return Some(());
                    }
                    other => {
                        let text = other.printed(&self.fuel)?;
                        self.made(text, 0)?
                    }
                };
                self.set(*to, if *safe { Known::Safe(piece) } else { Known::Text(piece) });
            }
            Step::Reshape(to, from, filter) => {
                let piece = self.scan(*from)?;
                let text = match filter {
                    Filter::Upper => piece.chars.to_uppercase(),
                    Filter::Lower => piece.chars.to_lowercase(),
                    _ => text::capitalize(piece.chars)?,
                };
                let piece = self.made(text, piece.source)?;
                self.set(*to, Known::Text(piece));
            }
            Step::Json(to, from, indent) => {
                let text = self.get(*from).to_json(*indent, &self.fuel)?;
                let piece = self.made(text, 0)?;
                self.set(*to, Known::Text(piece));
            }
            Step::Get(to, from, attr) => self.set(*to, self.get(*from).get(attr)?),
            Step::Leave { of } => self.writer.close_turns(self.loops[*of as usize].turns),
            Step::OpenTurn(from) => {
                if let Known::Object(_, number) = self.get(*from) {
                    self.writer.open_indexed_turn(number);
                }
            }
            Step::MarkPrompt(place) => self.writer.mark_prompt(self.places[*place as usize]),
            _ => return None,
        }
        Some(())
    }

    #[inline]
    fn get(&self, register: Register) -> Known<'a> {
        self.registers[register as usize]
    }

    #[inline]
    fn set(&mut self, register: Register, value: Known<'a>) {
        self.registers[register as usize] = value;
    }

    #[inline]
    fn clear(&mut self, from: Register, to: Register) {
        self.registers[from as usize..to as usize].fill(Known::Unset);
    }

    /// Pay for the steps of an iteration or of the whole, and for the bytes since the last time.
    #[inline]
    fn afford(&mut self, cost: u64) -> Option<()> {
        let bytes = self.scanned + self.writer.at() as u64;
        let paid = std::mem::replace(&mut self.paid, bytes);
        self.fuel.spend(cost + (bytes - paid) / 64 + 1).then_some(())
    }

    #[inline]
    fn print(&mut self, Piece { chars, literal_tail, source }: Piece<'a>) -> Option<()> {
        self.writer.note_words(chars, source);
        self.writer.write(chars, literal_tail as usize).then_some(())
    }

    fn print_made(&mut self, text: &str) -> Option<()> {
        self.writer.write(text, 0).then_some(())
    }

    #[inline]
    fn holds(&mut self, condition: &'a Condition) -> Option<bool> {
        match condition {
            Condition::True(of) => Some(self.get(*of).is_true()),
            Condition::Passes(of, test) => self.get(*of).passes(*test),
            Condition::IsText(of, text) => Some(match self.get(*of) {
                Known::Text(piece) | Known::Safe(piece) => *piece.chars == **text,
                _ => false,
            }),
            Condition::Compare(left, op, right) => self.get(*left).compare(*op, self.get(*right)),
            Condition::StartsWith(of, affix) => Some(self.scan(*of)?.chars.starts_with(&**affix)),
            Condition::EndsWith(of, affix) => Some(self.scan(*of)?.chars.ends_with(&**affix)),
            Condition::Holds(of, finder) => match self.get(*of) {
                Known::Object(members, _) => Some(members.iter().any(|(key, _)| key.as_bytes() == finder.needle())),
                _ => Some(finder.find(self.scan(*of)?.chars.as_bytes()).is_some()),
            },
        }
    }

    /// The text in a register, all of which is looked at.
    #[inline]
    fn scan(&mut self, of: Register) -> Option<Piece<'a>> {
        let piece = self.get(of).text()?;
        self.scanned += piece.chars.len() as u64;
        Some(piece)
    }

    /// A part of a text.
    fn cut(&mut self, step: &'a Step) -> Option<()> {
        let (to, part) = match step {
            Step::Strip(to, from, side, set) => {
                let piece = self.scan(*from)?;
                let mut part = piece.part(text::strip(piece.chars, set.as_deref(), *side));
                if *side == text::Side::Left {
                    part.literal_tail = piece.literal_tail.min(part.chars.len() as u32);
                }
                (to, part)
            }
            Step::Part(to, from, separator, last) => {
                let piece = self.scan(*from)?;
                // from the left in both cases: a separator that overlaps itself is found elsewhere from the right
                let mut parts = piece.chars.split(&**separator);
                (to, piece.part(if *last { parts.last() } else { parts.next() }?))
            }
            _ => return None,
        };
        self.set(*to, Known::Text(part));
        Some(())
    }

    /// A text that is kept until the end of the rendering.
    fn made(&mut self, text: impl Into<Rc<str>>, source: u32) -> Option<Piece<'a>> {
        let chars = self.texts.add(text)?;
        self.scanned += chars.len() as u64;
        Some(Piece { chars, literal_tail: 0, source })
    }

    /// As `ops::concat` of one after the other.
    fn join(&mut self, to: Register, from: &[Register], spells: bool) -> Option<()> {
        let mut joined = String::new();
        let (mut tail, mut source) = (0, 0);
        for (number, register) in from.iter().enumerate() {
            let spelled;
            let Piece { chars, literal_tail, source: own } = match self.get(*register) {
                Known::Text(piece) => piece,
                Known::Safe(piece) if spells => piece,
                other if spells => {
                    spelled = other.printed(&self.fuel)?;
                    Piece { chars: &spelled, literal_tail: 0, source: 0 }
                }
                _ => return None,
            };
            // `~` takes what stands behind nothing as it is
            if number == 0 || spells && joined.is_empty() {
                (tail, source) = (literal_tail, own);
            } else {
                tail = if literal_tail as usize == chars.len() { tail + literal_tail } else { literal_tail };
                source = joint_source(source, own);
            }
            joined.push_str(chars);
            self.scanned += joined.len() as u64;
        }
        let chars = self.texts.add(joined)?;
        self.set(to, Known::Text(Piece { chars, literal_tail: tail, source }));
        Some(())
    }

    /// What was set aside; none if whole turns are in it, whose marks a text cannot keep.
    fn captured(&mut self, to: Register) -> Option<()> {
        let (captured, literal_tail) = self.writer.end_capture();
        if !captured.marks.is_empty() {
            return None;
        }
        // what was written and set aside is counted, what was written before it is not counted twice
        self.scanned += captured.text.len() as u64;
        self.scanned -= self.writer.at() as u64;
        let source = captured.joint_source();
        let chars = self.texts.add(captured.text)?;
        self.set(to, Known::Text(Piece { chars, literal_tail, source }));
        Some(())
    }

    /// Start a loop; false if there is nothing to go over.
    fn enter(&mut self, of: u8, over: Register, items: bool) -> Option<bool> {
        let over = self.get(over);
        let length = match over {
            Known::Object(members, _) => {
                // the interpreter pays for all, however many it takes
                self.scanned += 64 * members.len() as u64;
                members.len() as u32
            }
            _ if items => return None,
            Known::Messages(span) => span.count,
            Known::List(items) => items.len() as u32,
            Known::Unset | Known::Undefined => 0,
            _ => return None,
        };
        self.loops[of as usize] = Frame { over, index: 0, length, turns: 0 };
        Some(length > 0)
    }

    #[inline]
    fn begin(&mut self, of: u8, item: Register, value: Option<Register>, clear: (Register, Register)) -> Option<()> {
        self.clear(clear.0, clear.1);
        let turns = self.writer.num_turns();
        let frame = &mut self.loops[of as usize];
        frame.turns = turns;
        let first = match frame.over {
            Known::Messages(span) => {
                let message = span.message(frame.index);
                self.writer.open_turn(message);
                message_of(self.row, message)
            }
            Known::List(items) => Known::of(items.get(frame.index as usize)?, 0),
            Known::Object(members, message) => {
                let (key, json) = members.get(frame.index as usize)?;
                if let Some(value) = value {
                    self.set(value, Known::of(json, source_of(key, message)));
                }
                Known::Text(Piece { chars: key, literal_tail: 0, source: 0 })
            }
            _ => return None,
        };
        self.set(item, first);
        Some(())
    }

    /// End an iteration; whether there is another.
    #[inline]
    fn next(&mut self, of: u8) -> bool {
        let frame = &mut self.loops[of as usize];
        self.writer.close_turns(frame.turns);
        frame.index += 1;
        frame.index < frame.length
    }

    fn loop_fact(&self, of: u8, fact: LoopFact) -> Option<Known<'a>> {
        let frame = &self.loops[of as usize];
        let beside = |at: Option<u32>| at.map_or(Some(Known::Undefined), |at| self.at(frame.over, i64::from(at)));
        Some(match fact {
            LoopFact::Index => Known::Int(i64::from(frame.index) + 1),
            LoopFact::Index0 => Known::Int(i64::from(frame.index)),
            LoopFact::First => Known::Bool(frame.index == 0),
            LoopFact::Last => Known::Bool(frame.index + 1 == frame.length),
            LoopFact::Length => Known::Int(i64::from(frame.length)),
            LoopFact::Previous => beside(frame.index.checked_sub(1))?,
            LoopFact::Next => beside(frame.index.checked_add(1))?,
        })
    }

    /// `value[index]` of a list.
    fn at(&self, value: Known<'a>, index: i64) -> Option<Known<'a>> {
        let place = |length: usize| {
            let at = usize::try_from(if index < 0 { index + length as i64 } else { index }).ok();
            at.filter(|at| *at < length)
        };
        Some(match value {
            Known::Messages(span) => {
                let message = place(span.count as usize).map(|at| span.message(at as u32));
                message.map_or(Known::Undefined, |message| message_of(self.row, message))
            }
            Known::List(items) => place(items.len()).map_or(Known::Undefined, |at| Known::of(&items[at], 0)),
            _ => return None,
        })
    }
}

fn message_of<'a>(row: &'a Row<'a>, message: usize) -> Known<'a> {
    Known::Object(row.members(message), row.number(message))
}

/// `value[from:]`, or `value[::-1]` of messages.
fn slice(value: Known<'_>, from: Option<i64>) -> Option<Known<'_>> {
    match (value, from) {
        (Known::Messages(span), None) => Some(Known::Messages(Span { backwards: !span.backwards, ..span })),
        (Known::Messages(span), Some(from)) if !span.backwards => {
            let skip = (from as u32).min(span.count);
            Some(Known::Messages(Span { first: span.first + skip, count: span.count - skip, ..span }))
        }
        (Known::List(items), Some(from)) => Some(Known::List(items.get(from as usize..).unwrap_or(&[]))),
        _ => None,
    }
}

#[inline]
fn compute(op: BinaryOp, left: i64, right: i64) -> Option<i64> {
    match op {
        BinaryOp::Add => left.checked_add(right),
        BinaryOp::Sub => left.checked_sub(right),
        _ => match ops::integers(op, left, right) {
            Ok(Value::Int(result)) => Some(result),
            _ => None,
        },
    }
}

impl<'a> From<&'a Constant> for Known<'a> {
    fn from(constant: &'a Constant) -> Self {
        match constant {
            Constant::None => Self::None,
            Constant::Bool(value) => Self::Bool(*value),
            Constant::Int(value) => Self::Int(*value),
            Constant::Text(text) => Self::Text(Piece::literal(text)),
            Constant::Data(text) => Self::Text(Piece { chars: text, literal_tail: 0, source: 0 }),
            Constant::EmptyList => Self::List(&[]),
        }
    }
}
