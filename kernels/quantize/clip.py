"""Grids that cover a little less than all weights: of each group, the range whose rounding errors are smallest.

Rounding in a smaller range has finer steps and cuts off the largest weights. The power 2.4 rather than 2 punishes the
cut more; it and the grid of ranges are those of GPTQ's and gptqmodel's `mse` option.
"""

import torch
from torch import Tensor

from postmill.kernels.quantize.grid import Form, by_group, fake, fit

POWER = 2.4
SHRINKS = tuple(1 - 0.02 * step for step in range(20))


def fit_clipped(weight_NK: Tensor, form: Form, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Like `fit`, with the best of 20 ranges for each group."""
    best, scale, zero = None, torch.empty(0), None
    for shrink in SHRINKS:
        scale_now, zero_now = fit(weight_NK, form, dtype, shrink)
        error = by_group((fake(weight_NK, form, scale_now, zero_now) - weight_NK).abs_().pow_(POWER), form).sum(-1)
        if best is None:
            best, scale, zero = error, scale_now, zero_now
            continue
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, scale_now, scale)
        if zero is not None and zero_now is not None:
            zero = torch.where(better, zero_now, zero)
    return scale, zero
