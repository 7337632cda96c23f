//! Python face of `postmill-core`.
// Python hands values over and names no lifetimes; the two engines live for as long as their process.
#![allow(clippy::needless_pass_by_value, clippy::elidable_lifetime_names, clippy::large_enum_variant)]
mod arrow;
mod bpe;
mod buffer;
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
