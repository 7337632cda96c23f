"""Cross-entropy of `hidden @ weight^T` with a real-valued weight per token, without the (T, V) logits.

    output = loss_scale_ce(hidden_TH, weight_VH, targets_T, token_weights_T, normaliser=num_tokens)
    output.loss.backward()

Rows whose target is negative or whose weight is 0 are left out before the matmul: they cost nothing, and nothing in
them, NaN included, reaches the result. Any other weight is legal, negative ones too. The normaliser is an argument
because only the caller knows it: the number of trained tokens of the whole accumulated batch, the sum of weights, or 1.
The formula is in `terms.py`. One meaning, three backends:

- `reference`: plain torch, any device and dtype (`reference.py`);
- `cpp`: CPU; torch's BLAS on row-block by vocabulary tiles, one arena, fused passes between the products;
- `triton`: CUDA; compaction on the device without a host sync.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal

import torch
from torch import Tensor

from postmill.kernels.loss_scale_ce import cpp, ops
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

log = logging.getLogger(__name__)

Backend = Literal["auto", "reference", "cpp", "triton"]
# Asked here, without importing it: torch.compile does not trace through the question.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def loss_scale_ce(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    token_weights_T: Tensor,
    *,
    normaliser: float | Tensor,
    bias_V: Tensor | None = None,
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
    return_collision: bool = False,
) -> LossOutput:
    """Weighted cross-entropy of next-token logits, and what else was asked for.

    hidden_TH, weight_VH and bias_V share one floating dtype; targets_T is int64, already shifted (row t is scored
    against targets_T[t]); token_weights_T is floating and constant. Sums are float32 (float64 for float64 inputs), and
    so are the loss, `logp_T` and `entropy_T`. Differentiable in hidden, weight and bias, through the loss, `logp_T` and
    `entropy_T`; the normaliser is a constant. No active row: the loss is 0 and so is every gradient.

    temperature divides the logits after the cap, as sampling does, in the loss and in every statistic. active_T (bool)
    says which rows have statistics, whatever their weight; without it those with a weight. A row of weight 0 never
    reaches the loss.

    Training on the loss alone is the cheap path (the gradient is made in the forward pass, three matrix products);
    asking for `logp_T`, `entropy_T` or `lse_T` makes the backward recompute the logits (four). `collision_T` costs one
    product more, without a gradient.
    Raises ValueError for shapes or dtypes that do not fit, a target of V or more, or a backend that cannot run here.
    """
    head = Head(weight_VH, bias_V, logit_scale, softcap).at(temperature)
    shape = LossShape(label_smoothing, z_loss)
    check_inputs(hidden_TH, head, targets_T, token_weights_T, shape)
    want_rows = return_logp or return_entropy or return_lse
    rows = select_rows(
        targets_T,
        token_weights_T,
        normaliser,
        accumulate_dtype(hidden_TH.dtype),
        active_T if want_rows or return_correct or return_collision else None,
    )
    # No tokens, nothing to launch: the reference returns its zeros without a grid of size 0.
    name = choose_backend(backend, hidden_TH) if len(hidden_TH) else "reference"
    want_sums = return_entropy or label_smoothing != 0
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (hidden_TH, weight_VH, bias_V)
    )
    # A float16 gradient has to be scaled before it is rounded, and the scale arrives with the backward pass.
    is_fused = needs_grad and not (want_rows or hidden_TH.dtype == torch.float16)
    if is_fused and name != "reference":
        loss, stats = ops.fused_loss(hidden_TH, head, rows, shape, backend=name)
    else:
        stats = ops.row_stats(hidden_TH, head, rows, want_sums=want_sums, backend=name)
        loss = weighted_loss(stats, rows, shape)
    output = LossOutput.of(
        loss,
        stats,
        rows,
        return_logp=return_logp,
        return_entropy=return_entropy,
        return_correct=return_correct,
        return_lse=return_lse,
    )
    return output._replace(collision_T=_collision(hidden_TH, head, rows, stats, name)) if return_collision else output


@torch.no_grad()
def _collision(
    hidden_TH: Tensor, head: Head, rows: Rows, stats: RowStats, backend: Literal["reference", "cpp", "triton"]
) -> Tensor:
    """log sum_v p_v^2 of the active rows, by a walk at half the temperature: lse(2 z) - 2 lse(z)."""
    twice = ops.row_stats(hidden_TH, head.at(0.5), rows, want_sums=False, backend=backend)
    return torch.where(rows.active_T, twice.lse_T - 2 * stats.lse_T.detach(), 0)


def choose_backend(backend: Backend, hidden_TH: Tensor) -> Literal["reference", "cpp", "triton"]:
    """The backend that will run: what was asked for, or for "auto" the fastest there is for this tensor.

    Raises ValueError if the one asked for cannot run here. Falling back to the reference is logged once.
    """
    device = hidden_TH.device.type
    missing = {
        "cpp": None if device == "cpu" and cpp.native() else f"it needs CPU tensors and postmill._C; got {device}",
        "triton": None
        if _triton_runs(device, hidden_TH.dtype)
        else f"it needs CUDA tensors below float64 and the triton package; got {device}, {hidden_TH.dtype}",
    }
    if backend == "reference":
        return backend
    if backend != "auto":
        if missing[backend] is not None:
            raise ValueError(f'loss_scale_ce: backend "{backend}" cannot run: {missing[backend]}; use "auto"')
        return backend
    if missing["triton"] is None and device == "cuda":
        return "triton"
    if missing["cpp"] is None:
        return "cpp"
    _say_reference(device)
    return "reference"


def _triton_runs(device: str, dtype: torch.dtype) -> bool:
    if dtype == torch.float64 or not HAS_TRITON:
        return False
    # Triton's interpreter runs the kernels on CPU tensors; it is for tests and never chosen by "auto".
    return device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _say_reference(device: str) -> None:
    log.warning("loss_scale_ce: no fast backend for %s tensors here; the plain-torch reference runs instead", device)


def check_inputs(hidden_TH: Tensor, head: Head, targets_T: Tensor, token_weights_T: Tensor, shape: LossShape) -> None:
    """Raise ValueError, naming the argument, where something does not fit."""
    if head.softcap is not None and not head.softcap > 0:
        raise ValueError(f"softcap: {head.softcap} is not above 0; pass None for no cap")
    if not 0 <= shape.label_smoothing <= 1:
        raise ValueError(f"label_smoothing: {shape.label_smoothing} is not in [0, 1]")
    weight_VH, bias_V = head.weight_VH, head.bias_V
    if hidden_TH.ndim != 2 or weight_VH.ndim != 2 or hidden_TH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden_TH {tuple(hidden_TH.shape)} and weight_VH {tuple(weight_VH.shape)}: expected (T, H) and (V, H); "
            "flatten batch and sequence first"
        )
    num_tokens, vocab_size = len(hidden_TH), len(weight_VH)
    for name, tensor, length in (
        ("targets_T", targets_T, num_tokens),
        ("token_weights_T", token_weights_T, num_tokens),
        ("bias_V", bias_V, vocab_size),
    ):
        if tensor is not None and tensor.shape != (length,):
            raise ValueError(f"{name}: shape is {tuple(tensor.shape)}, expected ({length},)")
    if not hidden_TH.is_floating_point() or any(
        t.dtype != hidden_TH.dtype for t in (weight_VH, bias_V) if t is not None
    ):
        raise ValueError(
            f"hidden_TH is {hidden_TH.dtype}, weight_VH {weight_VH.dtype}, bias_V {getattr(bias_V, 'dtype', None)}: "
            "expected one floating dtype; convert hidden_TH to the head's"
        )
    if targets_T.dtype != torch.int64:
        raise ValueError(f"targets_T: dtype is {targets_T.dtype}, expected torch.int64")
    if token_weights_T.requires_grad:
        raise ValueError("token_weights_T: requires grad, but weights are constants here; use return_logp instead")
