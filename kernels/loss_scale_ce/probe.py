"""Ask a backend and the reference the same question before trusting the backend with a run.

deviation = probe("auto", hidden_TH, weight_VH, targets_T, token_weights_T, normaliser=n)
if not deviation.is_acceptable: use backend="reference", and say deviation.describe()
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.kernels.loss_scale_ce.api import Backend, choose_backend, loss_scale_ce

ACCEPTABLE = {
    # Of the largest entry. Sums of V float32 terms agree to about 1e-6; matrix units round the operands of a product to
    # tf32 or to the input's dtype, and gradients are rounded to it once.
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}


class Deviation(NamedTuple):
    """How far a backend is from the reference, relative to the reference's largest entry; NaN where either is NaN."""

    backend: str
    dtype: torch.dtype
    loss: float
    hidden_gradient: float
    weight_gradient: float
    """0 where the head is frozen."""

    @property
    def is_acceptable(self) -> bool:
        """Whether every deviation is within `ACCEPTABLE`; a NaN is not."""
        return all(x <= ACCEPTABLE[self.dtype] for x in self[2:])

    def describe(self) -> str:
        """One line for a log."""
        return (
            f"loss_scale_ce: {self.backend} differs from the reference by {self.loss:.1e} (loss), "
            f"{self.hidden_gradient:.1e} (hidden gradient), {self.weight_gradient:.1e} (head gradient); "
            f"accepted up to {ACCEPTABLE[self.dtype]:.0e} for {self.dtype}"
        )


def probe(
    backend: Backend,
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    token_weights_T: Tensor,
    *,
    max_rows: int = 64,
    **options: Any,
) -> Deviation:
    """Loss and gradients of the first `max_rows` active rows by `backend` and by the reference.

    `options` are those of `loss_scale_ce`, the normaliser among them. Nothing is added to any `.grad`. Costs two
    gradients of the head, when it is not frozen, and `max_rows` x V float32 logits.
    """
    name = choose_backend(backend, hidden_TH)
    active_A = ((targets_T >= 0) & (token_weights_T != 0)).nonzero().squeeze(-1)[:max_rows]
    hidden_AH = hidden_TH.detach()[active_A].requires_grad_()
    head_VH = weight_VH.detach().requires_grad_(weight_VH.requires_grad)
    if options.get("bias_V") is not None:
        options["bias_V"] = options["bias_V"].detach()
    wanted = [t for t in (hidden_AH, head_VH) if t.requires_grad]

    def run(which: Backend) -> list[Tensor]:
        targets_A, weights_A = targets_T[active_A], token_weights_T[active_A]
        loss = loss_scale_ce(hidden_AH, head_VH, targets_A, weights_A, backend=which, **options).loss
        return [loss.detach(), *torch.autograd.grad(loss, wanted)]

    with torch.enable_grad():
        got, want = run(name), run("reference")
    gaps = [_relative(g, w) for g, w in zip(got, want, strict=True)]
    return Deviation(name, hidden_TH.dtype, gaps[0], gaps[1], gaps[2] if len(gaps) > 2 else 0.0)


def _relative(got: Tensor, want: Tensor) -> float:
    if not want.numel():
        return 0.0
    low, high = want.aminmax()
    # in place: a head's gradient is as large as the head
    gap, size = (got - want).abs_().max().item(), max(-low.item(), high.item())
    return gap / size if size else gap
