//! The tokenizer of conversations for Python: bytes in, Arrow out, the interpreter lock released in between.
#![allow(clippy::needless_pass_by_value)] // arguments are extracted by value

use crate::arrow::{Batch, Table};
use crate::error::to_python;
use postmill_core::agents::AgentFormat;
use postmill_core::encode::encoder::Encoder;
use postmill_core::encode::options::{EncodeOptions, SpecialText, Templates};
use postmill_core::encode::pipeline::{self, Chunk, ReadOptions};
use postmill_core::encode::tokens::{tokens_schema, with_media};
use postmill_core::error::Error;
use postmill_core::json;
use postmill_core::media::Media;
use postmill_core::media::source::Roots;
use postmill_core::rows::RowOptions;
use postmill_core::template::{Date, SpecialTexts, Template};
use postmill_core::tokenizer::engine::Tokens;
use postmill_core::tokenizer::escape::Escape;
use postmill_core::tokenizer::vocabulary::{self, TokenNames};
use postmill_core::types::Json;
use postmill_core::weigh::Spec;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::borrow::Cow;

type Pairs = Vec<(String, String)>;

fn boxed(pairs: Pairs) -> Vec<(Box<str>, Box<str>)> {
    pairs.into_iter().map(|(name, text)| (name.into(), text.into())).collect()
}

fn template_kwargs(text: &str) -> Result<Vec<(Box<str>, Json)>, Error> {
    match json::parse_text(text) {
        Ok(Json::Object(members)) => Ok(members),
        _ => Err(Error::Config { message: format!("template_kwargs: {text:?} is not a JSON object").into() }),
    }
}

/// `LossScale(spec, rules="spans", files=[])`: a loss-scale specification on its own.
#[pyclass(frozen)]
struct LossScale(Spec);

#[pymethods]
impl LossScale {
    #[new]
    #[pyo3(signature = (spec, rules = "spans", files = vec![]))]
    fn new(py: Python<'_>, spec: &str, rules: &str, files: Pairs) -> PyResult<Self> {
        rules
            .parse()
            .and_then(|semantics| Spec::parse(spec, semantics, &files))
            .map(Self)
            .map_err(|error| to_python(py, &error))
    }

    /// `segments(text, query="") -> [(text, weight)]`: the reply in runs of equal weight.
    #[pyo3(signature = (text, query = ""))]
    fn segments(&self, py: Python<'_>, text: &str, query: &str) -> PyResult<Vec<(String, f64)>> {
        let segments = self.0.segments(text, query).map_err(|error| to_python(py, &error))?;
        let mut start = 0;
        let mut out = Vec::with_capacity(segments.len());
        for segment in segments {
            out.push((text[start..segment.end].to_owned(), segment.weight));
            start = segment.end;
        }
        Ok(out)
    }

    /// Whether every weight is 0 or 1.
    #[getter]
    fn is_binary(&self) -> bool {
        self.0.is_binary()
    }
}

/// `loss_scale_files(spec) -> [name]`: the parts of a specification that must be rules files.
#[pyfunction]
fn loss_scale_files(spec: &str) -> Vec<String> {
    Spec::files_of(spec)
}

/// `ChatEncoder(tokenizer_json, *, ...)`: everything that turns JSON Lines into tokens. Safe to share between threads.
#[pyclass(frozen)]
struct ChatEncoder {
    encoder: Encoder,
    read: ReadOptions,
}

