"""Scales that move size between a layer's inputs and its weights, column by column, so that both round better.

A column of a weight times s, and its input divided by s, give the same product; what made the input takes the 1 / s.
AWQ finds the s that leaves the least error in the outputs: large inputs get finer steps. SmoothQuant takes size away
from inputs that are to be rounded too. Sources: Lin et al., "AWQ: Activation-aware Weight Quantization", 2023,
<https://arxiv.org/abs/2306.00978>; Xiao et al., "SmoothQuant", 2022, <https://arxiv.org/abs/2211.10438>.
Letters: N rows (outputs), K columns (inputs), G groups of a row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from postmill.kernels.quantize.clip import SHRINKS
from postmill.kernels.quantize.grid import Encoded, Form, by_group, decode, encode, fake, fit

POWERS = tuple(step / 20 for step in range(20))
"""Of the inputs' size, tried for AWQ's scales: 0 leaves all as it is."""


def output_error(weight_NK: Tensor, rounded_NK: Tensor, moment_KK: Tensor) -> float:
    """Sum of squares by which outputs change, over the inputs whose second moment (sum of x x^T) is given."""
    off = rounded_NK - weight_NK
    return float(((off @ moment_KK) * off).sum())


def awq_scales(weights: list[Tensor], moment_KK: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Scales [K] of the inputs that all `weights` [N, K] share; None if none is better than 1.

    s = size^power / sqrt(max * min) for twenty powers, size the root mean square of each input; `rounded` gives the
    numbers that a weight would be stored as. The best is the one with the least error of all outputs.
    """
    size = moment_KK.diagonal().sqrt()
    size = size.clamp(min=float(size.max()) * 1e-4 + 1e-30)
    best, best_scale = float("inf"), None
    for power in POWERS:
        scale = size**power
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = sum(output_error(w, rounded(w * scale) / scale, moment_KK) for w in weights)
        if error < best:
            best, best_scale = error, scale if power else None
    return best_scale


def smooth_scales(weights: list[Tensor], largest_K: Tensor, strength: float) -> Tensor:
    """Scales [K] = max|x|^strength / max|w|^(1 - strength), over all inputs and over the rows of all weights."""
    of_weights = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-5)
    scale = largest_K.clamp(min=1e-5) ** strength / of_weights ** (1 - strength)
    # an input that is never there needs no scale
    return torch.where(largest_K == 0, 1.0, scale)


def fit_to_inputs(weight_NK: Tensor, form: Form, dtype: torch.dtype, moment_KK: Tensor) -> Encoded:
    """Codes on the ranges, of those in `clip`, that change each group's outputs least."""
    scale, zero = fit(weight_NK, form, dtype)
    columns = form.columns(weight_NK.shape[1])
    starts = range(0, weight_NK.shape[1], columns)
    moment_GCC = torch.stack([moment_KK[start : start + columns, start : start + columns] for start in starts])
    best = torch.full(scale.shape, float("inf"))
    for shrink in SHRINKS:
        scale_now, zero_now = fit(weight_NK, form, dtype, shrink)
        off = by_group(fake(weight_NK, form, scale_now, zero_now) - weight_NK, form).transpose(0, 1)
        error = ((off @ moment_GCC) * off).sum(-1).T
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, scale_now, scale)
        if zero is not None and zero_now is not None:
            zero = torch.where(better, zero_now, zero)
    return encode(weight_NK, form, scale, zero)


def nearest(weight_NK: Tensor, form: Form, dtype: torch.dtype) -> Tensor:
    """What plain rounding stores, as numbers."""
    return decode(encode(weight_NK, form, *fit(weight_NK, form, dtype)))
