"""The state of an optimizer as named tensors, whatever it keeps, and its learning rate."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.stages.progress import Progress
from postmill.stages.train.parallel.layout import Layout

_FACTOR = "lr_factor"
_EMA = "ema"


class Learner(NamedTuple):
    """What changes in training."""

    net: Any
    """The peft model, or the model itself."""
    parameters: dict[str, Tensor]
    """What is trained, by name."""
    optimizer: torch.optim.Optimizer
    layout: Layout
    """How both lie on the ranks."""
    ema: "Ema | None" = None
    """The running mean of the parameters, if one is kept."""
    is_partial: bool = False
    """Whether the optimizer may keep nothing of some parameters, since they rest."""

    @classmethod
    def of(cls, net: Any, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, layout: Layout) -> "Learner":
        """The optimizer made fit for how its parameters lie."""
        layout.prepare(optimizer)
        return cls(net, parameters, optimizer, layout)


def release(learner: Learner) -> None:
    """Leave what was learned in the parameters, and give up gradients and moments: saving needs memory of its own."""
    with torch.no_grad():
        for parameter, value in _mean(learner).items():
            parameter.copy_(value)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.optimizer.state.clear()


class Ema:
    """The running mean of parameters, which starts from their first values."""

    def __init__(self, decay: float, parameters: Iterable[Tensor]) -> None:
        self._decay = decay
        self.mean = {parameter: parameter.detach().clone() for parameter in parameters}

    @torch.no_grad()
    def update(self) -> None:
        """After an update of the parameters."""
        for parameter, mean in self.mean.items():
            mean.lerp_(parameter.detach(), 1 - self._decay)


def _mean(learner: Learner) -> dict[Tensor, Tensor]:
    """The parameters' averages: our running mean, or that of an optimizer that keeps one."""
    if learner.ema is not None:
        return learner.ema.mean
    found: dict[Tensor, Tensor] = getattr(learner.optimizer, "averaged", dict)()
    return found


@contextlib.contextmanager
def averaged(learner: Learner) -> Iterator[None]:
    """Inside, the parameters are what the run has learned, where a mean of them is."""
    mean = _mean(learner)
    before = {parameter: parameter.detach().clone() for parameter in mean}
    with torch.no_grad():
        for parameter, value in mean.items():
            parameter.copy_(value)
        yield
        for parameter, value in before.items():
            parameter.copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr`, times the factor of each group, from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_FACTOR, 1.0)


def set_factors(optimizer: torch.optim.Optimizer, factors: Mapping[Tensor, float]) -> None:
    """Split the optimizer's groups so that each parameter learns at its factor times the rate."""
    for part in getattr(optimizer, "parts", [optimizer]):
        split: list[dict[str, Any]] = []
        for group in part.param_groups:
            by_factor: dict[float, list[Tensor]] = {}
            for parameter in group["params"]:
                by_factor.setdefault(factors.get(parameter, 1.0), []).append(parameter)
            split += [group | {"params": params, _FACTOR: factor} for factor, params in by_factor.items()]
        part.param_groups[:] = split
    if hasattr(optimizer, "parts"):
        optimizer.param_groups = [group for part in optimizer.parts for group in part.param_groups]


def named_factors(lr_groups: list[str], names: Iterable[str]) -> dict[str, float]:
    """Factors by name from `REGEX=FACTOR`; the first that fits counts. Raises ConfigError (2) for an unused one."""
    rules = [_rule(text) for text in lr_groups]
    factors: dict[str, float] = {}
    used: set[str] = set()
    for name in names:
        hit = next(((text, factor) for text, regex, factor in rules if regex.search(name)), None)
        if hit:
            factors[name] = hit[1]
            used.add(hit[0])
    for text, _, _ in rules:
        if text not in used:
            raise ConfigError(f"--lr-groups {text}: fits no trained parameter that an earlier one does not", USAGE)
    return factors


def _rule(text: str) -> tuple[str, re.Pattern[str], float]:
    regex, separator, factor = text.rpartition("=")
    try:
        if not separator:
            raise ValueError("no = in it")
        return text, re.compile(regex), float(factor)
    except (ValueError, re.error) as error:
        raise ConfigError(f"--lr-groups {text}: {error}; expected REGEX=FACTOR, like embed_tokens=0.1", USAGE) from None


def state_tensors(learner: Learner, *, keep: bool) -> dict[str, Tensor]:
    """`PARAMETER/exp_avg` and so on: all state of the optimizer, whole, on the CPU. Empty unless `keep`.

    Every rank has to call it.
    """
    whole_tensors: dict[str, Tensor] = {}
    for name, parameter in learner.parameters.items():
        state: dict[str, Any] = dict(learner.optimizer.state.get(parameter, {}))
        if learner.ema is not None:
            state[_EMA] = learner.ema.mean[parameter]
        Progress.beat()
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and not value.is_meta}
        for key, whole in learner.layout.whole_state(parameter, tensors).items():
            if keep:
                whole_tensors[f"{name}/{key}"] = whole.cpu().contiguous()
    return whole_tensors


def restore_state(learner: Learner, tensors: dict[str, Tensor], place: str) -> None:
    """Put back what `state_tensors` gave. Raises ArtifactError (78) naming `place` if a parameter is missing."""
    states: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = tensor
    if learner.ema is not None:
        for name, parameter in learner.parameters.items():
            mean = states.get(name, {}).pop(_EMA, None)
            if mean is None:
                raise ArtifactError(f"{place}: no running mean of {name}; start without --ema", MISMATCH)
            learner.ema.mean[parameter] = learner.layout.part(mean, parameter)
    if not any(states.values()):  # an optimizer that keeps none
        return
    for name, parameter in learner.parameters.items():
        if name not in states:
            if learner.is_partial:
                continue
            raise ArtifactError(f"{place}: no optimizer state for {name}; delete this checkpoint", MISMATCH)
        learner.layout.restore(learner.optimizer, parameter, states[name])