#[pymethods]
impl ChatEncoder {
    /// Raises `NativeError` for a tokenizer, template or option that cannot be used.
    #[new]
    #[pyo3(signature = (
        tokenizer_json, *, bos = None, eos = None, extra_special = vec![], template = None, tools_template = None,
        template_name = "chat template", special_texts = vec![], date = None, loss_scale = "default", loss_rules = "spans", rule_files = vec![],
        segments = "whole", max_length = None, truncation = "drop", special_text = "keep", unwritten = "error", thinking = "template",
        system = None, template_kwargs = "{}", columns = vec![], model_name = None, model_author = None,
        skip_bad_rows = false, max_line_bytes = 0, engine = "auto", purpose = "train", drop = vec![], agent_format = None,
        media = None, media_roots = vec![],
        train_roles = vec!["assistant".to_owned()], train_closing = "turn", roles = vec![], each_turn = false,
        continue_final = false, number_calls = false, plain = false, unpair = false
    ))]
    #[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)] // named in Python
    fn new(
        py: Python<'_>,
        tokenizer_json: &[u8],
        bos: Option<String>,
        eos: Option<String>,
        extra_special: Vec<String>,
        template: Option<&str>,
        tools_template: Option<&str>,
        template_name: &str,
        special_texts: Pairs,
        date: Option<(i32, u8, u8)>,
        loss_scale: &str,
        loss_rules: &str,
        rule_files: Pairs,
        segments: &str,
        max_length: Option<usize>,
        truncation: &str,
        special_text: &str,
        unwritten: &str,
        thinking: &str,
        system: Option<String>,
        template_kwargs: &str,
        columns: Pairs,
        model_name: Option<String>,
        model_author: Option<String>,
        skip_bad_rows: bool,
        max_line_bytes: usize,
        engine: &str,
        purpose: &str,
        drop: Vec<String>,
        agent_format: Option<(String, String)>,
        media: Option<&str>,
        media_roots: Vec<String>,
        train_roles: Vec<String>,
        train_closing: &str,
        roles: Pairs,
        each_turn: bool,
        continue_final: bool,
        number_calls: bool,
        plain: bool,
        unpair: bool,
    ) -> PyResult<Self> {
        let build = || {
            let mut spec = Spec::parse(loss_scale, loss_rules.parse()?, &rule_files)?;
            spec.roles = train_roles.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
            spec.closing = train_closing.parse()?;
            let options = EncodeOptions {
                segments: segments.parse()?,
                max_length,
                truncation: truncation.parse()?,
                special_text: special_text.parse()?,
                unwritten: unwritten.parse()?,
                thinking: thinking.parse()?,
                system: system.map(Into::into),
                template_kwargs: self::template_kwargs(template_kwargs)?,
            };
            let names = TokenNames { bos, eos, extra: extra_special };
            let (engine, vocabulary) = vocabulary::load(tokenizer_json, &names, engine.parse()?)?;
            let specials = SpecialTexts { named: boxed(special_texts), tokens: vocabulary.added_texts.clone() };
            let compile = |source: &str| {
                let date = date.map(|(year, month, day)| Date { year, month, day });
                let options =
                    postmill_core::template::Options { name: template_name.into(), date, ..Default::default() };
                Template::new(source, &specials, options)
            };
            let plain_template = plain.then(|| Templates::plain(&vocabulary));
            let templates = Templates {
                default: plain_template.as_deref().or(template).map(compile).transpose()?,
                with_tools: tools_template.map(compile).transpose()?,
                agent: agent_format.map(|(name, text)| AgentFormat::new(&name, &text, &specials)).transpose()?,
            };
            let escapes = options.special_text == SpecialText::Escape;
            let mut encoder = Encoder::new(engine, vocabulary, templates, spec, options)?;
            if escapes {
                encoder = encoder.with_escape(Escape::new(tokenizer_json, &names)?)?;
            }
            if let Some(family) = media {
                encoder = encoder.with_media(Media::new(family, Roots::new(&media_roots))?)?;
            }
            let rows = RowOptions {
                media: encoder.kinds(),
                purpose: purpose.parse()?,
                drop: drop.into_iter().map(Into::into).collect(),
                columns: boxed(columns),
                roles: boxed(roles),
                continue_final,
                plain,
                number_calls,
                model_name: model_name.map(Into::into),
                model_author: model_author.map(Into::into),
            };
            Ok(Self { encoder, read: ReadOptions { rows, skip_bad_rows, each_turn, unpair, max_line_bytes } })
        };
        build().map_err(|error: Error| to_python(py, &error))
    }

    /// `encode_chunk(data, file, source, first_line, first_record, copy=0, selection=None, duplicates=[])
    /// -> (rows, ledger, counts)`.
    ///
    /// `folder`: where the file lies; relative paths of pictures count from there.
    /// `data`: whole lines of JSON Lines, bytes-like. `selection`: ascending record numbers. `duplicates`: those
    /// of them that are left out. The batches export `__arrow_c_array__`; `counts` is a dict of
    /// sums, with `length_histogram` and `closing_ids`. Raises `NativeError`.
    #[pyo3(signature = (data, file, source, first_line, first_record, copy = 0, selection = None, duplicates = vec![], folder = None))]
    #[allow(clippy::too_many_arguments)]
    fn encode_chunk<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'_, PyAny>,
        file: &str,
        source: i32,
        first_line: u64,
        first_record: u64,
        copy: u32,
        selection: Option<Vec<u64>>,
        duplicates: Vec<u64>,
        folder: Option<&str>,
    ) -> PyResult<(Batch, Batch, Bound<'py, PyDict>)> {
        let data = bytes_of(data)?;
        let selection = selection.as_deref();
        let chunk = Chunk {
            data: &data,
            file,
            folder,
            source,
            first_line,
            first_record,
            copy,
            selection,
            duplicates: &duplicates,
        };
        let encoded = py
            .detach(|| pipeline::encode_chunk(&self.encoder, &self.read, &chunk))
            .map_err(|error| to_python(py, &error))?;
        let counts = PyDict::new(py);
        for (name, sum) in encoded.counts.sums() {
            counts.set_item(name, sum)?;
        }
        counts.set_item("length_histogram", encoded.counts.length_histogram)?;
        counts.set_item("first_crlf", encoded.counts.first_crlf)?;
        counts.set_item("columns_seen", encoded.counts.columns_seen.iter().map(|name| &**name).collect::<Vec<_>>())?;
        let unused: Vec<&str> = encoded.counts.columns_unused.iter().map(|name| &**name).collect();
        counts.set_item("columns_unused", unused)?;
        counts.set_item("closing_ids", encoded.counts.closing_ids.into_iter().collect::<Vec<_>>())?;
        Ok((Batch(encoded.rows), Batch(encoded.ledger), counts))
    }

    /// `encode_chats(data, threads=1, file="chats") -> table`: the rows of whole JSON Lines as an Arrow table, through
    /// `__arrow_c_stream__`. `file` is what errors call them. Raises `NativeError`.
    #[pyo3(signature = (data, threads = 1, file = "chats"))]
    fn encode_chats(&self, py: Python<'_>, data: &Bound<'_, PyAny>, threads: usize, file: &str) -> PyResult<Table> {
        let data = bytes_of(data)?;
        let made = py
            .detach(|| pipeline::encode_lines(&self.encoder, &self.read, &data, file, threads))
            .map_err(|error| to_python(py, &error))?;
        let batches = made.into_iter().map(|encoded| encoded.rows).collect();
        let schema = if self.encoder.reads_media() { with_media(&tokens_schema()) } else { tokens_schema() };
        Ok(Table { schema, batches })
    }

    /// `content_hashes(data, source, first_line, first_record, copy=0, selection=None) -> [(record, hash)]`: numbers that
    /// are equal for rows that training cannot tell apart, as 16 bytes each.
    #[pyo3(signature = (data, source, first_line, first_record, copy = 0, selection = None))]
    #[allow(clippy::too_many_arguments)]
    fn content_hashes(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        source: i32,
        first_line: u64,
        first_record: u64,
        copy: u32,
        selection: Option<Vec<u64>>,
    ) -> PyResult<Vec<(u64, Cow<'static, [u8]>)>> {
        let data = bytes_of(data)?;
        let selection = selection.as_deref();
        let chunk = Chunk { data: &data, source, first_line, first_record, copy, selection, ..Chunk::default() };
        let hashes = py.detach(|| pipeline::content_hashes(&self.read, &chunk));
        Ok(hashes.into_iter().map(|(number, hash)| (number, Cow::Owned(hash.to_be_bytes().to_vec()))).collect())
    }

    /// `reweight(rows) -> rows`: a batch of tokens with this encoder's loss scale. Encodes nothing. Raises `NativeError`.
    fn reweight(&self, py: Python<'_>, rows: Batch) -> PyResult<Batch> {
        py.detach(|| pipeline::reweight(&rows.0, self.encoder.weigher()))
            .map(Batch)
            .map_err(|error| to_python(py, &error))
    }

    /// `encode(text) -> (ids, ends)`: ids of a text and the byte at which each token ends. Raises `NativeError`.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<(Vec<i32>, Vec<u32>)> {
        let mut tokens = Tokens::default();
        py.detach(|| self.encoder.engine().encode(text, &mut tokens)).map_err(|error| to_python(py, &error))?;
        Ok((tokens.ids, tokens.ends))
    }

    /// `read(ids) -> text`: the text of token ids, as loss-scale rules see it.
    fn read(&self, ids: Vec<i32>) -> String {
        let (mut text, mut starts) = (String::new(), vec![]);
        self.encoder.vocabulary().read(&ids, 0..ids.len(), &mut text, &mut starts);
        text
    }

    /// (year, month, day) the chat template prints, or None if it prints none.
    #[getter]
    fn date(&self) -> Option<(i32, u8, u8)> {
        self.encoder.date().map(|date| (date.year, date.month, date.day))
    }

    /// Name and version of the engine.
    #[getter]
    fn engine(&self) -> String {
        self.encoder.engine().name()
    }

    /// Number of ids.
    #[getter]
    fn num_ids(&self) -> usize {
        self.encoder.vocabulary().len()
    }
}

/// The bytes of an object. Those of `bytes` never change; any other buffer is copied, for Python may write to it while
/// the lock is released.
fn bytes_of<'a>(data: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, [u8]>> {
    match data.cast::<PyBytes>() {
        Ok(bytes) => Ok(Cow::Borrowed(bytes.as_bytes())),
        Err(_) => PyBuffer::get(data)?.to_vec(data.py()).map(Cow::Owned),
    }
}

/// Adds the classes and functions of this file to the module.
///
/// # Errors
/// What Python raises.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<LossScale>()?;
    module.add_class::<ChatEncoder>()?;
    module.add_function(wrap_pyfunction!(loss_scale_files, module)?)
}
