"""What the loss is made of: per-row statistics of the logits, and the formula that joins them.

Every backend computes the same `RowStats`; everything after that is arithmetic on vectors of length T, written
once, here, in plain torch. Shape letters: T tokens, H hidden size, V vocabulary size.

With z = cap(logit_scale * (hidden @ weight^T + bias)), cap(u) = softcap * tanh(u / softcap), p = softmax(z):

    loss = sum_t w_t [ (1 - e) (lse_t - z_{t,y}) + e (lse_t - mean_v z_{t,v}) + l lse_t^2 ] / denominator

e is `label_smoothing` as in `torch.nn.functional.cross_entropy`, l is `z_loss` (PaLM, section 5,
<https://arxiv.org/abs/2204.02311>), cap as in Gemma 2 (<https://arxiv.org/abs/2408.00118>).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """The output layer: z = cap(scale * (hidden @ weight^T + bias)), the logits the softmax sees."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


class RowStats(NamedTuple):
    """Statistics of each row's logits z, all of shape (T,), float32 (float64 for float64 inputs); 0 on skipped rows.

    The first four are differentiable. `mean_T` and `expected_T` are zeros when they were not asked for.
    """

    lse_T: Tensor
    """log sum_v exp(z)."""
    target_T: Tensor
    """z of the target; 0 where the row has no target in this vocabulary (shard)."""
    mean_T: Tensor
    """mean_v z, for label smoothing."""
    expected_T: Tensor
    """sum_v softmax(z) z, for the entropy."""
    max_T: Tensor
    """max_v z; no gradient."""


class LossOutput(NamedTuple):
    """`loss` is a scalar; the rest is (T,) or None, 0 or False on skipped rows."""

    loss: Tensor
    logp_T: Tensor | None = None
    """log-probability of the target; differentiable."""
    entropy_T: Tensor | None = None
    """entropy of the row's distribution, in nats; differentiable."""
    correct_T: Tensor | None = None
    """bool: no other logit is above the target's (a tie counts as correct)."""


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 for every input but float64: sums over a vocabulary lose too much below that."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def active_rows(targets_T: Tensor, token_weights_T: Tensor) -> Tensor:
    """Rows that take part: a target that is not negative and a weight that is not zero (NaN is not zero)."""
    return (targets_T >= 0) & (token_weights_T != 0)


def weighted_loss(
    stats: RowStats,
    active_T: Tensor,
    token_weights_T: Tensor,
    denominator: float | Tensor,
    *,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """The scalar loss. Exactly 0, whatever the denominator, when no row is active."""
    nll_T = stats.lse_T - stats.target_T
    if label_smoothing:
        nll_T = (1 - label_smoothing) * nll_T + label_smoothing * (stats.lse_T - stats.mean_T)
    if z_loss:
        nll_T = nll_T + z_loss * stats.lse_T.square()
    # `where` and not a product: a NaN weight or statistic must not reach the sum through a skipped row.
    total = torch.where(active_T, token_weights_T.to(nll_T.dtype) * nll_T, 0).sum()
    return torch.where(active_T.any(), total / denominator, 0)
