"""Options of demonstrations that are learned beside samples. Source: CHORD, <https://arxiv.org/abs/2508.11408>."""

import math
from typing import Annotated

import msgspec
from msgspec import Meta


class Chord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With --demonstrations: the loss of a step is (1 - mu) of the objective's and mu of theirs."""

    mu: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of the demonstrations after --mu-warmup."""
    mu_valley: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share that mu falls to, along a cosine; without it mu stays."""
    mu_warmup: Annotated[int, Meta(ge=0)] = 0
    """Updates over which the share rises from 0 to mu."""
    mu_decay: Annotated[int, Meta(ge=0)] = 0
    """Updates over which it falls to --mu-valley after that."""
    phi: bool = False
    """Weigh each of their tokens by p * (1 - p), p its probability: what is known and what is far off teach little."""
    demonstration_bins: Annotated[int, Meta(ge=1)] = 1
    """Bins of demonstrations behind each update, over all ranks."""
    mu_start: Annotated[int, Meta(ge=0)] = 0
    """Updates that were taken before this run: where in the schedule and in the demonstrations it begins. A loop
    says so itself."""

    def __post_init__(self) -> None:
        if self.mu_decay and self.mu_valley is None:
            raise ValueError(f"mu_decay {self.mu_decay} and no mu_valley: say what mu falls to, or leave it out")

    def at(self, update: int) -> float:
        """Share of the demonstrations in update `update` of the run, counted from 0."""
        update += self.mu_start
        if update < self.mu_warmup:
            return self.mu * update / self.mu_warmup
        valley = self.mu if self.mu_valley is None else self.mu_valley
        done = min(1.0, (update - self.mu_warmup) / self.mu_decay) if self.mu_decay else 1.0
        return valley + (self.mu - valley) * 0.5 * (1 + math.cos(math.pi * done))
