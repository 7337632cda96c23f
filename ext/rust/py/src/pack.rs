//! Packing plans for Python: arrays of `NumPy` in and out, none copied, the interpreter lock released while they are made.
#![allow(clippy::needless_pass_by_value)] // arguments are extracted by value

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use postmill_core::error::Error;
use postmill_core::pack;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type Array<'py, T> = Bound<'py, PyArray1<T>>;

fn refuse(error: &Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// `pack_rows(lengths, groups, capacity, strategy) -> (starts, rows, over_long)`, all uint32; see `postmill_core::pack`.
///
/// `lengths`: uint32, contiguous. `groups`: uint32 offsets of groups of rows that share a bin, or None.
/// `strategy`: `best_fit` or `in_order`. Raises `ValueError`.
#[pyfunction]
fn pack_rows<'py>(
    py: Python<'py>,
    lengths: PyReadonlyArray1<'py, u32>,
    groups: Option<PyReadonlyArray1<'py, u32>>,
    capacity: u32,
    strategy: &str,
) -> PyResult<(Array<'py, u32>, Array<'py, u32>, Array<'py, u32>)> {
    let fit = match strategy {
        "best_fit" => pack::best_fit,
        "in_order" => pack::in_order,
        other => return Err(PyValueError::new_err(format!("strategy: {other:?} is neither best_fit nor in_order"))),
    };
    let lengths = lengths.as_slice()?;
    let groups = groups.as_ref().map(|groups| groups.as_slice()).transpose()?;
    let plan = py.detach(|| fit(lengths, groups, capacity)).map_err(|error| refuse(&error))?;
    Ok((plan.starts.into_pyarray(py), plan.rows.into_pyarray(py), plan.over_long.into_pyarray(py)))
}

/// `bin_order(seed, epoch, num_bins) -> uint32 array`: the order in which an epoch visits the bins.
#[pyfunction]
fn bin_order(py: Python<'_>, seed: u64, epoch: u64, num_bins: u32) -> Array<'_, u32> {
    py.detach(|| pack::bin_order(seed, epoch, num_bins)).into_pyarray(py)
}

/// `deal_bins(costs, num_ranks, bins_per_rank) -> (slots, imbalance)`: int64 `[step, rank, slot]` flat, -1 where empty;
/// and each step's largest rank cost over the mean. `costs`: float64, contiguous, in visiting order. Raises `ValueError`.
#[pyfunction]
fn deal_bins<'py>(
    py: Python<'py>,
    costs: PyReadonlyArray1<'py, f64>,
    num_ranks: usize,
    bins_per_rank: usize,
) -> PyResult<(Array<'py, i64>, Array<'py, f64>)> {
    let costs = costs.as_slice()?;
    let dealt = py.detach(|| pack::deal(costs, num_ranks, bins_per_rank)).map_err(|error| refuse(&error))?;
    Ok((dealt.slots.into_pyarray(py), dealt.imbalance.into_pyarray(py)))
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
