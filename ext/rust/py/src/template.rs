//! Chat templates in Python: what `show` prints and what people without torch render.
use postmill_core::agents;
use postmill_core::error::Error;
use postmill_core::json;
use postmill_core::template::{Date, Options, SpecialTexts, Template};
use postmill_core::types::{Json, Message, Role};
use pyo3::prelude::*;

use crate::error::to_python;

/// `(role, message, all_start, all_end, generated_start, generated_end, closing)`, in bytes of the text as UTF-8.
type TurnTuple = (u8, usize, usize, usize, usize, usize, usize);

/// A compiled chat template. Messages are handed to it as they are given, as transformers does.
#[pyclass(frozen, module = "postmill._native")]
struct ChatTemplate(Template);

#[pymethods]
impl ChatTemplate {
    /// `specials`: JSON object with `named` (object of texts) and `tokens` (list of texts).
    #[new]
    #[allow(clippy::too_many_arguments)] // named in Python
    #[pyo3(signature = (source, specials="{}", *, name="chat template", date=None, fuel=None, max_output=None,
        check_every=None))]
    fn new(
        py: Python<'_>,
        source: &str,
        specials: &str,
        name: &str,
        date: Option<(i32, u8, u8)>,
        fuel: Option<u64>,
        max_output: Option<usize>,
        check_every: Option<u64>,
    ) -> PyResult<Self> {
        let mut options = Options { name: name.into(), as_given: true, ..Options::default() };
        options.date = date.map(|(year, month, day)| Date { year, month, day });
        options.fuel = fuel.unwrap_or(options.fuel);
        options.max_output = max_output.unwrap_or(options.max_output);
        options.check_every = check_every.unwrap_or(options.check_every);
        let template = parse_specials(specials).and_then(|specials| Template::new(source, &specials, options));
        template.map(Self).map_err(|error| to_python(py, &error))
    }

    /// How many renderings were made by the template's plan, which is faster than the interpreter.
    #[getter]
    fn num_planned(&self) -> u64 {
        self.0.num_planned()
    }

    /// The text of a conversation and its turns. All arguments but the last are JSON texts (empty: none).
    #[pyo3(signature = (messages, tools="", kwargs="", add_generation_prompt=false))]
    fn render(
        &self,
        py: Python<'_>,
        messages: &str,
        tools: &str,
        kwargs: &str,
        add_generation_prompt: bool,
    ) -> PyResult<(String, Vec<TurnTuple>)> {
        let rendered = py.detach(|| {
            let (messages, tools, kwargs) = parse_row(messages, tools, kwargs)?;
            self.0.render(&messages, tools.as_ref(), &kwargs, add_generation_prompt)
        });
        let rendered = rendered.map_err(|error| to_python(py, &error))?;
        let turns = rendered.turns.into_iter().map(|turn| {
            let (all, own) = (turn.all, turn.generated);
            (turn.role as u8, turn.message, all.start, all.end, own.start, own.end, turn.closing)
        });
        Ok((rendered.text, turns.collect()))
    }

    /// The text of a conversation, where nobody asks for its turns.
    #[pyo3(signature = (messages, tools="", kwargs="", add_generation_prompt=false))]
    fn render_text(
        &self,
        py: Python<'_>,
        messages: &str,
        tools: &str,
        kwargs: &str,
        add_generation_prompt: bool,
    ) -> PyResult<String> {
        let text = py.detach(|| {
            let (messages, tools, kwargs) = parse_row(messages, tools, kwargs)?;
            self.0.render_text(&messages, tools.as_ref(), &kwargs, add_generation_prompt)
        });
        text.map_err(|error| to_python(py, &error))
    }

    /// Median microseconds of `repeats` renderings with turns, after parsing: for benchmarks.
    fn time(&self, py: Python<'_>, messages: &str, tools: &str, kwargs: &str, repeats: usize) -> PyResult<f64> {
        let median = py.detach(|| {
            let (messages, tools, kwargs) = parse_row(messages, tools, kwargs)?;
            let mut times = Vec::with_capacity(repeats);
            for _ in 0..repeats.max(1) {
                let start = std::time::Instant::now();
                self.0.render(&messages, tools.as_ref(), &kwargs, false)?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            times.sort_by(f64::total_cmp);
            Ok(times[times.len() / 2])
        });
        median.map_err(|error: Error| to_python(py, &error))
    }

    /// The date the template prints, if it prints one.
    #[getter]
    fn date(&self) -> Option<(i32, u8, u8)> {
        self.0.date().map(|date| (date.year, date.month, date.day))
    }

    /// Names that `chat_template_kwargs` can set.
    #[getter]
    fn variables(&self) -> Vec<&str> {
        self.0.variables().collect()
    }
}

