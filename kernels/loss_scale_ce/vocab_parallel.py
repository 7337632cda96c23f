"""The same loss where each rank holds a slice of the vocabulary (tensor parallelism).

Each rank computes the statistics of its own logits; one all-gather of five numbers a row joins them; the backward needs
one all-reduce, of the hidden gradient. Logits are made twice, 8 T H V / ranks operations a rank: the gradient of a row
needs the log-sum-exp of all ranks.

Shape letters: T tokens, H hidden size, N vocabulary entries of this rank, K ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from postmill.kernels.loss_scale_ce import ops
from postmill.kernels.loss_scale_ce.api import Backend, check_inputs, choose_backend
from postmill.kernels.loss_scale_ce.reference import check_targets
from postmill.kernels.loss_scale_ce.terms import (
    Head,
    LossOutput,
    LossShape,
    Rows,
    RowStats,
    accumulate_dtype,
    select_rows,
    weighted_loss,
)


def loss_scale_ce_vocab_parallel(
    hidden_TH: Tensor,
    weight_NH: Tensor,
    targets_T: Tensor,
    token_weights_T: Tensor,
    *,
    vocab_start: int,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    normaliser: float | Tensor,
    bias_N: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    active_T: Tensor | None = None,
    backend: Backend = "auto",
    return_logp: bool = False,
    return_entropy: bool = False,
    return_correct: bool = False,
    return_lse: bool = False,
) -> LossOutput:
    """`loss_scale_ce` of the whole vocabulary, equal on every rank of `group`.

    weight_NH and bias_N are this rank's entries [vocab_start, vocab_start + N) of `vocab_size`; everything else is the
    same on all ranks. The gradient of hidden_TH is summed over ranks, those of weight_NH and bias_N stay here. Every
    rank must call this, with the same rows. Raises ValueError as `loss_scale_ce` does.
    """
    head = Head(weight_NH, bias_N, logit_scale, softcap).at(temperature)
    shape = LossShape(label_smoothing, z_loss)
    check_inputs(hidden_TH, head, targets_T, token_weights_T, shape)
    rows = select_rows(targets_T, token_weights_T, normaliser, accumulate_dtype(hidden_TH.dtype), active_T)
    if targets_T.device.type == "cpu":
        check_targets(targets_T[rows.active_T], vocab_size)
    stats = ops.row_stats(
        _SharedInput.apply(hidden_TH, group),  # type: ignore[no-untyped-call]
        head,
        shard_rows(rows, vocab_start, len(weight_NH)),
        want_sums=return_entropy or label_smoothing != 0,
        backend=choose_backend(backend, hidden_TH) if len(hidden_TH) else "reference",
    )
    mine_5T = torch.stack(stats._replace(mean_T=stats.mean_T * len(weight_NH)))
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    shards = [torch.empty_like(mine_5T) for _ in range(num_ranks)]
    dist.all_gather(shards, mine_5T.detach().contiguous(), group=group)
    # The other ranks' numbers are constants here; their gradients are made there.
    joined = join_shards([*shards[:rank], mine_5T, *shards[rank + 1 :]], rows, vocab_size)
    return LossOutput.of(
        weighted_loss(joined, rows, shape),
        joined,
        rows,
        return_logp=return_logp,
        return_entropy=return_entropy,
        return_correct=return_correct,
        return_lse=return_lse,
    )


def shard_rows(rows: Rows, vocab_start: int, num_entries: int) -> Rows:
    """The rows as one shard sees them: a target that lies elsewhere is -1."""
    local_T = rows.targets_T - vocab_start
    return rows._replace(targets_T=torch.where((local_T >= 0) & (local_T < num_entries), local_T, -1))


def join_shards(shards_5T: Sequence[Tensor], rows: Rows, vocab_size: int) -> RowStats:
    """Statistics of the whole vocabulary from those of its slices, whose `mean_T` is a sum here. Differentiable."""
    lse_KT, target_KT, sum_KT, expected_KT, max_KT = torch.stack(list(shards_5T), dim=1).unbind()
    lse_T = lse_KT.logsumexp(0)
    share_KT = (lse_KT - lse_T).exp()
    # A shard that is barred whole has no expected logit (0 / 0), and no share of the row either.
    expected_T = (share_KT * expected_KT.masked_fill(share_KT == 0, 0)).sum(0)
    # No shard has a target beyond the vocabulary, so no shard can report it.
    target_T = torch.where(rows.targets_T < vocab_size, target_KT.sum(0), torch.nan)
    joined = RowStats(lse_T, target_T, sum_KT.sum(0) / vocab_size, expected_T, max_KT.detach().amax(0))
    return RowStats(*(torch.where(rows.active_T, value, 0) for value in joined))


class _SharedInput(torch.autograd.Function):
    """What every rank reads and each sends a part of the gradient to: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return hidden_TH.view_as(hidden_TH)

    @staticmethod
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor, None]:
        grad_TH = grad_TH.contiguous().clone()
        dist.all_reduce(grad_TH, group=ctx.group)
        return grad_TH, None
