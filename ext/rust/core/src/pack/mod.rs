//! The last step, packing plans: which rows share a bin, in which order bins are visited, and which rank gets which bin.
//!
//! A plan is three integer arrays; no token is touched. Lengths are small integers, so best-fit decreasing needs no
//! comparison sort and no tree of bins: a counting sort orders the rows, a bitmap tree answers "smallest free space of
//! at least x", and equal lengths are placed many at a time, because under best fit a bin that takes one row of length
//! x goes on taking rows of length x until the next does not fit. The cost is two passes over the rows plus one
//! operation for each (length, free space) pair met. Everything here is single-threaded and a pure function of its
//! arguments.
mod bitmap;
mod deal;
mod fit;
mod order;

pub use deal::{Deal, deal};
pub use fit::{best_fit, in_order};
pub use order::bin_order;

/// The largest bin, in tokens: tables of one entry a token of free space stay under 200 MB.
pub(crate) const MAX_CAPACITY: u32 = 1 << 24;

/// Rows laid into bins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Where each bin starts in `rows`; one more entry than there are bins, the first is 0.
    pub starts: Vec<u32>,
    /// Row indices, bin after bin. Rows of one group stand together in their given order.
    pub rows: Vec<u32>,
    /// Rows that fit no bin, ascending; a group that does not fit is here with all its rows.
    pub over_long: Vec<u32>,
}
