//! The tokenizer alone for Python: text in, ids out as arrays.

use crate::error::to_python;
use numpy::{IntoPyArray, PyArray1};
use postmill_core::bpe::Bpe;
use postmill_core::bpe::batch::Batch;
use postmill_core::bpe::engine::BpeEngine;
use postmill_core::encode::{Engine, HfEngine, Tokens};
use postmill_core::error::Error;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

type Ids<'py> = Bound<'py, PyArray1<u32>>;

enum Inner {
    Ours(BpeEngine),
    Crate(HfEngine),
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
        let made = py.detach(|| match Bpe::compile(tokenizer_json) {
            Ok(bpe) => Ok(Self { inner: Inner::Ours(BpeEngine::new(bpe)), refused: None }),
            Err(refused) => {
                let fault = |error| Error::Config { message: format!("tokenizer.json: {error}").into() };
                let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(fault)?;
                Ok(Self { inner: Inner::Crate(HfEngine::new(tokenizer)), refused: Some(refused.to_string()) })
            }
        });
        made.map_err(|error: Error| to_python(py, &error))
    }

    /// Name and version of what encodes.
    #[getter]
    fn engine(&self) -> String {
        match &self.inner {
            Inner::Ours(engine) => engine.name(),
            Inner::Crate(engine) => engine.name(),
        }
    }

    /// Why our own engine is not used, or `None`.
    #[getter]
    fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// `encode(text, threads=1) -> uint32 array`. A long text is cut for several threads where that changes no id.
    #[pyo3(signature = (text, threads = 1))]
    fn encode<'py>(&self, py: Python<'py>, text: PyBackedStr, threads: usize) -> PyResult<Ids<'py>> {
        Ok(self.run(py, &[text], threads)?.ids.into_pyarray(py))
    }

    /// `encode_batch(texts, threads=1) -> (uint32 array, int64 array)`: the ids of all texts in a row, and offsets, one
    /// more than texts: `ids[offsets[i]:offsets[i + 1]]` are those of text i. The two are the buffers of an Arrow list.
    #[pyo3(signature = (texts, threads = 1))]
    #[allow(clippy::type_complexity)]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        threads: usize,
    ) -> PyResult<(Ids<'py>, Bound<'py, PyArray1<i64>>)> {
        let batch = self.run(py, &texts, threads)?;
        Ok((batch.ids.into_pyarray(py), batch.offsets.into_pyarray(py)))
    }

    /// `encode_with_ends(text) -> (uint32 array, uint32 array)`: ids, and the byte of the UTF-8 text where each token ends.
    fn encode_with_ends<'py>(&self, py: Python<'py>, text: PyBackedStr) -> PyResult<(Ids<'py>, Ids<'py>)> {
        let tokens = py.detach(|| {
            let mut tokens = Tokens::default();
            match &self.inner {
                Inner::Ours(engine) => engine.encode(&text, &mut tokens)?,
                Inner::Crate(engine) => engine.encode(&text, &mut tokens)?,
            }
            Ok(tokens)
        });
        let tokens = tokens.map_err(|error: Error| to_python(py, &error))?;
        let ids: Vec<u32> = tokens.ids.into_iter().map(i32::cast_unsigned).collect();
        Ok((ids.into_pyarray(py), tokens.ends.into_pyarray(py)))
    }
}

impl Tokenizer {
    fn run(&self, py: Python<'_>, texts: &[PyBackedStr], threads: usize) -> PyResult<Batch> {
        let batch = py.detach(|| match &self.inner {
            Inner::Ours(engine) => {
                let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
                Ok(engine.encode_batch(&texts, threads))
            }
            Inner::Crate(engine) => {
                let (mut tokens, mut offsets) = (Tokens::default(), vec![0]);
                for text in texts {
                    engine.encode(text, &mut tokens)?;
                    offsets.push(tokens.ids.len() as i64);
                }
                Ok(Batch { ids: tokens.ids.into_iter().map(i32::cast_unsigned).collect(), offsets })
            }
        });
        batch.map_err(|error: Error| to_python(py, &error))
    }
}

/// Adds the class to the module.
///
/// # Errors
/// What Python raises.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()
}
