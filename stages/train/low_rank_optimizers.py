"""AdamW whose moments are those of a low-rank view of the gradient: GaLore and APOLLO.

For a matrix W [m, n] with gradient G, R = P G (or G P, along the longer side) has rank r; Adam's moments are kept of R.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Update = Callable[[Tensor, dict[str, Tensor], dict[str, Any]], Tensor]
"""What the rate multiplies, from a gradient, the state of its parameter and the options of its group."""


class LowRankAdamW(torch.optim.Optimizer):
    """Parameters of groups with a `rank` are updated by `update`, the others by AdamW."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], update: Update, *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._update = update

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            change = self._update if "rank" in group else adam
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.int64)
                update = change(parameter.grad.float(), state, group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"])
                state["step"] += 1


def galore(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """P: the main directions of a gradient, found anew every `gap` steps; update = scale * P^T adam(P G).

    Source: GaLore, algorithm 2, <https://arxiv.org/abs/2403.03507>.
    """
    tall = gradient.shape[0] >= gradient.shape[1]
    if int(state["step"]) % group["gap"] == 0:
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        state["projector"] = (vh[: group["rank"]] if tall else u[:, : group["rank"]].T).contiguous()
    projector = state["projector"]
    update = adam(gradient @ projector.T if tall else projector @ gradient, state, group)
    scale: float = group["scale"]
    return (update @ projector if tall else projector.T @ update) * scale


def apollo(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """P: random, drawn anew every `gap` steps; the gradient itself, each channel scaled as Adam scales it in P G.

    With rank 1 the whole matrix has one scale (APOLLO-Mini). The norm of an update grows by 1 % a step at most.
    Source: APOLLO, algorithm 1, <https://arxiv.org/abs/2412.05270>.
    """
    tall = gradient.shape[0] >= gradient.shape[1]
    projector = random_projector(group["seed"], int(state["step"]) // group["gap"], group["rank"], gradient)
    low = gradient @ projector.T if tall else projector @ gradient
    update = adam(low, state, group)
    dims = None if group["rank"] == 1 else (1 if tall else 0)
    size, low_size = (torch.linalg.vector_norm(t, dim=dims, keepdim=dims is not None) for t in (update, low))
    change: Tensor = gradient * (size / (low_size + 1e-8)) * group["scale"]
    norm = torch.linalg.vector_norm(change)
    if "norm" in state:
        limit = 1.01 * state["norm"].to(norm)
        change = change * torch.where(norm > limit, limit / (norm + 1e-8), torch.ones_like(norm))
        norm = torch.minimum(norm, limit)
    state["norm"] = norm
    return change


def random_projector(seed: int, turn: int, rank: int, like: Tensor) -> Tensor:
    """[rank, shorter side of `like`], normal with variance 1 / rank: a function of its arguments, never stored."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + turn) % 2**62)
    drawn = torch.randn(rank, min(like.shape), generator=generator).to(like)
    return drawn.mul_(rank**-0.5)


def adam(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Adam's update of a gradient; its moments are in `state`."""
    beta1, beta2 = group["betas"]
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    mean, square, count = state["exp_avg"], state["exp_avg_sq"], int(state["step"]) + 1
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    wide = (square / (1 - beta2**count)).sqrt_().add_(group["eps"])
    update: Tensor = mean / (1 - beta1**count) / wide
    return update
