"""AdamW with decoupled decay on matrices only, and its state as named tensors."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.stages.train.config import Train
from postmill.stages.train.parallel.layout import Layout


class Learner(NamedTuple):
    """What changes in training."""

    net: Any
    """The peft model, or the model itself."""
    parameters: dict[str, Tensor]
    """What is trained, by name."""
    optimizer: torch.optim.Optimizer
    layout: Layout
    """How both lie on the ranks."""


def make_optimizer(cfg: Train, parameters: dict[str, Tensor]) -> torch.optim.AdamW:
    """AdamW over `parameters`; norms and biases (fewer than two dimensions) do not decay."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.optimizer.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=cfg.peak_lr,
        betas=(cfg.optimizer.beta1, cfg.optimizer.beta2),
        eps=cfg.optimizer.eps,
        fused=True,
    )


def release(learner: Learner) -> None:
    """Give up gradients and moments: saving needs memory of its own."""
    learner.optimizer.zero_grad(set_to_none=True)
    learner.optimizer.state.clear()


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_tensors(learner: Learner, *, keep: bool) -> dict[str, Tensor]:
    """`PARAMETER/exp_avg` and so on: all state of the optimizer, whole, on the CPU. Empty unless `keep`.

    Every rank has to call it.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in learner.parameters.items():
        state: dict[str, Any] = learner.optimizer.state.get(parameter, {})
        for key, value in state.items():
            whole = learner.layout.whole(value)
            if keep:
                found[f"{name}/{key}"] = whole.cpu().contiguous()
    return found


def restore_state(learner: Learner, tensors: dict[str, Tensor], place: str) -> None:
    """Put back what `state_tensors` gave. Raises ArtifactError (78) naming `place` if a parameter is missing."""
    for name, parameter in learner.parameters.items():
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in tensors]
        if len(keys) != 3:
            raise ArtifactError(f"{place}: no optimizer state for {name}; delete this checkpoint", MISMATCH)
        # `step` lies where fused AdamW wants it: with the parameter
        learner.optimizer.state[parameter] = {
            key: learner.layout.part(tensors[f"{name}/{key}"], parameter) for key in keys
        }
