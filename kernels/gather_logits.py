"""Logits of a few vocabulary entries per token, without the (T, V) logits: a teacher's top-k, yes/no heads, choices.

Letters: T tokens, H hidden size, V vocabulary, K entries per token.

    z_{t,k} = hidden_t . weight_{ids[t,k]} + bias_{ids[t,k]}

The caller applies scale, cap and temperature, which act on each logit alone. Costs 2 T K H operations; the rows of the
head that are needed are copied for a block of tokens at a time.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20
"""For the copied rows of the head."""


def gather_logits(hidden_TH: Tensor, weight_VH: Tensor, ids_TK: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """[T, K] in float32 (float64 for float64 inputs); differentiable in hidden, weight and bias.

    ids_TK: int64 in [0, V). Raises ValueError for shapes or ids that do not fit; on a GPU ids are not looked at, since
    that would wait for the device.
    """
    if hidden_TH.ndim != 2 or weight_VH.ndim != 2 or hidden_TH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden_TH {tuple(hidden_TH.shape)} and weight_VH {tuple(weight_VH.shape)}: expected (T, H) and (V, H)"
        )
    if ids_TK.ndim != 2 or len(ids_TK) != len(hidden_TH) or ids_TK.dtype != torch.int64:
        raise ValueError(
            f"ids_TK: {tuple(ids_TK.shape)}, {ids_TK.dtype}; expected ({len(hidden_TH)}, K) in torch.int64"
        )
    if ids_TK.device.type == "cpu" and ids_TK.numel():
        low, high = int(ids_TK.min()), int(ids_TK.max())
        if low < 0 or high >= len(weight_VH):
            raise ValueError(f"ids_TK: {low if low < 0 else high} is outside the vocabulary of {len(weight_VH)}")
    logits: Tensor = _Gather.apply(hidden_TH, weight_VH, ids_TK)  # type: ignore[no-untyped-call]
    return logits if bias_V is None else logits + bias_V[ids_TK].to(logits.dtype)


def _blocks(ids_TK: Tensor, weight_VH: Tensor) -> list[slice]:
    """Tokens whose rows of the head fit into BLOCK_BYTES, in the dtype of the sums."""
    row_bytes = max(1, ids_TK.shape[1] * weight_VH.shape[1]) * _sum_dtype(weight_VH).itemsize
    step = max(1, BLOCK_BYTES // row_bytes)
    return [slice(at, at + step) for at in range(0, len(ids_TK), step)]


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class _Gather(torch.autograd.Function):
    """Keeps its inputs only: rows of the head are copied again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, ids_TK: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_TH, weight_VH, ids_TK)
        dtype = _sum_dtype(hidden_TH)
        out_TK = hidden_TH.new_empty(ids_TK.shape, dtype=dtype)
        for block in _blocks(ids_TK, weight_VH):
            rows_BKH = weight_VH[ids_TK[block]].to(dtype)
            out_TK[block] = torch.bmm(rows_BKH, hidden_TH[block].to(dtype)[:, :, None]).squeeze(-1)
        return out_TK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TK: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_TH, weight_VH, ids_TK = ctx.saved_tensors
        dtype = grad_TK.dtype
        grad_hidden_TH = torch.zeros_like(hidden_TH) if ctx.needs_input_grad[0] else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=dtype) if ctx.needs_input_grad[1] else None
        for block in _blocks(ids_TK, weight_VH):
            grad_BK = grad_TK[block]
            if grad_hidden_TH is not None:
                rows_BKH = weight_VH[ids_TK[block]].to(dtype)
                grad_hidden_TH[block] = torch.bmm(grad_BK[:, None, :], rows_BKH).squeeze(1).to(hidden_TH.dtype)
            if grad_weight_VH is not None:
                outer_BKH = grad_BK[:, :, None] * hidden_TH[block].to(dtype)[:, None, :]
                grad_weight_VH.index_add_(0, ids_TK[block].flatten(), outer_BKH.flatten(0, 1))
        weight_grad = None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_TH, weight_grad, None
