//! Arrays of numbers for Python without `NumPy`, whose import takes longer than encoding a megabyte, and those of `NumPy`
//! where callers want them.

use arrow_buffer::{ArrowNativeType, Buffer, ScalarBuffer};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyIndexError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;

/// What an [`Array`] can hold.
#[derive(Debug)]
enum Held {
    /// Ids, places.
    U32(ScalarBuffer<u32>),
    /// Offsets.
    I64(ScalarBuffer<i64>),
}

impl Held {
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
    numbers: Held,
    len: isize,
}

impl From<ScalarBuffer<u32>> for Array {
    fn from(numbers: ScalarBuffer<u32>) -> Self {
        Self { len: numbers.len() as isize, numbers: Held::U32(numbers) }
    }
}

impl From<ScalarBuffer<i64>> for Array {
    fn from(numbers: ScalarBuffer<i64>) -> Self {
        Self { len: numbers.len() as isize, numbers: Held::I64(numbers) }
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

/// A flat array of `NumPy`, which callers may change, so it has memory of its own. `dtype`: that of `numbers`.
///
/// # Errors
/// What Python raises: `NumPy` may not be there.
pub fn to_numpy<'py, T: ArrowNativeType>(py: Python<'py>, numbers: Vec<T>, dtype: &str) -> PyResult<Bound<'py, PyAny>> {
    let words: ScalarBuffer<u32> = Buffer::from_vec(numbers).into();
    py.import("numpy")?.call_method1("array", (Array::from(words),))?.call_method1("view", (dtype,))
}

/// The numbers of a flat array: a copy, for Python may write to it while the lock is released.
pub struct Numbers<T>(pub Vec<T>);

impl<T: Element> FromPyObject<'_, '_> for Numbers<T> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match PyBuffer::<T>::get(&object) {
            Ok(numbers) if numbers.dimensions() == 1 => numbers.to_vec(object.py()).map(Self),
            _ => Err(PyTypeError::new_err(format!("expected a flat array of {}", std::any::type_name::<T>()))),
        }
    }
}
