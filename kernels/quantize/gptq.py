"""GPTQ: codes chosen column by column, each column's rounding error made up for in the columns that follow.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
<https://arxiv.org/abs/2210.17323>, in blocks of columns as there. What a column adds to the output's error is known
from the second moment of the layer's inputs.
Letters: N rows (outputs), K columns (inputs), G groups of a row.
"""

import torch
from torch import Tensor

from postmill.kernels.quantize.grid import Encoded, Form, encode, fit

BLOCK = 128
"""Columns whose errors are carried on at once."""


def solve(weight_NK: Tensor, moment_KK: Tensor, form: Form, dtype: torch.dtype, *, damp: float, sort: bool) -> Encoded:
    """The weight on its grid, float32 in, scales of `dtype`.

    moment_KK: sum of x x^T over the inputs x, float32; any multiple gives the same codes. damp: share of its mean
    diagonal that is added to it. sort: visit columns with large inputs first, on grids fitted before any is visited
    (otherwise each group's grid is fitted when it is reached). The codes come in the weight's own order.
    """
    columns = form.columns(weight_NK.shape[1])
    order = torch.arange(weight_NK.shape[1])
    if sort:
        order = torch.argsort(moment_KK.diagonal(), descending=True, stable=True)
    upper_KK = _inverse_factor(moment_KK[order][:, order], damp)
    left_NK = weight_NK[:, order].clone()
    codes_NK = torch.empty(weight_NK.shape, dtype=torch.float8_e4m3fn if form.floating else torch.int8)
    scale_NG, zero_NG = fit(weight_NK, form, dtype)
    alone = form._replace(group=0)
    for start in range(0, left_NK.shape[1], BLOCK):
        end = min(start + BLOCK, left_NK.shape[1])
        # a column of its transpose is contiguous, and each is looked at alone
        block_KN, errors_KN = left_NK[:, start:end].T.contiguous(), torch.empty(end - start, left_NK.shape[0])
        factor_KK = upper_KK[start:end, start:end]
        for at in range(end - start):
            column = int(order[start + at])
            group = column // columns
            if not sort and column % columns == 0:
                ahead = block_KN[at : at + columns].T
                if ahead.shape[1] < columns:  # a group as long as a row, or longer than a block
                    ahead = torch.cat([ahead, left_NK[:, end : column + columns]], 1)
                scale, zero = fit(ahead.contiguous(), alone, dtype)
                scale_NG[:, group] = scale[:, 0]
                if zero_NG is not None and zero is not None:
                    zero_NG[:, group] = zero[:, 0]
            scale = scale_NG[:, group : group + 1]
            zero = None if zero_NG is None else zero_NG[:, group : group + 1]
            column_codes = encode(block_KN[at, :, None], alone, scale, zero).codes
            codes_NK[:, column] = column_codes[:, 0]
            steps = column_codes[:, 0].float()
            kept = (steps if zero is None else steps - zero[:, 0]) * scale[:, 0].float()
            errors_KN[at] = (block_KN[at] - kept) / factor_KK[at, at]
            block_KN[at + 1 :].addr_(factor_KK[at, at + 1 :], errors_KN[at], alpha=-1)
        left_NK[:, end:].addmm_(errors_KN.T, upper_KK[start:end, end:], alpha=-1)
    return Encoded(codes_NK, scale_NG, None if zero_NG is None else zero_NG.to(torch.int8))


def _inverse_factor(moment_KK: Tensor, damp: float) -> Tensor:
    """Upper U with U^T U the inverse of the damped moment. Damping grows tenfold until there is one."""
    moment_KK = moment_KK.clone()
    diagonal = moment_KK.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that is never there: its column is rounded by itself
    mean = float(diagonal.mean())
    while True:
        diagonal += damp * mean
        lower, failed = torch.linalg.cholesky_ex(moment_KK)
        if not int(failed):
            upper_KK: Tensor
            upper_KK, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return upper_KK
        damp = 10 * max(damp, 1e-6)
