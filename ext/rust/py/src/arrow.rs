//! Arrow from and for other libraries, through the capsules of the Arrow C data interface. No buffer is copied.
//!
//! A capsule owns its structure until somebody moves it out; one that nobody took releases what it holds when Python drops it.
//! Source: <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchIterator, RecordBatchOptions, StructArray, make_array};
use arrow_schema::{ArrowError, Field, Schema, SchemaRef};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};
use std::ffi::CStr;
use std::ptr;
use std::sync::Arc;

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";
const STREAM: &CStr = c"arrow_array_stream";

fn refuse(error: ArrowError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// What `__arrow_c_array__` returns: the capsules of `field` and of `array`, which is of its type.
///
/// # Errors
/// `ValueError` for a type that the interface does not have.
pub fn to_capsules<'py>(py: Python<'py>, field: &Field, array: &dyn Array) -> PyResult<Bound<'py, PyTuple>> {
    let schema = FFI_ArrowSchema::try_from(field).map_err(refuse)?;
    let schema = PyCapsule::new_with_value(py, schema, SCHEMA)?;
    let array = PyCapsule::new_with_value(py, FFI_ArrowArray::new(&array.to_data()), ARRAY)?;
    PyTuple::new(py, [schema, array])
}

/// Rows, from any library that has `__arrow_c_array__`, and for any that reads it.
#[pyclass(frozen, name = "RecordBatch", module = "postmill._native")]
pub struct Batch(pub RecordBatch);

#[pymethods]
impl Batch {
    /// Another schema may be asked for; as the interface allows, readers get this one and cast.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let _ = requested_schema;
        let schema = self.0.schema_ref();
        let field = Field::new_struct("", schema.fields().clone(), false).with_metadata(schema.metadata().clone());
        to_capsules(py, &field, &StructArray::from(self.0.clone()))
    }
}

impl<'py> FromPyObject<'_, 'py> for Batch {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let (field, array) = one(&object)?;
        let refused = |got: &str| PyValueError::new_err(format!("expected an Arrow record batch, got {got}"));
        let array = match array.as_any().downcast_ref::<StructArray>() {
            Some(rows) if rows.null_count() == 0 => rows.clone(),
            Some(_) => return Err(refused("a struct array with nulls")),
            None => return Err(refused(&array.data_type().to_string())),
        };
        let options = RecordBatchOptions::new().with_row_count(Some(array.len()));
        let (fields, columns, _) = array.into_parts();
        let schema = Arc::new(Schema::new_with_metadata(fields, field.metadata().clone()));
        RecordBatch::try_new_with_options(schema, columns, &options).map(Self).map_err(refuse)
    }
}

/// Batches of one schema, as a stream that can be read many times.
#[pyclass(frozen, module = "postmill._native")]
pub struct Table {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
}

#[pymethods]
impl Table {
    /// Another schema may be asked for; as the interface allows, readers get this one and cast.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema;
        let batches = self.batches.clone().into_iter().map(Ok);
        let reader = RecordBatchIterator::new(batches, self.schema.clone());
        PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(Box::new(reader)), STREAM)
    }
}

/// An array, or the parts of one, from any library that has `__arrow_c_array__` or `__arrow_c_stream__`.
pub struct Chunks(pub Vec<ArrayRef>);

impl<'py> FromPyObject<'_, 'py> for Chunks {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if !object.hasattr("__arrow_c_array__")? && object.hasattr("__arrow_c_stream__")? {
            return many(&object).map(Self);
        }
        Ok(Self(vec![one(&object)?.1]))
    }
}

fn one(object: &Bound<'_, PyAny>) -> PyResult<(Field, ArrayRef)> {
    if !object.hasattr("__arrow_c_array__")? {
        return Err(PyValueError::new_err("expected an object with __arrow_c_array__"));
    }
    let wrong = |error: ArrowError| PyTypeError::new_err(error.to_string());
    let (schema, array): (Bound<'_, PyCapsule>, Bound<'_, PyCapsule>) =
        object.call_method0("__arrow_c_array__")?.extract()?;
    let schema = schema.pointer_checked(Some(SCHEMA))?.cast::<FFI_ArrowSchema>();
    let array = array.pointer_checked(Some(ARRAY))?.cast::<FFI_ArrowArray>();
    // SAFETY: the names say what the capsules point to, and the tuple was made for us: nobody else reads or changes them.
    // `from_raw` leaves a released array behind, so that the capsule frees nothing twice.
    let (schema, array) = unsafe { (schema.as_ref(), FFI_ArrowArray::from_raw(array.as_ptr())) };
    if array.is_released() {
        return Err(PyValueError::new_err("the Arrow array was taken before"));
    }
    // SAFETY: the maker vouches for the buffers.
    let data = unsafe { from_ffi(array, schema) };
    Ok((Field::try_from(schema).map_err(wrong)?, make_array(data.map_err(wrong)?)))
}

/// `ArrowArrayStreamReader` reads record batches alone; a stream of strings is read here.
fn many(object: &Bound<'_, PyAny>) -> PyResult<Vec<ArrayRef>> {
    let capsule: Bound<'_, PyCapsule> = object.call_method0("__arrow_c_stream__")?.extract()?;
    let stream = capsule.pointer_checked(Some(STREAM))?.cast::<FFI_ArrowArrayStream>();
    // SAFETY: the name says what the capsule points to; it was made for us, and `from_raw` leaves a released stream behind.
    let mut stream = unsafe { FFI_ArrowArrayStream::from_raw(stream.as_ptr()) };
    let (Some(get_schema), Some(get_next)) = (stream.get_schema, stream.get_next) else {
        return Err(PyValueError::new_err("the Arrow stream was read before"));
    };
    let mut schema = FFI_ArrowSchema::empty();
    // SAFETY: a stream that is not released has these functions, which write to the structure they are given.
    let code = unsafe { get_schema(&raw mut stream, &raw mut schema) };
    if code != 0 {
        return Err(stream_error(&mut stream, code));
    }
    let mut chunks = vec![];
    loop {
        let mut array = FFI_ArrowArray::empty();
        // SAFETY: as above; the array is ours once it is written.
        match unsafe { get_next(&raw mut stream, &raw mut array) } {
            0 if array.is_released() => return Ok(chunks),
            0 => {}
            code => return Err(stream_error(&mut stream, code)),
        }
        // SAFETY: the stream says that its arrays have its schema.
        let data = unsafe { from_ffi(array, &schema) }.map_err(|error| PyTypeError::new_err(error.to_string()))?;
        chunks.push(make_array(data));
    }
}

/// What the maker of a stream says about `code`, which it returned last.
fn stream_error(stream: &mut FFI_ArrowArrayStream, code: i32) -> PyErr {
    // SAFETY: a stream that is not released has this function; the text is null, or lives until the next call.
    let text = unsafe {
        let text = stream.get_last_error.map_or(ptr::null(), |get_last_error| get_last_error(stream));
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    PyValueError::new_err(format!("the Arrow stream failed: {}", text.unwrap_or_else(|| format!("code {code}"))))
}
