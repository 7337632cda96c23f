"""`x @ weight.T` on a CPU whose result for a row does not depend on the rows beside it, bit for bit.

A BLAS picks another order of summation for another number of rows; here every output is one chain of fused
multiply-adds over the depth, in order. Weights that bfloat16 holds exactly are kept as bfloat16, which halves the
memory that a step with few rows has to read; products and sums are float32 in any case. Letters: M rows, N outputs, K
depth.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

PANEL = 32
"""Outputs that lie side by side."""
_SMALL = 1 << 18
"""Multiply-adds that one thread does in some 10 us."""


def native() -> ModuleType | None:
    """The compiled kernels, or None where they are not built."""
    try:
        from postmill import _C  # type: ignore[attr-defined]  # built by CMake
    except ImportError:
        return None
    module: ModuleType = _C
    return module if hasattr(module, "packed_linear") else None


def num_threads(operations: int) -> int:
    """How many threads a kernel uses: waking a second one costs more than a small product."""
    return torch.get_num_threads() if operations > _SMALL else 1


class PackedWeight:
    """A weight [N, K] in panels [N / 32, K, 32], the last one padded with zeros."""

    def __init__(self, weight_NK: Tensor) -> None:
        weight_NK = weight_NK.detach()
        self.num_outputs, self.depth = weight_NK.shape
        half_NK = weight_NK.to(torch.bfloat16)
        is_exact = torch.equal(half_NK.to(weight_NK.dtype), weight_NK)
        kept_NK = half_NK if is_exact else weight_NK.to(torch.float32)
        padding = -self.num_outputs % PANEL
        padded_NK = torch.nn.functional.pad(kept_NK, (0, 0, 0, padding)) if padding else kept_NK
        self.panels = padded_NK.view(-1, PANEL, self.depth).transpose(1, 2).contiguous()


def packed_linear(x_MK: Tensor, weight: PackedWeight, *, most_level: int = 4) -> Tensor:
    """[M, N] in float32. x_MK: float32 on the CPU. most_level: use no more of x86-64 than v3 or v4; the bits are equal.

    Raises ValueError for another shape or dtype.
    """
    if x_MK.ndim != 2 or x_MK.shape[1] != weight.depth or x_MK.dtype != torch.float32:
        raise ValueError(f"x_MK {tuple(x_MK.shape)}, {x_MK.dtype}: expected (M, {weight.depth}) in torch.float32")
    kernels = native()
    assert kernels is not None, "built by CMake; the caller asks native() first"
    x_MK = x_MK.contiguous()
    y_MN = torch.empty(len(x_MK), weight.num_outputs)
    kernels.packed_linear(
        x_MK.data_ptr(),
        weight.panels.data_ptr(),
        y_MN.data_ptr(),
        len(x_MK),
        weight.num_outputs,
        weight.depth,
        weight.panels.dtype == torch.bfloat16,
        num_threads(len(x_MK) * weight.num_outputs * weight.depth),
        most_level,
    )
    return y_MN
