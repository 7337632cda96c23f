"""Types of the native module, built from ext/rust/py."""

import numpy as np
from numpy.typing import NDArray

__version__: str

# pack.rs
def pack_rows(
    lengths: NDArray[np.uint32], groups: NDArray[np.uint32] | None, capacity: int, strategy: str
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]: ...
def bin_order(seed: int, epoch: int, num_bins: int) -> NDArray[np.uint32]: ...
def deal_bins(
    costs: NDArray[np.float64], num_ranks: int, bins_per_rank: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
