"""HQQ: zero points that make few weights wrong by much rather than all of them a little, without any data.

Minimises sum |w - w'|^0.7 by half-quadratic splitting: errors are shrunk, which leaves the outliers, and the zero
point becomes the mean of what the rest asks for. Source: Badri and Shaji, "Half-Quadratic Quantization", 2023,
<https://mobiusml.github.io/hqq_blog/>. The package keeps real-valued zero points; file layouts have integers, so the
last step rounds them and chooses codes again.
"""

import torch
from torch import Tensor

from postmill.kernels.quantize.grid import Form, by_group, fit

POWER, BETA, GROWTH, ROUNDS = 0.7, 10.0, 1.01, 20


def fit_half_quadratic(weight_NK: Tensor, form: Form, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point (integers) as `fit` gives them, the zero point moved. `form` must be asymmetric."""
    assert not form.symmetric and not form.floating
    groups = by_group(weight_NK, form)
    scale, start = fit(weight_NK, form, dtype)
    assert start is not None
    step = scale.float().unsqueeze(-1)
    zero = start.unsqueeze(-1)
    best, kept, beta = float("inf"), zero, BETA
    for _ in range(ROUNDS):
        codes = (groups / step + zero).round_().clamp_(form.lowest, form.highest)
        error = groups - (codes - zero) * step
        size = float(error.abs().mean())
        if size >= best:
            break
        best, kept = size, zero
        outliers = error.sign() * (error.abs() - error.abs().clamp(min=1e-8).pow(POWER - 1) / beta).clamp_(min=0)
        zero = (codes - (groups - outliers) / step).mean(-1, keepdim=True)
        beta *= GROWTH
    return scale, kept.squeeze(-1).round().clamp(form.lowest, form.highest)
