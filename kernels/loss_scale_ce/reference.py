"""Plain torch, any floating dtype: what the fast backends are checked against, and what runs where they cannot.

Gradients are autograd's, not ours, so an error in a hand-written backward cannot hide here. Rows are taken in chunks
that are recomputed in the backward pass, so that at most `chunk_rows` rows of logits exist at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from postmill.kernels.loss_scale_ce.terms import Head, Rows, RowStats, accumulate_dtype

CHUNK_ROWS = 512  # with a vocabulary of 151,936 in float32: 311 MB a copy of the logits


def row_stats(
    hidden_TH: Tensor,
    head: Head,
    rows: Rows,
    *,
    want_sums: bool = True,
    chunk_rows: int = CHUNK_ROWS,
) -> RowStats:
    """`RowStats` of the active rows; differentiable in hidden, weight and bias.

    Inputs below float32 are converted first, so a logit is rounded once, to float32.
    Raises ValueError for a target of V or more.
    """
    rows_A = rows.active_T.nonzero().squeeze(-1)
    targets_A = rows.targets_T[rows_A]
    check_targets(targets_A, len(head.weight_VH))
    dtype = accumulate_dtype(hidden_TH.dtype)
    hidden_AH = hidden_TH[rows_A].to(dtype)
    bias_V = None if head.bias_V is None else head.bias_V.to(dtype)
    head = head._replace(weight_VH=head.weight_VH.to(dtype), bias_V=bias_V)

    def chunk(hidden_CH: Tensor, targets_C: Tensor) -> Tensor:
        return _chunk_stats(hidden_CH, head, targets_C, want_sums=want_sums)

    starts = range(0, max(len(rows_A), 1), chunk_rows)
    pieces = [(hidden_AH[i : i + chunk_rows], targets_A[i : i + chunk_rows]) for i in starts]
    if len(pieces) == 1 or not torch.is_grad_enabled():
        stats = [chunk(*piece) for piece in pieces]
    else:
        stats = [checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces]
    stats_5A = torch.cat(stats, dim=1)
    stats_5T = stats_5A.new_zeros(5, len(rows.targets_T)).index_copy(1, rows_A, stats_5A)
    lse, target, mean, expected, maximum = stats_5T.unbind()
    return RowStats(lse, target, mean, expected, maximum.detach())


def check_targets(targets_A: Tensor, vocab_size: int) -> None:
    """Raise ValueError if an active row's target lies outside the vocabulary."""
    if targets_A.numel() and int(targets_A.max()) >= vocab_size:
        raise ValueError(
            f"targets_T: {int(targets_A.max())} is outside the vocabulary of {vocab_size}; "
            "resize the head to the tokenizer, or give the row weight 0"
        )


def _chunk_stats(hidden_CH: Tensor, head: Head, targets_C: Tensor, *, want_sums: bool) -> Tensor:
    z_CV = F.linear(hidden_CH, head.weight_VH, head.bias_V) * head.scale
    if head.softcap is not None:
        z_CV = head.softcap * torch.tanh(z_CV / head.softcap)
    lse_C = z_CV.logsumexp(-1)
    target_C = z_CV.gather(-1, targets_C.clamp(min=0)[:, None]).squeeze(-1)
    target_C = torch.where(targets_C >= 0, target_C, 0)
    mean_C = expected_C = torch.zeros_like(lse_C)
    if want_sums:
        p_CV = z_CV.softmax(-1)
        mean_C = z_CV.mean(-1)
        # A logit of -inf (a vocabulary entry barred by its bias) has p = 0 and adds nothing, not 0 * inf.
        expected_C = (p_CV * z_CV.masked_fill(p_CV == 0, 0)).sum(-1)
    return torch.stack([lse_C, target_C, mean_C, expected_C, z_CV.amax(-1).detach()])
