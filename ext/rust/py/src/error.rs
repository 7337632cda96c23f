//! One error of the crate becomes one Python exception.
use postmill_core::error::Error;
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

create_exception!(
    _native,
    NativeError,
    PyValueError,
    "What the data path refuses: a `ValueError` with `code`, the exit code to leave with (2 options, 65 data, 70 a fault of ours)."
);

/// The Python exception of `error`.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let code = match error {
        Error::Config { .. } => 2,
        Error::Internal { .. } => 70,
        Error::Data { .. } | Error::Row(_) | Error::Template { .. } => 65,
    };
    let raised = NativeError::new_err(error.to_string());
    // an attribute that cannot be set leaves a plain ValueError with the right message
    let _ = raised.value(py).setattr("code", code);
    raised
}

/// Adds the exception to the module.
///
/// # Errors
/// What Python raises.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NativeError", module.py().get_type::<NativeError>())
}
