//! Packing plans for Python: arrays of `NumPy` in and out, the interpreter lock released while plans are made.
#![allow(clippy::needless_pass_by_value)] // arguments are extracted by value

use crate::buffer::{Numbers, to_numpy};
use postmill_core::error::Error;
use postmill_core::pack;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type Array<'py> = Bound<'py, PyAny>;

fn refuse(error: &Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// `pack_rows(lengths, groups, capacity, strategy) -> (starts, rows, over_long)`, all uint32; see `postmill_core::pack`.
///
/// `lengths`: uint32. `groups`: uint32 offsets of groups of rows that share a bin, or None.
/// `strategy`: `best_fit` or `in_order`. Raises `ValueError`, and `TypeError` for other arrays.
#[pyfunction]
fn pack_rows<'py>(
    py: Python<'py>,
    lengths: Numbers<u32>,
    groups: Option<Numbers<u32>>,
    capacity: u32,
    strategy: &str,
) -> PyResult<(Array<'py>, Array<'py>, Array<'py>)> {
    let fit = match strategy {
        "best_fit" => pack::best_fit,
        "in_order" => pack::in_order,
        other => return Err(PyValueError::new_err(format!("strategy: {other:?} is neither best_fit nor in_order"))),
    };
    let groups = groups.as_ref().map(|groups| &*groups.0);
    let plan = py.detach(|| fit(&lengths.0, groups, capacity)).map_err(|error| refuse(&error))?;
    Ok((to_numpy(py, plan.starts, "u4")?, to_numpy(py, plan.rows, "u4")?, to_numpy(py, plan.over_long, "u4")?))
}

/// `bin_order(seed, epoch, num_bins) -> uint32 array`: the order in which an epoch visits the bins.
#[pyfunction]
fn bin_order(py: Python<'_>, seed: u64, epoch: u64, num_bins: u32) -> PyResult<Array<'_>> {
    to_numpy(py, py.detach(|| pack::bin_order(seed, epoch, num_bins)), "u4")
}

/// `deal_bins(costs, num_ranks, bins_per_rank) -> (slots, imbalance)`: int64 `[step, rank, slot]` flat, -1 where empty;
/// and each step's largest rank cost over the mean. `costs`: float64, in visiting order. Raises `ValueError`, and
/// `TypeError` for other arrays.
#[pyfunction]
fn deal_bins(
    py: Python<'_>,
    costs: Numbers<f64>,
    num_ranks: usize,
    bins_per_rank: usize,
) -> PyResult<(Array<'_>, Array<'_>)> {
    let dealt = py.detach(|| pack::deal(&costs.0, num_ranks, bins_per_rank)).map_err(|error| refuse(&error))?;
    Ok((to_numpy(py, dealt.slots, "i8")?, to_numpy(py, dealt.imbalance, "f8")?))
}

/// Adds the functions of this file to the module.
///
/// # Errors
/// What Python raises.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(pack_rows, module)?)?;
    module.add_function(wrap_pyfunction!(bin_order, module)?)?;
    module.add_function(wrap_pyfunction!(deal_bins, module)?)
}