/// An agent format: what writes tools, calls and answers into messages.
#[pyclass(frozen, module = "postmill._native")]
struct AgentFormat(agents::AgentFormat);

#[pymethods]
impl AgentFormat {
    /// `text`: the members of the format's file as a JSON object.
    #[new]
    fn new(py: Python<'_>, name: &str, text: &str) -> PyResult<Self> {
        let format = agents::AgentFormat::new(name, text, &SpecialTexts::default());
        format.map(Self).map_err(|error| to_python(py, &error))
    }

    /// Messages, and tools or nothing, as JSON texts in Hugging Face's form -> messages without tools and calls.
    #[pyo3(signature = (messages, tools=""))]
    fn write(&self, py: Python<'_>, messages: &str, tools: &str) -> PyResult<String> {
        let written = py.detach(|| {
            let (messages, tools, _) = parse_row(messages, tools, "")?;
            let written = self.0.write(messages, tools.as_ref())?;
            let messages = written.messages.into_iter().map(|message| Json::Object(message.fields)).collect();
            Ok(json::python_dumps(&Json::Array(messages), &json::PythonStyle::one_line()))
        });
        written.map_err(|error: Error| to_python(py, &error))
    }
}

fn config(message: &str) -> Error {
    Error::Config { message: message.into() }
}

fn parse(text: &str) -> Result<Option<Json>, Error> {
    if text.is_empty() { Ok(None) } else { Ok(Some(json::parse_text(text)?)) }
}

fn parse_specials(text: &str) -> Result<SpecialTexts, Error> {
    let mut specials = SpecialTexts::default();
    let Some(Json::Object(members)) = parse(text)? else { return Err(config("specials must be a JSON object")) };
    for (key, value) in members {
        match (&*key, value) {
            ("named", Json::Object(named)) => {
                for (name, value) in named {
                    let Json::String(value) = value else { return Err(config("named specials must be texts")) };
                    specials.named.push((name, value));
                }
            }
            ("tokens", Json::Array(tokens)) => {
                for token in tokens {
                    let Json::String(token) = token else { return Err(config("special tokens must be texts")) };
                    specials.tokens.push(token);
                }
            }
            _ => return Err(config("specials has an object 'named' and a list 'tokens', nothing else")),
        }
    }
    Ok(specials)
}

type RowParts = (Vec<Message>, Option<Json>, Vec<(Box<str>, Json)>);

fn parse_row(messages: &str, tools: &str, kwargs: &str) -> Result<RowParts, Error> {
    let Some(Json::Array(items)) = parse(messages)? else { return Err(config("messages must be a JSON list")) };
    let messages = items.into_iter().map(message).collect::<Result<_, _>>()?;
    let kwargs = match parse(kwargs)? {
        None => Vec::new(),
        Some(Json::Object(members)) => members,
        Some(_) => return Err(config("template kwargs must be a JSON object")),
    };
    Ok((messages, parse(tools)?, kwargs))
}

fn message(json: Json) -> Result<Message, Error> {
    let Json::Object(fields) = json else { return Err(config("every message must be a JSON object")) };
    let role = fields.iter().find(|(name, _)| &**name == "role").map(|(_, role)| role);
    let role = match role {
        Some(Json::String(role)) => match &**role {
            "assistant" | "model" => Role::Assistant,
            "system" | "developer" => Role::System,
            "tool" | "ipython" | "function" | "observation" => Role::Tool,
            _ => Role::User,
        },
        _ => Role::User,
    };
    Ok(Message { role, fields, loss: Vec::new(), loss_scale: Vec::new(), pieces: Vec::new(), given: false })
}

/// Adds the class to the module.
///
/// # Errors
/// What Python raises.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<AgentFormat>()?;
    module.add_class::<ChatTemplate>()
}
