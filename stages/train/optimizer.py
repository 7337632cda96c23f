"""The state of an optimizer as named tensors, whatever it keeps, and its learning rate."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.io.errors import MISMATCH, ArtifactError
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

    @classmethod
    def of(cls, net: Any, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, layout: Layout) -> "Learner":
        """The optimizer's groups parted as the layout wants them."""
        layout.group(optimizer)
        return cls(net, parameters, optimizer, layout)


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
            if not isinstance(value, Tensor):
                continue
            whole = learner.layout.whole(value)
            if keep:
                found[f"{name}/{key}"] = whole.cpu().contiguous()
    return found


def restore_state(learner: Learner, tensors: dict[str, Tensor], place: str) -> None:
    """Put back what `state_tensors` gave. Raises ArtifactError (78) naming `place` if a parameter is missing."""
    found: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        found.setdefault(name, {})[key] = tensor
    if not found:  # an optimizer that keeps none
        return
    for name, parameter in learner.parameters.items():
        if name not in found:
            raise ArtifactError(f"{place}: no optimizer state for {name}; delete this checkpoint", MISMATCH)
        # what is not as large as the parameter lies with it, where fused AdamW wants its `step`
        learner.optimizer.state[parameter] = {
            key: learner.layout.part(tensor, parameter) for key, tensor in found[name].items()
        }
