//! Reading raw rows for Python: lines, chunks, other formats as JSON Lines, and one normalized row at a time for `show`.
#![allow(clippy::needless_pass_by_value)] // arguments are extracted by value

use postmill_core::error::{Error, RowError};
use postmill_core::input::arrow_rows;
use postmill_core::input::json_files::Splitter;
use postmill_core::input::lines::{self, Lines};
use postmill_core::json::to_canonical;
use postmill_core::rows::{self, RowOptions};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arrow::Batch;
use crate::buffer::to_numpy;
use crate::error::to_python;

/// The exception of a row: as every `NativeError`, and with the attributes `reason`, `column` (or None) and `path`.
fn refuse(py: Python<'_>, fault: RowError) -> PyErr {
    mark(py, to_python(py, &Error::Row(fault.clone())), fault)
}

fn mark(py: Python<'_>, raised: PyErr, fault: RowError) -> PyErr {
    let value = raised.value(py);
    // an attribute that cannot be set leaves the right message
    let _ = value.setattr("reason", fault.reason);
    let _ = value.setattr("column", fault.column);
    let _ = value.setattr("path", fault.path);
    raised
}

/// Line number, first byte, last byte + 1, whether a newline ended it.
type Line = (u64, usize, usize, bool);

/// `scan_lines(data, first_line, max_line_bytes) -> (records, saw_bom, saw_crlf)`, a record being
/// `(line, start, end, terminated)`. Raises `ValueError` for a line that is too long.
#[pyfunction]
#[pyo3(signature = (data, first_line = 1, max_line_bytes = lines::MAX_LINE_BYTES))]
fn scan_lines(
    py: Python<'_>,
    data: &[u8],
    first_line: u64,
    max_line_bytes: usize,
) -> PyResult<(Vec<Line>, bool, bool)> {
    let found = py.detach(|| {
        let mut lines = Lines::new(data, first_line, max_line_bytes);
        let mut records = Vec::new();
        for record in lines.by_ref() {
            let record = record?;
            records.push((record.line, record.range.start, record.range.end, record.terminated));
        }
        Ok((records, lines.endings.bom, lines.endings.num_crlf > 0))
    });
    found.map_err(|fault| refuse(py, fault))
}

/// `count_records(data, at_file_start) -> (lines, records)`: blank lines are lines but not records.
#[pyfunction]
fn count_records(py: Python<'_>, data: &[u8], at_file_start: bool) -> (u64, u64) {
    let counts = py.detach(|| lines::count(data, at_file_start));
    (counts.lines, counts.records)
}

/// `chunk_bounds(data, offset, chunk_bytes, whole) -> [(start, end)]`; see `postmill_core::input::lines::chunk_bounds`.
#[pyfunction]
fn chunk_bounds(py: Python<'_>, data: &[u8], offset: u64, chunk_bytes: usize, whole: bool) -> Vec<(usize, usize)> {
    let chunks = py.detach(|| lines::chunk_bounds(data, offset, chunk_bytes, whole));
    chunks.into_iter().map(|chunk| (chunk.start, chunk.end)).collect()
}

/// `record_hashes(data, at_file_start, seed) -> uint64 array`: a hash of each record's bytes.
#[pyfunction]
fn record_hashes<'py>(py: Python<'py>, data: &[u8], at_file_start: bool, seed: u64) -> PyResult<Bound<'py, PyAny>> {
    to_numpy(py, py.detach(|| lines::record_hashes(data, at_file_start, seed)), "u8")
}

