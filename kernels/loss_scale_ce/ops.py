"""The fast backends as torch operators, with gradients: what autograd and torch.compile see.

    row_stats   hidden, weight, bias -> RowStats, each differentiable; its backward is the operator row_gradients
    fused_loss  hidden, weight, bias -> the loss, its gradient made in the same walk; its backward is a scaling

Both take the module that does the work ("cpp" or "triton") by name, since an operator's arguments must be plain values.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from postmill.kernels.loss_scale_ce import reference
from postmill.kernels.loss_scale_ce.terms import (
    Coefficients,
    Head,
    LossShape,
    Needs,
    Rows,
    RowStats,
    accumulate_dtype,
    stats_coefficients,
    weighted_loss,
)

_MODULES = {"cpp": "postmill.kernels.loss_scale_ce.cpp", "triton": "postmill.kernels.loss_scale_ce.triton_host"}


def backend_module(name: str) -> ModuleType:
    """The module of a backend; importing it is what makes Triton load, and compiles nothing."""
    return import_module(_MODULES[name])


def row_stats(hidden_TH: Tensor, head: Head, rows: Rows, *, want_sums: bool, backend: str) -> RowStats:
    """`RowStats` by any backend, differentiable; `want_sums` asks for `mean_T` and `expected_T`."""
    if backend == "reference":
        return reference.row_stats(hidden_TH, head, rows, want_sums=want_sums)
    stats_5T = _row_stats(
        hidden_TH,
        head.weight_VH,
        head.bias_V,
        rows.targets_T,
        rows.active_T,
        scale=head.scale,
        softcap=head.softcap,
        want_sums=want_sums,
        backend=backend,
    )
    lse, target, mean, expected, maximum = stats_5T.unbind()
    return RowStats(lse, target, mean, expected, maximum.detach())


@torch.library.custom_op("postmill::loss_row_stats", mutates_args=())
def _row_stats(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    active_T: Tensor,
    *,
    scale: float,
    softcap: float | None,
    want_sums: bool,
    backend: str,
) -> Tensor:
    head = Head(weight_VH, bias_V, scale, softcap)
    stats = backend_module(backend).row_stats(hidden_TH, head, Rows(targets_T, active_T), want_sums=want_sums)
    return torch.stack(stats)


@_row_stats.register_fake
def _(hidden_TH: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return hidden_TH.new_empty(5, hidden_TH.shape[0], dtype=accumulate_dtype(hidden_TH.dtype))


@torch.library.custom_op("postmill::loss_row_gradients", mutates_args=())
def _row_gradients(  # noqa: PLR0917  # an operator takes its tensors by position
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    active_T: Tensor,
    lse_T: Tensor,
    coefficients_4T: Tensor,
    *,
    scale: float,
    softcap: float | None,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    head = Head(weight_VH, bias_V, scale, softcap)
    gradients = backend_module(backend).row_gradients(
        hidden_TH,
        head,
        Rows(targets_T, active_T),
        lse_T,
        Coefficients(*coefficients_4T.unbind()),
        needs=Needs(*needs),
    )
    return tuple(gradients)


@_row_gradients.register_fake
def _(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *_args: Any, needs: list[bool], **_options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(hidden_TH, weight_VH, needs)


def _empty_gradients(hidden_TH: Tensor, weight_VH: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden_TH.new_empty(hidden_TH.shape if needs[0] else (0,)),
        weight_VH.new_empty(weight_VH.shape if needs[1] else (0,)),
        weight_VH.new_empty(weight_VH.shape[0] if needs[2] else 0),
    )


def _keep_for_stats(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)
    ctx.options = keyword_only_inputs


def _stats_backward(ctx: Any, grad_5T: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, stats_5T = ctx.saved_tensors
    options = ctx.options
    needs = list(ctx.needs_input_grad[:3])
    stats = RowStats(*stats_5T.unbind())
    coefficients = stats_coefficients(RowStats(*grad_5T.unbind()), stats, inputs[1].shape[0])
    gradients = _row_gradients(
        *inputs,
        stats.lse_T,
        torch.stack(coefficients),
        scale=options["scale"],
        softcap=options["softcap"],
        needs=needs,
        backend=options["backend"],
    )
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None)


_row_stats.register_autograd(_stats_backward, setup_context=_keep_for_stats)


def fused_loss(hidden_TH: Tensor, head: Head, rows: Rows, shape: LossShape, *, backend: str) -> tuple[Tensor, RowStats]:
    """`weighted_loss`, with its gradient, and the statistics without theirs."""
    tensors = (hidden_TH, head.weight_VH, head.bias_V)
    options = {
        "scale": head.scale,
        "softcap": head.softcap,
        "label_smoothing": shape.label_smoothing,
        "z_loss": shape.z_loss,
        "needs": [t is not None and t.requires_grad for t in tensors],
        "backend": backend,
    }
    if torch.compiler.is_compiling():
        loss, stats_5T, *_ = _fused_loss(*tensors, *rows, **options)
    else:
        loss, stats_5T = _FusedLoss.apply(  # type: ignore[no-untyped-call]
            *tensors, *rows, options
        )
    return loss, RowStats(*stats_5T.detach().unbind())


@torch.library.custom_op("postmill::loss_fused", mutates_args=())
def _fused_loss(  # noqa: PLR0917  # as above
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    active_T: Tensor,
    row_weights_T: Tensor,
    *,
    scale: float,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = Head(weight_VH, bias_V, scale, softcap)
    rows = Rows(targets_T, active_T, row_weights_T)
    shape = LossShape(label_smoothing, z_loss)
    stats, gradients = backend_module(backend).fused(hidden_TH, head, rows, shape, Needs(*needs))
    return weighted_loss(stats, rows, shape), torch.stack(stats), *gradients


@_fused_loss.register_fake
def _(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *_args: Any, needs: list[bool], **_options: Any
) -> tuple[Tensor, ...]:
    stats_5T = hidden_TH.new_empty(5, hidden_TH.shape[0], dtype=accumulate_dtype(hidden_TH.dtype))
    return stats_5T.new_empty(()), stats_5T, *_empty_gradients(hidden_TH, weight_VH, needs)


def _keep_for_fused(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.needs = keyword_only_inputs["needs"]
    ctx.save_for_backward(*output[2:])


def _fused_backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    scaled = (g * grad_loss.to(g.dtype) if need else None for g, need in zip(ctx.saved_tensors, ctx.needs, strict=True))
    return (*scaled, None, None, None)


_fused_loss.register_autograd(_fused_backward, setup_context=_keep_for_fused)


class _FusedLoss(torch.autograd.Function):
    """The same operator without its compiler's view: backward hands the gradients over instead of copying them.

    For a head of 151,936 x 1,024 the copy would be 622 MB, as much as everything else the loss holds.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, options = inputs
        loss, stats_5T, *gradients = _fused_loss(*tensors, **options)
        ctx.mark_non_differentiable(stats_5T)
        ctx.needs, ctx.gradients, ctx.backend = options["needs"], gradients, options["backend"]
        return loss, stats_5T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("loss_scale_ce: backward ran twice; its gradients were handed over the first time")
        gradients, ctx.gradients = ctx.gradients, None
        # A factor of 1, the common case, saves a pass. On a GPU looking at it would stall the queue, so a kernel does.
        if ctx.backend == "triton":
            backend_module("triton").scale_(gradients, grad_loss)
        elif grad_loss != 1:
            for gradient in gradients:
                gradient.mul_(grad_loss)
        return (*(g if need else None for g, need in zip(gradients, ctx.needs, strict=True)), None, None, None, None)
