//! The tokenizer alone for Python: text in, ids out as arrays.

use crate::arrow::{Chunks, to_capsules};
use crate::buffer::Array;
use crate::error::to_python;
use arrow_array::{Array as _, ArrayRef, LargeListArray, LargeStringArray, StringArray, StringViewArray, UInt32Array};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field};
use postmill_core::error::Error;
use postmill_core::tokenizer::bpe::Bpe;
use postmill_core::tokenizer::char_bpe;
use postmill_core::tokenizer::engine::{Batch, Engine, HfEngine, Tokens, encode_batch};
use postmill_core::tokenizer::guard;
use postmill_core::tokenizer::vocabulary::TokenNames;
use pyo3::exceptions::{PyIndexError, PyTypeError, PyUnicodeDecodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyTuple;
use std::sync::Arc;

enum Inner {
    Bytes(Bpe),
    /// Of characters, or the crate's.
    Other(Box<dyn Engine>),
}

/// `Tokenizer(tokenizer_json)`: encodes text as `tokenizers` does with `add_special_tokens=False`. Safe to share between
/// threads.
#[pyclass(frozen)]
struct Tokenizer {
    inner: Inner,
    refused: Option<String>,
}

#[pymethods]
impl Tokenizer {
    /// Raises `NativeError` for bytes that are no tokenizer.
    #[new]
    fn new(py: Python<'_>, tokenizer_json: &[u8]) -> PyResult<Self> {
        let made = py.detach(|| {
            let refused = match Bpe::compile(tokenizer_json) {
                Ok(bpe) => return Ok(Self { inner: Inner::Bytes(bpe), refused: None }),
                Err(refused) => refused,
            };
            if let Some((engine, _)) = char_bpe::load(tokenizer_json, &TokenNames::default()) {
                return Ok(Self { inner: Inner::Other(Box::new(engine)), refused: None });
            }
            let engine = HfEngine::new(guard::tokenizer(tokenizer_json)?);
            Ok(Self { inner: Inner::Other(Box::new(engine)), refused: Some(refused.to_string()) })
        });
        made.map_err(|error: Error| to_python(py, &error))
    }

    /// Name and version of what encodes.
    #[getter]
    fn engine(&self) -> String {
        match &self.inner {
            Inner::Bytes(engine) => engine.name(),
            Inner::Other(engine) => engine.name(),
        }
    }

    /// Why our own engine is not used, or `None`.
    #[getter]
    fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// `encode(text, threads=1) -> Array` of ids. A long text is cut for several threads where that changes no id.
    #[pyo3(signature = (text, threads = 1))]
    fn encode(&self, py: Python<'_>, text: Text, threads: usize) -> PyResult<Array> {
        Ok(ScalarBuffer::from(self.run(py, &[text.as_str(py)?], threads)?.ids).into())
    }

    /// `encode_batch(texts, threads=1) -> Encoded`. `texts`: a list of `str` or of UTF-8 `bytes`, or an Arrow array of
    /// strings without nulls.
    #[pyo3(signature = (texts, threads = 1))]
    fn encode_batch(&self, py: Python<'_>, texts: Texts, threads: usize) -> PyResult<Encoded> {
        match texts {
            Texts::List(texts) => {
                let texts: Vec<&str> = texts.iter().map(|text| text.as_str(py)).collect::<PyResult<_>>()?;
                Ok(self.run(py, &texts, threads)?.into())
            }
            Texts::Arrow(Chunks(chunks)) => {
                let mut texts = vec![];
                chunks.iter().try_for_each(|chunk| strings(chunk, &mut texts))?;
                Ok(self.run(py, &texts, threads)?.into())
            }
        }
    }

    /// `encode_with_ends(text) -> (Array, Array)`: ids, and the byte of the UTF-8 text where each token ends.
    fn encode_with_ends(&self, py: Python<'_>, text: Text) -> PyResult<(Array, Array)> {
        let text = text.as_str(py)?;
        let tokens = py.detach(|| {
            // As for ids alone: three bytes a token, and what is not written to costs nothing.
            let most = text.len() / 3 + 16;
            let mut tokens = Tokens { ids: Vec::with_capacity(most), ends: Vec::with_capacity(most) };
            match &self.inner {
                Inner::Bytes(engine) => engine.encode(text, &mut tokens)?,
                Inner::Other(engine) => engine.encode(text, &mut tokens)?,
            }
            Ok(tokens)
        });
        let tokens = tokens.map_err(|error: Error| to_python(py, &error))?;
        let ids: Vec<u32> = tokens.ids.into_iter().map(i32::cast_unsigned).collect();
        Ok((ScalarBuffer::from(ids).into(), ScalarBuffer::from(tokens.ends).into()))
    }
}

impl Tokenizer {
    fn run(&self, py: Python<'_>, texts: &[&str], threads: usize) -> PyResult<Batch> {
        let batch = py.detach(|| match &self.inner {
            Inner::Bytes(engine) => Ok(engine.encode_batch(texts, threads)),
            Inner::Other(engine) => encode_batch(&**engine, texts, threads),
        });
        batch.map_err(|error: Error| to_python(py, &error))
    }
}

/// A text that Python keeps while it is encoded.
#[derive(FromPyObject)]
enum Text {
    Str(PyBackedStr),
    Bytes(PyBackedBytes),
}

impl Text {
    fn as_str(&self, py: Python<'_>) -> PyResult<&str> {
        match self {
            Self::Str(text) => Ok(text),
            Self::Bytes(bytes) => {
                std::str::from_utf8(bytes).map_err(|fault| PyUnicodeDecodeError::new_err_from_utf8(py, bytes, fault))
            }
        }
    }
}

#[derive(FromPyObject)]
enum Texts {
    List(Vec<Text>),
    Arrow(Chunks),
}

/// The texts of an Arrow array. Raises `TypeError` for other types, and for nulls.
fn strings<'a>(array: &'a ArrayRef, out: &mut Vec<&'a str>) -> PyResult<()> {
    if array.null_count() > 0 {
        return Err(PyTypeError::new_err("texts: the Arrow array has nulls; fill or drop them"));
    }
    let any = array.as_any();
    if let Some(texts) = any.downcast_ref::<StringArray>() {
        out.extend(texts.iter().flatten());
    } else if let Some(texts) = any.downcast_ref::<LargeStringArray>() {
        out.extend(texts.iter().flatten());
    } else if let Some(texts) = any.downcast_ref::<StringViewArray>() {
        out.extend(texts.iter().flatten());
    } else {
        return Err(PyTypeError::new_err(format!("texts: an Arrow array of {}, expected strings", array.data_type())));
    }
    Ok(())
}