/// `normalize_lines(data, file, columns, model_name, model_author) -> [canonical JSON]` of the rows of a JSON Lines file.
///
/// `columns`: `(old, new)` names. Raises `NativeError` at the first bad row, `file:line:column` before its message.
#[pyfunction]
#[pyo3(signature = (data, file, columns = Vec::new(), model_name = None, model_author = None, drop = Vec::new()))]
fn normalize_lines(
    py: Python<'_>,
    data: &[u8],
    file: &str,
    columns: Vec<(String, String)>,
    model_name: Option<String>,
    model_author: Option<String>,
    drop: Vec<String>,
) -> PyResult<Vec<String>> {
    let options = RowOptions {
        purpose: rows::Purpose::default(),
        drop: drop.into_iter().map(Into::into).collect(),
        columns: columns.into_iter().map(|(old, new)| (old.into(), new.into())).collect(),
        model_name: model_name.map(Into::into),
        model_author: model_author.map(Into::into),
        ..RowOptions::default()
    };
    let read = || {
        let mut lines = Lines::new(data, 1, lines::MAX_LINE_BYTES);
        let mut rows = Vec::new();
        while let Some(record) = lines.next() {
            let row = record.and_then(|record| {
                let (value, _) = rows::parse_record(data, &record, &options)?;
                rows::normalize(value, &options)
            });
            match row {
                Ok(row) => rows.push(to_canonical(&rows::to_json(&row))),
                Err(fault) => return Err((lines.next_line() - 1, fault)),
            }
        }
        Ok(rows)
    };
    py.detach(read).map_err(|(line, fault)| {
        let column = fault.column.map_or_else(String::new, |column| format!(":{column}"));
        let message = format!("{file}:{line}{column}: {fault}");
        mark(py, to_python(py, &Error::Data { place: "".into(), message: message.into() }), fault)
    })
}

/// `is_column(name) -> bool`: whether a column of this name means something to the reader of rows.
#[pyfunction]
fn is_column(name: &str) -> bool {
    rows::is_column(name)
}

/// `batch_to_lines(batch) -> bytes`: an Arrow record batch as JSON Lines. Raises `ValueError` for a type without JSON form.
#[pyfunction]
fn batch_to_lines<'py>(py: Python<'py>, batch: Batch) -> PyResult<Bound<'py, PyBytes>> {
    let lines: Result<String, Error> = py.detach(|| {
        let mut out = String::new();
        arrow_rows::append_lines(&batch.0, &mut out)?;
        Ok(out)
    });
    lines.map(|lines| PyBytes::new(py, lines.as_bytes())).map_err(|error| to_python(py, &error))
}

/// Turns the bytes of a `.json` file into JSON Lines, piece by piece.
#[pyclass]
#[derive(Default)]
struct JsonSplitter {
    splitter: Splitter,
}

#[pymethods]
impl JsonSplitter {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// `feed(data) -> bytes`: the lines that `data` completes or continues. Raises `ValueError`.
    fn feed<'py>(&mut self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let mut out = Vec::with_capacity(data.len() + 1);
        let splitter = &mut self.splitter;
        py.detach(|| splitter.feed(data, &mut out)).map_err(|fault| refuse(py, fault))?;
        Ok(PyBytes::new(py, &out))
    }

    /// `finish() -> bytes`: what completes the last line. Raises `ValueError` if the file was cut.
    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut out = Vec::new();
        self.splitter.finish(&mut out).map_err(|fault| refuse(py, fault))?;
        Ok(PyBytes::new(py, &out))
    }
}

/// Adds the functions of this file to the module.
///
/// # Errors
/// What Python raises.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("CHUNK_BYTES", lines::CHUNK_BYTES)?;
    module.add("MAX_LINE_BYTES", lines::MAX_LINE_BYTES)?;
    module.add_class::<JsonSplitter>()?;
    module.add_function(wrap_pyfunction!(scan_lines, module)?)?;
    module.add_function(wrap_pyfunction!(count_records, module)?)?;
    module.add_function(wrap_pyfunction!(chunk_bounds, module)?)?;
    module.add_function(wrap_pyfunction!(record_hashes, module)?)?;
    module.add_function(wrap_pyfunction!(is_column, module)?)?;
    module.add_function(wrap_pyfunction!(normalize_lines, module)?)?;
    module.add_function(wrap_pyfunction!(batch_to_lines, module)?)
}
