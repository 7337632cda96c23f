"""Optimizers that torch does not have: Lion, and several that share the parameters of one model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LionOptimizer(torch.optim.Optimizer):
    """u = sign(b1 m + (1 - b1) g); p -= lr (u + decay p); m = b2 m + (1 - b2) g.

    Source: Symbolic Discovery of Optimization Algorithms, algorithm 2, <https://arxiv.org/abs/2302.06675>.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                mean = state["exp_avg"]
                direction = mean.mul(beta1).add_(p.grad, alpha=1 - beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                mean.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class Joined(torch.optim.Optimizer):
    """Several optimizers, each with parameters of its own, as one: one list of groups, one state."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.param_groups: list[dict[str, Any]] = [group for part in parts for group in part.param_groups]
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Tensor | None:  # type: ignore[override]  # as above
        """One update by each."""
        for part in self.parts:
            part.step()
        return None
