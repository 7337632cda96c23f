//! Python face of `postmill-core`.
mod bpe;
mod encode;
mod error;
mod pack;
mod rows;
mod template;

use pyo3::prelude::*;

/// The module `postmill._native` (and `postmill_rs._native` in the Rust-only wheel).
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    bpe::register(module)?;
    encode::register(module)?;
    pack::register(module)?;
    rows::register(module)?;
    template::register(module)
}
