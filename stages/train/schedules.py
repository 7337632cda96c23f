"""Learning rates: pure functions of the step, so that there is no scheduler state to save or to lose.

A schedule is a struct of options with a `share`: from progress through the steps after warm-up, in [0, 1], to a share
of the peak rate. A new one is a struct here, or in a package of somebody else's, and a line in the table.
"""

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.spec import Choice

Share = Annotated[float, Meta(ge=0, le=1)]


class Cosine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cosine"):
    """Falls along half a cosine."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        """Of the peak, after `done` of the `rest` steps that follow warm-up."""
        return 0.5 * (1.0 + math.cos(math.pi * done))


class Linear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="linear"):
    """Falls along a line."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        """Of the peak, after `done` of the `rest` steps that follow warm-up."""
        return 1.0 - done


class Constant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="constant"):
    """Stays at the peak."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        """All of it."""
        return 1.0


class Wsd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="wsd"):
    """Stays at the peak and falls linearly at the end: warm-up, stable, decay, <https://arxiv.org/abs/2404.06395>."""

    decay: Share = 0.1
    """Share of all steps in which the rate falls."""
    shape: Literal["linear", "sqrt"] = "linear"
    """How it falls: along a line, or as 1 - sqrt of the decay's progress, which is steeper at first,
    <https://arxiv.org/abs/2405.18392>."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        """Of the peak, after `done` of the `rest` steps that follow warm-up."""
        # the decay is a share of all steps, `done` of those after warm-up
        decay = min(1.0, self.decay * num_steps / rest)
        left = 1.0 if decay == 0 else min(1.0, (1.0 - done) / decay)
        return left if self.shape == "linear" else 1.0 - math.sqrt(1.0 - left)


class Polynomial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="polynomial"):
    """Falls as a power of the steps that are left."""

    power: Annotated[float, Meta(gt=0)] = 2.0
    """Exponent: 1 is a line, 2 falls fast at first."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        """Of the peak, after `done` of the `rest` steps that follow warm-up."""
        return float((1.0 - done) ** self.power)


class CosineRestarts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cosine-restarts"):
    """Falls along half a cosine several times, each time from the peak, <https://arxiv.org/abs/1608.03983>."""

    cycles: Annotated[int, Meta(ge=1)] = 2
    """How often the rate falls."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        """Of the peak, after `done` of the `rest` steps that follow warm-up."""
        return 0.5 * (1.0 + math.cos(math.pi * ((done * self.cycles) % 1.0)))


SCHEDULES = Choice(
    group="postmill.schedules",
    table={
        "cosine": "postmill.stages.train.schedules:Cosine",
        "linear": "postmill.stages.train.schedules:Linear",
        "constant": "postmill.stages.train.schedules:Constant",
        "wsd": "postmill.stages.train.schedules:Wsd",
        "polynomial": "postmill.stages.train.schedules:Polynomial",
        "cosine-restarts": "postmill.stages.train.schedules:CosineRestarts",
    },
)
"""How the learning rate moves."""


def warmup_steps(warmup: float, num_steps: int) -> int:
    """How many steps warm-up takes: a share of `num_steps` rounded up, or a number."""
    return math.ceil(warmup * num_steps) if warmup < 1 else min(int(warmup), num_steps)


def lr_at(schedule: Any, peak: float, step: int, num_steps: int, *, warmup: float, min_lr: float) -> float:
    """Learning rate of update `step`, counted from 0, of `num_steps`.

    Warm-up rises linearly and reaches the peak at its last step; the first step's rate is not 0. The step after the
    last one would have the lowest rate, `min_lr` of the peak.
    """
    first = warmup_steps(warmup, num_steps)
    if step < first:
        return peak * (step + 1) / first
    rest = num_steps - first
    done = (step - first) / rest
    return peak * (min_lr + (1.0 - min_lr) * float(schedule.share(done, rest, num_steps)))
