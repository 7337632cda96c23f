//! Arrays of numbers for Python without `NumPy`, whose import takes longer than encoding a megabyte.

use arrow_buffer::ScalarBuffer;
use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;

/// What an [`Array`] can hold.
#[derive(Debug, Clone)]
pub enum Numbers {
    /// Ids, places.
    U32(ScalarBuffer<u32>),
    /// Offsets.
    I64(ScalarBuffer<i64>),
}

impl Numbers {
    fn len(&self) -> usize {
        match self {
            Self::U32(numbers) => numbers.len(),
            Self::I64(numbers) => numbers.len(),
        }
    }

    fn get(&self, index: usize) -> Option<i64> {
        match self {
            Self::U32(numbers) => numbers.get(index).copied().map(i64::from),
            Self::I64(numbers) => numbers.get(index).copied(),
        }
    }

    /// First byte, bytes of a number, `struct` format.
    fn layout(&self) -> (*const c_void, isize, &'static CStr) {
        match self {
            Self::U32(numbers) => (numbers.as_ptr().cast(), 4, c"I"),
            Self::I64(numbers) => (numbers.as_ptr().cast(), 8, c"q"),
        }
    }
}

/// A flat array that cannot change. `memoryview(a)` and `numpy.asarray(a)` share its memory.
#[pyclass(frozen, sequence, module = "postmill._native")]
pub struct Array {
    numbers: Numbers,
    len: isize,
}

impl From<Numbers> for Array {
    fn from(numbers: Numbers) -> Self {
        let len = numbers.len() as isize;
        Self { numbers, len }
    }
}

impl From<ScalarBuffer<u32>> for Array {
    fn from(numbers: ScalarBuffer<u32>) -> Self {
        Numbers::U32(numbers).into()
    }
}

impl From<ScalarBuffer<i64>> for Array {
    fn from(numbers: ScalarBuffer<i64>) -> Self {
        Numbers::I64(numbers).into()
    }
}

#[pymethods]
impl Array {
    fn __len__(&self) -> usize {
        self.numbers.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<i64> {
        let index = if index < 0 { index + self.len } else { index };
        let number = usize::try_from(index).ok().and_then(|index| self.numbers.get(index));
        number.ok_or_else(|| PyIndexError::new_err(format!("index {index} of an array of {}", self.len)))
    }

    fn __repr__(&self) -> String {
        let first: Vec<String> = (0..6).filter_map(|i| self.numbers.get(i)).map(|number| number.to_string()).collect();
        let more = if self.len > 6 { format!(", ... {} in all", self.len) } else { String::new() };
        format!("Array([{}{more}])", first.join(", "))
    }

    /// `tolist() -> [int]`.
    fn tolist(&self) -> Vec<i64> {
        (0..self.numbers.len()).filter_map(|index| self.numbers.get(index)).collect()
    }

    /// The buffer protocol, read only.
    ///
    /// # Safety
    /// `view` is null or points to a `Py_buffer` that Python fills, as the protocol says.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() || flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("the array cannot be written to"));
        }
        let this = slf.get();
        let (start, size, format) = this.numbers.layout();
        let wants = |flag: c_int| flags & flag == flag;
        // SAFETY: `view` is not null and is ours to fill. `obj` is a new reference to this object, which is frozen, so that
        // `start`, `shape` and `strides` (a field of the object, or of the view itself) live as long as the view.
        unsafe {
            (*view).buf = start.cast_mut();
            (*view).len = this.len * size;
            (*view).readonly = 1;
            (*view).itemsize = size;
            (*view).format = if wants(ffi::PyBUF_FORMAT) { format.as_ptr().cast_mut() } else { ptr::null_mut() };
            (*view).ndim = 1;
            (*view).shape = if wants(ffi::PyBUF_ND) { ptr::from_ref(&this.len).cast_mut() } else { ptr::null_mut() };
            (*view).strides = if wants(ffi::PyBUF_STRIDES) { &raw mut (*view).itemsize } else { ptr::null_mut() };
            (*view).suboffsets = ptr::null_mut();
            (*view).internal = ptr::null_mut();
            (*view).obj = slf.into_ptr();
        }
        Ok(())
    }
}
