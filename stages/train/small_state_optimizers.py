"""AdamW with moments of eight bits, and AdamW without a schedule."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_BLOCK = 256
_SMALLEST = 4096
"""Parameters with fewer numbers keep float32 moments: there is nothing to gain, and norms and biases need the bits."""


@cache
def dynamic_map(*, signed: bool) -> Tensor:
    """The 256 numbers in [-1, 1], or [0, 1], that a code of eight bits stands for, ascending: a decimal exponent of
    varying length, and the rest linear.

    Source: 8-bit Approximations for Parallelism in Deep Learning, <https://arxiv.org/abs/1511.04561>, as in 8-bit
    Optimizers via Block-wise Quantization, <https://arxiv.org/abs/2110.02861>.
    """
    values = [0.0, 1.0]
    bits = 6 if signed else 7
    for exponent in range(7):
        count = 2 ** (exponent + bits - 6)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)).tolist()
        values += middles
        values += [-value for value in middles] if signed else []
    return torch.tensor(sorted(values), dtype=torch.float32)


def encode(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, of `values`' shape) and the largest magnitude of each block of 256 numbers (float32)."""
    table = dynamic_map(signed=signed).to(values.device)
    flat = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % _BLOCK)).view(-1, _BLOCK)
    largest = flat.abs().amax(1)
    scaled = flat / largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return codes.flatten()[: values.numel()].view(values.shape), largest


def decode(codes: Tensor, largest: Tensor, *, signed: bool) -> Tensor:
    """The numbers (float32) that `encode` made codes of, rounded."""
    table = dynamic_map(signed=signed).to(codes.device)
    scale = largest.repeat_interleave(_BLOCK)[: codes.numel()].view(codes.shape)
    return table[codes.int()] * scale


class AdamW8bitOptimizer(torch.optim.Optimizer):
    """AdamW; between steps its moments are codes of eight bits, in blocks of 256 numbers with a scale each."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                gradient = p.grad.float()
                mean, square, count = self._moments(state, gradient)
                mean.lerp_(gradient, 1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                wide = (square / (1 - beta2**count)).sqrt_().add_(group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((mean / wide).to(p.dtype), alpha=-group["lr"] / (1 - beta1**count))
                self._keep(state, mean, square)
                state["step"] += 1

    @staticmethod
    def _moments(state: dict[str, Tensor], gradient: Tensor) -> tuple[Tensor, Tensor, int]:
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)
            return torch.zeros_like(gradient), torch.zeros_like(gradient), 1
        count = int(state["step"]) + 1
        if "exp_avg_scale" not in state:
            return state["exp_avg"], state["exp_avg_sq"], count
        mean = decode(state["exp_avg"], state["exp_avg_scale"], signed=True)
        return mean, decode(state["exp_avg_sq"], state["exp_avg_sq_scale"], signed=False), count

    @staticmethod
    def _keep(state: dict[str, Tensor], mean: Tensor, square: Tensor) -> None:
        if mean.numel() < _SMALLEST:
            state["exp_avg"], state["exp_avg_sq"] = mean, square
            return
        state["exp_avg"], state["exp_avg_scale"] = encode(mean, signed=True)
        state["exp_avg_sq"], state["exp_avg_sq_scale"] = encode(square, signed=False)


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW on z; gradients are taken at y = (1 - b1) z + b1 x, and x, the running mean of z, is what is used.

    The parameters are y; `averaged` gives x. z is kept in the state. A step at rate 0 < lr counts lr^2 in the mean.
    Source: The Road Less Scheduled, algorithm 1, <https://arxiv.org/abs/2405.15682>.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.int64)
                    state["weight_sum"] = torch.zeros((), dtype=torch.float64)
                    state["z"] = y.detach().clone()
                    state["exp_avg_sq"] = torch.zeros_like(y)
                gradient, z, square = y.grad, state["z"], state["exp_avg_sq"]
                state["step"] += 1
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                wide = (square / (1 - beta2 ** int(state["step"]))).sqrt_().add_(group["eps"])
                update = (gradient / wide).add_(y, alpha=group["weight_decay"])
                state["weight_sum"] += group["lr"] ** 2
                share = group["lr"] ** 2 / float(state["weight_sum"])
                # y moves towards z by its share of the mean, then along the update, as y = (1 - b1) z + b1 x has it
                y.lerp_(z, share).add_(update, alpha=group["lr"] * (beta1 * (1 - share) - 1))
                z.sub_(update, alpha=group["lr"])

    @torch.no_grad()
    def averaged(self) -> dict[Tensor, Tensor]:
        """x of every parameter that was updated: x = y + (y - z) (1 / b1 - 1)."""
        averages: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            beta1 = group["betas"][0]
            for y in group["params"]:
                if y in self.state:
                    averages[y] = y.detach().lerp(self.state[y]["z"], 1 - 1 / beta1)
        return averages
