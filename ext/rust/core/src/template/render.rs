//! A row through a template: by its plan where that can, else by the interpreter, and some by both.
use super::interp::Interp;
use super::marks::{Writer, Written};
use super::plan::{Known, Texts};
use super::row::{Given, Row, builtin, is_function};
use super::value::{Text, Value};
use super::{Error, Template};
use crate::types::{Json, Message};

impl Template {
    pub(super) fn row<'a>(
        &self,
        messages: &'a [Message],
        tools: Option<&'a Json>,
        kwargs: &'a [(Box<str>, Json)],
    ) -> Row<'a> {
        Row::new(messages, tools, kwargs, self.form)
    }

    /// Render the first `count` messages of a row.
    pub(super) fn write(&self, row: &Row<'_>, count: usize, prompt: bool) -> Result<Written, Error> {
        if let Some((name, _)) = row.kwargs.iter().find(|(name, _)| {
            matches!(&**name, "messages" | "tools" | "documents" | "add_generation_prompt" | "conversation")
        }) {
            return Err(self.error("", format!("chat_template_kwargs cannot set '{name}'; remove it")));
        }
        if let Some(Json::Array(tools)) = row.tools
            && tools.iter().any(|tool| !matches!(tool, Json::Object(_)))
        {
            return Err(self.error("", "every tool must be an object (a JSON schema)"));
        }
        let Some(planned) = self.planned(row, count, prompt) else { return self.interpreted(row, count, prompt) };
        if self.checks.is_due(self.options.check_every)
            && self.interpreted(row, count, prompt).ok().as_ref() != Some(&planned)
        {
            let name = &self.options.name;
            let message = format!(
                "{name}: the template's plan and its interpretation differ on this row, which is a fault of postmill; \
                 please report the template and the row"
            );
            return Err(Error::Internal { message: message.into() });
        }
        Ok(planned)
    }

    fn fuel(&self, row: &Row<'_>) -> u64 {
        self.options.fuel + 64 * row.input_bytes
    }

    fn writer(&self, row: &Row<'_>, count: usize) -> Writer {
        let bytes = row.input_bytes as usize + 64 * (count + 1);
        Writer::new(self.options.max_output, bytes, count.min(row.messages.len()))
    }

    /// The rendering by the template's plan, if it has one that can do it.
    fn planned(&self, row: &Row<'_>, count: usize, prompt: bool) -> Option<Written> {
        let plan = self.plan.as_ref()?;
        if row.kwargs.iter().any(|(name, _)| is_function(name)) {
            return None;
        }
        let given = self.given.iter().map(|(at, given)| {
            let value = match *given {
                Given::Messages => Known::all(count.min(row.messages.len())),
                Given::Tools => row.tools.map_or(Known::None, |tools| Known::of(tools, 0)),
                Given::Documents => Known::None,
                Given::Prompt => Known::Bool(prompt),
                Given::Special(at) => Known::literal(&self.specials.named[at].1),
            };
            (*at, value)
        });
        let own = row.kwargs.iter().filter_map(|(name, value)| {
            let at = self.layout.outside.iter().position(|known| known == name)?;
            Some((at, Known::of(value, 0)))
        });
        plan.render(row, given.chain(own), self.fuel(row), self.writer(row, count), &Texts::default())
    }

    pub(super) fn interpreted(&self, row: &Row<'_>, count: usize, prompt: bool) -> Result<Written, Error> {
        let outside = self.layout.outside.iter().map(|name| self.variable(name, row, count, prompt)).collect();
        let slots = self.layout.num_slots as usize;
        let mut interp = Interp::new(slots, outside, self.fuel(row), self.date, self.writer(row, count));
        let result = interp.run(&self.body);
        if let Err(error) = result {
            let place = interp.locate(&error);
            return Err(self.error(&place, error.0.0));
        }
        if interp.fuel.is_spent() {
            return Err(self.error("", "out of fuel: the template runs too long; raise the fuel limit if it is right"));
        }
        Ok(interp.writer.finish())
    }

    fn variable<'a>(&'a self, name: &'a str, row: &'a Row<'_>, count: usize, prompt: bool) -> Value<'a> {
        match name {
            "messages" => Value::list((0..count.min(row.messages.len())).map(|i| row.value(i)).collect()),
            "tools" => row.tools.map_or(Value::None, |tools| Value::from_json(tools, 0)),
            "documents" => Value::None,
            "add_generation_prompt" => Value::Bool(prompt),
            _ => {
                if let Some((_, value)) = row.kwargs.iter().find(|(known, _)| &**known == name) {
                    return Value::from_json(value, 0);
                }
                if let Some((_, text)) = self.specials.named.iter().find(|(known, _)| &**known == name) {
                    return Value::Str(Text::literal(text));
                }
                builtin(name).map_or(Value::Unset, Value::Builtin)
            }
        }
    }
}
