"""A loss of one's own: a function in a Python file, called as it is with every micro-batch.

    def loss(outputs, batch, norm):
        return -(batch.weights_T * outputs.logp_T).sum() / norm

It gets the numbers that were asked for (`Outputs`), the batch (`Batch`) and the step's normaliser, and returns a scalar
that is summed over micro-batches and ranks; or that and a dict of more sums, which the record has over the normaliser.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from postmill.io.errors import FAILED, USAGE, ConfigError, StageError
from postmill.stages.protocol import Input
from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.shared.python_file import load_file
from postmill.stages.train.objectives.interface import Loss, Objective
from postmill.stages.train.objectives.own_options import Own


def build_objective(options: Any, functions: Sequence[Input]) -> Objective:
    """The loss of `options`; that of `Own` is the function that is among the inputs."""
    if not isinstance(options, Own):
        built: Objective = options.build()
        return built
    [function] = functions
    assert function.path is not None
    return OwnLoss(options, function.name, load_function(function.path, function.name.rpartition(":")[2]))


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function `name` of the file. Raises ConfigError (2) if there is none; what the file raises travels."""
    module = load_file(str(path), f"postmill_own_{path.stem}")
    function = getattr(module, name, None)
    if not callable(function):
        functions = ", ".join(key for key, value in vars(module).items() if callable(value)) or "none"
        raise ConfigError(f"--objective {path}:{name}: no such function; the file has {functions}", USAGE)
    return function  # type: ignore[no-any-return]  # whatever it is, it can be called


class OwnLoss:
    """Calls `function`, and checks what it returns."""

    def __init__(self, options: Own, name: str, function: Callable[..., Any]) -> None:
        self.needs, self._name, self._function = options.needs, name, function

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """What the options ask for."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """What the function returns. Raises StageError (1) if that is no scalar, or has no gradient in training."""
        measure = self.needs.measures[0]
        returned = self._function(outputs, batch, norms[measure])
        total, sums = returned if isinstance(returned, tuple) else (returned, {})
        if not isinstance(total, Tensor) or total.ndim != 0:
            shape = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
            raise StageError(
                f"{self._name}: returned {shape}, expected a scalar tensor: the sum over the batch", FAILED
            )
        if torch.is_grad_enabled() and not total.requires_grad:
            raise StageError(f"{self._name}: what it returned has no gradient; compute it from outputs", FAILED)
        metrics = {name: (torch.as_tensor(value).detach(), measure) for name, value in sums.items()}
        return Loss(total, {"own": total.detach()}, metrics)