/// The ids of many texts: an Arrow array of lists of uint32 through `__arrow_c_array__`, and the two buffers of one.
#[pyclass(frozen, module = "postmill._native")]
struct Encoded {
    ids: ScalarBuffer<u32>,
    offsets: ScalarBuffer<i64>,
}

impl From<Batch> for Encoded {
    fn from(batch: Batch) -> Self {
        Self { ids: batch.ids.into(), offsets: batch.offsets.into() }
    }
}

#[pymethods]
impl Encoded {
    /// Ids of all texts in a row.
    #[getter]
    fn ids(&self) -> Array {
        self.ids.clone().into()
    }

    /// `ids[offsets[i]:offsets[i + 1]]` are those of text i; one more than there are texts.
    #[getter]
    fn offsets(&self) -> Array {
        self.offsets.clone().into()
    }

    fn __len__(&self) -> usize {
        self.offsets.len() - 1
    }

    fn __getitem__(&self, index: isize) -> PyResult<Array> {
        let len = self.offsets.len() as isize - 1;
        let at = if index < 0 { index + len } else { index };
        if !(0..len).contains(&at) {
            return Err(PyIndexError::new_err(format!("index {index} of {len} texts")));
        }
        let (start, end) = (self.offsets[at as usize] as usize, self.offsets[at as usize + 1] as usize);
        Ok(self.ids.slice(start, end - start).into())
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let _ = requested_schema; // readers cast
        let item = Arc::new(Field::new("item", DataType::UInt32, false));
        let offsets = OffsetBuffer::new(self.offsets.clone());
        let ids = Arc::new(UInt32Array::new(self.ids.clone(), None));
        let lists = LargeListArray::try_new(item, offsets, ids, None);
        let lists = lists.map_err(|error| PyValueError::new_err(error.to_string()))?;
        to_capsules(py, &Field::new("ids", lists.data_type().clone(), false), &lists)
    }
}

/// Adds the class to the module.
///
/// # Errors
/// What Python raises.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Array>()?;
    module.add_class::<Encoded>()?;
    module.add_class::<Tokenizer>()
}
