"""What the loss is made of: per-row statistics of the logits, and the formula that joins them.

Every backend computes the same `RowStats`; everything after that is arithmetic on vectors of length T, written
once, here, in plain torch. Shape letters: T tokens, H hidden size, V vocabulary size.

With z = cap(logit_scale * (hidden @ weight^T + bias)), cap(u) = softcap * tanh(u / softcap), p = softmax(z):

    loss = sum_t w_t [ (1 - e) (lse_t - z_{t,y}) + e (lse_t - mean_v z_{t,v}) + l lse_t^2 ] / normaliser

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

    def at(self, temperature: float) -> Head:
        """The head whose logits are z / temperature: cap_s(u) / T is cap_(s/T)(u / T), so no backend need know of it.

        Raises ValueError if `temperature` is not above 0.
        """
        if temperature == 1:
            return self
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature} is not above 0")
        cap = None if self.softcap is None else self.softcap / temperature
        return self._replace(scale=self.scale / temperature, softcap=cap)


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


class Rows(NamedTuple):
    """What is asked of each row, all (T,)."""

    targets_T: Tensor
    active_T: Tensor
    """bool: the rows that take part. One with a negative target has its target in another vocabulary shard."""
    weights_T: Tensor | None = None
    """The weight over the normaliser, 0 where not active; for the loss only. An active row may have weight 0."""


class LossOutput(NamedTuple):
    """`loss` is a scalar; the rest is (T,) or None, 0 or False on skipped rows."""

    loss: Tensor
    logp_T: Tensor | None = None
    """log-probability of the target; differentiable."""
    entropy_T: Tensor | None = None
    """entropy of the row's distribution, in nats; differentiable."""
    correct_T: Tensor | None = None
    """bool: no other logit is above the target's (a tie counts as correct)."""
    lse_T: Tensor | None = None
    """log sum_v exp(z), at the temperature; differentiable."""
    collision_T: Tensor | None = None
    """log sum_v p_v^2; no gradient."""

    @classmethod
    def of(
        cls,
        loss: Tensor,
        stats: RowStats,
        rows: Rows,
        *,
        return_logp: bool,
        return_entropy: bool,
        return_correct: bool,
        return_lse: bool = False,
    ) -> LossOutput:
        """From the statistics of the rows."""
        correct_T = rows.active_T & (stats.target_T >= stats.max_T) & ~stats.lse_T.isnan()
        return cls(
            loss,
            stats.target_T - stats.lse_T if return_logp else None,
            stats.lse_T - stats.expected_T if return_entropy else None,
            correct_T if return_correct else None,
            stats.lse_T if return_lse else None,
        )


class LossShape(NamedTuple):
    """The two regularisers of the formula above."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


class Needs(NamedTuple):
    """Which gradients a backward has to make."""

    hidden: bool = True
    weight: bool = True
    bias: bool = True


class Gradients(NamedTuple):
    """Gradients in the dtypes of their inputs; an empty tensor where none was needed."""

    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor


class Coefficients(NamedTuple):
    """The gradient of any function of `RowStats` with respect to z, row by row, all (T,):

    dz_{t,v} = p_{t,v} (a_t + e_t z_{t,v}) + b_t [v = y_t] + c_t.
    """

    a_T: Tensor
    e_T: Tensor
    b_T: Tensor
    c_T: Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 for every input but float64: sums over a vocabulary lose too much below that."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def select_rows(
    targets_T: Tensor,
    token_weights_T: Tensor,
    normaliser: float | Tensor,
    dtype: torch.dtype,
    also_T: Tensor | None = None,
) -> Rows:
    """The rows with a target that is not negative and a weight that is not zero (NaN is not zero), or that are in
    `also_T` (bool)."""
    has_target_T = targets_T >= 0
    weighted_T = has_target_T & (token_weights_T != 0)
    active_T = weighted_T if also_T is None else has_target_T & (weighted_T | also_T)
    return Rows(targets_T, active_T, torch.where(weighted_T, token_weights_T.to(dtype) / normaliser, 0))


def weighted_loss(stats: RowStats, rows: Rows, shape: LossShape) -> Tensor:
    """The scalar loss, in the dtype of the statistics."""
    assert rows.weights_T is not None
    nll_T = stats.lse_T - stats.target_T
    if shape.label_smoothing:
        uniform_nll_T = stats.lse_T - stats.mean_T
        nll_T = (1 - shape.label_smoothing) * nll_T + shape.label_smoothing * uniform_nll_T
    if shape.z_loss:
        nll_T = nll_T + shape.z_loss * stats.lse_T.square()
    # `where` and not a product: nothing in a skipped row, 0 / 0 and NaN included, may reach the sum.
    # Summed in float64, so that padding, which changes the order of the sum, does not change the loss.
    in_loss_T = rows.active_T & (rows.weights_T != 0)
    return torch.where(in_loss_T, rows.weights_T * nll_T, 0).sum(dtype=torch.float64).to(nll_T.dtype)


def loss_coefficients(lse_T: Tensor, row_weights_T: Tensor, shape: LossShape, vocab_size: int) -> Coefficients:
    """Of the rows' share of `weighted_loss`."""
    return Coefficients(
        a_T=row_weights_T * (1 + 2 * shape.z_loss * lse_T),
        e_T=torch.zeros_like(row_weights_T),
        b_T=row_weights_T * (shape.label_smoothing - 1),
        c_T=row_weights_T * (-shape.label_smoothing / vocab_size),
    )


def stats_coefficients(grads: RowStats, stats: RowStats, vocab_size: int) -> Coefficients:
    """Of any function of the statistics whose derivatives with respect to them are `grads`.

    d lse/dz = p; d target/dz = [v = y]; d mean/dz = 1/V; d expected/dz = p (1 + z - expected).
    """
    return Coefficients(
        a_T=grads.lse_T + grads.expected_T * (1 - stats.expected_T),
        e_T=grads.expected_T,
        b_T=grads.target_T,
        c_T=grads.mean_T / vocab_size,
    )
